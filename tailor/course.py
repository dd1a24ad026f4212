"""A course: learns the tasks of a sequence in order, and measures all of them after each.

    before task t     its student is built: alone on the frozen backbone, or, where the method has a
                      ``sequel``, from the students before, with what they share
    after task t      row t of the matrix: every task up to t is measured on its test images

Which task an image belongs to is known. The file with the matrix is replaced after each task; a
killed course goes on where it was, to the same weights bit for bit on a CPU. Left out: one task
(``workflow.py``, ``train.py``), what one leaves for the next (``link.py``), whether the sequence
makes sense (``lifelong.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from tailor import cache, cost, shrink, workflow
from tailor.account import Account
from tailor.backbone import Backbone
from tailor.data import Batches
from tailor.link import MEMORY, Link
from tailor.opened import batches, read_into, result_of, student_of
from tailor.options import Data, Lifelong, Prune, Retrain, Split, Teach
from tailor.progress import Silent
from tailor.run import MATRIX, write_json
from tailor.sequence import folder_names
from tailor.session import Reporter
from tailor.settings import Settings, pick_device
from tailor.student import Distilled, Student
from tailor.task import Task
from tailor.train import evaluate_both


def shares(method: ModuleType, settings: Any) -> bool:
    """Whether a task's student is made from the students before, and may change them.

    A method with a setting ``dense`` does so only then.
    """
    return hasattr(method, "sequel") and bool(getattr(settings, "dense", True))


@dataclass(kw_only=True)
class Course:
    """One sequence while it is learned."""

    options: Lifelong[Any]
    method: ModuleType
    backbone: Backbone
    datas: list[Data]
    tasks: list[Task]
    splits: list[Split]  # which images a task is judged by
    tell: Reporter
    command: str
    matrix: dict[str, Any]
    fingerprint: str  # of the backbone
    students: list[Student] = field(default_factory=list)
    stages: list[list[Path]] = field(default_factory=list)  # run directories, the last one counts
    account: Account = field(default_factory=Account)
    images: dict[int, Batches] = field(default_factory=dict)  # decoded test images, by task

    def run(self) -> dict[str, Any]:
        """Learn and measure what is not yet."""
        alone = self.options.alone or not self.shared
        names = folder_names([data.task for data in self.datas])
        if self._learned() < len(names):
            for place, name in enumerate(names):
                self._learn(place, name)
        if not self.matrix["finished"]:  # a task behind, given up before it was learned
            self._write()
        for place in range(len(self.matrix.get("alone", ())), len(names) if alone else 0):
            value, loss = self._alone(place, names[place])
            self._write(alone=value, alone_loss=loss)
        return self.matrix

    @property
    def shared(self) -> bool:
        """Whether a task's student is made from those before."""
        return shares(self.method, self.options.settings)

    def _learned(self) -> int:
        return len(self.matrix["runs"])

    def _learn(self, place: int, name: str) -> None:
        """Train the next task's student, or read it where that is done; then measure all."""
        options, before = self.options, self.students if self.shared else []
        for student in before:
            _to(student, options.train)  # the new one shares their tensors
        link = None
        if self.shared:
            link = Link(
                out=options.out / name,
                before=tuple(stages[-1].name for stages in self.stages),
                previous=before[-1] if before else None,
                carry=options.carry_optimizer,
            )
        student, stages = self._trained(place, options.out / name, before, link)
        self.students.append(student)
        self.stages.append(stages)
        counted = self.account.add(_to(student, options.train))
        if self.backbone.fingerprint() != self.fingerprint:  # what is kept would be of another
            raise RuntimeError(f"method {options.method!r} changed the trunk that tasks share")
        if place == self._learned():
            found = [self._measure(self.students[k], k) for k in range(place + 1)]
            results = [result_of(stage) for stage in stages]
            self._write(
                runs=stages[-1].name,
                tasks=self.tasks[place].name,
                split=self.splits[place],
                metric=self.tasks[place].metric,
                accuracy=[value for value, _ in found],
                loss=[loss for _, loss in found],
                bytes=sum(cost.file_bytes(file) for s in self.stages for file in _files(s[-1])),
                seconds=sum(result["seconds"] for result in results),
                macs=results[-1]["macs"]["student"],
                **counted,
            )
            if link is not None:
                link.forget_before()

    def _trained(
        self, place: int, out: Path, before: Sequence[Student], link: Link | None
    ) -> tuple[Student, list[Path]]:
        """The student of a task, and the runs that made it: the last one is what it became."""
        options, task, data = self.options, self.tasks[place], self.datas[place]
        self.backbone.model.eval()  # whatever the student before left
        trunk = self.backbone.seen_by(task.target, options.net.decoder)
        made = (trunk, len(task.classes), options.settings)
        if before:
            student = self.method.sequel(before, *made, seed=options.train.seed)
        else:
            student = self.method.build(*made, seed=options.train.seed)
        alone = " alone" if self.shared and link is None else ""
        says: dict[str, Any] = {"tell": self._tell(place, alone), "command": self.command}
        stages = [*self._taught(student, place, out), out]
        done = (out / "result.json").exists()
        workflow.fit(
            student,
            self.tasks[place],
            out=out,
            train=options.train,
            data=data,
            teacher=stages[0] if len(stages) > 1 else None,
            link=link,
            **says,
        )
        if done:
            result_of(out)  # refuses a damaged one, whose task is not measured again
            read_into(student, out)
        if options.retrain_epochs is None:
            return student, stages
        pruned, last = (out.with_name(f"{out.name}-{end}") for end in ("pruned", "retrained"))
        how = dataclasses.replace(options.train, epochs=options.retrain_epochs, schedule="cosine")
        shrink.prune(Prune(run=out, out=pruned), **says)
        result = shrink.retrain(Retrain(run=pruned, out=last, train=how), **says)
        return student_of(last, result, self.backbone), [*stages, last]

    def _taught(self, student: Student, place: int, out: Path) -> list[Path]:
        """The run of the teacher that a method asks for: the task's own fine-tuned network."""
        if not isinstance(student, Distilled) or not student.wants_teacher():
            return []
        run = out.with_name(f"{out.name}-teacher")
        data, options = self.datas[place], self.options
        teach = Teach(out=run, data=data, net=options.net, train=options.train)
        workflow.teach(teach, tell=self._tell(place), command=self.command)
        return [run]

    def _alone(self, place: int, name: str) -> tuple[float, float]:
        """Metric and loss of a task as if it were the first."""
        if place == 0 or not self.shared:
            return self.matrix["accuracy"][place][place], self.matrix["loss"][place][place]
        student, _ = self._trained(place, self.options.out / "alone" / name, [], None)
        return self._measure(student, place)

    def _measure(self, student: Student, place: int) -> tuple[float, float]:
        """Metric and mean loss of a student on a task's test images, which are decoded once."""
        train, data = self.options.train, self.datas[place]
        found = self.images.get(place)
        if found is None:
            found = batches(self.tasks[place], self.splits[place], self.backbone, data, train)
            held = sum(_bytes(other) for other in [*self.images.values(), found])
            if found.in_memory and held <= data.memory_gb * 2**30:
                self.images[place] = found
                if not self.shared:  # this student will not change: its frozen start runs once
                    split: dict[str, Batches] = {self.splits[place]: found}
                    cache.give_outputs(_to(student, train), split, data, train, Silent())
        return evaluate_both(_to(student, train), found, bf16=train.bf16)

    def _write(self, **row: Any) -> None:
        """Add to the results, and replace the file."""
        for name, value in row.items():
            self.matrix.setdefault(name, []).append(value)
        self.matrix["finished"] = self._learned() == len(self.tasks)
        write_json(self.options.out / MATRIX, self.matrix)

    def _tell(self, place: int, how: str = "") -> Reporter:
        return lambda title: self.tell(f"{place + 1} of {len(self.tasks)}{how}: {title}")


def _to(student: Student, train: Settings) -> Student:
    """The student where it is computed."""
    assert isinstance(student, nn.Module)
    student.to(pick_device(train.device))
    return student


def _files(run: Path) -> list[Path]:
    """What a task keeps on disk."""
    return [f for f in (run / "student.safetensors", run / MEMORY) if f.exists()]


def _bytes(found: Batches) -> int:
    return len(found.split) * found.view.planes * found.view.side**2
