"""The Decathlon's Wide ResNet-26 against hand counts and a loop over its equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tailor.backbone import Backbone
from tailor.cost import total_macs
from teachers.wide_resnet import WideBlock


@pytest.fixture(scope="module")
def wide():
    return Backbone.create("wide_resnet26", weights="random", px=64)


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settled(block):
    """Norms with statistics that matter, in evaluation mode."""
    draw = torch.Generator().manual_seed(1)
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return block.eval()


def test_stem_and_blocks_have_the_published_number_of_parameters(wide):
    stem = 3 * 32 * 9 + 2 * 32
    first = [(ci, 2 * ci) for ci in (32, 64, 128)]
    blocks = sum(9 * ci * co + 9 * co**2 + 4 * co for ci, co in first)
    blocks += sum(3 * (18 * co**2 + 4 * co) for _, co in first)
    assert stem + blocks == 5_814_176
    assert wide.num_params - wide.num_features * 2 == 5_814_176  # the end norm apart


def test_macs_equal_a_hand_count(wide):
    # Sides 32, 16, 8; a stage's first convolution has half the inputs of the other seven.
    stem = 64 * 64 * 32 * 27
    stages = sum(
        side**2 * 9 * width**2 * 15 // 2 for side, width in ((32, 64), (16, 128), (8, 256))
    )
    assert total_macs(wide.model, (3, 64, 64)) == stem + stages == 852_885_504


def test_its_twelve_blocks_form_one_chain(wide):
    assert [b.name for b in wide.blocks] == [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(4)]
    assert wide.chain.broken == ""
    assert wide.blocks[0].in_shape == (32, 64, 64)
    assert [b.out_shape for b in wide.blocks[::4]] == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert {(b.activation, b.activation_calls) for b in wide.blocks} == {
        (f"{b.name}.act2", 1) for b in wide.blocks
    }
    assert wide.chain.tail[0] == "end_norm"


def test_its_own_size_is_that_of_the_decathlon():
    assert Backbone.create("wide_resnet26", weights="random").input_size == (3, 64, 64)


def test_it_sees_grey_images():
    grey = Backbone.create("wide_resnet26", weights="random", px=32, in_chans=1)
    assert grey(torch.zeros(2, 1, 32, 32)).shape == (2, 256)


def test_a_growing_block_matches_its_equation():
    block, x = settled(WideBlock(4, 8)), features(2, 4, 6, 6)
    with torch.no_grad():
        got = block(x)
        inner = F.conv2d(x, block.conv1.weight, stride=2, padding=1)
        inner = F.conv2d(_normed(block.bn1, inner).clamp(min=0), block.conv2.weight, padding=1)
        pooled = x.numpy().reshape(2, 4, 3, 2, 3, 2).mean(axis=(3, 5))
        shortcut = torch.from_numpy(np.concatenate([pooled, 0 * pooled], axis=1))
        torch.testing.assert_close(got, (_normed(block.bn2, inner) + shortcut).clamp(min=0))


def test_a_block_that_keeps_its_channels_keeps_its_shortcut():
    block, x = settled(WideBlock(4, 4)), features(2, 4, 5, 5)
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    with torch.no_grad():
        assert torch.equal(block(x), x.clamp(min=0))


def test_an_odd_side_is_rounded_up():
    block, x = settled(WideBlock(2, 4)), torch.ones(1, 2, 5, 5)
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    with torch.no_grad():
        # The last window of an odd side is a half one: its average is that of what is there.
        expected = torch.cat([torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)], dim=1)
        assert torch.equal(block(x), expected)


def test_nothing_but_a_norm_stands_between_blocks_and_pooling(wide):
    last, seen = wide.model.layer3[3], {}
    hook = last.register_forward_hook(lambda _, __, result: seen.update(x=result))
    norm = wide.model.end_norm
    norm.bias.data.fill_(-3.0)
    try:
        found = wide(features(2, 3, 64, 64))
    finally:
        hook.remove()
        norm.bias.data.zero_()
    assert found.min() < 0  # no ReLU follows
    torch.testing.assert_close(found, seen["x"].mean((2, 3)) / (1 + norm.eps) ** 0.5 - 3)


def _normed(norm, x):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
