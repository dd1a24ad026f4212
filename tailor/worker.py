"""A worker of a sweep: takes trials from the ledger and trains them until none is left.

A trial that cannot be done is written down and the next one is taken; a worker that is told to stop
gives its trial back. Left out: which trials there are (``sweep.py``).
"""

from __future__ import annotations

import dataclasses
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import RDBStorage

from tailor import workflow
from tailor.errors import BadInput, first_line
from tailor.ledger import Ledger, State
from tailor.opened import open_run
from tailor.run import Unwritable, read_json
from tailor.space import Space
from tailor.storage import Heart, Unreachable
from tailor.sweep_progress import SweepProgress
from tailor.units import Unit, run, short

# What the table of a sweep says about a trial; means over the seeds of a search.
MEANS = ("val", "test", "params", "macs", "bytes", "layers_adapted", "seconds")
REMEDY = (
    "if mending that changes an option, give another --study; else repeat it with --retry-failed"
)
_FAILURES = 3  # in a row: the fourth would fail as well
_PATIENCE_SECONDS = 120  # for a database that restarts
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process that takes trials until none is left."""

    space: Space
    ledger: Ledger
    storage: RDBStorage
    tell: SweepProgress
    command: str

    def work(self) -> None:
        """Until every trial is done or failed.

        Raises:
            BadInput: three failures in a row, or a database or disk that cannot be written.
        """
        failures = 0
        while True:
            trial = patiently(self.ledger.claim)
            if trial is not None:
                error = self._try(trial)
                failures = failures + 1 if error else 0
            states = patiently(self.ledger.states)
            self.tell.counted(counts_of(states))
            if failures == _FAILURES:
                raise BadInput(
                    f"{failures} trials in a row failed, the last one with: {error} ({REMEDY})"
                )
            if trial is None:
                if ended(states):
                    return
                time.sleep(0.5)  # others are at the rest

    def _try(self, trial: optuna.Trial) -> str | None:
        """Train and write down; the error of a trial that cannot be done."""
        with Heart(self.storage, self.ledger.trial_id(trial), self.ledger.heartbeat):
            name = name_of(trial.params)
            try:
                self.tell.trial(name)
                values, facts = self._measure(dict(trial.params))
                patiently(lambda: self.ledger.finish(trial, values, facts))
            except (KeyboardInterrupt, Unwritable):
                self.ledger.release(trial)
                raise
            except Unreachable:
                raise  # what was trained is found when the database is back
            except BadInput as error:
                said = str(error)
            except Exception as error:  # a defect must not stop the other trials of a night
                traceback.print_exc()
                said = f"{type(error).__name__}: {first_line(error)}"
            else:
                self.tell.finished(name, facts)
                return None
            patiently(lambda: self.ledger.fail(trial, said))
        self.tell.failed(name, said)
        return said

    def _measure(self, point: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
        """Train the units of a point: their objectives, and what the table says about them."""
        out, units = self.space.options.out, self.space.units(point)
        found = [
            _facts(run(unit, out, tell=self.tell.stage, command=self.command), unit, out)
            for unit in units
        ]
        known = (name for name in MEANS if found[0][name] is not None)
        facts: dict[str, Any] = {n: statistics.fmean(f[n] for f in found) for n in known}
        facts |= {"runs": [f["run"] for f in found], "keys": [u.key() for u in units]}
        if missing := [name for name in ("val", "params", "macs") if name not in facts]:
            raise BadInput(f"{missing[0]} of {facts['runs'][0]} is no number; lower --lr")
        if "latency" in self.space.options.objectives:
            students = (open_run(out / place).student for place in facts["runs"])
            facts["latency"] = statistics.fmean(workflow.speed(s)["ms"] for s in students)
        return [float(facts[name]) for name in self.space.options.objectives], facts


def _facts(result: Mapping[str, Any], unit: Unit, out: Path) -> dict[str, Any]:
    """What the table of a sweep says about one unit."""
    params, macs = result["params"], result["macs"]
    stages = unit.stages(out)
    return {
        "val": result["val"],
        "test": result["test"],
        "params": params["multiple"] - 1,
        "macs": macs["student"] / macs["backbone"] if macs["backbone"] else 1.0,
        "bytes": result["bytes"],
        "layers_adapted": result["layers_adapted"],
        "seconds": sum(read_json(s / "result.json")["seconds"] for s in stages),
        "run": str(stages[-1].relative_to(out)),
    }


def name_of(point: Mapping[str, Any]) -> str:
    """A point in one line, such as ``digits taps λ=0.1 seed 0``."""
    words = {"task": "{}", "backbone": "{}", "method": "{}", "lam": "λ={}", "seed": "seed {}"}
    said = {"task": short(str(point["task"])) if "task" in point else ""}
    if "lam" in point:
        said["lam"] = f"{float(point['lam']):g}"  # a search's choice is a word
    said |= {k: f"{v:.4g}" for k, v in point.items() if isinstance(v, float) and k != "lam"}
    told = {k: v for k, v in (dict(point) | said).items() if v != ""}
    return " ".join(
        words.get(name, f"{name}={{}}").format(value)
        for name, value in sorted(
            told.items(), key=lambda p: [*words].index(p[0]) if p[0] in words else 3
        )
    )


def counts_of(states: Mapping[str, State]) -> dict[str, int]:
    words = [state.status for state in states.values()]
    return {word: words.count(word) for word in ("done", "failed", "running", "waiting", "open")}


def ended(states: Mapping[str, State]) -> bool:
    """Whether nothing is left to do."""
    return all(state.status in ("done", "failed") for state in states.values())


def patiently(action: Callable[[], T]) -> T:
    """Try again while a database restarts: a trained trial is worth the wait."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return action()
        except Unreachable:
            if time.monotonic() > until:
                raise
            time.sleep(2.0)


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; processes that are started now ignore it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, a cluster's first warning, give the trial back as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the giving back
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
