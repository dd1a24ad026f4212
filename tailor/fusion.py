"""Fusion: how what a frozen base says and what a side network says become one.

B and S are (n, D) features or (n, C, h, w) maps of equal shape, E_i those of the side networks of
earlier tasks, which a dense fusion takes in as well. f, g, f_i are two-layer maps.

    alpha             σ(a) B + (1 - σ(a)) S           dense: softmax(a) · [B, E_1 ..., S]
    alpha_fixed       p B + (1 - p) S                 p given
    alpha_curriculum  p B + (1 - p) S                 p falls from 1 over the first epochs
    sum, product      B + S (+ Σ E_i), B · S (· Π E_i)
    mlp, mlp_hidden   f(B) + S (+ Σ f_i(E_i)), and ReLU of it
    mlp2, res_mlp     f(B) + g(S) (+ Σ f_i(E_i)), f(B) + S + g(S) (+ Σ f_i(E_i))
    film              B · (m(S) + S) + (a(S) + S)     m, a: two heads of one layer of 64
    base_only, side_only

With D = 64 or C = 8, f has the published 8,448 or 145 numbers, and FiLM 1,680.

Source: Zhang et al., Side-tuning, ECCV 2020; forms and sizes of its code,
https://github.com/jozhang97/side-tuning; FiLM: Perez et al., AAAI 2018. The published FiLM is for
maps of 8 channels only and the hidden MLP cannot run; here both take any width. Left out:
concatenation, which would change the width of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from tailor.errors import BadInput

Fusing = Literal[
    "alpha",
    "alpha_fixed",
    "alpha_curriculum",
    "sum",
    "product",
    "mlp",
    "mlp2",
    "res_mlp",
    "mlp_hidden",
    "film",
    "base_only",
    "side_only",
]
DENSE: tuple[Fusing, ...] = ("alpha", "sum", "product", "mlp", "mlp2", "res_mlp", "mlp_hidden")
FILM_HIDDEN = 64
SCALE = 0.9  # what the published maps multiply their input by at the start


class Fusion(nn.Module):
    """Base, side and earlier sides to one tensor of their shape."""

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """(n, ...) each; ``earlier`` only where the fusion is dense."""
        raise NotImplementedError


def new_fusion(
    kind: Fusing,
    shape: Sequence[int],
    *,
    earlier: int | None = None,
    share: float = 0.5,
    end_share: float = 0.0,
    epochs: float = 10.0,
    seed: int = 0,
) -> Fusion:
    """The fusion of that name.

    Args:
        kind: see the top of the file.
        shape: (D,) or (C, h, w) of what is fused.
        earlier: how many sides of earlier tasks join; None where the fusion is not dense.
        share: of the base in ``alpha_fixed``, in [0, 1].
        end_share, epochs: the base's share in ``alpha_curriculum`` goes from 1 to ``end_share``
            over so many epochs.
        seed: of the maps' start.

    Raises:
        BadInput: a fusion that earlier sides cannot join, a share outside of [0, 1], or maps of an
            odd number of channels for a norm of two groups.
    """
    for name, value in (("share", share), ("end_share", end_share)):
        if not 0 <= value <= 1:
            raise BadInput(f"{name} is {value:g}; give the base's share, from 0 to 1")
    if not epochs > 0:
        raise BadInput(f"curriculum_epochs is {epochs:g}; give a number above 0")
    if earlier is not None and kind not in DENSE:
        raise BadInput(
            f"fusion {kind!r} has no place for the sides of earlier tasks; leave --dense out, or "
            f"give --fusion {' or '.join(DENSE)}"
        )
    if kind == "alpha":
        return Alpha() if earlier is None else DenseAlpha(earlier)
    if kind == "alpha_fixed":
        return FixedAlpha(share)
    if kind == "alpha_curriculum":
        return Curriculum(end_share, epochs)
    if kind == "sum":
        return Sum()
    if kind == "product":
        return Product()
    if kind in ("base_only", "side_only"):
        return Only(base=kind == "base_only")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "film":
            return Film(shape)
        return Mlp(shape, kind, earlier or 0)


class Alpha(Fusion):
    """Blends with one learned number, half and half at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def share(self) -> Tensor:
        """The base's share, a scalar in (0, 1)."""
        return self.alpha.sigmoid()

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """σ(a) B + (1 - σ(a)) S."""
        share = self.share()
        return share * base + (1 - share) * side


class DenseAlpha(Fusion):
    """Blends base, earlier sides and side with a softmax over one number each.

    Args:
        earlier: sides of earlier tasks.
    """

    def __init__(self, earlier: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(earlier + 2))

    def share(self) -> Tensor:
        """The base's share, a scalar in (0, 1)."""
        return self.alpha.softmax(0)[0]

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """softmax(a) · [B, E_1 ..., S]."""
        shares = self.alpha.softmax(0)
        result = shares[0] * base
        for share, tensor in zip(shares[1:], (*earlier, side), strict=True):
            result = result + share * tensor
        return result


class FixedAlpha(Fusion):
    """Blends with a given share of the base."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.fixed = share

    def share(self) -> float:
        """The base's share."""
        return self.fixed

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """p B + (1 - p) S."""
        return self.fixed * base + (1 - self.fixed) * side


class Curriculum(Fusion):
    """Blends with a share of the base that falls from 1, so that the side takes over step by step.

    The share is a buffer: it belongs to the task, and a run that goes on later finds it.

    Args:
        end: the share that is reached.
        epochs: when it is reached; in between it falls linearly.
    """

    def __init__(self, end: float, epochs: float) -> None:
        super().__init__()
        self.end, self.epochs = end, epochs
        self.register_buffer("now", torch.ones(()))

    def at(self, epoch: float) -> None:
        """Set the share for a moment in epochs."""
        done = min(epoch / self.epochs, 1.0)
        cast(Tensor, self.now).fill_(1 + (self.end - 1) * done)

    def share(self) -> Tensor:
        """The base's share, a scalar in [0, 1]."""
        return cast(Tensor, self.now)

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """p B + (1 - p) S."""
        share = self.share()
        return share * base + (1 - share) * side


class Sum(Fusion):
    """Adds everything."""

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """B + S + Σ E_i."""
        return sum(earlier, start=base + side)


class Product(Fusion):
    """Multiplies everything."""

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """B · S · Π E_i."""
        result = base * side
        for tensor in earlier:
            result = result * tensor
        return result


class Only(Fusion):
    """Takes one and leaves the other: feature extraction (base), or a network of its own (side)."""

    def __init__(self, *, base: bool) -> None:
        super().__init__()
        self.base = base

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """B, or S."""
        return base if self.base else side


class Mlp(Fusion):
    """Maps the base (and earlier sides) before the sum.

    Args:
        shape: (D,) or (C, h, w).
        kind: ``mlp``, ``mlp2``, ``res_mlp`` or ``mlp_hidden``.
        earlier: sides of earlier tasks, each of which gets a map of its own.
    """

    def __init__(self, shape: Sequence[int], kind: Fusing, earlier: int) -> None:
        super().__init__()
        self.kind = kind
        self.base = two_layers(shape)
        self.side = two_layers(shape) if kind in ("mlp2", "res_mlp") else nn.Identity()
        self.earlier = nn.ModuleList(two_layers(shape) for _ in range(earlier))

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """f(B) + S, or another of the four, + Σ f_i(E_i)."""
        result = self.base(base) + self.side(side)
        if self.kind == "res_mlp":
            result = result + side
        for map_, tensor in zip(self.earlier, earlier, strict=True):
            result = result + map_(tensor)
        return cast(Tensor, result.relu() if self.kind == "mlp_hidden" else result)


class Film(Fusion):
    """Lets the side scale and shift the base, number by number.

    Args:
        shape: (D,) or (C, h, w).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        width, hidden = shape[0], FILM_HIDDEN
        self.hidden = nn.Sequential(
            pointwise(shape, width, hidden, bias=False), nn.GroupNorm(2, hidden), nn.ReLU()
        )
        self.times = pointwise(shape, hidden, width, bias=True)
        self.plus = pointwise(shape, hidden, width, bias=True)

    def forward(self, base: Tensor, side: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
        """B · (m(S) + S) + (a(S) + S)."""
        hidden = self.hidden(side)
        result: Tensor = base * (self.times(hidden) + side) + (self.plus(hidden) + side)
        return result


class Scale(nn.Module):
    """Multiplies by one learned number."""

    def __init__(self, start: float = SCALE) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        """s x."""
        return self.scale * x


def two_layers(shape: Sequence[int]) -> nn.Sequential:
    """f of the MLPs: linear, batch norm, ReLU, linear; on maps a scale, then 1x1 convolutions
    around a norm of two groups.

    Raises:
        BadInput: maps of an odd number of channels.
    """
    width = shape[0]
    if len(shape) == 1:
        linear = nn.Linear(width, width), nn.Linear(width, width)
        return nn.Sequential(linear[0], nn.BatchNorm1d(width), nn.ReLU(), linear[1])
    if width % 2:
        raise BadInput(
            f"an MLP on maps normalises two groups of channels, and there are {width}; give "
            f"--fusion alpha"
        )
    first, last = (pointwise(shape, width, width, bias=False) for _ in range(2))
    return nn.Sequential(Scale(), first, nn.GroupNorm(2, width), nn.ReLU(), last)


def pointwise(shape: Sequence[int], inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    """A linear map of the channels: of features a linear layer, of maps a 1x1 convolution."""
    if len(shape) == 1:
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Conv2d(inputs, outputs, 1, bias=bias)
