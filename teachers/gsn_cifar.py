"""A ResNet-44 and a small side network blended into one, to train side-tuning's baselines on.

    gsn44     norm( σ(a) resnet44(x) + (1 - σ(a)) fcn4(x) ), 64 features; a = 0 at the start

The published "finetune", "independent", EWC and superposition rows of incremental CIFAR are this
network, not the base alone: 657,936 + 25,904 + 1 = 683,841 parameters. ``norm`` puts the features
into eight groups of zero mean and unit variance and has no numbers.

Weights of both parts are read from one file with the names ``base.*`` (without ``linear``),
``side.*`` and ``fusion.alpha``; ``combined`` makes one of two files:

    save_file(combined(read_state(BASE), read_state(SIDE)), "gsn44.safetensors")

Source: Zhang et al., Side-tuning, ECCV 2020, and its code,
https://github.com/jozhang97/side-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from tailor.fusion import Alpha
from tailor.side import Fcn4
from teachers.resnet_cifar import DEPTHS, PX, WIDTHS, CifarResNet

GROUPS = 8  # of the norm
HEAD = "linear."  # what both parts' published weights call theirs


class Blended(nn.Module):
    """(B, in_chans, H, W) images to (B, 64) features, or to logits after ``reset_classifier``.

    Args:
        in_chans: input channels.
    """

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features, self.num_classes = WIDTHS[-1], 0
        self.default_input_size = (in_chans, PX, PX)
        self.base = CifarResNet(in_chans, blocks=DEPTHS["resnet44"])
        self.side = Fcn4(WIDTHS[-1], in_chans)
        self.fusion = Alpha()
        self.linear: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features; logits where there is a head."""
        blended = self.fusion(self.base(x), self.side(x))
        result: Tensor = self.linear(functional.group_norm(blended, GROUPS))
        return result

    def get_classifier(self) -> nn.Module:
        """The head, as timm's networks hand it out."""
        return self.linear

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for so many classes; none for 0."""
        self.num_classes = num_classes
        self.linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def combined(base: Mapping[str, Tensor], side: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of ``gsn44`` from those of its parts, without their heads.

    Args:
        base: of ``resnet44``.
        side: of ``fcn4``.
    """
    parts = {"base": base, "side": side}
    tensors = {
        f"{part}.{name}": tensor
        for part, state in parts.items()
        for name, tensor in state.items()
        if not name.startswith(HEAD)
    }
    return tensors | {"fusion.alpha": torch.zeros(())}


MODELS: dict[str, Callable[[int], nn.Module]] = {"gsn44": Blended}
