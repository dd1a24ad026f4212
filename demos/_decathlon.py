"""Method x domain x seed: one source network, and every method on every domain from it.

Each method, with the settings that make it a line of the table, is one sweep; all sweeps share one
folder of runs that are named by content. So a study that was interrupted continues, one that grew
(another seed, domain or method) trains only what is new, and NetTailor's teachers are the runs of
fine-tuning. Left out: which domains, and how their images are seen (``decathlon.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from analysis import decathlon
from analysis.answer import Answer, write
from analysis.report import write_report
from analysis.rows import read_runs
from tailor import catalog, progress, workflow
from tailor.ask import show
from tailor.cli import answered
from tailor.options import Images, Net, Sweep, Teach
from tailor.progress import Progress
from tailor.settings import Recipe
from tailor.sweep import sweep
from tailor.sweep_progress import SweepProgress, SweepSilent, for_terminal
from tailor.units import short
from tailor.worker import deaf_to_interrupts, terminated_like_interrupted


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A line of the table: a method with settings of its own."""

    method: str  # file name in students/
    option: tuple[str, ...] = ()  # of the method, as `tailor sweep --option` takes them
    lam: float | None = None  # λ, for what is selected
    rule: tuple[str, ...] = ()  # how it is pruned; what is switched off goes by default
    train: Mapping[str, Any] = field(default_factory=dict)  # where it trains unlike the others


# What starts from nothing, or may move little, takes longer steps than weights that are tuned.
# LoRA does not: its α already counts the thin path 8 times.
_FAST = {"lr": 0.1}
VARIANTS = {
    "scratch": Variant(method="scratch", train=_FAST),
    "probe": Variant(method="probe", train=_FAST),
    "bn_adapt": Variant(method="bn_adapt", train=_FAST),
    "finetune": Variant(method="finetune"),
    "lwf": Variant(method="lwf"),
    "series": Variant(method="residual_adapters", option=("adapters=series",), train=_FAST),
    "parallel": Variant(method="residual_adapters", train=_FAST),
    "lora": Variant(method="lora"),
    "piggyback": Variant(method="piggyback"),
    "taps": Variant(method="taps", option=("price_warmup=1",), lam=1.0),
    "nettailor": Variant(method="nettailor", lam=0.3, rule=("count=3",)),
    "selected": Variant(
        method="residual_adapters",
        option=("select=true", "price_warmup=1"),
        lam=2.0,
        train=_FAST,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What to run."""

    out: Path
    source: Teach | None  # how the source network is taught; None: `net` has its weights
    net: Net
    domains: Mapping[str, Mapping[str, Any]]  # spec of a task -> how its images are seen
    images: Images  # what all domains share of that
    train: Recipe  # of every method; a selecting student selects in these epochs,
    retrain_epochs: int  # and is retrained in these; all others train for both together
    variants: Mapping[str, Variant]
    seeds: tuple[int, ...]
    processes: int

    @property
    def trials(self) -> int:
        """How many students there are of each variant."""
        return len(self.domains) * len(self.seeds)


def chosen(names: Sequence[str]) -> dict[str, Variant]:
    """Some of ``VARIANTS``, in its order; NetTailor's teachers are trained first.

    Raises:
        BadInput: a name that is none of them.
    """
    for name in names:
        if name not in VARIANTS:
            raise catalog.unknown("method", name, VARIANTS, shown_by="--help")
    return {name: variant for name, variant in VARIANTS.items() if name in names}


def run(study: Study, command: str) -> dict[str, list[Path]]:
    """Run what is missing, in this process and in as many others as the study wants.

    Args:
        study: what to run.
        command: recorded as the origin of every run.

    Returns:
        The last run directory of every student, by variant; of those that failed there is none.
    """
    torch.set_num_threads(1)  # as the workers: the same bits on a machine with more cores
    if study.source is not None:
        workflow.teach(study.source, tell=progress.for_terminal, command=command)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_help, args=(study, command)) for _ in range(1, study.processes)
    ]
    told = _Whole(len(study.variants) * study.trials)
    try:
        with deaf_to_interrupts():  # as the workers stay: this process tells them
            for worker in others:
                worker.start()
        with terminated_like_interrupted():
            return work(study, command, told)
    except BaseException:
        for worker in others:
            if worker.pid is not None:
                worker.terminate()  # gives its trial back
        raise
    finally:
        told.close()
        for worker in others:
            if worker.pid is not None:
                worker.join()


def work(study: Study, command: str, told: _Whole | None = None) -> dict[str, list[Path]]:
    """One worker: all sweeps, one after the other. Imports take as long as a small student."""
    found = {}
    for name, variant in study.variants.items():
        options = _sweep(study, name, variant)
        if told is not None:
            told.next(name)
            options = dataclasses.replace(options, retry_failed=True)
        trials = sweep(options, tell=told, command=command)["trials"]
        found[name] = [options.out / run for trial in trials for run in trial.get("runs", ())]
    return found


def _help(study: Study, command: str) -> None:
    """In a process of its own: a worker that speaks only of errors, and ends with its parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    def alone() -> int:
        with contextlib.suppress(KeyboardInterrupt), terminated_like_interrupted():
            work(study, command)
        return 0

    threading.Thread(target=follow, daemon=True).start()
    sys.exit(answered(alone))


def _sweep(study: Study, name: str, variant: Variant) -> Sweep:
    own = [
        f"{short(task)}.{option}={str(value).lower() if isinstance(value, bool) else value}"
        for task, view in study.domains.items()
        for option, value in view.items()
    ]
    options = Sweep(
        out=study.out / "runs",  # what else a study leaves lies beside it
        task=tuple(study.domains),
        backbone=(study.net.backbone,),
        weights=study.net.weights,
        method=(variant.method,),
        lam=() if variant.lam is None else (variant.lam,),
        rule=variant.rule,
        seed=study.seeds,
        option=(*variant.option, *own),
        retrain_epochs=study.retrain_epochs,
        images=study.images,
        train=dataclasses.replace(study.train, **variant.train),
        threads=1,  # small networks gain more from another process, and nothing waits for a core
    )
    # A study in the ledger has one set of options for good; runs are found under any of its names.
    said = json.dumps(dataclasses.asdict(options), sort_keys=True, default=str)
    return dataclasses.replace(
        options, study=f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    )


def conclude(study: Study, found: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Print the table; write it, its picture and the report into ``study.out``."""
    runs = [path for paths in found.values() for path in paths]
    answer: Answer = decathlon.answer(read_runs(runs))
    show(answer, None)
    written = [study.out / f"decathlon{suffix}" for suffix in (".png", ".md", ".csv")]
    for path in written:
        write(answer, path)
    write_report(runs, study.out / "report.html")
    return [*written, study.out / "report.html"]


class _Whole(SweepSilent):
    """Several sweeps as one: one bar to the end of the last, a variant's name before its trials."""

    def __init__(self, total: int) -> None:
        self.inner: SweepProgress = for_terminal()
        self.total, self.name, self.before, self.here = total, "", 0, 0

    def next(self, name: str) -> None:
        """The sweep of variant ``name`` begins."""
        if not self.name:
            self.inner.begin(self.total)
        self.name, self.before, self.here = name, self.before + self.here, 0

    def begin(self, total: int) -> None:
        self.here = total

    def counted(self, counts: Mapping[str, int]) -> None:
        self.inner.counted({**counts, "done": counts["done"] + self.before})

    def trial(self, name: str) -> None:
        self.inner.trial(f"{self.name}: {name}")

    def stage(self, title: str) -> Progress:
        return self.inner.stage(title)

    def finished(self, name: str, facts: Mapping[str, Any]) -> None:
        self.inner.finished(f"{self.name}: {name}", facts)

    def failed(self, name: str, error: str) -> None:
        self.inner.failed(f"{self.name}: {name}", error)

    def close(self) -> None:
        """Nothing more will come."""
        self.inner.end()


def failures(study: Study, found: Mapping[str, Sequence[Path]], console: Console) -> None:
    """Say which variants lack students; their errors were told as they came."""
    for name, paths in found.items():
        if missing := study.trials - len(paths):
            console.print(
                f"{name}: {missing} of {study.trials} students failed and are left out; see above",
                highlight=False,
            )
