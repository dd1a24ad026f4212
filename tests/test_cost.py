"""Costs against hand counts, other counters and each other."""

from __future__ import annotations

import functools
import time

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tailor.cost import (
    Budget,
    Params,
    account,
    conv_macs,
    file_bytes,
    latency,
    layer_macs,
    linear_macs,
    multiple_for,
    spread,
    total_macs,
)
from tailor.errors import BadInput


@functools.cache
def resnet(name: str) -> nn.Module:
    """A 1000-class timm ResNet without memory behind its tensors: counting needs shapes only."""
    with torch.device("meta"):
        return timm.create_model(name)


# MACs of layers -------------------------------------------------------------------------------


def test_conv_macs_equals_a_hand_count():
    # 3x3 conv, 2 -> 4 channels, 5x5 output: 100 outputs, 18 products each.
    assert conv_macs(2, 4, kernel=3, out_hw=(5, 5)) == 1800


def test_a_grouped_conv_sees_only_its_group():
    # 4 -> 8 channels in 2 groups: 8 * 25 outputs, 2 * 9 products each.
    assert conv_macs(4, 8, kernel=3, out_hw=(5, 5), groups=2) == 3600


def test_a_conv_kernel_may_be_oblong():
    assert conv_macs(1, 1, kernel=(1, 7), out_hw=(2, 3)) == 42


def test_linear_macs_multiply_by_rows():
    assert linear_macs(10, 3) == 30
    assert linear_macs(10, 3, rows=197) == 5910


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        # Input 4 x 6 x 6.
        (nn.Conv2d(4, 8, 3), 8 * 4 * 4 * 4 * 9),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), 8 * 3 * 3 * 2 * 9),
        (nn.Conv2d(4, 4, (1, 3), dilation=(1, 2), groups=4), 4 * 6 * 2 * 3),
        # Transposed: each of the 4 * 36 inputs meets 8 * 2 * 2 weights.
        (nn.ConvTranspose2d(4, 8, 2, stride=2), 4 * 36 * 8 * 4),
        (nn.ConvTranspose2d(4, 8, 2, groups=2), 4 * 36 * 4 * 4),
        (nn.Linear(6, 5, bias=False), 24 * 6 * 5),
    ],
    ids=["plain", "grouped", "depthwise", "transposed", "transposed-grouped", "linear"],
)
def test_layer_macs_equal_a_hand_count(layer, expected):
    assert layer_macs(layer, (4, 6, 6)) == {"": expected}


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(4, 8, 3, groups=2), nn.Linear(6, 5)],
    ids=["conv", "transposed", "linear"],
)
def test_layer_macs_agree_with_torchs_counter(layer):
    assert layer_macs(layer, (4, 6, 6))[""] == total_macs(layer, (4, 6, 6))


class Twice(nn.Module):
    """One layer called twice, one never, one whose weight is multiplied without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.borrowed = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, images):
        return F.linear(self.twice(self.twice(images)), weight=self.borrowed.weight)


def test_layer_macs_sum_calls_and_find_borrowed_weights():
    # 3 * 4 rows of 4 numbers, 4 products for each of 4 outputs: 192 a call.
    assert layer_macs(Twice(), (3, 4, 4)) == {"twice": 384, "never": 0, "borrowed": 192}


class Attends(nn.Module):
    """5 tokens that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, value=tokens)[0]


def test_multihead_attention_has_its_projections_as_layers():
    # 5 tokens: q, k, v are 8 -> 8 each, the way out is 8 -> 8.
    macs = layer_macs(Attends().requires_grad_(False), (8, 5, 1))
    assert macs == {"attention": 3 * 5 * 64, "attention.out_proj": 5 * 64}


def test_multihead_attention_is_counted_without_its_fast_path():
    # Projections, then scores and mix: 2 heads of 5 * 5 * 4 products, twice.
    assert total_macs(Attends().requires_grad_(False), (8, 5, 1)) == 4 * 5 * 64 + 2 * 200


# MACs of networks -----------------------------------------------------------------------------


def test_resnet18_macs_equal_a_hand_count():
    stem = 112 * 112 * 64 * 3 * 49
    even = 56 * 56 * 64 * 64 * 9  # every 3x3 conv that keeps its channels: area / 4, channels * 2
    first = even // 2  # half the input channels
    shortcut = 28 * 28 * 128 * 64
    expected = stem + 4 * even + 3 * (first + 3 * even + shortcut) + 512 * 1000
    assert expected == 1_814_073_344
    assert total_macs(resnet("resnet18"), (3, 224, 224)) == expected
    assert sum(layer_macs(resnet("resnet18"), (3, 224, 224)).values()) == expected


def test_vit_macs_equal_a_hand_count():
    tokens, width = 197, 192
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens * tokens * width
    expected = 196 * width * 16 * 16 * 3 + 12 * block + width * 1000
    vit = timm.create_model("vit_tiny_patch16_224")
    assert total_macs(vit, (3, 224, 224)) == expected


class Noise(nn.Module):
    """Draws random numbers, also in evaluation."""

    def forward(self, images):
        return images + torch.rand(1)


def test_a_pass_for_counting_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Noise()).train()
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    layer_macs(model, (3, 8, 8))
    total_macs(model, (3, 8, 8))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


# Parameters -----------------------------------------------------------------------------------

NETS = {
    # convs, their weights, batch norm affine, running mean and variance, all with 1000 classes
    "resnet18": (20, 11_166_912, 7_808 + 1_792, 9_600, 11_689_512),
    "resnet34": (36, 21_267_648, 15_232 + 1_792, 17_024, 21_797_672),
    "resnet50": (53, 23_454_912, 45_440 + 7_680, 53_120, 25_557_032),
    "resnet101": (104, 42_394_816, 97_664 + 7_680, 105_344, 44_549_160),
}


def all_on(name: str) -> Params:
    """Every convolution of a headless ResNet adapted, with scores and a 10-class head."""
    model = timm.create_model(name, num_classes=0, device="meta")
    convs = [p for p in model.parameters() if p.ndim == 4]
    norms = [p for p in model.parameters() if p.ndim == 1]
    scores = [torch.empty(len(convs))]
    head = nn.Linear(model.num_features, 10, device="meta").parameters()
    roles = {"deltas": convs, "norms": norms, "scores": scores, "head": head}
    return account(model, roles, model.buffers())


@pytest.mark.parametrize("name", NETS)
def test_account_keeps_each_kind_apart(name):
    convs, weights, affine, running, plain = NETS[name]
    params = all_on(name)
    assert params.universal == weights + affine
    assert params.universal + resnet(name).get_classifier().weight.numel() + 1000 == plain
    assert (params.deltas, params.norms) == (weights, affine + running)
    assert (params.scores, params.head) == (convs, resnet(name).num_features * 10 + 10)


def test_the_notebook_model_holds_universal_deltas_scores_and_its_head():
    params = all_on("resnet34")
    fc = 512 * 1000 + 1000
    assert params.universal + params.deltas + params.scores + fc == 43_065_356


def test_a_body_counts_as_one_more_copy():
    model = nn.Linear(3, 2)
    params = account(model, {"body": list(model.parameters()), "head": [torch.empty(5)]})
    assert params == Params(universal=8, deltas=8, head=5)
    assert params.multiple == 2.0


def test_task_leaves_the_head_out():
    params = Params(universal=100, deltas=20, norms=3, scores=2, adapters=5, head=50)
    assert params.task == 30
    assert params.multiple == 1.3


def test_multiple_of_several_tasks_shares_one_backbone():
    tasks = [Params(universal=100, deltas=d, head=99) for d in (10, 20, 30)]
    assert multiple_for(tasks) == 1.6


def test_tasks_of_two_backbones_have_no_multiple():
    with pytest.raises(BadInput, match="2 backbones"):
        multiple_for([Params(universal=1), Params(universal=2)])


def test_an_unknown_role_is_named():
    with pytest.raises(BadInput, match="unknown role 'proxies'"):
        account(nn.Linear(1, 1), {"proxies": [torch.empty(1)]})


# Budgets --------------------------------------------------------------------------------------


def test_a_budget_is_read_from_one_word():
    assert Budget.parse("params=0.2,macs=0.6") == Budget(params=0.2, macs=0.6)
    assert Budget.parse(" bytes = 500_000 ") == Budget(bytes=500_000)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "none of params"),
        ("layers=3", "'layers' is none of"),
        ("params", "'' is no number"),
        ("params=much", "'much' is no number"),
        ("bytes=1.5", "'1.5' is no whole number"),
        ("params=0.2,params=0.3", "params twice"),
        ("macs=0", "macs must be above 0"),
        ("macs=-1", "macs must be above 0"),
        ("params=nan", "params must be above 0"),
        ("params=inf", "params must be above 0"),
        ("params=0.2,", "'' is none of"),
    ],
)
def test_a_senseless_budget_says_what_to_write(text, names):
    with pytest.raises(BadInput, match=names) as caught:
        Budget.parse(text)
    assert "write for example params=0.2,macs=0.6" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_admits_what_reaches_its_limits():
    budget = Budget(params=0.2, bytes=100)
    assert budget.admits(params=0.2, bytes=100)
    assert not budget.admits(params=0.21, bytes=100)
    assert not budget.admits(params=0.2, bytes=101)
    assert Budget().admits()


def test_a_budget_does_not_guess_what_it_is_not_told():
    with pytest.raises(ValueError, match="limits macs"):
        Budget(macs=0.6).admits(params=0.1)


# Bytes and seconds ----------------------------------------------------------------------------


def test_bytes_of_a_folder_are_those_of_its_files(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"4567")
    assert file_bytes(tmp_path / "a") == 3
    assert file_bytes(tmp_path) == 7


def test_bytes_of_nothing_are_an_error(tmp_path):
    with pytest.raises(BadInput, match="no-such: No such file"):
        file_bytes(tmp_path / "no-such")


def test_latency_is_a_median_after_warmup():
    naps = iter([0.05, 0.0, 0.0, 0.02])  # one to warm up, then 0, 0 and one slow call
    seconds, _ = latency(lambda: time.sleep(next(naps)), rounds=3, warmup=1)
    assert seconds < 0.01
    assert next(naps, None) is None


def test_latency_needs_a_round():
    with pytest.raises(BadInput, match="rounds is 0"):
        latency(lambda: None, rounds=0)


def test_spread_is_the_interquartile_range():
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == 2.0
    assert spread([7.0]) == 0.0
