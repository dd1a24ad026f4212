"""What every method must fulfil; a new file in students/ is picked up by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tailor import catalog
from tailor.adapters import new_head, with_head
from tailor.backbone import Backbone
from tailor.student import ROLES, Gated, Output, Student, trained_parameters
from tailor.train import Settings, build_optimizer, training_step

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
        # The same tensors through the same operations: equal to the bit.
        assert torch.equal(merged(images), student.eval()(images).logits)
    assert type(merged) is type(student.universal.model)


def test_merged_equals_the_student_in_bfloat16(method):
    student = build(method)
    step(student)
    merged, images = student.merge(), batch(1)[0].bfloat16()
    with torch.no_grad():
        expected = copy.deepcopy(student).eval().to(torch.bfloat16)(images).logits
        # Same operations on the same bfloat16 tensors; no tolerance is needed.
        assert torch.equal(merged.to(torch.bfloat16)(images), expected)


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
    names = [s.name for s in student.layer_states()][::2]
    smaller = student.keep(names)
    assert isinstance(smaller, Student)
    assert [s.name for s in smaller.layer_states() if s.on] == names
    assert "scores" not in smaller.roles()
    step(smaller)


def test_a_head_goes_where_the_architecture_has_its_own():
    backbone = Backbone.create("resnet18", weights="random", px=32)
    network = with_head(copy.deepcopy(backbone.model), new_head(512, 4, seed=0))
    assert network.fc.weight.shape == (4, 512)
    assert backbone.model.num_classes == 0
