"""How a network looks at images: the square that is stored, the crop, the colours.

Only what happens to one image after decoding is done here, on the CPU with Pillow; crops,
flips and colour changes of whole batches are `tailor.augment`, the batches `tailor.data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from tailor import maps
from tailor.errors import BadInput
from tailor.task import MEAN, STD

Crop = Literal["none", "pad", "reflect", "random", "rrc"]
MARGIN = 0.875  # a random crop covers this share of the stored side, as is usual for ImageNet


@dataclass(frozen=True, kw_only=True)
class View:
    """How a network looks at images. Evaluation takes the centre, training what ``crop`` says."""

    px: int  # side of the network's input
    resize: int | None = None  # short side after decoding; None: fits the crop; 0: not scaled
    squash: bool = False  # scale both sides to `resize`, ignoring the aspect
    # "pad", "reflect": black or mirrored border of `pad`, then a window; "rrc": random resized crop
    crop: Crop = "none"
    pad: int = 4  # pixels, for crops "pad" and "reflect"
    flip: bool = False  # mirror half of the training images
    color: float = 0.0  # brightness, contrast, saturation change by up to this share
    contrast: float | None = None  # a share of its own; None: that of `color`
    saturation: float | None = None
    mean: tuple[float, ...] = MEAN  # per channel, in 0..1
    std: tuple[float, ...] = STD
    channels: int = 3  # 1: luminance; more than 3: red, green, blue, red, ... as timm repeats them

    def __post_init__(self) -> None:
        """Refuse views that no image could satisfy."""
        if self.px < 1:
            raise BadInput(f"input side is {self.px} px: give 1 or more")
        if self.resize and self.resize < self.px:
            raise BadInput(
                f"resize to {self.resize} px is smaller than the crop of {self.px}: "
                f"give {self.px} or more"
            )
        if self.squash and self.resize == 0:
            raise BadInput("squash scales images, but resize 0 forbids it: leave one of them out")
        if self.crop not in get_args(Crop):
            raise BadInput(f"crop is {self.crop!r}: use none, pad, reflect, random or rrc")
        if self.pad < 0:
            raise BadInput(f"pad is {self.pad} px: give 0 or more")
        if self.crop == "reflect" and self.pad >= self.side:
            raise BadInput(
                f"an image of {self.side} px has no {self.pad} px to mirror into a border: "
                f"give --pad {self.side - 1} or less"
            )
        for name, share in zip(("color", "contrast", "saturation"), self.shares, strict=True):
            if not 0 <= share <= 1:
                raise BadInput(f"{name} is {share}: give a share between 0 and 1")
        if self.channels < 1:
            raise BadInput(f"channels is {self.channels}: give 1 (grey) or 3 (colour)")
        if not self.mean or not self.std or min(self.std) <= 0:
            raise BadInput(f"mean {self.mean} and std {self.std} need one number each, std above 0")

    @property
    def side(self) -> int:
        """Side of the square that is stored: the centre of the image, before the crop."""
        if self.resize:
            return self.resize
        return round(self.px / MARGIN) if self.crop in ("random", "rrc") else self.px

    @property
    def varies(self) -> bool:
        """Whether training sees the same image in different ways."""
        return self.crop != "none" or self.flip or max(self.shares) > 0

    @property
    def shares(self) -> tuple[float, float, float]:
        """By what share brightness, contrast and saturation change at most."""
        given = (self.contrast, self.saturation)
        contrast, saturation = (self.color if share is None else share for share in given)
        return self.color, contrast, saturation

    @property
    def planes(self) -> int:
        """Channels that are stored: 1 or 3."""
        return 1 if self.channels == 1 else 3

    def store(self, image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
        """Scale the centre of an RGB image to what is stored.

        Args:
            image: any size.
            name: of the image, for the error.

        Returns:
            (planes, side, side) uint8.

        Raises:
            BadInput: ``resize`` is 0 and the image is smaller than ``side``.
        """
        box, size = self._box(image.size, name), (self.side, self.side)
        if self.resize == 0:
            image = image.crop(box)
        else:
            # The same as scaling the short side and cutting then, but a long, thin image
            # does not take more memory.
            image = image.resize(size, Image.Resampling.BILINEAR, box=box)
        if self.channels == 1:
            return np.asarray(image.convert("L"))[None]
        return np.asarray(image).transpose(2, 0, 1)

    def store_map(self, found: maps.Array, name: str) -> maps.Array:
        """Scale the centre of a label map to what is stored, as `store` does to its image.

        Args:
            found: (H, W) int16 classes or (K, H, W) float32 values.
            name: of the image, for the error.

        Returns:
            (side, side) or (K, side, side) of the same type.

        Raises:
            BadInput: as `store`.
        """
        box = self._box((found.shape[-1], found.shape[-2]), name)
        if self.resize == 0:
            left, upper, right, lower = (int(x) for x in box)
            return found[..., upper:lower, left:right]
        return maps.scaled(found, box, self.side)

    def _box(self, size: tuple[int, int], name: str) -> maps.Box:
        """The part of an image of ``size`` (width, height) that is stored."""
        width, height = size
        if self.resize == 0:
            if min(width, height) < self.side:
                raise BadInput(
                    f"{name} is {width}x{height}, smaller than the crop of {self.side} px: "
                    f"let images be scaled (--resize {self.side}) or use a smaller --px"
                )
            left, top = (width - self.side) // 2, (height - self.side) // 2
            return left, top, left + self.side, top + self.side
        if self.squash:
            return 0, 0, width, height
        across, down = (width - min(size)) / 2, (height - min(size)) / 2
        return across, down, width - across, height - down
