"""Behind: which batch norm reads a layer's output, if nothing else does.

There, a bias of the layer and the norm's running mean are interchangeable. Found by running the
network once and watching who reads what; no architecture is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tailor.backbone import Backbone


def norms_behind(backbone: Backbone) -> dict[str, str]:
    """Layer -> the batch norm that alone reads its output, found by running the network once."""
    made: dict[int, str] = {}  # id of an output -> its layer
    alive: list[Tensor] = []  # so that no id is used twice
    model, found = backbone.model, {}
    handles = []

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            made[id(output)] = name
            alive.append(output)

        return hook

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given and id(given[0]) in made:
                found[made[id(given[0])]] = name

        return hook

    for layer in backbone.layers:
        handles.append(model.get_submodule(layer.name).register_forward_hook(after(layer.name)))
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before(name)))
    weight = next(model.parameters())
    image = torch.zeros(1, *backbone.input_size, device=weight.device, dtype=weight.dtype)
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), _Uses(made) as uses:
            model(image)
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()
    return {layer: norm for layer, norm in found.items() if uses.count[layer] == 1}


_ABOUT_SHAPES = ("__get__", "dim", "size")  # operations that read no values


class _Uses(TorchFunctionMode):
    """Counts the operations that read each of some tensors."""

    def __init__(self, made: Mapping[int, str]) -> None:
        super().__init__()
        self.made = made
        self.count: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in _ABOUT_SHAPES:
            for given in (*args, *kwargs.values()):
                if isinstance(given, Tensor) and id(given) in self.made:
                    name = self.made[id(given)]
                    self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **kwargs)
