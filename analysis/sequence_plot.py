"""The picture of ``forgetting.py``: a matrix for each method, and curves over the sequence.

Above, a panel per setting, means over seeds: a row for each task learned, a column for each task
measured, its metric in the cell. Colour is what later tasks changed, so a method that forgets
nothing stays paper. Below, over the number of tasks learned: the mean metric of all tasks so far,
the metric of the first task, and the parameters of trunk and tasks with what else is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis import canvas, sequences
from analysis.canvas import GRID, INK
from analysis.sequences import Matrix
from analysis.statistic import mean, spread
from analysis.table import quantity

_ACROSS = 4  # panels side by side
_MOST_NUMBERS = 12  # more tasks than this leave no room for a number in a cell
_LEAST, _MOST = 0.03, 0.3  # changes of the strongest colour: at least, at most
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


def draw(
    lines: Mapping[str, Sequence[Matrix]], order: Sequence[str], tasks: Sequence[str]
) -> Figure:
    """Draw the matrices and curves of every setting.

    Args:
        lines: of each setting its runs, one per seed.
        order: the settings as they are to appear.
        tasks: of the whole sequence.
    """
    percent = sequences.in_percent([run for runs in lines.values() for run in runs])
    across = min(_ACROSS, max(len(order), 3))
    high, side = math.ceil(len(order) / across), min(2.6, max(1.6, 0.36 * len(tasks)))
    matrices = high * (side + 0.5) + 0.3  # inches
    figure = canvas.figure(max(across * (side + 0.25) + 1.0, 10.5), matrices + 3.8)
    above, below = figure.subfigures(2, 1, height_ratios=(matrices, 3.8))
    panels = above.subplots(high, across, squeeze=False, sharey=True).flatten()
    top = _strongest(lines)
    for axes, name in zip(panels, order, strict=False):
        _draw_matrix(axes, lines[name], len(tasks), name, top, percent=percent)
    _name_tasks(panels, tasks)
    for axes in panels[len(order) :]:
        axes.axis("off")
    canvas.remark(
        above,
        "Row: task just learned; column: task measured; number: its metric"
        + (", %" if percent else "")
        + f". Colour: orange worse, blue better than when it was learned, strongest at "
        f"{_told(top, percent)}; white: unchanged.",
    )
    _draw_curves(below, lines, order, tasks, percent=percent)
    return figure


def _strongest(lines: Mapping[str, Sequence[Matrix]]) -> float:
    """The change that has the strongest colour, the same in all panels."""
    changes = [
        abs(row[j] - run.accuracy[j][j])
        for runs in lines.values()
        for run in runs
        for row in run.accuracy
        for j in range(len(row))
    ]
    return min(max(*changes, _LEAST), _MOST)


def _draw_matrix(
    axes: Axes,
    runs: Sequence[Matrix],
    size: int,
    name: str,
    top: float,
    *,
    percent: bool,
) -> None:
    """One setting: metrics in cells, coloured by their change since the task was learned."""
    learned = max(run.learned for run in runs)
    level, change = np.full((size, size), np.nan), np.full((size, size), np.nan)
    for t in range(learned):
        for j in range(t + 1):
            having = [run.accuracy for run in runs if run.learned > t]
            level[t, j] = mean([matrix[t][j] for matrix in having])
            change[t, j] = mean([matrix[t][j] - matrix[j][j] for matrix in having])
    canvas.dress(axes, title=canvas.plain(name, 30), grid="")
    axes.title.set_fontsize(9)
    fixed = canvas.palette(["method"])
    shade = canvas.two_sided(fixed["finetune"], fixed["method"])
    known = np.argwhere(~np.isnan(level))
    cells = PatchCollection([Rectangle((j, t), 1, 1) for t, j in known], cmap=shade, ec=GRID)
    cells.set(array=change[~np.isnan(level)], clim=(-top, top), linewidth=0.5, clip_on=False)
    axes.add_collection(cells)
    for t, j in known if size <= _MOST_NUMBERS else []:
        text = f"{100 * level[t, j]:.0f}" if percent else f"{level[t, j]:.2f}"
        axes.text(
            j + 0.5, t + 0.5, text, ha="center", va="center", fontsize=7 if percent else 6,
            color=INK, fontweight="bold" if t == j else "normal",
        )  # fmt: skip
    axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
    axes.tick_params(length=0, labelsize=7)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _name_tasks(panels: Sequence[Axes], tasks: Sequence[str]) -> None:
    """Names of the tasks at the rows, once; their numbers at the columns."""
    every = math.ceil(len(tasks) / 20)
    numbers = range(0, len(tasks), every)
    places = [number + 0.5 for number in numbers]
    for axes in panels:
        axes.set_xticks(places, [str(number + 1) for number in numbers])
    texts = [f"{canvas.plain(tasks[number], 14)}  {number + 1}" for number in numbers]
    panels[0].set_yticks(places, texts)


def _draw_curves(figure, lines, order, tasks, *, percent: bool) -> None:  # type: ignore[no-untyped-def]
    """Mean metric so far, that of the first task, and the numbers kept, over tasks learned."""
    so_far, first, size = figure.subplots(1, 3)
    unit = ", %" if percent else ""
    canvas.dress(so_far, title=f"All tasks so far{unit}", x="tasks learned")
    told = f"Task 1, {canvas.plain(tasks[0], 18)}{unit}"
    canvas.dress(first, title=told, x="tasks learned")
    canvas.dress(size, title="Parameters and other numbers kept", x="tasks learned")
    colours = _colours(order, {name: lines[name][0].method for name in order})
    for name in order:
        look = colours[name]
        runs = lines[name]
        for axes, values in (
            (so_far, [[mean(list(row)) for row in run.accuracy] for run in runs]),
            (first, [[row[0] for row in run.accuracy] for run in runs]),
        ):
            _draw_mean(axes, values, name, look, scale=100.0 if percent else 1.0)
        _draw_mean(size, [_kept(run) for run in runs if _kept(run)], name, look, band=False)
    size.set_ylim(bottom=0)
    size.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))
    for axes in (so_far, first, size):
        axes.xaxis.set_major_locator(MaxNLocator(min(len(tasks), 10), integer=True))
        axes.margins(x=0.03)
    handles, labels = so_far.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False,
        labelcolor=INK, handlelength=3.4, columnspacing=1.4,
    )  # fmt: skip


def _kept(run: Matrix) -> list[float]:
    """Numbers in trunk, tasks and memory after each task; nothing where they are unknown."""
    params = run.counts.get("params", ())
    memory = run.counts.get("memory", (0.0,) * len(params))
    return [a + b for a, b in zip(params, memory, strict=False)]


def _draw_mean(
    axes: Axes,
    values: Sequence[Sequence[float]],
    name: str,
    look: tuple[str, object],
    *,
    scale: float = 1.0,
    band: bool = True,
) -> None:
    """A line through the means over seeds, and a band of one standard deviation."""
    longest = max(map(len, values), default=0)
    places = range(1, longest + 1)
    each = [[scale * one[t] for one in values if len(one) > t] for t in range(longest)]
    middle, wide = [mean(v) for v in each], [spread(v) for v in each]
    colour, dashes = look
    axes.plot(
        places, middle, color=colour, linestyle=dashes, lw=1.7, marker="o", ms=3,
        label=canvas.plain(name, 34),
    )  # fmt: skip
    if band and not all(map(math.isnan, wide)):
        low = [m - w for m, w in zip(middle, wide, strict=True)]
        high = [m + w for m, w in zip(middle, wide, strict=True)]
        axes.fill_between(places, low, high, color=colour, alpha=0.12, lw=0)


def _colours(order: Sequence[str], methods: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    """Colour of the method, dashes by setting; a method beyond the palette is dashed too."""
    palette = canvas.palette(methods.values())
    seen: dict[str, int] = {}
    found = {}
    for name in order:
        colour = palette[methods[name]]
        found[name] = colour, _DASHES[seen.setdefault(colour, 0) % len(_DASHES)]
        seen[colour] += 1
    return found


def _told(value: float, percent: bool) -> str:
    return f"{100 * value:.0f} points" if percent else f"{value:.2f}"
