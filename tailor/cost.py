"""What a network and its tasks cost: parameters, MACs, bytes and seconds.

One MAC is one multiply-add. MACs count matrix products, convolutions and attention for one
image; batch norm, activations, pooling and additions are not counted. Parameters and MACs are
exact integers, so a table can be checked by hand. Energy and memory traffic are absent:
nothing here chooses by them.

What published programs count instead is in `published.py`.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tailor.errors import BadInput

# MACs -----------------------------------------------------------------------------------------


def conv_macs(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int | Sequence[int],
    out_hw: Sequence[int],
    groups: int = 1,
) -> int:
    """Multiply-adds of one 2-d convolution on one image.

    Args:
        in_channels: channels of its input, all groups together.
        out_channels: channels of its output.
        kernel: side of a square kernel, or (height, width).
        out_hw: height and width of the output.
        groups: each output channel sees ``in_channels / groups`` input channels.
    """
    taps = kernel * kernel if isinstance(kernel, int) else math.prod(kernel)
    return math.prod(out_hw) * out_channels * (in_channels // groups) * taps


def linear_macs(in_features: int, out_features: int, *, rows: int = 1) -> int:
    """Multiply-adds of one linear layer that is applied to ``rows`` vectors (tokens)."""
    return rows * in_features * out_features


def layer_macs(module: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """MACs of every convolution and linear layer, from one pass of one zero image.

    A layer that is called several times has the sum, one that is never used has 0. A layer whose
    weight the network multiplies itself (``F.linear(x, self.qkv.weight)``) is recognised by that
    weight. ``nn.MultiheadAttention`` lists the projection into it under its own name, the one out
    of it under ``<name>.out_proj``. The products of attention itself belong to no layer;
    `total_macs` has them.

    Args:
        module: any network; modes, buffers and the random state are left as they were.
        input_size: (C, H, W) of the image.

    Returns:
        Module name -> MACs, in the order of ``named_modules``.
    """
    called: dict[str, int] = {}
    hooks = []
    weights: dict[int, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear | nn.MultiheadAttention):
            called[name] = 0
            attends = isinstance(layer, nn.MultiheadAttention)
            note = partial(_note_attention if attends else _note_layer, called, name)
            hooks.append(layer.register_forward_hook(note, with_kwargs=True))
            if not attends:
                weights[id(layer.weight)] = name
    borrowed = _BorrowedWeights(weights)
    try:
        with _bystander(module), borrowed:
            module(_zero_image(module, input_size))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: macs or borrowed.macs.get(name, 0) for name, macs in called.items()}


def total_macs(module: nn.Module, input_size: tuple[int, ...]) -> int:
    """All MACs of one image: convolutions, matrix products and attention.

    Counted from the operators that really run (torch's ``FlopCounterMode``, which calls a
    multiply-add two), so a layer that is computed twice costs twice. Batch norm and other
    element-wise work is not counted.

    Args:
        module: any network; modes, buffers and the random state are left as they were.
        input_size: (C, H, W) of the image, or the shape of whatever it takes.
    """
    counter = FlopCounterMode(display=False)
    # Fused attention is one operator that not every torch release can count; "math" is not.
    with _bystander(module), sdpa_kernel(SDPBackend.MATH), counter:
        module(_zero_image(module, input_size))
    return int(counter.get_total_flops()) // 2


def module_macs(
    module: nn.Module, input_size: tuple[int, int, int], names: Iterable[str]
) -> dict[str, int]:
    """All MACs of one image inside each of the named modules; as ``total_macs`` counts.

    Args:
        module: any network; modes, buffers and the random state are left as they were.
        input_size: (C, H, W) of the image.
        names: dotted module names.
    """
    counter = FlopCounterMode(display=False)
    with _bystander(module), sdpa_kernel(SDPBackend.MATH), counter:
        module(_zero_image(module, input_size))
    counts = counter.get_flop_counts()
    root = type(module).__name__
    return {n: sum(counts.get(f"{root}.{n}", {}).values()) // 2 for n in names}


def _note_layer(
    macs: dict[str, int],
    name: str,
    layer: Any,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> None:
    """Every output (transposed: input) number of a layer meets one slice of its weight."""
    fed = next(iter((*args, *kwargs.values())))
    transposed = getattr(layer, "transposed", False)
    macs[name] += (fed if transposed else output).numel() * layer.weight[0].numel()


class _BorrowedWeights(TorchFunctionMode):
    """Counts the products of known weights, whoever multiplies them."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names  # id of a weight -> name of its layer
        self.macs: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in (F.linear, F.conv1d, F.conv2d, F.conv3d):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if name := self.names.get(id(weight)):
                more = output.numel() * weight[0].numel()
                self.macs[name] = self.macs.get(name, 0) + more
        return output


def _note_attention(
    macs: dict[str, int],
    name: str,
    layer: nn.MultiheadAttention,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    query, key, value = (*args, *(kwargs[k] for k in ("query", "key", "value") if k in kwargs))[:3]
    macs[name] += layer.embed_dim * (query.numel() + key.numel() + value.numel())
    macs[f"{name}.out_proj" if name else "out_proj"] += layer.embed_dim * query.numel()


def _zero_image(module: nn.Module, input_size: tuple[int, ...]) -> Tensor:
    some = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *input_size, dtype=some.dtype, device=some.device)


@contextmanager
def _bystander(module: nn.Module) -> Iterator[None]:
    """Run ``module`` without a trace: eval mode, no gradient, random state put back."""
    modes = {m: m.training for m in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    gpus = {p.device for p in module.parameters() if p.is_cuda}
    module.eval()
    # The fast path of nn.MultiheadAttention is one operator without a known count.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=gpus):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for m, mode in modes.items():
            m.training = mode


# Parameters -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Params:
    """How many numbers one task adds to one backbone, each kind apart.

    Running statistics count as norms, because a task with norms of its own must store them.
    Integer buffers do not (``num_batches_tracked`` is a counter that no prediction reads), so
    one batch norm of C channels is 4 C numbers.
    """

    universal: int  # parameters of the backbone without head; its buffers do not count
    deltas: int = 0  # weights added to universal weights, or a whole trained copy of them
    norms: int = 0  # affine and running statistics
    scores: int = 0
    adapters: int = 0
    masks: int = 0  # one bit per masked weight, in numbers of 32 bits
    shared: int = 0  # what its adapters share with other tasks: counted once over all of them
    head: int = 0  # shown, but in no sum: every method pays it

    @property
    def task(self) -> int:
        """Numbers that the task alone adds to the backbone, without its head."""
        return self.deltas + self.norms + self.scores + self.adapters + self.masks

    @property
    def multiple(self) -> float:
        """Size of backbone and task together, in backbones; 1 when the task adds nothing."""
        return multiple_for([self])


def multiple_for(tasks: Sequence[Params]) -> float:
    """Size of one backbone and all its tasks, in backbones.

    That is ``(universal + shared + sum task) / universal``. Tasks whose shared parts have one size
    are taken to share one part.

    Raises:
        BadInput: no tasks, or tasks of different backbones.
    """
    sizes = {task.universal for task in tasks}
    if len(sizes) != 1:
        raise BadInput(
            f"tasks of {len(sizes)} backbones (parameters: {sorted(sizes)}) have no common "
            f"multiple; count the tasks of one backbone at a time"
        )
    universal = sizes.pop()
    shared = sum({task.shared for task in tasks})
    return (universal + shared + sum(task.task for task in tasks)) / universal


def account(
    universal: nn.Module,
    roles: Mapping[str, Iterable[Tensor]],
    statistics: Iterable[Tensor] = (),
    shared: Iterable[Tensor] = (),
) -> Params:
    """Count what a student trains.

    Args:
        universal: the backbone without head.
        roles: trained tensors by role: deltas, norms, scores, adapters, fusion (counted with the
            adapters), masks (of whose numbers only one bit each is needed), head, and body (a
            backbone that is trained as a whole, counted with the deltas: it is stored as one more
            copy).
        statistics: buffers that belong to the task (running mean and variance), counted with the
            norms; integer ones are left out.
        shared: tensors that other tasks use too, such as a basis of their adapters.

    Raises:
        BadInput: an unknown role.
    """
    count = {role: sum(t.numel() for t in tensors) for role, tensors in roles.items()}
    count["deltas"] = count.get("deltas", 0) + count.pop("body", 0)
    count["adapters"] = count.get("adapters", 0) + count.pop("fusion", 0)
    count["masks"] = mask_numbers(count.get("masks", 0))
    buffers = sum(t.numel() for t in statistics if t.is_floating_point())
    count["norms"] = count.get("norms", 0) + buffers
    known = {field.name for field in fields(Params)} - {"universal", "shared"}
    if stray := sorted(count.keys() - known):
        raise BadInput(
            f"unknown role {stray[0]!r}: a role is one of {', '.join(sorted(known))}, body, fusion"
        )
    count["shared"] = sum(t.numel() for t in shared)
    return Params(universal=sum(p.numel() for p in universal.parameters()), **count)


def mask_numbers(bits: int) -> int:
    """Numbers of 32 bits that hold so many bits, rounded up."""
    return -(-bits // 32)


# Budgets --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a task may cost; ``None`` is no limit."""

    params: float | None = None  # what the task adds, as a share of the backbone's parameters
    macs: float | None = None  # MACs of the student, as a share of the backbone's
    bytes: int | None = None  # size of the student's file

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``params=0.2,macs=0.6``; any of params, macs and bytes, in any order.

        Raises:
            BadInput: an unknown or repeated name, no number, or a limit that is not positive.
        """
        limits: dict[str, float] = {}
        remedy = "write for example params=0.2,macs=0.6 or bytes=500000"
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in ("params", "macs", "bytes"):
                raise BadInput(
                    f"budget {text!r}: {name!r} is none of params, macs, bytes; {remedy}"
                )
            if name in limits:
                raise BadInput(f"budget {text!r} limits {name} twice; {remedy}")
            try:
                limits[name] = int(value) if name == "bytes" else float(value)
            except ValueError:
                kind = "whole number" if name == "bytes" else "number"
                raise BadInput(f"budget {text!r}: {value!r} is no {kind}; {remedy}") from None
            if not (math.isfinite(limits[name]) and limits[name] > 0):
                raise BadInput(f"budget {text!r}: {name} must be above 0; {remedy}")
        return cls(**limits)  # type: ignore[arg-type]

    def admits(
        self, *, params: float | None = None, macs: float | None = None, bytes: int | None = None
    ) -> bool:
        """Whether a student with these costs (units as in the fields) keeps every limit.

        Raises:
            ValueError: a cost that this budget limits is not given.
        """
        costs = {"params": params, "macs": macs, "bytes": bytes}
        for name, cost in costs.items():
            limit = getattr(self, name)
            if limit is None:
                continue
            if cost is None:
                raise ValueError(f"this budget limits {name} to {limit}: say how many there are")
            if cost > limit:
                return False
        return True


# Bytes and seconds ----------------------------------------------------------------------------


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files under a folder.

    Raises:
        BadInput: nothing is there.
    """
    try:
        if not os.path.isdir(path):
            return os.stat(path).st_size
    except OSError as error:
        raise BadInput(f"{os.fspath(path)}: {error.strerror}; check the path") from None
    files = (os.path.join(at, name) for at, _, names in os.walk(path) for name in names)
    return sum(os.stat(file).st_size for file in files)


class Latency(NamedTuple):
    """Wall time of one call."""

    seconds: float  # median
    spread: float  # interquartile range, seconds


def latency(fn: Callable[[], object], *, rounds: int, warmup: int = 3) -> Latency:
    """Time ``fn`` call by call; on an accelerator ``fn`` must wait for its own result.

    Args:
        rounds: calls that are timed, at least 1.
        warmup: calls before them that are not.
    """
    if rounds < 1:
        raise BadInput(f"rounds is {rounds}; time at least 1 call")
    for _ in range(warmup):
        fn()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - begin)
    return Latency(statistics.median(seconds), spread(seconds))


class Compared(NamedTuple):
    """Wall time of one function against another, timed in turns."""

    seconds: float  # median of the first
    reference: float  # median of the second
    ratio: float  # median over the rounds of first / second; above 1: slower
    spread: float  # interquartile range of that ratio


def compare(
    fn: Callable[[], object], reference: Callable[[], object], *, rounds: int, warmup: int = 3
) -> Compared:
    """Time two functions in turns, so that both see the same machine.

    Args:
        fn, reference: on an accelerator each must wait for its own result.
        rounds: calls of each that are timed, at least 1.
        warmup: calls of each before them that are not.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(-warmup, rounds):
        # Who goes first alternates: the second finds the caches as the first left them.
        for first in (True, False) if turn % 2 else (False, True):
            seconds = latency(fn if first else reference, rounds=1, warmup=0).seconds
            if turn >= 0:
                times[first].append(seconds)
    ratios = [a / b for a, b in zip(times[True], times[False], strict=True)]
    medians = statistics.median(times[True]), statistics.median(times[False])
    return Compared(*medians, statistics.median(ratios), spread(ratios))


def spread(values: Sequence[float]) -> float:
    """Interquartile range, in the unit of ``values``; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
