"""The HTML of a report: one file that needs nothing else, on a desk, a phone or paper.

Pictures are embedded as SVG that follows light and dark; every string that comes from a run
directory is escaped. The script sorts the table, nothing else: the page reads well without it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from html import escape
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from analysis.table import SORTED_BY, caption, cells

_MANY = 10  # more columns than this need smaller type to fit on a desk
_SMALL, _LARGE = 80, 125  # pixels per inch of a figure: smaller is unreadable, larger is loud


class Embedded(NamedTuple):
    """A picture with what it shows and its numbers as text."""

    title: str
    text: str
    svg: str
    width: float  # inches
    numbers: pd.DataFrame


def page(
    *,
    title: str,
    facts: str,
    sentences: Sequence[str],
    rule: str,
    doubts: Sequence[str],
    frame: pd.DataFrame,
    best: Collection[object],
    pictures: Sequence[Embedded],
    curves: Sequence[Embedded],
    origin: pd.DataFrame,
    versions: str,
) -> str:
    """The whole page.

    Args:
        title: what was adapted to what.
        facts: one line under it.
        sentences: the headline, one sentence each.
        rule: how the headline was chosen, if it had a choice.
        doubts: what forbids to trust the means, if anything.
        frame: what ``analysis.table.table`` returned.
        best: index labels of the lines that the headline names.
        pictures: in the order to show them.
        curves: shown folded, for they are many.
        origin: one line of text per run.
        versions: of the software that made them.
    """
    star = "A star marks the setting named above. " if best else ""
    warned = "".join(f"<li>{escape(text)}</li>" for text in doubts)
    body = [
        f"<header><p class='brand'>tailor report</p><h1>{escape(title)}</h1>"
        f"<p class='quiet'>{escape(facts)}</p></header>",
        "<section class='headline'>"
        + "".join(f"<p>{escape(text)}</p>" for text in sentences)
        + (f"<p class='quiet'>{escape(rule)}</p>" if rule else "")
        + "</section>",
        f"<section class='doubts'><h2>Read with care</h2><ul>{warned}</ul></section>"
        if warned
        else "",
        f"<section><h2>Results</h2>{_results(frame, best)}<p class='quiet'>"
        f"{escape(caption(frame))} {star}A click on a title sorts.</p></section>",
        *(f"<section><h2>{escape(p.title)}</h2>{_picture(p)}</section>" for p in pictures),
        "<section class='screen'><h2>Training curves</h2>"
        + "".join(map(_folded, curves))
        + "</section>"
        if curves
        else "",
        "<section><h2>Where the numbers come from</h2><details><summary>Command, seed and "
        f"universal weights of every run</summary>{_plain_table(origin)}</details>"
        f"<p class='quiet'>{escape(versions)}</p></section>",
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{escape(title)} · tailor report</title><style>{_CSS}</style></head>\n<body><main>"
        + "\n".join(part for part in body if part)
        + f"</main>\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _results(frame: pd.DataFrame, best: Collection[object]) -> str:
    text = cells(frame)
    head = "".join(
        f"<th scope='col'{'' if name in SORTED_BY else ' class=name'}>"
        f"<button type='button'>{escape(name)}</button></th>"
        for name in text.columns
    )
    wide = " class='wide'" if len(text.columns) > _MANY else ""
    lines = []
    for line, (place, numbers) in zip(text.to_dict("records"), frame.iterrows(), strict=True):
        row = "".join(
            _cell(name, value, numbers.get(SORTED_BY.get(name, "")), star=place in best)
            for name, value in line.items()
        )
        lines.append(f"<tr{' class=best' if place in best else ''}>{row}</tr>")
    return (
        f"<div class='scroll tall'><table id='results'{wide}><thead><tr>"
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(name: str, text: str, key: float | None, *, star: bool) -> str:
    if name == "Method":
        mark = " <span class='star' title='best trade-off'>★</span>" if star else ""
        return f"<th scope='row'>{escape(text)}{mark}</th>"
    if key is None:
        return f"<td class='text' title='{escape(text)}'>{escape(text)}</td>"
    sort = "" if math.isnan(key) else f" data-key='{key:.10g}'"
    return f"<td{sort}>{escape(text)}</td>"


def _picture(picture: Embedded) -> str:
    # Percent-encoding keeps an SVG smaller than base64 would, and the picture apart from the page.
    place = "data:image/svg+xml," + quote(picture.svg.replace('"', "'"), safe=" '=:/;,()+*!?@$&")
    place = place.replace("&", "%26")
    title = escape(picture.title)
    least, most = (f"{scale * picture.width:.0f}px" for scale in (_SMALL, _LARGE))
    return (
        f'<figure><div class=\'scroll\'><img src="{place}" alt="{title}" '
        f"style='min-width:{least};max-width:{most}'></div>"
        f"<figcaption>{escape(picture.text)}</figcaption></figure>"
        f"<details class='numbers'><summary>The numbers in this picture</summary>"
        f"{_plain_table(picture.numbers)}</details>"
    )


def _folded(picture: Embedded) -> str:
    return f"<details><summary>{escape(picture.title)}</summary>{_picture(picture)}</details>"


def _plain_table(text: pd.DataFrame) -> str:
    """A table of text; words stand left, numbers right, commands wrap."""
    head, columns = [], []
    for title, column in text.items():
        name = escape(str(title))
        if name == "Command":
            style, cell = " class='text'", "<td class='text'><code>{}</code></td>"
        elif all(value[:1] in "0123456789-–" for value in column):
            style, cell = "", "<td>{}</td>"
        else:
            style, cell = " class='name'", "<td class='name'>{}</td>"
        head.append(f"<th scope='col'{style}>{name}</th>")
        columns.append([cell.format(escape(value)) for value in column])
    lines = "".join(f"<tr>{''.join(line)}</tr>" for line in zip(*columns, strict=True))
    return (
        f"<div class='scroll tall'><table class='small'><thead><tr>{''.join(head)}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


_CSS = """
:root{color-scheme:light dark;--ink:#24292f;--quiet:#5c6670;--paper:#fff;--card:#f6f8fa;
--rule:#d8dee4;--mark:#0072b2;--tint:#e8f2f9;--care:#b35900}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6edf3;--quiet:#9aa5b1;
--paper:#15191e;--card:#1d232a;--rule:#343c46;--mark:#56b4e9;--tint:#17303f;--care:#e69f00}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1280px;margin:0 auto;padding:28px 24px 64px}
h1{font-size:2rem;line-height:1.2;margin:.1em 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.2em 0 .6em;overflow-wrap:anywhere}
p{margin:.5em 0}
.brand{color:var(--mark);font-weight:650;margin:0}
.quiet,figcaption{color:var(--quiet);font-size:.9rem}
.headline{border-left:4px solid var(--mark);background:var(--tint);padding:10px 18px;
margin-top:22px;border-radius:0 8px 8px 0;font-size:1.06rem;overflow-wrap:anywhere}
.doubts h2{color:var(--care);margin-bottom:.2em}
.scroll{overflow-x:auto}
.tall{overflow:auto;max-height:82vh;border:1px solid var(--rule);border-radius:8px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.92rem;
font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
tbody tr:last-child>*{border-bottom:0}
thead th{position:sticky;top:0;z-index:2;background:var(--card);font-weight:600}
th[scope=row],.text,.name{text-align:left!important}
th[scope=row]{font-weight:550}
tbody tr:hover>*{background:var(--card)}
tr.best>*,tr.best:hover>*{background:var(--tint)}
.wide{font-size:.83rem}
.wide th,.wide td{padding:6px 7px}
.star{color:var(--mark)}
thead button{all:unset;cursor:pointer;white-space:normal}
thead button:focus-visible{outline:2px solid var(--mark);outline-offset:2px}
th[aria-sort] button::after{content:" ▾"}
th[aria-sort=ascending] button::after{content:" ▴"}
figure{margin:0}
figure img{display:block;width:100%;height:auto}
figcaption{margin-top:4px}
details{margin:8px 0}
summary{cursor:pointer}
.numbers>summary{color:var(--quiet);font-size:.9rem}
.numbers .tall{max-height:50vh}
.small{font-size:.82rem}
.small td,.small th{padding:4px 10px}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;
overflow-wrap:anywhere}
td.text{max-width:14em;overflow:hidden;text-overflow:ellipsis}
.small td.text{min-width:320px;max-width:none;white-space:normal;overflow-wrap:anywhere}
@media(max-width:640px){body{font-size:15px}main{padding:18px 14px 40px}h1{font-size:1.55rem}
th,td{padding:6px 8px}td.text{max-width:8em}
#results th:first-child{position:sticky;left:0;z-index:1;background:var(--card)}
#results thead th:first-child{z-index:3}}
@media print{body{font-size:10pt}main{max-width:none;padding:0}.tall{max-height:none;border:0}
.scroll{overflow:visible}figure,tr{break-inside:avoid}h2{break-after:avoid;margin-top:1.4em}
figure img{min-width:0!important;max-width:100%!important;max-height:235mm;width:auto}
table{font-size:7.5pt}th,td{padding:2px 4px}.screen,details:not([open]){display:none}}
"""

_SCRIPT = """
document.querySelectorAll('#results thead th').forEach((head, column) => {
  head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') === 'descending';
    const body = document.querySelector('#results tbody');
    const key = row => {
      const cell = row.cells[column], number = cell.dataset.key;
      return number === undefined ? cell.textContent : Number(number);
    };
    const rank = value => typeof value === 'number' ? 0 : 1;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (rank(x) !== rank(y)) return rank(x) - rank(y);
      const order = rank(x) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    head.parentNode.querySelectorAll('th').forEach(th => th.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    body.append(...rows);
  });
});
"""
