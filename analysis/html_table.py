"""The tables of a report as HTML: results that sort, the runs behind each line, plain numbers.

Everything that comes from a run directory is escaped here. ``table.py`` says which columns there
are; ``page.js`` sorts them and hides lines; ``page.css`` says how they look on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd

from analysis.table import SORTED_BY, cells

_MANY_COLUMNS = 10  # more than this need smaller type to fit on a desk
_MANY_LINES = 12  # more than this are worth a search


class Origin(NamedTuple):
    """The runs behind one line of the results."""

    name: str  # task and setting
    task: str
    runs: Sequence[Mapping[str, str]]  # one text per fact; "Command" is shown as code


def results(frame: pd.DataFrame, best: Collection[object], earlier: Collection[object]) -> str:
    """The table of results: a line per setting, whose seeds lead to its runs (``origins``).

    Args:
        frame: what ``analysis.table.table`` returned.
        best: index labels of the lines with a star.
        earlier: index labels of lines that a later stage of the same setting follows; the reader
            may hide them.
    """
    text = cells(frame)
    head = "".join(
        f"<th scope='col'{_classes(name)}><button type='button'>{escape(name)}</button></th>"
        for name in text.columns
    )
    lines = []
    for i, (place, numbers) in enumerate(frame.iterrows()):
        line = text.iloc[i]
        star = " <span class='star' title='best trade-off'>★</span>" if place in best else ""
        row = ""
        for name, value in line.items():
            if name == "Method":
                task = f" data-task='{escape(line['Task'])}'" if "Task" in line else ""
                row += f"<th scope='row'{task}>{escape(value)}{star}</th>"
            else:
                row += _cell(str(name), value, numbers, i)
        marks = " class=best" if place in best else ""
        marks += " data-earlier" if place in earlier else ""
        lines.append(f"<tr{marks}>{row}</tr>")
    wide = " class='wide'" if len(text.columns) > _MANY_COLUMNS else ""
    return (
        f"{_tools(len(frame), len(earlier))}<div class='scroll tall'><table id='results'{wide}>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def origins(lines: Sequence[Origin]) -> str:
    """The runs of every line, folded; those of one task together where there are several."""
    folded: dict[str, list[str]] = {}
    for i, line in enumerate(lines):
        runs = "".join(f"<li>{_facts(run)}</li>" for run in line.runs)
        several = f"{len(line.runs)} run" + "s" * (len(line.runs) > 1)
        folded.setdefault(line.task, []).append(
            f"<details class='runs always' id='runs-{i}'><summary>{escape(line.name)}: {several}"
            f"</summary><ul>{runs}</ul></details>"
        )
    return grouped(folded, "always")


def grouped(folded: Mapping[str, Sequence[str]], style: str = "") -> str:
    """Folded parts one after the other; those of one task folded once more, if there are many.

    Args:
        folded: task -> HTML of its parts.
        style: further classes of the outer fold.
    """
    if len(folded) < 2 or sum(map(len, folded.values())) <= _MANY_LINES:
        return "".join(part for parts in folded.values() for part in parts)
    return "".join(
        f"<details class='group {style}'><summary>{escape(task)}: {len(parts)} settings</summary>"
        f"<div>{''.join(parts)}</div></details>"
        for task, parts in folded.items()
    )


def plain(text: pd.DataFrame) -> str:
    """A table of text; words stand left, numbers right."""
    head, columns = [], []
    for title, column in text.items():
        name = escape(str(title))
        words = not all(value[:1] in "0123456789-–" for value in column)
        style = " class='name'" if words else ""
        head.append(f"<th scope='col'{style}>{name}</th>")
        columns.append([f"<td{style}>{escape(value)}</td>" for value in column])
    lines = "".join(f"<tr>{''.join(line)}</tr>" for line in zip(*columns, strict=True))
    return (
        f"<div class='scroll tall'><table class='small'><thead><tr>{''.join(head)}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _classes(name: str) -> str:
    found = ["name"] * (name not in SORTED_BY) + [name.lower()] * (name == "Task")
    found += ["first"] * (name == "Method")
    return f" class='{' '.join(found)}'" if found else ""


def _cell(name: str, text: str, numbers: Any, place: int) -> str:
    if name not in SORTED_BY:
        task = " task" if name == "Task" else ""
        return f"<td class='text{task}' title='{escape(text)}'>{escape(text)}</td>"
    key = numbers[SORTED_BY[name]]
    sort = "" if math.isnan(key) else f" data-key='{key:.10g}'"
    if name == "Seeds":
        where = f"title='commands and places of these runs' href='#runs-{place}'"
        return f"<td{sort}><a {where}>{escape(text)}</a></td>"
    return f"<td{sort}>{escape(text)}</td>"


def _tools(lines: int, earlier: int) -> str:
    """A search for many lines, and a box that hides the stages before the last; for scripts."""
    if lines <= _MANY_LINES:
        return ""
    box = "<label><input type='checkbox' checked>last stage only</label>" if earlier else ""
    return (
        "<div class='tools' id='tools' hidden><label>Find <input type='search' "
        f"placeholder='task, method, λ …'></label>{box}<output></output></div>"
    )


def _facts(run: Mapping[str, str]) -> str:
    told = " · ".join(
        f"{escape(name)} {escape(value)}" for name, value in run.items() if name != "Command"
    )
    return f"{told}<br><code>{escape(run['Command'])}</code>"
