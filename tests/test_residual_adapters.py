"""Residual adapters: what they compute, what they cost, where they sit, and that they fold away."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F

from students import residual_adapters
from students.residual_adapters import Config, build, rebuild, unmerge
from tailor.adapters import linear_head
from tailor.backbone import Backbone
from tailor.behind import norms_behind
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.outcome import parameters
from tailor.pointwise import SeriesAdapter
from tailor.prune import Rule, prune
from tailor.residual import Parallel, Series
from tailor.settings import Settings
from tailor.sites import Placement, sites
from tailor.step import training_step
from tests.tiny import lively, noise

KINDS = ("parallel", "series")


def network(name="small_resnet", px=32):
    return Backbone.create(name, weights="random", px=px)


def step(student, **options):
    settings = Settings(lr=0.05)
    x, y = noise(6, 3, 32, 32), torch.arange(6) % 5
    return training_step(
        student.train(), build_optimizer(student, settings), x, y, settings, epoch=9.0, **options
    )


# What they compute ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 5, padding=2, dilation=1, stride=3),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
    ],
    ids=["3x3", "stride", "5x5 stride 3", "dilated", "1x1", "groups", "depthwise"],
)
def test_a_parallel_adapter_is_a_1x1_convolution_beside_the_layer(conv):
    conv = copy.deepcopy(conv).requires_grad_(False)
    adapter = Parallel(conv, init="he", generator=torch.Generator().manual_seed(1))
    x = noise(2, 4, 9, 11)
    beside = F.conv2d(x, adapter.map.weight, stride=conv.stride, groups=conv.groups)
    expected = conv(x) + beside
    torch.testing.assert_close(adapter(x, conv, adapter.opened(conv)), expected)


def test_in_an_unpadded_kernel_the_adapter_reads_the_pixel_under_the_centre():
    conv = nn.Conv2d(1, 1, 3, bias=False).requires_grad_(False)
    adapter = Parallel(conv)
    with torch.no_grad():
        adapter.map.weight.fill_(2.0)
    x = noise(1, 1, 5, 5)
    moved = adapter(x, conv, adapter.opened(conv)) - conv(x)
    torch.testing.assert_close(moved, 2 * x[:, :, 1:4, 1:4])


def test_a_layer_that_pads_as_tensorflow_does_is_adapted_as_it_pads():
    conv = Conv2dSame(3, 4, 3, stride=2, bias=False).requires_grad_(False)
    adapter = Parallel(conv, init="he", generator=torch.Generator().manual_seed(1))
    x = noise(1, 3, 8, 8)  # padded by one row and column at the end: the centre reads odd pixels
    expected = conv(x) + F.conv2d(x[:, :, 1::2, 1::2], adapter.map.weight)
    torch.testing.assert_close(adapter(x, conv, adapter.opened(conv)), expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_series_adapter_is_norm_map_and_identity(training):
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False).requires_grad_(False)
    adapter = Series(conv, init="he", generator=torch.Generator().manual_seed(1)).train(training)
    plain = SeriesAdapter(6).train(training)
    plain.norm.load_state_dict(adapter.norm.state_dict())
    plain.conv.load_state_dict(adapter.map.state_dict())
    x = noise(3, 4, 7, 7)
    found = adapter(x, conv, adapter.opened(conv))
    torch.testing.assert_close(found, plain(conv(x)))
    torch.testing.assert_close(adapter.norm.running_var, plain.norm.running_var)
    assert int(adapter.norm.num_batches_tracked) == int(training)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_a_linear_layer_are_adapted(kind):
    linear = nn.Linear(5, 7).requires_grad_(False)
    make = Parallel if kind == "parallel" else Series
    adapter = make(linear, init="he", generator=torch.Generator().manual_seed(1)).eval()
    x = noise(2, 3, 5)
    a = linear(x)
    normed = a / (1 + 1e-5) ** 0.5  # of fresh statistics: mean 0, variance 1
    weight = adapter.map.weight
    expected = a + (x if kind == "parallel" else normed) @ weight.t()
    torch.testing.assert_close(adapter(x, linear, adapter.opened(linear)), expected)


@pytest.mark.parametrize("name", ["small_resnet", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("kind", KINDS)
def test_step_0_equals_the_source_network_bit_for_bit(kind, name):
    backbone = network(name)
    student, x = build(backbone, 5, Config(adapters=kind)), noise(4, 3, 32, 32)
    expected = nn.Sequential(
        copy.deepcopy(backbone.model), linear_head(backbone.num_features, 5, 0)
    )
    with torch.no_grad():
        assert torch.equal(student.eval()(x).logits, expected.eval()(x))
        if name == "small_resnet":  # the others draw which paths they drop
            assert torch.equal(student.train()(x).logits, expected.train()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_published_initialisation_has_its_spread_and_changes_the_network(kind):
    student = build(network(), 5, Config(adapters=kind, init="he"), seed=1)
    weight = dict(student.task.adapters.items())["layer4.1.conv2"].map.weight
    # N(0, sqrt(2 / 128)) over 128 x 128 numbers.
    assert float(weight.detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.03)
    other = build(network(), 5, Config(adapters=kind, init="he"), seed=2)
    assert not torch.equal(weight, dict(other.task.adapters.items())["layer4.1.conv2"].map.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_spares_the_convolution(kind):
    conv = nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
    make = Parallel if kind == "parallel" else Series
    adapter = make(conv, dropout=0.5, init="he", generator=torch.Generator().manual_seed(1))
    x = noise(1, 2, 6, 6)
    seen = set()
    for seed in range(40):  # both channels are dropped in a quarter of the passes
        torch.manual_seed(seed)
        moved = adapter.train()(x, conv, adapter.opened(conv)) - conv(x)
        if not moved.abs().max() > 1e-6:
            seen.add("all dropped")  # nothing but the convolution is left
        else:
            seen.add("some kept")
    assert seen == {"all dropped", "some kept"}
    torch.manual_seed(0)
    first = adapter.eval()(x, conv, adapter.opened(conv))
    assert torch.equal(first, adapter(x, conv, adapter.opened(conv)))


def test_dropout_goes_where_the_option_says():
    def dropping(which):
        student = build(network(), 5, Config(dropout=which))
        return {n for n, a in student.task.adapters.items() if a.dropout}

    assert dropping("none") == set()
    assert {"conv1", "layer1.0.conv1"} <= dropping("first")
    assert not dropping("first") & dropping("second")
    assert dropping("first") | dropping("second") == dropping("both")


# Where they sit -------------------------------------------------------------------------------


def names(backbone, **placement):
    return [x.name for x in sites(backbone, Placement(**placement))]


def test_every_wide_convolution_gets_one_by_default():
    convs = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)]
    assert names(network()) == ["conv1", *convs]
    assert names(network(), stem=False) == convs
    assert names(network(), convs="first", stem=False) == convs[::2]
    assert names(network(), convs="second", stem=False) == convs[1::2]


def test_thirds_of_the_blocks():
    # 8 blocks: 0, 1, 2 are early (0 * 3 // 8 ... 2 * 3 // 8 = 0), 3, 4, 5 middle, 6, 7 late.
    late = names(network(), depths=("late",), stem=False, convs="first")
    assert late == ["layer4.0.conv1", "layer4.1.conv1"]
    early = names(network(), depths=("early",), stem=False, convs="first")
    assert early == ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"]


def test_networks_whose_wide_convolutions_mix_nothing_get_all_layers():
    found = names(network("convnext_atto"))
    assert "stages.0.blocks.0.conv_dw" in found
    assert "stages.0.blocks.0.mlp.fc1" in found
    only = names(network("convnext_atto"), layers="spatial")
    assert "stages.0.blocks.0.mlp.fc1" not in only


def test_skip_leaves_layers_out_and_refuses_what_fits_nothing():
    assert names(network(), skip=("layer[123]*", "conv1"))[0] == "layer4.0.conv1"
    with pytest.raises(BadInput, match=r"skip 'layer9\*' fits no layer of small_resnet"):
        names(network(), skip=("layer9*",))
    with pytest.raises(BadInput, match="no layer of small_resnet is left"):
        names(network(), skip=("*",))


def test_a_layer_kind_that_no_adapter_folds_into_is_named():
    class Odd(nn.Conv2d):
        """A convolution that may do anything with its weight."""

    model = nn.Sequential(Odd(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone(model, name="odd", input_size=(3, 8, 8))
    said = r"layer '0' of odd is a Odd, .* \(1 of 1 chosen ones is not\); take another backbone"
    with pytest.raises(BadInput, match=said):
        build(backbone, 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular"), nn.Flatten())
    with pytest.raises(BadInput, match="is a Conv2d with circular padding"):
        build(Backbone(model, name="odd", input_size=(3, 8, 8)), 5)


def test_some_odd_layers_can_be_left_out():
    class Odd(nn.Conv2d):
        """A convolution that may do anything with its weight."""

    model = nn.Sequential(Odd(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone(model, name="odd", input_size=(3, 8, 8))
    with pytest.raises(BadInput, match=r"1 of 2 .* leave it out with --skip '0', or take"):
        build(backbone, 5)
    assert build(backbone, 5, Config(skip=("0",))).kept() == ["1"]


def test_a_weight_that_another_module_multiplies_cannot_be_adapted():
    class Borrower(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.qkv = nn.Linear(4, 6)

        def forward(self, x):
            return F.linear(self.conv(x).mean((2, 3)), self.qkv.weight)

    backbone = Backbone(Borrower(), name="borrower", input_size=(3, 8, 8))
    with pytest.raises(BadInput, match=r"'qkv' of borrower never runs by itself .* --skip 'qkv'"):
        build(backbone, 5, Config(layers="all"))
    assert build(backbone, 5, Config(layers="all", skip=("qkv",))).kept() == ["conv"]


# What they cost -------------------------------------------------------------------------------


def test_parameters_of_a_layer_are_those_of_its_map():
    student = build(network(), 5)
    by_name = {n: sum(p.numel() for p in a.parameters()) for n, a in student.task.adapters.items()}
    assert by_name["conv1"] == 16 * 3
    assert by_name["layer2.0.conv1"] == 32 * 16
    assert parameters(student).adapters == sum(by_name.values())
    series = build(network(), 5, Config(adapters="series"))
    own = dict(series.task.adapters.items())["layer2.0.conv1"]
    assert sum(p.numel() for p in own.map.parameters()) == 32 * 32
    assert sum(p.numel() for p in own.norm.parameters()) == 2 * 32


SHARED = 5_806_944  # numbers in the 25 convolutions of ResNet-26


def trained(student):
    return sum(p.numel() for params in student.roles().values() for p in params)


@pytest.fixture(scope="module")
def resnet26():
    return network("resnet26", px=64)


# "Parameter accounting" of the published program: trained numbers with a head of 100 classes.
TABLE = {
    "parallel": (Config(), 678_660),
    "parallel, second only": (Config(convs="second"), 377_604),
    "parallel, first only": (Config(convs="first"), 334_596),
    "series": (Config(adapters="series"), 729_828),
    "series, first only": (Config(adapters="series", convs="first"), 382_180),
    "series, second only": (Config(adapters="series", convs="second"), 382_180),
}


@pytest.mark.parametrize("row", TABLE)
def test_trained_parameters_are_those_of_the_published_table(resnet26, row):
    config, expected = TABLE[row]
    assert trained(build(resnet26, 100, config)) == expected


def test_whole_networks_are_those_of_the_published_table(resnet26):
    two = [trained(build(resnet26, classes)) for classes in (100, 10)]
    assert SHARED + two[0] == 6_485_604
    assert (SHARED + sum(two), sum(two)) == (7_141_134, 1_334_190)
    series = [trained(build(resnet26, k, Config(adapters="series"))) for k in (100, 10)]
    assert (SHARED + sum(series), sum(series)) == (7_243_470, 1_436_526)


@pytest.mark.parametrize(
    ("name", "shared", "parallel", "series"),
    [
        ("resnet26_x05", 1_451_952, 1_630_052, 1_644_628),
        ("resnet26_x2", 23_226_048, 25_873_508, 26_063_908),
    ],
)
def test_other_widths_are_those_of_the_published_table(name, shared, parallel, series):
    backbone = network(name, px=64)
    assert shared + trained(build(backbone, 100)) == parallel
    assert shared + trained(build(backbone, 100, Config(adapters="series"))) == series


@pytest.mark.parametrize(
    ("classes", "parallel", "series"),
    [
        (1000, 909_960, 961_128),  # imagenet12
        (2, 653_474, 704_642),  # daimlerpedcls
        (47, 665_039, 716_207),  # dtd
        (43, 664_011, 715_179),  # gtsrb
        (102, 679_174, 730_342),  # vgg-flowers
        (1623, 1_070_071, 1_121_239),  # omniglot
        (10, 655_530, 706_698),  # svhn
        (101, 678_917, 730_085),  # ucf101
    ],
)
def test_every_domain_of_the_decathlon_trains_its_published_numbers(
    resnet26, classes, parallel, series
):
    assert trained(build(resnet26, classes)) == parallel
    assert trained(build(resnet26, classes, Config(adapters="series"))) == series


def test_ten_domains_cost_twice_the_network(resnet26):
    costs = [parameters(build(resnet26, 10)) for _ in range(10)]
    adapters = sum(c.adapters for c in costs)
    # Adapters alone: 10 x 645,216 over the shared convolutions, norms and end norm.
    assert adapters == 6_452_160
    assert (5_814_688 + adapters) / 5_814_688 == pytest.approx(2.11, abs=0.01)


def test_a_depthwise_layer_gets_a_scale_per_channel():
    student = build(network("convnext_atto"), 5)
    own = dict(student.task.adapters.items())["stages.0.blocks.0.conv_dw"]
    assert sum(p.numel() for p in own.parameters()) == 40


def test_rank_makes_adapters_smaller_where_it_can():
    student = build(network(), 5, Config(rank=4))
    adapters = dict(student.task.adapters.items())
    assert sum(p.numel() for p in adapters["layer4.1.conv2"].parameters()) == 4 * (128 + 128)
    assert sum(p.numel() for p in adapters["conv1"].parameters()) == 16 * 3  # rank 3 already
    with pytest.raises(BadInput, match=r"rank is 128, but the largest adapter .* has rank 128"):
        build(network(), 5, Config(rank=128))
    with pytest.raises(BadInput, match="rank is 0"):
        build(network(), 5, Config(rank=0))


# Folding --------------------------------------------------------------------------------------


def test_merged_parallel_adapters_give_the_same_bits():
    student = lively(build(network(), 5))
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(student.merge()(x), student.eval()(x).logits)


@pytest.mark.parametrize("name", ["small_resnet", "convnext_atto", "vit_tiny_patch16_224"])
def test_merged_series_adapters_are_a_plain_network_of_the_same_names(name):
    backbone = network(name)
    student = lively(build(backbone, 5, Config(adapters="series")))
    merged, x = student.merge(), noise(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), student.eval()(x).logits, rtol=1e-3, atol=1e-4)
    if name == "small_resnet":  # every bias went into the batch norm behind it
        assert set(merged.state_dict()) - {"fc.weight", "fc.bias"} == set(
            backbone.model.state_dict()
        )


def test_a_bias_goes_into_the_norm_only_where_nothing_else_reads_the_layer():
    behind = norms_behind(network())
    assert behind["layer1.0.conv1"] == "layer1.0.bn1"

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            a = self.conv(x)
            return (self.bn(a) + a).mean((2, 3))

    assert norms_behind(Backbone(Forked(), name="forked", input_size=(3, 8, 8))) == {}


def test_unmerge_finds_the_adapters_again():
    backbone = network()
    student = lively(build(backbone, 5, Config(depths=("late",))))
    before = backbone.fingerprint()
    found = unmerge(student.merge(), backbone, 5, Config(depths=("late",)))
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        mine, expected = found(x).logits, student.eval()(x).logits
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    for name, adapter in student.task.adapters.items():
        again = dict(found.task.adapters.items())[name].map.weight
        torch.testing.assert_close(again, adapter.map.weight, rtol=0, atol=1e-6)
    assert backbone.fingerprint() == before


def test_unmerge_refuses_what_is_no_parallel_adapter():
    backbone = network()
    merged = build(backbone, 5).merge()
    with torch.no_grad():
        merged.layer1[0].conv1.weight[0, 0, 0, 0] += 1
    with pytest.raises(BadInput, match=r"layer1\.0\.conv1\.weight differs"):
        unmerge(merged, backbone, 5)
    with pytest.raises(BadInput, match="only whole parallel"):
        unmerge(merged, backbone, 5, Config(adapters="series"))


# A source network with adapters ---------------------------------------------------------------


class Source(nn.Module):
    """A convolution, a series adapter and a norm, twice."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1, bias=False),
                    SeriesAdapter(4),
                    nn.BatchNorm2d(4),
                    nn.ReLU(),
                )
                for i in range(2)
            )
        )

    def forward(self, x):
        return self.blocks(x).mean((2, 3))


def source():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone(Source(), name="source", input_size=(3, 8, 8))


def test_adapters_of_the_source_network_are_copied():
    backbone = source()
    student = build(backbone, 5, Config(adapters="series"))
    assert student.kept() == ["blocks.0.1.conv", "blocks.1.1.conv"]
    x = noise(2, 3, 8, 8)
    expected = nn.Sequential(copy.deepcopy(backbone.model), student.task.head).eval()
    with torch.no_grad():
        assert torch.equal(student.eval()(x).logits, expected(x))
    # Two maps of 4 x 4; norms: two of adapters and two behind, 4 numbers per channel each.
    costs = parameters(student)
    assert (costs.adapters, costs.norms) == (2 * 16, 4 * 4 * 4)
    lively(student)
    with torch.no_grad():
        assert torch.equal(student.merge()(x), student.eval()(x).logits)


# Learned selection ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_gate_gives_the_universal_layer_and_its_score_a_gradient(kind):
    student = lively(build(network(), 5, Config(adapters=kind, select=True)))
    plain = copy.deepcopy(student)
    with torch.no_grad():
        student.task.scores.zero_()
        for _, adapter in plain.task.adapters.items():
            adapter.map.weight.zero_()
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(student.eval()(x).logits, plain.eval()(x).logits)
    student.train()(x).logits.square().sum().backward()
    assert (student.task.scores.grad != 0).all()
    first = dict(student.task.adapters.items())["conv1"].map.weight.grad
    assert first is None or not first.any()


def test_a_score_has_the_gradient_of_a_straight_through_gate():
    student = lively(build(network(), 5, Config(select=True)))
    x = noise(4, 3, 32, 32)
    student.eval()
    student(x).logits.square().sum().backward()
    name = "layer3.0.conv2"
    adapter = dict(student.task.adapters.items())[name]
    # y depends on gate * W: d/d gate = <dW, W> at gate 1.
    expected = (adapter.map.weight.grad * adapter.map.weight).sum()
    at = student.kept().index(name)
    torch.testing.assert_close(student.task.scores.grad[at], expected, rtol=1e-3, atol=1e-3)


def test_the_price_is_the_adapters_share_of_the_backbone():
    backbone = network()
    student = build(backbone, 5, Config(select=True, lam=2.0))
    total = sum(p.numel() for _, a in student.task.adapters.items() for p in a.parameters())
    expected = 2.0 * 0.15 * total / backbone.num_params
    assert float(student.price(9.0).detach()) == pytest.approx(expected, rel=1e-5)
    assert student.price(1.0) is None  # warm-up
    assert build(backbone, 5).price(9.0) is None


def test_pruning_leaves_the_open_adapters_and_the_same_outputs():
    student = lively(build(network(), 5, Config(select=True)))
    with torch.no_grad():
        student.task.scores[::2] = 0.0
    smaller, report = prune(student, Rule())
    assert list(report.kept) == student.kept()[1::2]
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(smaller.eval()(x).logits, student.eval()(x).logits)
    again = rebuild(student.universal, 5, student.config, kept=smaller.kept())
    again.task.load_state_dict(smaller.task.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x).logits, smaller(x).logits)


def test_adapters_of_closed_gates_stay_where_they_are():
    student = lively(build(network(), 5, Config(select=True)))
    with torch.no_grad():
        student.task.scores.zero_()
    before = {n: t.clone() for n, t in student.task.adapters.named_parameters()}
    for _ in range(2):
        step(student)
    assert all(torch.equal(t, before[n]) for n, t in student.task.adapters.named_parameters())


def test_settings_that_cannot_select_are_refused():
    with pytest.raises(BadInput, match="lam is -1"):
        build(network(), 5, Config(select=True, lam=-1))
    with pytest.raises(BadInput, match="initial_score"):
        build(network(), 5, Config(select=True, initial_score=0.05))
    with pytest.raises(BadInput, match=r"lam is 0\.3, but .* give --select"):
        build(network(), 5, Config(lam=0.3))
    with pytest.raises(BadInput, match="depths is empty; give some of early middle late"):
        build(network(), 5, Config(depths=()))
    with pytest.raises(BadInput, match=r"basis nowhere\.safetensors does not exist"):
        build(network(), 5, Config(basis="nowhere.safetensors"))
    with pytest.raises(BadInput, match="dropout_share is 1"):
        build(network(), 5, Config(dropout_share=1.0))


# Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_trains_in_bfloat16(kind):
    student = build(network(), 5, Config(adapters=kind))
    settings = Settings(lr=0.05, bf16=True)
    x, y = noise(6, 3, 32, 32), torch.arange(6) % 5
    optimizer = build_optimizer(student, settings)
    losses = [
        float(training_step(student.train(), optimizer, x, y, settings, epoch=0.0).terms.task)
        for _ in range(6)
    ]
    assert losses[-1] < losses[0]
    adapter = dict(student.task.adapters.items())["layer1.0.conv1"]
    assert adapter.map.weight.dtype == torch.float32
    assert adapter.map.weight.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_trunk_gives_the_same(kind):
    student = lively(build(network(), 5, Config(adapters=kind))).eval()
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        expected = student(x).logits
        student.trunk = torch.compile(student.trunk, backend="eager")
        torch.testing.assert_close(student(x).logits, expected)


def test_options_of_the_method_are_its_placement_and_selection():
    fields = {f.name for f in dataclasses.fields(residual_adapters.Config)}
    assert {"layers", "convs", "depths", "stem", "skip", "select", "lam", "price"} <= fields
