"""The vision transfer demo on a handful of small images."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from demos import vision_transfer
from tailor.backbone import Backbone
from tailor.datasets import _scenes
from tailor.opened import open_run
from tailor.run import read_json
from tailor.task import open_task

COUNTS = {"train": 6, "val": 2, "test": 3}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory):
    """A finished demo of every method with 2 and with 4 images, one seed."""
    out = tmp_path_factory.mktemp("transfer")
    args = ["--out", str(out), "--images", "2", "4", "--seeds", "1", "--px", "32", "--batch", "2"]
    args += ["--steps", "10", "--source-steps", "10", "--workers", "1"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scenes, "COUNTS", COUNTS)
        assert vision_transfer.main(args) == 0
        yield out, args
    torch.set_num_threads(threads)


def test_every_method_has_a_finished_run_for_every_number_of_images(ran):
    out, _ = ran
    wanted = {
        f"{base}-{method}-{images}-s0"
        for base, method in [
            ("nothing", "scratch"),
            *(("curvature", m) for m in ("finetune", "probe", "side_tuning")),
        ]
        for images in (2, 4)
    }
    assert {p.parent.name for p in out.glob("*/result.json")} == wanted | {"base-curvature"}


def test_only_so_many_images_are_trained_on(ran):
    out, _ = ran
    for n in (2, 4):
        config = read_json(out / f"curvature-probe-{n}-s0" / "result.json")["config"]
        assert config["data"]["limit"] == n
        task = open_task("scenes:normal@32", limit=n)
        assert {s: len(part) for s, part in task.splits.items()} == COUNTS | {"train": n}


def test_the_error_is_that_of_every_value_of_every_test_pixel(ran):
    out, _ = ran
    name = "curvature-side_tuning-4-s0"
    student = open_run(out / name).student.eval()
    task = open_task("scenes:normal@32")
    squares = []
    for i in range(COUNTS["test"]):
        pixels = np.asarray(task.splits["test"].read(i), np.float32) / 255
        image = (pixels - np.array(task.mean)) / np.array(task.std)
        with torch.no_grad():
            found = student(torch.from_numpy(image.transpose(2, 0, 1)[None]).float()).logits[0]
        wanted = task.splits["test"].read_map(i, (32, 32))
        squares.append((found.numpy() - wanted) ** 2)
    assert read_json(out / f"{name}.json")["mse"] == pytest.approx(np.mean(squares), rel=1e-4)


def test_frozen_features_keep_the_base_and_fine_tuning_moves_it(ran):
    out, _ = ran
    base = Backbone.create("small_resnet", weights=out / "base-curvature", px=32)
    probe = open_run(out / "curvature-probe-4-s0").student
    assert probe.universal.fingerprint() == base.fingerprint()
    tuned = Backbone.create("small_resnet", weights=out / "curvature-finetune-4-s0", px=32)
    assert tuned.fingerprint() != base.fingerprint()


def test_the_base_is_what_its_teacher_left_without_the_head(ran):
    out, _ = ran
    taught = load_file(out / "base-curvature" / "weights.safetensors")
    base = Backbone.create("small_resnet", weights=out / "base-curvature", px=32).model.state_dict()
    assert set(taught) == set(base)
    assert all(torch.equal(base[n], t) for n, t in taught.items())


def test_a_second_run_trains_nothing(ran, capsys):
    out, args = ran
    before = {p: p.stat().st_mtime_ns for p in out.rglob("student.safetensors")}
    assert vision_transfer.main(args) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("student.safetensors")} == before
    assert capsys.readouterr().out == (out / "table.md").read_text()


def test_the_table_has_mean_and_deviation_over_seeds():
    facts = {"source": "curvature", "method": "probe", "images": 100}
    records = [
        {**facts, "seed": s, "mse": m, "r2": r} for s, m, r in [(0, 0.2, 0.5), (1, 0.4, 0.1)]
    ]
    last = vision_transfer.table(records).splitlines()[-1]
    spread = statistics.stdev([0.2, 0.4])
    assert last == f"| curvature | probe | 0.3000 ± {spread:.4f} | 0.300 ± 0.283 |"


def test_an_unknown_target_is_one_line(tmp_path, capsys):
    args = ["--out", str(tmp_path), "--target", "smell", "--workers", "1", "--seeds", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scenes, "COUNTS", COUNTS)
        args += ["--sources", "--source-steps", "10"]
        assert vision_transfer.main(args) == 2
    assert capsys.readouterr().err.count("\n") == 1
