"""Reads sequences of tasks: the matrix that ``tailor lifelong`` leaves, and what tells runs apart.

``matrix.json`` holds the metric of every task learned so far after each task, as a triangle: row t
is measured when task t was learned, on tasks 0 to t. A sequence that is still being learned has
fewer rows. Left out: what is made of the numbers (``forgetting.py``).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailor.errors import BadInput
from tailor.progress import SHARES
from tailor.run import MATRIX, MATRIX_REMEDY

_GROWING = ("params", "memory", "bytes", "macs")  # after each task
_EACH = ("trainable", "task_params", "heads", "seconds")  # of each task
_NEEDED = ("method", "seed", "tasks", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What one method with one seed made of one sequence, as far as it has come."""

    path: Path
    method: str
    seed: int
    sequence: str
    backbone: str
    tasks: tuple[str, ...]  # in order; of an unfinished sequence perhaps only those learned
    metrics: tuple[str, ...]  # of each task; larger is better
    accuracy: tuple[tuple[float, ...], ...]  # row t: tasks 0 to t after task t, 1 is best
    loss: tuple[tuple[float, ...], ...]  # test loss in the same layout; no rows if not measured
    alone: tuple[float, ...] | None  # metric of each task learned alone by the same method
    apart: bool = False  # tasks share nothing that is trained: each is learned as if alone
    counts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # see _GROWING, _EACH
    trunk: float | None = None  # numbers in the parameters that all tasks start from
    settings: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = True

    @property
    def learned(self) -> int:
        """How many tasks were learned."""
        return len(self.accuracy)

    def upto(self, count: int) -> Matrix:
        """The same after ``count`` tasks."""
        return dataclasses.replace(
            self,
            accuracy=self.accuracy[:count],
            loss=self.loss[:count],
            counts={name: values[:count] for name, values in self.counts.items()},
        )


def read(paths: Iterable[str | Path]) -> list[Matrix]:
    """Read sequences, in the order given; one named twice is read once.

    Args:
        paths: directories of ``tailor lifelong``, or folders that hold such directories.

    Raises:
        BadInput: no path, a path that holds no sequence, or a file that is damaged.
    """
    distinct: dict[Path, Path] = {}
    for given in map(Path, paths):
        for folder in _folders(given):
            distinct.setdefault(folder.resolve(), folder)
    if not distinct:
        raise BadInput("no sequence given; name directories of `tailor lifelong`")
    return [_read(folder) for folder in distinct.values()]


def holds(path: Path) -> bool:
    """Whether a directory is that of a sequence."""
    return (path / MATRIX).is_file()


def names(found: Sequence[Matrix]) -> list[str]:
    """The setting of each sequence: its method, and what tells it from others of that method.

    Sequences of one name differ by their seed only. The backbone is told where a method was given
    several.
    """
    own = [_flat(one.settings) | {"backbone": one.backbone} for one in found]
    said = []
    for one, settings in zip(found, own, strict=True):
        peers = [s for o, s in zip(found, own, strict=True) if o.method == one.method]
        said.append(" ".join([one.method, *_words(settings, peers)]))
    return said


def _folders(given: Path) -> list[Path]:
    if not given.exists():
        raise BadInput(f"sequence {str(given)!r} does not exist; name what `tailor lifelong` made")
    if holds(given):
        return [given]
    inside = sorted(file.parent for file in given.rglob(MATRIX)) if given.is_dir() else []
    if not inside:
        raise BadInput(
            f"{str(given)!r} holds no {MATRIX}: it is no sequence, or its first task is not "
            "learned yet; name directories that `tailor lifelong` made"
        )
    return inside


def _read(folder: Path) -> Matrix:
    file = folder / MATRIX
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        lacks = [name for name in _NEEDED if name not in said]
        if lacks:
            raise ValueError(f"it has no field {lacks[0]!r}")
        tasks = tuple(map(str, said["tasks"]))
        triangles = (_triangle(name, said.get(name) or [], tasks) for name in ("accuracy", "loss"))
        accuracy, loss = triangles
        if not accuracy:
            raise ValueError("no task is in it")
        if loss and len(loss) != len(accuracy):
            raise ValueError(f"{len(loss)} rows of loss for {len(accuracy)} of accuracy")
        return Matrix(
            path=folder,
            method=str(said["method"]),
            seed=int(said["seed"]),
            sequence=str(said.get("sequence") or ""),
            backbone=str(said.get("backbone") or ""),
            tasks=tasks,
            metrics=tuple(map(str, said.get("metric") or ["top1"] * len(tasks))),
            accuracy=accuracy,
            loss=loss,
            alone=_alone(said.get("alone")),
            apart=said.get("sequel") is False,
            counts={
                name: tuple(map(_number, said[name]))
                for name in (*_GROWING, *_EACH)
                if said.get(name)
            },
            trunk=_trunk(folder, said),
            settings=dict(said.get("settings") or {}),
            finished=bool(said.get("finished", len(accuracy) == len(tasks))),
        )
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; check its permissions") from error
    except (ValueError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())
        raise BadInput(f"{file} is damaged ({told}); {MATRIX_REMEDY}") from error


def _triangle(name: str, rows: Any, tasks: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    found = tuple(tuple(map(_number, row)) for row in rows)
    for t, row in enumerate(found):
        if len(row) != t + 1 or t >= len(tasks):
            raise ValueError(
                f"row {t + 1} of its {name} has {len(row)} numbers, of a sequence of {len(tasks)}"
            )
    return found


def _trunk(folder: Path, said: Mapping[str, Any]) -> float | None:
    """Parameters of the backbone: a run of the sequence knows them."""
    if said.get("trunk") or not said.get("runs"):
        return said.get("trunk")
    file = folder / str(said["runs"][0]) / "result.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return (result.get("params") or {}).get("universal")


def _alone(said: Any) -> tuple[float, ...] | None:
    return None if said is None else tuple(map(_number, said))


def _number(value: Any) -> float:
    """What was no number (a diverged loss) is null in the file."""
    return math.nan if value is None else float(value)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of settings on one level; the seed makes no setting."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value) if isinstance(value, Mapping) else {str(name): value}
    return {name: value for name, value in found.items() if name != "seed"}


def _words(own: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which some peer differs: ``mlp``, ``dense``, ``rank=4``."""
    texts, others = [], []
    for name, value in own.items():
        if all(peer.get(name) == value for peer in peers) or value in (None, False, ""):
            continue
        if value is True:
            others.append(name)
        elif isinstance(value, str):
            texts.append(Path(value).name)
        else:
            others.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return texts + others


def in_percent(found: Sequence[Matrix]) -> bool:
    """Whether every metric is one that is told in percent."""
    return all(metric in SHARES for one in found for metric in one.metrics)
