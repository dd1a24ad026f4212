"""Losses: what a training step minimises, term by term.

    total = task + price
    price = λ · Σ_l price_l · |score_l|

The price of a layer is what its gate switches on, relative to the backbone, so that λ means the
same on every architecture. Distillation belongs to the methods that have it.

Source: sparsity term, TAPS (Wallingford et al., CVPR 2022), which prices every layer at 1/L; its
published code divides by a fixed 52 (``paper`` here) whatever the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tailor.backbone import Backbone, Layer
from tailor.student import Output, Student

Pricing = Literal["params", "macs", "layers", "paper"]


@dataclass(frozen=True)
class LossTerms:
    """The terms of one step, scalars with gradient; ``price`` is None where nothing has one."""

    task: Tensor
    price: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum that is differentiated."""
        return self.task if self.price is None else self.task + self.price


def step_loss(
    student: Student, output: Output, labels: Tensor, *, epoch: float, label_smoothing: float = 0.0
) -> LossTerms:
    """Cross-entropy of (B, K) logits against (B,) labels, and the student's price at ``epoch``."""
    task = F.cross_entropy(output.logits.float(), labels, label_smoothing=label_smoothing)
    return LossTerms(task, student.price(epoch))


def layer_prices(backbone: Backbone, pricing: Pricing) -> Tensor:
    """(L,) price of each layer of ``backbone``.

    Args:
        backbone: with L layers of n_l parameters and m_l MACs.
        pricing: ``params`` n_l / Σ n (over the backbone's parameters), ``macs`` m_l / Σ m (over its
        layers),
            ``layers`` 1 / L, ``paper`` 1 / 52.
    """
    layers: Sequence[Layer] = backbone.layers
    if pricing == "params":
        prices = [layer.params / backbone.num_params for layer in layers]
    elif pricing == "macs":
        total = sum(layer.macs for layer in layers)
        prices = [layer.macs / total for layer in layers]
    elif pricing == "layers":
        prices = [1 / len(layers)] * len(layers)
    else:
        prices = [1 / 52] * len(layers)
    return torch.tensor(prices)


def sparsity(scores: Tensor, prices: Tensor, lam: float) -> Tensor:
    """λ · Σ price_l · |score_l|, a scalar; scores and prices are (L,)."""
    return lam * (prices * scores.abs()).sum()
