"""Training: one step by hand, schedules, and runs that survive what happens to them."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from tailor import checkpoint, cli, train
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.optim import build_optimizer, rate_at
from tailor.progress import Silent
from tailor.run import Run, read_json, read_log, read_tensors
from tailor.settings import Settings, pick_device
from tailor.step import training_step
from tailor.train import Diverged, evaluate, fit
from tests import processes, tiny
from tests.tiny import Interrupted, Until, log_of

STEPS = 5  # per epoch: 40 images in batches of 8


def settings(**changed):
    return Settings(**({"epochs": 3, "batch": 8, "lr": 0.05, "log_every": 2} | changed))


def train_tiny(student, how, *, run=None, progress=None, images=40):
    data = tiny.batches(images, how.batch, train=True)
    return fit(
        student, data, tiny.batches(20, 8, train=False, seed=1), how, run=run, progress=progress
    )


def open_run(path):
    return Run(path, "adapt", {})


def same(one, other):
    first, second = one.task.state_dict(), other.task.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# One step


def one_step(student, how, *, count=8):
    student.train()
    images = torch.randn(count, 3, tiny.PX, tiny.PX, generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(student, how)
    return training_step(
        student, optimizer, images, torch.arange(count) % tiny.CLASSES, how, epoch=0.0
    )


def moved_taps(delta):
    """A student whose every delta is ``delta``."""
    student = tiny.student("taps")
    with torch.no_grad():
        for param in student.anchors():
            param += delta
    return student


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_pulls_a_delta_to_the_universal_weight(optimizer):
    decayed, plain = moved_taps(0.1), moved_taps(0.1)
    how = settings(optimizer=optimizer, lr=0.5)
    one_step(decayed, settings(optimizer=optimizer, lr=0.5, weight_decay=0.2))
    one_step(plain, how)
    for with_decay, without in zip(decayed.anchors(), plain.anchors(), strict=True):
        # lr * decay * delta = 0.5 * 0.2 * 0.1; weights of size 1 have seven digits
        pulled = torch.full_like(without, -0.01)
        torch.testing.assert_close(with_decay - without, pulled, rtol=0, atol=1e-6)


def test_first_step_of_adamw_moves_every_weight_by_the_learning_rate():
    before, after = tiny.student("finetune"), tiny.student("finetune")
    one_step(after, settings(optimizer="adamw", lr=0.01))
    step = after.task.head.weight - before.task.head.weight
    # m / sqrt(v) is the sign of the gradient, up to eps / |gradient|
    torch.testing.assert_close(step.abs(), torch.full_like(step, 0.01), rtol=1e-4, atol=0)


def test_weight_decay_leaves_norms_and_scores_alone():
    decayed, plain = moved_taps(0.1), moved_taps(0.1)
    one_step(decayed, settings(weight_decay=0.2))
    one_step(plain, settings())
    for role in ("norms", "scores"):
        pairs = zip(decayed.roles()[role], plain.roles()[role], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(decayed.task.head.weight, plain.task.head.weight)


def test_every_role_has_its_own_rate():
    how = Settings(lr=0.1, lr_scores=0.2, lr_norms=0.3, lr_head=0.4, weight_decay=0.5)
    groups = build_optimizer(tiny.student("taps"), how).param_groups
    assert {g["role"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "deltas": (0.1, 0.0),  # decays to the universal weight instead
        "scores": (0.2, 0.0),
        "norms": (0.3, 0.0),
        "head": (0.4, 0.5),
    }


@pytest.mark.parametrize("method", ["taps", "finetune", "probe"])
def test_every_trained_parameter_is_in_one_group(method):
    student = tiny.student(method)
    grouped = [p for g in build_optimizer(student, Settings()).param_groups for p in g["params"]]
    trained = [p for p in student.parameters() if p.requires_grad]
    assert sorted(map(id, grouped)) == sorted(map(id, trained))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_closed_layer_stays_where_it_is_in_spite_of_momentum(optimizer):
    student, how = tiny.student("taps"), settings(optimizer=optimizer, weight_decay=0.1)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % tiny.CLASSES
    steps = build_optimizer(student, how)
    student.train()
    training_step(student, steps, images, labels, how, epoch=0.0)
    with torch.no_grad():
        student.task.scores[0] = 0.0  # closes conv1
    before = student.task.tuned["conv1.weight"].clone()
    training_step(student, steps, images, labels, how, epoch=0.0)
    assert torch.equal(student.task.tuned["conv1.weight"], before)
    assert not torch.equal(student.task.tuned["conv2.weight"], tiny.conv_net().model.conv2.weight)


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_with_fewer_known_labels_weigh_less(pieces):
    labels = torch.randint(0, 2, (7, tiny.CLASSES), generator=torch.Generator().manual_seed(3))
    labels[:4, 1:] = -1  # not known of most of the first images
    whole, parts = (tiny.student("taps", tiny.transformer()) for _ in range(2))
    for student, count in ((whole, 1), (parts, pieces)):
        how = settings(lr=1.0, momentum=0.0, accumulate=count)
        optimizer = build_optimizer(student, how)
        pictures = tiny.noise(7, *student.universal.input_size)
        training_step(student, optimizer, pictures, labels, how, epoch=0.0)
    for a, b in zip(whole.task.parameters(), parts.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # sums in another order


@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("pieces", [2, 3, 7])  # 7 images: 4 + 3, 3 + 3 + 1, 7 * 1
def test_pieces_of_a_batch_make_the_step_of_the_whole(pieces, clip):
    # Layer norms: batch norm sees the piece, not the batch.
    whole, parts = (tiny.student("taps", tiny.transformer()) for _ in range(2))
    first = one_step(whole, settings(lr=1.0, momentum=0.0, clip=clip), count=7)
    second = one_step(parts, settings(lr=1.0, momentum=0.0, clip=clip, accumulate=pieces), count=7)
    # float32: the same sums in another order
    for a, b in zip(whole.task.parameters(), parts.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.terms.total, second.terms.total)
    assert first.wrong == second.wrong


def test_clipping_shortens_the_step_to_its_norm():
    before, after = tiny.student("finetune"), tiny.student("finetune")
    one_step(after, settings(lr=1.0, momentum=0.0, clip=0.01))
    pairs = zip(before.task.parameters(), after.task.parameters(), strict=True)
    length = math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    assert length == pytest.approx(0.01, rel=1e-3)  # torch divides by norm + 1e-6


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    student, seen = tiny.student("finetune"), []
    student.task.body.conv2.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    exact = one_step(tiny.student("finetune"), settings())
    rough = one_step(student, settings(bf16=True))
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in student.task.parameters()} == {torch.float32}
    # eight bits of mantissa
    torch.testing.assert_close(rough.terms.total, exact.terms.total, rtol=2e-2, atol=0)


# Schedules


def test_cosine_falls_from_one_to_zero():
    how = Settings(epochs=30)
    assert [rate_at(how, e) for e in (0, 10, 15, 20, 30)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_warm_up_rises_in_a_line_and_the_cosine_starts_after_it():
    how = Settings(epochs=12, warmup_epochs=2)
    found = [rate_at(how, e) for e in (0, 1, 2, 7, 12)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_step_schedule_drops_every_step_epochs():
    how = Settings(epochs=9, schedule="step", step_epochs=3, step_factor=0.1)
    found = [rate_at(how, e) for e in (0, 2.9, 3, 5.9, 6)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_no_step_of_a_training_has_rate_zero(tmp_path):
    with open_run(tmp_path) as run:
        train_tiny(tiny.student("probe"), settings(epochs=2, lr=1.0, log_every=1), run=run)
    rates = [r["lr"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"]
    # 2 epochs of 5 steps: ten points of half a cosine, its end not among them
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])


# A whole training


def test_evaluate_counts_every_image_once():
    student, data = tiny.student("finetune"), tiny.batches(20, 8, train=False)
    student.eval()
    right = sum(int((student(b.images).logits.argmax(1) == b.labels).sum()) for b in data.epoch(0))
    assert evaluate(student, data) == right / 20


@pytest.mark.parametrize(("select", "epoch", "val"), [("best", 2, 0.9), ("last", 3, 0.5)])
def test_select_decides_which_epochs_weights_are_kept(monkeypatch, select, epoch, val):
    student, after = tiny.student("finetune"), []
    metrics = iter([0.2, 0.9, 0.5, 0.5])
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: next(metrics))
    progress = Silent()
    progress.epoch = lambda *_: after.append(student.task.head.weight.detach().clone())
    fitted = train_tiny(student, settings(select=select), progress=progress)
    assert (fitted.epoch, fitted.val) == (epoch, val)
    assert torch.equal(student.task.head.weight, after[epoch - 1])
    assert not torch.equal(after[1], after[2])


def test_of_equal_epochs_the_first_is_kept(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: 0.5)
    assert train_tiny(tiny.student("probe"), settings()).epoch == 1


def test_the_log_of_an_epoch_is_the_mean_of_its_steps(tmp_path):
    with open_run(tmp_path) as run:
        train_tiny(tiny.student("finetune"), settings(epochs=1, log_every=1), run=run)
    *steps, epoch = read_log(tmp_path / "log.jsonl")
    assert len(steps) == STEPS
    assert epoch["train_loss"] == steps[-1]["loss"]  # a running mean: the last one is of all
    assert epoch["train_error"] == steps[-1]["error"]
    assert epoch["train_error"] * 40 == pytest.approx(round(epoch["train_error"] * 40))


def test_the_log_names_scores_and_shares_of_a_gated_student(tmp_path):
    with open_run(tmp_path) as run:
        how = settings(epochs=6, select="last")
        student = tiny.student("taps", lam=0.5, price="layers", price_warmup=1.0)
        train_tiny(student, how, run=run)
    record = read_log(tmp_path / "log.jsonl")[-1]
    states = student.layer_states()
    assert record["on"] == {s.name: s.on for s in states}
    assert record["scores"] == pytest.approx({s.name: s.score for s in states})
    assert record["share_layers"] == sum(s.on for s in states) / 3
    assert 0 < record["share_layers"] < 1
    # conv1 162, conv2 324 + 6, fc1 60 + 10
    sizes = {"conv1": 162, "conv2": 330, "fc1": 70}
    assert record["share_params"] == sum(sizes[s.name] for s in states if s.on) / 562


def test_tensorboard_holds_the_tags_that_taps_users_know(tmp_path):
    with open_run(tmp_path) as run:
        train_tiny(tiny.student("taps"), settings(), run=run)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "Training Loss",
        "Training Error",
        "Validation Error",
        "Learning Rate",
        "Share of Layers Adapted",
        "Share of Parameters Adapted",
        "Score/conv1",
        "Score/conv2",
        "Score/fc1",
    }
    errors = [r["val_error"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "epoch"]
    assert [e.value for e in events.Scalars("Validation Error")] == pytest.approx(errors)


def test_channels_last_trains_to_the_same_weights():
    plain, nhwc = tiny.student("taps"), tiny.student("taps")
    train_tiny(plain, settings(epochs=1))
    train_tiny(nhwc, settings(epochs=1, channels_last=True))
    weight = nhwc.task.tuned["conv2.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    # five steps of sums in another order
    for a, b in zip(plain.task.parameters(), nhwc.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_student_trains_to_the_same_weights_while_gates_close(monkeypatch):
    in_training = []

    def backend(graph, example):  # traces as usual, without the minute of compiling C++
        in_training.append(compiled.training)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: original(f, backend=backend))
    torch.compiler.reset()
    options = {"lam": 0.5, "price": "layers", "price_warmup": 1.0}
    plain, compiled = tiny.student("taps", **options), tiny.student("taps", **options)
    patterns, watch = set(), Silent()
    watch.advance = lambda *_: patterns.add(tuple((compiled.task.scores >= 0.1).tolist()))
    train_tiny(plain, settings(epochs=4, select="last"))
    train_tiny(compiled, settings(epochs=4, select="last", compile=True), progress=watch)
    assert len(patterns) >= 3
    for a, b in zip(plain.task.parameters(), compiled.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert in_training.count(True) == 1  # once for all patterns of gates


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kind", ["end-to-end", "local"])
def test_a_compiled_nettailor_trains_to_the_same_weights(monkeypatch, kind):
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: original(f, backend="eager"))
    torch.compiler.reset()
    plain, compiled = (tiny.student("nettailor", distillation=kind) for _ in range(2))
    train_tiny(plain, settings(epochs=2, select="last"))
    train_tiny(compiled, settings(epochs=2, select="last", compile=True))
    for a, b in zip(plain.task.parameters(), compiled.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), r"no memory .*CUDA.*--batch"),
        (BackendCompilerFailed(print, ValueError("no g++"), None), "leave --compile out"),
    ],
    ids=["memory", "compiler"],
)
def test_what_the_user_can_mend_is_bad_input(monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(train, "training_step", fail)
    with pytest.raises(BadInput, match=said):
        train_tiny(tiny.student("probe"), settings())


def test_batch_norm_on_one_number_is_bad_input():
    features = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    backbone = Backbone(features, name="flat", input_size=(3, tiny.PX, tiny.PX))
    with pytest.raises(BadInput, match="one number per channel; raise --batch"):
        train_tiny(tiny.student("finetune", backbone), settings(batch=1))


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ValueError("a shape that we got wrong")

    monkeypatch.setattr(train, "training_step", fail)
    with pytest.raises(ValueError, match="we got wrong") as raised:
        train_tiny(tiny.student("probe"), settings())
    assert not isinstance(raised.value, BadInput)


def test_a_seed_is_any_number_that_batches_take():
    train_tiny(tiny.student("probe"), settings(epochs=1, seed=2**60))


# Resuming


def uninterrupted(make, how, path):
    student = make()
    with open_run(path) as run:
        fitted = train_tiny(student, how, run=run)
    return student, fitted


def interrupted(make, how, path, cuts):
    """The same in sessions that end at ``cuts``, each with a new student."""
    for cut in (*cuts, None):
        student = make()
        with open_run(path) as run:
            if cut is None:
                return student, train_tiny(student, how, run=run)
            with pytest.raises(Interrupted):
                train_tiny(student, how, run=run, progress=Until(cut))
    raise AssertionError


STUDENTS = {
    "taps": lambda: tiny.student("taps", lam=0.5, price="layers", price_warmup=1.0),
    "finetune": lambda: tiny.student("finetune"),
    "probe": lambda: tiny.student("probe"),
    "finetune in nhwc": lambda: tiny.student("finetune"),
    "finetune with dropout": lambda: tiny.student("finetune", tiny.conv_net(dropout=0.5)),
    "taps with drop path": lambda: tiny.student("taps", tiny.transformer(drop_path=0.3)),
}


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["every step", "every epoch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, name, optimizer, seconds):
    select = "last" if name == "taps" else "best"
    how = settings(
        optimizer=optimizer,
        select=select,
        weight_decay=0.01,
        checkpoint_seconds=seconds,
        channels_last="nhwc" in name,
    )
    make = STUDENTS[name]
    whole, expected = uninterrupted(make, how, tmp_path / "whole")
    cuts = (1, 4, 7, 8, 15) if seconds == 0 else (3, 7, 10, 14)
    parts, found = interrupted(make, how, tmp_path / "parts", cuts)
    assert same(whole, parts)
    assert (found.val, found.epoch) == (expected.val, expected.epoch)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")


def interrupted_while_writing(monkeypatch, make, how, path, *, kept, number):
    """A session that ends instead of writing the ``number``-th file of that name."""
    write, count = train.write_tensors, 0

    def stop(file, *rest):
        nonlocal count
        count += file.stem == kept
        if count == number:
            raise Interrupted
        write(file, *rest)

    for module in (train, checkpoint):  # the last weights and the best ones
        monkeypatch.setattr(module, "write_tensors", stop)
    with contextlib.suppress(Interrupted):  # the best epoch may not come so often
        uninterrupted(make, how, path)
    monkeypatch.undo()
    assert count > 0, f"{kept}.safetensors was never written under this watch"


@pytest.mark.parametrize("kept", ["last", "best"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_session_that_ends_while_it_writes_is_made_good(tmp_path, monkeypatch, kept, number):
    how, make = settings(checkpoint_seconds=math.inf), STUDENTS["finetune"]
    whole, expected = uninterrupted(make, how, tmp_path / "whole")
    parts = tmp_path / "parts"
    interrupted_while_writing(monkeypatch, make, how, parts, kept=kept, number=number)
    again, found = uninterrupted(make, how, parts)
    assert same(whole, again)
    assert (found.val, found.epoch) == (expected.val, expected.epoch)
    assert log_of(parts) == log_of(tmp_path / "whole")


def test_a_finished_training_is_not_repeated(tmp_path):
    first, expected = uninterrupted(STUDENTS["finetune"], settings(), tmp_path)
    counted = Until(None)
    again = STUDENTS["finetune"]()
    with open_run(tmp_path) as run:
        found = train_tiny(again, settings(), run=run, progress=counted)
    assert same(first, again)
    assert (found.val, counted.done) == (expected.val, 3 * STEPS)


def test_tensorboard_shows_every_epoch_of_a_resumed_run_once(tmp_path, monkeypatch):
    make = STUDENTS["probe"]
    # The second epoch is on the board, but in no checkpoint.
    interrupted_while_writing(monkeypatch, make, settings(), tmp_path, kept="last", number=2)
    uninterrupted(make, settings(), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("Training Loss")] == [5, 10, 15]


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    with open_run(tmp_path) as run, pytest.raises(Interrupted):
        train_tiny(tiny.student("probe"), settings(), run=run, progress=Until(7))
    with (
        open_run(tmp_path) as run,
        pytest.raises(BadInput, match="5 steps per epoch, the data now 4"),
    ):
        train_tiny(tiny.student("probe"), settings(), run=run, images=32)


@pytest.mark.parametrize("pair", [("probe", "finetune"), ("finetune", "probe")], ids=" to ".join)
def test_a_checkpoint_of_another_student_is_refused(tmp_path, pair):
    first, second = (tiny.student(method) for method in pair)
    with open_run(tmp_path) as run, pytest.raises(Interrupted):
        train_tiny(first, settings(), run=run, progress=Until(7))
    with open_run(tmp_path) as run, pytest.raises(BadInput, match="does not fit this student"):
        train_tiny(second, settings(), run=run)


def test_a_damaged_checkpoint_is_named(tmp_path):
    with open_run(tmp_path) as run, pytest.raises(Interrupted):
        train_tiny(tiny.student("probe"), settings(), run=run, progress=Until(7))
    path = tmp_path / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)
    with (
        open_run(tmp_path) as run,
        pytest.raises(BadInput, match=r"last\.safetensors is .*damaged"),
    ):
        train_tiny(tiny.student("probe"), settings(), run=run)


def test_a_command_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    said = (
        "adapt --task digits --method taps --backbone small_resnet --weights random --px 16 "
        "--device cpu --batch 128 --epochs 3 --lam 1 --price-warmup 1 --lr 0.05 --log-every 2 "
        "--optimizer adamw --keep best --json"
    )
    whole, parts, kills = tmp_path / "whole", tmp_path / "parts", 0
    undisturbed = processes.start(
        processes.command, *said.split(), "--out", str(whole), output=tmp_path / "whole.out"
    )
    moments = random.Random(0)
    while kills < 4:
        process = processes.start(
            processes.command,
            *said.split(),
            "--checkpoint-seconds",
            "0",
            "--out",
            str(parts),
            output=tmp_path / "parts.out",
        )
        wait_for_a_new_checkpoint(parts / "last.safetensors", process)
        process.join(moments.uniform(0, 0.3))  # anywhere: forward, backward, half a file
        process.kill()
        kills += processes.finish(process) == -signal.SIGKILL
    assert not (parts / "result.json").exists()
    last = processes.start(
        processes.command, *said.split(), "--out", str(parts), output=tmp_path / "last.out"
    )
    assert [processes.finish(undisturbed), processes.finish(last)] == [0, 0]
    name = "student.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert log_of(parts) == log_of(whole)
    different = ("run", "seconds", "command")
    results = [read_json(run / "result.json") for run in (parts, whole)]
    for result in results:
        result["config"]["train"].pop("checkpoint_seconds")
        for key in different:
            result.pop(key)
    assert results[0] == results[1]
    assert sorted(os.listdir(parts)) == sorted(os.listdir(whole))


def wait_for_a_new_checkpoint(path, process, seconds=60):
    before = path.stat().st_ino if path.exists() else None
    for _ in range(seconds * 200):
        if path.exists() and path.stat().st_ino != before:
            return
        assert process.exitcode is None
        process.join(0.005)
    raise AssertionError(f"no checkpoint within {seconds} s")


def test_progress_ends_when_a_session_does():
    progress = Until(3)
    with pytest.raises(Interrupted):
        train_tiny(tiny.student("probe"), settings(), progress=progress)
    assert progress.ended


# Divergence


def spoil(student, value):
    def action():
        with torch.no_grad():
            student.task.head.weight.fill_(value)

    return action


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_step_rate_and_checkpoint(tmp_path, value):
    student = tiny.student("finetune")
    how = settings(schedule="constant")
    with open_run(tmp_path) as run, pytest.raises(Diverged) as stopped:
        train_tiny(student, how, run=run, progress=Until(7, spoil(student, value)))
    assert "loss became infinite or not a number by step 8 at learning rate 0.05" in str(
        stopped.value
    )
    assert f"the last good checkpoint is {tmp_path / 'last.safetensors'}" in str(stopped.value)
    assert read_tensors(tmp_path / "last.safetensors")[1]["step"] == 5


@pytest.mark.parametrize(("step", "good"), [(7, 6), (10, 9)], ids=["within", "end of epoch"])
def test_bad_weights_never_replace_a_good_checkpoint(tmp_path, step, good):
    # The loss of the step was fine; its update was not.
    student = tiny.student("finetune")
    how = settings(checkpoint_seconds=0.0)
    with open_run(tmp_path) as run, pytest.raises(Diverged):
        train_tiny(student, how, run=run, progress=Until(step, spoil(student, math.nan)))
    tensors, about = read_tensors(tmp_path / "last.safetensors")
    assert about["step"] == good
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_weights_that_are_no_numbers_after_the_last_step_stop_the_run(tmp_path):
    student = tiny.student("finetune")
    with open_run(tmp_path) as run, pytest.raises(Diverged, match=r"weights became .* by step 15"):
        train_tiny(student, settings(), run=run, progress=Until(15, spoil(student, math.inf)))


def test_without_a_run_there_is_no_checkpoint_to_name():
    student = tiny.student("finetune")
    with pytest.raises(Diverged, match="none saved"):
        train_tiny(student, settings(), progress=Until(2, spoil(student, math.nan)))


def test_the_command_line_calls_divergence_bad_input(tmp_path, capsys):
    out = tmp_path / "run"
    said = "adapt --task digits --backbone small_resnet --weights random --px 16 --device cpu"
    code = cli.main([*said.split(), "--lr", "1e30", "--epochs", "1", "--out", str(out)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tailor:")]
    assert code == 2
    assert len(lines) == 1
    assert "by step 2 at learning rate 1e+30 (none saved)" in lines[0]
    assert read_json(out / "run.json")["verb"] == "adapt"


# Settings


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch": 0},
        {"accumulate": 0},
        {"log_every": 0},
        {"step_epochs": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr_head": -1.0},
        {"clip": 0.0},
        {"weight_decay": -0.1},
        {"warmup_epochs": -1.0},
        {"momentum": 1.0},
        {"label_smoothing": 1.0},
        {"nesterov": True, "momentum": 0.0},
        {"accumulate": 9, "batch": 8},
    ],
    ids=str,
)
def test_a_setting_that_cannot_train_is_named(bad):
    with pytest.raises(BadInput, match=next(iter(bad))):
        Settings(**bad).check()


@pytest.mark.parametrize("name", ["tpu9", "cuda:99", ""])
def test_a_device_that_is_not_here_is_named(name):
    with pytest.raises(BadInput, match=f"device '{name}' is not available"):
        pick_device(name)


def test_the_universal_weights_never_move():
    for name in STUDENTS:
        student = STUDENTS[name]()
        before = student.universal.fingerprint()
        train_tiny(student, settings(epochs=1, weight_decay=0.1))
        assert student.universal.fingerprint() == before
        assert not any(
            isinstance(m, nn.BatchNorm2d) and m.training for m in student.universal.modules()
        )
