"""Split: labelled images of one source, decoded only when asked.

`Source` says where images come from; `Pixels` and `Files` are two of them, `Maps` (`maps.py`) where
labels of pixels come from. EXIF rotation is not applied, as in the loaders of torchvision and timm.
Left out: how images become batches (`data.py`), and what a data set is (`task.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tailor.errors import BadInput
from tailor.maps import Array, Maps, checked
from tailor.target import PIXEL_CLASS, Target, usual


class Source(Protocol):
    """Images by number. It must pickle: worker processes read from their own copy."""

    def read(self, i: int) -> Image.Image:
        """Decode image ``i``, in any mode that Pillow knows."""

    def where(self, i: int) -> str:
        """Path or id of image ``i``, for errors."""


class Split:
    """Labelled images of one source, decoded only when asked."""

    def __init__(
        self,
        source: Source,
        labels: Sequence[int] | Tensor | Maps,
        index: Tensor | None = None,
        *,
        target: Target | None = None,
    ) -> None:
        """Pair images with labels.

        Args:
            source: where the images come from.
            labels: (n,) class of each image of this split; or (n, C) with 1 for each class that
                is present, 0 absent, -1 not to be counted; or (n, K) floating numbers, NaN not to
                be counted; or `Maps`, for a label of every pixel, numbered like ``source``.
            index: (n,) number of each image within ``source``; all of them in order by default.
            target: what labels are; by default what is usual for their shape and type, and
                classes for maps.

        Raises:
            BadInput: maps without a dense target, or labels of images with one.
        """
        self.maps: Maps | None = None
        self.source = source
        if isinstance(labels, Tensor | Sequence | np.ndarray):
            found = torch.as_tensor(labels)
            kind = torch.float32 if found.is_floating_point() else torch.int8
            self.labels = found.to(torch.int64 if found.ndim == 1 else kind)  # (n,), (n, C)
            self.target = target or usual(self.labels)
        else:
            self.maps = labels
            count = len(labels) if index is None else len(index)
            self.labels = torch.empty(count, 0, dtype=torch.int8)  # they are in `maps`
            self.target = target or PIXEL_CLASS
        if self.target.dense != (self.maps is not None):
            raise BadInput(
                f"labels of kind {self.target.kind!r} are "
                f"{'maps, one per image' if self.target.dense else 'one tensor for all images'}: "
                "give them so"
            )
        self.index = torch.arange(len(self.labels)) if index is None else index  # (n,)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        """Decode image ``i`` to RGB.

        Raises:
            BadInput: the image is missing, truncated or no image; the message names it.
        """
        number = int(self.index[i])
        try:
            return _rgb(self.source.read(number))
        except BadInput:
            raise
        except UnidentifiedImageError as error:
            raise self._unreadable(i, "not an image format that Pillow knows") from error
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
        except Exception as error:
            raise self._unreadable(i, " ".join(str(error).split())) from error

    def read_map(self, i: int, size: tuple[int, int]) -> Array:
        """The labels that lie under image ``i``.

        Args:
            i: number of the image in this split.
            size: width and height of the image.

        Returns:
            (H, W) int16 classes, -1 not counted, or (K, H, W) float32 values, NaN not counted.

        Raises:
            BadInput: they cannot be read, do not have the image's size, or are out of range.
        """
        assert self.maps is not None
        number = int(self.index[i])
        where = self.maps.where(number)
        try:
            found = self.maps.read(number)
        except BadInput:
            raise
        except Exception as error:  # whatever Pillow or numpy raise
            raise BadInput(
                f"{where} cannot be read ({' '.join(str(error).split())}): replace it, or leave "
                "such images out with --skip-bad-images"
            ) from error
        found = checked(found, self.maps.outputs, numeric=self.target.numeric, where=where)
        if found.shape[:-3:-1] != size:
            raise BadInput(
                f"{where} is {found.shape[-1]}x{found.shape[-2]}, its image {size[0]}x{size[1]}: "
                "give both the same size"
            )
        return found

    def where(self, i: int) -> str:
        """Path or id of image ``i``, for errors."""
        return self.source.where(int(self.index[i]))

    def subset(self, indices: Sequence[int] | Tensor) -> Split:
        """The split that holds images ``indices`` of this one, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        labels = self.labels[chosen] if self.maps is None else self.maps
        return Split(self.source, labels, self.index[chosen], target=self.target)

    @property
    def strata(self) -> Tensor:
        """(n,) or (n, C) classes by which a fair part is drawn; equal where labels are no classes.

        For `tailor.stratify`.
        """
        by_class = self.target.kind in ("class", "set")
        return self.labels if by_class else torch.zeros(len(self), dtype=torch.int64)

    def _unreadable(self, i: int, reason: str) -> BadInput:
        return BadInput(
            f"{self.where(i)} cannot be read as an image ({reason}): replace or remove it, "
            "or leave such images out with --skip-bad-images"
        )


class Pixels:
    """A source of images that already are arrays."""

    def __init__(self, pixels: npt.NDArray[np.uint8], name: str) -> None:
        """Take (n, H, W) grey or (n, H, W, 3) colour images; ``name`` leads every `where`."""
        self.pixels = pixels
        self.name = name

    def read(self, i: int) -> Image.Image:
        """Wrap image ``i``; nothing is decoded."""
        return Image.fromarray(self.pixels[i])

    def where(self, i: int) -> str:
        """The data set's name and the image's number."""
        return f"{self.name} image {i}"


class Files:
    """A source of image files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take the path of every image."""
        self.paths = paths

    def read(self, i: int) -> Image.Image:
        """Open and decode file ``i``."""
        with Image.open(self.paths[i]) as image:
            image.load()
            return image

    def where(self, i: int) -> str:
        """The file's path."""
        return str(self.paths[i])


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 and turn most images white.
        grey = np.asarray(image)
        return Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB would warn
    return image.convert("RGB")
