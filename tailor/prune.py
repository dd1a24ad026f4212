"""Prune: gates and a rule decide what is kept; the rest disappears.

Pruning returns a new, smaller student and a report of what went and why. No mask and nothing closed
is left behind; the kept tensors are the trained ones. *Layers* (TAPS's deltas, NetTailor's
universal blocks) go by threshold, count, share or budget; NetTailor's *proxies* by a threshold of
their own. ``search`` finds the smallest student that is still accurate enough. Left out: what a
student must keep in order to run, which it knows itself (``Gated.keep``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tailor.cost import Budget, total_macs
from tailor.errors import BadInput
from tailor.student import Gate, Gated, Student

SCORED = ("delta", "side")  # kinds of gates that add something; without any, the trunk still runs


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to keep; at most one of the first four. Without any: every gate that is on."""

    threshold: float | None = None  # keep gates (scores) of at least this
    count: int | None = None  # remove so many layers or universal blocks, smallest gates first
    share: float | None = None  # the same as a share of them, rounded down
    budget: Budget | None = None  # keep the largest gates that fit
    proxy_threshold: float | None = None  # of proxies; `threshold`, or the method's own


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What pruning kept and removed."""

    kept: tuple[str, ...]  # layers or paths, in network order
    removed: tuple[str, ...]
    excluded: tuple[str, ...]  # removed although the rule kept them: nothing arrives or leaves
    reopened: tuple[str, ...]  # kept although the rule removed them: the network was cut apart
    params_before: int  # numbers that the gates switch on
    params_after: int
    why: str  # the rule, such as "score >= 0.1"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate of a search."""

    count: int  # layers or universal blocks removed
    accuracy: float
    params: int  # numbers that its gates switch on
    macs: int


def prune(student: Student, rule: Rule | None = None) -> tuple[Gated, PruneReport]:
    """Remove what is switched off.

    Args:
        student: one with gates.
        rule: what to keep; the student's own open gates where None.

    Returns:
        The smaller student (it shares the kept tensors) and what happened.

    Raises:
        BadInput: nothing to prune by, two rules at once, a rule out of range, a budget that no
            pruning can meet, or nothing left.
    """
    rule = rule or Rule()
    gated, gates = _gates(student)
    names, why = _chosen(gated, gates, rule)
    return _smaller(gated, gates, names, why)


def search(
    student: Student,
    accuracy: Callable[[Gated], float],
    floor: float,
    *,
    proxy_threshold: float | None = None,
    bisect: bool = False,
) -> tuple[Gated, PruneReport, list[Trial]]:
    """The smallest student (by MACs, then parameters) whose accuracy is not below ``floor``.

    Args:
        student: one with gates.
        accuracy: of a candidate; may retrain it, but must leave the shared tensors alone.
        floor: in the unit of ``accuracy``.
        proxy_threshold: as in ``Rule``.
        bisect: try log2(n) counts, trusting that accuracy falls with every removal, not all n.

    Returns:
        The winner, its report, and every candidate that was tried.

    Raises:
        BadInput: no candidate is accurate enough.
    """
    gates = _gates(student)[1]
    layers = sum(g.kind != "proxy" for g in gates)
    trials: list[Trial] = []

    def candidate(count: int) -> tuple[Gated, PruneReport]:
        return prune(student, Rule(count=count, proxy_threshold=proxy_threshold))

    def tried(count: int) -> bool:
        try:
            smaller = candidate(count)[0]
        except BadInput:  # nothing would be left
            return False
        left = smaller.gates() or [g for g in gates if g.name in smaller.kept()]
        costs = {"params": sum(g.params for g in left), "macs": sum(g.macs for g in left)}
        trials.append(Trial(count=count, accuracy=accuracy(smaller), **costs))
        return trials[-1].accuracy >= floor

    if bisect:
        low, high = -1, layers + 1  # a count that is surely good, one that is surely not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if tried(middle) else (low, middle)
    else:
        for count in range(layers + 1):
            tried(count)
    good = [t for t in trials if t.accuracy >= floor]
    if not trials:
        candidate(0)  # says why there is nothing to try
    if not good:
        best = max(trials, key=lambda t: t.accuracy)
        raise BadInput(
            f"no pruned student reaches {100 * floor:.2f} %: the best, with {best.count} removed, "
            f"has {100 * best.accuracy:.2f} %; retrain candidates (--trial-epochs 1), keep more "
            f"proxies (--proxy-threshold 0), allow more (--within), or train longer"
        )
    smaller, report = candidate(min(good, key=lambda t: (t.macs, t.params)).count)
    return smaller, report, sorted(trials, key=lambda t: t.count)


def _gates(student: Student) -> tuple[Gated, list[Gate]]:
    gates = student.gates() if isinstance(student, Gated) else []
    if not isinstance(student, Gated) or not gates:
        raise BadInput(
            "this student has no scores to prune by: prune the run of a method with gates, such as "
            "`tailor adapt --method taps` or adapters with --select, before it was pruned"
        )
    return student, gates


def _smaller(
    student: Gated, gates: Sequence[Gate], names: Sequence[str], why: str
) -> tuple[Gated, PruneReport]:
    smaller = student.keep(names)
    kept = set(smaller.kept())
    size = {g.name: g.params for g in gates}
    report = PruneReport(
        kept=tuple(g.name for g in gates if g.name in kept),
        removed=tuple(g.name for g in gates if g.name not in kept),
        excluded=tuple(name for name in names if name not in kept),
        reopened=tuple(g.name for g in gates if g.name in kept - set(names)),
        params_before=sum(size.values()),
        params_after=sum(size[name] for name in kept),
        why=why,
    )
    return smaller, report


def _chosen(student: Gated, gates: Sequence[Gate], rule: Rule) -> tuple[list[str], str]:
    """The names that ``rule`` keeps, in network order, and the rule in words."""
    given = ("threshold", "count", "share", "budget")
    rules = {name: v for name in given if (v := getattr(rule, name)) is not None}
    if len(rules) > 1:
        raise BadInput(f"{' and '.join(rules)} exclude each other; give one of them")
    for name in ("threshold", "proxy_threshold"):
        if (value := getattr(rule, name)) is not None and not math.isfinite(value):
            raise BadInput(f"{name} is {value}; give a finite number")
    layers = [g for g in gates if g.kind != "proxy"]
    what = "score" if any(g.kind in SCORED for g in gates) else "gate"
    proxies = _proxies(gates, rule)
    if rule.budget is not None:
        return _within(student, gates, proxies, rule.budget)
    if rule.threshold is not None:
        kept = {g.name for g in layers if g.value >= rule.threshold}
        why = f"{what} >= {rule.threshold:g}"
    elif rule.count is not None or rule.share is not None:
        count = _count(rule, len(layers))
        kept = {g.name for g in _ascending(layers)[count:]}
        why = f"{count} smallest {what}s removed"
    else:
        kept, why = {g.name for g in layers if g.on}, "open gates"
    names = [g.name for g in gates if g.name in kept or g.name in proxies]
    if not names and what == "gate":
        largest = max(g.value for g in gates)
        raise BadInput(
            f"this would remove every path: the largest gate is {largest:.3f}; give a smaller "
            f"--threshold, --proxy-threshold or --count"
        )
    return names, why


def _proxies(gates: Sequence[Gate], rule: Rule) -> set[str]:
    """Proxies at or above their threshold, or open where there is none."""
    limit = rule.threshold if rule.proxy_threshold is None else rule.proxy_threshold
    proxies = [g for g in gates if g.kind == "proxy"]
    if rule.proxy_threshold is not None and not proxies:
        raise BadInput("proxy_threshold is for methods with proxy blocks; leave it out here")
    return {g.name for g in proxies if (g.on if limit is None else g.value >= limit)}


def _ascending(gates: Sequence[Gate]) -> list[Gate]:
    return sorted(gates, key=lambda g: g.value)


def _count(rule: Rule, layers: int) -> int:
    if rule.share is not None:
        if not 0 <= rule.share <= 1:
            raise BadInput(f"share is {rule.share}; give --share between 0 and 1")
        return int(rule.share * layers)
    assert rule.count is not None
    if not 0 <= rule.count <= layers:
        raise BadInput(
            f"count is {rule.count}, but there are {layers} to remove; give --count 0 to {layers}"
        )
    return rule.count


def _within(
    student: Gated, gates: Sequence[Gate], proxies: set[str], budget: Budget
) -> tuple[list[str], str]:
    """The largest gates that fit into the budget together.

    What the task adds (deltas, proxies) must fit ``params`` and ``bytes``; what is computed (blocks
    and proxies) must fit ``macs``.
    """
    universal = student.universal
    added = [g for g in gates if (g.on if g.kind in SCORED else g.name in proxies)]
    limit = math.inf if budget.params is None else budget.params * universal.num_params
    if budget.bytes is not None:
        limit = min(limit, budget.bytes / 4)  # float32
    kept, used = set(), 0
    for gate in sorted(added, key=lambda g: -g.value):
        if used + gate.params <= limit:
            kept.add(gate.name)
            used += gate.params
    why = f"largest gates within {limit:.0f} numbers" if limit < math.inf else "largest gates"
    blocks = _ascending([g for g in gates if g.kind == "universal"])
    if budget.macs is not None and budget.macs < 1 and not blocks:
        raise BadInput(
            f"budget macs={budget.macs:g} is below 1, but nothing of the backbone's MACs can go: "
            f"deltas replace weights and change no MACs, a side network adds some; limit params or "
            f"bytes, or use a method with proxy blocks"
        )
    names = kept | {g.name for g in blocks}
    if budget.macs is not None and blocks:
        names, share = _within_macs(student, blocks, names, budget.macs)
        why += f" and {share:.3f} of the backbone's MACs"
    return [g.name for g in gates if g.name in names], why


def _within_macs(
    student: Gated, blocks: Sequence[Gate], names: set[str], limit: float
) -> tuple[set[str], float]:
    """Remove blocks, smallest gates first, until what is left needs at most ``limit``."""
    backbone = student.universal
    total = total_macs(backbone.model, backbone.input_size)
    rest = total - sum(macs for _, macs in backbone.block_costs())
    share = math.inf
    for gate in [None, *blocks]:
        names = names - ({gate.name} if gate else set())
        if not names:
            break
        share = (rest + sum(g.macs for g in student.keep(sorted(names)).gates())) / total
        if share <= limit:
            return names, share
    raise BadInput(
        f"budget macs={limit:g} cannot be met: without any universal block the student still needs "
        f"{share:.3f} of the backbone's MACs; raise it, or remove proxies with --proxy-threshold"
    )
