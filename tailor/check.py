"""Check: refuse tasks that nothing can be trained on, before anything is decoded.

Labels that lie under images are only decoded with them: `maps.checked` refuses those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tailor.errors import BadInput

if TYPE_CHECKING:
    from tailor.split import Split
    from tailor.task import Task

SUM = 1e-3  # how far the probabilities of a soft label may be from 1 together


def check(task: Task) -> None:
    """Refuse a task whose splits, classes or labels do not fit together.

    Raises:
        BadInput: names the split, and the image where one is to blame.
    """
    target, count = task.target, len(task.classes)
    if count < (1 if target.numeric else 2):
        if target.numeric:
            raise BadInput(f"{task.name} names no output: name every value that is predicted")
        raise BadInput(
            f"{task.name} has {count} class{'' if count else 'es'} {list(task.classes)}: "
            "there is nothing to tell apart, two or more are needed"
        )
    if target.flip_signs and len(target.flip_signs) != count:
        raise BadInput(
            f"{task.name} has {len(target.flip_signs)} flip_signs for {count} outputs "
            f"{list(task.classes)}: give one for each"
        )
    for name, split in task.splits.items():
        if len(split) == 0:
            raise BadInput(f"{task.name} has no images in {name}: add some or leave {name} out")
        if split.target != target:
            raise BadInput(
                f"labels of {name} of {task.name} are {split.target}, those of the task {target}: "
                "make both the same"
            )
        if split.maps is not None:
            if split.maps.outputs != count:
                raise BadInput(
                    f"label maps of {name} of {task.name} have {split.maps.outputs} outputs, the "
                    f"task has {count}: name each of them once"
                )
        elif target.kind == "set":
            _check_sets(task, name, split)
        elif target.kind == "class":
            _check_numbers(task, split)
        else:
            _check_floats(task, name, split)
    if target.kind == "class":
        _check_every_class(task)


def _check_every_class(task: Task) -> None:
    """Of sets, a class that no training image has can still be told to be absent."""
    per_class = torch.bincount(task.splits["train"].labels, minlength=len(task.classes))
    empty = [task.classes[k] for k in (per_class == 0).nonzero()[:, 0].tolist()]
    if empty:
        raise BadInput(
            f"{task.name} has no training image of class {empty[0]!r}"
            f"{f' and {len(empty) - 1} more' if len(empty) > 1 else ''}: "
            "add images or remove the class"
        )


def _check_numbers(task: Task, split: Split) -> None:
    """(n,) class numbers."""
    count = len(task.classes)
    outside = ((split.labels < 0) | (split.labels >= count)).nonzero()[:, 0].tolist()
    if outside:
        raise BadInput(
            f"{split.where(outside[0])} of {task.name} has label "
            f"{int(split.labels[outside[0]])}, out of range for {count} classes: "
            f"labels count from 0 to {count - 1}"
        )


def _check_floats(task: Task, name: str, split: Split) -> None:
    """(n, K) probabilities, or values of which some are counted."""
    labels = split.labels
    _check_columns(task, name, split)
    if task.target.kind == "soft":
        bad = (labels < 0).any(1) | ~((labels.sum(1) - 1).abs() <= SUM)
        wrong = "no probabilities that sum to 1: divide them by their sum"
    else:
        bad = labels.isinf().any(1)
        wrong = "an infinite value: mark what is not counted with NaN"
    if bad.any():
        row = int(bad.nonzero()[0])
        raise BadInput(f"{split.where(row)} of {task.name} has {wrong}")
    empty = labels.isnan().all(0).nonzero()[:, 0].tolist()
    if empty:
        raise BadInput(
            f"no image in {name} of {task.name} has a value for {task.classes[empty[0]]!r}: add "
            f"some or leave {name} out"
        )


def _check_columns(task: Task, name: str, split: Split) -> None:
    count = len(task.classes)
    if split.labels.shape[1:] != (count,):
        raise BadInput(
            f"labels of {name} of {task.name} have shape {tuple(split.labels.shape)}, not one "
            f"column for each of {count} classes: give (images, {count})"
        )


def _check_sets(task: Task, name: str, split: Split) -> None:
    """(n, C) of 1, 0 and -1, at least one of them present."""
    _check_columns(task, name, split)
    outside = ((split.labels < -1) | (split.labels > 1)).nonzero().tolist()
    if outside:
        row, column = outside[0]
        raise BadInput(
            f"{split.where(row)} of {task.name} has label {int(split.labels[row, column])} for "
            f"class {task.classes[column]!r}: 1 is present, 0 absent, -1 not to be counted"
        )
    if not (split.labels == 1).any():
        raise BadInput(
            f"no image in {name} of {task.name} has any class: add some or leave {name} out"
        )
