"""Which universal blocks did each task keep? A heat map of gates over the network.

One row per experiment in its last stage, one column per universal block, input on the left.
Darkness is the gate of the block's own path, mean over seeds; a block that was pruned away counts
as 0. The bars above say how much each block costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis import canvas, grid
from analysis.answer import Answer
from analysis.layers import stage
from analysis.rows import Run, final, gates_blocks, labels
from analysis.table import count
from tailor.errors import BadInput


def answer(runs: Sequence[Run]) -> Answer:
    """The gates of all universal blocks, a line per experiment.

    Raises:
        BadInput: runs of different backbones, or none that gates paths.
    """
    frame = block_table(runs).rename_axis("setting")
    kept = kept_table(runs).sum(axis=1)
    bars = grid.strips(frame, block_facts(runs), top=1.0)
    shown = pd.DataFrame({"Setting": frame.index, "Blocks": bars, "Kept": [count(k) for k in kept]})
    return Answer(
        "Which universal blocks were kept",
        "Gate of each universal block's own path, mean over seeds; 0 where the block was removed "
        f"({grid.SCALE}). Every experiment is told in its last stage.",
        frame,
        block_map(runs),
        shown,
    )


def gates_table(run: Run) -> pd.DataFrame:
    """Every path into a block, in network order; what a pruned run has removed is said.

    Returns:
        ``block`` (the one that the path leads into), ``path``, ``gate`` (NaN for a universal block
        that is gone), ``params``, ``macs``, ``kept``. Proxies that are gone have no line.

    Raises:
        BadInput: the run gates no paths.
    """
    check(run)
    paths: dict[str, list[dict[str, object]]] = {
        block["name"]: [] for block in run.result["blocks"]
    }
    for gate in run.result["gates"]:
        line = {"path": gate["name"], "gate": gate["value"], "params": gate["params"]}
        paths.setdefault(gate["target"], []).append(line | {"macs": gate["macs"], "kept": True})
    lines = []
    for block in run.result["blocks"]:
        name = block["name"]
        if name not in [path["path"] for path in paths[name]]:
            gone = {"path": name, "gate": math.nan, "params": block["params"]}
            paths[name].insert(0, gone | {"macs": block["macs"], "kept": False})
        lines += [{"block": name} | path for path in paths[name]]
    return pd.DataFrame(lines, columns=["block", "path", "gate", "params", "macs", "kept"])


def block_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows: experiments; columns: universal blocks in network order.

    Args:
        runs: runs of one backbone, any tasks; those that gate no paths are left out, and so are the
            stages of an experiment before its last one.

    Returns:
        The gate of each block's universal path, mean over seeds, 0 where the block is gone.

    Raises:
        BadInput: runs of different backbones, or none that gates paths.
    """
    names = list(block_facts(runs).index)
    found = final([run for run in runs if gates_blocks(run)])
    lines = []
    for _, members in found:
        tables = [gates_table(run).set_index("path")["gate"].fillna(0.0) for run in members]
        lines.append(sum(gates[names].to_numpy() for gates in tables) / len(tables))
    titles = labels([row for row, _ in found], task=True)
    return pd.DataFrame(lines, index=titles, columns=names)


def kept_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The rows and columns of ``block_table``: the share of seeds that kept the block."""
    names = list(block_facts(runs).index)
    found = final([run for run in runs if gates_blocks(run)])
    lines = [
        [
            sum(run.result["blocks"][i]["kept"] for run in members) / len(members)
            for i in range(len(names))
        ]
        for _, members in found
    ]
    return pd.DataFrame(lines, index=labels([row for row, _ in found], task=True), columns=names)


def block_facts(runs: Sequence[Run]) -> pd.DataFrame:
    """The universal blocks that all runs with gated paths share, in network order.

    Returns:
        Index: block names; columns: ``kind``, ``params``, ``macs``, ``stage``.

    Raises:
        BadInput: runs of different backbones, or none that gates paths.
    """
    listed = [run for run in runs if gates_blocks(run)]
    if not listed:
        raise BadInput("no run gates the paths into its blocks; give runs of nettailor")
    for run in listed:
        check(run)
    first = listed[0]
    names = [block["name"] for block in first.result["blocks"]]
    for run in listed[1:]:
        if [block["name"] for block in run.result["blocks"]] != names:
            raise BadInput(
                f"{str(first.path)!r} has backbone {first.result['backbone']} ({len(names)} "
                f"blocks), {str(run.path)!r} has {run.result['backbone']} "
                f"({len(run.result['blocks'])} blocks); draw one heat map for each"
            )
    blocks = first.result["blocks"]
    columns = {name: [block[name] for block in blocks] for name in ("params", "macs")}
    parts = {"kind": ["universal block"] * len(names), "stage": [stage(name) for name in names]}
    return pd.DataFrame(columns | parts, index=names)


def block_map(runs: Sequence[Run]) -> Figure:
    """Draw ``block_table(runs)`` with the MACs of each block above it.

    Raises:
        BadInput: runs of different backbones, or none that gates paths.
    """
    table, kept, facts = block_table(runs), kept_table(runs), block_facts(runs)
    share = 100 * (kept @ facts["macs"]) / max(facts["macs"].sum(), 1)
    sums = [
        f"{count(round(total, 6))} blocks, {percent:.0f} %"
        for total, percent in zip(kept.sum(axis=1), share, strict=True)
    ]
    return grid.draw(
        table,
        facts,
        title="Gate of each universal block; empty where it is gone",
        colour=canvas.palette(["m"])["m"],
        top=1.0,
        ticks=("0", "0.5", "1"),
        sums=sums,
        cost="macs",
        numbers=True,
    )


def check(run: Run) -> None:
    """Refuse a run whose gates cannot be shown as paths between blocks.

    Raises:
        BadInput: the method gates no paths, or the run does not list its blocks.
    """
    name, method = str(run.path), run.result["method"]
    if not gates_blocks(run):
        raise BadInput(
            f"run {name!r} of method {method} has no gated paths between blocks; "
            f"`tailor report {name} --out report.html` shows its layers as a heat map"
        )
    if not run.result.get("blocks"):
        raise BadInput(
            f"{name}/result.json lists no blocks; delete the file and repeat the run's command"
        )
