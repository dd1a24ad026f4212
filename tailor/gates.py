"""Gates: trainable numbers that open or close a path.

Pure functions of a parameter; blocks and losses live elsewhere. ``threshold_gate`` gives zeros
and ones as tensors; ``select`` is the same gate for weights that exist as two whole tensors: it
picks one instead of computing ``universal + gate * delta``, which would write a copy of every
weight at every step. Hard-concrete gates are absent on purpose: no method here samples its gates.

Source: threshold gates with straight-through gradient, TAPS (Wallingford et al., CVPR 2022,
https://arxiv.org/abs/2203.16708).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def threshold_gate(score: Tensor, threshold: float) -> Tensor:
    """Open (1) or close (0) each layer; the gradient passes straight through.

    Args:
        score: (L,) one trainable score per layer, unitless.
        threshold: in the unit of ``score``; a score equal to it opens the layer.

    Returns:
        (L,) zeros and ones. Backward is the identity, so a closed layer can reopen.

    Raises:
        ValueError: ``score`` is not one-dimensional.

    Source: TAPS, Wallingford et al., CVPR 2022, https://arxiv.org/abs/2203.16708.
    """
    if score.ndim != 1:
        raise ValueError(f"score has shape {tuple(score.shape)}; one score per layer is (L,)")
    hard = (score >= threshold).to(score.dtype)
    # Rounding makes `hard + score - score.detach()` miss 0 and 1; this order is exact.
    return hard + (score - score.detach())


def select(score: Tensor, tuned: Tensor, universal: Tensor, *, on: bool) -> Tensor:
    """The weight of a gated layer: ``universal + gate * delta`` without computing it.

    With delta = tuned - universal, an open gate gives ``tuned`` and a closed one ``universal``;
    neither is copied. Backward, for the weight's gradient g: g (open) or none (closed) for
    ``tuned``, and sum(g * delta) for ``score`` in both cases, as the straight-through gate has it.

    Args:
        score: scalar of the layer; only its gradient is used.
        tuned: trainable weight; ``universal``: frozen weight of the same shape.
        on: whether the gate is open; the caller compares scores and threshold once for all layers.

    Returns:
        A tensor that shares its memory with ``tuned`` or ``universal``.
    """
    chosen: Tensor = _Select.apply(score, tuned, universal, on)
    return chosen


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Tensor, tuned: Tensor, universal: Tensor, on: bool) -> Tensor:
        ctx.save_for_backward(tuned, universal)
        ctx.on = on
        ctx.score_dtype = score.dtype
        return (tuned if on else universal).view_as(tuned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        tuned, universal = ctx.saved_tensors
        score_grad = delta_product(grad, tuned, universal) if ctx.needs_input_grad[0] else None
        return score_grad, grad if ctx.on else None, None, None


def delta_product(grad: Tensor, tuned: Tensor, universal: Tensor) -> Tensor:
    """sum(grad * (tuned - universal)), a scalar.

    Not <grad, tuned> - <grad, universal>: the delta is a thousandth of the weight, and the two
    large sums would cancel to noise. The difference is taken slice by slice so that it stays in
    cache.
    """
    if not (grad.is_contiguous() and tuned.is_contiguous() and universal.is_contiguous()):
        return torch.sum(grad * (tuned - universal))
    if grad.is_cuda:
        return torch.dot(grad.view(-1), (tuned - universal).view(-1))
    flat = [t.detach().view(-1) for t in (grad, tuned, universal)]
    if len(flat[0]) <= _SLICE:
        return torch.dot(flat[0], flat[1] - flat[2])
    total, room = grad.new_zeros(()), tuned.new_empty(_SLICE)
    for g, t, u in zip(*(torch.split(f, _SLICE) for f in flat), strict=True):
        total += torch.dot(g, torch.sub(t, u, out=room[: len(t)]))
    return total


_SLICE = 1 << 19  # numbers; 2 MiB in float32: in a shared cache, and few enough calls
