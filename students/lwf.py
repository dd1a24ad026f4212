"""Learning without forgetting: fine-tuning that keeps what the network said on its source task.

    loss = task + λ_o · old
    old  = - Σ_c p_c log q_c      p = softmax(z0 / T), q = softmax(z / T), averaged over images

z0 are the logits that the source network, as it was, gives the *new* images, z those of the network
that is being trained: body, source head and new head all learn, and no source image is needed. The
source network is the frozen trunk in evaluation mode, so nothing of it is copied or saved.

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
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.finetune import Finetune
from tailor.backbone import Backbone
from tailor.errors import BadInput
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
    weights have a classifier."""


class Lwf(Finetune):
    """A trained network beside the trunk, with two heads, that is held to what the trunk says.

    Args:
        backbone: the trunk, left alone.
        num_classes: K of the new task.
        config: weight, temperature, and what is matched.
        source: the source head as it was; None matches features.
        seed: of the new head's initialisation.
    """

    teacher: Teacher | None = None  # the trunk teaches; no run is asked for

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        config: Config,
        source: nn.Linear | None,
        *,
        seed: int = 0,
    ) -> None:
        body = copy.deepcopy(backbone.model)
        super().__init__(backbone, body, num_classes, seed=seed, method="lwf")
        self.config, self.source = config, source  # frozen, and outside of what is saved
        if source is not None:
            self.task.source = copy.deepcopy(source).requires_grad_(True)

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits; in training also what is held to the source's."""
        features = self.task.body(images)
        logits = self.task.head(features)
        if not self.training or self.config.source_weight == 0:
            return Output(logits)
        return Output(logits, (features if self.source is None else self.task.source(features),))

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
        """λ_o times the distance to the source network; None where λ_o is 0."""
        if not output.block_outputs:
            return None
        (given,) = output.block_outputs
        with torch.no_grad():
            wanted = self.universal(images)
            if self.source is not None:
                wanted = self.source(wanted)
        if self.source is None:
            loss = F.mse_loss(given.float(), wanted.float())
        else:
            loss = old_task_loss(given, wanted, self.config.temperature)
        return self.config.source_weight * loss

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Fine-tuning's, the source head with the body."""
        found = super().roles()
        if self.source is not None:
            found["body"] += list(self.task.source.parameters())
        return found


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
    if not config.source_weight >= 0:
        raise BadInput(
            f"source_weight is {config.source_weight}, but a distance cannot be rewarded; give "
            f"--source-weight 0 or more"
        )
    if not config.temperature > 0:
        raise BadInput(f"temperature is {config.temperature}; give --temperature above 0")
    source = None
    if config.source_weight > 0 and config.match != "features":
        source = source_head(backbone)
        if source is None and config.match == "logits":
            raise BadInput(_headless(backbone))
    return Lwf(backbone, num_classes, config, source, seed=seed)
