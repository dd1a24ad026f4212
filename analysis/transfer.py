"""Measures of a sequence of tasks: from a triangle of metrics to one number each.

With a[t, j] the metric of task j after task t was learned, of T tasks counted from 0, larger is
better; row t of a triangle has tasks 0 to t:

    average        mean over j of a[T-1, j]
    rank           of a[T-1, j] among the settings, 1 is best, ties share; mean over j
    forgetting     mean over j < T-1 of max over j <= t < T-1 of a[t, j], minus a[T-1, j]
    backward       mean over j < T-1 of a[T-1, j] - a[j, j]; of a loss it is the loss increase
    forward        mean over j > 0 of a[j, j] minus the metric of the same method on task j alone
    rigidity       mean over j of log(loss[j, j] / loss[j, j] of an independent network)
    intransigence  mean over j of the independent network's a[j, j] minus a[j, j]

The forward transfer of the second source needs the metric of a task before it is learned, which a
head per task has not: what a task gained from those before it is told instead. What is unknown is
NaN.

Sources: Chaudhry et al., Riemannian walk for incremental learning, ECCV 2018 (forgetting,
intransigence); Lopez-Paz & Ranzato, Gradient episodic memory, NeurIPS 2017 (backward transfer);
Zhang et al., Side-tuning, ECCV 2020 (loss increase, rigidity, average rank).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from analysis.statistic import mean

Triangle = Sequence[Sequence[float]]


def average(triangle: Triangle) -> float:
    """The mean metric of all tasks after the last one."""
    return mean(list(triangle[-1]))


def forgetting(triangle: Triangle) -> float:
    """How far earlier tasks fell from their best; below 0 where they gained at the end."""
    last = len(triangle) - 1
    fallen = [max(triangle[t][j] for t in range(j, last)) - triangle[last][j] for j in range(last)]
    return mean(fallen)


def backward(triangle: Triangle) -> float:
    """What later tasks changed about earlier ones; of a loss triangle, its increase."""
    last = len(triangle) - 1
    return mean([triangle[last][j] - triangle[j][j] for j in range(last)])


def forward(triangle: Triangle, alone: Sequence[float]) -> float:
    """What earlier tasks gave to later ones, against each task learned alone."""
    return mean([triangle[j][j] - alone[j] for j in range(1, min(len(triangle), len(alone)))])


def intransigence(triangle: Triangle, oracle: Triangle) -> float:
    """What a task lost, when it was learned, against a network of its own."""
    pairs = zip(diagonal(triangle), diagonal(oracle), strict=False)
    return mean([other - own for own, other in pairs])


def rigidity(loss: Triangle, oracle: Triangle) -> float:
    """The mean log ratio of the loss when a task was learned to that of a network of its own.

    Returns:
        0 for the network of its own, above 0 where tasks are learned worse; NaN without losses, and
        where a task's diverged.
    """
    pairs = list(zip(diagonal(loss), diagonal(oracle), strict=False))
    if not all(own > 0 and other > 0 for own, other in pairs):  # NaN is not above 0
        return math.nan
    return mean([math.log(own / other) for own, other in pairs])


def ranks(last: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The average rank of each setting over tasks; 1 is the best, ties share their mean rank.

    Args:
        last: of each setting the metric of every task after the last one.
    """
    columns = np.array(list(last.values()), dtype=float)  # (settings, tasks)
    placed = rankdata(-np.nan_to_num(columns, nan=-np.inf), axis=0)  # unknown is last
    return {name: float(row.mean()) for name, row in zip(last, placed, strict=True)}


def diagonal(triangle: Triangle) -> list[float]:
    """The metric of each task when it was learned."""
    return [row[-1] for row in triangle]
