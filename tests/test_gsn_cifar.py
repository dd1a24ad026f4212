"""The blended network of side-tuning's published baselines, and their tables of parameters."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from students import ewc, finetune, independent, superposition
from tailor.backbone import Backbone
from tailor.side import Fcn4
from teachers.gsn_cifar import combined
from tests import tiny

TASKS = 10


def gsn(weights="random"):
    return Backbone.create("gsn44", weights=weights)


def students(module, backbone, config=None):
    found = [module.build(backbone, 10, config)]
    while len(found) < TASKS:
        make = getattr(module, "sequel", None)
        seed = len(found)
        found.append(
            make(found, backbone, 10, config, seed=seed)
            if make
            else module.build(backbone, 10, config, seed=seed)
        )
    return found


def unique(found):
    """Numbers of all tasks, shared ones once."""
    return sum({id(p): p.numel() for s in found for p in s.task.parameters()}.values())


def test_it_has_the_published_number_of_parameters():
    assert gsn().num_params == 657_936 + 25_904 + 1 == 683_841


@pytest.mark.parametrize(
    ("module", "total"), [(finetune, 690_341), (independent, 6_844_910), (ewc, 690_341)]
)
def test_ten_tasks_have_the_published_total(module, total):
    found = students(module, gsn())
    assert unique(found) == total
    assert sum(p.numel() for p in found[-1].task.parameters()) == 684_491


def test_the_plain_base_has_the_published_totals_too():
    backbone = Backbone.create("resnet44", weights="random")
    assert unique(students(finetune, backbone)) == 664_436
    assert unique(students(independent, backbone)) == 6_585_860


def test_superposition_has_the_published_total_with_its_keys():
    found = students(superposition, gsn(), superposition.Config(published=True))
    keys = {id(t): t.numel() for s in found for t in s.memory.buffers()}
    # (13,680 of the base's 3x3 convolutions but the first + 603 of the side's four) x 10
    assert sum(keys.values()) == 142_830
    assert unique(found) + sum(keys.values()) == 833_171


def test_it_blends_the_two_parts_whose_weights_it_is_given(tmp_path):
    base = Backbone.create("resnet44", weights="random", seed=1).model.eval()
    torch.manual_seed(2)
    side = Fcn4(64).eval()
    theirs = base.state_dict() | {"linear.weight": torch.zeros(10, 64)}  # a head that is left out
    save_file(combined(theirs, side.state_dict()), tmp_path / "gsn44.safetensors")
    backbone = gsn(tmp_path / "gsn44.safetensors")
    images = tiny.noise(3, 3, 32, 32)
    with torch.no_grad():
        blended = 0.5 * base(images) + 0.5 * side(images)
        groups = blended.view(3, 8, 8)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, correction=0, keepdim=True)
        expected = ((groups - mean) / (var + 1e-5).sqrt()).view(3, 64)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(F.group_norm(blended, 8), expected, rtol=1e-4, atol=1e-5)


def test_a_head_goes_into_its_place():
    student = finetune.build(gsn(), 10)
    merged = student.merge()
    assert torch.equal(merged.linear.weight, student.task.head.weight)
    assert type(merged) is type(student.universal.model)
