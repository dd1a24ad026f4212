"""Rows: one per run, and which runs belong together.

The fields of a row are the contract of ``tailor report --json``: fields may be added, never
renamed. Runs that differ by their seed are one experiment. How runs are read is in ``runs.py``,
means over seeds are in ``table.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.runs import SWEEP as SWEEP
from analysis.runs import Run as Run
from analysis.runs import origin as origin
from analysis.runs import read_runs as read_runs
from tailor.run import PLACE

# Runs equal in these differ by seed.
GROUP = ("task", "backbone", "method", "stage", "price", "lam", "variant", "rule")
EXPERIMENT = tuple(name for name in GROUP if name not in ("stage", "rule"))  # its stages together

BETWEEN = " · "  # task and setting in a label

_PARAMS = (
    *("universal", "task", "deltas", "norms", "scores", "adapters", "masks", "shared", "head"),
    *("multiple", "network"),
)
_PATHS = ("universal", "proxy")  # kinds of gates that lead into a block
_METHODS = ("finetune", "scratch", "probe")  # the references come first, methods by name after them
_STAGES = ("teacher", "adapt", "pruned", "compressed", "retrained")


def rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One dictionary per run: the fields that ``tailor report --json`` prints.

    Accuracies are fractions in [0, 1]; what a run did not measure is None. ``gated`` says what the
    method switches on and off: ``layers``, ``blocks`` or None. ``variant`` and ``rule`` name the
    method's settings and the pruning options in which runs of one task, backbone and method differ.
    """
    runs = list(runs)
    told = [(_peers(run), _settings(run), _pruning(run)) for run in runs]
    found = []
    for run, (peers, settings, pruning) in zip(runs, told, strict=True):
        same = [other for other in told if other[0] == peers]
        names = {
            "variant": _differing(settings, [other[1] for other in same]),
            "rule": _differing(pruning, [other[2] for other in same]),
        }
        found.append(_row(run) | names)
    return found


def gates_blocks(run: Run) -> bool:
    """Whether the run's method gates the paths into universal blocks."""
    return any(gate["kind"] in _PATHS for gate in run.result.get("gates") or [])


def group(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of ``GROUP``: rows with the same ones are seeds of one experiment."""
    return tuple(record[name] for name in GROUP)


def grouped(runs: Iterable[Run]) -> list[tuple[dict[str, Any], list[Run]]]:
    """Runs that differ by seed only, together under the row of the first; in order."""
    runs = list(runs)
    found: dict[tuple[Any, ...], tuple[dict[str, Any], list[Run]]] = {}
    for row, run in sorted(zip(rows(runs), runs, strict=True), key=lambda pair: order(pair[0])):
        found.setdefault(group(row), (row, []))[1].append(run)
    return list(found.values())


def final(runs: Iterable[Run]) -> list[tuple[dict[str, Any], list[Run]]]:
    """``grouped``, of each experiment its last stage only: retrained before pruned before adapted.

    The stages before still had what was pruned since. Where one student was pruned by several
    rules, each of them stays.
    """
    latest: dict[tuple[Any, ...], tuple[dict[str, Any], list[Run]]] = {}
    for row, members in grouped(runs):  # stages follow each other, so a later one replaces
        latest[*_experiment(row), row["rule"]] = row, members
    pruned = {_experiment(row) for row, _ in latest.values() if row["stage"] != "adapt"}
    return [
        (row, members)
        for row, members in latest.values()
        if row["stage"] != "adapt" or _experiment(row) not in pruned
    ]


def experiments(runs: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """``grouped``, with a name for each group; references first, λ upward."""
    found = grouped(runs)
    names = labels([row for row, _ in found], task=True)
    return [(name, members) for name, (_, members) in zip(names, found, strict=True)]


def label(record: Mapping[str, Any], *, price: bool = False) -> str:
    """A short name for a row or a line of the table, such as ``taps λ=0.1 retrained``.

    Args:
        record: anything with ``method``, ``stage``, ``lam`` and ``price``; ``variant`` and ``rule``
            are told where it has them.
        price: also say how layers were priced; wanted where several prices are compared.
    """
    words = [str(record["method"])]
    if not missing(record["lam"]):
        words.append(f"λ={record['lam']:g}")
    if price and not missing(record["price"]):
        words.append(f"per {record['price']}")
    words += [record[name] for name in ("variant", "rule") if record.get(name)]
    if record["stage"] not in ("teacher", "adapt"):
        words.append(str(record["stage"]))
    return " ".join(words)


def labels(records: Sequence[Mapping[str, Any]], *, task: bool = False) -> list[str]:
    """A label for each record that says the price and the task only where they differ.

    Args:
        records: rows, or lines of the table as dictionaries.
        task: put the task in front, if there is more than one.
    """
    several_tasks = task and len({r["task"] for r in records}) > 1
    several_prices = several_priced(records)
    return [
        (f"{r['task']}{BETWEEN}" if several_tasks else "")
        + label(r, price=r["method"] in several_prices)
        for r in records
    ]


def several_priced(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """The methods that were run with more than one price."""
    prices: dict[str, set[str]] = {}
    for record in records:
        if not missing(record["price"]):
            prices.setdefault(record["method"], set()).add(record["price"])
    return {method for method, found in prices.items() if len(found) > 1}


def order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort key: task, backbone, references before methods, λ upward, stages as they follow."""

    def numbered(name: str) -> str:  # count=9 comes before count=11
        return re.sub(r"\d+", lambda digits: digits[0].zfill(9), record.get(name) or "")

    method, stage = str(record["method"]), str(record["stage"])
    return (
        str(record["task"]),
        str(record["backbone"]),
        _METHODS.index(method) if method in _METHODS else len(_METHODS),
        method,
        "" if missing(record["price"]) else str(record["price"]),
        numbered("variant"),
        -math.inf if missing(record["lam"]) else float(record["lam"]),
        numbered("rule"),
        _STAGES.index(stage) if stage in _STAGES else len(_STAGES),
        str(record.get("seed", "")).rjust(12, "0"),
    )


def missing(value: Any) -> bool:
    """Whether a value is None or NaN: pandas turns the one into the other."""
    return value is None or value != value


def _row(run: Run) -> dict[str, Any]:
    result = run.result
    params = {"masks": 0, "shared": 0} | result["params"]  # runs of before have neither
    blocks = result.get("blocks")
    return {
        "run": str(run.path),
        **{name: result[name] for name in ("task", "method", "backbone", "seed", "stage")},
        "metric": result.get("metric", "top1"),
        "val": result.get("val"),
        "test": result.get("test"),
        "gated": _gated(run),
        "layers": result["layers"],
        "layers_adapted": result["layers_adapted"],
        "blocks": len(blocks) if blocks else None,
        "blocks_kept": sum(block["kept"] for block in blocks) if blocks else None,
        "params": {name: params.get(name) for name in _PARAMS},
        "macs": {name: (result.get("macs") or {}).get(name) for name in ("backbone", "student")},
        "latency": _latency(run),
        "bytes": result.get("bytes"),
        "seconds": result.get("seconds"),
        "lam": result.get("lam"),
        "price": result.get("price"),
    }


def _gated(run: Run) -> str | None:
    if gates_blocks(run):
        return "blocks"
    states = run.result.get("layer_states") or []
    scored = any(state.get("score") is not None for state in states)
    return "layers" if scored or run.result.get("lam") is not None else None


def _experiment(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in EXPERIMENT)


def _latency(run: Run) -> dict[str, Any] | None:
    names = ("ms", "ms_backbone", "ratio", "spread", "threads")
    return None if run.latency is None else {name: run.latency.get(name) for name in names}


def _peers(run: Run) -> tuple[Any, ...]:
    return tuple(run.result[name] for name in ("task", "backbone", "method"))


def _settings(run: Run) -> Mapping[str, Any]:
    """How the run was trained: λ and price have columns of their own, the seed makes no setting."""
    config = run.result.get("config") or {}
    view = {n: v for n, v in (config.get("data") or {}).items() if n not in PLACE}
    found = {**view, **_training(config), **(config.get("settings") or {})}
    return {name: value for name, value in found.items() if name not in ("lam", "price", "task")}


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    said = (config.get("train") or {}).items()
    return {name: value for name, value in said if name not in ("seed", *PLACE)}


def _pruning(run: Run) -> Mapping[str, Any]:
    """The options that pruned and retrained the student; a retrained run names its pruned one."""
    setup, options = run.setup, {}
    if setup.get("verb") == "retrain":
        options = _options(setup)
        file = Path(str((setup.get("config") or {}).get("run", ""))) / "run.json"
        try:
            setup = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # moved or removed since: then its options are unknown
            return options
    return options | (_options(setup) if setup.get("verb") == "prune" else {})


def _options(setup: Mapping[str, Any]) -> dict[str, Any]:
    """What a command said, places aside."""
    said = (setup.get("config") or {}).items()
    own = {n: v for n, v in said if n not in ("run", "teacher", "kept", "train")}
    return own | _training(setup.get("config") or {})


def _differing(own: Mapping[str, Any], all_: Sequence[Mapping[str, Any]]) -> str:
    """What sets a run apart from its peers, such as ``distill=0``; unknown is no difference."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in own.items()
        if value is not None and any(other.get(name, value) != value for other in all_)
    )
