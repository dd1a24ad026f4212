"""The tailored architecture of a run: which universal blocks stay, and which proxies feed what.

Drawn as the run ended, or once per epoch as a GIF. ``plan.py`` places everything, ``diagram.py``
draws it; this file reads the run.

Source: Figures 1 and 4 of NetTailor (Morgado and Vasconcelos, CVPR 2019) show networks this way.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from analysis.answer import encoded
from analysis.blocks import check, gates_table
from analysis.diagram import Said, diagram
from analysis.plan import Plan, plan
from analysis.rows import Run, label, read_runs, rows
from tailor.errors import BadInput
from tailor.run import write_bytes

FORMATS = (".png", ".svg", ".pdf", ".gif")

_FRAME_DPI, _FRAME_MS, _LAST_MS, _SHADES = 110, 250, 3000, 64


def architecture(run: Run) -> Figure:
    """Draw the network of a finished run.

    Raises:
        BadInput: the run has no gated paths, or does not list its blocks.
    """
    table = gates_table(run)
    gates = dict(table.dropna(subset=["gate"])[["path", "gate"]].itertuples(index=False))
    return diagram(_plan(run, [gates]), gates, _said(run, _facts(run)))


def frames(run: Run) -> Iterator[Image.Image]:
    """One picture per epoch that the run trained, all of one size; 110 dots per inch.

    Raises:
        BadInput: as ``architecture``, or the log holds no gates.
    """
    history = _history(run)
    planned = _plan(run, [gates for _, gates in history])
    for number, (error, gates) in enumerate(history, start=1):
        about = f"epoch {number} of {len(history)}"
        if error is not None:
            about += f" · validation {100 * (1 - error):.1f} %"
        figure = diagram(planned, gates, _said(run, about))
        figure.set_dpi(_FRAME_DPI)
        drawn = FigureCanvasAgg(figure)
        drawn.draw()
        yield Image.fromarray(np.asarray(drawn.buffer_rgba())[..., :3].copy())


def animate(run: Run, out: Path) -> None:
    """Write ``frames(run)`` as a GIF that repeats and holds its last picture.

    All pictures share one palette, so that nothing flickers and little changes between them.

    Raises:
        BadInput: see ``frames``, or a place that cannot be written.
    """
    few = _in_few_colours(list(frames(run)))
    buffer = io.BytesIO()
    few[0].save(
        buffer, format="GIF", save_all=True, append_images=few[1:], loop=0,
        duration=[_FRAME_MS] * (len(few) - 1) + [_LAST_MS],
    )  # fmt: skip
    write_bytes(out, buffer.getvalue())


def _in_few_colours(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures in the colours of the first and the last; the paper keeps its own."""
    ends = Image.fromarray(np.concatenate([np.asarray(pictures[i]) for i in (0, -1)]))
    palette = ends.quantize(_SHADES, dither=Image.Dither.NONE)
    paper, place = ends.getpixel((0, 0)), palette.getpixel((0, 0))
    colours = palette.getpalette()
    colours[3 * place : 3 * place + 3] = paper
    palette.putpalette(colours)
    found = []
    for picture in pictures:
        few = np.array(picture.quantize(palette=palette, dither=Image.Dither.NONE))
        few[(np.asarray(picture) == paper).all(axis=2)] = place  # Pillow's nearest is not exact
        image = Image.fromarray(few)  # indices; the palette says of what
        image.putpalette(colours)
        found.append(image)
    return found


def draw(path: str | Path, out: str | Path) -> dict[str, Any]:
    """Draw a finished run into a file; its format follows from the suffix of ``out``.

    Args:
        path: run directory of a method that gates paths.
        out: ``.png``, ``.svg``, ``.pdf``, or ``.gif`` for one picture per epoch.

    Returns:
        {run, out, blocks, blocks_kept, bytes}.

    Raises:
        BadInput: unknown suffix, a run that cannot be drawn, or a place that cannot be written.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise BadInput(f"draw {str(out)!r}: the suffix must be one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise BadInput(f"draw {str(out)!r} is a folder; name a file in it")
    run = read_runs([path])[0]
    if out.suffix == ".gif":
        animate(run, out)
    else:
        write_bytes(out, encoded(architecture(run), out.suffix))
    row = rows([run])[0]
    facts = {"run": str(path), "out": str(out), "bytes": out.stat().st_size}
    return facts | {name: row[name] for name in ("blocks", "blocks_kept")}


def _history(run: Run) -> list[tuple[float | None, dict[str, float]]]:
    """Validation error and gates after each epoch."""
    check(run)
    epochs = [entry for entry in run.log if entry.get("kind") == "epoch"]
    found = [
        (e.get("val_error"), {path: g for path, g in e["gates"].items() if g is not None})
        for e in epochs
        if e.get("gates")
    ]
    if not found:
        why = "was pruned, not trained" if run.result["stage"] == "pruned" else "logged no gates"
        raise BadInput(
            f"run {str(run.path)!r} {why}, so there is nothing to animate; draw it as .svg, or "
            "animate the run that was trained"
        )
    return found


def _plan(run: Run, states: list[dict[str, float]]) -> Plan:
    strongest: dict[tuple[str, str], float] = {}
    for gates in states:
        for path, gate in gates.items():
            target, arrow, source = path.partition("<-")
            if arrow:
                strongest[source, target] = max(gate, strongest.get((source, target), 0.0))
    return plan(run.result["blocks"], strongest)


def _said(run: Run, facts: str) -> Said:
    row, config = rows([run])[0], run.result.get("config") or {}
    px, classes = (config.get("data") or {}).get("px"), config.get("classes")
    return Said(
        f"{row['task']} on {row['backbone']}",
        f"{label(row)}, seed {row['seed']}",
        facts,
        stem=f"{px} px" if px else "",
        head=f"{len(classes)} classes" if classes else "",
    )


def _facts(run: Run) -> str:
    """Accuracy, and what is left of the backbone: blocks, MACs and parameters."""
    row = rows([run])[0]
    split = "test" if row["test"] is not None else "val"
    known = {"test": "test", "val": "validation"}[split]
    parts = [] if row[split] is None else [f"{100 * row[split]:.1f} % {known}"]
    parts.append(f"{row['blocks_kept']} of {row['blocks']} blocks")
    for name, part, whole in (
        ("MACs", row["macs"]["student"], row["macs"]["backbone"]),
        ("parameters", row["params"]["network"], row["params"]["universal"]),
    ):
        if part is not None and whole:
            parts.append(f"{100 * part / whole:.0f} % of {name}")
    return " · ".join(parts)
