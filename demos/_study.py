"""A study: one backbone taught on a source task, then every target by every method and seed.

Each job is a chain of the toolkit's own verbs in run directories of its own, so a study that was
interrupted continues where it was, and one that is finished is only read. Jobs run in worker
processes of one thread each: small networks gain more from another job than from another thread.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from analysis.blocks import block_map
from analysis.canvas import png
from analysis.layers import heat_map
from analysis.pareto import pareto_plot
from analysis.report import write_report
from analysis.rows import read_runs, rows
from analysis.table import caption, cells, table
from students import nettailor, taps
from tailor import shrink, workflow
from tailor.cli import answered
from tailor.opened import open_run
from tailor.options import Adapt, Data, Mode, Net, Prune, Retrain, Teach
from tailor.progress import Silent, table_of, wide_console
from tailor.run import write_bytes
from tailor.settings import Settings
from tailor.units import short


@dataclass(frozen=True, kw_only=True)
class Study:
    """What to run."""

    out: Path
    source: Teach  # the teacher whose weights become the backbone
    targets: tuple[Data, ...]
    lams: tuple[float, ...]
    references: tuple[str, ...] = ("finetune", "probe", "scratch")
    seeds: tuple[int, ...] = (0, 1, 2)
    reference: Settings  # of fine-tuning, probe and scratch
    taps: taps.Config = field(default_factory=taps.Config)
    tailored: Mapping[str, nettailor.Config] = field(default_factory=dict)  # job name -> settings
    tailoring: Settings = field(default_factory=Settings)  # of a NetTailor student, then retrained
    counts: tuple[int, ...] = ()  # universal blocks that a NetTailor student loses

    @property
    def adapt(self) -> Settings:
        """A third of the references' epochs to select layers, at a constant rate."""
        epochs = max(3, round(0.35 * self.reference.epochs))
        return dataclasses.replace(
            self.reference, epochs=epochs, select="last", schedule="constant"
        )

    @property
    def retrain(self) -> Settings:
        """The rest of the references' epochs; the rate falls, so that both are one schedule."""
        epochs = max(1, self.reference.epochs - self.adapt.epochs)
        return dataclasses.replace(self.reference, epochs=epochs)


@dataclass(frozen=True)
class Job:
    """One chain of verbs, and how many epochs it takes."""

    name: str
    data: Data
    seed: int
    method: str
    lam: float | None
    epochs: int
    tailored: nettailor.Config | None = None


def jobs(study: Study) -> list[Job]:
    """Every combination; references first, because a NetTailor student learns from one."""
    references, students = [], []
    for data in study.targets:
        task = short(data.task)
        for seed in study.seeds:
            for method in study.references:
                name = f"{task}/{method}-s{seed}"
                references.append(Job(name, data, seed, method, None, study.reference.epochs))
            for lam in study.lams:
                name = f"{task}/taps-{lam:g}-s{seed}"
                epochs = study.adapt.epochs + study.retrain.epochs
                students.append(Job(name, data, seed, "taps", lam, epochs))
            for word, config in study.tailored.items():
                epochs = (1 + len(study.counts)) * study.tailoring.epochs
                name = f"{task}/{word}-s{seed}"
                students.append(Job(name, data, seed, "nettailor", config.lam, epochs, config))
    return references + students


def main(study: Study, command: str, workers: int | None) -> int:
    """Run, print and write everything; returns the exit code of a demo."""

    def everything() -> int:
        console, began = wide_console(), time.monotonic()
        found = run(study, command=command, workers=workers)
        names = ", ".join(map(str, conclude(study, found, console)))
        console.print(f"{time.monotonic() - began:.0f} s. Written: {names}", highlight=False)
        return 0

    return answered(everything)


def run(study: Study, *, command: str, workers: int | None = None) -> list[Path]:
    """Run what is missing, and return the run directories that belong in the report.

    Args:
        study: what to run.
        command: shown in the report as the origin of every run.
        workers: processes; one per core by default.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        source = _run_source(study, bar, command)
        todo = jobs(study)
        total = bar.add_task(f"{len(todo)} runs", total=sum(j.epochs for j in todo), note="")
        count = workers or os.cpu_count() or 1
        context = fresh_processes()
        manager = SyncManager(ctx=context)
        manager.start(end_with_parent)
        with manager:
            news = manager.Queue()
            others = set(multiprocessing.active_children())
            with ProcessPoolExecutor(count, context, end_with_parent) as pool:
                done = 0
                try:
                    for students in (False, True):  # teachers must be finished before students
                        pending = {
                            pool.submit(_run_job, study, job, str(source), news, command): job
                            for job in todo
                            if (job.method in ("taps", "nettailor")) is students
                        }
                        for finished in _listen(pending, news, bar, total):
                            job, result, done = pending[finished], finished.result(), done + 1
                            line = f"{done}/{len(todo)}  {job.name}: test"
                            bar.console.print(
                                f"{line} {100 * result['test']:.1f} %", highlight=False
                            )
                except BaseException:
                    # Leaving the block would otherwise wait until every queued job was run.
                    pool.shutdown(wait=False, cancel_futures=True)
                    for worker in set(multiprocessing.active_children()) - others:
                        worker.terminate()
                    raise
    return [study.out / path for job in todo for path in _kept(study, job)]


def _kept(study: Study, job: Job) -> list[str]:
    """What the report shows of a job: of TAPS the retrained student, of NetTailor every stage."""
    if job.method == "nettailor":
        pruned = [f"{job.name}-off{count}" for count in study.counts]
        return [job.name, *(f"{name}{end}" for name in pruned for end in ("", "-retrained"))]
    return [f"{job.name}-pruned-retrained"] if job.method == "taps" else [job.name]


def _run_source(study: Study, bar: Progress, command: str) -> Path:
    torch.set_num_threads(1)  # as the workers: the same bits on a machine with more cores
    row = bar.add_task(f"source: {short(study.source.data.task)}", total=None, note="")

    class Told(Silent):
        def begin(self, total: int, done: int) -> None:
            bar.update(row, total=total, completed=done)

        def advance(self, steps: int, seen: dict[str, float]) -> None:
            bar.update(row, advance=steps)

        def epoch(self, number: int, of: int, record: dict[str, Any]) -> None:
            bar.update(row, note=f"val {100 * record['val']:.1f} %")

    result = workflow.teach(study.source, tell=lambda _: Told(), command=command)
    note = f"test {100 * result['test']:.1f} %"
    bar.update(row, total=1, completed=1, note=note)
    if bar.disable:
        bar.console.print(f"source {short(study.source.data.task)}: {note}", highlight=False)
    return study.source.out


def _listen(
    pending: dict[Future[Any], Job], news: Any, bar: Progress, total: Any
) -> Iterator[Future[Any]]:
    """Move the bar as epochs end, and hand over each job when it is done."""
    waiting = set(pending)
    while waiting:
        try:
            while True:
                bar.update(total, advance=news.get(timeout=0.2))
        except queue.Empty:
            pass
        for future in [f for f in waiting if f.done()]:
            waiting.remove(future)
            yield future


def fresh_processes() -> BaseContext:
    """Where workers come from: forked from a process that has imported all once, where that is."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tailor.workflow", "students.taps", "torch._dynamo", __name__])
    return context


def end_with_parent() -> None:
    """Let a process stop when the study was killed; its run resumes from its last checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_job(study: Study, job: Job, source: str, news: Any, command: str) -> dict[str, Any]:
    """In a worker process: teach, or adapt, prune and retrain."""
    torch.set_num_threads(1)
    told = _Epochs(news)
    out = study.out / job.name
    net = Net(backbone=study.source.net.backbone, weights=source)
    if job.tailored is not None:
        task = short(job.data.task)
        teacher = study.out / f"{task}/finetune-s{job.seed}"
        train = dataclasses.replace(study.tailoring, seed=job.seed)
        result = workflow.adapt(
            Adapt(
                out=out,
                method="nettailor",
                teacher=teacher if job.tailored.distill else None,
                data=job.data,
                net=net,
                settings=job.tailored,
                train=dataclasses.replace(train, select="last"),
            ),
            tell=told.listen,
            command=command,
        )
        for count in study.counts:
            pruned = out.with_name(f"{out.name}-off{count}")
            shrink.prune(Prune(run=out, out=pruned, count=count), command=command)
            again = Retrain(run=pruned, train=dataclasses.replace(study.reference, seed=job.seed))
            result = shrink.retrain(again, tell=told.listen, command=command)
    elif job.method == "taps":
        config = dataclasses.replace(study.taps, lam=job.lam or 0.0)
        train = dataclasses.replace(study.adapt, seed=job.seed)
        adapted = Adapt(
            out=out, method="taps", data=job.data, net=net, settings=config, train=train
        )
        workflow.adapt(adapted, tell=told.listen, command=command)
        pruned = out.with_name(out.name + "-pruned")
        shrink.prune(Prune(run=out, out=pruned), command=command)
        again = dataclasses.replace(study.retrain, seed=job.seed)
        retrained = Retrain(run=pruned, train=again)
        result = shrink.retrain(retrained, tell=told.listen, command=command)
    else:
        train = dataclasses.replace(study.reference, seed=job.seed)
        mode = cast(Mode, job.method)
        options = Teach(out=out, mode=mode, data=job.data, net=net, train=train)
        result = workflow.teach(options, tell=told.listen, command=command)
    news.put(job.epochs - told.count)  # epochs of an earlier session
    return result


class _Epochs(Silent):
    """Counts epochs, and tells the parent about each."""

    def __init__(self, news: Any) -> None:
        self.news, self.count = news, 0

    def listen(self, title: str) -> _Epochs:
        return self

    def epoch(self, number: int, of: int, record: dict[str, Any]) -> None:
        self.count += 1
        self.news.put(1)


def conclude(study: Study, found: list[Path], console: Console) -> list[Path]:
    """Print the table, and write the report and its pictures into ``study.out``."""
    runs = read_runs(found)
    records = rows(runs)
    frame = table(records)
    console.print(table_of(cells(frame)))
    console.print(caption(frame), style="dim")
    # Between pruning and retraining a network is at chance: a point that squeezes all others.
    shown_points = frame[frame["stage"] != "pruned"]
    pictures = {"accuracy.png": lambda: pareto_plot(shown_points)}
    if layered := [r for r in runs if r.result["method"] == "taps"]:
        pictures["layers.png"] = lambda: heat_map(layered)
    if study.tailored:
        mixed = [r for r in runs if r.result["method"] == "nettailor"]
        pictures["blocks.png"] = lambda: block_map(mixed)
        pictures["macs.png"] = lambda: pareto_plot(shown_points, cost="macs")
        _print_latency([r.path for r in runs if r.result["stage"] != "adapt"], console)
    report = study.out / "report.html"
    write_report(found, report)
    for name, draw in pictures.items():
        write_bytes(study.out / name, png(draw()))
    return [report, *(study.out / name for name in pictures)]


def _print_latency(paths: list[Path], console: Console) -> None:
    """Milliseconds of the first seed's networks: after all training, when the machine is quiet."""
    shown = Table(box=None, header_style="bold", title="one image, one thread, in turns")
    for i, title in enumerate(("run", "ms", "backbone ms", "ratio", "spread")):
        shown.add_column(title, justify="left" if i == 0 else "right")
    for path in paths:
        if "-s0" in path.name:
            time = workflow.speed(open_run(path).student)
            ratio = f"{time['ratio']:.2f}"
            values = f"{time['ms']:.2f}", f"{time['ms_backbone']:.2f}", ratio
            shown.add_row(str(path), *values, f"{time['spread']:.2f}")
    console.print(shown)
