"""What is each layer worth, and did its score know? Accuracy lost when one delta is closed.

``tailor/worth.py`` measures; this file reads what lies in the runs. Worth is the accuracy with
everything open minus the accuracy with one part closed, in percentage points: below 0, the network
does better without it. A layer that its score had closed has no worth: it is left out and counted.

Rank correlations (Spearman) are over the open parts of a run and averaged over seeds. Their 95 %
interval (``statistic.rank_interval``) is that of as many parts as a run has: seeds do not make it
narrower, for they share their layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import canvas
from analysis.agreement import scores_of
from analysis.answer import Answer
from analysis.canvas import GRID, INK, MUTED
from analysis.rows import Run, final, gates_blocks, label, labels, rows, several_priced
from analysis.statistic import mean, paired_error, rank_interval, spearman
from analysis.table import count, number
from tailor.errors import BadInput
from tailor.worth import stored

Split = Literal["train", "val", "test"]

_MOST = 8  # experiments with panels of their own; of more, the tasks of a setting share one
_KINDS = {"delta": 0, "side": 0, "universal": 0, "proxy": 1}  # places in the palette
_TOLD = ("kind", "params", "seeds", "score", "change", "worth", "se", "spread", "n")
_RANKS = ("rho_score", "rho_score_low", "rho_score_high", "rho_change", "rho_size")


def answer(runs: Sequence[Run], split: Split = "val") -> Answer:
    """What every open part is worth, and the rank correlation with score, change and size.

    Args:
        runs: any; those that were measured on ``split`` are told, of each experiment in its last
            stage.
        split: which images.

    Raises:
        BadInput: no run that was measured, or none with parts that can be closed.
    """
    found = measured(runs, split)
    frame = worth_table(found)
    names = frame.index.get_level_values("setting").unique()
    parts = sum(len(told["parts"]) for _, members in found for _, told in members)
    runs_told = sum(len(members) for _, members in found)
    closed = sum(_closed(run, told) for _, members in found for run, told in members)
    images = sorted({int(told["n"]) for _, members in found for _, told in members})
    rho = mean([frame.loc[name, "rho_score"].iloc[0] for name in names])
    text = (
        f"Points of accuracy that are lost when one part is closed after training, on {split} "
        f"({', '.join(map(str, images))} images), means over seeds; ± is the standard error that "
        f"so few images cause. {parts} open parts of {runs_told} runs; {closed} that their scores "
        f"had closed are left out. Spearman's rank correlation of worth with the score: "
        f"{number(rho, '.2f')} on average; ρ of each setting with Fisher's 95 % interval, of "
        "score, relative change and size."
    )
    shown = _each_part(frame) if len(names) == 1 else _each_setting(frame)
    return Answer("What a delta is worth", text, frame, worth_plot(found), shown)


def measurable(runs: Sequence[Run]) -> list[Run]:
    """The runs that can be asked: of each experiment that chose parts, its last stage.

    Raises:
        BadInput: there is none.
    """
    gated = [run for row, run in zip(rows(runs), runs, strict=True) if row["gated"]]
    if not gated:
        raise BadInput(
            "none of these runs has deltas or blocks that could be closed; name runs of taps or "
            "nettailor"
        )
    return [run for _, members in final(gated) for run in members]


def measured(
    runs: Sequence[Run], split: Split = "val"
) -> list[tuple[dict[str, Any], list[tuple[Run, dict[str, Any]]]]]:
    """Experiments with their row, and each run that was measured with what was found.

    Raises:
        BadInput: none was measured, or none can be.
    """
    measurable(runs)
    gated = [run for row, run in zip(rows(runs), runs, strict=True) if row["gated"]]
    found: list[tuple[dict[str, Any], list[tuple[Run, dict[str, Any]]]]] = []
    for row, members in final(gated):
        told = [(run, stored(run.path, split)) for run in members]
        known = [(run, what) for run, what in told if what is not None]
        if known:
            found.append((row, known))
    if not found:
        raise BadInput(
            f"no run was measured on {split}, or its student changed since; "
            f"`tailor worth RUN... --split {split}` measures"
        )
    if not any(told["parts"] for _, members in found for _, told in members):
        raise BadInput(
            "no part of these runs can be closed alone: each is the only way through its network, "
            "or nothing was adapted; name the runs before pruning, or a lower λ"
        )
    return found


def part_table(run: Run, told: dict[str, Any]) -> pd.DataFrame:
    """The open parts of one run, in network order.

    Returns:
        Index: name; ``kind``, ``params``, ``score`` (of the run that it was adapted in; the gate,
        for paths), ``change`` (relative, NaN for paths), ``worth`` and its standard error ``se`` in
        percentage points (of a paired difference; NaN where images have several labels), ``n``.
    """
    states = {s["name"]: s for s in run.result.get("layer_states") or []}
    gates = {gate["name"]: gate for gate in run.result.get("gates") or []}
    scores = {} if gates_blocks(run) else scores_of(run)
    lines = []
    for part in told["parts"]:
        name, n = part["name"], told["n"]
        size = gates.get(name) or states.get(name) or {}
        score = gates[name]["value"] if gates_blocks(run) else scores.get(name, math.nan)
        change = states[name]["change"] if part["kind"] == "delta" and name in states else math.nan
        lines.append(
            {
                "name": name,
                "kind": part["kind"],
                "params": size.get("params", math.nan),
                "score": score,
                "change": change,
                "worth": 100 * (told["value"] - part["value"]),
                "se": 100 * paired_error(part.get("lost"), part.get("gained"), n),
                "n": n,
            }
        )
    columns = ["name", "kind", "params", "score", "change", "worth", "se", "n"]
    return pd.DataFrame(lines, columns=columns).set_index("name")


def worth_table(
    found: Sequence[tuple[dict[str, Any], list[tuple[Run, dict[str, Any]]]]],
) -> pd.DataFrame:
    """Means over seeds of ``part_table``.

    Args:
        found: of ``measured``.

    Returns:
        Index: ``setting``, ``part``. Columns: ``kind``, ``params``; ``seeds`` in which the part was
        open; means over them of ``score``, ``change``, ``worth``; ``se`` of that mean that images
        cause; ``spread`` of worth over seeds (sample standard deviation); ``n`` images. The same in
        all lines of a setting, means over seeds: ``rho_score`` with its interval ``rho_score_low``
        and ``rho_score_high``, ``rho_change`` and ``rho_size`` (parameters).
    """
    titles = labels([row for row, _ in found], task=True)
    lines = []
    for title, (_, members) in zip(titles, found, strict=True):
        tables = [part_table(run, told) for run, told in members]
        ranks = _ranks(tables)
        every = pd.concat(tables)
        for name in _network_order(members, list(dict.fromkeys(every.index))):
            part = every.loc[[name]]
            lines.append(
                {"setting": title, "part": name, "seeds": len(part)}
                | {"kind": part["kind"].iloc[0], "params": part["params"].iloc[0]}
                | {column: part[column].mean() for column in ("score", "change", "worth")}
                | {"se": math.sqrt((part["se"] ** 2).sum(skipna=False)) / len(part)}
                | {"spread": part["worth"].std(ddof=1), "n": part["n"].iloc[0]}
                | ranks
            )
    return pd.DataFrame(lines, columns=["setting", "part", *_TOLD, *_RANKS]).set_index(
        ["setting", "part"]
    )


def _ranks(tables: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Rank correlations with worth, means over seeds."""

    def average(name: str) -> float:
        known = [table[["worth", name]].dropna() for table in tables]
        return mean([spearman(dict(part["worth"]), dict(part[name])) for part in known])

    rho = average("score")
    low, high = rank_interval(rho, mean([len(table) for table in tables]))
    told = {"rho_score": rho, "rho_score_low": low, "rho_score_high": high}
    return told | {"rho_change": average("change"), "rho_size": average("params")}


def worth_plot(
    found: Sequence[tuple[dict[str, Any], list[tuple[Run, dict[str, Any]]]]],
) -> Figure:
    """Bars of worth in network order, beside each score against worth; a row per experiment."""
    titles = labels([row for row, _ in found], task=True)
    groups = {title: [members] for title, (_, members) in zip(titles, found, strict=True)}
    if len(groups) > _MOST:
        priced = several_priced([row for row, _ in found])
        groups = {}
        for row, members in found:
            setting = label(row, price=row["method"] in priced)
            groups.setdefault(setting, []).append(members)
    tables = {
        title + (f", {len(several)} tasks" if len(several) > 1 else ""): [
            part_table(run, told) for members in several for run, told in members
        ]
        for title, several in groups.items()
    }
    runs = [run for _, members in found for run in members]
    names = dict.fromkeys(name for several in tables.values() for t in several for name in t.index)
    if not gates_blocks(runs[0][0]):  # closed layers have a place as well
        names = dict.fromkeys(state["name"] for state in runs[0][0].result["layer_states"])
    order = _network_order(runs, list(names))
    figure = canvas.figure(min(14.0, max(8.5, 4.6 + 0.24 * len(order))), 1.2 + 1.75 * len(tables))
    panels = figure.subplots(
        len(tables), 2, squeeze=False, gridspec_kw={"width_ratios": (3, 1)}, sharex="col"
    )
    score = "Gate" if gates_blocks(runs[0][0]) else "Score"
    for line, (title, members) in zip(panels, tables.items(), strict=True):
        _draw_bars(line[0], title, members, order)
        _draw_scatter(line[1], members)
    panels[-1][1].set_xlabel(score, fontsize=9, color=INK)
    last = panels[-1][0]
    last.set_xticks(range(len(order)), [canvas.plain(name, 26) for name in order], rotation=90)
    last.tick_params(axis="x", labelsize=7.5)
    shut = "×: closed by its score"
    if gates_blocks(runs[0][0]):
        shut = "blue: universal blocks, orange: proxies"
    canvas.remark(
        figure,
        f"Accuracy lost when one part is closed after training; lines: standard error; {shut}. "
        f"Right: {score.lower()} against worth, every seed.",
    )
    return figure


def _draw_bars(
    axes: Axes, title: str, tables: Sequence[pd.DataFrame], order: Sequence[str]
) -> None:
    """A bar per part, mean over seeds with its standard error; nothing where it was closed."""
    canvas.dress(axes, title=canvas.plain(title), y="Worth, points")
    every = pd.concat(tables)
    colours = [canvas.palette([])["finetune"], canvas.palette(["m"])["m"]]
    for place, name in enumerate(order):
        if name not in every.index:
            axes.plot([place], [0], marker="x", ms=3.5, color=MUTED, lw=0)
            continue
        part = every.loc[[name]]
        error = math.sqrt((part["se"] ** 2).sum(skipna=False)) / len(part)
        axes.bar(
            place, part["worth"].mean(), width=0.72,
            color=colours[1 - _KINDS[part["kind"].iloc[0]]],
            yerr=None if math.isnan(error) else error,
            error_kw={"elinewidth": 1, "ecolor": INK},
        )  # fmt: skip
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xlim(-0.7, len(order) - 0.3)


def _draw_scatter(axes: Axes, tables: Sequence[pd.DataFrame]) -> None:
    """Every open part of every seed; the title tells the mean rank correlation."""
    rho = _ranks(tables)["rho_score"]
    canvas.dress(axes, title=f"ρ = {number(rho, '.2f')}", grid="both")
    colour = canvas.palette(["m"])["m"]
    for table in tables:
        axes.plot(table["score"], table["worth"], color=colour, marker="o", ms=3.5, lw=0, alpha=0.6)
    axes.axhline(0, color=GRID, lw=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(3))


def _each_part(frame: pd.DataFrame) -> pd.DataFrame:
    """One experiment: a line per part, then its correlations."""
    lines = [
        {
            "Part": name,
            "Kind": line["kind"],
            "Params": f"{line['params']:,.0f}",
            "Seeds": str(line["seeds"]),
            "Score": number(line["score"], ".3f"),
            "Change": number(line["change"], ".3f"),
            "Worth": f"{number(line['worth'], '.2f')} ± {number(line['se'], '.2f')}",
        }
        for (_, name), line in frame.iterrows()
    ]
    told = frame.iloc[0]
    empty = dict.fromkeys(("Kind", "Params", "Seeds"), "")
    rho = {
        "Part": "ρ with worth", "Score": number(told["rho_score"], ".2f"),
        "Change": number(told["rho_change"], ".2f"),
        "Worth": _between(told),
    }  # fmt: skip
    return pd.DataFrame([*lines, empty | rho])[list(lines[0])]


def _each_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """A line per experiment: how many parts, the dearest one, and the correlations."""
    lines = []
    for setting, parts in frame.groupby(level="setting", sort=False):
        best = parts["worth"].idxmax()
        lines.append(
            {
                "Setting": setting,
                "Parts": count(len(parts)),
                "Most": f"{best[1]}: {number(parts.loc[best, 'worth'], '.1f')}",
                "ρ score": number(parts["rho_score"].iloc[0], ".2f"),
                "95 %": _between(parts.iloc[0]),
                "ρ change": number(parts["rho_change"].iloc[0], ".2f"),
                "ρ size": number(parts["rho_size"].iloc[0], ".2f"),
            }
        )
    return pd.DataFrame(lines)


def _between(line: Any) -> str:
    low, high = (number(line[f"rho_score_{end}"], ".2f") for end in ("low", "high"))
    return f"{low} to {high}"


def _network_order(members: Sequence[tuple[Run, Any]], names: Sequence[str]) -> list[str]:
    """Layers as the backbone has them; paths block after block, the universal one first."""
    run = members[0][0]
    whole = run.result.get("blocks") if gates_blocks(run) else run.result["layer_states"]
    places = {part["name"]: i for i, part in enumerate(whole or [])}

    def place(name: str) -> tuple[int, int]:
        target, _, source = name.partition("<-")
        return places.get(target, len(places)), -places.get(source, -1) if source else -len(places)

    return sorted(names, key=place)


def _closed(run: Run, told: dict[str, Any]) -> int:
    """Layers that have no delta here; paths that are gone are not counted."""
    return 0 if gates_blocks(run) else int(run.result["layers"]) - len(told["parts"])
