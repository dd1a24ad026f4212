"""The verbs that make a student smaller: prune and retrain, each from a run to a new run.

What is kept follows from a rule or from a search (``prune.py``); the run that a verb starts from
stays as it is.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from tailor import cost
from tailor.errors import BadInput
from tailor.opened import Opened, batches, measure, open_run, task_of, validated
from tailor.options import Prune, Retrain
from tailor.outcome import finish
from tailor.progress import Progress
from tailor.prune import PruneReport, Rule, search
from tailor.prune import prune as prune_student
from tailor.session import Reporter, attach_teacher, finished, nobody, open_directory, splits_of
from tailor.settings import Settings, as_config
from tailor.student import Distilled, Gated, Student
from tailor.task import Task
from tailor.train import Fitted
from tailor.train import fit as train_student


def prune(options: Prune, *, tell: Reporter = nobody, command: str = "") -> dict[str, Any]:
    """Make a smaller student of a finished run; its accuracy is measured before any retraining."""
    opened, task = _reopened(options.run)
    student = opened.student
    if options.renormalise:
        _configure(student, renormalise=True)
    if options.trial_epochs and options.within is None:
        raise BadInput("trial_epochs belongs to a search; give --within POINTS with it")
    config = dataclasses.asdict(dataclasses.replace(options, out=Path(), teacher=None))
    config = {k: str(v.resolve()) if k == "run" else v for k, v in config.items() if k != "out"}
    if (done := finished(options.out, "prune", config)) is not None:
        return done
    found: dict[str, Any] = {}
    if options.within is None:
        smaller, report = prune_student(student, _rule(options))
    else:
        smaller, report, found = _searched(options, opened, task, tell(f"prune {options.out.name}"))
    with open_directory(options.out, "prune", config, command) as run:
        if run.result is not None:  # another process was faster
            return run.result
        settings = Settings(**opened.result["config"]["train"])
        val = validated(smaller, task, opened.data, settings)
        why = {"pruned_by": report.why, "excluded": report.excluded, "reopened": report.reopened}
        facts = _inherited(opened, smaller) | {"kept": smaller.kept(), **why, **found}
        return finish(run, smaller, task, Fitted(val, 0, 0.0), facts, "pruned", settings)


def retrain(options: Retrain, *, tell: Reporter = nobody, command: str = "") -> dict[str, Any]:
    """Continue a pruned or compressed student from its trained weights."""
    options.train.check()
    opened, task = _reopened(options.run)
    if opened.result["stage"] not in ("pruned", "compressed"):
        raise BadInput(
            f"{options.run} is a run of stage {opened.result['stage']!r}, not a pruned one; "
            f"first `tailor prune {options.run} --out {options.run}-pruned`"
        )
    out = options.out or options.run.with_name(options.run.name + "-retrained")
    student, train, data = opened.student, options.train, opened.data
    if options.distill is not None:
        if not isinstance(student, Distilled) or not options.distill >= 0:
            raise BadInput(
                f"distill is {options.distill} for method {student.method!r}; give --distill 0 or "
                f"more to a method that learns from a teacher, and leave it out for others"
            )
        _configure(student, distill=options.distill)
    path = _teacher_path(opened, options.teacher)
    config = {
        "run": str(options.run.resolve()),
        "train": as_config(train),
        "kept": opened.result["kept"],
    } | ({} if options.distill is None else {"distill": options.distill})
    if (done := finished(out, "retrain", config)) is not None:
        return done
    progress = tell(f"retrain {out.name}")
    attach_teacher(student, path, opened.result["config"]["classes"], data)
    splits = splits_of(task, student, data, train, progress)
    with open_directory(out, "retrain", config, command) as run:
        if run.result is not None:  # another process was faster while this one read images
            return run.result
        fitted = train_student(student, *splits, train, run=run, stage="retrain", progress=progress)
        facts = _inherited(opened, student) | {"kept": opened.result["kept"]}
        return finish(run, student, task, fitted, facts, "retrained", train)


def _rule(options: Prune) -> Rule:
    return Rule(
        threshold=options.threshold,
        count=options.count,
        share=options.share,
        budget=cost.Budget.parse(options.budget) if options.budget else None,
        proxy_threshold=options.proxy_threshold,
    )


def _searched(
    options: Prune, opened: Opened, task: Task, progress: Progress
) -> tuple[Gated, PruneReport, dict[str, Any]]:
    """The smallest student within so many points of the teacher, on the validation split."""
    names = ("threshold", "count", "share", "budget")
    if given := [n for n in names if getattr(options, n) is not None]:
        raise BadInput(f"within searches by itself; leave --{given[0]} out")
    if options.within is None or not 0 <= options.within < 100 or options.trial_epochs < 0:
        raise BadInput(
            f"within is {options.within} points with {options.trial_epochs} trial epochs; give "
            f"--within 0.5 or another number from 0 to 100, and --trial-epochs 0 or more"
        )
    if "val" not in task.splits:
        raise BadInput(
            f"{options.run} kept no validation images to search on; leave --within out, or adapt "
            f"with --val-share 0.1"
        )
    student, data = opened.student, opened.data
    trained = Settings(**opened.result["config"]["train"])
    path = _teacher_path(opened, options.teacher)
    try:
        reference = open_run(path).student if path else student
    except BadInput as error:
        raise BadInput(f"teacher: {error} (name it with --teacher RUN)") from error
    floor = measure(reference, task, "val", data, trained)[0] - options.within / 100
    settings = dataclasses.replace(
        Settings(), **_of_place(trained), epochs=max(options.trial_epochs, 1), select="last"
    )
    train = None
    if options.trial_epochs:
        attach_teacher(student, path, opened.result["config"]["classes"], data)
        train = batches(task, "train", student.universal, data, settings, train=True)
    said = "the teacher's" if path else "its own"
    wanted = f"{said} - {options.within:g}"
    progress.say(f"looking for validation {100 * floor:.2f} % or more: {wanted}")

    def accuracy(candidate: Gated) -> float:
        if train is not None:
            candidate = _twin(candidate)
            train_student(candidate, train, None, settings)
        value = measure(candidate, task, "val", data, trained)[0]
        left = sum(gate.kind == "universal" for gate in candidate.gates())
        progress.say(f"{left} universal blocks left: {100 * value:.2f} %")
        return value

    smaller, report, trials = search(
        student,
        accuracy,
        floor,
        proxy_threshold=options.proxy_threshold,
        bisect=options.trial_epochs > 0,
    )
    return smaller, report, {"floor": floor, "trials": [dataclasses.asdict(t) for t in trials]}


def _twin(student: Gated) -> Gated:
    """A copy that may be trained; only the frozen trunk and the teacher are shared."""
    memo = {id(student.universal): student.universal}
    if isinstance(student, Distilled) and student.teacher is not None:
        memo[id(student.teacher)] = student.teacher  # type: ignore[assignment]
    return copy.deepcopy(student, memo)


def _of_place(settings: Settings) -> dict[str, Any]:
    names = ["batch", "lr", "momentum", "seed", "device", "bf16", "channels_last"]
    names += [f.name for f in dataclasses.fields(settings) if "decay" in f.name]
    return {name: getattr(settings, name) for name in names}


def _reopened(path: Path) -> tuple[Opened, Task]:
    opened = open_run(path)
    return opened, task_of(opened.data)


def _teacher_path(opened: Opened, moved: Path | None) -> Path | None:
    """The run that a student learnt from, or where it is now."""
    known = opened.result["config"].get("teacher")
    return moved or (Path(known) if known else None)


def _configure(student: Student, **changed: Any) -> None:
    """Change settings of an opened student.

    Raises:
        BadInput: its method has no such setting.
    """
    config = getattr(student, "config", None)
    if config is None or not all(hasattr(config, name) for name in changed):
        raise BadInput(
            f"method {student.method!r} has no setting {next(iter(changed))!r}; leave it out"
        )
    student.config = dataclasses.replace(config, **changed)  # type: ignore[attr-defined]


def _inherited(opened: Opened, student: Student) -> dict[str, Any]:
    """What a pruned or retrained run keeps of the run that it came from."""
    facts = {name: opened.result[name] for name in ("task", "metric", "config")}
    config = getattr(student, "config", None)
    settings = {} if config is None else {"settings": as_config(config)}
    return facts | {"config": facts["config"] | settings, "from": str(opened.path)}
