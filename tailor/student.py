"""The contract that every method fulfils: a frozen trunk, and everything else in one module.

``student.universal`` is the shared backbone, never copied and never moved. ``student.task`` holds
all that is trained and packed; a checkpoint or a pack is its state dict and nothing else.
Nothing here trains, prunes or counts: those read the contract.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from tailor.backbone import Backbone
from tailor.teacher import Teacher

ROLES = ("deltas", "scores", "norms", "adapters", "fusion", "masks", "head", "body")


class Output(NamedTuple):
    """What a forward pass returns: (B, K) logits, and block outputs where a method needs them."""

    logits: Tensor
    block_outputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerState:
    """One layer of the backbone as a student left it."""

    name: str
    kind: str  # "conv" or "linear"
    params: int
    macs: int
    on: bool  # task-specific (True) or universal (False)
    score: float | None  # learned; None where the method has no scores
    change: float  # ||delta|| / ||universal weight||, 0 for a universal layer
    removed: bool = False  # in a universal block that was pruned away


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One layer or path that can be switched off, as it stands."""

    name: str  # of the layer or block; TARGET<-SOURCE for a proxy; side or side.STAGE
    kind: Literal["delta", "universal", "proxy", "side"]
    source: str | None = None  # block whose output a path starts from, or "stem"
    target: str | None = None  # block whose output it is part of
    params: int  # what it costs while it is on
    macs: int
    value: float  # a score in its own unit, or a softmax gate in [0, 1]
    on: bool  # at or above the method's threshold


@runtime_checkable
class Student(Protocol):
    """An ``nn.Module`` with these members; ``tests/test_contract.py`` holds every method to it."""

    universal: Backbone
    task: nn.Module
    method: str  # its file name in students/

    def __call__(self, images: Tensor) -> Output: ...

    def train(self, mode: bool = True) -> Student: ...

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Every trained parameter once, under its role (one of ``ROLES``)."""
        ...

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """Where weight decay pulls a parameter to, if not to zero: a delta decays to nothing."""
        ...

    def idle(self) -> list[nn.Parameter]:
        """Parameters that this step must not move: the deltas behind closed gates."""
        ...

    def price(self, epoch: float) -> Tensor | None:
        """λ times the price of what is switched on, a scalar; None where nothing has a price."""
        ...

    def layer_states(self) -> list[LayerState]:
        """Every layer of the backbone, in network order."""
        ...

    def merge(self) -> nn.Module:
        """A plain network, images to logits, with everything folded in."""
        ...


@runtime_checkable
class Gated(Student, Protocol):
    """A student with layers or paths that can be switched off for good."""

    def gates(self) -> list[Gate]:
        """Everything that can be switched off, in network order; empty where nothing can be."""
        ...

    def keep(self, names: Sequence[str]) -> Gated:
        """A smaller student of these layers or paths (and what they need to run), not more."""
        ...

    def kept(self) -> list[str]:
        """The names that make ``keep`` (and the method's ``rebuild``) build this student again."""
        ...


@runtime_checkable
class Timed(Student, Protocol):
    """A student that does something else as time goes by."""

    def at(self, epoch: float) -> None:
        """Be ready for a training step at this moment in epochs."""
        ...


@runtime_checkable
class Distilled(Student, Protocol):
    """A student that can learn from a teacher's outputs."""

    teacher: Teacher | None

    def wants_teacher(self) -> bool:
        """Whether its settings ask for distillation."""
        ...

    def distillation(self, images: Tensor, output: Output, indices: Tensor | None) -> Tensor | None:
        """The weighted distillation loss of one step, a scalar; None without a teacher.

        Args:
            images: (B, C, H, W) that ``output`` was computed from.
            output: of this student.
            indices: (B,) places in the training split, where the teacher may remember them.
        """
        ...


def layer_states(
    backbone: Backbone,
    *,
    on: Collection[str] = (),
    scores: Mapping[str, float] | None = None,
    change: Mapping[str, float] | None = None,
    removed: Collection[str] = (),
) -> list[LayerState]:
    """Every layer of ``backbone`` in network order, and what a student did to it, by name."""
    return [
        LayerState(
            name=layer.name,
            kind=layer.kind,
            params=layer.params,
            macs=layer.macs,
            on=layer.name in on,
            score=(scores or {}).get(layer.name),
            change=(change or {}).get(layer.name, 0.0),
            removed=layer.name in removed,
        )
        for layer in backbone.layers
    ]


def relative_change(backbone: Backbone, tuned: Mapping[str, Tensor]) -> dict[str, float]:
    """||tuned - universal|| / ||universal|| of every layer whose weight is in ``tuned``."""
    own = dict(backbone.model.named_parameters())
    found = {}
    for layer in backbone.layers:
        weight = layer.tensors[0]
        if weight in tuned:
            delta = (tuned[weight].detach() - own[weight]).norm()
            found[layer.name] = float(delta / own[weight].norm().clamp_min(1e-12))
    return found


def trained_parameters(student: Student) -> Iterator[nn.Parameter]:
    """Every trained parameter once."""
    for params in student.roles().values():
        yield from params
