"""Narrow: a copy of a network in which every layer has a k-th of its channels.

Every k-th output channel of every convolution, linear layer and norm stays, and every k-th input
channel of what reads it; only the layers that read the image keep all of its channels. Taking every
k-th, not the first n, is what keeps copies together: concatenated, split and grouped channels stay
beside the ones that they were trained with. No architecture is named: the network is narrowed layer
by layer, and whether it still runs on an image is tried. Left out: networks whose code has channel
numbers written into it (attention heads of fixed size, relative positions), which are refused.

Weights are copied as they are: a sum over a k-th of the inputs is smaller, which the norms behind
it make good as soon as they train.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tailor.backbone import Backbone
from tailor.errors import BadInput, first_line

Init = Literal["random", "copy"]


def narrow(
    backbone: Backbone, width: float = 0.25, *, init: Init = "random", seed: int = 0
) -> nn.Module:
    """The backbone's architecture at a fraction of its width, all of it trainable.

    Args:
        backbone: the network; not changed.
        width: 1, 1/2, 1/3, ...: the share of the channels of every layer that stays.
        init: ``copy`` slices the backbone's weights and running statistics; ``random`` starts every
            layer that knows how to from new numbers.
        seed: of the random start.

    Returns:
        (B, C, H, W) images to what the backbone returns, with a k-th of its channels.

    Raises:
        BadInput: a width that is no 1/k, or a network that cannot be narrowed.
    """
    if not 0 < width <= 1 or abs(1 / width - round(1 / width)) > 1e-6:
        raise BadInput(f"width is {width:g}; give 1, 0.5, 0.25 or another 1/k")
    k = round(1 / width)
    model = copy.deepcopy(backbone.model)
    readers = _image_readers(model, backbone.input_size)
    try:
        if k > 1:
            for name, module in model.named_modules():
                _slice(module, k, reads_image=name in readers, name=name)
        with torch.no_grad():
            model.eval()(_image(model, backbone.input_size))
    except Exception as error:
        raise BadInput(
            f"backbone {backbone.name!r} has no copy of 1/{k} of its width ({first_line(error)}); "
            f"give another --width, --side fcn4, or --side timm:NAME with a smaller network"
        ) from error
    if init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in model.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
    return model.requires_grad_(True).train()


def _image_readers(model: nn.Module, input_size: tuple[int, int, int]) -> set[str]:
    """Names of the layers that read the image itself: the first one, and whoever else is given
    it."""
    image, readers = _image(model, input_size), set[str]()
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):

            def note(_: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                if not readers or (given and given[0] is image):
                    readers.add(name)

            hooks.append(layer.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    return readers


def _image(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    some = next(model.parameters())
    return torch.zeros(1, *input_size, device=some.device, dtype=some.dtype)


def _slice(module: nn.Module, k: int, *, reads_image: bool, name: str) -> None:
    """Leave every k-th channel of one module's own tensors.

    Raises:
        ValueError: what it has cannot be divided by k.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        _slice_conv(module, k, reads_image=reads_image, name=name)
    elif isinstance(module, nn.Linear):
        module.in_features //= _divided(module.in_features, 1 if reads_image else k, name)
        module.out_features //= _divided(module.out_features, k, name)
        _keep(module, "weight", module.weight[::k, :: 1 if reads_image else k])
        _keep(module, "bias", None if module.bias is None else module.bias[::k])
    else:
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or tensor.numel() == 1:
                continue
            own, sizes = f"{name}.{key}".lstrip("."), [n for n in tensor.shape if n > 1]
            if len(sizes) > 1:
                raise ValueError(f"{own} has {len(sizes)} axes and belongs to no layer")
            _divided(sizes[0], k, own)
            axis = tensor.shape.index(sizes[0])
            _keep(module, key, tensor[(slice(None),) * axis + (slice(None, None, k),)])
        shape = getattr(module, "normalized_shape", None)
        if isinstance(shape, tuple):
            cast(Any, module).normalized_shape = tuple(cast(Any, module).weight.shape)


def _slice_conv(conv: nn.modules.conv._ConvNd, k: int, *, reads_image: bool, name: str) -> None:
    inputs = 1 if reads_image else k
    _divided(conv.out_channels, k, name)
    _divided(conv.in_channels, inputs, name)
    if conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels:
        conv.groups //= k  # depthwise: a group is a channel, and its kernel stays
        taken = conv.weight[::k]
    else:
        _divided(conv.in_channels // conv.groups, inputs, f"a group of {name}")
        _divided(conv.out_channels // conv.groups, k, f"a group of {name}")
        taken = conv.weight[::inputs, ::k] if conv.transposed else conv.weight[::k, ::inputs]
    conv.in_channels //= inputs
    conv.out_channels //= k
    _keep(conv, "weight", taken)
    _keep(conv, "bias", None if conv.bias is None else conv.bias[::k])


def _divided(channels: int, k: int, name: str) -> int:
    """``k``, which divides ``channels``."""
    if channels % k:
        raise ValueError(f"{name} has {channels} channels, which {k} does not divide")
    return k


def _keep(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    if tensor is None:
        return
    own = tensor.detach().clone()
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(own)
    else:
        module._buffers[name] = own
