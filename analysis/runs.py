"""Reads run directories, and the directories of sweeps that hold them.

A run directory is finished when it holds ``result.json``; ``run.json`` says how it was started,
``log.jsonl`` what happened on the way, ``latency.json`` how fast its network is, if that was asked.
Left out: what is made of it (``rows.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailor.errors import BadInput
from tailor.run import BASIS, LATENCY, MATRIX, SCHEMA

SWEEP = "sweep.json"  # marks the directory of a sweep

_NEEDED = ("task", "method", "backbone", "seed", "stage", "layers", "layers_adapted", "params")


@dataclass(frozen=True)
class Run:
    """One finished run directory as it lies on disk."""

    path: Path
    setup: dict[str, Any]  # run.json
    result: dict[str, Any]  # result.json
    log: list[dict[str, Any]]  # log.jsonl, oldest first
    latency: dict[str, Any] | None = None  # latency.json, where it was measured


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read finished run directories, in the order given; one named twice is read once.

    Args:
        paths: run directories. The directory of a sweep stands for all finished runs below it, in
            the order of their names, that of a sequence for the run of each task learned; the basis
            that lies beside compressed runs is passed over.

    Raises:
        BadInput: no path at all, or a path that is no run directory, is not finished, was
            written by another version of the format, or holds a broken file.
    """
    distinct: dict[Path, Path] = {}
    for given in (path for path in map(Path, paths) if path.name != BASIS):
        for path in _inside(given):
            distinct.setdefault(path.resolve(), path)
    if not distinct:
        raise BadInput("no run directory given; name at least one, such as `tailor report runs/*`")
    return [_read_run(path) for path in distinct.values()]


def origin(run: Run) -> Run | None:
    """The run in which a student was adapted; itself, if it was never pruned or compressed.

    Retraining, pruning and compressing say where they started. Where that directory was moved, the
    one of the same name beside the run is looked for.

    Returns:
        None where the run that it came from is gone.
    """
    while run.setup.get("verb") in ("prune", "compress", "retrain"):
        said = Path(str((run.setup.get("config") or {}).get("run", "")))
        places = [said, run.path.parent / said.name]
        found = [p for p in places if said.name and (p / "result.json").exists()]
        if not found:
            return None
        run = _read_run(found[0])
    return run


def left_out(paths: Iterable[str | Path]) -> int:
    """How many runs of the sweeps among ``paths`` are begun but not finished."""
    sweeps = [path for path in map(Path, paths) if (path / SWEEP).exists()]
    begun = [file.parent for folder in sweeps for file in folder.rglob("run.json")]
    return sum(not (path / "result.json").exists() for path in begun)


def _inside(given: Path) -> list[Path]:
    """The run directories that a path stands for."""
    if (given / SWEEP).exists():
        return _of_sweep(given)
    if (given / MATRIX).exists():
        learned = _read_json(given, MATRIX).get("runs") or []
        return [given / str(name) for name in learned]
    return [given]


def _of_sweep(folder: Path) -> list[Path]:
    """The finished runs below the directory of a sweep; hidden folders are its own affair."""
    files = (file.relative_to(folder) for file in folder.rglob("result.json"))
    shown = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    if not shown:
        raise BadInput(
            f"sweep {str(folder)!r} has no finished run yet; repeat its `tailor sweep` command, or "
            "wait for its workers"
        )
    return sorted(folder / file.parent for file in shown)


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
    timed = (path / LATENCY).exists()
    latency = _read_json(path, LATENCY, "measure again") if timed else None
    return Run(path, setup, result, _read_log(path / "log.jsonl"), latency)


def _unfinished(path: Path, setup: Mapping[str, Any]) -> BadInput:
    if setup:
        return BadInput(f"run {str(path)!r} is not finished; {_repeat(setup)}")
    hint = "name a directory of `--out`"
    for depth in ("*/*", "*"):
        if inner := len(list(path.glob(f"{depth}/run.json"))):
            hint = f"did you mean {path}/{depth} ({inner} runs)?"
    return BadInput(f"{str(path)!r} is no run directory, it holds no run.json; {hint}")


def _repeat(setup: Mapping[str, Any]) -> str:
    command = setup.get("command")
    return "finish it by repeating its command" + (f": {command}" if command else "")


def _read_json(path: Path, name: str, then: str = "repeat the run's command") -> dict[str, Any]:
    file = path / name
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; check its permissions") from error
    except ValueError as error:  # malformed JSON or malformed UTF-8
        raise BadInput(f"{file} is damaged ({error}); delete it and {then}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file} is damaged (no JSON object); delete it and {then}")
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
