"""Rows, means, fronts, heat maps and curves, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import blocks, budget, canvas, curves, layers, pareto, summary
from analysis.rows import experiments, final, label, read_runs, rows
from analysis.table import cells, markdown, plus_minus, quantity, table
from tailor.errors import BadInput
from tests.synthetic_runs import (
    resnet18_layers,
    write_nettailor,
    write_nettailor_study,
    write_run,
    write_study,
)

TWO_LAYERS = [
    {"name": "conv1", "kind": "conv", "params": 300, "macs": 30},
    {"name": "layer1.0.conv1", "kind": "conv", "params": 700, "macs": 70},
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """3 seeds of three references and of TAPS at 3 λ, before and after retraining."""
    return read_runs(write_study(tmp_path_factory.mktemp("study"), stages=True))


@pytest.fixture(scope="module")
def tailored(tmp_path_factory):
    """3 seeds of fine-tuning and of NetTailor, adapted, pruned by 7 of 16 blocks, retrained."""
    return read_runs(write_nettailor_study(tmp_path_factory.mktemp("tailored"), epochs=3))


def params(universal=1000, deltas=0, norms=0, scores=0, head=50, task=None):
    task = deltas + norms + scores if task is None else task
    parts = {"universal": universal, "task": task, "deltas": deltas, "norms": norms}
    return parts | {"scores": scores, "head": head, "multiple": (universal + task) / universal}


def two_layers(*on: bool, changes=(0.5, 0.25)):
    return [
        layer | {"on": is_on, "score": 0.2 if is_on else 0.0, "change": change if is_on else 0.0}
        for layer, is_on, change in zip(TWO_LAYERS, on, changes, strict=True)
    ]


def one(path: Path, *args, **kwargs):
    return read_runs([write_run(path, *args, **kwargs)])[0]


# Reading --------------------------------------------------------------------------------------


def test_a_row_has_every_field_of_the_contract(tmp_path):
    row = rows([one(tmp_path / "a", "taps", lam=0.3)])[0]
    contract = "run task method backbone seed stage metric val test layers layers_adapted params "
    contract += "macs bytes seconds"
    assert set(contract.split()) <= row.keys()
    assert {"universal", "task", "head", "norms", "multiple"} <= row["params"].keys()
    assert row["macs"] == {"backbone": 148_000_000, "student": 148_000_000}


def test_a_row_counts_blocks_and_the_merged_network(tmp_path):
    run = read_runs([write_nettailor(tmp_path / "a", stage="pruned", remove=7)])[0]
    row = rows([run])[0]
    assert (row["gated"], row["blocks"], row["blocks_kept"]) == ("blocks", 16, 9)
    # The backbone without 7 blocks, and the proxies that are left.
    gone = sum(b["params"] for b in run.result["blocks"] if not b["kept"])
    proxies = sum(g["params"] for g in run.result["gates"] if g["kind"] == "proxy")
    assert row["params"]["network"] == row["params"]["universal"] - gone + proxies


def test_a_run_from_before_blocks_were_listed_is_still_read(tmp_path):
    row = rows([one(tmp_path / "a", "taps", lam=0.3)])[0]
    assert (row["gated"], row["blocks"], row["blocks_kept"]) == ("layers", None, None)
    assert row["params"]["network"] is None
    assert rows([one(tmp_path / "b", "probe")])[0]["gated"] is None


def test_a_row_names_the_directory_it_was_read_from(tmp_path):
    write_run(tmp_path / "made" / "here", "probe").rename(tmp_path / "moved")
    assert rows(read_runs([tmp_path / "moved"]))[0]["run"] == str(tmp_path / "moved")


def test_runs_keep_their_order_and_one_named_twice_counts_once(tmp_path):
    b, a = write_run(tmp_path / "b", "probe"), write_run(tmp_path / "a", "probe")
    assert [run.path.name for run in read_runs([b, a, tmp_path / "x" / ".." / "b"])] == ["b", "a"]


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere' does not exist"):
        read_runs([tmp_path / "nowhere"])


def test_a_file_in_place_of_a_run_is_named(tmp_path):
    (tmp_path / "report.html").touch()
    with pytest.raises(BadInput, match=r"report.html' is a file; name the run directories"):
        read_runs([tmp_path / "report.html"])


def test_no_run_at_all_is_bad_input():
    with pytest.raises(BadInput, match="no run directory given"):
        read_runs([])


def test_an_unfinished_run_tells_the_command_that_finishes_it(tmp_path):
    run = write_run(tmp_path / "a", "probe", command="tailor teach --mode probe")
    (run / "result.json").unlink()
    with pytest.raises(BadInput, match=r"not finished; .*command: tailor teach --mode"):
        read_runs([run])


def test_a_folder_of_runs_suggests_its_content(tmp_path):
    write_run(tmp_path / "runs" / "a", "probe")
    with pytest.raises(BadInput, match=r"no run directory.*did you mean .*runs/\* \(1 runs\)"):
        read_runs([tmp_path / "runs"])


def test_a_folder_of_tasks_with_runs_suggests_their_content(tmp_path):
    write_run(tmp_path / "runs" / "digits" / "a", "probe")
    with pytest.raises(BadInput, match=r"did you mean .*runs/\*/\* \(1 runs\)"):
        read_runs([tmp_path / "runs"])


def test_a_sweep_stands_for_its_finished_runs(tmp_path):
    for name in ("svhn/b", "digits/a", "digits/c", ".trash/d", "digits/deep/e"):
        write_run(tmp_path / "sweep" / name, "probe")
    (tmp_path / "sweep" / "digits" / "c" / "result.json").unlink()
    (tmp_path / "sweep" / "sweep.json").write_text('{"schema": 1}')
    found = read_runs([tmp_path / "sweep" / "svhn" / "b", tmp_path / "sweep"])
    names = [str(run.path.relative_to(tmp_path / "sweep")) for run in found]
    assert names == ["svhn/b", "digits/a", "digits/deep/e"]


def test_a_sweep_without_a_finished_run_is_one_line(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(BadInput, match=r"sweep '.*' has no finished run yet; repeat its"):
        read_runs([tmp_path])


def test_latency_is_a_field_of_the_row(tmp_path):
    told = {"ms": 2.0, "ms_backbone": 4.0, "ratio": 0.5, "spread": 0.1, "threads": 1}
    run = write_run(tmp_path / "a", "probe")
    assert rows(read_runs([run]))[0]["latency"] is None
    (run / "latency.json").write_text(json.dumps(told))
    assert rows(read_runs([run]))[0]["latency"] == told
    (run / "latency.json").write_text("{")
    with pytest.raises(BadInput, match=r"latency\.json is damaged .*delete it and measure again"):
        read_runs([run])


def test_a_run_of_another_schema_is_refused(tmp_path):
    run = write_run(tmp_path / "a", "probe")
    (run / "run.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(BadInput, match="has format 2, this version of tailor reads 1"):
        read_runs([run])


@pytest.mark.parametrize("content", ["{", "[]", "\xff", '{"task": "digits"}'])
def test_a_damaged_result_is_one_line_that_names_the_file(tmp_path, content):
    run = write_run(tmp_path / "a", "probe")
    (run / "result.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=r"a/result\.json .*delete") as caught:
        read_runs([run])
    assert "\n" not in str(caught.value)


def test_not_a_number_in_a_file_is_unknown_in_the_row(tmp_path):
    assert rows([one(tmp_path / "a", "probe", test=math.nan)])[0]["test"] is None


def test_a_torn_last_line_of_a_log_is_left_out(tmp_path):
    run = write_run(tmp_path / "a", "probe", epochs=3)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"kind": "epo')
    assert len(curves.curve_table(read_runs([run])[0])) == 3


def test_a_label_says_lambda_price_and_a_later_stage():
    record = {"method": "taps", "stage": "retrained", "lam": 0.1, "price": "macs"}
    assert label(record) == "taps λ=0.1 retrained"
    assert label(record | {"stage": "adapt"}, price=True) == "taps λ=0.1 per macs"
    assert label(record | {"lam": None, "stage": "teacher"}) == "taps"


def test_runs_that_differ_by_seed_are_one_experiment(study):
    found = experiments(study)
    assert [len(members) for _, members in found] == [3] * 9
    assert [name for name, _ in found][2:5] == ["probe", "taps λ=0.1", "taps λ=0.1 retrained"]


def configured(path: Path, method="nettailor", prune=None, retrain=None, **settings):
    """A run of these settings that ``prune`` options led to."""
    stage = "retrained" if retrain else "pruned" if prune else "adapt"
    run = write_run(path, method, lam=0.3, stage=stage, config={"settings": settings})
    if stage != "adapt":
        config = prune or {"run": str(retrain), "train": {"lr": 0.1}}
        verb = "prune" if prune else "retrain"
        (run / "run.json").write_text(json.dumps({"schema": 1, "verb": verb, "config": config}))
    return run


def test_runs_of_different_settings_are_different_experiments(tmp_path):
    configured(tmp_path / "a", distill=10.0, max_skip=3)
    configured(tmp_path / "b", distill=0.0, max_skip=3)
    configured(tmp_path / "old", max_skip=3)  # does not say: no difference
    configured(tmp_path / "taps", "taps", distill=5.0)  # another method
    found = rows(read_runs([tmp_path / name for name in ("a", "b", "old", "taps")]))
    assert [row["variant"] for row in found] == ["distill=10", "distill=0", "", ""]
    names = [name for name, _ in experiments(read_runs(sorted(tmp_path.iterdir())))]
    assert names == ["nettailor λ=0.3", "nettailor λ=0.3 distill=0", "nettailor λ=0.3 distill=10",
                     "taps λ=0.3"]  # fmt: skip


def test_pruning_options_are_told_where_they_differ_and_follow_into_retraining(tmp_path):
    runs = []
    for count in (11, 7):
        first = configured(tmp_path / f"p{count}", prune={"run": "x", "count": count})
        runs += [first, configured(tmp_path / f"r{count}", retrain=first)]
    runs.append(configured(tmp_path / "a"))
    assert [row["rule"] for row in rows(read_runs(runs))] == ["count=11"] * 2 + ["count=7"] * 2 + [
        ""
    ]
    names = [name for name, _ in experiments(read_runs(runs))]
    assert names == [
        "nettailor λ=0.3",
        "nettailor λ=0.3 count=7 pruned",
        "nettailor λ=0.3 count=7 retrained",
        "nettailor λ=0.3 count=11 pruned",
        "nettailor λ=0.3 count=11 retrained",
    ]


def test_a_price_is_told_only_where_its_method_has_several(tmp_path):
    for i, (method, price) in enumerate((("taps", "params"), ("taps", "macs"), ("other", "both"))):
        write_run(tmp_path / str(i), method, lam=0.1, price=price)
    names = [name for name, _ in experiments(read_runs(sorted(tmp_path.iterdir())))]
    assert names == ["other λ=0.1", "taps λ=0.1 per macs", "taps λ=0.1 per params"]


# Table ----------------------------------------------------------------------------------------


def test_mean_and_spread_are_those_of_the_statistics_module(tmp_path):
    accuracies = [0.90, 0.93, 0.99]
    runs = [
        one(tmp_path / str(seed), "probe", seed=seed, test=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]
    line = table(rows(runs)).iloc[0]
    assert line["seeds"] == 3
    assert line["test"] == pytest.approx(100 * statistics.mean(accuracies), rel=1e-12)
    assert line["test_spread"] == pytest.approx(100 * statistics.stdev(accuracies), rel=1e-12)


def test_the_confidence_interval_is_students(tmp_path):
    runs = [one(tmp_path / str(seed), "probe", seed=seed, test=accuracy, val=0.5 + seed / 100)
            for seed, accuracy in enumerate((0.90, 0.93, 0.99))]  # fmt: skip
    line = table(rows(runs)).iloc[0]
    # t of 2 degrees of freedom at 97.5 %: 4.302653; deviation of 90, 93, 99: 4.582576.
    assert line["test_ci"] == pytest.approx(4.302653 * 4.582576 / math.sqrt(3), rel=1e-6)
    assert line["val_ci"] == pytest.approx(4.302653 * 1.0 / math.sqrt(3), rel=1e-6)
    assert math.isnan(table(rows(runs[:1]))["test_ci"][0])


def test_the_last_stage_of_an_experiment_is_its_final_one(tmp_path):
    for stage in ("adapt", "pruned", "retrained"):
        write_run(tmp_path / stage, "taps", lam=0.1, stage=stage)
    write_run(tmp_path / "only", "taps", lam=0.3)
    write_run(tmp_path / "ft", "finetune")
    found = final(read_runs(sorted(tmp_path.iterdir())))
    assert [members[0].path.name for _, members in found] == ["ft", "retrained", "only"]


def test_lambda_stage_price_and_task_are_not_averaged(tmp_path):
    for i, changes in enumerate(
        ({}, {"lam": 0.2}, {"stage": "pruned"}, {"price": "macs"}, {"task": "svhn"})
    ):
        write_run(tmp_path / str(i), "taps", **({"lam": 0.1} | changes))
    assert list(table(rows(read_runs(sorted(tmp_path.iterdir()))))["seeds"]) == [1] * 5


def test_one_seed_has_no_spread(tmp_path):
    frame = table(rows([one(tmp_path / "a", "probe", test=0.8125)]))
    assert math.isnan(frame["test_spread"][0])
    assert "81.2" in cells(frame).iloc[0].tolist()  # half to even: 81.25 in binary is exact


def test_an_unknown_accuracy_is_a_dash_and_leaves_the_others_their_mean(tmp_path):
    none = one(tmp_path / "a", "probe", seed=0, test=None, val=None)
    some = one(tmp_path / "b", "probe", seed=1, test=0.5, val=None)
    frame = table(rows([none, some]))
    assert frame["test"][0] == 50.0
    assert cells(frame)["Validation,\u00a0%"][0] == "–"


def test_parts_are_in_percent_of_the_backbone(tmp_path):
    parts = params(universal=1000, deltas=250, norms=40, scores=2, head=50, task=300)
    line = table(rows([one(tmp_path / "a", "taps", lam=0.1, params=parts)])).iloc[0]
    names = ("deltas", "norms", "scores", "adapters", "task", "head")
    assert [line[f"{n}_percent"] for n in names] == pytest.approx([25, 4, 0.2, 0.8, 30, 5])
    assert line["multiple"] == 1.3


def test_references_come_first_and_lambda_rises(study):
    shown = list(cells(table(rows(study)))["Method"])
    assert shown[:5] == ["finetune", "scratch", "probe", "taps λ=0.1", "taps λ=0.1 retrained"]
    assert shown[-1] == "taps λ=1 retrained"


def test_markdown_escapes_what_would_break_a_cell():
    text = markdown(pd.DataFrame({"Task": ["a|b\nc"], "Test": ["<b>"]}))
    assert text.splitlines()[2] == r"| a\|b c | &lt;b> |"


def test_numbers_for_people():
    assert plus_minus(97.84, 0.26) == "97.8 ± 0.3"
    assert plus_minus(97.84, math.nan) == "97.8"
    assert [quantity(v, "B") for v in (999, 1234, 99_960, 523_423, 1.5e9)] == [
        "999 B",
        "1.23 kB",
        "100 kB",
        "523 kB",
        "1.50 GB",
    ]


def test_a_line_of_blocks_tells_blocks_and_the_network(tailored):
    frame = table(rows(tailored))
    line = frame[frame["label"] == "nettailor λ=0.3 retrained"].iloc[0]
    members = [r.result for r in tailored if r.result["stage"] == "retrained"]
    shares = [r["params"]["network"] / r["params"]["universal"] for r in members]
    assert line["network_percent"] == pytest.approx(100 * statistics.mean(shares), rel=1e-12)
    assert (line["blocks_kept"], line["chosen"]) == (9, 9 / 16)
    told = cells(frame).set_index("Method")
    assert told.loc["nettailor λ=0.3 retrained", "Adapted or kept"] == "9 of 16 blocks"
    assert told.loc["finetune", "Adapted or kept"] == "20 of 20 layers"
    # ResNet-34 without head: 21 284 672 numbers.
    assert told.loc["finetune", "Network"].replace("\u00a0", " ") == "21.3 M, 100 %"


def test_a_table_without_blocks_has_the_columns_it_always_had(study):
    assert [name.replace("\u00a0", " ") for name in cells(table(rows(study)))] == [
        "Method", "Seeds", "Test, %", "Validation, %", "Layers adapted", "Deltas, % of backbone",
        "Parameters, ×", "MACs", "Size",
    ]  # fmt: skip


# Pareto ---------------------------------------------------------------------------------------


def test_front_members_by_hand():
    added = [0, 10, 20, 30, 30, 30, 40, math.nan]
    accuracy = [80, 90, 85, 95, 95, 94, 95, 99]
    # 20 is worse than 10, two at 30 are equal and beat the third and 40, the last is unknown.
    assert pareto.front(added, accuracy) == [True, True, False, True, True, False, False, False]


def test_trade_off_is_the_smallest_within_a_point_and_chosen_on_validation(tmp_path):
    settings = {0.1: (0.955, 0.99, 600), 0.3: (0.951, 0.90, 200), 1.0: (0.949, 0.99, 100)}
    write_run(tmp_path / "ft", "finetune", val=0.96, test=0.97, params=params(deltas=1000))
    for lam, (val, test, size) in settings.items():
        write_run(
            tmp_path / f"{lam}", "taps", lam=lam, val=val, test=test, params=params(deltas=size)
        )
    frame = table(rows(read_runs(tmp_path.iterdir())))
    assert frame.loc[pareto.trade_off(frame), "lam"] == 0.3


def test_trade_off_without_fine_tuning_is_the_most_accurate(study):
    frame = table(rows(study))
    methods = frame[frame["method"] == "taps"]
    assert methods.loc[pareto.trade_off(methods), "label"] == "taps λ=0.1 retrained"


def test_pareto_table_takes_validation_where_a_test_value_is_missing(tmp_path):
    runs = [
        one(tmp_path / "a", "probe", test=None, val=0.75),
        one(tmp_path / "b", "finetune", test=0.9, val=0.85),
        one(tmp_path / "c", "probe", task="svhn", test=0.5, val=0.75),
    ]
    points = pareto.pareto_table(table(rows(runs)))
    assert list(points["split"]) == ["val", "val", "test"]
    assert list(points["accuracy"]) == pytest.approx([85, 75, 50])


def test_pareto_plot_has_a_panel_per_task_and_a_place_for_zero(tmp_path):
    runs = read_runs(write_study(tmp_path, "digits") + write_study(tmp_path, "svhn"))
    figure = pareto.pareto_plot(table(rows(runs)))
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["digits", "svhn"]
    assert all(panel.get_xlim()[0] < 0 for panel in figure.axes)


def test_a_student_that_was_pruned_is_compared_by_its_smaller_self(study):
    compared = pareto.pareto_table(table(rows(study)))
    assert list(compared["label"]) == [
        "finetune", "scratch", "probe",
        "taps λ=0.1 retrained", "taps λ=0.3 retrained", "taps λ=1 retrained",
    ]  # fmt: skip


def test_accuracies_of_zero_and_a_hundred_percent_have_a_place(tmp_path):
    runs = [one(tmp_path / "a", "probe", test=0.0), one(tmp_path / "b", "finetune", test=1.0)]
    axes = pareto.pareto_plot(table(rows(runs))).axes[0]
    assert {0, 50, 90, 99, 100} <= set(axes.get_yticks())
    # Equal steps are equal factors of (error + .5): 100.5 at 0 %, 10.5 at 90 %, .5 at 100 %.
    low, high = (axes.transData.transform((0, accuracy))[1] for accuracy in (0.0, 100.0))
    part = (axes.transData.transform((0, 90.0))[1] - low) / (high - low)
    assert part == pytest.approx(math.log(100.5 / 10.5) / math.log(100.5 / 0.5))


def test_pareto_plot_of_unknown_accuracies_is_none(tmp_path):
    run = one(tmp_path / "a", "probe", test=None, val=None)
    assert pareto.pareto_plot(table(rows([run]))) is None


def test_accuracy_against_macs_is_in_percent_of_the_backbone(tmp_path):
    macs = {"finetune": 200, "nettailor": 90}
    for method, student in macs.items():
        told = {"macs": {"backbone": 200, "student": student}, "test": 0.5}
        if method == "finetune":
            write_run(tmp_path / method, method, **told)
        else:
            write_nettailor(tmp_path / method, backbone="resnet18", stage="retrained", **told)
    frame = table(rows(read_runs(sorted(tmp_path.iterdir()))))
    points = pareto.pareto_table(frame, "macs")
    assert list(points["cost"]) == [100, 45]
    assert list(points["front"]) == [False, True]
    axes = pareto.pareto_plot(frame, "macs").axes[0]
    assert axes.get_xlim() == (0, 108)
    assert axes.get_xlabel() == "MACs of the network, % of the backbone"


def test_settings_that_remove_blocks_are_compared_by_their_macs(tmp_path):
    write_run(tmp_path / "ft", "finetune", val=0.96, backbone="resnet34")
    for lam, (val, student, size) in {
        0.1: (0.958, 80, 100), 0.3: (0.951, 50, 200), 1.0: (0.90, 20, 50)
    }.items():  # fmt: skip
        told = {"val": val, "macs": {"backbone": 100, "student": student}}
        told["params"] = params(task=size)
        write_nettailor(tmp_path / f"{lam}", lam=lam, stage="retrained", **told)
    frame = table(rows(read_runs(tmp_path.iterdir())))
    assert pareto.priced_in(frame) == "macs"
    assert frame.loc[pareto.trade_off(frame), "lam"] == 0.3
    frame["gated"] = "layers"
    assert pareto.priced_in(frame) == "params"
    assert frame.loc[pareto.trade_off(frame), "lam"] == 0.1


def test_a_student_before_its_pruning_is_no_trade_off(tailored):
    frame = table(rows(tailored))
    frame.loc[frame["stage"] == "adapt", "val"] = 99.9
    frame = frame[frame["method"] != "finetune"]  # then the most accurate one is named
    assert frame.loc[pareto.trade_off(frame), "stage"] == "retrained"


def timed(path: Path, ratio: float, **changes):
    """A run of TAPS whose network was timed."""
    run = write_run(path, "taps", **({"lam": 0.1} | changes))
    told = {"ms": 8 * ratio, "ms_backbone": 8.0, "ratio": ratio, "spread": 0.1, "threads": 1}
    (run / "latency.json").write_text(json.dumps(told))
    return run


def test_latency_is_a_cost_in_percent_of_the_backbone(tmp_path):
    paths = [timed(tmp_path / str(seed), 0.5 + seed / 4, seed=seed) for seed in range(2)]
    answer = pareto.answer(read_runs([*paths, write_run(tmp_path / "b", "probe")]), cost="latency")
    line = answer.table.loc[("digits", "taps λ=0.1")]
    assert (line["cost"], line["latency_ms"], line["front"]) == (62.5, 5.0, True)
    assert math.isnan(answer.table.loc[("digits", "probe"), "cost"])


def test_a_front_over_latency_needs_one_that_was_measured(study):
    with pytest.raises(BadInput, match="no run has its latency measured; `tailor evaluate"):
        pareto.answer(study, cost="latency")


def test_intervals_are_in_the_table_and_as_thin_bars_in_the_picture(study):
    answer = pareto.answer(study)
    line = answer.table.loc[("digits", "finetune")]
    # Three seeds, 0.4 points apart: deviation .4, half width 4.302653 * .4 / √3.
    assert (line["seeds"], line["spread"]) == (3, pytest.approx(0.4))
    assert line["ci95"] == pytest.approx(4.302653 * 0.4 / math.sqrt(3), rel=1e-6)
    ends = [
        tuple(segment[:, 1])
        for bars in answer.figure.axes[0].containers
        for segment in bars.lines[2][0].get_segments()
    ]
    for half in (line["spread"], line["ci95"]):
        wanted = (line["accuracy"] - half, line["accuracy"] + half)
        assert any(end == pytest.approx(wanted) for end in ends)


def test_costs_of_two_backbones_stand_in_panels_of_their_own(tmp_path):
    runs = [one(tmp_path / "a", "probe"), one(tmp_path / "b", "probe", backbone="tiny")]
    panels = pareto.answer(runs).figure.axes
    assert [p.get_title(loc="left") for p in panels] == ["digits on resnet18", "digits on tiny"]


# Layers ---------------------------------------------------------------------------------------


def test_heat_map_cells_are_the_share_of_seeds_that_adapted_the_layer(tmp_path):
    choices = [(True, False), (True, True), (True, False), (False, False)]
    runs = [
        one(tmp_path / f"{i}", "taps", lam=0.1, seed=i, layer_states=two_layers(*on))
        for i, on in enumerate(choices)
    ]
    found = layers.layer_table(runs)
    assert found.to_dict() == {
        "conv1": {"taps λ=0.1": 0.75},
        "layer1.0.conv1": {"taps λ=0.1": 0.25},
    }
    assert list(layers.layer_table(runs, "change").iloc[0]) == [0.375, 0.0625]


def test_a_stage_that_changes_no_layer_has_no_row(tmp_path):
    for stage, on in (("adapt", (True, True)), ("pruned", (True, False)), ("retrained", (1, 0))):
        states = two_layers(*map(bool, on))
        write_run(tmp_path / stage, "taps", lam=0.1, stage=stage, layer_states=states)
    found = layers.layer_table(read_runs(tmp_path.iterdir()))
    assert list(found.index) == ["taps λ=0.1", "taps λ=0.1 pruned"]


def test_layers_stand_in_network_order(study):
    names = [layer["name"] for layer in resnet18_layers()]
    assert list(layers.layer_table(study).columns) == names
    assert list(layers.layer_facts(study)["stage"].unique()) == [
        "conv1", "layer1", "layer2", "layer3", "layer4",
    ]  # fmt: skip


def test_stage_of_a_layer():
    names = (
        "conv1",
        "layer1.0.downsample.0",
        "blocks.3.mlp.fc1",
        "stages.0.blocks.1.conv",
        "stem.0",
    )
    stages = ["conv1", "layer1", "blocks.3", "stages.0", "stem"]
    assert [layers.stage(name) for name in names] == stages


def test_role_of_a_layer_is_what_it_does_in_its_block():
    names = ("conv1", "layer1.0.conv2", "layer1.0.downsample.0", "blocks.3.mlp.fc1", "stem.0")
    names += ("stages.0.blocks.1.conv", "patch_embed.proj", "blocks.0.0.conv_pw")
    roles = ["no block", "conv2", "downsample", "mlp.fc1", "no block", "conv", "no block"]
    assert [layers.role(name) for name in names] == [*roles, "conv_pw"]


def test_layers_of_one_kind_stand_together(study):
    answer = layers.answer(study, group="kind")
    names = list(answer.table.columns)
    assert names[:2] == ["conv1", "layer1.0.conv1"]
    assert [layers.role(name) for name in names] == (
        ["no block"] + 8 * ["conv1"] + 8 * ["conv2"] + 3 * ["downsample"]
    )
    assert answer.table[sorted(names)].equals(layers.answer(study).table[sorted(names)])
    assert answer.shown["Layers"][0].count(" ") == 3


def test_the_terminal_has_a_character_per_layer(tmp_path):
    choices = [(True, False), (True, True), (True, False)]
    runs = [
        one(tmp_path / f"{i}", "taps", lam=0.1, seed=i, layer_states=two_layers(*on))
        for i, on in enumerate(choices)
    ]
    line = layers.answer(runs).shown.iloc[0]
    assert (line["Layers"], line["Adapted"]) == ("█ ▒", "1.3 layers, 53 %")


def test_runs_that_chose_blocks_are_sent_to_the_verb_for_them(tailored):
    chosen = [run for run in tailored if run.result["method"] == "nettailor"]
    with pytest.raises(BadInput, match=r"chose between blocks .* `tailor blocks`"):
        layers.answer(chosen)


def test_of_rows_that_follow_each_other_the_first_names_the_task(tmp_path):
    runs = read_runs(write_study(tmp_path, "digits") + write_study(tmp_path, "svhn"))
    names = layers.heat_map(layers.selective(runs)).axes[1].get_yticklabels()
    assert [name.get_text() for name in names] == [
        "digits · taps λ=0.1", "taps λ=0.3", "taps λ=1", "svhn · taps λ=0.1", "taps λ=0.3",
        "taps λ=1",
    ]  # fmt: skip


def test_two_backbones_in_one_map_are_both_named(tmp_path):
    runs = [
        one(tmp_path / "a", "taps", lam=0.1),
        one(tmp_path / "b", "taps", lam=0.1, backbone="tiny", layers=TWO_LAYERS),
    ]
    with pytest.raises(BadInput, match=r"resnet18 \(20 layers\).*tiny \(2 layers\)"):
        layers.layer_table(runs)


def test_runs_without_layers_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no run lists its layers"):
        layers.heat_map([one(tmp_path / "a", "probe", layer_states=[])])


def test_only_runs_that_chose_are_selective(study):
    assert {run.result["method"] for run in layers.selective(study)} == {"taps"}
    references = [run for run in study if run.result["method"] != "taps"]
    assert layers.selective(references) == references


def test_drawn_heat_map_holds_the_numbers_of_its_table(study):
    chosen = layers.selective(study)
    cells_drawn = layers.heat_map(chosen).axes[1].collections[0].get_array()
    assert np.asarray(cells_drawn).ravel() == pytest.approx(
        layers.layer_table(chosen).to_numpy().ravel()
    )


def test_names_of_a_deep_network_are_thinned(tmp_path):
    deep = [
        {"name": f"blocks.{i}.{part}", "kind": "linear", "params": 10, "macs": 10}
        for i in range(50)
        for part in ("attn.qkv", "mlp.fc1")
    ]
    figure = layers.heat_map([one(tmp_path / "a", "taps", lam=0.1, layers=deep)])
    assert len(figure.axes[1].get_xticklabels()) == 34  # every third of 100


def test_the_colour_bar_of_a_single_row_is_tall_enough_to_read(tmp_path):
    figure = layers.heat_map([one(tmp_path / "a", "taps", lam=0.1)])
    figure.draw_without_rendering()
    bar = figure.axes[-1].get_position()
    assert bar.height * figure.get_figheight() > 0.8  # inches; three names of 8 points


def test_runs_that_chose_blocks_have_no_row_among_layers(tailored, study):
    assert layers.selective([*study, *tailored]) == layers.selective(study)


# Blocks ---------------------------------------------------------------------------------------


def test_block_cells_are_the_mean_gate_with_zero_for_a_block_that_is_gone(tailored):
    found = blocks.block_table(tailored)
    assert list(found.index) == ["nettailor λ=0.3 retrained"]  # its last stage only
    members = [run.result for run in tailored if run.result["stage"] == "retrained"]
    for name, value in found.iloc[0].items():
        gates = [g["value"] for r in members for g in r["gates"] if g["name"] == name]
        assert value == pytest.approx(sum(gates) / 3)
    share = blocks.kept_table(tailored).iloc[0]
    assert share.sum() == pytest.approx(9)  # 7 of 16 gone in every seed
    assert set((3 * share).round(9)) <= {0, 1, 2, 3}


def test_a_study_of_block_counts_has_a_row_for_each(tmp_path):
    runs = [write_nettailor(tmp_path / "a", depth=18)]
    for count in (3, 5):
        out = tmp_path / f"p{count}"
        runs.append(write_nettailor(out, depth=18, stage="pruned", remove=count))
        setup = {"schema": 1, "verb": "prune", "config": {"run": "a", "count": count}}
        (out / "run.json").write_text(json.dumps(setup))
    kept = blocks.kept_table(read_runs(runs)).sum(axis=1)
    assert kept.to_dict() == {
        "nettailor λ=0.3 count=3 pruned": 5, "nettailor λ=0.3 count=5 pruned": 3
    }  # fmt: skip


def test_drawn_block_map_holds_the_numbers_of_its_table(tailored):
    axes = blocks.block_map(tailored).axes[1]
    values = blocks.block_table(tailored).to_numpy().ravel()
    assert np.asarray(axes.collections[0].get_array()).ravel() == pytest.approx(values)
    texts = [text.get_text() for text in axes.texts]
    assert texts[:-1] == [f"{value:.2f}" for value in values if value > 0]
    macs = blocks.block_facts(tailored)["macs"]
    share = 100 * (blocks.kept_table(tailored).iloc[0] * macs).sum() / macs.sum()
    assert texts[-1] == f"9 blocks, {share:.0f} %"


def test_blocks_of_two_backbones_in_one_map_are_both_named(tmp_path):
    runs = [write_nettailor(tmp_path / f"{depth}", depth=depth) for depth in (18, 34)]
    with pytest.raises(BadInput, match=r"resnet18 \(8 blocks\).*resnet34 \(16 blocks\)"):
        blocks.block_table(read_runs(runs))


def test_a_map_of_blocks_needs_a_run_that_gates_them(study):
    with pytest.raises(BadInput, match="no run gates the paths into its blocks"):
        blocks.block_map(study)


# Curves and budget ----------------------------------------------------------------------------


def test_curve_table_is_in_percent_and_counts_epochs_through_stages(tmp_path):
    run = write_run(tmp_path / "a", "probe", epochs=0)
    entries = [
        {"kind": "epoch", "stage": "adapt", "epoch": 0, "val_error": 0.5, "train_loss": 2.0},
        {"kind": "train", "stage": "adapt", "step": 7, "loss": 1.0},
        {"kind": "epoch", "stage": "retrained", "epoch": 0, "val_error": 0.25, "train_loss": None},
    ]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    found = curves.curve_table(read_runs([run])[0])
    assert list(found["epoch"]) == [1, 2]
    assert list(found["stage"]) == ["adapt", "retrained"]
    assert list(found["val_error"]) == [50.0, 25.0]
    assert found["train_loss"][0] == 2.0
    assert found["train_loss"].isna().tolist() == [False, True]


def test_score_table_has_a_line_per_epoch_and_a_column_per_layer(tmp_path):
    run = one(tmp_path / "a", "taps", lam=0.3, epochs=4)
    found = curves.score_table(run)
    assert found.shape == (4, 20)
    assert found.loc[1].tolist() == [0.15] * 20
    final = [state["score"] for state in run.result["layer_states"]]
    assert found.loc[4].tolist() == pytest.approx(final)


def test_curves_show_only_what_was_logged(tmp_path):
    probe = one(tmp_path / "a", "probe")
    assert [panel.get_title(loc="left") for panel in curves.curves([probe]).axes] == [
        "Error, %",
        "Training loss",
    ]
    gated = [one(tmp_path / f"s{seed}", "taps", lam=0.3, seed=seed) for seed in range(3)]
    titles = [panel.get_title(loc="left") for panel in curves.curves(gated).axes]
    assert titles[2:6] == [
        "Adapted, % of the backbone's", "Scores, seed 0", "Scores, seed 1", "Scores, seed 2",
    ]  # fmt: skip


def test_curves_of_a_run_that_logged_nothing_are_none(tmp_path):
    assert curves.curves([one(tmp_path / "a", "taps", lam=0.1, stage="pruned")]) is None


def test_gate_table_has_a_line_per_epoch_and_a_column_per_path(tmp_path):
    run = read_runs([write_nettailor(tmp_path / "a", epochs=4)])[0]
    found = curves.gate_table(run)
    assert found.shape == (4, 61)
    final = {gate["name"]: gate["value"] for gate in run.result["gates"]}
    assert found.loc[4].to_dict() == pytest.approx(final)
    assert curves.score_table(run).empty


def test_strongest_proxies_are_those_of_the_largest_gate_at_any_epoch():
    gates = pd.DataFrame(
        {"b": [1, 1], "b<-a": [0.1, 0.2], "c": [1, 1], "c<-b": [0.9, 0], "c<-a": [0.3, 0.3]},
        index=[1, 2],
    )
    assert curves.strongest(gates, 2) == ["c<-b", "c<-a"]


def test_gates_are_drawn_solid_for_blocks_and_dashed_for_five_proxies(tmp_path):
    run = read_runs([write_nettailor(tmp_path / "a", epochs=4, stage="retrained")])[0]
    panels = {axes.get_title(loc="left"): axes for axes in curves.curves([run]).axes}
    drawn = {line.get_gid(): line for line in panels["Gates, seed 0"].lines if line.get_gid()}
    kept = {block["name"] for block in run.result["blocks"] if block["kept"]}
    assert {name for name, line in drawn.items() if line.get_linestyle() == "-"} == kept
    dashed = {name for name, line in drawn.items() if line.get_linestyle() == "--"}
    assert dashed == set(curves.strongest(curves.gate_table(run)))
    assert len(dashed) == 5
    name = sorted(kept)[0]
    assert list(drawn[name].get_ydata()) == list(curves.gate_table(run)[name])


def test_the_multiple_of_k_tasks_adds_k_times_what_one_task_adds(tmp_path):
    parts = params(universal=1000, deltas=250, norms=40, scores=10)
    frame = table(rows([one(tmp_path / "a", "taps", lam=0.1, params=parts)]))
    found = budget.budget_table(frame, tasks=(1, 10)).iloc[0]
    assert (found["×1"], found["×10"]) == pytest.approx((1.3, 4.0))
    assert [found[name] for name in budget.PARTS] == pytest.approx([100, 0, 25, 0, 0, 0, 4, 1, 5])


def test_what_tasks_share_is_counted_once(tmp_path):
    for task in "ab":
        parts = params(norms=30) | {"shared": 200, "multiple": 1.23}
        write_run(tmp_path / task, "taps", lam=0.1, task=task, params=parts)
    found = budget.answer(read_runs(sorted(tmp_path.iterdir())), tasks=(1, 10)).table.iloc[0]
    assert (found["×1"], found["×10"]) == pytest.approx((1.23, 1.5))
    assert (found["shared"], found["+ b"]) == pytest.approx((20, 1.26))


def test_proxies_are_a_part_of_their_own(tailored):
    found = budget.answer(tailored).table.loc["nettailor λ=0.3 retrained"]
    members = [run.result["params"] for run in tailored if run.result["stage"] == "retrained"]
    shares = [p["adapters"] / p["universal"] for p in members]
    assert found["proxies"] == pytest.approx(100 * statistics.mean(shares))
    assert found["adapters"] == 0


def test_the_tasks_really_given_add_up_one_after_the_other(tmp_path):
    for task, size in (("a", 100), ("b", 300), ("c", 50)):
        write_run(tmp_path / task, "taps", lam=0.1, task=task, params=params(deltas=size))
    for task in "ac":  # not of b: what follows is unknown
        told = {"lam": 0.3, "task": task, "params": params(deltas=20)}
        write_run(tmp_path / f"other-{task}", "taps", **told)
    answer = budget.answer(read_runs(sorted(tmp_path.iterdir())), tasks=(4, 1))
    found = answer.table.loc["taps λ=0.1", ["+ a", "+ b", "+ c"]]
    assert list(found) == pytest.approx([1.1, 1.4, 1.45])
    assert answer.table.loc["taps λ=0.1", ["×1", "×4"]].tolist() == pytest.approx([1.15, 1.6])
    only = answer.table.loc["taps λ=0.3", ["+ a", "+ b", "+ c"]]
    assert only["+ a"] == pytest.approx(1.02)
    assert only.isna().tolist() == [False, True, True]
    dots = [line for line in answer.figure.axes[1].lines if line.get_marker() == "o"]
    assert list(dots[-1].get_ydata()) == pytest.approx([1.1, 1.4, 1.45])


def test_no_task_and_two_trunks_are_refused(tmp_path):
    runs = [one(tmp_path / "a", "probe"), one(tmp_path / "b", "probe", backbone="tiny")]
    with pytest.raises(BadInput, match="--tasks 0: a trunk serves 1 task or more"):
        budget.answer(runs[:1], tasks=(0, 1))
    with pytest.raises(BadInput, match=r"share 2 trunks \(resnet18, tiny\)"):
        budget.answer(runs)


def test_a_bar_ends_where_its_parts_end(tmp_path):
    parts = params(universal=1000, deltas=250, norms=40, scores=10, head=50)
    frame = table(rows([one(tmp_path / "a", "taps", lam=0.1, params=parts)]))
    bars = budget.budget_bars(frame).axes[0].patches
    assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(135)


# Words and looks ------------------------------------------------------------------------------


def test_headline_names_the_trade_off_with_its_numbers(study):
    said = summary.headline(table(rows(study)))
    # λ = 0.3 retrained: validation .975 against .982 of fine-tuning, test .965.
    assert said[0].replace("\u00a0", " ") == (
        "Best trade-off: taps λ=0.3 retrained reaches 96.5 ± 0.4 %, adapts 16.3 of 20 layers and "
        "adds 46 % of the backbone's parameters; fine-tuning reaches 97.2 ± 0.4 % and adds 100 %."
    )


def test_a_single_setting_is_no_best_trade_off(tailored):
    frame = table(rows(tailored))
    said = summary.headline(frame)[0].replace("\u00a0", " ")
    assert said.startswith("nettailor λ=0.3 retrained reaches 96.5 ± 0.4 %, keeps 9 of 16 blocks ")
    line = frame[frame["label"] == "nettailor λ=0.3 retrained"].iloc[0]
    assert (
        f"it has {100 * line['macs_ratio']:.0f} % of the backbone's MACs and "
        f"{line['network_percent']:.0f} % of its parameters; fine-tuning reaches 97.2 ± 0.4 %"
    ) in said
    assert summary.rule(frame) == ""
    assert summary.named(frame) == []


def test_a_choice_is_told_with_its_rule(study):
    frame = table(rows(study))
    assert summary.rule(frame).startswith("Named is the setting with the fewest added parameters")
    assert list(frame.loc[summary.named(frame), "label"]) == ["taps λ=0.3 retrained"]


def test_a_seed_that_counts_twice_is_said_with_what_differs(tmp_path):
    write_run(tmp_path / "a", "probe", config={"net": {"weights": "x"}, "out": "a"})
    write_run(tmp_path / "b", "probe", config={"net": {"weights": "y"}, "out": "b"})
    said = summary.doubts(read_runs(tmp_path.iterdir()))
    assert said[0].endswith("only 1 different seeds, so ± is no spread over seeds. "
                            "The runs differ in: net.weights.")  # fmt: skip


def test_two_learning_rates_or_parts_of_the_images_are_two_settings_and_no_seeds(tmp_path):
    for name, rate, limit in (("a", 0.1, None), ("b", 0.2, None), ("c", 0.2, 100)):
        config = {"train": {"lr": rate, "seed": 0, "device": name}, "data": {"limit": limit}}
        write_run(tmp_path / name, "probe", config=config)
    frame = table(rows(read_runs(tmp_path.iterdir())))
    assert list(frame["seeds"]) == [1, 1, 1]
    assert sorted(frame["label"]) == [
        "probe limit=100 lr=0.2",
        "probe lr=0.1",
        "probe lr=0.2",
    ]


def test_runs_on_different_universal_weights_are_said(tmp_path):
    write_run(tmp_path / "a", "probe", seed=0, fingerprint="aa")
    write_run(tmp_path / "b", "probe", seed=1, fingerprint="bb")
    said = summary.doubts(read_runs(tmp_path.iterdir()))
    assert said == ["probe: its runs adapt 2 different sets of universal weights."]


def test_a_study_without_flaws_raises_no_doubt(study):
    assert summary.doubts(study) == []


@pytest.mark.parametrize("name", ["_hidden $x^$", "漢字 😀\nb", "\\frac{" + "x" * 200])
def test_any_name_can_be_drawn_without_a_warning(tmp_path, name):
    runs = [
        one(tmp_path / "a", name, lam=0.1, task=name, stage=name),
        one(tmp_path / "b", name, lam=0.3, task="b"),
    ]
    frame = table(rows(runs))
    for figure in (
        pareto.pareto_plot(frame),
        layers.heat_map(runs),
        curves.curves(runs[:1]),
        budget.budget_bars(frame),
    ):
        assert canvas.png(figure).startswith(b"\x89PNG")


def test_the_same_figure_gives_the_same_svg(study):
    chosen = layers.selective(study)
    assert canvas.svg(layers.heat_map(chosen)) == canvas.svg(layers.heat_map(chosen))


def test_an_svg_has_no_fixed_ink_of_its_own(study):
    drawn = canvas.svg(layers.heat_map(layers.selective(study))).partition("</style>")[2]
    assert canvas.INK not in drawn
    assert "var(--c0)" in drawn
