"""The heads of Taskonomy's networks: from 8 channels of 16 x 16 to an image, or to class scores.

A head is a small residual network on the map and a decoder behind it: for images fourteen layers
that go through 1024 channels up to 16 times the map's side, for classes two fully connected
layers. They are the large part of what a task costs: 16.45 M numbers for one image and 6.25 M for
1000 classes, against 0.92 M of a side network. Tensors have the names of the published files.

Sources: Zamir et al., Taskonomy, CVPR 2018, supplementary material; Zhang et al., Side-tuning, ECCV
2020 (residual transfer network). Published decoders end in a tanh whatever they predict; here class
scores do not, because scores within [-1, 1] cannot say that 1 of 18 classes is certain.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.errors import BadInput

HIDDEN = 2048  # of the class head, and what a map of 8 x 16 x 16 has
GROWTH = 16  # times the map's side
SLOPE = 0.2  # of the leaky ReLU
# Layers in order: name, channels in and out. The first takes the map; a deconv doubles the side.
LAYERS = (
    ("conv2", 8, 1024),
    ("conv3", 1024, 1024),
    ("conv4", 1024, 512),
    ("conv5", 512, 256),
    ("conv6", 256, 256),
    ("conv7", 256, 128),
    ("deconv8", 128, 64),
    ("conv9", 64, 64),
    ("deconv10", 64, 32),
    ("conv11", 32, 32),
    ("deconv12", 32, 16),
    ("conv13", 16, 32),
    ("deconv14", 32, 16),
)


class Transfer(nn.Module):
    """x + relu(conv(relu(conv(x)))): two 3x3 convolutions with bias, 1,168 numbers for 8 channels.

    Args:
        channels: of the map, in and out.
    """

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return features + F.relu(self.conv2(F.relu(self.conv1(features))))


class ImageDecoder(nn.Module):
    """(B, C, h, w) to (B, outputs, 16 h, 16 w); 16,453,009 numbers for C = 8 and one output.

    Args:
        outputs: channels of the image, or classes of a pixel; each further one is 145 numbers.
        bounded: end in a tanh, for values in [-1, 1].
        channels: of the map.
    """

    def __init__(self, outputs: int, *, bounded: bool = True, channels: int = 8) -> None:
        super().__init__()
        for name, before, after in LAYERS:
            before = channels if name == "conv2" else before
            make = _doubling if name.startswith("deconv") else _keeping
            self.add_module(name, nn.Sequential(*make(before, after)))
        last = nn.Conv2d(LAYERS[-1][2], outputs, 3, padding=1)
        self.decoder_output = nn.Sequential(last, nn.Tanh() if bounded else nn.Identity())

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, outputs, 16 h, 16 w)."""
        for layer in self.children():
            features = layer(features)
        return features


class ClassDecoder(nn.Module):
    """(B, 8, 16, 16) to (B, classes); 6,247,400 numbers for 1000 classes.

    Args:
        classes: how many scores.
        dropout: share of hidden numbers left out in training.
    """

    def __init__(self, classes: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.fc0 = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.bn0 = nn.BatchNorm1d(HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(HIDDEN, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) with C h w = 2048 to (B, classes)."""
        # Channels last, as in the TensorFlow weights that the published files were made from.
        flat = features.permute(0, 2, 3, 1).flatten(1)
        hidden: Tensor = self.dropout(F.relu(self.bn0(self.fc0(flat))))
        scores: Tensor = self.fc2(hidden)
        return scores


def taskonomy_head(
    feature_shape: tuple[int, ...], outputs: int, seed: int, *, dense: bool, bounded: bool
) -> nn.Module:
    """The residual transfer network and the decoder that fits the task.

    Args:
        feature_shape: (C, h, w) of the backbone's map.
        outputs: channels or classes.
        seed: of the initialisation, which depends on nothing else.
        dense: an output for every pixel; otherwise one for the image.
        bounded: end a dense decoder in a tanh, for values in [-1, 1].

    Raises:
        BadInput: the map is none, or the class head does not fit it.
    """
    if len(feature_shape) != 3:
        raise BadInput(
            f"decoder 'taskonomy' reads a map (channels, height, width), and the backbone returns "
            f"{feature_shape}: build it dense, or use the usual head"
        )
    channels, height, width = feature_shape
    if not dense and channels * height * width != HIDDEN:
        raise BadInput(
            f"decoder 'taskonomy' reads {HIDDEN} numbers for class scores, and the backbone's map "
            f"of {channels}x{height}x{width} has {channels * height * width}: use "
            f"taskonomy_resnet50 at 256 px"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder: nn.Module = (
            ImageDecoder(outputs, bounded=bounded, channels=channels)
            if dense
            else ClassDecoder(outputs)
        )
        return nn.Sequential(Transfer(channels), decoder)


class _Cut(nn.Module):
    """Without the last row and column: an unpadded transposed convolution gives one too many."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :-1, :-1]


def _keeping(before: int, after: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(before, after, 3, padding=1, bias=False)
    yield nn.BatchNorm2d(after)
    yield nn.LeakyReLU(SLOPE)


def _doubling(before: int, after: int) -> Iterator[nn.Module]:
    yield nn.Identity()  # the published files count their padding here: the weight is number 1
    yield nn.ConvTranspose2d(before, after, 3, stride=2, bias=False)
    yield _Cut()
    yield nn.BatchNorm2d(after)
    yield nn.LeakyReLU(SLOPE)
