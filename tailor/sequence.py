"""What a sequence of tasks is: the names of its tasks, how they are trained, where each one goes.

A sequence is a file of ``tailor/sequences`` or any list of tasks. Left out: who learns it
(``lifelong.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from types import ModuleType
from typing import Any

import tyro

from tailor import catalog
from tailor.datasets import _classes
from tailor.errors import BadInput
from tailor.options import Images, Lifelong, Net
from tailor.settings import Settings
from tailor.task import Task, data_root
from tailor.units import short

PACKAGE = "tailor.sequences"


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a sequence's authors trained with; every option can be given another value."""

    images: Images = field(default_factory=Images)
    net: Net = field(default_factory=Net)
    train: Settings


def known(name: str) -> ModuleType:
    """The file of a sequence.

    Raises:
        BadInput: no such sequence.
    """
    return catalog.load(PACKAGE, name, "sequence")


def defaults(name: str | None, method: str) -> Any:
    """Options of ``tailor lifelong`` as a sequence's authors have them; OUT is to be filled in.

    Args:
        name: of the sequence; the toolkit's own defaults where None.
        method: whose settings go with it.

    Raises:
        BadInput: no such sequence or method.
    """
    settings = catalog.load("students", method, "method").Config()
    begun: dict[str, Any] = {"out": tyro.MISSING, "method": method, "settings": settings}
    if name is None:
        return Lifelong(**begun)
    recipe: Defaults = known(name).RECIPE
    how: dict[str, Any] = {"images": recipe.images, "net": recipe.net, "train": recipe.train}
    return Lifelong(sequence=name, **begun, **how)


def tasks_of(sequence: str | None, tasks: Sequence[str], images: Images) -> tuple[str, ...]:
    """The specs of the tasks to learn, in order.

    Args:
        sequence: name of a known one, or None.
        tasks: a list of specs otherwise.
        images: where data sets lie.

    Raises:
        BadInput: neither or both are given, or the same task twice.
    """
    if sequence and tasks:
        raise BadInput(f"--sequence {sequence} brings its tasks; leave --task out, or --sequence")
    if sequence:
        module = known(sequence)
        tasks = module.tasks(data_root(images.root), download=images.download)
    if not tasks:
        raise BadInput("no task to learn; give --task one or more names, or --sequence icifar")
    if twice := [task for task in tasks if tasks.count(task) > 1]:
        raise BadInput(f"task {twice[0]!r} is twice in the sequence; give each task once")
    return tuple(tasks)


def check_disjoint(tasks: Sequence[str], opened: Sequence[Task]) -> None:
    """Refuse two tasks that ask for the same class of one data set.

    Args:
        tasks: specs, such as ``classes:digits:0-4``.
        opened: the tasks; a spec without numbers stands for all classes.

    Raises:
        BadInput: names the two tasks and the class.
    """
    sets = []
    for spec, task in zip(tasks, opened, strict=True):
        inner, asked = _classes.origin(spec)
        numbers = range(len(task.classes)) if asked is None else asked
        sets.append((spec, inner, dict(zip(numbers, task.classes, strict=True))))
    for (one, inner, first), (other, also, second) in combinations(sets, 2):
        if inner == also and (both := sorted(first.keys() & second.keys())):
            raise BadInput(
                f"tasks {one!r} and {other!r} share {len(both)} class"
                f"{'es' if len(both) > 1 else ''} of {inner}, such as {both[0]} "
                f"({first[both[0]]}); give tasks without common classes"
            )


def folder_names(tasks: Sequence[str]) -> list[str]:
    """Names of the run directories: number and task, as ``01-svhn``."""
    return [f"{place:02d}-{short(task)}" for place, task in enumerate(tasks, 1)]
