"""What every method must fulfil; a new file in students/ is picked up by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tailor import catalog
from tailor.adapters import linear_head, with_head
from tailor.backbone import Backbone
from tailor.optim import build_optimizer
from tailor.settings import Settings
from tailor.step import training_step
from tailor.student import ROLES, Gated, Output, Student, trained_parameters

METHODS = catalog.names("students")
BACKBONES = ["small_resnet", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"]


def build(method, name="small_resnet", classes=5):
    backbone = Backbone.create(name, weights="random", px=32)
    module = catalog.load("students", method, "method")
    return module.build(backbone, classes, module.Config(), seed=3)


def batch(seed=0, count=6):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=make), torch.arange(count) % 5


def step(student, *, epoch=0.0, lr=0.05):
    settings = Settings(lr=lr)
    optimizer = build_optimizer(student, settings)
    student.train()
    return training_step(student, optimizer, *batch(), settings, epoch=epoch)


def folds(method):
    """Whether merging computes new numbers (batch norm into convolutions) instead of copying."""
    return getattr(catalog.load("students", method, "method"), "FOLDS", False)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def test_it_is_a_student_of_its_file_name(method):
    student = build(method)
    assert isinstance(student, Student)
    assert isinstance(student, nn.Module)
    assert student.method == method


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_have_one_column_per_class(method, name):
    output = build(method, name).eval()(batch()[0])
    assert isinstance(output, Output)
    assert output.logits.shape == (6, 5)


def test_the_file_says_where_the_method_is_from(method):
    module = catalog.load("students", method, "method")
    assert module.PAPER
    assert module.KIND in ("teacher", "student")


@pytest.mark.parametrize("name", BACKBONES)
def test_training_moves_nothing_universal(method, name):
    student = build(method, name)
    before = student.universal.fingerprint()
    for _ in range(2):
        step(student)
    assert student.universal.fingerprint() == before


def test_every_role_moves(method):
    student = build(method)
    before = {r: [p.detach().clone() for p in ps] for r, ps in student.roles().items()}
    for _ in range(2):  # a score has no gradient while its delta is 0
        step(student)
    for role, params in student.roles().items():
        moved = [not torch.equal(a, b) for a, b in zip(before[role], params, strict=True)]
        assert any(moved), role


def test_roles_hold_every_trained_parameter_once(method):
    student = build(method)
    assert set(student.roles()) <= set(ROLES)
    found = [id(p) for p in trained_parameters(student)]
    wanted = {id(p) for p in student.parameters() if p.requires_grad}
    assert len(found) == len(set(found))
    assert set(found) == wanted == {id(p) for p in student.task.parameters()}


def test_the_task_is_all_that_has_to_be_saved(method):
    student = build(method)
    step(student)
    other = build(method)
    other.task.load_state_dict(student.task.state_dict())
    images = batch(1)[0]
    assert torch.equal(student.eval()(images).logits, other.eval()(images).logits)


@pytest.mark.parametrize("name", BACKBONES)
def test_merged_is_a_plain_network_with_equal_outputs(method, name):
    student = build(method, name)
    step(student)
    merged = student.merge()
    images = batch(1)[0]
    with torch.no_grad():
        mine, expected = merged(images), student.eval()(images).logits
    if folds(method):  # other operations, equal up to float32 rounding
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    else:  # the same tensors through the same operations: equal to the bit
        assert torch.equal(mine, expected)
    if getattr(catalog.load("students", method, "method"), "PLAIN", True):
        assert type(merged) is type(student.universal.model)


def test_merged_equals_the_student_in_bfloat16(method):
    student = build(method)
    step(student)
    merged, images = student.merge(), batch(1)[0].bfloat16()
    with torch.no_grad():
        expected = copy.deepcopy(student).eval().to(torch.bfloat16)(images).logits
        mine = merged.to(torch.bfloat16)(images)
    if folds(method):  # bfloat16 has 8 bits of mantissa, and rounds in every layer
        assert (mine - expected).abs().max() <= 0.05 * expected.abs().max()
    else:  # same operations on the same bfloat16 tensors
        assert torch.equal(mine, expected)


def test_merging_leaves_the_student_as_it_was(method):
    student = build(method)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    student.merge()
    assert all(torch.equal(t, before[n]) for n, t in student.state_dict().items())


def test_layer_states_follow_the_backbone(method):
    student = build(method)
    states = student.layer_states()
    assert [s.name for s in states] == [x.name for x in student.universal.layers]
    assert all(s.change == 0 for s in states if not s.on)


def test_the_head_is_a_function_of_the_seed(method):
    a, b = build(method), build(method)
    assert torch.equal(a.task.head.weight, b.task.head.weight)


def test_pruning_keeps_the_contract(method):
    student = build(method)
    if not isinstance(student, Gated):
        pytest.skip(f"{method} has no gates")
    # Every second of TAPS's layers; of paths, one into each block, so that all of them are needed.
    gates = student.gates()
    names = [g.name for g in gates if g.kind == "universal"] or [g.name for g in gates][::2]
    smaller = student.keep(names)
    assert isinstance(smaller, Gated)
    assert smaller.kept() == names
    assert smaller.price(epoch=100.0) is None
    step(smaller)


def test_a_pruned_student_is_rebuilt_from_names_and_tensors(method):
    student = build(method)
    if not isinstance(student, Gated):
        pytest.skip(f"{method} has no gates")
    step(student)
    smaller = student.keep([g.name for g in student.gates()][::2])
    module = catalog.load("students", method, "method")
    other = module.rebuild(student.universal, 5, module.Config(), kept=smaller.kept())
    other.task.load_state_dict(smaller.task.state_dict())
    images = batch(1)[0]
    assert torch.equal(smaller.eval()(images).logits, other.eval()(images).logits)


def test_a_head_goes_where_the_architecture_has_its_own():
    backbone = Backbone.create("resnet18", weights="random", px=32)
    network = with_head(copy.deepcopy(backbone.model), linear_head(512, 4, seed=0))
    assert network.fc.weight.shape == (4, 512)
    assert backbone.model.num_classes == 0
