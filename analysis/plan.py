"""Where everything lies in the diagram of a tailored network: rows, boxes, nodes and arcs.

Pure geometry in inches, origin at the lower left; ``architecture.py`` draws it. Blocks of one
output shape form a group, groups share a row where they fit, and a long group takes several rows.
A *node* is what a block hands on. Nodes of earlier rows that feed a row stand at its left as
*entries*, so that no arc leaves its row; beyond a few, the weaker ones share one entry.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEM = "stem"  # the node before the first block
REST = "…"  # the entry that stands for all weaker ones
WIDTH = 4.6  # a phone shows it at 80 pixels per inch, a printed page as it is

# Widths in units; a unit follows from WIDTH.
BOX, STEP, ENTRY, GAP, END, TIE = 0.66, 1.0, 0.46, 0.22, 0.8, 0.2
HALF = 0.15  # half the height of a box
_MARGIN, _TOP, _BOTTOM = 0.1, 0.7, 0.36  # beside, above (title) and below (legend) the rows
_MARK = 0.1  # at the end of a row that goes on
_UNDER, _BETWEEN = 0.5, 0.1  # from the nodes down to the end of a row; between rows
_MOST_BLOCKS, _MOST_ENTRIES, _WIDEST = 7, 6, 0.72


@dataclass(frozen=True)
class Group:
    """Neighbouring blocks of one shape in one row."""

    name: str  # what their names share
    shape: str  # such as "64 × 56²"
    left: float
    right: float


@dataclass(frozen=True)
class Row:
    """One line of the diagram."""

    y: float  # of its nodes
    boxes: dict[str, float]  # block -> centre of its box
    nodes: dict[str, float]  # node -> x: entries first, then what the blocks hand on
    entries: tuple[str, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Plan:
    """The whole diagram."""

    height: float
    unit: float  # inches
    rows: tuple[Row, ...]
    order: dict[str, int]  # node -> place in the network, the stem is 0
    short: dict[str, str]  # node -> a name that fits under a box
    stem: float  # centre of its box, in the first row
    head: float  # the same, in the last row

    def row_of(self, block: str) -> Row:
        """The row that holds a block."""
        return next(row for row in self.rows if block in row.boxes)

    def arc(self, source: str, target: str) -> tuple[float, float, float, float]:
        """Start, end, height of the nodes, and how far above them a proxy's arc passes."""
        row = self.row_of(target)
        start = row.nodes.get(source, row.nodes.get(REST, 0.0))
        return start, row.nodes[target], row.y, _rise(self.order[target] - self.order[source])


def plan(blocks: Sequence[Mapping[str, Any]], proxies: Mapping[tuple[str, str], float]) -> Plan:
    """Place everything.

    Args:
        blocks: ``name`` and ``out_shape`` of the universal blocks, in network order.
        proxies: (source, target) -> its largest gate; the weakest of many sources give way.
    """
    names = [str(block["name"]) for block in blocks]
    order = {name: i for i, name in enumerate([STEM, *names])}
    packed = _pack([list(group) for group in _groups(blocks)])
    entries = [_entries(row, order, proxies) for row in packed]
    widths = [_row_width(groups, entered) for groups, entered in zip(packed, entries, strict=True)]
    widths[-1] += TIE + END  # the head
    unit = min(_WIDEST, (WIDTH - 2 * _MARGIN - _MARK) / max(widths))
    rows, top, stem, head = [], _TOP, 0.0, 0.0
    for number, (groups, entered) in enumerate(zip(packed, entries, strict=True)):
        inside = {name for group in groups for name in group}
        spans = [order[t] - order[s] for s, t in proxies if t in inside]
        y = top + max(_rise(max(spans, default=1)), HALF) + 0.06  # below the upper edge
        row = _row(groups, entered, blocks, order, unit, y, first=number == 0)
        rows.append(row)
        top = y + _UNDER + _BETWEEN
    stem = _MARGIN + unit * END / 2
    head = max(rows[-1].nodes.values()) + unit * (TIE + END / 2)
    height = top + _BOTTOM
    upright = [Row(height - r.y, r.boxes, r.nodes, r.entries, r.groups) for r in rows]
    return Plan(height, unit, tuple(upright), order, _short(names), stem, head)


def shape_name(shape: Sequence[int]) -> str:
    """Channels and resolution: (64, 56, 56) is ``64 × 56²``, tokens (197, 384) ``384 × 197``."""
    if len(shape) == 3:
        # Channels are the axis that differs; networks with channels last exist.
        last = shape[0] == shape[1] != shape[2]
        channels, high, wide = (shape[2], *shape[:2]) if last else shape
        return f"{channels} × {high}²" if high == wide else f"{channels} × {high}×{wide}"
    return " × ".join(str(size) for size in reversed(shape))


def _groups(blocks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    groups: list[list[str]] = []
    before = None
    for block in blocks:
        if block["out_shape"] != before:
            groups.append([])
        groups[-1].append(block["name"])
        before = block["out_shape"]
    return groups


def _pack(groups: Sequence[list[str]]) -> list[list[list[str]]]:
    """Rows of groups: as few as can be, and then as even as can be."""
    parts = [part for group in groups for part in _even(group)]

    def rows(most: int) -> list[list[list[str]]]:
        found: list[list[list[str]]] = [[]]
        for part in parts:
            if sum(map(len, found[-1])) + len(part) > most:
                found.append([])
            found[-1].append(part)
        return [row for row in found if row]

    fewest = len(rows(_MOST_BLOCKS))
    return next(rows(m) for m in range(1, _MOST_BLOCKS + 1) if len(rows(m)) == fewest)


def _even(group: list[str]) -> list[list[str]]:
    """A group too long for one row in pieces that differ by one block at most."""
    pieces = math.ceil(len(group) / _MOST_BLOCKS)
    edges = [round(i * len(group) / pieces) for i in range(pieces + 1)]
    return [group[a:b] for a, b in itertools.pairwise(edges)]


def _entries(
    groups: Sequence[list[str]], order: Mapping[str, int], proxies: Mapping[tuple[str, str], float]
) -> list[str]:
    """Nodes of earlier rows that feed this one, in network order; the last one always does."""
    inside = {name for group in groups for name in group}
    before = order[groups[0][0]] - 1
    strength: dict[str, float] = {}
    for (source, target), gate in proxies.items():
        if target in inside and order[source] < before:
            strength[source] = max(gate, strength.get(source, 0.0))
    strong = sorted(strength, key=lambda name: (-strength[name], -order[name]))
    if len(strong) >= _MOST_ENTRIES:
        strong = strong[: _MOST_ENTRIES - 2]
    last = next(name for name, place in order.items() if place == before)
    known = [*sorted(strong, key=order.__getitem__), last]
    return [REST, *known] if len(strong) < len(strength) else known


def _row_width(groups: Sequence[list[str]], entries: Sequence[str]) -> float:
    """In units, with the stem where a row holds it."""
    start = END + TIE if list(entries) == [STEM] else TIE + ENTRY * (len(entries) - 1)
    return start + GAP + STEP * sum(map(len, groups)) + GAP * (len(groups) - 1)


def _row(
    groups: Sequence[list[str]],
    entries: Sequence[str],
    blocks: Sequence[Mapping[str, Any]],
    order: Mapping[str, int],
    unit: float,
    y: float,
    *,
    first: bool,
) -> Row:
    """Place one row; ``y`` counts from above until all rows are known."""
    begin = _MARGIN + unit * (END + TIE if first else TIE)
    nodes = {name: begin + unit * ENTRY * i for i, name in enumerate(entries)}
    boxes, placed = {}, []
    x = max(nodes.values())
    for i, group in enumerate(groups):
        x += unit * GAP * (i > 0 or not first)
        left = x
        for name in group:
            boxes[name], nodes[name] = x + unit * STEP / 2, x + unit * STEP
            x += unit * STEP
        shape = blocks[order[group[0]] - 1]["out_shape"]
        edge = unit * (STEP - BOX) / 2
        placed.append(Group(_shared(group), shape_name(shape), left + edge, x - edge))
    return Row(y, boxes, nodes, tuple(entries), tuple(placed))


def _rise(span: int) -> float:
    """How high an arc over ``span`` blocks passes: a step each, smaller ones beyond five."""
    return 0.3 + 0.15 * (min(span, 5) - 1) + 0.22 * math.log(max(span, 5) / 5)


def _shared(names: Sequence[str]) -> str:
    """``layer1`` for layer1.0 and layer1.1; of a single block what its number belongs to."""
    columns = zip(*(name.split(".") for name in names), strict=False)
    parts = [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]
    return ".".join(parts[:-1] if len(names) == 1 and len(parts) > 1 else parts)


def _short(names: Sequence[str]) -> dict[str, str]:
    """Numbers of a name, such as 2.17 for stages.2.blocks.17; places if those are not unique."""
    short = [".".join(re.findall(r"\d+", name)) for name in names]
    if len(set(short)) < len(short) or not all(short) or max(map(len, short)) > 5:
        short = [str(i) for i in range(1, len(names) + 1)]
    return dict(zip([STEM, *names, REST], [STEM, *short, "rest"], strict=True))
