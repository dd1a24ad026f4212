"""Turns: trainings that pause after every step, alone or one step of each in turn.

Left out: what a training does between two pauses (``train.py``), and what several of them share
(``together.py``).
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Generator
from typing import ParamSpec, TypeVar, cast

from tailor.errors import BadInput

P = ParamSpec("P")
Q = TypeVar("Q")
T = TypeVar("T")
InSteps = Generator[None, None, T]  # pauses after every optimiser step, and returns T


def alone(starting: Callable[P, InSteps[T]]) -> Callable[P, T]:
    """The function that goes through what ``starting`` returns without a pause."""

    @functools.wraps(starting)
    def through(*args: P.args, **options: P.kwargs) -> T:
        with contextlib.closing(starting(*args, **options)) as training:
            while True:
                try:
                    next(training)
                except StopIteration as end:
                    return cast(T, end.value)

    return through


def in_turn(waiting: deque[Q], start: Callable[[Q], InSteps[T]]) -> list[tuple[Q, T | BadInput]]:
    """One step of each training in turn, until all have ended.

    Args:
        waiting: a queue of what to train, emptied here. What is appended while they run (by another
            thread, or by whoever is told about progress) joins before the next round.
        start: makes a training of an entry when it joins.

    Returns:
        Every entry in the order in which it joined, and what its training returned, or the error
        that ended it: the others go on. Any other exception ends all of them.
    """
    running: list[tuple[int, InSteps[T]]] = []
    joined: list[Q] = []
    ended: dict[int, T | BadInput] = {}
    with contextlib.ExitStack() as all_over:
        while running or waiting:
            while waiting:
                joined.append(waiting.popleft())
                try:
                    training = start(joined[-1])
                except BadInput as error:
                    ended[len(joined) - 1] = error
                    continue
                all_over.callback(training.close)  # gives its directory free
                running.append((len(joined) - 1, training))
            for place, training in running:
                try:
                    next(training)
                except StopIteration as end:
                    ended[place] = cast(T, end.value)
                except BadInput as error:
                    ended[place] = error
            running = [(place, training) for place, training in running if place not in ended]
    return [(entry, ended[place]) for place, entry in enumerate(joined)]
