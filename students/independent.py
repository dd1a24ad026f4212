"""Independent: fine-tuning with a network for every task, so that none can forget.

In a sequence each task starts from the trunk and shares nothing: K tasks cost K + 1 networks. It is
what rigidity and forgetting are measured against. One task alone is ``finetune`` by another name.

Source: the common baseline, e.g. the row "Independent" of Zhang et al., Side-tuning, ECCV 2020.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from students.finetune import Finetune
from tailor.backbone import Backbone

PAPER = "common baseline"
KIND = "student"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Independent networks have no settings of their own."""


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Finetune:
    """A copy of the backbone's network with a new head, all of it trained."""
    body = copy.deepcopy(backbone.model)
    return Finetune(backbone, body, num_classes, seed=seed, method="independent")
