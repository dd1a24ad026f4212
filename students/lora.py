"""LoRA: every layer's change is a product of two thin matrices, trained beside the frozen weight.

    y = W x + b + (α / r) · B A x          linear: A is (r, C_in), B is (C_out, r)
    y = conv(x; W) + (α / r) · B * conv(x; A)

For a convolution A is a convolution to r channels with the layer's kernel, stride, padding and
dilation, and B a 1x1 map; a grouped layer has r channels in every group. A starts Kaiming-uniform
and B at 0, so that step 0 equals the backbone bit for bit. In training the thin path runs beside
the layer, which spares the gradient of a whole weight; in evaluation it is folded into it, so that
merging changes no bit in float32.

Sources: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA, Low-Rank Adaptation of Large
Language Models, ICLR 2022, https://arxiv.org/abs/2106.09685 (linear layers, start, scale). Beyond
the paper: convolutions, the task's own norms (``--norms universal`` is the paper's), and
``--select``, which learns which layers get one. Left out: joining the factors of several tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.adapted import Adapted, Selection, check_selection
from tailor.backbone import Backbone, Layer
from tailor.errors import BadInput
from tailor.folded import framed
from tailor.residual import check_kinds
from tailor.sites import Placement, check_rank, sites

PAPER = "LoRA, Hu et al., ICLR 2022"
KIND = "student"
FOLDS = True  # training computes other operations, and a sum of bfloat16 rounds once more


@dataclass(frozen=True, kw_only=True)
class Config(Placement, Selection):
    """What LoRA needs beside the training settings."""

    layers: Literal["auto", "spatial", "all"] = "all"
    """Every convolution and linear layer (all), convolutions wider than 1x1 (spatial), or those
    alone where every block has one that mixes channels (auto)."""
    rank: int = 8
    """r: width of the thin path; a layer whose weight has a smaller rank gets that."""
    alpha: float = 64.0
    """α: the thin path counts α / r. The paper sets α to its first r and trains with Adam; SGD at
    an ordinary learning rate needs more."""
    dropout: float = 0.0
    """Share of the thin path's input that is dropped in training; the layer itself loses none."""
    norms: Literal["own", "universal"] = "own"
    """Normalisation layers: the task's own, or the source's as in the paper."""


class LowRank(nn.Module):
    """The thin path beside one layer.

    Args:
        layer: a convolution or linear layer, frozen: weight (M, N / G, h, w) or (M, N).
        rank: r, at most ``full_rank(layer)``.
        scale: of the path, α / r.
        dropout: share of its input numbers that are dropped in training.
        generator: of A.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        groups = getattr(layer, "groups", 1)
        self.down = nn.Parameter(torch.empty(groups * rank, *layer.weight.shape[1:]))  # A
        self.up = nn.Parameter(torch.zeros(layer.weight.shape[0], rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def opened(self, layer: Any) -> Tensor:
        """(M, r): B with its scale, which an open gate switches on."""
        return self.scale * self.up

    def closed(self, layer: Any) -> Tensor:
        """The same, where the layer is universal."""
        return torch.zeros_like(self.up, requires_grad=False)

    def forward(self, x: Tensor, layer: Any, up: Tensor) -> Tensor:
        """The adapted layer's output for ``x``, (B, C, H, W) or (..., C)."""
        conv = isinstance(layer, nn.Conv2d)
        if not self.training:
            weight, bias = self.fold(layer, up)
            if not conv:
                return F.linear(x, weight, bias)
            x, frame = framed(x, layer)
            return frame.convolve(x, weight, bias)
        given = F.dropout(x, self.dropout) if self.dropout else x
        if not conv:
            beside = F.linear(F.linear(given, self.down), up)
        else:
            given, frame = framed(given, layer)
            thin = frame.convolve(given, self.down, None)
            beside = F.conv2d(thin, up.view(*up.shape, 1, 1), groups=frame.groups)
        return cast(Tensor, layer(x)) + beside

    def fold(self, layer: Any, up: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that computes the same."""
        groups = getattr(layer, "groups", 1)
        rank = up.shape[1]
        delta = up.view(groups, -1, rank) @ self.down.view(groups, rank, -1)
        return layer.weight + delta.view_as(layer.weight), layer.bias


def full_rank(layer: nn.Conv2d | nn.Linear) -> int:
    """The largest rank that a change of the layer's weight can have, in one of its groups."""
    rows = layer.weight.shape[0] // getattr(layer, "groups", 1)
    return min(rows, layer.weight[0].numel())


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Adapted:
    """A student with low-rank changes on ``backbone``.

    Raises:
        BadInput: no layer to adapt, a layer of a kind that no adapter folds into, a rank below 1 or
            above every weight's, or a scale or dropout out of range.
    """
    config = config or Config()
    check_selection(config)
    if not (math.isfinite(config.alpha) and config.alpha > 0):
        raise BadInput(f"alpha is {config.alpha}; give --alpha above 0")
    if not 0 <= config.dropout < 1:
        raise BadInput(f"dropout is {config.dropout}; give --dropout as a share in [0, 1)")
    layers = sites(backbone, config)
    check_kinds(backbone, layers)
    sizes = {x.name: full_rank(_module(backbone, x)) for x in layers}
    check_rank(config.rank, sizes, backbone.name)
    return _build(backbone, num_classes, config, layers, seed)


def rebuild(
    backbone: Backbone, num_classes: int, config: Config, *, kept: Sequence[str]
) -> Adapted:
    """The pruned student with low-rank changes at ``kept``, ready for its saved tensors."""
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
    generator = torch.Generator().manual_seed(seed)

    def make(layer: Layer) -> LowRank:
        module = _module(backbone, layer)
        return LowRank(
            module,
            rank=min(config.rank, full_rank(module)),
            scale=config.alpha / config.rank,
            dropout=config.dropout,
            generator=generator,
        )

    return Adapted(
        backbone,
        num_classes,
        config,
        method="lora",
        layers=layers,
        make=make,
        seed=seed,
        gated=gated,
        own=config.norms == "own",
    )


def _module(backbone: Backbone, layer: Layer) -> nn.Conv2d | nn.Linear:
    return cast("nn.Conv2d | nn.Linear", backbone.model.get_submodule(layer.name))
