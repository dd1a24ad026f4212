"""Side-tuning: the formula, the published table of parameters, zero forgetting, and gated sides."""

from __future__ import annotations

import copy
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from students import side_tuning
from students.side_tuning import Config, build, rebuild, sequel
from tailor import cli
from tailor.backbone import Backbone
from tailor.cost import total_macs
from tailor.errors import BadInput
from tailor.fusion import Fusing
from tailor.opened import open_run
from tailor.optim import build_optimizer
from tailor.outcome import parameters
from tailor.prune import Rule, prune
from tailor.run import read_json
from tailor.settings import Settings
from tailor.step import training_step
from tests.tiny import noise

FUSIONS = get_args(Fusing)


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def resnet(name="resnet20", **options):
    return Backbone.create(name, weights="random", px=32, **options)


def images(count=6, seed=0):
    return noise(count, 3, 32, 32, seed=seed)


def step(student, *, seed=0, epoch=0.0, lr=0.05, **options):
    """One training step on noise with five classes."""
    settings = Settings(lr=lr, **options)
    student.train()
    optimizer = build_optimizer(student, settings)
    labels = torch.arange(6) % 5
    return training_step(student, optimizer, images(seed=seed), labels, settings, epoch=epoch)


def logits(student, seed=9):
    with torch.no_grad():
        return student.eval()(images(seed=seed)).logits


def by_hand(student, x):
    """head( norm( σ(a) B + (1 - σ(a)) S ) ) in NumPy from the networks' outputs."""
    with torch.no_grad():
        base, side = student.universal(x).numpy(), student.task.side.eval()(x).numpy()
    share = 1 / (1 + np.exp(-student.task.fusion.alpha.item()))
    fused = share * base + (1 - share) * side
    groups = fused.reshape(len(x), 8, -1)
    centred = groups - groups.mean(2, keepdims=True)
    normed = centred / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    head = student.task.head
    return normed.reshape(len(x), -1) @ head.weight.detach().numpy().T + head.bias.detach().numpy()


# The formula ----------------------------------------------------------------------------------


def test_a_student_is_the_formula():
    student = build(resnet(), 5, Config(), seed=1)
    student.task.fusion.alpha.data.fill_(0.7)
    np.testing.assert_allclose(logits(student), by_hand(student, images(seed=9)), atol=1e-5)


def test_without_norm_features_reach_the_head_as_they_are():
    student = build(resnet(), 5, Config(norm=False, fusion="sum"), seed=1)
    x = images(seed=9)
    with torch.no_grad():
        wanted = student.task.head(student.prefix().run(x) + student.task.side(x))
    assert torch.equal(logits(student), wanted)


def test_base_only_is_feature_extraction_with_a_norm():
    student = build(resnet(), 5, Config(fusion="base_only"))
    assert [n for n, _ in student.task.named_parameters()] == ["head.weight", "head.bias"]
    features = student.prefix().run(images(seed=9))
    wanted = student.task.head(nn.functional.group_norm(features, 8))
    assert torch.equal(logits(student), wanted)


def test_side_only_never_runs_the_base(monkeypatch):
    student = build(resnet(), 5, Config(fusion="side_only"))
    monkeypatch.setattr(student.universal, "forward", None)
    assert logits(student).shape == (6, 5)
    assert student.prefix() is None
    assert student.merge().base is None


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_trains_and_merges_to_the_bit(fusion):
    student = build(resnet(), 5, Config(fusion=fusion))
    before, base = copy.deepcopy(student.task.state_dict()), student.universal.fingerprint()
    for epoch in (1.0, 2.0):
        step(student, epoch=epoch)
    assert student.universal.fingerprint() == base
    moved = {n for n, t in student.task.state_dict().items() if not torch.equal(t, before[n])}
    assert {"head.weight", "head.bias"} <= moved
    assert fusion == "base_only" or any(n.startswith("side.") for n in moved)
    merged, x = student.merge(), images(seed=9)
    with torch.no_grad():
        assert torch.equal(merged(x), logits(student))
    assert not any(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize("side", ["fcn5", "narrow", "timm:mobilenetv3_small_050"])
def test_every_side_trains_and_merges_to_the_bit(side):
    student = build(resnet(), 5, Config(side=side))
    step(student)
    with torch.no_grad():
        assert torch.equal(student.merge()(images(seed=9)), logits(student))
    assert hasattr(student.task, "project") == (side != "fcn5")


def test_maps_are_fused_for_labels_of_pixels():
    student = build(resnet(dense=True), 4, Config(side="narrow", width=0.5, fusion="mlp"))
    x = images(seed=9)
    found = logits(student)
    assert found.shape == (6, 4, 32, 32)
    with torch.no_grad():
        side = student.task.project(student.task.side(x))
        fused = student.task.fusion(student.prefix().run(x), side)
        wanted = student.task.head(nn.functional.group_norm(fused, 8))
        assert torch.equal(found, wanted)
        assert torch.equal(student.merge()(x), wanted)


def test_a_copied_side_of_full_width_starts_as_the_base():
    config = Config(side="narrow", width=1.0, side_init="copy", norm=False)
    student = build(resnet(), 5, config)
    features = student.universal(images(seed=9))
    torch.testing.assert_close(logits(student), student.task.head(features))


def test_going_on_from_the_features_of_the_base_is_the_forward_pass():
    student = build(resnet(), 5, Config())
    prefix = student.prefix()
    assert prefix.name == "features"
    x = images(seed=9)
    given = prefix.run(x)
    assert not given.requires_grad
    assert torch.equal(student.eval().resume(given, x).logits, logits(student))


def test_the_curriculum_moves_with_the_steps_and_is_saved():
    config = Config(fusion="alpha_curriculum", end_share=0.5, curriculum_epochs=4.0)
    student = build(resnet(), 5, config)
    shares = []
    for epoch in (0.0, 2.0, 3.0, 8.0):
        step(student, epoch=epoch)
        shares.append(float(student.task.fusion.share()))
    np.testing.assert_allclose(shares, [1.0, 0.75, 0.625, 0.5])
    other = build(resnet(), 5, config)
    other.task.load_state_dict(student.task.state_dict())
    assert torch.equal(logits(other), logits(student))


# What it costs --------------------------------------------------------------------------------

TABLE = {  # ten tasks of ten classes beside ResNet-44: total, trained at the first and last task
    "alpha": (923_486, 26_555, 26_555),
    "sum": (923_476, 26_554, 26_554),
    "mlp": (1_007_956, 35_002, 35_002),
    "mlp2": (1_092_436, 43_450, 43_450),
    "dense alpha": (923_541, 26_556, 26_565),
    "base_only": (664_436, 650, 650),
}


def of_ten_tasks(backbone, config, tasks=10):
    students = [build(backbone, 10, config)]
    while len(students) < tasks:
        students.append(sequel(students, backbone, 10, config, seed=len(students)))
    return students


@pytest.mark.parametrize("row", TABLE)
def test_the_published_table_of_parameters(row):
    backbone = resnet("resnet44")
    config = Config(fusion=row.removeprefix("dense "), dense=row.startswith("dense"))
    students = of_ten_tasks(backbone, config)
    trained = [numbers(s.task) for s in students]
    assert (657_936 + sum(trained), trained[0], trained[-1]) == TABLE[row]


def test_the_account_of_one_task():
    student = build(resnet("resnet44"), 10, Config(fusion="mlp"))
    params = parameters(student)
    # Four norms of 16, 16, 32 (side) and 64 (fusion) channels; two statistics of 64.
    norms = 2 * (16 + 16 + 32 + 64) + 2 * 64
    assert (params.universal, params.head, params.norms) == (657_936, 650, norms)
    assert params.adapters == 25_904 + 8_448 - 2 * (16 + 16 + 32 + 64)
    assert params.multiple == (657_936 + 25_904 + 8_448 + 128) / 657_936


def test_what_fuses_never_decays():
    student = build(resnet(), 5, Config())
    groups = build_optimizer(student, Settings(weight_decay=0.1)).param_groups
    decay = {group["role"]: group["weight_decay"] for group in groups}
    assert decay == {"adapters": 0.1, "fusion": 0.0, "norms": 0.0, "head": 0.1}


# Sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(side="narrow"),
        Config(fusion="mlp", dense=True),
        Config(side="narrow", dense=True),
    ],
    ids=["fcn4", "narrow with batch norm", "dense mlp", "dense narrow"],
)
def test_nothing_is_ever_forgotten(config):
    backbone, students, said = resnet(), [], []
    for task in range(3):
        make = build if not students else lambda *a, **k: sequel(students, *a, **k)
        students.append(make(backbone, 5, config, seed=task))
        for i in range(2):
            step(students[-1], seed=10 * task + i)
        said.append([logits(s) for s in students])
    for row in said:
        for before, now in zip(row, said[-1], strict=False):
            assert torch.equal(before, now)


def test_earlier_sides_join_and_stay_out_of_the_task():
    backbone, config = resnet(), Config(dense=True)
    first = build(backbone, 5, config, seed=0)
    second = sequel([first], backbone, 5, config, seed=1)
    wanted = set(first.task.state_dict())
    assert set(second.task.state_dict()) == wanted
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.task.parameters()}
    before = logits(second)
    with torch.no_grad():
        first.task.side.conv1[0].weight.mul_(2)  # by reference
    assert not torch.equal(logits(second), before)
    step(second)
    assert all(p.grad is None for p in first.task.parameters())
    x = images(seed=9)
    shares = second.task.fusion.alpha.softmax(0)
    with torch.no_grad():
        parts = backbone(x), first.task.side(x), second.task.side(x)
        fused = sum(s * p for s, p in zip(shares, parts, strict=True))
        wanted = second.task.head(nn.functional.group_norm(fused, 8))
        torch.testing.assert_close(logits(second), wanted)
        assert torch.equal(second.merge()(x), logits(second))


def test_earlier_sides_move_along():
    backbone, config = resnet(), Config(dense=True)
    first = build(backbone, 5, config)
    second = copy.deepcopy(sequel([first], backbone, 5, config)).to(torch.float64)
    assert second.eval()(images().double()).logits.dtype == torch.float64
    assert first.task.head.weight.dtype == torch.float32


def test_without_dense_the_next_task_is_what_it_would_be_alone():
    backbone = resnet()
    first = build(backbone, 5, Config(), seed=0)
    next_one = sequel([first], backbone, 7, Config(), seed=1)
    alone = build(backbone, 7, Config(), seed=1)
    assert torch.equal(logits(next_one), logits(alone))


# Gated ----------------------------------------------------------------------------------------

GATED = Config(select=True, lam=1.0, price_warmup=0.0)
NAMES = ["side", "side.conv1", "side.conv2", "side.conv3", "side.conv5"]


def closed(student, *names):
    """Put the scores of these gates below the threshold."""
    for i, gate in enumerate(student.gates()):
        student.task.scores.data[i] = 0.05 if gate.name in names else 0.15
    return student


def test_open_gates_change_nothing():
    gated, free = build(resnet(), 5, GATED), build(resnet(), 5, Config())
    assert torch.equal(logits(gated), logits(free))
    assert [g.name for g in gated.gates()] == NAMES
    assert all(g.on and g.kind == "side" for g in gated.gates())


def test_gates_count_everything_once():
    student = build(resnet("resnet44"), 10, GATED)
    gates = {g.name: g for g in student.gates()}
    assert sum(g.params for g in gates.values()) == 25_904 + 1
    assert gates["side"].params == 1  # alpha
    assert sum(g.macs for g in gates.values()) == total_macs(student.task.side, (3, 32, 32))
    assert gates["side.conv5"].macs == 18_432 * 25


@pytest.mark.parametrize("kind", ["params", "macs", "layers", "paper"])
def test_the_price_is_what_goes_with_a_gate_relative_to_the_base(kind):
    backbone = resnet("resnet44")
    student = build(backbone, 10, Config(select=True, lam=2.0, price_warmup=1.0, price=kind))
    stages = {
        "params": [432 + 32, 2304 + 32, 4608 + 64, 18432],
        "macs": [432 * 1024, 2304 * 225, 4608 * 49, 18432 * 25],
    }
    total = {"params": 657_936, "macs": total_macs(backbone.model, (3, 32, 32))}
    if kind in stages:
        whole = sum(stages[kind]) + (kind == "params")
        share = (whole + sum(stages[kind])) / total[kind]
    else:
        share = {"layers": 1.0, "paper": 5 / 52}[kind]
    assert student.price(0.5) is None
    assert student.price(1.0).item() == pytest.approx(2.0 * 0.15 * share, rel=1e-5)


def test_a_closed_side_leaves_the_base_alone_and_can_come_back():
    student = closed(build(resnet(), 5, GATED), "side")
    probe = build(resnet(), 5, Config(fusion="base_only"))
    probe.task.head.load_state_dict(student.task.head.state_dict())
    assert torch.equal(logits(student), logits(probe))
    assert not any(g.on for g in student.gates())  # a stage is off where the side is
    before = copy.deepcopy(student.task.side.state_dict())
    step(student, lr=1e-3)
    assert all(torch.equal(t, before[n]) for n, t in student.task.side.state_dict().items())
    assert student.task.scores.grad[0] != 0


@pytest.mark.parametrize("names", [["side"], ["side.conv2", "side.conv5"]])
def test_a_score_gets_the_straight_through_gradient(names):
    for shut in ([], names):
        student = closed(build(resnet(), 5, GATED), *shut).eval()
        x, labels = images(), torch.arange(6) % 5
        nn.functional.cross_entropy(student(x).logits, labels).backward()
        # The same by hand for the whole: how the loss changes from base to fused features.
        with torch.no_grad():
            base = student.universal(x)
            side = student._view[0](x)
            fused = student.task.fusion(base, side)
        used = (base if "side" in shut else fused).clone().requires_grad_(True)
        normed = nn.functional.group_norm(used, 8)
        nn.functional.cross_entropy(student.task.head(normed), labels).backward()
        wanted = (used.grad * (fused - base)).sum()
        torch.testing.assert_close(student.task.scores.grad[0], wanted, rtol=1e-4, atol=1e-6)


def test_closed_stages_do_not_move():
    student = closed(build(resnet(), 5, GATED), "side.conv2", "side.conv5")
    before = copy.deepcopy(student.task.side.state_dict())
    step(student, lr=1e-3, momentum=0.0)
    moved = {
        n.split(".")[0]
        for n, t in student.task.side.state_dict().items()
        if not torch.equal(t, before[n])
    }
    assert moved == {"conv1", "conv3"}
    names = {id(p): n for n, p in student.task.named_parameters()}
    idle = {names[id(p)].removeprefix("side.").split(".")[0] for p in student.idle()}
    assert idle == {"conv2", "conv5"}


@pytest.mark.parametrize(
    ("side", "shut"),
    [
        *(("fcn4", s) for s in (NAMES[:1], NAMES[1:2], NAMES[2:4], NAMES[1:], NAMES)),
        *(("narrow", s) for s in (NAMES[2:4], NAMES)),
    ],
)
def test_pruning_says_the_same_with_less(shut, side):
    student = build(resnet(), 5, Config(select=True, side=side))
    step(student, lr=1e-3)
    if side == "narrow":
        names = [g.name for g in student.gates()]
        shut = [names[NAMES.index(n)] for n in shut]
    closed(student, *shut)
    smaller, report = prune(student)
    torch.testing.assert_close(logits(smaller), logits(student), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(student.merge()(images(seed=9)), logits(student))
    if "side" in shut:
        assert smaller.kept() == []
        assert numbers(smaller.task) == 5 * 64 + 5
        assert parameters(smaller).multiple == 1.0
    else:
        assert report.params_after == numbers(smaller.task) - (5 * 64 + 5)
    assert smaller.price(9.0) is None
    again = rebuild(smaller.universal, 5, student.config, kept=smaller.kept())
    again.task.load_state_dict(smaller.task.state_dict())
    assert torch.equal(logits(again), logits(smaller))


def test_a_stage_brings_its_side_back():
    student = build(resnet(), 5, GATED)
    smaller, report = prune(student, Rule(count=3))
    assert "side" in smaller.kept()
    assert student.keep(["side.conv5"]).kept() == ["side", "side.conv5"]
    with pytest.raises(BadInput, match=r"cannot keep 'side.conv4': this student has side, side"):
        student.keep(["side.conv4"])
    assert report.params_after <= 25_905


@pytest.mark.parametrize(
    "name", ["small_resnet", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"]
)
def test_gated_students_prune_on_any_backbone(name):
    student = build(Backbone.create(name, weights="random", px=32), 5, GATED)
    step(student)
    names = [g.name for g in student.gates()][::2]
    smaller = student.keep(names)
    assert smaller.kept() == names
    step(smaller)
    again = rebuild(student.universal, 5, GATED, kept=names)
    again.task.load_state_dict(smaller.task.state_dict())
    assert torch.equal(logits(again), logits(smaller))


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """Two runs on digits: a side that costs next to nothing, and one that costs too much."""
    root = tmp_path_factory.mktemp("selected")
    common = ["--task", "digits", "--limit", "100", "--px", "32", "--backbone", "small_resnet"]
    common += ["--weights", "random", "--method", "side_tuning", "--select", "--epochs", "4"]
    common += ["--batch", "20", "--lr", "0.05", "--price-warmup", "0", "--device", "cpu"]
    for name, lam in (("cheap", "0"), ("dear", "30")):
        args = ["adapt", *common, "--lam", lam, "--out", str(root / name), "--json"]
        assert cli.main(args) == 0
        assert cli.main(["prune", str(root / name), "--out", str(root / f"{name}-pruned")]) == 0
    return root


def test_a_side_that_costs_too_much_goes_and_leaves_a_probe(selected):
    cheap, dear = (read_json(selected / f"{n}-pruned" / "result.json") for n in ("cheap", "dear"))
    assert cheap["kept"] == NAMES
    assert cheap["macs"]["student"] > cheap["macs"]["backbone"]
    assert dear["kept"] == []
    assert dear["params"]["task"] == 0
    assert dear["params"]["multiple"] == 1.0
    assert dear["macs"]["student"] == dear["macs"]["backbone"]


def test_pruned_runs_open_and_retrain(selected, capsys):
    assert cli.main(["retrain", str(selected / "dear-pruned"), "--epochs", "1"]) == 0
    again = open_run(selected / "dear-pruned-retrained").student
    assert not again.has_side
    out = selected / "merged.safetensors"
    assert cli.main(["merge", str(selected / "cheap"), "--out", str(out)]) == 0
    assert "no plain timm model" in capsys.readouterr().out


# Starts and refusals --------------------------------------------------------------------------


def test_a_run_opens_when_the_weights_it_started_from_are_gone(tmp_path):
    state = side_tuning.build(resnet("small_resnet"), 5).task.side.state_dict()
    file = tmp_path / "start.safetensors"
    save_file({n: noise(*t.shape, seed=3) for n, t in state.items()}, file)
    student = build(resnet("small_resnet"), 5, Config(side_weights=str(file)))
    assert torch.equal(student.task.side.conv1[0].weight, noise(16, 3, 3, 3, seed=3))
    args = ["adapt", "--task", "digits", "--limit", "60", "--px", "32", "--method", "side_tuning"]
    args += ["--backbone", "small_resnet", "--weights", "random", "--epochs", "1", "--batch", "20"]
    args += ["--side-weights", str(file), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main([*args, "--json"]) == 0
    file.unlink()
    opened = open_run(tmp_path / "run").student
    assert opened.has_side
    assert opened.task.side.conv1[0].weight.shape == (16, 3, 3, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(side="timm:small_resnet", project=False), r"\(64,\), side .*\(128,\).*--project"),
        (Config(fusion="base_only", dense=True), "base_only has no side network, so --dense"),
        (Config(fusion="base_only", select=True), "base_only has no side network, so --select"),
        (Config(fusion="side_only", select=True), "cannot go without its side"),
        (Config(select=True, dense=True), "dense and select exclude each other"),
        (Config(fusion="film", dense=True), "no place for the sides of earlier tasks"),
        (Config(lam=2.0), "lam is 2.0, but it belongs to learned selection"),
        (Config(fusion="alpha_fixed", share=-1.0), "share is -1; give the base's share"),
        (Config(share=0.3), "share is 0.3, but only --fusion alpha_fixed reads it"),
        (Config(width=0.5), "width is 0.5, but only --side narrow reads it, and side is 'fcn4'"),
        (Config(side_weights="absent.pth"), "side_weights 'absent.pth' is no file"),
    ],
)
def test_bad_settings_are_one_line(config, message):
    with pytest.raises(BadInput, match=message) as error:
        build(resnet(), 5, config)
    assert "\n" not in str(error.value)


def test_features_that_do_not_fall_into_eight_groups_are_refused():
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(3, width, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    for width in (12, 8):  # eight groups of one number each would all be 0
        backbone = Backbone(Net(width), name="net", input_size=(3, 32, 32))
        with pytest.raises(BadInput, match=f"'net' has {width}, which do not .*give --no-norm"):
            build(backbone, 5)
        assert build(backbone, 5, Config(norm=False)).eval()(images()).logits.shape == (6, 5)
