"""The verbs that make and read runs: teach, adapt, import, evaluate, merge.

The command line and the demos call these functions; each one reads like the step it is. A finished
run is found and returned, an unfinished one continued. Left out: how options are parsed
(``cli.py``), and prune and retrain (``shrink.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tailor import catalog, cost
from tailor.errors import BadInput
from tailor.legacy import nettailor_student, read_nettailor
from tailor.link import Link
from tailor.opened import Opened, backbone_of, measure, open_run, task_of, validated
from tailor.options import SELECTING, Adapt, Data, Import, Net, Split, Teach
from tailor.outcome import finish
from tailor.progress import for_terminal
from tailor.run import LATENCY, write_json, write_tensors
from tailor.session import (
    Reporter,
    attach_teacher,
    check_fits,
    config_of,
    finished,
    nobody,
    open_directory,
    splits_of,
)
from tailor.settings import Settings, lam_of
from tailor.student import Distilled, Gated, Student
from tailor.task import Task
from tailor.train import Fitted, steps
from tailor.turns import InSteps, alone


def teach(options: Teach, *, tell: Reporter = nobody, command: str = "") -> dict[str, Any]:
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


def adapt(options: Adapt[Any], *, tell: Reporter = nobody, command: str = "") -> dict[str, Any]:
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
    backbone = backbone_of(net, options.data, task.target)
    student = method.build(backbone, len(task.classes), settings, seed=options.train.seed)
    teacher = options.teacher if isinstance(options, Adapt) else None
    if teacher is not None and isinstance(student, Distilled) and not student.wants_teacher():
        raise BadInput(
            f"method {name!r} with these settings learns from no teacher; leave --teacher out"
        )
    attach_teacher(student, teacher, task.classes, options.data)
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


def fitting(
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
    link: Link | None = None,
) -> InSteps[dict[str, Any]]:
    """Train any student on a task, in a run directory that every verb understands.

    It pauses after every step; ``fit`` does not.

    Args:
        student: from a method's ``build``; trained in place.
        task: from ``open_task``.
        out: run directory; continued or shown where it exists.
        train: how to train; ``SELECTING`` by default.
        data: how images are seen; the backbone's size and normalisation by default.
        stage: ``adapt``, or ``teacher`` for a reference.
        teacher: the run that the student learns from, for a method that distils; ``retrain`` finds
            it again.
        tell: who is told; a progress bar where somebody watches.
        command: what to show as the origin of the run.
        link: the task's place in a sequence.

    Returns:
        The run's result, as in result.json.

    Raises:
        BadInput: the directory belongs to something else, or training is impossible.
    """
    if isinstance(student, Distilled) and student.teacher is None:
        attach_teacher(student, teacher, task.classes, data or Data(task=task.spec))
    train = train or SELECTING
    data = data or Data(task=task.spec, root=task.root)
    data = dataclasses.replace(data, px=student.universal.input_size[-1])
    check_fits(student, task)
    config = config_of(student, task, data, train)
    config["teacher"] = None if teacher is None else str(teacher.resolve())
    config |= {} if link is None else link.config
    verb, out = "teach" if stage == "teacher" else "adapt", Path(out)
    progress = (tell or for_terminal)(f"{stage} {out.name}")
    if (done := finished(out, verb, config)) is not None:
        return done
    # A new directory is only made once nothing more can be wrong with the data.
    splits = splits_of(task, student, data, train, progress)
    with open_directory(out, verb, config, command) as run:
        if run.result is not None:  # another process was faster while this one read images
            return run.result
        settings = config["settings"]
        if lam_of(settings) and settings.get("price_warmup", 0) >= train.epochs:
            progress.say(
                f"the price acts after epoch {settings['price_warmup']:g} and training ends after "
                f"epoch {train.epochs}: nothing will be switched off; give more --epochs or a "
                f"smaller --price-warmup"
            )
        fitted = yield from steps(
            student, *splits, train, run=run, stage=stage, progress=progress, link=link
        )
        if link is not None:
            link.learned(student, splits[0], train)
        facts = {"task": task.name, "metric": task.metric, "config": config, "kept": None}
        return finish(run, student, task, fitted, facts, stage, train)


fit = alone(fitting)


def import_checkpoint(
    options: Import, *, tell: Reporter = nobody, command: str = ""
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
    check_fits(student, task)
    data, train = dataclasses.replace(options.data, px=backbone.input_size[-1]), Settings()
    source = {"format": options.format, "checkpoint": str(options.checkpoint.resolve())}
    config = config_of(student, task, data, train) | {"teacher": None} | source
    if (done := finished(out, "import", config)) is not None:
        return done
    kept = student.kept() if pruned else None
    with open_directory(out, "import", config, command) as run:
        val = validated(student, task, data, train)
        facts = {"task": task.name, "metric": task.metric, "config": config, "kept": kept}
        facts["published"] = saved.facts
        stage = "pruned" if pruned else "adapt"
        result = finish(run, student, task, Fitted(val, 0, 0.0), facts, stage, train)
    if "acc" in saved.facts and result["test"] is not None:
        noted, here = saved.facts["acc"], 100 * result["test"]
        tell(f"import {out.name}").say(f"the program noted acc {noted:g}; here it is {here:.2f} %")
    return result


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
    timed = {"latency": time_run(opened)} if latency else {}
    return {
        "run": str(path),
        "task": task.name,
        "split": split,
        "metric": task.metric,
        "value": value,
        "n": images,
    } | timed


def time_run(opened: Opened) -> dict[str, float]:
    """``speed`` of a finished run, which is left in its ``latency.json``.

    A run that may only be read is timed all the same.
    """
    found = speed(opened.student) | {"threads": 1}
    with contextlib.suppress(BadInput):
        write_json(opened.path / LATENCY, found)
    return found


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


def _mixes(student: Gated) -> bool:
    return any(gate.kind != "delta" for gate in student.gates())


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
        "method": opened.student.method,
        "kept": opened.result.get("kept"),
    }
    write_tensors(out, network.state_dict(), about)
    method = catalog.load("students", opened.student.method, "method")
    plain = getattr(method, "PLAIN", True)  # one network of the backbone's architecture
    return {
        "timm": plain and not (isinstance(opened.student, Gated) and _mixes(opened.student)),
        "run": str(path),
        "out": str(out),
        "backbone": opened.student.universal.name,
        "classes": len(opened.result["config"]["classes"]),
        "bytes": cost.file_bytes(out),
    }
