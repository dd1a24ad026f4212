"""Progressive networks: columns, laterals and their counts, and what earlier tasks keep."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from students import progressive
from tailor.backbone import Backbone
from tailor.base_maps import read_base, taps_of
from tailor.column import fitted, shaped
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.settings import Settings
from tailor.step import training_step
from tests import tiny

PUBLISHED = progressive.Config(published=True)


def base(name="resnet44"):
    return Backbone.create(name, weights="random", px=32)


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def sequence(backbone, tasks, config=None, classes=10):
    students = [progressive.build(backbone, classes, config, seed=0)]
    while len(students) < tasks:
        seed = len(students)
        students.append(progressive.sequel(students, backbone, classes, config, seed=seed))
    return students


def train(student, steps=2, seed=0):
    settings = Settings(lr=0.05)
    optimizer = build_optimizer(student, settings)
    for i in range(steps):
        student.train()
        images = tiny.noise(4, 3, 32, 32, seed=seed + i)
        training_step(student, optimizer, images, torch.arange(4) % 3, settings, epoch=0)
    return student.eval()


def test_a_published_column_has_the_published_numbers():
    (student,) = sequence(base(), 1, PUBLISHED)
    # 2 C² + 2 C + 1 for each adapter: 545 + 545 + 2,113 + 8,321.
    assert numbers(student.task.column.adapters) == 11_524
    assert numbers(student.task.column.side) == 25_904
    assert numbers(student.task) == 37_428 + 1 + 650 == 38_079


def test_ten_published_tasks_have_the_published_total():
    backbone = base()
    students = sequence(backbone, 10, PUBLISHED)
    assert backbone.num_params + sum(numbers(s.task) for s in students) == 1_038_726


def test_ten_dense_tasks_have_the_published_total():
    backbone = base()
    students = sequence(backbone, 10)
    assert numbers(students[1].task.column.laterals) == 2_593 + 5_697 + 22_657 == 30_947
    assert sum(numbers(s.task.column) for s in students) == 1_766_895
    assert [numbers(s.task.fusion) for s in students] == list(range(2, 12))
    assert backbone.num_params + sum(numbers(s.task) for s in students) == 2_431_396


def test_base_maps_are_those_of_stem_and_resolutions():
    backbone, images = base(), tiny.noise(2, 3, 32, 32)
    model = backbone.model
    features, maps = read_base(backbone, model, taps_of(backbone), images)
    with torch.no_grad():
        stem = model.act1(model.bn1(model.conv1(images)))
        one = model.layer1(stem.clone())
        two = model.layer2(one.clone())
        three = model.layer3(two.clone())
    for mine, expected in zip(maps, (stem, one, two, three), strict=True):
        assert torch.equal(mine, expected)
    assert torch.equal(features, backbone(images))
    assert not model.layer3[-1]._forward_hooks  # nothing is left behind


def test_tokens_that_are_no_part_of_the_image_are_left_out():
    backbone = Backbone.create("vit_small_patch14_reg4_dinov2", weights="random", px=28)
    tap = taps_of(backbone)[-1]
    tokens = torch.arange(9.0).view(1, 9, 1)  # a class token and four registers, then 2 x 2
    assert tap.map_of(tokens).tolist() == [[[[5, 6], [7, 8]]]]


def test_maps_are_pooled_then_cut():
    x = torch.arange(36.0).view(1, 1, 6, 6)
    assert fitted(x, (3, 3)).flatten().tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]
    # 6 // 2 = 3 rows and 6 // 5 = 1 column at a time; the sixth column is cut.
    assert fitted(x, (2, 5)).flatten().tolist() == [12, 13, 14, 15, 16, 30, 31, 32, 33, 34]
    assert fitted(x[:, :, :1, :1], (2, 3)).tolist() == [[[[0, 0, 0], [0, 0, 0]]]]


def test_a_column_is_its_formula():
    """The second task's column, layer by layer, of the first one's outputs."""
    first, second = sequence(base("resnet20"), 2)
    images = tiny.noise(2, 3, 32, 32)
    features, maps = read_base(second.universal, second.universal.model, second.taps, images)
    theirs = first.task.column(images, maps, [])
    column, x = second.task.column, images
    side = column.side
    with torch.no_grad():
        for at, layer in enumerate((side.conv1, side.conv2, side.conv3, side.conv5)):
            y = F.conv2d(x, layer[0].weight, stride=layer[0].stride, padding=layer[0].padding)
            given = fitted(maps[at], y.shape[2:])
            y = y + column.adapters[at](given)
            if at:
                y = y + column.laterals[0][at - 1](theirs[at - 1])
            if at < 3:  # the last layer has no norm
                y = F.group_norm(y, 2, layer[1].weight, layer[1].bias)
            x = y.relu()
        assert x.shape[2:] == (5, 5)
        share = second.task.fusion.alpha.softmax(0)
        earlier = theirs[-1].mean((2, 3))
        fused = share[0] * features + share[1] * earlier + share[2] * x.mean((2, 3))
        groups = fused.view(2, 8, 8)
        normed = (groups - groups.mean(2, keepdim=True)) / (
            groups.var(2, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        expected = second.task.head(normed.view(2, 64))
        torch.testing.assert_close(second(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_later_task_changes_no_bit_of_an_earlier_one():
    backbone, images = base("resnet20"), tiny.noise(3, 3, 32, 32, seed=9)
    first = train(progressive.build(backbone, 3, seed=1))
    said = first(images).logits
    tensors = {n: t.clone() for n, t in first.task.state_dict().items()}
    second = train(progressive.sequel([first], backbone, 3, seed=2), seed=50)
    third = train(progressive.sequel([first, second], backbone, 3, seed=3), seed=80)
    assert torch.equal(first.eval()(images).logits, said)
    assert all(torch.equal(t, tensors[n]) for n, t in first.task.state_dict().items())
    assert not any(n.startswith("_earlier") for n in third.task.state_dict())


def test_what_earlier_columns_know_reaches_a_later_one_unless_published():
    backbone, images = base("resnet20"), tiny.noise(3, 3, 32, 32, seed=9)
    for config, reads in ((progressive.Config(), True), (PUBLISHED, False)):
        first, second = sequence(backbone, 2, config)
        said = second.eval()(images).logits
        with torch.no_grad():
            first.task.column.side.conv1[0].weight.mul_(-1)
        assert torch.equal(second(images).logits, said) != reads


def test_a_merged_later_task_holds_what_it_reads():
    second = sequence(base("resnet20"), 2)[1]
    images = tiny.noise(3, 3, 32, 32)
    merged = second.merge()
    assert torch.equal(merged(images), second.eval()(images).logits)
    assert numbers(merged) == second.universal.num_params + numbers(second.task) + 37_428


def test_a_sequence_is_rebuilt_from_what_each_task_saved():
    backbone, images = base("resnet20"), tiny.noise(3, 3, 32, 32, seed=9)
    first = train(progressive.build(backbone, 3, seed=1))
    second = train(progressive.sequel([first], backbone, 3, seed=2))
    again = progressive.build(backbone, 3, seed=7)
    again.task.load_state_dict(first.task.state_dict())
    other = progressive.sequel([again], backbone, 3, seed=8)
    other.task.load_state_dict(second.task.state_dict())
    assert torch.equal(other.eval()(images).logits, second(images).logits)


def test_what_a_column_cannot_serve_gets_one_line():
    small = Backbone.create("small_resnet", weights="random", px=8)
    with pytest.raises(BadInput, match="images of 8 px; give --px 15 or more"):
        progressive.build(small, 3)
    ten = Backbone(tiny.conv_net().model, name="conv_net", input_size=(3, 16, 16))
    with pytest.raises(BadInput, match=r"8 groups, and backbone 'conv_net' has 10"):
        progressive.build(ten, 3)


def test_of_a_base_that_returns_maps_columns_are_averaged_to_their_sides():
    backbone = Backbone.create("resnet20", weights="random", px=32, dense=True)
    first, second = sequence(backbone, 2, classes=3)
    images = tiny.noise(2, 3, 32, 32)
    features, maps = read_base(backbone, backbone.model, first.taps, images)
    assert features.shape == (2, 64, 8, 8)
    output = first.task.column(images, maps, [])[-1]  # 5 x 5
    # Of 5 rows to 8: row 0 is the mean of row 0 alone, row 1 (from 0.625 to 1.25) of rows 0 and 1.
    found = shaped(output, features)
    torch.testing.assert_close(found[:, :, 0, 0], output[:, :, 0, 0])
    torch.testing.assert_close(found[:, :, 1, 0], output[:, :, :2, 0].mean(2))
    assert second(images).logits.shape[:2] == (2, 3)
