"""Batch norm adaptation: a frozen network whose normalisation layers are the task's own.

    y = γ_t · (a - μ_t) / sqrt(σ²_t + ε) + β_t        a: output of a universal layer

Affine parameters and running statistics of every norm belong to the task, and so does the head; no
other number of the network moves. It is the cheapest way to change all depths: on the Decathlon's
ResNet-26 7,744 trained parameters per task beside the head, of 5.8 million. ``statistics`` can
leave the running statistics universal, so that only γ and β are learned. Layer norms have no
statistics; a network without any norm of its own is left with the head.

Sources: Bilen & Vedaldi, Universal representations: the missing link between faces, text, planktons
and cat breeds, 2017, https://arxiv.org/abs/1701.07275; the row "BN adapt" of Rebuffi, Bilen &
Vedaldi, Learning multiple visual domains with residual adapters, NeurIPS 2017.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call

from tailor.adapters import NamedTensors, copy_into, new_head, task_norms, with_head
from tailor.backbone import Backbone, norm_tensors
from tailor.student import LayerState, Output, layer_states

PAPER = "BN adaptation, Bilen & Vedaldi, arXiv 2017"
KIND = "student"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What batch norm adaptation needs beside the training settings."""

    statistics: Literal["own", "universal"] = "own"
    """Running statistics of batch norms: the task's own, or the source's, in training too."""


class BnAdapt(nn.Module):
    """The trunk with norms and a head of the task's own.

    Args:
        backbone: the frozen trunk, shared and never copied.
        num_classes: K of the task's head.
        config: whose running statistics are used.
        seed: of the head's initialisation.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Config, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.universal, self.config, self.method = backbone, config, "bn_adapt"
        self.task = nn.Module()
        norms = task_norms(backbone.model)
        if config.statistics == "universal":  # then they are the trunk's, not this task's to save
            affine = {n: t for n, t in norms.items() if isinstance(t, nn.Parameter)}
            norms = NamedTensors(affine)
        self.task.norms = norms
        self.task.head = new_head(backbone, num_classes, seed)
        self.trunk: Callable[[dict[str, Tensor], Tensor], Tensor] = self._trunk

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        universal = self.universal.model
        # Whoever uses the trunk sets its mode; several students may share it.
        if universal.training != self.training:
            universal.train(self.training)
        with _still(universal, self.training and self.config.statistics == "universal"):
            return Output(self.task.head(self.trunk(dict(self.task.norms.items()), images)))

    def _trunk(self, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = functional_call(self.universal.model, tensors, (images,))
        return features

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Norms and head are all there is."""
        return {
            "norms": list(self.task.norms.parameters()),
            "head": list(self.task.head.parameters()),
        }

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """None: norms are not decayed."""
        return {}

    def idle(self) -> list[nn.Parameter]:
        """None: everything moves."""
        return []

    def price(self, epoch: float) -> None:
        """Nothing has a price."""

    def layer_states(self) -> list[LayerState]:
        """Every layer is universal."""
        return layer_states(self.universal)

    def merge(self) -> nn.Module:
        """The plain network with the task's norms and head, in evaluation mode."""
        body = copy.deepcopy(self.universal.model)
        copy_into(body, dict(self.task.norms.items()))
        return with_head(body, self.task.head).eval()


@contextmanager
def _still(model: nn.Module, active: bool) -> Iterator[None]:
    """While ``active``, norms with running statistics use those and leave them as they are.

    Every norm gets its mode back: the next student on this trunk looks at the root's mode only.
    """
    owners = dict.fromkeys(name.rpartition(".")[0] for name in norm_tensors(model)[1])
    norms = [model.get_submodule(owner) for owner in owners] if active else []
    moving = [norm for norm in norms if norm.training]
    for norm in moving:
        norm.training = False
    try:
        yield
    finally:
        for norm in moving:
            norm.training = True


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> BnAdapt:
    """A head and norms of the task's own on the frozen backbone; at first those of the backbone."""
    return BnAdapt(backbone, num_classes, config or Config(), seed=seed)
