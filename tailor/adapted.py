"""Adapted: a student with one task-specific module at each of some layers of a frozen trunk.

The student runs a view of the trunk in which every chosen layer is a ``Place`` (layer and adapter)
and every norm the task's own copy; all else are the trunk's own modules and tensors. Any of these
adapters can be put behind TAPS's learned scores: λ then decides which layers get one.
What an adapter is follows from the method (``residual.py``, ``students/``); which layers, from
``sites.py``. Left out: methods that change block outputs.

Source of the scores: TAPS, Wallingford et al., CVPR 2022; of own norms: Bilen & Vedaldi, Universal
representations, 2017.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailor.adapters import NamedModules, copy_into, new_head, own_norms, with_head
from tailor.backbone import Backbone, Layer, norm_tensors
from tailor.behind import norms_behind
from tailor.errors import BadInput
from tailor.graft import grafted
from tailor.losses import Pricing, layer_prices, sparsity
from tailor.normed import can_join
from tailor.place import Adapter, Joining, NormBehind, Place
from tailor.prefix import Cut, Prefix, longest_prefix
from tailor.student import Gate, LayerState, Output, layer_states


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Learned selection of layers, for methods that put an adapter at each."""

    select: bool = False
    """Learn which layers get an adapter: scores with a price, then prune and retrain."""
    lam: float = 1.0
    """λ of --select: loss per unit of price; 0 keeps every adapter, larger keeps fewer."""
    price: Pricing = "params"
    """What an open adapter costs: its numbers, its layer's MACs (relative to the backbone's), 1/L,
    or 1/52."""
    threshold: float = 0.1
    """An adapter with a smaller score is switched off."""
    initial_score: float = 0.15
    """Every score at the start."""
    price_warmup: float = 2.0
    """Epochs before λ acts."""


class Adapted(nn.Module):
    """A frozen trunk with adapters, own norms and a head.

    Args:
        backbone: the frozen trunk, shared and never copied.
        num_classes: K of the task's head.
        config: of the method, a ``Selection``.
        method: file name in students/.
        layers: the layers that get an adapter.
        make: the new adapter of one of them.
        seed: of the head's initialisation.
        gated: whether scores decide; by default as ``config.select`` says.
        own: whether the task has norms of its own.
        role: of the adapters' parameters.

    Raises:
        BadInput: a layer that does not run as a module, so that no adapter could act on it.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        config: Selection,
        *,
        method: str,
        layers: Sequence[Layer],
        make: Callable[[Layer], nn.Module],
        seed: int = 0,
        gated: bool | None = None,
        own: bool = True,
        role: str = "adapters",
    ) -> None:
        super().__init__()
        self.universal, self.config, self.method, self.role = backbone, config, method, role
        self.adapted = tuple(layers)
        self.gated = (config.select if gated is None else gated) and bool(layers)
        self.task: Any = nn.Module()
        self.task.adapters = NamedModules({x.name: make(x) for x in self.adapted})
        self.task.norms = own_norms(backbone.model) if own else NamedModules({})
        self.task.head = new_head(backbone, num_classes, seed)
        if self.gated:
            start = torch.full((len(self.adapted),), float(config.initial_score))
            self.task.scores = nn.Parameter(start)
        self.register_buffer("prices", self._prices(), persistent=False)
        self._graft()
        self.trunk: Callable[[Tensor], Tensor] = self._features
        self._check_reached()

    def _graft(self) -> None:
        model = self.universal.model
        places = {
            name: Place(model.get_submodule(name), adapter)
            for name, adapter in self.task.adapters.items()
        }
        norms = dict(self.task.norms.items())
        joining = {
            layer: place
            for layer, place in places.items()
            if isinstance(place.adapter, Joining) and place.adapter.joins(place.layer)
        }
        behind = norms_behind(self.universal) if norms and joining else {}
        for layer, place in joining.items():
            norm = norms.get(behind.get(layer, ""))
            if can_join(norm):
                norms[behind[layer]] = NormBehind(cast(nn.BatchNorm2d, norm), place)
        view = grafted(model, norms | places)
        # In a tuple: registered, the trunk's tensors would be listed twice.
        self._view, self._places = (view,), tuple(places.values())
        self._cuts: tuple[Cut | None, ...] = ()

    def _check_reached(self) -> None:
        weight = next(self.universal.model.parameters())
        image = torch.zeros(1, *self.universal.input_size, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self._view[0].eval()(image)
        for layer, place in zip(self.adapted, self._places, strict=True):
            if not place.reached:
                raise BadInput(
                    f"layer {layer.name!r} of {self.universal.name} never runs by itself (another "
                    f"module uses its weight), so no adapter can act on it; leave it out with "
                    f"--skip {layer.name!r}"
                )

    def _prices(self) -> Tensor:
        """(A,) price of each adapter."""
        if self.config.price == "params":
            total = self.universal.num_params
            return torch.tensor(
                [_numbers(self.task.adapters[x.name]) / total for x in self.adapted]
            )
        if self.config.price == "layers":
            return torch.full((len(self.adapted),), 1 / max(len(self.adapted), 1))
        every = layer_prices(self.universal, self.config.price)
        prices = dict(zip((x.name for x in self.universal.layers), every, strict=True))
        return torch.tensor([float(prices[x.name]) for x in self.adapted])

    def open_gates(self) -> list[bool]:
        """For each adapter, whether its gate is open now."""
        if not self.gated:
            return [True] * len(self.adapted)
        opened: list[bool] = (self.task.scores.detach() >= self.config.threshold).tolist()
        return opened

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        self._set()
        return Output(self.task.head(self.trunk(images)))

    def prefix(self) -> Prefix | None:
        """The blocks before the first adapter, gated or not, and the first norm of the task's."""
        cut = self._cut()
        return None if cut is None else cut.prefix()

    def resume(self, given: Tensor, images: Tensor) -> Output:
        """What ``forward`` returns for ``images``, from the prefix's output on."""
        cut = self._cut()
        assert cut is not None, "resumed without a prefix"
        self._set()
        return Output(self.task.head(cut.rest(given, images)))

    def _cut(self) -> Cut | None:
        if not self._cuts:  # tried when it is asked for: it takes a few passes
            touched = [*(x.name for x in self.adapted), *(n for n, _ in self.task.norms.items())]
            view = self._view[0]
            self._cuts = (longest_prefix(self.universal, touched, network=view, trains=True),)
        return self._cuts[0]

    def _set(self) -> None:
        """Hand gates and mode to the view."""
        if self.gated:
            if self.training:  # as in students/taps.py: 0 is as closed as it gets
                self.task.scores.data.clamp_(min=0.0)
            for i, (place, on) in enumerate(zip(self._places, self.open_gates(), strict=True)):
                place.score, place.on = self.task.scores[i], on
        self._switch()

    def _switch(self) -> None:
        """Give the shared modules (dropout) and the view's own the mode of this student.

        Whoever uses the trunk sets its mode; norms that stay the trunk's must never train.
        """
        model, view = self.universal.model, self._view[0]
        if model.training != self.training:
            model.train(self.training)
        if view.training != self.training:
            view.train(self.training)
        if not len(self.task.norms._modules):
            for module in view.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                    module.train(_is_in(module, self.task))

    def _features(self, images: Tensor) -> Tensor:
        return cast(Tensor, self._view[0](images))

    def trained_in_order(self) -> list[nn.Parameter]:
        """Trained parameters in the order in which the network has them, the head last."""
        return [
            p
            for p in (*self._view[0].parameters(), *self.task.head.parameters())
            if p.requires_grad
        ]

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Every trained parameter once; the norm inside an adapter counts as a norm."""
        adapters: list[nn.Parameter] = []
        inner: list[nn.Parameter] = []
        for _, adapter in self.task.adapters.items():
            norms = set(norm_tensors(adapter)[0])
            for name, param in adapter.named_parameters():
                (inner if name in norms else adapters).append(param)
        found = {
            self.role: adapters,
            "norms": [*self.task.norms.parameters(), *inner],
            "head": list(self.task.head.parameters()),
        } | ({"scores": [self.task.scores]} if self.gated else {})
        return {role: params for role, params in found.items() if params}

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """None: an adapter decays to zero."""
        return {}

    def idle(self) -> list[nn.Parameter]:
        """Closed adapters: no gradient, hence no momentum may move them either."""
        opened = zip(self.adapted, self.open_gates(), strict=True)
        return [p for x, on in opened if not on for p in self.task.adapters[x.name].parameters()]

    def price(self, epoch: float) -> Tensor | None:
        """λ · Σ price · |score|, None during the warm-up, without scores, and where λ is 0."""
        if not self.gated or self.config.lam == 0 or epoch < self.config.price_warmup:
            return None
        return sparsity(self.task.scores, cast(Tensor, self.prices), self.config.lam)

    def _scores(self) -> dict[str, float]:
        if not self.gated:
            return {}
        return dict(zip((x.name for x in self.adapted), self.task.scores.tolist(), strict=True))

    @torch.no_grad()
    def layer_states(self) -> list[LayerState]:
        """Every layer of the backbone; how far an adapter moves its layer's folded weight."""
        change = {}
        for layer, on in zip(self.adapted, self.open_gates(), strict=True):
            if on:
                module = cast(Any, self.universal.model.get_submodule(layer.name))
                own = cast(Tensor, module.weight)
                moved = self._folded(layer)[0] - own
                change[layer.name] = float(moved.norm() / own.norm().clamp_min(1e-12))
        return layer_states(self.universal, on=change, scores=self._scores(), change=change)

    def gates(self) -> list[Gate]:
        """One per adapter with a score."""
        scores = self._scores()
        return [
            Gate(
                name=layer.name,
                kind="delta",
                params=_numbers(self.task.adapters[layer.name]),
                macs=0,  # it is folded into its layer
                value=scores[layer.name],
                on=opened,
            )
            for layer, opened in zip(self.adapted, self.open_gates(), strict=True)
            if self.gated
        ]

    def kept(self) -> list[str]:
        """The layers that have an adapter."""
        return [layer.name for layer in self.adapted]

    def keep(self, names: Sequence[str]) -> Adapted:
        """A smaller student: adapters at ``names`` only, and no score is left.

        The trained modules are shared with this student, not copied.
        """
        if missing := [n for n in names if n not in self.task.adapters]:
            raise BadInput(f"cannot keep {missing[0]!r}: this student has no adapter there")
        smaller = Adapted(
            self.universal,
            self.task.head.out_features,
            self.config,
            method=self.method,
            layers=[x for x in self.adapted if x.name in set(names)],
            make=lambda layer: self.task.adapters[layer.name],
            gated=False,
            own=False,
            role=self.role,
        )
        smaller.task.norms, smaller.task.head = self.task.norms, self.task.head
        smaller._graft()
        return smaller.train(self.training)

    def _folded(self, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer with its open adapter in it, for evaluation."""
        adapter = cast(Adapter, self.task.adapters[layer.name])
        module = self.universal.model.get_submodule(layer.name)
        return adapter.fold(module, adapter.opened(module))

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The plain network with open adapters, norms and head folded in, in evaluation mode.

        A bias that folding gives to a layer without one goes into the batch norm behind it, so that
        the network stays what its architecture says; where there is none, the layer gets a bias.
        """
        body = copy.deepcopy(self.universal.model)
        for name, norm in self.task.norms.items():
            copy_into(body.get_submodule(name), norm.state_dict())
        behind: dict[str, str] | None = None
        for layer, on in zip(self.adapted, self.open_gates(), strict=True):
            if not on:
                continue
            weight, bias = self._folded(layer)
            module = cast(Any, body.get_submodule(layer.name))
            module.weight.copy_(weight)
            if bias is None or module.bias is not None:
                if bias is not None:
                    module.bias.copy_(bias)
                continue
            behind = norms_behind(self.universal) if behind is None else behind
            if layer.name in behind:
                norm = cast(Any, body.get_submodule(behind[layer.name]))
                norm.running_mean.sub_(bias)
            else:
                module.bias = nn.Parameter(bias.clone(), requires_grad=False)
        return with_head(body, self.task.head).eval()


def check_selection(config: Selection) -> None:
    """Refuse settings of ``--select`` that cannot select.

    Raises:
        BadInput: λ below 0, or a start below the threshold.
    """
    for field in dataclasses.fields(Selection):
        value = getattr(config, field.name)
        if not config.select and value != field.default:
            raise BadInput(
                f"{field.name} is {value}, but it belongs to learned selection; give --select with "
                f"it, or leave it out"
            )
    if not config.lam >= 0:
        raise BadInput(f"lam is {config.lam}, but a price cannot be negative; give --lam 0 or more")
    if config.initial_score < config.threshold:
        raise BadInput(
            f"initial_score {config.initial_score} lies below threshold {config.threshold}: every "
            f"adapter would start closed and never learn; raise initial_score"
        )


def _numbers(adapter: nn.Module) -> int:
    """What an adapter costs, in numbers of 32 bits: its parameters, unless it knows better."""
    counted = getattr(adapter, "numbers", None)
    return sum(p.numel() for p in adapter.parameters()) if counted is None else int(counted())


def _is_in(module: nn.Module, owner: nn.Module) -> bool:
    return any(m is module for m in owner.modules())
