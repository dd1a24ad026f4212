"""Unpool: a network that returns its last feature map instead of pooled features.

Tensors and their names stay, so a trunk is the same trunk for tasks of images and of pixels. timm's
networks are asked to leave pooling out; of others, the modules without weights that turn a map into
a vector are found by running one image, and replaced. Tokens and channels-last maps are brought
into (B, C, h, w) by a hook on the network itself, which its copies keep. No architecture is named.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailor.errors import BadInput, first_line


def unpool(model: nn.Module, name: str, input_size: tuple[int, int, int]) -> None:
    """Change ``model`` in place from (B, D) features to the map (B, C, h, w) below them.

    Args:
        model: a network without head, in evaluation mode.
        name: what the user calls it.
        input_size: (C, H, W) of one image.

    Raises:
        BadInput: it has no such map, or no pooling that can be left out.
    """
    if _leaves_pooling_out(model):
        cast("Callable[..., None]", model.reset_classifier)(0, global_pool="")
    else:
        for path in _poolings(model, name, input_size):
            owner, _, last = path.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Identity())
    found = _run(model, name, input_size)
    if found.ndim == 3:
        skipped = int(getattr(model, "num_prefix_tokens", 0))
        side = math.isqrt(found.shape[1] - skipped)
        if side * side == found.shape[1] - skipped:
            model.register_forward_hook(partial(_as_map, skipped))
    elif found.ndim == 4 and _is_last(model, found):
        model.register_forward_hook(_channels_first)
    found = _run(model, name, input_size)
    if found.ndim != 4:
        raise BadInput(
            f"backbone {name!r} returns {tuple(found.shape)} without its pooling, not a map "
            f"(batch, channels, height, width); choose another --backbone for labels of pixels"
        )


def _leaves_pooling_out(model: nn.Module) -> bool:
    reset = getattr(model, "reset_classifier", None)
    return reset is not None and "global_pool" in inspect.signature(reset).parameters


def _poolings(model: nn.Module, name: str, input_size: tuple[int, int, int]) -> list[str]:
    """Outermost modules without weights that turn a map into a vector, or into one position."""
    found: list[str] = []
    handles = []

    def watch(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], result: object) -> None:
            before = given[0] if given else None
            if not (isinstance(before, Tensor) and isinstance(result, Tensor) and before.ndim == 4):
                return
            pooled = before.shape[2:].numel() > 1 and result.shape[2:].numel() == 1
            if result.ndim == 2 or pooled:
                found.append(path)

        return hook

    for path, module in model.named_modules():
        if path and not any(True for _ in module.parameters()):
            handles.append(module.register_forward_hook(watch(path)))
    try:
        _run(model, name, input_size)
    finally:
        for handle in handles:
            handle.remove()
    return [p for p in found if not any(p.startswith(f"{outer}.") for outer in found)]


def _run(model: nn.Module, name: str, input_size: tuple[int, int, int]) -> Tensor:
    weight = next(model.parameters())
    try:
        with torch.no_grad():
            features = model(torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        raise BadInput(
            f"backbone {name!r} cannot run without its pooling on an image of "
            f"{'x'.join(map(str, input_size))}: {first_line(error)}; choose another --backbone"
        ) from error
    if not isinstance(features, Tensor):
        raise BadInput(f"backbone {name!r} returns {type(features).__name__}, not one tensor")
    return features


def _is_last(model: nn.Module, found: Tensor) -> bool:
    """Whether the channels of a map are its last axis."""
    channels = getattr(model, "num_features", None)
    return found.shape[-1] == channels and found.shape[1] != channels


def _as_map(skipped: int, _: nn.Module, __: object, tokens: Tensor) -> Tensor:
    """(B, skipped + side², C) to (B, C, side, side)."""
    grid = tokens[:, skipped:].transpose(1, 2)
    side = math.isqrt(grid.shape[2])
    return grid.reshape(*grid.shape[:2], side, side)


def _channels_first(_: nn.Module, __: object, found: Tensor) -> Tensor:
    """(B, h, w, C) to (B, C, h, w)."""
    return found.permute(0, 3, 1, 2)
