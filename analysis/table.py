"""The table of a report: rows of runs averaged over seeds, as numbers and as text.

``table`` keeps full precision for figures and tests, ``cells`` rounds for people, and
``markdown`` writes a pipe table. Spread is always the sample standard deviation (n - 1).
Two kinds of added parameters stand in columns of their own and are never summed with the head:
deltas alone, and all that a task stores beside the trunk (as a multiple of it).

Where methods choose blocks instead of layers, the table tells blocks, and the size of the one
network that remains of backbone and task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.rows import EXPERIMENT, GROUP, group, labels, order
from analysis.statistic import half_width, mean, spread

CAPTION = (
    "Accuracy is the mean over seeds ± the sample standard deviation. “Deltas” are the weights "
    "that a task adds to the backbone's layers; “×” is (backbone + all that the task stores: "
    "deltas, adapters, masks or proxies, norms, scores) / backbone. Both leave the head out. One "
    "MAC is one multiply-add."
)
NETWORK_CAPTION = (
    "A task that chooses blocks stores proxies instead. “Network” is the merged network of one "
    "task without its head: the universal blocks that it kept, and its proxies; percentages are of "
    "the backbone."
)


SORTED_BY = {  # title of a column of `cells` -> the column of `table` that sorts it
    "Seeds": "seeds",
    "Test, %": "test",
    "Validation, %": "val",
    "Layers adapted": "layers_adapted",
    "Adapted or kept": "chosen",
    "Deltas, % of backbone": "deltas_percent",
    "Parameters, ×": "multiple",
    "Network": "network",
    "MACs": "macs",
    "Size": "bytes",
}


def table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Aggregate rows over seeds: one line per task, backbone, method with settings, and stage.

    Args:
        records: what ``analysis.rows.rows`` returned.

    Returns:
        Columns of ``GROUP``, then ``seeds`` (number of runs); ``test``, ``test_spread``, ``val``,
        ``val_spread`` in percent; ``test_ci``, ``val_ci`` (half the width of the 95 % confidence
        interval of the mean, see ``half_width``); ``gated`` (what the method chose: ``layers``,
        ``blocks`` or None); ``layers``, ``layers_adapted``, ``blocks``, ``blocks_kept``, ``chosen``
        (the share of blocks kept if it chose blocks, else of layers adapted); in percent of the
        backbone's parameters, all without head: ``deltas_percent``, ``norms_percent``,
        ``scores_percent``, ``masks_percent``, ``adapters_percent``, ``proxies_percent`` (adapters
        that stand for blocks) and ``task_percent`` (their sum), ``shared_percent`` (what tasks
        share, a basis of adapters); ``head_percent``; ``multiple``;
        ``network`` (numbers in the merged network) and ``network_percent``; ``macs``,
        ``macs_ratio`` to the backbone; ``latency_ms`` of one image and ``latency_ratio`` to the
        backbone, where it was measured; ``bytes``; ``seconds``; ``label``.
        All are means over seeds; unknown values, and the spread of a single seed, are NaN.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=order):
        found.setdefault(group(record), []).append(record)
    lines = [
        dict(zip(GROUP, key, strict=True)) | _aggregate(members) for key, members in found.items()
    ]
    names = labels(lines)
    frame = pd.DataFrame([line | {"label": n} for line, n in zip(lines, names, strict=True)])
    return frame.astype({"lam": float})


def settled(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines of ``table`` without students that were pruned later.

    Until it is pruned, a student stores what it does not use: its size says nothing yet.
    """
    same = list(EXPERIMENT)
    experiment = [tuple(map(str, line)) for line in frame[same].itertuples(index=False)]
    later = {e for e, s in zip(experiment, frame["stage"], strict=True) if s != "adapt"}
    kept = [s != "adapt" or e not in later for e, s in zip(experiment, frame["stage"], strict=True)]
    return frame[kept]


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text for people: the same lines, columns with a title and a unit.

    Task and backbone are columns only where there are several.
    """
    told = [n for n in ("task", "backbone") if frame[n].nunique() > 1]
    lines = [
        {name.title(): line[name] for name in told} | cell
        for line, cell in zip(frame.to_dict("records"), _cells(frame), strict=True)
    ]
    return pd.DataFrame(lines)


def chooses_blocks(frame: pd.DataFrame) -> bool:
    """Whether any line is of a method that keeps or removes blocks."""
    return bool((frame["gated"] == "blocks").any())


def caption(frame: pd.DataFrame) -> str:
    """What the columns of ``cells(frame)`` mean."""
    return CAPTION + (f" {NETWORK_CAPTION}" if chooses_blocks(frame) else "")


def chosen(line: Mapping[str, Any]) -> str:
    """``12 of 20 layers`` that were adapted, or ``9 of 16 blocks`` that were kept."""
    if line["gated"] == "blocks":
        return f"{count(line['blocks_kept'])} of {count(line['blocks'])} blocks"
    return f"{count(line['layers_adapted'])} of {count(line['layers'])} layers"


def markdown(text: pd.DataFrame) -> str:
    """A frame of strings as a Markdown pipe table; pipes in names are escaped."""
    head = "| " + " | ".join(text.columns) + " |"
    rule = "|" + "|".join(" --- " if i < 2 else " ---: " for i in range(len(text.columns))) + "|"
    body = [
        "| " + " | ".join(_one_line(str(value)) for value in line) + " |"
        for line in text.itertuples(index=False)
    ]
    return "\n".join([head, rule, *body])


def number(value: float, spec: str = ".1f") -> str:
    """A number for people; what is unknown is a dash."""
    return "–" if math.isnan(value) else f"{value:{spec}}"


def plus_minus(mean: float, spread: float, spec: str = ".1f") -> str:
    """``97.8 ± 0.3``, or the mean alone where one seed gives no spread."""
    return number(mean, spec) + ("" if math.isnan(spread) else f" ± {spread:{spec}}")


def count(value: float) -> str:
    """12 layers stay 12, a mean over seeds such as 7.333 becomes 7.3."""
    return number(value, ".0f" if float(value).is_integer() else ".1f")


def quantity(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: 115605504 is ``116 M``, with unit B ``116 MB``."""
    if math.isnan(value):
        return "–"
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * power:
            scaled = value / power
            digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def _cells(frame: pd.DataFrame) -> Iterator[dict[str, str]]:
    blocks = chooses_blocks(frame)
    for line in frame.to_dict("records"):
        cell = {
            "Method": line["label"],
            "Seeds": str(line["seeds"]),
            "Test, %": plus_minus(line["test"], line["test_spread"]),
            "Validation, %": plus_minus(line["val"], line["val_spread"]),
        }
        if blocks:
            cell["Adapted or kept"] = chosen(line)
        else:
            cell["Layers adapted"] = chosen(line).removesuffix(" layers")
        cell["Deltas, % of backbone"] = number(line["deltas_percent"], ".3g")
        cell["Parameters, ×"] = number(line["multiple"], ".3f")
        if blocks:
            cell["Network"] = _with_share(line["network"], line["network_percent"])
            cell["MACs"] = _with_share(line["macs"], 100 * line["macs_ratio"])
        else:
            cell["MACs"] = quantity(line["macs"])
        yield cell | {"Size": quantity(line["bytes"], "B")}


def _with_share(value: float, percent: float) -> str:
    return quantity(value) + ("" if math.isnan(percent) else f", {percent:.0f} %")


def _aggregate(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def percent(part: str) -> float:
        return 100 * mean([_ratio(m["params"][part], m["params"]["universal"]) for m in members])

    def average(name: str) -> float:
        return mean([_number(m[name]) for m in members])

    whole, part = ("layers", "layers_adapted")
    if members[0]["gated"] == "blocks":
        whole, part = ("blocks", "blocks_kept")
    adapters = 100 * mean([_adapters(m["params"]) for m in members])
    test, val = ([_number(m[split]) for m in members] for split in ("test", "val"))
    return {
        "seeds": len(members),
        "metric": members[0]["metric"],
        "gated": members[0]["gated"],
        "test": 100 * mean(test),
        "test_spread": 100 * spread(test),
        "val": 100 * mean(val),
        "val_spread": 100 * spread(val),
        "test_ci": 100 * half_width(test),
        "val_ci": 100 * half_width(val),
        "layers": average("layers"),
        "layers_adapted": average("layers_adapted"),
        "blocks": average("blocks"),
        "blocks_kept": average("blocks_kept"),
        "chosen": mean([_ratio(m[part], m[whole]) for m in members]),
        "deltas_percent": percent("deltas"),
        "norms_percent": percent("norms"),
        "scores_percent": percent("scores"),
        "masks_percent": percent("masks"),
        "shared_percent": percent("shared"),
        "adapters_percent": 0.0 if members[0]["gated"] == "blocks" else adapters,
        "proxies_percent": adapters if members[0]["gated"] == "blocks" else 0.0,
        "task_percent": percent("task"),
        "head_percent": percent("head"),
        "multiple": mean([_number(m["params"]["multiple"]) for m in members]),
        "network": mean([_number(m["params"]["network"]) for m in members]),
        "network_percent": percent("network"),
        "macs": mean([_number(m["macs"]["student"]) for m in members]),
        "macs_ratio": mean([_ratio(m["macs"]["student"], m["macs"]["backbone"]) for m in members]),
        "latency_ms": mean([_number((m.get("latency") or {}).get("ms")) for m in members]),
        "latency_ratio": mean([_number((m.get("latency") or {}).get("ratio")) for m in members]),
        "bytes": average("bytes"),
        "seconds": average("seconds"),
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _ratio(part: Any, whole: Any) -> float:
    return _number(part) / float(whole) if whole else math.nan


def _adapters(params: Mapping[str, Any]) -> float:
    """What a task stores beside deltas, norms, scores and masks, in backbones."""
    known = sum(params[name] or 0 for name in ("deltas", "norms", "scores", "masks"))
    return _ratio(_number(params["task"]) - known, params["universal"])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
