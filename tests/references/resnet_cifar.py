"""The CIFAR ResNets as a loop over the tensors of a published state dict; no module of ours.

Equations of He et al., CVPR 2016, section 4.2. The shortcut of a first block indexes pixels and
writes between zeros, channel by channel.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def features(state, images):
    """(B, 3, H, W) to (B, 64) in evaluation mode; ``state`` is a published file's."""
    x = _norm(state, "bn1", F.conv2d(images, state["conv1.weight"], padding=1)).clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(1000):
            name = f"layer{stage}.{block}"
            if f"{name}.conv1.weight" not in state:
                break
            x = _block(state, name, x)
    return x.mean((2, 3))


def logits(state, images):
    """(B, 3, H, W) to (B, K)."""
    return features(state, images) @ state["linear.weight"].T + state["linear.bias"]


def _block(state, name, x):
    first = state[f"{name}.conv1.weight"]
    stride = first.shape[0] // first.shape[1]  # 2 where the channels double
    inner = F.conv2d(x, first, stride=stride, padding=1)
    inner = _norm(state, f"{name}.bn1", inner).clamp(min=0)
    inner = F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1)
    inner = _norm(state, f"{name}.bn2", inner)
    shortcut = torch.zeros_like(inner)
    begin = (first.shape[0] - first.shape[1]) // 2
    for channel in range(first.shape[1]):
        shortcut[:, begin + channel] = x[:, channel, ::stride, ::stride]
    return (inner + shortcut).clamp(min=0)


def _norm(state, name, x):
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    x = (x - mean.view(-1, 1, 1)) / torch.sqrt(var.view(-1, 1, 1) + 1e-5)
    return x * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)
