"""A task: images with labels, their classes, and the splits a run may look at.

`Task` names its splits (`tailor.split`) and what their labels are: one class, a set of classes,
numbers, or one of these for every pixel (`tailor.target`). `open_task` finds a task by name and
carves a validation split out of train where the data set brings none, so that model selection never
needs the test split. How images become batches is `tailor.data`'s matter, what a prediction is
worth that of `tailor.metrics`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tailor import catalog
from tailor.check import check
from tailor.errors import BadInput
from tailor.split import Files, Pixels, Source, Split
from tailor.stratify import at_most, stratified
from tailor.target import CLASS, Metric, Target

__all__ = ["Facts", "Files", "Pixels", "Source", "Split", "Task", "data_root", "open_task"]

Rgb = tuple[float, float, float]

# Of ImageNet, where most backbones come from: for images whose own statistics nobody measured.
MEAN: Rgb = (0.485, 0.456, 0.406)
STD: Rgb = (0.229, 0.224, 0.225)

# Names of the form `folder:PATH`: the word before the colon and the module that reads the rest.
READERS = {
    "classes": "tailor.datasets._classes",
    "decathlon": "tailor.datasets._decathlon",
    "folder": "tailor.datasets._folder",
    "npz": "tailor.datasets._npz",
    "scenes": "tailor.datasets._scenes",
    "taskonomy": "tailor.datasets._taskonomy",
    "torchvision": "tailor.datasets._torchvision",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What `tailor list tasks` says about a data set."""

    title: str
    classes: int
    source: str  # where it comes from: a page or a package
    licence: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, its label space and what is predicted."""

    name: str
    classes: tuple[str, ...]  # names of the outputs: label k is classes[k], or value k of several
    splits: Mapping[
        str, Split
    ]  # "train", "val" (after `open_task`, unless told otherwise), "test" (if there is one)
    target: Target = CLASS  # what labels are, and how predictions are trained and judged
    mean: Rgb = MEAN  # per channel, in 0..1
    std: Rgb = STD
    spec: str = ""  # what `open_task` was asked for, such as "folder:PATH"
    root: str | None = None  # where it looked, if that was not the default

    @property
    def metric(self) -> Metric:
        """What a run of the task is judged by; larger is better."""
        return self.target.metric


def open_task(
    name: str,
    root: Path | None = None,
    *,
    val_share: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> Task:
    """Find a task by name and make sure that it can be trained on.

    Args:
        name: a file name in ``tailor/datasets`` (``digits``, ``svhn``, ...), ``folder:PATH``,
            ``npz:PATH`` (``npz:PATH@TARGET`` of a dense set), ``torchvision:CLASS``,
            ``decathlon:DOMAIN`` or ``classes:TASK:0-9``.
        root: where data sets lie; ``$TAILOR_DATA`` by default, and ``./data`` without it.
        val_share: share of every class's training images that becomes the validation split
            where the data set has none, in (0, 1); each class keeps one image in train. 0 takes
            none away, and then there is no validation split.
        limit: use at most so many training images, the same share of every class and at least
            one; validation is carved out of these, a split of the data set's own stays whole.
        seed: of both draws, not of the run: runs compare only while it stays the same.
        download: fetch a missing data set where torchvision can.

    Returns:
        The task with splits ``train`` and ``val``, and ``test`` where there is one.

    Raises:
        BadInput: unknown name, data that is missing or that cannot be trained on.
    """
    if not 0 <= val_share < 1:
        raise BadInput(
            f"validation share is {val_share}: give a share between 0 and 1, such as 0.1, or 0 for "
            f"no validation split"
        )
    asked = None if root is None else str(root)
    task = replace(read_task(name, data_root(root), download=download), spec=name, root=asked)
    check(task)
    if limit is not None:
        task = _limited(task, limit, seed)
    if "val" in task.splits or val_share == 0:
        return task
    train = task.splits["train"]
    kept, taken = stratified(train.strata, val_share, seed)
    if len(taken) == 0:
        raise BadInput(
            f"{task.name} has one training image per class, none to spare for validation: "
            f"{'raise the limit' if limit else 'add images or a validation split'}"
        )
    carved = {"train": train.subset(kept), "val": train.subset(taken)}
    return replace(task, splits={**task.splits, **carved})


def data_root(root: str | Path | None) -> Path:
    """The folder of the data sets: ``root``, or else $TAILOR_DATA, or else ``./data``."""
    return Path(root or os.environ.get("TAILOR_DATA", "data")).expanduser()


def read_task(name: str, root: Path, *, download: bool) -> Task:
    """The task as its reader gives it: unchecked, and with the splits that the data set has."""
    reader, colon, rest = name.partition(":")
    if not colon:
        known: Task = catalog.load("tailor.datasets", name, "task").read(root, download=download)
        return known
    if reader not in READERS:
        raise catalog.unknown(
            "task", name, [*catalog.names("tailor.datasets"), *(f"{r}:{rest}" for r in READERS)]
        )
    if not rest:
        raise BadInput(f"task {name!r} ends with its colon: say what to read, as in {reader}:NAME")
    opened: Task = importlib.import_module(READERS[reader]).read(rest, root, download=download)
    return opened


def _limited(task: Task, limit: int, seed: int) -> Task:
    if limit < 1:
        raise BadInput(f"limit is {limit} training images: give 1 or more")
    whole = task.splits["train"]
    train = whole.subset(at_most(whole.strata, limit, seed))
    missed = _classes(whole.strata) - _classes(train.strata)
    if missed:
        raise BadInput(
            f"{limit} training images leave {len(missed)} of {len(task.classes)} classes of "
            f"{task.name} without one: raise the limit"
        )
    return replace(task, splits={**task.splits, "train": train})


def _classes(labels: Tensor) -> set[int]:
    """Numbers of the classes that some image has."""
    found = labels if labels.ndim == 1 else (labels == 1).nonzero()[:, 1]
    return set(found.tolist())
