"""Costs as the published programs count them, to compare with published tables and nothing else.

`cost.py` counts what is there; this file repeats two published rules with their slips, so that a
number of a paper can be met exactly. Nothing is chosen by these numbers unless a user asks for it
(``accounting="published"``).

TAPS (Wallingford et al., CVPR 2022; the notebook): active parameters of a ResNet are the weights of
the convolutions that are on, and every parameter with "bn" in its name.

NetTailor (Morgado & Vasconcelos, CVPR 2019; the program, which calls them FLOPs): the multiply-adds
of convolutions and linear maps, plus 2 per output element of a batch norm; pooling, activations,
sums and gates are free. The image has 224 px whatever was trained on. Its slips, all kept here:

- the stem is billed at the size that its pooling leaves: 56 x 56 for a ResNet that runs it at 112;
- a 3x3 stem (Wide ResNet-26) is billed as 7x7, and the classifier behind it at 512 inputs;
- what follows the last block (its end norm) is free, in FLOPs as in parameters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from tailor.backbone import Backbone
from tailor.cost import conv_macs, layer_macs, linear_macs
from tailor.errors import BadInput, first_line

# TAPS -----------------------------------------------------------------------------------------


class Share(NamedTuple):
    """Active parameters of the TAPS notebook, and what they are a part of."""

    active: int
    total: int
    ratio: float


def conv_names(model: nn.Module) -> list[str]:
    """Names of the 2-d convolutions in the order of ``named_parameters``.

    For a ResNet of timm or torchvision that is the stem, then per block conv1, conv2, (conv3),
    downsample: the numbering of the TAPS notebook and of its heat map.
    """
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]


def taps_paper_accounting(model: nn.Module, on: Collection[str]) -> Share:
    """Parameters as the notebook of TAPS counts them, to compare with published ratios.

    total = every parameter, one score per convolution and the classifier included; active = the
    weights of the convolutions that are on, and every parameter with "bn" in its name. That rule is
    the one place here where a name decides, because it decided in the published program: the
    batch norms of a shortcut are called ``downsample.1``, so they are missed, as are the
    classifier and all running statistics. `cost.account` counts what a task really stores.

    Args:
        model: a ResNet of timm or torchvision with its 1000-class head (any device, also meta).
        on: names of the convolutions whose score is at or above the threshold.

    Raises:
        BadInput: a name that is no convolution of ``model``.
    """
    convs = conv_names(model)
    if stray := sorted(set(on) - set(convs)):
        raise BadInput(f"{stray[0]!r} is no convolution of this model; take names of conv_names()")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    active = sum(size for name, size in sizes.items() if "bn" in name)
    active += sum(sizes[f"{name}.weight"] for name in set(on))
    total = sum(sizes.values()) + len(convs)
    return Share(active, total, active / total)


# NetTailor ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NetTailorCosts:
    """A backbone's FLOPs and parameters by NetTailor's program; shapes at the image it assumes."""

    stem: int  # FLOPs of everything before the first block
    blocks: tuple[int, ...]  # FLOPs of every universal block
    stem_params: int
    block_params: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]  # (C, H, W) of node 0, the stem's output, and of each block
    head_inputs: int  # what the classifier is billed at

    @property
    def network(self) -> int:
        """FLOPs of the backbone: what expected complexity is relative to."""
        return self.stem + sum(self.blocks)

    @property
    def params(self) -> int:
        """Universal parameters."""
        return self.stem_params + sum(self.block_params)

    def proxy(self, source: int, target: int, hidden: int | None = None) -> int:
        """FLOPs of a proxy between two nodes: 0 is the stem's output, l that of the l-th block."""
        out_channels, *out_hw = self.shapes[target]
        return nettailor_proxy_flops(self.shapes[source][0], out_channels, out_hw, hidden)

    def head(self, num_classes: int) -> int:
        """FLOPs of the classifier, and its parameters, which are as many."""
        return nettailor_head(self.head_inputs, num_classes)


def nettailor_published_costs(backbone: Backbone) -> NetTailorCosts:
    """What NetTailor's program bills for the universal part of ``backbone``.

    Counted at 224 px; for a family of ours, at its own size (64 px for ``wide_resnet26``).

    Raises:
        BadInput: the network cannot run at that size, or its blocks do not hand on (C, H, W).
    """
    model, channels = backbone.model, backbone.input_size[0]
    px = int(getattr(model, "default_input_size", (3, 224, 224))[-1])
    elements: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    first = model.get_submodule(backbone.blocks[0].name)
    hooks = [first.register_forward_pre_hook(partial(_note_input, shapes, "stem"))]
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            hooks.append(module.register_forward_hook(partial(_note_elements, elements, name)))
    for block in backbone.blocks:
        module = model.get_submodule(block.name)
        hooks.append(module.register_forward_hook(partial(_note_shape, shapes, block.name)))
    try:
        macs = layer_macs(model, (channels, px, px))
    except Exception as error:
        raise BadInput(
            f"the published accounting counts at {px} px, where backbone {backbone.name!r} cannot "
            f"run ({first_line(error)}); use the exact one"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    nodes = [shapes["stem"], *(shapes[block.name] for block in backbone.blocks)]
    if any(len(shape) != 3 for shape in nodes):
        raise BadInput(
            f"the published accounting knows feature maps only, and {backbone.name!r} hands on "
            f"shapes like {nodes[0]}; use the exact one"
        )
    flops = {name: macs.get(name, 0) + 2 * elements.get(name, 0) for name in {*macs, *elements}}
    params = {name: p.numel() for name, p in model.named_parameters()}
    inside = [unit for block in backbone.blocks for unit in block.units] + list(backbone.chain.tail)
    stem, wide = _stem(model, [name for name in flops if not _within(name, inside)], nodes[0])
    return NetTailorCosts(
        stem=stem,
        blocks=tuple(_sum(flops, block.units) for block in backbone.blocks),
        stem_params=sum(params.values()) - _sum(params, inside),
        block_params=tuple(_sum(params, block.units) for block in backbone.blocks),
        shapes=tuple(nodes),
        head_inputs=512 if wide else backbone.num_features,
    )


def nettailor_proxy_flops(
    in_channels: int, out_channels: int, out_hw: Sequence[int], hidden: int | None = None
) -> int:
    """FLOPs of a proxy: 1x1 convolution and batch norm, its pooling free.

    Args:
        in_channels, out_channels: of the nodes that it joins.
        out_hw: height and width of the target.
        hidden: channels in the middle of a bottleneck proxy, twice convolution and norm.
    """
    if hidden is not None:
        halves = ((in_channels, hidden), (hidden, out_channels))
        return sum(nettailor_proxy_flops(*half, out_hw) for half in halves)
    return conv_macs(in_channels, out_channels, kernel=1, out_hw=out_hw) + 2 * (
        out_channels * math.prod(out_hw)
    )


def nettailor_proxy_params(in_channels: int, out_channels: int, hidden: int | None = None) -> int:
    """Parameters of a proxy: convolution without bias, affine of the norm, no statistics."""
    return nettailor_proxy_flops(in_channels, out_channels, (1, 1), hidden)


def nettailor_hidden(out_channels: int) -> int:
    """Channels in the middle of a bottleneck proxy as coded; the paper has a quarter of the block's
    own, that is, ``out_channels // 16``."""
    return max(out_channels // 32, 16)


def nettailor_head(num_features: int, num_classes: int) -> int:
    """FLOPs of the classifier, the same as its parameters: weight and bias."""
    return linear_macs(num_features, num_classes) + num_classes


def _stem(model: nn.Module, names: Sequence[str], shape: tuple[int, ...]) -> tuple[int, bool]:
    """FLOPs of the stem's layers at the first block's input, and whether it is a wide network's."""
    layers = [model.get_submodule(name) for name in names]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    wide = len(convs) == 1 and tuple(convs[0].kernel_size) == (3, 3)
    area, flops = math.prod(shape[1:]), 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels // layer.groups
            taps = 49 if wide else math.prod(layer.kernel_size)
            flops += inputs * layer.out_channels * taps * area
        elif isinstance(layer, nn.modules.batchnorm._NormBase):
            flops += 2 * layer.num_features * area
    return flops, wide


def _within(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _sum(sizes: dict[str, int], modules: Collection[str]) -> int:
    return sum(size for name, size in sizes.items() if _within(name, modules))


def _note_elements(
    into: dict[str, int], name: str, _: nn.Module, __: tuple[Tensor, ...], result: Tensor
) -> None:
    into[name] = into.get(name, 0) + result.numel()


def _note_shape(
    into: dict[str, tuple[int, ...]],
    name: str,
    _: nn.Module,
    __: tuple[Tensor, ...],
    result: Tensor,
) -> None:
    into[name] = tuple(result.shape[1:])


def _note_input(
    into: dict[str, tuple[int, ...]], name: str, _: nn.Module, given: tuple[Tensor, ...]
) -> None:
    into[name] = tuple(given[0].shape[1:])
