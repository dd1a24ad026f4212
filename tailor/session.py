"""Session: what every verb that trains does before and after, whatever it trains.

A verb claims its run directory, finds the result of an earlier session there, reads the splits, and
gives the student its teacher. Left out: the verbs (``workflow.py``, ``shrink.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tailor import cache, identity
from tailor.data import Batches
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.opened import batches, teacher_of
from tailor.options import Data
from tailor.progress import Progress, Silent
from tailor.run import Run
from tailor.settings import Settings, as_config
from tailor.student import Distilled, Student
from tailor.target import stored
from tailor.task import Task

Reporter = Callable[[str], Progress]  # title -> who is told


def nobody(_: str) -> Progress:
    return Silent()


def config_of(student: Student, task: Task, data: Data, train: Settings) -> dict[str, Any]:
    """What a run is made of, so that it can be rebuilt and told from others."""
    backbone, settings = student.universal, getattr(student, "config", None)
    decoder = {} if backbone.decoder == "light" else {"decoder": backbone.decoder}
    return {
        "method": student.method,
        "data": as_config(data),
        "net": {"backbone": backbone.name, "weights": resolved(backbone.weights)} | decoder,
        "settings": as_config(settings) if settings is not None else {},
        "train": as_config(train),
        "fingerprint": backbone.fingerprint(),
        "classes": list(task.classes),
        "images": identity.fingerprint(task),
    } | stored(task.target)


def check_fits(student: Student, task: Task) -> None:
    """Refuse a student that does not predict what the task's labels are.

    Raises:
        BadInput: its trunk was built for images and the labels are of pixels, or the other way.
    """
    seen, wanted = student.universal.target, task.target
    if seen.dense != wanted.dense:
        raise BadInput(
            f"labels of {task.name} are of kind {wanted.kind!r}, but the student of method "
            f"{student.method!r} was built to predict {seen.kind!r}: build it on "
            f"backbone.seen_by(task.target)"
        )


def resolved(weights: str) -> str:
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
    if not Group.current().agreed(path.exists()):
        return None
    with open_directory(path, verb, config, "") as run:
        return run.result


def splits_of(
    task: Task, student: Student, data: Data, settings: Settings, progress: Progress
) -> tuple[Batches, Batches | None]:
    """Training and validation batches, None without a validation split; bad images that were left
    out are counted aloud.

    Raises:
        BadInput: the best epoch is asked for where nothing can tell which it is.
    """
    if "val" not in task.splits and settings.select == "best":
        raise BadInput(
            f"{task.name} has no validation split to keep the best epoch by; give --keep last, or "
            f"--val-share 0.1"
        )
    train = batches(task, "train", student.universal, data, settings, train=True)
    val = None
    if "val" in task.splits:
        val = batches(task, "val", student.universal, data, settings)
    for name, split in (("train", train), ("val", val)):
        if split is not None and split.skipped:
            count = len(split.skipped)
            progress.say(f"left out {count} bad images of {name}, such as {split.skipped[0]}")
    if isinstance(student, Distilled) and student.teacher and not train.view.varies:
        size = student.teacher.bytes_per_image(student.universal.input_size)
        if size * len(train.split) <= data.memory_gb * 2**30:
            student.teacher.remember(len(train.split))
    splits = {"train": train} | ({} if val is None else {"val": val})
    cache.give_outputs(student, splits, data, settings, progress)
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
