"""Pixel head: a light decoder from the last feature map to an output for every pixel.

    3x3 convolution to 64 channels; then, until half of the image's side is reached, twice the side
    (bilinear) and a 3x3 convolution to half the channels, 16 at least; a 1x1 convolution to the
    outputs; and bilinear to the image's side

Every 3x3 convolution is followed by GroupNorm of 8 groups and ReLU, so that a head has no running
statistics and does not depend on the batch. It sees the last map only: fine outlines are beyond it,
and beyond what a task is asked to pay for. Left out: connections to earlier maps (U-Net, feature
pyramids), and the published decoder of Taskonomy (``taskonomy_decoder.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, NARROWEST, GROUPS = 64, 16, 8


class PixelHead(nn.Module):
    """(B, C, h, w) maps to (B, K, H, W) logits or values.

    Args:
        feature_shape: (C, h, w) of the map.
        outputs: K.
        size: (H, W) of the images.
    """

    def __init__(self, feature_shape: tuple[int, ...], outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        channels, height, _ = feature_shape
        self.size, self.out_features = size, outputs
        self.first = nn.Sequential(*_layer(channels, WIDTH))
        self.doublings = nn.ModuleList()
        width = WIDTH
        while 2 * height * 2 <= size[0]:
            after = max(width // 2, NARROWEST)
            self.doublings.append(nn.Sequential(*_layer(width, after)))
            height, width = 2 * height, after
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """One logit or value per output and pixel."""
        x: Tensor = self.first(features)
        for layer in self.doublings:
            x = layer(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return F.interpolate(self.out(x), self.size, mode="bilinear")


def pixel_head(
    feature_shape: tuple[int, ...], outputs: int, size: tuple[int, int], seed: int
) -> PixelHead:
    """A new head; its initialisation is a function of ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PixelHead(feature_shape, outputs, size)


def _layer(channels: int, out_channels: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    yield nn.GroupNorm(GROUPS, out_channels)
    yield nn.ReLU()
