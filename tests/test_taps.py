"""TAPS: the published arithmetic, the gates, pruning and merging."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from students import taps
from tailor.backbone import Backbone
from tailor.cost import Budget, account
from tailor.errors import BadInput
from tailor.gates import threshold_gate
from tailor.losses import layer_prices
from tailor.optim import build_optimizer
from tailor.prune import Rule, prune
from tailor.settings import Settings
from tailor.step import training_step


@pytest.fixture
def backbone():
    return Backbone.create("small_resnet", weights="random")


def batch(seed=0, count=8):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=make), torch.arange(count) % 4


def train(student, steps=3, epoch=5.0, **settings):
    chosen = Settings(lr=0.05, **settings)
    optimizer = build_optimizer(student, chosen)
    for i in range(steps):
        student.train()
        training_step(student, optimizer, *batch(i), chosen, epoch=epoch)
    return student.eval()


def close(student, *names):
    index = {layer.name: i for i, layer in enumerate(student.adapted)}
    with torch.no_grad():
        for name in names:
            student.task.scores[index[name]] = 0.0
    return student


def test_step_zero_equals_the_backbone_bit_for_bit(backbone):
    student = taps.build(backbone, 4).eval()
    images = batch()[0]
    assert torch.equal(student(images).logits, student.task.head(backbone(images)))


def test_every_layer_starts_open_with_a_score_of_0_15(backbone):
    states = taps.build(backbone, 4).layer_states()
    assert all(s.on for s in states)
    assert {round(s.score, 6) for s in states} == {0.15}


def test_the_first_score_gradient_is_zero_because_deltas_are(backbone):
    student = taps.build(backbone, 4).train()
    student(batch()[0]).logits.square().sum().backward()
    assert student.task.scores.grad.abs().max() == 0


def test_all_closed_equals_the_backbone_with_the_tasks_norms(backbone):
    student = train(taps.build(backbone, 4))
    with torch.no_grad():
        student.task.scores.zero_()
    plain = copy.deepcopy(backbone.model)
    places = dict(plain.named_parameters()) | dict(plain.named_buffers())
    with torch.no_grad():
        for name, tensor in student.task.norms.items():
            places[name].copy_(tensor)
    images = batch(9)[0]
    with torch.no_grad():
        assert torch.equal(student(images).logits, student.task.head(plain.eval()(images)))


def test_all_open_trains_like_plain_fine_tuning(backbone):
    student = taps.build(backbone, 4, taps.Config(lam=0.0)).train()
    plain = nn.Sequential(copy.deepcopy(backbone.model), copy.deepcopy(student.task.head)).train()
    plain.requires_grad_(True)
    chosen = Settings(lr=0.05)
    ours = build_optimizer(student, chosen)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, fused=True)
    for i in range(3):
        images, labels = batch(i)
        training_step(student, ours, images, labels, chosen, epoch=0)
        theirs.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        theirs.step()
    assert all(student.open_gates())
    merged = student.merge()
    tensors = {n: t for n, t in merged.state_dict().items() if not n.startswith("fc.")}
    for name, tensor in plain[0].state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def test_gradients_equal_the_published_formula(backbone):
    # w0 + I(s >= tau) * delta, computed as published, on two open and one closed layer.
    student = close(train(taps.build(backbone, 4)), "layer3.0.conv2").train()
    student.zero_grad()
    images, labels = batch(7)
    reference = copy.deepcopy(student)
    nn.functional.cross_entropy(student(images).logits, labels).backward()
    own = dict(backbone.model.named_parameters())
    gates = threshold_gate(reference.task.scores, 0.1)
    tensors = dict(reference.task.norms.items())
    deltas = {}
    for gate, layer in zip(gates, reference.adapted, strict=True):
        name = layer.tensors[0]
        deltas[name] = (reference.task.tuned[name].detach() - own[name]).requires_grad_()
        tensors[name] = own[name] + gate * deltas[name]
    model = backbone.model.train()
    features = torch.func.functional_call(model, tensors, (images,))
    model.eval()
    nn.functional.cross_entropy(reference.task.head(features), labels).backward()
    # w0 + (w - w0) rounds in float32, so the two forward passes differ in the last bits.
    torch.testing.assert_close(
        student.task.scores.grad, reference.task.scores.grad, rtol=2e-3, atol=1e-4
    )
    for name, delta in deltas.items():
        mine = student.task.tuned[name].grad
        mine = torch.zeros_like(delta) if mine is None else mine
        torch.testing.assert_close(mine, delta.grad, rtol=2e-3, atol=1e-5)


def test_a_closed_layer_can_return(backbone):
    student = close(train(taps.build(backbone, 4, taps.Config(lam=0.0))), "layer4.1.conv2").train()
    at = [layer.name for layer in student.adapted].index("layer4.1.conv2")
    nn.functional.cross_entropy(student(batch(3)[0]).logits, batch(3)[1]).backward()
    assert student.task.scores.grad[at] != 0
    with torch.no_grad():
        student.task.scores[at] = 0.1  # the threshold itself
    assert student.open_gates()[at]


def test_momentum_does_not_move_a_closed_layer(backbone):
    student = train(taps.build(backbone, 4))  # has momentum now
    chosen = Settings(lr=0.05)
    optimizer = build_optimizer(student, chosen)
    training_step(student.train(), optimizer, *batch(1), chosen, epoch=5)
    close(student, "layer1.0.conv1")
    before = student.task.tuned["layer1.0.conv1.weight"].detach().clone()
    training_step(student, optimizer, *batch(2), chosen, epoch=5)
    assert torch.equal(student.task.tuned["layer1.0.conv1.weight"], before)


@pytest.mark.parametrize(
    ("name", "pricing", "expected"),
    [
        ("resnet34", "paper", 0.103846),  # .15 * 36 / 52, taps.md 2.1
        ("resnet50", "paper", 0.152885),
        ("resnet34", "layers", 0.15),
        ("resnet50", "layers", 0.15),
    ],
)
def test_price_at_the_start_with_lambda_1(name, pricing, expected):
    backbone = Backbone.create(name, weights="random", px=32)
    student = taps.build(backbone, 4, taps.Config(lam=1.0, price=pricing))
    assert student.price(2.0).item() == pytest.approx(expected, abs=1e-6)


def test_price_by_parameters_is_the_share_of_the_backbone():
    backbone = Backbone.create("resnet34", weights="random", px=32)
    prices = layer_prices(backbone, "params")
    assert prices[0].item() == pytest.approx(9408 / 21_284_672)
    assert prices.sum().item() == pytest.approx(21_267_648 / 21_284_672)


def test_price_by_macs_sums_to_one(backbone):
    assert layer_prices(backbone, "macs").sum().item() == pytest.approx(1)


def test_lambda_waits_for_the_warm_up(backbone):
    student = taps.build(backbone, 4, taps.Config(lam=1.0, price_warmup=2))
    assert student.price(1.99) is None
    assert student.price(2.0) is not None


def test_a_high_lambda_closes_everything_and_none_closes_nothing(backbone):
    high = train(taps.build(backbone, 4, taps.Config(lam=1e3, price_warmup=0)), steps=3)
    none = train(taps.build(backbone, 4, taps.Config(lam=0.0)), steps=3)
    assert not any(s.on for s in high.layer_states() if s.params > 5000)
    assert all(s.on for s in none.layer_states())


def test_pruning_removes_closed_deltas_from_memory_and_file(backbone):
    student = close(train(taps.build(backbone, 4)), "layer4.0.conv1", "layer4.0.conv2")
    smaller, report = prune(student)
    assert report.removed == ("layer4.0.conv1", "layer4.0.conv2")
    assert report.params_before - report.params_after == 64 * 128 * 9 + 128 * 128 * 9
    held = sum(t.numel() for t in smaller.task.state_dict().values() if t.is_floating_point())
    billed = account(backbone.model, smaller.roles(), smaller.task.buffers())
    assert held == billed.task + billed.head
    assert not [n for n in smaller.task.state_dict() if "scores" in n or "layer4/0/conv1" in n]


def test_pruning_closed_layers_changes_no_output(backbone):
    student = close(train(taps.build(backbone, 4)), "layer4.0.conv1", "conv1")
    images = batch(9)[0]
    with torch.no_grad():
        assert torch.equal(student(images).logits, prune(student)[0].eval()(images).logits)


def test_a_threshold_overrides_the_gates(backbone):
    student = taps.build(backbone, 4)
    with torch.no_grad():
        student.task.scores.copy_(torch.linspace(0.1, 0.3, 20))
    kept = prune(student, Rule(threshold=0.2))[1].kept
    assert kept == tuple(x.name for x in backbone.layers[10:])


def test_a_budget_keeps_the_highest_scores_that_fit(backbone):
    student = taps.build(backbone, 4)
    scores = np.random.default_rng(0).uniform(0.1, 0.5, 20)
    with torch.no_grad():
        student.task.scores.copy_(torch.tensor(scores))
    budget = 0.2 * backbone.num_params
    expected, used = set(), 0
    for i in np.argsort(-scores.astype(np.float32)):
        if used + backbone.layers[i].params <= budget:
            expected.add(backbone.layers[i].name)
            used += backbone.layers[i].params
    smaller, report = prune(student, Rule(budget=Budget.parse("params=0.2")))
    assert set(report.kept) == expected
    assert report.params_after == used <= budget
    assert sum(p.numel() for p in smaller.roles()["deltas"]) == used


def test_pruning_twice_is_refused(backbone):
    smaller, _ = prune(taps.build(backbone, 4))
    with pytest.raises(BadInput, match="no scores to prune by"):
        prune(smaller)


def test_a_macs_budget_is_refused_because_deltas_change_none(backbone):
    with pytest.raises(BadInput, match="change no MACs"):
        prune(taps.build(backbone, 4), Rule(budget=Budget.parse("macs=0.5")))


def test_two_students_share_one_trunk_in_different_modes(backbone):
    training, serving = taps.build(backbone, 4).train(), taps.build(backbone, 4).eval()
    images = batch()[0]
    with torch.no_grad():
        before = serving(images).logits
        training(images)
        assert torch.equal(serving(images).logits, before)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (taps.Config(lam=-1.0), "lam is -1.0"),
        (taps.Config(lam=float("nan")), "lam is nan"),
        (taps.Config(initial_score=0.05), "below threshold"),
    ],
)
def test_bad_settings_get_one_line(backbone, config, message):
    with pytest.raises(BadInput, match=message):
        taps.build(backbone, 4, config)


def test_shared_weights_get_one_delta():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x.flatten(1)))

    backbone = Backbone(Twice(), name="twice", input_size=(3, 2, 2))
    student = taps.build(backbone, 4, taps.Config(lam=0.0)).eval()
    with torch.no_grad():
        student.task.tuned["a.weight"].mul_(2)
        images = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        # Both uses see the delta: twice the weight in a chain of two is four times the features.
        expected = student.task.head(4 * backbone(images))
        torch.testing.assert_close(student(images).logits, expected)
        torch.testing.assert_close(student.merge()(images), expected)
