"""Normed: batch norms of adapted layers on the CPU, and the 1x1 map of a series adapter with them.

    y = a + W · norm'(a)        z = norm(y)        norms with statistics of the batch

``NormedMap`` computes y as one product a direction, ``Normed`` z in y's own memory: backward makes
y anew from a, which is kept, so that a series adapter holds one activation as a plain layer does.
``statistics`` reads a's moments with the vectorised kernel of group norm, which takes a quarter of
the time of torch's batch norm and is as stable. ``joinable`` says where this replaces the norm.
Left out: the modules that own the tensors (``residual.py``), and who reads what (``behind.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tailor.distributed import Group
from tailor.folded import outer

PLAIN = nn.BatchNorm2d  # no subclass: those of timm hold an activation too


def can_join(norm: nn.Module | None) -> bool:
    """Whether ``normed`` knows this kind of norm."""
    return type(norm) is PLAIN and norm.affine


def joinable(norm: nn.BatchNorm2d, x: Tensor, matrix: Tensor) -> bool:
    """Whether ``normed`` may replace ``norm`` in this pass.

    Args:
        norm: behind an adapted layer.
        x: the layer's input.
        matrix: of its adapter.
    """
    return (
        norm.training
        and not torch.compiler.is_compiling()  # a look at the matrix would cut the graph
        and x.device.type == "cpu"
        and x.dtype == matrix.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and Group.current().world == 1
    )


def moments(a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of (B, C, H, W), each (C,)."""
    count, channels = a.shape[0], a.shape[1]
    if a.device.type != "cpu" or not a.is_contiguous():  # torch is fast there
        return torch.batch_norm_update_stats(a, None, None, 0.0)
    size = a[0, 0].numel()
    # eps 0, so that the variance can be read off again; a constant row has 1 / inf² = 0.
    _, mean, scale = torch.native_group_norm(a, None, None, count, channels, size, channels, 0.0)
    middle = mean.mean(0)
    return middle, (scale.pow(-2) + (mean - middle).square()).mean(0)


def _counted(norm: nn.BatchNorm2d) -> float:
    """One more batch; its share in the running statistics."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the average of all batches
            return 1 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0


@torch.no_grad()
def statistics(a: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of the batch; moves the running statistics as ``norm`` would.

    Raises:
        ValueError: one number per channel, as torch does.
    """
    count = a.numel() // a.shape[1]
    if count < 2:
        raise ValueError(f"batch norm needs 2 values per channel to train, got {tuple(a.shape)}")
    mean, var = moments(a)
    share = _counted(norm)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(var * (count / (count - 1)), share)
    return mean, torch.rsqrt(var + norm.eps)


def mapped(a: Tensor, matrix: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """a + ``matrix`` · norm(a), and the affine map (matrix, shift) that this is for this batch."""
    mean, scale = statistics(a.detach(), norm)
    with torch.no_grad():
        slope = norm.weight * scale
        whole = (matrix * slope).add_(torch.eye(len(matrix), dtype=a.dtype, device=a.device))
        shift = matrix @ (norm.bias - mean * slope)
    y: Tensor = NormedMap.apply(a, matrix, norm.weight, norm.bias, mean, scale)
    return y, (whole, shift)


def normed(
    y: Tensor,
    norm: nn.BatchNorm2d,
    made: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    exact: bool = False,
) -> Tensor:
    """norm(y), (B, C, H, W), in training mode.

    Args:
        y: (B, C, H, W); overwritten where ``made`` is given.
        norm: its statistics move.
        made: (a, matrix, shift) with y = matrix · a + shift, to compute y again instead of keeping.
        exact: equal to ``norm`` to the bit; other sums round otherwise.
    """
    made_by = (None, None, None) if made is None else made
    z: Tensor = Normed.apply(y, norm.weight, norm.bias, *made_by, norm, exact)
    return z


class Normed(torch.autograd.Function):
    """γ · (y - mean) · scale + β with statistics of the batch; backward is torch's."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        gamma: Tensor,
        beta: Tensor,
        a: Tensor | None,
        matrix: Tensor | None,
        shift: Tensor | None,
        norm: nn.BatchNorm2d,
        exact: bool,
    ) -> Tensor:
        kept = y if a is None else a
        if exact:
            share, running = _counted(norm), (norm.running_mean, norm.running_var)
            z, mean, scale = torch.native_batch_norm(
                y, gamma, beta, *running, True, share, norm.eps
            )
            ctx.save_for_backward(gamma, mean, scale, kept, matrix, shift)
            return z
        mean, scale = statistics(y, norm)
        ctx.save_for_backward(gamma, mean, scale, kept, matrix, shift)
        slope = (gamma * scale).view(1, -1, 1, 1)
        offset = beta.view(1, -1, 1, 1) - mean.view(1, -1, 1, 1) * slope
        if a is None:
            return torch.addcmul(offset, y, slope)
        ctx.mark_dirty(y)
        return y.mul_(slope).add_(offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gamma, mean, scale, y, matrix, shift = ctx.saved_tensors
        if matrix is not None:
            y = product(y, matrix, shift)
        found = torch.ops.aten.native_batch_norm_backward(
            grad, y, gamma, None, None, mean, scale, True, 0.0, ctx.needs_input_grad[:3]
        )
        return *found, None, None, None, None, None


class NormedMap(torch.autograd.Function):
    """a + W · (γ · (a - mean) · scale + β), statistics of the batch, as one product a direction.

    With s = γ · scale, t = β - mean · s and G = Σ grad aᵀ, everything follows from G and Σ grad:

        forward     a + (W s) a + W t
        into W      G s + (Σ grad) tᵀ
        into β, γ   Wᵀ Σ grad, (diag(Wᵀ G) - mean · into β) · scale
        into a      grad + (W s)ᵀ grad - s/n · (into β + x̂ · into γ),      x̂ = (a - mean) · scale
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        matrix: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        scale: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(a, matrix, gamma, beta, mean, scale)
        s = gamma * scale
        return _and_itself(a, matrix * s, matrix @ (beta - mean * s))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, matrix, gamma, beta, mean, scale = ctx.saved_tensors
        s = gamma * scale
        products, total = outer(grad, a), grad.sum((0, 2, 3))
        into_matrix = products * s + torch.outer(total, beta - mean * s)
        into_beta = matrix.t() @ total
        into_gamma = ((matrix * products).sum(0) - mean * into_beta) * scale
        if not ctx.needs_input_grad[0]:
            return None, into_matrix, into_gamma, into_beta, None, None
        count = a.numel() / a.shape[1]
        slope = s * scale * into_gamma / count  # of a itself
        into_a = _and_itself(grad, (matrix * s).t(), slope * mean - s * into_beta / count)
        into_a.addcmul_(a, -slope.view(1, -1, 1, 1))
        return into_a, into_matrix, into_gamma, into_beta, None, None


def _and_itself(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """x + ``matrix`` x + ``shift``; equals x to the bit where both are 0."""
    # 1 · x + 0 is exact where products are; TF32 and bfloat16 products are not.
    if x.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest":
        return product(x, matrix + torch.eye(len(matrix), dtype=x.dtype), shift)
    return product(x, matrix, shift).add_(x)


def product(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """(B, M, H, W): ``matrix`` (M, N) times every pixel, plus ``shift`` (M,)."""
    if x.device.type == "cpu" and len(matrix) < 64 and x.is_contiguous():
        result = x.new_empty(len(x), len(matrix), *x.shape[2:])
        torch.bmm(matrix.expand(len(x), -1, -1), x.flatten(2), out=result.flatten(2))
        return result.add_(shift.view(1, -1, 1, 1))
    return F.conv2d(x, matrix.reshape(*matrix.shape, 1, 1), shift)
