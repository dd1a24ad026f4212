"""Sites: which layers of a backbone get an adapter.

A layer is known by where it lies: in the stem or in the early, middle or late third of the blocks,
and first in its block or later. What lies behind the last block belongs to it.
Left out: what an adapter is (``residual.py``).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn

from tailor.backbone import Backbone, Layer
from tailor.errors import BadInput

Depth = Literal["early", "middle", "late"]
DEPTHS: tuple[Depth, ...] = ("early", "middle", "late")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which layers get an adapter."""

    layers: Literal["auto", "spatial", "all"] = "auto"
    """Convolutions wider than 1x1 as in the paper (spatial), every convolution and linear layer
    (all); auto takes all where a block has no wider convolution that mixes channels."""
    convs: Literal["both", "first", "second"] = "both"
    """Of each block's layers, all, only the first, or only those after it."""
    depths: tuple[Depth, ...] = DEPTHS
    """Thirds of the network whose blocks get adapters."""
    stem: bool = True
    """Whether layers before the first block get one."""
    skip: tuple[str, ...] = ()
    """Names of layers without one; * stands for anything, as in 'layer1.*'."""


def sites(
    backbone: Backbone, placement: Placement, among: Sequence[Layer] | None = None
) -> tuple[Layer, ...]:
    """The layers that ``placement`` chooses, in network order.

    Args:
        backbone: whose blocks tell early from late.
        placement: what is wanted.
        among: choose from these instead of the layers that ``placement.layers`` names.

    Raises:
        BadInput: no layer is left, or a pattern of ``skip`` that fits none.
    """
    for pattern in placement.skip:
        if not any(fnmatch.fnmatchcase(x.name, pattern) for x in backbone.layers):
            raise BadInput(
                f"skip {pattern!r} fits no layer of {backbone.name}; its first is "
                f"{backbone.layers[0].name!r}, its last {backbone.layers[-1].name!r}"
            )
    if not placement.depths:
        raise BadInput(f"depths is empty; give some of {' '.join(DEPTHS)}")
    if strange := [d for d in placement.depths if d not in DEPTHS]:
        raise BadInput(f"depths has {strange[0]!r}; give some of {' '.join(DEPTHS)}")
    chosen = _eligible(backbone, placement.layers) if among is None else among
    places = {x.name: _block_of(backbone, x.name) for x in backbone.layers}
    found: list[Layer] = []
    met: set[int] = set()  # blocks whose first layer has been seen
    for layer in chosen:
        block = places[layer.name]
        if block is None:
            wanted = placement.stem
        else:
            first = block not in met
            met.add(block)
            wanted = DEPTHS[block * 3 // len(backbone.blocks)] in placement.depths
            wanted &= placement.convs == "both" or (placement.convs == "first") == first
        if wanted and not any(fnmatch.fnmatchcase(layer.name, p) for p in placement.skip):
            found.append(layer)
    if not found:
        raise BadInput(
            f"no layer of {backbone.name} is left for an adapter; give more --depths or --convs, "
            f"less --skip, or --layers all"
        )
    return tuple(found)


def check_rank(rank: int, sizes: Mapping[str, int], backbone: str) -> None:
    """Refuse a rank that makes no layer's adapter smaller.

    Args:
        rank: of two thin matrices.
        sizes: layer -> the largest rank that its adapter can have.
        backbone: its name, for people.

    Raises:
        BadInput: names the layer with the largest rank, and the ranks that can be given.
    """
    name = max(sizes, key=lambda n: sizes[n])
    highest = max(sizes[name] - 1, 1)
    if not 1 <= rank <= highest:
        raise BadInput(
            f"rank is {rank}, but the largest adapter of {backbone} ({name!r}) has rank "
            f"{sizes[name]}; give --rank 1 to {highest}"
        )


def _eligible(backbone: Backbone, layers: str) -> Sequence[Layer]:
    """Layers of the wanted sort, wherever they lie."""
    spatial = [x for x in backbone.layers if _is_wide(backbone, x)]
    if layers == "spatial":
        return spatial
    if layers == "auto":
        mixing = {
            _block_of(backbone, x.name)
            for x in spatial
            if cast(nn.Conv2d, backbone.model.get_submodule(x.name)).groups == 1
        }
        if set(range(len(backbone.blocks))) <= mixing:
            return spatial
    return backbone.layers


def _is_wide(backbone: Backbone, layer: Layer) -> bool:
    size = getattr(backbone.model.get_submodule(layer.name), "kernel_size", (1,))
    return max(size) > 1


def _block_of(backbone: Backbone, name: str) -> int | None:
    """Number of the block that a layer belongs to; None for the stem."""
    for number, block in enumerate(backbone.blocks):
        if any(name == unit or name.startswith(f"{unit}.") for unit in block.units):
            return number
    if any(name == m or name.startswith(f"{m}.") for m in backbone.chain.tail):
        return len(backbone.blocks) - 1
    return None
