"""Learning without forgetting: fine-tuning that keeps what the network said on its source task.

    loss = task + λ_o · old
    old  = - Σ_c p_c log q_c      p = softmax(z0 / T), q = softmax(z / T), averaged over images

z0 are the logits that the source network, as it was, gives the *new* images, z those of the network
that is being trained: body, source head and new head all learn, and no source image is needed. The
source network is the frozen trunk in evaluation mode, so nothing of it is copied or saved.

In a sequence (``sequel``) body, source head and the heads of all earlier tasks learn on, and each
old head has a term of its own: z0 are the logits of a frozen copy of the network as the task before
left it. The copy is gone once the task is learned.

The source head is the one that the backbone's weights came with. Weights without one (random ones,
files without a classifier) have their pooled features matched instead, by the mean squared
difference. The trained source head is part of the task's file: one tuned network serves both tasks,
which is what the method is for (``source_logits``). It counts as body, since it is no head of
this task.

Source: Li & Hoiem, Learning without forgetting, ECCV 2016, https://arxiv.org/abs/1606.09282 (T = 2,
λ_o = 1); the row "LwF" of Rebuffi et al., NeurIPS 2017. Left out: the phase before, in which only
the new head learns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.finetune import Finetune, shared_body
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.settings import added
from tailor.source_head import source_head
from tailor.student import Output
from tailor.teacher import Teacher

PAPER = "Learning without forgetting, Li & Hoiem, ECCV 2016"
KIND = "student"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What learning without forgetting needs beside the training settings."""

    source_weight: float = 1.0
    """λ_o: weight of the distance to what the source network says; 0 is plain fine-tuning."""
    temperature: float = 2.0
    """T: logits are divided by it; above 1, unlikely source classes count for more."""
    match: Literal["auto", "logits", "features"] = "auto"
    """What stays: logits of the source classes, or pooled features; auto takes logits where the
    weights have a classifier. In a sequence, the logits of earlier tasks, or features."""
    statistics: Literal["own", "shared"] = added("shared")
    """In a sequence of tasks, running statistics of batch norms: those of the newest task for all,
    as one network serves them and is held as it runs, or each task's own."""


class Lwf(Finetune):
    """A trained network beside the trunk, with several heads, that is held to what it said before.

    Args:
        backbone: the trunk, left alone.
        num_classes: K of the new task.
        config: weight, temperature, and what is matched.
        source: the source head as it was; None matches features.
        seed: of the new head's initialisation.
        before: the students of all earlier tasks, whose network this one goes on with.
    """

    teacher: Teacher | None = None  # the network as it was teaches; no run is asked for

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        config: Config,
        source: nn.Linear | None,
        *,
        seed: int = 0,
        before: Sequence[Lwf] = (),
    ) -> None:
        if before:
            body = shared_body(before[-1].task.body, config.statistics)
        else:
            body = copy.deepcopy(backbone.model)
        super().__init__(backbone, body, num_classes, seed=seed, method="lwf")
        self.config, self.source = config, source  # frozen, and outside of what is saved
        self._targets = tuple(student.universal.target for student in before)
        self._old: tuple[nn.Module, ...] = ()  # body and heads as they were, outside of the task
        if source is not None:
            self.task.source = copy.deepcopy(source).requires_grad_(True)
        if before:
            if source is not None:
                self.task.source = before[-1].task.source
            self.task.earlier = nn.ModuleList(student.task.head for student in before)
            # Now, not when training begins: a run may go on in the middle of it.
            parts = [body, *self._old_heads()]
            self._old = tuple(copy.deepcopy(p).eval().requires_grad_(False) for p in parts)

    def _old_heads(self) -> list[nn.Module]:
        """The source head, if there is one, then those of earlier tasks, as they are now."""
        source = [] if self.source is None else [self.task.source]
        return [*source, *getattr(self.task, "earlier", ())]

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits; in training also what is held to what it was."""
        features = self.task.body(images)
        logits = self.task.head(features)
        if not self.training or self.config.source_weight == 0:
            return Output(logits)
        return Output(logits, self._held(features, self._old_heads()))

    def _held(self, features: Tensor, heads: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        """What must stay: the logits of every old head, or the features."""
        if not heads or self.config.match == "features":
            return (features,)
        return tuple(head(features) for head in heads)

    def source_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, source classes) logits of the network as tuned.

        Raises:
            BadInput: the backbone's weights have no classifier.
        """
        if self.source is None:
            raise BadInput(_headless(self.universal))
        logits: Tensor = self.task.source(self.task.body(images))
        return logits

    def wants_teacher(self) -> bool:
        """Never: the source network is at hand."""
        return False

    def distillation(self, images: Tensor, output: Output, indices: Tensor | None) -> Tensor | None:
        """λ_o times the distances of all old heads to what they said; None where λ_o is 0."""
        if not output.block_outputs:
            return None
        with torch.no_grad():
            if self._old:
                wanted = self._held(self._old[0](images), self._old[1:])
            else:
                source = [] if self.source is None else [self.source]
                wanted = self._held(self.universal(images), source)
        if not self._old_heads() or self.config.match == "features":
            kinds = ["values"]
        else:
            source = [] if self.source is None else ["class"]
            kinds = [*source, *(target.kind for target in self._targets)]
        losses = [
            _distance(now, before, kind, self.config.temperature)
            for now, before, kind in zip(output.block_outputs, wanted, kinds, strict=True)
        ]
        return self.config.source_weight * torch.stack(losses).sum()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Lwf:
        """The network as it was goes where this student goes."""
        for module in self._old:
            module._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Fine-tuning's, all other heads with the body."""
        found = super().roles()
        for head in self._old_heads():
            found["body"] += list(head.parameters())
        return found


def _distance(now: Tensor, before: Tensor, kind: str, temperature: float) -> Tensor:
    """How far an old head's output, or the features, went: a scalar."""
    if kind.endswith("values"):
        return F.mse_loss(now.float(), before.float())
    if kind == "set":  # every label is a question of its own, as in the paper
        target = (before.float() / temperature).sigmoid()
        loss = F.binary_cross_entropy_with_logits(now.float() / temperature, target)
        return loss * now.shape[1]
    return old_task_loss(now, before, temperature)


def old_task_loss(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened outputs, averaged over images; a scalar.

    Args:
        logits: (B, S) over source classes, of the network that learns.
        wanted: (B, S), of the source network.
        temperature: T, above 0.

    Source: Li & Hoiem, ECCV 2016, Eq. 2 to 4; a probability to the power of 1 / T, normalised, is
    the softmax of the logit divided by T.
    """
    target = (wanted.float() / temperature).softmax(1)
    return -(target * (logits.float() / temperature).log_softmax(1)).sum(1).mean()


def _headless(backbone: Backbone) -> str:
    return (
        f"the weights {backbone.weights!r} of {backbone.name!r} have no linear classifier whose "
        f"logits could stay as they are; give --match features, or --weights with a classifier"
    )


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Lwf:
    """A copy of the backbone's network with a new head, all of it trained, beside the source.

    Raises:
        BadInput: a negative weight, a temperature that is not above 0, or ``match="logits"`` for
            weights without a classifier.
    """
    config = config or Config()
    _check(config)
    source = None
    if config.source_weight > 0 and config.match != "features":
        source = source_head(backbone)
        if source is None and config.match == "logits":
            raise BadInput(_headless(backbone))
    return Lwf(backbone, num_classes, config, source, seed=seed)


def sequel(
    before: Sequence[Lwf],
    backbone: Backbone,
    num_classes: int,
    config: Config | None = None,
    *,
    seed: int = 0,
) -> Lwf:
    """The next task's student: the same body and old heads, all of them trained, and a new head.

    Args:
        before: the students of all earlier tasks, as they are now; what the new one is held to.
        backbone, num_classes, config, seed: as in ``build``.
    """
    config = config or Config()
    _check(config)
    source = before[0].source
    for student in before:
        student._old = ()  # it is learned: what it was held to is needed no more
    return Lwf(backbone, num_classes, config, source, seed=seed, before=before)


def _check(config: Config) -> None:
    if not config.source_weight >= 0:
        raise BadInput(
            f"source_weight is {config.source_weight}, but a distance cannot be rewarded; give "
            f"--source-weight 0 or more"
        )
    if not config.temperature > 0:
        raise BadInput(f"temperature is {config.temperature}; give --temperature above 0")
