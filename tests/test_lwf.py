"""Learning without forgetting: its loss, its source head, and what it leaves behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from students import finetune, lwf
from tailor import losses
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.options import Adapt, Data, Net, Teach
from tailor.outcome import parameters
from tailor.run import read_tensors
from tailor.settings import Settings
from tailor.source_head import source_head
from tailor.step import training_step
from tailor.student import Distilled
from tailor.workflow import adapt, evaluate, teach


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small ResNet's weights with a head of 7 source classes, drawn at random."""
    backbone = Backbone.create("small_resnet", weights="random", seed=4)
    state = backbone.model.state_dict() | dict(_head(128, 7).state_dict(prefix="fc."))
    path = tmp_path_factory.mktemp("lwf") / "source.safetensors"
    save_file(state, path)
    return path


def _head(features, classes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return nn.Linear(features, classes)


def source(weights="random"):
    return Backbone.create("small_resnet", weights=weights, seed=4)


def batch(seed=0, count=6):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=make), torch.arange(count) % 4


def train(student, steps=3, **settings):
    chosen = Settings(lr=0.02, weight_decay=0.01, **settings)
    optimizer = build_optimizer(student, chosen)
    for i in range(steps):
        student.train()
        training_step(student, optimizer, *batch(i), chosen, epoch=0)
    return student.eval()


def softmax(z):
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_equals_the_papers_formula(temperature):
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(5, 7, generator=draw), torch.randn(5, 7, generator=draw)
    # Eq. 3 and 4: probabilities to the power of 1 / T, normalised; then their cross-entropy.
    soft = [softmax(z.double().numpy()) ** (1 / temperature) for z in (ours, theirs)]
    q, p = (s / s.sum(1, keepdims=True) for s in soft)
    expected = -(p * np.log(q)).sum(1).mean()
    assert lwf.old_task_loss(ours, theirs, temperature).item() == pytest.approx(expected, rel=1e-6)


def test_the_distance_is_to_the_frozen_network_in_evaluation_mode(weights):
    student = lwf.build(source(weights), 4, lwf.Config(source_weight=0.5)).train()
    images, labels = batch()
    body, head = copy.deepcopy(student.task.body), copy.deepcopy(student.task.source)
    terms = losses.step_loss(student, student(images), images, labels, epoch=0)
    with torch.no_grad():  # of the trained copy in training mode, of the trunk in evaluation mode
        z = head(body(images)).double().numpy() / 2
        z0 = student.source(student.universal.model.eval()(images)).double().numpy() / 2
    expected = 0.5 * -(softmax(z0) * np.log(softmax(z))).sum(1).mean()
    assert terms.distillation.item() == pytest.approx(expected, rel=1e-5)
    assert terms.total.item() == pytest.approx((terms.task + terms.distillation).item())


def test_without_a_source_head_pooled_features_are_matched():
    student = lwf.build(source(), 4, lwf.Config(source_weight=3.0)).train()
    images = batch()[0]
    body = copy.deepcopy(student.task.body)
    found = student.distillation(images, student(images), None)
    with torch.no_grad():
        gap = (body(images) - student.universal(images)).double().numpy()
    assert found.item() == pytest.approx(3 * (gap**2).mean(), rel=1e-5)


def test_the_gradient_reaches_body_and_source_head_but_not_the_new_head(weights):
    student = lwf.build(source(weights), 4).train()
    images = batch()[0]
    student.distillation(images, student(images), None).backward()
    assert student.task.body.conv1.weight.grad.abs().max() > 0
    assert student.task.source.weight.grad.abs().max() > 0
    assert student.task.head.weight.grad is None
    assert student.source.weight.grad is None


@pytest.mark.parametrize("match", ["logits", "features"])
def test_weight_0_is_fine_tuning_bit_for_bit(weights, match):
    config = lwf.Config(source_weight=0, match=match)
    ours = train(lwf.build(source(weights), 4, config, seed=2))
    assert ours.distillation(batch()[0], ours.train()(batch()[0]), None) is None
    ours = train(lwf.build(source(weights), 4, config, seed=2))
    theirs = train(finetune.build(source(weights), 4, seed=2))
    mine, expected = ours.task.state_dict(), theirs.task.state_dict()
    assert list(mine) == list(expected)
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_what_the_source_network_says_is_kept_the_better_the_larger_the_weight(weights):
    images = batch(50, count=32)[0]
    gaps = []
    for weight in (1e-9, 10.0):
        student = lwf.build(source(weights), 4, lwf.Config(source_weight=weight))
        train(student, steps=20)
        with torch.no_grad():
            wanted = student.source(student.universal(images))
            gaps.append(float((student.source_logits(images) - wanted).square().mean()))
    assert gaps[1] < 0.5 * gaps[0]


def test_the_trunk_and_its_head_stay_and_only_the_trained_copy_is_saved(weights):
    backbone = source(weights)
    student = lwf.build(backbone, 4)
    before, head = backbone.fingerprint(), student.source.weight.clone()
    train(student)
    assert backbone.fingerprint() == before
    assert torch.equal(student.source.weight, head)
    saved = student.task.state_dict()
    bodies = {n.removeprefix("body.") for n in saved if n.startswith("body.")}
    assert bodies == set(backbone.model.state_dict())
    others = {n for n in saved if not n.startswith("body.")}
    assert others == {"head.weight", "head.bias", "source.weight", "source.bias"}
    assert not torch.equal(saved["source.weight"], head)


def test_the_source_head_counts_as_body_and_not_as_head(weights):
    student = lwf.build(source(weights), 4)
    found, plain = parameters(student), parameters(finetune.build(source(weights), 4))
    assert found.deltas - plain.deltas == 128 * 7 + 7
    assert found.head == plain.head == 128 * 4 + 4


def test_it_learns_from_no_run():
    student = lwf.build(source(), 4)
    assert isinstance(student, Distilled)
    assert not student.wants_teacher()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source_weight": -1.0}, "source_weight is -1.0.*--source-weight 0 or more"),
        ({"source_weight": float("nan")}, "source_weight is nan"),
        ({"temperature": 0.0}, "temperature is 0.0.*above 0"),
        ({"match": "logits"}, "'random' of 'small_resnet' have no linear.*--match features"),
    ],
)
def test_bad_settings_get_one_line(config, message):
    with pytest.raises(BadInput, match=message) as caught:
        lwf.build(source(), 4, lwf.Config(**config))
    assert "\n" not in str(caught.value)


def test_source_logits_of_weights_without_a_head_get_one_line():
    with pytest.raises(BadInput, match="have no linear classifier"):
        lwf.build(source(), 4).source_logits(batch()[0])


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"]
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_head_on_features_equals_the_network_with_its_own_classifier(tmp_path, name, suffix):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        whole = timm.create_model(name, num_classes=9).eval()
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(whole.state_dict(), path)
    px = 224 if name.startswith("vit") else 32
    backbone = Backbone.create(name, weights=path, px=px)
    head, draw = source_head(backbone), torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, px, px, generator=draw)
    with torch.no_grad():
        assert torch.equal(head(backbone(images)), whole(images))


def test_the_head_of_pretrained_weights_is_timms(monkeypatch):
    def create(name, pretrained=False, num_classes=1000, **options):
        assert name == "resnet18"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return real(name, num_classes=num_classes, **options)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    backbone = Backbone.create("resnet18", px=32)
    head = source_head(backbone)
    assert torch.equal(head.weight, create("resnet18").fc.weight)
    assert not head.weight.requires_grad

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BadInput, match=r"no pre-trained classifier of 'resnet18'.*no route"):
        source_head(backbone)


def test_weights_without_a_fitting_head_have_none(tmp_path):
    state = source().model.state_dict()
    assert source_head(source()) is None
    for name, head in (("none", {}), ("other", dict(_head(64, 7).state_dict(prefix="fc.")))):
        save_file(state | head, tmp_path / f"{name}.safetensors")
        assert source_head(source(tmp_path / f"{name}.safetensors")) is None


def test_from_a_teachers_run_to_a_finished_run(tmp_path):
    data, short = Data(task="digits", px=8, limit=60), Settings(epochs=1, device="cpu")
    teach(
        Teach(
            out=tmp_path / "teacher",
            mode="scratch",
            data=data,
            net=Net(backbone="small_resnet"),
            train=short,
        )
    )
    options = Adapt(
        out=tmp_path / "lwf",
        method="lwf",
        data=data,
        net=Net(backbone="small_resnet", weights=str(tmp_path / "teacher")),
        settings=lwf.Config(match="logits"),
        train=short,
    )
    result = adapt(options)
    assert result["params"]["deltas"] == result["params"]["universal"] - 2400 + 1290
    tensors, _ = read_tensors(tmp_path / "lwf" / "student.safetensors")
    assert tensors["source.weight"].shape == (10, 128)
    again = evaluate(tmp_path / "lwf", device="cpu")
    assert again["value"] == result["test"]


# In a sequence --------------------------------------------------------------------------------


def sequence(weights, **options):
    """Two trained tasks, and the student of the third; and what the network said before it."""
    backbone, config = source(weights), lwf.Config(**options)
    found = [train(lwf.build(backbone, 4, config, seed=1))]
    for number in (2, 3):
        found.append(lwf.sequel(found, backbone, 4, config, seed=number))
        if number == 2:
            train(found[1])
    return found


def test_a_sequel_goes_on_with_body_and_old_heads(weights):
    first, second, third = sequence(weights)
    assert third.task.body.conv1.weight is first.task.body.conv1.weight
    assert third.task.source is second.task.source is first.task.source
    assert [h is s.task.head for h, s in zip(third.task.earlier, (first, second), strict=True)] == [
        True,
        True,
    ]
    assert third.task.head is not second.task.head
    found = {id(p) for role in third.roles().values() for p in role}
    assert found == {id(p) for p in third.task.parameters()}


@pytest.mark.parametrize("headless", [False, True])
def test_each_old_head_is_held_to_what_it_said_before_the_task(weights, headless):
    *_, third = sequence("random" if headless else weights, source_weight=0.5)
    body, images = third.task.body, batch(3)[0]
    heads = [*([] if headless else [third.task.source]), *third.task.earlier]
    with torch.no_grad():  # as it is now: in evaluation mode what it was, in training what it is
        features = copy.deepcopy(body).eval()(images)
        old = [head(features).double().numpy() / 2 for head in heads]
        features = copy.deepcopy(body).train()(images)
        new = [head(features).double().numpy() / 2 for head in heads]
    found = third.train().distillation(images, third(images), None)
    terms = [
        -(softmax(a) * np.log(softmax(b))).sum(1).mean() for a, b in zip(old, new, strict=True)
    ]
    assert found.item() == pytest.approx(0.5 * sum(terms), rel=1e-5)
    train(third)  # what it is held to stays what it was
    with torch.no_grad():
        again = [head(third._old[0](images)).double().numpy() / 2 for head in third._old[1:]]
    for a, b in zip(old, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_matching_features_in_a_sequence_holds_those_of_the_task_before(weights):
    *_, third = sequence(weights, match="features", source_weight=2.0)
    images = batch(3)[0]
    with torch.no_grad():
        old = copy.deepcopy(third.task.body).eval()(images)
        new = copy.deepcopy(third.task.body).train()(images)
    found = third.train().distillation(images, third(images), None)
    assert found.item() == pytest.approx(2 * (new - old).square().mean().item(), rel=1e-5)


def test_the_network_as_it_was_is_in_no_file_and_gone_after_the_next_task(weights):
    _, second, third = sequence(weights)
    assert not any("old" in name for name in third.task.state_dict())
    assert third._old
    assert not second._old
    counted = sum(p.numel() for p in third.parameters() if p.requires_grad)
    assert counted == sum(p.numel() for p in third.task.parameters())


def test_weight_0_in_a_sequence_is_fine_tuning_bit_for_bit(weights):
    config = lwf.Config(source_weight=0, statistics="own")
    ours, theirs = (
        train(m.build(source(weights), 4, c, seed=2)) for m, c in ((lwf, config), (finetune, None))
    )
    ours = train(lwf.sequel([ours], ours.universal, 4, config, seed=3))
    theirs = train(finetune.sequel([theirs], theirs.universal, 4, seed=3))
    expected = theirs.task.state_dict()
    assert all(torch.equal(ours.task.state_dict()[n], t) for n, t in expected.items())


def test_a_later_task_forgets_the_less_the_larger_the_weight():
    gaps = []
    for weight in (1e-9, 10.0):
        backbone, config = source(), lwf.Config(source_weight=weight)
        first = train(lwf.build(backbone, 4, config, seed=1), steps=10)
        images = batch(50, count=32)[0]
        # Probabilities: logits may all move by the same without a loss.
        said = first(images).logits.detach().softmax(1)
        train(lwf.sequel([first], backbone, 4, config, seed=2), steps=20)
        gaps.append((first.eval()(images).logits.softmax(1) - said).square().mean().item())
    assert gaps[1] < 0.5 * gaps[0]


def test_a_sequence_is_rebuilt_from_what_each_task_saved(weights):
    backbone = source(weights)
    first = train(lwf.build(backbone, 4, seed=1))
    saved = [{n: t.clone() for n, t in first.task.state_dict().items()}]
    second = train(lwf.sequel([first], backbone, 4, seed=2))
    again = lwf.build(backbone, 4, seed=7)
    again.task.load_state_dict(saved[0])
    other = lwf.sequel([again], backbone, 4, seed=8)
    other.task.load_state_dict(second.task.state_dict())
    images = batch(9)[0]
    for mine, theirs in ((first, again), (second, other)):
        assert torch.equal(mine.eval()(images).logits, theirs.eval()(images).logits)


def test_sets_of_labels_and_values_are_held_in_their_own_way():
    draw = torch.Generator().manual_seed(0)
    now, before = torch.randn(5, 3, generator=draw), torch.randn(5, 3, generator=draw)
    q, p = (1 / (1 + np.exp(-z.double().numpy() / 2)) for z in (now, before))
    expected = -(p * np.log(q) + (1 - p) * np.log(1 - q)).sum(1).mean()  # a sum over labels
    assert lwf._distance(now, before, "set", 2.0).item() == pytest.approx(expected, rel=1e-5)
    expected = float((now - before).square().mean())
    assert lwf._distance(now, before, "pixel_values", 2.0).item() == pytest.approx(expected)
