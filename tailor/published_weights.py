"""Published weights: which of our networks a file belongs to.

A file is recognised by the names and shapes of its tensors, nothing in it is run, and it is loaded
whole or not at all. Left out: what it computes (``weights_check.py``), and timm's networks, whose
files ``--backbone NAME --weights FILE`` reads.

The side networks saw images as ImageNet's are normalised (fcn4, on CIFAR), or from -1 to 1 (fcn5,
on Taskonomy's 256 px).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tailor import side
from tailor.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, families
from tailor.errors import BadInput
from tailor.run import write_tensors
from tailor.source_head import source_head
from tailor.weights import head_names, read_state, weights_file

_COUNTED = "num_batches_tracked"  # no number that a prediction depends on: many files leave it out
_HEADS = (*head_names("fc"), "linear.module")  # the second name of the first published side network
_HALF = (0.5, 0.5, 0.5)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file's tensors in the network that they belong to."""

    path: Path
    name: str  # of the network
    network: nn.Module  # (B, C, H, W) images to features or maps, in evaluation mode
    head: nn.Linear | None  # what the file classifies the features with
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tensors: int  # in the file

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one image, without the batch axis."""
        with torch.no_grad():
            return tuple(self.network(torch.zeros(1, *self.input_size)).shape[1:])


class NoNetwork(BadInput):
    """Tensors that fit none of our networks."""


def recognise(state: Mapping[str, Tensor], path: Path) -> str:
    """The name of the network whose tensors, apart from a head, are those of ``state``.

    Raises:
        NoNetwork: there is none; names the nearest and what it has otherwise.
    """
    given = _shapes(_without_head(state))
    nearest, most = "", 0
    for name, own in _candidates(given):
        if own == given:
            return name
        if (alike := len(own.items() & given.items())) > most:
            nearest, most = name, alike
    hint = f"{most} of {len(given)} tensors are those of {nearest}" if nearest else "none is alike"
    raise NoNetwork(
        f"weights {path} fit none of our networks ({hint}); `tailor list backbones` names them, "
        "and a timm network's file is read by --backbone NAME --weights FILE"
    )


def load(path: Path, px: int | None = None) -> Published:
    """Read a file into the network that it belongs to.

    Args:
        path: safetensors, a ``.pth`` of tensors, or the run of a finished teacher.
        px: side of the image; the network's own by default.

    Raises:
        BadInput: the file cannot be read, or (``NoNetwork``) is of none of our networks.
    """
    path = weights_file(path)
    state = read_state(path)
    name = recognise(state, path)
    if name not in _SIDES:
        backbone = Backbone.create(name, weights=path, px=px)
        network: nn.Module = backbone.model
        head, size = source_head(backbone), backbone.input_size
        mean, std = backbone.mean, backbone.std
    else:
        own, mean, std = _SIDES[name]
        network, size = _side(name, _shapes(state)), (3, px or own, px or own)
        network.load_state_dict(_without_head(state))
        head = _head(state)
    return Published(
        path=path,
        name=name,
        network=network.eval().requires_grad_(False),
        head=head,
        input_size=size,
        mean=mean,
        std=std,
        tensors=len(state),
    )


def described(one: Published) -> dict[str, Any]:
    """What a file holds: numbers in parameters, head and buffers; shapes of image and output."""
    head = 0 if one.head is None else sum(p.numel() for p in one.head.parameters())
    buffers = {n: b for n, b in one.network.named_buffers() if not n.endswith(_COUNTED)}
    return {
        "file": str(one.path),
        "network": one.name,
        "tensors": one.tensors,
        "params": sum(p.numel() for p in one.network.parameters()),
        "head": head,
        "buffers": sum(b.numel() for b in buffers.values()),
        "input": list(one.input_size),
        "output": list(one.output_shape),
        "classes": None if one.head is None else one.head.out_features,
    }


def write(known: Sequence[Published], out: Path) -> str:
    """Write files in our layout: one as it is, several as the parts of one network.

    The layout of one is its network's, a head under ``linear``. Several go into that network of
    ours whose children they are; what else it has (a blend's weight) is as at birth.

    Returns:
        The name of the network.

    Raises:
        BadInput: no network of ours has just these parts, or no room to write.
    """
    if out.suffix != ".safetensors":
        raise BadInput(f"--out {str(out)!r}: weights are written as .safetensors; name such a file")
    if len(known) == 1:
        head = {} if known[0].head is None else known[0].head.state_dict()
        tensors = known[0].network.state_dict() | {f"linear.{n}": t for n, t in head.items()}
        write_tensors(out, _numbers(tensors))
        return known[0].name
    for name, make in families().items():
        with torch.device("meta"):
            places = _places(make(3), known)
        if places is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                whole = make(3)
            for place, one in zip(places, known, strict=True):
                whole.get_submodule(place).load_state_dict(one.network.state_dict())
            write_tensors(out, _numbers(whole.state_dict()))
            return name
    names = " and ".join(one.name for one in known)
    raise BadInput(f"no network of ours has {names} as its parts; give files one at a time")


def _places(whole: nn.Module, known: Sequence[Published]) -> list[str] | None:
    """The child of ``whole`` that each file fills; None if one of them fills none."""
    children = {name: _shapes(child.state_dict()) for name, child in whole.named_children()}
    places = []
    for one in known:
        own = _shapes(one.network.state_dict())
        fitting = [name for name, shapes in children.items() if shapes == own]
        if not fitting:
            return None
        places.append(fitting[0])
        del children[fitting[0]]
    return places


_SIDES: dict[
    str, tuple[int, tuple[float, ...], tuple[float, ...]]
] = {  # side of an image, mean, std
    "fcn4": (32, IMAGENET_MEAN, IMAGENET_STD),
    "fcn5": (256, _HALF, _HALF),
}


def _side(name: str, shapes: Shapes) -> nn.Module:
    """A side network of as many outputs as the file's."""
    make = {"fcn4": side.fcn4, "fcn5": side.fcn5}[name]
    return make(shapes["conv5.0.weight"][0])


def _candidates(given: Shapes) -> Iterator[tuple[str, Shapes]]:
    """Our networks without head: their tensors' shapes; none is filled with numbers."""
    with torch.device("meta"):
        if len(given.get("conv5.0.weight", ())) == 4:
            for name in _SIDES:
                if given["conv5.0.weight"][0] % 2 == 0:
                    yield name, _shapes(_side(name, given).state_dict())
        for name, make in families().items():
            yield name, _shapes(make(3).state_dict())


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in _numbers(state).items()}


def _numbers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTED)}


def _without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    heads = tuple(f"{name}.{end}" for name in _HEADS for end in ("weight", "bias"))
    return {name: tensor for name, tensor in state.items() if name not in heads}


def _head(state: Mapping[str, Tensor]) -> nn.Linear | None:
    for name in _HEADS:
        if f"{name}.weight" in state:
            weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
            head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
            return head.requires_grad_(False)
    return None
