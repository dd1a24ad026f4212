"""Moves: what the random numbers of one training batch do to its images and its labels.

A batch is moved once: the same window or box and the same flips for an image and for the map of
labels that lies under it. Colours change in images only. A border has no labels: a black one shows
nothing, and a mirrored one would turn vectors around. Values of whole images (and of pixels) change
sign under mirroring where their target says so (``Target.flip_signs``).

Who draws the numbers is `tailor.data`. Shapes: B images, C channels, K outputs, S pixels stored,
P pixels wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tailor import augment
from tailor.target import Target
from tailor.view import View

NUMBERS = 10  # uniform random numbers that an image takes; all are drawn, whatever is used


@dataclass(frozen=True)
class Moves:
    """One row of random numbers for each image of a batch, and the view that reads them."""

    view: View
    uniform: Tensor  # (B, NUMBERS) in [0, 1)

    def images(self, images: Tensor) -> Tensor:
        """(B, C, S, S) stored pixels to (B, C, P, P): cut, mirrored, colours changed."""
        view = self.view
        if view.crop == "rrc":
            images = augment.resized_crop(images.float(), self._boxes, view.px)
        elif view.crop == "none":
            images = centre(images, view.px)
        else:
            mirrored = view.crop == "reflect"
            images = augment.pad_crop(images, self._corner, view.px, self._pad, mirrored=mirrored)
        if view.flip:
            images = augment.mirror(images, self._flipped)
        if max(view.shares) > 0:
            shares = torch.tensor(view.shares, device=images.device)
            factors = 1 + shares * (2 * self.uniform[:, 7:10] - 1)
            images = augment.jitter(images.float(), factors)
        return images

    def maps(self, maps: Tensor, target: Target) -> Tensor:
        """(B, S, S) or (B, K, S, S) label maps to (B, P, P) or (B, K, P, P), as the images."""
        view, classes = self.view, maps.ndim == 3
        if classes:
            maps = maps[:, None]
        if view.crop == "rrc":
            crop = augment.resized_classes if classes else augment.resized_values
            maps = crop(maps, self._boxes, view.px)
        elif view.crop == "none":
            maps = centre(maps, view.px)
        else:
            border = -1 if classes else float("nan")
            maps = augment.pad_crop(maps, self._corner, view.px, self._pad, border=border)
        if view.flip:
            maps = augment.mirror(maps, self._flipped)
        maps = self.values(maps, target)
        return maps[:, 0] if classes else maps

    def values(self, values: Tensor, target: Target) -> Tensor:
        """(B, K, ...) values, those of mirrored images with the sign that mirroring gives them."""
        if not (self.view.flip and target.flip_signs):
            return values
        signs = torch.tensor(target.flip_signs, device=values.device, dtype=values.dtype)
        factor = torch.where(self._flipped[:, None], signs, torch.ones_like(signs))  # (B, K)
        return values * factor.view(*factor.shape, *(1,) * (values.ndim - 2))

    @property
    def _boxes(self) -> Tensor:
        return augment.boxes(self.uniform[:, :4])

    @property
    def _pad(self) -> int:
        return self.view.pad if self.view.crop in ("pad", "reflect") else 0

    @property
    def _corner(self) -> Tensor:
        places = self.view.side + 2 * self._pad - self.view.px + 1
        # float32 can round up to 1, one place too far
        return (self.uniform[:, 4:6] * places).long().clamp(max=places - 1)

    @property
    def _flipped(self) -> Tensor:
        return self.uniform[:, 6] < 0.5


def centre(images: Tensor, px: int) -> Tensor:
    """The middle window of (..., S, S) images or maps."""
    start = (images.shape[-1] - px) // 2
    return images[..., start : start + px, start : start + px]
