"""Tasks one after the other: what is learned, what is forgotten, what it costs as they grow?

A line per method and setting, from the matrices that ``tailor lifelong`` leaves: average metric,
average rank, forgetting, backward and forward transfer, rigidity (``transfer.py`` says what they
are), parameters, memory and time. Each is computed of every run; then come mean and spread over
seeds. How it is drawn is in ``sequence_plot.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import sequence_plot, sequences, transfer
from analysis.answer import Answer
from analysis.sequences import Matrix
from analysis.statistic import mean, spread
from analysis.table import number, plus_minus, quantity
from tailor.errors import BadInput

ORACLE = "independent"
read = sequences.read  # what `tailor forgetting` asks: sequences, not runs

_MEASURES = (
    *("average", "rank", "forgetting", "loss_increase", "backward", "forward"),
    *("rigidity", "intransigence"),
)
_PERCENT = ("average", "forgetting", "backward", "forward", "intransigence")
_COSTS = ("params", "memory", "bytes", "macs", "trainable")


def answer(runs: Sequence[Matrix], oracle: str = ORACLE) -> Answer:
    """Every method on the sequence: averages, ranks, transfer, forgetting, sizes.

    Args:
        runs: of one sequence of tasks; a setting may have several seeds.
        oracle: the setting whose tasks each have a network of their own; rigidity and
            intransigence are measured against it, seed by seed.

    Raises:
        BadInput: runs of several sequences, one run twice, or an oracle that is not there.
    """
    tasks = _one_sequence(runs)
    whole = _lines(runs)
    lines = {name: _alike(same) for name, same in whole.items()}
    against = _oracle(lines, oracle)
    frame = line_table(lines, tasks, against)
    title = f"{len(tasks)} tasks, one after the other, {len(lines)} methods"
    return Answer(
        title,
        _text(whole, lines, tasks, against, oracle),
        frame,
        sequence_plot.draw(lines, list(frame.index), tasks),
        _shown(frame, sequences.in_percent(runs)),
    )


def line_table(
    lines: Mapping[str, Sequence[Matrix]],
    tasks: Sequence[str],
    against: Mapping[int, Matrix] | None = None,
) -> pd.DataFrame:
    """One line per setting, the best average first, unfinished ones last.

    Args:
        lines: of each setting its runs, one per seed.
        tasks: of the sequence.
        against: by seed, what rigidity and intransigence compare with; None for neither.

    Returns:
        Index ``setting``. ``method``, ``seeds``, ``tasks`` (learned in every run); the measures of
        ``transfer.py``, metrics as fractions, each with its spread (sample standard deviation over
        seeds) in a column ``NAME ±``; after the last task ``params`` (numbers in trunk and all
        tasks), ``memory`` (other numbers kept), ``bytes``, ``macs``; ``multiple`` (params without
        heads, in trunks), ``trainable`` (numbers trained, mean over tasks), ``seconds`` (of all
        tasks); ``after NAME`` (metric of each task after the last). What no run knows is NaN.
    """
    ranked = _ranked(lines)
    told = [_line(name, runs, tasks, ranked.get(name, []), against) for name, runs in lines.items()]
    told.sort(key=lambda line: (not line["finished"], -line["average"]))
    return pd.DataFrame(told).set_index("setting")


def _line(
    name: str,
    runs: Sequence[Matrix],
    tasks: Sequence[str],
    ranked: Sequence[float],
    against: Mapping[int, Matrix] | None,
) -> dict[str, Any]:
    each = [_measured(run, against) for run in runs]
    told: dict[str, Any] = {"setting": name, "method": runs[0].method, "seeds": len(runs)}
    told |= {"tasks": min(run.learned for run in runs)}
    told |= {"finished": all(run.finished for run in runs)}
    for measure in _MEASURES:
        values = list(ranked) if measure == "rank" else [found[measure] for found in each]
        told |= {measure: mean(values), f"{measure} ±": spread(values)}
    for cost in (*_COSTS, "multiple", "seconds"):
        told[cost] = mean([found[cost] for found in each])
    for j, task in enumerate(tasks):
        told[f"after {task}"] = mean([run.accuracy[-1][j] for run in runs if run.learned > j])
    return told


def _measured(run: Matrix, against: Mapping[int, Matrix] | None) -> dict[str, float]:
    """Every measure of one run but the rank, which needs the others."""
    own = None if against is None else against.get(run.seed)
    alone = transfer.diagonal(run.accuracy) if run.apart else run.alone
    found = {
        "average": transfer.average(run.accuracy),
        "forgetting": transfer.forgetting(run.accuracy),
        "backward": transfer.backward(run.accuracy),
        "loss_increase": transfer.backward(run.loss) if run.loss else math.nan,
        "forward": math.nan if alone is None else transfer.forward(run.accuracy, alone),
        "rigidity": math.nan if own is None else transfer.rigidity(run.loss, own.loss),
        "intransigence": math.nan
        if own is None
        else transfer.intransigence(run.accuracy, own.accuracy),
    }
    for cost in ("params", "memory", "bytes", "macs"):
        found[cost] = run.counts[cost][-1] if cost in run.counts else math.nan
    found["trainable"] = mean(list(run.counts.get("trainable", ())))
    found["seconds"] = math.fsum(run.counts["seconds"]) if "seconds" in run.counts else math.nan
    return found | {"multiple": multiples(run)[-1]}


def multiples(run: Matrix) -> list[float]:
    """After each task, the parameters of trunk and tasks without heads, in trunks; or NaN."""
    params, heads = run.counts.get("params"), run.counts.get("heads")
    if params is None or heads is None or not run.trunk:
        return [math.nan] * run.learned
    without = np.array(params) - np.cumsum(heads)
    return [float(value) for value in without / run.trunk]


def _ranked(lines: Mapping[str, Sequence[Matrix]]) -> dict[str, list[float]]:
    """Average ranks of each setting, one per seed that all whole settings were run with."""
    whole = {name: runs for name, runs in lines.items() if all(run.finished for run in runs)}
    found: dict[str, list[float]] = {name: [] for name in whole}
    for seed in _shared_seeds(whole):
        last = {
            name: next(run for run in runs if run.seed == seed).accuracy[-1]
            for name, runs in whole.items()
        }
        for name, rank in transfer.ranks(last).items():
            found[name].append(rank)
    return found


def _shared_seeds(lines: Mapping[str, Sequence[Matrix]]) -> list[int]:
    seeds = [{run.seed for run in runs} for runs in lines.values()]
    return sorted(set.intersection(*seeds)) if seeds else []


def _one_sequence(runs: Sequence[Matrix]) -> tuple[str, ...]:
    """The tasks that all runs learn; an unfinished one may have begun only with the first."""
    tasks = max((run.tasks for run in runs), key=len)
    others = [run.tasks for run in runs if run.tasks != tasks[: len(run.tasks)]]
    others += [run.tasks for run in runs if run.finished and run.tasks != tasks]
    if others:
        some = " and ".join(f"{', '.join(found[:3])}, ..." for found in (tasks, others[0]))
        raise BadInput(
            f"these runs learn several sequences of tasks ({some}); name the runs of one sequence "
            "at a time"
        )
    return tasks


def _lines(runs: Sequence[Matrix]) -> dict[str, list[Matrix]]:
    """The runs of each setting, one per seed."""
    lines: dict[str, list[Matrix]] = {}
    for name, run in zip(sequences.names(runs), runs, strict=True):
        same = lines.setdefault(name, [])
        for other in same:
            if other.seed == run.seed:
                raise BadInput(
                    f"{run.path} and {other.path} are both {name} with seed {run.seed}; name one "
                    "of them"
                )
        same.append(run)
    return lines


def _alike(runs: Sequence[Matrix]) -> list[Matrix]:
    """The finished runs of a setting; where there is none, all, cut to what each has learned."""
    finished = [run for run in runs if run.finished]
    least = min(run.learned for run in runs)
    return finished or [run.upto(least) for run in runs]


def _oracle(lines: Mapping[str, Sequence[Matrix]], wanted: str) -> dict[int, Matrix] | None:
    """By seed, the runs of the setting that others are compared with."""
    named = [name for name, runs in lines.items() if wanted in (name, runs[0].method)]
    chosen = [wanted] if wanted in named else named
    if len(chosen) == 1:
        return {run.seed: run for run in lines[chosen[0]]}
    if not chosen and wanted == ORACLE:
        return None
    many = f"is {len(chosen)} settings ({', '.join(chosen)})" if chosen else "is no setting"
    raise BadInput(
        f"oracle {wanted!r} {many} of these runs; give --oracle one of "
        + ", ".join(repr(name) for name in lines)
    )


def _text(
    given: Mapping[str, Sequence[Matrix]],
    lines: Mapping[str, Sequence[Matrix]],
    tasks: Sequence[str],
    against: Mapping[int, Matrix] | None,
    oracle: str,
) -> str:
    said = [
        "Average: metric of all tasks after the last one. Forgetting: best before the last task "
        "minus after it, mean over earlier tasks; backward: after the last task minus when "
        "learned; loss +: how the test loss of earlier tasks grew. Forward: when learned minus "
        "learned alone. Means over seeds ± sample standard deviation; a bare 0 is exactly 0. "
    ]
    if against is None:
        said.append(f"No rigidity: these runs hold no {ORACLE} to compare with. ")
    else:
        said.append(
            f"Rigidity: mean log ratio of the loss when learned to that of {oracle}, above 0 is "
            "worse. "
        )
    whole = {name: runs for name, runs in lines.items() if all(run.finished for run in runs)}
    seeds = sorted({run.seed for runs in whole.values() for run in runs})
    if (shared := _shared_seeds(whole)) != seeds:
        which = f"seed {', '.join(map(str, shared))} only" if shared else "no seed"
        said.append(f"Ranks are of {which}: others were not run with every method. ")
    for name, runs in given.items():
        for run in (run for run in runs if not run.finished):
            left = any(other.finished for other in runs)
            told = "it is left out" if left else "its numbers are of those *, and it has no rank"
            said.append(
                f"{name} with seed {run.seed} has learned {run.learned} of {len(tasks)} tasks: "
                f"{told}. "
            )
    return "".join(said).rstrip()


def _shown(frame: pd.DataFrame, percent: bool) -> pd.DataFrame:
    """The table as texts for a terminal."""
    scale, unit = (100.0, ", %") if percent else (1.0, "")
    shown = pd.DataFrame({"Setting": frame.index})
    marks = ["" if whole else "*" for whole in frame["finished"]]
    shown["Seeds"] = [str(seeds) for seeds in frame["seeds"]]

    def both(name: str, spec: str) -> list[str]:
        by = scale if name in _PERCENT else 1.0
        pairs = zip(by * frame[name], by * frame[f"{name} ±"], strict=True)
        return ["0" if m == 0 and not s > 0 else plus_minus(m, s, spec) for m, s in pairs]

    fine = ".1f" if percent else ".3f"
    texts = zip(both("average", fine), marks, strict=True)
    shown[f"Average{unit}"] = [text + mark for text, mark in texts]
    shown["Rank"] = both("rank", ".1f")
    shown["Forgetting"] = both("forgetting", fine)
    shown["Backward"] = both("backward", fine)
    shown["Forward"] = both("forward", fine)
    shown["Loss +"] = both("loss_increase", ".2f")
    shown["Rigidity"] = both("rigidity", ".2f")
    shown["Params"] = [quantity(value) for value in frame["params"]]
    shown["Trunks, ×"] = [number(value, ".3g") for value in frame["multiple"]]
    shown["Memory"] = [quantity(value) for value in frame["memory"]]
    shown["Seconds"] = [number(value, ".0f") for value in frame["seconds"]]
    return shown.drop(columns=[name for name in shown if set(shown[name]) == {"–"}])
