"""Pointwise maps: what a residual adapter is made of.

``Map`` is a matrix over channels, whole, low-rank or on a basis that tasks share; ``SeriesAdapter``
the adapter as part of a source network that was trained with it. Left out: adapters of a task
(``residual.py``).

Source: Rebuffi, Bilen, Vedaldi: Learning multiple visual domains with residual adapters, NIPS 2017;
Efficient parametrization of multi-domain deep neural networks, CVPR 2018.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

Init = Literal["identity", "he"]
Layer = nn.Conv2d | nn.Linear


class SeriesAdapter(nn.Module):
    """y = a + W · norm(a) as part of a network of its own, such as a source network.

    Args:
        channels: of the (B, C, H, W) input and output.
        eps, momentum: of the norm.
        init: ``he`` draws W from N(0, sqrt(2 / C)) as published, ``identity`` starts with 0.
        bias: whether W has one, which starts at 0; published ones have none.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        init: Init = "he",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
        self.conv = nn.Conv2d(channels, channels, 1, bias=bias)
        draw(self.conv.weight, init)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, a: Tensor) -> Tensor:
        """Same shape out as in."""
        return a + cast(Tensor, self.conv(self.norm(a)))


class Map(nn.Module):
    """A matrix (M, N), whole, as a product of two thin ones, or on a given basis.

    Args:
        shape: (M, N).
        conv: hold the whole matrix as a 1x1 kernel (M, N, 1, 1).
        rank: K of ``up`` (M, K) and ``down`` (K, N); None for a whole matrix.
        basis: (K, N), frozen and shared with other tasks; only ``up`` is trained then.
        init: ``identity`` starts with 0, ``he`` with N(0, sqrt(2 / M)).
        generator: of the random numbers.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        conv: bool,
        rank: int | None = None,
        basis: Tensor | None = None,
        init: Init = "identity",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        rows, columns = shape
        if basis is None and rank is None:
            self.weight = nn.Parameter(
                torch.empty(rows, columns, 1, 1) if conv else torch.empty(shape)
            )
            draw(self.weight, init, generator)
            return
        rank = len(basis) if basis is not None else cast(int, rank)
        self.up = nn.Parameter(torch.empty(rows, rank))
        draw(self.up, init, generator)
        if basis is not None:
            self.register_buffer("down", basis.detach().clone(), persistent=False)
        else:
            # Orthonormal rows on average: W has the size that `up` has.
            down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
            self.down = nn.Parameter(down)

    def matrix(self) -> Tensor:
        """(M, N)."""
        if hasattr(self, "weight"):
            return self.weight.flatten(1)
        return self.up @ self.down


def map_shape(layer: Layer, kind: Literal["parallel", "series"]) -> tuple[int, int]:
    """(M, N) of the adapter of a layer: rows per output, columns per input of one group."""
    out, groups = layer.weight.shape[0], getattr(layer, "groups", 1)
    return out, layer.weight.shape[1] if kind == "parallel" else out // groups


def draw(weight: Tensor, init: Init, generator: torch.Generator | None = None) -> None:
    """0, or N(0, sqrt(2 / outputs)) as the published program draws its 1x1 kernels."""
    with torch.no_grad():
        if init == "identity":
            weight.zero_()
        else:
            weight.normal_(0, math.sqrt(2 / len(weight)), generator=generator)
