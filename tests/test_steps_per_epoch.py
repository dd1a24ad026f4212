"""Epochs of a set number of batches, as iCIFAR's 157, and Adam, which trains them."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from tailor.data import Batches
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.run import Run, read_log
from tailor.settings import Settings, as_config
from tailor.step import training_step
from tailor.task import Pixels, Split
from tailor.train import fit
from tailor.view import View
from tests import tiny
from tests.tiny import Interrupted, Until

VIEW = View(px=8, crop="pad", pad=1, flip=True)


def split(count: int) -> Split:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Split(Pixels(pixels, "noise"), [i % 3 for i in range(count)])


def batches(count=20, batch=8, steps=7, **more) -> Batches:
    return Batches(split(count), VIEW, batch=batch, train=True, steps_per_epoch=steps, **more)


def test_an_epoch_of_icifar_is_19736_samples():
    # 5000 images in batches of 128: 39 full ones and one of 8, three times; then 37 full ones.
    found = batches(5000, 128, 157)
    sizes = [len(batch.labels) for batch in found.epoch(0)]
    assert found.steps == 157
    assert sizes == 3 * [*[128] * 39, 8] + 37 * [128]
    assert sum(sizes) == 3 * 5000 + 37 * 128 == 19_736


def test_every_pass_shows_every_image_once_in_an_order_of_its_own():
    # 20 images in batches of 8: 8, 8, 4 | 8, 8, 4 | 8
    numbers = torch.cat([batch.indices for batch in batches().epoch(0)]).tolist()
    first, second, rest = numbers[:20], numbers[20:40], numbers[40:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert len(set(rest)) == 8
    assert max(Counter(numbers).values()) == 3


def test_the_first_pass_is_the_epoch_of_before():
    before = Batches(split(20), VIEW, batch=8, train=True)
    for old, new in zip(before.epoch(3), batches().epoch(3), strict=False):
        assert torch.equal(old.images, new.images)
        assert torch.equal(old.indices, new.indices)


def test_an_epoch_continues_anywhere_with_the_same_images():
    whole, found = list(batches().epoch(1)), batches()
    for start in range(8):
        rest = list(found.epoch(1, start_step=start))
        assert len(rest) == 7 - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.indices, other.indices)


def test_streamed_and_kept_images_are_the_same():
    kept, streamed = batches(), batches(memory_limit_bytes=0, workers=0)
    for one, other in zip(kept.epoch(0), streamed.epoch(0), strict=True):
        assert torch.equal(one.images, other.images)


def test_a_batch_above_the_split_is_a_pass_of_one_batch():
    assert [len(b.labels) for b in batches(5, 8, 3).epoch(0)] == [5, 5, 5]


def test_several_processes_are_refused():
    with pytest.raises(BadInput, match=r"steps_per_epoch is 7 for 2 processes: .* start one"):
        batches(world=2)


def test_no_steps_are_refused():
    with pytest.raises(BadInput, match="steps_per_epoch is 0; give 1 or more"):
        Settings(steps_per_epoch=0).check()


def test_runs_of_before_keep_their_identity():
    assert "steps_per_epoch" not in as_config(Settings())
    assert as_config(Settings(steps_per_epoch=3))["steps_per_epoch"] == 3


HOW = Settings(
    epochs=2, batch=8, lr=0.01, optimizer="adam", clip=1.0, log_every=2, checkpoint_seconds=0
)


def trained(student, *, run=None, progress=None, **changed):
    how = dataclasses.replace(HOW, **changed)
    data = batches(20, 8, 7)
    return fit(student, data, None, how, run=run, progress=progress)


@pytest.mark.parametrize("cut", [1, 3, 7, 10, 13])  # after a short batch, at the end of an epoch
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, cut):
    expected, found = tiny.student("taps"), tiny.student("taps")
    trained(expected)
    with Run(tmp_path, "adapt", {}) as run, pytest.raises(Interrupted):
        trained(tiny.student("taps"), run=run, progress=Until(cut))
    with Run(tmp_path, "adapt", {}) as run:
        trained(found, run=run)
    for name, tensor in expected.task.state_dict().items():
        assert torch.equal(tensor, found.task.state_dict()[name]), name
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [7, 14]


def test_the_log_counts_short_batches_as_short(tmp_path, monkeypatch):
    # Two steps between lines, of one second each: 16 images, then 4 and 8, then 8 and 4.
    monkeypatch.setattr("tailor.board.Watch.lap", lambda _: 2.0)
    with Run(tmp_path, "adapt", {}) as run:
        trained(tiny.student("probe"), run=run, epochs=1)
    lines = [r for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"]
    assert [r["images_per_second"] for r in lines] == [8.0, 6.0, 6.0]


# Adam


def one_step(student, **changed):
    how = Settings(**({"optimizer": "adam", "lr": 0.01} | changed))
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    student.train()
    labels = torch.arange(8) % tiny.CLASSES
    training_step(student, build_optimizer(student, how), images, labels, how, epoch=0.0)


def test_first_step_of_adam_moves_every_weight_by_the_learning_rate():
    before, after = tiny.student("finetune"), tiny.student("finetune")
    one_step(after)
    step = after.task.head.weight - before.task.head.weight
    torch.testing.assert_close(step.abs(), torch.full_like(step, 0.01), rtol=1e-4, atol=0)


def test_weight_decay_of_adam_is_part_of_the_gradient():
    # So strong a decay decides the sign of the gradient, and its sign is all of a first step.
    before, after = tiny.student("finetune"), tiny.student("finetune")
    one_step(after, weight_decay=1e6)
    weight = before.task.head.weight
    step = after.task.head.weight - weight
    torch.testing.assert_close(step, -0.01 * weight.sign(), rtol=1e-4, atol=0)


def test_weight_decay_of_adam_pulls_a_delta_to_the_universal_weight():
    students = [tiny.student("taps"), tiny.student("taps")]
    with torch.no_grad():
        for student in students:
            for place, delta in enumerate(student.anchors()):
                delta += 0.1 * (-1) ** place
    moved, before = students
    anchors = list(moved.anchors().values())
    one_step(moved, weight_decay=1e6)
    for param, start, anchor in zip(moved.anchors(), before.anchors(), anchors, strict=True):
        expected = -0.01 * (start - anchor).sign()
        torch.testing.assert_close(param - start, expected, rtol=1e-3, atol=1e-6)


def test_adam_is_torchs_with_its_usual_moments():
    optimizer = build_optimizer(tiny.student("probe"), Settings(optimizer="adam", lr=1e-3))
    assert type(optimizer) is torch.optim.Adam
    assert {(g["betas"], g["eps"], g["lr"]) for g in optimizer.param_groups} == {
        ((0.9, 0.999), 1e-8, 1e-3)
    }
