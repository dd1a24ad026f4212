"""Batch norm adaptation: what moves, what it costs, and whose statistics are used."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from students import bn_adapt, taps
from tailor.backbone import Backbone
from tailor.optim import build_optimizer
from tailor.settings import Settings
from tailor.step import training_step
from tests import tiny


def images(count=6, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def student(statistics="own", backbone=None):
    config = bn_adapt.Config(statistics=statistics)
    return bn_adapt.build(backbone or tiny.conv_net(), 3, config, seed=1)


def train(found, steps=2):
    settings = Settings(lr=0.1)
    optimizer = build_optimizer(found, settings)
    for i in range(steps):
        found.train()
        labels = torch.arange(6) % 3
        training_step(found, optimizer, images(seed=i), labels, settings, epoch=0)
    return found


def statistics_of(backbone):
    return [t.clone() for n, t in backbone.model.named_buffers()]


def test_the_decathlon_network_has_the_published_number_of_parameters_per_task():
    backbone = Backbone.create("wide_resnet26", weights="random", px=32)
    found = bn_adapt.build(backbone, 100)
    norms = sum(p.numel() for p in found.roles()["norms"])
    assert norms == 7_232 + 512  # 25 norms behind convolutions, and the end norm
    assert norms + sum(p.numel() for p in found.roles()["head"]) == 33_444
    moving = [b for n, b in found.task.norms.named_buffers() if "num_batches" not in n]
    assert sum(b.numel() for b in moving) == 7_744  # mean and variance, one each per channel


def test_step_zero_equals_the_backbone_bit_for_bit():
    for statistics in ("own", "universal"):
        found = student(statistics).eval()
        expected = found.task.head(found.universal(images()))
        assert torch.equal(found(images()).logits, expected)


def test_own_statistics_follow_the_task_and_the_trunks_stay():
    found = student()
    before = statistics_of(found.universal)
    found.train()
    x = images()
    found(x)
    seen = found.universal.model.conv1(x)
    # Momentum 0.1: nine parts of the old mean, 0, and one of the batch's.
    mean = found.task.norms["bn1.running_mean"]
    torch.testing.assert_close(mean, 0.1 * seen.mean((0, 2, 3)))
    pairs = zip(before, statistics_of(found.universal), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_universal_statistics_are_used_in_training_and_never_move():
    backbone = tiny.conv_net()
    backbone.model.bn1.running_mean += 0.5
    backbone.model.bn1.running_var *= 3
    found, x = student("universal", backbone), images()
    before = backbone.fingerprint()
    model = backbone.model

    def normed(norm, y):  # in evaluation mode: (y - mean) / sqrt(var + eps), affine is 1 and 0
        return F.batch_norm(y, norm.running_mean, norm.running_var, eps=norm.eps)

    with torch.no_grad():
        got = found.train()(x).logits
        y = normed(model.bn1, model.conv1(x)).relu()
        y = (y + normed(model.bn2, model.conv2(y))).relu()
        expected = found.task.head(model.fc1(y.mean((2, 3))).tanh())
    torch.testing.assert_close(got, expected)
    train(found)
    assert backbone.fingerprint() == before
    assert not dict(found.task.norms.named_buffers())  # nothing of them is the task's to save
    assert found.task.norms["bn1.weight"].ne(1).all()  # yet the affine part learns


def test_a_shared_trunk_gets_its_mode_back():
    backbone = tiny.conv_net()
    train(student("universal", backbone))
    norms = [m for m in backbone.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.training for norm in norms)
    # The next student finds the root in training mode and trusts it.
    other = taps.build(backbone, 3).train()
    other(images())
    assert int(other.task.norms["bn1.num_batches_tracked"]) == 1


def test_layer_norms_are_the_tasks_whatever_the_statistics():
    for statistics in ("own", "universal"):
        found = train(student(statistics, tiny.transformer()))
        names = {n for n, _ in found.task.norms.items()}
        assert {"blocks.0.norm1.weight", "norm.bias"} <= names
        assert not found.task.norms["norm.bias"].eq(0).any()


def test_a_network_without_norms_trains_its_head():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4, affine=False, track_running_stats=False)

        def forward(self, x):
            return self.norm(self.conv(x)).mean((2, 3))

    backbone = Backbone(Net(), name="net", input_size=(3, 8, 8))
    before = backbone.fingerprint()
    for statistics in ("own", "universal"):
        found = student(statistics, backbone)
        head = found.task.head.weight.clone()
        train(found)
        assert found.roles()["norms"] == []
        assert not torch.equal(found.task.head.weight, head)
        assert torch.equal(found.merge()(images()), found.eval()(images()).logits)
    assert backbone.fingerprint() == before
