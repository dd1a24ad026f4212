"""Questions to finished runs: the verbs ``layers``, ``blocks``, ``agreement``, ``pareto`` and more.

Each verb is a dataclass of options here and a module of the same name in ``analysis/``, which reads
runs and never trains. What an answer needs and no run has yet (latency, the worth of a layer) is
measured first, once, and stored in the run. Left out: parsing (``cli.py``), and what is answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tailor.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every question is asked of, and where its answer goes."""

    runs: Annotated[tuple[Path, ...], "positional"]
    """Run directories, or the directory of a sweep: all its finished runs."""
    out: Path | None = None
    """Also write the picture (.png, .svg, .pdf) or the table (.csv, .md, .json)."""


@dataclass(frozen=True, kw_only=True)
class Layers(Question):
    """Which layers did each task adapt, and how far did their weights move?

    A heat map: a row per task and setting, a column per layer, input on the left. In the terminal
    every layer is one character, darker the more seeds adapted it.

    Example: tailor layers runs/svhn/taps-* --out layers.png

    Example: tailor layers sweep --value change --group kind
    """

    value: Literal["on", "change"] = "on"
    """Share of seeds that adapted the layer, or the relative change of its weights."""
    group: Literal["stage", "kind"] = "stage"
    """Layers by the part of the network they are in, or by what they do in their block."""


@dataclass(frozen=True, kw_only=True)
class Blocks(Question):
    """Which universal blocks did each task keep? For methods that replace blocks, as NetTailor.

    A heat map of the gates of the blocks; empty where a block was removed.

    Example: tailor blocks runs/svhn/nt-*-pruned --out blocks.png
    """


@dataclass(frozen=True, kw_only=True)
class Agreement(Question):
    """Do seeds choose the same layers, and which tasks choose alike?

    Name runs of several seeds or of several tasks. The common choice of every two runs is compared
    with that of random choices of the same sizes.

    Example: tailor agreement sweep --out agreement.png

    Example: tailor agreement runs/svhn/taps-0.3-s* runs/digits/taps-0.3-s*
    """


@dataclass(frozen=True, kw_only=True)
class Pareto(Question):
    """Accuracy against cost: which setting is worth its parameters, its MACs, its milliseconds?

    Means over seeds with 95 % confidence intervals; `front` marks what nothing else beats in both.

    Example: tailor pareto sweep --cost macs --out pareto.png
    """

    cost: Literal["params", "macs", "latency"] = "params"
    """Added parameters, MACs, or wall time of one image in percent of the backbone's; latency is
    measured where a run has none yet, so let the machine do nothing else."""


@dataclass(frozen=True, kw_only=True)
class Budget(Question):
    """What does a task store beside the backbone, and what do K tasks cost together?

    Stacked bars of every part, the size of one trunk with K such tasks, and of the tasks that were
    really given, one after the other, against a network for each.

    Example: tailor budget sweep --tasks 1 2 5 10 --out budget.png
    """

    tasks: tuple[int, ...] = (1, 2, 3, 5, 10)
    """Numbers of tasks to tell the size for."""


@dataclass(frozen=True, kw_only=True)
class Scores(Question):
    """What does λ do over training: how do scores fall, and what stays open?

    The picture has a panel per task and λ with a line per layer; the table a line per epoch. For
    NetTailor it shows the gates of the universal blocks.

    Example: tailor scores runs/svhn/taps-* --out scores.png
    """


@dataclass(frozen=True, kw_only=True)
class Worth(Question):
    """What is each adapted layer worth: how much accuracy is lost when its delta is closed?

    Every open delta (block or proxy, for NetTailor) is closed alone after training, everything else
    stays as trained. What is measured is stored in the run. The answer correlates it with scores.

    Example: tailor worth runs/svhn/taps-0.3-s*-retrained --split test --out worth.png
    """

    split: Literal["train", "val", "test"] = "val"
    """Which images to measure on."""
    device: str = "auto"
    """Where to measure."""
    root: str | None = None
    """Folder with the data sets, if it moved since."""


@dataclass(frozen=True, kw_only=True)
class Decathlon(Question):
    """Which method does best on many domains together, and at what size?

    A line per method, a column per domain, the size of one trunk with all of them, and the score of
    the Visual Decathlon: 1000 points per domain without error, 250 for fine-tuning's. The real ten
    domains are scored against the published fine-tuning and stand beside the published results.

    Example: tailor decathlon runs/sweep --out decathlon.png

    Example: tailor decathlon runs/*/parallel runs/*/finetune --baseline finetune
    """

    baseline: str = "auto"
    """What earns 250 points: published, or a method or setting among the runs; published on the
    domains of the Visual Decathlon and finetune elsewhere, by default."""


@dataclass(frozen=True, kw_only=True)
class Forgetting(Question):
    """Tasks learned one after the other: how well, how much is forgotten, at what size?

    RUNS are directories of `tailor lifelong`, or a folder of them: one sequence of tasks, any
    methods and seeds. A line per method: average metric and rank after the last task, forgetting,
    backward and forward transfer, rigidity, parameters, memory, time. The picture has the matrix of
    every method (task learned x task measured) and curves over the sequence.

    Example: tailor forgetting runs/domains/* --out forgetting.png

    Example: tailor forgetting runs/icifar --oracle finetune --json
    """

    runs: Annotated[tuple[Path, ...], "positional"]
    """Directories of `tailor lifelong`, or a folder of them."""
    oracle: str = "independent"
    """The method, or setting among the runs, with a network for each task: rigidity and
    intransigence compare with it."""


OPTIONS: dict[str, type[Question]] = {
    "layers": Layers,
    "blocks": Blocks,
    "agreement": Agreement,
    "pareto": Pareto,
    "budget": Budget,
    "scores": Scores,
    "worth": Worth,
    "decathlon": Decathlon,
    "forgetting": Forgetting,
}
QUESTIONS = {
    "layers": "which layers were adapted, and how much",
    "blocks": "which universal blocks were kept",
    "agreement": "whether seeds, and tasks, choose the same layers",
    "pareto": "accuracy against parameters, MACs or latency, and the Pareto front",
    "scores": "what λ does to the scores over training",
    "worth": "accuracy lost when a layer's delta is closed, against its score",
    "budget": "what a task stores, and what many tasks cost",
    "decathlon": "methods over many domains: accuracy, parameters, score",
    "forgetting": "tasks one after the other: accuracy, forgetting, transfer, growth",
}
_ELSEWHERE = ("runs", "out", "device", "root")  # options that no analysis needs


def ask(options: Question, *, tell: Callable[[str], Any] | None = None) -> Any:
    """Answer a question; with ``out`` the answer is also written.

    Args:
        options: one of ``OPTIONS``.
        tell: who is told how far a measurement is; nobody by default.

    Returns:
        The ``Answer`` of ``analysis/answer.py``.

    Raises:
        BadInput: no run, a run that cannot be read, runs that the question cannot be asked of, or
            a place that cannot be written.
    """
    from tailor import catalog

    verb = next(name for name, kind in OPTIONS.items() if type(options) is kind)
    module = catalog.load("analysis", verb, "analysis")
    paper, rows = (catalog.load("analysis", name, "analysis") for name in ("answer", "rows"))
    if not options.runs:
        raise BadInput(f"no run given; name run directories, as in `tailor {verb} runs/svhn/*`")
    if options.out is not None:
        paper.check_place(options.out)
    read = getattr(module, "read", rows.read_runs)  # a question may be of other folders than runs
    runs = read(options.runs)
    if _measured(options, module, runs, tell):
        runs = read(options.runs)
    said = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name not in _ELSEWHERE
    }
    answer = module.answer(runs, **said)
    if unfinished := catalog.load("analysis", "runs", "analysis").left_out(options.runs):
        said_too = f"{unfinished} runs of the sweep are not finished and left out."
        answer = dataclasses.replace(answer, text=f"{answer.text} {said_too}")
    if options.out is not None:
        paper.write(answer, options.out)
    return answer


def _measured(
    options: Question, module: Any, runs: Sequence[Any], tell: Callable[[str], Any] | None
) -> bool:
    """Measure what the answer needs and no run has; whether there was something to measure."""
    if isinstance(options, Worth):
        from tailor.worth import measure_missing

        paths = [run.path for run in module.measurable(runs)]
        where: dict[str, Any] = {"device": options.device, "root": options.root}
        return measure_missing(paths, split=options.split, tell=tell, **where)
    if isinstance(options, Pareto) and options.cost == "latency":
        from tailor.worth import time_runs

        return time_runs([run.path for run in runs if run.latency is None], tell)
    return False


def for_machines(answer: Any) -> dict[str, Any]:
    """What ``--json`` prints: title and rows."""
    from tailor import catalog

    records = catalog.load("analysis", "answer", "analysis").records(answer.table)
    return {"title": answer.title, "rows": records}


def show(answer: Any, out: Path | None) -> None:
    """Print an answer: title, table, what it means."""
    from rich.table import Table

    from tailor import catalog
    from tailor.progress import wide_console

    texts = catalog.load("analysis", "answer", "analysis").texts
    frame = texts(answer.table) if answer.shown is None else answer.shown
    table = Table(box=None, header_style="bold")
    for place, name in enumerate(frame.columns):
        left = place == 0 or not _are_numbers(frame[name])
        table.add_column(str(name), justify="left" if left else "right")
    for line in frame.itertuples(index=False, name=None):
        table.add_row(*line)
    console = wide_console()
    console.print(answer.title, style="bold", highlight=False, markup=False)
    console.print(table, markup=False)
    console.print(answer.text, highlight=False, markup=False)
    if out is not None:
        console.print(f"written: {out}", highlight=False, markup=False)


def _are_numbers(column: Sequence[str]) -> bool:
    return all(text[:1] in "–-0123456789×" for text in column)
