"""Reads run directories and turns them into rows, one per run.

A run directory is finished when it holds ``result.json``; ``run.json`` says how it was started
and ``log.jsonl`` what happened on the way. The fields of a row are the contract of
``tailor report --json``: fields may be added, never renamed. Means over seeds are in ``table.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor.errors import BadInput
from tailor.run import SCHEMA

GROUP = (
    "task",
    "backbone",
    "method",
    "stage",
    "price",
    "lam",
)  # runs equal in these differ by seed

_NEEDED = ("task", "method", "backbone", "seed", "stage", "layers", "layers_adapted", "params")
_PARAMS = ("universal", "task", "deltas", "norms", "scores", "head", "multiple")
_METHODS = ("finetune", "scratch", "probe")  # the references come first, methods by name after them
_STAGES = ("teacher", "adapt", "pruned", "retrained")


@dataclass(frozen=True)
class Run:
    """One finished run directory as it lies on disk."""

    path: Path
    setup: dict[str, Any]  # run.json
    result: dict[str, Any]  # result.json
    log: list[dict[str, Any]]  # log.jsonl, oldest first


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read finished run directories, in the order given; one named twice is read once.

    Raises:
        BadInput: no path at all, or a path that is no run directory, is not finished, was
            written by another version of the format, or holds a broken file.
    """
    distinct: dict[Path, Path] = {}
    for path in map(Path, paths):
        distinct.setdefault(path.resolve(), path)
    if not distinct:
        raise BadInput("no run directory given; name at least one, such as `tailor report runs/*`")
    return [_read_run(path) for path in distinct.values()]


def rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One dictionary per run: the fields that ``tailor report --json`` prints.

    Accuracies are fractions in [0, 1]; what a run did not measure is None.
    """
    return [_row(run) for run in runs]


def group(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of ``GROUP``: rows with the same ones are seeds of one experiment."""
    return tuple(record[name] for name in GROUP)


def experiments(runs: Iterable[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that differ by seed only, together under one name; references first, λ upward."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: order(_row(run))):
        found.setdefault(group(_row(run)), []).append(run)
    names = labels([_row(members[0]) for members in found.values()], task=True)
    return list(zip(names, found.values(), strict=True))


def label(record: Mapping[str, Any], *, price: bool = False) -> str:
    """A short name for a row or a line of the table, such as ``taps λ=0.1 retrained``.

    Args:
        record: anything with ``method``, ``stage``, ``lam`` and ``price``.
        price: also say how layers were priced; wanted where several prices are compared.
    """
    words = [str(record["method"])]
    if not missing(record["lam"]):
        words.append(f"λ={record['lam']:g}")
    if price and not missing(record["price"]):
        words.append(f"per {record['price']}")
    if record["stage"] not in ("teacher", "adapt"):
        words.append(str(record["stage"]))
    return " ".join(words)


def labels(records: Sequence[Mapping[str, Any]], *, task: bool = False) -> list[str]:
    """A label for each record that says the price and the task only where they differ.

    Args:
        records: rows, or lines of the table as dictionaries.
        task: put the task in front, if there is more than one.
    """
    several_prices = len({r["price"] for r in records if not missing(r["price"])}) > 1
    several_tasks = task and len({r["task"] for r in records}) > 1
    return [
        (f"{r['task']} · " if several_tasks else "") + label(r, price=several_prices)
        for r in records
    ]


def order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort key: task, backbone, references before methods, λ upward, stages as they follow."""
    method, stage = str(record["method"]), str(record["stage"])
    return (
        str(record["task"]),
        str(record["backbone"]),
        _METHODS.index(method) if method in _METHODS else len(_METHODS),
        method,
        "" if missing(record["price"]) else str(record["price"]),
        -math.inf if missing(record["lam"]) else float(record["lam"]),
        _STAGES.index(stage) if stage in _STAGES else len(_STAGES),
        str(record.get("seed", "")).rjust(12, "0"),
    )


def missing(value: Any) -> bool:
    """Whether a value is None or NaN: pandas turns the one into the other."""
    return value is None or value != value


def _read_run(path: Path) -> Run:
    if not path.exists():
        raise BadInput(f"run {str(path)!r} does not exist; name directories that `--out` made")
    if not path.is_dir():
        raise BadInput(f"run {str(path)!r} is a file; name the run directories only")
    setup = _read_json(path, "run.json") if (path / "run.json").exists() else {}
    if setup.get("schema", SCHEMA) != SCHEMA:
        raise BadInput(
            f"run {str(path)!r} has format {setup['schema']!r}, this version of tailor reads "
            f"{SCHEMA}; install the version that wrote it, or repeat the run"
        )
    if not (path / "result.json").exists():
        raise _unfinished(path, setup)
    result = _read_json(path, "result.json")
    absent = [name for name in _NEEDED if name not in result]
    if absent or not isinstance(result["params"], dict):
        raise BadInput(
            f"{path / 'result.json'} has no field {(absent or ['params'])[0]!r}; "
            f"delete the file and {_repeat(setup)}"
        )
    return Run(path, setup, result, _read_log(path / "log.jsonl"))


def _unfinished(path: Path, setup: Mapping[str, Any]) -> BadInput:
    if setup:
        return BadInput(f"run {str(path)!r} is not finished; {_repeat(setup)}")
    inner = sorted(p.parent.name for p in path.glob("*/run.json"))
    hint = f"did you mean {path}/* ({len(inner)} runs)?" if inner else "name a directory of `--out`"
    return BadInput(f"{str(path)!r} is no run directory, it holds no run.json; {hint}")


def _repeat(setup: Mapping[str, Any]) -> str:
    command = setup.get("command")
    return "finish it by repeating its command" + (f": {command}" if command else "")


def _read_json(path: Path, name: str) -> dict[str, Any]:
    file = path / name
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; check its permissions") from error
    except ValueError as error:  # malformed JSON or malformed UTF-8
        raise BadInput(
            f"{file} is damaged ({error}); delete it and repeat the run's command"
        ) from error
    if not isinstance(value, dict):
        raise BadInput(f"{file} is damaged (no JSON object); delete it and repeat the command")
    return value


def _read_log(file: Path) -> list[dict[str, Any]]:
    if not file.exists():  # pruning trains nothing, so it logs nothing
        return []
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; check its permissions") from error
    log = []
    for line in lines:
        try:
            entry = json.loads(line, parse_constant=_no_number)
        except ValueError:
            continue  # a run that was killed leaves a torn line; the resumed run wrote it again
        if isinstance(entry, dict):
            log.append(entry)
    return log


def _no_number(_: str) -> None:
    """NaN and Infinity are no JSON: what was not a number is unknown."""


def _row(run: Run) -> dict[str, Any]:
    result = run.result
    params = result["params"]
    return {
        "run": str(run.path),
        **{name: result[name] for name in ("task", "method", "backbone", "seed", "stage")},
        "metric": result.get("metric", "top1"),
        "val": result.get("val"),
        "test": result.get("test"),
        "layers": result["layers"],
        "layers_adapted": result["layers_adapted"],
        "params": {name: params.get(name) for name in _PARAMS},
        "macs": {name: (result.get("macs") or {}).get(name) for name in ("backbone", "student")},
        "bytes": result.get("bytes"),
        "seconds": result.get("seconds"),
        "lam": result.get("lam"),
        "price": result.get("price"),
    }
