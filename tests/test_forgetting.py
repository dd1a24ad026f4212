"""Sequences of tasks: every measure against a matrix computed by hand; what is read and drawn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from analysis import answer as answers
from analysis import sequences, transfer
from analysis.forgetting import answer, read
from analysis.report import write_report
from tailor import cli
from tailor.errors import BadInput
from tests.synthetic_runs import write_run
from tests.synthetic_sequences import TASKS, write_matrix, write_study

# Task 0: 0.8, then 0.9, then 0.5. Task 1: 0.6, then 0.4. Task 2: 0.7.
FALLEN = [[0.8], [0.9, 0.6], [0.5, 0.4, 0.7]]
ALONE = [[0.8], [0.8, 0.5], [0.8, 0.5, 0.9]]  # of an independent network
LOSS = [[0.5], [0.4, 1.0], [1.5, 1.8, 0.8]]
LOSS_ALONE = [[0.5], [0.5, 0.5], [0.5, 0.5, 0.2]]


def asked(root, **options):
    return answer(read([root]), **options)


def test_the_average_is_of_all_tasks_after_the_last_one():
    assert transfer.average(FALLEN) == pytest.approx((0.5 + 0.4 + 0.7) / 3)


def test_forgetting_is_the_fall_from_the_best_before_the_last_task():
    # 0.9 - 0.5 and 0.6 - 0.4, halved; the last task had no time to be forgotten.
    assert transfer.forgetting(FALLEN) == pytest.approx((0.4 + 0.2) / 2)
    assert transfer.forgetting([[0.5], [0.7, 0.6]]) == pytest.approx(-0.2)  # gained at the end


def test_backward_transfer_is_the_change_since_a_task_was_learned():
    assert transfer.backward(FALLEN) == pytest.approx(((0.5 - 0.8) + (0.4 - 0.6)) / 2)
    assert transfer.backward(LOSS) == pytest.approx((1.0 + 0.8) / 2)  # a loss: its increase


def test_forward_transfer_leaves_out_the_first_task_that_had_none_before_it():
    assert transfer.forward(FALLEN, [0.1, 0.5, 0.8]) == pytest.approx((0.1 - 0.1) / 2)
    assert transfer.forward(FALLEN, [0.1, 0.5, 0.5]) == pytest.approx((0.1 + 0.2) / 2)


def test_rigidity_is_the_mean_log_ratio_of_losses_on_the_diagonal():
    # 0.5 / 0.5, 1.0 / 0.5 and 0.8 / 0.2: log 1 + log 2 + log 4 = 3 log 2.
    assert transfer.rigidity(LOSS, LOSS_ALONE) == pytest.approx(math.log(2))
    assert transfer.rigidity(LOSS_ALONE, LOSS_ALONE) == 0


def test_a_task_that_diverged_leaves_no_rigidity():
    assert math.isnan(transfer.rigidity([[1.0], [0.0, math.nan]], [[1.0], [0.0, 1.0]]))


def test_intransigence_is_what_an_independent_network_has_more():
    assert transfer.intransigence(FALLEN, ALONE) == pytest.approx((0 - 0.1 + 0.2) / 3)


def test_ranks_are_averaged_over_tasks_and_ties_share():
    # Task 0: b, then a and c share 2.5. Task 1: a, b, c.
    found = transfer.ranks({"a": [0.5, 0.9], "b": [0.6, 0.8], "c": [0.5, 0.1]})
    assert found == {"a": (2.5 + 1) / 2, "b": (1 + 2) / 2, "c": (2.5 + 3) / 2}


@pytest.mark.parametrize(("metric", "heading"), [("miou", "Average, %"), ("r2", "Average")])
def test_shares_of_one_are_told_in_percent_and_nothing_else(metric, heading, tmp_path):
    write_matrix(tmp_path / "f", "finetune", [[0.5], [0.4, 0.6]], metric=[metric, metric])
    found = asked(tmp_path).shown
    assert heading in found.columns
    assert ("50.0" in found[heading].iloc[0]) == (metric == "miou")


def test_what_diverged_ranks_last_and_is_unknown(tmp_path):
    assert transfer.ranks({"a": [math.nan], "b": [0.1]}) == {"a": 2, "b": 1}
    write_matrix(tmp_path / "f", "finetune", [[0.5], [0.4, 0.6]], loss=[[None], [None, None]])
    assert math.isnan(asked(tmp_path).table.loc["finetune", "loss_increase"])


def test_measures_agree_with_a_numpy_loop_over_random_triangles():
    draw = np.random.default_rng(0)
    full = np.tril(draw.random((6, 6)))
    matrix = [list(row[: t + 1]) for t, row in enumerate(full)]
    fallen = [full[j:-1, j].max() - full[-1, j] for j in range(5)]
    assert transfer.forgetting(matrix) == pytest.approx(np.mean(fallen))
    assert transfer.average(matrix) == pytest.approx(full[-1].mean())
    assert transfer.backward(matrix) == pytest.approx((full[-1] - np.diag(full))[:-1].mean())


def test_one_task_has_no_transfer():
    assert math.isnan(transfer.forgetting([[0.5]]))
    assert math.isnan(transfer.backward([[0.5]]))
    assert transfer.average([[0.5]]) == 0.5


@pytest.fixture
def pair(tmp_path):
    """Fine-tuning that forgets beside independent networks, two seeds each."""
    better = [[v + 0.1 for v in row] for row in FALLEN]
    for seed, matrix in enumerate((FALLEN, better)):
        write_matrix(
            tmp_path / f"f{seed}", "finetune", matrix, seed=seed, loss=LOSS, trunk=1000,
            params=[1010, 1020, 1030], heads=[10, 10, 10], memory=[0, 5, 7],
            trainable=[1010] * 3, seconds=[1, 2, 3 + seed], alone=[0.8, 0.5, 0.8], sequel=True,
        )  # fmt: skip
        write_matrix(
            tmp_path / f"i{seed}", "independent", ALONE, seed=seed, loss=LOSS_ALONE, sequel=False
        )
    return tmp_path


def test_a_line_has_means_and_deviations_over_seeds(pair):
    line = asked(pair).table.loc["finetune"]
    assert (line["seeds"], line["tasks"], line["finished"]) == (2, 3, True)
    assert line["average"] == pytest.approx(1.6 / 3 + 0.05)
    assert line["average ±"] == pytest.approx(0.1 / math.sqrt(2))
    assert line["forgetting"] == pytest.approx(0.3)
    assert line["loss_increase"] == pytest.approx(0.9)
    assert line["forward"] == pytest.approx(0.05)  # 0 and 0.1
    assert line["rigidity"] == pytest.approx(math.log(2))
    assert line["rigidity ±"] == pytest.approx(0, abs=1e-12)
    assert line["after eurosat"] == pytest.approx(0.55)


def test_sizes_are_those_after_the_last_task(pair):
    line = asked(pair).table.loc["finetune"]
    assert (line["params"], line["memory"], line["trainable"]) == (1030, 7, 1010)
    assert line["multiple"] == 1  # 1030 without three heads of 10
    assert line["seconds"] == pytest.approx(6.5)


def test_independent_networks_forget_exactly_nothing(pair):
    found = asked(pair)
    line = found.table.loc["independent"]
    for name in ("forgetting", "backward", "forward", "loss_increase", "rigidity"):
        assert (line[name], line[f"{name} ±"]) == (0, 0)
    shown = found.shown.set_index("Setting")
    assert shown.loc["independent", "Forgetting"] == "0"
    assert shown.loc["finetune", "Forgetting"] == "30.0 ± 0.0"


def test_ranks_are_of_each_seed_and_then_averaged(pair):
    # Seed 0, after the last task: .5/.8, .4/.5, .7/.9: third of nothing, second of two each time.
    # Seed 1: .6/.8, .5/.5 (a tie), .8/.9.
    table = asked(pair).table
    assert table.loc["finetune", "rank"] == pytest.approx((2 + (2 + 1.5 + 2) / 3) / 2)
    assert table.loc["independent", "rank"] == pytest.approx((1 + (1 + 1.5 + 1) / 3) / 2)
    assert list(table.index) == ["independent", "finetune"]  # the best average first


def test_ranks_are_of_seeds_that_every_method_has(pair):
    write_matrix(pair / "e0", "ewc", FALLEN, seed=0)
    found = asked(pair)
    assert "Ranks are of seed 0 only" in found.text
    # Seed 0 alone: ewc ties with fine-tuning behind the independent networks.
    assert found.table["rank"].to_dict() == {"independent": 1, "finetune": 2.5, "ewc": 2.5}


def test_without_an_independent_network_there_is_no_rigidity(tmp_path):
    write_matrix(tmp_path / "f", "finetune", FALLEN)
    found = asked(tmp_path)
    assert math.isnan(found.table.loc["finetune", "rigidity"])
    assert "these runs hold no independent to compare with" in found.text
    assert "Rigidity" not in found.shown


def test_another_oracle_can_be_named(pair):
    line = asked(pair, oracle="finetune").table.loc["independent"]
    assert line["rigidity"] == pytest.approx(-math.log(2))
    with pytest.raises(BadInput, match=r"oracle 'taps' is no setting .* 'finetune', 'independent'"):
        asked(pair, oracle="taps")


def test_settings_that_tell_a_method_apart_are_named(tmp_path):
    for fusion, dense in (("alpha", False), ("mlp", False), ("mlp", True)):
        settings = {"fusion": fusion, "dense": dense, "norm": True, "train": {"lr": 0.1}}
        place = tmp_path / f"{fusion}{dense}"
        write_matrix(place, "side_tuning", FALLEN, settings=settings)
    write_matrix(tmp_path / "other", "ewc", FALLEN, backbone="gsn44")
    names = sequences.names(read([tmp_path]))
    assert sorted(names) == ["ewc", "side_tuning alpha", "side_tuning mlp", "side_tuning mlp dense"]


def test_the_same_run_twice_is_read_once_and_a_copy_is_refused(tmp_path):
    one = write_matrix(tmp_path / "one", "ewc", FALLEN)
    assert len(read([one, tmp_path])) == 1
    write_matrix(tmp_path / "two", "ewc", FALLEN)
    with pytest.raises(BadInput, match="are both ewc with seed 0"):
        asked(tmp_path)


def test_a_finished_seed_leaves_an_unfinished_one_out(pair):
    write_matrix(pair / "f2", "finetune", [[0.1]], seed=2, tasks=TASKS[:3], finished=False)
    found = asked(pair)
    assert found.table.loc["finetune", "seeds"] == 2
    assert found.table.loc["finetune", "average"] == pytest.approx(1.6 / 3 + 0.05)
    assert "finetune with seed 2 has learned 1 of 3 tasks: it is left out" in found.text


def test_an_unfinished_method_is_shown_as_far_as_it_is_and_has_no_rank(pair):
    for seed, rows in enumerate((2, 1)):
        write_matrix(
            pair / f"e{seed}", "ewc", FALLEN[:rows], seed=seed, tasks=TASKS[:3], finished=False
        )
    found = asked(pair)
    line = found.table.loc["ewc"]
    assert (line["tasks"], line["average"], line["finished"]) == (1, 0.8, False)
    assert math.isnan(line["rank"])
    assert list(found.table.index)[-1] == "ewc"
    assert found.shown.set_index("Setting").loc["ewc", "Average, %"].endswith("*")
    assert found.table.loc["finetune", "rank"] == pytest.approx((2 + (2 + 1.5 + 2) / 3) / 2)


def test_an_unfinished_sequence_may_name_only_the_tasks_learned(pair):
    write_matrix(pair / "e0", "ewc", FALLEN[:2], finished=False)
    found = asked(pair)
    assert "ewc with seed 0 has learned 2 of 3 tasks" in found.text
    assert math.isnan(found.table.loc["ewc", "after trashnet"])


def test_a_finished_shorter_sequence_is_another_one(pair):
    write_matrix(pair / "e0", "ewc", FALLEN[:2])
    with pytest.raises(BadInput, match="several sequences"):
        asked(pair)


def test_the_trunk_is_told_by_the_first_run(tmp_path):
    place = write_matrix(
        tmp_path / "p", "probe", FALLEN, runs=["01-a"], params=[110, 120, 130], heads=[10, 10, 10]
    )
    (place / "01-a").mkdir()
    (place / "01-a" / "result.json").write_text('{"params": {"universal": 50}}')
    assert asked(tmp_path).table.loc["probe", "multiple"] == 2


def test_runs_of_two_sequences_are_refused(pair):
    write_matrix(pair / "other", "ewc", FALLEN, tasks=("a", "b", "c"))
    with pytest.raises(
        BadInput, match=r"learn several sequences of tasks .* one sequence at a time"
    ):
        asked(pair)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"method": "ewc", "seed": 0, "tasks": ["a"]}', "it has no field 'accuracy'"),
        (
            '{"method": "ewc", "seed": 0, "tasks": ["a"], "accuracy": [[1], [1, 1]]}',
            "row 2 of its accuracy has 2 numbers, of a sequence of 1",
        ),
        (
            '{"method": "ewc", "seed": 0, "tasks": ["a", "b"], "accuracy": [[1, 1]]}',
            "row 1 of its accuracy has 2 numbers",
        ),
        ('{"method": "ewc", "seed": 0, "tasks": ["a"], "accuracy": []}', "no task is in it"),
    ],
)
def test_a_damaged_matrix_is_one_line(tmp_path, text, said):
    (tmp_path / "matrix.json").write_text(text)
    with pytest.raises(BadInput) as refused:
        read([tmp_path])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_sequence_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"holds no matrix\.json"):
        read([tmp_path])
    with pytest.raises(BadInput, match="does not exist"):
        read([tmp_path / "gone"])


# The picture.


def test_cells_show_the_metric_of_each_task_when_each_was_learned(pair):
    panels = asked(pair).figure.subfigs[0].axes
    assert [axes.get_title(loc="left") for axes in panels[:2]] == ["independent", "finetune"]
    texts = [text.get_text() for text in panels[1].texts]
    assert texts == ["85", "95", "65", "55", "45", "75"]  # means of two seeds, no upper triangle


def test_a_method_that_forgets_nothing_has_no_colour(pair):
    still, fallen = (axes.collections[0] for axes in asked(pair).figure.subfigs[0].axes[:2])
    assert (still.get_array() == 0).all()
    assert [round(v, 6) for v in fallen.get_array()] == [0, 0.1, 0, -0.3, -0.2, 0]
    clear = still.cmap(still.norm(0.0))
    assert clear[3] == 0  # paper
    assert fallen.cmap(fallen.norm(-0.3))[3] > 0.5


def test_curves_show_all_tasks_the_first_task_and_what_is_kept(pair):
    so_far, first, size = asked(pair).figure.subfigs[1].axes

    def line(axes):
        found = next(line for line in axes.lines if line.get_label() == "finetune")
        return [round(float(v), 6) for v in found.get_ydata()]

    assert line(so_far) == [85, 80, round(100 * (1.6 / 3 + 0.05), 6)]
    assert line(first) == [85, 95, 55]
    assert line(size) == [1010, 1025, 1037]


def test_variants_of_a_method_differ_by_their_dashes(tmp_path):
    write_study(tmp_path, seeds=(0,))
    lines = asked(tmp_path).figure.subfigs[1].axes[0].lines
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(lines) == 10


# The report.


def test_a_report_on_sequences_shows_matrices_before_the_runs_of_each_task(tmp_path):
    folders = []
    for method in ("finetune", "probe"):
        out = tmp_path / method
        runs = [f"0{place}-{task}" for place, task in enumerate(TASKS[:3], 1)]
        folders.append(write_matrix(out, method, FALLEN, runs=runs))
        for run, task in zip(runs, TASKS, strict=False):
            write_run(out / run, method, task=task)
    write_report(folders, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles[0] == "## 3 tasks, one after the other, 2 methods"
    assert (tmp_path / "report_files" / "sequence-1.png").stat().st_size > 500
    write_report(folders, tmp_path / "report.json")
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["task"] for row in rows] == [*TASKS[:3], *TASKS[:3]]


# The verb.


def call(capsys, *args):
    code = cli.main([str(a) for a in args])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_verb_prints_a_table_and_writes_every_format(capsys, pair):
    for suffix in answers.FORMATS:
        out = pair / f"answer{suffix}"
        code, told, _ = call(capsys, "forgetting", pair, "--out", out)
        assert (code, out.stat().st_size > 500) == (0, True)
        assert "finetune" in told
    rows = json.loads((pair / "answer.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == ["independent", "finetune"]
    assert rows[1]["bytes"] is None  # what no run knows


def test_a_folder_without_sequences_exits_with_two(capsys, tmp_path):
    code, out, err = call(capsys, "forgetting", tmp_path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
