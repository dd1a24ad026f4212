"""Progress: a bar for people, one line per epoch for logs, silence for machines.

``fit`` speaks to a ``Progress``; all of them write to standard error, so that ``--json`` has
standard output to itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip
from rich.progress import (
    Progress as RichProgress,
)
from rich.table import Table

SHARES = ("top1", "map", "miou", "pixel_accuracy")  # metrics in [0, 1], told in percent


def told(value: float | None, metric: str, *, digits: int = 2) -> str:
    """A metric for people: ``68.00 %``, or of a metric that is no share ``r2 -0.125``."""
    if value is None:
        return "-"
    return f"{100 * value:.{digits}f} %" if metric in SHARES else f"{metric} {value:.3f}"


class Progress(Protocol):
    """Who is told how far a training is."""

    def begin(self, total: int, done: int) -> None:
        """``total`` steps are to be done, ``done`` of them are."""

    def advance(self, steps: int, seen: dict[str, float]) -> None:
        """``steps`` more are done; ``seen`` holds loss and error of the epoch so far."""

    def epoch(self, number: int, of: int, record: dict[str, Any]) -> None:
        """An epoch ended with this record of the log."""

    def say(self, line: str) -> None:
        """Something worth a line."""

    def end(self) -> None:
        """All steps are done."""


class Silent:
    """Tells nobody."""

    def begin(self, total: int, done: int) -> None: ...

    def advance(self, steps: int, seen: dict[str, float]) -> None: ...

    def epoch(self, number: int, of: int, record: dict[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...

    def end(self) -> None: ...


class Lines(Silent):
    """One line per epoch: for logs and pipes."""

    def __init__(self, title: str) -> None:
        self.title = title

    def epoch(self, number: int, of: int, record: dict[str, Any]) -> None:
        self.say(f"epoch {number}/{of}  {_summary(record)}")

    def say(self, line: str) -> None:
        print(f"{self.title}: {line}", file=sys.stderr, flush=True)


def bars() -> RichProgress:
    """Bars on standard error: what, how far, since when, how long still, and a note."""
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=Console(stderr=True),
    )


class Bar:
    """A bar with loss, validation and the time that is left.

    Args:
        title: what it says before the bar.
        display: where other bars are too, and who starts and stops it; one of its own where None.
    """

    def __init__(self, title: str, display: RichProgress | None = None) -> None:
        self.title, self.alone = title, display is None
        self.bar, self.note = display or bars(), ""

    def begin(self, total: int, done: int) -> None:
        self.row = self.bar.add_task(self.title, total=total, completed=done, note="")
        if self.alone:
            self.bar.start()

    def advance(self, steps: int, seen: dict[str, float]) -> None:
        loss = f"loss {seen['loss']:.3f}  " if "loss" in seen else ""  # none where one measures
        self.bar.update(self.row, advance=steps, note=f"{loss}{self.note}")

    def epoch(self, number: int, of: int, record: dict[str, Any]) -> None:
        self.note = _summary(record)
        self.bar.update(self.row, note=self.note)

    def say(self, line: str) -> None:
        self.bar.console.print(f"{self.title}: {line}", highlight=False, markup=False)

    def end(self) -> None:
        if self.alone:
            self.bar.stop()
        else:
            self.bar.stop_task(self.row)


def _summary(record: dict[str, Any]) -> str:
    words = [f"loss {record['train_loss']:.3f}"]
    if record.get("val") is not None:
        words.append(f"val {told(record['val'], record['metric'], digits=1)}")
    if "scores" in record:
        words.append(f"adapted {100 * record['share_params']:.1f} % of weights")
    if record.get("train_price", 0) > 5e-4:
        words.append(f"price {record['train_price']:.3f}")
    return "  ".join(words)


def for_terminal(title: str, *, quiet: bool = False) -> Progress:
    """A bar where somebody watches, lines where nobody does, silence where asked."""
    if quiet:
        return Silent()
    return Bar(title) if sys.stderr.isatty() else Lines(title)


@contextlib.contextmanager
def together_for_terminal(*, quiet: bool = False) -> Iterator[Callable[[str], Progress]]:
    """Who tells about several trainings at once: a bar for each where somebody watches."""
    if quiet or not sys.stderr.isatty():
        yield lambda title: for_terminal(title, quiet=quiet)
        return
    with bars() as display:
        yield lambda title: Bar(title, display)


def wide_console() -> Console:
    """Standard output; a pipe or a file is not cut to 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 200)


def table_of(text: Any) -> Table:
    """A data frame of strings as a table for the terminal, its first column to the left."""
    shown = Table(box=None, header_style="bold")
    for i, title in enumerate(text.columns):
        shown.add_column(title, justify="left" if i == 0 else "right")
    for line in text.itertuples(index=False):
        shown.add_row(*map(str, line))
    return shown
