"""Graft: a network with some modules replaced, which shares every tensor with the original.

Only the containers on the way to a replaced module are copied (without their tensors); the original
stays as it is, and moving either to another device moves both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn


def grafted(model: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """``model`` with the modules at these dotted paths replaced.

    Args:
        model: any network; not changed.
        replaced: path -> module. A path inside another replaced one is of no effect.
    """
    root = _shell(model)
    copies = {"": root}
    for path, module in replaced.items():
        *above, name = path.split(".")
        at = ""
        for part in above:
            inner = f"{at}.{part}" if at else part
            if inner not in copies:
                copies[inner] = _shell(copies[at]._modules[part])
                copies[at]._modules[part] = copies[inner]
            at = inner
        copies[at]._modules[name] = module
    return root


def _shell(module: nn.Module | None) -> nn.Module:
    """The same module object anew: own list of children, shared tensors."""
    assert module is not None
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    return shell


class Pass(nn.Module):
    """Hands its first input on, whatever else it is given: something else took over its place."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """Return ``x``."""
        return x


class AllButLast(nn.Module):
    """An activation that serves a block several times, without its last use.

    Args:
        activation: the shared module.
        calls: uses in one pass of the block, 2 or more.
    """

    def __init__(self, activation: nn.Module, calls: int) -> None:
        super().__init__()
        self.activation, self.calls, self.done = activation, calls, 0

    def forward(self, x: Tensor) -> Tensor:
        """Activate, except when it is the last use's turn."""
        self.done = (self.done + 1) % self.calls
        return self.activation(x) if self.done else x
