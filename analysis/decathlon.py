"""One source network, many domains: which method does best on all of them, and at what size?

A line per method and setting, a column per domain, the parameters of one trunk with all domains,
and the score of the Visual Decathlon (``tailor/decathlon.py``). Its ten domains are scored against
the published fine-tuning and stand beside the published results; any others are scored against the
fine-tuning among the runs, by the same formula, and compare with nothing outside of them.
How it is drawn is in ``decathlon_plot.py``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import decathlon_plot
from analysis.answer import Answer
from analysis.rows import Run, rows
from analysis.statistic import mean, spread
from analysis.table import number, plus_minus
from tailor import decathlon
from tailor.adapted import Selection
from tailor.cost import Params, multiple_for
from tailor.decathlon import DOMAINS, PUBLISHED
from tailor.errors import BadInput

REFERENCE = "finetune"
_SPEC = "decathlon:"
_STAGES = ("adapt", "pruned", "compressed", "retrained")  # of one student; the last one counts


@dataclass
class Line:
    """A method with its settings on every domain it was run on."""

    name: str
    method: str
    accuracy: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # domain, seed: %
    params: dict[str, dict[int, Params]] = field(default_factory=dict)

    def add(self, run: Run, accuracy: float) -> None:
        """Count a run; two of one domain and seed are averaged."""
        domain, seed = run.result["task"], run.result["seed"]
        self.accuracy.setdefault(domain, {}).setdefault(seed, []).append(accuracy)
        self.params.setdefault(domain, {})[seed] = _params(run)

    @property
    def seeds(self) -> list[int]:
        """The seeds that were run on every domain of the line."""
        return sorted(set.intersection(*(set(seeds) for seeds in self.accuracy.values())))

    def of_seed(self, seed: int) -> dict[str, float]:
        """Accuracy by domain, in percent."""
        return {domain: mean(seeds[seed]) for domain, seeds in self.accuracy.items()}

    def means(self) -> dict[str, float]:
        """Accuracy by domain, in percent, over all its seeds."""
        return {domain: mean(self.values(domain)) for domain in self.accuracy}

    def values(self, domain: str) -> list[float]:
        """Accuracy of each seed, in percent; nothing where there is none."""
        return [mean(found) for found in self.accuracy.get(domain, {}).values()]

    def multiple(self) -> float:
        """One trunk and all domains of the line, in trunks without heads; the mean over seeds."""
        sizes = [list(seeds.values()) for seeds in self.params.values()]
        if not self.seeds:
            return multiple_for([found[0] for found in sizes])
        alike = ([seeds[seed] for seeds in self.params.values()] for seed in self.seeds)
        return mean([multiple_for(found) for found in alike])


def answer(runs: Sequence[Run], baseline: str = "auto") -> Answer:
    """Every method on every domain: accuracy, parameters, score.

    Args:
        runs: of one backbone; of a student that was pruned, its last stage counts.
        baseline: what earns 250 points in every domain: ``published``, a method or setting among
            the runs, or ``auto``: published on the domains of the Visual Decathlon, ``finetune``
            elsewhere.

    Raises:
        BadInput: runs of several backbones, or a baseline that is not there.
    """
    found, splits = lines(runs)
    domains = list(dict.fromkeys(domain for line in found for domain in line.accuracy))
    real = _are_published(runs)
    reference = _baseline(baseline, found, real=real)
    frame = line_table(found, domains, reference, beside=real)
    against = REFERENCE if baseline == "auto" else baseline
    against = "published fine-tuning" if reference == {} else against
    text = _text(found, domains, reference, baseline, real=real)
    if checked := [domain for domain in domains if splits[domain] == "val"]:
        text += f" Of {', '.join(checked)} validation images, for not all runs have test ones."
    return Answer(
        f"{len(domains)} domain{'s' * (len(domains) > 1)}, {len(found)} methods",
        text,
        frame.drop(columns="method"),
        decathlon_plot.draw(frame, domains, reference, against),
        _shown(frame, domains),
    )


def lines(runs: Sequence[Run]) -> tuple[list[Line], dict[str, str]]:
    """A line per method and settings, and which split each domain's accuracies are of.

    Raises:
        BadInput: runs of several backbones.
    """
    backbones = list(dict.fromkeys(run.result["backbone"] for run in runs))
    if len(backbones) > 1:
        raise BadInput(
            f"these runs adapt {len(backbones)} backbones ({', '.join(backbones)}); name the runs "
            "of one backbone at a time"
        )
    last = _last_stages(runs)
    splits: dict[str, str] = {}
    for _, run in last:
        task, known = run.result["task"], run.result.get("test") is not None
        splits[task] = "test" if known and splits.get(task, "test") == "test" else "val"
    found: dict[str, Line] = {}
    for name, run in last:
        line = found.setdefault(name, Line(name, run.result["method"]))
        line.add(run, 100 * float(run.result[splits[run.result["task"]]]))
    return list(found.values()), splits


def line_table(
    found: Sequence[Line],
    domains: Sequence[str],
    reference: Mapping[str, float] | None,
    *,
    beside: bool = False,
) -> pd.DataFrame:
    """One line per setting, best score first; then the published results.

    Args:
        found: what ``lines`` returned.
        domains: the columns.
        reference: percent by domain that earns 250 points there; ``{}`` is the published one, None
            for no score.
        beside: also give published results over the same domains.

    Returns:
        Index ``setting``. ``method``, ``seeds``; of each domain its accuracy in percent and
        ``DOMAIN ±``, the sample standard deviation over seeds; ``mean`` over domains (NaN where one
        lacks), ``params`` (trunk and all domains, in trunks), ``score``, each with its spread;
        ``lacks`` (domains that the line was not run on), ``paper`` (of a published result).
    """
    own = [_line(line, domains, reference) for line in found]
    own.sort(key=lambda line: (line["lacks"] != "", -_or_zero(line["score"])))
    published = [_published(row, domains) for row in PUBLISHED] if beside else []
    published.sort(key=lambda line: -line["score"])
    return pd.DataFrame(own + published).set_index("setting")


def _line(
    line: Line, domains: Sequence[str], reference: Mapping[str, float] | None
) -> dict[str, Any]:
    lacks = [domain for domain in domains if domain not in line.accuracy]
    each = [line.of_seed(seed) for seed in line.seeds] or [line.means()]
    means = [mean(list(accuracy.values())) for accuracy in each] if not lacks else []
    scores = [] if reference is None else [_score(accuracy, reference) for accuracy in each]
    told: dict[str, Any] = {"setting": line.name, "method": line.method, "seeds": len(line.seeds)}
    for domain in domains:
        told[domain] = mean(line.values(domain))
        told[f"{domain} ±"] = spread(line.values(domain))
    told |= {"mean": mean(means), "mean ±": spread(means), "params": line.multiple()}
    told |= {"score": mean(scores), "score ±": spread(scores)}
    return told | {"lacks": ", ".join(lacks), "paper": ""}


def _published(row: Any, domains: Sequence[str]) -> dict[str, Any]:
    accuracy = {domain: row.accuracy[domain] for domain in domains}
    told: dict[str, Any] = {"setting": f"published: {row.method}", "method": "", "seeds": 0}
    for domain in domains:
        told |= {domain: accuracy[domain], f"{domain} ±": math.nan}
    whole = row.params is not None and len(domains) == len(DOMAINS)
    told |= {"mean": mean(list(accuracy.values())), "mean ±": math.nan}
    told |= {"params": row.params if whole else math.nan}
    told |= {"score": decathlon.score(accuracy).total, "score ±": math.nan}
    return told | {"lacks": "", "paper": row.paper}


def _score(accuracy: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Points over the domains that are scored; NaN where the line has none of them."""
    if not reference:
        return decathlon.score(accuracy).total
    scale = {d: value for d, value in reference.items() if value < 100}
    known = {d: a for d, a in accuracy.items() if d in scale}
    return decathlon.score(known, scale).total if known else math.nan


def _baseline(wanted: str, found: Sequence[Line], *, real: bool) -> Mapping[str, float] | None:
    """Percent by domain; empty for the published one, None for none at all."""
    if wanted == "auto" and real:
        return {}
    if wanted == "published":
        if not real:
            raise BadInput(
                "--baseline published is of the ten domains of the Visual Decathlon, and not all "
                "of these runs are on them; leave it out to score against fine-tuning"
            )
        return {}
    name = REFERENCE if wanted == "auto" else wanted
    same = [line for line in found if name in (line.name, line.method)]
    if len(same) > 1 and any(line.name == name for line in same):
        same = [line for line in same if line.name == name]
    if len(same) == 1:
        return same[0].means()
    if not same and wanted == "auto":
        return None
    many = (
        f"is {len(same)} settings ({', '.join(x.name for x in same)})" if same else "is no setting"
    )
    raise BadInput(
        f"baseline {name!r} {many} of these runs; give --baseline one of "
        + ", ".join(repr(line.name) for line in found)
    )


def _text(
    found: Sequence[Line],
    domains: Sequence[str],
    reference: Mapping[str, float] | None,
    baseline: str,
    *,
    real: bool,
) -> str:
    said = [
        "Accuracy in percent of test images, mean over seeds ± sample standard deviation; "
        "parameters: one trunk with all domains, in trunks without heads. "
    ]
    if reference is None:
        said.append(f"No score: these runs hold no {REFERENCE} to score against. ")
    else:
        whose = "the published fine-tuning" if real and not reference else "fine-tuning here"
        if baseline not in ("auto", "published"):
            whose = baseline
        said.append(
            "Score: 1000 points per domain without error, 250 for the error of "
            f"{whose}, none from twice that error on; of each seed, then the mean. "
        )
        if reference and (left := [d for d in domains if reference.get(d, 100.0) >= 100]):
            said.append(
                f"{', '.join(left)}: in no score, for {whose} has no error there or no run. "
            )
    for line in found:
        if lacks := [domain for domain in domains if domain not in line.accuracy]:
            said.append(f"* {line.name} lacks {', '.join(lacks)}: its score is partial. ")
    return "".join(said).rstrip()


def _shown(frame: pd.DataFrame, domains: Sequence[str]) -> pd.DataFrame:
    """The table as texts for a terminal."""
    shown = pd.DataFrame({"Setting": frame.index})
    shown["Seeds"] = [str(seeds) if seeds else "" for seeds in frame["seeds"]]

    def both(name: str, spec: str) -> list[str]:
        pairs = zip(frame[name], frame[f"{name} ±"], strict=True)
        return [plus_minus(value, sd, spec) for value, sd in pairs]

    for domain in domains:
        shown[domain] = both(domain, ".1f")
    if len(domains) > 1:
        shown["Mean, %"] = both("mean", ".1f")
    shown["Params, ×"] = [number(value, ".3g") for value in frame["params"]]
    marks = ["*" if lacks else "" for lacks in frame["lacks"]]
    scores = both("score", ".0f")
    shown["Score"] = [text + mark for text, mark in zip(scores, marks, strict=True)]
    return shown


def _last_stages(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """The name of each run's setting, and the run; of a student only its last stage."""
    named = _named(runs)
    pruned = {(name, *_place(run)) for name, rule, run in named if _stage(run) > 0}
    last: dict[tuple[Any, ...], int] = {}
    for name, rule, run in named:
        key = (name, rule, *_place(run))
        last[key] = max(last.get(key, 0), _stage(run))
    return [
        (f"{name} {rule}".strip(), run)
        for name, rule, run in named
        if _stage(run) == last[name, rule, *_place(run)]
        and (_stage(run) > 0 or (name, *_place(run)) not in pruned)
    ]


def _place(run: Run) -> tuple[Any, ...]:
    return run.result["task"], run.result["seed"]


def _stage(run: Run) -> int:
    """How far a student has come; references and unpruned students are at 0."""
    stage = run.result["stage"]
    return _STAGES.index(stage) if stage in _STAGES else 0


def _named(runs: Sequence[Run]) -> list[tuple[str, str, Run]]:
    """(setting, rule, run) of every run: a method and those of its settings that tell runs apart.

    A method's own settings are compared over all domains. How it was trained and seen is compared
    within one domain and setting, for domains may be seen in different ways.
    """
    own = {id(run): _own(run) for run in runs}
    alike: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        key = run.result["task"], run.result["method"], json.dumps(own[id(run)], sort_keys=True)
        alike.setdefault(key, []).append(run)
    facts = {
        id(run): row for same in alike.values() for run, row in zip(same, rows(same), strict=True)
    }
    found = []
    for run in runs:
        row = facts[id(run)]
        others = [own[id(r)] for r in runs if r.result["method"] == run.result["method"]]
        words = [run.result["method"], *_words(own[id(run)], others)]
        words += [] if row["lam"] is None else [f"λ={row['lam']:g}"]
        words += [row["variant"]] if row["variant"] else []
        found.append((" ".join(words), row["rule"], run))
    return found


def _own(run: Run) -> Mapping[str, Any]:
    """The method's settings that acted, but λ, which has a word of its own."""
    settings = dict((run.result.get("config") or {}).get("settings") or {})
    unused = {"lam"}
    if settings.get("select") is False:
        unused |= {f.name for f in dataclasses.fields(Selection)} - {"select"}
    return {name: value for name, value in settings.items() if name not in unused}


def _words(own: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings in which some other run differs: ``series``, ``select``, ``rank=4``."""
    others = list(others)
    texts, flags, numbers = [], [], []
    for name, value in own.items():
        if all(other.get(name, value) == value for other in others) or value in (None, False, ""):
            continue
        if value is True:
            flags.append(name)
        elif isinstance(value, str):
            texts.append(f"{name} {Path(value).name}" if "/" in value else value)
        else:
            numbers.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return texts + flags + numbers


def _are_published(runs: Sequence[Run]) -> bool:
    """Whether all runs are on domains of the real Visual Decathlon; a drawn sample's are not."""
    specs = [str(((r.result.get("config") or {}).get("data") or {}).get("task")) for r in runs]
    return all(
        spec.startswith(_SPEC) and run.result["task"] in DOMAINS
        for spec, run in zip(specs, runs, strict=True)
    )


def _params(run: Run) -> Params:
    """What the run's task adds, all in one kind: only the sum is used."""
    params = run.result["params"]
    shared = params.get("shared", 0)
    return Params(universal=params["universal"], deltas=params["task"], shared=shared)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
