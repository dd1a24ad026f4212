"""Linear probe: the frozen backbone with a trained head. The cheapest reference.

Source: the "feature extractor" row of Rebuffi et al., NIPS 2017.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from tailor.adapters import new_head, with_head
from tailor.backbone import Backbone
from tailor.frozen import frozen_pass, part_of
from tailor.prefix import FEATURES, Prefix
from tailor.student import LayerState, Output, layer_states

PAPER = "common baseline"
KIND = "teacher"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A linear probe has no settings of its own."""


class Probe(nn.Module):
    """The trunk in evaluation mode, without gradient, and a head."""

    def __init__(self, backbone: Backbone, num_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.universal, self.method = backbone, "probe"
        self.task = nn.Module()
        self.task.head = new_head(backbone, num_classes, seed)

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        return self.resume(self._features(images), images)

    def _features(self, images: Tensor) -> Tensor:
        # Exact, because a merged probe is a plain network and must say the same.
        return frozen_pass(self.universal, images, part=part_of(self.universal), exact=True)

    def prefix(self) -> Prefix:
        """All but the head."""
        return Prefix(FEATURES, self._features)

    def resume(self, given: Tensor, images: Tensor) -> Output:
        """(B, D) features to (B, K) logits."""
        return Output(self.task.head(given))

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """The head is all there is."""
        return {"head": list(self.task.head.parameters())}

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """None: ordinary weight decay."""
        return {}

    def idle(self) -> list[nn.Parameter]:
        """None: the head always moves."""
        return []

    def price(self, epoch: float) -> None:
        """Nothing has a price."""

    def layer_states(self) -> list[LayerState]:
        """Every layer is universal."""
        return layer_states(self.universal)

    def merge(self) -> nn.Module:
        """The backbone with the head, in evaluation mode."""
        return with_head(copy.deepcopy(self.universal.model), self.task.head).eval()


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Probe:
    """A head on the frozen backbone."""
    return Probe(backbone, num_classes, seed=seed)
