"""`scenes:TARGET`: drawn rooms with exact labels for every pixel, without a download.

    scenes:curvature       two principal curvatures     scenes:edge_texture  changes of colour
    scenes:depth           along the camera's axis      scenes:reshading     white, lit anew
    scenes:distance        to the surface               scenes:rgb           the image itself
    scenes:normal          surface normal, x y z        scenes:denoising     ... from a noisy one
    scenes:edge_occlusion  rims in front of something   scenes:segment       what a pixel shows

All share the same 2000 training, 200 validation and 400 test images of 64 px; `scenes:normal@128`
draws them with 128. Values are linear in the quantity and lie in [-1, 1] (`TARGETS` says how), so
that a decoder may end in a tanh. Which scene an image shows, and how it is seen, is in
`_scenes_world.py`. An image and its labels take about 4 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tailor.datasets import _scenes_world as world
from tailor.errors import BadInput
from tailor.maps import Array
from tailor.target import PIXEL_CLASS, PIXEL_VALUES, Target, target
from tailor.task import Split, Task

TITLE = "drawn rooms with exact labels"
COUNTS = {"train": 2000, "val": 200, "test": 400}
PX = 64
MEAN, STD = (0.355, 0.354, 0.357), (0.224, 0.223, 0.223)  # of the training images
FAR = 10.0  # metres; no surface is further
SHARPEST = 1 / 0.3  # 1/metre: curvature of the smallest radius that is drawn
NOISE = 0.2  # standard deviation of the grain that `denoising` takes away, in 0..1


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A target: its outputs, and how they follow from what is seen."""

    outputs: tuple[str, ...]
    labels: Callable[[world.Seen], Array]  # (K, H, W) values in [-1, 1], or (H, W) classes
    target: Target = PIXEL_VALUES


def occlusion(seen: world.Seen) -> Array:
    """(H, W) 1 where a pixel covers part of what a neighbour shows, else 0.

    A neighbour (of four) is covered if it belongs to another solid and lies behind the pixel's
    tangent plane: all solids are convex, so what they touch lies in front of it.
    """
    place = _points(seen)
    found = np.zeros(seen.solid.shape, bool)
    for here, there in _neighbours():
        behind = ((place[there] - place[here]) * seen.normal[here]).sum(-1) < 0
        found[here] |= behind & (seen.solid[there] != seen.solid[here])
    return found.astype(np.float64)


def contrast(seen: world.Seen) -> Array:
    """(H, W) largest change of colour (without light) to one of four neighbours, in [0, 1]."""
    found = np.zeros(seen.solid.shape)
    for here, there in _neighbours():
        change = np.linalg.norm(seen.albedo[there] - seen.albedo[here], axis=-1) / np.sqrt(3)
        found[here] = np.maximum(found[here], change)
    return found


def _values(quantity: Callable[[world.Seen], Array], top: float) -> Callable[[world.Seen], Array]:
    """0 to -1 and ``top`` to 1, as (1, H, W)."""
    return lambda seen: quantity(seen)[None] * (2 / top) - 1


def _image(seen: world.Seen) -> Array:
    """The pixels of the image, 0 to -1 and 255 to 1, as (3, H, W)."""
    return _pixels(seen).transpose(2, 0, 1) / 127.5 - 1


# Depth 0 m is -1 and 10 m is 1; curvature 0 is 0 and that of a radius of 30 cm is 1; a colour, a
# brightness or a contrast of 0 is -1 and of 1 is 1; normals are as they are.
RGB = ("red", "green", "blue")
TARGETS = {
    "curvature": Wanted(
        outputs=("k1", "k2"),
        labels=lambda seen: seen.curvature.transpose(2, 0, 1) / SHARPEST,
        target=target("pixel_values", loss="l2"),
    ),
    "denoising": Wanted(outputs=RGB, labels=_image),
    "depth": Wanted(outputs=("depth",), labels=_values(lambda seen: seen.depth, FAR)),
    "distance": Wanted(outputs=("distance",), labels=_values(lambda seen: seen.distance, FAR)),
    "edge_occlusion": Wanted(outputs=("edge",), labels=_values(occlusion, 1)),
    "edge_texture": Wanted(outputs=("edge",), labels=_values(contrast, 1)),
    "normal": Wanted(
        outputs=("x", "y", "z"),
        labels=lambda seen: seen.normal.transpose(2, 0, 1),
        target=target("pixel_values", flip_signs=(-1, 1, 1)),
    ),
    "reshading": Wanted(outputs=("light",), labels=_values(lambda seen: seen.reshading, 1)),
    "rgb": Wanted(outputs=RGB, labels=_image),
    "segment": Wanted(outputs=world.KINDS, labels=lambda seen: seen.kind, target=PIXEL_CLASS),
}


class Pictures:
    """The images of one split: a `tailor.task.Source`."""

    def __init__(self, split: str, px: int, *, noise: float = 0.0) -> None:
        """Draw ``split`` ("train", "val" or "test") with ``px`` pixels and so much grain."""
        self.split, self.px, self.noise = split, px, noise

    def read(self, i: int) -> Image.Image:
        """Draw image ``i``."""
        pixels = _pixels(_look(self.split, i, self.px))
        if self.noise:
            random = np.random.default_rng((world.SPLITS.index(self.split), i, 1))
            grain = random.normal(0, 255 * self.noise, size=pixels.shape)
            pixels = (pixels + grain).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels)

    def where(self, i: int) -> str:
        """Split and number."""
        return f"scenes {self.split} image {i}"


class Labels:
    """What lies under the images of one split: `tailor.maps.Maps`."""

    def __init__(self, split: str, px: int, name: str) -> None:
        """Label ``split`` with ``px`` pixels for the target called ``name``."""
        self.split, self.px, self.name = split, px, name
        self.outputs = len(TARGETS[name].outputs)

    def __len__(self) -> int:
        return COUNTS[self.split]

    def read(self, i: int) -> Array:
        """(K, H, W) values or (H, W) classes of image ``i``."""
        return TARGETS[self.name].labels(_look(self.split, i, self.px))

    def where(self, i: int) -> str:
        """Target, split and number."""
        return f"{self.name} of scenes {self.split} image {i}"


def read(name: str, root: Path, *, download: bool) -> Task:
    """Open ``scenes:name``; nothing lies on disk, so the other arguments are unused.

    Raises:
        BadInput: no such target, or a size that is none.
    """
    chosen, at, size = name.partition("@")
    if chosen not in TARGETS:
        raise BadInput(f"scenes have no target {chosen!r}: use one of {', '.join(TARGETS)}")
    if at and not (size.isdecimal() and int(size) > 0):
        raise BadInput(
            f"scenes:{name} asks for images of {size!r} px: write a number, as in "
            f"scenes:{chosen}@128"
        )
    px = int(size) if at else PX
    wanted = TARGETS[chosen]
    noise = NOISE if chosen == "denoising" else 0.0
    splits = {
        split: Split(
            Pictures(split, px, noise=noise),
            Labels(split, px, chosen),
            torch.arange(count),
            target=wanted.target,
        )
        for split, count in COUNTS.items()
    }
    return Task(
        name=f"scenes-{name}",
        classes=wanted.outputs,
        splits=splits,
        target=wanted.target,
        mean=MEAN,
        std=STD,
    )


@lru_cache(maxsize=8)
def _look(split: str, i: int, px: int) -> world.Seen:
    """An image and its labels are read one after the other: drawn once for both."""
    return world.see(world.draw(split, i), px)


def _pixels(seen: world.Seen) -> npt.NDArray[np.uint8]:
    """(H, W, 3) the image."""
    return (255 * seen.rgb).round().clip(0, 255).astype(np.uint8)


def _points(seen: world.Seen) -> Array:
    """(H, W, 3) what each pixel sees, in metres in the camera's frame."""
    px = len(seen.depth)
    return world.pixel_rays(px).reshape(px, px, 3) * seen.depth[..., None]


def _neighbours() -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Pairs of parts of an image: pixels, and their neighbours to each of four sides."""
    first, last, every = slice(None, -1), slice(1, None), slice(None)
    for a, b in (((first, every), (last, every)), ((every, first), (every, last))):
        yield a, b
        yield b, a
