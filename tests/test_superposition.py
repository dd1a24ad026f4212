"""Parameter superposition: keys, what a task reads through them, and the published slips."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from students import finetune, superposition
from students.superposition import Config
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tests import tiny
from tests.test_finetune_sequel import train


def sequence(backbone, tasks, config=None):
    students = [superposition.build(backbone, 3, config, seed=1)]
    while len(students) < tasks:
        students.append(superposition.sequel(students, backbone, 3, config, seed=len(students) + 1))
    return students


def features(student, images):
    """What a task's body says, its head apart."""
    student.eval()
    student.task.head = nn.Identity()
    with torch.no_grad():
        return student(images).logits


def test_a_weight_is_read_times_one_sign_per_input_for_all_outputs():
    second = sequence(tiny.conv_net(), 2)[1]
    key = second.memory["conv2"]
    assert key.shape == (1, 6, 3, 3)
    assert set(key.flatten().tolist()) == {-1, 1}
    own = second.task.body.conv2.weight
    assert torch.equal(second._read()["conv2.weight"], own * key.expand(6, -1, -1, -1))


def test_the_output_is_that_of_the_network_with_the_weights_as_read():
    backbone, images = tiny.conv_net(), tiny.noise(4, 3, 8, 8)
    second = sequence(backbone, 2)[1].eval()
    x = images
    body, signs = second.task.body, second.memory["conv2"].float()
    with torch.no_grad():
        x = body.bn1(body.conv1(x)).relu()
        y = nn.functional.conv2d(x, body.conv2.weight * signs, body.conv2.bias, padding=1)
        x = (x + body.bn2(y)).relu().mean((2, 3))
        read = second._read()
        weight = read.get("fc1.weight", body.fc1.weight)
        expected = second.task.head((x @ weight.T + body.fc1.bias).tanh())
    torch.testing.assert_close(second(images).logits, expected)


def test_the_first_layer_and_shortcuts_have_no_key():
    backbone = Backbone.create("small_resnet", weights="random", px=32)
    names = superposition.superposed(backbone)
    assert len(names) == 16  # 20 convolutions: the stem and three 1x1 shortcuts have none
    assert "conv1" not in names
    assert not any("downsample" in n for n in names)


def test_keys_switch_with_the_task():
    """The published side network says the same to task 0 and 5; here everything differs."""
    images = tiny.noise(4, 3, 32, 32)
    students = sequence(Backbone.create("resnet20", weights="random"), 6)
    said = [features(students[t], images) for t in (0, 5)]
    assert (said[0] - said[1]).abs().max() > 0.1


def test_published_the_side_networks_key_never_switches():
    backbone, images = Backbone.create("gsn44", weights="random"), tiny.noise(2, 3, 32, 32)
    for config, differs in ((Config(norms="shared"), True), (Config(published=True), False)):
        first, *_, sixth = sequence(backbone, 6, config)
        sides = [
            torch.func.functional_call(
                s.task.body.side.eval(),
                {n.removeprefix("side."): w for n, w in s._read().items() if n.startswith("side.")},
                (images,),
            )
            for s in (first, sixth)
        ]
        assert torch.equal(*sides) != differs
        base = "base.layer1.0.conv1"
        assert not torch.equal(first.memory[base], sixth.memory[base])


def test_keys_are_a_function_of_seed_layer_and_task():
    backbone = tiny.conv_net()
    a, b = (superposition.keys_of(backbone, Config(), 4, 2) for _ in range(2))
    assert all(torch.equal(key, b[name]) for name, key in a.items())
    other = superposition.keys_of(backbone, Config(), 5, 2)
    assert not torch.equal(a["conv2"], other["conv2"])
    wide = Backbone.create("resnet20", weights="random")
    keys = dict(superposition.keys_of(wide, Config(), 0, 1).items())
    alike = [k for n, k in keys.items() if n.startswith("layer3") and k.shape[1] == 64]
    assert not torch.equal(alike[0], alike[1])
    # 18 of 3x3: 6 x 144 + (144 + 5 x 288) + (288 + 5 x 576); half of the signs are +1.
    signs = torch.cat([k.flatten() for k in keys.values()])
    assert len(signs) == 864 + 1_584 + 3_168
    assert abs(signs.float().mean()) < 4 / len(signs) ** 0.5  # four standard errors


def test_with_one_key_it_is_fine_tuning_bit_for_bit():
    config = Config(period=1, norms="shared")
    backbone = tiny.conv_net()
    ours, theirs = (
        superposition.build(backbone, 3, config, seed=1),
        finetune.build(backbone, 3, seed=1),
    )
    for one in (ours, theirs):
        train(one)
    ours = superposition.sequel([ours], backbone, 3, config, seed=2)
    theirs = finetune.sequel([theirs], backbone, 3, seed=2)
    for one in (ours, theirs):
        train(one, seed=50)
    expected = theirs.task.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in ours.task.state_dict().items())


def test_weights_are_shared_and_norms_are_each_tasks_own():
    backbone = tiny.conv_net()
    first, second = sequence(backbone, 2)
    train(first)
    statistics = first.task.body.bn1.running_mean.clone()
    train(second, seed=50)
    assert second.task.body.conv2.weight is first.task.body.conv2.weight
    assert second.task.body.bn1.weight is not first.task.body.bn1.weight
    assert torch.equal(first.task.body.bn1.running_mean, statistics)
    shared = sequence(backbone, 2, Config(norms="shared"))
    assert shared[0].task.body is shared[1].task.body


def test_keys_come_again_after_a_period():
    students = sequence(tiny.conv_net(), 4, Config(period=2))
    assert students[2].memory is students[0].memory
    assert not torch.equal(students[1].memory["conv2"], students[0].memory["conv2"])


def test_changes_only_start_every_task_from_the_trunk():
    backbone, images = tiny.conv_net(), tiny.noise(4, 3, 8, 8)
    students = sequence(backbone, 2, Config(superpose="changes"))
    assert torch.equal(features(students[1], images), backbone(images))
    train(sequence(backbone, 1, Config(superpose="changes"))[0])
    own, trunk = students[1].task.body.conv2.weight, backbone.model.conv2.weight
    with torch.no_grad():
        own += 1
    expected = trunk + students[1].memory["conv2"]
    torch.testing.assert_close(students[1]._read()["conv2.weight"], expected)


@pytest.mark.parametrize(("config", "alone"), [(Config(), True), (Config(published=True), False)])
def test_published_an_output_depends_on_the_rest_of_its_batch(config, alone):
    student = train(superposition.build(tiny.conv_net(), 3, config))
    images = tiny.noise(6, 3, 8, 8)
    difference = (student(images).logits[:2] - student(images[:2]).logits).abs().max().item()
    assert (difference < 1e-5) == alone


def test_a_sequence_is_rebuilt_from_what_each_task_saved():
    backbone, images = tiny.conv_net(), tiny.noise(4, 3, 8, 8, seed=9)
    students = sequence(backbone, 2)
    saved = []
    for student in students:
        train(student)
        saved.append(
            [
                {n: t.clone() for n, t in m.state_dict().items()}
                for m in (student.task, student.memory)
            ]
        )
    again = [superposition.build(backbone, 3, seed=7)]
    again.append(superposition.sequel(again, backbone, 3, seed=8))
    for student, (task, memory) in zip(again, saved, strict=True):
        student.task.load_state_dict(task)
        student.memory.load_state_dict(memory)
    for mine, other in zip(students, again, strict=True):
        assert torch.equal(mine.eval()(images).logits, other.eval()(images).logits)


def test_a_merged_second_task_has_plain_weights():
    second = train(sequence(tiny.conv_net(), 2)[1])
    images, merged = tiny.noise(4, 3, 8, 8), second.merge()
    assert torch.equal(merged(images), second(images).logits)


def test_norms_of_a_batch_need_maps_of_more_than_a_pixel():
    backbone = Backbone.create("resnet18", weights="random", px=32)
    with pytest.raises(BadInput, match=r"'resnet18' at 32 px has one; give a larger --px"):
        superposition.build(backbone, 2, superposition.Config(published=True))


def test_a_bad_period_gets_one_line():
    with pytest.raises(BadInput, match="period is 0; give --period 1 or more"):
        superposition.build(tiny.conv_net(), 3, Config(period=0))
