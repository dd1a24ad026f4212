"""NetTailor: gates, expected complexity, distillation in one pass, and pruned graphs that run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from students import nettailor
from tailor import losses
from tailor.backbone import Backbone
from tailor.cost import Budget, account
from tailor.errors import BadInput
from tailor.prune import Rule, prune, search
from tailor.student import trained_parameters
from tailor.teacher import Teacher
from tests.tiny import transformer


def backbone(name="small_resnet", px=32):
    return Backbone.create(name, weights="random", px=px)


def student(name="small_resnet", px=32, classes=4, seed=0, **options):
    found = nettailor.build(backbone(name, px), classes, nettailor.Config(**options), seed=seed)
    shake(found)
    return found


def shake(student, seed=0):
    """Gates and norms away from their start, so that every path matters and none is equal."""
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        student.task.scores.copy_(torch.randn(student.task.scores.shape, generator=make))
        for name, p in student.task.proxies.named_parameters():
            if "bn" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=make))


def images(count=6, px=32, seed=0):
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(seed))


def teacher_of(student, seed=5):
    """A network like the backbone, with weights of its own and batch statistics that fit."""
    network = Backbone.create(student.universal.name, weights="random", px=32, seed=seed)
    model = nn.Sequential(network.model, nn.Linear(network.num_features, 4))
    return Teacher(model, [f"0.{b.name}" for b in network.blocks])


# Gates ----------------------------------------------------------------------------------------


def test_gates_start_at_the_published_values():
    # softmax of (2, -2, ...): e^2 / (e^2 + n e^-2) for n = 1, 2, 3 proxies
    found = nettailor.build(backbone(), 4, nettailor.Config())
    universal = [g.value for g in found.gates() if g.kind == "universal"]
    assert universal[:4] == pytest.approx([0.982014, 0.964664, 0.947915, 0.947915], abs=1e-6)


def test_gates_match_a_numpy_softmax_over_the_paths_into_a_block():
    found = student(max_skip=2)
    logits = found.task.scores.detach().numpy()
    targets = np.array([p.target for p in found.paths])
    expected = np.zeros_like(logits)
    for target in np.unique(targets):
        e = np.exp(logits[targets == target])
        expected[targets == target] = e / e.sum()
    np.testing.assert_allclose(found.gate_values().detach().numpy(), expected, rtol=1e-6)


def test_a_block_is_the_activated_gated_sum_of_its_paths():
    found = student(max_skip=2).eval()
    x, model, gates = images(), found.universal.model, found.gate_values()
    stem = model.maxpool(model.act1(model.bn1(model.conv1(x))))

    def block(module, x):  # without its final ReLU
        inner = module.act1(module.bn1(module.conv1(x)))
        shortcut = x if module.downsample is None else module.downsample(x)
        return module.bn2(module.conv2(inner)) + shortcut

    def proxy(name, x):
        part = found.task.proxies[name.replace(".", "/")]
        return part.bn(part.conv(x))

    first = F.relu(
        gates[0] * block(model.layer1[0], stem) + gates[1] * proxy("layer1.0<-stem", stem)
    )
    second = F.relu(
        gates[2] * block(model.layer1[1], first)
        + gates[3] * proxy("layer1.1<-layer1.0", first)
        + gates[4] * proxy("layer1.1<-stem", stem)
    )
    third = F.relu(
        gates[5] * block(model.layer2[0], second)
        + gates[6] * proxy("layer2.0<-layer1.1", F.max_pool2d(second, 3, 2, 1))
        + gates[7] * proxy("layer2.0<-layer1.0", F.max_pool2d(first, 3, 2, 1))
    )
    found.train()
    for norm in found.task.proxies.modules():
        norm.training = False  # outputs of every block, with the running statistics
    heard = found(x).block_outputs
    for mine, expected in zip(heard, (first, second, third), strict=False):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_only_the_universal_paths_give_the_backbone_itself():
    found = student()
    only = found.keep([p.name for p in found.paths if p.kind == "universal"])
    only.task.scores.data.fill_(40.0)  # softmax against the removed share: 1 - e^-40
    features = found.universal(images())
    expected = found.task.head(features)
    torch.testing.assert_close(only.eval()(images()).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_final_activation_of_a_shared_relu_is_the_only_one_left_out():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x + self.conv2(self.relu(self.conv1(x))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.blocks = nn.Sequential(Block(6), Block(6))

        def forward(self, x):
            return self.blocks(self.stem(x)).mean((2, 3))

    torch.manual_seed(0)
    net = Backbone(Net(), name="shared", input_size=(3, 16, 16))
    assert [b.activation_calls for b in net.blocks] == [2, 2]
    found = nettailor.build(net, 4, nettailor.Config())
    only = found.keep(["blocks.0", "blocks.1"])
    only.task.scores.data.fill_(40.0)
    x = images(px=16)
    torch.testing.assert_close(only.eval()(x).logits, found.task.head(net(x)))


# Expected complexity --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "skips", "form", "expected"),
    [
        ("resnet18", 3, "code", 0.565397),
        ("resnet34", 1, "code", 0.803597),
        ("resnet34", 3, "code", 0.703901),
        ("resnet34", 5, "code", 0.621928),
        ("resnet34", 16, "code", 0.431764),
        ("resnet50", 3, "code", 0.717546),
        ("wide_resnet26", 3, "code", 0.6680),
        ("resnet34", 1, "paper", 0.940281),
        ("resnet34", 3, "paper", 0.846361),
        ("resnet34", 5, "paper", 0.768893),
        ("resnet18", 3, "paper", 0.856547),
        ("resnet34", 1, "product", 0.942839),
        ("resnet34", 3, "product", 0.863964),
        ("resnet34", 5, "product", 0.806549),
        ("resnet18", 3, "product", 0.868807),
    ],
)
def test_expected_complexity_at_the_start_equals_the_published_accounting(
    name, skips, form, expected
):
    config = nettailor.Config(
        max_skip=skips, complexity=form, accounting="published", hidden="code"
    )
    found = nettailor.build(backbone(name, 64), 10, config)
    # The digits that are published; float32 sums of 85 terms may differ in the sixth.
    digits = 1e-4 if name == "wide_resnet26" else 2e-6
    assert found.expected_complexity().item() == pytest.approx(expected, abs=digits)


def test_expected_complexity_of_a_pruned_network_falls_below_zero_as_coded():
    # ResNet-34, 3 skips, blocks 1,2,4,5,6,8,9,10,11,14,15 without universal path, softmax over what
    # is left: the published program computes -.393837.
    config = nettailor.Config(complexity="code", accounting="published", hidden="code")
    found = nettailor.build(backbone("resnet34", 64), 10, config)
    off = {1, 2, 4, 5, 6, 8, 9, 10, 11, 14, 15}
    on = torch.tensor([p.kind == "proxy" or p.target - 1 not in off for p in found.paths])
    targets = torch.tensor([p.target for p in found.paths])
    weight = torch.where(on, found.gate_values().detach(), torch.zeros(()))
    sums = torch.zeros(int(targets.max()) + 1).index_add(0, targets, weight)
    sources = torch.tensor([p.source for p in found.paths])
    value = losses.expected_complexity(
        weight / sums[targets], found.costs, sources, targets, "code"
    )
    assert value.item() == pytest.approx(-0.393837, abs=1e-6)


def test_the_product_form_is_never_negative_and_matches_a_loop():
    make = torch.Generator().manual_seed(0)
    # Two blocks, two skips: 0->1 universal and proxy, 1->2 universal, proxies 1->2 and 0->2.
    sources, targets = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([1, 1, 2, 2, 2])
    for _ in range(20):
        a = torch.rand(5, generator=make)
        costs = torch.rand(5, generator=make)
        value = losses.expected_complexity(a, costs, sources, targets)
        in_1 = (1 - a[0]) * (1 - a[1])  # nothing arrives at node 1
        out_1 = (1 - a[2]) * (1 - a[3])  # nothing leaves it
        expected = sum(costs[i] * a[i] * (1 - out_1) for i in (0, 1))
        expected += sum(costs[i] * a[i] * (1 - in_1) for i in (2, 3)) + costs[4] * a[4]
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        assert value >= 0


def test_a_price_in_both_currencies_is_their_mean():
    values = [
        nettailor.build(backbone(), 4, nettailor.Config(price=p)).expected_complexity().item()
        for p in ("macs", "params", "both")
    ]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=1e-5)


# Distillation ---------------------------------------------------------------------------------


def two_pass(student, x, teacher):
    """The local distance as published: every block again, on detached inputs."""
    nodes, mine = [], []
    for number in range(1, student.last + 1):
        into = [(i, p) for i, p in enumerate(student.paths) if p.target == number]

        def mix(nodes, into=into, number=number):
            gates, total = student.gate_values(), 0
            for i, path in into:
                source = nodes[path.source]
                if path.kind == "proxy":
                    part = student.task.proxies[path.name.replace(".", "/")]
                    pooled = student._pools[path.name](source)
                    total = total + gates[i] * F.batch_norm(
                        part.conv(pooled), None, None, part.bn.weight, part.bn.bias, True
                    )
                else:
                    for unit in student._units[number - 1]:
                        source = unit(source)
                    total = total + gates[i] * source
            return F.relu(total)

        if not nodes:
            model = student.universal.model
            nodes.append(model.maxpool(model.act1(model.bn1(model.conv1(x)))))
        mine.append(mix([n.detach() for n in nodes]))
        nodes.append(mix(nodes))
    logits = student.task.head(nodes[-1].mean((2, 3)))
    said = teacher(x)
    terms = [F.mse_loss(a, b) for a, b in zip(mine, said.block_outputs, strict=True)]
    return logits, torch.stack([*terms, F.mse_loss(logits, said.logits)]).sum() / (len(terms) + 1)


def test_one_pass_gives_the_gradient_of_the_two_pass_form():
    found = student(distillation="local", distill=10.0, lam=0.0).train()
    teacher, x, labels = teacher_of(found), images(), torch.arange(6) % 4
    found.learn_from(teacher)
    losses.step_loss(found, found(x), x, labels, epoch=0).total.backward()
    mine = [p.grad.clone() for p in trained_parameters(found)]
    found.zero_grad()
    logits, distance = two_pass(found, x, teacher)
    (F.cross_entropy(logits, labels) + 10 * distance).backward()
    for got, p in zip(mine, trained_parameters(found), strict=True):
        # float32 sums in another order: a thousandth of the largest number
        assert (got - p.grad).abs().max() <= 1e-3 * p.grad.abs().max() + 1e-7


def test_a_local_distance_trains_only_the_paths_of_its_own_block():
    found = student(distillation="local").train()
    found.learn_from(teacher_of(found))
    output = found(images())
    output.block_outputs[3].square().mean().backward()
    touched = {
        n.partition(".")[0] for n, p in found.task.proxies.named_parameters() if p.grad is not None
    }
    assert touched == {
        p.name.replace(".", "/") for p in found.paths if p.kind == "proxy" and p.target == 4
    }


def test_an_end_to_end_distance_trains_the_blocks_before_as_well():
    found = student().train()
    found.learn_from(teacher_of(found))
    output = found(images())
    output.block_outputs[3].square().mean().backward()
    touched = {
        n.partition(".")[0] for n, p in found.task.proxies.named_parameters() if p.grad is not None
    }
    assert touched == {
        p.name.replace(".", "/") for p in found.paths if p.kind == "proxy" and p.target <= 4
    }


@pytest.mark.parametrize("kind", ["local", "end-to-end"])
def test_a_training_step_runs_every_universal_block_once(kind):
    found = student(distillation=kind).train()
    found.learn_from(teacher_of(found))
    calls = []
    for block in found.universal.blocks:
        conv = found.universal.model.get_submodule(block.name).conv1
        conv.register_forward_hook(lambda *_, name=block.name: calls.append(name))
    x = images()
    losses.step_loss(found, found(x), x, torch.arange(6) % 4, epoch=0).total.backward()
    assert calls == [b.name for b in found.universal.blocks]


@pytest.mark.parametrize("reduction", ["mean", "code", "paper"])
def test_the_distance_to_a_teacher_matches_numpy(reduction):
    make = torch.Generator().manual_seed(0)
    shapes = [(2, 5), (2, 3, 4, 4), (2, 6, 2, 2)]
    mine, said = ([torch.randn(s, generator=make) for s in shapes] for _ in range(2))
    from tailor.teacher import Taught

    value = losses.distillation(mine[0], mine[1:], Taught(said[0], tuple(said[1:])), reduction)
    squares = [((a - b).numpy() ** 2) for a, b in zip(mine, said, strict=True)]
    expected = {
        "mean": sum(s.mean() for s in squares) / 3,
        "code": sum(s.mean() for s in squares) / 2,  # divided by L, not L + 1
        "paper": sum(s.reshape(2, -1).sum(1).mean() for s in squares),
    }
    assert value.item() == pytest.approx(expected[reduction], rel=1e-5)


def test_a_teacher_that_remembers_says_the_same_without_computing():
    found = student()
    teacher, x = teacher_of(found), images()
    before = teacher(x)
    teacher.remember(10)
    indices = torch.tensor([7, 1, 3, 9, 0, 2])
    teacher(x, indices)
    teacher.network = nn.Identity()  # can say nothing any more
    again = teacher(x[:2], torch.tensor([7, 1]))
    assert torch.equal(again.logits, before.logits[:2])
    assert all(
        torch.equal(a, b[:2])
        for a, b in zip(again.block_outputs, before.block_outputs, strict=True)
    )


# Pruning --------------------------------------------------------------------------------------


def test_gates_of_what_stays_keep_their_values():
    found = student()
    before = {g.name: g.value for g in found.gates()}
    smaller, report = prune(found, Rule(count=3, proxy_threshold=0.2))
    after = {g.name: g.value for g in smaller.gates()}
    assert 0 < len(after) < len(before)
    assert report.kept == tuple(after)
    for name, value in after.items():
        assert value == pytest.approx(before[name], abs=1e-6), name


def test_renormalised_gates_sum_to_one():
    found = student(renormalise=True)
    smaller, _ = prune(found, Rule(count=3, proxy_threshold=0.2))
    sums: dict[str, float] = {}
    for gate in smaller.gates():
        sums[gate.target] = sums.get(gate.target, 0) + gate.value
    assert list(sums.values()) == pytest.approx([1.0] * len(sums), abs=1e-6)


def test_pruning_twice_equals_pruning_once():
    found = student()
    names = [g.name for g in found.gates()]
    once = found.keep(names[::2])
    twice = found.keep([n for i, n in enumerate(names) if i % 4 != 1]).keep(once.kept())
    assert once.kept() == twice.kept()
    assert [g.value for g in once.gates()] == pytest.approx(
        [g.value for g in twice.gates()], abs=1e-6
    )


def test_pruned_outputs_are_those_of_the_whole_with_the_gates_of_the_removed_at_zero():
    found = student(max_skip=2).eval()
    kept = [p.name for p in found.paths if p.kind == "proxy" or p.target % 2]
    smaller = found.keep(kept).eval()
    # A universal block whose every weight is 0 and whose shortcut is cut gives 0 too.
    whole = copy.deepcopy(found)

    class Zero(nn.Module):
        def forward(self, x):
            return x * 0

    for path in whole.paths:
        if path.kind == "universal" and not path.target % 2:
            block = whole._units[path.target - 1][-1]
            zero = nn.Sequential(block, Zero())
            whole._units[path.target - 1] = [zero]
    x = images()
    torch.testing.assert_close(smaller(x).logits, whole(x).logits, rtol=1e-4, atol=1e-5)


def test_the_smaller_student_holds_no_dead_tensor():
    found = student()
    smaller, _ = prune(found, Rule(count=5, proxy_threshold=0.15))
    smaller.train()
    smaller(images()).logits.square().sum().backward()
    for name, p in smaller.task.named_parameters():
        assert p.grad is not None, name
    merged = smaller.merge()
    before = merged(images()).detach()
    for name, p in merged.named_parameters():
        saved = p.data.clone()
        p.data = saved + 0.5 * saved.abs().mean() + 0.1
        assert not torch.equal(merged(images()), before), name
        p.data = saved


def test_what_is_billed_is_what_is_saved():
    smaller, _ = prune(student(), Rule(count=4, proxy_threshold=0.1))
    bill = account(smaller.universal.model, smaller.roles(), smaller.task.buffers())
    saved = sum(t.numel() for t in smaller.task.state_dict().values() if t.is_floating_point())
    assert bill.task + bill.head == saved
    gates = {g.name: g.params for g in smaller.gates() if g.kind == "proxy"}
    assert bill.adapters == sum(gates.values())


@pytest.mark.parametrize("count", range(8))
def test_every_pruned_network_runs(count):
    found = student(seed=count)
    smaller, report = prune(found, Rule(count=count, proxy_threshold=0.9))
    assert smaller.eval()(images()).logits.isfinite().all()
    assert smaller.merge()(images()).shape == (6, 4)
    assert set(report.kept) | set(report.removed) == {g.name for g in found.gates()}


def test_a_network_that_would_be_cut_keeps_its_strongest_connection():
    found = student()
    smaller, report = prune(found, Rule(count=2, proxy_threshold=0.999))
    assert report.reopened
    assert smaller.eval()(images()).logits.isfinite().all()


def test_dead_blocks_are_excluded_and_said_so():
    found = student(max_skip=2)
    names = [p.name for p in found.paths if p.kind == "universal"]
    names.remove("layer2.1")  # nothing computes node 4, so layer3.0 and its followers need proxies
    names += ["layer3.0<-layer2.0"]
    smaller = found.keep(names)
    assert smaller.kept() == [
        n for n in [p.name for p in found.paths] if n in names and n != "layer3.0"
    ]
    gone = {s.name.rpartition(".")[0] for s in smaller.layer_states() if s.removed}
    assert {"layer2.1", "layer3.0"} <= gone


def test_the_count_rule_removes_the_smallest_universal_gates():
    found = student()
    order = sorted((g for g in found.gates() if g.kind == "universal"), key=lambda g: g.value)
    smaller, _ = prune(found, Rule(count=3, proxy_threshold=0.0))
    left = {g.name for g in smaller.gates() if g.kind == "universal"}
    assert not left & {g.name for g in order[:3]}
    assert prune(found, Rule(share=0.4, proxy_threshold=0.0))[0].kept() == smaller.kept()


def test_a_budget_limits_macs_and_added_parameters():
    found = student()
    smaller, _ = prune(found, Rule(budget=Budget.parse("params=0.1,macs=0.7")))
    from tailor.cost import linear_macs, total_macs

    size = found.universal.input_size
    head = linear_macs(found.universal.num_features, 4)
    macs = total_macs(smaller.merge(), size) - head
    assert macs <= 0.7 * total_macs(found.universal.model, size)
    proxies = sum(p.numel() for p in smaller.task.proxies.parameters())
    assert proxies <= 0.1 * found.universal.num_params


def test_macs_of_the_merged_network_are_those_of_its_gates():
    from tailor.cost import linear_macs, total_macs

    smaller, _ = prune(student(), Rule(count=3, proxy_threshold=0.1))
    backbone, size = smaller.universal, smaller.universal.input_size
    rest = total_macs(backbone.model, size) - sum(m for _, m in backbone.block_costs())
    expected = rest + sum(g.macs for g in smaller.gates()) + linear_macs(backbone.num_features, 4)
    assert total_macs(smaller.merge(), size) == expected


def test_the_search_finds_the_smallest_student_above_the_floor():
    found = student()
    accuracy = lambda s: 1 - 0.1 * sum(x.removed for x in s.layer_states()) / 20  # noqa: E731
    smaller, _, trials = search(found, accuracy, 0.96, proxy_threshold=0.0)
    assert [t.count for t in trials] == list(range(9))
    best = min((t for t in trials if t.accuracy >= 0.96), key=lambda t: t.macs)
    assert sum(g.macs for g in smaller.gates()) == best.macs
    again, _, few = search(found, accuracy, 0.96, proxy_threshold=0.0, bisect=True)
    assert again.kept() == smaller.kept()
    assert len(few) <= 5


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Rule(threshold=0.9999), "remove every path"),
        (Rule(count=9), "count is 9, but there are 8"),
        (Rule(count=-1), "count is -1"),
        (Rule(share=1.5), "share is 1.5"),
        (Rule(budget=Budget.parse("macs=0.001")), "cannot be met"),
        (Rule(count=1, threshold=0.1), "exclude each other"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_one_clear_line(rule, says):
    with pytest.raises(BadInput, match=says) as error:
        prune(student(), rule)
    assert "\n" not in str(error.value)


def test_a_search_that_finds_nothing_names_the_best():
    with pytest.raises(BadInput, match=r"no pruned student reaches 90.00 %: the best"):
        search(student(), lambda _: 0.5, 0.9)


# Which backbones ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "px", "blocks"),
    [
        ("resnet50", 64, 16),
        ("convnext_atto", 64, 12),
        ("regnety_002", 64, 13),
        ("mobilenetv3_small_050", 64, 12),
        ("vit_tiny_patch16_224", 32, 12),
        ("swin_tiny_patch4_window7_224", 224, 15),
    ],
)
def test_it_serves_backbones_of_many_families(name, px, blocks):
    found = nettailor.build(backbone(name, px), 3, nettailor.Config()).train()
    assert len(found.universal.blocks) == blocks
    output = found(images(2 if px > 64 else 4, px))
    output.logits.sum().backward()
    assert [tuple(o.shape[1:]) for o in output.block_outputs] == [
        b.out_shape for b in found.universal.blocks
    ]


def test_a_backbone_without_a_chain_says_why():
    with pytest.raises(BadInput, match=r"hrnet.*incre_modules.0.0 does not take what layer1.0"):
        nettailor.build(backbone("hrnet_w18_small", 64), 4)


def test_a_backbone_whose_block_outputs_are_used_elsewhere_says_why():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())

        def forward(self, x):
            first = self.a(x)
            return torch.cat([self.b(first).mean((2, 3)), first.mean((2, 3))], 1)

    net = Backbone(Net(), name="branched", input_size=(3, 16, 16))
    with pytest.raises(BadInput, match="something beside its blocks uses their outputs"):
        nettailor.build(net, 4)


def test_tokens_are_mapped_one_by_one():
    found = nettailor.build(transformer(), 3, nettailor.Config()).eval()
    shake(found)
    part = found.task.proxies["blocks/1<-blocks/0"]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = part.bn((x @ part.conv.weight.T).reshape(10, 8, 1, 1)).reshape(2, 5, 8) * 0.3
    torch.testing.assert_close(part(x, torch.tensor(0.3)), expected)


def test_norms_behind_the_last_block_are_the_tasks_own():
    found = nettailor.build(transformer(), 3, nettailor.Config())
    assert list(found.task.norms) == ["norm"]
    assert not list(student().task.norms)


def test_drifting_statistics_follow_the_task_and_leave_the_trunk_alone():
    found = student(statistics="drift").train()
    print_before = found.universal.fingerprint()
    start = {n: t.clone() for n, t in found.task.drift.items()}
    found(images())
    assert all(not torch.equal(t, start[n]) for n, t in found.task.drift.items())
    assert found.universal.fingerprint() == print_before
    assert len(start) == 3 * 20  # mean, variance and count of 20 batch norms


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_skip": 0}, "max_skip is 0; give --max-skip 1 or more"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"distill": float("nan")}, "distill is nan"),
        ({"threshold": 1.5}, "threshold is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(options, says):
    with pytest.raises(BadInput, match=says):
        student(**options)
