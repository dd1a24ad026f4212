"""What does λ do over training? Scores of all layers, and what they leave open, epoch by epoch.

A panel per task and λ with a line per layer (mean over seeds), and all λ together as the share of
layers and of parameters that are adapted. For NetTailor the gates of the universal blocks stand in
the place of scores. A student that was pruned is told by the run that it was adapted in. Left out:
what one seed did, and its errors (``curves.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import canvas
from analysis.answer import Answer
from analysis.canvas import INK
from analysis.curves import depth_colours, threshold_of
from analysis.rows import Run, gates_blocks, grouped, label, labels, origin, several_priced
from analysis.table import count, number
from tailor.errors import BadInput

_COLUMNS = ("seeds", "share_layers", "share_params", "open", "mean_score", "val")
_STEPS = "▁▂▃▄▅▆▇█"


def answer(runs: Sequence[Run]) -> Answer:
    """What is adapted after every epoch of every experiment.

    Raises:
        BadInput: no run that logged scores or gates.
    """
    found = experiments_of(runs)
    frame = trajectory_table(found)
    blocks = gates_blocks(found[0][2][0])
    what, score = ("blocks", "gate") if blocks else ("layers", "score")
    lines = []
    for setting, part in frame.groupby(level="setting", sort=False):
        last = part.iloc[-1]
        lines.append(
            {
                "Setting": setting,
                "Epochs": str(len(part)),
                "Parameters": _spark(part["share_params"]),
                f"{what}, %": number(100 * last["share_layers"], ".1f"),
                "params, %": number(100 * last["share_params"], ".3g"),
                "open": count(round(last["open"], 1)),
                f"mean {score}": number(last["mean_score"], ".3f"),
            }
        )
    kept = "kept at its gate" if blocks else "adapted"
    return Answer(
        f"{score.capitalize()}s over training, and the share that is {kept}",
        f"One line per experiment: bars are the share of the {what}' parameters that is open after "
        "each epoch; the numbers are those after the last one, means over seeds. "
        f"A file has a line per epoch (--out scores.csv), a picture every {score}.",
        frame,
        trajectories(found),
        pd.DataFrame(lines),
    )


def experiments_of(runs: Sequence[Run]) -> list[tuple[str, dict[str, Any], list[Run]]]:
    """The runs in which scores or gates were learned: name, row and seeds of each experiment.

    Raises:
        BadInput: there is none, or some learned scores and some gates.
    """
    learned: dict[Any, Run] = {}
    for run in runs:
        source = origin(run)
        if source is not None and _epochs(source):
            learned.setdefault(source.path.resolve(), source)
    if not learned:
        raise BadInput(
            "none of these runs logged scores or gates; name runs of `tailor adapt` with taps or "
            "nettailor"
        )
    if len({gates_blocks(run) for run in learned.values()}) > 1:
        raise BadInput(
            "some of these runs learned scores of layers and some gates of blocks; name the runs "
            "of one method at a time"
        )
    found = grouped(learned.values())
    names = labels([row for row, _ in found], task=True)
    return [(name, row, members) for name, (row, members) in zip(names, found, strict=True)]


def trajectory_table(found: Sequence[tuple[str, dict[str, Any], list[Run]]]) -> pd.DataFrame:
    """A line per experiment and epoch, means over seeds.

    Args:
        found: of ``experiments_of``.

    Returns:
        Index: ``setting``, ``epoch`` (from 1). Columns: ``seeds``; ``share_layers`` and
        ``share_params`` of all layers (universal blocks, for gates), in [0, 1]; ``open``, their
        number; ``mean_score`` of all; ``val``, the validation metric in [0, 1], NaN if unknown.
    """
    lines = []
    for name, _, members in found:
        every = pd.concat([pd.DataFrame(_lines(run)) for run in members])
        means = every.groupby("epoch").mean()
        means.insert(0, "seeds", every.groupby("epoch").size())
        lines.append(means.reset_index().assign(setting=name))
    return pd.concat(lines).set_index(["setting", "epoch"])[list(_COLUMNS)]


def values_of(run: Run) -> pd.DataFrame:
    """The scores of all layers, or gates of all universal blocks: a line per epoch, from 1."""
    found = [_scores(entry, run) for entry in _epochs(run)]
    return pd.DataFrame(found, index=pd.RangeIndex(1, len(found) + 1, name="epoch"), dtype=float)


def trajectories(found: Sequence[tuple[str, dict[str, Any], list[Run]]]) -> Figure:
    """A row of panels per task, a column per setting; below them what is open, all λ together."""
    priced = several_priced([row for _, row, _ in found])
    settings = [label(row, price=row["method"] in priced) for _, row, _ in found]
    columns = list(dict.fromkeys(settings))
    tasks = list(dict.fromkeys(row["task"] for _, row, _ in found))
    wide = max(len(columns), 2)
    figure = canvas.figure(max(2.6 * wide, 7.0), 2.2 * len(tasks) + 2.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.2 * len(tasks), 2.6))
    panels = upper.subplots(len(tasks), len(columns), squeeze=False, sharex=True, sharey=True)
    for axes in panels.ravel():
        axes.set_visible(False)
    for setting, (_, row, members) in zip(settings, found, strict=True):
        line, column = tasks.index(row["task"]), columns.index(setting)
        axes = panels[line, column]
        axes.set_visible(True)
        title = setting if line == 0 else ""
        canvas.dress(axes, title=canvas.plain(title, 30), y=_side(row["task"], column, tasks))
        _draw_values(axes, members)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if line == len(tasks) - 1:
            axes.set_xlabel("Epoch", fontsize=9, color=INK)
    _draw_shares(lower, found, settings)
    what = "Gate of each block" if gates_blocks(found[0][2][0]) else "Score of each layer"
    canvas.remark(
        upper,
        f"{what}, mean over seeds; blue at the input, orange at the output, thin when closed; "
        "dashed: threshold",
    )
    return figure


def _side(task: str, column: int, tasks: Sequence[str]) -> str:
    """The task's name at the left end of its row, where there are several."""
    return canvas.plain(task, 24) if column == 0 and len(tasks) > 1 else ""


def _draw_values(axes: Axes, members: Sequence[Run]) -> None:
    """A line per layer, blue at the input, orange at the output; thin below the threshold."""
    every = pd.concat([values_of(run) for run in members])
    means = every.groupby(level=0).mean()
    threshold = threshold_of(members[0])
    for colour, name in zip(depth_colours(means.shape[1]), means.columns, strict=True):
        value = means[name]
        axes.plot(value.index, value, color=colour, lw=0.7, alpha=0.55)
        up = value if threshold is None else value.where(value >= threshold)
        axes.plot(value.index, up, color=colour, lw=1.3, marker="o" if len(value) == 1 else None)
    if threshold is not None:
        axes.axhline(threshold, color=INK, lw=1, ls=(0, (4, 3)))


def _draw_shares(
    figure: Any, found: Sequence[tuple[str, dict[str, Any], list[Run]]], settings: Sequence[str]
) -> None:
    """Share of layers and of parameters; thick: mean over tasks, thin: each task."""
    frame = trajectory_table(found).reset_index()
    names = {name: setting for (name, _, _), setting in zip(found, settings, strict=True)}
    frame["column"] = frame["setting"].map(names)
    kinds = list(dict.fromkeys(settings))
    scale = sns.color_palette("viridis", as_cmap=True)
    colours = {
        k: to_hex(scale(0.2 + 0.7 * i / max(len(kinds) - 1, 1))) for i, k in enumerate(kinds)
    }
    what = "blocks" if gates_blocks(found[0][2][0]) else "layers"
    verb = "kept at their gates" if what == "blocks" else "adapted"
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(
        panels, ("share_layers", "share_params"), (what, "parameters"), strict=True
    ):
        canvas.dress(axes, title=f"{title.capitalize()} {verb}, %", x="Epoch", grid="both")
        for kind in kinds:
            lines = frame[frame["column"] == kind]
            if lines["setting"].nunique() > 1:
                for _, line in lines.groupby("setting", sort=False):
                    axes.plot(line["epoch"], 100 * line[column], color=colours[kind], lw=0.6)
            mean = 100 * lines.groupby("epoch")[column].mean()
            dot = "o" if len(mean) == 1 else None
            axes.plot(mean.index, mean, color=colours[kind], lw=1.9, marker=dot)
        axes.set_ylim(0, 104)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles = [Line2D([], [], color=colours[k], lw=1.9, label=canvas.plain(k, 30)) for k in kinds]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=min(len(kinds), 6), frameon=False,
        fontsize=8, labelcolor=INK,
    )  # fmt: skip


def _lines(run: Run) -> list[dict[str, float]]:
    """What was open after each epoch of a run."""
    found = []
    for number_, entry in enumerate(_epochs(run), start=1):
        scores = _scores(entry, run)
        line = {"epoch": number_, "mean_score": math.fsum(scores.values()) / len(scores)}
        if gates_blocks(run):
            line |= _open_blocks(scores, run)
        else:
            line |= {name: entry.get(name, math.nan) for name in ("share_layers", "share_params")}
            line["open"] = sum((entry.get("on") or {}).values())
        val = entry.get("val")
        found.append(line | {"val": math.nan if val is None else val})
    return found


def _open_blocks(gates: dict[str, float], run: Run) -> dict[str, float]:
    """Which universal blocks a threshold would leave, by the gates of one epoch."""
    sizes = {block["name"]: block["params"] for block in run.result["blocks"]}
    threshold = threshold_of(run) or 0.0
    kept = [name for name, gate in gates.items() if gate >= threshold]
    weight = sum(sizes[name] for name in kept) / max(sum(sizes.values()), 1)
    share = len(kept) / max(len(sizes), 1)
    return {"open": len(kept), "share_layers": share, "share_params": weight}


def _epochs(run: Run) -> list[dict[str, Any]]:
    """The epochs in which scores or gates were learned; retraining learns none."""
    entries = [e for e in run.log if e.get("kind") == "epoch" and e.get("stage") != "retrain"]
    return [entry for entry in entries if entry.get("scores") or entry.get("gates")]


def _scores(entry: dict[str, Any], run: Run) -> dict[str, float]:
    if entry.get("scores"):
        return {name: float(value) for name, value in entry["scores"].items()}
    own = {block["name"] for block in run.result.get("blocks") or []}
    return {n: float(g) for n, g in entry["gates"].items() if n in own and g is not None}


def _spark(shares: pd.Series) -> str:
    """Shares in [0, 1] as a row of bars."""
    top = len(_STEPS) - 1
    return "".join("?" if math.isnan(s) else _STEPS[round(s * top)] for s in shares)
