"""The demos: every job in its own run, a table, pictures, and nothing done twice.

Those of NetTailor run here on drawn samples of a few images.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from demos import _nettailor, _samples, _study, digits, domains, flowers, svhn, voc12
from demos._nettailor import Options
from tailor.options import Net
from tailor.run import read_json
from tailor.task import open_task
from tailor.view import View


def domain(path, classes, train=24, test=8):
    """A small data set in the npz format: squares of one colour per class, with noise."""
    random = np.random.default_rng(0)
    path.mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        files, labels = [], np.arange(count) % classes
        for label in labels:
            pixels = random.integers(0, 60, (16, 16, 3)) + np.array(
                [60 * label, 90, 180 - 60 * label]
            )
            file = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        offsets = np.cumsum([0, *(len(f) for f in files)])
        np.savez(path / f"{split}.npz", data=np.concatenate(files), offsets=offsets, label=labels)
    facts = {"name": path.name, "task": "classify", "classes": [f"c{k}" for k in range(classes)]}
    (path / "dataset.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished study of one source, two targets, one seed and one λ."""
    root = tmp_path_factory.mktemp("data")
    for name, classes in (("things", 3), ("red", 2), ("blue", 3)):
        domain(root / name, classes)
    out = tmp_path_factory.mktemp("out")
    args = ["--root", str(root), "--out", str(out), "--source", "things", "--px", "16"]
    args += ["--targets", "red", "blue", "--seeds", "1", "--lams", "1.0", "--epochs", "4"]
    args += ["--source-epochs", "1", "--workers", "2", "--source-batch", "8", "--batch", "8"]
    assert domains.main(args) == 0
    return out, args


def test_every_job_has_a_finished_run(ran):
    out, _ = ran
    for task in ("red", "blue"):
        found = {p.name for p in (out / task).iterdir() if (p / "result.json").exists()}
        student = [f"taps-1-s0{stage}" for stage in ("", "-pruned", "-pruned-retrained")]
        assert found == {"finetune-s0", "probe-s0", *student}


def test_pictures_and_report_are_left(ran):
    out, _ = ran
    assert "<html" in (out / "report.html").read_text()
    for name in ("layers.png", "accuracy.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300


def test_a_second_run_trains_nothing(ran, capfd):
    out, args = ran
    before = {p: p.stat().st_mtime_ns for p in out.rglob("student.safetensors")}
    assert domains.main(args) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("student.safetensors")} == before
    assert "Seeds" in capfd.readouterr().out


def test_every_method_gets_the_same_number_of_epochs():
    study = digits.study(digits.Options())
    assert {job.epochs for job in _study.jobs(study)} == {study.reference.epochs}
    assert len(_study.jobs(study)) == 3 * (3 + len(study.lams))


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert domains.main(["--root", str(tmp_path / "gone"), "--out", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "gone" in err


# NetTailor.

TINY = {
    "svhn": (svhn, lambda root: _samples.svhn(root, train=80, test=20), []),
    "flowers": (flowers, lambda root: _samples.flowers(root, train=1, val=1, test=1), []),
    "voc12-objects": (voc12, lambda root: _samples.voc12(root, train=80, test=20), []),
    "voc12-images": (
        voc12,
        lambda root: _samples.voc12(root, train=80, test=20),
        ["--form", "images"],
    ),
}
STEPS = ("teacher", "student", "pruned", "retrained")


@pytest.fixture(scope="module", params=TINY)
def tailored(request, tmp_path_factory):
    """A finished demo on a tiny sample: its module, its arguments and its folder."""
    demo, draw, more = TINY[request.param]
    out = tmp_path_factory.mktemp(request.param)
    draw(out / "sample")
    args = ["--sample", "--out", str(out), "--backbone", "small_resnet", "--weights", "random"]
    args += ["--px", "16", "--epochs", "1", "--workers", "1", "--device", "cpu", *more]
    assert demo.main(args) == 0
    return demo, args, out


def test_every_step_of_the_pipeline_has_a_run(tailored):
    _, _, out = tailored
    stages = [read_json(out / step / "result.json")["stage"] for step in STEPS]
    assert stages == ["teacher", "adapt", "pruned", "retrained"]


def test_the_published_share_of_blocks_is_removed(tailored):
    demo, _, out = tailored
    # Of small_resnet's 8 blocks, rounded down: 11/16 are 5, 7/16 are 3, 3/16 are 1.
    count = {svhn: 5, flowers: 3, voc12: 1}[demo]
    result = read_json(out / "pruned" / "result.json")
    assert result["pruned_by"] == f"{count} smallest gates removed"


def test_what_is_pruned_stays_away(tailored):
    _, _, out = tailored
    pruned, retrained = (read_json(out / step / "result.json") for step in STEPS[2:])
    assert retrained["kept"] == pruned["kept"]


def test_the_table_tells_every_step(tailored, capfd):
    demo, args, out = tailored
    before = {p: p.stat().st_mtime_ns for p in out.rglob("student.safetensors")}
    assert demo.main(args) == 0
    said = capfd.readouterr().out
    assert all(step in said for step in STEPS)
    assert "mAP" in said if "images" in args else "top-1" in said
    assert "-sample" in said
    # and it trained nothing again
    assert {p: p.stat().st_mtime_ns for p in out.rglob("student.safetensors")} == before


def test_report_and_picture_are_left(tailored):
    _, _, out = tailored
    assert "<html" in (out / "report.html").read_text()
    with Image.open(out / "gates.gif") as picture:
        assert picture.width > 300


@pytest.mark.parametrize("demo", [svhn, flowers, voc12])
def test_without_data_a_demo_says_what_to_fetch_and_that_samples_exist(demo, tmp_path, capsys):
    args = ["--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert demo.main(args) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in ("--download", "fetch ", "http", str(tmp_path), "--sample"))
    assert not (tmp_path / "out").exists()


def test_quick_starts_from_a_network_taught_on_drawn_characters(tmp_path, monkeypatch):
    taught = []
    monkeypatch.setattr(_nettailor.workflow, "teach", lambda options, **_: taught.append(options))
    net = _nettailor._taught(svhn.recipe(Options(quick=True)), tmp_path, {})
    assert net == Net(backbone="small_resnet", weights=str(tmp_path / "source"))
    assert (taught[0].out, taught[0].data.task) == (tmp_path / "source", "characters")


@pytest.mark.parametrize(
    ("demo", "students", "retrainings", "step", "remove", "threshold"),
    [(svhn, 20, 20, 8, 11, 0.075), (flowers, 50, 60, 20, 7, 0.04), (voc12, 50, 60, 20, 3, 0.1)],
)
def test_the_defaults_are_the_published_ones(demo, students, retrainings, step, remove, threshold):
    options = demo.Options()
    recipe = _nettailor.adjusted(demo.recipe(options), options)
    trainings = (recipe.teacher, recipe.student, recipe.retrain)
    assert [t.epochs for t in trainings] == [students, students, retrainings]
    assert [(t.batch, t.lr) for t in trainings] == [(64, 0.01), (32, 0.1), (32, 0.01)]
    for t in trainings:
        assert (t.schedule, t.step_epochs, t.step_factor) == ("step", step, 0.1)
        assert (t.momentum, t.weight_decay, t.warmup_epochs) == (0.9, 5e-4, 0)
        assert (t.optimizer, t.nesterov, t.select) == ("sgd", False, "last")
    assert (recipe.remove, recipe.proxy_threshold) == (remove, threshold)
    assert (recipe.config.lam, recipe.config.distill, recipe.config.max_skip) == (0.3, 10, 3)
    assert recipe.net == Net(backbone="resnet34", weights="pretrained")
    assert (recipe.data.px, recipe.data.limit) == (224, None)


def test_published_crops_are_stored_at_256_pixels():
    # A random window or a random resized crop of 224 from 256; VOC is scaled to 224 at once.
    for demo, side in ((svhn, 256), (flowers, 256), (voc12, 224)):
        data = demo.recipe(demo.Options()).data
        view = View(px=data.px, crop=data.crop, squash=data.squash, resize=data.resize)
        assert view.side == side


def test_other_epochs_keep_the_shape_of_the_published_schedule():
    # 8 of 20 epochs until the rate falls first; of 5, 2.
    options = Options(epochs=5)
    found = _nettailor.adjusted(svhn.recipe(options), options).student
    assert (found.epochs, found.step_epochs, found.lr) == (5, 2, 0.1)


def test_what_is_asked_for_replaces_the_recipe():
    options = Options(quick=True, backbone="resnet18", px=64, limit=99, lam=2, distill=3, seed=4)
    found = _nettailor.adjusted(flowers.recipe(options), options)
    assert found.net == Net(backbone="resnet18", weights="pretrained")
    assert (found.data.px, found.data.limit) == (64, 99)
    assert (found.config.lam, found.config.distill) == (2, 3)
    assert {t.seed for t in (found.teacher, found.student, found.retrain)} == {4}


# Samples.


def test_samples_are_drawn_the_same_each_time(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        _samples.svhn(root / "svhn", train=20, test=10)
        _samples.voc12(root / "voc12", train=3, test=2)
    files = [p for p in (one / "voc12").rglob("*") if p.is_file()]
    assert len(files) == 5 * 2 + 2 + 1  # images, annotations, lists, mark
    for file in files:
        assert (other / file.relative_to(one)).read_bytes() == file.read_bytes()
    # A .mat file holds the time that it was written at.
    tests = [open_task("svhn", root / "svhn").splits["test"] for root in (one, other)]
    assert all(tests[0].read(i).tobytes() == tests[1].read(i).tobytes() for i in range(10))


def test_a_sample_of_flowers_has_all_classes_in_every_split(tmp_path):
    _samples.flowers(tmp_path, train=2, val=1, test=1)
    splits = open_task("flowers102", tmp_path).splits
    for name, count in (("train", 2), ("val", 1), ("test", 1)):
        assert splits[name].labels.bincount().tolist() == [count] * 102


def test_a_box_of_a_drawn_scene_holds_its_object_and_nothing_else():
    image, (thing, *_) = _samples.scene(2, np.random.default_rng(1))  # a solid square first
    left, top, right, bottom = thing.box
    inside = np.asarray(image.crop((left - 1, top - 1, right, bottom)).convert("L"), np.float32)
    around = np.asarray(
        image.crop((left - 6, top - 6, right + 5, bottom + 5)).convert("L"), np.float32
    )
    rim = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
    assert abs(np.median(inside) - np.median(rim)) > 40


def test_some_drawn_objects_are_difficult_but_not_the_first():
    scenes = [_samples.scene(i, np.random.default_rng(i))[1] for i in range(60)]
    assert not any(objects[0].difficult for objects in scenes)
    assert 5 < sum(thing.difficult for objects in scenes for thing in objects) < 40
