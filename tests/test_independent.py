"""Independent networks: fine-tuning without a sequel."""

from __future__ import annotations

import torch

from students import finetune, independent
from tests import tiny
from tests.test_finetune_sequel import train


def test_it_is_fine_tuning_bit_for_bit():
    ours = train(independent.build(tiny.conv_net(), 3, seed=1))
    theirs = train(finetune.build(tiny.conv_net(), 3, seed=1))
    expected = theirs.task.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in ours.task.state_dict().items())


def test_a_later_task_moves_no_bit_of_an_earlier_one():
    backbone, images = tiny.conv_net(), tiny.noise(5, 3, 8, 8, seed=9)
    first = train(independent.build(backbone, 3, seed=1))
    said = first(images).logits
    train(independent.build(backbone, 3, seed=2))
    assert torch.equal(first.eval()(images).logits, said)
    assert not hasattr(independent, "sequel")
