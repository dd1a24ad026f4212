"""Progress of a sweep: all trials above, the one that this process trains below.

Two bars for people, one line per trial for logs, silence for machines; on standard error, as
``progress.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from tailor.progress import Progress, Silent, bars


class SweepProgress(Protocol):
    """Who is told how far a sweep is."""

    def begin(self, total: int) -> None:
        """So many trials there are."""

    def counted(self, counts: Mapping[str, int]) -> None:
        """So many trials are ``done``, ``failed``, ``running``, ``waiting`` and ``open``."""

    def trial(self, name: str) -> None:
        """This process begins with a trial."""

    def stage(self, title: str) -> Progress:
        """Who is told how far a verb of the trial is."""
        ...

    def finished(self, name: str, facts: Mapping[str, Any]) -> None:
        """A trial is done."""

    def failed(self, name: str, error: str) -> None:
        """A trial cannot be done."""

    def end(self) -> None:
        """Nothing more will come."""


class SweepSilent:
    """Tells nobody."""

    def begin(self, total: int) -> None: ...

    def counted(self, counts: Mapping[str, int]) -> None: ...

    def trial(self, name: str) -> None: ...

    def stage(self, title: str) -> Progress:
        return Silent()

    def finished(self, name: str, facts: Mapping[str, Any]) -> None: ...

    def failed(self, name: str, error: str) -> None: ...

    def end(self) -> None: ...


class SweepLines(SweepSilent):
    """One line per trial: for logs and pipes."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def begin(self, total: int) -> None:
        self.total = total

    def counted(self, counts: Mapping[str, int]) -> None:
        self.done = counts["done"] + counts["failed"]

    def trial(self, name: str) -> None:
        self._say(f"begins {name}")

    def finished(self, name: str, facts: Mapping[str, Any]) -> None:
        self._say(f"done {name}: {_summary(facts)}")

    def failed(self, name: str, error: str) -> None:
        self._say(f"failed {name}: {error}")

    def _say(self, line: str) -> None:
        print(f"sweep {self.done}/{self.total}: {line}", file=sys.stderr, flush=True)


class SweepBar(SweepSilent):
    """Two bars with the time that is left."""

    def __init__(self) -> None:
        self.bar = bars()
        self.all = self.bar.add_task("sweep", total=None, note="starting")
        self.one = self.bar.add_task("", total=None, note="", visible=False)
        self.name = ""

    def begin(self, total: int) -> None:
        self.bar.update(self.all, total=total)
        self.bar.start()

    def counted(self, counts: Mapping[str, int]) -> None:
        said = [f"{counts[word]} {word}" for word in ("running", "failed") if counts[word]]
        done = counts["done"] + counts["failed"]
        self.bar.update(self.all, completed=done, note="  ".join(said))

    def trial(self, name: str) -> None:
        self.name = name

    def stage(self, title: str) -> Progress:
        return _Row(self, title.partition(" ")[0])

    def finished(self, name: str, facts: Mapping[str, Any]) -> None:
        self.bar.console.print(f"{name}: {_summary(facts)}", highlight=False, markup=False)
        self.bar.update(self.one, visible=False)

    def failed(self, name: str, error: str) -> None:
        self.bar.console.print(f"{name} failed: {error}", highlight=False, markup=False)
        self.bar.update(self.one, visible=False)

    def end(self) -> None:
        self.bar.stop()


class _Row(Silent):
    """A verb of the current trial as the second bar."""

    def __init__(self, parent: SweepBar, verb: str) -> None:
        self.parent, self.verb = parent, verb

    def begin(self, total: int, done: int) -> None:
        text = f"{self.verb} {self.parent.name}"
        self.parent.bar.reset(self.parent.one, total=total, completed=done, visible=True)
        self.parent.bar.update(self.parent.one, description=text, note="")

    def advance(self, steps: int, seen: dict[str, float]) -> None:
        self.parent.bar.update(self.parent.one, advance=steps, note=f"loss {seen['loss']:.3f}")

    def say(self, line: str) -> None:
        self.parent.bar.console.print(f"{self.verb}: {line}", highlight=False, markup=False)


def _summary(facts: Mapping[str, Any]) -> str:
    words = [f"validation {100 * facts['val']:.2f} %"]
    if facts.get("test") is not None:
        words.append(f"test {100 * facts['test']:.2f} %")
    words.append(f"{100 * facts['params']:.2f} % added")
    return ", ".join(words) + f" ({facts['seconds']:.0f} s)"


def for_terminal(*, quiet: bool = False) -> SweepProgress:
    """Bars where somebody watches, lines where nobody does, silence where asked."""
    if quiet:
        return SweepSilent()
    return SweepBar() if sys.stderr.isatty() else SweepLines()
