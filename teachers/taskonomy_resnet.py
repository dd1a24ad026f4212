"""The encoder of Taskonomy: a ResNet-50 that ends in 8 channels of 16 x 16 at 256 px.

It differs from the usual ResNet-50 in where it strides: the last block of the first two stages does
(3x3 convolution, subsampled shortcut), the first block of a stage never, and the last two stages
keep their resolution. A 3x3 convolution to 8 channels with batch norm and ReLU follows. 23,655,504
parameters. Names of tensors are those of the published files (`conv1`, `layer1.0.conv1`, ...,
`compress1`, `compress_bn`), so that ``--weights FILE`` reads them. The map itself is
``forward_features``; ``forward`` returns its mean over positions, (B, 8).

Sources: Zamir et al., Taskonomy, CVPR 2018, supplementary material; Zhang et al., Side-tuning,
ECCV 2020, which takes the curvature encoder as its base. Left out: the decoders
(``tailor/taskonomy_decoder.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

CHANNELS = 8  # of the map that all decoders read
DEPTHS = {"taskonomy_resnet50": (3, 4, 6, 3)}


class Bottleneck(nn.Module):
    """1x1 to ``width``, 3x3 with the stride, 1x1 to 4 ``width``; the shortcut widens or strides."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if channels != 4 * width:
            widen = nn.Conv2d(channels, 4 * width, 1, bias=False)
            self.downsample = nn.Sequential(widen, nn.BatchNorm2d(4 * width))
        elif stride != 1:
            self.downsample = nn.MaxPool2d(1, stride)  # every second row and column

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class TaskonomyResNet(nn.Module):
    """Images to (B, 8) features, or to the map under them with ``forward_features``.

    Args:
        depths: bottlenecks in each of the four stages, two or more each.
        in_chans: channels of an image.
    """

    def __init__(self, depths: tuple[int, ...], in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 64
        for k, (depth, stride) in enumerate(zip(depths, (2, 2, 1, 1), strict=True)):
            width, blocks = 64 << k, []
            for i in range(depth):
                blocks.append(Bottleneck(channels, width, stride if i == depth - 1 else 1))
                channels = 4 * width
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
        self.compress1 = nn.Conv2d(channels, CHANNELS, 3, padding=1, bias=False)
        self.compress_bn = nn.BatchNorm2d(CHANNELS)
        self.relu1 = nn.ReLU()
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.num_features = CHANNELS
        self.default_input_size = (in_chans, 256, 256)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 8, H / 16, W / 16)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.relu1(self.compress_bn(self.compress1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 8)."""
        return self.global_pool(self.forward_features(x))


def _maker(depths: tuple[int, ...]) -> Callable[[int], nn.Module]:
    def make(in_chans: int = 3) -> nn.Module:
        return TaskonomyResNet(depths, in_chans)

    return make


MODELS: dict[str, Callable[[int], nn.Module]] = {n: _maker(d) for n, d in DEPTHS.items()}
