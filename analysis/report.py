"""One document about many runs: ``.html`` to open, ``.md`` to paste, ``.json`` for machines.

This file decides what is said and in which order; ``page.py`` makes it HTML, ``pictures.py``
chooses the figures. The JSON holds the rows only, without means: machines can average.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis import canvas, page, summary
from analysis.pictures import Picture, curve_pictures, pictures
from analysis.rows import Run, read_runs, rows
from analysis.table import caption, cells, markdown, table
from tailor.errors import BadInput
from tailor.run import write_bytes

FORMATS = (".html", ".md", ".json")


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


def _html(runs: Sequence[Run]) -> str:
    frame = table(rows(runs))
    return page.page(
        title=summary.title(frame),
        facts=summary.facts(runs, frame),
        sentences=summary.headline(frame),
        rule=summary.rule(frame),
        doubts=summary.doubts(runs),
        frame=frame,
        best=summary.named(frame),
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
    parts += [summary.rule(frame), markdown(cells(frame)), caption(frame)]
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
    return "\n\n".join(part for part in parts if part) + "\n"


def _image(picture: Picture, folder: Path) -> str:
    file = folder / f"{picture.name}.png"
    write_bytes(file, canvas.png(picture.figure))
    place = f"{folder.name}/{file.name}".replace(" ", "%20")
    return f"![{_one_line(picture.title)}]({place})"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")
