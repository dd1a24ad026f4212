"""Backbone: any pre-trained network seen as stem, ordered universal blocks and pooled features.

A backbone is a timm model (or one of our own families in ``teachers/``) without its head:
``(B, C, H, W)`` images in, ``(B, D)`` features out. It is frozen from birth; everything that a
task trains lives in a ``Student``. Blocks and layers are found by running the network once and
watching it, never by matching names. Left out: heads (each task has its own) and training.

timm: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from tailor import catalog
from tailor.cost import layer_macs
from tailor.errors import BadInput

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or linear map: the unit that a method adapts or leaves alone."""

    name: str  # dotted module name, such as "layer1.0.conv1"
    kind: str  # "conv" or "linear"
    tensors: tuple[str, ...]  # parameter names: the weight, then the bias where there is one
    params: int  # numbers in those tensors
    macs: int  # multiply-adds for one image


@dataclass(frozen=True, kw_only=True)
class Block:
    """A universal block: one step of the ordered chain between stem and pooling."""

    name: str
    in_shape: tuple[int, ...]  # of its first input, batch axis left out
    out_shape: tuple[int, ...]


class Backbone(nn.Module):
    """A frozen network without its head.

    Args:
        model: ``(B, *input_size)`` images to ``(B, D)`` features.
        name: what the user calls it; ``Backbone.create(name)`` finds it again.
        input_size: (C, H, W) of one image.
        mean, std: the input normalisation that the weights expect, in the 0 to 1 scale.
        weights: where the numbers come from: ``pretrained``, ``random`` or a file.

    Raises:
        BadInput: the network cannot run on ``input_size``, or does not return (B, D).
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
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.name, self.weights = name, weights
        self.input_size, self.mean, self.std = input_size, tuple(mean), tuple(std)
        features, self.blocks = _trace(model, name, input_size)
        if features.ndim != 2:
            raise BadInput(
                f"backbone {name!r} returns features of shape {tuple(features.shape)}, not "
                f"(batch, channels); give a network that ends in global pooling"
            )
        self.num_features = features.shape[1]
        self.layers = _layers(model, input_size)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        weights: str | Path = "pretrained",
        px: int | None = None,
        in_chans: int = 3,
        seed: int = 0,
    ) -> Backbone:
        """Build a backbone by name.

        Args:
            name: a timm model or one of our families; ``tailor list backbones``.
            weights: ``pretrained`` (timm fetches them), ``random``, or a path: a safetensors
                file, a ``.pth`` state dict, or the run directory of a finished teacher.
            px: input side; the model's own default where None.
            in_chans: input channels; published first convolutions are summed or repeated.
            seed: of the random initialisation.

        Raises:
            BadInput: unknown name, weights that cannot be had, or weights of another network.
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
                    raise BadInput(
                        f"backbone {name!r} is one of our own families and has no weights to "
                        f"fetch; give --weights RUN (a teacher's run), --weights FILE, or random"
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
        return cls(
            model,
            name=name,
            input_size=(in_chans, side, side),
            mean=mean,
            std=std,
            weights=weights,
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
    def num_params(self) -> int:
        """Numbers in all parameters; buffers are not counted."""
        return sum(p.numel() for p in self.model.parameters())

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D), always in evaluation mode: nothing universal may move."""
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


def weights_file(path: Path) -> Path:
    """The weights file that ``path`` names: itself, or that of a finished teacher's run."""
    if path.is_dir():
        inside = path / "weights.safetensors"
        if not inside.is_file():
            raise BadInput(
                f"{path} holds no weights.safetensors: finish that teacher first "
                f"(`tailor teach ... --out {path}`), or name a weights file"
            )
        return inside
    if not path.is_file():
        raise BadInput(
            f"weights {str(path)!r} is no file or run directory; give an existing path, "
            f"`pretrained` or `random`"
        )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a ``.pth`` without running any code in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        pickled = "weights_only" in str(error) or "Unsupported" in str(error)
        why = (
            "it needs unpickling, which would run code stored in the file; save its state_dict() "
            "with safetensors"
            if pickled
            else f"it cannot be read ({_first_line(error)}); fetch or write it again"
        )
        raise BadInput(f"weights {path}: {why}") from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise BadInput(f"weights {path}: not a state dict (a map from names to tensors)")
    if state and all(name.startswith("module.") for name in state):  # saved from DataParallel
        state = {name.removeprefix("module."): t for name, t in state.items()}
    return state


def load_weights(model: nn.Module, path: Path, classifier: str = "fc") -> None:
    """Fill ``model`` from a file; all or nothing, and every tensor must find its place.

    The head's tensors (``classifier``) are dropped; a first convolution with other input channels
    and position embeddings of another grid are converted as timm does.

    Raises:
        BadInput: missing, extra or differently shaped tensors.
    """
    state, own = read_state(path), model.state_dict()
    head = tuple(f"{c}." for c in {*classifier.strip("()'").split("', '"), "fc", "linear"})
    extra = [n for n in state if n not in own and not n.startswith(head)]
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown {extra[0]!r}"
        raise BadInput(
            f"weights {path} are of another architecture: the file {what} "
            f"({len(missing)} missing, {len(extra)} extra tensors); name the right --backbone"
        )
    fitted = dict(own)
    for name in (n for n in own if n in state):
        fitted[name] = _fit(name, state[name], own[name], path)
    model.load_state_dict(fitted)


def _fit(name: str, given: Tensor, wanted: Tensor, path: Path) -> Tensor:
    if given.shape == wanted.shape:
        return given
    first_conv = given.ndim == 4 and given.shape[2:] == wanted.shape[2:]
    if first_conv and given.shape[0] == wanted.shape[0] and given.shape[1] == 3:
        converted: Tensor = adapt_input_conv(wanted.shape[1], given)
        return converted
    if name == "pos_embed" and given.ndim == 3 and given.shape[2] == wanted.shape[2]:
        grid, prefix = _grid(wanted.shape[1])
        if prefix == _grid(given.shape[1])[1]:
            resampled: Tensor = resample_abs_pos_embed(
                given, [grid, grid], num_prefix_tokens=prefix
            )
            return resampled
    raise BadInput(
        f"weights {path} are of another architecture: {name!r} is {tuple(given.shape)} in the file "
        f"and {tuple(wanted.shape)} in the network; name the backbone they belong to"
    )


def _grid(tokens: int) -> tuple[int, int]:
    side = int(tokens**0.5)
    return side, tokens - side * side


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
                f"no pre-trained weights for {name!r} ({_first_line(error)}); without network give "
                f"--weights FILE (safetensors or .pth), or --weights random"
            ) from error
        raise BadInput(
            f"timm cannot build {name!r} for {px} px and {in_chans} channels: {_first_line(error)}"
        ) from error
    return model, cast("dict[str, object]", model.pretrained_cfg)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


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


@dataclass(frozen=True)
class _Call:
    """One call of one module: what went in, what came out, and whether it was still untouched."""

    name: str
    given: Tensor
    given_version: int
    result: Tensor
    result_version: int


def _trace(
    model: nn.Module, name: str, input_size: tuple[int, int, int]
) -> tuple[Tensor, tuple[Block, ...]]:
    """Run one image and read off the features and the ordered blocks.

    A module whose children form a chain (each takes exactly what the one before returned, and no
    tensor was changed in between) only groups; its children are the units. A block with a residual
    sum, concatenation or attention is no chain, hence a unit. Units with weights inside a grouping
    module below the root are the universal blocks; what comes before them is the stem.
    """
    calls: dict[str, list[_Call]] = {}  # of each module: the calls of its children, in order
    entered: list[tuple[str, Tensor | None, int]] = []  # the call stack

    def enter(path: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(_: nn.Module, given: tuple[object, ...]) -> None:
            first = given[0] if given and isinstance(given[0], Tensor) else None
            entered.append((path, first, -1 if first is None else first._version))

        return hook

    def leave(path: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_: nn.Module, __: tuple[object, ...], result: object) -> None:
            first, version = entered.pop()[1:]
            parent = entered[-1][0] if entered else "/"
            if first is not None and isinstance(result, Tensor):
                call = _Call(path, first, version, result, result._version)
                calls.setdefault(parent, []).append(call)

        return hook

    handles = []
    for path, part in model.named_modules():
        handles.append(part.register_forward_pre_hook(enter(path)))
        handles.append(part.register_forward_hook(leave(path)))
    weight = next(model.parameters())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            features = model(torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        raise BadInput(
            f"backbone {name!r} cannot run on an image of {input_size[0]}x{input_size[1]}x"
            f"{input_size[2]}: {_first_line(error)}; give another --px"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(features, Tensor):
        raise BadInput(f"backbone {name!r} returns {type(features).__name__}, not one tensor")
    modules = dict(model.named_modules())
    root = calls.get("/", [None])[0]
    units = [u for u in _units(root, calls, modules) if _has_matrix(modules[u.name])]
    grouped = [u for u in units if "." in u.name and any(True for _ in modules[u.name].children())]
    kinds = {type(modules[u.name]) for u in grouped}
    # A stage of a single block looks like one itself; it is if it holds what others repeat.
    single = {u.name for u in units if kinds & {type(m) for m in modules[u.name].children()}}
    blocks = [u for u in units if u in grouped or u.name in single]
    blocks = blocks or [u for u in units if "." in u.name] or units
    return features, tuple(
        Block(name=u.name, in_shape=tuple(u.given.shape[1:]), out_shape=tuple(u.result.shape[1:]))
        for u in blocks
    )


def _units(
    call: _Call | None, calls: dict[str, list[_Call]], modules: dict[str, nn.Module]
) -> Iterator[_Call]:
    """The calls that remain when every grouping module is replaced by its children."""
    if call is None:
        return
    for child in calls.get(call.name, []):
        inner = calls.get(child.name, [])
        if _is_chain(child, inner) and _groups(
            modules[child.name], [modules[c.name] for c in inner]
        ):
            yield from _units(child, calls, modules)
        else:
            yield child


def _is_chain(outer: _Call, inner: list[_Call]) -> bool:
    if not inner:
        return False
    first, last = inner[0], inner[-1]
    links = itertools.pairwise(inner)
    return (
        first.given is outer.given
        and last.result is outer.result
        and last.result_version == outer.result_version
        and all(b.given is a.result and b.given_version == a.result_version for a, b in links)
    )


def _groups(module: nn.Module, children: list[nn.Module]) -> bool:
    """Whether a chain is a stage (of blocks) rather than one block without a residual sum."""
    kinds = [type(c) for c in children if any(True for _ in c.children()) and _has_matrix(c)]
    return (
        isinstance(module, nn.Sequential)
        or any(issubclass(k, nn.Sequential) for k in kinds)
        or len(set(kinds)) < len(kinds)
    )


def _has_matrix(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters())
