"""Training curves: how errors, loss, adapted shares, scores and gates moved over the epochs.

One figure shows the seeds of one experiment together. What a run did not log (a probe has no
scores) gets no panel. Steps within an epoch are left out: TensorBoard shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure

from analysis import canvas
from analysis.canvas import GRID, INK, MUTED
from analysis.rows import Run

_PERCENT = ("val_error", "train_error", "share_layers", "share_params")
_COLOURS = {"val_error": 0, "train_error": 1, "train_loss": 4, "share_layers": 2, "share_params": 3}
_NAMES = {
    "val_error": "validation",
    "train_error": "training",
    "train_loss": "training",
    "share_layers": "layers",
    "share_params": "parameters",
}
_PROXIES = 5  # more dashed lines than these hide the solid ones
_PANELS = (
    ("Error, %", ("val_error", "train_error")),
    ("Training loss", ("train_loss",)),
    ("Adapted, % of the backbone's", ("share_layers", "share_params")),
)


def curve_table(run: Run) -> pd.DataFrame:
    """One line per epoch.

    Stages of one directory (adapt, then retrain) follow each other.

    Returns:
        ``stage``, ``epoch`` (1 is the first of the directory), ``train_loss``; in percent
        ``val_error``, ``train_error``, ``share_layers``, ``share_params``. NaN where not logged.
    """
    lines = []
    for number, entry in enumerate(_epochs(run), start=1):
        line = {"stage": entry.get("stage", ""), "epoch": number}
        line["train_loss"] = _number(entry.get("train_loss"))
        lines.append(line | {name: 100 * _number(entry.get(name)) for name in _PERCENT})
    return pd.DataFrame(lines, columns=["stage", "epoch", "train_loss", *_PERCENT])


def score_table(run: Run) -> pd.DataFrame:
    """Scores of all layers: one line per epoch (index from 1), one column per layer."""
    return _logged(run, "scores")


def gate_table(run: Run) -> pd.DataFrame:
    """Gates of all paths: one line per epoch (index from 1), one column per path."""
    return _logged(run, "gates")


def strongest(gates: pd.DataFrame, most: int = _PROXIES) -> list[str]:
    """The proxies of ``gate_table`` that were the largest at any epoch, in network order."""
    proxies = gates[[path for path in gates.columns if "<-" in path]].max()
    chosen = set(proxies.nlargest(most).index)
    return [path for path in proxies.index if path in chosen]


def curves(runs: Sequence[Run]) -> Figure | None:
    """Draw the seeds of one experiment, or one run; None where nothing was logged.

    Args:
        runs: runs that differ by their seed only; a thin line each, and a thick one for the mean.
    """
    tables = [curve_table(run) for run in runs]
    tables = [frame for frame in tables if not frame.empty]
    if not tables:
        return None
    panels = [
        (title, names)
        for title, names in _PANELS
        if any(frame[name].notna().any() for frame in tables for name in names)
    ]
    gated = [run for run in runs if not gate_table(run).empty]
    drawn = gated or [run for run in runs if not score_table(run).empty]
    columns = 3 if drawn or len(panels) > 2 else max(len(panels), 1)
    lines = 1 + math.ceil(len(drawn) / columns)
    figure = canvas.figure(3.5 * columns, 2.7 * lines)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, names) in zip(grid, panels, strict=False):
        _draw_panel(axes, tables, title, names)
    for axes in grid[len(panels) : columns]:
        axes.remove()
    for axes, run in zip(grid[columns:], drawn, strict=False):
        (_draw_gates if gated else _draw_scores)(axes, run)
        axes.sharey(grid[columns])
    for axes in grid[columns + len(drawn) :]:
        axes.remove()
    if drawn:
        _depth_bar(figure, list(grid[columns : columns + len(drawn)]), drawn[0])
    return figure


def _draw_panel(
    axes: Axes, tables: Sequence[pd.DataFrame], title: str, names: Sequence[str]
) -> None:
    canvas.dress(axes, title=title, x="Epoch")
    colours = sns.color_palette("colorblind")
    every = pd.concat(tables)
    for name in names:
        if every[name].isna().all():
            continue
        colour = to_hex(colours[_COLOURS[name]])
        if len(tables) > 1:
            for frame in tables:
                axes.plot(frame["epoch"], frame[name], color=colour, lw=0.8, alpha=0.4)
        mean = every.groupby("epoch")[name].mean()
        dot = "o" if len(mean) == 1 else None  # a line of one epoch would be invisible
        axes.plot(mean.index, mean, color=colour, lw=1.8, marker=dot, label=_NAMES[name])
    _mark_stages(axes, tables[0])
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)


def _draw_scores(axes: Axes, run: Run) -> None:
    """A line per layer, blue at the input and orange at the output; thin while it is closed."""
    table = score_table(run)
    canvas.dress(axes, title=f"Scores, seed {canvas.plain(run.result['seed'])}", x="Epoch")
    colours = depth_colours(table.shape[1])
    entries = {i: e.get("on") or {} for i, e in enumerate(_epochs(run), start=1)}
    for colour, name in zip(colours, table.columns, strict=True):
        score = table[name]
        open_now = pd.Series({i: bool(entries[i].get(name, True)) for i in table.index})
        axes.plot(score.index, score, color=colour, lw=0.7, alpha=0.55)
        axes.plot(score.index, score.where(open_now), color=colour, lw=1.5)
    _mark_threshold(axes, run)
    _mark_stages(axes, curve_table(run))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_gates(axes: Axes, run: Run) -> None:
    """A line per universal block, and a dashed one in the colour of its target per strong proxy."""
    table = gate_table(run)
    canvas.dress(axes, title=f"Gates, seed {canvas.plain(run.result['seed'])}", x="Epoch")
    blocks = list(dict.fromkeys(path.partition("<-")[0] for path in table.columns))
    colours = dict(zip(blocks, depth_colours(len(blocks)), strict=True))
    dot = "o" if len(table) == 1 else None
    for path in (*(block for block in blocks if block in table.columns), *strongest(table)):
        target, proxy, _ = path.partition("<-")
        style = {"lw": 1.1, "ls": (0, (3, 2))} if proxy else {"lw": 1.4}
        axes.plot(
            table.index, table[path], color=colours[target], marker=dot, ms=3, gid=path, **style
        )
    axes.set_ylim(0, 1)
    _mark_threshold(axes, run, "left")
    _mark_stages(axes, curve_table(run))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _depth_bar(figure: Figure, panels: list[Axes], run: Run) -> None:
    depth = max(score_table(run).shape[1], len(run.result.get("blocks") or []), 1)
    mapping = ScalarMappable(cmap=ListedColormap(depth_colours(depth)))
    mapping.set_array([])
    bar = figure.colorbar(mapping, ax=panels, fraction=0.03, pad=0.01, aspect=18)
    bar.outline.set_edgecolor(GRID)
    bar.set_ticks([0, 1])
    part = "block" if not gate_table(run).empty else "layer"
    bar.set_ticklabels([f"first {part}", f"last {part}"])
    bar.ax.tick_params(labelsize=8, labelcolor=INK, length=0)


def depth_colours(depth: int) -> list[str]:
    """Blue at the input to orange at the output; the ends of the map would vanish in the paper."""
    scale = sns.color_palette("plasma", as_cmap=True)
    return [to_hex(scale(0.2 + 0.62 * i / max(depth - 1, 1))) for i in range(depth)]


def _mark_threshold(axes: Axes, run: Run, side: Literal["left", "right"] = "right") -> None:
    """A dashed rule at the threshold, named on the side where fewer lines pass."""
    threshold = threshold_of(run)
    if threshold is not None:
        axes.axhline(threshold, color=INK, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            "threshold", (side == "right", threshold), xycoords=axes.get_yaxis_transform(),
            xytext=(3 * (side == "left"), 3), textcoords="offset points", ha=side, fontsize=7.5,
            color=INK,
        )  # fmt: skip


def _mark_stages(axes: Axes, table: pd.DataFrame) -> None:
    """A rule where a stage (retraining) begins, with its name."""
    stages = list(table["stage"])
    for i in range(1, len(stages)):
        if stages[i] != stages[i - 1]:
            axes.axvline(i + 0.5, color=MUTED, lw=1)
            axes.annotate(
                canvas.plain(stages[i]), (i + 0.5, 1), xycoords=axes.get_xaxis_transform(),
                xytext=(3, -8), textcoords="offset points", fontsize=7.5, color=MUTED,
            )  # fmt: skip


def _epochs(run: Run) -> list[Mapping[str, Any]]:
    return [entry for entry in run.log if entry.get("kind") == "epoch"]


def _logged(run: Run, name: str) -> pd.DataFrame:
    values = {i: e[name] for i, e in enumerate(_epochs(run), start=1) if e.get(name)}
    frame = pd.DataFrame.from_dict(values, orient="index", dtype=float)
    frame.index.name = "epoch"
    return frame


def threshold_of(run: Run) -> float | None:
    """The threshold of the method, if its configuration has one, at the top or one level down."""
    config = run.result.get("config") or {}
    inner = [config, *(value for value in config.values() if isinstance(value, dict))]
    found = [c["threshold"] for c in inner if isinstance(c.get("threshold"), float)]
    return found[0] if found else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
