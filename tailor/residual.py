"""Residual adapters: a small matrix beside a frozen layer (parallel) or behind it (series).

    parallel    y = conv(x; w) + W x          W reads the pixel under the centre of the kernel
    series      y = a + W · norm(a)           a = conv(x; w)

Both are linear in what they adapt, hence fold into the layer. Training uses that: the parallel form
adds W to the centre of the kernel, so that a step computes one convolution, and of its weight
gradient only the centre; the series form joins norm and map into one product. A grouped layer has a
grouped map (a scale per channel where it is depthwise), so that the folded layer keeps its groups;
for a linear layer the parallel map is a delta.

Source: Rebuffi, Bilen, Vedaldi: Learning multiple visual domains with residual adapters, NIPS 2017
(series); Efficient parametrization of multi-domain deep neural networks, CVPR 2018 (parallel).
Left out: which layers get one (``sites.py``), and gates (``adapted.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from timm.layers import Conv2dSame  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.backbone import Backbone
from tailor.backbone import Layer as Site
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.folded import CentredConvolution, centred, framed, under_centre
from tailor.normed import mapped, normed
from tailor.pointwise import Init, Layer, Map, draw, map_shape

KINDS = (nn.Conv2d, Conv2dSame, nn.Linear)  # of layers that adapters know; no subclass of them


class _Mapped(nn.Module):
    """An adapter with a ``Map`` of a layer.

    Args:
        layer: a convolution or linear layer, frozen.
        dropout: share of the map's input channels that are dropped in training.
        rank, basis, init, generator: see ``Map``.
    """

    kind: Literal["parallel", "series"]

    def __init__(
        self,
        layer: Layer,
        *,
        dropout: float = 0.0,
        rank: int | None = None,
        basis: Tensor | None = None,
        init: Init = "identity",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        if self.kind == "series":  # first, as it runs: the published rule of decay reads the order
            norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
            self.norm: nn.BatchNorm1d | nn.BatchNorm2d = norm(layer.weight.shape[0])
        self.map = Map(
            map_shape(layer, self.kind),
            conv=isinstance(layer, nn.Conv2d),
            rank=rank,
            basis=basis,
            init=init,
            generator=generator,
        )

    def opened(self, layer: Layer) -> Tensor:
        """(M, N): what an open gate switches on."""
        return self.map.matrix()

    def closed(self, layer: Layer) -> Tensor:
        """The same, where the layer is universal."""
        return torch.zeros_like(self.map.matrix(), requires_grad=False)


class Parallel(_Mapped):
    """The task-specific part of a layer beside it; arguments as above."""

    kind = "parallel"

    def forward(self, x: Tensor, layer: Layer, matrix: Tensor) -> Tensor:
        """The adapted layer's output for ``x``, (B, C, H, W) or (..., C)."""
        dropped = self.dropout > 0 and self.training
        if isinstance(layer, nn.Linear):
            if dropped:
                return F.linear(x, layer.weight, layer.bias) + F.linear(
                    _dropped(x, self.dropout), matrix
                )
            return F.linear(x, layer.weight + matrix, layer.bias)
        x, frame = framed(x, layer)
        if dropped:
            beside = under_centre(F.dropout2d(x, self.dropout), frame)
            kernel = matrix.view(*matrix.shape, 1, 1)
            return frame.convolve(x, layer.weight, layer.bias) + F.conv2d(
                beside, kernel, groups=frame.groups
            )
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        output: Tensor = CentredConvolution.apply(x, matrix, layer.weight, layer.bias, frame)
        return output

    def joins(self, layer: Layer) -> bool:
        """Whether the norm behind the layer can be computed with it."""
        return isinstance(layer, nn.Conv2d)

    def before(self, x: Tensor, layer: Layer, matrix: Tensor) -> Tensor:
        """What goes to ``after``: the adapted layer's output."""
        return self.forward(x, layer, matrix)

    def after(self, a: Tensor, matrix: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """The norm behind it."""
        return normed(a, norm, exact=not matrix.any())

    def fold(self, layer: Layer, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that computes the same."""
        if isinstance(layer, nn.Linear):
            return layer.weight + matrix, layer.bias
        return centred(layer.weight, matrix), layer.bias


class Series(_Mapped):
    """The task-specific part of a layer behind it; arguments as above."""

    kind = "series"

    def forward(self, x: Tensor, layer: Layer, matrix: Tensor) -> Tensor:
        """The adapted layer's output for ``x``, (B, C, H, W) or (..., C)."""
        a = cast(Tensor, layer(x))
        if isinstance(layer, nn.Linear):
            flat = a.reshape(-1, a.shape[-1])
            normed = _dropped(self.norm(flat).view_as(a), self.dropout if self.training else 0.0)
            return a + F.linear(normed, matrix)
        joined = Group.current().world == 1 and not self.dropout and layer.groups == 1
        joined &= self.training and not torch.compiler.is_compiling()
        if joined and a.dtype == matrix.dtype:
            return mapped(a, matrix, cast(nn.BatchNorm2d, self.norm))[0]
        read = F.dropout2d(self.norm(a), self.dropout, training=self.training)
        return a + F.conv2d(read, matrix.view(*matrix.shape, 1, 1), groups=layer.groups)

    def joins(self, layer: Layer) -> bool:
        """Whether the norm behind the layer can be computed with it."""
        return isinstance(layer, nn.Conv2d) and layer.groups == 1 and not self.dropout

    def before(self, x: Tensor, layer: Layer, matrix: Tensor) -> Tensor:
        """What goes to ``after``: the layer's output without adapter."""
        return cast(Tensor, layer(x))

    def after(self, a: Tensor, matrix: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """Adapter and norm behind it."""
        y, made = mapped(a, matrix, cast(nn.BatchNorm2d, self.norm))
        # Without adapter, as at the start, it is the network's own norm to the bit.
        return normed(y, norm, (a.detach(), *made), exact=not matrix.any())

    def fold(self, layer: Layer, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that computes the same with running statistics."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        groups = getattr(layer, "groups", 1)
        per_group = scale.view(groups, 1, -1)  # (G, 1, N)
        maps = matrix.view(groups, -1, matrix.shape[1]) * per_group  # (G, M / G, N)
        flat = layer.weight.reshape(groups, matrix.shape[1], -1)
        weight = (flat + maps @ flat).view_as(layer.weight)
        bias = (matrix.view(groups, -1, matrix.shape[1]) @ shift.view(groups, -1, 1)).flatten()
        if layer.bias is not None:
            own = layer.bias.view(groups, -1, 1)
            bias = bias + (own + maps @ own).flatten()
        return weight, bias


class Own(nn.Module):
    """The task's own copy of the 1x1 map of a ``SeriesAdapter`` in the source network.

    Args:
        layer: that map; ``init`` is ``identity`` for a copy, ``he`` for new numbers as published.
        generator: of the random numbers.
    """

    def __init__(
        self, layer: nn.Conv2d, *, init: Init = "identity", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        if init == "he":
            draw(self.weight, init, generator)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def opened(self, layer: nn.Conv2d) -> Tensor:
        """What an open gate switches on: (C, C, 1, 1), or (C, C + 1) with the bias behind."""
        return _with_bias(self.weight, self.bias)

    def closed(self, layer: nn.Conv2d) -> Tensor:
        """The source's."""
        return _with_bias(layer.weight, layer.bias)

    def forward(self, x: Tensor, layer: nn.Conv2d, value: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return F.conv2d(x, *self.fold(layer, value))

    def fold(self, layer: nn.Conv2d, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map itself, and its bias."""
        if layer.bias is None:
            return value, None
        return value[:, :-1].reshape(layer.weight.shape), value[:, -1]


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """One tensor, because one gate selects both."""
    return weight if bias is None else torch.cat((weight.flatten(1), bias[:, None]), dim=1)


def _dropped(x: Tensor, share: float) -> Tensor:
    """Drop whole channels of (B, ..., C) tokens, each image its own."""
    if share == 0:
        return x
    if x.ndim < 3:
        return F.dropout(x, share)
    shape = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
    return x * F.dropout(x.new_ones(shape), share)


def check_kinds(backbone: Backbone, layers: Sequence[Site]) -> None:
    """Refuse layers that no adapter folds into.

    Raises:
        BadInput: names the first, its kind, and what can be done.
    """
    odd = {
        x.name: module
        for x in layers
        if type(module := backbone.model.get_submodule(x.name)) not in KINDS
        or getattr(module, "padding_mode", "zeros") != "zeros"
    }
    if not odd:
        return
    name, layer = next(iter(odd.items()))
    mode = getattr(layer, "padding_mode", "zeros")
    what = type(layer).__name__ + ("" if mode == "zeros" else f" with {mode} padding")
    many = len(odd) > 1
    remedy = "take another backbone"
    if len(odd) < len(layers):
        named = " ".join(repr(n) for n in list(odd)[:4]) + (" ..." if len(odd) > 4 else "")
        remedy = f"leave {'them' if many else 'it'} out with --skip {named}, or {remedy}"
    raise BadInput(
        f"layer {name!r} of {backbone.name} is a {what}, and adapters know plain Conv2d and Linear "
        f"layers ({len(odd)} of {len(layers)} chosen ones {'are' if many else 'is'} not); {remedy}"
    )
