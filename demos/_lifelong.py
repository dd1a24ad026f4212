"""Method x seed on one sequence of tasks: the lines of the table, and the processes that run them.

Each line with each seed is one `tailor lifelong` in a folder of its own, so that a study that was
interrupted continues, and one that grew trains only what is new. Left out: which tasks, and on
which backbone (``lifelong.py``).
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from analysis import transfer
from demos import _study
from tailor import catalog, lifelong
from tailor.errors import BadInput
from tailor.options import Lifelong
from tailor.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A line of the table: a method with settings of its own."""

    method: str  # file name in students/
    settings: Mapping[str, Any] = field(default_factory=dict)  # of its Config
    train: Mapping[str, Any] = field(default_factory=dict)  # where it trains unlike the others
    prunes: bool = False  # selects in a third of the epochs, and is retrained in the rest


# What starts from nothing takes longer steps than weights that are tuned, and so do TAPS's scores,
# which would not reach their threshold. NetTailor's gates and proxies hardly move with Adam's
# steps: all proxies are then pruned (RESULTS.md).
_FAST = {"lr": 0.01}
_SGD = {"optimizer": "sgd", "lr": 0.1}
VARIANTS = {
    "side_tuning": Variant(method="side_tuning", train=_FAST),
    "side_mlp": Variant(method="side_tuning", settings={"fusion": "mlp"}, train=_FAST),
    "features": Variant(method="probe", train=_FAST),
    "finetune": Variant(method="finetune"),
    "independent": Variant(method="independent"),
    "ewc": Variant(method="ewc"),
    "superposition": Variant(method="superposition"),
    "progressive": Variant(method="progressive", train=_FAST),
    "lwf": Variant(method="lwf"),
    "residual_adapters": Variant(method="residual_adapters", train=_FAST),
    "taps": Variant(
        method="taps",
        settings={"lam": 1.0, "price_warmup": 1.0},
        train={"lr_scores": 0.01},
        prunes=True,
    ),
    "nettailor": Variant(method="nettailor", train=_SGD, prunes=True),
}
PUBLISHED = {  # baselines as the published program has them, defects included
    "finetune_published": Variant(method="finetune", settings={"statistics": "shared"}),
    **{
        f"{name}_published": dataclasses.replace(VARIANTS[name], settings={"published": True})
        for name in ("ewc", "superposition", "progressive")
    },
}


@dataclass(frozen=True)
class Job:
    """One method with one seed on the whole sequence."""

    name: str
    seed: int
    options: Lifelong[Any]


def chosen(
    names: Sequence[str], option: Sequence[str], *, published: bool = False
) -> dict[str, Variant]:
    """Some lines of the table.

    Args:
        names: of ``VARIANTS`` or ``PUBLISHED``.
        option: options to change, METHOD.NAME=VALUE.
        published: also the published form of those that have one.

    Raises:
        BadInput: a line or an option that there is not.
    """
    known = VARIANTS | PUBLISHED
    for name in names:
        if name not in known:
            raise catalog.unknown("method", name, known, shown_by="--help")
    found = {name: known[name] for name in names}
    if published:
        found |= {n: v for n, v in PUBLISHED.items() if v.method in names}
    for text in option:
        line, _, said = text.partition(".")
        name, equal, value = said.partition("=")
        if line not in found or not equal:
            raise BadInput(f"option {text!r}: give METHOD.NAME=VALUE of one of {', '.join(found)}")
        found[line] = _with(found[line], name, value, text)
    return found


def _with(variant: Variant, name: str, value: str, text: str) -> Variant:
    """A variant with one option of its method, or of its training, set from text."""
    config = catalog.load("students", variant.method, "method").Config
    for kind, place in ((config, "settings"), (Settings, "train")):
        before = {f.name: getattr(kind(), f.name) for f in dataclasses.fields(kind)}
        if name in before:
            read = _reader(before[name])
            try:
                changed = {**getattr(variant, place), name: read(value)}
            except ValueError:
                raise BadInput(f"option {text!r}: {value!r} is no {read.__name__}") from None
            return dataclasses.replace(variant, **{place: changed})
    raise BadInput(f"option {text!r}: neither {variant.method} nor its training has a {name!r}")


def _reader(before: Any) -> Any:
    """What reads text into the type that an option has; of one that may be None a number."""
    if isinstance(before, bool):
        return _truth
    return float if before is None else type(before)


def _truth(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(value)
    return value == "true"


def run(todo: list[Job], command: str, workers: int, console: Console) -> list[Path]:
    """Learn what is not learned yet; a method that fails does not stop the others.

    Returns:
        The directories of the sequences that were learned.
    """
    found, count = [], 0
    for job, result in _results(todo, command, workers):
        count += 1
        said = f"{count}/{len(todo)}  {job.name} seed {job.seed}: "
        if isinstance(result, str):
            console.print(f"{said}failed: {result}", highlight=False, markup=False)
            continue
        found.append(job.options.out)
        console.print(
            f"{said}average {100 * transfer.average(result['accuracy']):.1f} %, forgetting "
            f"{100 * transfer.forgetting(result['accuracy']):.1f}, "
            f"{sum(result['seconds']):.0f} s of training",
            highlight=False,
        )
    return found


def _results(
    todo: list[Job], command: str, workers: int
) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    """Each job, and its matrix or what went wrong, as they end."""
    context = _study.fresh_processes()
    with ProcessPoolExecutor(workers, context, _study.end_with_parent) as pool:
        pending = {pool.submit(_learn, job, command): job for job in todo}
        try:
            for finished in as_completed(pending):
                yield pending[finished], finished.result()
        except BaseException:
            # Leaving the block would otherwise wait until every queued job was run.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _learn(job: Job, command: str) -> dict[str, Any] | str:
    """In a worker process: one sequence; what the user can mend is told as text."""
    torch.set_num_threads(1)
    try:
        return lifelong.run(job.options, command=command)
    except BadInput as error:
        return str(error)
