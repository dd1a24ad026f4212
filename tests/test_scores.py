"""Scores over training, against logs written by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from analysis import scores
from analysis.curves import gate_table
from analysis.rows import read_runs
from tailor.errors import BadInput
from tests.synthetic_runs import write_nettailor, write_run

LAYERS = [{"name": name, "kind": "conv", "params": 100, "macs": 10} for name in "ab"]


def write_logged(path, epochs, *, seed=0, **options):
    """A run of two layers that logged these (scores of a, b; share of parameters; val)."""
    told = {"lam": 0.1, "layers": LAYERS, "config": {"settings": {"threshold": 0.1}}}
    write_run(path, "taps", seed=seed, **(told | options))
    lines = [
        {"kind": "epoch", "stage": "adapt", "epoch": i, "val": val, "share_params": share,
         "scores": {"a": a, "b": b}, "on": {"a": a >= 0.1, "b": b >= 0.1},
         "share_layers": ((a >= 0.1) + (b >= 0.1)) / 2}
        for i, (a, b, share, val) in enumerate(epochs, start=1)
    ]  # fmt: skip
    lines.insert(1, {"kind": "train", "stage": "adapt", "loss": 1.0})
    lines.append(lines[0] | {"stage": "retrain", "val": 0.9})  # its scores are not learned
    (path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_line_per_epoch_is_the_mean_over_seeds(tmp_path):
    write_logged(tmp_path / "0", [(0.2, 0.2, 1.0, 0.5), (0.3, 0.0, 0.5, 0.7)])
    write_logged(tmp_path / "1", [(0.2, 0.2, 1.0, 0.6), (0.2, 0.1, 1.0, None)], seed=1)
    frame = scores.answer(read_runs([tmp_path / "0", tmp_path / "1"])).table
    assert list(frame.index) == [("taps λ=0.1", 1), ("taps λ=0.1", 2)]
    second = frame.iloc[1]
    assert second["seeds"] == 2
    assert (second["share_layers"], second["share_params"]) == (0.75, 0.75)
    assert (second["open"], second["val"]) == (1.5, 0.7)
    assert second["mean_score"] == pytest.approx((0.15 + 0.15) / 2)


def test_a_pruned_student_is_told_by_the_run_it_was_adapted_in(tmp_path):
    first = write_logged(tmp_path / "a", [(0.2, 0.2, 1.0, 0.5)])
    out = write_run(tmp_path / "p", "taps", lam=0.1, stage="pruned", layers=LAYERS)
    (out / "run.json").write_text(
        json.dumps({"schema": 1, "verb": "prune", "config": {"run": str(first)}})
    )
    both, alone = (scores.answer(read_runs(p)).table for p in ([first, out], [out]))
    assert both.equals(alone)
    assert len(alone) == 1


def test_gates_stand_for_scores_where_blocks_were_chosen(tmp_path):
    run = read_runs([write_nettailor(tmp_path / "a", depth=18, epochs=4)])[0]
    frame = scores.answer([run]).table
    blocks = {block["name"]: block["params"] for block in run.result["blocks"]}
    gates = gate_table(run).loc[4, list(blocks)]
    left = [name for name in blocks if gates[name] >= 0.05]
    last = frame.iloc[-1]
    assert last["mean_score"] == pytest.approx(gates.mean())
    assert (last["open"], last["share_layers"]) == (len(left), len(left) / 8)
    share = sum(blocks[name] for name in left) / sum(blocks.values())
    assert last["share_params"] == pytest.approx(share)


def test_a_panel_per_task_and_price_and_two_for_all(tmp_path):
    paths = [
        write_logged(tmp_path / f"{task}-{lam}", [(0.2, 0.0, 0.5, 0.5)] * 2, task=task, lam=lam)
        for task in ("digits", "svhn")
        for lam in (0.1, 0.3)
    ]
    figure = scores.answer(read_runs(paths)).figure
    panels = [part.axes for part in figure.subfigs]
    assert [len(some) for some in panels] == [4, 2]
    assert [axes.get_title(loc="left") for axes in panels[0][:2]] == ["taps λ=0.1", "taps λ=0.3"]
    assert [axes.get_ylabel() for axes in panels[0]] == ["digits", "", "svhn", ""]
    assert panels[1][1].get_title(loc="left") == "Parameters adapted, %"
    lines = panels[0][0].lines
    assert list(lines[0].get_ydata()) == [0.2, 0.2]
    assert np.isnan(lines[3].get_ydata()).all()  # the thick line of b, which is closed


def test_the_terminal_shows_the_share_as_bars(tmp_path):
    epochs = [(0.2, 0.2, 1.0, 0.5), (0.2, 0.0, 0.5, 0.5), (0.0, 0.0, 0.0, 0.5)]
    run = read_runs([write_logged(tmp_path / "a", epochs)])
    assert scores.answer(run).shown.iloc[0]["Parameters"] == "█▅▁"


def test_runs_that_learned_no_scores_are_one_line(tmp_path):
    with pytest.raises(BadInput, match="none of these runs logged scores or gates"):
        scores.answer(read_runs([write_run(tmp_path / "a", "probe")]))
    paths = [write_run(tmp_path / "b", "taps", lam=0.1), write_nettailor(tmp_path / "c")]
    with pytest.raises(BadInput, match="some gates of blocks"):
        scores.answer(read_runs(paths))


def test_an_epoch_that_was_not_validated_has_no_validation(tmp_path):
    frame = scores.answer(read_runs([write_logged(tmp_path / "a", [(0.2, 0.2, 1.0, None)])])).table
    assert math.isnan(frame["val"].iloc[0])
