"""Link: what a task of a sequence takes from the one before it, and leaves for the one after.

Tasks that share parameters may share the optimiser, too: its state of the shared ones (momentum,
Adam's moments) goes on where it was, as if one optimiser had trained them all. A method that
remembers something of a task (EWC its Fisher information) measures it when the task was learned;
that lies beside the task, in memory.safetensors. Left out: the sequence (``lifelong.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from tailor.data import Batches
from tailor.errors import BadInput
from tailor.run import SEQUENCE, read_tensors, write_tensors
from tailor.settings import Settings
from tailor.student import Student

STATE = "optimizer.safetensors"  # of the last task learned, while a sequence may go on
MEMORY = "memory.safetensors"  # what a method keeps of a task and does not train
MOMENTUM = "momentum_buffer"  # SGD's state; zeros are as good as none


@runtime_checkable
class Consolidating(Protocol):
    """A student that measures something once its task is learned."""

    def consolidate(self, train: Batches, settings: Settings) -> None:
        """Fill ``memory`` from the training images."""
        ...


@dataclass(frozen=True, kw_only=True)
class Link:
    """One task's place in a sequence.

    Args:
        out: the task's run directory.
        before: names of the earlier tasks' run directories beside it, in order.
        previous: student of the task before, None at the first task or where nothing is shared.
        carry: whether the optimiser's state goes on.
    """

    out: Path
    before: tuple[str, ...] = ()
    previous: Student | None = None
    carry: bool = True

    @property
    def config(self) -> dict[str, Any]:
        """What a run must say to be rebuilt."""
        return {"before": list(self.before)} if self.before else {}

    def begin(self, student: Student, optimizer: torch.optim.Optimizer) -> None:
        """Go on with the optimiser's state of what is shared with the task before.

        Raises:
            BadInput: that state is missing, damaged, or of other tensors.
        """
        if not self.carry or self.previous is None:
            return
        path = self.out.parent / self.before[-1] / STATE
        tensors = read_tensors(path)[0]
        names = {p: n for n, p in self.previous.task.named_parameters()}
        params = [p for g in optimizer.param_groups for p in g["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for index, param in enumerate(params):
            for name, tensor in tensors.items():
                owner, _, key = name.rpartition("/")
                if owner != names.get(param):
                    continue
                if key != "step" and tensor.shape != param.shape:
                    raise BadInput(f"{path} is not of this run ({name} has another shape)")
                like = key != "step"
                own = torch.empty_like(param).copy_(tensor) if like else tensor
                state.setdefault(index, {})[key] = own
        if any(MOMENTUM in own for own in state.values()):
            # Heads of earlier tasks may be trained again; SGD wants all of a group to have a state.
            for index, param in enumerate(params):
                state.setdefault(index, {MOMENTUM: torch.zeros_like(param)})
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def end(self, student: Student, optimizer: torch.optim.Optimizer) -> None:
        """Leave the optimiser's state, the head's apart, for the task after."""
        if not self.carry:
            return
        head = set(cast(nn.Module, student.task.head).parameters())
        tensors = {
            f"{name}/{key}": tensor
            for name, param in student.task.named_parameters()
            if param not in head
            for key, tensor in optimizer.state.get(param, {}).items()
            if isinstance(tensor, Tensor)
        }
        write_tensors(self.out / STATE, tensors)

    def learned(self, student: Student, train: Batches, settings: Settings) -> None:
        """Let the method measure what it remembers of this task, and keep that."""
        if isinstance(student, Consolidating):
            student.consolidate(train, settings)
        if (memory := memory_of(student)) is not None:
            write_tensors(self.out / MEMORY, memory.state_dict())

    def forget_before(self) -> None:
        """Remove the state of earlier optimisers: nothing goes on from there any more."""
        for name in self.before:
            (self.out.parent / name / STATE).unlink(missing_ok=True)


def memory_of(student: Student) -> nn.Module | None:
    """What the student keeps of tasks beside what it trains; None where nothing."""
    return cast("nn.Module | None", getattr(student, "memory", None))


def remember(student: Student, run: Path) -> None:
    """Read what the student kept of its task; outside of a sequence nothing was kept.

    Raises:
        BadInput: the file is missing, damaged or of another method.
    """
    memory, path = memory_of(student), run / MEMORY
    if memory is None or not (path.exists() or (run.parent / SEQUENCE).exists()):
        return
    try:
        memory.load_state_dict(read_tensors(path)[0])
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise BadInput(f"{path} is not of this run ({why}); restore it") from error


def numbers(modules: Iterable[nn.Module | None]) -> int:
    """How many numbers these modules' buffers and parameters hold, shared ones once."""
    tensors = {
        id(tensor): tensor.numel()
        for module in modules
        if module is not None
        for tensor in [*module.buffers(), *module.parameters()]
    }
    return sum(tensors.values())
