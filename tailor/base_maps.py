"""Base maps: what a frozen network says at four places on its way, for others to read.

The places are the stem and the last block of each resolution; four of them, evenly spaced, where
there are more, and blocks, evenly spaced, where there are fewer. Found by the shapes that
``trace.py`` saw; no architecture is named. Tokens are laid out in a square, those before it left
out. Columns read these (``column.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tailor.backbone import Backbone
from tailor.proxy import Node

COUNT = 4


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A place in a network that others read."""

    module: str  # its output, or the input of the first block
    is_input: bool
    node: Node
    skipped: int = 0  # tokens before those of the image: class, registers

    def map_of(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of what the module gives; tokens are laid out in a square."""
        if self.node.layout == "channels first":
            return x
        if self.node.layout == "tokens":
            side = math.isqrt(x.shape[1] - self.skipped)
            return x[:, -side * side :].transpose(1, 2).reshape(len(x), -1, side, side)
        return x.permute(0, 3, 1, 2)


def taps_of(backbone: Backbone) -> tuple[Tap, ...]:
    """The four places that others read, in network order.

    Raises:
        BadInput: a block whose output is neither a map nor tokens.
    """
    blocks, first = backbone.blocks, backbone.blocks[0]
    shapes = [backbone.chain.start_shape, *(b.out_shape for b in blocks)]
    names = [first.units[0], *(b.name for b in blocks)]
    nodes = [Node.of(s, where=n) for s, n in zip(shapes, names, strict=True)]
    ends = [i for i in range(1, len(nodes) - 1) if nodes[i].size != nodes[i + 1].size]
    places = [0, *ends, len(nodes) - 1]
    if len(places) < COUNT:
        places = list(range(len(nodes)))
    chosen = [places[round(k * (len(places) - 1) / (COUNT - 1))] for k in range(COUNT)]
    skipped = int(getattr(backbone.model, "num_prefix_tokens", 0))
    return tuple(
        Tap(module=names[i], is_input=i == 0, node=nodes[i], skipped=skipped) for i in chosen
    )


@torch.no_grad()
def read_base(
    run: Callable[[Tensor], Tensor], model: nn.Module, taps: Sequence[Tap], images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """What the base returns for (B, C, H, W) images, and its maps at ``taps``."""
    found: dict[Tap, Tensor] = {}

    def keep(tap: Tap, x: Tensor) -> None:
        found[tap] = tap.map_of(x).clone()  # the next block may change it in place

    handles = []
    for tap in set(taps):
        module = model.get_submodule(tap.module)
        if tap.is_input:
            handles.append(
                module.register_forward_pre_hook(lambda _, given, tap=tap: keep(tap, given[0]))
            )
        else:
            handles.append(
                module.register_forward_hook(lambda _, __, result, tap=tap: keep(tap, result))
            )
    try:
        features = run(images)
    finally:
        for handle in handles:
            handle.remove()
    return features, [found[tap] for tap in taps]
