"""The contract that every method fulfils: a frozen trunk, and everything else in one module.

``student.universal`` is the shared backbone, never copied and never moved. ``student.task`` holds
all that is trained and packed; a checkpoint or a pack is its state dict and nothing else.
Nothing here trains, prunes or counts: those read the contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from tailor.backbone import Backbone

ROLES = ("deltas", "scores", "norms", "adapters", "head", "body")


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
    """A student whose layers can be switched off for good."""

    def keep(self, names: Sequence[str]) -> Gated:
        """A smaller student in which only these layers are task-specific, without scores."""
        ...


def trained_parameters(student: Student) -> Iterator[nn.Parameter]:
    """Every trained parameter once."""
    for params in student.roles().values():
        yield from params
