"""The HTML of a report: one file that needs nothing else, on a desk, a phone or paper.

Pictures are embedded as SVG that follows light and dark; every string that comes from a run
directory is escaped. Scripts sort the table and draw the chart, nothing else: without them the page
reads well, with a still picture in the place of the chart. Look and behaviour are ``page.css``,
``page.js`` and ``chart.js``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from analysis import html_table, interactive
from analysis.table import caption

_SMALL, _LARGE = 80, 125  # pixels per inch of a figure: smaller is unreadable, larger is loud
_CHART_HELP = (
    "Up and to the left is better; the broad line is the Pareto front. Bars are 95 % confidence "
    "intervals, cut off where they are very wide. Point at a mark, or tap it, for its numbers and "
    "runs; drag to look closer, double click to go back; a name above shows and hides its marks."
)


class Embedded(NamedTuple):
    """A picture with what it shows and its numbers as text."""

    title: str
    text: str
    svg: str
    width: float  # inches
    numbers: pd.DataFrame
    group: str = ""  # what it is folded under, such as its task
    charts: str = ""  # the backbone whose accuracy and cost it shows
    chart: str = ""  # JSON of the chart that takes its place on a screen
    still: bool = False  # another picture's chart shows this one as well


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that a page says."""

    title: str  # what was adapted to what
    facts: str  # one line under it
    study: Sequence[tuple[str, str]]  # name and value, where the runs are of a sweep
    sentences: Sequence[str]  # the headline, one sentence each
    rule: str  # how the headline was chosen, if it had a choice
    doubts: Sequence[str]  # what forbids to trust the means, if anything
    frame: pd.DataFrame  # what `analysis.table.table` returned
    best: Collection[object]  # index labels of the lines that the headline names
    earlier: Collection[object]  # index labels of lines that a later stage follows
    pictures: Sequence[Embedded]  # in the order to show them
    curves: Sequence[Embedded]  # shown folded, for they are many
    origins: Sequence[html_table.Origin]  # the runs of each line of the frame
    versions: str  # of the software that made them


def page(content: Content) -> str:
    """The whole page; plotly stands in it, once, if a picture has a chart."""
    sections = list(_sections(content))
    links = "".join(
        f"<li{' class=still' if still else ''}><a href='#part-{i}'>{escape(title)}</a></li>"
        for i, (title, _, _, still) in enumerate(sections)
    )
    parts = "\n".join(
        f"<section id='part-{i}' class='{style}'><h2{' class=still' if still else ''}>"
        f"{escape(title)}</h2>{body}</section>"
        for i, (title, body, style, still) in enumerate(sections)
    )
    scripts = [_asset("page.js")]
    if any(picture.chart for picture in content.pictures):
        scripts += [interactive.plotly(), interactive.script()]
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{escape(content.title)} · tailor report</title><style>{_asset('page.css')}</style>"
        f"</head>\n<body><main>{_head(content)}\n<nav aria-label='Contents'><ul>{links}</ul></nav>"
        f"\n{parts}</main>\n"
        + "\n".join(f"<script>{script}</script>" for script in scripts)
        + "</body></html>\n"
    )


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _head(content: Content) -> str:
    said = "".join(f"<p>{escape(text)}</p>" for text in content.sentences)
    rule = f"<p class='quiet'>{escape(content.rule)}</p>" if content.rule else ""
    return (
        f"<header><p class='brand'>tailor report</p><h1>{escape(content.title)}</h1>"
        f"<p class='quiet'>{escape(content.facts)}</p></header>"
        f"<div class='headline'>{said}{rule}</div>"
    )


def _sections(content: Content) -> Iterator[tuple[str, str, str, bool]]:
    """Title, body, class of every section, and whether a chart elsewhere makes it needless."""
    if content.doubts:
        warned = "".join(f"<li>{escape(text)}</li>" for text in content.doubts)
        yield "Read with care", f"<ul>{warned}</ul>", "doubts", False
    star = "A star marks the setting named above. " if content.best else ""
    table = html_table.results(content.frame, content.best, content.earlier)
    help_ = f"{caption(content.frame)} {star}A click on a title sorts; a number of seeds leads to"
    body = f"{table}<p class='quiet'>{escape(help_)} the commands and places of the runs.</p>"
    yield "Results", body, "results", False
    for picture in content.pictures:
        yield picture.title, _picture(picture), "picture", picture.still
    if content.curves:
        folded: dict[str, list[str]] = {}
        for curve in content.curves:
            folded.setdefault(curve.group, []).append(
                f"<details><summary>{escape(curve.title)}</summary>{_picture(curve)}</details>"
            )
        yield "Training curves", html_table.grouped(folded), "screen", False
    if content.study:
        facts = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in content.study)
        yield "The sweep", f"<dl>{facts}</dl>", "study", False
    body = f"<p>{escape(content.versions)}</p>{html_table.origins(content.origins)}"
    yield "Where the numbers come from", body, "origin", False


def _picture(picture: Embedded) -> str:
    # Percent-encoding keeps an SVG smaller than base64 would, and the picture apart from the page.
    place = "data:image/svg+xml," + quote(picture.svg.replace('"', "'"), safe=" '=:/;,()+*!?@$&")
    place = place.replace("&", "%26")
    title = escape(picture.title)
    least, most = (f"{scale * picture.width:.0f}px" for scale in (_SMALL, _LARGE))
    replaced = " class='still'" if picture.chart or picture.still else ""
    # Beside a chart the numbers of all its costs follow each other, each under its own name.
    of = f": {title}" if replaced else " in this picture"
    return (
        f"{_chart(picture.chart) if picture.chart else ''}"
        f'<figure{replaced}><div class=\'scroll\'><img src="{place}" alt="{title}" '
        f"style='min-width:{least};max-width:{most}'></div>"
        f"<figcaption>{escape(picture.text)}</figcaption></figure>"
        f"<details class='numbers'><summary>The numbers{of}</summary>"
        f"{html_table.plain(picture.numbers)}</details>"
    )


def _chart(data: str) -> str:
    """The empty place of a chart with its data; ``chart.js`` fills and shows it."""
    return (
        "<div class='chart' hidden><div class='tools'></div><div class='legend' role='group' "
        "aria-label='Series shown'></div><div class='panels'></div>"
        f"<p class='quiet'>{escape(_CHART_HELP)}</p>"
        f"<script type='application/json'>{data}</script></div>"
    )
