"""The benchmark: its fields, its arithmetic, and workers that fail."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time

import pytest
import torch

from students import nettailor, probe, taps
from tailor import bench
from tailor.backbone import Backbone
from tailor.errors import BadInput

TINY = bench.Config(backbone="resnet10t", px=32, batch=2, rounds=2, steps=1)
SIDE = {"plain", "method", "ratio", "spread"}


TOLD: list[tuple[int, int, str]] = []


@pytest.fixture(scope="module")
def report():
    TOLD.clear()
    return bench.run(TINY, lambda *told: TOLD.append(told))


def test_report_has_the_fields_of_the_contract(report):
    contract = {"method", "backbone", "px", "batch", "threads", "train", "infer"}
    assert contract <= report.keys()
    assert report["train"].keys() >= SIDE | {"peak_mb_plain", "peak_mb"}
    assert report["infer"].keys() >= SIDE
    assert (report["method"], report["backbone"], report["px"], report["batch"]) == (
        "taps",
        "resnet10t",
        32,
        2,
    )


def test_report_survives_json(report):
    assert json.loads(json.dumps(report)) == report


def test_every_number_is_positive_and_finite(report):
    for part in ("train", "infer", "infer_batch1"):
        for clock in (report[part], report[part]["wall"]):
            assert all(math.isfinite(clock[k]) and clock[k] > 0 for k in SIDE - {"spread"})


def test_one_thread_on_the_cpu_is_timed_by_cpu_seconds(report):
    assert report["clock"] == "cpu"
    assert bench._clock(bench.Config(threads=2)) == "wall"


def test_show_prints_every_part(report, capsys):
    bench.show(report)
    printed = capsys.readouterr().out
    assert "resnet10t" in printed
    assert [w for w in ("train", "infer", "32 px", "cpu clock") if w not in printed] == []


def test_ratio_is_the_median_of_same_round_ratios():
    # Rounds: 2/1, 3/2, 8/2 of the plain side's seconds: the machine slowed down, ratios 2, 1.5, 4.
    seconds = {
        "plain": [{"cpu": s, "wall": 1.0} for s in (2.0, 3.0, 8.0)],
        "method": [{"cpu": s, "wall": 1.0} for s in (1.0, 2.0, 2.0)],
    }
    found = bench._compare(seconds, images=12, clock="cpu")
    # 12 images in the median of 3 s and of 2 s; quartiles of the ratios are 1.75 and 3.
    assert {k: found[k] for k in SIDE} == {
        "plain": 4.0,
        "method": 6.0,
        "ratio": 2.0,
        "spread": 1.25,
    }
    assert found["wall"]["ratio"] == 1.0


def test_progress_counts_every_turn_of_both_sides(report):
    assert [done for done, _, _ in TOLD] == list(range(13))  # 3 parts, 2 rounds, 2 sides; the end
    assert {turns for _, turns, _ in TOLD} == {12}


def test_rounds_alternate_who_is_first(report):
    order = [what for _, _, what in TOLD[:4]]
    assert order == ["train plain", "train method", "train method", "train plain"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "tapz"}, "unknown method 'tapz': did you mean taps"),
        ({"threads": 0}, "threads is 0; give --threads 1 or more"),
        ({"batch": -1}, "batch is -1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"device": "tpu"}, "device 'tpu' is not here; give --device cpu"),
    ],
)
def test_bad_input_is_refused_before_a_worker_starts(change, says, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(BadInput, match=says):
        bench.run(bench.Config(**change))


def test_an_unknown_backbone_is_the_users_mistake():
    config = dataclasses.asdict(bench.Config(backbone="resnet43"))
    worker = subprocess.run(
        [sys.executable, "-m", "tailor.bench", "--worker", "plain"],
        input=json.dumps(config) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "unknown backbone 'resnet43'" in json.loads(worker.stdout)["bad_input"]


def worker_that_runs(code: str, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """Let every worker be this Python program instead; returns them as they start."""
    start, started = subprocess.Popen, []

    def instead(command, **options):
        started.append(start([sys.executable, "-c", code], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", instead)
    return started


def test_bad_input_of_a_worker_is_bad_input_of_the_benchmark(monkeypatch):
    worker_that_runs("""print('{"bad_input": "no such thing"}')""", monkeypatch)
    with pytest.raises(BadInput, match="no such thing"):
        bench.run(TINY)


def test_a_worker_that_dies_is_one_error_with_its_last_words(monkeypatch):
    worker_that_runs("import sys; sys.exit('out of luck')", monkeypatch)
    with pytest.raises(RuntimeError) as caught:
        bench.run(TINY)
    assert str(caught.value) == "the plain worker of the benchmark died with status 1: out of luck"


def test_a_worker_that_is_killed_in_the_middle_is_an_error(monkeypatch):
    worker_that_runs(
        "import os; print('{}', flush=True); input(); os.kill(os.getpid(), 9)", monkeypatch
    )
    with pytest.raises(RuntimeError, match="died with status -9: it said nothing"):
        bench.run(TINY)


def test_a_worker_that_falls_silent_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(bench, "_PATIENCE_SECONDS", 0.2)
    worker_that_runs("import time; time.sleep(60)", monkeypatch)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="the plain worker of the benchmark fell silent"):
        bench.run(TINY)
    assert time.monotonic() - begin < 30


def test_no_worker_outlives_the_benchmark(monkeypatch):
    started = worker_that_runs("import time; print('{}', flush=True); time.sleep(60)", monkeypatch)
    monkeypatch.setattr(bench._Worker, "ask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.run(TINY)
    assert [worker.poll() for worker in started] == [-9, -9]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_distilling_method_is_timed_with_its_teacher_and_pruned_for_inference():
    config = dataclasses.replace(TINY, method="nettailor", off=(1,))
    report = bench.run(dataclasses.replace(config, rounds=1))
    assert report["off"] == [1]
    assert report["train"]["ratio"] > 0


def test_blocks_that_are_pruned_keep_the_nearest_proxy_and_no_other_is_left():
    backbone = Backbone.create("resnet10t", weights="random", px=32)
    names = [block.name for block in backbone.blocks]
    smaller = bench._pruned(nettailor.build(backbone, 10), (1, 2))
    proxies = [f"{names[1]}<-{names[0]}", f"{names[2]}<-{names[1]}"]
    assert smaller.kept() == [names[0], *proxies, names[3]]


@pytest.mark.parametrize("changed", [{"off": (9,), "method": "nettailor"}, {"off": (0,)}])
def test_blocks_that_cannot_be_pruned_are_one_line(changed):
    with pytest.raises(BadInput, match="off names blocks"):
        bench.run(dataclasses.replace(TINY, **changed))


def test_memory_is_that_of_training_without_the_libraries(report):
    found = report["train"]
    # The weights of resnet10t thrice (4.9 M, gradients, momentum) are 59 MB; torch is far more.
    assert 59 < found["peak_mb_plain"] < 250 < found["idle_mb"] < 4000
    assert found["memory"] == pytest.approx(found["peak_mb"] / found["peak_mb_plain"], abs=1e-3)


def test_what_is_kept_is_the_frozen_starts_output_computed_once(monkeypatch):
    student = probe.build(Backbone.create("resnet10t", weights="random", px=32), 10)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = student.universal(images)
    given = bench._kept(student, dataclasses.replace(TINY, cache=True))
    assert torch.equal(given(images), expected)
    monkeypatch.setattr(student.universal, "forward", None)
    assert torch.equal(given(images), expected)


def test_a_method_that_freezes_nothing_has_nothing_to_keep():
    student = taps.build(Backbone.create("resnet10t", weights="random", px=32), 10)
    with pytest.raises(BadInput, match="leave --cache out"):
        bench._kept(student, dataclasses.replace(TINY, cache=True))
