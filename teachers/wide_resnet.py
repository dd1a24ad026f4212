"""Wide ResNets of the Visual Decathlon: three stages of four blocks, at half the side each.

    stem 3x3, 3 -> 32     stages of 64, 128, 256 channels     norm, pooling

``wide_resnet26`` doubles the channels and halves the side in the first block of a stage, whose
shortcut averages 2x2 windows and appends as many channels of zeros. A ReLU follows the stem's norm,
none the norm behind the last block. At 64 px, the size of the Decathlon, it has 5.81 M parameters
and 0.85 G MACs. A ``Plan`` says what its relatives in ``resnet26.py`` and ``resnet28_ram.py`` do
otherwise.

Sources: Zagoruyko & Komodakis, Wide residual networks, BMVC 2016; as used on the Decathlon by
NetTailor, Morgado & Vasconcelos, CVPR 2019, after Rebuffi et al., Learning multiple visual domains
with residual adapters, NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DEPTH = 4  # blocks per stage


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What tells networks of this kind apart."""

    stem: int = 32  # channels
    widths: tuple[int, ...] = (64, 128, 256)  # channels of the stages
    strides: tuple[int, ...] = (2, 2, 2)  # of their first blocks
    px: int = 64  # side of the input, if not told otherwise
    stem_act: bool = True  # a ReLU behind the stem's norm
    end_act: bool = False  # a ReLU behind the norm before pooling
    stage_ends: bool = False  # norm and ReLU behind the other stages too
    mapped: bool = False  # a shortcut to other channels is a 1x1 convolution, not pooling and zeros
    bias: bool = False  # of the convolutions
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    adapter: Callable[[int], nn.Module] = nn.Identity  # behind every 3x3 convolution: its channels


class WideBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a ReLU ends it.

    Args:
        channels: of the input.
        out_channels: as many as the input has, or others: twice as many for a shortcut without
            weights.
        stride: of the first convolution, if the channels change.
        plan: of the network.
    """

    def __init__(
        self, channels: int, out_channels: int, *, stride: int = 2, plan: Plan | None = None
    ) -> None:
        super().__init__()
        plan, grows = plan or Plan(), out_channels != channels
        self.conv1 = _conv(channels, out_channels, 3, plan, stride=stride if grows else 1)
        self.adapter1 = plan.adapter(out_channels)
        self.bn1 = plan.norm(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(out_channels, out_channels, 3, plan)
        self.adapter2 = plan.adapter(out_channels)
        self.bn2 = plan.norm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if grows and plan.mapped:
            self.shortcut = _conv(channels, out_channels, 1, plan, stride=stride)
        elif grows:
            self.shortcut = HalvedAndPadded()
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same, or to (B, out_channels, H / stride, W / stride)."""
        shortcut = self.shortcut(x)
        x = self.act1(self.bn1(self.adapter1(self.conv1(x))))
        result: Tensor = self.act2(self.bn2(self.adapter2(self.conv2(x))) + shortcut)
        return result


class HalvedAndPadded(nn.Module):
    """Averages of 2x2 windows, and as many channels of zeros behind them."""

    def __init__(self) -> None:
        super().__init__()
        # An odd side is rounded up, as the convolution beside it does.
        self.pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2 C, H / 2, W / 2)."""
        halved = self.pool(x)
        return torch.cat((halved, torch.zeros_like(halved)), dim=1)


class WideResNet(nn.Module):
    """(B, in_chans, H, W) images to (B, D) features, or to logits after ``reset_classifier``.

    D are the channels of the last stage.
    """

    def __init__(self, in_chans: int = 3, plan: Plan | None = None) -> None:
        super().__init__()
        plan = plan or Plan()
        self.num_features, self.num_classes = plan.widths[-1], 0
        self.default_input_size = (in_chans, plan.px, plan.px)
        self.conv1 = _conv(in_chans, plan.stem, 3, plan)
        self.adapter1 = plan.adapter(plan.stem)
        self.bn1 = plan.norm(plan.stem)
        self.act1 = nn.ReLU(inplace=True) if plan.stem_act else nn.Identity()
        before, self.parts = plan.stem, []  # names of the modules between stem and end, in order
        for number, (width, stride) in enumerate(zip(plan.widths, plan.strides, strict=True), 1):
            if plan.stage_ends and number > 1:
                self._add(f"end{number - 1}", plan.norm(before), nn.ReLU(inplace=True))
            first = WideBlock(before, width, stride=stride, plan=plan)
            others = [WideBlock(width, width, plan=plan) for _ in range(DEPTH - 1)]
            self._add(f"layer{number}", first, *others)
            before = width
        self.end_norm = plan.norm(before)
        self.end_act = nn.ReLU(inplace=True) if plan.end_act else nn.Identity()
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc: nn.Module = nn.Identity()

    def _add(self, name: str, *modules: nn.Module) -> None:
        self.add_module(name, nn.Sequential(*modules))
        self.parts.append(name)

    def forward(self, x: Tensor) -> Tensor:
        """Features; logits where there is a head."""
        x = self.act1(self.bn1(self.adapter1(self.conv1(x))))
        for name in self.parts:
            x = self.get_submodule(name)(x)
        result: Tensor = self.fc(self.global_pool(self.end_act(self.end_norm(x))))
        return result

    def get_classifier(self) -> nn.Module:
        """The head, as timm's networks hand it out."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for so many classes; none for 0."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def _conv(
    channels: int, out_channels: int, kernel: int, plan: Plan, *, stride: int = 1
) -> nn.Conv2d:
    """Weights from N(0, sqrt(2 / (kernel² · out_channels))), as published; a bias of 0."""
    conv = nn.Conv2d(
        channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=plan.bias
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


MODELS: dict[str, Callable[[int], nn.Module]] = {"wide_resnet26": WideResNet}
