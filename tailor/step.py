"""One training step: forward, loss terms, backward, optimiser.

All randomness of a step is drawn from the generators as they are; who calls it seeds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tailor.losses import LossTerms, step_loss
from tailor.optim import decay_to_anchors
from tailor.settings import Settings
from tailor.student import Student, trained_parameters


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind: its loss terms and how many images were wrong, all detached.

    An image with several labels is wrong by the share of its labels that are.
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
    forward: Callable[[Tensor], Any] | None = None,
) -> StepResult:
    """One optimiser step on (B, C, H, W) images and (B,) or (B, K) labels.

    Args:
        student: in training mode.
        optimizer: from ``build_optimizer``; its learning rates are set by the caller.
        images, labels: this process's share of the batch.
        settings: pieces, clipping, precision.
        epoch: moment in epochs, for prices that act later.
        indices: (B,) places in the training split, for a teacher that remembers.
        forward: the student or its DistributedDataParallel wrapper.
    """
    forward = forward or student
    optimizer.zero_grad(set_to_none=True)
    count = settings.accumulate
    places = [None] * count if indices is None else indices.chunk(count)
    # The last pieces may be missing: 5 images in 4 pieces are 2, 2 and 1.
    pieces = list(zip(images.chunk(count), labels.chunk(count), places, strict=False))
    seen: list[LossTerms] = []
    wrong = torch.zeros((), device=labels.device)
    for i, (x, y, at) in enumerate(pieces):
        last, share = i == len(pieces) - 1, len(y) / len(labels)
        with contextlib.ExitStack() as stack:
            if not last and isinstance(forward, DistributedDataParallel):
                stack.enter_context(forward.no_sync())
            with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.bf16):
                output = forward(x)
                terms = step_loss(
                    student,
                    output,
                    x,
                    y,
                    epoch=epoch,
                    label_smoothing=settings.label_smoothing,
                    indices=at,
                )
            torch.autograd.backward(terms.total * share)
        seen.append(terms.scaled(share))
        wrong += _wrong(output.logits.detach(), y)
    for param in student.idle():
        param.grad = None
    if settings.clip is not None:
        nn.utils.clip_grad_norm_(list(trained_parameters(student)), settings.clip)
    decay_to_anchors(student, optimizer, settings)
    optimizer.step()
    return StepResult(LossTerms.summed(seen), wrong)


def _wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of wrong images."""
    if labels.ndim == 1:
        return (logits.argmax(1) != labels).sum()
    counted = labels >= 0
    missed = ((logits > 0) != (labels == 1)) & counted
    return (missed.sum(1) / counted.sum(1).clamp_min(1)).sum()
