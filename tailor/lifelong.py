"""Lifelong learning: tasks one after the other, no way back, all of them measured after each.

``run`` checks everything that can be wrong before anything is trained, claims OUT for this sequence
and lets a ``Course`` learn it. OUT/sequence.json says what the sequence is made of; what a task
left is a run directory of its own, OUT/NN-NAME; OUT/matrix.json holds the results. Repeating the
command goes on where it was, and shows a finished sequence; with more tasks behind, those are
learned: there is no number of tasks to be known at the start.

Left out: learning (``course.py``), reading a sequence (``learner.py``), what its matrix says of
forgetting (``analysis/forgetting.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tailor import catalog
from tailor.backbone import Backbone
from tailor.course import Course, shares
from tailor.datasets import _classes
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.learner import (
    ROWS,
    Learner,
    check_backbone,
    config_of,
    evaluate,
    open_sequence,
    read_matrix,
)
from tailor.opened import backbone_of, task_of
from tailor.options import Data, Lifelong, Split
from tailor.run import SEQUENCE, Run, read_object, write_json
from tailor.sequence import check_disjoint, tasks_of
from tailor.session import Reporter, nobody, resolved
from tailor.settings import as_config
from tailor.task import Task
from tailor.units import prunes

__all__ = ["Learner", "evaluate", "open_sequence", "run"]


def run(options: Lifelong[Any], *, tell: Reporter = nobody, command: str = "") -> dict[str, Any]:
    """Learn the tasks of ``options`` in order; see ``tailor lifelong --help``.

    Returns:
        What matrix.json holds: for every task t the metric and the loss of tasks 0 to t after it
        (``accuracy``, ``loss``), unique parameters (``params``), those trained and added, bytes,
        seconds, MACs; ``finished`` once all tasks are learned.

    Raises:
        BadInput: something is wrong with the options, a task, or OUT; what was learned stays.
    """
    method = catalog.load("students", options.method, "method")
    _check(options, method)
    specs = tasks_of(options.sequence, options.task, options.images)
    datas = [Data(task=spec, **dataclasses.asdict(options.images)) for spec in specs]
    with _classes.once():
        tasks = [task_of(data) for data in datas]
    check_disjoint(specs, tasks)
    splits = [_judged_by(task) for task in tasks]
    if shares(method, options.settings):
        _check_alike(options, specs, tasks)
    backbone = backbone_of(options.net, datas[0])
    trunk = sum(p.numel() for p in backbone.parameters())
    with _claimed(options, specs, backbone, command):
        course = Course(
            options=options,
            method=method,
            backbone=backbone,
            fingerprint=backbone.fingerprint(),
            datas=datas,
            tasks=tasks,
            splits=splits,
            tell=tell,
            command=command,
            matrix=_begun(options, sequel=shares(method, options.settings), trunk=trunk),
        )
        return course.run()


def _check(options: Lifelong[Any], method: ModuleType) -> None:
    """Refuse what cannot be learned before anything is read."""
    options.train.check()
    if Group.current().world > 1:
        raise BadInput(
            f"a sequence is learned by one process, and these are {Group.current().world}; start "
            f"`tailor lifelong` without torchrun"
        )
    if options.retrain_epochs is None:
        return
    if options.retrain_epochs < 1:
        raise BadInput(f"retrain_epochs is {options.retrain_epochs}; give 1 or more")
    if not prunes(method, options.settings):
        raise BadInput(
            f"method {options.method!r} with these settings has nothing to prune; leave "
            f"--retrain-epochs out, or learn a selection with --select where it has one"
        )
    if shares(method, options.settings):
        raise BadInput(
            f"method {options.method!r} makes a task's student from those before, which pruning "
            f"would take away; leave --retrain-epochs out"
        )


def _check_alike(options: Lifelong[Any], specs: Sequence[str], tasks: Sequence[Task]) -> None:
    """Refuse tasks of images beside tasks of pixels where they share a network.

    Raises:
        BadInput: names one of each.
    """
    kinds = [task.target.dense for task in tasks]
    if options.net.decoder == "light" and len(set(kinds)) > 1:
        raise BadInput(
            f"tasks {specs[kinds.index(False)]!r} (of images) and {specs[kinds.index(True)]!r} (of "
            f"pixels) cannot share what method {options.method!r} shares between tasks; give tasks "
            f"of one sort, or a method on the frozen backbone"
        )


def _judged_by(task: Task) -> Split:
    """The images that a task is judged by.

    Raises:
        BadInput: it has none.
    """
    if "test" in task.splits:
        return "test"
    if "val" in task.splits:
        return "val"
    raise BadInput(
        f"{task.name} has neither a test nor a validation split to be measured on; give "
        f"--val-share 0.1"
    )


def _claimed(options: Lifelong[Any], specs: Sequence[str], backbone: Backbone, command: str) -> Run:
    """The folder of the sequence, locked for this process.

    Raises:
        BadInput: it holds something else, is in use, or its tasks are others.
    """
    out, file = options.out, options.out / SEQUENCE
    if file.exists():
        check_backbone(out, config_of(out), backbone)
    config = {
        "method": options.method,
        "sequence": options.sequence,
        "settings": as_config(options.settings),
        "net": as_config(options.net) | {"weights": resolved(backbone.weights)},
        "images": as_config(options.images),
        "train": as_config(options.train),
        "carry_optimizer": options.carry_optimizer,
        "retrain_epochs": options.retrain_epochs,
        "fingerprint": backbone.fingerprint(),
    }
    run = Run(out, "lifelong", config, command, record=SEQUENCE)
    try:
        about = read_object(file)
        known = list(about.get("tasks", []))[: len(read_matrix(out)["runs"])]  # the learned ones
        if known != list(specs[: len(known)]):
            raise BadInput(
                f"{out} holds the sequence {' '.join(known)}; repeat it, add tasks behind it, or "
                f"choose another --out"
            )
        if about.get("tasks") != list(specs):
            write_json(file, about | {"tasks": list(specs)})
    except BaseException:
        run.close()
        raise
    return run


def _begun(options: Lifelong[Any], *, sequel: bool, trunk: int) -> dict[str, Any]:
    """The results so far."""
    empty: dict[str, Any] = {
        "run": str(options.out),
        "method": options.method,
        "sequence": options.sequence,
        "backbone": options.net.backbone,
        "seed": options.train.seed,
        "settings": as_config(options.settings),
        "sequel": sequel,
        "trunk": trunk,
        **{name: [] for name in ROWS},
        "finished": False,
    }
    return empty | read_matrix(options.out) | {"run": str(options.out)}
