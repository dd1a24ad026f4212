"""Optimiser: a parameter group per role and weight decay, its learning rate over time, decay
towards an anchor.

Each role has a weight decay of its own. ``legacy_weight_decay`` is the exception: the rule that the
published residual adapters came to by a slip, for whoever wants their numbers.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn

from tailor.errors import BadInput
from tailor.settings import Settings
from tailor.student import Student, trained_parameters

# A pull to 0 would decide what these are there to learn.
NEVER_DECAYED = ("scores", "masks", "fusion")


def build_optimizer(student: Student, settings: Settings) -> torch.optim.Optimizer:
    """One parameter group per role and weight decay, each role with its own learning rate.

    Raises:
        BadInput: ``legacy_weight_decay`` for a student with deltas.
    """
    own = {"scores": settings.lr_scores, "norms": settings.lr_norms, "head": settings.lr_head}
    anchors = student.anchors()
    legacy = legacy_decays(student, settings) if settings.legacy_weight_decay else {}
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for role, params in student.roles().items():
        rate = settings.lr if own.get(role) is None else own[role]
        for param in params:
            decay = legacy.get(param, decay_of(role, settings))
            if param in anchors:
                decay = 0.0  # it is pulled elsewhere: see decay_to_anchors
            start = {"lr": rate, "base_lr": rate, "weight_decay": decay, "role": role}
            groups.setdefault((role, decay), {"params": [], **start})["params"].append(param)
    # One kernel per group: a fifth of an optimiser step less on a CPU. MPS has none for SGD.
    fused = all(p.device.type in ("cpu", "cuda") for p in trained_parameters(student))
    if settings.optimizer != "sgd":
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        return kind(list(groups.values()), lr=settings.lr, fused=fused)
    return torch.optim.SGD(
        list(groups.values()),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        fused=fused,
    )


def decay_of(role: str, settings: Settings) -> float:
    """The weight decay of a role: its own, or ``weight_decay``; norms have none but their own."""
    own = {
        "body": settings.decay_body,
        "deltas": settings.decay_deltas,
        "adapters": settings.decay_adapters,
        "head": settings.decay_head,
        "norms": settings.decay_norms or 0.0,
    }.get(role)
    if role in NEVER_DECAYED:
        return 0.0
    return settings.weight_decay if own is None else own


def legacy_decays(student: Student, settings: Settings) -> dict[nn.Parameter, float]:
    """The weight decay of every parameter by the published program's effective rule.

    One running value starts at ``weight_decay``. Every 4-D weight with a 3x3 kernel sets it to the
    decay of the body, one with a 1x1 kernel to that of the adapters, and nothing puts it back. So
    with parallel adapters everything has the decay of the adapters, and with series adapters all
    but the norm of the first one.

    Raises:
        BadInput: a student with deltas, which that program does not have.

    Source: the effect of sgd.py in the code of Rebuffi et al., CVPR 2018,
    https://github.com/srebuffi/residual_adapters.
    """
    if student.anchors():
        raise BadInput(
            f"legacy_weight_decay is a rule for adapters and whole networks, and method "
            f"{student.method!r} trains deltas; leave --legacy-weight-decay out"
        )
    by_side = {3: decay_of("body", settings), 1: decay_of("adapters", settings)}
    skipped = {p for role in NEVER_DECAYED for p in student.roles().get(role, [])}
    found, running = {}, settings.weight_decay
    for param in _in_order(student):
        if param in skipped:
            continue
        if param.ndim == 4:
            running = by_side.get(param.shape[2], running)
        found[param] = running
    return found


def _in_order(student: Student) -> list[nn.Parameter]:
    """Every trained parameter in the order of the network as it runs, where a student says it."""
    offered = getattr(student, "trained_in_order", None)
    if offered is not None:
        return cast("list[nn.Parameter]", list(offered()))
    return list(student.task.parameters())


def rate_at(settings: Settings, epoch: float) -> float:
    """The learning rate at a moment, as a share of its base.

    Args:
        settings: schedule, warm-up and length.
        epoch: moment in epochs, 0 at the first step and ``settings.epochs`` after the last.
    """
    if epoch < settings.warmup_epochs:
        return epoch / settings.warmup_epochs
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "step":
        return float(settings.step_factor ** (epoch // settings.step_epochs))
    length = max(settings.epochs - settings.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * (epoch - settings.warmup_epochs) / length))


@torch.no_grad()
def decay_to_anchors(
    student: Student, optimizer: torch.optim.Optimizer, settings: Settings
) -> None:
    """Weight decay of deltas: as in the optimiser at hand, but towards the universal weight."""
    decay = decay_of("deltas", settings)
    if decay == 0:
        return
    rate = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for param, anchor in student.anchors().items():
        if param.grad is None:
            continue
        if settings.optimizer == "adamw":
            param.lerp_(anchor, rate[param] * decay)
        else:
            param.grad.add_(param - anchor, alpha=decay)
