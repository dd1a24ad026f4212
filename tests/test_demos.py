"""The demos: every job in its own run, a table, pictures, and nothing done twice."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from demos import _study, digits, domains


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
