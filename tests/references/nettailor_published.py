"""NetTailor's published student, re-stated: the layout of its checkpoint and what it computes.

Written from the description of the program alone, without any of our modules: tensors are looked
up under the published names and put through torch's functions. Evaluation only.

The universal network is a state dict under torchvision's names (``layer1.0.conv1.weight``); the
checkpoint holds what NetTailor saves of a task. Block l of L blocks in one row is called
``layers.{l}``; its shortcut's norm, ``downsample.1`` elsewhere, is ``main.bn_res``.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def block_names(backbone: str) -> list[str]:
    """``layer1.0``, ``layer1.1``, ... in the order in which they run."""
    return [f"layer{s}.{i}" for s, depth in enumerate(DEPTHS[backbone], 1) for i in range(depth)]


def channels(universal: State, block: str) -> int:
    """Output channels of a block: those of its last convolution."""
    last = max(n for n in (1, 2, 3) if f"{block}.conv{n}.weight" in universal)
    return universal[f"{block}.conv{last}.weight"].shape[0]


def norms(universal: State, block: str) -> dict[str, str]:
    """Published name -> torchvision's name of each batch norm of a block."""
    found = {f"bn{n}": f"{block}.bn{n}" for n in (1, 2, 3) if f"{block}.bn{n}.weight" in universal}
    if f"{block}.downsample.1.weight" in universal:
        found["bn_res"] = f"{block}.downsample.1"
    return found


def checkpoint(
    backbone: str,
    universal: State,
    *,
    classes: int,
    skips: int = 3,
    flags: list[list[Any]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """A checkpoint with random numbers everywhere, in the layout of the published program."""
    draw = torch.Generator().manual_seed(seed)
    state: State = {}

    def statistics(name: str, width: int) -> None:
        state[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=draw)
        state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=draw)
        state[f"{name}.num_batches_tracked"] = torch.tensor(17)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 0.5 + torch.rand(width, generator=draw)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=draw)
        statistics(name, width)

    def conv(name: str, into: int, out: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, 1, 1, generator=draw) / into**0.5

    statistics("bn1", universal["bn1.weight"].numel())
    names = block_names(backbone)
    width = [universal["bn1.weight"].numel(), *(channels(universal, block) for block in names)]
    for number, block in enumerate(names):
        for published, own in norms(universal, block).items():
            statistics(f"layers.{number}.main.{published}", universal[f"{own}.weight"].numel())
        sources = [width[number - back] for back in range(min(number + 1, skips))]
        for back, into in enumerate(sources):
            at, out = f"layers.{number}.proxies.{back}", width[number + 1]
            if backbone == "resnet50":
                middle = max(out // 32, 16)
                conv(f"{at}.conv1", into, middle)
                norm(f"{at}.bn1", middle)
                conv(f"{at}.conv2", middle, out)
                norm(f"{at}.bn2", out)
            else:
                conv(f"{at}.conv", into, out)
                norm(f"{at}.bn", out)
        logits = torch.randn(1 + len(sources), generator=draw)
        state[f"layers.{number}.alphas_params"] = logits
    state["classifier.weight"] = torch.randn(classes, width[-1], generator=draw) / width[-1] ** 0.5
    state["classifier.bias"] = torch.randn(classes, generator=draw)
    return {"epoch": 20, "state_dict": state, "keep_flags": flags, "acc": 0.5, "xent": 1.25}


def gates(saved: dict[str, Any], number: int) -> list[float]:
    """Softmax over the kept paths into a block, 0 for the others."""
    logits = saved["state_dict"][f"layers.{number}.alphas_params"].double()
    flags = [True] * len(logits) if saved["keep_flags"] is None else saved["keep_flags"][number]
    powers = [float(a.exp()) if keep else 0.0 for a, keep in zip(logits, flags, strict=True)]
    total = sum(powers)
    return [p / total if total else 0.0 for p in powers]


def logits(backbone: str, universal: State, saved: dict[str, Any], images: Tensor) -> Tensor:
    """What the published student answers to (B, 3, H, W) images: (B, K)."""
    state = saved["state_dict"]

    def normed(x: Tensor, affine: Tensor, shift: Tensor, statistics: str) -> Tensor:
        mean, var = state[f"{statistics}.running_mean"], state[f"{statistics}.running_var"]
        return F.batch_norm(x, mean, var, affine, shift)

    def universal_norm(x: Tensor, own: str, statistics: str) -> Tensor:
        return normed(x, universal[f"{own}.weight"], universal[f"{own}.bias"], statistics)

    def main(x: Tensor, number: int, block: str, stride: int) -> Tensor:
        """Residual block without its last activation."""
        at, shortcut = f"layers.{number}.main", x
        if f"{block}.downsample.0.weight" in universal:
            shortcut = F.conv2d(x, universal[f"{block}.downsample.0.weight"], stride=stride)
            shortcut = universal_norm(shortcut, f"{block}.downsample.1", f"{at}.bn_res")
        depth = 3 if f"{block}.conv3.weight" in universal else 2
        strided = depth - 1  # the 3x3 convolution halves: the first of two, the second of three
        for n in range(1, depth + 1):
            weight = universal[f"{block}.conv{n}.weight"]
            step = stride if n == strided else 1
            x = F.conv2d(x, weight, stride=step, padding=weight.shape[-1] // 2)
            x = universal_norm(x, f"{block}.bn{n}", f"{at}.bn{n}")
            x = F.relu(x) if n < depth else x
        return x + shortcut

    def proxy(x: Tensor, at: str, stride: int) -> Tensor:
        if stride > 1:
            x = F.max_pool2d(x, stride + 1, stride, stride // 2)
        parts = [""] if f"{at}.conv.weight" in state else ["1", "2"]
        for part in parts:
            x = F.relu(x) if part == "2" else x
            x = F.conv2d(x, state[f"{at}.conv{part}.weight"])
            bn = f"{at}.bn{part}"
            x = normed(x, state[f"{bn}.weight"], state[f"{bn}.bias"], bn)
        return x

    x = F.conv2d(images, universal["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(universal_norm(x, "bn1", "bn1")), 3, 2, 1)
    names = block_names(backbone)
    stage = [1, *(int(name[len("layer")]) for name in names)]  # of each node
    nodes: list[Tensor | None] = [x]
    for number, block in enumerate(names):
        mixed: Tensor | None = None
        for path, gate in enumerate(gates(saved, number)):
            source = number - max(path - 1, 0)  # the universal path and proxy 0 share theirs
            given = nodes[source]
            if gate == 0 or given is None:
                continue
            stride = 2 ** (stage[number + 1] - stage[source])
            if path == 0:
                out = main(given, number, block, stride)
            else:
                out = proxy(given, f"layers.{number}.proxies.{path - 1}", stride)
            mixed = gate * out if mixed is None else mixed + gate * out
        nodes.append(None if mixed is None else F.relu(mixed))
    last = nodes[-1]
    assert last is not None, "a published student whose last block is gone crashes"
    return F.linear(last.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


def all_kept(backbone: str, skips: int = 3) -> list[list[bool]]:
    """Flags of an unpruned student."""
    return [[True] * (1 + min(n, skips)) for n in range(1, 1 + sum(DEPTHS[backbone]))]


def tensors_and_numbers(saved: dict[str, Any]) -> tuple[int, int]:
    """How many tensors, and how many numbers in them, a checkpoint holds."""
    tensors = list(itertools.chain(saved["state_dict"].values()))
    return len(tensors), sum(t.numel() for t in tensors)
