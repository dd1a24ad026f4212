"""Backbone: any pre-trained network seen as stem, ordered universal blocks and features.

A backbone is a timm model (or one of our own families in ``teachers/``) without its head:
``(B, C, H, W)`` images in, ``(B, D)`` pooled features out, or the map below them where the labels
are of pixels (``unpool.py``). It is frozen from birth; everything that a
task trains lives in a ``Student``. Blocks (``trace.py``) and layers are found by running the
network once and watching it, never by matching names. Left out: heads (each task has its own) and
training.

timm: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn

from tailor import catalog
from tailor.cost import layer_macs, module_macs
from tailor.errors import BadInput, first_line
from tailor.target import CLASS, PIXEL_CLASS, Target
from tailor.trace import Block, trace
from tailor.unpool import unpool
from tailor.weights import load_weights, weights_file

Decoder = Literal["light", "taskonomy"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or linear map: the unit that a method adapts or leaves alone."""

    name: str  # dotted module name, such as "layer1.0.conv1"
    kind: str  # "conv" or "linear"
    tensors: tuple[str, ...]  # parameter names: the weight, then the bias where there is one
    params: int  # numbers in those tensors
    macs: int  # multiply-adds for one image


class Backbone(nn.Module):
    """A frozen network without its head.

    Args:
        model: ``(B, *input_size)`` images to ``(B, D)`` features.
        name: what the user calls it; ``Backbone.create(name)`` finds it again.
        input_size: (C, H, W) of one image.
        mean, std: the input normalisation that the weights expect, in the 0 to 1 scale.
        weights: where the numbers come from: ``pretrained``, ``random`` or a file.
        dense: ``model`` returns its last map, (B, C, h, w), instead.
        decoder: the kind of head that turns a map into a prediction (``new_head``).
        target: what is predicted; classes of images, or of pixels where ``dense``, by default.

    Raises:
        BadInput: the network cannot run on ``input_size``, or does not return what it should.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        input_size: tuple[int, int, int],
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        weights: str = "random",
        dense: bool = False,
        decoder: Decoder = "light",
        target: Target | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.name, self.weights = name, weights
        self.dense, self.decoder = dense, decoder
        self.target = target or (PIXEL_CLASS if dense else CLASS)
        self.input_size, self.mean, self.std = input_size, tuple(mean), tuple(std)
        features, self.chain = trace(model, name, input_size)
        if features.ndim != (4 if dense else 2):
            wanted = "(batch, channels, height, width)" if dense else "(batch, channels)"
            ends = "a feature map" if dense else "global pooling"
            raise BadInput(
                f"backbone {name!r} returns features of shape {tuple(features.shape)}, not "
                f"{wanted}; give a network that ends in {ends}"
            )
        self.feature_shape = tuple(features.shape[1:])  # (D,), or (C, h, w) where dense
        self.num_features = features.shape[1]  # D or C
        self.layers = _layers(model, input_size)
        self._block_costs: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def create(
        cls,
        name: str,
        *,
        weights: str | Path = "pretrained",
        px: int | None = None,
        in_chans: int = 3,
        seed: int = 0,
        dense: bool = False,
        decoder: Decoder = "light",
        target: Target | None = None,
    ) -> Backbone:
        """Build a backbone by name.

        Args:
            name: a timm model or one of our families; ``tailor list backbones``.
            weights: ``pretrained`` (timm fetches them), ``random``, or a path: a safetensors
                file, a ``.pth`` state dict, or the run directory of a finished teacher.
            px: input side; the model's own default where None.
            in_chans: input channels; published first convolutions are summed or repeated.
            seed: of the random initialisation.
            dense, decoder, target: see the class.

        Raises:
            BadInput: unknown name, weights that cannot be had, or weights of another network; or
                one that has no map, where that is wanted.
        """
        if px is not None and px < 1:
            raise BadInput(f"px is {px}; give the side of the input in pixels, 1 or more")
        make = families().get(name)
        weights = str(weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if make is not None:
                model = make(in_chans)
                config = {"input_size": getattr(model, "default_input_size", (3, 32, 32))}
                if weights == "pretrained":
                    others = timm.list_models(f"{name}.*", pretrained=True)
                    hint = f"; timm's network of that name is {others[0]}" if others else ""
                    raise BadInput(
                        f"backbone {name!r} is one of our own families and has no weights to "
                        f"fetch; give --weights RUN (a teacher's run), --weights FILE, or "
                        f"random{hint}"
                    )
            else:
                model, config = _timm_model(name, weights == "pretrained", px, in_chans)
        side = px or int(config["input_size"][-1])
        mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
        if weights not in ("pretrained", "random"):
            path = weights_file(Path(weights))
            load_weights(model, path, str(config.get("classifier", "fc")))
        if in_chans == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        if dense:
            unpool(model.eval(), name, (in_chans, side, side))
        return cls(
            model,
            name=name,
            input_size=(in_chans, side, side),
            mean=mean,
            std=std,
            weights=weights,
            dense=dense,
            decoder=decoder,
            target=target,
        )

    def seen_by(self, target: Target, decoder: Decoder = "light") -> Backbone:
        """The same trunk for a task of this target: every tensor is shared, none is copied.

        Args:
            target: of the task; a map is returned where it, or the decoder, asks for one.
            decoder: the kind of head.

        Raises:
            BadInput: pooled features are wanted of a dense backbone, or it has no map.
        """
        dense = target.dense or decoder == "taskonomy"
        same = (decoder, target) == (self.decoder, self.target)
        if dense == self.dense and (same or not dense):
            return self
        if self.dense and not dense:
            raise BadInput(
                f"backbone {self.name!r} was built to return maps, and labels of kind "
                f"{target.kind!r} are of whole images: build it without dense"
            )
        model = self.model
        if dense and not self.dense:
            tensors = [*model.parameters(), *model.buffers()]
            model = copy.deepcopy(model, {id(t): t for t in tensors})
            unpool(model, self.name, self.input_size)
        return type(self)(
            model,
            name=self.name,
            input_size=self.input_size,
            mean=self.mean,
            std=self.std,
            weights=self.weights,
            dense=dense,
            decoder=decoder,
            target=target,
        )

    @classmethod
    def from_timm(
        cls,
        name: str,
        *,
        pretrained: bool = False,
        input_size: tuple[int, int, int] | None = None,
        seed: int = 0,
    ) -> Backbone:
        """The short form of ``create`` for a timm model, pre-trained or random."""
        weights = "pretrained" if pretrained else "random"
        channels, px = (3, None) if input_size is None else (input_size[0], input_size[2])
        return cls.create(name, weights=weights, px=px, in_chans=channels, seed=seed)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The universal blocks, in the order in which they run."""
        return self.chain.blocks

    @property
    def num_params(self) -> int:
        """Numbers in all parameters; buffers are not counted."""
        return sum(p.numel() for p in self.model.parameters())

    def block_costs(self) -> tuple[tuple[int, int], ...]:
        """(parameters, MACs) of each block, with what lies between it and the block before."""
        if self._block_costs is None:
            units = [name for block in self.blocks for name in block.units]
            macs = module_macs(self.model, self.input_size, units)
            sizes = {
                n: sum(p.numel() for p in self.model.get_submodule(n).parameters()) for n in units
            }
            self._block_costs = tuple(
                (sum(sizes[n] for n in b.units), sum(macs[n] for n in b.units)) for b in self.blocks
            )
        return self._block_costs

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D), or to (B, C, h, w) where dense.

        Always in evaluation mode: nothing universal may move.
        """
        if self.model.training:
            self.model.eval()
        features: Tensor = self.model(images)
        return features

    def train(self, mode: bool = True) -> Backbone:
        """Stay as it is: a frozen network has no training mode of its own.

        ``requires_grad_(False)`` does not stop BatchNorm from moving its statistics; a student
        that runs the trunk in training mode does so with its own statistics in their place.
        """
        return self

    def fingerprint(self) -> str:
        """SHA-256 over the name, type, shape and bytes of every tensor, buffers included."""
        digest = hashlib.sha256()
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def norm_tensors(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the parameters and of the buffers that belong to normalisation layers.

    A normalisation layer is a torch norm, or any module that owns a ``weight`` of at most one
    axis and no larger parameter: timm has a dozen of its own kinds. PReLU looks like one and is
    not.
    """
    params: list[str] = []
    buffers: list[str] = []
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        small = weight is not None and all(p.ndim <= 1 for p in own.values())
        batch_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if (small and not isinstance(module, nn.PReLU)) or batch_norm:
            dot = f"{prefix}." if prefix else ""
            params += [dot + n for n in own]
            buffers += [dot + n for n, _ in module.named_buffers(recurse=False)]
    return params, buffers


def families() -> dict[str, Callable[[int], nn.Module]]:
    """Name to constructor (input channels -> network without head) of our own architectures.

    A module in ``teachers/`` lists what it makes in ``MODELS``.
    """
    found: dict[str, Callable[[int], nn.Module]] = {}
    for module_name in catalog.names("teachers"):
        module = catalog.load("teachers", module_name, "family")
        found |= getattr(module, "MODELS", {})
    return found


def _timm_model(
    name: str, pretrained: bool, px: int | None, in_chans: int
) -> tuple[nn.Module, dict[str, object]]:
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise catalog.unknown("backbone", name, [*families(), *known])
    # Its retries are told line by line; the error that we raise says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": in_chans}
    try:
        # Only some families (most transformers) must be told the image size.
        sized = {**options, "img_size": px} if px else options
        try:
            model = timm.create_model(name, pretrained=pretrained, **sized)
        except TypeError:
            model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if pretrained:
            raise BadInput(
                f"no pre-trained weights for {name!r} ({first_line(error)}); without network give "
                f"--weights FILE (safetensors or .pth), or --weights random"
            ) from error
        raise BadInput(
            f"timm cannot build {name!r} for {px} px and {in_chans} channels: {first_line(error)}"
        ) from error
    return model, cast("dict[str, object]", model.pretrained_cfg)


def _layers(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[Layer, ...]:
    macs = layer_macs(model, input_size)
    layers: list[Layer] = []
    seen: dict[int, int] = {}  # a weight that two modules share is one layer, billed once
    for name, module in model.named_modules():
        conv = isinstance(module, nn.modules.conv._ConvNd)
        if not conv and not isinstance(module, nn.Linear):
            continue
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        if weight is None:
            continue  # computed from other tensors (weight norm), which stay universal
        if id(weight) in seen:
            at = seen[id(weight)]
            old = layers[at]
            layers[at] = Layer(
                name=old.name,
                kind=old.kind,
                tensors=old.tensors,
                params=old.params,
                macs=old.macs + macs.get(name, 0),
            )
            continue
        seen[id(weight)] = len(layers)
        ordered = ["weight", *(n for n in own if n != "weight")]
        layers.append(
            Layer(
                name=name,
                kind="conv" if conv else "linear",
                tensors=tuple(f"{name}.{n}" for n in ordered),
                params=sum(p.numel() for p in own.values()),
                macs=macs.get(name, 0),
            )
        )
    return tuple(layers)
