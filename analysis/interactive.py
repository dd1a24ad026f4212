"""The Pareto plot that answers to a mouse: its data as JSON, and plotly to draw it offline.

Everything a point says is prepared here; ``chart.js`` chooses the axis of cost, follows light and
dark and the width of the window. plotly.js stands in the page once, as its Python package ships it.
The picture of ``pareto.py`` stays beside the chart, for paper and for readers without scripts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from analysis import canvas, pareto
from analysis.rows import Run
from analysis.table import chosen, number

_SYMBOLS = {"adapt": "circle", "pruned": "triangle-down", "retrained": "diamond"}
_SAID = {  # cost -> what a point says about it
    "params": "adds {} % of the backbone's parameters (without head)",
    "macs": "{} % of the backbone's MACs",
    "latency": "{} % of the backbone's time",
}
_MOST_PATHS = 5  # more run directories than this are counted in a label, not named


def chart(lines: pd.DataFrame, members: Mapping[Any, Sequence[Run]], of: str = "") -> str:
    """The data of one chart as JSON that may stand in a page; empty where nothing is known.

    Args:
        lines: of ``analysis.table.table``, of one backbone.
        members: the runs of each line, by its index.
        of: end of the title, where there are several charts.

    Returns:
        ``costs`` (the axes to choose from, ``start`` is the first one shown), ``tasks``,
        ``series``, ``references`` (horizontal lines) and ``points``: each with ``accuracy`` and
        ``half`` (of its 95 % interval, absent for one seed) in percent, ``cost`` by axis in percent
        of the backbone, ``front`` by axis, and what to say about it. No character of it can end the
        script that holds it.
    """
    tables = {cost: pareto.pareto_table(lines, cost) for cost in get_args(pareto.Cost)}
    tables = {cost: table for cost, table in tables.items() if _tells(cost, table)}
    if not tables:
        return ""
    known = next(iter(tables.values()))
    tasks, names = (list(dict.fromkeys(known[n])) for n in ("task", "series"))
    colours = canvas.palette(names)
    series = list(dict.fromkeys(zip(known["series"], known["stage"], strict=True)))
    points = []
    for place, line in known.iterrows():
        if math.isnan(line["accuracy"]):
            continue
        at = {cost: table.loc[place] for cost, table in tables.items()}
        points.append(
            {"task": tasks.index(line["task"])}
            | {"series": series.index((line["series"], line["stage"]))}
            | _point(lines.loc[place], at, members[place])
        )
    start = pareto.priced_in(lines)
    data = {
        "start": list(tables).index(start) if start in tables else 0,
        "costs": [_axis(cost, table, of) for cost, table in tables.items()],
        "tasks": [_panel(task, known[known["task"] == task]) for task in tasks],
        "series": [_series(name, stage, colours[name]) for name, stage in series],
        "references": [
            {"task": tasks.index(line["task"]), "name": line["series"]}
            | {"accuracy": line["accuracy"], "colour": colours[line["series"]]}
            for line in known.to_dict("records")
            if line["method"] in ("finetune", "probe") and not math.isnan(line["accuracy"])
        ],
        "points": points,
    }
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def plotly() -> str:
    """plotly.js as text for a script element of a page; some 5 MB."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def script() -> str:
    """What draws the charts of a page once plotly is there."""
    return (Path(__file__).parent / "chart.js").read_text(encoding="utf-8")


def _tells(cost: str, table: pd.DataFrame) -> bool:
    """Parameters always; another cost where it is known and not the same for everybody."""
    return cost == "params" or table["cost"].dropna().round(6).nunique() > 1


def _axis(cost: pareto.Cost, table: pd.DataFrame, of: str) -> dict[str, Any]:
    costs = table["cost"].dropna()
    least = costs[costs > 0].min() if (costs > 0).any() else 1.0
    return {
        "key": cost,
        "name": pareto.NAMES[cost],
        "title": f"Accuracy against {pareto.NAMES[cost]}{of}",
        "axis": pareto.COSTS[cost][1],
        "scale": "cost" if cost == "params" else "linear",
        "first": 10.0 ** math.floor(math.log10(least)),  # 0 has a place left of it
        "most": max(100.0, float(costs.max())) if len(costs) else 100.0,
    }


def _panel(task: str, points: pd.DataFrame) -> dict[str, str]:
    split = {"test": "Test", "val": "Validation"}[points["split"].iloc[0]]
    return {"name": task, "axis": f"{split} accuracy, %"}


def _series(name: str, stage: str, colour: str) -> dict[str, Any]:
    reference = name in pareto.REFERENCES
    return {
        "name": name if reference or stage == "adapt" else f"{name}, {stage}",
        "stage": stage,
        "colour": colour,
        "symbol": "square" if reference else _SYMBOLS.get(stage, "circle"),
        "line": not reference,
        "dash": "dot" if stage == "pruned" else "solid",
    }


def _point(line: Any, at: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Numbers for the axes, and what a label says; plotly reads its tags, so names are escaped."""
    first = next(iter(at.values()))
    half = None if math.isnan(first["ci95"]) else float(first["ci95"])
    costs = {c: float(p["cost"]) for c, p in at.items() if not math.isnan(p["cost"])}
    seeds = f"{len(runs)} seed" + "s" * (len(runs) > 1)
    told = {cost: _SAID[cost].format(number(value, ".3g")) for cost, value in costs.items()}
    if "latency" in told:
        told["latency"] += f": {number(at['latency']['latency_ms'], '.3g')} ms"
    paths = [str(run.path) for run in runs[:_MOST_PATHS]]
    if len(runs) > _MOST_PATHS:
        paths.append(f"and {len(runs) - _MOST_PATHS} more")
    accuracy = f"{number(first['accuracy'], '.2f')} %"
    if half is not None:
        accuracy += f" ± {number(half, '.2f')} (95 % interval of {seeds})"
    point: dict[str, Any] = {
        "label": _text(line["label"]),
        "short": _text("" if math.isnan(line["lam"]) else f"λ {line['lam']:g}"),
        "said": accuracy if half is not None else f"{accuracy}, {seeds}",
        "accuracy": float(first["accuracy"]),
        "cost": costs,
        "told": told,
        "front": {cost: bool(p["front"]) for cost, p in at.items()},
        "facts": [_text(f"{'keeps' if line['gated'] == 'blocks' else 'adapts'} {chosen(line)}")]
        + [_text(path, 60) for path in paths],
    }
    return point if half is None else point | {"half": half}


def _text(words: object, most: int = 80) -> str:
    """One line that says the same in plotly as here; the end of a long path tells more."""
    line = " ".join(str(words).split())
    return escape(line if len(line) <= most else f"…{line[1 - most :]}", quote=False)
