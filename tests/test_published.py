"""The published programs' accounting, integer for integer.

Closed forms are written here once more, from the papers' block definitions alone; ``LAYOUT`` holds
what a reader would draw on paper: channels, side and stride of every block at 224 (64) px.
"""

from __future__ import annotations

import functools

import pytest
import timm
import torch
from torch import nn

from tailor.backbone import Backbone
from tailor.cost import total_macs
from tailor.errors import BadInput
from tailor.published import (
    conv_names,
    nettailor_head,
    nettailor_hidden,
    nettailor_proxy_flops,
    nettailor_proxy_params,
    nettailor_published_costs,
    taps_paper_accounting,
)


@functools.cache
def resnet(name: str) -> nn.Module:
    """A 1000-class timm ResNet without memory behind its tensors: counting needs shapes only."""
    with torch.device("meta"):
        return timm.create_model(name)


# TAPS -----------------------------------------------------------------------------------------

TAPS = {
    # convs, notebook total, active: all on, last half on, first half on, none on
    "resnet18": (20, 11_689_532, 11_174_720, 10_493_568, 688_960, 7_808),
    "resnet34": (36, 21_797_708, 21_282_880, 19_053_440, 2_244_672, 15_232),
    "resnet50": (53, 25_557_085, 23_500_352, 21_082_496, 2_201_152, 45_440),
    "resnet101": (104, 44_549_264, 42_492_480, 30_637_440, 11_952_704, 97_664),
}
RATIOS = {
    "resnet18": (0.955960, 0.897689, 0.058938, 0.000668),
    "resnet34": (0.976382, 0.874103, 0.102977, 0.000699),
    "resnet50": (0.919524, 0.824918, 0.086127, 0.001778),
    "resnet101": (0.953831, 0.687720, 0.268303, 0.002192),
}


def choices(model: nn.Module) -> list[list[str]]:
    """All convolutions, the last half, the first half (26 of 53), none."""
    convs = conv_names(model)
    half = len(convs) // 2
    return [convs, convs[len(convs) - half :], convs[:half], []]


@pytest.mark.parametrize("name", TAPS)
def test_published_accounting_is_exact(name):
    model = resnet(name)
    convs, total, *active = TAPS[name]
    shares = [taps_paper_accounting(model, on) for on in choices(model)]
    assert len(conv_names(model)) == convs
    assert [share.total for share in shares] == [total] * 4
    assert [share.active for share in shares] == active
    assert [round(share.ratio, 6) for share in shares] == list(RATIOS[name])


@pytest.mark.parametrize(
    ("indices", "active", "ratio"),
    [
        ([25, 26, 27, 40, *range(43, 50), 51, 52], 15_577_472, 0.609517),
        ([44, 45, 46, 49, 52], 7_647_616, 0.299237),
    ],
)
def test_ratios_of_the_authors_own_runs(indices, active, ratio):
    model = resnet("resnet50")
    share = taps_paper_accounting(model, {conv_names(model)[i] for i in indices})
    assert (share.active, round(share.ratio, 6)) == (active, ratio)


def test_convs_are_numbered_as_named_parameters_are():
    model = resnet("resnet18")
    weights = [name for name, p in model.named_parameters() if p.ndim == 4]
    assert [f"{name}.weight" for name in conv_names(model)] == weights
    assert conv_names(model)[5:8] == ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"]


def test_published_accounting_names_a_stranger():
    with pytest.raises(BadInput, match="'fc' is no convolution"):
        taps_paper_accounting(resnet("resnet18"), ["fc"])


# NetTailor ------------------------------------------------------------------------------------

# Output channels, side of the output, number of blocks; the first block of a stage halves the side
# (not so the first stage of a ResNet, whose pooling did).
STAGES = {
    "resnet18": [(64, 56, 2), (128, 28, 2), (256, 14, 2), (512, 7, 2)],
    "resnet34": [(64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)],
    "resnet50": [(256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3)],
    "wide_resnet26": [(64, 32, 4), (128, 16, 4), (256, 8, 4)],
}


def blocks(name):
    """(input channels, output channels, area of the output, area of the input) of every block."""
    wide = name == "wide_resnet26"
    before, side = (32, 64) if wide else (64, 56)
    found = []
    for channels, out, count in STAGES[name]:
        for _ in range(count):
            found.append((before, channels, out * out, side * side))
            before, side = channels, out
    return found


def universal(name, ci, co, area, in_area):
    """Parameters and FLOPs of a universal block: convolutions, then 2 per norm channel or element.

    A norm of c channels has 2 c parameters and costs 2 c per position.
    """
    convolved = ci != co and name != "wide_resnet26"  # the wide shortcut has no weights
    shortcut = ci * co + 2 * co if convolved else 0
    if name != "resnet50":
        params = 9 * ci * co + 9 * co * co + 4 * co + shortcut
        return params, params * area
    p = co // 4
    first = ci * p + 2 * p  # before the stride, which sits in the 3x3 convolution
    rest = 9 * p * p + 2 * p + 4 * p * p + 8 * p + shortcut
    return first + rest, first * in_area + rest * area


def proxy(name, ci, co):
    """Parameters of a proxy; as many FLOPs per position."""
    if name != "resnet50":
        return ci * co + 2 * co
    m = max(co // 32, 16)
    return ci * m + 2 * m + m * co + 2 * co


def stem(name):
    """Billed FLOPs of the stem: 7x7 also for the wide one, at the first block's input."""
    return (49 * 3 * 32 + 2 * 32) * 64**2 if name == "wide_resnet26" else (9_408 + 128) * 56**2


def proxies(name, skips):
    """(block, source node, parameters, FLOPs) of every proxy; block l sees min(l, skips) nodes."""
    layout = blocks(name)
    channels = [layout[0][0], *(co for _, co, _, _ in layout)]
    return [
        (block, block - back, count := proxy(name, channels[block - back], co), count * area)
        for block, (_, co, area, _) in enumerate(layout, 1)
        for back in range(1, min(block, skips) + 1)
    ]


@functools.cache
def costs(name):
    return nettailor_published_costs(Backbone.create(name, weights="random", px=64))


def ours(name, skips, classes):
    """Parameters and FLOPs of an unpruned student by the library's functions."""
    c = costs(name)
    hidden = nettailor_hidden if name == "resnet50" else lambda _: None
    pairs = [
        (block - back, block, c.shapes[block][0])
        for block in range(1, len(c.blocks) + 1)
        for back in range(1, min(block, skips) + 1)
    ]
    params = sum(
        nettailor_proxy_params(c.shapes[source][0], out, hidden(out)) for source, _, out in pairs
    )
    flops = sum(c.proxy(source, target, hidden(out)) for source, target, out in pairs)
    return len(pairs), params, c.network + flops + c.head(classes)


TABLE = {
    # network, classes, skips: universal, proxies, their number, head, gate logits, trainable,
    # total, FLOPs of stem and universal blocks, of the unpruned student
    ("resnet18", 10, 3): (
        *(11_176_512, 1_145_728, 21, 5_130, 29, 1_150_887, 12_327_399),
        *(1_728_814_080, 1_899_116_554),
    ),
    ("resnet34", 10, 1): (
        *(21_284_672, 1_092_992, 16, 5_130, 32, 1_098_154, 22_382_826),
        *(3_581_010_944, 3_770_029_066),
    ),
    ("resnet34", 10, 3): (
        *(21_284_672, 2_750_208, 45, 5_130, 61, 2_755_399, 24_040_071),
        *(3_581_010_944, 4_050_512_906),
    ),
    ("resnet34", 10, 5): (
        *(21_284_672, 4_083_200, 70, 5_130, 86, 4_088_416, 25_373_088),
        *(3_581_010_944, 4_230_042_634),
    ),
    ("resnet34", 10, 16): (
        *(21_284_672, 6_826_752, 136, 5_130, 152, 6_832_034, 28_116_706),
        *(3_581_010_944, 4_489_151_498),
    ),
    ("resnet34", 102, 3): (
        *(21_284_672, 2_750_208, 45, 52_326, 61, 2_802_595, 24_087_267),
        *(3_581_010_944, 4_050_560_102),
    ),
    ("resnet50", 102, 3): (
        *(23_508_032, 3_351_360, 45, 208_998, 61, 3_560_419, 27_068_451),
        *(4_019_649_536, 4_617_736_934),
    ),
    # Not in the table: trainable and total. Its FLOPs there are .8707 and .9800 G.
    ("wide_resnet26", 10, 3): (
        *(5_814_176, 778_368, 33, 5_130, 45, 783_543, 6_597_719),
        *(870_711_296, 980_030_474),
    ),
}


@pytest.mark.parametrize(("name", "classes", "skips"), TABLE)
def test_nettailor_table_is_exact(name, classes, skips):
    number, params, flops = ours(name, skips, classes)
    c = costs(name)
    logits = sum(1 + min(block, skips) for block in range(1, len(c.blocks) + 1))
    trainable = params + c.head(classes) + logits
    found = (c.params, params, number, c.head(classes), logits, trainable, c.params + trainable)
    assert (*found, c.network, flops) == TABLE[name, classes, skips]


@pytest.mark.parametrize("name", STAGES)
def test_nettailor_costs_equal_the_closed_forms(name):
    c, layout = costs(name), blocks(name)
    counted = [universal(name, *block) for block in layout]
    assert c.stem == stem(name)
    assert list(c.block_params) == [params for params, _ in counted]
    assert list(c.blocks) == [flops for _, flops in counted]
    assert [shape[0] for shape in c.shapes] == [layout[0][0], *(co for _, co, _, _ in layout)]


@pytest.mark.parametrize(("name", "classes", "skips"), TABLE)
def test_proxies_equal_the_closed_forms(name, classes, skips):
    every = proxies(name, skips)
    inputs = {"resnet50": 2048}.get(name, 512)  # 512 for the wide one too, though it has 256
    flops = stem(name) + sum(universal(name, *b)[1] for b in blocks(name))
    flops += sum(f for *_, f in every) + inputs * classes + classes
    expected = len(every), sum(params for _, _, params, _ in every), flops
    assert ours(name, skips, classes) == expected


OFF = (1, 2, 4, 5, 6, 8, 9, 10, 11, 14, 15)  # universal blocks of ResNet-34, counted from 0


def everything(block, back):
    return True


def nearest(block, back):
    return back == 1


def nearest_where_needed(block, back):
    return back == 1 and block in OFF


@pytest.mark.parametrize(
    ("off", "keeps", "expected"),
    [
        ((), everything, (21_284_672, 2_755_338, 24_040_010, 4_050_512_906)),
        (OFF, everything, (6_086_464, 2_755_338, 8_841_802, 1_503_378_442)),
        (OFF, nearest, (6_086_464, 1_098_122, 7_184_586, 1_222_894_602)),
        (OFF, nearest_where_needed, (6_086_464, 854_026, 6_940_490, 1_177_083_914)),
    ],
)
def test_pruned_resnet34_is_billed_as_published(off, keeps, expected):
    c = costs("resnet34")
    left = [i for i in range(16) if i not in off]
    kept = [
        (block + 1 - back, block + 1)
        for block in range(16)
        for back in range(1, min(block + 1, 3) + 1)
        if keeps(block, back)
    ]
    universal = c.stem_params + sum(c.block_params[i] for i in left)
    task = c.head(10) + sum(
        nettailor_proxy_params(c.shapes[source][0], c.shapes[target][0]) for source, target in kept
    )
    flops = c.stem + sum(c.blocks[i] for i in left) + c.head(10)
    flops += sum(c.proxy(source, target) for source, target in kept)
    assert (universal, task, universal + task, flops) == expected


def test_a_stem_is_billed_where_its_pooling_ends():
    # 7x7 over 3 channels to 64 maps of 56 x 56, and its norm; it runs at 112 x 112.
    assert costs("resnet34").stem == 64 * 56 * 56 * (147 + 2) == 29_904_896


def test_a_3x3_stem_is_billed_as_7x7_and_its_classifier_at_512():
    assert costs("wide_resnet26").stem == 32 * 64 * 64 * (147 + 2)
    assert costs("wide_resnet26").head(10) == 512 * 10 + 10


def test_an_end_norm_is_free():
    backbone = Backbone.create("wide_resnet26", weights="random", px=64)
    assert backbone.num_params - costs("wide_resnet26").params == 2 * 256


def test_costs_do_not_depend_on_the_size_in_use():
    small = Backbone.create("resnet18", weights="random", px=32)
    assert nettailor_published_costs(small) == costs("resnet18")


def test_a_proxy_is_a_1x1_convolution_and_its_norm():
    # 4 -> 8 channels at 5 x 3: 15 positions, 32 products and 2 for each of 8 norms.
    assert nettailor_proxy_flops(4, 8, (5, 3)) == 15 * (32 + 16)
    assert nettailor_proxy_params(4, 8) == 32 + 16


def test_a_bottleneck_proxy_is_two_of_them():
    # 4 -> 2 -> 8 channels at 5 x 3.
    assert nettailor_proxy_flops(4, 8, (5, 3), 2) == 15 * (8 + 4 + 16 + 16)
    assert nettailor_proxy_params(4, 8, 2) == 8 + 4 + 16 + 16


def test_a_bottleneck_proxy_is_a_quarter_of_the_block_in_the_first_stage_only():
    planes = [64, 128, 256, 512]
    hidden = [nettailor_hidden(4 * p) for p in planes]
    assert [p // h for p, h in zip(planes, hidden, strict=True)] == [4, 8, 8, 8]


def test_a_head_has_weights_and_biases():
    assert nettailor_head(512, 10) == 5_130


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_tiny_patch16_224", r"cannot run"),  # made for 64 px, it refuses the 224 of the rule
        ("mixer_s16_224", r"hands on shapes like \(196, 512\)"),
    ],
)
def test_what_the_published_program_cannot_count_is_refused(name, why):
    px = 64 if name.startswith("vit") else None
    backbone = Backbone.create(name, weights="random", px=px)
    with pytest.raises(BadInput, match=why) as caught:
        nettailor_published_costs(backbone)
    assert "use the exact one" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet18", 1_814_073_344),
        ("resnet34", 3_663_761_408),
        ("resnet50", 4_089_184_256),
    ],
)
def test_true_macs_with_1000_classes_are_those_of_torchvision(name, macs):
    assert total_macs(resnet(name), (3, 224, 224)) == macs


def test_published_flops_of_resnet34_are_those_of_its_paper():
    c = costs("resnet34")
    assert c.params + c.head(10) == 21_289_802  # "21.29 M"
    assert round((c.network + c.head(10)) / 1e9, 2) == 3.58  # "3.58 B"
