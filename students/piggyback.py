"""Piggyback: a task is one bit for every weight of the frozen network: on or off.

    w_t = w · 1[m_t >= τ]          gradient of m_t: ∂loss/∂w_t · w, straight through the threshold

Every convolution and linear layer has a mask; biases are universal. All masks start at the same
distance above the threshold, so that step 0 equals the backbone bit for bit. What is trained is
m - τ, with the threshold at 0: then rounding to another precision turns no weight on or off.

The paper trains masks with Adam at 1e-4 from a start of 1e-2 above τ = 5e-3, without decay, and
keeps norms as they are in most experiments, the task's own as its remedy for far domains. Here
the task has its own norms, and a layer's mask gradient is divided by the layer's mean |w| (a
switch of the published program), which lets SGD at an ordinary learning rate train the masks of
every layer. The paper's run is ``--norms universal --mask-gradient plain --optimizer adamw --lr
1e-4``. A mask is counted as the bits that it is; a run's file holds the numbers above, because it
may still be trained.

Sources: Mallya, Davis, Lazebnik: Piggyback, Adapting a Single Network to Multiple Tasks by Learning
to Mask Weights, ECCV 2018, https://arxiv.org/abs/1801.06519. Beyond the paper: ``--select``, which
learns which layers get a mask. Left out: its ternary masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tailor.adapted import Adapted, Selection, check_selection
from tailor.backbone import Backbone, Layer
from tailor.cost import mask_numbers
from tailor.errors import BadInput
from tailor.folded import framed
from tailor.residual import check_kinds
from tailor.sites import Placement, sites

PAPER = "Piggyback, Mallya et al., ECCV 2018"
KIND = "student"


@dataclass(frozen=True, kw_only=True)
class Config(Placement, Selection):
    """What Piggyback needs beside the training settings."""

    layers: Literal["auto", "spatial", "all"] = "all"
    """Every convolution and linear layer (all), convolutions wider than 1x1 (spatial), or those
    alone where every block has one that mixes channels (auto)."""
    margin: float = 5e-3
    """How far above its threshold every mask value starts; the paper's are 1e-2 and 5e-3. For SGD
    half the margin is twice the learning rate."""
    mask_gradient: Literal["relative", "plain"] = "relative"
    """Gradient of a mask: divided by its layer's mean |weight| (relative), or not, as published for
    Adam (plain)."""
    norms: Literal["own", "universal"] = "own"
    """Normalisation layers: the task's own, or the source's as in most of the paper."""


class Mask(nn.Module):
    """One bit for every weight of a layer, as the sign of a trained number.

    Args:
        layer: a convolution or linear layer, frozen.
        margin: start of every number; 0 and more is on.
        relative: whether gradients are divided by the layer's mean |weight|.
    """

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, *, margin: float, relative: bool = True
    ) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.mask = nn.Parameter(torch.full_like(weight, margin))
        # A layer of zeros has nothing to mask: its gradient is 0, however it is divided.
        self.scale = 1 / max(float(weight.abs().mean()), 1e-12) if relative else 1.0

    def numbers(self) -> int:
        """What the mask costs, in numbers of 32 bits."""
        return mask_numbers(self.mask.numel())

    def opened(self, layer: Any) -> Tensor:
        """The layer's weight where the mask is on, else 0; of the weight's shape."""
        weight: Tensor = _Masked.apply(self.mask, layer.weight, self.scale)
        return weight

    def closed(self, layer: Any) -> Tensor:
        """The universal weight: all is on."""
        weight: Tensor = layer.weight
        return weight

    def forward(self, x: Tensor, layer: Any, weight: Tensor) -> Tensor:
        """The layer's output for ``x``, (B, C, H, W) or (..., C), with this weight."""
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        x, frame = framed(x, layer)
        return frame.convolve(x, weight, layer.bias)

    def fold(self, layer: Any, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that computes the same."""
        return weight, layer.bias


class _Masked(torch.autograd.Function):
    """w where the mask is on; its gradient goes to the mask as if the threshold were not there."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.scale = scale
        return torch.where(mask >= 0, weight, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return grad * weight * ctx.scale, None, None


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Adapted:
    """A student with a mask on every chosen layer of ``backbone``.

    Raises:
        BadInput: no layer to mask, a layer of an unknown kind, or a margin that is not above 0.
    """
    config = config or Config()
    check_selection(config)
    if not 0 < config.margin < float("inf"):
        raise BadInput(
            f"margin is {config.margin}, but masks start above their threshold, all on; give "
            f"--margin above 0, such as 0.005"
        )
    layers = sites(backbone, config)
    check_kinds(backbone, layers)
    return _build(backbone, num_classes, config, layers, seed)


def rebuild(
    backbone: Backbone, num_classes: int, config: Config, *, kept: Sequence[str]
) -> Adapted:
    """The pruned student with masks at ``kept``, ready for its saved tensors."""
    left = [x for x in backbone.layers if x.name in set(kept)]
    return _build(backbone, num_classes, config, left, 0, gated=False)


def _build(
    backbone: Backbone,
    num_classes: int,
    config: Config,
    layers: Sequence[Layer],
    seed: int,
    *,
    gated: bool | None = None,
) -> Adapted:
    def make(layer: Layer) -> Mask:
        module: Any = backbone.model.get_submodule(layer.name)
        return Mask(module, margin=config.margin, relative=config.mask_gradient == "relative")

    return Adapted(
        backbone,
        num_classes,
        config,
        method="piggyback",
        layers=layers,
        make=make,
        seed=seed,
        gated=gated,
        own=config.norms == "own",
        role="masks",
    )
