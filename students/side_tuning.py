"""Side-tuning: a small network beside a frozen one, and what the two say is fused.

    y = head( norm( fuse( base(x), side(x) ) ) )

The base never changes, so what it said on earlier tasks it says for ever; the side, the fusion and
the head are the task's own. ``norm`` puts the features into eight groups of zero mean and unit
variance, without numbers of its own. Tasks of a sequence are independent, or ``dense``: then the
frozen sides of all earlier tasks join the fusion, and still no earlier task changes by a bit.

With ``--select`` the side as a whole and each of its stages are behind scores with a price, as
TAPS's layers: a stage that is off is a shortcut without parameters (``tailor/stages.py``), a side
that is off leaves a linear probe, which costs nothing. The price of the side as a whole is all that
goes with it.

Source: Zhang, Sax, Zamir, Guibas, Malik: Side-tuning: a baseline for network adaptation via
additive side networks, ECCV 2020, https://arxiv.org/abs/1912.13503, and its code,
https://github.com/jozhang97/side-tuning. Beyond the paper: any backbone, narrow sides, selection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.adapted import Selection, check_selection
from tailor.adapters import new_head
from tailor.backbone import Backbone, norm_tensors
from tailor.cost import total_macs
from tailor.errors import BadInput
from tailor.frozen import frozen_pass, part_of
from tailor.fusion import Curriculum, Fusing, new_fusion
from tailor.losses import Pricing, sparsity
from tailor.narrow import Init
from tailor.prefix import FEATURES, Prefix
from tailor.side import side_path
from tailor.stages import Stage, stages_of, straight_through, switched, without
from tailor.student import Gate, LayerState, Output, layer_states

PAPER = "Side-tuning, Zhang et al., ECCV 2020"
KIND = "student"
PLAIN = False  # merging gives two networks side by side, not one of the backbone's type
GROUPS = 8  # of the norm before the head
SIDE = "side"  # the gate of the whole; a stage's is side.STAGE


@dataclass(frozen=True, kw_only=True)
class Config(Selection):
    """What side-tuning needs beside the training settings."""

    side: str = "fcn4"
    """The side network: fcn4 (four convolutions), fcn5 (five, for large images), narrow (the
    backbone's architecture at a fraction of its width), or timm:NAME."""
    width: float = 0.25
    """Of --side narrow: 1, 0.5, 0.25 or another 1/k of the backbone's channels."""
    fusion: Fusing = "alpha"
    """How base and side become one: blend by one learned number (alpha), by a given share, by one
    that falls over time (curriculum), or through maps."""
    share: float = 0.5
    """The base's share in --fusion alpha_fixed."""
    end_share: float = 0.0
    """Where the base's share in --fusion alpha_curriculum ends; it starts at 1."""
    curriculum_epochs: float = 10.0
    """Epochs until then."""
    dense: bool = False
    """In a sequence, the frozen side networks of earlier tasks join the fusion."""
    norm: bool = True
    """Normalise eight groups of features before the head."""
    project: bool = True
    """Map a side of another width than the base's to that width, by one linear layer, and a map of
    other sides to those of the base's, bilinearly."""
    side_init: Init = "random"
    """Start a side of the backbone's own architecture from its weights (copy)."""
    side_weights: str = ""
    """Start the side from this file, or from a run of `tailor distill`."""
    select: bool = False
    """Learn whether the task needs the side, and which of its stages: scores with a price, then
    prune and retrain."""
    lam: float = 1.0
    """λ of --select: loss per unit of price; 0 keeps the whole side, larger keeps less."""
    price: Pricing = "params"
    """What the side and a stage cost while they are on: numbers or MACs, relative to the
    backbone's, or the same for each (1 / their number, or 1/52)."""
    threshold: float = 0.1
    """A side or stage with a smaller score is switched off."""


class SideTuned(nn.Module):
    """A frozen base with a side network, a fusion and a head.

    Args:
        backbone: the base, shared and never copied.
        num_classes: K of the task's head.
        config: of fusion, norm and selection.
        side: images to what is fused with the base's output; None leaves a linear probe.
        stages: those parts of ``side`` that can be switched off.
        earlier: side networks of earlier tasks for a dense fusion; frozen, and no part of the task.
        seed: of the start of fusion and head.
        gated: whether scores decide.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        config: Config,
        *,
        side: nn.Sequential | None,
        stages: Sequence[Stage] = (),
        earlier: Sequence[nn.Module] = (),
        seed: int = 0,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.universal, self.config, self.method = backbone, config, "side_tuning"
        self.num_classes, self.stages = num_classes, tuple(stages)
        self._earlier = tuple(earlier)  # in a tuple: registered, they would be this task's
        self.task: Any = nn.Module()
        if side is not None:
            self.task.side, project = side
            if not isinstance(project, nn.Identity):
                self.task.project = project
            self.task.fusion = new_fusion(
                config.fusion,
                backbone.feature_shape,
                earlier=len(earlier) if config.dense else None,
                share=config.share,
                end_share=config.end_share,
                epochs=config.curriculum_epochs,
                seed=seed,
            )
        self.task.head = new_head(backbone, num_classes, seed)
        self.gated = gated and side is not None
        self._watch()
        if self.gated:
            start = float(config.initial_score)
            self.task.scores = nn.Parameter(torch.full((1 + len(self.stages),), start))
            self.register_buffer("prices", self._prices(), persistent=False)

    def _watch(self) -> None:
        """The view of the side that is run: its stages behind switches while scores decide."""
        self._view: tuple[nn.Module, ...] = ()
        self._switches: tuple[Any, ...] = ()
        if self.has_side:
            view, switches = switched(self.task.side, self.stages if self.gated else ())
            self._view, self._switches = (view,), tuple(switches.values())

    @property
    def has_side(self) -> bool:
        """Whether there is a side network; without one this is a linear probe."""
        return hasattr(self.task, "side")

    @property
    def reads_base(self) -> bool:
        """Whether the base's output is of any use."""
        return not (self.has_side and self.config.fusion == "side_only")

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        return self.resume(self._base(images) if self.reads_base else images, images)

    def _base(self, images: Tensor) -> Tensor:
        return frozen_pass(self.universal, images, part=part_of(self.universal))

    def prefix(self) -> Prefix | None:
        """The whole backbone; None for a side that stands alone."""
        return Prefix(FEATURES, self._base, exact=False) if self.reads_base else None

    def resume(self, given: Tensor, images: Tensor) -> Output:
        """Logits from the base's output and the images, which the side sees.

        Args:
            given: (B, D) features, or (B, C, h, w) maps.
            images: (B, C, H, W).
        """
        features = given
        if self.has_side:
            opened = self._set_gates()
            learns = self.gated and torch.is_grad_enabled()
            if learns or opened[0]:
                with torch.set_grad_enabled(torch.is_grad_enabled() and opened[0]):
                    features = self._fused(given, images)
            if learns:
                score = self.task.scores[0]
                features = straight_through(score, features, given, on=opened[0])
        if self.config.norm:
            features = F.group_norm(features, GROUPS)
        return Output(self.task.head(features))

    def _fused(self, given: Tensor, images: Tensor) -> Tensor:
        view = self._view[0]
        if view.training != self.training:
            view.train(self.training)
        side = view(images)
        if hasattr(self.task, "project"):
            side = self.task.project(side)
        with torch.no_grad():
            earlier = [network.eval()(images) for network in self._earlier]
        fused: Tensor = self.task.fusion(given, side, earlier)
        return fused

    def side_path(self) -> nn.Sequential:
        """Side network and projection, as a later task's dense fusion reads them."""
        return nn.Sequential(self.task.side, getattr(self.task, "project", nn.Identity()))

    def at(self, epoch: float) -> None:
        """Move the curriculum on to a moment in epochs."""
        if self.has_side and isinstance(self.task.fusion, Curriculum):
            self.task.fusion.at(epoch)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SideTuned:
        """Earlier sides go where this student goes."""
        for network in self._earlier:
            network._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    # Gates ------------------------------------------------------------------------------------

    def open_gates(self) -> list[bool]:
        """Of the side, then of each stage, whether it is on; a stage is off where the side is."""
        if not self.gated:
            return [self.has_side] * (1 + len(self.stages))
        side, *stages = (self.task.scores.detach() >= self.config.threshold).tolist()
        return [side, *(side and on for on in stages)]

    def _set_gates(self) -> list[bool]:
        """Tell every switch its score and state; returns ``open_gates``."""
        if self.gated and self.training:  # as in taps.py: 0 is as closed as it gets
            self.task.scores.data.clamp_(min=0.0)
        opened = self.open_gates()
        if self.gated:
            own = (self.task.scores.detach() >= self.config.threshold).tolist()[1:]
            for switch, score, on in zip(self._switches, self.task.scores[1:], own, strict=True):
                switch.score, switch.on = score, on
        return opened

    def _whole(self) -> tuple[int, int]:
        """Parameters and MACs of everything that goes when the side goes."""
        parts = [m for n, m in self.task.named_children() if n != "head"]
        params = sum(p.numel() for part in parts for p in part.parameters())
        path = self.side_path()
        was = path.training
        macs = total_macs(path, self.universal.input_size)
        path.train(was)
        return params, macs

    def _prices(self) -> Tensor:
        """(1 + S,) price of the side as a whole and of each stage."""
        count, kind = 1 + len(self.stages), self.config.price
        if kind in ("layers", "paper"):
            return torch.full((count,), 1 / count if kind == "layers" else 1 / 52)
        params, macs = self._whole()
        if kind == "params":
            numbers, total = [params, *(s.params for s in self.stages)], self.universal.num_params
        else:
            size = self.universal.input_size
            numbers = [macs, *(s.macs for s in self.stages)]
            total = total_macs(self.universal.model, size)
        return torch.tensor(numbers) / total

    def price(self, epoch: float) -> Tensor | None:
        """λ · Σ price · |score|, None during the warm-up, without scores, and where λ is 0."""
        if not self.gated or self.config.lam == 0 or epoch < self.config.price_warmup:
            return None
        return sparsity(self.task.scores, self.prices, self.config.lam)

    def gates(self) -> list[Gate]:
        """The side, of which is counted what belongs to no stage, and each stage."""
        if not self.gated:
            return []
        params, macs = self._whole()
        rest = params - sum(s.params for s in self.stages), macs - sum(s.macs for s in self.stages)
        costs = [rest, *((s.params, s.macs) for s in self.stages)]
        values, opened = self.task.scores.tolist(), self.open_gates()
        return [
            Gate(name=name, kind="side", params=cost[0], macs=cost[1], value=value, on=on)
            for name, cost, value, on in zip(self._names(), costs, values, opened, strict=True)
        ]

    def _names(self) -> list[str]:
        return [SIDE, *(f"{SIDE}.{s.name}" for s in self.stages)]

    def kept(self) -> list[str]:
        """The side and its stages, as far as they are there."""
        return self._names() if self.has_side else []

    def keep(self, names: Sequence[str]) -> SideTuned:
        """A smaller student: these stages of the side, or no side at all; no score is left.

        The trained modules are shared with this student, not copied.

        Raises:
            BadInput: it has no such stage.
        """
        known = self.kept()
        if missing := [n for n in names if n not in known]:
            raise BadInput(
                f"cannot keep {missing[0]!r}: this student has {', '.join(known) or 'no side'}"
            )
        side, left = None, [s for s in self.stages if f"{SIDE}.{s.name}" in names]
        if names:
            path = self.side_path()
            gone = [s for s in self.stages if s not in left]
            side = nn.Sequential(without(path[0], gone), path[1])
        smaller = SideTuned(
            self.universal,
            self.num_classes,
            self.config,
            side=side,
            stages=left,
            earlier=self._earlier,
        )
        if side is not None:
            smaller.task.fusion = self.task.fusion
        smaller.task.head = self.task.head
        return smaller.train(self.training)

    # What every student says of itself --------------------------------------------------------

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """The side and its projection as adapters, norms apart; what fuses, which never decays."""
        found: dict[str, list[nn.Parameter]] = {"adapters": [], "fusion": [], "norms": []}
        for name, part in self.task.named_children():
            norms = set(norm_tensors(part)[0])
            role = {"fusion": "fusion", "head": "head"}.get(name, "adapters")
            for own, param in part.named_parameters():
                is_norm = own in norms and role != "head"
                found.setdefault("norms" if is_norm else role, []).append(param)
        if self.gated:
            found["scores"] = [self.task.scores]
        return {role: params for role, params in found.items() if params}

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """None: everything decays to zero."""
        return {}

    def idle(self) -> list[nn.Parameter]:
        """What closed stages, or a closed side, would train."""
        if not self.gated:
            return []
        side, *stages = self.open_gates()
        if not side:
            parts = [m for n, m in self.task.named_children() if n != "head"]
        else:
            closed = [s for s, on in zip(self.stages, stages, strict=True) if not on]
            parts = [self.task.side.get_submodule(s.name) for s in closed]
        return [p for part in parts for p in part.parameters()]

    def layer_states(self) -> list[LayerState]:
        """Every layer of the backbone is universal."""
        return layer_states(self.universal)

    def merge(self) -> nn.Module:
        """Base, open stages, fusion and head as one module, images to logits, in evaluation
        mode."""
        student = self.keep(
            [n for n, on in zip(self._names(), self.open_gates(), strict=True) if on]
        )
        return Merged(student).eval().requires_grad_(False)


class Merged(nn.Module):
    """The networks of a student side by side, copied: (B, C, H, W) images to logits.

    Args:
        student: without scores.
    """

    def __init__(self, student: SideTuned) -> None:
        super().__init__()
        task, self.norm = copy.deepcopy(student.task), student.config.norm
        self.base = copy.deepcopy(student.universal.model) if student.reads_base else None
        self.part = part_of(student.universal)
        self.side = (
            nn.Sequential(task.side, getattr(task, "project", nn.Identity()))
            if (student.has_side)
            else None
        )
        self.earlier = nn.ModuleList(copy.deepcopy(list(student._earlier)))
        self.fusion = getattr(task, "fusion", None)
        self.head = task.head

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = images
        if self.base is not None:  # as the student does, to the bit
            features = frozen_pass(self.base, images, part=self.part)
        if self.side is not None:
            earlier = [network(images) for network in self.earlier]
            features = self.fusion(features, self.side(images), earlier)
        if self.norm:
            features = F.group_norm(features, GROUPS)
        logits: Tensor = self.head(features)
        return logits


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> SideTuned:
    """A side network beside ``backbone``; of a sequence, the student of the first task.

    Raises:
        BadInput: features that do not fall into eight groups, a side network that cannot run, base
            and side of different shapes for a fusion that needs equal ones, or weights of another
            side network.
    """
    return _build(backbone, num_classes, config or Config(), (), seed)


def sequel(
    before: Sequence[SideTuned],
    backbone: Backbone,
    num_classes: int,
    config: Config | None = None,
    *,
    seed: int = 0,
) -> SideTuned:
    """The student of the next task of a sequence: independent, or with all earlier sides.

    Args:
        before: the students of all earlier tasks, in order. They do not change.
        backbone, num_classes, config, seed: as in ``build``.

    Raises:
        BadInput: see ``build``.
    """
    config = config or Config()
    earlier = [student.side_path() for student in before] if config.dense else []
    return _build(backbone, num_classes, config, earlier, seed)


def rebuild(
    backbone: Backbone, num_classes: int, config: Config, *, kept: Sequence[str]
) -> SideTuned:
    """The pruned student with these parts, ready for its saved tensors."""
    started = replace(config, side_weights="", side_init="random")
    smaller = _build(backbone, num_classes, started, (), 0).keep(kept)
    smaller.config = config
    return smaller


def _build(
    backbone: Backbone,
    num_classes: int,
    config: Config,
    earlier: Sequence[nn.Module],
    seed: int,
) -> SideTuned:
    check_selection(config)
    _check(backbone, config)
    side = None
    if config.fusion != "base_only":
        side = side_path(
            config.side,
            backbone,
            width=config.width,
            init=config.side_init,
            weights=config.side_weights,
            project=config.project,
            seed=seed,
        )
    stages = () if side is None else stages_of(side[0], backbone.input_size)
    return SideTuned(
        backbone,
        num_classes,
        config,
        side=side,
        stages=stages,
        earlier=earlier,
        seed=seed,
        gated=config.select,
    )


_BELONGS = {  # a setting that only one choice reads: (the choice's field, the choice)
    "share": ("fusion", "alpha_fixed"),
    "end_share": ("fusion", "alpha_curriculum"),
    "curriculum_epochs": ("fusion", "alpha_curriculum"),
    "width": ("side", "narrow"),
}


def _check(backbone: Backbone, config: Config) -> None:
    for name, (field, choice) in _BELONGS.items():
        value, chosen = getattr(config, name), getattr(config, field)
        if value != getattr(Config, name) and chosen != choice:
            raise BadInput(
                f"{name} is {value:g}, but only --{field} {choice} reads it, and {field} is "
                f"{chosen!r}; leave --{name.replace('_', '-')} out"
            )
    width = backbone.feature_shape[0]
    alone = len(backbone.feature_shape) == 1 and width == GROUPS  # one number a group: always 0
    if config.norm and (width % GROUPS or alone):
        raise BadInput(
            f"norm puts features into {GROUPS} groups, and backbone {backbone.name!r} has {width}, "
            f"which do not make {GROUPS} groups of two or more; give --no-norm"
        )
    if config.fusion == "base_only" and (config.dense or config.select):
        what = "dense" if config.dense else "select"
        raise BadInput(
            f"fusion base_only has no side network, so --{what} has nothing to act on; leave it out"
        )
    if config.dense and config.select:
        raise BadInput(
            "dense and select exclude each other: a later task may read a side that this one "
            "dropped; leave one of them out"
        )
    if config.fusion == "side_only" and config.select:
        raise BadInput(
            "fusion side_only cannot go without its side; leave --select out, or give another "
            "--fusion"
        )
