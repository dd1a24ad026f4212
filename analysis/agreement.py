"""Do seeds choose the same layers, and do tasks? Pairs of runs, their common choice, and chance.

The choice of a run is the set of layers that it adapted, or of universal blocks that it kept, in
the last stage of its experiment. Two choices agree by their Jaccard index, |A ∩ B| / |A ∪ B|. Two
empty sets agree wholly (1): both say that nothing must change; an empty and another set not at all
(0). Random sets of the same sizes agree by some amount as well, which is computed and not drawn:
the overlap of a and b of n layers is hypergeometric. They know nothing of prices, so a part of what
lies above chance is that both runs found the same layers cheap: how far the choice is that of the
smallest layers is told beside it.

Left out: runs that choose nothing (references), and pairs of different settings.

Sources: P. Jaccard, Étude comparative de la distribution florale, 1901; C. Spearman, 1904.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import canvas
from analysis.answer import Answer
from analysis.blocks import block_facts
from analysis.canvas import GRID, INK, MUTED
from analysis.layers import layer_facts
from analysis.rows import Run, final, gates_blocks, label, origin, rows, several_priced
from analysis.statistic import chance, jaccard, mean, spearman
from analysis.table import number
from tailor.errors import BadInput

_MOST = 6  # settings with a matrix of their own; of more, their mean is drawn
_ROOMY = 7  # tasks; of more, cells have no room for a second number, and points no colours
_UNDER_INK = 0.6  # opacity of the darkest cell, so that numbers can be read on it
_NUMBERS = ("jaccard", "chance", "above", "weighted", "cheapest", "spearman")
_SHORT = {"cheapest": "cheap", "spearman": "ρ"}  # for narrow terminals


@dataclass(frozen=True)
class Choice:
    """What one run chose, out of what, and what it scored."""

    task: str
    setting: str
    chosen: frozenset[str]
    weights: Mapping[str, int]  # parameters of everything that could be chosen
    scores: Mapping[str, float]  # empty where unknown


def answer(runs: Sequence[Run]) -> Answer:
    """Agreement of every two runs of one setting, as means per pair of tasks.

    Raises:
        BadInput: no run that chooses, runs of different backbones, or no two runs to compare.
    """
    choices = read_choices(runs)
    frame = agreement_table(choices)
    if frame.empty:
        raise BadInput(
            f"{len(choices)} run{'s' * (len(choices) > 1)} of different settings cannot be "
            "compared; name runs of several seeds, or of several tasks with the same method and λ"
        )
    what = "blocks" if any(map(gates_blocks, runs)) else "layers"
    shown = frame.reset_index()[["setting", "task", "other", "pairs"]].astype(str)
    shown["other"] = [
        "seeds" if a == b else b for a, b in zip(shown.task, shown.other, strict=True)
    ]
    for name, title in (("size", what), *((n, _SHORT.get(n, n)) for n in _NUMBERS)):
        shown[title] = [number(value, ".1f" if name == "size" else ".2f") for value in frame[name]]
    if shown["task"].nunique() == 1 and set(shown["other"]) == {"seeds"}:
        shown = shown.drop(columns=["task", "other"])
    return Answer(
        f"Agreement of the chosen {what}, between seeds and between tasks",
        "jaccard: common layers (or blocks) divided by those that either run has, mean over pairs "
        "of runs; two empty choices count as 1. chance: its exact expectation for random sets of "
        "the same sizes. above: (jaccard - chance) / (1 - chance), 0 is chance, 1 is the same "
        "choice. weighted: by parameters. cheap: of the choice itself with as many of the smallest "
        f"{what}, 1 if nothing but size decided. ρ: Spearman's rank correlation of all scores. "
        "“seeds” compares runs of one task.",
        frame,
        agreement_plot(choices),
        shown,
    )


def read_choices(runs: Sequence[Run]) -> list[Choice]:
    """What every run chose, of each experiment in its last stage.

    Raises:
        BadInput: no run that chooses, or runs of different backbones.
    """
    gated = [run for row, run in zip(rows(runs), runs, strict=True) if row["gated"]]
    if not gated:
        raise BadInput("none of these runs chose layers or blocks; name runs of taps or nettailor")
    of_layers = [run for run in gated if not gates_blocks(run)]
    if 0 < len(of_layers) < len(gated):
        raise BadInput(
            "some of these runs chose layers and some blocks, which have nothing in common; name "
            "the runs of one method at a time"
        )
    facts = layer_facts(of_layers) if of_layers else block_facts(gated)
    weights = dict(facts["params"])
    found = final(gated)
    priced = several_priced([row for row, _ in found])
    choices = []
    for row, members in found:
        # Every experiment is in its last stage: to name it would only keep tasks apart.
        setting = label(row | {"stage": "adapt"}, price=row["method"] in priced)
        for run in members:
            chosen = frozenset(chosen_of(run))
            choices.append(Choice(row["task"], setting, chosen, weights, scores_of(run)))
    return choices


def chosen_of(run: Run) -> list[str]:
    """The layers that a run adapted, or the universal blocks that it kept."""
    if gates_blocks(run):
        return [block["name"] for block in run.result["blocks"] if block["kept"]]
    return [state["name"] for state in run.result["layer_states"] if state["on"]]


def scores_of(run: Run) -> dict[str, float]:
    """The learned score of every layer, or the gate of every universal block, when it was chosen.

    A pruned student has no scores left: those of the run that it came from are told. Empty where
    that run is gone.
    """
    source = origin(run)
    if source is None:
        return {}
    if gates_blocks(source):
        gates = source.result["gates"]
        return {gate["name"]: gate["value"] for gate in gates if gate["kind"] == "universal"}
    states = source.result["layer_states"]
    return {s["name"]: s["score"] for s in states if s["score"] is not None}


def agreement_table(choices: Sequence[Choice]) -> pd.DataFrame:
    """Every setting, and every pair of its tasks with itself and the others.

    Returns:
        Index: ``setting``, ``task``, ``other`` (the same task: pairs of its seeds). Columns:
        ``pairs`` of runs; means over them: ``size`` of the choices of ``task``, ``other_size``,
        ``jaccard``, ``chance``, ``above`` ((jaccard - chance) / (1 - chance), NaN where chance is
        1), ``weighted`` (Jaccard by parameters), ``cheapest`` (of each choice with as many of the
        parts with the fewest parameters), ``spearman`` of the scores.
    """
    lines = []
    for setting in dict.fromkeys(choice.setting for choice in choices):
        members = [choice for choice in choices if choice.setting == setting]
        tasks = list(dict.fromkeys(choice.task for choice in members))
        for task, other in itertools.combinations_with_replacement(tasks, 2):
            ours, theirs = ([c for c in members if c.task == name] for name in (task, other))
            pairs = list(itertools.combinations(ours, 2))
            if task != other:
                pairs = list(itertools.product(ours, theirs))
            if pairs:
                names = {"setting": setting, "task": task, "other": other}
                lines.append(names | _compared(pairs, ours, theirs))
    columns = ["setting", "task", "other", "pairs", "size", "other_size", *_NUMBERS]
    return pd.DataFrame(lines, columns=columns).set_index(["setting", "task", "other"])


def _compared(
    pairs: Sequence[tuple[Choice, Choice]], ours: Sequence[Choice], theirs: Sequence[Choice]
) -> dict[str, float]:
    found = [
        (
            jaccard(a.chosen, b.chosen),
            chance(len(a.chosen), len(b.chosen), len(a.weights)),
            jaccard(a.chosen, b.chosen, a.weights),
            (_cheapness(a) + _cheapness(b)) / 2,
            spearman(a.scores, b.scores),
        )
        for a, b in pairs
    ]
    common, expected, weighted, cheapest, ranks = map(mean, zip(*found, strict=True))
    return {
        "pairs": len(pairs),
        "size": mean([len(c.chosen) for c in ours]),
        "other_size": mean([len(c.chosen) for c in theirs]),
        "jaccard": common,
        "chance": expected,
        "above": math.nan if expected > 1 - 1e-12 else (common - expected) / (1 - expected),
        "weighted": weighted,
        "cheapest": cheapest,
        "spearman": ranks,
    }


def _cheapness(choice: Choice) -> float:
    """The Jaccard index with as many of the smallest parts; of equal ones the first in order."""
    smallest = sorted(choice.weights, key=lambda name: choice.weights[name])
    return jaccard(choice.chosen, smallest[: len(choice.chosen)])


def agreement_plot(choices: Sequence[Choice]) -> Figure:
    """A matrix of tasks per setting, and the agreement of seeds over the number of layers."""
    frame = agreement_table(choices)
    tasks = list(dict.fromkeys(choice.task for choice in choices))
    matrices = _matrices(frame, tasks) if len(tasks) > 1 else {}
    between_seeds = frame[[task == other for _, task, other in frame.index]]
    panels = len(matrices) + (len(between_seeds) > 0)
    columns = 2 if panels == 4 else min(panels, 3)
    high = max(2.9, 1.5 + 0.42 * len(tasks) * bool(matrices))
    figure = canvas.figure(max(4.4 * columns, 6.0), 0.3 + high * math.ceil(panels / columns))
    axes = list(figure.subplots(math.ceil(panels / columns), columns, squeeze=False).ravel())
    for place, (setting, matrix) in zip(axes, matrices.items(), strict=False):
        _draw_matrix(place, setting, *matrix, tasks)
    if len(between_seeds):
        _draw_seeds(axes[len(matrices)], between_seeds, tasks, len(choices[0].weights))
    for place in axes[panels:]:
        place.remove()
    if matrices:
        brackets = ", in brackets that of random sets of their sizes"
        canvas.remark(figure, f"Jaccard index of chosen sets{brackets * (len(tasks) <= _ROOMY)}")
    return figure


def _matrices(
    frame: pd.DataFrame, tasks: Sequence[str]
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Jaccard index and chance of each setting; of many settings, their means."""
    settings = list(dict.fromkeys(frame.index.get_level_values("setting")))
    groups = {setting: [setting] for setting in settings}
    if len(settings) > _MOST:
        groups = {f"Mean over {len(settings)} settings": settings}
    found = {}
    for title, members in groups.items():
        known = frame[frame.index.get_level_values("setting").isin(members)]
        known = known[["jaccard", "chance"]].groupby(level=["task", "other"], sort=False).mean()
        square = [pd.DataFrame(math.nan, index=tasks, columns=tasks) for _ in range(2)]
        for (task, other), line in known.iterrows():
            for matrix, name in zip(square, ("jaccard", "chance"), strict=True):
                matrix.loc[task, other] = matrix.loc[other, task] = line[name]
        found[title] = (square[0], square[1])
    return found


def _draw_matrix(
    axes: Axes, title: str, found: pd.DataFrame, expected: pd.DataFrame, tasks: Sequence[str]
) -> None:
    canvas.dress(axes, title=canvas.plain(title), grid="")
    shade = canvas.shade(canvas.palette(["m"])["m"], _UNDER_INK)
    axes.imshow(found.to_numpy(), cmap=shade, vmin=0, vmax=1, aspect="auto")
    for i, j in itertools.product(range(len(tasks)), repeat=2):
        if not math.isnan(found.iloc[i, j]):
            text = f"{found.iloc[i, j]:.2f}"
            if len(tasks) <= _ROOMY:
                text += f"\n({expected.iloc[i, j]:.2f})"
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=INK)
    names = [canvas.plain(task, 16) for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(tasks)), names, fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GRID)


def _draw_seeds(axes: Axes, frame: pd.DataFrame, tasks: Sequence[str], whole: int) -> None:
    """A point per task and setting, and the line on which random sets of equal sizes lie."""
    canvas.dress(
        axes, title="Between seeds, over the size of the choice", x=f"Chosen, of {whole}",
        y="Jaccard index", grid="both",
    )  # fmt: skip
    sizes = range(1, whole + 1)
    axes.plot(sizes, [chance(k, k, whole) for k in sizes], color=MUTED, lw=1.2, ls=(0, (4, 3)))
    few = len(tasks) <= _ROOMY
    colours = canvas.palette([f"task {task}" if few else "task" for task in tasks])
    for task in tasks:
        points = frame[frame.index.get_level_values("task") == task].sort_values("size")
        axes.plot(
            points["size"], points["jaccard"], marker="o", ms=4.5, alpha=0.75, lw=1,
            color=colours[f"task {task}" if few else "task"],
            label=canvas.plain(task, 20) if few else None,
        )  # fmt: skip
    axes.plot([], [], color=MUTED, lw=1.2, ls=(0, (4, 3)), label="random sets")
    axes.set(xlim=(0, 1.02 * whole), ylim=(0, 1.04))
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, loc="lower right")
