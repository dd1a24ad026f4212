"""The account of a sequence: how many numbers its tasks hold together, shared ones once.

A tensor is counted once, whoever uses it: a body that tasks share, or the trunk. The trunk counts
where some task's student reads it for its prediction, which is seen by watching one forward pass;
a fine-tuned copy does without. What a method keeps of tasks but does not train (Fisher information,
keys) is memory and apart. Buffers (running statistics) are no parameters. Left out: one task's
account (``cost.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tailor import link
from tailor.student import Student, trained_parameters


class Account:
    """What the students seen so far hold together."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}  # tensor -> how many numbers
        self._kept: list[Any] = []  # so that no id is given to another tensor
        self._memories: list[nn.Module | None] = []

    def add(self, student: Student) -> dict[str, int]:
        """Count one more task.

        Returns:
            ``params``: unique parameters of all students so far, with the trunk where it is used
            and the heads; ``trainable``: what this task trains; ``task_params``: what it added to
            those before, its ``heads`` apart; ``memory``: kept, and not trained, of all so far.
        """
        head = {id(p) for p in cast(nn.Module, student.task.head).parameters()}
        added = sum(
            p.numel()
            for p in student.task.parameters()
            if id(p) not in self._held and id(p) not in head
        )
        for param in [*trunk_read_by(student), *student.task.parameters()]:
            self._held[id(param)] = param.numel()
            self._kept.append(param)
        self._memories.append(link.memory_of(student))
        return {
            "params": sum(self._held.values()),
            "trainable": sum(p.numel() for p in trained_parameters(student)),
            "task_params": added,
            "heads": sum(p.numel() for p in student.task.parameters() if id(p) in head),
            "memory": link.numbers(self._memories),
        }


@torch.no_grad()
def trunk_read_by(student: Student) -> list[nn.Parameter]:
    """Parameters of the trunk that a student's prediction depends on.

    Args:
        student: put into evaluation mode.
    """
    student.train(False)
    params = list(student.universal.parameters())
    places = {p.untyped_storage().data_ptr() for p in params}
    image = torch.zeros(1, *student.universal.input_size, device=params[0].device)
    with _Reads() as reads:
        student(image)
    seen = places & reads.seen
    return [p for p in params if p.untyped_storage().data_ptr() in seen]


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the memory of every tensor that an operator is given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        self.seen |= {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, given))
            if isinstance(leaf, Tensor)
        }
        return func(*args, **given)
