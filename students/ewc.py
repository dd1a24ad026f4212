"""Elastic weight consolidation: fine-tuning that holds back what earlier tasks rely on.

    loss = task + coef · Σ_i F_i (θ_i - θ*_i)²      i over the body, the heads are each task's own

F is the diagonal of the Fisher information, measured once a task is trained: the mean over images
of (∂ log p(y | x) / ∂θ)², gradients of single images, in evaluation mode. The labels y are those of
the data (``empirical``) or drawn from what the network says (``sampled``, the Fisher information in
the strict sense). θ* is the body as it was. Both are kept in ``student.memory``: two numbers per
weight, however many tasks there were.

Several tasks: ``mean`` keeps the running mean of F and θ* over tasks; ``each`` holds to every
earlier task, Σ_t Σ_i F_ti (θ_i - θ*_ti)², of which the sum of F and the mean of θ* weighted by F
are all that its gradient needs.

Batch norm's running statistics have no gradient to tell what relies on them: they are each task's
own.

Sources: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017,
https://arxiv.org/abs/1612.00796 (their λ/2 is ``coef``); the mean over tasks and ``published``,
Zhang et al., Side-tuning, ECCV 2020. That penalties add up to one: Huszár, PNAS 2018,
https://arxiv.org/abs/1712.03847.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from students.finetune import Finetune, shared_body
from tailor.backbone import Backbone
from tailor.data import Batches
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.losses import task_loss
from tailor.settings import Settings
from tailor.target import CLASS, Target

PAPER = "Elastic weight consolidation, Kirkpatrick et al., PNAS 2017"
KIND = "student"

PUBLISHED_COPIES = 10  # tasks of the published sequence: as many objects averaged into one table
AT_ONCE = 1 << 26  # numbers of single images' gradients held at a time
IMAGES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Config:
    """What elastic weight consolidation needs beside the training settings."""

    coef: float = 100.0
    """Weight of the penalty; 0 is plain fine-tuning. The published 1e4 is for its own Fisher."""
    fisher: Literal["empirical", "sampled"] = "empirical"
    """Whose labels the gradients are of: the data's, or drawn from what the network says."""
    tasks: Literal["mean", "each"] = "mean"
    """Hold to the running mean of all earlier tasks, or to each of them."""
    n_samples: int = 1000
    """Images that each task's Fisher is measured on; all of them where there are fewer."""
    cap: float | None = 10.0
    """Largest weight of the penalty for any one number, coef · F: where it is larger, a step of SGD
    overshoots (at 10, from a learning rate of 0.1 on) and training diverges."""
    statistics: Literal["own", "shared"] = "own"
    """Running statistics of batch norms: each task's own, or those of the newest task for all."""
    published: bool = False
    """The published program's Fisher and running mean: the squared gradient of a batch's mean loss,
    about a batch size too small, and each task averaged in ten times, so that only the last one
    counts."""


class Memory(nn.Module):
    """What is known of earlier tasks.

    Args:
        size: N, weights of the body.
    """

    fisher: Tensor  # (N,)
    anchor: Tensor  # (N,)
    tasks: Tensor  # (), how many there were

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("fisher", torch.zeros(size))
        self.register_buffer("anchor", torch.zeros(size))
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def take(self, fisher: Tensor, values: Tensor, how: str, *, times: int = 1) -> None:
        """Add a task.

        Args:
            fisher: (N,) of the task.
            values: (N,) the body as the task leaves it.
            how: ``mean`` or ``each``.
            times: how often it enters the mean; 1 is right.
        """
        self.tasks += 1
        if how == "each":
            self.fisher += fisher
            share = torch.where(self.fisher > 0, fisher / self.fisher, 1.0)
            self.anchor.lerp_(values, share)
            return
        for _ in range(times):
            self.fisher.lerp_(fisher, 1 / int(self.tasks))
            self.anchor.lerp_(values, 1 / int(self.tasks))


class Ewc(Finetune):
    """A trained network that is held to what earlier tasks rely on.

    Args:
        backbone: the trunk, left alone.
        body: the network that is trained.
        num_classes: K; ``seed`` of the head's initialisation.
        config: weight and measure of the penalty.
        memory: of the tasks before; a new one by default.
    """

    def __init__(
        self,
        backbone: Backbone,
        body: nn.Module,
        num_classes: int,
        config: Config,
        memory: Memory | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, body, num_classes, seed=seed, method="ewc")
        self.config = config
        self.memory = memory or Memory(len(flat(body)))

    def price(self, epoch: float) -> Tensor | None:
        """coef · Σ F (θ - θ*)², a scalar; None for the first task, and where coef is 0."""
        if self.config.coef == 0 or int(self.memory.tasks) == 0:
            return None
        weight = self.config.coef * self.memory.fisher
        if self.config.cap is not None and not self.config.published:
            weight = weight.clamp(max=self.config.cap)
        return (weight * (flat(self.task.body) - self.memory.anchor).square()).sum()

    def consolidate(self, train: Batches, settings: Settings) -> None:
        """Measure what the task just trained relies on, and remember it.

        Args:
            train: its training batches; a fresh epoch of them is seen.
            settings: the seed of drawn labels.

        Raises:
            BadInput: labels that cannot be drawn (``sampled`` of a pixel-wise task).
        """
        config = self.config
        self.eval()
        batches, target = train.epoch(settings.epochs), train.split.target
        pairs = ((b.images, b.labels) for b in batches)
        if config.published:
            found = published_fisher(self, pairs, config.n_samples, train.steps, target)
        else:
            draw = None
            if config.fisher == "sampled":
                draw = torch.Generator().manual_seed(settings.seed)
            found = diagonal_fisher(self, pairs, config.n_samples, target, draw)
        values = flat(self.task.body).detach()
        self.memory.to(values.device)
        copies = PUBLISHED_COPIES if config.published else 1
        self.memory.take(found, values, config.tasks, times=copies)


def flat(body: nn.Module) -> Tensor:
    """(N,) all parameters of ``body`` in order, with gradient."""
    return torch.cat([p.reshape(-1) for p in body.parameters()])


def diagonal_fisher(
    student: Finetune,
    batches: Iterator[tuple[Tensor, Tensor]],
    n_samples: int,
    target: Target = CLASS,
    draw: torch.Generator | None = None,
) -> Tensor:
    """(N,) mean over images of squared gradients of log p, for the body's weights.

    Args:
        student: in evaluation mode.
        batches: (B, C, H, W) images and their labels.
        n_samples: images to look at, of each process.
        target: what the labels are.
        draw: draws the labels from what ``student`` says; None takes those of ``batches``.
    """
    network = nn.Sequential(student.task.body, student.task.head).eval()
    params = {f"0.{n}": p.detach() for n, p in student.task.body.named_parameters()}
    total = torch.zeros_like(flat(student.task.body).detach())
    at_once = max(1, min(IMAGES_AT_ONCE, AT_ONCE // len(total)))

    def loss(tensors: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, tensors, (image[None],))
        return task_loss(logits, label[None], target=target)

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    seen = 0
    for all_images, all_labels in batches:
        left = n_samples - seen
        images, labels = all_images[:left], all_labels[:left]
        if draw is not None:
            labels = _drawn(student(images).logits, labels, target, draw)
        for x, y in zip(images.split(at_once), labels.split(at_once), strict=True):
            with warnings.catch_warnings():  # attention has no rule for many images at once
                warnings.filterwarnings("ignore", "There is a performance drop")
                with torch.no_grad():  # the head's own; `grad` sees what it differentiates
                    found = cast("dict[str, Tensor]", gradients(params, x, y))
            total += torch.cat([g.square().sum(0).reshape(-1) for g in found.values()])
        seen += len(images)
        if seen >= n_samples:
            break
    count = torch.tensor(float(seen), device=total.device)
    for tensor in (total, count):
        Group.current().sum_(tensor)
    return total / count


def _drawn(logits: Tensor, labels: Tensor, target: Target, draw: torch.Generator) -> Tensor:
    """Labels of the kind of ``labels`` as the network would give them."""
    odds = logits.detach().float().cpu()
    if target.kind == "class":
        return torch.multinomial(odds.softmax(1), 1, generator=draw)[:, 0].to(labels.device)
    if target.kind == "set":
        present = torch.bernoulli(odds.sigmoid(), generator=draw).to(labels)
        return torch.where(labels < 0, labels, present)
    raise BadInput(
        f"fisher is 'sampled', but labels of kind {target.kind!r} are no classes to draw; give "
        f"--fisher empirical"
    )


def published_fisher(
    student: Finetune,
    batches: Iterator[tuple[Tensor, Tensor]],
    n_samples: int,
    steps: int,
    target: Target = CLASS,
) -> Tensor:
    """(N,) Σ over batches of (∂ mean loss / ∂θ)² / ``steps``, as the published program has it.

    It counts two for every batch, so that ``n_samples`` of 5000 is all of an epoch.
    """
    params = list(student.task.body.parameters())
    total = torch.zeros_like(flat(student.task.body).detach())
    for images, labels in itertools.islice(batches, n_samples // 2):
        loss = task_loss(student(images).logits, labels, target=target)
        found = torch.autograd.grad(loss, params)
        total += torch.cat([g.reshape(-1) for g in found]).square() / steps
    return total


def _check(config: Config) -> None:
    if not 0 <= config.coef < float("inf"):
        raise BadInput(f"coef is {config.coef}; give --coef 0 or more")
    if config.n_samples < 1 + config.published:
        raise BadInput(f"n_samples is {config.n_samples}; give --n-samples 2 or more")


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Ewc:
    """The first task's student: fine-tuning with a memory.

    Raises:
        BadInput: a negative weight, or no images to measure on.
    """
    config = config or Config()
    _check(config)
    return Ewc(backbone, copy.deepcopy(backbone.model), num_classes, config, seed=seed)


def sequel(
    before: Sequence[Any],
    backbone: Backbone,
    num_classes: int,
    config: Config | None = None,
    *,
    seed: int = 0,
) -> Ewc:
    """The next task's student: body and memory of the student before, and a new head."""
    config = config or Config()
    _check(config)
    last = before[-1]
    statistics = "shared" if config.published else config.statistics
    body = shared_body(last.task.body, statistics)
    return Ewc(backbone, body, num_classes, config, last.memory, seed=seed)
