"""ResNet-26 of residual adapters and its Keras relatives, against tables and equations."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from students import residual_adapters
from tailor.adapters import linear_head, with_head
from tailor.backbone import Backbone, norm_tensors
from tailor.errors import BadInput
from tailor.options import Adapt, Data, Net, Teach
from tailor.pointwise import SeriesAdapter
from tailor.settings import Settings
from tailor.workflow import adapt, evaluate, teach
from teachers import resnet26, resnet28_ram

NAMES = [*resnet26.MODELS, *resnet28_ram.MODELS]
CLASSES = {  # of the Decathlon
    "imagenet12": 1000,
    "aircraft": 100,
    "cifar100": 100,
    "daimlerpedcls": 2,
    "dtd": 47,
    "gtsrb": 43,
    "omniglot": 1623,
    "svhn": 10,
    "ucf101": 101,
    "vgg-flowers": 102,
}


@pytest.fixture(scope="module")
def made():
    """Every network once, at a size that is quick to run."""
    return {name: Backbone.create(name, weights="random", px=16) for name in NAMES}


def numbers(tensors):
    return sum(t.numel() for t in tensors)


def convolutions(model, side):
    found = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return [m for m in found if m.kernel_size == (side, side)]


def parts(backbone):
    """Numbers per sort of tensor, a sort as the published layer lists name them."""
    model = backbone.model
    adapters = [m for m in model.modules() if isinstance(m, SeriesAdapter)]
    maps = [a.conv for a in adapters]
    inner = {id(a.norm) for a in adapters}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    ends = [
        model.end_norm,
        *(
            p[0]
            for n, p in model.named_children()
            if n.startswith("end") and isinstance(p, nn.Sequential)
        ),
    ]

    def affine(chosen):
        return numbers(p for m in chosen for p in m.parameters())

    own = {id(m) for m in ends}
    return {
        "3x3": affine(convolutions(model, 3)),
        "map": affine(maps),
        "skip": affine(m for m in convolutions(model, 1) if not any(m is x for x in maps)),
        "inner norm": affine(m for m in norms if id(m) in inner),
        "norm": affine(m for m in norms if id(m) not in inner | own),
        "end norm": affine(ends),
        "statistics": numbers(b for b in model.buffers() if b.is_floating_point()),
    }


def head(backbone, classes):
    return numbers(linear_head(backbone.num_features, classes, seed=0).parameters())


def test_resnet26_is_its_published_layer_list(made):
    assert len(convolutions(made["resnet26"].model, 3)) == 25
    assert parts(made["resnet26"]) == {
        "3x3": 5_806_944,
        "map": 0,
        "skip": 0,
        "inner norm": 0,
        "norm": 7_232,
        "end norm": 512,
        "statistics": 7_744,
    }


@pytest.mark.parametrize(
    ("name", "kernels", "total"),
    [
        ("resnet26", 5_806_944, 5_840_388),
        ("resnet26_x05", 1_451_952, 1_468_724),
        ("resnet26_x2", 23_226_048, 23_292_836),
        ("resnet26_series", 5_806_944, 6_536_772),
    ],
)
def test_totals_with_100_classes_are_the_published_ones(made, name, kernels, total):
    assert parts(made[name])["3x3"] == kernels
    assert made[name].num_params + head(made[name], 100) == total


@pytest.mark.parametrize(("factor", "total"), [(0.5, 1_644_628), (2.0, 26_063_908)])
def test_series_totals_of_other_widths_are_the_published_ones(factor, total):
    model = resnet26.resnet26(factor=factor, adapter=SeriesAdapter)
    assert numbers(model.parameters()) + int(256 * factor) * 100 + 100 == total


def test_two_plain_tasks_share_the_3x3_kernels(made):
    found = parts(made["resnet26"])
    heads = head(made["resnet26"], 100) + head(made["resnet26"], 10)
    trained = 2 * (found["norm"] + found["end norm"]) + heads
    assert (found["3x3"] + trained, trained) == (5_850_702, 43_758)


def test_a_series_adapter_is_a_map_and_a_norm_behind_each_3x3(made):
    found = parts(made["resnet26_series"])
    assert (found["map"], found["inner norm"]) == (689_152, 7_232)
    names = [
        n for n, m in made["resnet26_series"].model.named_modules() if isinstance(m, SeriesAdapter)
    ]
    blocks = [f"layer{s}.{i}.adapter{k}" for s in (1, 2, 3) for i in range(4) for k in (1, 2)]
    assert names == ["adapter1", *blocks]


def test_norms_and_head_of_each_decathlon_task_are_the_published_number(made):
    expected = {
        "imagenet12": (264_744, 961_128),
        "aircraft": (33_444, 729_828),
        "cifar100": (33_444, 729_828),
        "daimlerpedcls": (8_258, 704_642),
        "dtd": (19_823, 716_207),
        "gtsrb": (18_795, 715_179),
        "omniglot": (424_855, 1_121_239),
        "svhn": (10_314, 706_698),
        "ucf101": (33_701, 730_085),
        "vgg-flowers": (33_958, 730_342),
    }
    found = {}
    for task, classes in CLASSES.items():
        plain, series = made["resnet26"], made["resnet26_series"]
        own = [b.num_params - parts(b)["3x3"] + head(b, classes) for b in (plain, series)]
        found[task] = tuple(own)
    assert found == expected


def test_wrn28_4_ram_is_its_published_layer_list(made):
    backbone = made["wrn28_4_ram"]
    channels = [16, *[64] * 8, *[128] * 8, *[256] * 8]  # outputs of its 25 3x3 convolutions
    before = [3, 16, *[64] * 7, 64, *[128] * 7, 128, *[256] * 7]
    found = parts(backbone)
    assert found == {
        "3x3": sum(9 * a * b for a, b in zip(before, channels, strict=True)),
        "map": sum(c * c for c in channels),
        "skip": 16 * 64 + 64 * 128 + 128 * 256,
        "inner norm": sum(2 * c for c in channels),
        "norm": sum(2 * c for c in channels),
        "end norm": 2 * (64 + 128 + 256),
        "statistics": sum(4 * c for c in channels) + 2 * (64 + 128 + 256),
    }
    # What Keras prints for two classes counts running statistics too.
    assert sum(found.values()) + head(backbone, 2) == 6_558_770
    frozen = found["3x3"] + found["skip"] + found["statistics"]
    assert (frozen, sum(found.values()) + head(backbone, 2) - frozen) == (5_854_576, 704_194)


def test_resnet28_ram_is_its_published_layer_list(made):
    backbone = made["resnet28_ram"]
    found = parts(backbone)
    assert found == {
        "3x3": 5_810_560,
        "map": 692_768,
        "skip": 43_456,
        "inner norm": 14_464 // 2,  # Keras lists four numbers per channel, half of them statistics
        "norm": 14_464 // 2,
        "end norm": 1_024 // 2,
        "statistics": 14_976,
    }
    assert sum(found.values()) + head(backbone, 10) == 6_579_306
    assert backbone.num_params + head(backbone, 10) == 6_564_330


def test_what_the_keras_programs_train_with_frozen_kernels(made):
    old, new = parts(made["wrn28_4_ram"]), parts(made["resnet28_ram"])
    learned = ("map", "inner norm", "norm", "end norm")
    assert sum(old[n] for n in learned) + head(made["wrn28_4_ram"], 2) == 704_194
    # The later program forgot to freeze its shortcuts.
    forgotten = sum(new[n] for n in (*learned, "skip"))
    expected = {2: 751_714, 10: 753_770, 100: 776_900, 1000: 1_008_200}
    assert {k: forgotten + head(made["resnet28_ram"], k) for k in expected} == expected


@pytest.mark.parametrize(
    ("name", "trained"),
    # Of the later network the student leaves the shortcuts alone: 751,714 - 43,456.
    [("wrn28_4_ram", 704_194), ("resnet28_ram", 708_258), ("resnet26_series", 704_642)],
)
def test_the_series_student_trains_maps_norms_and_head_of_its_own(made, name, trained):
    backbone = made[name]
    student = residual_adapters.build(backbone, 2, residual_adapters.Config(adapters="series"))
    assert numbers(p for ps in student.roles().values() for p in ps) == trained
    model = backbone.model
    maps = {n for n, m in model.named_modules() if isinstance(m, SeriesAdapter)}
    assert {n for n, _ in student.task.adapters.items()} == {f"{n}.conv" for n in maps}
    owners = {n.rpartition(".")[0] for n in norm_tensors(model)[0]}
    assert {n for n, _ in student.task.norms.items()} == owners
    for n, own in student.task.adapters.items():  # copies, bias included, with tensors of their own
        source = model.get_submodule(n)
        assert torch.equal(own.weight, source.weight)
        assert own.weight is not source.weight
        assert (own.bias is None) == (source.bias is None)


@pytest.mark.parametrize("name", ["wrn28_4_ram", "resnet28_ram"])
def test_the_student_starts_as_its_source_and_merges_back(name):
    backbone = settled(name)
    student = residual_adapters.build(backbone, 3, residual_adapters.Config(adapters="series"))
    images = picture(2)
    with torch.no_grad():
        for adapter in (a for _, a in student.task.adapters.items() if a.bias is not None):
            assert adapter.bias.any()
        expected = student.task.head(backbone(images))
        assert torch.equal(student.eval()(images).logits, expected)
        for adapter in (a for _, a in student.task.adapters.items()):
            adapter.weight.mul_(1.5)
            if adapter.bias is not None:
                adapter.bias.add_(0.25)
        moved = student(images).logits
        assert (moved - expected).abs().max() > 1e-3
        torch.testing.assert_close(student.merge()(images), moved, rtol=1e-4, atol=1e-5)


def test_a_closed_gate_takes_the_sources_map_with_its_bias():
    backbone = settled("resnet28_ram")
    config = residual_adapters.Config(adapters="series", select=True)
    student = residual_adapters.build(backbone, 3, config).eval()
    images = picture(2)
    with torch.no_grad():
        expected = student.task.head(backbone(images))
        for adapter in (a for _, a in student.task.adapters.items()):
            adapter.weight.zero_()
            adapter.bias.add_(1.0)
        assert not torch.allclose(student(images).logits, expected)
        student.task.scores.zero_()
        assert torch.equal(student(images).logits, expected)


@pytest.mark.parametrize("name", NAMES)
def test_twelve_blocks_form_an_unbroken_chain_that_ends_in_an_activation(made, name):
    backbone = made[name]
    assert backbone.chain.broken == ""
    assert [b.name for b in backbone.blocks] == [
        f"layer{s}.{i}" for s in (1, 2, 3) for i in range(4)
    ]
    assert {(b.activation, b.activation_calls) for b in backbone.blocks} == {
        (f"{b.name}.act2", 1) for b in backbone.blocks
    }


def test_sizes_are_those_of_the_papers():
    sizes = {n: Backbone.create(n, weights="random").input_size[1] for n in NAMES}
    assert sizes == dict.fromkeys(NAMES, 64) | {"wrn28_4_ram": 32}
    last = {n: Backbone.create(n, weights="random").blocks[-1].out_shape for n in NAMES}
    wide = {"resnet26_x05": (128, 8, 8), "resnet26_x2": (512, 8, 8)}
    assert last == dict.fromkeys(NAMES, (256, 8, 8)) | wide


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_drawn_with_the_published_spread(made, name):
    for conv in itertools.chain(
        convolutions(made[name].model, 3), convolutions(made[name].model, 1)
    ):
        wanted = (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
        # The sample's deviation is off by 1 / sqrt(2 n) of it, typically; five times that is rare.
        slack = 5 * wanted / (2 * conv.weight.numel()) ** 0.5
        assert float(conv.weight.std()) == pytest.approx(wanted, abs=slack)
        assert abs(float(conv.weight.mean())) < 5 * wanted / conv.weight.numel() ** 0.5


def test_norms_of_the_keras_network_are_keras(made):
    norms = [m for m in made["resnet28_ram"].model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert len(norms) == 51


def picture(count=1, seed=0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def settled(name):
    """A network of its own whose norms and biases have numbers that matter."""
    backbone, draw = (
        Backbone.create(name, weights="random", px=16),
        torch.Generator().manual_seed(1),
    )
    for module in backbone.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for t in (module.weight, module.running_var):
                t.data.copy_(torch.rand(t.shape, generator=draw) + 0.5)
            for t in (module.bias, module.running_mean):
                t.data.copy_(torch.rand(t.shape, generator=draw) - 0.5)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.copy_(torch.rand(module.bias.shape, generator=draw) - 0.5)
    return backbone


class Reference:
    """The networks as equations over a state dict, eps and strides given."""

    def __init__(self, backbone, eps):
        self.tensors, self.eps = backbone.model.state_dict(), eps

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.tensors[f"{name}.{n}"][:, None, None]
            for n in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + self.eps).sqrt() * weight + bias

    def conv(self, name, x, stride=1):
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def adapted(self, at, k, x, stride=1):
        """Convolution k of a block, its adapter where it has one, and its norm."""
        a = self.conv(f"{at}conv{k}", x, stride)
        if f"{at}adapter{k}.conv.weight" in self.tensors:
            a = a + self.conv(f"{at}adapter{k}.conv", self.norm(f"{at}adapter{k}.norm", a))
        return self.norm(f"{at}bn{k}", a)

    def block(self, at, x, stride):
        y = self.adapted(at, 2, self.adapted(at, 1, x, stride).relu())
        if f"{at}shortcut.weight" in self.tensors:
            x = self.conv(f"{at}shortcut", x, stride)
        elif stride == 2:
            b, c, h, w = x.shape
            x = x.view(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
            x = torch.cat([x, torch.zeros_like(x)], 1)
        return (y + x).relu()


@pytest.mark.parametrize(
    ("name", "eps", "strides", "stem_act"),
    [
        ("resnet26", 1e-5, (2, 2, 2), False),
        ("resnet26_series", 1e-5, (2, 2, 2), False),
        ("resnet28_ram", 1e-3, (2, 2, 2), False),
        ("wrn28_4_ram", 1e-5, (1, 2, 2), True),
    ],
)
def test_features_equal_the_published_equations(name, eps, strides, stem_act):
    backbone = settled(name).double()  # numbers grow from block to block
    net, images = Reference(backbone, eps), picture().double()
    with torch.no_grad():
        x = net.adapted("", 1, images)
        x = x.relu() if stem_act else x
        for stage, first in enumerate(strides, 1):
            for i in range(4):
                x = net.block(f"layer{stage}.{i}.", x, first if i == 0 else 1)
            if name == "wrn28_4_ram" and stage < 3:
                x = net.norm(f"end{stage}.0", x).relu()
        expected = net.norm("end_norm", x).relu().mean((2, 3))
        torch.testing.assert_close(backbone(images), expected, rtol=1e-9, atol=1e-9)
    assert (expected > 0).float().mean() > 0.2


def test_timms_network_of_the_same_name_is_told_and_can_be_had():
    with pytest.raises(BadInput, match=r"'resnet26' is one of our own.*timm's.*resnet26\.bt_in1k"):
        Backbone.create("resnet26")
    assert Backbone.create("resnet26.bt_in1k", weights="random", px=64).num_features == 2048


def test_a_head_is_the_networks_own(made):
    network = with_head(copy.deepcopy(made["resnet26"].model), linear_head(256, 7, seed=0))
    assert network(picture()).shape == (1, 7)


def test_the_keras_network_is_taught_and_adapted_from_the_shell(tmp_path):
    data, short = Data(task="digits", px=8, limit=60), Settings(epochs=1, device="cpu")
    net = Net(backbone="wrn28_4_ram")
    teach(Teach(out=tmp_path / "source", mode="scratch", data=data, net=net, train=short))
    net = Net(backbone="wrn28_4_ram", weights=str(tmp_path / "source"))
    config = residual_adapters.Config(adapters="series")
    result = adapt(
        Adapt(
            out=tmp_path / "series",
            method="residual_adapters",
            data=data,
            net=net,
            settings=config,
            train=short,
        )
    )
    assert result["params"]["adapters"] == 688_384
    assert evaluate(tmp_path / "series", device="cpu")["value"] == result["test"]
