"""One document about many runs: ``.html`` to open, ``.md`` to paste, ``.json`` for machines.

This file decides what is said and in which order; ``page.py`` makes it HTML, ``pictures.py``
chooses the figures. The JSON holds the rows only, without means: machines can average.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import canvas, interactive, page, sequences, summary
from analysis.html_table import Origin
from analysis.pictures import Picture, curve_pictures, pictures, sequence_pictures
from analysis.rows import Run, experiments, final, read_runs, rows
from analysis.table import caption, cells, markdown, table
from tailor.errors import BadInput
from tailor.run import write_bytes

FORMATS = (".html", ".md", ".json")


def write_report(paths: Iterable[str | Path], out: str | Path, *, static: bool = False) -> None:
    """Write a report on finished runs; its format follows from the suffix of ``out``.

    ``.html`` is one self-contained file that needs no network, ``.md`` has its pictures in
    ``<stem>_files/`` beside it. Each file appears whole or not at all.

    Args:
        paths: run directories, or directories of sweeps or sequences.
        out: file to write; its folder is made where it is missing.
        static: leave out the chart that answers to a mouse, and the 5 MB of plotly that draw it;
            its still picture stays.

    Raises:
        BadInput: unknown suffix, a run that cannot be read, or a place that cannot be written.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise BadInput(f"report {str(out)!r}: the suffix must be one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise BadInput(f"report {str(out)!r} is a folder; name a file in it")
    paths = [Path(path) for path in paths]
    runs = read_runs(paths)
    if out.suffix == ".json":
        text = json.dumps({"rows": rows(runs)}, indent=1, ensure_ascii=False) + "\n"
    elif out.suffix == ".md":
        text = _markdown(runs, paths, out.with_name(f"{out.stem}_files"))
    else:
        text = _html(runs, paths, static=static)
    write_bytes(out, text.encode())


def _html(runs: Sequence[Run], paths: Sequence[Path], *, static: bool) -> str:
    frame = table(rows(runs))
    named = experiments(runs)  # in the order of the table's lines
    members = dict(zip(frame.index, (group for _, group in named), strict=True))
    last = {group[0].path for _, group in final(runs)}
    origins = summary.origins(group for _, group in named)
    drawn = [_figure(picture) for picture in _pictures(runs, frame, paths)]
    if not static:
        drawn = _with_charts(drawn, frame, members)
    return page.page(
        page.Content(
            title=summary.title(frame),
            facts=summary.facts(runs, frame),
            study=summary.study(paths),
            sentences=summary.headline(frame),
            rule=summary.rule(frame),
            doubts=summary.doubts(runs),
            frame=frame,
            best=summary.named(frame),
            earlier=[place for place, group in members.items() if group[0].path not in last],
            pictures=drawn,
            curves=[_figure(picture) for picture in curve_pictures(runs)],
            origins=[
                Origin(name, str(group[0].result["task"]), told)
                for (name, group), told in zip(named, origins, strict=True)
            ],
            versions=summary.versions(runs),
        )
    )


def _pictures(runs: Sequence[Run], frame: pd.DataFrame, paths: Sequence[Path]) -> list[Picture]:
    """Sequences of tasks come first, for their numbers are of all tasks together."""
    learned = [path for path in paths if sequences.holds(path)]
    return [*(sequence_pictures(learned) if learned else []), *pictures(runs, frame)]


def _with_charts(
    drawn: Sequence[page.Embedded], frame: pd.DataFrame, members: Mapping[Any, Sequence[Run]]
) -> list[page.Embedded]:
    """Each backbone's first picture of accuracy against cost gets a chart, which shows the rest."""
    found, charted = [], set()
    for picture in drawn:
        if picture.charts:
            if picture.charts in charted:
                picture = picture._replace(still=True)
            else:
                charted.add(picture.charts)
                lines = frame[frame["backbone"] == picture.charts]
                of = f" ({picture.charts})" if frame["backbone"].nunique() > 1 else ""
                picture = picture._replace(chart=interactive.chart(lines, members, of))
        found.append(picture)
    return found


def _figure(picture: Picture) -> page.Embedded:
    return page.Embedded(
        picture.title,
        picture.text,
        canvas.svg(picture.figure),
        picture.figure.get_figwidth(),
        picture.numbers,
        picture.group,
        picture.charts,
    )


def _markdown(runs: Sequence[Run], paths: Sequence[Path], folder: Path) -> str:
    frame = table(rows(runs))
    said = [*summary.headline(frame), *summary.doubts(runs)]
    parts = [f"# {_one_line(summary.title(frame))}", summary.facts(runs, frame)]
    parts += ["\n".join(f"- {_one_line(sentence)}" for sentence in said)]
    parts += [summary.rule(frame), markdown(cells(frame)), caption(frame)]
    for picture in _pictures(runs, frame, paths):
        parts += [f"## {_one_line(picture.title)}", _image(picture, folder), picture.text]
    parts.append("## Training curves")
    for picture in curve_pictures(runs):
        parts += [f"### {_one_line(picture.title)}", _image(picture, folder)]
    if study := summary.study(paths):
        parts += ["## The sweep", "\n".join(f"- {n}: {_one_line(value)}" for n, value in study)]
    parts += [
        "## Where the numbers come from",
        markdown(summary.provenance(runs)),
        summary.versions(runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _image(picture: Picture, folder: Path) -> str:
    file = folder / f"{picture.name}.png"
    write_bytes(file, canvas.png(picture.figure))
    place = f"{folder.name}/{file.name}".replace(" ", "%20")
    return f"![{_one_line(picture.title)}]({place})"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")
