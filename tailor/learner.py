"""A learner: the students of a sequence of tasks as its last task left them, one for each task.

``open_sequence`` rebuilds them in order, so that what they share is what the last one made of it.
A single run of the sequence, opened by ``open_run``, is the state right after its task instead.
Left out: learning (``lifelong.py``).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.opened import backbone_of, measure, result_of, student_of, task_of
from tailor.options import Data, Net, Split
from tailor.run import MATRIX, MATRIX_REMEDY, SEQUENCE, read_object
from tailor.settings import Settings
from tailor.student import Student

# What matrix.json has of each task; see ``lifelong.run``.
ROWS = (
    *("runs", "tasks", "split", "metric", "accuracy", "loss", "params", "trainable"),
    *("task_params", "heads", "memory", "bytes", "seconds", "macs"),
)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """One task of a sequence."""

    name: str  # of the task
    run: Path  # where it was learned
    result: dict[str, Any]  # what that run says, right after it
    student: Student  # as the last task left it

    @property
    def data(self) -> Data:
        """How images of the task are seen."""
        return Data(**self.result["config"]["data"])


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What a sequence learned: a student for each task on one trunk."""

    path: Path
    tasks: tuple[Learned, ...]

    def find(self, task: str | int) -> Learned:
        """A task by its number, from 1, or by its name or the name of its run.

        Raises:
            BadInput: no such task, or two of that name; names what there is.
        """
        number = int(task) if isinstance(task, int) or task.isdecimal() else None
        if number is not None and 1 <= number <= len(self.tasks):
            return self.tasks[number - 1]
        named = [t for t in self.tasks if task in (t.name, t.run.name, t.data.task)]
        if number is None and len(named) == 1:
            return named[0]
        there = ", ".join(f"{k} ({t.name})" for k, t in enumerate(self.tasks, 1))
        why = f"{len(named)} tasks are named" if len(named) > 1 else "there is no task"
        raise BadInput(f"{self.path}: {why} {str(task)!r}; give one of {there or 'none so far'}")

    def student(self, task: str | int) -> Student:
        """The student of a task; see ``find``."""
        return self.find(task).student

    @torch.inference_mode()
    def predict(self, images: Tensor, task: str | int) -> Tensor:
        """(B, C, H, W) images, normalised as the backbone expects them, to logits of a task.

        Raises:
            BadInput: no such task.
        """
        student = self.find(task).student
        student.train(False)
        logits: Tensor = student(images).logits
        return logits


def open_sequence(path: str | Path) -> Learner:
    """Rebuild the students of a sequence, finished or not: those of the tasks learned so far.

    Raises:
        BadInput: no sequence there, a damaged file, or another backbone than it was learned on.
    """
    path = Path(path)
    if not (path / SEQUENCE).exists():
        raise BadInput(f"{path} is no sequence of tasks; name an --out of `tailor lifelong`")
    config = config_of(path)
    matrix = read_matrix(path)
    if not matrix["runs"]:
        raise BadInput(f"no task of {path} is learned yet; repeat the command that made it")
    results = [result_of(path / name) for name in matrix["runs"]]
    backbone = backbone_of(Net(**config["net"]), Data(**results[0]["config"]["data"]))
    check_backbone(path, config, backbone)
    students: list[Student] = []
    tasks = []
    for run, name, result in zip(matrix["runs"], matrix["tasks"], results, strict=False):
        students.append(student_of(path / run, result, backbone, students))
        tasks.append(Learned(name=name, run=path / run, result=result, student=students[-1]))
    return Learner(path=path, tasks=tuple(tasks))


def config_of(path: Path) -> dict[str, Any]:
    """How a sequence is learned, from its folder.

    Raises:
        BadInput: the file that says so is damaged.
    """
    config = read_object(path / SEQUENCE).get("config")
    if not isinstance(config, dict) or not {"fingerprint", "net"} <= config.keys():
        raise BadInput(
            f"{path / SEQUENCE} lacks its configuration, so it is damaged; restore it, or choose "
            f"another --out"
        )
    return config


def read_matrix(path: Path) -> dict[str, Any]:
    """The results of a sequence so far; empty rows before its first task is learned.

    Raises:
        BadInput: the file is damaged; all of it can be measured again.
    """
    found: dict[str, Any] = {name: [] for name in ROWS}
    file = path / MATRIX
    if not file.exists():
        return found
    try:
        found = json.loads(file.read_bytes())
        rows = {len(found[name]) for name in ROWS}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{file} is damaged ({error}); {MATRIX_REMEDY}") from error
    if len(rows) > 1:
        raise BadInput(f"{file} is damaged (its rows do not belong together); {MATRIX_REMEDY}")
    return found


def check_backbone(path: Path, config: dict[str, Any], backbone: Backbone) -> None:
    """Refuse a backbone that finished tasks were not learned on.

    Raises:
        BadInput: names both fingerprints.
    """
    if (now := backbone.fingerprint()) != config["fingerprint"]:
        raise BadInput(
            f"the tasks of {path} were learned on backbone {config['fingerprint'][:8]}, but "
            f"{backbone.name} with weights {backbone.weights} is {now[:8]}; put the weights of "
            f"that sequence back, or choose another --out"
        )


def evaluate(
    path: Path,
    task: str | int,
    *,
    split: Split = "test",
    device: str = "auto",
    root: str | None = None,
) -> dict[str, Any]:
    """Measure one task after the whole sequence: as ``workflow.evaluate``.

    Args:
        path: the sequence.
        task: number, from 1, or name.
        split: which images.
        device: where to compute.
        root: the data sets' folder, if it moved since.
    """
    found = open_sequence(path).find(task)
    data = dataclasses.replace(found.data, root=root) if root else found.data
    settings = dataclasses.replace(Settings(**found.result["config"]["train"]), device=device)
    opened = task_of(data)
    if split not in opened.splits:
        raise BadInput(
            f"task {opened.name} has no {split} split; give --split {' or '.join(opened.splits)}"
        )
    value, images = measure(found.student, opened, split, data, settings)
    said = {"run": str(path), "task": opened.name, "split": split, "metric": opened.metric}
    return said | {"value": value, "n": images}
