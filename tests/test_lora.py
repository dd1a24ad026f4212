"""LoRA: what it computes against merged weights, how it starts, what it costs, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F

from students import bn_adapt, lora
from students.lora import Config, LowRank, build, full_rank, rebuild
from tailor.adapters import linear_head
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.outcome import parameters
from tailor.prune import prune
from tailor.settings import Settings
from tailor.step import training_step
from tests import tiny
from tests.learned import accuracy
from tests.tiny import lively, noise

LAYERS = {
    "3x3": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "1x1": nn.Conv2d(4, 6, 1),
    "1x3": nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    "same": nn.Conv2d(4, 6, (3, 5), padding="same"),
    "groups": nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "wider depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "tensorflow": Conv2dSame(4, 6, 3, stride=2),
    "linear": nn.Linear(4, 6),
}


def network(name="small_resnet"):
    return Backbone.create(name, weights="random", px=32)


def layer_and_path(kind, rank, scale=1.0):
    """One of ``LAYERS``, frozen, and a path beside it whose B is not 0."""
    layer = copy.deepcopy(LAYERS[kind]).requires_grad_(False)
    path = LowRank(layer, rank=rank, scale=scale, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        path.up.copy_(noise(*path.up.shape, seed=2))
    return layer, path


def merged_by_hand(layer, path):
    """W + scale · B A, one output channel and one tap after the other."""
    weight = layer.weight.clone()
    groups, rank = getattr(layer, "groups", 1), path.up.shape[1]
    for row in range(len(weight)):
        group = row // (len(weight) // groups)
        for k in range(rank):
            weight[row] += path.scale * path.up[row, k] * path.down[group * rank + k]
    return weight.detach()


def run(layer, weight, x):
    """The layer with another weight."""
    plain = copy.deepcopy(layer)
    plain.weight.copy_(weight)
    return plain(x)


# What it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_thin_path_equals_the_layer_with_a_merged_weight(kind, rank):
    layer, path = layer_and_path(kind, rank, scale=0.7)
    x = noise(3, 5, 4) if kind == "linear" else noise(2, 4, 9, 11)
    expected = run(layer, merged_by_hand(layer, path), x)
    for training in (True, False):  # beside the layer, and folded into it
        found = path.train(training)(x, layer, path.opened(layer))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["3x3", "groups", "linear"])
def test_gradients_of_the_factors_are_those_of_the_merged_weight(kind):
    layer, path = layer_and_path(kind, 2)
    x = noise(3, 5, 4) if kind == "linear" else noise(2, 4, 7, 7)
    path.train()(x, layer, path.opened(layer)).square().sum().backward()
    weight = merged_by_hand(layer, path).requires_grad_()
    arguments = () if kind == "linear" else (layer.stride, layer.padding, 1, layer.groups)
    apply = F.linear if kind == "linear" else F.conv2d
    apply(x, weight, layer.bias, *arguments).square().sum().backward()
    groups = getattr(layer, "groups", 1)
    into = weight.grad.reshape(groups, weight.shape[0] // groups, -1)  # (G, M / G, N)
    up, down = path.up.view(groups, -1, 2), path.down.view(groups, 2, -1)
    into_up, into_down = into @ down.mT, up.mT @ into
    torch.testing.assert_close(path.up.grad, into_up.reshape(path.up.shape), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        path.down.grad, into_down.reshape(path.down.shape), rtol=1e-4, atol=1e-3
    )


def test_alpha_over_rank_scales_the_change():
    small, large = (build(network(), 5, Config(alpha=a, rank=4)) for a in (4.0, 12.0))
    assert {p.scale for _, p in small.task.adapters.items()} == {1.0}
    assert {p.scale for _, p in large.task.adapters.items()} == {3.0}
    name = "layer2.0.conv1"
    layer = small.universal.model.get_submodule(name)
    changes = []
    for student in (small, large):
        path = lively(student).task.adapters[name]
        changes.append(path.fold(layer, path.opened(layer))[0] - layer.weight)
    # Sums of W + delta are rounded at the size of W, about 1e-8.
    torch.testing.assert_close(3 * changes[0], changes[1], rtol=1e-4, atol=1e-6)


def test_dropout_spares_the_layer_and_doubles_what_it_keeps():
    layer = nn.Linear(1, 1).requires_grad_(False)
    path = LowRank(layer, rank=1, scale=1.0, dropout=0.5).train()
    with torch.no_grad():
        path.down.fill_(1.0)
        path.up.fill_(1.0)
    x = torch.ones(200, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved = path(x, layer, path.opened(layer)) - layer(x)
    assert {round(v, 5) for v in moved.flatten().tolist()} == {0.0, 2.0}
    moved = path.eval()(x, layer, path.opened(layer)) - layer(x)
    torch.testing.assert_close(moved, torch.ones(200, 1))


# How it starts --------------------------------------------------------------------------------


def test_a_starts_kaiming_uniform_and_b_at_zero():
    path = dict(build(network(), 5, seed=4).task.adapters.items())["layer4.1.conv2"]
    # Uniform within 1 / sqrt(fan in), fan in = 128 * 9, whose deviation is that over sqrt(3).
    bound = (128 * 9) ** -0.5
    assert float(path.down.detach().abs().max()) == pytest.approx(bound, rel=1e-2)
    assert float(path.down.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not path.up.any()
    other = dict(build(network(), 5, seed=5).task.adapters.items())["layer4.1.conv2"]
    assert not torch.equal(path.down, other.down)


@pytest.mark.parametrize("norms", ["own", "universal"])
@pytest.mark.parametrize("name", ["small_resnet", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_step_0_equals_the_source_network_bit_for_bit(name, norms):
    backbone = network(name)
    student, x = build(backbone, 5, Config(norms=norms)), noise(4, 3, 32, 32)
    expected = nn.Sequential(
        copy.deepcopy(backbone.model), linear_head(backbone.num_features, 5, 0)
    )
    with torch.no_grad():
        assert torch.equal(student.eval()(x).logits, expected.eval()(x))
        if norms == "own":
            assert torch.equal(student.train()(x).logits, expected.train()(x))


def test_universal_norms_stay_the_sources_in_training_too():
    backbone, x = network(), noise(4, 3, 32, 32)
    student = build(backbone, 5, Config(norms="universal"))
    before = backbone.fingerprint()
    settings = Settings(lr=0.05)
    optimizer = build_optimizer(student, settings)
    training_step(student.train(), optimizer, x, torch.arange(4), settings, epoch=0)
    assert set(student.roles()) == {"adapters", "head"}
    assert parameters(student).norms == 0
    assert backbone.fingerprint() == before
    with torch.no_grad():  # statistics of the source, whatever the batch
        one, all_ = student.train()(x[:1]).logits, student.train()(x).logits[:1]
    torch.testing.assert_close(one, all_, rtol=1e-4, atol=1e-5)


def test_it_learns_at_the_default_learning_rate_what_norms_and_head_cannot():
    assert accuracy(lora) > accuracy(bn_adapt) + 0.2


# What it costs --------------------------------------------------------------------------------


def test_parameters_of_a_layer_are_those_of_its_two_factors():
    student = build(network(), 5)
    size = {n: sum(p.numel() for p in a.parameters()) for n, a in student.task.adapters.items()}
    assert size["layer4.1.conv2"] == 8 * (128 * 9 + 128)
    assert size["layer2.0.conv1"] == 8 * (16 * 9 + 32)
    assert size["conv1"] == 8 * (3 * 9 + 16)
    assert set(size) == {x.name for x in student.universal.layers}
    assert parameters(student).adapters == sum(size.values())


def test_a_smaller_weight_gets_the_rank_that_it_can_have():
    student = build(network("convnext_atto"), 5)
    adapters = dict(student.task.adapters.items())
    # Depthwise 7x7 on 40 channels: a rank of 1 in each of 40 groups.
    own = adapters["stages.0.blocks.0.conv_dw"]
    assert sum(p.numel() for p in own.parameters()) == 40 * (49 + 1)
    tokens = dict(build(network("vit_tiny_patch16_224"), 5).task.adapters.items())
    own = tokens["blocks.0.attn.qkv"]
    assert sum(p.numel() for p in own.parameters()) == 8 * (192 + 3 * 192)
    assert full_rank(LAYERS["groups"]) == 4  # 4 outputs of each group
    assert full_rank(LAYERS["wider depthwise"]) == 2


def test_every_layer_changes_by_default_and_wide_ones_on_demand():
    names = {x.name for x in network().layers}
    assert set(build(network(), 5).kept()) == names
    shortcuts = {"layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"}
    assert names - set(build(network(), 5, Config(layers="spatial")).kept()) == shortcuts


# Merging and selection ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_resnet", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_merged_gives_the_same_bits_in_float32(name):
    student = lively(build(network(name), 5))
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(student.merge()(x), student.eval()(x).logits)


def test_a_score_has_the_gradient_of_a_straight_through_gate():
    student = lively(build(network(), 5, Config(select=True))).eval()
    merged, x = student.merge(), noise(4, 3, 32, 32)
    student(x).logits.square().sum().backward()
    for p in merged.parameters():
        p.requires_grad_()
    merged(x).square().sum().backward()
    own = dict(student.universal.model.named_parameters())
    for i, layer in enumerate(student.adapted):
        weight = merged.get_submodule(layer.name).weight
        expected = (weight.grad * (weight.detach() - own[f"{layer.name}.weight"])).sum()
        found = float(student.task.scores.grad[i])
        assert found == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


def test_closed_layers_are_universal_and_stand_still():
    student = lively(build(network(), 5, Config(select=True, lam=0)))
    plain = copy.deepcopy(student)
    with torch.no_grad():
        student.task.scores.zero_()
        for _, path in plain.task.adapters.items():
            path.up.zero_()
    x = noise(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(student.eval()(x).logits, plain.eval()(x).logits)
    before = {n: p.clone() for n, p in student.task.adapters.named_parameters()}
    settings = Settings(lr=0.05)
    optimizer = build_optimizer(student, settings)
    training_step(student.train(), optimizer, x, torch.arange(5), settings, epoch=0)
    assert (student.task.scores != 0).any()
    assert all(torch.equal(p, before[n]) for n, p in student.task.adapters.named_parameters())


def test_pruned_students_have_the_open_layers_only_and_are_rebuilt():
    config = Config(select=True, rank=4)
    student = lively(build(network(), 5, config))
    with torch.no_grad():
        student.task.scores[3:] = 0
    smaller, _ = prune(student)
    names = [x.name for x in student.universal.layers][:3]
    assert smaller.kept() == names
    by_hand = 4 * (3 * 9 + 16) + 2 * 4 * (16 * 9 + 16)  # conv1 and the convolutions of layer1.0
    assert parameters(smaller).adapters == by_hand
    other = rebuild(network(), 5, config, kept=names)
    other.universal.model.load_state_dict(student.universal.model.state_dict())
    other.task.load_state_dict(smaller.task.state_dict())
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other.eval()(x).logits, student.eval()(x).logits)


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rank": 128},
            r"rank is 128, .* of small_resnet \('layer4.*rank 128; give --rank 1 to 127",
        ),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0.0; give --alpha above 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, r"dropout is 1.0; .* in \[0, 1\)"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"skip": ("nowhere",)}, "skip 'nowhere' fits no layer"),
    ],
)
def test_bad_settings_get_one_line(config, message):
    with pytest.raises(BadInput, match=message) as caught:
        build(network(), 5, Config(**config))
    assert "\n" not in str(caught.value)


def test_the_default_rank_is_refused_where_no_layer_is_that_wide():
    with pytest.raises(BadInput, match=r"rank is 8, .* of conv_net .* rank 6; give --rank 1 to 5"):
        build(tiny.conv_net(), 3)


def test_an_unknown_layer_kind_is_named():
    odd = nn.Sequential(nn.Conv2d(3, 16, 3, padding_mode="reflect", padding=1), nn.Flatten())
    with pytest.raises(BadInput, match="'0' of odd is a Conv2d with reflect padding"):
        build(Backbone(odd, name="odd", input_size=(3, 8, 8)), 5)
