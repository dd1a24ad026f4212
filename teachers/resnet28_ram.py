"""ResNet-28 with residual adapter modules (RAM): the two networks of a Keras re-implementation.

A RAM is a series adapter behind a 3x3 convolution: a + map(norm(a)). Both networks have one behind
each of their 25 3x3 convolutions, and 1x1 convolutions as shortcuts between stages.

    wrn28_4_ram     stem 16, 64, 128, 256 channels at sides 32, 16, 8; no biases; a ReLU behind the
                    stem's norm; norm and ReLU behind every stage: 6,542,960 parameters
    resnet28_ram    stem 32, sides 32, 16, 8 of 64 px; every convolution and map has a bias; norm
                    and ReLU behind the last stage only: 6,561,760 parameters

The published totals (6,558,770 with 2 classes, 6,579,306 with 10) also count running statistics and
the classifier. To adapt one to a task as was meant, its 3x3 convolutions stay as they are and maps,
norms and head are learned (704,194 numbers of ``wrn28_4_ram`` with 2 classes): the student
``residual_adapters`` with ``--adapters series``.

Source: the README and layer lists of github.com/astha-chem/Decathlon-Residual-Adapters-Keras (the
network of commit 38b604e, and the last one) after Rebuffi et al., NeurIPS 2017. Otherwise than
there: strided convolutions pad all sides alike (Keras: right and bottom only); pooling takes images
of any size; the head has no softmax; kernels are drawn by outputs, not by inputs. The older
network's norms ask for "momentum 0.1", which Keras reads as what stays and torch as what is new;
torch's reading is taken. Its norms start at a scale of 1, not at random ones around 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from tailor.pointwise import SeriesAdapter
from teachers.wide_resnet import Plan, WideResNet

# What Keras calls momentum 0.99 is 0.01 here: statistics are the data's after some hundred steps.
KERAS_NORM = {"eps": 1e-3, "momentum": 0.01}

WRN28_4_RAM = Plan(
    stem=16,
    strides=(1, 2, 2),
    px=32,
    end_act=True,
    stage_ends=True,
    mapped=True,
    adapter=SeriesAdapter,
)
RESNET28_RAM = Plan(
    stem_act=False,
    end_act=True,
    mapped=True,
    bias=True,
    norm=partial(nn.BatchNorm2d, **KERAS_NORM),
    adapter=partial(SeriesAdapter, bias=True, **KERAS_NORM),
)

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "wrn28_4_ram": partial(WideResNet, plan=WRN28_4_RAM),
    "resnet28_ram": partial(WideResNet, plan=RESNET28_RAM),
}
