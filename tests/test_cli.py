"""The command: the main path from end to end, JSON for machines, and one line for bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from students import taps
from tailor import cli, workflow
from tailor.backbone import Backbone
from tailor.opened import open_run
from tailor.prune import prune
from tailor.settings import Settings
from tailor.task import open_task
from tests.command import call, machine

NET = ["--backbone", "small_resnet", "--weights", "random", "--px", "16"]
FAST = ["--epochs", "1", "--batch", "64", "--lr", "0.05", "--device", "cpu"]
ROW = {
    "run", "task", "method", "backbone", "seed", "stage", "metric", "val", "test", "layers",
    "layers_adapted", "params", "macs", "bytes", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher, and a student adapted, pruned and retrained."""
    root = tmp_path_factory.mktemp("runs")
    teach = [
        "teach",
        "--task",
        "digits",
        "--mode",
        "scratch",
        *NET,
        *FAST,
        "--out",
        root / "source",
    ]
    adapt = ["adapt", "--task", "digits", *NET[:2], "--weights", root / "source", *NET[4:], *FAST]
    adapt += ["--lam", "3", "--price-warmup", "0", "--out", root / "taps"]
    steps = [
        teach,
        adapt,
        ["prune", root / "taps", "--out", root / "pruned"],
        ["retrain", root / "pruned", *FAST],
    ]
    for args in steps:
        assert cli.main([*map(str, args), "--json"]) == 0
    return root


def result(path):
    return json.loads((path / "result.json").read_text())


def test_report_rows_have_the_fields_of_the_contract(runs, capsys):
    rows = machine(capsys, "report", runs / "taps", runs / "pruned", runs / "pruned-retrained")
    assert [r["stage"] for r in rows["rows"]] == ["adapt", "pruned", "retrained"]
    for row in rows["rows"]:
        assert set(row) >= ROW
        assert set(row["params"]) >= {"universal", "task", "head", "norms", "multiple"}
        assert set(row["macs"]) >= {"backbone", "student"}


def test_the_report_bills_what_the_file_holds(runs):
    for name in ("taps", "pruned", "pruned-retrained", "source"):
        held = load_file(runs / name / "student.safetensors")
        numbers = sum(t.numel() for t in held.values() if t.is_floating_point())
        params = result(runs / name)["params"]
        assert numbers == params["task"] + params["head"]
        assert result(runs / name)["bytes"] == (runs / name / "student.safetensors").stat().st_size


def test_pruning_made_the_student_smaller(runs):
    before, after = result(runs / "taps"), result(runs / "pruned")
    assert 0 < after["layers_adapted"] == before["layers_adapted"] < after["layers"] == 20
    on = sum(s["params"] for s in before["layer_states"] if s["on"])
    assert after["params"]["deltas"] == on < before["params"]["deltas"]
    assert after["bytes"] < before["bytes"]


def test_pruning_closed_layers_keeps_the_accuracy(runs):
    assert result(runs / "pruned")["test"] == result(runs / "taps")["test"]


def test_retraining_leaves_the_pruned_run_alone(runs, capsys):
    before = {p.name: p.read_bytes() for p in (runs / "pruned").iterdir() if p.is_file()}
    machine(capsys, "retrain", runs / "pruned", *FAST)
    assert {p.name: p.read_bytes() for p in (runs / "pruned").iterdir() if p.is_file()} == before


def test_evaluate_measures_what_the_run_measured(runs, capsys):
    found = machine(capsys, "evaluate", runs / "pruned-retrained", "--device", "cpu")
    assert set(found) == {"run", "task", "split", "metric", "value", "n"}
    assert found["value"] == result(runs / "pruned-retrained")["test"]
    assert found["n"] == 539
    held_out = machine(capsys, "evaluate", runs / "taps", "--split", "val", "--device", "cpu")
    assert held_out["value"] == result(runs / "taps")["val"]


def test_a_teachers_weights_are_the_students_universal_blocks(runs):
    weights = load_file(runs / "source" / "weights.safetensors")
    universal = open_run(runs / "taps").student.universal.model.state_dict()
    assert all(torch.equal(weights[n], t) for n, t in universal.items())


def test_merged_file_gives_the_students_outputs(runs, capsys, tmp_path):
    machine(capsys, "merge", runs / "pruned-retrained", "--out", tmp_path / "m.safetensors")
    student = open_run(runs / "pruned-retrained").student
    plain = Backbone.create("small_resnet", weights="random", px=16).model
    plain.reset_classifier(10)
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), student(images).logits)


def test_repeating_a_command_shows_the_finished_run(runs, capsys):
    args = ["teach", "--task", "digits", "--mode", "scratch", *NET, *FAST, "--out", runs / "source"]
    stamp = (runs / "source" / "student.safetensors").stat().st_mtime_ns
    assert machine(capsys, *args) == result(runs / "source")
    assert (runs / "source" / "student.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("name", ["report.html", "report.md", "report.json"])
def test_reports_of_every_format(runs, capsys, tmp_path, name):
    code, out, _ = call(capsys, "report", runs / "taps", "--out", tmp_path / name)
    assert code == 0
    assert "taps" in (tmp_path / name).read_text()
    assert str(tmp_path / name) in out


def test_progress_goes_to_standard_error(runs, capsys, tmp_path):
    code, out, err = call(
        capsys, "teach", "--task", "digits", "--mode", "probe", *NET, *FAST, "--out", tmp_path / "p"
    )
    assert code == 0
    assert "epoch 1/1" in err
    assert "epoch" not in out


@pytest.mark.parametrize("kind", ["methods", "tasks", "backbones"])
def test_lists_are_json_too(capsys, kind):
    found = machine(capsys, "list", kind)
    assert all(set(e) == {"name", "paper", "kind"} for e in found)
    expected = {"methods": "taps", "tasks": "digits", "backbones": "resnet34"}
    assert expected[kind] in [e["name"] for e in found]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_teaches_every_verb_by_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert not stop.value.code
    assert f"tailor {verb} " in capsys.readouterr().out.replace("usage: tailor", "")


def test_python_in_a_handful_of_lines(tmp_path):
    backbone = Backbone.create("small_resnet", weights="random", px=16)
    task = open_task("digits")
    student = taps.build(backbone, len(task.classes), taps.Config(lam=0.3))
    settings = Settings(epochs=1, batch=64, device="cpu", select="last")
    found = workflow.fit(student, task, out=tmp_path / "r", train=settings)
    assert found == result(tmp_path / "r")
    smaller, report = prune(student)
    assert smaller.merge()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    assert len(report.kept) + len(report.removed) == 20


def test_the_readmes_python_runs(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = readme.split("```python")[1].split("```")[0]
    offline = {
        'tailor.Backbone.from_timm("resnet34", pretrained=True)': (
            'tailor.Backbone.create("small_resnet", weights="random", px=16)'
        ),
        'tailor.open_task("flowers102", download=True)': 'tailor.open_task("digits")',
        '"runs/flowers/taps"': f'r"{tmp_path / "r"}", train=tailor.Settings(epochs=3)',
    }
    for published, here in offline.items():
        assert published in code
        code = code.replace(published, here)
    names = {}
    exec(code, names)
    assert names["network"](torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_a_student_fitted_in_python_is_a_run_for_the_shell(tmp_path, capsys):
    backbone = Backbone.create("small_resnet", weights="random", px=16)
    student = taps.build(backbone, 2, taps.Config(lam=0.3))
    settings = Settings(epochs=1, batch=8, device="cpu", select="last")
    task = open_task(folder(tmp_path / "data", {"cat": 10, "dog": 10}))
    workflow.fit(student, task, out=tmp_path / "r", train=settings)
    machine(capsys, "prune", tmp_path / "r", "--out", tmp_path / "p")
    assert result(tmp_path / "p")["stage"] == "pruned"


def folder(root, train, test=4, size=(20, 24)):
    """Class folders of random images; ``train`` maps a class to its number of images."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count in train.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count if split == "train" else test):
                pixels = random.integers(0, 255, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return f"folder:{root}"


def adapt(task, out, *more):
    """A command with --weights random, unless ``more`` says otherwise."""
    return ["adapt", "--task", task, *NET, *FAST, "--batch", "8", "--out", out, *more]


BAD = {
    "method": ("--method", "tapas", r"unknown method 'tapas': did you mean taps"),
    "backbone": ("--backbone", "resnet43", r"unknown backbone 'resnet43': did you mean resnet"),
    "task": ("--task", "digit", r"unknown task 'digit': did you mean digits"),
    "lambda": ("--lam", "-0.5", r"lam is -0.5.*--lam 0 or more"),
    "batch": ("--batch", "5000", r"batch of 5000 is larger than the training set of 1132"),
    "epochs": ("--epochs", "0", r"epochs is 0; give 1 or more"),
    "rate": ("--lr", "-1", r"lr is -1.0"),
    "weights": ("--weights", "gone.pth", r"gone.pth.*no file or run directory"),
    "device": ("--device", "cuda:77", r"device 'cuda:77' is not available.*--device cpu"),
    "px": ("--px", "0", r"px is 0"),
    "folder": ("--task", "folder:gone", r"gone.*train"),
    "share": ("--val-share", "1.5", r"validation share is 1.5"),
    "download": ("--task", "svhn", r"svhn.*--download, or fetch http.*train_32x32.mat"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_makes_no_directory(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flag, value, message = BAD[case]
    code, out, err = call(capsys, *adapt("digits", "run"), flag, value)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("tailor: ")
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == []


def one_line(capsys, *args):
    code, _, err = call(capsys, *args)
    assert code == 2
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_an_empty_class_is_named(capsys, tmp_path):
    task = folder(tmp_path / "data", {"cat": 8, "dog": 0}, test=0)
    assert "train/dog holds no image" in one_line(capsys, *adapt(task, tmp_path / "r"))


def test_a_single_class_is_refused(capsys, tmp_path):
    task = folder(tmp_path / "data", {"cat": 8})
    assert "has 1 class ['cat']" in one_line(capsys, *adapt(task, tmp_path / "r"))


def test_a_truncated_image_is_named_and_skipped_only_on_request(capsys, tmp_path):
    task = folder(tmp_path / "data", {"cat": 12, "dog": 12})
    bad = tmp_path / "data" / "train" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:200])
    line = one_line(capsys, *adapt(task, tmp_path / "r"))
    assert str(bad) in line
    assert "--skip-bad-images" in line
    code, _, err = call(capsys, *adapt(task, tmp_path / "r", "--skip-bad-images"))
    assert code == 0
    assert "left out 1 bad images" in err


def test_an_image_smaller_than_the_crop_is_named(capsys, tmp_path):
    task = folder(tmp_path / "data", {"cat": 12, "dog": 12}, size=(10, 30))
    line = one_line(capsys, *adapt(task, tmp_path / "r", "--resize", "0"))
    assert "30x10, smaller than the crop of 16 px" in line


def test_weights_of_another_architecture_are_refused(capsys, tmp_path):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    line = one_line(
        capsys, *adapt("digits", tmp_path / "r", "--weights", tmp_path / "w.safetensors")
    )
    assert "another architecture" in line


def test_a_directory_of_another_command_is_refused_and_left_alone(runs, capsys):
    before = {p: p.stat().st_mtime_ns for p in (runs / "taps").rglob("*") if p.is_file()}
    line = one_line(capsys, *adapt("digits", runs / "taps", "--lam", "7"))
    assert "belongs to another command" in line
    after = {p: p.stat().st_mtime_ns for p in (runs / "taps").rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }


def test_a_foreign_directory_is_refused_and_left_alone(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    line = one_line(capsys, *adapt("digits", tmp_path / "mine"))
    assert "thesis.txt" in line
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_changed_weights_behind_a_finished_run_are_noticed(runs, capsys, tmp_path):
    moved = tmp_path / "copy"
    moved.mkdir()
    for path in (runs / "taps").iterdir():
        if path.is_file():
            (moved / path.name).write_bytes(path.read_bytes())
    found = result(moved)
    weights = load_file(runs / "source" / "weights.safetensors")
    weights["conv1.weight"] += 1
    save_file(weights, tmp_path / "other.safetensors")
    found["config"]["net"]["weights"] = str(tmp_path / "other.safetensors")
    (moved / "result.json").write_text(json.dumps(found))
    assert "put the weights of that run back" in one_line(capsys, "evaluate", moved)


@pytest.mark.parametrize("verb", ["prune", "retrain", "evaluate", "report", "merge"])
def test_an_unfinished_run_is_named(verb, capsys, tmp_path):
    (tmp_path / "r").mkdir()
    more = ["--out", tmp_path / "o.safetensors"] if verb in ("prune", "merge") else []
    assert str(tmp_path / "r") in one_line(capsys, verb, tmp_path / "r", *more)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("adapt --task digits --out r --taks 3", r"--taks, 3; .*: --task STR;"),
        ("adapt --task digits", r"Missing from tailor adapt: --out PATH;"),
        ("prune", r"Missing from tailor prune: --run PATH, --out PATH;"),
        (
            "teach --task digits --out r --lr abc",
            r"--lr: could not convert string to float: 'abc';",
        ),
        ("teach --task digits --mode tune", r"'tune' for argument '--mode'.*'finetune'"),
    ],
)
def test_options_that_do_not_exist_are_one_line_that_leads_to_the_help(args, said, capsys):
    err = one_line(capsys, *args.split())
    assert re.search(said, err)
    assert err.rstrip().endswith(f"tailor {args.split()[0]} --help")


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_price_that_never_acts_is_told(epochs, tmp_path, capsys):
    command = adapt("digits", tmp_path / "r", "--batch", "256", "--price-warmup", "1")
    code, _, err = call(capsys, *command, "--epochs", epochs)
    assert code == 0
    assert ("the price acts after epoch 1 and training ends after epoch 1" in err) == (epochs == 1)


def test_a_verb_that_does_not_exist_is_answered_with_near_ones(capsys):
    assert "did you mean adapt" in one_line(capsys, "adopt")
