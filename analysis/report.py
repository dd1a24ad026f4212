"""One document about many runs: ``.html`` to open, ``.md`` to paste, ``.json`` for machines.

This file decides what is said and in which order; ``page.py`` makes it HTML, the other modules make
its tables and figures. The JSON holds the rows only, without means: machines can average.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import budget, canvas, curves, layers, page, pareto, summary
from analysis.rows import Run, experiments, read_runs, rows
from analysis.table import CAPTION, cells, markdown, number, table
from tailor.errors import BadInput
from tailor.run import write_bytes

FORMATS = (".html", ".md", ".json")

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


def pictures(runs: Sequence[Run], frame: pd.DataFrame) -> list[Picture]:
    """The figures of a report; those that compare layers or sizes once for each backbone."""
    found = []
    backbones = list(dict.fromkeys(frame["backbone"]))
    for i, backbone in enumerate(backbones):
        of = f" ({backbone})" if len(backbones) > 1 else ""
        tail = f"-{i + 1}" if len(backbones) > 1 else ""
        lines = frame[frame["backbone"] == backbone]
        members = [run for run in runs if run.result["backbone"] == backbone]
        found += _pareto(lines, of, tail)
        found += _layer_maps(members, of, tail)
        found.append(_budget(lines, of, tail))
    return found


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
        tables = [curves.curve_table(run).assign(seed=run.result["seed"]) for run in members]
        every = pd.concat(tables).dropna(axis="columns", how="all").rename(columns=_CURVES)
        numbers = _texts(every, ".4g")
        pictures.append(Picture(f"curves-{i + 1}", name, text, drawn, numbers))
    return pictures


def _pareto(lines: pd.DataFrame, of: str, tail: str) -> list[Picture]:
    drawn = pareto.pareto_plot(lines)
    if drawn is None:
        return []
    columns = {"task": "Task", "label": "Setting", "added": "Added, %", "accuracy": "Accuracy, %"}
    columns |= {"spread": "Spread", "split": "Split", "front": "On the front"}
    points = pareto.pareto_table(lines)[[*columns]].rename(columns=columns)
    points["On the front"] = ["yes" if on else "no" for on in points["On the front"]]
    numbers = _texts(points, ".4g")
    text = (
        "Up and to the left is better. The grey line is the Pareto front: no setting is both more "
        "accurate and smaller. Bars are the sample standard deviation over seeds. The accuracy "
        "axis is logarithmic in the error, so that 99 and 99.5 % stand apart."
    )
    title = f"Accuracy against added parameters{of}"
    return [Picture(f"pareto{tail}", title, text, drawn, numbers)]


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


def _html(runs: Sequence[Run]) -> str:
    frame = table(rows(runs))
    groups = frame.groupby(["task", "backbone"], sort=False)
    best = [pareto.trade_off(lines, summary.WITHIN) for _, lines in groups]
    return page.page(
        title=summary.title(frame),
        facts=summary.facts(runs, frame),
        sentences=summary.headline(frame),
        rule=summary.RULE,
        doubts=summary.doubts(runs),
        frame=frame,
        best=[place for place in best if place is not None],
        pictures=[_figure(p) for p in pictures(runs, frame)],
        curves=[_figure(p) for p in curve_pictures(runs)],
        origin=summary.provenance(runs),
        versions=summary.versions(runs),
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
    said = [*summary.headline(frame), *summary.doubts(runs)]
    parts = [f"# {_one_line(summary.title(frame))}", summary.facts(runs, frame)]
    parts += ["\n".join(f"- {_one_line(sentence)}" for sentence in said)]
    parts += [summary.RULE, markdown(cells(frame)), CAPTION]
    for picture in pictures(runs, frame):
        parts += [f"## {_one_line(picture.title)}", _image(picture, folder), picture.text]
    parts.append("## Training curves")
    for picture in curve_pictures(runs):
        parts += [f"### {_one_line(picture.title)}", _image(picture, folder)]
    parts += [
        "## Where the numbers come from",
        markdown(summary.provenance(runs)),
        summary.versions(runs),
    ]
    return "\n\n".join(parts) + "\n"


def _image(picture: Picture, folder: Path) -> str:
    file = folder / f"{picture.name}.png"
    write_bytes(file, canvas.png(picture.figure))
    place = f"{folder.name}/{file.name}".replace(" ", "%20")
    return f"![{_one_line(picture.title)}]({place})"


def _texts(frame: pd.DataFrame, spec: str) -> pd.DataFrame:
    """Every cell as text; floats in ``spec``."""
    return pd.DataFrame(
        {
            str(name): [number(v, spec) if isinstance(v, float) else str(v) for v in column]
            for name, column in frame.items()
        }
    )


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")
