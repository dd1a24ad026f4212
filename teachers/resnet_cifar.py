"""ResNets for CIFAR: three stages of 16, 32 and 64 channels for images of 32 px.

    resnet20, resnet32, resnet44, resnet56     3, 5, 7, 9 basic blocks in each stage

A stage's first block halves the side and doubles the channels; its shortcut has no weights: it
takes every other pixel and puts zeros around the channels, as many before as behind. ``resnet44``
has 657,936 parameters without a head and takes 97 M MACs; it is the base of side-tuning's
incremental CIFAR. Names and shapes are those of the published weights (a head is ``linear``), which
``--weights FILE`` reads. Those saw images normalised as ImageNet's, which is our default too.

Sources: He et al., Deep residual learning, CVPR 2016, section 4.2 (shortcut of option A);
initialisation of He et al., Delving deep into rectifiers, ICCV 2015. Published weights: Idelbayev,
https://github.com/akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)  # channels of the stages
PX = 32  # side of the input, if not told otherwise
DEPTHS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}  # blocks of a stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a ReLU follows their sum.

    Args:
        channels: of the input.
        out_channels: as many, or twice as many at half the side.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        grows = out_channels != channels
        self.conv1 = _conv(channels, out_channels, stride=2 if grows else 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = EveryOther() if grows else nn.Identity()
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same, or to (B, 2 C, H / 2, W / 2); an odd side is rounded up."""
        shortcut = self.shortcut(x)
        x = self.act1(self.bn1(self.conv1(x)))
        result: Tensor = self.act2(self.bn2(self.conv2(x)) + shortcut)
        return result


class EveryOther(nn.Module):
    """Every other row and column, between as many channels of zeros: half before, half behind."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2 C, H / 2, W / 2)."""
        before = x.shape[1] // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, x.shape[1] - before))


class CifarResNet(nn.Module):
    """(B, in_chans, H, W) images to (B, 64) features, or to logits after ``reset_classifier``.

    Args:
        in_chans: input channels.
        blocks: of each stage.
    """

    def __init__(self, in_chans: int = 3, *, blocks: int) -> None:
        super().__init__()
        self.num_features, self.num_classes = WIDTHS[-1], 0
        self.default_input_size = (in_chans, PX, PX)
        self.conv1 = _conv(in_chans, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features; logits where there is a head."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        result: Tensor = self.linear(self.global_pool(x))
        return result

    def get_classifier(self) -> nn.Module:
        """The head, as timm's networks hand it out."""
        return self.linear

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for so many classes; none for 0."""
        self.num_classes = num_classes
        self.linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def _stage(channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    others = (BasicBlock(out_channels, out_channels) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(channels, out_channels), *others)


def _conv(channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """3x3 without bias; weights from N(0, sqrt(2 / (9 channels)))."""
    conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


MODELS: dict[str, Callable[[int], nn.Module]] = {
    name: partial(CifarResNet, blocks=blocks) for name, blocks in DEPTHS.items()
}
