"""Fine-tuning in a sequence: one body, a head per task."""

from __future__ import annotations

import copy

import pytest
import torch

from students import finetune
from tailor.optim import build_optimizer
from tailor.settings import Settings
from tailor.step import training_step
from tests import tiny


def train(student, steps=3, seed=0):
    settings = Settings(lr=0.05)
    optimizer = build_optimizer(student, settings)
    for i in range(steps):
        student.train()
        labels = torch.arange(6) % student.task.head.out_features
        training_step(
            student, optimizer, tiny.noise(6, 3, 8, 8, seed=seed + i), labels, settings, epoch=0
        )
    return student.eval()


def test_the_parameters_are_the_ones_before_and_the_head_is_new():
    first = finetune.build(tiny.conv_net(), 3, seed=1)
    second = finetune.sequel([first], first.universal, 4, seed=2)
    mine, theirs = (list(s.task.body.parameters()) for s in (second, first))
    assert all(a is b for a, b in zip(mine, theirs, strict=True))
    assert second.task.head.out_features == 4
    assert first.task.head.out_features == 3


@pytest.mark.parametrize("statistics", ["own", "shared"])
def test_running_statistics_are_each_tasks_own_unless_shared(statistics):
    first = train(finetune.build(tiny.conv_net(), 3, seed=1))
    before = first.task.body.bn1.running_mean.clone()
    config = finetune.Config(statistics=statistics)
    second = finetune.sequel([first], first.universal, 4, config, seed=2)
    assert torch.equal(second.task.body.bn1.running_mean, before)  # it starts where the other was
    train(second, seed=50)
    assert torch.equal(first.task.body.bn1.running_mean, before) == (statistics == "own")
    assert (second.task.body is first.task.body) == (statistics == "shared")


def test_a_later_task_moves_what_an_earlier_one_says_but_not_its_head():
    first = train(finetune.build(tiny.conv_net(), 3, seed=1))
    images, head = tiny.noise(5, 3, 8, 8, seed=9), first.task.head.weight.clone()
    said = first(images).logits
    second = train(finetune.sequel([first], first.universal, 3, seed=2))
    assert not torch.equal(first.eval()(images).logits, said)
    assert torch.equal(first.task.head.weight, head)
    with torch.no_grad():  # of the weights as they are now
        body = copy.deepcopy(first.task.body)
        body.load_state_dict(dict(second.task.body.named_parameters()), strict=False)
        expected = first.task.head(body(images))
    assert torch.equal(first(images).logits, expected)


def test_a_sequence_is_rebuilt_from_what_each_task_saved():
    """The file of the last task holds the body as it is; those before give their heads."""
    backbone = tiny.conv_net()
    first = train(finetune.build(backbone, 3, seed=1))
    saved = [{n: t.clone() for n, t in first.task.state_dict().items()}]
    second = train(finetune.sequel([first], backbone, 3, seed=2))
    saved.append(second.task.state_dict())
    one = finetune.build(backbone, 3, seed=8)
    one.task.load_state_dict(saved[0])
    two = finetune.sequel([one], backbone, 3, seed=9)
    two.task.load_state_dict(saved[1])
    images = tiny.noise(5, 3, 8, 8, seed=9)
    for mine, again in ((first, one), (second, two)):
        assert torch.equal(mine.eval()(images).logits, again.eval()(images).logits)
