"""Session: what every verb that trains does before and after, whatever it trains.

A verb claims its run directory, finds the result of an earlier session there, reads the splits, and
gives the student its teacher. Left out: the verbs (``workflow.py``, ``shrink.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tailor import identity
from tailor.data import Batches
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.opened import batches, teacher_of
from tailor.options import Data
from tailor.progress import Progress, Silent
from tailor.run import Run
from tailor.settings import Settings, as_config
from tailor.student import Distilled, Student
from tailor.task import Task

Reporter = Callable[[str], Progress]  # title -> who is told


def nobody(_: str) -> Progress:
    return Silent()


def config_of(student: Student, task: Task, data: Data, train: Settings) -> dict[str, Any]:
    """What a run is made of, so that it can be rebuilt and told from others."""
    backbone, settings = student.universal, getattr(student, "config", None)
    return {
        "method": student.method,
        "data": as_config(data),
        "net": {"backbone": backbone.name, "weights": _resolved(backbone.weights)},
        "settings": as_config(settings) if settings is not None else {},
        "train": as_config(train),
        "fingerprint": backbone.fingerprint(),
        "classes": list(task.classes),
        "images": identity.fingerprint(task),
    }


def _resolved(weights: str) -> str:
    return weights if weights in ("pretrained", "random") else str(Path(weights).resolve())


def open_directory(path: Path, verb: str, config: dict[str, Any], command: str) -> Run:
    """Process 0 writes, the others follow."""
    group = Group.current()
    if group.rank == 0:
        run = Run(path, verb, config, command)
        group.wait()
        return run
    group.wait()
    return Run(path, verb, config, command, writer=False)


def finished(path: Path, verb: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The result of the same command, if it has one already.

    Raises:
        BadInput: the directory belongs to something else.
    """
    with open_directory(path, verb, config, "") as run:
        return run.result


def splits_of(
    task: Task, student: Student, data: Data, settings: Settings, progress: Progress
) -> tuple[Batches, Batches]:
    """Training and validation batches; bad images that were left out are counted aloud."""
    train = batches(task, "train", student.universal, data, settings, train=True)
    val = batches(task, "val", student.universal, data, settings)
    for name, found in (("train", train), ("val", val)):
        if found.skipped:
            count = len(found.skipped)
            progress.say(f"left out {count} bad images of {name}, such as {found.skipped[0]}")
    if isinstance(student, Distilled) and student.teacher and not train.view.varies:
        size = student.teacher.bytes_per_image(student.universal.input_size)
        if size * len(train.split) <= data.memory_gb * 2**30:
            student.teacher.remember(len(train.split))
    return train, val


def attach_teacher(student: Student, path: Path | None, classes: Sequence[str], data: Data) -> None:
    """Let the student learn from the run at ``path``, where its method can.

    Raises:
        BadInput: a teacher for a method that learns from none, none for one whose settings ask
            for distillation, or one that cannot teach this student.
    """
    if not isinstance(student, Distilled):
        if path is not None:
            raise BadInput(f"method {student.method!r} learns from no teacher; leave --teacher out")
        return
    if not student.wants_teacher():
        return
    if path is None:
        raise BadInput(
            f"method {student.method!r} distils from a teacher: give --teacher RUN (made by "
            f"`tailor teach` on this task and backbone), or --distill 0"
        )
    student.teacher = teacher_of(student, path, classes, data)
