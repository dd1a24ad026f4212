"""Parameter superposition with binary keys: one set of weights that holds a network per task.

    w_t = w · o_t     o_t in {-1, +1}^(inputs of the layer), the same for all of its outputs

Each task reads the shared weights w through its own signs. What other tasks wrote is, through
them, noise that largely cancels, as random signs are nearly orthogonal. Every convolution wider
than 1x1 but the first has a key (every layer but the first where a block has no wider one that
mixes channels); shortcuts, biases and position embeddings are shared as they are. A task has norms
of its own, because its activations have statistics of their own.

A key is a function of (seed, layer, task) and need not be stored; it is counted as memory all the
same, as published. The first task's is all ones: it starts from the pre-trained network, and all
keys times one of them is the same model. Later tasks start from scrambled weights;
``--superpose changes`` reads only what training changed through the keys, w_t = w_0 + (w - w_0) ·
o_t with the frozen trunk's w_0, so that every task starts from the pre-trained network.

Sources: Cheung et al., Superposition of many models into one, NeurIPS 2019,
https://arxiv.org/abs/1902.05522 (section 2.2, binary keys); ``published``, Zhang et al.,
Side-tuning, ECCV 2020. Beyond both: ``--superpose changes``. Left out: complex and rotational keys.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from students.finetune import Finetune
from tailor.adapters import NamedTensors, copy_into, own_norms, with_head
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.graft import grafted
from tailor.sites import Placement, sites
from tailor.student import LayerState, Output, layer_states, relative_change

PAPER = "Superposition of many models into one, Cheung et al., NeurIPS 2019"
KIND = "student"

PUBLISHED_PERIOD = 10


@dataclass(frozen=True, kw_only=True)
class Config:
    """What superposition needs beside the training settings."""

    period: int | None = None
    """Number of different keys; task t has the one of t modulo that. By default each its own."""
    norms: Literal["own", "shared", "batch"] = "own"
    """Normalisation layers: each task's own, one for all tasks, or one for all without running
    statistics, so that an output depends on what else is in the batch (as published)."""
    superpose: Literal["weights", "changes"] = "weights"
    """What keys multiply: the weights, as in the paper, or only their difference from the trunk."""
    published: bool = False
    """The published program: norms without running statistics, random keys from the first task on,
    period 10, and a side network's key (of a backbone such as gsn44) that never switches."""


class Superposition(Finetune):
    """A trained network that a task reads through its key.

    Args:
        backbone: the trunk, left alone.
        body: the shared weights.
        num_classes: K of the head.
        config: of the keys.
        keys: layer -> (1, ...) signs, int8; kept as ``memory``.
        seed: of the head's initialisation.
    """

    def __init__(
        self,
        backbone: Backbone,
        body: nn.Module,
        num_classes: int,
        config: Config,
        keys: NamedTensors,
        *,
        key_seed: int,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, body, num_classes, seed=seed, method="superposition")
        self.config, self.key_seed = config, key_seed
        self.memory = keys

    def _read(self) -> dict[str, Tensor]:
        """Weight name -> the weight as this task reads it."""
        shared = dict(self.task.body.named_parameters())
        trunk = dict(self.universal.model.named_parameters())
        found = {}
        for layer, key in self.memory.items():
            name = f"{layer}.weight"
            weight, signs = shared[name], key.to(shared[name].dtype)
            if self.config.superpose == "changes":
                found[name] = trunk[name] + (weight - trunk[name]) * signs
            else:
                found[name] = weight * signs
        return found

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        features = functional_call(self.task.body, self._read(), (images,))
        return Output(self.task.head(features))

    @torch.no_grad()
    def layer_states(self) -> list[LayerState]:
        """Every layer is the task's own, as it reads it."""
        tuned = dict(self.task.body.named_parameters()) | self._read()
        change = relative_change(self.universal, tuned)
        return layer_states(self.universal, on=change, change=change)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The plain network of this task's weights, in evaluation mode."""
        body = copy.deepcopy(self.task.body)
        copy_into(body, self._read())
        return with_head(body, self.task.head).eval()


def superposed(backbone: Backbone) -> list[str]:
    """Names of the layers that have a key, in network order."""
    first = backbone.layers[0].name
    return [x.name for x in sites(backbone, Placement()) if x.name != first]


def keys_of(backbone: Backbone, config: Config, seed: int, task: int) -> NamedTensors:
    """The keys of a task: of each layer (1, inputs of a group, kernel...) signs, int8.

    Args:
        backbone: whose layers they are for.
        config: period and ``published``.
        seed: of all keys.
        task: its number in the sequence, from 0.
    """
    period = _period(config)
    number = task if period is None else task % period
    own = dict(backbone.model.named_parameters())
    keys = {}
    for name in superposed(backbone):
        index = number
        if config.published and name.startswith("side."):
            index = PUBLISHED_PERIOD - 1 if period is None else period - 1
        shape = (1, *own[f"{name}.weight"].shape[1:])
        keys[name] = _signs(shape, (seed, *name.encode()), index, plain=not config.published)
    return NamedTensors({}, keys)


def _signs(shape: tuple[int, ...], entropy: tuple[int, ...], number: int, *, plain: bool) -> Tensor:
    """Signs, a function of ``entropy`` and ``number``; with ``plain`` number 0 is all ones."""
    if plain and number == 0:
        return torch.ones(shape, dtype=torch.int8)
    random = np.random.default_rng((*entropy, number))
    return torch.from_numpy(random.integers(0, 2, shape, dtype=np.int8) * 2 - 1)


def _period(config: Config) -> int | None:
    if config.published and config.period is None:
        return PUBLISHED_PERIOD
    return config.period


def _norms(config: Config) -> str:
    return "batch" if config.published else config.norms


def _without_statistics(body: nn.Module) -> nn.Module:
    for module in body.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return body


@torch.no_grad()
def _check_one_image(body: nn.Module, backbone: Backbone) -> None:
    """Refuse norms that have one number per channel to take a deviation of."""
    was = body.training
    try:
        body.eval()(torch.zeros(1, *backbone.input_size))
    except ValueError as error:
        raise BadInput(
            f"norms without running statistics need maps of more than one pixel, and a map of "
            f"backbone {backbone.name!r} at {backbone.input_size[-1]} px has one; give a larger "
            f"--px, or --norms own without --published"
        ) from error
    body.train(was)


def _check(config: Config) -> None:
    if config.period is not None and config.period < 1:
        raise BadInput(f"period is {config.period}; give --period 1 or more, or leave it out")


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Superposition:
    """The first task's student: a trained copy of the backbone's network, under the first key.

    Raises:
        BadInput: a period below 1, a backbone without a layer behind its first, or one whose maps
            are too small for norms of a batch.
    """
    config = config or Config()
    _check(config)
    body = copy.deepcopy(backbone.model)
    if _norms(config) == "batch":
        _check_one_image(_without_statistics(body), backbone)
    keys = keys_of(backbone, config, seed, 0)
    return Superposition(backbone, body, num_classes, config, keys, key_seed=seed, seed=seed)


def sequel(
    before: Sequence[Any],
    backbone: Backbone,
    num_classes: int,
    config: Config | None = None,
    *,
    seed: int = 0,
) -> Superposition:
    """The next task's student: the same weights under another key, and a new head."""
    config = config or Config()
    _check(config)
    first = cast(Superposition, before[0])
    body: nn.Module = first.task.body
    if _norms(config) == "own":
        body = grafted(body, dict(own_norms(backbone.model).items()))
    number, period = len(before), _period(config)
    if period is not None and number >= period:
        keys = before[number - period].memory
    else:
        keys = keys_of(backbone, config, first.key_seed, number)
    return Superposition(
        backbone, body, num_classes, config, keys, key_seed=first.key_seed, seed=seed
    )
