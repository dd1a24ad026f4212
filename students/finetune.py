"""Fine-tuning: the whole network becomes the task's own. The strongest and most expensive
reference.

The task holds a trained copy of every tensor of the backbone. It is also the default teacher. In a
sequence of tasks (``sequel``) one body is trained by all of them, in turn, and only the head and
the running statistics of batch norms are each task's own: what a later task makes of the body is
what an earlier one then has to live with. A body for every task is ``independent``.

Source: the common baseline, e.g. Girshick et al., CVPR 2014.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from tailor.adapters import new_head, with_head
from tailor.backbone import Backbone, norm_tensors
from tailor.graft import grafted
from tailor.settings import added
from tailor.student import LayerState, Output, layer_states, relative_change

PAPER = "common baseline"
KIND = "teacher"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What fine-tuning needs beside the training settings."""

    statistics: Literal["own", "shared"] = added("own")
    """In a sequence of tasks, running statistics of batch norms: each task's own, or those of the
    newest task for all, by which the others lose most."""


class Finetune(nn.Module):
    """A trained network of its own beside the trunk.

    Args:
        backbone: the trunk, left alone; what changed is measured against it.
        body: the network that is trained, images to (B, D) features.
        num_classes: K; ``seed`` of the head's initialisation.
    """

    def __init__(
        self,
        backbone: Backbone,
        body: nn.Module,
        num_classes: int,
        *,
        seed: int = 0,
        method: str = "finetune",
    ) -> None:
        super().__init__()
        self.universal, self.method = backbone, method
        self.task = nn.Module()
        self.task.body = body.requires_grad_(True)
        self.task.head = new_head(backbone, num_classes, seed)

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        return Output(self.task.head(self.task.body(images)))

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Norms apart from the rest of the body: weight decay leaves them alone by default."""
        norms = set(norm_tensors(self.task.body)[0])
        named = list(self.task.body.named_parameters())
        return {
            "body": [p for n, p in named if n not in norms],
            "norms": [p for n, p in named if n in norms],
            "head": list(self.task.head.parameters()),
        }

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """None: ordinary weight decay."""
        return {}

    def idle(self) -> list[nn.Parameter]:
        """None: everything moves."""
        return []

    def price(self, epoch: float) -> None:
        """Nothing has a price."""

    def layer_states(self) -> list[LayerState]:
        """Every layer is the task's own."""
        tuned = dict(self.task.body.named_parameters())
        change = relative_change(self.universal, tuned)
        return layer_states(self.universal, on=change, change=change)

    def merge(self) -> nn.Module:
        """The trained network with its head, in evaluation mode."""
        return with_head(copy.deepcopy(self.task.body), self.task.head).eval()


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Finetune:
    """A copy of the backbone's network with a new head, all of it trained."""
    return Finetune(backbone, copy.deepcopy(backbone.model), num_classes, seed=seed)


def sequel(
    before: Sequence[Finetune],
    backbone: Backbone,
    num_classes: int,
    config: Config | None = None,
    *,
    seed: int = 0,
) -> Finetune:
    """The next task's student: the parameters of the student before, not copied, and a new head."""
    config = config or Config()
    body = shared_body(before[-1].task.body, config.statistics)
    return Finetune(backbone, body, num_classes, seed=seed)


def shared_body(body: nn.Module, statistics: Literal["own", "shared"]) -> nn.Module:
    """``body`` for one more task: the same parameters, and the same statistics or a copy of them.

    Args:
        body: of the task before.
        statistics: whose running statistics its batch norms have.
    """
    if statistics == "shared":
        return body
    norms = {}
    for name, module in body.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            norms[name] = own = copy.copy(module)
            own._buffers = {n: copy.deepcopy(b) for n, b in module._buffers.items()}
    return grafted(body, norms)
