"""One training step: forward, loss terms, backward, optimiser.

All randomness of a step is drawn from the generators as they are; who calls it seeds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tailor.losses import LossTerms, counted, step_loss
from tailor.optim import decay_to_anchors
from tailor.prefix import Resuming
from tailor.settings import Settings
from tailor.student import Student, Timed, trained_parameters
from tailor.target import Target, usual


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind: its loss terms and how many images were wrong, all detached.

    An image with several labels is wrong by the share of its labels that are; of numbers none is.
    """

    terms: LossTerms
    wrong: Tensor


def training_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    *,
    epoch: float,
    indices: Tensor | None = None,
    given: Tensor | None = None,
    forward: Callable[..., Any] | None = None,
    target: Target | None = None,
) -> StepResult:
    """One optimiser step on (B, C, H, W) images and their labels.

    Args:
        student: in training mode.
        optimizer: from ``build_optimizer``; its learning rates are set by the caller.
        images, labels: this process's share of the batch.
        settings: pieces, clipping, precision.
        epoch: moment in epochs, for prices that act later.
        indices: (B,) places in the training split, for a teacher that remembers.
        given: (B, ...) what the student's frozen start returned for the images; it goes on there.
        forward: the student or its DistributedDataParallel wrapper (of ``Resuming``, if ``given``).
        target: what labels are; by default what is usual for their shape.
    """
    target = target or usual(labels)
    forward = forward or (student if given is None else Resuming(student))
    optimizer.zero_grad(set_to_none=True)
    if isinstance(student, Timed):
        student.at(epoch)
    count = settings.accumulate
    places = [None] * count if indices is None else indices.chunk(count)
    starts = [()] * count if given is None else [(piece,) for piece in given.chunk(count)]
    # The last pieces may be missing: 5 images in 4 pieces are 2, 2 and 1.
    pieces = list(zip(images.chunk(count), labels.chunk(count), places, starts, strict=False))
    # The mean over the batch is over what is counted, of which a piece may have less.
    uneven = len(pieces) > 1 and target.kind not in ("class", "soft")
    whole = counted(labels, target).sum().clamp_min(1) if uneven else None
    seen: list[LossTerms] = []
    wrong = torch.zeros((), device=labels.device)
    for i, (x, y, at, start) in enumerate(pieces):
        last, share = i == len(pieces) - 1, len(y) / len(labels)
        with contextlib.ExitStack() as stack:
            if not last and isinstance(forward, DistributedDataParallel):
                stack.enter_context(forward.no_sync())
            with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.bf16):
                output = forward(x, *start)
                terms = step_loss(
                    student,
                    output,
                    x,
                    y,
                    epoch=epoch,
                    label_smoothing=settings.label_smoothing,
                    indices=at,
                    target=target,
                )
            if whole is not None:
                part = counted(y, target).sum()
                terms = replace(terms, task=terms.task * part / whole / share)
            torch.autograd.backward(terms.total * share)
        seen.append(terms.scaled(share))
        wrong += _wrong(output.logits.detach(), y, target)
    for param in student.idle():
        param.grad = None
    if settings.clip is not None:
        nn.utils.clip_grad_norm_(list(trained_parameters(student)), settings.clip)
    decay_to_anchors(student, optimizer, settings)
    optimizer.step()
    return StepResult(LossTerms.summed(seen), wrong)


def _wrong(logits: Tensor, labels: Tensor, target: Target) -> Tensor:
    """Number of wrong images, or the sum of the shares to which they are."""
    if target.numeric:
        return logits.new_full((), torch.nan)  # no number is right or wrong
    if target.kind == "set":
        counted = labels >= 0
        missed = ((logits > 0) != (labels == 1)) & counted
        return (missed.sum(1) / counted.sum(1).clamp_min(1)).sum()
    right = labels.argmax(1) if target.kind == "soft" else labels
    missed = logits.argmax(1) != right
    if target.kind != "pixel_class":
        return missed.sum()
    counted = labels >= 0
    return ((missed & counted).sum((1, 2)) / counted.sum((1, 2)).clamp_min(1)).sum()
