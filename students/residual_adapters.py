"""Residual adapters: a small matrix beside or behind every convolution of a frozen network.

    parallel    y = norm_t( conv(x; w) + W_t x )
    series      y = norm_t( a + W_t · norm'_t(a) )        a = conv(x; w)

W_t is a 1x1 map, the norms are the task's own. Series adapters on a plain source network are the
papers' "off the shelf"; on a source network that was trained with adapters (``resnet26_series``)
the task takes its own copies of those. By default W_t starts at 0, so that step 0 equals the source
network bit for bit; ``--init he`` is the published start. Adapters fold into plain convolutions
(``merge``) and are found again in them (``unmerge``).

Sources: Rebuffi, Bilen, Vedaldi: Learning multiple visual domains with residual adapters, NIPS
2017; Efficient parametrization of multi-domain deep neural networks, CVPR 2018. Beyond the papers:
other networks than theirs, and ``--select``, which learns which layers get one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tailor.adapted import Adapted, Selection, check_selection
from tailor.backbone import Backbone, Layer
from tailor.errors import BadInput
from tailor.pointwise import Init, SeriesAdapter, map_shape
from tailor.residual import Own, Parallel, Series, check_kinds
from tailor.run import read_tensors
from tailor.sites import Placement, check_rank, sites

PAPER = "Residual adapters, Rebuffi et al., NIPS 2017 and CVPR 2018"
KIND = "student"
FOLDS = True  # merging adds adapter and weight, and rounds after the sum


@dataclass(frozen=True, kw_only=True)
class Config(Placement, Selection):
    """What residual adapters need beside the training settings."""

    adapters: Literal["parallel", "series"] = "parallel"
    """Beside the layer, or behind it with a norm of its own."""
    init: Init = "identity"
    """Start as the source network (identity), or from random adapters as published (he)."""
    dropout: Literal["none", "first", "second", "both"] = "none"
    """Drop channels before the adapters of each block's first layer (and the stem), of its later
    layers, or of both; the convolution itself never loses any."""
    dropout_share: float = 0.5
    """Share of the channels that is dropped."""
    rank: int | None = None
    """Adapters as products of two thin matrices of this rank, where that is smaller."""
    basis: str = ""
    """File of a basis that several tasks share (`tailor compress`): only factors are trained."""


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Adapted:
    """A student with residual adapters on ``backbone``.

    Raises:
        BadInput: no layer to adapt, a layer of a kind that no adapter folds into, a rank that makes
            no adapter smaller, or a basis of another backbone.
    """
    config = config or Config()
    check_selection(config)
    if not 0 <= config.dropout_share < 1:
        raise BadInput(f"dropout_share is {config.dropout_share}; give a share in [0, 1)")
    return _build(backbone, num_classes, config, layers(backbone, config), seed, gated=None)


def rebuild(
    backbone: Backbone, num_classes: int, config: Config, *, kept: Sequence[str]
) -> Adapted:
    """The pruned student with adapters at ``kept``, ready for its saved tensors."""
    left = [x for x in backbone.layers if x.name in set(kept)]
    return _build(backbone, num_classes, config, left, 0, gated=False)


def layers(backbone: Backbone, config: Config) -> tuple[Layer, ...]:
    """The layers that get an adapter.

    Raises:
        BadInput: see ``sites``; or a layer of a kind that no adapter folds into.
    """
    found = sites(backbone, config, _maps_of(backbone) if config.adapters == "series" else None)
    check_kinds(backbone, found)
    return found


def _maps_of(backbone: Backbone) -> list[Layer] | None:
    """The 1x1 maps of series adapters that the source network was trained with."""
    inside = {
        f"{name}.conv"
        for name, module in backbone.model.named_modules()
        if isinstance(module, SeriesAdapter)
    }
    return [x for x in backbone.layers if x.name in inside] or None


def _build(
    backbone: Backbone,
    num_classes: int,
    config: Config,
    chosen: Sequence[Layer],
    seed: int,
    *,
    gated: bool | None,
) -> Adapted:
    bases = _bases(backbone, config)
    chosen = [x for x in chosen if x.name in bases] if bases else chosen
    own = {x.name for x in (_maps_of(backbone) or [])} if config.adapters == "series" else set()
    _check_rank(backbone, config, [x for x in chosen if x.name not in own])
    firsts = {x.name for x in chosen if _drops(backbone, config, x)}
    generator = torch.Generator().manual_seed(seed)
    kind = Series if config.adapters == "series" else Parallel

    def make(layer: Layer) -> nn.Module:
        module = cast(Any, backbone.model.get_submodule(layer.name))
        if layer.name in own:
            return Own(module, init=config.init, generator=generator)
        basis = bases.get(layer.name)
        return kind(
            module,
            dropout=config.dropout_share if layer.name in firsts else 0.0,
            rank=None if basis is not None else _rank(module, config),
            basis=basis,
            init=config.init,
            generator=generator,
        )

    return Adapted(
        backbone,
        num_classes,
        config,
        method="residual_adapters",
        layers=chosen,
        make=make,
        seed=seed,
        gated=gated,
    )


def _drops(backbone: Backbone, config: Config, layer: Layer) -> bool:
    """Whether the adapter of this layer has dropout."""
    if config.dropout in ("none", "both"):
        return config.dropout == "both"
    everywhere = Placement(layers=config.layers)
    first = {x.name for x in sites(backbone, replace(everywhere, convs="first"))}
    return (layer.name in first) == (config.dropout == "first")


def _rank(module: Any, config: Config) -> int | None:
    """The rank of a layer's adapter; None where the whole matrix is no larger."""
    if config.rank is None or config.rank >= _largest_rank(module, config):
        return None
    return config.rank


def _largest_rank(module: Any, config: Config) -> int:
    """Above this rank two thin matrices say no more than the whole one."""
    grouped = getattr(module, "groups", 1) > 1
    return 0 if grouped else min(map_shape(module, config.adapters))


def _check_rank(backbone: Backbone, config: Config, chosen: Sequence[Layer]) -> None:
    if config.rank is None or not chosen:
        return
    sizes = {x.name: _largest_rank(backbone.model.get_submodule(x.name), config) for x in chosen}
    check_rank(config.rank, sizes, backbone.name)


def _bases(backbone: Backbone, config: Config) -> dict[str, Tensor]:
    """Layer -> (K, N) shared basis, from the file that the settings name."""
    if not config.basis:
        return {}
    if config.rank is not None:
        raise BadInput(f"rank {config.rank} and basis {config.basis} exclude each other; give one")
    if not Path(config.basis).is_file():
        raise BadInput(
            f"basis {config.basis} does not exist; name the basis.safetensors that `tailor "
            f"compress` wrote"
        )
    tensors, about = read_tensors(Path(config.basis))
    if "fingerprint" not in about:
        raise BadInput(
            f"basis {config.basis} holds no basis; name the basis.safetensors that `tailor "
            f"compress` wrote"
        )
    wanted = {"fingerprint": backbone.fingerprint(), "adapters": config.adapters}
    for name, value in wanted.items():
        if about.get(name) != value:
            raise BadInput(
                f"basis {config.basis} has {name} {str(about.get(name))[:8]!r}, this student "
                f"{value[:8]!r}; give the backbone and --adapters that it was made with"
            )
    return dict(tensors)


@torch.no_grad()
def unmerge(
    network: nn.Module, backbone: Backbone, num_classes: int, config: Config | None = None
) -> Adapted:
    """The student whose parallel adapters are folded into ``network``: what ``merge`` undoes.

    Args:
        network: from ``merge``, or its weights in the same architecture.
        backbone: that it was made from; its own tensors are not touched.
        num_classes, config: of the student.

    Returns:
        The student; its adapters are the differences of the kernels' centres, so they equal the
        merged ones up to rounding of the sum.

    Raises:
        BadInput: series adapters (their norm cannot be told from the map any more), or a network
            that differs from the backbone by more than such adapters.
    """
    config = config or Config()
    if config.adapters != "parallel" or config.rank or config.basis:
        raise BadInput("only whole parallel adapters can be told from a merged network")
    student = build(backbone, num_classes, replace(config, select=False))
    tensors = network.state_dict()
    own = dict(backbone.model.named_parameters())
    norms = dict(student.task.norms.items())
    adapted = {layer.tensors[0] for layer in student.adapted}
    for layer in student.adapted:
        name = layer.tensors[0]
        moved = tensors[name] - own[name]
        centre = moved
        if moved.ndim == 4:
            y, x = moved.shape[2] // 2, moved.shape[3] // 2
            centre = moved[:, :, y, x].clone()
            moved[:, :, y, x] = 0
            if moved.any():
                raise _other(name)
        adapter = cast(Parallel, student.task.adapters[layer.name])
        adapter.map.weight.copy_(centre.view_as(adapter.map.weight))
    for name, tensor in own.items():
        owner = name.rpartition(".")[0]
        if name not in adapted and owner not in norms and not torch.equal(tensors[name], tensor):
            raise _other(name)
    for name, norm in norms.items():
        norm.load_state_dict({n: tensors[f"{name}.{n}"] for n in norm.state_dict()})
    head = cast(nn.Linear, cast(Any, network).get_classifier())
    student.task.head.load_state_dict(head.state_dict())
    return student.eval()


def _other(name: str) -> BadInput:
    return BadInput(
        f"{name} differs from the backbone by more than a parallel adapter; give the backbone that "
        f"the network was merged from, and its --convs, --depths, --layers and --skip"
    )
