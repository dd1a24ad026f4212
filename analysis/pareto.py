"""Accuracy against cost: which λ is worth its weights, or its compute?

The cost is what the task adds in parameters, or what its network needs in MACs or wall time. One
series per method and stage, a point per λ; thick bars are the spread over seeds, thin ones the
95 % confidence interval of the mean. Points that no other one beats in both accuracy and cost form
the Pareto front. Fine-tuning and the probe are the two ends to compare with: everything may change,
nothing may.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from analysis import canvas
from analysis.answer import Answer
from analysis.canvas import INK, MUTED, PAPER
from analysis.rows import Run, rows, several_priced
from analysis.table import number, settled, table
from tailor.errors import BadInput

Cost = Literal["params", "macs", "latency"]

REFERENCES = ("finetune", "scratch", "probe")
# Places for a label around its point in pixels; a 0 is centred, a negative one ends there.
_BESIDE = ((8, -18), (-8, 6), (8, 6), (-8, -18), (0, 13), (0, -26), (14, -5), (-14, -5))
_ACCURACIES = (*range(0, 91, 10), 95, 98, 99, 99.5, 100)
COSTS: dict[Cost, tuple[str, str]] = {  # column of the table, title of the axis
    "params": ("task_percent", "Added parameters, % of the backbone (without head)"),
    "macs": ("macs_ratio", "MACs of the network, % of the backbone"),
    "latency": ("latency_ratio", "Wall time of one image, % of the backbone's"),
}
NAMES: dict[Cost, str] = {
    "params": "added parameters",
    "macs": "MACs",
    "latency": "latency",
}
_MARKERS = {"adapt": "o", "pruned": "v", "retrained": "D"}


def front(cost: Sequence[float], accuracy: Sequence[float]) -> list[bool]:
    """Which points no other point beats: less or equal cost and more or equal accuracy.

    Of two equal points both are on the front. A point with an unknown value is never on it.
    """
    points = list(zip(cost, accuracy, strict=True))

    def beaten(x: float, y: float) -> bool:
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)

    return [not (math.isnan(x) or math.isnan(y) or beaten(x, y)) for x, y in points]


def trade_off(frame: pd.DataFrame, within: float = 1.0) -> Any:
    """Index of the line with the best trade-off, chosen by validation; test decides nothing.

    Of the methods, the one with the least cost whose accuracy is less than ``within`` points below
    fine-tuning; where there is none, or no fine-tuning, the most accurate. The cost is
    ``priced_in(frame)``. Of a student that was pruned, the stage before is no candidate.

    Args:
        frame: lines of ``analysis.table.table`` of one task and backbone.
        within: percentage points.

    Returns:
        A label of ``frame.index``; None where no method has a known accuracy.
    """
    split = "test" if frame["val"].isna().all() else "val"
    cost = COSTS[priced_in(frame)][0]
    methods = methods_of(settled(frame)).dropna(subset=[split, cost])
    if methods.empty:
        return None
    goal = frame.loc[frame["method"] == "finetune", split].max() - within
    close = methods[methods[split] >= goal]  # empty as well where the goal is NaN
    if close.empty:
        return methods.sort_values([split, cost], ascending=[False, True]).index[0]
    return close.sort_values([cost, split], ascending=[True, False]).index[0]


def methods_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines of a table that are no references."""
    return frame[~frame["method"].isin(REFERENCES)]


def priced_in(frame: pd.DataFrame) -> Cost:
    """What settings are compared by: MACs if all of them remove blocks, else added parameters."""
    return "macs" if set(methods_of(frame)["gated"]) == {"blocks"} else "params"


def answer(runs: Sequence[Run], cost: Cost = "params") -> Answer:
    """Accuracy and cost of every setting, and which of them are on the front of their task.

    Raises:
        BadInput: no run has its latency measured, and ``cost`` asks for it.
    """
    frame = table(rows(runs))
    if frame[COSTS[cost][0]].isna().all():
        raise BadInput(
            "no run has its latency measured; `tailor evaluate RUN --latency` or "
            "`tailor pareto RUN... --cost latency` measures it"
            if cost == "latency"
            else f"no run tells its {cost}; repeat the runs"
        )
    if frame["backbone"].nunique() > 1:  # costs are in percent of a backbone: a panel for each
        frame["task"] = frame["task"] + " on " + frame["backbone"]
    points = pareto_table(frame, cost)
    names = ["seeds", "cost", "accuracy", "spread", "ci95", "split", "front"]
    names += ["latency_ms"] if cost == "latency" else []
    shown = pd.DataFrame({"Task": points["task"], "Setting": points["label"]})
    if points["task"].nunique() == 1:
        shown = shown.drop(columns="Task")
    shown["Seeds"] = [str(seeds) for seeds in points["seeds"]]
    shown["Cost, %"] = [number(value, ".3g") for value in points["cost"]]
    if cost == "latency":
        shown["ms"] = [number(value, ".3g") for value in points["latency_ms"]]
    for title, name in (("Accuracy, %", "accuracy"), ("± sd", "spread"), ("± 95 %", "ci95")):
        shown[title] = [number(value, ".2f") for value in points[name]]
    shown["Front"] = ["yes" if on else "" for on in points["front"]]
    return Answer(
        f"Accuracy against {NAMES[cost]}",
        f"Cost: {COSTS[cost][1]}. Accuracy of the test split "
        "(validation where there is none), mean over seeds; “± sd” is the sample standard "
        "deviation, “± 95 %” half the confidence interval of the mean (Student's t of n - 1). On "
        "the front no setting is both better and cheaper, by means."
        + (" Latency is measured: small differences are noise." if cost == "latency" else ""),
        points.set_index(["task", "label"]).rename_axis(["task", "setting"])[names],
        pareto_plot(frame, cost),
        shown,
    )


def pareto_table(frame: pd.DataFrame, cost: Cost = "params") -> pd.DataFrame:
    """What the figure draws.

    Args:
        frame: what ``analysis.table.table`` returned, of one backbone. Of a student that was
            pruned, the stage before is left out.
        cost: ``params``: all that the task stores without head; ``macs``, ``latency``: of its
            merged network.

    Returns:
        ``task``, ``label``, ``method``, ``stage``, ``lam``, ``rule``, ``series`` (method and its
        settings, and price if there are several), ``seeds``, ``latency_ms``, ``cost`` (in percent
        of the backbone's), ``accuracy``, ``spread`` (percent, on the test split, or on validation
        for tasks where a test value is missing), ``ci95`` (half of the 95 % confidence interval of
        the mean), ``split``, ``front``.
    """
    frame = settled(frame)
    names = ["task", "label", "method", "stage", "lam", "rule", "seeds", "latency_ms"]
    points = frame[names].copy()
    lines = frame.to_dict("records")
    priced = several_priced(lines)
    points["series"] = [
        " ".join(
            [line["method"]]
            + ([f"per {line['price']}"] if line["method"] in priced else [])
            + ([line["variant"]] if line["variant"] else [])
        )
        for line in lines
    ]
    points["cost"] = frame[COSTS[cost][0]] * (1 if cost == "params" else 100)
    for task, lines in points.groupby("task", sort=False):
        known = frame.loc[lines.index]
        split = "val" if known["test"].isna().any() and known["val"].notna().any() else "test"
        chosen = points["task"] == task
        points.loc[chosen, "accuracy"] = known[split]
        points.loc[chosen, "spread"] = known[f"{split}_spread"]
        points.loc[chosen, "ci95"] = known[f"{split}_ci"]
        points.loc[chosen, "split"] = split
        on_front = front(list(lines["cost"]), list(known[split]))
        points.loc[chosen, "front"] = pd.Series(on_front, index=lines.index, dtype=object)
    return points


def pareto_plot(frame: pd.DataFrame, cost: Cost = "params") -> Figure | None:
    """Draw ``pareto_table(frame, cost)``, one panel per task; None where nothing is known."""
    points = pareto_table(frame, cost).dropna(subset=["cost", "accuracy"])
    if points.empty:
        return None
    tasks = list(dict.fromkeys(points["task"]))
    columns = min(len(tasks), 3 if len(tasks) > 4 else 2)
    lines = math.ceil(len(tasks) / columns)
    width = 7.4 if columns == 1 else 4.6 * columns
    figure = canvas.figure(width, 0.5 + (3.9 if columns == 1 else 3.4) * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    colours = canvas.palette(points["series"])
    for axes, task in zip(panels, tasks, strict=False):
        _draw_task(axes, points[points["task"] == task], colours, COSTS[cost][1])
        if cost != "params":
            axes.set_xlim(0, 1.08 * max(100.0, float(points["cost"].max())))
        else:
            canvas.log_from_zero(axes, list(points["cost"]))
        axes.set_title(canvas.plain(task), loc="left", fontsize=10, color=INK, fontweight="bold")
    for axes in panels[len(tasks) :]:
        axes.remove()
    _legend(figure, points, colours)
    figure.draw_without_rendering()  # the layout is known only now, and labels must avoid it
    for axes, task in zip(panels, tasks, strict=False):
        _name_points(axes, points[points["task"] == task])
    return figure


def _draw_task(axes: Axes, points: pd.DataFrame, colours: dict[str, str], x: str) -> None:
    split = {"test": "Test", "val": "Validation"}[points["split"].iloc[0]]
    canvas.dress(axes, x=x, y=f"{split} accuracy, %", grid="both")
    for line in points.to_dict("records"):
        if line["method"] in ("finetune", "probe"):
            axes.axhline(line["accuracy"], color=colours[line["method"]], lw=1, ls=(0, (4, 3)))
    best = points[points["front"].astype(bool)].sort_values(["cost", "accuracy"])
    axes.step(best["cost"], best["accuracy"], where="post", color=MUTED, lw=5, alpha=0.25)
    for (method, stage), series in points.groupby(["series", "stage"], sort=False):
        series = series.sort_values("cost")
        axes.errorbar(
            series["cost"], series["accuracy"], yerr=series["spread"].fillna(0.0), fmt="none",
            ecolor=colours[method], elinewidth=4.5, alpha=0.3, zorder=2,
        )  # fmt: skip
        # A pruned student is on its way: its interval would only cover the others.
        interval = series["ci95"].fillna(0.0) * (stage != "pruned")
        axes.errorbar(
            series["cost"], series["accuracy"], yerr=interval, markersize=6,
            capsize=2.5, elinewidth=1.0, markeredgecolor=PAPER, markeredgewidth=0.8, zorder=3,
            **_line(method, stage, colours),
        )  # fmt: skip
    _scale_accuracy(axes, *_ends(points))


def _ends(points: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Where bars end. Of two seeds an interval is nine spreads: the axis shows only a part."""
    accuracy, spread = points["accuracy"], points["spread"].fillna(0.0)
    room = max(0.5 * float(accuracy.max() - accuracy.min()), 0.5)
    shown = points["ci95"].fillna(0.0) * (points["stage"] != "pruned")
    bars = shown.clip(upper=spread + room).combine(spread, max)
    return accuracy - bars, accuracy + bars


def _line(method: str, stage: str, colours: dict[str, str]) -> dict[str, Any]:
    """A reference is a lone square, a method a line through its λ, dotted until retrained."""
    if method in REFERENCES:
        return {"color": colours[method], "marker": "s", "linewidth": 0}
    style = {"marker": _MARKERS.get(stage, "o"), "linestyle": ":" if stage == "pruned" else "-"}
    return style | {"color": colours[method], "linewidth": 1.4}


def _scale_accuracy(axes: Axes, lows: pd.Series, highs: pd.Series) -> None:
    """An axis that is logarithmic in the error, so that 99 and 99.5 % stand apart.

    Half a point is added to the error before its logarithm: 100 % must have a place.
    """
    axes.set_yscale("function", functions=(_height, _accuracy))
    low, high = (float(_height(value)) for value in (lows.min(), min(highs.max(), 100.0)))
    room = 0.1 * (high - low) + 0.01
    bottom, top = float(_accuracy(low - room)), min(float(_accuracy(high + room)), 100.3)
    ticks = [tick for tick in _ACCURACIES if bottom <= tick <= top]
    if len(ticks) < 4:  # a narrow range, in which the logarithm is a straight line
        ticks = [t for t in MaxNLocator(6).tick_values(bottom, top) if bottom <= t <= top]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom, top)


def _height(accuracy: Any) -> Any:
    return -np.log10(np.maximum(100.5 - np.asarray(accuracy, dtype=float), 1e-3))


def _accuracy(height: Any) -> Any:
    return 100.5 - 10.0 ** -np.asarray(height, dtype=float)


def _legend(figure: Figure, points: pd.DataFrame, colours: dict[str, str]) -> None:
    handles = []
    for method, stage in dict.fromkeys(zip(points["series"], points["stage"], strict=True)):
        name = method if method in REFERENCES or stage == "adapt" else f"{method}, {stage}"
        line = _line(method, stage, colours)
        handles.append(Line2D([], [], label=canvas.plain(name), **line))
    handles.append(Line2D([], [], color=MUTED, lw=5, alpha=0.25, label="Pareto front"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles) if len(handles) < 7 else 4,
        frameon=False, fontsize=8.5, labelcolor=INK, columnspacing=1.3, handlelength=1.7,
        handletextpad=0.5,
    )  # fmt: skip


def _name_points(axes: Axes, points: pd.DataFrame) -> None:
    """Write each λ once, beside its last stage, where it covers no point, line or other label."""
    taken = []
    for _, series in points.groupby(["series", "stage"], sort=False):
        dots = _pixels(axes, series.sort_values("cost"))
        taken += [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in dots]
        for (x0, y0), (x1, y1) in itertools.pairwise(dots):
            steps = [i / 30 for i in range(31)]
            path = [(x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in steps]
            taken += [Bbox.from_bounds(x - 1, y - 1, 2, 2) for x, y in path]
    named = points.dropna(subset=["lam"]).drop_duplicates(["series", "lam", "rule"], keep="last")
    for (x, y), line in zip(_pixels(axes, named), named.to_dict("records"), strict=True):
        text = canvas.plain(" ".join([f"λ {line['lam']:g}", *line["rule"].split()]), 30)
        wide, high = 6.2 * len(text), 11.0  # pixels at 100 dpi, which a figure has until saved
        for dx, dy in _BESIDE:
            dx = dx if dx > 0 else dx - wide * (1 if dx < 0 else 0.5)
            box = Bbox.from_bounds(x + dx, y + dy, wide, high)
            if axes.bbox.containsx(box.x1) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                axes.annotate(
                    text, (line["cost"], line["accuracy"]), xytext=(0.72 * dx, 0.72 * dy),
                    textcoords="offset points", fontsize=8, color=INK,
                ).set_in_layout(False)  # fmt: skip
                break


def _pixels(axes: Axes, points: pd.DataFrame) -> list[tuple[float, float]]:
    places = axes.transData.transform(points[["cost", "accuracy"]].to_numpy(dtype=float))
    return [(float(x), float(y)) for x, y in places]
