"""What do the runs say, in a few sentences, and where do they come from?

The headline names one setting per task and backbone. It is chosen on validation data and told
with its accuracy on the test split; ``pareto.trade_off`` is the rule. ``doubts`` says when means
mislead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.pareto import methods_of, priced_in, trade_off
from analysis.rows import EXPERIMENT, Run, experiments
from analysis.runs import SWEEP
from analysis.table import chosen, number, plus_minus, settled
from tailor.run import PLACE, read_json

WITHIN = 1.0  # percentage points below fine-tuning that the headline's setting may lose
_LEAST = {"params": "the fewest added parameters", "macs": "the fewest MACs"}


def title(frame: pd.DataFrame) -> str:
    """What was adapted to what, from the lines of ``analysis.table.table``."""
    tasks, backbones = (list(dict.fromkeys(frame[n])) for n in ("task", "backbone"))
    of = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
    on = backbones[0] if len(backbones) == 1 else f"{len(backbones)} backbones"
    return f"{of} on {on}"


def facts(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """How many runs, settings and seeds, and the time they took."""
    seconds = math.fsum(_float(run.result.get("seconds") or 0) for run in runs)
    seeds = sorted(set(frame["seeds"]))
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    time = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return " · ".join(
        [
            f"{len(runs)} run" + "s" * (len(runs) > 1),
            f"{len(frame)} setting" + "s" * (len(frame) > 1),
            f"{each} seed" + "s" * (seeds[-1] > 1) + " each",
            f"{time} of computing",
        ]
    )


def headline(frame: pd.DataFrame) -> list[str]:
    """A sentence per task and backbone: which setting is the best trade-off, and what it costs."""
    said = []
    groups = frame.groupby(["task", "backbone"], sort=False)
    for (task, backbone), lines in groups:
        where = f"{task} on {backbone}: " if len(groups) > 1 else ""
        found = trade_off(lines, WITHIN)
        if found is None:
            said.append(f"{task} on {backbone}: {_references(lines)}.")
            continue
        best = lines.loc[found]
        if not where and _has_choice(lines):
            where = "Best trade-off: "
        tuned = lines[lines["method"] == "finetune"]
        sentence = f"{where}{best['label']} reaches {_accuracy(best)}, {_costs(best)}"
        if len(tuned):
            tuned_line = tuned.iloc[0]
            sentence += (
                f"; fine-tuning reaches {_accuracy(tuned_line)} and adds "
                f"{_percent(tuned_line['task_percent'])}"
            )
        said.append(sentence + ".")
    return said


def named(frame: pd.DataFrame) -> list[Any]:
    """Index labels of the lines that the headline prefers to others; none without a choice."""
    groups = [lines for _, lines in frame.groupby(["task", "backbone"], sort=False)]
    found = [trade_off(lines, WITHIN) for lines in groups if _has_choice(lines)]
    return [place for place in found if place is not None]


def rule(frame: pd.DataFrame) -> str:
    """How the headline chose; empty where it had no choice."""
    groups = [lines for _, lines in frame.groupby(["task", "backbone"], sort=False)]
    costs = dict.fromkeys(_LEAST[priced_in(lines)] for lines in groups if _has_choice(lines))
    if not costs:
        return ""
    return (
        f"Named is the setting with {' or '.join(costs)} within {WITHIN:g} point of "
        "fine-tuning, or the most accurate one where none is; the choice is made on validation "
        "data, the accuracy is of the test split."
    )


def doubts(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before trusting the means: mixed backbones, seeds counted twice."""
    said = []
    for name, members in experiments(runs):
        seeds = [run.result["seed"] for run in members]
        prints = {run.result.get("fingerprint") for run in members}
        if len(set(seeds)) < len(seeds):
            differ = ", ".join(_differing(members)) or "nothing that run.json tells"
            said.append(
                f"{name}: {len(seeds)} runs have only {len(set(seeds))} different seeds, so ± is "
                f"no spread over seeds. The runs differ in: {differ}."
            )
        if len(prints) > 1:
            said.append(
                f"{name}: its runs adapt {len(prints)} different sets of universal weights."
            )
    return said


def provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """Which command made each run, from which universal weights, and how long it took."""
    return pd.DataFrame(
        {
            "Run": [str(run.path) for run in runs],
            "Seed": [str(run.result["seed"]) for run in runs],
            "Seconds": [number(_float(run.result.get("seconds")), ".0f") for run in runs],
            "Fingerprint": [str(run.result.get("fingerprint") or "–")[:8] for run in runs],
            "Command": [str(run.result.get("command") or "–") for run in runs],
        }
    )


def origins(experiments: Iterable[Sequence[Run]]) -> list[list[dict[str, str]]]:
    """For every run of each experiment what ``provenance`` tells, by title.

    The versions that made it are told where not all runs have the same.
    """
    groups = list(experiments)
    differ = len({_made_with(run) for runs in groups for run in runs}) > 1
    told = []
    for runs in groups:
        frame = provenance(runs).rename(columns={"Fingerprint": "Universal weights"})
        if differ:
            frame["Made with"] = [_made_with(run) or "–" for run in runs]
        told.append(
            [{str(n): str(v) for n, v in line.items()} for line in frame.to_dict("records")]
        )
    return told


def study(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Name and value of what is known about the sweeps among ``paths``; empty without one.

    Told are the command, what was searched, how the trials of the last session that saw the end
    went, and what lies in the folder.
    """
    told = []
    for folder in (path for path in paths if (path / SWEEP).exists()):
        for name, about in (read_json(folder / SWEEP).get("studies") or {}).items():
            told += [("Sweep", f"{name}, in {folder}"), ("Command", str(about.get("command")))]
            told += [(n, v) for n, v in _space(about.get("space") or {}) if v]
            told.append(("Database", str(about.get("storage"))))
            if trials := about.get("trials"):
                told.append(("Trials", f"{trials['done']} of {trials['total']} done"))
                told += [("Failed", str(error)) for error in trials["errors"]]
        finished, begun = (_folders_with(name, folder) for name in ("result.json", "run.json"))
        begun -= finished
        runs = f"{len(finished)} finished"
        told.append(("Runs", runs + (f", {len(begun)} begun but not finished" if begun else "")))
    return told


def _made_with(run: Run) -> str:
    by = run.result.get("made_by") or run.setup.get("made_by") or {}
    return ", ".join(f"{name} {version}" for name, version in by.items())


def _folders_with(name: str, folder: Path) -> set[Path]:
    """The folders below that hold such a file; hidden ones are the sweep's own affair."""
    found = {file.parent.relative_to(folder) for file in folder.rglob(name)}
    return {path for path in found if not any(part.startswith(".") for part in path.parts)}


def _space(space: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a sweep tried, for people; options that it left alone are not told."""
    names = {"task": "Tasks", "method": "Methods", "lam": "λ", "seed": "Seeds", "rule": "Pruning"}
    names |= {"option": "Options", "search": "Searched", "until": "Last stage"}
    names |= {"retrain_epochs": "Epochs after pruning"}
    said = [(title, _listed(space.get(name))) for name, title in names.items()]
    weights = space.get("backbone") or {}
    backbones = ", ".join(f"{name} ({str(print_)[:8]})" for name, print_ in weights.items())
    said.insert(1, ("Backbones", backbones))
    for name, title in (("train", "Training"), ("view", "Images")):
        options = space.get(name) or {}
        pairs = [f"{k} {_listed(v)}" for k, v in options.items() if v not in (None, False, "")]
        said.append((title, ", ".join(pairs)))
    if space.get("search"):
        said.append(("Objectives", _listed(space.get("objectives"))))
    return said


def _listed(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_listed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def versions(runs: Sequence[Run]) -> str:
    """The software that made the runs; several combinations are told one after the other."""
    said = [words for words in dict.fromkeys(map(_made_with, runs)) if words]
    return "Made with " + "; ".join(said) + "." if said else "The runs do not say what made them."


def _has_choice(lines: pd.DataFrame) -> bool:
    """Whether more than one setting was tried; the stages of one setting are no choice."""
    return len(methods_of(settled(lines))[[*EXPERIMENT, "rule"]].drop_duplicates()) > 1


def _costs(line: Any) -> str:
    """What a setting keeps or adapts, and what it adds to the backbone."""
    adds = f"adds {_percent(line['task_percent'])} of the backbone's parameters"
    if line["gated"] != "blocks":
        return f"adapts {chosen(line)} and {adds}"
    network = f"; as one network it has {_percent(100 * line['macs_ratio'])} of the backbone's MACs"
    if not math.isnan(line["network_percent"]):
        network += f" and {_percent(line['network_percent'])} of its parameters"
    return f"keeps {chosen(line)} and {adds}{network}"


def _accuracy(line: Any) -> str:
    split = "test" if not math.isnan(line["test"]) else "val"
    if math.isnan(line[split]):
        return "an unknown accuracy"
    where = "" if split == "test" else " (validation)"
    return _tied(f"{plus_minus(line[split], line[f'{split}_spread'])} %{where}")


def _references(lines: pd.DataFrame) -> str:
    return ", ".join(
        f"{line['label']} reaches {_accuracy(line)}" for line in lines.to_dict("records")
    )


def _percent(value: float) -> str:
    return _tied(f"{number(value, '.0f' if value >= 9.95 else '.2g')} %")


def _tied(text: str) -> str:
    """No line may end between a number and its unit."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _differing(runs: Sequence[Run]) -> list[str]:
    """Names of the configuration's entries in which runs differ, seed and place aside."""
    configs = [_entries(run.setup.get("config") or {}) for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    return [n for n in names if any(config.get(n) != configs[0].get(n) for config in configs)]


def _entries(config: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    """``{"train": {"lr": 1}}`` as ``{"train.lr": 1}``."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _entries(value, f"{inside}{name}.")
        elif name not in ("seed", "out", *PLACE):
            found[inside + name] = value
    return found


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
