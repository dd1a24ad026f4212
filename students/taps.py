"""TAPS: task-adaptive parameter sharing. Learned scores decide which layers get their own weights.

    w_l = w0_l + 1[s_l >= τ] · δ_l         loss = task + λ · Σ_l price_l · |s_l|

Every convolution and linear layer (weight and bias together) has a delta behind a threshold gate
with straight-through gradient; norms (affine and statistics) and the head are the task's own
whatever the gates say. Everything else (embeddings, layer scale) stays universal. Scores start at
0.15 above the threshold 0.1 and deltas at 0, so that step 0 equals the backbone bit for bit.

The task stores w0 + δ rather than δ: an open gate then *selects* a tensor and no weight is computed
in the forward pass, and folding is exact to the bit.

Source: Wallingford, Li, Achille, Ravichandran, Fowlkes, Bhotika, Soatto: Task Adaptive Parameter
Sharing for Multi-Task Learning, CVPR 2022, https://arxiv.org/abs/2203.16708. Differences of the
published code and how to get them: ``price="paper"`` (a fixed 1/52 per layer).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tailor.adapters import NamedTensors, copy_into, new_head, task_norms, with_head
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.gates import select
from tailor.losses import Pricing, layer_prices, sparsity
from tailor.student import Gate, LayerState, Output, layer_states, relative_change

PAPER = "TAPS, Wallingford et al., CVPR 2022"
KIND = "student"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What one TAPS run needs beside the training settings."""

    lam: float = 0.1
    """λ: loss per unit of price; 0 adapts every layer, larger shares more. Relative to the
    backbone's size, hence the same on every architecture."""
    price: Pricing = "params"
    """What an open layer costs: its share of the backbone's parameters, of its MACs, 1/L, or the
    published code's fixed 1/52."""
    threshold: float = 0.1
    """A layer with a smaller score shares the universal weight."""
    initial_score: float = 0.15
    """Every score at the start; at or above the threshold, all layers start open."""
    free_scores: bool = False
    """Let scores fall below 0, as published, instead of stopping them there."""
    price_warmup: float = 2.0
    """Epochs before λ acts, so that scores can see what their deltas are worth."""


class Taps(nn.Module):
    """A backbone with per-layer deltas behind learned scores.

    Args:
        backbone: the frozen trunk, shared and never copied.
        num_classes: K of the task's head.
        config: λ, price and gate.
        seed: of the head's initialisation.
        layers: the layers that may be task-specific; all where None.
        gated: False for a pruned student: its layers are open for good and it has no scores.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        config: Config,
        *,
        seed: int = 0,
        layers: Sequence[str] | None = None,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.universal, self.config, self.method = backbone, config, "taps"
        wanted = {layer.name for layer in backbone.layers} if layers is None else set(layers)
        self.adapted = tuple(layer for layer in backbone.layers if layer.name in wanted)
        params = dict(backbone.model.named_parameters())
        self.task = nn.Module()
        self.task.tuned = NamedTensors({n: params[n] for x in self.adapted for n in x.tensors})
        self.task.norms = task_norms(backbone.model)
        self.task.head = new_head(backbone, num_classes, seed)
        if gated:
            self.task.scores = nn.Parameter(
                torch.full((len(self.adapted),), float(config.initial_score))
            )
        prices = dict(
            zip(
                (x.name for x in backbone.layers), layer_prices(backbone, config.price), strict=True
            )
        )
        self.register_buffer(
            "prices",
            torch.stack([prices[x.name] for x in self.adapted]) if self.adapted else torch.zeros(0),
            persistent=False,
        )
        self.trunk: Callable[[dict[str, Tensor], Tensor], Tensor] = self._trunk

    @property
    def gated(self) -> bool:
        """Whether scores still decide; False once pruned."""
        return hasattr(self.task, "scores")

    def open_gates(self) -> list[bool]:
        """For each adapted layer, whether its gate is open now."""
        if not self.gated:
            return [True] * len(self.adapted)
        opened: list[bool] = (self.task.scores.detach() >= self.config.threshold).tolist()
        return opened

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        if self.training and self.gated and not self.config.free_scores:
            # A long step of the price would carry a score through 0, where |s| throws it back and
            # may open the gate again; 0 is as closed as it gets.
            self.task.scores.data.clamp_(min=0.0)
        tensors = dict(self.task.norms.items())
        universal = self.universal.model
        own = dict(universal.named_parameters()) if self.gated else {}
        for i, (layer, on) in enumerate(zip(self.adapted, self.open_gates(), strict=True)):
            for name in layer.tensors:
                tuned = self.task.tuned[name]
                if self.gated and torch.is_grad_enabled():
                    tensors[name] = select(self.task.scores[i], tuned, own[name], on=on)
                else:  # a closed one is named too: a compiled trunk then sees one set of names
                    tensors[name] = tuned if on else own[name]
        # Whoever uses the trunk sets its mode; several students may share it. In training mode
        # nothing universal can move, because every norm in it is replaced by the task's.
        if universal.training != self.training:
            universal.train(self.training)
        return Output(self.task.head(self.trunk(tensors, images)))

    def _trunk(self, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = functional_call(self.universal.model, tensors, (images,))
        return features

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Every trained parameter once, under its role."""
        found = {
            "deltas": list(self.task.tuned.parameters()),
            "norms": list(self.task.norms.parameters()),
            "head": list(self.task.head.parameters()),
        }
        return found | ({"scores": [self.task.scores]} if self.gated else {})

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """A delta decays to nothing, that is, its tensor to the universal one."""
        own = dict(self.universal.model.named_parameters())
        return {p: own[n] for n, p in self.task.tuned.items() if isinstance(p, nn.Parameter)}

    def idle(self) -> list[nn.Parameter]:
        """The tensors of closed layers: no gradient, hence no momentum may move them either."""
        return [
            p
            for layer, on in zip(self.adapted, self.open_gates(), strict=True)
            if not on
            for n in layer.tensors
            if isinstance(p := self.task.tuned[n], nn.Parameter)
        ]

    def price(self, epoch: float) -> Tensor | None:
        """λ · Σ price · |score|, None during the warm-up, without scores, and where λ is 0."""
        if not self.gated or self.config.lam == 0 or epoch < self.config.price_warmup:
            return None
        return sparsity(self.task.scores, self.prices, self.config.lam)

    def layer_states(self) -> list[LayerState]:
        """Every layer of the backbone, in network order."""
        on = {x.name for x, opened in zip(self.adapted, self.open_gates(), strict=True) if opened}
        change = relative_change(self.universal, dict(self.task.tuned.items()))
        change = {name: value for name, value in change.items() if name in on}
        return layer_states(self.universal, on=on, scores=self._scores(), change=change)

    def gates(self) -> list[Gate]:
        """One per layer with a score."""
        scores = self._scores()
        return [
            Gate(
                name=layer.name,
                kind="delta",
                params=layer.params,
                # A delta replaces a weight: what it switches on costs nothing in compute.
                macs=0,
                value=scores[layer.name],
                on=opened,
            )
            for layer, opened in zip(self.adapted, self.open_gates(), strict=True)
            if self.gated
        ]

    def _scores(self) -> dict[str, float]:
        if not self.gated:
            return {}
        return dict(zip((x.name for x in self.adapted), self.task.scores.tolist(), strict=True))

    def kept(self) -> list[str]:
        """The layers that are or may be task-specific."""
        return [layer.name for layer in self.adapted]

    def keep(self, names: Sequence[str]) -> Taps:
        """A smaller student: only ``names`` are task-specific, and no score is left.

        The trained tensors are shared with this student, not copied.
        """
        own = {layer.name for layer in self.adapted}
        if missing := [n for n in names if n not in own]:
            raise BadInput(f"cannot keep {missing[0]!r}: this student has no delta there")
        smaller = Taps(
            self.universal,
            self.task.head.out_features,
            self.config,
            layers=tuple(names),
            gated=False,
        )
        smaller.task.norms, smaller.task.head = self.task.norms, self.task.head
        for layer in smaller.adapted:
            for name in layer.tensors:
                setattr(smaller.task.tuned, name.replace(".", "/"), self.task.tuned[name])
        return smaller.train(self.training)

    def merge(self) -> nn.Module:
        """The plain network with open deltas, norms and head folded in, in evaluation mode."""
        body = copy.deepcopy(self.universal.model)
        tensors = dict(self.task.norms.items())
        for layer, on in zip(self.adapted, self.open_gates(), strict=True):
            tensors |= {name: self.task.tuned[name] for name in layer.tensors if on}
        copy_into(body, tensors)
        return with_head(body, self.task.head).eval()


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Taps:
    """A TAPS student on ``backbone``.

    Raises:
        BadInput: λ below 0, a start below the threshold, or a backbone without adaptable layers.
    """
    config = config or Config()
    if not config.lam >= 0:
        raise BadInput(f"lam is {config.lam}, but a price cannot be negative; give --lam 0 or more")
    if config.initial_score < config.threshold:
        raise BadInput(
            f"initial_score {config.initial_score} lies below threshold {config.threshold}: every "
            f"layer would start closed with a delta of 0 and never learn; raise initial_score"
        )
    if not backbone.layers:
        raise BadInput(f"backbone {backbone.name!r} has no convolution or linear layer to adapt")
    return Taps(backbone, num_classes, config, seed=seed)


def rebuild(backbone: Backbone, num_classes: int, config: Config, *, kept: Sequence[str]) -> Taps:
    """The pruned student with task-specific layers ``kept``, ready for its saved tensors."""
    return Taps(backbone, num_classes, config, layers=kept, gated=False)
