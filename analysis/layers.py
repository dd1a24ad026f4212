"""Which layers were adapted? A heat map over the network, input on the left.

One row per experiment, one column per layer. Darkness is the share of seeds that adapted the
layer, or how far its weights moved. The bars above say how much each layer costs, because half
of the layers may be a tenth of the parameters. Every map is also a table (``layer_table``).

Source: the heat map of TAPS (Wallingford et al., CVPR 2022), there one run per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure

from analysis import canvas, grid
from analysis.answer import Answer
from analysis.rows import EXPERIMENT, Run, final, gates_blocks, grouped, labels
from analysis.table import count
from tailor.errors import BadInput

Value = Literal["on", "change"]
Group = Literal["stage", "kind"]

_TITLES = {
    "on": "Share of seeds that adapted the layer",
    "change": "Relative change of weights, ‖delta‖ / ‖universal‖",
}


def answer(runs: Sequence[Run], value: Value = "on", group: Group = "stage") -> Answer:
    """Share of seeds that adapted each layer, or how far it moved; a line per experiment.

    Args:
        runs: runs of one backbone, any tasks; those that chose between layers are told, or all
            where none did.
        value: see ``layer_table``.
        group: layers in network order, or by what they do in their block (``role``).

    Raises:
        BadInput: runs of different backbones, or none that lists its layers.
    """
    chosen = selective(runs)
    if runs and not chosen:
        raise BadInput(
            "these runs chose between blocks and adapted no layer; `tailor blocks` shows the "
            "blocks that they kept"
        )
    if value == "change":  # before it is retrained, a student's weights are on their way
        chosen = [run for _, members in final(chosen) for run in members]
    frame, facts = arranged(layer_table(chosen, value), layer_facts(chosen), group)
    top = _top(frame, value)
    shown = pd.DataFrame({"Setting": frame.index, "Layers": grid.strips(frame, facts, top=top)})
    if value == "on":
        shown["Adapted"] = _sums(frame, facts)
    dark = grid.SCALE if value == "on" else f"{grid.SCALE.rpartition(',')[0]}, █ {top:.3g}"
    order = "Input on the left." if group == "stage" else "Grouped by what a layer does."
    parts = ", ".join(dict.fromkeys(facts["stage"]))
    return Answer(
        _TITLES[value],
        f"{order} One character per layer: {dark}; a space separates {parts}. "
        "Percent: share of all layers' parameters. A stage that adapts the same layers as the one "
        "before it has no line.",
        frame.rename_axis("setting"),
        heat_map(chosen, value, group),
        shown,
    )


def arranged(
    table: pd.DataFrame, facts: pd.DataFrame, group: Group
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and facts with their layers in network order, or those of one role together.

    Args:
        table: of ``layer_table``.
        facts: of ``layer_facts``.
        group: ``kind`` puts the role of a layer in the place of its stage.
    """
    if group == "stage":
        return table, facts
    roles = pd.Series([role(str(name)) for name in facts.index], index=facts.index)
    first = {r: i for i, r in reversed(list(enumerate(roles)))}
    order = roles.map(first).sort_values(kind="stable").index
    return table[list(order)], facts.assign(stage=roles).loc[order]


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
    found = grouped(runs)
    names = labels([row for row, _ in found], task=True)
    for name, (row, members) in zip(names, found, strict=True):
        columns = zip(*(_values(run, value) for run in members), strict=True)
        line = [sum(column) / len(column) for column in columns]
        whatever_stage = tuple(row[n] for n in EXPERIMENT)
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


def role(name: str) -> str:
    """What a layer does in its block: ``layer1.0.conv2`` is a ``conv2``, as in every block.

    ``blocks.3.mlp.fc1`` is an ``mlp.fc1``; a layer in no block, such as the stem, is ``no block``.
    """
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers or len(parts) <= 2:
        return "no block"
    deepest = numbers[-1] if numbers[-1] < len(parts) - 1 else (numbers[:-1] or [0])[-1]
    return ".".join(part for part in parts[deepest + 1 :] if not part.isdigit()) or "no block"


def selective(runs: Sequence[Run]) -> list[Run]:
    """The runs that chose between layers, or all if none did: a row of ones says nothing.

    Runs that chose between blocks are never among them: ``blocks.py`` shows what they kept.
    """
    runs = [run for run in runs if not gates_blocks(run)]
    chosen = [
        run
        for run in runs
        if len({s["on"] for s in run.result.get("layer_states") or []}) > 1
        or run.result.get("lam") is not None
    ]
    return chosen or runs


def heat_map(runs: Sequence[Run], value: Value = "on", group: Group = "stage") -> Figure:
    """Draw ``layer_table(runs, value)`` with the cost of each layer above it.

    Raises:
        BadInput: runs of different backbones, or none that lists its layers.
    """
    table, facts = arranged(layer_table(runs, value), layer_facts(runs), group)
    top = _top(table, value)
    return grid.draw(
        table,
        facts,
        title=_TITLES[value],
        colour=canvas.palette([])["finetune"] if value == "change" else canvas.palette(["m"])["m"],
        top=top,
        ticks=("none", "half", "all") if value == "on" else _rounded(top),
        sums=_sums(table, facts) if value == "on" else None,
    )


def _top(table: pd.DataFrame, value: Value) -> float:
    """The value of the darkest cell."""
    return 1.0 if value == "on" else max(float(table.to_numpy().max()), 1e-6)


def _sums(table: pd.DataFrame, facts: pd.DataFrame) -> list[str]:
    """Of each row: layers adapted, and their share of the layers' parameters."""
    share = 100 * (table @ facts["params"]) / max(facts["params"].sum(), 1)
    return [
        f"{count(round(total, 6))} layers, {percent:.{0 if percent >= 9.5 else 1}f} %"
        for total, percent in zip(table.sum(axis=1), share, strict=True)
    ]


def _rounded(top: float) -> tuple[str, ...]:
    return tuple(f"{part:.2g}" for part in (0, top / 2, top))


def _names(run: Run) -> list[str]:
    return [state["name"] for state in run.result["layer_states"]]


def _values(run: Run, value: Value) -> list[float]:
    return [float(state[value] or 0) for state in run.result["layer_states"]]
