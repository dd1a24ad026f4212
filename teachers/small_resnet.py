"""Small ResNets for small images: a ResNet-18 of a quarter or half its width.

The stem is one 3x3 convolution with stride 2 and no pooling, so that a 32 px character still has
16 x 16 positions in the first stage. ``small_resnet`` has 0.70 M parameters in 20 convolutions and
takes 8.9 M MACs at 32 px; ``small_resnet_w32`` has 2.80 M and 35 M. Made with timm's ResNet class,
hence with timm's names, block order and initialisation.

Source: He et al., Deep residual learning, CVPR 2016 (basic block).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from timm.models.resnet import BasicBlock, ResNet
from torch import nn


def small_resnet(in_chans: int = 3, *, width: int = 16) -> nn.Module:
    """``width``, 2, 4 and 8 times ``width`` channels in four stages of two blocks; no head."""
    model = ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=0,
        in_chans=in_chans,
        channels=tuple(width * k for k in (1, 2, 4, 8)),
        # timm fixes a plain stem at 64 channels; a deep one has twice `stem_width`. Replaced below.
        stem_type="deep",
        stem_width=width // 2,
        zero_init_last=False,
    )
    stem = nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = stem, nn.Identity()
    model.default_input_size = (in_chans, 32, 32)
    return model


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "small_resnet": small_resnet,
    "small_resnet_w32": partial(small_resnet, width=32),
}
