"""Draws one state of a tailored network on a plan, in the looks of ``canvas.py``.

A box is a universal block with its gate, a faint outline a block that is gone. An arc is a proxy,
as wide and dark as its gate, from the node whose output it takes to the node that it adds to. The
figure's boxes and arcs carry the names of their paths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from analysis import canvas
from analysis.canvas import INK, MUTED, PAPER
from analysis.plan import BOX, END, HALF, REST, STEM, WIDTH, Plan, Row

_UNIVERSAL, _PROXY = (to_hex(c) for c in sns.color_palette("colorblind")[:2])
_NAMED, _FEW = 0.05, 12  # of more than a few proxies, those with a smaller gate have no number
_LABEL = (0.21, 0.1)  # inches that the number of an arc covers


@dataclass(frozen=True)
class Said:
    """The words of a diagram."""

    title: str
    setting: str
    facts: str
    stem: str = ""  # under its box
    head: str = ""


def diagram(planned: Plan, gates: Mapping[str, float], said: Said) -> Figure:
    """Draw one state of a network.

    Args:
        planned: where everything lies.
        gates: path -> gate, in [0, 1]; a path that is absent is gone.
        said: the words around it.
    """
    axes = canvas.sheet(WIDTH, planned.height)
    for text, most, down, size in (
        (said.title, 54, 0.16, 9.5), (said.setting, 76, 0.36, 8), (said.facts, 76, 0.52, 8)
    ):  # fmt: skip
        text, bold = canvas.plain(text, most), size > 9
        _write(axes, 0.1, planned.height - down, text, size, ha="left", bold=bold)
    alive = {STEM, REST, *(path.partition("<-")[0] for path in gates)}  # what a path reaches
    for row in planned.rows:
        _draw_row(axes, planned, row, gates, alive)
    _draw_proxies(axes, planned, gates)
    _draw_ends(axes, planned, said)
    _draw_legend(axes)
    return axes.figure


def _draw_row(
    axes: Axes, planned: Plan, row: Row, gates: Mapping[str, float], alive: set[str]
) -> None:
    wide = planned.unit * BOX
    before = row.entries[-1]
    for name, x in row.boxes.items():
        gate = gates.get(name)
        if gate is None:
            axes.add_patch(_box(x, row.y, wide, edge=MUTED, lw=0.7, ls=(0, (2, 2)), gid=name))
        else:
            for start, end in (
                (row.nodes[before], x - wide / 2), (x + wide / 2, row.nodes[name])
            ):  # fmt: skip
                axes.plot(
                    [start, end], [row.y] * 2, color=_UNIVERSAL, lw=_width(gate),
                    alpha=_opacity(gate), solid_capstyle="butt", zorder=1,
                )  # fmt: skip
            axes.add_patch(
                _box(x, row.y, wide, edge=_UNIVERSAL, lw=1.2, gid=name, fill=0.06 + 0.44 * gate)
            )
            _write(axes, x, row.y, f"{gate:.2f}", 8, bold=True)
        _write(axes, x, row.y - HALF - 0.08, canvas.plain(planned.short[name], 7), 7, MUTED)
        before = name
    for name, x in row.nodes.items():
        if name in alive:
            fill = MUTED if name in row.boxes else PAPER
            axes.add_patch(
                Circle((x, row.y), 0.033, facecolor=fill, edgecolor=MUTED, lw=1, zorder=4)
            )
    crowded = max(len(planned.short[name]) for name in row.entries) > 3
    for i, name in enumerate(name for name in row.entries if name != STEM):
        low = HALF + 0.08 + 0.11 * (crowded and i % 2)
        _write(axes, row.nodes[name], row.y - low, canvas.plain(planned.short[name], 7), 7, MUTED)
    for group in row.groups:
        y = row.y - HALF - 0.18
        axes.plot([group.left, group.right], [y, y], color=MUTED, lw=0.7, solid_capstyle="butt")
        room = (group.right - group.left + 0.3) / 0.058  # characters of 7 points
        texts = (f"{group.name}: {group.shape}", group.shape, group.shape.replace(" ", ""))
        fitting = [text for text in texts if len(text) <= room] or [""]
        _write(axes, (group.left + group.right) / 2, y - 0.09, canvas.plain(fitting[0]), 7.5)


def _draw_proxies(axes: Axes, planned: Plan, gates: Mapping[str, float]) -> None:
    """Arcs, and their numbers: the strongest first, each where it covers no other."""
    taken: list[tuple[float, float]] = []
    proxies = sorted(((g, path) for path, g in gates.items() if "<-" in path), reverse=True)
    for gate, path in proxies:
        target, _, source = path.partition("<-")
        start, end, y, rise = planned.arc(source, target)
        top = y + rise / 0.75  # a cubic reaches three quarters of its handles
        curve = Curve(
            [(start, y), (start, top), (end, top), (end, y)],
            [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
        )
        axes.add_patch(
            PathPatch(
                curve, facecolor="none", edgecolor=_PROXY, lw=_width(gate), alpha=_opacity(gate),
                zorder=3, gid=path, capstyle="round",
            )
        )  # fmt: skip
        if gate < _NAMED and len(proxies) > _FEW:
            continue
        for t in (0.5, 0.4, 0.6, 0.3, 0.7):
            x = start + (end - start) * t * t * (3 - 2 * t)
            place = (x, y + 4 * rise * t * (1 - t))
            if not any(abs(x - a) < _LABEL[0] and abs(place[1] - b) < _LABEL[1] for a, b in taken):
                taken.append(place)
                _write(axes, *place, _short(gate), 7, over=True)
                break


def _draw_ends(axes: Axes, planned: Plan, said: Said) -> None:
    """Stem and head, tied to the first and the last node; a mark where a row goes on."""
    wide, first, last = planned.unit * END, planned.rows[0], planned.rows[-1]
    for x, row, name, caption in (
        (planned.stem, first, "stem", said.stem), (planned.head, last, "head", said.head)
    ):  # fmt: skip
        axes.add_patch(_box(x, row.y, wide, edge=MUTED, lw=1, gid=name, fill=0.12, face=MUTED))
        _write(axes, x, row.y, name, 8)
        _write(axes, x, row.y - HALF - 0.08, caption, 7, MUTED)
    end = max(last.nodes.values())
    for row, a, b in (
        (first, planned.stem + wide / 2, first.nodes[STEM]), (last, end, planned.head - wide / 2)
    ):  # fmt: skip
        axes.plot([a, b], [row.y] * 2, color=MUTED, lw=1, zorder=1)
    for row in planned.rows[:-1]:
        _write(axes, max(row.nodes.values()) + 0.09, row.y, "›", 11, MUTED)


def _draw_legend(axes: Axes) -> None:
    y = 0.15
    axes.add_patch(_box(0.25, y, 0.3, edge=_UNIVERSAL, lw=1.2, fill=0.4, half=0.09))
    _write(axes, 0.46, y, "block, gate", 7.5, ha="left")
    axes.add_patch(_box(1.4, y, 0.3, edge=MUTED, lw=0.7, ls=(0, (2, 2)), half=0.09))
    _write(axes, 1.61, y, "removed", 7.5, ha="left")
    for i, gate in enumerate((0.05, 0.3, 0.8)):
        x = 2.35 + 0.27 * i
        axes.plot(
            [x, x + 0.22], [y, y], color=_PROXY, lw=_width(gate), alpha=_opacity(gate),
            solid_capstyle="butt",
        )  # fmt: skip
    _write(axes, 3.2, y, "proxy, gate .05 .3 .8", 7.5, ha="left")


def _box(
    x: float,
    y: float,
    wide: float,
    *,
    edge: str,
    lw: float,
    ls: Any = "-",
    gid: str | None = None,
    fill: float = 0.0,
    face: str = _UNIVERSAL,
    half: float = HALF,
) -> FancyBboxPatch:
    return FancyBboxPatch(
        (x - wide / 2, y - half), wide, 2 * half, boxstyle="round,pad=0,rounding_size=0.04",
        edgecolor=edge, facecolor=(face, fill), lw=lw, ls=ls, gid=gid, zorder=2,
    )  # fmt: skip


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    size: float,
    colour: str = INK,
    *,
    ha: str = "center",
    bold: bool = False,
    over: bool = False,
) -> None:
    """Text centred in height; ``over`` keeps lines from running through it."""
    paper = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    axes.text(
        x, y, text, fontsize=size, color=colour, ha=ha, va="center_baseline" if over else "center",
        fontweight="bold" if bold else "normal", bbox=paper if over else None, zorder=6,
    )  # fmt: skip


def _width(gate: float) -> float:
    return 0.5 + 3.5 * gate


def _opacity(gate: float) -> float:
    return 0.2 + 0.8 * math.sqrt(min(max(gate, 0.0), 1.0))


def _short(gate: float) -> str:
    """``.12`` of 0.12: the point is enough where room is scarce."""
    text = f"{gate:.2f}"
    return text[1:] if text.startswith("0") else text
