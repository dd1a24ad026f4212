"""The verbs: teach, adapt, prune, retrain, merge, evaluate, each from its options to a run
directory.

The command line and the demos call these functions; each one reads like the step it is. A finished
run is found and returned, an unfinished one continued. Left out: how options are parsed
(``cli.py``).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tailor import catalog, cost
from tailor.data import Batches
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.legacy import nettailor_student, read_nettailor
from tailor.opened import Opened, backbone_of, batches, measure, open_run, task_of, teacher_of
from tailor.options import SELECTING, Adapt, Data, Import, Net, Prune, Retrain, Split, Teach
from tailor.outcome import finish
from tailor.progress import Progress, Silent, for_terminal
from tailor.prune import PruneReport, Rule, search
from tailor.prune import prune as prune_student
from tailor.run import Run, write_tensors
from tailor.settings import Settings
from tailor.student import Distilled, Gated, Student
from tailor.task import Task
from tailor.train import Fitted
from tailor.train import fit as train_student

Reporter = Callable[[str], Progress]  # title -> who is told


def _nobody(_: str) -> Progress:
    return Silent()


def teach(options: Teach, *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Train a teacher; its plain weights are left in ``weights.safetensors``.

    Returns:
        The run's result, as in result.json.

    Raises:
        BadInput: see ``Backbone.create``, ``open_task``, ``Batches``, ``fit``.
    """
    net = options.net
    if options.mode == "scratch" and net.weights == "pretrained":
        net = dataclasses.replace(net, weights="random")
    return _train_new(options.mode, None, net, options, "teacher", tell, command)


def adapt(options: Adapt[Any], *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Train a student of ``options.method``; see ``teach`` for what comes back."""
    return _train_new(
        options.method, options.settings, options.net, options, "adapt", tell, command
    )


def _train_new(
    name: str,
    settings: Any,
    net: Net,
    options: Teach | Adapt[Any],
    stage: str,
    tell: Reporter,
    command: str,
) -> dict[str, Any]:
    # Cheap checks first: fetching weights or decoding images may take minutes.
    method = catalog.load("students", name, "method")
    options.train.check()
    task = task_of(options.data)
    backbone = backbone_of(net, options.data)
    student = method.build(backbone, len(task.classes), settings, seed=options.train.seed)
    teacher = options.teacher if isinstance(options, Adapt) else None
    _attach_teacher(student, teacher, task.classes, options.data)
    return fit(
        student,
        task,
        out=options.out,
        train=options.train,
        data=options.data,
        stage=stage,
        teacher=teacher,
        tell=tell,
        command=command,
    )


def fit(
    student: Student,
    task: Task,
    *,
    out: str | Path,
    train: Settings | None = None,
    data: Data | None = None,
    stage: str = "adapt",
    teacher: Path | None = None,
    tell: Reporter | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train any student on a task, in a run directory that every verb understands.

    Args:
        student: from a method's ``build``; trained in place.
        task: from ``open_task``.
        out: run directory; continued or shown where it exists.
        train: how to train; ``SELECTING`` by default.
        data: how images are seen; the backbone's size and normalisation by default.
        stage: ``adapt``, or ``teacher`` for a reference.
        teacher: the run that the student learns from, to be found again by ``retrain``.
        tell: who is told; a progress bar where somebody watches.
        command: what to show as the origin of the run.

    Returns:
        The run's result, as in result.json.

    Raises:
        BadInput: the directory belongs to something else, or training is impossible.
    """
    train = train or SELECTING
    data = data or Data(task=task.spec, root=task.root)
    data = dataclasses.replace(data, px=student.universal.input_size[-1])
    config = _config(student, task, data, train)
    config["teacher"] = None if teacher is None else str(teacher.resolve())
    verb, out = "teach" if stage == "teacher" else "adapt", Path(out)
    progress = (tell or for_terminal)(f"{stage} {out.name}")
    if out.exists() and (done := _finished(out, verb, config)) is not None:
        return done
    # A new directory is only made once nothing more can be wrong with the data.
    splits = _splits(task, student, data, train, progress)
    with _open_run(out, verb, config, command) as run:
        fitted = train_student(student, *splits, train, run=run, stage=stage, progress=progress)
        facts = {"task": task.name, "metric": task.metric, "config": config, "kept": None}
        return finish(run, student, task, fitted, facts, stage, train)


def import_checkpoint(
    options: Import, *, tell: Reporter = _nobody, command: str = ""
) -> dict[str, Any]:
    """Turn a published student into a run: unpruned to be pruned, or pruned to be retrained.

    Raises:
        BadInput: see ``read_nettailor`` and ``nettailor_student``; or weights that it was not
            trained on.
    """
    saved = read_nettailor(options.checkpoint)
    net, out = options.net, options.out
    if net.weights == "pretrained" and not net.backbone.endswith(".tv_in1k"):
        raise BadInput(
            f"published universal blocks are torchvision's of ImageNet, and those of "
            f"{net.backbone!r} are others; give one like --backbone resnet34.tv_in1k, or --weights "
            f"FILE"
        )
    task = task_of(options.data)
    backbone = backbone_of(net, options.data)
    student, pruned = nettailor_student(saved, backbone, len(task.classes))
    data, train = dataclasses.replace(options.data, px=backbone.input_size[-1]), Settings()
    source = {"format": options.format, "checkpoint": str(options.checkpoint.resolve())}
    config = _config(student, task, data, train) | {"teacher": None} | source
    if out.exists() and (done := _finished(out, "import", config)) is not None:
        return done
    kept = student.kept() if pruned else None
    with _open_run(out, "import", config, command) as run:
        val = measure(student, task, "val", data, train)[0]
        facts = {"task": task.name, "metric": task.metric, "config": config, "kept": kept}
        facts["published"] = saved.facts
        stage = "pruned" if pruned else "adapt"
        result = finish(run, student, task, Fitted(val, 0, 0.0), facts, stage, train)
    if "acc" in saved.facts and result["test"] is not None:
        noted, here = saved.facts["acc"], 100 * result["test"]
        tell(f"import {out.name}").say(f"the program noted acc {noted:g}; here it is {here:.2f} %")
    return result


def prune(options: Prune, *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Make a smaller student of a finished run; its accuracy is measured before any retraining."""
    opened, task = _reopened(options.run)
    student = opened.student
    if options.renormalise:
        _configure(student, renormalise=True)
    if options.trial_epochs and options.within is None:
        raise BadInput("trial_epochs belongs to a search; give --within POINTS with it")
    config = dataclasses.asdict(dataclasses.replace(options, out=Path(), teacher=None))
    config = {k: str(v.resolve()) if k == "run" else v for k, v in config.items() if k != "out"}
    if options.out.exists() and (done := _finished(options.out, "prune", config)) is not None:
        return done
    found: dict[str, Any] = {}
    if options.within is None:
        smaller, report = prune_student(student, _rule(options))
    else:
        smaller, report, found = _searched(options, opened, task, tell(f"prune {options.out.name}"))
    with _open_run(options.out, "prune", config, command) as run:
        settings = Settings(**opened.result["config"]["train"])
        val = measure(smaller, task, "val", opened.data, settings)[0]
        why = {"pruned_by": report.why, "excluded": report.excluded, "reopened": report.reopened}
        facts = _inherited(opened, smaller) | {"kept": smaller.kept(), **why, **found}
        return finish(run, smaller, task, Fitted(val, 0, 0.0), facts, "pruned", settings)


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
    student, data = opened.student, opened.data
    trained = Settings(**opened.result["config"]["train"])
    path = _teacher_path(opened, options.teacher)
    reference = open_run(path).student if path else student
    floor = measure(reference, task, "val", data, trained)[0] - options.within / 100
    settings = dataclasses.replace(
        Settings(), **_of_place(trained), epochs=max(options.trial_epochs, 1), select="last"
    )
    train = None
    if options.trial_epochs:
        _attach_teacher(student, path, opened.result["config"]["classes"], data)
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
    names = ("batch", "lr", "momentum", "weight_decay", "seed", "device", "bf16", "channels_last")
    return {name: getattr(settings, name) for name in names}


def retrain(options: Retrain, *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Continue a pruned student from its trained weights."""
    options.train.check()
    opened, task = _reopened(options.run)
    if opened.result["stage"] != "pruned":
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
        "train": dataclasses.asdict(train),
        "kept": opened.result["kept"],
    } | ({} if options.distill is None else {"distill": options.distill})
    if out.exists() and (done := _finished(out, "retrain", config)) is not None:
        return done
    progress = tell(f"retrain {out.name}")
    _attach_teacher(student, path, opened.result["config"]["classes"], data)
    splits = _splits(task, student, data, train, progress)
    with _open_run(out, "retrain", config, command) as run:
        fitted = train_student(student, *splits, train, run=run, stage="retrain", progress=progress)
        facts = _inherited(opened, student) | {"kept": opened.result["kept"]}
        return finish(run, student, task, fitted, facts, "retrained", train)


def evaluate(
    path: Path,
    *,
    split: Split = "test",
    device: str = "auto",
    root: str | None = None,
    latency: bool = False,
) -> dict[str, Any]:
    """Measure a finished run again: {run, task, split, metric, value, n}, and its latency.

    Args:
        path: the run.
        split: which images; ``val`` where the task has no test split.
        device: where to compute.
        root: the data sets' folder, if it moved since.
        latency: add the fields of ``speed`` under ``latency``.
    """
    opened = open_run(path)
    data = dataclasses.replace(opened.data, root=root) if root else opened.data
    settings = dataclasses.replace(Settings(**opened.result["config"]["train"]), device=device)
    task = task_of(data)
    if split not in task.splits:
        raise BadInput(
            f"task {task.name} has no {split} split; give --split {' or '.join(task.splits)}"
        )
    value, images = measure(opened.student, task, split, data, settings)
    return {
        "run": str(path),
        "task": task.name,
        "split": split,
        "metric": task.metric,
        "value": value,
        "n": images,
    } | ({"latency": speed(opened.student)} if latency else {})


def speed(student: Student, *, rounds: int = 40) -> dict[str, float]:
    """Time one image through the merged network and the plain backbone, on one thread of the CPU.

    Returns:
        ``ms`` and ``ms_backbone`` (medians of wall time), ``ratio`` of the two (below 1: faster
        than the backbone) and its interquartile range ``spread``.
    """
    threads, size = torch.get_num_threads(), student.universal.input_size
    images = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    # The same head on both sides, so that the ratio compares bodies.
    head = cast(nn.Module, student.task.head)
    merged, plain = student.merge().cpu(), nn.Sequential(student.universal.model, head)
    plain.cpu().eval()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            found = cost.compare(lambda: merged(images), lambda: plain(images), rounds=rounds)
    finally:
        torch.set_num_threads(threads)
    milliseconds = {"ms": 1000 * found.seconds, "ms_backbone": 1000 * found.reference}
    return milliseconds | {"ratio": found.ratio, "spread": found.spread}


def merge(path: Path, out: Path) -> dict[str, Any]:
    """Write a finished run as one plain state dict (timm names), everything folded in."""
    opened = open_run(path)
    network = opened.student.merge()
    if out.suffix != ".safetensors":
        raise BadInput(f"{out} does not end in .safetensors; name the file so")
    backbone = opened.student.universal
    about = {
        "backbone": backbone.name,
        "classes": opened.result["config"]["classes"],
        "input_size": backbone.input_size,
        "mean": backbone.mean,
        "std": backbone.std,
    }
    write_tensors(out, network.state_dict(), about)
    return {
        "run": str(path),
        "out": str(out),
        "backbone": opened.student.universal.name,
        "classes": len(opened.result["config"]["classes"]),
        "bytes": cost.file_bytes(out),
    }


def _config(student: Student, task: Task, data: Data, train: Settings) -> dict[str, Any]:
    """What a run is made of, so that it can be rebuilt and told from others."""
    backbone, settings = student.universal, getattr(student, "config", None)
    return {
        "method": student.method,
        "data": dataclasses.asdict(data),
        "net": {"backbone": backbone.name, "weights": _resolved(backbone.weights)},
        "settings": dataclasses.asdict(settings) if settings is not None else {},
        "train": dataclasses.asdict(train),
        "fingerprint": backbone.fingerprint(),
        "classes": list(task.classes),
    }


def _resolved(weights: str) -> str:
    return weights if weights in ("pretrained", "random") else str(Path(weights).resolve())


def _open_run(path: Path, verb: str, config: dict[str, Any], command: str) -> Run:
    """Process 0 writes, the others follow."""
    group = Group.current()
    if group.rank == 0:
        run = Run(path, verb, config, command)
        group.wait()
        return run
    group.wait()
    return Run(path, verb, config, command, writer=False)


def _finished(path: Path, verb: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The result of the same command, if it has one already.

    Raises:
        BadInput: the directory belongs to something else.
    """
    with _open_run(path, verb, config, "") as run:
        return run.result


def _splits(
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


def _reopened(path: Path) -> tuple[Opened, Task]:
    opened = open_run(path)
    return opened, task_of(opened.data)


def _teacher_path(opened: Opened, moved: Path | None) -> Path | None:
    """The run that a student learnt from, or where it is now."""
    known = opened.result["config"].get("teacher")
    return moved or (Path(known) if known else None)


def _attach_teacher(
    student: Student, path: Path | None, classes: Sequence[str], data: Data
) -> None:
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
    settings = {} if config is None else {"settings": dataclasses.asdict(config)}
    return facts | {"config": facts["config"] | settings, "from": str(opened.path)}
