"""Predictions for the Visual Decathlon, from runs to points, through the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from demos import _decathlon_sample
from tailor import cli
from tailor.decathlon import DOMAINS, points, score
from tailor.decathlon_table import PUBLISHED
from tests.command import call, machine

NAMES = ("aircraft", "svhn", "vgg-flowers")
UNIT = 10**7
FIELDS = {"total", "domains", "missing", "best", "rank", "published", "sample"}


def refused(capsys, *args):
    """The one line that a command ends with."""
    code, out, err = call(capsys, *args)
    assert code == 2
    assert out == ""
    (line,) = err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three drawn domains and a trained network for two of them."""
    root = tmp_path_factory.mktemp("decathlon")
    _decathlon_sample.draw(root / "data", NAMES, classes=3, train=8, val=1, test=20)
    net = ["--backbone", "small_resnet", "--weights", "random", "--px", "16", "--device", "cpu"]
    fast = ["--epochs", "2", "--batch", "8", "--lr", "0.05"]
    for name in ("aircraft", "vgg-flowers"):
        task = ["--task", f"decathlon:{name}", "--root", root / "data", "--mode", "scratch"]
        args = ["teach", *task, *net, *fast, "--out", root / name, "--json"]
        assert cli.main([str(a) for a in args]) == 0
    both = [root / "vgg-flowers", root / "aircraft", "--out", root / "results.json"]
    assert cli.main([str(a) for a in ["submit", *both, "--json"]]) == 0
    return root


@pytest.fixture
def results(place):
    return json.loads((place / "results.json").read_text())


def given(path, value):
    path.write_text(json.dumps(value))
    return path


def test_a_submission_scores_what_evaluate_measures(place, capsys):
    args = ["score", "decathlon", place / "results.json", "--annotations", place / "data"]
    found = machine(capsys, *args)
    assert set(found["domains"]) == {"aircraft", "vgg-flowers"}
    for name, domain in found["domains"].items():
        measured = machine(capsys, "evaluate", place / name, "--device", "cpu")
        assert domain["accuracy"] == 100 * measured["value"]
        assert 0 < domain["accuracy"] < 100
        assert domain["score"] == points(100 * measured["value"], DOMAINS[name].baseline)
    assert found["total"] == sum(d["score"] for d in found["domains"].values())
    assert len(found["missing"]) == 8
    assert found["sample"] is True


def test_a_submission_is_sorted_and_complete(results):
    images = [entry["image_id"] for entry in results]
    # 24 training and 3 validation images come before the 60 test images.
    first = [d * UNIT + 200_027 for d in (1, 10)]
    assert images == [i for start in first for i in range(start, start + 60)]
    for entry in results:
        assert set(entry) == {"image_id", "category_id"}
        assert entry["category_id"] - entry["image_id"] // UNIT * UNIT in (1, 2, 3)


def test_submit_says_what_it_wrote(place, capsys, tmp_path):
    out = tmp_path / "one.json"
    found = machine(capsys, "submit", place / "vgg-flowers", "--out", out)
    assert found["domains"] == {"vgg-flowers": 60}
    assert found["predictions"] == 60
    assert found["missing"] == [name for name in DOMAINS if name != "vgg-flowers"]
    assert found["out"] == str(out)


def test_test_images_without_labels_get_the_same_predictions(place, capsys, tmp_path, results):
    root = shutil.copytree(place / "data", tmp_path / "data")
    for path in (root / "annotations").glob("*_test.json"):
        path.unlink()
    blind = root / "annotations/aircraft_test_stripped.json"
    told = json.loads(blind.read_text())
    given(blind, told | {"images": told["images"][::-1]})  # any order in, sorted out
    out = tmp_path / "blind.json"
    runs = [place / "aircraft", place / "vgg-flowers"]
    machine(capsys, "submit", *runs, "--root", root, "--out", out)
    assert json.loads(out.read_text()) == results
    line = refused(capsys, "evaluate", place / "aircraft", "--root", root)
    assert "aircraft-sample has no test split" in line
    line = refused(capsys, "score", "decathlon", out, "--annotations", root)
    assert "no test labels of aircraft (aircraft_test.json); aircraft_test_stripped.json" in line


def test_labels_may_lie_in_the_folder_itself(place, capsys):
    beside = ["score", "decathlon", place / "results.json", "--annotations"]
    above = machine(capsys, *beside, place / "data")
    assert machine(capsys, *beside, place / "data" / "annotations") == above


def test_order_of_predictions_does_not_matter(place, capsys, tmp_path, results):
    out = given(tmp_path / "r.json", results[::-1])
    args = ("--annotations", place / "data")
    there = machine(capsys, "score", "decathlon", place / "results.json", *args)
    assert machine(capsys, "score", "decathlon", out, *args) == there


def test_right_predictions_earn_every_point(place, capsys, tmp_path):
    marks = []
    for name in NAMES:
        told = json.loads((place / f"data/annotations/{name}_test.json").read_text())
        marks += [{k: a[k] for k in ("image_id", "category_id")} for a in told["annotations"]]
    marks.reverse()  # predictions belong to images by their ids
    out = given(tmp_path / "r.json", marks)
    found = machine(capsys, "score", "decathlon", out, "--annotations", place / "data")
    assert found["total"] == pytest.approx(3000)
    marks[-1]["category_id"] = UNIT + 3  # the first image, of class 1, wrong: 59 of 60
    given(out, marks)
    found = machine(capsys, "score", "decathlon", out, "--annotations", place / "data")
    assert found["domains"]["aircraft"]["accuracy"] == pytest.approx(100 * 59 / 60)
    assert found["domains"]["aircraft"]["score"] == pytest.approx(
        1000 * (1 - (100 / 60) / 79.32) ** 2
    )


def test_accuracies_are_scored_as_in_python(capsys, tmp_path):
    row = next(r for r in PUBLISHED if r.method == "parallel adapters")
    found = machine(
        capsys, "score", "decathlon", "--accuracies", given(tmp_path / "a.json", row.accuracy)
    )
    assert set(found) == FIELDS
    assert found["total"] == pytest.approx(3412.298, abs=0.01)
    assert found["missing"] == []
    assert found["rank"] == 4
    assert found["domains"]["gtsrb"]["share"] == score(row.accuracy).domains["gtsrb"].share


def test_people_see_points_loss_and_place(capsys, tmp_path):
    row = next(r for r in PUBLISHED if r.method == "parallel adapters")
    some = {name: value for name, value in row.accuracy.items() if name != "dtd"}
    code, out, _ = call(
        capsys, "score", "decathlon", "--accuracies", given(tmp_path / "a.json", some)
    )
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.split()[:1] == ["gtsrb"]]
    assert line.split()[1:4] == ["99.38", "97.53", "764.74"]
    assert "score 3123.82 of 9000 over 9 domains" in out  # 3412.30 less dtd's 288.48
    assert "missing: dtd" in out
    assert "place 4 among 20 published results" in out
    assert "behind URL (" in out


def test_a_baseline_of_ones_own(capsys, tmp_path):
    mine = given(tmp_path / "a.json", {"cups": 90.0})
    tuned = given(tmp_path / "b.json", {"cups": 80.0, "jugs": 50.0})
    args = ["score", "decathlon", "--accuracies", mine, "--baseline", tuned]
    found = machine(capsys, *args)
    assert found["total"] == pytest.approx(562.5)  # 1000 * (0.3 / 0.4)^2
    assert found["missing"] == ["jugs"]
    assert found["best"] is found["rank"] is None
    code, out, _ = call(capsys, *args)
    assert code == 0
    assert "score 562.50 of 1000 over 1 domains" in out
    assert "published" not in out


def test_shares_instead_of_percent_are_pointed_out(capsys, tmp_path):
    mine = given(tmp_path / "a.json", {"dtd": 0.58, "svhn": 0.96})
    assert "percent, not shares" in call(capsys, "score", "decathlon", "--accuracies", mine)[1]


WRONG = {
    "an image of no domain": (
        lambda r: r.append({"image_id": 5, "category_id": UNIT + 1}),
        "predicts image 5, whose id belongs to no domain",
    ),
    "an image beyond the domains": (
        lambda r: r.append({"image_id": 11 * UNIT, "category_id": UNIT + 1}),
        "predicts image 110000000, whose id belongs to no domain",
    ),
    "an unknown image": (
        lambda r: r.append({"image_id": UNIT + 200_000, "category_id": UNIT + 1}),
        "predicts image 10200000 of aircraft, which",
    ),
    "missing images": (
        lambda r: (r.pop(0), r.pop(0)),
        "predicts 58 of 60 test images of aircraft, not 10200027 and 1 more",
    ),
    "one image twice": (
        lambda r: r.append(dict(r[0])),
        "predicts image 10200027 2 times",
    ),
    "a category of another domain": (
        lambda r: r[0].update(category_id=10 * UNIT + 1),
        "the category 100000001, none of aircraft, whose categories are 10000001 to 10000003",
    ),
    "a label from 0": (
        lambda r: r[0].update(category_id=0),
        "gives image 10200027 the category 0, none of aircraft",
    ),
    "a category in words": (
        lambda r: r[3].update(category_id="A380"),
        "entry 3 has category_id 'A380', not a whole number",
    ),
    "a missing id": (lambda r: r[3].pop("image_id"), "entry 3 has image_id None"),
    "an entry that is none": (lambda r: r.insert(1, [1, 2]), "entry 1 has image_id None"),
    "a domain without labels": (
        lambda r: r.append({"image_id": 4 * UNIT + 1, "category_id": 4 * UNIT + 1}),
        "sample.json has no numbers of dtd",
    ),
    "nothing": (lambda r: r.clear(), "holds no prediction"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_predictions_are_told_in_one_line(place, capsys, tmp_path, results, case):
    change, message = WRONG[case]
    change(results)
    out = given(tmp_path / "r.json", results)
    line = refused(capsys, "score", "decathlon", out, "--annotations", place / "data")
    assert str(tmp_path) in line or "dtd" in line
    assert message in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give predictions and their labels"),
        (["decathlon"], "give predictions and their labels"),
        (["decathlon", "r.json"], "give PREDICTIONS and --annotations DIR together"),
        (["decathlon", "--annotations", "d"], "give predictions and their labels"),
        (["decathlon", "r.json", "--annotations", "d", "--accuracies", "a"], "one of them"),
        (["decathlon", "--accuracies", "none.json"], "none.json cannot be read (No such file"),
        (["decathlon", "--accuracies", "list.json"], "holds no map from domains to percent"),
        (["decathlon", "--accuracies", "twice.json"], "names 'dtd' twice"),
        (["decathlon", "--accuracies", "cut.json"], "cut.json is not JSON"),
        (["decathlon", "--accuracies", "text.json"], "accuracy of dtd is 'good'"),
        (["decathlon", "map.json", "--annotations", "."], "map.json holds no list"),
        (["decathlon", "--accuracies", "map.json", "--baseline", "list.json"], "list.json holds"),
        (["vtab"], "unknown benchmark 'vtab'"),
    ],
)
def test_score_says_what_it_needs(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    given(tmp_path / "list.json", [1])
    given(tmp_path / "map.json", {"dtd": 50.0})
    given(tmp_path / "text.json", {"dtd": "good"})
    (tmp_path / "twice.json").write_text('{"dtd": 50, "dtd": 60}')
    (tmp_path / "cut.json").write_text('{"dtd": 50')
    assert message in refused(capsys, "score", *args)


@pytest.fixture
def before(tmp_path):
    out = tmp_path / "out.json"
    out.write_text("what the user had")
    return out


def test_two_runs_of_one_domain(place, capsys, before):
    twice = [place / "aircraft", place / "aircraft"]
    line = refused(capsys, "submit", *twice, "--out", before)
    assert "are both runs of aircraft" in line
    assert before.read_text() == "what the user had"


def test_a_run_of_another_task(capsys, tmp_path, before):
    args = ["--backbone", "small_resnet", "--weights", "random", "--px", "16", "--epochs", "1"]
    run = tmp_path / "digits"
    assert call(capsys, "teach", "--task", "digits", "--mode", "probe", *args, "--out", run)[0] == 0
    line = refused(capsys, "submit", run, "--out", before)
    assert "is a run of task 'digits'; the challenge takes runs of decathlon:NAME" in line
    assert before.read_text() == "what the user had"


def test_no_run_and_no_file(place, capsys, tmp_path):
    assert "no run given" in refused(capsys, "submit")
    assert "does not exist" in refused(capsys, "submit", tmp_path / "nowhere")
    assert "names no .json file" in refused(
        capsys, "submit", place / "aircraft", "--out", tmp_path / "results.txt"
    )


def test_an_unreadable_image_is_named_and_nothing_written(place, capsys, tmp_path, before):
    root = shutil.copytree(place / "data", tmp_path / "data")
    (root / "data/aircraft/test/000007.jpg").write_bytes(b"no image")
    line = refused(capsys, "submit", place / "aircraft", "--root", root, "--out", before)
    assert "000007.jpg cannot be read as an image" in line
    assert before.read_text() == "what the user had"


def test_data_of_other_classes(place, capsys, tmp_path, before):
    _decathlon_sample.draw(tmp_path / "other", ("aircraft",), classes=4, train=1, val=1, test=1)
    args = ["--root", tmp_path / "other", "--out", before]
    line = refused(capsys, "submit", place / "aircraft", *args)
    assert "knows 3 classes, 'aircraft 1' to 'aircraft 3', other ones than aircraft-sample" in line
