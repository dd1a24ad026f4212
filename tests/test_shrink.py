"""NetTailor from the shell: teacher, student, prune by every rule, retrain, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tailor
from students import nettailor
from tailor import cli
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.opened import open_run
from tailor.run import read_log
from tailor.settings import Settings
from tests.test_cli import FAST, NET, call, machine, result

DIGITS = ["--task", "digits", *NET, "--crop", "none", *FAST]
STUDENT = ["adapt", *DIGITS, "--method", "nettailor"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher, a student of it, pruned and retrained."""
    root = tmp_path_factory.mktemp("tailored")
    steps = [
        ["teach", *DIGITS, "--out", root / "teacher"],
        [*STUDENT, "--teacher", root / "teacher", "--epochs", "2", "--out", root / "nt"],
        ["prune", root / "nt", "--count", "3", "--proxy-threshold", "0.01", "--out", root / "p"],
        ["retrain", root / "p", *FAST],
    ]
    for args in steps:
        assert cli.main([*map(str, args), "--json"]) == 0
    # The same student before it learnt anything worth having.
    blind = [*STUDENT, "--teacher", root / "teacher", "--lr", "1e-9", "--out", root / "blind"]
    assert cli.main([*map(str, blind), "--json"]) == 0
    return root


def test_every_step_bills_what_its_file_holds(runs):
    for name in ("nt", "p", "p-retrained"):
        held = load_file(runs / name / "student.safetensors")
        numbers = sum(t.numel() for t in held.values() if t.is_floating_point())
        params = result(runs / name)["params"]
        assert numbers == params["task"] + params["head"], name


def test_three_of_eight_blocks_are_gone_from_network_and_bill(runs):
    found, backbone = result(runs / "p"), result(runs / "nt")
    gone = [b for b in found["blocks"] if not b["kept"]]
    assert len(gone) == 3
    assert all(b["kept"] for b in backbone["blocks"])
    removed = sum(b["params"] for b in gone)
    proxies = sum(g["params"] for g in found["gates"] if g["kind"] == "proxy")
    # Folded, a proxy's batch norm is one bias per channel instead of scale and shift.
    channels = {b["name"]: b["out_shape"][0] for b in found["blocks"]}
    folded = sum(channels[g["target"]] for g in found["gates"] if g["kind"] == "proxy")
    network = found["params"]["universal"] - removed + proxies - folded
    assert found["params"]["network"] == network


def test_the_log_holds_every_gate_after_every_epoch(runs):
    epochs = [r for r in read_log(runs / "nt" / "log.jsonl") if r["kind"] == "epoch"]
    assert len(epochs) == 2
    final = {g["name"]: g["value"] for g in result(runs / "nt")["gates"]}
    assert epochs[-1]["gates"] == pytest.approx(final, abs=1e-6)
    for record in epochs:
        parts = [record[f"train_{k}"] for k in ("task", "price", "distillation")]
        assert record["train_loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_tensorboard_shows_gates(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "nt" / "tensorboard"))
    events.Reload()
    gates = result(runs / "nt")["gates"]
    assert {f"Gate/{g['name']}" for g in gates} <= set(events.Tags()["scalars"])
    assert events.Scalars("Gate/layer1.0")[-1].value == pytest.approx(gates[0]["value"], abs=1e-6)


def test_retraining_has_no_price_and_goes_on_learning_from_the_teacher(runs):
    last = [r for r in read_log(runs / "p-retrained" / "log.jsonl") if r["kind"] == "epoch"][-1]
    assert last["train_price"] == pytest.approx(0, abs=1e-6)
    assert last["train_distillation"] > 0


def test_a_retrained_run_opens_to_the_same_outputs_as_its_merged_network(runs, capsys, tmp_path):
    student = open_run(runs / "p-retrained").student
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = student(images).logits
        torch.testing.assert_close(student.merge()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        ["--share", "0.4"],
        ["--threshold", "0.02"],
        ["--budget", "macs=0.9,params=0.05"],
        ["--within", "99"],
        ["--within", "99", "--trial-epochs", "1"],
        ["--count", "2", "--renormalise"],
    ],
)
def test_every_rule_gives_a_student_that_can_be_measured(runs, capsys, tmp_path, rule):
    found = machine(capsys, "prune", runs / "nt", *rule, "--out", tmp_path / "pruned")
    measured = machine(capsys, "evaluate", tmp_path / "pruned", "--device", "cpu")
    assert measured["value"] == found["test"]
    if rule[0] == "--budget":
        assert found["macs"]["student"] <= 0.9 * found["macs"]["backbone"]
        assert found["params"]["adapters"] <= 0.05 * found["params"]["universal"]
    if rule[0] == "--within":
        counts = [t["count"] for t in found["trials"]]
        assert counts == sorted(set(counts))
        assert any(t["accuracy"] >= found["floor"] for t in found["trials"])
        assert (len(counts) == 9) is ("--trial-epochs" not in rule)
    if "--renormalise" in rule:
        assert found["config"]["settings"]["renormalise"] is True
        sums: dict[str, float] = {}
        for gate in found["gates"]:
            sums[gate["target"]] = sums.get(gate["target"], 0) + gate["value"]
        assert list(sums.values()) == pytest.approx([1.0] * len(sums), abs=1e-5)


def test_a_search_leaves_the_run_that_it_started_from_alone(runs, capsys, tmp_path):
    before = (runs / "nt" / "student.safetensors").read_bytes()
    machine(capsys, "prune", runs / "nt", "--within", "99", "--trial-epochs", "1",
            "--out", tmp_path / "p")  # fmt: skip
    assert (runs / "nt" / "student.safetensors").read_bytes() == before
    again = open_run(tmp_path / "p").student.task.state_dict()
    whole = open_run(runs / "nt").student.task.state_dict()
    for name, tensor in again.items():
        if name.startswith("proxies."):
            assert torch.equal(tensor, whole[name]), name  # trials trained copies


def test_the_latency_is_told_against_the_backbone(runs, capsys):
    found = machine(capsys, "evaluate", runs / "p", "--device", "cpu", "--latency")["latency"]
    assert found["ms"] > 0
    assert found["ratio"] == pytest.approx(found["ms"] / found["ms_backbone"], rel=0.9)


def test_a_teacher_that_may_remember_gives_the_same_student(runs, capsys, tmp_path):
    # Nothing is augmented, so the teacher's outputs are kept; with no memory for them, computed.
    args = [*STUDENT, "--teacher", runs / "teacher", "--epochs", "2", "--memory-gb", "0.0001"]
    assert cli.main([*map(str, args), "--out", str(tmp_path / "nt"), "--json"]) == 0
    capsys.readouterr()
    kept, computed = (load_file(p / "student.safetensors") for p in (runs / "nt", tmp_path / "nt"))
    for name, tensor in kept.items():
        # Batches that mix images of other batches: the teacher rounds differently by batch.
        torch.testing.assert_close(tensor, computed[name], rtol=1e-3, atol=1e-4)


def _bad(runs, tmp_path):
    out = ["--out", tmp_path / "x"]
    other = ["--backbone", "small_resnet_w32", "--weights", "random", "--px", "16"]
    px = ["--backbone", "small_resnet", "--weights", "random", "--px", "24"]
    digits = ["--task", "digits", "--crop", "none", *FAST, "--method", "nettailor"]
    teacher = ["--teacher", runs / "teacher"]
    return {
        "no teacher": ([*STUDENT, *out], "distils from a teacher: give --teacher RUN"),
        "other architecture": (
            ["adapt", *digits, *other, *teacher, *out],
            "has backbone small_resnet, the student small_resnet_w32",
        ),
        "other size": (["adapt", *digits, *px, *teacher, *out], "has input size (3, 16, 16)"),
        "other classes": (
            [*STUDENT, "--task", "characters", *teacher, *out],
            "has number of classes 10, the student 53",
        ),
        "a student as teacher": (
            [*STUDENT, "--teacher", runs / "nt", *out],
            "mixes blocks with proxies",
        ),
        "no run": ([*STUDENT, "--teacher", tmp_path / "none", *out], "does not exist"),
        "a teacher for taps": (
            ["adapt", *DIGITS, *teacher, *out],
            "'taps' learns from no teacher; leave --teacher out",
        ),
        "max skip": ([*STUDENT, *teacher, "--max-skip", "0", *out], "max_skip is 0"),
        "every path": (["prune", runs / "nt", "--threshold", "0.9999", *out], "remove every path"),
        "too many": (["prune", runs / "nt", "--count", "9", *out], "count is 9, but there are 8"),
        "two rules": (
            ["prune", runs / "nt", "--count", "1", "--share", "0.5", *out],
            "exclude each other",
        ),
        "two searches": (
            ["prune", runs / "nt", "--within", "1", "--count", "1", *out],
            "leave --count out",
        ),
        "trials alone": (["prune", runs / "nt", "--trial-epochs", "2", *out], "give --within"),
        "unreachable": (
            ["prune", runs / "blind", "--within", "0", *out],
            "no pruned student reaches",
        ),
        "not pruned": (["retrain", runs / "nt", *FAST], "not a pruned one"),
        "negative": (["retrain", runs / "p", "--distill", "-1", *FAST], "distill is -1"),
    }


@pytest.mark.parametrize("case", sorted(_bad(Path(), Path())))
def test_bad_input_is_one_line_and_leaves_nothing_behind(runs, capsys, tmp_path, case):
    args, says = _bad(runs, tmp_path)[case]
    code, out, err = call(capsys, *args)
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("tailor: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert not out
    assert not (tmp_path / "x").exists()


def test_a_moved_teacher_can_be_named_again(runs, capsys, tmp_path):
    (runs / "teacher").rename(runs / "moved")
    try:
        code, _, err = call(capsys, "retrain", runs / "p", *FAST, "--out", tmp_path / "r")
        assert code == 2
        assert "teacher" in err
        machine(capsys, "retrain", runs / "p", *FAST, "--out", tmp_path / "r",
                "--teacher", runs / "moved")  # fmt: skip
    finally:
        (runs / "moved").rename(runs / "teacher")
    assert json.loads((tmp_path / "r" / "result.json").read_text())["stage"] == "retrained"


def test_python_without_a_teacher_is_refused_as_the_shell_is(tmp_path):
    student = nettailor.build(Backbone.create("small_resnet", weights="random", px=16), 10)
    with pytest.raises(BadInput, match="distils from a teacher: give --teacher RUN"):
        tailor.fit(student, tailor.open_task("digits"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_python_attaches_the_teacher_it_is_given(runs, tmp_path):
    student = nettailor.build(Backbone.create("small_resnet", weights="random", px=16), 10)
    settings = Settings(epochs=1, batch=256, lr=0.01, device="cpu")
    found = tailor.fit(
        student,
        tailor.open_task("digits"),
        out=tmp_path / "run",
        train=settings,
        teacher=runs / "teacher",
    )
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["train_distillation"] > 0 for r in log if r["kind"] == "epoch"] == [True]
    assert found["config"]["teacher"] == str((runs / "teacher").resolve())


def test_a_merged_file_fits_the_network_that_the_run_builds(runs, capsys, tmp_path):
    found = machine(capsys, "merge", runs / "p", "--out", tmp_path / "m.safetensors")
    assert found["timm"] is False
    network = open_run(runs / "p").student.merge()
    network.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert (
        "tailor.open_run"
        in call(capsys, "merge", runs / "p", "--out", tmp_path / "n.safetensors")[1]
    )


def test_pruning_says_what_the_rule_alone_does_not_explain(runs, capsys, tmp_path):
    args = ["--share", "0.5", "--proxy-threshold", "0.9", "--out", tmp_path / "x"]
    code, out, _ = call(capsys, "prune", runs / "nt", *args)
    found = result(tmp_path / "x")
    assert code == 0
    assert found["reopened"]
    assert f"was cut apart: {', '.join(found['reopened'])}" in out


def test_a_damaged_result_is_one_line(runs, capsys, tmp_path):
    shutil.copytree(runs / "p", tmp_path / "broken")
    (tmp_path / "broken" / "result.json").write_text("{}")
    code, _, err = call(capsys, "evaluate", tmp_path / "broken")
    assert code == 2
    assert "lacks 'config', so it is damaged" in err
