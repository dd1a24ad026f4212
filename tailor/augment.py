"""Augmentation of whole batches, on whatever device they lie.

Pure functions of images and random numbers; who draws the numbers, and from which seed, is
`tailor.data`. Nothing here depends on a sample's neighbours, so a batch that is shared out
over processes gives bit for bit the same images as the whole batch in one.

Source of the random resized crop and its ranges: Szegedy et al., Going deeper with
convolutions, CVPR 2015. Shapes: B images, C channels, S pixels stored, P pixels wanted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's grey
AREA = (0.08, 1.0)  # share of the image that a random resized crop covers
RATIO = (3 / 4, 4 / 3)  # its width over its height


def pad_crop(
    images: Tensor,
    corner: Tensor,
    px: int,
    pad: int,
    *,
    mirrored: bool = False,
    border: float = 0,
) -> Tensor:
    """Add a border and cut one window out of each image.

    Args:
        images: (B, C, S, S).
        corner: (B, 2) integers, top and left of the window within the padded image.
        px: side of the window.
        pad: width of the border, 0 for none.
        mirrored: the border shows the image mirrored at its outermost pixels, each of which is
            there once; ``pad`` is less than S then.
        border: the value of a border that is not mirrored, 0 for black.

    Returns:
        (B, C, px, px) of the same type.
    """
    if mirrored:
        # By index, because torch's own mirrored border does not take bytes.
        last = images.shape[-1] - 1
        place = torch.arange(-pad, last + pad + 1, device=images.device)
        place = last - (last - place.abs()).abs()
        padded = images.index_select(2, place).index_select(3, place)
    else:
        padded = F.pad(images, (pad, pad, pad, pad), value=border) if pad else images
    # One advanced index over all windows: no loop over samples, and on a CPU six times
    # faster than an index per pixel.
    windows = padded.unfold(2, px, 1).unfold(3, px, 1)  # (B, C, tops, lefts, px, px)
    sample = torch.arange(len(images), device=images.device)
    return windows[sample, :, corner[:, 0], corner[:, 1]]


def boxes(uniform: Tensor) -> Tensor:
    """Turn random numbers into boxes for `resized_crop`.

    Args:
        uniform: (B, 4) numbers in [0, 1): area, ratio, and where the box lies.

    Returns:
        (B, 4) centre y, centre x, height, width as shares of the image's side. A side
        that would exceed the image is cut to it.
    """
    area = AREA[0] + uniform[:, 0] * (AREA[1] - AREA[0])
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** uniform[:, 1]  # uniform in its logarithm
    height = (area / ratio).sqrt().clamp(max=1)
    width = (area * ratio).sqrt().clamp(max=1)
    y = height / 2 + uniform[:, 2] * (1 - height)
    x = width / 2 + uniform[:, 3] * (1 - width)
    return torch.stack([y, x, height, width], dim=1)


def resized_crop(images: Tensor, box: Tensor, px: int) -> Tensor:
    """Cut a box out of each image and scale it to a square, bilinearly.

    Args:
        images: (B, C, S, S) floating point.
        box: (B, 4) as `boxes` returns them.
        px: side of the result.

    Returns:
        (B, C, px, px).
    """
    grid = _grid(box, px, images.dtype)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def resized_classes(maps: Tensor, box: Tensor, px: int) -> Tensor:
    """The same of (B, 1, S, S) whole numbers: each pixel is that of the nearest one."""
    grid = _grid(box, px, torch.float32)
    found = F.grid_sample(
        maps.float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return found.to(maps.dtype)


def resized_values(maps: Tensor, box: Tensor, px: int) -> Tensor:
    """The same of (B, K, S, S) numbers, NaN where not counted.

    A value is the mean of its neighbours that are counted, by their bilinear weight; it is counted
    where at least half of that weight is.
    """
    grid = _grid(box, px, maps.dtype)
    counted = (~maps.isnan()).to(maps.dtype)
    both = torch.cat([maps.nan_to_num(0.0), counted], dim=1)
    found = F.grid_sample(both, grid, padding_mode="border", align_corners=False)
    total, weight = found.chunk(2, dim=1)
    return torch.where(weight >= 0.5, total / weight, torch.nan)


def _grid(box: Tensor, px: int, dtype: torch.dtype) -> Tensor:
    """(B, px, px, 2) places x, y to sample at, for ``F.grid_sample``."""
    steps = (2 * torch.arange(px, device=box.device, dtype=dtype) + 1) / px - 1
    centre = 2 * box[:, :2] - 1  # grid_sample's image spans -1 to 1
    y = centre[:, :1] + box[:, 2:3] * steps  # (B, px)
    x = centre[:, 1:] + box[:, 3:4] * steps  # (B, px)
    shape = (len(box), px, px)
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)


def mirror(images: Tensor, mask: Tensor) -> Tensor:
    """Flip those (B, C, H, W) images left to right whose entry of ``mask`` (B,) is true."""
    return torch.where(mask[:, None, None, None], images.flip(-1), images)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, in this order.

    Args:
        images: (B, 1 or 3, H, W) floating point in 0..255; grey has no saturation.
        factors: (B, 3) one factor each, 1 leaves the image as it is.

    Returns:
        Images of the same shape, each step clipped to 0..255.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1)
    images = (images * brightness).clamp(0, 255)
    # A sum of whole numbers is exact in any order, so the mean does not depend on the batch.
    levels = _grey(images).round().to(torch.int64).sum((1, 2, 3), keepdim=True)
    mean = levels.to(images.dtype) / (images.shape[2] * images.shape[3])
    images = (mean + (images - mean) * contrast).clamp(0, 255)
    grey = _grey(images)
    return (grey + (images - grey) * saturation).clamp(0, 255)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
