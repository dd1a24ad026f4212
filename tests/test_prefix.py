"""Frozen starts: how long they are, and that a student resumes behind them to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from students import lora, nettailor, piggyback, probe
from tailor.backbone import Backbone
from tailor.optim import build_optimizer
from tailor.prefix import Starting, longest_prefix
from tailor.settings import Settings
from tailor.step import training_step
from tests.tiny import CLASSES, block_net, conv_net, lively, noise, transformer


def images(count: int = 4, seed: int = 1, px: int = 8) -> torch.Tensor:
    return noise(count, 3, px, px, seed=seed)


def name_of(backbone: Backbone, *touched: str, trains: bool = False) -> str | None:
    found = longest_prefix(backbone, touched, trains=trains)
    return None if found is None else found.name


def test_a_prefix_ends_before_the_first_block_that_was_touched():
    net = block_net()
    assert name_of(net) == "features"
    assert name_of(net, "blocks.2.conv") == "blocks.1"
    assert name_of(net, "blocks.2.bn.running_mean", "blocks.1.conv.weight") == "blocks.0"
    assert name_of(net, "blocks.0.act") == "stem"
    assert name_of(net, "blocks") == "stem"
    assert name_of(net, "stem.bias") is None


def test_what_lies_behind_the_last_block_leaves_all_blocks_in_the_prefix():
    assert name_of(transformer(), "norm.weight") == "blocks.1"


def test_a_parameter_of_no_block_counts_for_the_stem():
    assert name_of(transformer(), "pos_embed") is None


def test_a_network_without_a_stem_has_no_prefix_before_its_first_block():
    line = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1))
    net = Backbone(nn.Sequential(line, nn.Flatten()), name="line", input_size=(3, 8, 8))
    assert net.blocks[0].name == "0.0"
    assert name_of(net, "0.2") == "0.0"
    assert name_of(net, "0.0") is None


class Skipping(nn.Module):
    """Three blocks, and one shortcut over the middle one that no module shows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        parts = (nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)) for _ in range(3))
        self.blocks = nn.ModuleList(parts)

    def forward(self, x):
        first = self.blocks[0](self.stem(x))
        return self.blocks[2](self.blocks[1](first) + first).mean((2, 3))


def test_nothing_is_cut_where_something_else_uses_what_passes_there():
    net = Backbone(Skipping(), name="skipping", input_size=(3, 8, 8))
    names = [block.name for block in net.blocks]
    last = names[-1]
    # Behind the sum the network is one path again, but its input is no module's output.
    assert name_of(net, last) != names[names.index(last) - 1]


def test_dropout_ends_the_prefix_of_a_student_that_trains_in_it():
    dropping = transformer(drop_path=0.3)  # timm drops nothing in the first block, all in the last
    assert name_of(dropping, trains=False) == "features"
    assert name_of(dropping, trains=True) in ("stem", None)
    assert name_of(transformer(), trains=True) == "features"


def test_trying_leaves_modes_and_statistics_as_they_were():
    net = block_net()
    net.model.blocks[1].train()
    before, modes = net.fingerprint(), [m.training for m in net.model.modules()]
    longest_prefix(net, ["blocks.2"], trains=True)
    assert net.fingerprint() == before
    assert [m.training for m in net.model.modules()] == modes


def test_trying_draws_no_random_number():
    before = torch.get_rng_state()
    longest_prefix(transformer(drop_path=0.3), ["norm"], trains=True)
    assert torch.equal(torch.get_rng_state(), before)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return x


def test_resuming_computes_nothing_of_the_prefix():
    net = block_net()
    counts = [Counting() for _ in range(4)]
    net.model.stem = nn.Sequential(net.model.stem, counts[0])
    for block, count in zip(net.model.blocks, counts[1:], strict=True):
        block.bn = nn.Sequential(block.bn, count)
    net = Backbone(net.model, name="counting", input_size=(3, 8, 8))
    cut = longest_prefix(net, ["blocks.2"])
    for count in counts:
        count.rows = 0
    given = cut.start(images(4))
    assert [c.rows for c in counts] == [4, 4, 4, 0]
    cut.rest(given, images(4))
    assert [c.rows for c in counts] == [4, 4, 4, 4]


def late(method, backbone=None, **options):
    """A student that changes the last third of the network, with the trunk's norms."""
    config = method.Config(norms="universal", depths=("late",), stem=False, **options)
    backbone = backbone or Backbone.create("small_resnet", weights="random", px=32)
    return lively(method.build(backbone, CLASSES, config, seed=1))


def start_of(student) -> torch.Tensor:
    with torch.no_grad():
        return student.prefix().run(images(px=32))


@pytest.mark.parametrize("method", [lora, piggyback])
@pytest.mark.parametrize("mode", [True, False])
def test_an_adapted_student_resumes_to_the_bit(method, mode):
    student = late(method).train(mode)
    assert isinstance(student, Starting)
    assert student.prefix().name not in ("features", "stem")
    given = start_of(student)
    assert torch.equal(student.resume(given, images(px=32)).logits, student(images(px=32)).logits)


def test_a_trained_step_behind_the_prefix_is_the_step_of_the_whole_network():
    one, other = late(lora), late(lora)
    labels, how = torch.arange(4) % CLASSES, Settings(lr=0.1)
    for student, given in ((one, None), (other, start_of(other))):
        optimizer = build_optimizer(student, how)
        training_step(
            student.train(), optimizer, images(px=32), labels, how, epoch=0.0, given=given
        )
    mine, theirs = one.task.state_dict(), other.task.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_own_norms_leave_no_prefix():
    net = Backbone.create("small_resnet", weights="random", px=32)
    assert lora.build(net, CLASSES, lora.Config(depths=("late",), stem=False)).prefix() is None


def test_a_gate_that_may_open_is_no_part_of_a_prefix_and_a_pruned_one_is():
    net = Backbone.create("small_resnet", weights="random", px=32)
    student = lora.build(net, CLASSES, lora.Config(norms="universal", select=True))
    assert student.prefix() is None
    smaller = student.keep([student.gates()[-1].name])
    assert smaller.prefix().name == net.blocks[-2].name
    assert torch.equal(
        smaller.eval().resume(start_of(smaller), images(px=32)).logits,
        smaller(images(px=32)).logits,
    )


def test_a_copied_student_resumes_with_its_own_tensors():
    student = late(lora).eval()
    given = start_of(student)
    twin = copy.deepcopy(student)
    before = twin.resume(given, images(px=32)).logits
    with torch.no_grad():
        for p in student.task.parameters():
            p.zero_()
    assert torch.equal(twin.resume(given, images(px=32)).logits, before)


def test_the_prefix_of_a_probe_is_the_backbones_features():
    net = conv_net()
    student = probe.build(net, CLASSES)
    assert student.prefix().name == "features"
    given = student.prefix().run(images())
    assert torch.equal(given, net(images()))
    assert torch.equal(student.resume(given, images()).logits, student(images()).logits)
    assert not given.requires_grad


def pruned(**options) -> nettailor.NetTailor:
    """Three blocks, of which the first two are left as they were."""
    config = nettailor.Config(distill=0.0, **options)
    student = nettailor.build(block_net(), CLASSES, config, seed=1)
    kept = [p.name for p in student.paths if p.kind == "universal" or p.target == 3]
    return student.keep([n for n in kept if not n.endswith(("<-stem", "<-blocks.0"))])


def resumes_to_the_bit(student) -> bool:
    given = student.prefix().run(images())
    return torch.equal(student.resume(given, images()).logits, student(images()).logits)


@pytest.mark.parametrize("mode", [True, False])
def test_nettailor_shares_the_stem_while_every_block_may_go(mode):
    student = nettailor.build(block_net(), CLASSES, nettailor.Config(distill=0.0)).train(mode)
    assert student.prefix().name == "stem"
    assert resumes_to_the_bit(student)


def test_a_pruned_nettailor_shares_the_blocks_with_a_gate_of_one():
    student = pruned(renormalise=True)
    assert student.kept() == ["blocks.0", "blocks.1", "blocks.2", "blocks.2<-blocks.1"]
    assert student.prefix().name == "blocks.1"
    assert resumes_to_the_bit(student.eval())
    assert resumes_to_the_bit(student.train())


def test_a_gate_below_one_is_trained_and_no_part_of_a_prefix():
    assert pruned(renormalise=False).prefix().name == "stem"


def test_a_proxy_that_reaches_back_ends_the_prefix_where_it_starts():
    config = nettailor.Config(distill=0.0, renormalise=True)
    student = nettailor.build(block_net(), CLASSES, config, seed=1)
    smaller = student.keep(["blocks.0", "blocks.1", "blocks.2", "blocks.2<-blocks.0"])
    assert smaller.prefix().name == "blocks.0"
    assert resumes_to_the_bit(smaller)


def test_a_teacher_of_blocks_hears_all_of_them():
    config = nettailor.Config(distill=1.0, renormalise=True)
    student = nettailor.build(block_net(), CLASSES, config, seed=1)
    student = student.keep(["blocks.0", "blocks.1", "blocks.2"]).train()
    given = student.prefix().run(images())
    assert len(student.resume(given, images()).block_outputs) == 3


def test_drifting_statistics_leave_no_prefix():
    config = nettailor.Config(distill=0.0, statistics="drift")
    assert nettailor.build(block_net(), CLASSES, config).prefix() is None


def test_a_tensor_that_two_blocks_share_is_touched_in_both():
    model = block_net().model
    model.blocks[2].conv.weight = model.blocks[0].conv.weight
    net = Backbone(model, name="tied", input_size=(3, 8, 8))
    assert name_of(net, "blocks.2.conv.weight") == "stem"
    assert name_of(net, "blocks.2.bn") == "blocks.1"
