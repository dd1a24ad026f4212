"""Prune: scores and a threshold or a budget decide what is kept; the rest disappears.

Pruning returns a new, smaller student and a report of what went and why. No mask and no closed
layer is left behind; the kept tensors are the trained ones, so outputs change only where a layer
went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tailor.cost import Budget
from tailor.errors import BadInput
from tailor.student import Gated, LayerState, Student


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What pruning kept and removed."""

    kept: tuple[str, ...]  # layers, in network order
    removed: tuple[str, ...]
    params_before: int  # deltas, in numbers
    params_after: int
    why: str  # the rule, such as "score >= 0.1"


def prune(
    student: Student, *, threshold: float | None = None, budget: Budget | None = None
) -> tuple[Gated, PruneReport]:
    """Remove what is switched off.

    Args:
        student: one with scores.
        threshold: keep layers with at least this score; the student's own gates where None.
        budget: keep the layers with the highest scores that fit: ``params`` is the share of the
            backbone's parameters that the deltas may have.

    Returns:
        The smaller student (it shares the kept tensors) and what happened.

    Raises:
        BadInput: nothing to prune by, both rules given, or a budget that no pruning can meet.
    """
    states = student.layer_states()
    if not isinstance(student, Gated) or all(s.score is None for s in states):
        raise BadInput(
            "this student has no scores to prune by: prune the run of a method with gates, such as "
            "`tailor adapt --method taps`, before it was pruned"
        )
    if threshold is not None and budget is not None:
        raise BadInput("threshold and budget exclude each other; give one of them")
    scored = [s for s in states if s.score is not None]
    if budget is not None:
        kept, why = _within(scored, budget, student.universal.num_params)
    elif threshold is not None:
        kept = [s for s in scored if s.score is not None and s.score >= threshold]
        why = f"score >= {threshold:g}"
    else:
        kept, why = [s for s in scored if s.on], "open gates"
    names = {s.name for s in kept}
    report = PruneReport(
        kept=tuple(s.name for s in scored if s.name in names),
        removed=tuple(s.name for s in scored if s.name not in names),
        params_before=sum(s.params for s in scored),
        params_after=sum(s.params for s in kept),
        why=why,
    )
    return student.keep(report.kept), report


def _within(
    states: Sequence[LayerState], budget: Budget, universal: int
) -> tuple[list[LayerState], str]:
    """The open layers with the highest scores that fit into the budget together."""
    if budget.macs is not None and budget.macs < 1:
        raise BadInput(
            f"budget macs={budget.macs:g} is below 1, but deltas replace weights and change no "
            f"MACs; limit params or bytes, or use a method with proxy blocks"
        )
    limit = float("inf") if budget.params is None else budget.params * universal
    if budget.bytes is not None:
        limit = min(limit, budget.bytes / 4)  # float32
    kept, used = [], 0
    for state in sorted(states, key=lambda s: -(s.score or 0.0)):
        if state.on and used + state.params <= limit:
            kept.append(state)
            used += state.params
    return kept, f"highest scores within {limit:.0f} numbers"
