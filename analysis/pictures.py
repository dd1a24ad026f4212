"""The pictures of a report: which there are, what they say, and their numbers as text.

The other modules draw; this file chooses. Pictures that compare settings, layers or sizes are made
once per backbone, training curves once per experiment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import (
    agreement,
    architecture,
    blocks,
    budget,
    curves,
    forgetting,
    layers,
    pareto,
    scores,
    sequences,
    summary,
    worth,
)
from analysis.answer import texts
from analysis.rows import Run, experiments, gates_blocks, rows
from analysis.table import chooses_blocks, number, settled, table
from tailor.errors import BadInput
from tailor.worth import stored

_CURVES = {  # columns of `curves.curve_table` as people read them
    "stage": "Stage",
    "epoch": "Epoch",
    "train_loss": "Training loss",
    "val_error": "Validation error, %",
    "train_error": "Training error, %",
    "share_layers": "Layers adapted, %",
    "share_params": "Parameters adapted, %",
    "seed": "Seed",
}


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows, and its numbers."""

    name: str  # of its file
    title: str
    text: str
    figure: Figure
    numbers: pd.DataFrame  # of text
    group: str = ""  # its task, where there is one picture per setting
    charts: str = ""  # the backbone whose accuracy and cost it shows


def pictures(runs: Sequence[Run], frame: pd.DataFrame) -> list[Picture]:
    """The figures of a report, those that compare settings, layers or sizes once per backbone.

    Of the networks that were tailored, one is drawn per task.
    """
    found = []
    backbones = list(dict.fromkeys(frame["backbone"]))
    for i, backbone in enumerate(backbones):
        of = f" ({backbone})" if len(backbones) > 1 else ""
        tail = f"-{i + 1}" if len(backbones) > 1 else ""
        lines = frame[frame["backbone"] == backbone]
        members = [run for run in runs if run.result["backbone"] == backbone]
        found += _pareto(lines, of, tail)
        found += _architectures(members, lines, of, tail)
        found += _block_map(members, of, tail)
        found += _layer_maps(members, of, tail)
        found += _questions(members, of, tail)
        found.append(_budget(lines, of, tail))
    return found


def sequence_pictures(paths: Iterable[Path]) -> list[Picture]:
    """What was learned and forgotten, one figure for each sequence of tasks among the paths."""
    together: dict[tuple[str, ...], list[sequences.Matrix]] = {}
    for found in sequences.read(paths):
        together.setdefault(found.tasks, []).append(found)
    asked = [forgetting.answer(found) for found in together.values()]
    return [
        Picture(f"sequence-{i}", answer.title, answer.text, answer.figure, answer.shown)
        for i, answer in enumerate(asked, 1)
    ]


def curve_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Training curves, one figure per experiment with all its seeds."""
    pictures = []
    for i, (name, members) in enumerate(experiments(runs)):
        drawn = curves.curves(members)
        if drawn is None:
            continue
        text = "Thin lines are seeds, thick ones their mean."
        if any(not curves.score_table(run).empty for run in members):
            text += " A score's line is thin while its layer is closed."
        gates = [curves.gate_table(run) for run in members]
        if any(not gate.empty for gate in gates):
            text += " Solid: gates of universal blocks, dashed: the strongest proxies."
        tables = [curves.curve_table(run).assign(seed=run.result["seed"]) for run in members]
        every = pd.concat(tables).dropna(axis="columns", how="all").rename(columns=_CURVES)
        numbers = _texts(every, ".4g")
        task = str(members[0].result["task"])
        pictures.append(Picture(f"curves-{i + 1}", name, text, drawn, numbers, task))
    return pictures


def _pareto(lines: pd.DataFrame, of: str, tail: str) -> list[Picture]:
    """Against parameters, MACs where methods change them, and latency where it was measured."""
    found = []
    text = (
        "Up and to the left is better. The grey line is the Pareto front: no setting is both more "
        "accurate and {}. Thick bars are the sample standard deviation over seeds, thin ones the "
        "95 % confidence interval of the mean. The accuracy axis is logarithmic in the error, so "
        "that 99 and 99.5 % stand apart."
    )
    costs: list[tuple[pareto.Cost, str, str, str, str]] = [
        ("params", "pareto", "added parameters", "Added, %", "smaller")
    ]
    if chooses_blocks(lines):
        costs.append(("macs", "macs", "MACs", "MACs, %", "cheaper"))
    if lines["latency_ratio"].notna().any():
        costs.append(("latency", "latency", "latency", "Latency, %", "faster"))
    for cost, name, against, unit, better in costs:
        drawn = pareto.pareto_plot(lines, cost)
        if drawn is None:
            continue
        columns = {"task": "Task", "label": "Setting", "cost": unit, "accuracy": "Accuracy, %"}
        columns |= {"spread": "Spread", "ci95": "95 %, ±", "seeds": "Seeds", "split": "Split"}
        columns |= {"front": "On the front"}
        points = pareto.pareto_table(lines, cost)[[*columns]].rename(columns=columns)
        points["On the front"] = ["yes" if on else "no" for on in points["On the front"]]
        numbers = _texts(points, ".4g")
        title = f"Accuracy against {against}{of}"
        said = text.format(better)
        backbone = str(lines["backbone"].iloc[0])
        found.append(Picture(f"{name}{tail}", title, said, drawn, numbers, charts=backbone))
    return found


def _architectures(runs: Sequence[Run], lines: pd.DataFrame, of: str, tail: str) -> list[Picture]:
    """One network per task: of its best setting in the last stage, the seed of median accuracy."""
    found = []
    tasks = list(dict.fromkeys(lines.loc[lines["gated"] == "blocks", "task"]))
    for i, task in enumerate(tasks):
        run, seeds = _representative([run for run in runs if run.result["task"] == task])
        if not run.result.get("blocks"):
            continue
        paths = architecture.gates_table(run)
        columns = {"block": "Block", "path": "Path", "gate": "Gate", "params": "Parameters"}
        columns |= {"macs": "MACs", "kept": "Kept"}
        paths["kept"] = ["yes" if kept else "no" for kept in paths["kept"]]
        name = f"architecture{tail}" + (f"-{i + 1}" if len(tasks) > 1 else "")
        text = (
            "Read from left to right. A box is a universal block with its gate, a dashed outline "
            "one that was removed; an arc is a proxy, as wide as its gate. "
        )
        if seeds > 1:
            text += f"Of {seeds} seeds this one has the median accuracy. "
        if not curves.gate_table(run).empty:
            text += f"Its gates over the epochs: tailor draw {run.path} --out network.gif"
        title = "The tailored network" + (f" of {task}" if len(tasks) > 1 else "") + of
        drawn = architecture.architecture(run)
        found.append(
            Picture(name, title, text, drawn, _texts(paths.rename(columns=columns), ".3f"))
        )
    return found


def _representative(runs: Sequence[Run]) -> tuple[Run, int]:
    """Of the best setting's runs the one of median accuracy, and how many seeds it has."""
    compared = [run for run in runs if gates_blocks(run) or run.result["method"] == "finetune"]
    frame, names = table(rows(compared)), experiments(compared)  # both in the same order
    found = pareto.trade_off(frame, summary.WITHIN)
    last = settled(frame)
    place = last.index[last["gated"] == "blocks"][0] if found is None else found
    members = names[frame.index.get_loc(place)][1]
    ranked = sorted(members, key=lambda run: (run.result.get("val") or 0.0, run.result["seed"]))
    return ranked[(len(ranked) - 1) // 2], len(ranked)


def _block_map(runs: Sequence[Run], of: str, tail: str) -> list[Picture]:
    chosen = [run for run in runs if gates_blocks(run) and run.result.get("blocks")]
    if not chosen:
        return []
    frame = blocks.block_table(chosen)
    numbers = _texts(frame.T.rename_axis("Block").reset_index(), ".3f")
    text = (
        "Gate of each universal block's own path, mean over seeds; a block that was removed counts "
        "as 0. One row per setting in its last stage. Bars: each block's share of the MACs; on the "
        "right, blocks kept and their share of all blocks' MACs."
    )
    title = f"Which blocks were kept{of}"
    return [Picture(f"blocks{tail}", title, text, blocks.block_map(chosen), numbers)]


def _layer_maps(runs: Sequence[Run], of: str, tail: str) -> list[Picture]:
    chosen = [run for run in layers.selective(runs) if run.result.get("layer_states")]
    if any(map(gates_blocks, runs)):  # beside networks without blocks, references say nothing
        chosen = [run for run in chosen if run.result.get("lam") is not None]
    if not chosen:
        return []
    found = []
    for name, title, value, text in (
        (
            "layers",
            f"Which layers were adapted{of}",
            "on",
            "One column per layer, input on the left; one row per setting. Bars: each layer's "
            "share of the parameters. A stage that adapts the same layers as the one before it "
            "has no row.",
        ),
        (
            "change",
            f"How far their weights moved{of}",
            "change",
            "Norm of the delta relative to the norm of the universal weight, mean over seeds; a "
            "layer that stayed universal counts as 0.",
        ),
    ):
        frame = layers.layer_table(chosen, value)
        if value == "change" and not frame.to_numpy().any():
            continue
        numbers = _texts(frame.T.rename_axis("Layer").reset_index(), ".3g")
        drawn = layers.heat_map(chosen, value)
        found.append(Picture(f"{name}{tail}", title, text, drawn, numbers))
    return found


def _questions(runs: Sequence[Run], of: str, tail: str) -> list[Picture]:
    """What else runs can be asked, apart for those that chose layers and those that chose blocks.

    Worth is told where it was measured; a report measures nothing.
    """
    found = []
    several = len({run.result["task"] for run in runs}) > 1
    for what, members in (
        ("layers", [run for run in runs if not gates_blocks(run)]),
        ("blocks", [run for run in runs if gates_blocks(run)]),
    ):
        tail_ = f"-{what}{tail}" if 0 < len(members) < len(runs) else tail
        score, open_ = ("score", "adapted") if what == "layers" else ("gate", "kept")
        for name, ask, title, text in (
            (
                "agreement",
                agreement.answer,
                f"Whether seeds{' and tasks' if several else ''} agree on the {what}",
                f"How many of the {what} that either of two runs chose both chose (Jaccard index), "
                "mean over pairs of runs. “above” in the numbers is what exceeds chance: 0 as "
                "random choices of the same sizes, 1 the same choice.",
            ),
            (
                "scores",
                scores.answer,
                f"What λ did to the {score}s over training",
                f"A line per {what[:-1]}, mean over seeds; thin while it is closed. Below, the "
                f"share of {what} and of their parameters that is {open_} after each epoch.",
            ),
            (
                "worth",
                worth.answer,
                f"What each of the {what} is worth",
                "Points of validation accuracy lost when one part is closed after training, over "
                f"its {score}; ρ is Spearman's rank correlation, with its 95 % interval.",
            ),
        ):
            if name == "worth" and not any(stored(run.path, "val") for run in members):
                continue  # a damaged file is told above, it is no unanswered question
            try:
                told = ask(members)
            except BadInput:  # a question that these runs have no answer to is no section
                continue
            alone = name == "scores" and told.table.index.get_level_values(0).nunique() < 2
            if told.figure is not None and not alone:  # its training curves show one run's scores
                numbers = texts(told.table)
                found.append(Picture(f"{name}{tail_}", f"{title}{of}", text, told.figure, numbers))
    return found


def _budget(lines: pd.DataFrame, of: str, tail: str) -> Picture:
    parts = budget.budget_table(lines).drop(columns="method")
    units = {name: f"{name.capitalize()}, %" for name in budget.PARTS}
    numbers = _texts(parts.rename(columns={"label": "Setting"} | units), ".4g")
    text = (
        "Left: what one task stores beside the universal weights, in percent of them. Right: one "
        "trunk with K tasks like it. Each adds (multiple - 1); heads are left out there."
    )
    title = f"What a task costs{of}"
    return Picture(f"budget{tail}", title, text, budget.budget_bars(lines), numbers)


def _texts(frame: pd.DataFrame, spec: str) -> pd.DataFrame:
    """Every cell as text; floats in ``spec``."""
    return pd.DataFrame(
        {
            str(name): [number(v, spec) if isinstance(v, float) else str(v) for v in column]
            for name, column in frame.items()
        }
    )
