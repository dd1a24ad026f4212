"""Frozen passes: the same outputs, in parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tailor.backbone import Backbone
from tailor.frozen import frozen_pass, part_of
from tests.tiny import conv_net, noise


class Seen(nn.Module):
    """Notes what it was given; the mean over pixels."""

    def __init__(self):
        super().__init__()
        self.sizes, self.innermost = [], []

    def forward(self, x):
        self.sizes.append(len(x))
        self.innermost.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.mean((2, 3))


def test_parts_together_are_the_whole_batch():
    images, seen = noise(7, 3, 8, 8), Seen()
    found = frozen_pass(seen, images, part=3)
    assert seen.sizes == [3, 3, 1]
    torch.testing.assert_close(found, images.mean((2, 3)), rtol=1e-5, atol=1e-7)


def test_channels_lie_innermost_unless_it_shall_be_exact():
    for exact in (True, False):
        seen = Seen()
        frozen_pass(seen, noise(2, 3, 8, 8), part=9, exact=exact)
        assert seen.innermost == [not exact]


def test_an_exact_pass_of_one_part_is_the_networks_own_to_the_bit():
    net, images = conv_net(), noise(5, 3, 8, 8)
    assert torch.equal(frozen_pass(net, images, part=5, exact=True), net(images))


def test_it_keeps_nothing_for_a_gradient():
    net, images = nn.Conv2d(3, 2, 1), noise(2, 3, 8, 8)
    assert not frozen_pass(net, images, part=1).requires_grad


def test_several_outputs_are_joined_one_by_one():
    images = noise(5, 3, 8, 8)
    found = frozen_pass(lambda x: (x.mean(1), x.amax((2, 3))), images, part=2)
    assert [t.shape for t in found] == [(5, 8, 8), (5, 3)]
    assert torch.equal(found[1], images.amax((2, 3)))


@pytest.mark.parametrize(("name", "images"), [("resnet44", 32), ("small_resnet", 343)])
def test_a_part_of_a_small_network_is_larger(name, images):
    # 3 G MACs: 31 images of 97.2 M, or 343 of 8.76 M; never fewer than 32
    backbone = Backbone.create(name, weights="random", px=32)
    assert part_of(backbone) == images
