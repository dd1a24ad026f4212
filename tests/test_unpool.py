"""Dense backbones: the map below the pooled features, of the same trunk."""

import pytest
import torch
from torch import nn

from tailor.adapters import new_head
from tailor.backbone import Backbone
from tailor.cost import total_macs
from tailor.errors import BadInput
from tailor.target import CLASS, PIXEL_CLASS, PIXEL_VALUES
from tailor.unpool import unpool
from tests import tiny

POOLED = ["small_resnet", "wide_resnet26", "wrn28_4_ram", "resnet18", "efficientnet_b0"]


def images(px=32, count=2):
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", POOLED)
def test_the_mean_of_the_map_is_what_was_pooled(name):
    pooled = Backbone.create(name, weights="random", px=32)
    dense = Backbone.create(name, weights="random", px=32, dense=True)
    features = dense(images())
    torch.testing.assert_close(features.mean((2, 3)), pooled(images()), rtol=1e-5, atol=1e-6)
    assert tuple(features.shape[1:]) == dense.feature_shape
    assert dense.num_features == pooled.num_features == pooled.feature_shape[0]


@pytest.mark.parametrize("name", ["small_resnet", "wrn28_4_ram", "vit_tiny_patch16_224"])
def test_a_trunk_is_the_same_for_images_and_pixels(name):
    pooled = Backbone.create(name, weights="random", px=32)
    dense = pooled.seen_by(PIXEL_CLASS)
    assert dense.fingerprint() == pooled.fingerprint()
    assert [b.name for b in dense.blocks] == [b.name for b in pooled.blocks]
    shared = zip(pooled.parameters(), dense.parameters(), strict=True)
    assert all(a is b for a, b in shared)
    assert pooled(images()).ndim == 2  # left as it was
    assert pooled.seen_by(CLASS) is pooled


def test_a_dense_trunk_does_not_go_back_to_images():
    dense = Backbone.create("small_resnet", weights="random", px=32, dense=True)
    with pytest.raises(BadInput, match="'small_resnet' was built to return maps"):
        dense.seen_by(CLASS)


def test_tokens_become_the_grid_of_their_patches():
    dense = Backbone.create("vit_tiny_patch16_224", weights="random", px=64, dense=True)
    assert dense.feature_shape == (192, 4, 4)
    tokens = dense.model.forward_features(images(64))  # (2, 1 + 16, 192), the first for the class
    torch.testing.assert_close(dense(images(64))[:, :, 1, 2], tokens[:, 1 + 1 * 4 + 2])


def test_channels_that_are_last_come_first():
    class Last(nn.Module):
        num_features = 5

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 4, stride=4)
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x):
            maps = self.conv(x)
            pooled = self.pool(maps)
            return pooled if pooled.ndim == 2 else pooled.permute(0, 2, 3, 1)

    network = Last().eval()
    expected = network.conv(images(8))
    unpool(network, "last", (3, 8, 8))
    torch.testing.assert_close(network(images(8)), expected)


def test_a_network_that_pools_inside_its_code_is_refused():
    network = tiny.conv_net().model
    with pytest.raises(BadInput, match=r"backbone 'tiny' returns \(1, 10\) without its pooling"):
        unpool(network, "tiny", (3, 8, 8))


@pytest.mark.parametrize("target", [PIXEL_CLASS, PIXEL_VALUES], ids=lambda t: t.kind)
def test_the_head_of_pixels_is_as_large_as_the_image(target):
    dense = Backbone.create("small_resnet", weights="random", px=48).seen_by(target)
    head = new_head(dense, 4, 0)
    assert dense.feature_shape == (128, 3, 3)
    assert head(dense(images(48))).shape == (2, 4, 48, 48)
    assert head.out_features == 4


def test_the_head_of_pixels_costs_what_a_hand_count_says():
    dense = Backbone.create("small_resnet", weights="random", px=32, dense=True)
    head = new_head(dense, 3, 0)  # from 128 x 2 x 2 over sides 4, 8 and 16
    convolutions = [128 * 64 * 9, 64 * 32 * 9, 32 * 16 * 9, 16 * 16 * 9]
    norms, out = 2 * (64 + 32 + 16 + 16), 16 * 3 + 3
    assert sum(p.numel() for p in head.parameters()) == sum(convolutions) + norms + out
    positions = [4, 16, 64, 256]
    macs = sum(c * n for c, n in zip(convolutions, positions, strict=True)) + 16 * 3 * 256
    assert total_macs(head, dense.feature_shape) == macs


def test_the_head_is_a_function_of_its_seed():
    dense = Backbone.create("small_resnet", weights="random", px=32, dense=True)
    one, same, other = (new_head(dense, 3, seed).first[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
