"""Which layers were adapted? A heat map over the network, input on the left.

One row per experiment, one column per layer. Darkness is the share of seeds that adapted the
layer, or how far its weights moved. The bars above say how much each layer costs, because half
of the layers may be a tenth of the parameters. Every map is also a table (``layer_table``).

Source: the heat map of TAPS (Wallingford et al., CVPR 2022), there one run per row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import canvas
from analysis.canvas import GRID, INK, MUTED
from analysis.rows import GROUP, Run, experiments
from analysis.table import count
from tailor.errors import BadInput

Value = Literal["on", "change"]

_MAX_NAMES = 40  # more layer names than this cannot be read side by side
_TITLES = {
    "on": "Share of seeds that adapted the layer",
    "change": "Relative change of weights, ‖delta‖ / ‖universal‖",
}


def layer_table(runs: Sequence[Run], value: Value = "on") -> pd.DataFrame:
    """Rows: experiments; columns: layers in network order.

    Args:
        runs: runs of one backbone, any tasks and methods.
        value: ``on``: share of seeds that adapted the layer, in [0, 1]; ``change``: mean over
            seeds of the norm of the delta relative to the norm of the universal weight.

    Returns:
        One line per experiment, named by task (if there are several), method, λ and stage. A
        stage whose line equals the line before it (retraining opens no layer) is left out.

    Raises:
        BadInput: runs of different backbones, or none that lists its layers.
    """
    runs = [run for run in runs if run.result.get("layer_states")]
    facts = layer_facts(runs)
    lines, kept = [], []
    latest: dict[tuple[Any, ...], list[float]] = {}
    for name, members in experiments(runs):
        columns = zip(*(_values(run, value) for run in members), strict=True)
        line = [sum(column) / len(column) for column in columns]
        whatever_stage = tuple(members[0].result.get(n) for n in GROUP if n != "stage")
        if latest.get(whatever_stage) != line:
            latest[whatever_stage] = line
            lines.append(line)
            kept.append(name)
    return pd.DataFrame(lines, index=kept, columns=list(facts.index))


def layer_facts(runs: Sequence[Run]) -> pd.DataFrame:
    """The layers that all runs share, in network order.

    Returns:
        Index: layer names; columns: ``kind``, ``params`` (numbers), ``macs``, ``stage`` (the part
        of the network that the layer belongs to).

    Raises:
        BadInput: runs of different backbones, or none that lists its layers.
    """
    listed = [run for run in runs if run.result.get("layer_states")]
    if not listed:
        raise BadInput("no run lists its layers (layer_states in result.json); repeat the runs")
    first = listed[0]
    names = _names(first)
    for run in listed[1:]:
        if run.result["backbone"] != first.result["backbone"] or _names(run) != names:
            raise BadInput(
                f"{str(first.path)!r} has backbone {first.result['backbone']} ({len(names)} "
                f"layers), {str(run.path)!r} has {run.result['backbone']} ({len(_names(run))} "
                "layers); draw one heat map for each"
            )
    states = first.result["layer_states"]
    return pd.DataFrame(
        {
            "kind": [s["kind"] for s in states],
            "params": [s["params"] for s in states],
            "macs": [s["macs"] for s in states],
            "stage": [stage(name) for name in names],
        },
        index=names,
    )


def stage(name: str) -> str:
    """The part of the network a layer is in: ``layer1.0.conv2`` is in ``layer1``.

    A list of blocks without stages is one part per block: ``blocks.3.mlp.fc1`` is in ``blocks.3``.
    """
    parts = name.split(".")
    if len(parts) > 2 and parts[1].isdigit() and not parts[0][-1:].isdigit():
        return ".".join(parts[:2])
    return parts[0]


def selective(runs: Sequence[Run]) -> list[Run]:
    """The runs that chose between layers, or all if none did: a row of ones says nothing."""
    chosen = [
        run
        for run in runs
        if len({s["on"] for s in run.result.get("layer_states") or []}) > 1
        or run.result.get("lam") is not None
    ]
    return chosen or list(runs)


def heat_map(runs: Sequence[Run], value: Value = "on") -> Figure:
    """Draw ``layer_table(runs, value)`` with the cost of each layer above it.

    Raises:
        BadInput: runs of different backbones, or none that lists its layers.
    """
    table, facts = layer_table(runs, value), layer_facts(runs)
    lines, depth = table.shape
    width = min(14.0, max(8.5, 3.6 + 0.27 * depth))
    figure = canvas.figure(width, 2.6 + 0.27 * lines)
    heights = (0.62, 0.27 * lines)
    cost, cells = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    _draw_costs(cost, facts, characters=14 * (width - 3.2))
    top = 1.0 if value == "on" else max(float(table.to_numpy().max()), 1e-6)
    colour = canvas.palette([])["finetune"] if value == "change" else canvas.palette(["m"])["m"]
    sns.heatmap(
        table.to_numpy(), ax=cells, cmap=canvas.shade(colour), vmin=0, vmax=top, cbar=False,
        linewidths=0.5, linecolor=GRID, rasterized=lines * depth > 1500,
        xticklabels=False, yticklabels=False,
    )  # fmt: skip
    _name_layers(cells, list(table.columns))
    cells.set_yticks([i + 0.5 for i in range(lines)])
    cells.set_yticklabels([canvas.plain(n) for n in table.index], rotation=0)
    cells.tick_params(axis="y", labelsize=8.5, labelcolor=INK, length=0)
    cells.set_ylabel("")
    for edge in _edges(facts)[1:]:
        cells.axvline(edge, color=MUTED, linewidth=1.1)
    if value == "on":
        _write_sums(cells, table, facts)
    _colour_bar(figure, cells, value, top)
    figure.suptitle(_TITLES[value], x=0.01, ha="left", fontsize=10, color=INK, fontweight="bold")
    return figure


def _draw_costs(axes: Axes, facts: pd.DataFrame, characters: float) -> None:
    """Bars: each layer's share of the parameters; their colour is the layer's kind."""
    share = 100 * facts["params"] / max(facts["params"].sum(), 1)
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
    canvas.dress(axes, y="params, %", grid="")
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


def _write_sums(axes: Axes, table: pd.DataFrame, facts: pd.DataFrame) -> None:
    """To the right of each row: layers adapted, and their share of the layers' parameters."""
    share = 100 * (table @ facts["params"]) / max(facts["params"].sum(), 1)
    for i, (total, percent) in enumerate(zip(table.sum(axis=1), share, strict=True)):
        text = f"{count(round(total, 6))} layers, {percent:.{0 if percent >= 9.5 else 1}f} %"
        axes.text(
            1.008, i + 0.5, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8,
            color=MUTED,
        )  # fmt: skip


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Names under the columns; of a deep network every n-th, with its number."""
    every = math.ceil(len(names) / _MAX_NAMES)
    places = range(0, len(names), every)
    axes.set_xticks([i + 0.5 for i in places])
    axes.set_xticklabels([canvas.plain(names[i], 26) for i in places], rotation=90)
    axes.tick_params(axis="x", labelsize=7.5, labelcolor=INK, length=2, color=GRID)


def _colour_bar(figure: Figure, axes: Axes, value: Value, top: float) -> None:
    bar = figure.colorbar(axes.collections[0], ax=axes, fraction=0.025, pad=0.015, aspect=12)
    bar.solids.set_rasterized(True)
    bar.outline.set_edgecolor(GRID)
    bar.set_ticks([0, top / 2, top])
    bar.set_ticklabels(["none", "half", "all"] if value == "on" else _rounded(top))
    bar.ax.tick_params(labelsize=8, labelcolor=INK, length=0)


def _rounded(top: float) -> list[str]:
    return [f"{part:.2g}" for part in (0, top / 2, top)]


def _edges(facts: pd.DataFrame) -> list[int]:
    """The columns at which a part of the network begins."""
    parts = list(facts["stage"])
    return [i for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]


def _names(run: Run) -> list[str]:
    return [state["name"] for state in run.result["layer_states"]]


def _values(run: Run, value: Value) -> list[float]:
    return [float(state[value] or 0) for state in run.result["layer_states"]]
