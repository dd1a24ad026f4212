"""Several tasks at once on one trunk: one step of each in turn, in one process.

The trunk is frozen and every step's randomness a function of (seed, step), so what a task ends with
is, bit for bit on a CPU, what it would end with alone; nothing of a task moves in another one's
turn. Each has its own student, optimiser, schedule, run directory and resume; they may differ in
length, and tasks may join while others train. There is no state beside the arguments.

Round robin over domains: Rebuffi, Bilen, Vedaldi: Learning multiple visual domains with residual
adapters, NIPS 2017 (whose program gives every task the length of the shortest and lets the
adapters of idle tasks drift). Left out: whose turn it is (``turns.py``), one task (``train.py``).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from tailor import catalog
from tailor.data import Batches
from tailor.errors import BadInput
from tailor.opened import backbone_of, task_of
from tailor.options import Data, Together
from tailor.progress import Progress
from tailor.run import Run
from tailor.session import Reporter, attach_teacher, nobody
from tailor.settings import Settings
from tailor.student import Student
from tailor.train import Fitted, steps
from tailor.turns import InSteps, in_turn
from tailor.units import short
from tailor.workflow import fitting

T = TypeVar("T")


@dataclass(kw_only=True)
class Member:
    """One task in training: the arguments of ``tailor.train.fit``."""

    student: Student
    train: Batches
    val: Batches | None
    settings: Settings
    run: Run | None = None
    stage: str = "adapt"
    progress: Progress | None = None

    def training(self) -> InSteps[Fitted]:
        """What takes turns."""
        return steps(
            self.student,
            self.train,
            self.val,
            self.settings,
            run=self.run,
            stage=self.stage,
            progress=self.progress,
        )


def fit_together(members: Sequence[Member] | deque[Member]) -> list[Fitted]:
    """Train every member's student in place, one step of each in turn; who is done leaves.

    Args:
        members: a deque may be appended to while they train, from another thread or from a
            ``progress``; it is emptied, and a new member joins before the next round.

    Returns:
        As ``fit``, in the order in which the members joined.

    Raises:
        BadInput: two members want the trunk that they share in two places or memory formats; or
            the error of the first member that failed, once the others are done.
    """
    waiting = members if isinstance(members, deque) else deque(members)
    wanted: dict[int, tuple[str, bool]] = {}  # by trunk

    def start(member: Member) -> InSteps[Fitted]:
        place = (str(member.train.device), member.settings.channels_last)
        known = wanted.setdefault(id(member.student.universal), place)
        if known != place:
            raise BadInput(
                f"one trunk cannot be at (device, channels_last) {known} and {place} at once; give "
                f"all its tasks the same, or a trunk of their own"
            )
        return _as_if_alone(member.student, member.training())

    found: list[Fitted] = []
    for _, fitted in in_turn(waiting, start):
        if isinstance(fitted, BadInput):
            raise fitted
        found.append(fitted)
    return found


def adapt(
    options: Together[Any],
    *,
    tell: Reporter = nobody,
    command: str = "",
) -> list[dict[str, Any]]:
    """Adapt one trunk to every task of ``options``, each in a run directory of its own.

    Returns:
        The runs' results, in the order of the tasks; of one that failed ``{run, task, failed}``.

    Raises:
        BadInput: something is wrong before any training begins; see ``workflow.adapt``.
    """
    method = catalog.load("students", options.method, "method")
    options.train.check()
    places = _places(options)
    teachers: Sequence[Path | None] = options.teacher or [None] * len(places)
    if len(teachers) != len(places):
        raise BadInput(
            f"{len(teachers)} teachers for {len(places)} tasks; give --teacher one run per task, "
            f"in the same order"
        )
    datas = [Data(task=name, **asdict(options.images)) for name in options.task]
    tasks = [task_of(data) for data in datas]
    backbone = backbone_of(options.net, datas[0])
    waiting: deque[tuple[Path, str, InSteps[dict[str, Any]]]] = deque()
    for out, data, task, teacher in zip(places, datas, tasks, teachers, strict=True):
        student = method.build(
            backbone.seen_by(task.target, options.net.decoder),
            len(task.classes),
            options.settings,
            seed=options.train.seed,
        )
        attach_teacher(student, teacher, task.classes, data)
        training = fitting(
            student,
            task,
            out=out,
            train=options.train,
            data=data,
            teacher=teacher,
            tell=tell,
            command=command,
        )
        waiting.append((out, task.name, _as_if_alone(student, training)))
    return [
        {"run": str(out), "task": name, "failed": str(found)}
        if isinstance(found, BadInput)
        else found
        for (out, name, _), found in in_turn(waiting, lambda entry: entry[2])
    ]


def _as_if_alone(student: Student, training: InSteps[T]) -> InSteps[T]:
    """Every turn finds the trunk in evaluation mode, as it was when the student was built.

    Students switch the trunk as a whole, or parts of it, and trust what they left.
    """
    with contextlib.closing(training):
        while True:
            student.universal.model.eval()
            try:
                next(training)
            except StopIteration as end:
                return cast(T, end.value)
            yield


def _places(options: Together[Any]) -> list[Path]:
    """The run directory of each task, named by the task.

    Raises:
        BadInput: no task, or two of one name.
    """
    if not options.task:
        raise BadInput("no task to adapt to; give --task one or more names")
    named: dict[str, str] = {}
    for task in options.task:
        if (name := short(task)) in named:
            raise BadInput(
                f"tasks {named[name]!r} and {task!r} would both train in {options.out / name}; "
                f"give each once, and those of one name under another --out"
            )
        named[name] = task
    return [options.out / name for name in named]
