"""A heat map over the parts of a network, input on the left, with the cost of each part above.

Rows are runs or experiments, columns layers or blocks in network order; what a cell means, and
which parts there are, is the caller's affair (``layers.py``, ``blocks.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import canvas
from analysis.canvas import GRID, INK, MUTED
from analysis.rows import BETWEEN

SHADES = "·░▒▓█"  # nothing, up to a third, up to two thirds, more, everything
SCALE = "· none, ░ ▒ ▓ a third each, █ all"

_MAX_NAMES = 40  # more names than this cannot be read side by side
_MAX_NUMBERS = 20  # more columns than this leave no room for a number in a cell
_UNDER_INK = 0.6  # opacity of the darkest cell if numbers are written on it
_MANY_LINES = 24  # more rows than this are drawn thinner
_FEW = 3  # rows; fewer are no height for a colour bar


def draw(
    table: pd.DataFrame,
    facts: pd.DataFrame,
    *,
    title: str,
    colour: str,
    top: float,
    ticks: Sequence[str],
    sums: Sequence[str] | None = None,
    cost: str = "params",
    numbers: bool = False,
) -> Figure:
    """Draw ``table`` with the columns' costs above it.

    Args:
        table: one line per row, in [0, ``top``].
        facts: one line per column of ``table``: ``kind``, ``params``, ``macs``, ``stage``.
        title: what a cell means.
        colour: of a cell at ``top``; a cell at 0 is clear.
        top: end of the scale.
        ticks: names for 0, half of ``top`` and ``top``.
        sums: a text for the end of each row.
        cost: which column of ``facts`` the bars show, as share of the sum.
        numbers: also write the values above 0 into the cells, where there is room.
    """
    lines, depth = table.shape
    width = min(14.0, max(8.5, 3.6 + 0.27 * depth))
    high = 0.27 if lines <= _MANY_LINES else 0.19  # inches of a row
    figure = canvas.figure(width, 2.6 + high * lines)
    heights = (0.62, high * lines)
    costs, cells = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    _draw_costs(costs, facts, cost, characters=14 * (width - 3.2))
    numbers = numbers and depth <= _MAX_NUMBERS
    shade = canvas.shade(colour, _UNDER_INK if numbers else 1.0)
    sns.heatmap(
        table.to_numpy(), ax=cells, cmap=shade, vmin=0, vmax=top, cbar=False,
        linewidths=0.5, linecolor=GRID, rasterized=lines * depth > 1500,
        xticklabels=False, yticklabels=False,
    )  # fmt: skip
    _name_columns(cells, list(table.columns))
    cells.set_yticks([i + 0.5 for i in range(lines)])
    cells.set_yticklabels(_row_names(table.index), rotation=0)
    cells.tick_params(axis="y", labelsize=8.5 if high > 0.2 else 7.5, labelcolor=INK, length=0)
    for start in _begins(table.index)[1:]:
        cells.axhline(start, color=MUTED, linewidth=1.1)
    cells.set_ylabel("")
    for edge in _edges(facts)[1:]:
        cells.axvline(edge, color=MUTED, linewidth=1.1)
    if numbers:
        _write_numbers(cells, table)
    for i, text in enumerate(sums or []):
        cells.text(
            1.008, i + 0.5, text, transform=cells.get_yaxis_transform(), va="center", fontsize=8,
            color=MUTED,
        )  # fmt: skip
    _colour_bar(figure, [cells] if lines >= _FEW else [costs, cells], top, ticks)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK, fontweight="bold")
    return figure


def strips(table: pd.DataFrame, facts: pd.DataFrame, *, top: float) -> list[str]:
    """Each line of ``table`` as text: one character per column, a space between stages.

    Args:
        table: one line per row, in [0, ``top``].
        facts: one line per column of ``table`` with its ``stage``.
        top: what the darkest character stands for.
    """
    starts = set(_edges(facts)[1:])
    return [
        "".join(" " * (i in starts) + _shade(value / top) for i, value in enumerate(line))
        for line in table.to_numpy()
    ]


def _shade(share: float) -> str:
    """Nothing and everything have characters of their own; between them three steps."""
    if share <= 0 or share >= 1:
        return SHADES[0] if share <= 0 else SHADES[-1]
    return SHADES[1 + min(int(3 * share), 2)]


def _draw_costs(axes: Axes, facts: pd.DataFrame, cost: str, characters: float) -> None:
    """Bars: each part's share of the cost; their colour is its kind."""
    share = 100 * facts[cost] / max(facts[cost].sum(), 1)
    kinds = list(dict.fromkeys(facts["kind"]))
    colours = [canvas.NEUTRAL, *sns.color_palette("colorblind")[9:1:-1]]
    for kind, colour in zip(kinds, colours, strict=False):
        places = [i for i, k in enumerate(facts["kind"]) if k == kind]
        axes.bar(
            [i + 0.5 for i in places],
            share.iloc[places],
            width=0.72,
            color=colour,
            label=canvas.plain(kind),
        )
    canvas.dress(axes, y={"params": "params, %", "macs": "MACs, %"}[cost], grid="")
    axes.yaxis.label.set(fontsize=8, color=MUTED)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.yaxis.set_major_locator(MaxNLocator(2))
    if len(kinds) > 1:
        axes.figure.legend(
            fontsize=8.5, frameon=False, loc="upper right", ncols=len(kinds), labelcolor=INK,
            borderaxespad=0.1, handlelength=1.0,
        )  # fmt: skip
    edges = [*_edges(facts), len(facts)]
    for start, end in itertools.pairwise(edges):
        if start:
            axes.axvline(start, color=GRID, linewidth=1.1)
        part = facts["stage"].iloc[start]
        room = characters * (end - start) / len(facts)
        text = part if len(part) <= room else part.rpartition(".")[2]
        if len(text) <= room:
            axes.text(
                (start + end) / 2, 1.05, canvas.plain(text), transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=8, color=MUTED,
            )  # fmt: skip


def _row_names(names: Sequence[str]) -> list[str]:
    """``task · setting``: of rows that follow each other only the first one names the task."""
    begins = set(_begins(names))
    return [
        canvas.plain(name if i in begins else str(name).rpartition(BETWEEN)[2])
        for i, name in enumerate(names)
    ]


def _begins(names: Sequence[str]) -> list[int]:
    """The rows at which another task begins."""
    tasks = [str(name).partition(BETWEEN)[0] if BETWEEN in str(name) else "" for name in names]
    return [i for i, task in enumerate(tasks) if i == 0 or task != tasks[i - 1]]


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names under the columns; of a deep network every n-th, with its number."""
    every = math.ceil(len(names) / _MAX_NAMES)
    places = range(0, len(names), every)
    axes.set_xticks([i + 0.5 for i in places])
    axes.set_xticklabels([canvas.plain(names[i], 26) for i in places], rotation=90)
    axes.tick_params(axis="x", labelsize=7.5, labelcolor=INK, length=2, color=GRID)


def _write_numbers(axes: Axes, table: pd.DataFrame) -> None:
    for i, line in enumerate(table.to_numpy()):
        for j, value in enumerate(line):
            if value > 0:
                axes.text(
                    j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7,
                    color=INK,
                )  # fmt: skip


def _colour_bar(figure: Figure, axes: list[Axes], top: float, ticks: Sequence[str]) -> None:
    bar = figure.colorbar(axes[-1].collections[0], ax=axes, fraction=0.025, pad=0.015, aspect=12)
    bar.solids.set_rasterized(True)
    bar.outline.set_edgecolor(GRID)
    bar.set_ticks([0, top / 2, top])
    bar.set_ticklabels(list(ticks))
    bar.ax.tick_params(labelsize=8, labelcolor=INK, length=0)


def _edges(facts: pd.DataFrame) -> list[int]:
    """The columns at which a part of the network begins."""
    parts = list(facts["stage"])
    return [i for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]
