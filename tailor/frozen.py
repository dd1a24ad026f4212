"""Frozen passes: running a network that nothing trains, as cheaply as its numbers allow.

Without a gradient nothing has to be kept for one. On a CPU, convolutions of images with channels
innermost run up to a quarter faster (measured, medians: ResNet-44 at 32 px 1.14x, ResNet-34 at 128
px 1.11x, EfficientNet-B0 at 64 px 1.27x, transformers 1.0x), and a batch that goes through a deep
network in parts stays in the processor's caches (1.05x more for ResNet-44). Tried and left out:
folding batch norms into convolutions (1.03x to 1.09x; other numbers, and another copy of the
weights) and ``inference_mode`` (1.02x; what it returns cannot be used in a backward pass).

The layout of the images rounds differently. Whoever compares to the bit, such as a merged network
with its student, must run both in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from tailor.backbone import Backbone

T = TypeVar("T", Tensor, tuple[Tensor, ...])
_WORTH = 3_000_000_000  # MACs of a part: below, what a call costs beside them shows
_FEWEST = 32  # images of a part


def part_of(backbone: Backbone) -> int:
    """Images that should go through a backbone together: 32, or more where it is small."""
    macs = sum(layer.macs for layer in backbone.layers)
    return max(_FEWEST, -(-_WORTH // max(macs, 1)))


@torch.no_grad()
def frozen_pass(
    network: Callable[[Tensor], T], images: Tensor, *, part: int, exact: bool = False
) -> T:
    """What ``network`` returns for ``images``, without gradient.

    Args:
        network: (B, C, H, W) to one tensor (B, ...), or several; in evaluation mode.
        images: (B, C, H, W).
        part: images that go through at once, on a CPU.
        exact: leave the layout of the images as it is, and with it the rounding.
    """
    if images.device.type != "cpu":
        return network(images)
    if not exact and images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        images = images.contiguous(memory_format=torch.channels_last)
    if len(images) <= part:
        return network(images)
    found = [network(some) for some in torch.split(images, part)]
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    return tuple(torch.cat(same) for same in zip(*found, strict=True))
