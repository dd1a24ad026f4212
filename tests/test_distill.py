"""`tailor distill`: a side network learns to say what the backbone says, without any label."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from students import side_tuning
from tailor import distill as distilling
from tailor import workflow
from tailor.backbone import Backbone
from tailor.distill import Imitator
from tailor.errors import BadInput
from tailor.losses import step_loss
from tailor.opened import batches, open_run
from tailor.options import Data, Distill, Imitation, Net, Teach
from tailor.run import read_json
from tailor.settings import Settings
from tailor.task import open_task
from tests.command import call, machine
from tests.tiny import Interrupted, Until, log_of, noise

PUBLISHED = {  # the tensors of the published side network of CIFAR
    *(f"conv{i}.{part}" for i in (1, 2, 3) for part in ("0.weight", "1.weight", "1.bias")),
    *("conv5.0.weight", "linear.module.weight", "linear.module.bias"),
}
DATA = Data(task="digits", limit=80, px=32, crop="none")
TRAIN = Settings(
    optimizer="adam", lr=3e-3, weight_decay=1e-6, epochs=2, batch=20, device="cpu", seed=4
)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A ResNet whose weights come with a classifier of seven classes."""
    backbone = Backbone.create("resnet20", weights="random", px=32, seed=5)
    with torch.no_grad():  # centred, so that no class is said of nearly all digits
        features = backbone(digits(backbone)[::10])
    weight = noise(7, 64, seed=1) / features.std(0).clamp_min(1e-3)
    head = {"linear.weight": weight, "linear.bias": -weight @ features.mean(0)}
    file = tmp_path_factory.mktemp("weights") / "source.safetensors"
    save_file(backbone.model.state_dict() | head, file)
    return Net(backbone="resnet20", weights=str(file))


def backbone_of(net, **options):
    return Backbone.create(net.backbone, weights=net.weights, px=32, **options)


def classifier(net):
    state = load_file(net.weights)
    return lambda features: F.linear(features, state["linear.weight"], state["linear.bias"])


def options(net, out, *, data=DATA, train=TRAIN, **settings):
    return Distill(out=out, settings=Imitation(**settings), data=data, net=net, train=train)


@pytest.fixture(scope="module")
def run(net, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "side"
    return out, distilling.distill(options(net, out))


def digits(backbone, split="test"):
    found = batches(open_task("digits", limit=80), split, backbone, DATA, TRAIN)
    return torch.cat([batch.images for batch in found.epoch(0)])


# The losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "loss"),
    [
        ({}, "soft", "cross_entropy"),
        ({"loss": "features"}, "values", "l2"),
        ({"loss": "perceptual"}, "values", "l2"),
        ({"loss": "perceptual", "distance": "l1"}, "values", "l1"),
        ({"loss": "perceptual", "distance": "soft_ce"}, "soft", "cross_entropy"),
    ],
)
def test_losses_match_numpy(net, settings, kind, loss):
    backbone, head = backbone_of(net), classifier(net)
    student = Imitator(backbone, Imitation(**settings), seed=1).eval()
    assert (student.target.kind, student.target.loss) == (kind, loss)
    found = batches(open_task("digits", limit=80), "val", backbone, DATA, TRAIN)
    batch = next(iter(student.answered(found).epoch(0)))
    with torch.no_grad():
        output = student(batch.images)
        terms = step_loss(
            student, output, batch.images, batch.labels, epoch=0.0, target=student.target
        )
        base, side = backbone(batch.images), student.path(batch.images)
        if settings.get("loss") == "perceptual":
            base, side = head(base), head(side)
        elif not settings:
            base, side = head(base), student.task.head(side)
    base, side = base.double().numpy(), side.double().numpy()
    if kind == "soft":
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (base, side))
        wanted = -(p * np.log(q)).sum(1).mean()
    else:
        wanted = np.abs(side - base).mean() if loss == "l1" else ((side - base) ** 2).mean()
    assert terms.task.item() == pytest.approx(wanted, rel=1e-4)


def test_a_dense_backbone_is_imitated_by_its_map(net):
    backbone = backbone_of(net, dense=True)
    student = Imitator(backbone, Imitation(loss="features", side="narrow", width=0.5)).eval()
    found = batches(open_task("digits", limit=80), "val", backbone, DATA, TRAIN)
    batch = next(iter(student.answered(found).epoch(0)))
    assert batch.labels.shape[1:] == student(batch.images).logits.shape[1:] == (64, 8, 8)
    torch.testing.assert_close(batch.labels, backbone(batch.images), rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match=r"soft_ce compares probabilities .* returns maps here"):
        Imitator(backbone, Imitation())


def test_only_the_side_and_its_own_head_learn(net):
    student = Imitator(backbone_of(net), Imitation())
    roles = student.roles()
    assert sum(p.numel() for ps in roles.values() for p in ps) == 25_904 + 7 * 64 + 7
    assert {id(p) for ps in roles.values() for p in ps} == {
        id(p) for p in student.parameters() if p.requires_grad
    }
    through = Imitator(backbone_of(net), Imitation(loss="perceptual"))
    assert not list(through.task.head.parameters())
    assert not any(p.requires_grad for p in through.judge.parameters())


def test_remembered_features_give_the_same_answers(net):
    student = Imitator(backbone_of(net), Imitation())
    found = batches(open_task("digits", limit=80), "val", student.universal, DATA, TRAIN)
    plain = [b.labels for b in student.answered(found).epoch(0)]
    images = torch.cat([b.images for b in found.epoch(0)])
    found.give(student.prefix().run(images))
    seen = list(student.answered(found).epoch(0))
    assert all(b.given is None for b in seen)  # the side goes its own way, from the images
    assert all(torch.equal(a, b.labels) for a, b in zip(plain, seen, strict=True))


# The run --------------------------------------------------------------------------------------


def test_a_run_leaves_the_published_layout(run):
    state = load_file(run[0] / "side.safetensors")
    assert set(state) == PUBLISHED
    assert state["linear.module.weight"].shape == (7, 64)


def test_a_longer_run_agrees_with_the_backbone_more_often(net, tmp_path):
    train = dataclasses.replace(TRAIN, epochs=8, lr=1e-2)
    data = dataclasses.replace(DATA, limit=240)
    result = distilling.distill(options(net, tmp_path / "run", data=data, train=train))
    backbone = backbone_of(net)
    images = digits(backbone)
    start = Imitator(backbone, Imitation(), seed=TRAIN.seed).eval()
    trained = Imitator(backbone, Imitation(side_weights=str(tmp_path / "run"))).eval()
    with torch.no_grad():
        said = classifier(net)(backbone(images)).argmax(1)
        before, after = (
            (student(images).logits.argmax(1) == said).float().mean().item()
            for student in (start, trained)
        )
    assert said.bincount().max() < 0.4 * len(said)
    assert (result["metric"], result["stage"]) == ("top1", "distilled")
    assert result["test"] == pytest.approx(after, abs=0.005)  # a tie may be rounded
    assert after > before + 0.2
    epochs = [r for r in log_of(tmp_path / "run") if r["kind"] == "epoch"]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]


def test_labels_do_not_matter(net, run, tmp_path, monkeypatch):
    def unlabelled(data):
        task = open_task(data.task, limit=data.limit)
        for split in task.splits.values():
            split.labels = torch.zeros_like(split.labels)
        return task

    monkeypatch.setattr(distilling, "task_of", unlabelled)
    distilling.distill(options(net, tmp_path / "run"))
    mine, theirs = (load_file(p / "side.safetensors") for p in (tmp_path / "run", run[0]))
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_an_interrupted_run_goes_on_to_the_same_side(net, run, tmp_path):
    train = dataclasses.replace(TRAIN, checkpoint_seconds=0.0)
    again = options(net, tmp_path / "run", train=train)
    with pytest.raises(Interrupted):
        distilling.distill(again, tell=lambda _: Until(5))
    result = distilling.distill(again)
    mine, theirs = (load_file(p / "side.safetensors") for p in (tmp_path / "run", run[0]))
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)
    assert distilling.distill(again) == result  # shown, not trained again


def test_side_tuning_starts_from_a_run(net, run):
    config = side_tuning.Config(side_weights=str(run[0]))
    student = side_tuning.build(backbone_of(net), 10, config)
    state = load_file(run[0] / "side.safetensors")
    side = student.task.side.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in side.items())


def test_the_command_line_distils_through_a_probe_and_keeps_the_projection(net, tmp_path, capsys):
    place = ["--task", "digits", "--limit", "60", "--px", "32", "--backbone", "resnet20"]
    place += ["--weights", net.weights, "--epochs", "1", "--batch", "20", "--device", "cpu"]
    probe, out = tmp_path / "probe", tmp_path / "side"
    machine(capsys, "teach", *place, "--mode", "probe", "--out", probe)
    side = ["--side", "narrow", "--width", "0.5", "--side-init", "copy"]
    args = ["distill", *place, *side, "--loss", "perceptual", "--head", probe, "--out", out]
    result = machine(capsys, *args)
    assert result["metric"] == "r2"
    assert read_json(out / "run.json")["config"]["settings"]["loss"] == "perceptual"
    state = load_file(out / "side.safetensors")
    assert state["project.weight"].shape == (64, 32)
    config = side_tuning.Config(side="narrow", width=0.5, side_weights=str(out))
    student = side_tuning.build(backbone_of(net), 10, config)
    assert torch.equal(student.task.project.weight, state["project.weight"])
    judge = open_run(probe).student.task.head
    imitator = Imitator(backbone_of(net), Imitation(loss="perceptual", head=str(probe)))
    assert torch.equal(imitator.judge.weight, judge.weight)
    code, _, err = call(capsys, "evaluate", out)
    assert code == 2
    assert "is the run of a side network, which is no student" in err


# Refusals -------------------------------------------------------------------------------------


def test_what_cannot_be_imitated_is_refused(net, run, tmp_path):
    random = Net(backbone="resnet20", weights="random")
    finetuned = tmp_path / "finetuned"
    train = dataclasses.replace(TRAIN, epochs=1)
    workflow.teach(Teach(out=finetuned, data=DATA, net=random, train=train))
    cases = [
        (random, {}, "the weights 'random' of 'resnet20' have no linear classifier to imitate"),
        (net, {"distance": "l1"}, "--distance belongs to --loss perceptual, and loss is 'soft_ce'"),
        (net, {"loss": "features", "head": "x"}, "--head belongs to --loss perceptual"),
        (
            net,
            {"loss": "perceptual", "head": str(finetuned)},
            "is a run of method 'finetune', whose head reads other features",
        ),
        (net, {"side": "fcn9"}, "side 'fcn9' is no side network"),
    ]
    for place, settings, message in cases:
        out = tmp_path / "refused"
        with pytest.raises(BadInput, match=message) as error:
            distilling.distill(options(place, out, **settings))
        assert "\n" not in str(error.value)
        assert not out.exists()


def test_a_probe_on_other_weights_is_no_judge(net, tmp_path):
    random = Net(backbone="resnet20", weights="random")
    train = dataclasses.replace(TRAIN, epochs=1)
    probe = tmp_path / "probe"
    workflow.teach(Teach(out=probe, mode="probe", data=DATA, net=random, train=train))
    with pytest.raises(BadInput, match=r"has backbone \w{8}, this command \w{8}; give the run"):
        Imitator(backbone_of(net), Imitation(loss="perceptual", head=str(probe)))


def test_the_head_stays_in_evaluation_mode(net):
    student = Imitator(backbone_of(net), Imitation(loss="perceptual"))
    student.judge = nn.Sequential(student.judge, nn.Dropout(0.5))
    assert not student.train().judge[1].training
