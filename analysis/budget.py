"""What does one more task cost? The backbone, then every part that a task adds to it.

Left: the parts of one task in percent of the backbone, means over seeds and tasks. Right: the
size of one trunk with K tasks, in trunks: 1 + K (multiple of one task - 1). Heads are a bar of
their own and in no multiple, for every method pays them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import canvas
from analysis.canvas import INK, MUTED
from analysis.table import settled

PARTS = ("universal", "deltas", "norms", "scores", "other", "head")
TASKS = (1, 2, 3, 5, 10)  # how many tasks the multiple is told for

_COLOURS = {"deltas": 0, "norms": 1, "scores": 8, "other": 4, "head": 2}


def budget_table(frame: pd.DataFrame, tasks: Sequence[int] = TASKS) -> pd.DataFrame:
    """The parts of one task, and the multiple for a growing number of tasks like it.

    Args:
        frame: what ``analysis.table.table`` returned, of one backbone. Of a student that was
            pruned, the stage before is left out.
        tasks: numbers of tasks.

    Returns:
        One line per method, λ, price and stage, averaged over tasks. Columns: ``label``,
        ``method``, ``PARTS`` in percent of the backbone's parameters (``other``: what a task stores
        beside deltas, norms and scores, such as adapters), and ``×K`` for each K of ``tasks``.
    """
    frame = settled(frame)
    parts = frame[["label", "method"]].copy()
    parts["universal"] = 100.0
    for name in PARTS[1:]:
        parts[name] = frame[f"{name}_percent"]
    for count in tasks:
        parts[f"×{count}"] = 1 + count * (frame["multiple"] - 1)
    columns = [*PARTS, *(f"×{count}" for count in tasks)]
    return parts.groupby(["label", "method"], sort=False)[columns].mean().reset_index()


def budget_bars(frame: pd.DataFrame) -> Figure:
    """Draw ``budget_table(frame)``: stacked bars, and lines over the number of tasks."""
    parts = budget_table(frame)
    # Retraining changes no size: one bar for both stages is enough.
    parts = parts.loc[~parts.drop(columns="label").duplicated(keep="last")]
    figure = canvas.figure(10.5, max(3.1, 1.3 + 0.27 * len(parts)))
    bars, lines = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.5, 1)})
    _draw_bars(bars, parts)
    _draw_multiples(lines, parts)
    figure.legend(
        *bars.get_legend_handles_labels(), loc="outside lower left", ncols=6, frameon=False,
        fontsize=8.5, labelcolor=INK, columnspacing=1.3, handlelength=1.2,
    )  # fmt: skip
    return figure


def _draw_bars(axes: Axes, parts: pd.DataFrame) -> None:
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
    for place, (end, multiple) in enumerate(zip(start, parts["×1"], strict=True)):
        text = "" if pd.isna(multiple) else f"×{multiple:.3g}"
        axes.annotate(
            text, (end, place), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=8, color=MUTED,
        )  # fmt: skip
    axes.set_yticks(list(places), [canvas.plain(name, 34) for name in parts["label"]])
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * start.max())


def _draw_multiples(axes: Axes, parts: pd.DataFrame) -> None:
    canvas.dress(axes, title="One trunk with K tasks, in trunks", x="Tasks K", grid="both")
    colours = canvas.palette(parts["method"])
    last = TASKS[-1]
    ends = parts.dropna(subset=[f"×{last}"]).sort_values(f"×{last}")
    top = float(ends[f"×{last}"].max()) if len(ends) else 1.0
    free = -1.0  # the lowest height that no label covers yet
    for line in ends.to_dict("records"):
        end, colour = line[f"×{last}"], colours[line["method"]]
        axes.plot([0, last], [1, end], color=colour, lw=1.5)
        if end >= free:
            free = end + 0.05 * top
            axes.annotate(
                f"{canvas.plain(line['label'], 30)}: ×{end:.3g}", (last, end), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=8, color=INK,
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, last)
    axes.set_ylim(bottom=0)
