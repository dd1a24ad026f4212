"""Proxy block: NetTailor's cheap replacement for a block, from one node to a later one.

    proxy(x) = gate · BN(conv1x1(maxpool(x)))

Max-pooling brings the source to the target's resolution. The *bottleneck* form is two 1x1
convolutions with batch norm and a ReLU between them. Nodes are (C, H, W), (H, W, C) or tokens
(N, D); for the last two a linear map over channels is the 1x1 convolution, and batch norm takes
every position as an image, which is what it does for feature maps too.

Source: NetTailor, Morgado & Vasconcelos, CVPR 2019, Sec. 3.2; weights start at N(0, 0.01) as in the
published program.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.errors import BadInput

INITIAL_STD = 0.01


@dataclass(frozen=True)
class Node:
    """The shape of one block output, batch axis left out."""

    shape: tuple[int, ...]
    layout: Literal["channels first", "channels last", "tokens"]

    @classmethod
    def of(cls, shape: tuple[int, ...], *, where: str) -> Node:
        """Read the layout off a shape: the axis that differs from the other two holds channels.

        Raises:
            BadInput: neither a feature map nor tokens.
        """
        if len(shape) == 2:
            return cls(shape, "tokens")
        if len(shape) != 3:
            raise BadInput(
                f"{where} has shape {tuple(shape)}, neither feature maps nor tokens; proxy blocks "
                f"cannot start or end there: use another --method, such as taps"
            )
        last = shape[0] == shape[1] != shape[2]
        return cls(shape, "channels last" if last else "channels first")

    @property
    def channels(self) -> int:
        """C, or D of a token."""
        return self.shape[0] if self.layout == "channels first" else self.shape[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W), or (N,)."""
        return self.shape[1:] if self.layout == "channels first" else self.shape[:-1]

    @property
    def positions(self) -> int:
        """H · W, or N."""
        return int(torch.Size(self.size).numel())


class Pool:
    """Max-pooling from one node's resolution to another's; nothing where they are equal.

    Args:
        source, target: the two nodes.
        where: the path, for the error.

    Raises:
        BadInput: the nodes differ in layout or in number of tokens, or the target is larger.
    """

    def __init__(self, source: Node, target: Node, *, where: str) -> None:
        self.layout, self.size = target.layout, target.size
        self.stride = 1
        if source.layout != target.layout:
            raise BadInput(
                f"{where} would lead from {source.layout} to {target.layout}, which proxy blocks "
                f"cannot; use another --method, such as taps"
            )
        if source.size == target.size:
            return
        if target.layout == "tokens" or any(
            t > s for s, t in zip(source.size, target.size, strict=True)
        ):
            raise BadInput(
                f"{where} would lead from {source.size} to {target.size} positions, which "
                f"max-pooling cannot; use another --method, such as taps"
            )
        self.stride = max(round(s / t) for s, t in zip(source.size, target.size, strict=True))

    def __call__(self, x: Tensor) -> Tensor:
        """Pool (B, *source) to the target's resolution."""
        if tuple(x.shape[2:] if self.layout == "channels first" else x.shape[1:-1]) == self.size:
            return x
        if self.layout == "channels last":
            return self._pooled(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self._pooled(x)

    def _pooled(self, x: Tensor) -> Tensor:
        s = self.stride
        if s > 1 and all(
            (side + 2 * (s // 2) - (s + 1)) // s + 1 == wanted
            for side, wanted in zip(x.shape[2:], self.size, strict=True)
        ):
            return F.max_pool2d(x, s + 1, s, s // 2)
        return F.adaptive_max_pool2d(x, self.size)  # sizes that no stride divides


class Proxy(nn.Module):
    """The trained part of a proxy block.

    Args:
        source, target: the nodes it connects.
        hidden: channels between the two convolutions of the bottleneck form; None for one
            convolution.
    """

    def __init__(self, source: Node, target: Node, hidden: int | None = None) -> None:
        super().__init__()
        self.first = target.layout == "channels first"
        widths = [source.channels, *([] if hidden is None else [hidden]), target.channels]
        maps = [self._map(a, b) for a, b in itertools.pairwise(widths)]
        norms = [nn.BatchNorm2d(b) for b in widths[1:]]
        if hidden is None:
            self.conv, self.bn = maps[0], norms[0]
        else:
            self.conv1, self.bn1, self.conv2, self.bn2 = maps[0], norms[0], maps[1], norms[1]
        self.steps = len(maps)

    def _map(self, a: int, b: int) -> nn.Conv2d | nn.Linear:
        made = nn.Conv2d(a, b, 1, bias=False) if self.first else nn.Linear(a, b, bias=False)
        nn.init.normal_(made.weight, std=INITIAL_STD)
        return made

    def pairs(self) -> list[tuple[nn.Conv2d | nn.Linear, nn.BatchNorm2d]]:
        """Each 1x1 convolution with the batch norm behind it."""
        if self.steps == 1:
            return [(self.conv, self.bn)]
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]

    def macs(self, positions: int) -> int:
        """Multiply-adds at so many output positions."""
        return positions * sum(m.weight.numel() for m, _ in self.pairs())

    def forward(self, x: Tensor, gate: Tensor, *, learn_statistics: bool = True) -> Tensor:
        """gate · proxy(x) for (B, *source) already pooled to the target's resolution.

        The gate scales the affine part of the last batch norm, which costs no pass over the output.

        Args:
            x: pooled input.
            gate: scalar.
            learn_statistics: in training, whether running statistics move.
        """
        pairs = self.pairs()
        for i, (linear, norm) in enumerate(pairs):
            last = i == len(pairs) - 1
            weight, bias = (
                (norm.weight * gate, norm.bias * gate) if last else (norm.weight, norm.bias)
            )
            x = self._norm(linear(x), norm, weight, bias, learn_statistics)
            x = x if last else F.relu(x, inplace=True)
        return x

    def _norm(
        self, x: Tensor, norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor, learn: bool
    ) -> Tensor:
        flat = x if self.first else x.reshape(-1, x.shape[-1])
        if self.training and learn and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        kept = (norm.running_mean, norm.running_var) if learn or not self.training else (None, None)
        momentum, eps = norm.momentum or 0.1, norm.eps
        flat = F.batch_norm(flat, *kept, weight, bias, self.training, momentum, eps)
        return flat if self.first else flat.view_as(x)

    @torch.no_grad()
    def merged(self, gate: float) -> nn.Module:
        """The same map at evaluation: gate and statistics folded into convolutions with bias."""
        folded: list[nn.Module] = []
        for i, (linear, norm) in enumerate(self.pairs()):
            mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            scale = norm.weight * torch.rsqrt(var + norm.eps)
            bias = norm.bias - mean * scale
            factor = gate if i == self.steps - 1 else 1.0
            shape = [-1] + [1] * (linear.weight.ndim - 1)
            a, b = linear.weight.shape[1], linear.weight.shape[0]
            made = nn.Conv2d(a, b, 1) if self.first else nn.Linear(a, b)
            made.weight.copy_(linear.weight * scale.view(shape) * factor)
            made.bias.copy_(bias * factor)  # type: ignore[union-attr]
            folded += [nn.ReLU(inplace=True), made] if i else [made]
        return folded[0] if len(folded) == 1 else nn.Sequential(*folded)
