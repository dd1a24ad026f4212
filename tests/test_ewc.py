"""Elastic weight consolidation: Fisher, running mean and penalty, against hand counts and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from students import ewc, finetune
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.losses import step_loss
from tailor.optim import build_optimizer
from tailor.settings import Settings
from tailor.step import training_step
from tailor.target import CLASS, PIXEL_VALUES, SET
from tests import tiny
from tests.test_finetune_sequel import train


def student(**options):
    return ewc.build(tiny.conv_net(), 3, ewc.Config(**options), seed=1)


def known(count=7, seed=3):
    """Images and labels of a task."""
    return tiny.noise(count, 3, 8, 8, seed=seed), torch.arange(count) % 3


def softmax(z):
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def biased():
    """A student whose logits are features plus a bias: the bias's Fisher has a closed form."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x.mean((2, 3)))

    found = ewc.build(Backbone(Net(), name="net", input_size=(3, 8, 8)), 3)
    with torch.no_grad():
        found.task.head.weight.copy_(torch.eye(3))
        found.task.head.bias.zero_()
    return found.eval()


def test_the_fisher_of_a_bias_is_the_mean_of_p_minus_y_squared():
    found, (images, labels) = biased(), known()
    fisher = ewc.diagonal_fisher(found, iter([(images, labels)]), 100)
    p = softmax(found(images).logits.detach().double().numpy())
    expected = ((p - np.eye(3)[labels.numpy()]) ** 2).mean(0)
    np.testing.assert_allclose(fisher[-3:].numpy(), expected, rtol=1e-5)


def test_the_fisher_of_drawn_labels_comes_to_p_times_1_minus_p():
    found, (images, _) = biased(), known(count=3000)
    draw = torch.Generator().manual_seed(0)
    labels = torch.zeros(3000, dtype=torch.int64)  # wrong ones: they must not be used
    fisher = ewc.diagonal_fisher(found, iter([(images, labels)]), 3000, CLASS, draw)
    p = softmax(found(images).logits.detach().double().numpy())
    # 3000 draws of (y - p)²: the standard error of their mean is below 0.005.
    np.testing.assert_allclose(fisher[-3:].numpy(), (p * (1 - p)).mean(0), atol=0.02)


def test_the_fisher_equals_a_loop_over_single_images():
    found, (images, labels) = tiny.lively(student()).eval(), known()
    pairs = iter([(images[:4], labels[:4]), (images[4:], labels[4:])])
    fisher = ewc.diagonal_fisher(found, pairs, 6)
    expected = torch.zeros_like(fisher)
    for i in range(6):
        loss = nn.functional.cross_entropy(found(images[i : i + 1]).logits, labels[i : i + 1])
        gradients = torch.autograd.grad(loss, list(found.task.body.parameters()))
        expected += torch.cat([g.flatten() for g in gradients]) ** 2 / 6
    torch.testing.assert_close(fisher, expected, rtol=1e-4, atol=1e-8)


def test_the_published_fisher_is_that_of_the_batch_mean_loss():
    found, (images, labels) = tiny.lively(student()).eval(), known(8)
    pairs = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    params = list(found.task.body.parameters())
    expected = torch.zeros(len(ewc.flat(found.task.body)))
    for x, y in pairs:
        loss = nn.functional.cross_entropy(found(x).logits, y)
        expected += torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]) ** 2 / 2
    fisher = ewc.published_fisher(found, iter(pairs), 5000, 2)
    torch.testing.assert_close(fisher, expected)
    # Two are counted for a batch: 3 "samples" are one batch.
    once = ewc.published_fisher(found, iter(pairs), 3, 2)
    assert 0 < once.sum().item() < fisher.sum().item()


def test_the_running_mean_of_three_tasks_is_their_mean():
    memory = ewc.Memory(1)
    for fisher, anchor in ((1.0, 0.0), (3.0, 1.0), (9.0, 2.0)):
        memory.take(torch.tensor([fisher]), torch.tensor([anchor]), "mean")
    assert memory.anchor.item() == pytest.approx(1.0)
    assert memory.fisher.item() == pytest.approx(13 / 3)


def test_the_published_running_mean_remembers_the_last_task():
    memory = ewc.Memory(1)
    for fisher, anchor in ((1.0, 0.0), (3.0, 1.0), (9.0, 2.0)):
        memory.take(torch.tensor([fisher]), torch.tensor([anchor]), "mean", times=10)
    # Ten times in place: 2 - (1 + 2^-10) (2/3)^10, and 9 - (6 + 2^-9) (2/3)^10.
    assert memory.anchor.item() == pytest.approx(1.983, abs=5e-4)
    assert memory.fisher.item() == pytest.approx(8.90, abs=5e-3)


def test_each_task_by_itself_pulls_as_the_two_sums_do():
    found = student(coef=2.0, tasks="each", cap=None)
    size = len(ewc.flat(found.task.body))
    tasks = [(tiny.noise(size, seed=s).abs(), tiny.noise(size, seed=s + 9)) for s in range(3)]
    for fisher, anchor in tasks:
        found.memory.take(fisher, anchor, "each")
    params = list(found.task.body.parameters())
    mine = torch.cat([g.flatten() for g in torch.autograd.grad(found.price(0), params)])
    now = ewc.flat(found.task.body).detach()
    expected = sum(2 * 2.0 * fisher * (now - anchor) for fisher, anchor in tasks)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_the_price_is_the_papers_penalty_on_the_body_alone():
    found = student(coef=3.0, cap=None)
    size = len(ewc.flat(found.task.body))
    fisher, anchor = tiny.noise(size).abs(), tiny.noise(size, seed=1)
    found.memory.take(fisher, anchor, "mean")
    gap = (ewc.flat(found.task.body).detach() - anchor).double().numpy()
    expected = 3 * (fisher.double().numpy() * gap**2).sum()
    assert found.price(0).item() == pytest.approx(expected, rel=1e-5)
    images, labels = known()
    terms = step_loss(found, found(images), images, labels, epoch=0)
    assert terms.price.item() == pytest.approx(expected, rel=1e-5)
    found.price(0).backward()
    assert found.task.head.weight.grad is None


def test_the_first_task_is_fine_tuning_and_a_sequel_shares_body_and_memory():
    ours = train(student())
    theirs = train(finetune.build(tiny.conv_net(), 3, seed=1))
    expected = theirs.task.state_dict()
    assert ours.price(0) is None
    assert all(torch.equal(t, expected[n]) for n, t in ours.task.state_dict().items())
    second = ewc.sequel([ours], ours.universal, 4, seed=2)
    assert second.memory is ours.memory
    mine, theirs = (list(s.task.body.parameters()) for s in (second, ours))
    assert all(a is b for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("statistics", "moves"), [("own", False), ("shared", True)])
def test_running_statistics_are_each_tasks_own_unless_shared(statistics, moves):
    first = train(student(statistics=statistics))
    config = ewc.Config(statistics=statistics)
    before = first.task.body.bn1.running_mean.clone()
    second = ewc.sequel([first], first.universal, 3, config, seed=2)
    assert torch.equal(second.task.body.bn1.running_mean, before)  # it starts where the other was
    train(second, seed=50)
    assert torch.equal(first.task.body.bn1.running_mean, before) != moves


def test_the_penalty_of_one_number_has_a_limit():
    found = student(coef=100.0, cap=10.0)
    size = len(ewc.flat(found.task.body))
    fisher = torch.full((size,), 0.01)
    fisher[0] = 5.0  # 100 * 5 is 10, 100 * 0.01 is 1
    now = ewc.flat(found.task.body).detach()
    found.memory.take(fisher, now - 1, "mean")
    assert found.price(0).item() == pytest.approx(10 + (size - 1), rel=1e-5)


def test_consolidating_leaves_the_network_and_remembers_it():
    found = train(student(n_samples=10))
    before = {n: t.clone() for n, t in found.task.state_dict().items()}
    found.consolidate(tiny.batches(12, 4, train=True), Settings(epochs=1))
    assert all(torch.equal(t, before[n]) for n, t in found.task.state_dict().items())
    assert torch.equal(found.memory.anchor, ewc.flat(found.task.body))
    assert int(found.memory.tasks) == 1
    assert float(found.memory.fisher.min()) >= 0 < float(found.memory.fisher.max())
    assert found.price(0).item() == 0  # it is where it shall stay


def forgotten(module, **options):
    """By how much the loss of a task rises while the next one is learned."""

    def learn(student, images, labels):
        optimizer = build_optimizer(student, settings)
        for _ in range(60):
            student.train()
            training_step(student, optimizer, images, labels, settings, epoch=0)
        student.eval()

    def loss(student):
        return nn.functional.cross_entropy(student.eval()(split.images).logits, split.labels).item()

    settings = Settings(lr=0.05, epochs=1)
    batches = tiny.batches(12, 12, train=True)
    split = next(batches.epoch(0))
    first = module.build(tiny.conv_net(), 3, module.Config(**options), seed=1)
    learn(first, split.images, split.labels)
    if module is ewc:
        first.consolidate(batches, settings)
    before = loss(first)
    second = module.sequel([first], first.universal, 3, module.Config(**options), seed=2)
    learn(second, tiny.noise(12, 3, 8, 8, seed=5), torch.arange(12) % 3)
    return loss(first) - before


def test_it_forgets_less_than_fine_tuning_and_coef_0_is_fine_tuning():
    plain = forgotten(finetune)
    assert forgotten(ewc, coef=0.0) == plain
    assert forgotten(ewc, coef=100.0) < 0.5 * plain


def test_a_sequence_is_rebuilt_from_body_heads_and_memory():
    backbone = tiny.conv_net()
    first = train(ewc.build(backbone, 3, seed=1))
    first.consolidate(tiny.batches(12, 4, train=True), Settings(epochs=1))
    again = ewc.build(backbone, 3, seed=5)
    again.task.load_state_dict(first.task.state_dict())
    again.memory.load_state_dict(first.memory.state_dict())
    mine, theirs = (ewc.sequel([s], backbone, 3, seed=2) for s in (first, again))
    for one in (mine, theirs):
        train(one, seed=70)
    assert torch.equal(ewc.flat(mine.task.body), ewc.flat(theirs.task.body))


@pytest.mark.parametrize("published", [False, True])
def test_memory_is_two_numbers_per_weight_whatever_the_number_of_tasks(published):
    found = student(published=published)
    for _ in range(2):
        found.consolidate(tiny.batches(12, 4, train=True), Settings(epochs=1))
    numbers = [t.numel() for t in found.memory.buffers() if t.is_floating_point()]
    assert sum(numbers) == 2 * found.universal.num_params


def test_sets_of_labels_are_drawn_too_and_pixels_refused():
    logits, draw = tiny.noise(7, 3), torch.Generator().manual_seed(0)
    labels = torch.zeros(7, 3, dtype=torch.int8)
    labels[0, 0] = -1
    drawn = ewc._drawn(logits, labels, SET, draw)
    assert drawn[0, 0] == -1
    assert set(drawn.flatten().tolist()) == {-1, 0, 1}
    with pytest.raises(BadInput, match=r"labels of kind 'pixel_values'.*--fisher empirical"):
        ewc._drawn(logits, torch.zeros(7, 3, 8, 8), PIXEL_VALUES, draw)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"coef": -1.0}, "coef is -1.0; give --coef 0 or more"),
        ({"coef": float("nan")}, "coef is nan"),
        ({"n_samples": 0}, "n_samples is 0; give --n-samples"),
    ],
)
def test_bad_settings_get_one_line(config, message):
    with pytest.raises(BadInput, match=message) as caught:
        student(**config)
    assert "\n" not in str(caught.value)
