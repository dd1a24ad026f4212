"""Training from scratch: the backbone's architecture with random weights.

It says what the pre-trained weights are worth, and it teaches the first backbone of all. Source:
the common baseline, e.g. the "Scratch" row of Rebuffi et al., NIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

from students.finetune import Finetune
from tailor.backbone import Backbone

PAPER = "common baseline"
KIND = "teacher"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Training from scratch has no settings of its own."""


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Finetune:
    """The same architecture, drawn anew from ``seed``, with a new head."""
    channels, _, px = backbone.input_size
    fresh = Backbone.create(
        backbone.name,
        weights="random",
        px=px,
        in_chans=channels,
        seed=seed,
        dense=backbone.dense,
    )
    return Finetune(backbone, fresh.model, num_classes, seed=seed, method="scratch")
