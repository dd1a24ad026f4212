"""Maps: labels that lie under the images, one per pixel, decoded only when asked.

`Maps` is where they come from, as `Source` is for images. A map has the size of its image: class
numbers (H, W) where -1 is not counted, or K values (K, H, W) where NaN is not counted. What a
network's view makes of one is here too: the same centre as the image's, scaled to the same square.
Crops and flips of whole batches are `tailor.moves`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from tailor.errors import BadInput

Array = npt.NDArray[Any]
Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the image


class Maps(Protocol):
    """Label maps by number, which is that of their image. It must pickle, as a `Source`."""

    outputs: int  # classes, or values of a pixel

    def __len__(self) -> int: ...

    def read(self, i: int) -> Array:
        """(H, W) whole numbers, or (outputs, H, W) floating ones, of image ``i``."""

    def where(self, i: int) -> str:
        """Path or id of map ``i``, for errors."""


class Arrays:
    """Label maps that already are arrays."""

    def __init__(self, maps: Array, outputs: int, name: str) -> None:
        """Take (n, H, W) class numbers or (n, K, H, W) values; ``name`` leads every `where`."""
        self.maps, self.outputs, self.name = maps, outputs, name

    def __len__(self) -> int:
        return len(self.maps)

    def read(self, i: int) -> Array:
        """Map ``i``; nothing is decoded."""
        found: Array = self.maps[i]
        return found

    def where(self, i: int) -> str:
        """The data set's name and the image's number."""
        return f"{self.name} of image {i}"


def checked(found: Array, outputs: int, *, numeric: bool, where: str) -> Array:
    """A map as the toolkit keeps it: int16 class numbers or float32 values.

    Args:
        found: (H, W) class numbers or (outputs, H, W) values.
        outputs: classes, or values of a pixel.
        numeric: whether values are wanted.
        where: its name, for the errors.

    Raises:
        BadInput: another shape, a class out of range, or an infinite value.
    """
    wanted = f"({outputs}, height, width)" if numeric else "(height, width)"
    if found.ndim != 2 + numeric or (numeric and len(found) != outputs):
        raise BadInput(f"{where} has shape {found.shape}, not {wanted}: write it anew")
    if numeric:
        values = found.astype(np.float32)
        if np.isinf(values).any():
            raise BadInput(f"{where} has an infinite value: mark what is not counted with NaN")
        return values
    if found.dtype.kind not in "iub":
        raise BadInput(f"{where} holds {found.dtype}, but classes are whole numbers: write it anew")
    outside = found[(found < -1) | (found >= outputs)]
    if outside.size:
        raise BadInput(
            f"{where} has class {outside[0]}, out of range for {outputs} classes: they count from "
            f"0 to {outputs - 1}, and -1 is not counted"
        )
    return found.astype(np.int16)


def scaled(found: Array, box: Box, side: int) -> Array:
    """Cut ``box`` out of a map and scale it to a square, as Pillow does to the image above it.

    A class is that of the nearest pixel. A value is the mean of what is counted, weighted as the
    image's colours are; it is counted where at least half of that weight is.

    Args:
        found: (H, W) int16 or (K, H, W) float32.
        box: part of the map.
        side: of the result.

    Returns:
        (side, side) or (K, side, side) of the same type.
    """
    size = (side, side)
    if found.ndim == 2:
        image = Image.fromarray(found.astype(np.int32))
        return np.asarray(image.resize(size, Image.Resampling.NEAREST, box=box)).astype(np.int16)

    def smooth(plane: Array) -> Array:
        image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))

    result = np.empty((len(found), side, side), np.float32)
    for k, plane in enumerate(found):
        counted = ~np.isnan(plane)
        if counted.all():
            result[k] = smooth(plane)
            continue
        weight = smooth(counted)
        mean = smooth(np.where(counted, plane, 0)) / weight.clip(1e-6)
        result[k] = np.where(weight >= 0.5, mean, np.nan)
    return result
