"""The CIFAR ResNets: hand counts, a loop over the published tensors, the published files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from students import nettailor
from tailor.adapters import with_head
from tailor.backbone import Backbone
from tailor.cost import total_macs
from tailor.errors import BadInput
from tailor.source_head import source_head
from teachers.resnet_cifar import DEPTHS
from tests.references import resnet_cifar as reference

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "weights"
LISTED = {"resnet20": 271_098, "resnet32": 466_426, "resnet44": 661_754, "resnet56": 857_082}


def params(blocks):
    """Parameters without head: 3x3 convolutions without bias, two numbers per norm channel."""
    stem = 27 * 16 + 2 * 16
    even = sum(2 * (9 * width**2 + 2 * width) * blocks for width in (16, 32, 64))
    return stem + even - sum(9 * width**2 // 2 for width in (32, 64))  # half the input channels


def macs(blocks):
    """A 3x3 map of w channels at side s is 9 w² s² products: the same in every stage."""
    one = 9 * 16**2 * 32**2
    assert one == 9 * 32**2 * 16**2 == 9 * 64**2 * 8**2
    return 27 * 16 * 32**2 + one * (6 * blocks - 1)  # the two growing convolutions are half ones


def published(name, seed=0):
    """A file of the published layout with random numbers that all matter; head of ten classes."""
    backbone = Backbone.create(name, weights="random")
    network = with_head(backbone.model, nn.Linear(64, 10))
    draw = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(tensor.shape, generator=draw) + 0.5 if "bn" in key else tensor.clone()
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def images(count=4, px=32, seed=0):
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", DEPTHS)
def test_parameters_and_macs_equal_a_hand_count(name):
    backbone = Backbone.create(name, weights="random")
    assert backbone.num_params == params(DEPTHS[name])
    assert total_macs(backbone.model, (3, 32, 32)) == macs(DEPTHS[name])


@pytest.mark.parametrize("name", LISTED)
def test_published_files_have_as_many_numbers_as_their_list_says(name):
    # Parameters, a head of ten classes, and two statistics for every channel of every norm.
    channels = 16 + sum(2 * DEPTHS[name] * width for width in (16, 32, 64))
    assert params(DEPTHS[name]) + 650 + 2 * channels == LISTED[name]


def test_resnet44_has_the_parameters_of_the_base_of_icifar():
    assert params(7) == 657_936
    assert Backbone.create("resnet44", weights="random").num_params == 657_936


@pytest.mark.parametrize("name", DEPTHS)
def test_blocks_form_one_chain_of_six_n_plus_two_layers(name):
    backbone, blocks = Backbone.create(name, weights="random"), DEPTHS[name]
    assert [b.name for b in backbone.blocks] == [
        f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(blocks)
    ]
    assert backbone.chain.broken == ""
    assert len(backbone.layers) + 1 == 6 * blocks + 2 == int(name.removeprefix("resnet"))
    assert [b.out_shape for b in backbone.blocks[::blocks]] == [
        *((16, 32, 32), (32, 16, 16), (64, 8, 8)),
    ]
    assert {(b.activation, b.activation_calls) for b in backbone.blocks} == {
        (f"{b.name}.act2", 1) for b in backbone.blocks
    }


def test_its_own_size_is_that_of_cifar():
    backbone = Backbone.create("resnet20", weights="random")
    assert (backbone.input_size, backbone.num_features) == ((3, 32, 32), 64)


@pytest.mark.parametrize("px", [32, 27])
def test_features_are_those_of_a_loop_over_the_tensors(tmp_path, px):
    state = published("resnet20")
    save_file(state, tmp_path / "weights.safetensors")
    backbone = Backbone.create("resnet20", weights=tmp_path / "weights.safetensors", px=px)
    expected = reference.features(state, images(px=px))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images(px=px)), expected, rtol=1e-4, atol=1e-4)


def test_the_shortcut_puts_as_many_zeros_before_as_behind():
    block = Backbone.create("resnet20", weights="random").model.layer2[0]
    nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    got = block.eval()(x)
    assert got.shape == (2, 32, 3, 3)
    assert torch.equal(got[:, 8:24], x[:, :, ::2, ::2])
    assert got[:, :8].abs().sum() == got[:, 24:].abs().sum() == 0


def test_a_published_head_is_the_source_head(tmp_path):
    state = published("resnet20")
    save_file(state, tmp_path / "weights.safetensors")
    backbone = Backbone.create("resnet20", weights=tmp_path / "weights.safetensors")
    head = source_head(backbone)
    assert torch.equal(head.weight, state["linear.weight"])
    with torch.no_grad():
        torch.testing.assert_close(
            head(backbone(images())), reference.logits(state, images()), rtol=1e-4, atol=1e-3
        )


def test_weights_of_another_depth_are_refused(tmp_path):
    save_file(published("resnet20"), tmp_path / "weights.safetensors")
    with pytest.raises(BadInput, match=r"lacks 'layer1\.3\.conv1\.weight' \(60 missing, 0 extra"):
        Backbone.create("resnet32", weights=tmp_path / "weights.safetensors")


def test_a_head_returns_under_its_published_name():
    backbone = Backbone.create("resnet20", weights="random")
    network = with_head(backbone.model, nn.Linear(64, 7))
    assert network.state_dict()["linear.weight"].shape == (7, 64)
    assert network.eval()(images()).shape == (4, 7)


def test_grey_images_see_the_summed_first_convolution(tmp_path):
    state = published("resnet20")
    save_file(state, tmp_path / "weights.safetensors")
    grey = Backbone.create("resnet20", weights=tmp_path / "weights.safetensors", in_chans=1)
    x = images()[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(
            grey(x), reference.features(state, x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
        )


def test_nettailor_can_skip_its_blocks():
    backbone = Backbone.create("resnet20", weights="random", px=16)
    student = nettailor.build(backbone, 5, nettailor.Config(), seed=0)
    assert student.eval()(images(px=16)).logits.shape == (4, 5)


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the published weights are not here")
@pytest.mark.parametrize("name", DEPTHS)
def test_published_weights_compute_what_the_loop_computes(name):
    file = WEIGHTS / f"{name}_cifar10_akamaster.safetensors"
    backbone = Backbone.create(name, weights=file)
    with torch.no_grad():
        got = source_head(backbone)(backbone(images()))
        torch.testing.assert_close(got, reference.logits(load_file(file), images()))
