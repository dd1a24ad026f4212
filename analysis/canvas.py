"""How every figure looks: size, ink, colours, and the two ways to save it.

Figures are made without pyplot, so nothing is global: they can be drawn in threads, without a
screen, and no style leaks into the caller's own plots. Colours are seaborn's "colorblind" set.
An SVG is drawn once and read in light and dark: its ink follows the reader's colour scheme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from PIL import Image

INK, MUTED, GRID = "#24292f", "#6e7781", "#d3d9df"  # of light paper; `svg` maps them for dark
PAPER, NEUTRAL = "#ffffff", "#a9b0b8"
_DARK = {INK: "#e6edf3", MUTED: "#9aa5b1", GRID: "#3a424c", PAPER: "#15191e"}
_REFERENCES = {"finetune": 3, "probe": 2, "scratch": 7}  # places in the palette, kept for them
_METHODS = (0, 4, 9, 1, 5, 6, 8)


def palette(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method; the references always have the same ones."""
    colours = [to_hex(c) for c in sns.color_palette("colorblind", 10)]
    chosen = {}
    for name in sorted(set(methods) - set(_REFERENCES)):
        chosen[name] = colours[_METHODS[len(chosen) % len(_METHODS)]]
    return chosen | {name: colours[place] for name, place in _REFERENCES.items()}


def shade(colour: str, most: float = 1.0) -> LinearSegmentedColormap:
    """From nothing to ``colour``: zero is the paper, whether the paper is light or dark.

    Args:
        colour: of the largest value.
        most: its opacity; below 1 where ink must stay readable on it.
    """
    return LinearSegmentedColormap.from_list("shade", [(*to_rgb(colour), a) for a in (0.0, most)])


def two_sided(below: str, above: str) -> LinearSegmentedColormap:
    """Paper at 0, one colour on each side, light enough for ink."""
    ends = [(*to_rgb(below), 0.65), (*to_rgb(below), 0.0), (*to_rgb(above), 0.0)]
    stops = list(zip((0.0, 0.5, 0.5, 1.0), [*ends, (*to_rgb(above), 0.65)], strict=True))
    return LinearSegmentedColormap.from_list("two-sided", stops, N=257)  # odd: 0 is a step


def figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, whose parts keep out of each other's way."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def remark(figure: FigureBase, text: str) -> None:
    """A quiet line above a figure that says how to read it."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=8.5, color=MUTED)


def sheet(width: float, height: float) -> Axes:
    """Bare axes that cover a figure of their own; both have inches as their unit."""
    axes = Figure(figsize=(width, height), facecolor=PAPER).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str = "y") -> Axes:
    """Titles, thin rules and quiet ticks; ``grid`` is ``x``, ``y``, ``both`` or empty."""
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=MUTED, labelcolor=INK, length=3)
    axes.tick_params(which="minor", colors=GRID, length=2)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    return axes


def log_from_zero(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x-axis that begins at 0: a probe adds nothing, and log 0 is nowhere.

    Args:
        axes: whose x-axis it is.
        values: all that will be drawn, none below 0.
    """
    positive = [value for value in values if value > 0]
    if not positive:
        axes.set_xlim(-1, 1)
        return
    first = 10.0 ** math.floor(math.log10(min(positive)))
    last = max(*positive, 10 * first)
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    decades = [first * 10**i for i in range(round(math.log10(last / first)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([0, *decades]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    minor = [k * d for d in decades for k in range(2, 10) if k * d <= last * 1.3]
    axes.xaxis.set_minor_locator(FixedLocator(minor))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(-0.35 * first, last * 1.9)


def plain(text: object, width: int = 44) -> str:
    """Text from a run as one short line that matplotlib can draw.

    A name may hold anything: ``$`` would start a formula, a character that the font lacks would
    warn, a leading ``_`` would hide a legend entry.
    """
    font = _font()
    line = " ".join(str(text).split())
    line = "".join(c if font.get_char_index(ord(c)) else "?" for c in line)
    if len(line) > width:
        line = f"{line[: width // 2]}…{line[-(width - width // 2 - 1) :]}"
    line = line.replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure on light paper, ``dpi`` dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    # The usual median cut would give the shades of a large area all colours, and points none.
    coverage, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    few = Image.open(buffer).convert("RGB").quantize(256, coverage, kmeans=1, dither=dither)
    small = io.BytesIO()
    few.save(small, format="png", optimize=True)  # a third of the bytes, no visible difference
    return small.getvalue()


def svg(figure: Figure, *, light: bool = False) -> str:
    """The figure as an SVG on clear paper that follows the reader's light or dark scheme.

    The same figure always gives the same text, for generated identifiers are numbered, and places
    are cut to a hundredth of a point: a report embeds many of these.

    Args:
        figure: any figure.
        light: on light paper of its own instead, for a file that no page surrounds.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", dpi=150, transparent=not light, metadata=nothing)
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)
    names: dict[str, str] = {}
    for name in re.findall(r'id="([a-z][0-9a-f]{10})"', text):
        names.setdefault(name, f"i{len(names)}")
    text = re.sub(r"\b[a-z][0-9a-f]{10}\b", lambda m: names.get(m[0], m[0]), text)
    text = re.sub(r' id="(?!i\d|DejaVu)[^"]*"', "", re.sub(r"\s*\n\s*", " ", text)).strip()
    return text if light else _two_schemes(text)


def _two_schemes(text: str) -> str:
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(_DARK))
    dark = "".join(f"--c{i}:{colour};" for i, colour in enumerate(_DARK.values()))
    for i, colour in enumerate(_DARK):
        text = text.replace(colour, f"var(--c{i})")
    style = (
        f"<style>:root{{{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    )
    return re.sub(r"(<svg\b[^>]*>)", lambda m: m[0] + style, text, count=1)


@cache
def _font():  # type: ignore[no-untyped-def]
    return get_font(findfont(FontProperties(family="DejaVu Sans")))
