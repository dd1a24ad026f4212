"""What a delta is worth: measured on a real student, and its tables against hand counts."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch

from analysis import worth as analysis
from analysis.rows import read_runs
from analysis.statistic import paired_error, rank_interval
from tailor import cli
from tailor.errors import BadInput
from tailor.opened import measure, open_run, task_of
from tailor.run import write_tensors
from tailor.settings import Settings
from tailor.worth import measure_missing, measure_worth, parts_of, stored, time_runs
from tests import tiny
from tests.synthetic_runs import write_nettailor, write_run

LAYERS = [
    {"name": name, "kind": "conv", "params": params, "macs": 10}
    for name, params in (("a", 100), ("b", 200), ("c", 300), ("d", 400), ("e", 500))
]
NET = ["--backbone", "small_resnet", "--weights", "random", "--px", "16", "--limit", "256"]
FAST = ["--epochs", "1", "--batch", "64", "--lr", "0.1", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A TAPS student of one epoch, adapted and pruned to its six best layers, and a probe."""
    root = tmp_path_factory.mktemp("runs")
    for args in (
        ["adapt", "--task", "digits", "--method", "taps", *NET, *FAST, "--out", root / "a"],
        ["prune", root / "a", "--out", root / "p", "--count", 14],
        ["teach", "--task", "digits", "--mode", "probe", *NET, *FAST, "--out", root / "probe"],
    ):
        assert cli.main([*map(str, args), "--json"]) == 0
    return root


@pytest.fixture(scope="module")
def measured(runs):
    return {name: measure_worth(runs / name, split="test", device="cpu") for name in ("a", "p")}


def accuracy(run, student, split="test"):
    data = run.data
    settings = Settings(**run.result["config"]["train"])
    return measure(student, task_of(data), split, data, settings)[0]


def test_closing_a_delta_is_the_student_rebuilt_without_it(runs, measured):
    opened = open_run(runs / "p")
    names = opened.student.kept()
    told = {part["name"]: part["value"] for part in measured["p"]["parts"]}
    assert list(told) == names
    assert measured["p"]["value"] == opened.result["test"]
    for name in names[:3]:
        without = opened.student.keep([other for other in names if other != name])
        assert told[name] == accuracy(opened, without)


def test_a_gated_student_closes_what_its_gates_hold_open(runs, measured):
    opened = open_run(runs / "a")
    states = opened.student.layer_states()
    assert [part["name"] for part in measured["a"]["parts"]] == [s.name for s in states if s.on]
    # A gate that is closed by its score is the same as a layer that is not kept.
    place = [layer.name for layer in opened.student.adapted].index(states[0].name)
    with torch.no_grad():
        opened.student.task.scores[place] = 0.0
    assert measured["a"]["parts"][0]["value"] == accuracy(opened, opened.student)
    parts, _ = parts_of(opened.student, runs / "a")
    assert [part.name for part in parts] == [s.name for s in states[1:] if s.on]


def test_images_that_flip_account_for_the_difference(measured):
    for found in measured.values():
        assert found["n"] == 539  # three tenths of the 1,797 digits are held out for the test
        assert any(part["lost"] for part in found["parts"])
        for part in found["parts"]:
            lost = round(found["n"] * (found["value"] - part["value"]))
            assert part["lost"] - part["gained"] == lost


def test_a_delta_of_zero_is_worth_exactly_nothing(runs, tmp_path):
    copied = copy_of(runs / "p", tmp_path / "p")
    student = open_run(copied).student
    layer = student.adapted[1]
    own = dict(student.universal.model.named_parameters())
    with torch.no_grad():
        for name in layer.tensors:
            student.task.tuned[name].copy_(own[name])
    write_tensors(copied / "student.safetensors", student.task.state_dict(), {"method": "taps"})
    found = measure_worth(copied, split="test", device="cpu")
    part = found["parts"][1]
    assert part == {"name": layer.name, "kind": "delta", "value": found["value"], "also": [],
                    "lost": 0, "gained": 0}  # fmt: skip


def copy_of(run, out):
    out.mkdir(parents=True)
    for file in run.iterdir():
        if file.is_file() and not file.name.startswith((".", "worth")):
            (out / file.name).write_bytes(file.read_bytes())
    return out


def test_what_was_measured_is_used_until_the_student_changes(runs, measured, tmp_path):
    copied = copy_of(runs / "p", tmp_path / "p")
    assert measure_missing([copied], device="cpu")
    before = stored(copied, "val")
    assert before["split"] == "val"
    assert stored(copied, "test") is None
    assert not measure_missing([copied], device="cpu")
    with (copied / "student.safetensors").open("ab") as file:
        file.write(b"x")
    assert stored(copied, "val") is None


def test_a_damaged_measurement_names_its_file(runs, measured, tmp_path):
    copied = copy_of(runs / "p", tmp_path / "p")
    for content in ("{", "[]"):
        (copied / "worth-val.json").write_text(content)
        with pytest.raises(BadInput, match=r"worth-val\.json .*delete"):
            stored(copied, "val")


def test_a_method_without_parts_is_refused(runs):
    with pytest.raises(BadInput, match="has no delta or block that could be closed"):
        measure_worth(runs / "probe")


def test_a_split_that_the_task_lacks_is_refused(runs, monkeypatch):
    real = task_of

    def without_val(data):
        task = real(data)
        del task.splits["val"]
        return task

    monkeypatch.setattr("tailor.worth.task_of", without_val)
    with pytest.raises(BadInput, match="has no val split; give --split train or test"):
        measure_worth(runs / "p")


def test_paths_of_nettailor_are_closed_one_by_one(tmp_path):
    student = tiny.student("nettailor").eval()
    parts, needed = parts_of(student, tmp_path)
    assert [part.name for part in parts] == student.kept()  # each block has another way in
    assert needed == []
    assert {part.kind for part in parts} == {"universal", "proxy"}
    for part in parts:
        assert set(part.without.kept()) == set(student.kept()) - {part.name, *part.also}


def test_the_only_way_through_a_network_cannot_be_closed(tmp_path):
    student = tiny.student("nettailor").eval()
    chain = student.keep(["blocks.0", "blocks.1", "blocks.2"])
    parts, needed = parts_of(chain, tmp_path)
    assert (parts, needed) == ([], ["blocks.0", "blocks.1", "blocks.2"])


def test_latency_is_measured_once_and_stored(runs, tmp_path):
    copied = copy_of(runs / "p", tmp_path / "p")
    assert time_runs([copied])
    told = json.loads((copied / "latency.json").read_text())
    assert told.keys() == {"ms", "ms_backbone", "ratio", "spread", "threads"}
    assert told["threads"] == 1
    assert read_runs([copied])[0].latency == told
    assert not time_runs([])


# Tables ---------------------------------------------------------------------------------------


def write_measured(path, values, *, full=0.9, n=200, seed=0, scores=(0.5, 0.4, 0.3, 0.2, 0.1),
                   split="val", **options):  # fmt: skip
    """A run of five layers whose open ones have these accuracies when closed."""
    states = [
        layer | {"on": layer["name"] in values, "score": score, "change": score / 10}
        for layer, score in zip(LAYERS, scores, strict=True)
    ]
    write_run(path, "taps", seed=seed, layer_states=states, layers=LAYERS,
              **({"lam": 0.1} | options))  # fmt: skip
    (path / "student.safetensors").write_bytes(b"weights")
    parts = [
        {"name": name, "kind": "delta", "value": value, "also": [],
         "lost": max(round(n * (full - value)), 0) + 3, "gained": 3}
        for name, value in values.items()
    ]  # fmt: skip
    told = {"schema": 1, "student": hashlib.sha256(b"weights").hexdigest(), "split": split,
            "metric": "top1", "n": n, "value": full, "parts": parts, "needed": []}  # fmt: skip
    (path / f"worth-{split}.json").write_text(json.dumps(told))
    return path


def test_worth_is_the_mean_over_the_seeds_that_have_the_layer_open(tmp_path):
    write_measured(tmp_path / "0", {"a": 0.80, "b": 0.85, "c": 0.90, "d": 0.88})
    write_measured(tmp_path / "1", {"a": 0.70, "b": 0.89, "c": 0.91}, seed=1)
    answer = analysis.answer(read_runs([tmp_path / "0", tmp_path / "1"]))
    frame = answer.table.loc["taps λ=0.1"]
    assert list(frame.index) == ["a", "b", "c", "d"]
    assert list(frame["worth"]) == pytest.approx([15, 3, -0.5, 2])
    assert list(frame["seeds"]) == [2, 2, 2, 1]
    assert frame.loc["a", "spread"] == pytest.approx(10 / math.sqrt(2))
    assert frame.loc["d", ["params", "score", "change"]].to_list() == [400, 0.2, 0.02]
    # Seed 0, layer a: 23 images lost, 3 gained of 200.
    errors = [math.sqrt(26 - 400 / 200) / 200, math.sqrt(46 - 1600 / 200) / 200]
    assert frame.loc["a", "se"] == pytest.approx(100 * math.hypot(*errors) / 2)
    assert "7 open parts of 2 runs; 3 that their scores had closed" in answer.text


def test_rank_correlations_are_averaged_over_seeds(tmp_path):
    # Scores fall from a to e; worth of seed 0 falls with them, of seed 1 b and c are swapped.
    write_measured(tmp_path / "0", dict(zip("abcde", (0.5, 0.6, 0.7, 0.8, 0.85), strict=True)))
    write_measured(
        tmp_path / "1", dict(zip("abcde", (0.5, 0.7, 0.6, 0.8, 0.85), strict=True)), seed=1
    )
    line = analysis.answer(read_runs([tmp_path / "0", tmp_path / "1"])).table.iloc[0]
    rho = (1 + (1 - 6 * 2 / (5 * 24))) / 2
    assert line["rho_score"] == pytest.approx(rho)
    assert line["rho_change"] == pytest.approx(rho)
    assert line["rho_size"] == pytest.approx(-rho)
    low, high = rank_interval(rho, 5)
    assert (line["rho_score_low"], line["rho_score_high"]) == pytest.approx((low, high))


def test_the_interval_of_a_rank_correlation_by_hand():
    low, high = rank_interval(0.5, 12)
    error = 1.959964 * math.sqrt(1.125 / 9)
    middle = 0.5 * math.log(1.5 / 0.5)
    assert (low, high) == pytest.approx((math.tanh(middle - error), math.tanh(middle + error)))
    assert all(map(math.isnan, (*rank_interval(0.5, 3), *rank_interval(1.0, 12))))


def test_the_error_of_a_paired_difference_is_that_of_its_numbers():
    differences = [1] * 7 + [-1] * 2 + [0] * 91
    mean = sum(differences) / 100
    variance = sum((d - mean) ** 2 for d in differences) / 100
    assert paired_error(7, 2, 100) == pytest.approx(math.sqrt(variance / 100))
    assert paired_error(0, 0, 100) == 0
    assert math.isnan(paired_error(None, None, 100))


def test_bars_stand_in_network_order_and_closed_layers_are_crossed(tmp_path):
    run = write_measured(tmp_path / "0", {"a": 0.8, "c": 0.85})
    bars, scatter = analysis.answer(read_runs([run])).figure.axes
    assert [label.get_text() for label in bars.get_xticklabels()] == ["a", "b", "c", "d", "e"]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([10, 5])
    assert [line.get_xdata()[0] for line in bars.lines if line.get_marker() == "x"] == [1, 3, 4]
    assert list(scatter.lines[0].get_xdata()) == [0.5, 0.3]


def test_many_experiments_share_a_panel_per_setting(tmp_path):
    paths = [
        write_measured(tmp_path / f"{task}-{lam}", {"a": 0.8, "b": 0.85}, task=f"t{task}", lam=lam)
        for task in range(5)
        for lam in (0.1, 0.3)
    ]
    titles = [axes.get_title(loc="left") for axes in analysis.answer(read_runs(paths)).figure.axes]
    assert titles[::2] == ["taps λ=0.1, 5 tasks", "taps λ=0.3, 5 tasks"]


def test_what_was_not_measured_is_one_line(tmp_path):
    run = write_measured(tmp_path / "0", {"a": 0.8})
    with pytest.raises(BadInput, match="no run was measured on test, or its student changed"):
        analysis.answer(read_runs([run]), split="test")
    (run / "student.safetensors").write_bytes(b"others")
    with pytest.raises(BadInput, match="no run was measured on val, or its student changed"):
        analysis.answer(read_runs([run]))
    with pytest.raises(BadInput, match="none of these runs has deltas or blocks"):
        analysis.answer(read_runs([write_run(tmp_path / "probe", "probe")]))
    nothing = write_measured(tmp_path / "1", {}, seed=1)
    with pytest.raises(BadInput, match="no part of these runs can be closed alone"):
        analysis.answer(read_runs([nothing]))


def test_the_score_of_a_path_is_its_gate(tmp_path):
    path = write_nettailor(tmp_path / "nt", depth=18)
    run = read_runs([path])[0]
    names = ["layer1.0", "layer2.0<-layer1.1", "layer1.1<-stem", "layer1.1"]
    parts = [{"name": n, "kind": "proxy" if "<-" in n else "universal", "value": 0.5, "also": [],
              "lost": 0, "gained": 0} for n in names]  # fmt: skip
    (path / "student.safetensors").write_bytes(b"w")
    told = {"schema": 1, "student": hashlib.sha256(b"w").hexdigest(), "n": 10, "value": 0.5}
    (path / "worth-val.json").write_text(json.dumps(told | {"parts": parts, "split": "val"}))
    frame = analysis.answer([run]).table.loc["nettailor λ=0.3"]
    assert list(frame.index) == ["layer1.0", "layer1.1", "layer1.1<-stem", "layer2.0<-layer1.1"]
    gates = {gate["name"]: gate["value"] for gate in run.result["gates"]}
    assert list(frame["score"]) == [gates[name] for name in frame.index]
    assert frame["change"].isna().all()
