"""Two processes train as one does on the joined batch, and only the first one writes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from tailor.distributed import Group, joined, synced_batch_norm
from tailor.errors import BadInput
from tailor.run import Run, read_json, read_log, read_tensors, write_tensors
from tailor.session import finished, open_directory
from tailor.settings import Settings
from tailor.train import evaluate, fit
from tests import processes, tiny
from tests.tiny import Interrupted, Until, log_of

CASES = {
    # Gates close on the way: their deltas have no gradient, in one process after the other.
    "taps": (
        "taps",
        {"epochs": 4, "weight_decay": 0.01, "accumulate": 2, "select": "last"},
        {"lam": 0.5, "price": "layers", "price_warmup": 1.0},
    ),
    "finetune": ("finetune", {"clip": 1.0, "nesterov": True}, {}),
    "probe": ("probe", {"optimizer": "adamw"}, {}),
    # Batch norm of proxies over both processes, a teacher in each, two pieces.
    "nettailor": ("nettailor", {"accumulate": 2, "weight_decay": 1e-3}, {"lam": 0.3}),
}


def train_share(folder, name, cut=None):
    """Train this process's share; leave the weights in ``folder/weights.RANK``."""
    method, how, options = CASES[name]
    how = Settings(**({"epochs": 3, "batch": 8, "lr": 0.05, "checkpoint_seconds": 0} | how))
    with joined() as group:
        place = {"rank": group.rank, "world": group.world}
        student = tiny.student(method, **options)
        train = tiny.batches(40, 8, train=True, **place)
        val = tiny.batches(21, 8, train=False, seed=1, **place)  # 11 and 10 images
        if group.rank == 0:
            run = Run(folder / "run", "adapt", {})
        group.wait()
        if group.rank:
            run = Run(folder / "run", "adapt", {}, writer=False)
        with run:
            try:
                fitted = fit(student, train, val, how, run=run, progress=cut and Until(cut))
            except Interrupted:
                return
        about = {"val": fitted.val, "again": evaluate(student, val)}
        write_tensors(folder / f"weights.{group.rank}", student.task.state_dict(), about)


def train_together(folder, name, *cuts):
    for cut in (*cuts, None):
        started = processes.start_together(train_share, folder, name, cut, output=folder / "said")
        assert [processes.finish(p) for p in started] == [0, 0], read(folder, "said")


def read(folder, stem):
    return [(folder / f"{stem}.{rank}").read_text() for rank in range(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every case, in one process and in two."""
    folders = {}
    for name in CASES:
        folders[name] = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
        train_share(folders[name][0], name)
        train_together(folders[name][1], name)
    return folders


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_weights_of_one(trained, name):
    one, two = (read_tensors(folder / "weights.0") for folder in trained[name])
    # The gradients are the same sums in another order: float32 rounding, kept for 15 steps.
    torch.testing.assert_close(two[0], one[0], rtol=1e-4, atol=1e-6)
    assert two[1] == one[1]  # the metric too: 21 images, each seen once


@pytest.mark.parametrize("name", CASES)
def test_both_processes_hold_the_same_bits(trained, name):
    first, second = (read_tensors(trained[name][1] / f"weights.{rank}") for rank in range(2))
    assert all(torch.equal(t, second[0][n]) for n, t in first[0].items())
    assert first[1] == second[1]


@pytest.mark.parametrize("name", CASES)
def test_the_log_is_that_of_one_process(trained, name):
    one, two = (log_of(folder / "run") for folder in trained[name])
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        exact, close = ("kind", "epoch", "step", "on"), ("train_loss", "train_error", "loss", "val")
        assert all(a.get(k) == b.get(k) for k in exact)
        assert all(a.get(k, 0) == pytest.approx(b.get(k, 0), rel=1e-4) for k in close)


def test_some_gates_closed_on_the_way(trained):
    log = read_log(trained["taps"][1] / "run" / "log.jsonl")
    first, *_, last = (r["on"] for r in log if r["kind"] == "epoch")
    assert all(first.values())
    assert sum(last.values()) < 3


@pytest.mark.parametrize("name", ["taps", "finetune", "nettailor"])
def test_two_processes_resume_to_the_same_bits(trained, tmp_path, name):
    train_together(tmp_path, name, 3, 7)
    whole, parts = (read_tensors(f / "weights.1") for f in (trained[name][1], tmp_path))
    assert all(torch.equal(t, parts[0][n]) for n, t in whole[0].items())
    assert parts[1] == whole[1]
    assert log_of(tmp_path / "run") == log_of(trained[name][1] / "run")


def test_a_follower_says_that_another_process_ended(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("text")
    said = "adapt --task digits --backbone small_resnet --weights random --px 16 --device cpu"
    argv = [*said.split(), "--out", str(tmp_path / "taken")]
    started = processes.start_together(processes.command, *argv, output=tmp_path / "said")
    assert [processes.finish(p) for p in started] == [2, 2]
    first, second = read(tmp_path, "said")
    assert first.startswith("tailor: ")
    assert "thesis.tex" in first
    assert second.startswith("tailor: another of the 2 processes ended")
    assert len(second.splitlines()) == 1


def meet_late(folder):
    """Process 1 comes when process 0 may have made the directory already."""
    with joined() as group:
        time.sleep(group.rank)
        assert finished(folder / "run", "adapt", {}) is None
        with open_directory(folder / "run", "adapt", {}, "") as run:
            assert run.writer == (group.rank == 0)
        group.wait()


def test_a_late_process_takes_the_way_of_the_first(tmp_path):
    started = processes.start_together(meet_late, tmp_path, output=tmp_path / "said")
    assert [processes.finish(p, 30) for p in started] == [0, 0], read(tmp_path, "said")


def test_torchrun_trains_as_one_process_does(tmp_path):
    # Four steps of a rate that is too small for rounding to grow.
    said = (
        "teach --task digits --mode finetune --backbone small_resnet --weights random --px 16 "
        "--device cpu --batch 512 --epochs 2 --lr 1e-4 --keep last"
    )
    argv = said.split()
    run = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    start = ["--nproc-per-node", "2", "--no-python", sys.executable, "-W", "error::FutureWarning"]
    main = ["-c", "from tailor.cli import entry; entry()"]
    two = subprocess.run(
        [sys.executable, *run, *start, *main, *argv, "--out", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert two.returncode == 0, two.stderr
    one = processes.start(
        processes.command, *argv, "--out", str(tmp_path / "one"), output=tmp_path / "said"
    )
    assert processes.finish(one) == 0
    found = read_tensors(tmp_path / "two" / "student.safetensors")[0]
    expected = read_tensors(tmp_path / "one" / "student.safetensors")[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    results = [read_json(tmp_path / name / "result.json") for name in ("one", "two")]
    assert results[0]["val"] == results[1]["val"]
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two"))


# Without others


def test_alone_nothing_is_joined():
    with joined() as group:
        assert group == Group(0, 1)
        group.wait()
        tensor = torch.ones(2)
        group.sum_(tensor)
        group.broadcast_(tensor)
    assert tensor.tolist() == [1, 1]


def test_alone_batch_norm_is_torchs():
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    norm = torch.nn.BatchNorm2d(3)
    with synced_batch_norm(Group()):
        assert torch.equal(norm(x), torch.nn.functional.batch_norm(x, None, None, training=True))


def test_processes_that_cannot_meet_are_bad_input(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BadInput, match=r"WORLD_SIZE announces 2 .*MASTER_ADDR.*torchrun"), joined():
        pass


def batch_norm_of_a_share(folder):
    """Values, gradients and statistics of a batch norm whose batch lies in two processes."""
    full = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)).double() + 100
    target = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    with joined() as group:
        norm = torch.nn.BatchNorm1d(3).double()
        x = full[group.rank :: group.world].clone().requires_grad_()
        with synced_batch_norm(group):
            y = norm(x)
        (y * target[group.rank :: group.world]).sum().backward()
        kept = {"y": y, "grad": x.grad, "mean": norm.running_mean, "var": norm.running_var}
        write_tensors(folder / f"norm.{group.rank}", kept)


def test_batch_norm_over_two_processes_is_that_of_the_joined_batch(tmp_path):
    started = processes.start_together(batch_norm_of_a_share, tmp_path, output=tmp_path / "said")
    assert [processes.finish(p) for p in started] == [0, 0], read(tmp_path, "said")
    alone = tmp_path / "alone"
    batch_norm_of_a_share(alone)
    expected = read_tensors(alone / "norm.0")[0]
    for rank in range(2):
        found = read_tensors(tmp_path / f"norm.{rank}")[0]
        for name in ("y", "grad"):
            torch.testing.assert_close(found[name], expected[name][rank::2])
        for name in ("mean", "var"):
            torch.testing.assert_close(found[name], expected[name])
