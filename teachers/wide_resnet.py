"""Wide ResNet-26 of the Visual Decathlon: three stages of four blocks, shortcuts without weights.

    stem 3x3, 3 -> 32     stages of 64, 128, 256 channels, each at half the side     norm, pooling

Every stage doubles the channels and halves the side in its first block, whose shortcut averages 2x2
windows and appends as many channels of zeros. A batch norm without activation follows the last
block. At 64 px, the size of the Decathlon, it has 5.81 M parameters and 0.85 G MACs.

Sources: Zagoruyko & Komodakis, Wide residual networks, BMVC 2016; as used on the Decathlon by
Rebuffi et al., Learning multiple visual domains with residual adapters, NeurIPS 2017, and by
NetTailor, Morgado & Vasconcelos, CVPR 2019. Left out: adapters, which are a student's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

STEM, WIDTHS, DEPTH = 32, (64, 128, 256), 4  # channels, channels of the stages, blocks per stage


class WideBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights; a ReLU ends it.

    Args:
        channels: of the input.
        out_channels: as many, or twice as many: the side is then halved.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        grows = out_channels != channels
        self.conv1 = _conv3x3(channels, out_channels, stride=2 if grows else 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        # An odd side is rounded up, as the convolution beside it does.
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if grows else None
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same, or to (B, 2 C, H / 2, W / 2)."""
        shortcut = x
        if self.pool is not None:
            shortcut = self.pool(x)
            shortcut = torch.cat((shortcut, torch.zeros_like(shortcut)), dim=1)
        x = self.act1(self.bn1(self.conv1(x)))
        result: Tensor = self.act2(self.bn2(self.conv2(x)) + shortcut)
        return result


class WideResNet(nn.Module):
    """(B, in_chans, H, W) images to (B, 256) features, or to logits after ``reset_classifier``."""

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features, self.num_classes = WIDTHS[-1], 0
        self.default_input_size = (in_chans, 64, 64)
        self.conv1 = _conv3x3(in_chans, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.act1 = nn.ReLU(inplace=True)
        before = STEM
        for number, width in enumerate(WIDTHS, 1):
            blocks = [WideBlock(before if i == 0 else width, width) for i in range(DEPTH)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            before = width
        self.end_norm = nn.BatchNorm2d(WIDTHS[-1])
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features; logits where there is a head."""
        x = self.act1(self.bn1(self.conv1(x)))
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        result: Tensor = self.fc(self.global_pool(self.end_norm(x)))
        return result

    def get_classifier(self) -> nn.Module:
        """The head, as timm's networks hand it out."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for so many classes; none for 0."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def _conv3x3(channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


MODELS: dict[str, Callable[[int], nn.Module]] = {"wide_resnet26": WideResNet}
