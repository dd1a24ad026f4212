"""The picture of ``decathlon.py``: score against parameters, and every domain against fine-tuning.

Left: a point per setting, the size of one trunk with all domains against the score (the mean
accuracy where there is no score), bars one standard deviation over seeds; published results are
hollow. Right: accuracy minus the baseline's in points, a row per setting, a column per domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from analysis import canvas
from analysis.canvas import INK, MUTED, PAPER
from tailor.decathlon import DOMAINS, HIGHEST

_LEAST = 3.0  # points of the strongest colour, where all differences are smaller
_MOST = 10.0
# Places for a label around its point, in pixels; a 0 is centred, a negative one ends there.
_BESIDE = ((9, -5), (-9, -5), (0, 8), (0, -19), (9, 6), (9, -16), (-9, 6), (-9, -16))
_FAR = tuple((2.4 * dx, 2.4 * dy) for dx, dy in _BESIDE)


def draw(
    frame: pd.DataFrame,
    domains: Sequence[str],
    reference: Mapping[str, float] | None,
    against: str = "finetune",
) -> Figure:
    """Draw what ``analysis.decathlon.line_table`` returned.

    Args:
        frame: one line per setting.
        domains: its columns that are domains.
        reference: as of ``line_table``; what the accuracies are compared with.
        against: whose they are.
    """
    own = frame[frame["paper"] == ""]
    ratios = (6.4, 1.6 + max(0.62 * len(domains), 2.8))
    figure = canvas.figure(sum(ratios), max(4.6, 1.4 + 0.29 * len(own)))
    points, cells = figure.subplots(1, 2, gridspec_kw={"width_ratios": ratios})
    colours = canvas.palette(name for name in frame["method"] if name)
    compared = {name: d.baseline for name, d in DOMAINS.items()} if reference == {} else reference
    _draw_cells(cells, own, domains, compared, colours, against)
    labels = _draw_points(points, frame, len(domains), colours)
    figure.draw_without_rendering()  # places are known only now, and labels must avoid each other
    _name_points(points, labels)
    return figure


def _draw_points(
    axes: Axes, frame: pd.DataFrame, count: int, colours: Mapping[str, str]
) -> list[tuple[float, float, str]]:
    """The points; returns where each one is, and its name."""
    value = "mean" if frame["score"].isna().all() else "score"
    whole = frame[frame["lacks"] == ""].dropna(subset=[value, "params"])
    most = f"Score of {count} domains (of {HIGHEST * count:.0f})"
    canvas.dress(
        axes, title="One trunk with all of them", grid="both",
        x=f"Parameters added for all {count} domains, in backbones (without heads)",
        y=most if value == "score" else "Mean test accuracy, %",
    )  # fmt: skip
    named = []
    for name, line in whole.iterrows():
        x, y = float(line["params"]) - 1, float(line[value])
        if line["paper"]:
            axes.plot(x, y, "o", mfc=PAPER, mec=MUTED, ms=4.5, zorder=2)
            named.append((x, y, str(name).removeprefix("published: ")))
            continue
        spread = line[f"{value} ±"]
        axes.errorbar(
            x, y, yerr=0.0 if pd.isna(spread) else spread, color=colours[line["method"]],
            marker="s" if line["method"] in ("finetune", "scratch", "probe") else "o", ms=6.5,
            mec=PAPER, mew=0.8, elinewidth=1.6, capsize=2.5, zorder=3,
        )  # fmt: skip
        named.append((x, y, _short(str(name))))
    canvas.log_from_zero(axes, [x for x, _, _ in named])
    return named


def _short(name: str) -> str:
    """``residual_adapters series`` is ``adapters series`` beside a point."""
    method, space, words = name.partition(" ")
    return f"{method.rpartition('_')[2]}{space}{words}" if words else method


def _name_points(axes: Axes, named: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point where it covers no other point or name."""
    places = [tuple(axes.transData.transform((x, y))) for x, y, _ in named]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
    for (x, y), (cost, height, name) in zip(places, named, strict=True):
        text = canvas.plain(name, 36)
        wide, high = 5.9 * len(text), 11.0  # pixels at 100 dpi, which a figure has until saved
        for dx, dy in (*_BESIDE, *_FAR):
            left = dx if dx > 0 else dx - wide * (1 if dx < 0 else 0.5)
            box = Bbox.from_bounds(x + left, y + dy, wide, high)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                axes.annotate(
                    text, (cost, height), xytext=(0.72 * left, 0.72 * dy), color=INK,
                    textcoords="offset points", fontsize=8,
                    arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.5}
                    if (dx, dy) in _FAR
                    else None,
                ).set_in_layout(False)  # fmt: skip
                break


def _draw_cells(
    axes: Axes,
    frame: pd.DataFrame,
    domains: Sequence[str],
    compared: Mapping[str, float] | None,
    colours: Mapping[str, str],
    against: str,
) -> None:
    """A row per setting, a column per domain; a number in each cell."""
    values = frame[list(domains)].astype(float)
    if compared is None:
        shown, colour, top = values, canvas.shade(colours["finetune"], 0.75), 100.0
        title = "Test accuracy, %"
    else:
        shown = values - pd.Series(
            {domain: compared.get(domain) for domain in domains}, dtype=float
        )
        colour = canvas.two_sided(colours["finetune"], canvas.palette(["m"])["m"])
        top = min(max(float(shown.abs().max().max()), _LEAST), _MOST)
        title = canvas.plain(f"Accuracy minus that of {against}, points", 60)
    canvas.dress(axes, title=title, grid="")
    low = -top if compared is not None else 0.0
    axes.imshow(shown.to_numpy(), cmap=colour, vmin=low, vmax=top, aspect="auto")
    form = "{:.1f}" if compared is None else "{:+.1f}"
    for i, line in enumerate(shown.itertuples(index=False)):
        for j, value in enumerate(line):
            text = "–" if pd.isna(value) else form.format(value)
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=INK)
    names = [canvas.plain(name, 40) for name in frame.index]
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(domains)), [canvas.plain(d, 16) for d in domains], rotation=35)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
