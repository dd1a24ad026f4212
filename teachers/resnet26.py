"""ResNet-26 of residual adapters: the source network of the Visual Decathlon.

The network of ``wide_resnet.py`` (5,806,944 weights in 25 3x3 convolutions) with the published
program's activations: none behind the stem's norm, a ReLU behind the norm before pooling.

    resnet26                  32 | 64, 128, 256 channels: 5,814,688 parameters
    resnet26_x05, _x2         half and twice the channels
    resnet26_series           a series adapter behind every 3x3 convolution, the stem's too:
                              the source network of the NeurIPS 2017 paper, 6,511,072 parameters

timm has another network named ``resnet26``, with bottlenecks; here that is ``resnet26.bt_in1k``.

Sources: Rebuffi, Bilen, Vedaldi: Learning multiple visual domains with residual adapters, NeurIPS
2017, and Efficient parametrization of multi-domain deep neural networks, CVPR 2018. Left out:
parallel adapters, which are a student's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from tailor.pointwise import SeriesAdapter
from teachers.wide_resnet import Plan, WideResNet


def resnet26(
    in_chans: int = 3, *, factor: float = 1.0, adapter: Callable[[int], nn.Module] = nn.Identity
) -> nn.Module:
    """The network without head.

    Args:
        in_chans: input channels.
        factor: what all channels but those of the input are multiplied by.
        adapter: what follows every 3x3 convolution, given its channels.
    """
    stem, *widths = (int(channels * factor) for channels in (32, 64, 128, 256))
    plan = Plan(stem=stem, widths=tuple(widths), stem_act=False, end_act=True, adapter=adapter)
    return WideResNet(in_chans, plan)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet26": resnet26,
    "resnet26_x05": partial(resnet26, factor=0.5),
    "resnet26_x2": partial(resnet26, factor=2.0),
    "resnet26_series": partial(resnet26, adapter=SeriesAdapter),
}
