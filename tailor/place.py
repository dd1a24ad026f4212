"""Place: where an adapter acts, and what it must be able to do there.

A ``Place`` stands for a layer in a student's view of its network. Where the norm behind the layer
can be computed together with the adapter, ``NormBehind`` stands for that norm. Left out: what an
adapter computes (``residual.py``, ``students/``), and which layers have one (``adapted.py``).
"""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from tailor.gates import select
from tailor.normed import joinable


class Adapter(Protocol):
    """One layer's task-specific part, an ``nn.Module``.

    ``value`` is what a gate scales: ``opened`` where it is on, ``closed`` where it is off, with
    which the layer computes what the universal one does.
    """

    def __call__(self, x: Tensor, layer: Any, value: Tensor) -> Tensor: ...

    def opened(self, layer: Any) -> Tensor: ...

    def closed(self, layer: Any) -> Tensor: ...

    def fold(self, layer: Any, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that computes the same."""
        ...


@runtime_checkable
class Joining(Protocol):
    """An adapter that can be computed with the norm behind its layer: norm(adapted layer(x))."""

    def joins(self, layer: Any) -> bool:
        """Whether it can at this layer."""
        ...

    def before(self, x: Tensor, layer: Any, value: Tensor) -> Tensor:
        """What the layer hands to the norm's place."""
        ...

    def after(self, a: Tensor, value: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """The norm's output for it, in training."""
        ...


class Place(nn.Module):
    """A layer of the view: the universal one and the task's part of it."""

    def __init__(self, layer: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter
        self.score: Tensor | None = None  # of a gated student, put here before every pass
        self.on, self.reached = True, False
        # Who alone reads the output, and what is left for it to do in this pass. In a tuple:
        # registered, its tensors would be listed twice.
        self.reader: tuple[NormBehind, ...] = ()
        self.left: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """What the network asks its layer for, such as a stride."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, adapted where the gate is on."""
        self.reached = True
        adapter = cast(Adapter, self.adapter)
        if not self.on and not torch.is_grad_enabled():
            return cast(Tensor, self.layer(x))
        value = adapter.opened(self.layer)
        if self.score is not None:
            value = select(self.score, value, adapter.closed(self.layer), on=self.on)
        self.left = None
        if self.reader and joinable(self.reader[0].norm, x, value):
            self.left = value
            return cast(Joining, adapter).before(x, self.layer, value)
        return adapter(x, self.layer, value)


class NormBehind(nn.Module):
    """A norm of the view that alone reads an adapted layer: where both can be computed together."""

    def __init__(self, norm: nn.BatchNorm2d, place: Place) -> None:
        super().__init__()
        self.norm = norm
        self.place = (place,)  # in a tuple as above
        place.reader = (self,)

    def __getattr__(self, name: str) -> Any:
        """What the network asks its norm for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("norm"), name)

    def forward(self, a: Tensor) -> Tensor:
        """The norm's output; with the adapter in it where the layer left that to do."""
        place, value = self.place[0], self.place[0].left
        if value is None:
            return cast(Tensor, self.norm(a))
        place.left = None
        return cast(Joining, place.adapter).after(a, value, self.norm)
