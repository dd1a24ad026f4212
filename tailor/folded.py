"""Folded: a convolution with an adapter beside it, computed as one convolution.

``CentredConvolution`` adds a matrix to the centre of a frozen kernel, so that an adapter beside a
layer costs a step nothing but the gradient of that centre. It has gradients for what a frozen trunk
needs: the input and the adapter.
Left out: the modules that use it (``residual.py``), and maps behind a layer (``normed.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import Conv2dSame, pad_same  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Frame(NamedTuple):
    """How a convolution moves over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    kernel: tuple[int, ...]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def framed(x: Tensor, layer: nn.Conv2d) -> tuple[Tensor, Frame]:
    """The input with what ``Conv2dSame`` pads, and the geometry that is left."""
    padding = layer.padding
    if isinstance(layer, Conv2dSame):
        x, padding = (
            pad_same(x, list(layer.kernel_size), list(layer.stride), list(layer.dilation)),
            (0, 0),
        )
    elif isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if padding == "same":
            x = F.pad(
                x,
                [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2],
            )
        padding = (0, 0)
    return x, Frame(layer.stride, tuple(padding), layer.dilation, layer.groups, layer.kernel_size)


def under_centre(x: Tensor, frame: Frame) -> Tensor:
    """(B, C, H', W'): what the centre of the kernel sees at every output position."""
    for axis in (0, 1):
        size, k = x.shape[2 + axis], frame.kernel[axis]
        s, p, d = frame.stride[axis], frame.padding[axis], frame.dilation[axis]
        first = (k // 2) * d - p
        count = (size + 2 * p - d * (k - 1) - 1) // s + 1
        before, after = max(-first, 0), max(first + s * (count - 1) + 1 - size, 0)
        if before or after:
            x = F.pad(x, (0, 0, before, after) if axis == 0 else (before, after))
            first += before
        if first or s > 1 or x.shape[2 + axis] != count:
            index = slice(first, first + s * (count - 1) + 1, s)
            x = x[:, :, index] if axis == 0 else x[:, :, :, index]
    return x


def centred(weight: Tensor, matrix: Tensor) -> Tensor:
    """``weight`` (M, N, h, w) with ``matrix`` (M, N) added at the centre of the kernel."""
    folded = weight.clone()
    folded[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += matrix
    return folded


class CentredConvolution(torch.autograd.Function):
    """Convolution with ``weight`` + ``matrix`` at its centre; gradients of input and matrix.

    The folded kernel is computed anew in the backward pass instead of being kept: it costs less
    than a hundredth of a step and would hold a second copy of the network.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor, weight: Tensor, bias: Tensor | None, frame: Frame
    ) -> Tensor:
        ctx.save_for_backward(x, matrix, weight)
        ctx.frame = frame
        with torch.autocast(x.device.type, enabled=False):
            folded = centred(weight, matrix).to(x.dtype)
            return frame.convolve(x, folded, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, matrix, weight = ctx.saved_tensors
        frame: Frame = ctx.frame
        into_x = into_matrix = None
        if ctx.needs_input_grad[0]:
            folded = centred(weight, matrix).to(x.dtype)
            into_x = torch.ops.aten.convolution_backward(
                grad,
                x,
                folded,
                None,
                frame.stride,
                frame.padding,
                frame.dilation,
                False,
                (0, 0),
                frame.groups,
                (True, False, False),
            )[0]
        if ctx.needs_input_grad[1]:
            seen = under_centre(x, frame)
            into_matrix = outer(grad, seen, frame.groups).to(matrix.dtype)
        return into_x, into_matrix, None, None, None


def outer(grad: Tensor, x: Tensor, groups: int = 1) -> Tensor:
    """Σ over images and positions of grad xᵀ: the weight gradient of a 1x1 map, (M, N / groups)."""
    out, columns = grad.shape[1], x.shape[1] // groups
    inner = torch.channels_last
    if grad.is_contiguous() or not grad.is_contiguous(memory_format=inner):
        inner = torch.contiguous_format
    grad, x = grad.contiguous(memory_format=inner), x.contiguous(memory_format=inner)
    # oneDNN reorders few channels slowly; a batched product is three times as fast there.
    few = not grad.is_cuda and groups == 1 and max(out, columns) < 64
    if few and grad.dtype == torch.float32 and inner == torch.contiguous_format:
        return torch.bmm(grad.flatten(2), x.flatten(2).transpose(1, 2)).sum(0)
    kernel = grad.new_empty(out, columns, 1, 1)
    found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
        grad,
        x,
        kernel,
        None,
        (1, 1),
        (0, 0),
        (1, 1),
        False,
        (0, 0),
        groups,
        (False, True, False),
    )
    return found[1].flatten(1)
