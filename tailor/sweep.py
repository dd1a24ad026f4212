"""The verb ``sweep``: work through a grid of trials, or search, alone or with many workers.

Every process is a worker of the same kind: it takes a trial from the ledger, trains it in run
directories named by content, writes the result down, and takes the next, until none is left. A
worker that is killed loses nothing: its trial goes to another one, which continues from the last
checkpoint. With ``processes`` this process only watches the workers that it starts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from tailor import identity
from tailor.errors import BadInput
from tailor.ledger import Ledger, Slot, State
from tailor.opened import task_of
from tailor.options import Data, Objective, Sweep
from tailor.run import read_json, write_json, writing
from tailor.space import Space, space_of
from tailor.storage import default_url, open_storage, shown
from tailor.sweep_progress import SweepProgress, SweepSilent
from tailor.units import said
from tailor.worker import (
    MEANS,
    Worker,
    counts_of,
    deaf_to_interrupts,
    ended,
    name_of,
    patiently,
    terminated_like_interrupted,
)

SCHEMA = 1
MARK = "sweep.json"  # makes a folder of runs a sweep


def sweep(
    options: Sweep, *, tell: SweepProgress | None = None, command: str = ""
) -> dict[str, Any]:
    """Work until every trial is done, by this process or by others.

    Args:
        options: what to sweep over.
        tell: who is told how far it is.
        command: recorded as the origin of every run.

    Returns:
        ``study``, ``storage``, ``out``, how many trials there are (``total``), ``done`` and
        ``failed``, and ``trials``: one dictionary per trial in the order of the grid, with its
        ``point``, ``status``, ``val``, ``test``, ``params`` (added, in backbones), ``macs`` (of the
        backbone's), ``bytes``, ``layers_adapted``, ``seconds``, ``runs`` (last stage of each seed),
        ``attempts``, ``error``, and in a search whether it is on the Pareto ``front``.

    Raises:
        BadInput: an unusable search space, database or folder; what is finished stays.
    """
    tell = tell or SweepSilent()
    space = space_of(options)
    opened = {task: task_of(_data(options, task)) for task in options.task}
    if unjudged := [name for name, task in opened.items() if "val" not in task.splits]:
        raise BadInput(
            f"a sweep compares trials on validation images, and {unjudged[0]} has none of its own; "
            f"give --val-share 0.1"
        )
    images = {name: identity.fingerprint(task) for name, task in opened.items()}
    _folder(options.out, images)
    url = options.storage or default_url(options.out)
    place = shown(url)
    if options.storage is not None:
        command = command.replace(options.storage, place)  # no password in files
    if options.storage is None:
        with writing(options.out):
            options.out.mkdir(parents=True, exist_ok=True)
    name = options.study or options.out.resolve().name
    about: dict[str, Any] = {"storage": place, "command": command, "space": _identity(space)}
    with open_storage(url, options.heartbeat) as storage:
        ledger = Ledger(
            storage,
            url,
            name,
            slots=_slots(space),
            distributions=space.distributions(),
            directions=[_direction(o) for o in options.objectives],
            identity=about["space"] | {"images": images},
        )
        _mark(options.out, images, name, about)
        if options.retry_failed:
            ledger.retry_failed()
        tell.begin(len(ledger.states()))
        try:
            if options.processes > 1 and not ended(ledger.states()):
                _watch(options, ledger, tell, command)
            else:
                if options.threads:
                    torch.set_num_threads(options.threads)
                with terminated_like_interrupted():
                    Worker(space, ledger, storage, tell, command).work()
        finally:
            tell.end()
        found = patiently(lambda: _results(space, ledger))
    errors = [t["error"] for t in found["trials"] if t["error"]]
    trials = {word: found[word] for word in ("total", "done", "failed")} | {"errors": errors}
    _mark(options.out, images, name, about | {"trials": trials})
    return {"study": name, "storage": place, "out": str(options.out)} | found


def _results(space: Space, ledger: Ledger) -> dict[str, Any]:
    states = ledger.states()
    counts = counts_of(states)
    best = ledger.front() if space.ranges else set()
    trials = []
    for state in states.values():
        trial, facts = state.trial, state.facts
        lines: dict[str, Any] = {
            "trial": None if trial is None else trial.number,
            "point": {} if trial is None else trial.params,
            "status": state.status,
            "attempts": state.before + (state.status == "done"),
            "error": state.error if state.status == "failed" else None,
        }
        names = (*MEANS, "latency", "runs")
        lines |= {name: facts[name] for name in names if name in facts}
        if space.ranges:
            lines["front"] = trial is not None and trial.number in best
        trials.append(lines)
    return {"total": len(states), "done": counts["done"], "failed": counts["failed"]} | {
        "trials": trials
    }


def _slots(space: Space) -> list[Slot]:
    if space.ranges:
        return [Slot(f"search {i:05d}", {}) for i in range(space.options.trials)]
    found = {
        "+".join(unit.key()[:16] for unit in space.units(point)): point for point in space.points()
    }
    return [Slot(name, point) for name, point in found.items()]


def _identity(space: Space) -> dict[str, Any]:
    """What makes a study this one; places and the order of values do not."""
    options = dataclasses.asdict(space.options)
    own = ("method", "lam", "seed", "rule", "option", "search", "until", "retrain_epochs")
    varied = {name: sorted(v) if isinstance(v := options[name], tuple) else v for name in own}
    return {
        "task": sorted(options["task"]),
        "backbone": dict(sorted(space.weights.items())),
        **varied,
        "view": said(space.options.images),
        "train": said(space.options.train),
        "objectives": list(options["objectives"]),
    }


def _direction(objective: Objective) -> Literal["maximize", "minimize"]:
    return "maximize" if objective == "val" else "minimize"


def _data(options: Sweep, task: str) -> Data:
    return Data(task=task, **dataclasses.asdict(options.images))


def _folder(out: Path, images: Mapping[str, str]) -> dict[str, Any]:
    """What ``sweep.json`` says about the studies in the folder ``out``; empty for a new one.

    Raises:
        BadInput: a folder of something else, of another version, or of other images.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file; choose another --out")
    if not (out / MARK).exists():
        there = out.iterdir() if out.exists() else []
        # A database may lie there before the folder is marked.
        others = sorted(p.name for p in there if not (p.name[0] == "." or ".db" in p.suffix))
        if others:
            raise BadInput(
                f"{out} is no folder of a sweep but holds {others[0]!r}; choose an empty or new "
                f"--out"
            )
        return {"schema": SCHEMA, "images": {}, "studies": {}}
    known: Any = read_json(out / MARK)
    if not isinstance(known, dict):
        raise BadInput(f"{out / MARK} is damaged; restore it, or choose another --out")
    if known.get("schema") != SCHEMA:
        raise BadInput(
            f"{out / MARK} was written by another version of tailor; install that one, or choose "
            f"another --out"
        )
    if not all(isinstance(known.get(part), dict) for part in ("images", "studies")):
        raise BadInput(f"{out / MARK} is damaged; restore it, or choose another --out")
    for task, now in images.items():
        if known["images"].get(task, now) != now:
            raise BadInput(
                f"{out} holds runs on other images or labels of {task}; put them back as they "
                f"were, or choose another --out"
            )
    return known


def _mark(out: Path, images: Mapping[str, str], name: str, about: dict[str, Any]) -> None:
    """Note a study in the folder, beside those that are there."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".sweep.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another study may be noted at the same moment
        known = _folder(out, images)
        now = {
            "schema": SCHEMA,
            "images": known["images"] | dict(images),
            "studies": known["studies"] | {name: about},
        }
        if now != known:
            write_json(out / MARK, now)


def _watch(options: Sweep, ledger: Ledger, tell: SweepProgress, command: str) -> None:
    """Start the workers and tell how far they are."""
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.processes)
    alone = dataclasses.replace(options, processes=1, threads=threads, retry_failed=False)
    context = multiprocessing.get_context("spawn")
    workers: list[BaseProcess] = [
        context.Process(target=_work_alone, args=(alone, command)) for _ in range(options.processes)
    ]
    told: set[str] = set()
    with terminated_like_interrupted():
        try:
            with deaf_to_interrupts():  # as the workers stay: this process tells them
                for worker in workers:
                    worker.start()
            while True:
                alive = any(worker.is_alive() for worker in workers)  # before what they wrote
                states = patiently(ledger.states)
                tell.counted(counts_of(states))
                _tell_new(states, told, tell)
                if ended(states):
                    break
                if not alive:
                    raise BadInput(
                        "all workers ended before the sweep was done (see above); repeat the "
                        "command to continue"
                    )
                time.sleep(1.0)
        except BaseException:
            for worker in workers:
                if worker.pid is not None:
                    worker.terminate()
            raise
        finally:
            for worker in workers:
                if worker.pid is not None:
                    worker.join()


def _tell_new(states: Mapping[str, State], told: set[str], tell: SweepProgress) -> None:
    """Tell about every trial once that ended since."""
    first = not told
    for name, state in states.items():
        if state.status not in ("done", "failed") or name in told or state.trial is None:
            continue
        told.add(name)
        if first and state.status == "done":
            continue  # of an earlier session
        if state.status == "done":
            tell.finished(name_of(state.trial.params), state.facts)
        else:
            tell.failed(name_of(state.trial.params), str(state.error))
    told.add("")


def _work_alone(options: Sweep, command: str) -> None:
    """In a process of its own: a worker that speaks only of errors, and ends with its parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    try:
        sweep(options, command=command)
    except BadInput as error:
        print(f"tailor: a worker stopped: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
