"""Checkpoints: everything that a training step changes, and the best epoch so far.

Left out: where files lie and how they are written (``run.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.run import Run, read_tensors, write_tensors
from tailor.student import Student, trained_parameters


class Best:
    """The best epoch so far, and where its tensors are."""

    def __init__(self, val: float | None = None, epoch: int = 0) -> None:
        self.val, self.epoch = val, epoch
        self.tensors: dict[str, Tensor] | None = None

    def beaten_by(self, val: float) -> bool:
        return self.val is None or val > self.val

    def keep(self, student: Student, run: Run | None) -> None:
        tensors = student.task.state_dict()
        if run is not None:
            write_tensors(run.path / "best.safetensors", tensors, {"epoch": self.epoch})
        else:
            self.tensors = {n: t.clone() for n, t in tensors.items()}

    def restore(self, student: Student, run: Run | None) -> None:
        group = Group.current()
        if group.rank == 0:
            tensors = self.tensors
            if run is not None:
                tensors = read_tensors(run.path / "best.safetensors")[0]
            if tensors is not None:
                student.task.load_state_dict(tensors)
        for tensor in student.task.state_dict().values():
            group.broadcast_(tensor)


def snapshot(student: Student, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a step changes, as named tensors: the task's and the optimiser's."""
    tensors = {f"task.{n}": t for n, t in student.task.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{index}.{k}": t for k, t in state.items() if t is not None}
    return tensors


def restore(student: Student, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    task = {n.removeprefix("task."): t for n, t in tensors.items() if n.startswith("task.")}
    try:
        student.task.load_state_dict(task)
    except RuntimeError as error:
        raise BadInput(
            f"the checkpoint does not fit this student ({str(error).splitlines()[-1].strip()}); "
            f"choose another --out"
        ) from error
    params = [p for g in optimizer.param_groups for p in g["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optim."):
            _, index, key = name.split(".", 2)
            like = params[int(index)]
            # Fused kernels read a parameter and its momentum in memory order; a file has no NHWC.
            own = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(index), {})[key] = own
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def sound(student: Student, optimizer: torch.optim.Optimizer) -> bool:
    """Whether weights and optimiser state are finite: a step can spoil them after a good loss."""
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return all(bool(t.isfinite().all()) for t in [*trained_parameters(student), *state])
