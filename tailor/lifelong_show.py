"""What ``tailor lifelong`` prints for people: the matrix and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from tailor.progress import SHARES, wide_console


def matrix(found: dict[str, Any]) -> None:
    """One line per task learned, one column per task measured, and what was kept for it."""
    rows = found["accuracy"]
    shown = Table(
        box=None,
        header_style="bold",
        caption="line: after which task; column: test metric of which task, in % where it is a "
        "share; params: of all tasks so far, with heads",
        caption_justify="left",
    )
    shown.add_column("after")
    for number in range(1, len(rows) + 1):
        shown.add_column(str(number), justify="right")
    for name in ("mean", "params", "memory", "seconds"):
        shown.add_column(name, justify="right")
    for place, row in enumerate(rows):
        shown.add_row(
            f"{place + 1} {found['tasks'][place]}",
            *map(_said, row, found["metric"]),
            *[""] * (len(rows) - len(row)),
            _mean(row, found["metric"]),
            f"{found['params'][place]:,}",
            f"{found['memory'][place]:,}",
            f"{found['seconds'][place]:.0f}",
        )
    console = wide_console()
    console.print(shown)
    for line in summary(found):
        console.print(line, highlight=False, markup=False)


def summary(found: dict[str, Any]) -> list[str]:
    """The average after the last task, and how far earlier tasks fell from their best, on average,
    as ``tailor forgetting`` has it."""
    rows, metrics = found["accuracy"], found["metric"]
    last, count = rows[-1], len(rows)
    kinds = " and ".join(dict.fromkeys(metrics))
    said = [f"{found['method']}: {kinds} {_mean(last, metrics)} on average over {count} tasks"]
    if count > 1 and _alike(metrics):
        lost = [max(row[k] for row in rows[k:-1]) - last[k] for k in range(count - 1)]
        said[0] += f", {_mean(lost, metrics)} forgotten"
    run = found["run"]
    said.append(
        f"results: {run}/matrix.json; `tailor evaluate {run} --task NAME` measures a task again, "
        f"`tailor forgetting {run} --out forgetting.png` draws it"
    )
    return said


def _said(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if metric in SHARES else f"{value:.3f}"


def _mean(values: Sequence[float], metrics: Sequence[str]) -> str:
    """Of what can be averaged: shares in percent, or values of one metric."""
    if not _alike(metrics):
        return "-"
    mean = sum(values) / len(values)
    return f"{100 * mean:.2f}" if metrics[0] in SHARES else f"{mean:.3f}"


def _alike(metrics: Sequence[str]) -> bool:
    return len(set(metrics)) == 1 or set(metrics) <= set(SHARES)
