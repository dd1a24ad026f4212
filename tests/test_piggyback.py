"""Piggyback: masks against the published rule, their gradient, their bits, and that they learn."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F

from analysis.budget import budget_table
from analysis.rows import read_runs, rows
from analysis.table import table
from students import bn_adapt, piggyback
from students.piggyback import Config, Mask, build, rebuild
from tailor.adapters import linear_head
from tailor.backbone import Backbone
from tailor.cost import Params, account, multiple_for
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.options import Adapt, Data, Net
from tailor.outcome import parameters
from tailor.prune import Rule, prune
from tailor.run import read_tensors
from tailor.settings import Settings
from tailor.step import training_step
from tailor.workflow import adapt, evaluate
from tests.learned import accuracy
from tests.tiny import lively, noise

LAYERS = {
    "3x3": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "groups": nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "tensorflow": Conv2dSame(4, 6, 3, stride=2),
    "linear": nn.Linear(4, 6),
}


def masked(student):
    """Switch about a third of the weights off, and give norms values of their own."""
    return lively(student, by=0.01)


def network(name="small_resnet"):
    return Backbone.create(name, weights="random", px=32)


def step(student, x, y, **options):
    settings = Settings(**({"lr": 0.05} | options))
    optimizer = build_optimizer(student, settings)
    return training_step(student.train(), optimizer, x, y, settings, epoch=0)


# What it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_a_masked_layer_is_the_layer_with_some_weights_at_zero(kind):
    layer = copy.deepcopy(LAYERS[kind]).requires_grad_(False)
    adapter = Mask(layer, margin=5e-3)
    with torch.no_grad():
        adapter.mask.copy_(noise(*adapter.mask.shape, seed=1))
        adapter.mask.view(-1)[:2] = 0.0  # at the threshold is on
    x = noise(3, 5, 4) if kind == "linear" else noise(2, 4, 9, 11)
    plain = copy.deepcopy(layer)
    plain.weight.mul_(adapter.mask.detach() >= 0)
    assert torch.equal(adapter(x, layer, adapter.opened(layer)), plain(x))


@pytest.mark.parametrize("kind", ["3x3", "groups", "linear"])
def test_a_mask_has_the_weights_gradient_times_the_weight_on_or_off(kind):
    layer = copy.deepcopy(LAYERS[kind]).requires_grad_(False)
    x = noise(3, 5, 4) if kind == "linear" else noise(2, 4, 7, 7)
    found = {}
    for relative in (False, True):
        adapter = Mask(layer, margin=5e-3, relative=relative)
        with torch.no_grad():
            adapter.mask.copy_(noise(*adapter.mask.shape, seed=1))
        adapter(x, layer, adapter.opened(layer)).square().sum().backward()
        found[relative] = adapter.mask.grad
    masked = (layer.weight * (adapter.mask.detach() >= 0)).requires_grad_()
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(masked.detach())
    plain(x).square().sum().backward()
    expected = plain.weight.grad * layer.weight
    torch.testing.assert_close(found[False], expected)
    torch.testing.assert_close(found[True], expected / layer.weight.abs().mean())
    assert (expected[masked == 0] != 0).any()  # what is off can come back


def test_training_switches_the_weights_that_the_published_rule_switches():
    """Masks that start at 1e-2, a threshold of 5e-3, the gradient of the binary mask, by hand."""
    layer = nn.Linear(6, 4, bias=False).double().requires_grad_(False)
    w, x = noise(4, 6, seed=3, dtype=torch.float64), noise(20, 6, seed=4, dtype=torch.float64)
    target = noise(20, 4, seed=5, dtype=torch.float64)
    layer.weight.copy_(w)
    adapter = Mask(layer, margin=1e-2 - 5e-3, relative=False)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3, momentum=0.9)
    real, moving, switched = torch.full_like(w, 1e-2), torch.zeros_like(w), set()
    for _ in range(30):
        on = (real >= 5e-3).double()
        error = x @ (w * on).t() - target
        moving = 0.9 * moving + (2 * error.t() @ x / error.numel()) * w
        real = real - 1e-3 * moving
        optimizer.zero_grad()
        F.mse_loss(adapter(x, layer, adapter.opened(layer)), target).backward()
        optimizer.step()
        assert torch.equal(adapter.mask >= 0, real >= 5e-3)
        switched.add(int(on.sum()))
    assert len(switched) > 3  # of the 24 weights some go on the way


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


def test_merged_weights_are_universal_or_zero():
    student = masked(build(network(), 5))
    merged = student.merge()
    own = dict(student.universal.model.named_parameters())
    off = 0
    for layer in student.adapted:
        weight = merged.get_submodule(layer.name).weight
        assert ((weight == own[f"{layer.name}.weight"]) | (weight == 0)).all()
        off += int((weight == 0).sum())
    # Masks are N(0.005, 0.01): below 0 in 30.9 % of the 697,776 weights.
    assert off / 697_776 == pytest.approx(0.309, abs=0.005)


def test_rounding_to_bfloat16_switches_no_weight():
    student = masked(build(network(), 5))
    with torch.no_grad():
        for _, adapter in student.task.adapters.items():
            adapter.mask.mul_(1e-30)
    half = copy.deepcopy(student).to(torch.bfloat16)
    for name, adapter in student.task.adapters.items():
        assert torch.equal(adapter.mask >= 0, half.task.adapters[name].mask >= 0)


# What it costs --------------------------------------------------------------------------------


def test_a_mask_costs_a_bit_per_weight():
    model = nn.Linear(65, 1, bias=False)
    params = account(model, {"masks": [torch.empty(65)], "head": [torch.empty(5)]})
    assert params == Params(universal=65, masks=3, head=5)  # 65 bits: two numbers are too few
    assert params.task == 3


def test_nine_masks_beside_one_network_are_the_published_1_28():
    task = account(nn.Linear(320, 100, bias=False), {"masks": [torch.empty(100, 320)]})
    assert multiple_for([task] * 9) == 1 + 9 / 32 == 1.28125


def test_masks_of_a_student_are_counted_by_hand():
    student = build(network(), 5)
    # small_resnet: 3 -> 16, then pairs of blocks of 16, 32, 64 and 128 channels.
    wide = 27 * 16 + 9 * (4 * 16**2 + 16 * 32 + 3 * 32**2 + 32 * 64 + 3 * 64**2)
    wide += 9 * (64 * 128 + 3 * 128**2)
    bits = wide + 16 * 32 + 32 * 64 + 64 * 128  # and the shortcuts
    assert sum(p.numel() for p in student.roles()["masks"]) == bits == 697_776
    assert parameters(student).masks == 697_776 // 32 + 1 == 21_806
    assert parameters(student).adapters == 0


def test_prices_count_bits_too():
    student = build(network(), 5, Config(select=True))
    gates = {g.name: g for g in student.gates()}
    assert gates["layer1.0.conv1"].params == 9 * 16 * 16 // 32 == 72
    total = student.universal.num_params
    assert float(student.prices[1]) == pytest.approx(72 / total)


# How it trains --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masks_are_never_decayed(optimizer):
    student = build(network(), 5)
    settings = Settings(weight_decay=0.5, decay_adapters=0.5, decay_deltas=0.5, optimizer=optimizer)
    groups = build_optimizer(student, settings).param_groups
    assert {g["weight_decay"] for g in groups if g["role"] == "masks"} == {0.0}
    assert {g["weight_decay"] for g in groups if g["role"] == "head"} == {0.5}


def test_universal_norms_have_no_role_and_stand_still():
    backbone, x = network(), noise(4, 3, 32, 32)
    student = build(backbone, 5, Config(norms="universal"))
    before = backbone.fingerprint()
    step(student, x, torch.arange(4))
    assert set(student.roles()) == {"masks", "head"}
    assert backbone.fingerprint() == before
    with torch.no_grad():  # statistics of the source, whatever the batch
        one, all_ = student.train()(x[:1]).logits, student.train()(x).logits[:1]
    torch.testing.assert_close(one, all_, rtol=1e-4, atol=1e-5)


def test_masks_learn_at_the_default_learning_rate_what_norms_and_head_cannot():
    norms = accuracy(bn_adapt)
    assert accuracy(piggyback) > norms + 0.3
    # Mean |w| is 0.1 and 0.03: plain gradients are so much shorter, and few masks get anywhere.
    assert accuracy(piggyback, mask_gradient="plain") < norms + 0.3


# Selection ------------------------------------------------------------------------------------


def test_a_closed_layer_has_its_whole_weight_and_its_score_a_gradient():
    student = masked(build(network(), 5, Config(select=True, lam=0)))
    closed = copy.deepcopy(student)
    with torch.no_grad():
        closed.task.scores.zero_()
        for _, adapter in student.task.adapters.items():
            adapter.mask.fill_(1.0)
    x = noise(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(closed.eval()(x).logits, student.eval()(x).logits)
    before = {n: p.clone() for n, p in closed.task.adapters.named_parameters()}
    step(closed, x, torch.arange(5))
    assert (closed.task.scores != 0).any()
    assert all(torch.equal(p, before[n]) for n, p in closed.task.adapters.named_parameters())


def test_a_score_has_the_gradient_of_a_straight_through_gate():
    student = masked(build(network(), 5, Config(select=True))).eval()
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


def test_pruned_students_have_masks_on_the_kept_layers_only():
    config = Config(select=True)
    student = masked(build(network(), 5, config))
    smaller, report = prune(student, Rule(threshold=0.1))
    assert report.params_after == report.params_before  # all are open
    with torch.no_grad():
        student.task.scores[3:] = 0
    smaller, report = prune(student)
    # conv1 and two convolutions of 16 channels: 432 bits and twice 2304.
    assert parameters(smaller).masks == -(-(432 + 2 * 2304) // 32) == 158
    assert report.params_after == 14 + 72 + 72  # each layer rounded up
    other = rebuild(student.universal, 5, config, kept=smaller.kept())
    other.task.load_state_dict(smaller.task.state_dict())
    x = noise(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other.eval()(x).logits, student.eval()(x).logits)


# Runs -----------------------------------------------------------------------------------------


def test_a_run_is_billed_in_bits_and_its_file_can_still_be_trained(tmp_path):
    options = Adapt(
        out=tmp_path / "run",
        method="piggyback",
        data=Data(task="digits", px=8, limit=60),
        net=Net(backbone="small_resnet", weights="random"),
        settings=Config(),
        train=Settings(epochs=1, device="cpu"),
    )
    result = adapt(options)
    params = result["params"]
    assert params["masks"] == 21_806
    assert params["task"] == params["masks"] + params["norms"]
    tensors, _ = read_tensors(tmp_path / "run" / "student.safetensors")
    assert tensors["adapters.conv1.mask"].dtype == torch.float32
    assert evaluate(tmp_path / "run", device="cpu")["value"] == result["test"]
    frame = table(rows(read_runs([tmp_path / "run"])))
    share = 100 * 21_806 / params["universal"]
    assert frame["masks_percent"][0] == pytest.approx(share)
    assert frame["adapters_percent"][0] == pytest.approx(0, abs=1e-9)
    assert budget_table(frame)["masks"][0] == pytest.approx(share)
    file = tmp_path / "run" / "result.json"
    before = json.loads(file.read_text())
    del before["params"]["masks"]  # of a program that knew none
    file.write_text(json.dumps(before))
    assert rows(read_runs([tmp_path / "run"]))[0]["params"]["masks"] == 0


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"margin": 0.0}, "margin is 0.0, .* give --margin above 0"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"select": True, "initial_score": 0.01}, "initial_score 0.01 lies below threshold"),
        ({"depths": ("deep",)}, "depths has 'deep'"),
    ],
)
def test_bad_settings_get_one_line(config, message):
    with pytest.raises(BadInput, match=message) as caught:
        build(network(), 5, dataclasses.replace(Config(), **config))
    assert "\n" not in str(caught.value)


def test_an_unknown_layer_kind_is_named():
    class Odd(nn.Linear):
        """A linear layer that may do anything with its weight."""

    odd = nn.Sequential(nn.Flatten(), Odd(192, 6))
    with pytest.raises(BadInput, match=r"layer .1. of odd is a Odd, .* take another backbone"):
        build(Backbone(odd, name="odd", input_size=(3, 8, 8)), 5)
