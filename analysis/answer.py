"""What every question of this package returns, and how it is written to a file.

A question is a module with ``answer(runs, **options) -> Answer``; ``tailor/ask.py`` makes a verb of
it. An answer always has numbers, and nearly always a picture of them. Left out: how a picture looks
(``canvas.py``) and what stands in it (the questions).
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import canvas
from analysis.table import markdown
from tailor.errors import BadInput
from tailor.run import write_bytes

PICTURES = (".png", ".svg", ".pdf")
FORMATS = (*PICTURES, ".csv", ".md", ".json")
_DIGITS = 4  # significant, of numbers that are shown to people


@dataclass(frozen=True)
class Answer:
    """Numbers, a picture of them, and what they mean."""

    title: str
    text: str  # how to read it: what the numbers are, and their units
    table: pd.DataFrame  # full precision; every line is named by its index
    figure: Figure | None  # None where there is nothing to draw
    shown: pd.DataFrame | None = None  # texts for a terminal, where the table is too wide for one


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a table, index included, as JSON knows them; what is unknown is None."""
    flat = frame.reset_index() if _is_named(frame) else frame
    names = [str(name) for name in flat.columns]
    return [
        dict(zip(names, map(_plain, line), strict=True))
        for line in flat.itertuples(index=False, name=None)
    ]


def texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text, numbers with four digits; the index is the first column."""
    lines = [{name: _text(value) for name, value in record.items()} for record in records(frame)]
    names = [*(n for n in frame.index.names if _is_named(frame)), *frame.columns]
    return pd.DataFrame(lines, columns=[str(name) for name in names])


def check_place(out: Path) -> None:
    """Refuse a place that ``write`` could not use, before anything is measured or drawn.

    Raises:
        BadInput: unknown suffix, or a folder.
    """
    if out.suffix not in FORMATS:
        raise BadInput(f"--out {str(out)!r}: the suffix must be one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise BadInput(f"--out {str(out)!r} is a folder; name a file in it")


def write(answer: Answer, out: Path) -> None:
    """Write the picture or the table; the suffix of ``out`` decides.

    Args:
        answer: of any question.
        out: ``.png``, ``.svg``, ``.pdf`` for the picture; ``.csv``, ``.md``, ``.json`` for the
            table.

    Raises:
        BadInput: see ``check_place``; nothing to draw, or no room to write.
    """
    check_place(out)
    if out.suffix in PICTURES:
        if answer.figure is None:
            raise BadInput(
                f"--out {str(out)!r}: there is nothing to draw here, only numbers; name a .csv, "
                ".md or .json"
            )
        write_bytes(out, encoded(answer.figure, out.suffix))
        return
    if out.suffix == ".csv":
        text = answer.table.to_csv(index=_is_named(answer.table))
    elif out.suffix == ".md":
        parts = (f"# {answer.title}", answer.text, markdown(texts(answer.table)))
        text = "\n\n".join(parts) + "\n"
    else:
        said = {"title": answer.title, "rows": records(answer.table)}
        text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
    write_bytes(out, text.encode())


def encoded(figure: Figure, suffix: str) -> bytes:
    """A figure as the bytes of a ``.png``, ``.svg`` or ``.pdf``; equal figures, equal bytes."""
    if suffix == ".png":
        return canvas.png(figure)
    if suffix == ".svg":
        return canvas.svg(figure, light=True).encode()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()


def _is_named(frame: pd.DataFrame) -> bool:
    """Whether the index says something; a bare count of lines does not."""
    return any(name is not None for name in frame.index.names)


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's own; NaN and infinity are no JSON."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 10**_DIGITS
        return f"{value:.0f}" if whole or abs(value) >= 10**_DIGITS else f"{value:.{_DIGITS}g}"
    return str(value)
