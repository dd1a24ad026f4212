"""What does one more task cost? The backbone, then every part that a task adds to it.

Left: the parts of one task in percent of the backbone, means over seeds and tasks. Right: the
size of one trunk with K tasks, in trunks, where what the tasks share (the basis of their adapters)
is there once, and dots for the tasks that were really given, one after the other. Heads are a bar
of their own and in no multiple, for every method pays them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import canvas
from analysis.answer import Answer
from analysis.canvas import INK, MUTED
from analysis.rows import Run, label, rows, several_priced
from analysis.table import number, settled, table
from tailor.errors import BadInput

PARTS = (
    *("universal", "shared", "deltas", "adapters", "proxies", "masks", "norms", "scores"),
    "head",
)
TASKS = (1, 2, 3, 5, 10)  # how many tasks the multiple is told for

_COLOURS = {
    "deltas": 0,
    "norms": 1,
    "scores": 8,
    "adapters": 4,
    "proxies": 9,
    "masks": 6,
    "shared": 3,
    "head": 2,
}


def answer(runs: Sequence[Run], tasks: Sequence[int] = TASKS) -> Answer:
    """The parts of one task, the size of K tasks like it, and of the tasks really given.

    Raises:
        BadInput: a number of tasks below 1, or runs of several backbones.
    """
    if wrong := [str(count) for count in tasks if count < 1]:
        raise BadInput(f"--tasks {wrong[0]}: a trunk serves 1 task or more; give --tasks 1 2 5 10")
    frame = table(rows(runs))
    backbones = list(dict.fromkeys(frame["backbone"]))
    if len(backbones) > 1:
        raise BadInput(
            f"these runs share {len(backbones)} trunks ({', '.join(backbones)}); name the runs of "
            "one backbone at a time"
        )
    tasks = tuple(sorted(set(tasks))) or TASKS
    parts = _different(budget_table(frame, tasks)).set_index("label").rename_axis("setting")
    given = given_table(frame)
    real = list(given.columns)
    told = parts.drop(columns="method").join(given)
    text = (
        "Parts are in percent of the backbone's parameters, means over seeds and tasks; ×K is one "
        "trunk with K such tasks, in trunks without heads. A network for each task is K trunks."
    )
    if real:
        text += (
            f" “these {len(real)}” is the trunk with the tasks really given, means over seeds; "
            f"files and --json also have it after each one ({', '.join(real)})."
        )
    shown = pd.DataFrame({"Setting": parts.index})
    for name in PARTS[1:]:
        if parts[name].any():
            shown[f"{name}, %"] = [number(v, ".3g") for v in parts[name]]
    titles = {f"×{count}": f"×{count}" for count in tasks}
    for name, title in (titles | {last: f"these {len(real)}" for last in real[-1:]}).items():
        shown[title] = [number(v, ".2f") for v in told[name]]
    return Answer("What a task costs", text, told, budget_bars(frame, tasks), shown)


def budget_table(frame: pd.DataFrame, tasks: Sequence[int] = TASKS) -> pd.DataFrame:
    """The parts of one task, and the multiple for a growing number of tasks like it.

    Args:
        frame: what ``analysis.table.table`` returned, of one backbone. Of a student that was
            pruned, the stage before is left out.
        tasks: numbers of tasks.

    Returns:
        One line per method, λ, price and stage, averaged over tasks. Columns: ``label``,
        ``method``, ``PARTS`` in percent of the backbone's parameters, and ``×K`` for each K of
        ``tasks``.
    """
    frame = settled(frame)
    parts = frame[["method"]].copy()
    parts.insert(0, "label", _labels(frame))
    parts["universal"] = 100.0
    for name in PARTS[1:]:
        parts[name] = frame[f"{name}_percent"]
    shared = frame["shared_percent"] / 100
    for count in tasks:
        parts[f"×{count}"] = 1 + shared + count * (frame["multiple"] - 1 - shared)
    columns = [*PARTS, *(f"×{count}" for count in tasks)]
    return parts.groupby(["label", "method"], sort=False)[columns].mean().reset_index()


def given_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One trunk with the tasks that were really given, one after the other, in trunks.

    Args:
        frame: as of ``budget_table``.

    Returns:
        Index: settings; a column ``+ task`` for each task in the order of the frame: backbone and
        all tasks up to this one, divided by the backbone, heads left out. NaN from the first task
        on that a setting was not run for; no column where there is one task only.
    """
    frame = settled(frame)
    tasks = list(dict.fromkeys(frame["task"]))
    shared = frame["shared_percent"] / 100
    frame = frame.assign(label=_labels(frame), shared=shared, added=frame["multiple"] - 1 - shared)
    added = frame.pivot_table(index="label", columns="task", values="added", sort=False)
    if len(tasks) < 2:
        return added.iloc[:, :0]
    once = frame.groupby("label", sort=False)["shared"].max()
    sums = added.reindex(columns=tasks).cumsum(axis=1, skipna=False).add(1 + once, axis=0)
    return sums.set_axis([f"+ {task}" for task in tasks], axis=1)


def budget_bars(frame: pd.DataFrame, tasks: Sequence[int] = TASKS) -> Figure:
    """Draw ``budget_table`` and ``given_table``: stacked bars, and lines over the tasks."""
    parts = _different(budget_table(frame, tasks))
    figure = canvas.figure(10.5, max(3.1, 1.3 + 0.27 * len(parts)))
    bars, lines = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.5, 1)})
    _draw_bars(bars, parts, f"×{tasks[0]}")
    _draw_multiples(lines, parts, given_table(frame), max(tasks))
    figure.legend(
        *bars.get_legend_handles_labels(), loc="outside lower left", ncols=7, frameon=False,
        fontsize=8.5, labelcolor=INK, columnspacing=1.3, handlelength=1.2,
    )  # fmt: skip
    return figure


def _different(parts: pd.DataFrame) -> pd.DataFrame:
    """Retraining changes no size: one line for both stages is enough."""
    return parts.loc[~parts.drop(columns="label").duplicated(keep="last")]


def _labels(frame: pd.DataFrame) -> list[str]:
    """Settings without their task, whose lines are averaged."""
    lines = frame.to_dict("records")
    priced = several_priced(lines)
    return [label(line, price=line["method"] in priced) for line in lines]


def _draw_bars(axes: Axes, parts: pd.DataFrame, told: str) -> None:
    canvas.dress(axes, title="Parameters of one task", x="% of the backbone", grid="x")
    colours = sns.color_palette("colorblind")
    places = range(len(parts))
    start = pd.Series(0.0, index=parts.index)
    for name in PARTS:
        width = parts[name].fillna(0.0)
        if not width.any():
            continue
        axes.barh(
            places, width, left=start, height=0.68, label=name, zorder=2,
            color=canvas.NEUTRAL if name == "universal" else colours[_COLOURS[name]],
        )  # fmt: skip
        start = start + width
    for place, (end, multiple) in enumerate(zip(start, parts[told], strict=True)):
        several = "" if told == "×1" else f" for {told[1:]} tasks"
        text = "" if pd.isna(multiple) else f"×{multiple:.3g}{several}"
        axes.annotate(
            text, (end, place), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=8, color=MUTED,
        )  # fmt: skip
    axes.set_yticks(list(places), [canvas.plain(name, 34) for name in parts["label"]])
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * start.max())


def _draw_multiples(axes: Axes, parts: pd.DataFrame, given: pd.DataFrame, last: int) -> None:
    """A line per setting to ``last`` tasks like the mean one; dots are the tasks really given."""
    canvas.dress(axes, title="One trunk with K tasks, in trunks", x="Tasks K", grid="both")
    colours = canvas.palette(parts["method"])
    last = max(last, given.shape[1], 2)
    axes.plot([0, last], [0, last], color=MUTED, lw=1, ls=(0, (4, 3)))
    ends = parts.assign(end=1 + last * _added(parts)).dropna(subset=["end"]).sort_values("end")
    top = max(float(ends["end"].max()) if len(ends) else 1.0, last)
    names = [("a network each", float(last))]
    for line in ends.to_dict("records"):
        end, colour = line["end"], colours[line["method"]]
        axes.plot([0, last], [1, end], color=colour, lw=1.5)
        if line["label"] in given.index:
            real = given.loc[line["label"]]
            axes.plot(range(1, len(real) + 1), real, color=colour, lw=0, marker="o", ms=3.5)
        names.append((f"{line['label']}: ×{end:.3g}", end))
    free = -1.0  # the lowest height that no label covers yet
    for text, end in sorted(names, key=lambda name: name[1]):
        if end >= free:
            free = end + 0.05 * top
            axes.annotate(
                canvas.plain(text, 38), (last, end), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8, color=INK,
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, last)
    axes.set_ylim(bottom=0)


def _added(parts: pd.DataFrame) -> pd.Series:
    """What one task adds, in trunks: the first multiple that the table tells, per task."""
    name = next(column for column in parts.columns if str(column).startswith("×"))
    return (parts[name] - 1) / int(str(name)[1:])
