"""The lifelong demo: its lines, their options, and two tiny domains learned by two methods."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

from demos import lifelong
from demos._lifelong import PUBLISHED, VARIANTS, chosen
from tailor import catalog
from tailor.errors import BadInput
from tailor.options import Net
from tests.test_demos import domain
from tests.test_resnet_cifar import published

NET = Net(backbone="resnet20", weights="random")


def jobs(**options):
    return lifelong.jobs(lifelong.Options(data=Path("d"), weights="random", **options), NET)


def test_every_line_is_a_method_with_settings_that_it_has():
    for variant in (VARIANTS | PUBLISHED).values():
        module = catalog.load("students", variant.method, "method")
        module.Config(**variant.settings)  # raises for an unknown one


def test_every_line_is_one_sequence_of_every_seed_and_a_seed_comes_whole():
    found = jobs(methods=("features", "ewc"), seeds=(0, 1))
    assert [(j.name, j.seed, j.options.out.name) for j in found] == [
        ("features", 0, "features-s0"),
        ("ewc", 0, "ewc-s0"),
        ("features", 1, "features-s1"),
        ("ewc", 1, "ewc-s1"),
    ]
    tasks = tuple(f"npz:d/{name}" for name in lifelong.DOMAINS)
    assert {job.options.task for job in found} == {tasks}
    assert {job.options.train.seed for job in found} == {0, 1}


def test_what_prunes_trains_as_many_epochs_as_the_others():
    taps, probe = jobs(methods=("taps", "features"), seeds=(0,), epochs=8)
    assert (taps.options.train.epochs, taps.options.retrain_epochs) == (3, 5)
    assert (probe.options.train.epochs, probe.options.retrain_epochs) == (8, None)


def test_the_sample_is_the_ten_digits_in_five_pairs():
    found = lifelong.jobs(lifelong.Options(sample=True, methods=("ewc",), seeds=(0,)), NET)
    assert found[0].options.task == (
        *("classes:digits:0-1", "classes:digits:2-3", "classes:digits:4-5"),
        *("classes:digits:6-7", "classes:digits:8-9"),
    )


def test_an_option_changes_its_line_or_its_training():
    found = chosen(
        ("ewc", "side_tuning"),
        ("ewc.coef=7", "ewc.lr=0.5", "ewc.published=true", "side_tuning.fusion=sum"),
    )
    assert found["ewc"].settings == {"coef": 7.0, "published": True}
    assert found["ewc"].train == {"lr": 0.5}
    assert found["side_tuning"].settings == {"fusion": "sum"}


def test_published_forms_stand_beside_those_asked_for():
    found = chosen(("ewc", "features"), (), published=True)
    assert list(found) == ["ewc", "features", "ewc_published"]
    assert found["ewc_published"].settings == {"published": True}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "none given: give one of --data FOLDER, --sample"),
        ({"data": Path("d"), "sample": True}, "both given"),
        ({"data": Path("d")}, "no --weights given"),
        ({"sample": True, "methods": ("evc",)}, "unknown method 'evc'"),
        ({"sample": True, "option": ("ewc.cof=1",)}, "has a 'cof'"),
        ({"sample": True, "option": ("ewc.coef=x",)}, "'x' is no float"),
        ({"sample": True, "option": ("evc.coef=1",)}, "give METHOD.NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_one_line(options, said):
    with pytest.raises(BadInput) as refused:
        lifelong.jobs(lifelong.Options(**options), NET)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two domains learned by three methods: the folder, and the arguments."""
    root, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    for name, classes in (("one", 3), ("two", 2)):
        domain(root / name, classes)
    save_file(published("resnet20"), root / "resnet20.safetensors")
    args = ["--data", str(root), "--domains", "one", "two", "--out", str(out), "--px", "24"]
    args += ["--weights", str(root / "resnet20.safetensors"), "--seeds", "0", "--epochs", "1"]
    args += ["--batch", "8", "--workers", "1", "--limit", "20"]
    assert lifelong.main([*args, "--methods", "features", "finetune"]) == 0
    return out, args


def matrix(out, name):
    return json.loads((out / "runs" / name / "matrix.json").read_text())


def test_the_table_tells_what_the_matrices_hold(ran):
    table = pd.read_csv(ran[0] / "lifelong.csv", index_col="setting")
    for name, setting in (("features-s0", "probe"), ("finetune-s0", "finetune")):
        found = matrix(ran[0], name)
        assert (found["tasks"], found["finished"]) == (["one", "two"], True)
        last = found["accuracy"][1]
        assert table.loc[setting, "average"] == pytest.approx(sum(last) / 2)
        fallen = found["accuracy"][0][0] - last[0]
        assert table.loc[setting, "forgetting"] == pytest.approx(fallen)
    assert table.loc["probe", "forgetting"] == 0  # the trunk is frozen: exactly
    for suffix in (".png", ".md"):
        assert (ran[0] / f"lifelong{suffix}").stat().st_size > 500


def test_a_repetition_trains_nothing_and_another_method_only_itself(ran, capsys):
    out, args = ran
    before = {f: f.stat().st_mtime_ns for f in out.rglob("result.json")}
    assert lifelong.main([*args, "--methods", "features", "finetune", "independent"]) == 0
    after = {f: f.stat().st_mtime_ns for f in out.rglob("result.json")}
    assert after.items() >= before.items()
    new = {f.relative_to(out / "runs").parts[0] for f in after.keys() - before.keys()}
    assert new == {"independent-s0"}
    shown = capsys.readouterr().out
    assert "Rigidity" in shown  # there is an independent network now


def test_a_method_that_fails_is_told_and_the_others_stay(ran, capsys):
    args = ran[1]
    # A side network that there is not, found out in the worker only.
    args = [*args, "--methods", "features", "side_tuning", "--option", "side_tuning.side=nothing"]
    assert lifelong.main(args) == 0
    shown = capsys.readouterr().out
    assert "side_tuning seed 0: failed: side 'nothing' is no side network" in shown
    assert "probe" in shown
