"""One document about many runs: ``.html`` to open, ``.md`` to paste, ``.json`` for machines.

This file decides what is said and in which order; ``page.py`` makes it HTML, the other modules make
its tables and figures. The JSON holds the rows only, without means: machines can average.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import budget, canvas, curves, layers, page, pareto
from analysis.rows import Run, group, labels, order, read_runs, rows
from analysis.table import CAPTION, cells, count, markdown, number, plus_minus, table
from tailor.errors import BadInput
from tailor.run import PLACE, write_bytes

FORMATS = (".html", ".md", ".json")
_WITHIN = 1.0  # percentage points below fine-tuning that the headline's method may lose


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows, and its numbers."""

    name: str  # of its file
    title: str
    text: str
    figure: Figure
    numbers: pd.DataFrame  # of text


def write_report(paths: Iterable[str | Path], out: str | Path) -> None:
    """Write a report on finished runs; its format follows from the suffix of ``out``.

    ``.html`` is one self-contained file, ``.md`` has its pictures in ``<stem>_files/`` beside it.
    Each file appears whole or not at all.

    Args:
        paths: run directories.
        out: file to write; its folder is made where it is missing.

    Raises:
        BadInput: unknown suffix, a run that cannot be read, or a place that cannot be written.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise BadInput(f"report {str(out)!r}: the suffix must be one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise BadInput(f"report {str(out)!r} is a folder; name a file in it")
    runs = read_runs(paths)
    if out.suffix == ".json":
        text = json.dumps({"rows": rows(runs)}, indent=1, ensure_ascii=False) + "\n"
    elif out.suffix == ".md":
        text = _markdown(runs, out.with_name(f"{out.stem}_files"))
    else:
        text = _html(runs)
    write_bytes(out, text.encode())


def headline(frame: pd.DataFrame) -> list[str]:
    """A sentence per task and backbone: which setting is the best trade-off, and what it costs."""
    said = []
    groups = frame.groupby(["task", "backbone"], sort=False)
    for (task, backbone), lines in groups:
        where = f"{task} on {backbone}" if len(groups) > 1 else "Best trade-off"
        chosen = pareto.trade_off(lines, _WITHIN)
        tuned = lines[lines["method"] == "finetune"]
        if chosen is None:
            said.append(f"{task} on {backbone}: {_references(lines)}.")
            continue
        best = lines.loc[chosen]
        sentence = (
            f"{where}: {best['label']} reaches {_accuracy(best)}, adapts "
            f"{count(best['layers_adapted'])} of {count(best['layers'])} layers "
            f"and adds {_percent(best['task_percent'])} of the backbone's parameters"
        )
        if len(tuned):
            tuned_line = tuned.iloc[0]
            sentence += (
                f"; fine-tuning reaches {_accuracy(tuned_line)} and adds "
                f"{_percent(tuned_line['task_percent'])}"
            )
        said.append(sentence + ".")
    return said


def pictures(runs: Sequence[Run], frame: pd.DataFrame) -> list[Picture]:
    """The figures of a report; those that compare layers or sizes once for each backbone."""
    found = []
    backbones = list(dict.fromkeys(frame["backbone"]))
    for i, backbone in enumerate(backbones):
        of = f" ({backbone})" if len(backbones) > 1 else ""
        tail = f"-{i + 1}" if len(backbones) > 1 else ""
        lines = frame[frame["backbone"] == backbone]
        members = [run for run in runs if run.result["backbone"] == backbone]
        found.append(_pareto(lines, of, tail))
        found += _layer_maps(members, of, tail)
        found.append(_budget(lines, of, tail))
    return found


def curve_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Training curves, one figure per experiment with all its seeds."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run, row in sorted(zip(runs, rows(runs), strict=True), key=lambda pair: order(pair[1])):
        found.setdefault(group(row), []).append(run)
    heads = rows([members[0] for members in found.values()])
    pictures = []
    for i, (members, name) in enumerate(zip(found.values(), labels(heads, task=True), strict=True)):
        drawn = curves.curves(members)
        if drawn is None:
            continue
        text = "Thin lines are seeds, thick ones their mean."
        if any(not curves.score_table(run).empty for run in members):
            text += " A score's line is thin while its layer is closed."
        tables = [curves.curve_table(run).assign(seed=run.result["seed"]) for run in members]
        numbers = _texts(pd.concat(tables), ".4g")
        pictures.append(Picture(f"curves-{i + 1}", name, text, drawn, numbers))
    return pictures


def doubts(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before trusting the means: mixed backbones, seeds counted twice."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run, row in zip(runs, rows(runs), strict=True):
        found.setdefault(group(row), []).append(run)
    names = labels(rows([members[0] for members in found.values()]), task=True)
    said = []
    for members, name in zip(found.values(), names, strict=True):
        seeds = [run.result["seed"] for run in members]
        prints = {run.result.get("fingerprint") for run in members}
        if len(set(seeds)) < len(seeds):
            differ = ", ".join(_differing(members)) or "nothing that run.json tells"
            said.append(
                f"{name}: {len(seeds)} runs have only {len(set(seeds))} different seeds, so ± is not "
                f"a spread over seeds. The runs differ in: {differ}."
            )
        if len(prints) > 1:
            said.append(
                f"{name}: its runs adapt {len(prints)} different sets of universal weights."
            )
    return said


def _pareto(lines: pd.DataFrame, of: str, tail: str) -> Picture:
    columns = ["task", "label", "added", "accuracy", "spread", "split", "front"]
    numbers = _texts(pareto.pareto_table(lines)[columns], ".4g")
    text = (
        "Up and to the left is better. The grey line is the Pareto front: no setting is both more "
        "accurate and smaller. Bars are the sample standard deviation over seeds."
    )
    title = f"Accuracy against added parameters{of}"
    return Picture(f"pareto{tail}", title, text, pareto.pareto_plot(lines), numbers)


def _layer_maps(runs: Sequence[Run], of: str, tail: str) -> list[Picture]:
    chosen = [run for run in layers.selective(runs) if run.result.get("layer_states")]
    if not chosen:
        return []
    found = []
    for name, title, value, text in (
        (
            "layers",
            f"Which layers were adapted{of}",
            "on",
            "One column per layer, input on the left; one row per setting. Bars: each layer's share "
            "of the parameters. A stage that adapts the same layers as the one before has no row.",
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
        numbers = _texts(frame.T.rename_axis("layer").reset_index(), ".3g")
        drawn = layers.heat_map(chosen, value)
        found.append(Picture(f"{name}{tail}", title, text, drawn, numbers))
    return found


def _budget(lines: pd.DataFrame, of: str, tail: str) -> Picture:
    numbers = _texts(budget.budget_table(lines).drop(columns="method"), ".4g")
    text = (
        "Left: what one task stores beside the universal weights, in percent of them. Right: one "
        "trunk with K tasks like it. Each adds (multiple - 1); heads are left out there."
    )
    title = f"What a task costs{of}"
    return Picture(f"budget{tail}", title, text, budget.budget_bars(lines), numbers)


def _html(runs: Sequence[Run]) -> str:
    frame = table(rows(runs))
    groups = frame.groupby(["task", "backbone"], sort=False)
    best = [pareto.trade_off(lines, _WITHIN) for _, lines in groups]
    return page.page(
        title=_title(frame),
        facts=_facts(runs, frame),
        sentences=headline(frame),
        rule=_rule(),
        doubts=doubts(runs),
        frame=frame,
        best=[place for place in best if place is not None],
        pictures=[_figure(p) for p in pictures(runs, frame)],
        curves=[_figure(p) for p in curve_pictures(runs)],
        origin=provenance(runs),
        versions=versions(runs),
    )


def _figure(picture: Picture) -> page.Embedded:
    return page.Embedded(
        picture.title,
        picture.text,
        canvas.svg(picture.figure),
        picture.figure.get_figwidth(),
        picture.numbers,
    )


def _markdown(runs: Sequence[Run], folder: Path) -> str:
    frame = table(rows(runs))
    parts = [f"# {_one_line(_title(frame))}", _facts(runs, frame)]
    parts.append("\n".join(f"- {_one_line(s)}" for s in (*headline(frame), *doubts(runs))))
    parts += [_rule(), markdown(cells(frame)), CAPTION]
    for picture in pictures(runs, frame):
        parts += [f"## {_one_line(picture.title)}", _image(picture, folder), picture.text]
    parts.append("## Training curves")
    for picture in curve_pictures(runs):
        parts += [f"### {_one_line(picture.title)}", _image(picture, folder)]
    parts += ["## Where the numbers come from", markdown(provenance(runs)), versions(runs)]
    return "\n\n".join(parts) + "\n"


def _image(picture: Picture, folder: Path) -> str:
    file = folder / f"{picture.name}.png"
    write_bytes(file, canvas.png(picture.figure))
    place = f"{folder.name}/{file.name}".replace(" ", "%20")
    return f"![{_one_line(picture.title)}]({place})"


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


def versions(runs: Sequence[Run]) -> str:
    """The software that made the runs; several combinations are told one after the other."""
    made = [run.setup.get("made_by") or {} for run in runs]
    said = dict.fromkeys(", ".join(f"{k} {v}" for k, v in by.items()) for by in made if by)
    return "Made with " + "; ".join(said) + "." if said else "The runs do not say what made them."


def _title(frame: pd.DataFrame) -> str:
    tasks, backbones = (list(dict.fromkeys(frame[n])) for n in ("task", "backbone"))
    of = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
    on = backbones[0] if len(backbones) == 1 else f"{len(backbones)} backbones"
    return f"{of} on {on}"


def _facts(runs: Sequence[Run], frame: pd.DataFrame) -> str:
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


def _rule() -> str:
    return (
        f"Named is the setting with the fewest added parameters within {_WITHIN:g} point of "
        "fine-tuning, or the most accurate one where none is; the choice is made on validation "
        "data, the accuracy is of the test split."
    )


def _accuracy(line: Any) -> str:
    split = "test" if not math.isnan(line["test"]) else "val"
    where = "" if split == "test" else " (validation)"
    return f"{plus_minus(line[split], line[f'{split}_spread'])} %{where}"


def _references(lines: pd.DataFrame) -> str:
    return ", ".join(f"{line['label']} {_accuracy(line)}" for line in lines.to_dict("records"))


def _percent(value: float) -> str:
    return f"{number(value, '.0f' if value >= 9.95 else '.2g')} %"


def _differing(runs: Sequence[Run]) -> list[str]:
    """Names of the configuration's entries in which runs differ, seed and place aside."""
    configs = [run.setup.get("config") or {} for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    return [
        name
        for name in names
        if name not in ("seed", "out", *PLACE)
        and any(c.get(name) != configs[0].get(name) for c in configs)
    ]


def _texts(frame: pd.DataFrame, spec: str) -> pd.DataFrame:
    """Every cell as text; floats in ``spec``."""
    return pd.DataFrame(
        {
            str(name): [number(v, spec) if isinstance(v, float) else str(v) for v in column]
            for name, column in frame.items()
        }
    )


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")
