"""Side networks: published sizes and weights, narrow copies, stages that can be switched off."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.narrow import narrow
from tailor.opened import batches
from tailor.options import Data
from tailor.settings import Settings
from tailor.side import fcn4, fcn5, load_side, side_network, side_path
from tailor.source_head import source_head
from tailor.stages import Shortcut, Stage, stages_of, straight_through, switched, without
from tailor.task import open_task
from tailor.weights import read_state
from tests.tiny import conv_net, noise

SHARED = Path(__file__).parents[2] / "shared" / "data"
published = pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason="needs the published weights in ../shared/data"
)


def numbers(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def resnet():
    return Backbone.create("resnet44", weights="random", px=32)


# The two FCNs ---------------------------------------------------------------------------------


def test_fcn4_has_the_published_size_and_sides():
    # 3 -> 16 -> 16 -> 32 -> 64 channels of 3x3 without bias, three affine norms.
    by_hand = 9 * (3 * 16 + 16 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 16 + 32)
    side = fcn4()
    assert numbers(side) == by_hand == 25904
    shapes = [s.out_shape for s in stages_of(side, (3, 32, 32))]
    assert shapes == [(16, 32, 32), (16, 15, 15), (32, 7, 7), (64, 5, 5)]
    assert side(noise(2, 3, 32, 32)).shape == (2, 64)


def test_fcn4_is_its_layers_in_plain_functions():
    side, x = fcn4(64), noise(2, 3, 32, 32)
    t, h = dict(side.named_parameters()), x
    for name, stride, padding in (("conv1", 1, 1), ("conv2", 2, 0), ("conv3", 2, 0)):
        h = F.conv2d(h, t[f"{name}.0.weight"], stride=stride, padding=padding)
        h = F.group_norm(h, 2, t[f"{name}.1.weight"], t[f"{name}.1.bias"]).relu()
    h = F.conv2d(h, t["conv5.0.weight"]).relu()
    assert h.shape == (2, 64, 5, 5)
    torch.testing.assert_close(side(x), F.avg_pool2d(h, 5).flatten(1))


def test_fcn5_has_the_published_size_and_skips_from_the_second_layer():
    by_hand = 64 * 3 * 64 + 9 * (64 * 256 + 256 * 256 + 256 * 64 + 64 * 8 + 256 * 8)
    by_hand += 2 * (64 + 256 + 256 + 64 + 8 + 8)
    side, x = fcn5(), noise(1, 3, 256, 256)
    assert numbers(side) == by_hand == 921376
    second = side.conv2(side.conv1(x))
    third = side.conv3(second)
    assert (second.shape, third.shape) == ((1, 256, 32, 32), (1, 256, 16, 16))
    wanted = side.conv5(side.conv4(third)) + side.skip(second)
    assert wanted.shape == (1, 8, 16, 16)
    assert torch.equal(side(x), wanted)
    pooled = fcn5(pooled=True)
    pooled.load_state_dict(side.state_dict())
    torch.testing.assert_close(pooled(x), wanted.mean((2, 3)))


@pytest.mark.parametrize("name", ["fcn4", "fcn5"])
def test_sides_take_the_width_and_channels_of_the_base(name):
    backbone = Backbone.create("small_resnet", weights="random", px=32, in_chans=1)
    side = side_network(name, backbone)
    assert side(noise(2, 1, 32, 32)).shape == (2, 128)


def test_a_dense_base_gets_maps():
    backbone = Backbone.create("resnet44", weights="random", px=32, dense=True)
    assert backbone.feature_shape == (64, 8, 8)
    assert side_network("fcn4", backbone)(noise(1, 3, 32, 32)).shape == (1, 64, 5, 5)
    path = side_path("narrow", backbone, width=0.5)
    assert path(noise(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    assert isinstance(path[1], nn.Conv2d)
    with pytest.raises(BadInput, match=r"returns \(64, 8, 8\), side 'fcn4' \(64, 5, 5\)"):
        side_path("fcn4", backbone, project=False)


def test_a_map_of_other_sides_is_resized_without_parameters():
    backbone = Backbone.create("resnet44", weights="random", px=32, dense=True)
    resized = side_path("fcn4", backbone)[1]
    assert not list(resized.parameters())
    flat = resized(torch.full((1, 64, 5, 5), 3.0))  # a flat map stays flat, whatever its sides
    assert torch.equal(flat, torch.full((1, 64, 8, 8), 3.0))
    row = resized(torch.arange(5.0).repeat(1, 64, 5, 1))[0, 0, 0]
    # Pixel centres: output i lies at 5 (i + .5) / 8 - .5 of the input, cut at its borders.
    wanted = [min(max(5 * (i + 0.5) / 8 - 0.5, 0.0), 4.0) for i in range(8)]
    assert row.tolist() == pytest.approx(wanted)
    both = side_path("timm:small_resnet", backbone)[1]
    assert [type(m).__name__ for m in both] == ["Conv2d", "Resized"]


def test_timm_networks_serve_as_sides_with_a_map_to_the_base_width(resnet):
    path = side_path("timm:mobilenetv3_small_050", resnet)
    assert path[1].weight.shape == (64, 1024)
    assert path(noise(2, 3, 32, 32)).shape == (2, 64)
    with pytest.raises(BadInput, match=r"returns \(64,\), side .* \(1024,\); give --project"):
        side_path("timm:mobilenetv3_small_050", resnet, project=False)


def test_a_timm_copy_says_what_the_base_says():
    backbone = Backbone.create("mobilenetv3_small_050", weights="random", px=32)
    side = side_network("timm:mobilenetv3_small_050", backbone, init="copy")
    images = noise(2, 3, 32, 32)
    assert torch.equal(side.eval()(images), backbone(images))
    with pytest.raises(BadInput, match="'small_resnet' is another than 'mobilenetv3_small_050'"):
        side_network("timm:small_resnet", backbone, init="copy")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcn9", {}, "side 'fcn9' is no side network; give --side fcn4, fcn5, narrow or timm:NAME"),
        ("timm:resnet81", {}, "unknown backbone 'resnet81': did you mean"),
        ("fcn4", {"init": "copy"}, "side_init 'copy' needs a side of the backbone's architecture"),
        ("narrow", {"width": 0.3}, "width is 0.3; give 1, 0.5, 0.25 or another 1/k"),
        ("narrow", {"width": 1 / 3}, "no copy of 1/3 of its width .* 16 channels, which 3"),
    ],
)
def test_bad_sides_are_named(resnet, name, options, message):
    with pytest.raises(BadInput, match=message):
        side_network(name, resnet, **options)


def test_images_too_small_for_a_side_are_refused():
    with pytest.raises(BadInput, match=r"side 'fcn4' cannot run on an image of 3x8x8.*larger --px"):
        side_network("fcn4", conv_net())


def test_the_start_is_a_function_of_the_seed(resnet):
    for name in ("fcn4", "narrow"):
        first, again, other = (
            next(side_network(name, resnet, seed=s).parameters()) for s in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


# Published weights ----------------------------------------------------------------------------


@published
@pytest.mark.parametrize("name", ["autoencoding", "curvature"])
def test_published_fcn5_weights_load(name):
    side, file = fcn5(), SHARED / "weights" / f"sidetuning_fcn5_{name}.safetensors"
    load_side(side, nn.Identity(), file)
    state = read_state(file)
    assert all(torch.equal(t, state[n]) for n, t in side.state_dict().items())
    assert side(noise(1, 3, 256, 256)).std() > 0.1


@published
def test_published_fcn4_says_what_its_resnet44_says():
    weights = SHARED / "weights"
    backbone = Backbone.create(
        "resnet44", weights=weights / "resnet44_cifar10_akamaster.safetensors"
    )
    file = weights / "sidetuning_fcn4_cifar.safetensors"
    side, state = fcn4(), read_state(file)
    load_side(side, nn.Identity(), file)
    data = Data(task=f"npz:{SHARED / 'source_objects'}", px=32)
    task = open_task(data.task)
    splits = {"test": task.splits["test"].subset(range(0, 1290, 3))}
    task = dataclasses.replace(task, splits=splits)
    found = batches(task, "test", backbone, data, Settings(device="cpu"))
    images = torch.cat([batch.images for batch in found.epoch(0)])
    head, side = source_head(backbone), side.eval()
    with torch.no_grad():
        base = head(backbone(images))
        mine = F.linear(side(images), state["linear.module.weight"], state["linear.module.bias"])
        wrong = copy.deepcopy(side)
        wrong.conv5 = side.conv5[0]  # the last ReLU left out
        less = F.linear(wrong(images), state["linear.module.weight"], state["linear.module.bias"])
    agree = (base.argmax(1) == mine.argmax(1)).float()
    sure = base.softmax(1).amax(1) > 0.95
    # Chance is .10 and the largest of the ten classes .25: these are no images of CIFAR-10.
    assert agree.mean() > 0.38
    assert agree[sure].mean() > 0.46
    assert (base.argmax(1) == less.argmax(1)).float().mean() < 0.2


def test_weights_load_all_or_nothing(tmp_path):
    state = {n: noise(*t.shape, seed=i) for i, (n, t) in enumerate(fcn4().state_dict().items())}
    head = {"linear.module.weight": noise(10, 64), "linear.module.bias": noise(10)}
    save_file(state | head, tmp_path / "whole.safetensors")
    side = fcn4()
    load_side(side, nn.Identity(), tmp_path / "whole.safetensors")
    assert all(torch.equal(t, state[n]) for n, t in side.state_dict().items())
    spoiled = {
        "lacks": {n: t for n, t in state.items() if n != "conv3.1.bias"},
        "more": state | {"conv4.0.weight": noise(3)},
        "shape": state | {"conv5.0.weight": noise(8, 32, 3, 3)},
    }
    messages = {
        "lacks": r"'conv3.1.bias' is missing in the file and \(32,\) here",
        "more": r"'conv4.0.weight' is \(3,\) in the file and missing here",
        "shape": r"'conv5.0.weight' is \(8, 32, 3, 3\) in the file and \(64, 32, 3, 3\) here",
    }
    for name, tensors in spoiled.items():
        save_file({n: t + 1 for n, t in tensors.items()}, tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
        with pytest.raises(BadInput, match=messages[name]):
            load_side(side, nn.Identity(), tmp_path / f"{name}.safetensors")
    assert all(torch.equal(t, state[n]) for n, t in side.state_dict().items())
    with pytest.raises(BadInput, match="is no file and no finished run of `tailor distill`"):
        load_side(side, nn.Identity(), tmp_path / "absent")


# Narrow copies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["resnet44", "small_resnet", "mobilenetv3_small_050", "convnext_atto", "densenet121"],
)
def test_a_narrow_copy_has_every_kth_channel(name):
    backbone = Backbone.create(name, weights="random", px=32)
    whole, half = backbone.model.state_dict(), narrow(backbone, 0.5, init="copy").state_dict()
    assert set(half) == set(whole)
    for key, tensor in half.items():
        index = [
            slice(None, None, 1 if here == there else 2)
            for here, there in zip(tensor.shape, whole[key].shape, strict=True)
        ]
        assert torch.equal(tensor, whole[key][tuple(index)]), key
    out = narrow(backbone, 0.5)(noise(2, 3, 32, 32))
    assert out.shape == (2, backbone.num_features // 2)


def test_a_narrow_resnet44_has_a_hand_count():
    backbone = Backbone.create("resnet44", weights="random", px=32)

    def count(width):  # stem, then 14 3x3 convolutions and norms per stage, one of which widens
        total, before = 9 * 3 * width + 2 * width, width
        for stage in (width, 2 * width, 4 * width):
            total += 9 * before * stage + 13 * 9 * stage * stage + 14 * 2 * stage
            before = stage
        return total

    assert backbone.num_params == count(16) == 657936
    assert numbers(narrow(backbone, 0.5)) == count(8)
    assert numbers(narrow(backbone, 0.25)) == count(4)


def test_a_copy_of_full_width_is_the_base_to_the_bit_and_shares_nothing():
    backbone = Backbone.create("small_resnet", weights="random", px=32)
    copied, images = narrow(backbone, 1.0, init="copy"), noise(2, 3, 32, 32)
    assert torch.equal(copied.eval()(images), backbone(images))
    before = backbone.fingerprint()
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert backbone.fingerprint() == before


def test_narrow_copies_keep_running_statistics():
    backbone = Backbone.create("small_resnet", weights="random", px=32)
    norm = backbone.model.layer1[0].bn1
    norm.running_mean.copy_(torch.arange(16.0))
    narrowed = narrow(backbone, 0.25, init="copy").layer1[0].bn1
    assert narrowed.running_mean.tolist() == [0.0, 4.0, 8.0, 12.0]


def test_a_network_with_sizes_in_its_code_is_refused_in_one_line():
    backbone = Backbone.create("vit_tiny_patch16_224", weights="random", px=32)
    with pytest.raises(BadInput, match=r"no copy of 1/2 of its width .* give another --width") as e:
        narrow(backbone, 0.5)
    assert "\n" not in str(e.value)


# Stages ---------------------------------------------------------------------------------------


def test_stages_of_an_fcn_cost_a_hand_count():
    found = stages_of(fcn4(), (3, 32, 32))
    assert [s.name for s in found] == ["conv1", "conv2", "conv3", "conv5"]
    assert [s.params for s in found] == [432 + 32, 2304 + 32, 4608 + 64, 18432]
    assert [s.macs for s in found] == [432 * 32**2, 2304 * 15**2, 4608 * 7**2, 18432 * 5**2]


def test_stages_of_another_network_are_its_blocks():
    backbone = Backbone.create("small_resnet", weights="random", px=32)
    found = stages_of(narrow(backbone, 0.5), (3, 32, 32))
    assert [s.name for s in found] == [block.name for block in backbone.blocks]
    assert sum(s.macs for s in found) > 0


def test_a_shortcut_pools_and_fills_channels_with_zeros_or_cuts_them():
    x = noise(2, 4, 6, 6).numpy()
    pooled = x.reshape(2, 4, 3, 2, 3, 2).mean((3, 5))
    more = Shortcut((4, 6, 6), (6, 3, 3))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(more[:, :4], pooled, atol=1e-6)
    assert not more[:, 4:].any()
    less = Shortcut((4, 6, 6), (2, 3, 3))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(less, pooled[:, :2], atol=1e-6)
    same = torch.from_numpy(x)
    assert Shortcut((4, 6, 6), (4, 6, 6))(same) is same
    assert not list(Shortcut((4, 6, 6), (6, 3, 3)).parameters())


@pytest.mark.parametrize("on", [True, False])
def test_a_score_gets_the_gradient_of_mixing_whatever_is_on(on):
    score = torch.tensor(0.3, requires_grad=True)
    opened, closed = (noise(3, 2, seed=s).requires_grad_(True) for s in (0, 1))
    weight = noise(3, 2, seed=2)
    result = straight_through(score, opened, closed, on=on)
    assert torch.equal(result, opened if on else closed)
    (result * weight).sum().backward()
    torch.testing.assert_close(score.grad, (weight * (opened - closed)).sum().detach())
    assert torch.equal((opened if on else closed).grad, weight)
    assert (closed if on else opened).grad is None


def test_switches_share_the_side_and_close_stage_by_stage():
    side, images = fcn4().eval(), noise(2, 3, 32, 32)
    stages = stages_of(side, (3, 32, 32))
    view, switches = switched(side, stages)
    with torch.no_grad():
        assert torch.equal(view(images), side(images))
        switches["conv2"].on = False
        x = side.conv1(images)
        x = F.pad(F.adaptive_avg_pool2d(x, 15), (0, 0, 0, 0, 0, 0))
        wanted = side.conv5(side.conv3(x)).mean((2, 3))
        torch.testing.assert_close(view(images), wanted)
        smaller = without(side, [s for s in stages if s.name == "conv2"])
        assert torch.equal(smaller(images), view(images))
    assert numbers(smaller) == 25904 - 2336
    assert smaller.conv5[0].weight is side.conv5[0].weight


@pytest.mark.parametrize("name", ["fcn4", "fcn5", "narrow"])
def test_any_stages_may_be_off(name):
    backbone = Backbone.create("resnet20", weights="random", px=32)
    side = side_network(name, backbone, width=0.5)
    stages = stages_of(side, (3, 32, 32))
    wanted = side.eval()(noise(2, 3, 32, 32)).shape
    for chosen in ([], stages[:1], stages[1::2], stages[-2:], stages):
        assert without(side, chosen).eval()(noise(2, 3, 32, 32)).shape == wanted


def test_a_stage_is_named_once_with_its_shapes():
    stage = stages_of(fcn5(), (3, 256, 256))[-1]
    assert stage == Stage("skip", (256, 32, 32), (8, 16, 16), 18448, 18432 * 256)
