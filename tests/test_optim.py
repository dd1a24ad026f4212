"""Weight decay: each role its own, and the published program's rule where it is asked for."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn

from students import finetune, residual_adapters
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.run import Run
from tailor.settings import Recipe, Settings, as_config
from tailor.step import training_step
from tailor.units import said
from tests import tiny

ROLES = ("body", "deltas", "adapters", "norms", "head")
MARKERS = {
    "weight_decay": 0.5,
    "decay_body": 0.1,
    "decay_deltas": 0.2,
    "decay_adapters": 0.3,
    "decay_norms": 0.4,
    "decay_head": 0.6,
}


def decays(student, settings):
    """The weight decay of every parameter in the optimiser, by name."""
    named = {id(p): n for n, p in student.task.named_parameters()}
    groups = build_optimizer(student, settings).param_groups
    return {named[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}


def mixed():
    """A norm, a 1x1 and a 3x3 convolution with norms behind them, a 5x5 one and a linear layer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.BatchNorm2d(3)
            self.point = nn.Conv2d(3, 4, 1)
            self.bn1 = nn.BatchNorm2d(4)
            self.conv = nn.Conv2d(4, 4, 3)
            self.bn2 = nn.BatchNorm2d(4)
            self.wide = nn.Conv2d(4, 4, 5)
            self.out = nn.Linear(4, 5)

        def forward(self, x):
            x = self.bn2(self.conv(self.bn1(self.point(self.first(x)))))
            return self.out(self.wide(x).mean((2, 3)))

    return Backbone(Net(), name="mixed", input_size=(3, tiny.PX, tiny.PX))


class Roles(nn.Module):
    """A student with one parameter of every role."""

    method = "roles"

    def __init__(self):
        super().__init__()
        names = (*ROLES, "scores", "masks")
        self.task = nn.ParameterDict({name: torch.ones(2) for name in names})

    def roles(self):
        return {name: [param] for name, param in self.task.items()}

    def anchors(self):
        return {self.task["deltas"]: torch.zeros(2)}


def test_one_decay_is_for_all_roles_but_norms_scores_and_masks():
    assert decays(Roles(), Settings(weight_decay=0.5)) == {
        "body": 0.5,
        "adapters": 0.5,
        "head": 0.5,
        "deltas": 0.0,  # in the optimiser; towards their anchors instead
        "norms": 0.0,
        "scores": 0.0,
        "masks": 0.0,
    }


def test_every_role_has_its_own_decay():
    assert decays(Roles(), Settings(**MARKERS)) == {
        "body": 0.1,
        "adapters": 0.3,
        "norms": 0.4,
        "head": 0.6,
        "deltas": 0.0,
        "scores": 0.0,
        "masks": 0.0,
    }


def test_a_decay_of_zero_is_not_the_common_one():
    found = decays(Roles(), Settings(weight_decay=0.5, decay_head=0.0))
    assert (found["head"], found["body"]) == (0.0, 0.5)


def stepped(student, how):
    student.train()
    images = torch.randn(8, 3, tiny.PX, tiny.PX, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % tiny.CLASSES
    training_step(student, build_optimizer(student, how), images, labels, how, epoch=0.0)
    return student


@pytest.mark.parametrize("role", ["body", "norms", "head"])
def test_a_decay_pulls_its_role_and_no_other(role):
    before = tiny.student("finetune")
    plain = stepped(tiny.student("finetune"), Settings(lr=0.5))
    decayed = stepped(tiny.student("finetune"), Settings(lr=0.5, **{f"decay_{role}": 0.2}))
    for name, params in before.roles().items():
        pairs = zip(params, plain.roles()[name], decayed.roles()[name], strict=True)
        for start, without, with_decay in pairs:
            # lr * decay * weight; weights of size 1 have seven digits
            pulled = -0.5 * 0.2 * start if name == role else torch.zeros_like(start)
            torch.testing.assert_close(with_decay - without, pulled, rtol=0, atol=1e-6)


def test_deltas_decay_to_the_universal_weight_by_their_own_decay():
    students = []
    for how in (Settings(lr=0.5), Settings(lr=0.5, decay_deltas=0.2)):
        student = tiny.student("taps")
        with torch.no_grad():
            for param in student.anchors():
                param += 0.1
        students.append(stepped(student, how))
    plain, decayed = students
    for without, with_decay in zip(plain.anchors(), decayed.anchors(), strict=True):
        pulled = torch.full_like(without, -0.5 * 0.2 * 0.1)
        torch.testing.assert_close(with_decay - without, pulled, rtol=0, atol=1e-6)
    assert torch.equal(plain.task.head.weight, decayed.task.head.weight)


# The published rule


def test_the_published_rule_hands_a_decay_to_all_that_lies_behind():
    student = finetune.build(mixed(), tiny.CLASSES)
    found = decays(student, Settings(legacy_weight_decay=True, **MARKERS))
    before, point, conv = 0.5, 0.3, 0.1
    assert found == {
        "body.first.weight": before,
        "body.first.bias": before,
        "body.point.weight": point,
        "body.point.bias": point,
        "body.bn1.weight": point,
        "body.bn1.bias": point,
        "body.conv.weight": conv,
        "body.conv.bias": conv,
        "body.bn2.weight": conv,
        "body.bn2.bias": conv,
        "body.wide.weight": conv,  # 5x5: neither of the two
        "body.wide.bias": conv,
        "body.out.weight": conv,
        "body.out.bias": conv,
        "head.weight": conv,
        "head.bias": conv,
    }


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        # Found with markers in the published program: how many tensors get which decay.
        ("finetune", {0.1: 79}),
        ("parallel", {0.3: 79}),
        ("series", {0.5: 2, 0.3: 127}),
    ],
)
def test_the_published_rule_on_the_published_network(method, wanted):
    backbone = Backbone.create("resnet26", weights="random", px=16)
    if method == "finetune":
        student = finetune.build(backbone, 10)
    else:
        config = residual_adapters.Config(adapters=method)
        student = residual_adapters.build(backbone, 10, config)
    found = decays(student, Settings(legacy_weight_decay=True, **MARKERS))
    assert Counter(found.values()) == wanted
    if method == "series":
        rest = {name for name, decay in found.items() if decay == 0.5}
        assert rest == {"adapters.conv1.norm.weight", "adapters.conv1.norm.bias"}


def test_the_published_rule_follows_the_order_that_a_student_offers():
    student = finetune.build(mixed(), tiny.CLASSES)
    body = student.task.body
    # As if the 3x3 convolution ran last: everything before it has the decay of the 1x1 one.
    rest = [p for p in student.task.parameters() if p is not body.conv.weight]
    student.trained_in_order = lambda: [*rest, body.conv.weight]
    found = decays(student, Settings(legacy_weight_decay=True, **MARKERS))
    assert {n for n, decay in found.items() if decay == 0.1} == {"body.conv.weight"}
    assert {n for n, decay in found.items() if decay == 0.5} == {
        "body.first.weight",
        "body.first.bias",
    }


def test_the_published_rule_needs_few_groups():
    how = Settings(legacy_weight_decay=True, **MARKERS)
    groups = build_optimizer(finetune.build(mixed(), tiny.CLASSES), how).param_groups
    # One kernel call each: body with 0.3 and 0.1, norms with 0.5, 0.3 and 0.1, the head.
    assert len(groups) == 6


def test_the_published_rule_never_decays_scores_and_masks():
    student = Roles()
    student.anchors = dict
    found = decays(student, Settings(legacy_weight_decay=True, weight_decay=0.5))
    assert (found["scores"], found["masks"], found["norms"]) == (0.0, 0.0, 0.5)


def test_the_published_rule_is_none_for_deltas():
    with pytest.raises(BadInput, match="trains deltas; leave --legacy-weight-decay out"):
        build_optimizer(tiny.student("taps"), Settings(legacy_weight_decay=True))


# Runs and sweeps of before


def test_a_run_of_before_decays_by_role_belongs_to_the_same_command(tmp_path):
    old = dataclasses.asdict(Settings())
    for name in (*(f"decay_{role}" for role in ROLES), "legacy_weight_decay", "steps_per_epoch"):
        del old[name]
    assert as_config(Settings()) == old
    assert Settings(**old) == Settings()
    Run(tmp_path, "adapt", {"train": old}).close()
    Run(tmp_path, "adapt", {"train": as_config(Settings())}).close()
    with pytest.raises(BadInput, match=r"train.decay_head: None there, 0.1 now"):
        Run(tmp_path, "adapt", {"train": as_config(Settings(decay_head=0.1))})


def test_a_sweep_names_its_units_as_before_decays_by_role():
    assert not [name for name in said(Recipe()) if name.startswith(("decay", "legacy"))]
    assert said(Recipe(decay_norms=0.0))["decay_norms"] == 0.0


@pytest.mark.parametrize("role", ROLES)
def test_a_decay_below_zero_is_refused(role):
    with pytest.raises(BadInput, match=f"decay_{role} is -1; give 0 or more"):
        Settings(**{f"decay_{role}": -1}).check()
