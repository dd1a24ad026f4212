"""Statistics that the questions share: means, spreads, intervals, overlaps, rank correlations.

Pure functions of numbers; which numbers, and what follows from them, is the caller's affair. What
is unknown is NaN, and a mean leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.stats import hypergeom, rankdata
from scipy.stats import t as student


def mean(values: Sequence[float]) -> float:
    """Of the known values; NaN where none is."""
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else math.nan


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; a single value has none."""
    known = [v for v in values if not math.isnan(v)]
    if len(known) < 2:
        return math.nan
    middle = mean(known)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in known) / (len(known) - 1))


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of a mean: Student's t of n - 1 times spread / √n.

    Args:
        values: one per seed; unknown ones (NaN) are left out.

    Returns:
        In the unit of ``values``; NaN of fewer than two, which say nothing about a spread.
    """
    known = [v for v in values if not math.isnan(v)]
    if len(known) < 2:
        return math.nan
    return float(student.ppf(0.975, len(known) - 1)) * spread(known) / math.sqrt(len(known))


def paired_error(lost: int | None, gained: int | None, n: int) -> float:
    """The standard error of a difference of two accuracies on the same n images.

    Of n differences ``lost`` are +1, ``gained`` -1, all others 0; their mean has the error
    √(lost + gained - (lost - gained)² / n) / n. NaN where the counts are unknown.
    """
    if lost is None or gained is None:
        return math.nan
    return math.sqrt(max(lost + gained - (lost - gained) ** 2 / n, 0.0)) / n


def jaccard(
    a: Collection[str], b: Collection[str], weights: Mapping[str, float] | None = None
) -> float:
    """|A ∩ B| / |A ∪ B|, in [0, 1]; 1 for two empty sets.

    Args:
        a, b: chosen names.
        weights: what each name counts; 1 by default.
    """
    both, either = set(a) & set(b), set(a) | set(b)
    if weights is None:
        return len(both) / len(either) if either else 1.0
    whole = math.fsum(weights[name] for name in either)
    return math.fsum(weights[name] for name in both) / whole if whole else 1.0


def chance(a: int, b: int, n: int) -> float:
    """The expected Jaccard index of two random subsets of n things, of a and of b of them.

    The overlap i has probability C(a, i) C(n - a, b - i) / C(n, b); the index is i / (a + b - i).

    Raises:
        ValueError: a subset larger than the whole.
    """
    if not 0 <= a <= n or not 0 <= b <= n:
        raise ValueError(f"subsets of {a} and {b} of {n} things; give sizes from 0 to {n}")
    if a + b == 0:
        return 1.0
    overlap = np.arange(max(0, a + b - n), min(a, b) + 1)
    return float((hypergeom.pmf(overlap, n, a, b) * overlap / (a + b - overlap)).sum())


def spearman(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Rank correlation over the names that both have; ties share their mean rank.

    Returns:
        A number in [-1, 1]; NaN for fewer than three names or where all values of a side are equal.
    """
    names = [name for name in a if name in b]
    if len(names) < 3:
        return math.nan
    ranks = [rankdata([side[name] for name in names]) for side in (a, b)]
    if any(rank.min() == rank.max() for rank in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def rank_interval(rho: float, parts: float) -> tuple[float, float]:
    """Fisher's 95 % interval of a rank correlation: tanh(atanh ρ ± 1.96 √((1 + ρ²/2) / (m - 3))).

    Args:
        rho: Spearman's.
        parts: m, how many things were ranked.

    Returns:
        Lower and upper end; NaN for fewer than four parts, and where ρ is ±1.

    Source: Bonett & Wright, Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations, Psychometrika 65, 2000.
    """
    if math.isnan(rho) or abs(rho) >= 1 or parts <= 3:
        return math.nan, math.nan
    error = 1.959964 * math.sqrt((1 + rho**2 / 2) / (parts - 3))
    return math.tanh(math.atanh(rho) - error), math.tanh(math.atanh(rho) + error)
