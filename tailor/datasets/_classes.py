"""`classes:TASK:0-9`: some classes of another task as a task of its own.

The other task may be any, nested ones too (`classes:folder:PATH:0-4`): its name goes to the last
colon, what follows are numbers of its classes, as `0-9`, `0,3,5` or `0-4,7`. They count from 0 anew
in the order given, in every split that the other task has. A sequence of such tasks is how
class-incremental sets are made (iCIFAR: tasks of ten consecutive classes of CIFAR-100).
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from tailor.errors import BadInput
from tailor.task import Split, Task, read_task

DIGITS = 6  # of a class number: no data set has a million classes
_opened: dict[tuple[str, Path], Task] | None = None  # by name and root, while `once` holds


@contextlib.contextmanager
def once() -> Iterator[None]:
    """While this holds, a task that many take classes of is opened once, and its images shared."""
    global _opened
    before, _opened = _opened, {} if _opened is None else _opened
    try:
        yield
    finally:
        _opened = before


def read(name: str, root: Path, *, download: bool) -> Task:
    """Open ``classes:name``.

    Args:
        name: TASK:NUMBERS.
        root: where data sets lie.
        download: fetch a missing data set where torchvision can.

    Raises:
        BadInput: no such task, one without a class per image, or numbers that it does not have.
    """
    inner, numbers = parse(name)
    whole = _whole(inner, root, download=download)
    if whole.target.kind != "class" or any(s.labels.ndim != 1 for s in whole.splits.values()):
        raise BadInput(
            f"classes:{name} takes classes of {whole.name}, whose images have no single class "
            f"each; name a task that has one label per image"
        )
    if beyond := [k for k in numbers if k >= len(whole.classes)]:
        raise BadInput(
            f"classes:{name} asks for class {beyond[0]}, and {whole.name} has "
            f"{len(whole.classes)}: give numbers from 0 to {len(whole.classes) - 1}"
        )
    chosen = {split: _part(of, numbers) for split, of in whole.splits.items()}
    return replace(
        whole,
        name=f"{whole.name}:{name.rpartition(':')[2]}",
        classes=tuple(whole.classes[k] for k in numbers),
        splits=chosen,
    )


def parse(name: str) -> tuple[str, list[int]]:
    """The other task, and the numbers of its classes in order.

    Raises:
        BadInput: no task, no number, one that cannot be read, or one given twice.
    """
    inner, _, asked = name.rpartition(":")
    if not inner or not asked.strip():
        raise BadInput(f"task 'classes:{name}' names no task or no classes: write classes:TASK:0-9")
    numbers: list[int] = []
    for part in asked.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if found is None:
            raise BadInput(
                f"task 'classes:{name}' ends with {part!r}, which is no number and no range: write "
                f"classes:{inner}:0-9 or classes:{inner}:0,3,5"
            )
        if huge := [digits for digits in found.groups("") if len(digits) > DIGITS]:
            raise BadInput(
                f"a task of classes of {inner} asks for class {huge[0][:DIGITS]}..., a number of "
                f"{len(huge[0])} digits: write classes:{inner}:0-9"
            )
        first = int(found[1])
        last = first if found[2] is None else int(found[2])
        if last < first:
            raise BadInput(
                f"task 'classes:{name}' has the range {part.strip()}, which is empty: write "
                f"{last}-{first}"
            )
        numbers += range(first, last + 1)
    if twice := [k for k, times in Counter(numbers).items() if times > 1]:
        raise BadInput(f"task 'classes:{name}' has class {min(twice)} twice: give each class once")
    return inner, numbers


def origin(spec: str) -> tuple[str, list[int] | None]:
    """The data set behind a task's name, and which of its classes; None for all of them.

    Args:
        spec: such as ``classes:classes:digits:5-9:0-1``, which is ``digits`` and [5, 6].
    """
    reader, _, rest = spec.partition(":")
    if reader != "classes":
        path = reader in ("folder", "npz")
        return (f"{reader}:{Path(rest).expanduser().resolve()}" if path else spec), None
    named, numbers = parse(rest)
    inner, among = origin(named)
    return inner, numbers if among is None else [among[k] for k in numbers]


def _whole(inner: str, root: Path, *, download: bool) -> Task:
    if _opened is None:
        return read_task(inner, root, download=download)
    if (inner, root) not in _opened:
        _opened[inner, root] = read_task(inner, root, download=download)
    return _opened[inner, root]


def _part(split: Split, numbers: list[int]) -> Split:
    """The images of these classes in their old order, labelled by the place in ``numbers``."""
    place = torch.full((max([*numbers, *split.labels.tolist()]) + 1,), -1)
    place[numbers] = torch.arange(len(numbers))
    labels = torch.where(split.labels < 0, -1, place[split.labels.clamp_min(0)])  # -1: others
    chosen = (labels >= 0).nonzero()[:, 0]
    return Split(split.source, labels[chosen], split.index[chosen])
