"""`tailor import`: a published checkpoint becomes a run that every verb understands."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tailor import cli
from tailor.backbone import Backbone
from tailor.opened import open_run
from tests.command import call, machine
from tests.references import nettailor_published as published

TASK = ["--task", "digits", "--limit", "60", "--px", "32"]


def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Universal weights, and an unpruned and a pruned checkpoint of ten classes."""
    root = tmp_path_factory.mktemp("published")
    network = Backbone.create("resnet18", weights="random", px=32).model.state_dict()
    save_file(network, root / "universal.safetensors")
    flags = published.all_kept("resnet18")
    for block, path in ((1, 0), (4, 0), (4, 2), (6, 3)):
        flags[block][path] = False
    contents = {
        "whole": published.checkpoint("resnet18", network, classes=10),
        "pruned": published.checkpoint("resnet18", network, classes=10, flags=flags),
    }
    for name, content in contents.items():
        torch.save(content, root / f"{name}.pth.tar")
    expected = {
        name: published.logits("resnet18", network, content, images())
        for name, content in contents.items()
    }
    return root, expected


def import_args(root, name, out=None):
    weights = ["--backbone", "resnet18", "--weights", root / "universal.safetensors"]
    checkpoint = [root / f"{name}.pth.tar", "--format", "nettailor"]
    return ["import", *checkpoint, *TASK, *weights, "--out", out or root / name]


@pytest.fixture(scope="module")
def runs(files):
    root, expected = files
    for name in expected:
        assert cli.main([*map(str, import_args(root, name)), "--json"]) == 0
    return root


@pytest.mark.parametrize("name", ["whole", "pruned"])
def test_an_imported_run_answers_as_published(runs, files, name):
    with torch.no_grad():
        found = open_run(runs / name).student(images()).logits
    # Rounding of sums of up to 512 products, in another order.
    torch.testing.assert_close(found, files[1][name], rtol=1e-4, atol=1e-5)


def test_an_imported_run_says_what_it_is(runs):
    whole, pruned = (
        json.loads((runs / n / "result.json").read_text()) for n in ("whole", "pruned")
    )
    assert (whole["stage"], whole["kept"]) == ("adapt", None)
    assert (pruned["stage"], len(pruned["kept"])) == ("pruned", 29 - 4)
    assert [b["name"] for b in pruned["blocks"] if not b["kept"]] == ["layer1.1", "layer3.0"]
    assert whole["published"] == {"epoch": 20.0, "acc": 0.5, "xent": 1.25}


def test_an_imported_run_bills_what_the_checkpoint_holds(runs):
    params = json.loads((runs / "whole" / "result.json").read_text())["params"]
    # Means and variances of 20 universal norms, and of proxies: 3 of 64 channels, 6 of each other.
    statistics = 2 * 4_800 + 2 * (3 * 64 + 6 * 128 + 6 * 256 + 6 * 512)
    found = [params[kind] for kind in ("adapters", "scores", "norms", "head")]
    assert found == [1_145_728, 29, statistics, 5_130]


def test_an_imported_run_measures_again(runs, capsys):
    found = machine(capsys, "evaluate", runs / "pruned")
    assert found["value"] == json.loads((runs / "pruned" / "result.json").read_text())["test"]
    assert found["n"] == 539


def test_an_imported_run_prunes(runs, capsys):
    result = machine(capsys, "prune", runs / "whole", "--count", 3, "--out", runs / "smaller")
    assert result["stage"] == "pruned"
    assert sum(block["kept"] for block in result["blocks"]) == 5


def test_an_imported_pruned_run_retrains(runs, capsys):
    args = ["--distill", 0, "--epochs", 1, "--device", "cpu"]
    result = machine(capsys, "retrain", runs / "pruned", *args)
    assert result["stage"] == "retrained"
    assert result["kept"] == json.loads((runs / "pruned" / "result.json").read_text())["kept"]


def test_imported_runs_are_rows_of_a_report(runs, capsys):
    rows = machine(capsys, "report", runs / "whole", runs / "pruned")["rows"]
    assert [(r["method"], r["stage"]) for r in rows] == [
        ("nettailor", "adapt"),
        ("nettailor", "pruned"),
    ]


def test_repeating_an_import_shows_its_run(runs, capsys):
    before = (runs / "whole" / "result.json").stat().st_mtime_ns
    assert machine(capsys, *import_args(runs, "whole"))["stage"] == "adapt"
    assert (runs / "whole" / "result.json").stat().st_mtime_ns == before


def test_a_directory_of_another_checkpoint_is_refused(runs, capsys):
    code, _, err = call(capsys, *import_args(runs, "pruned", out=runs / "whole"))
    assert code == 2
    assert err.count("\n") == 1
    assert "checkpoint" in err


def test_accuracy_then_and_now_is_told(files, tmp_path, capsys):
    code, _, err = call(capsys, *import_args(files[0], "whole", out=tmp_path / "told"))
    assert code == 0
    test = json.loads((tmp_path / "told" / "result.json").read_text())["test"]
    assert f"the program noted acc 0.5; here it is {100 * test:.2f} %" in err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (["--weights", "pretrained"], "torchvision's of ImageNet, and those of 'resnet18'"),
        (["--backbone", "small_resnet", "--weights", "random"], "for 'small_resnet'; give the --b"),
        (["--backbone", "resnet34", "--weights", "random"], "8 blocks and 'resnet34' has 16"),
    ],
)
def test_an_import_that_cannot_be_says_why_and_leaves_nothing(files, tmp_path, capsys, change, why):
    args = import_args(files[0], "whole", out=tmp_path / "out")
    code, _, err = call(capsys, *args, *change)
    assert code == 2
    assert err.count("\n") == 1
    assert why in err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_must_be_named(capsys, tmp_path):
    code, _, err = call(capsys, "import", tmp_path / "no.pth", *TASK, "--out", tmp_path / "out")
    assert code == 2
    assert "no.pth' is no file" in err
