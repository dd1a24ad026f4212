"""Side networks: small trained networks that see the image beside a frozen backbone.

    fcn4    four convolutions for small images; 25,904 numbers for 64 features
    fcn5    five and a skip for 256 px; 921,376 numbers for 8 channels
    narrow  the backbone's own architecture at a fraction of its width (``narrow.py``)
    timm:NAME  any timm network without its head

The two FCNs are the published side networks under the published names, so that the distilled files
of that program load. Their width is free: it is that of the backbone. Left out: the published
8-layer network, which has more numbers than twelve of these together.

Source: Zhang, Sax, Zamir, Guibas, Malik: Side-tuning, ECCV 2020,
https://arxiv.org/abs/1912.13503; code https://github.com/jozhang97/side-tuning.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.backbone import Backbone
from tailor.errors import BadInput, first_line
from tailor.fusion import pointwise
from tailor.narrow import Init, narrow
from tailor.weights import read_state

SIDE_FILE = "side.safetensors"  # what `tailor distill` leaves
HEAD = "linear."  # in such a file: the head that a side network was distilled with, no part of it
PROJECT = "project."  # in such a file: the map to the base's width


class Fcn4(nn.Module):
    """Four 3x3 convolutions, two of them with stride 2; at 32 px the sides are 32, 15, 7 and 5.

    Args:
        out: D, or channels of the map.
        in_chans: channels of the image.
        pooled: average what is left to (B, D); otherwise return the map (B, D, h, w).
    """

    stage_names = ("conv1", "conv2", "conv3", "conv5")  # the published names; there is no conv4

    def __init__(self, out: int = 64, in_chans: int = 3, *, pooled: bool = True) -> None:
        super().__init__()
        self.pooled = pooled
        self.conv1 = _layer(in_chans, 16, 3, padding=1)
        self.conv2 = _layer(16, 16, 3, stride=2)
        self.conv3 = _layer(16, 32, 3, stride=2)
        self.conv5 = nn.Sequential(nn.Conv2d(32, out, 3, bias=False), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D), or to (B, D, h, w)."""
        x = self.conv5(self.conv3(self.conv2(self.conv1(images))))
        return _pooled(x) if self.pooled else x


class Fcn5(nn.Module):
    """Five convolutions and a skip around the last three: sides H/4, H/8, then H/16.

    Args:
        out: D, or channels of the map; even.
        in_chans: channels of the image.
        pooled: average over the map to (B, D); otherwise return it, (B, D, H/16, W/16).
    """

    stage_names = ("conv1", "conv2", "conv3", "conv4", "conv5", "skip")

    def __init__(self, out: int = 8, in_chans: int = 3, *, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        self.conv1 = _layer(in_chans, 64, 8, stride=4, padding=2)
        self.conv2 = _layer(64, 256, 3, stride=2, padding=1)
        self.conv3 = _layer(256, 256, 3, stride=2, padding=1)
        self.conv4 = _layer(256, 64, 3, padding=1)
        self.conv5 = _layer(64, out, 3, padding=1)
        self.skip = _layer(256, out, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H/16, W/16), or to (B, D)."""
        x = self.conv2(self.conv1(images))
        x = self.conv5(self.conv4(self.conv3(x))) + self.skip(x)
        return _pooled(x) if self.pooled else x


fcn4, fcn5 = Fcn4, Fcn5  # as functions: (out, in_chans, pooled=...) to a network


def _layer(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0):  # type: ignore[no-untyped-def]
    """Convolution, norm of two groups, ReLU."""
    if outputs % 2:
        raise BadInput(
            f"a side network of {outputs} channels has no norm of two groups; it is for an even "
            f"number: give --side fcn4"
        )
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(2, outputs), nn.ReLU())


def _pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def side_network(
    name: str, backbone: Backbone, *, width: float = 0.25, init: Init = "random", seed: int = 0
) -> nn.Module:
    """The side network of that name for ``backbone``: its image, and its width where that is free.

    Args:
        name: ``fcn4``, ``fcn5``, ``narrow`` or ``timm:NAME``.
        backbone: whose images it sees.
        width: of ``narrow``.
        init: ``random``, or ``copy`` for one of the backbone's own architecture.
        seed: of the random start.

    Raises:
        BadInput: an unknown name, a copy of another architecture, or a network that cannot run on
            such images.
    """
    if name == "narrow":
        return narrow(backbone, width, init=init, seed=seed)
    channels = backbone.input_size[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in ("fcn4", "fcn5"):
            if init == "copy":
                raise BadInput(
                    f"side_init 'copy' needs a side of the backbone's architecture, and side is "
                    f"{name!r}; give --side narrow, or --side-init random"
                )
            kind = Fcn4 if name == "fcn4" else Fcn5
            side: nn.Module = kind(backbone.num_features, channels, pooled=not backbone.dense)
        elif name.startswith("timm:"):
            side = _of_timm(name.removeprefix("timm:"), backbone, init, seed)
        else:
            raise BadInput(
                f"side {name!r} is no side network; give --side fcn4, fcn5, narrow or timm:NAME"
            )
    output_shape(side, backbone, name)
    return side


def side_path(
    name: str,
    backbone: Backbone,
    *,
    width: float = 0.25,
    init: Init = "random",
    weights: str = "",
    project: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """A side network, and behind it what makes its shape the base's (nothing where it is).

    Args:
        name, backbone, width, init, seed: see ``side_network``.
        weights: file or run to start from; see ``load_side``.
        project: whether there may be such a map.

    Returns:
        Two modules, (B, C, H, W) images to the shape of what the backbone returns.

    Raises:
        BadInput: see ``side_network`` and ``load_side``; or a side of another shape than the base,
            where no map makes them equal: names both.
    """
    side = side_network(name, backbone, width=width, init=init, seed=seed)
    wanted, found = backbone.feature_shape, output_shape(side, backbone, name)
    behind: nn.Module = nn.Identity()
    if found != wanted:
        alike = len(found) == len(wanted)
        if not (alike and project):
            remedy = "--project" if alike else "another --side"
            raise BadInput(
                f"base and side must have equal shapes: {backbone.name!r} returns {wanted}, side "
                f"{name!r} {found}; give {remedy}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            behind = _map_to(found, wanted)
    if weights:
        load_side(side, behind, Path(weights))
    return nn.Sequential(side, behind)


def _map_to(found: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """From one shape to another: a linear map where widths differ, then other sides of maps."""
    width = pointwise(wanted, found[0], wanted[0], bias=True)
    if found[1:] == wanted[1:]:
        return width
    size = Resized((wanted[1], wanted[2]))
    return size if found[0] == wanted[0] else nn.Sequential(width, size)


class Resized(nn.Module):
    """Maps of other sides, bilinearly; it has no parameters.

    Args:
        size: (h, w) that is wanted.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h', w') to (B, C, h, w)."""
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False)


def _of_timm(name: str, backbone: Backbone, init: Init, seed: int) -> nn.Module:
    channels, _, px = backbone.input_size
    found = Backbone.create(
        name, weights="random", px=px, in_chans=channels, seed=seed, dense=backbone.dense
    )
    side = found.model.requires_grad_(True).train()
    if init == "copy":
        own, theirs = side.state_dict(), backbone.model.state_dict()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in theirs.items()}:
            raise BadInput(
                f"side_init 'copy' needs a side of the backbone's architecture, and {name!r} is "
                f"another than {backbone.name!r}; give --side narrow, or --side-init random"
            )
        side.load_state_dict(theirs)
    return side


def output_shape(side: nn.Module, backbone: Backbone, name: str) -> tuple[int, ...]:
    """What ``side`` returns for one of the backbone's images, without the batch axis.

    Raises:
        BadInput: it cannot run on them.
    """
    some = next(side.parameters())
    image = torch.zeros(1, *backbone.input_size, device=some.device, dtype=some.dtype)
    was = side.training
    try:
        with torch.no_grad():
            return tuple(side.eval()(image).shape[1:])
    except Exception as error:
        size = "x".join(map(str, backbone.input_size))
        raise BadInput(
            f"side {name!r} cannot run on an image of {size}: {first_line(error)}; give a larger "
            f"--px, or another --side"
        ) from error
    finally:
        side.train(was)


def side_file(path: Path) -> Path:
    """The file that ``path`` names: itself, or that of a run of `tailor distill`.

    Raises:
        BadInput: there is none.
    """
    file = path / SIDE_FILE if path.is_dir() else path
    if not file.is_file():
        raise BadInput(
            f"side_weights {str(path)!r} is no file and no finished run of `tailor distill`; name "
            f"one, or leave --side-weights out"
        )
    return file


def load_side(side: nn.Module, project: nn.Module, path: Path) -> None:
    """Fill a side network from a file, all or nothing; the head that it was distilled with is left.

    Args:
        side: filled in place.
        project: the map behind it to the base's width; filled too, if the file has it.
        path: a state dict (safetensors, or ``.pth`` of tensors), or a run of `tailor distill`.

    Raises:
        BadInput: no such file, or tensors of another network: names the first that does not fit.
    """
    file = side_file(path)
    given, own = read_state(file), side.state_dict()
    behind = {f"{PROJECT}{n}": t for n, t in project.state_dict().items()}
    if any(n.startswith(PROJECT) for n in given):
        own |= behind
    state = {n: t for n, t in given.items() if n in own or not n.startswith(HEAD)}
    for name in [*own, *state]:
        here, there = own.get(name), state.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = ["missing" if t is None else tuple(t.shape) for t in (there, here)]
            raise BadInput(
                f"side_weights {file} are of another side network: {name!r} is {shapes[0]} in the "
                f"file and {shapes[1]} here; give the --side, --width and backbone that they "
                f"belong to"
            )
    for module, prefix in ((side, ""), (project, PROJECT)):
        names = [n for n in module.state_dict() if prefix + n in state]
        module.load_state_dict({n: state[prefix + n] for n in names}, strict=bool(names))
