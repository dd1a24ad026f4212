"""What each open delta, block or proxy of a finished student is worth: its accuracy without it.

Each part is closed alone, everything else stays as trained: norms, head, the other parts. Nothing
is retrained, so this says what the network that was learned leans on, not what another training
could have done without. The outcome lies in the run as ``worth-SPLIT.json`` and is measured again
only if the student's file has changed. Tables and correlations of it: ``analysis/worth.py``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailor.data import Batches
from tailor.errors import BadInput
from tailor.metrics import Metric, metric_for
from tailor.opened import batches, open_run, task_of
from tailor.options import Split
from tailor.progress import Progress, Silent
from tailor.prune import SCORED
from tailor.run import read_json, write_json
from tailor.settings import Settings
from tailor.student import Gated, Student
from tailor.workflow import time_run

SCHEMA = 1
_NOISY = 0.25  # interquartile range of a ratio of times; more is worth repeating


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that can be closed, and the student without it."""

    name: str
    kind: str  # delta, universal or proxy
    without: Student
    also: tuple[str, ...] = ()  # what computes nothing any more without it, and goes as well


def stored(path: Path, split: Split) -> dict[str, Any] | None:
    """What was measured before and still holds; None if there is nothing or the student changed.

    Returns:
        As of ``measure_worth``.

    Raises:
        BadInput: the file is damaged.
    """
    file = path / f"worth-{split}.json"
    if not file.exists():
        return None
    found = read_json(file)
    if not isinstance(found, dict) or not isinstance(found.get("parts"), list):
        raise BadInput(f"{file} is damaged (no list of parts); delete it and measure again")
    fresh = (found.get("schema"), found.get("student")) == (SCHEMA, _checksum(path))
    return found if fresh else None


def measure_worth(
    path: Path,
    *,
    split: Split = "val",
    device: str = "auto",
    root: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a finished run with each of its open parts closed alone.

    Args:
        path: a run of a method with parts that can be closed, in any stage.
        split: which images; every batch of them is read once.
        device: where to compute.
        root: the data sets' folder, if it moved since.
        progress: who is told.

    Returns:
        What is written: ``metric``, ``n`` (images), ``value`` with everything open, and ``parts``
        in network order, each with ``name``, ``kind``, ``value`` without it, ``also`` (what went
        with it), and for accuracy ``lost`` and ``gained``, the images that were classified rightly
        only with it, and only without it. ``needed`` are parts without which nothing is left.

    Raises:
        BadInput: no such run or split, a method without parts, or no room to write.
    """
    progress = progress or Silent()
    opened = open_run(path)
    data = dataclasses.replace(opened.data, root=root) if root else opened.data
    settings = dataclasses.replace(Settings(**opened.result["config"]["train"]), device=device)
    student, began = opened.student, time.monotonic()
    parts, needed = parts_of(student, path)
    task = task_of(data)
    if split not in task.splits:
        raise BadInput(
            f"task {task.name} has no {split} split; give --split {' or '.join(task.splits)}"
        )
    found = batches(task, split, student.universal, data, settings)
    tried = [student, *(part.without for part in parts)]
    values, right = _measure(tried, found, settings.bf16, progress)
    told = [
        {"name": part.name, "kind": part.kind, "value": value, "also": list(part.also)}
        | ({} if right is None else _flips(right[0], right[place]))
        for place, (part, value) in enumerate(zip(parts, values[1:], strict=True), start=1)
    ]
    result = {
        "schema": SCHEMA,
        "student": _checksum(path),
        "split": split,
        "metric": task.metric,
        "n": len(found.split),
        "value": values[0],
        "parts": told,
        "needed": needed,
        "seconds": time.monotonic() - began,
    }
    write_json(path / f"worth-{split}.json", result)
    progress.say(f"{len(parts)} parts closed in turn, {len(found.split)} images of {split} each")
    return result


def parts_of(student: Student, path: Path) -> tuple[list[Part], list[str]]:
    """Everything that is open and can be closed alone, and the names of what cannot.

    A gated student's parts are what its gates hold open, a pruned one's what was kept.

    Raises:
        BadInput: the method of run ``path`` has nothing that can be closed.
    """
    if not isinstance(student, Gated):
        raise BadInput(
            f"run {str(path)!r} of method {student.method} has no delta or block that could be "
            "closed; name a run of taps or nettailor"
        )
    gates = student.gates()
    kinds = {gate.name: str(gate.kind) for gate in gates}
    is_delta = all(kind in SCORED for kind in kinds.values())
    closed = {gate.name for gate in gates if is_delta and not gate.on}
    here = [name for name in student.kept() if name not in closed]
    parts, needed = [], []
    for name in here:
        rest = [other for other in here if other != name]
        if not rest and not is_delta:  # the only path of a network
            needed.append(name)
            continue
        smaller = student.keep(rest)
        left = set(smaller.kept())
        if name in left:
            needed.append(name)
        else:
            also = tuple(other for other in rest if other not in left)
            parts.append(Part(name, kinds.get(name, "delta"), smaller, also))
    return parts, needed


def measure_missing(
    paths: Sequence[Path],
    *,
    split: Split = "val",
    device: str = "auto",
    root: str | None = None,
    tell: Callable[[str], Progress] | None = None,
) -> bool:
    """``measure_worth`` of all runs that have no valid one; whether there was any."""
    missing = [path for path in paths if stored(path, split) is None]
    for number, path in enumerate(missing, start=1):
        title = f"worth {path.name} ({number} of {len(missing)})"
        progress = tell(title) if tell else Silent()
        measure_worth(path, split=split, device=device, root=root, progress=progress)
    return bool(missing)


def time_runs(paths: Sequence[Path], tell: Callable[[str], Progress] | None = None) -> bool:
    """Measure and store the latency of finished runs; whether there was any to measure."""
    progress = tell("latency") if tell and paths else Silent()
    progress.begin(len(paths), 0)
    try:
        for path in paths:
            spread = time_run(open_run(path))["spread"]
            if spread > _NOISY:
                progress.say(
                    f"{path}: the ratio spreads by {spread:.2f}, for the machine is busy; repeat "
                    f"later with `tailor evaluate {path} --latency`"
                )
            progress.advance(1, {})
    finally:
        progress.end()
    return bool(paths)


@torch.no_grad()
def _measure(
    students: Sequence[Student], found: Batches, bf16: bool, progress: Progress
) -> tuple[list[float], list[Tensor] | None]:
    """The metric of each student, and for accuracy which images it classifies rightly.

    The outer loop is over batches: a split that does not fit into memory is decoded once.
    """
    metrics: list[Metric] = [metric_for(found.split.target) for _ in students]
    right: list[list[Tensor]] = [[] for _ in students]
    one_label = found.split.target.kind == "class"
    progress.begin(found.steps * len(students), 0)
    try:
        for batch in found.epoch(0):
            for place, student in enumerate(students):
                cast(nn.Module, student).to(found.device)
                # Students share one trunk, whose mode is that of the last one that was set.
                student.train(False)
                with torch.autocast(found.device.type, torch.bfloat16, enabled=bf16):
                    logits = student(batch.images).logits
                metrics[place].add(logits, batch.labels)
                if one_label:
                    right[place].append((logits.argmax(1) == batch.labels).cpu())
                progress.advance(1, {})
    finally:
        progress.end()
    values = [metric.value() for metric in metrics]
    return values, [torch.cat(some) for some in right] if one_label else None


def _flips(full: Tensor, without: Tensor) -> dict[str, int]:
    """Images that are right only with a part, and only without it."""
    return {"lost": int((full & ~without).sum()), "gained": int((~full & without).sum())}


def _checksum(path: Path) -> str:
    file = path / "student.safetensors"
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(
            f"{file} cannot be read ({error.strerror}); restore it, or delete the run and repeat it"
        ) from error
