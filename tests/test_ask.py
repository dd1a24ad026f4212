"""Questions from the shell: every verb answers, in a table, in JSON and in every format."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from analysis import answer as answers
from analysis.answer import Answer, records, texts
from tailor import cli
from tailor.ask import OPTIONS, QUESTIONS
from tailor.errors import BadInput
from tests.synthetic_runs import write_nettailor_study, write_run, write_study
from tests.test_worth import write_measured

EASY = [verb for verb in OPTIONS if verb not in ("blocks", "worth", "forgetting")]


def call(capsys, *args):
    """Exit code, standard output, standard error of one command in this process."""
    capsys.readouterr()
    code = cli.main([str(a) for a in args])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The directory of a sweep over two tasks, an unfinished run among its runs."""
    root = tmp_path_factory.mktemp("sweep")
    runs = write_study(root, "digits") + write_study(root, "svhn")
    (runs[-1] / "result.json").unlink()
    (root / "sweep.json").write_text('{"schema": 1}')
    return root


def test_every_question_is_a_verb_with_an_answer():
    assert OPTIONS.keys() == QUESTIONS.keys()
    assert QUESTIONS.items() <= cli.VERBS.items()


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_teaches_with_an_example(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"tailor {verb} " in shown.partition("Example:")[2]
    assert "--out" in shown


@pytest.mark.parametrize("verb", EASY)
def test_a_sweep_is_answered_in_a_table(capsys, sweep, verb):
    code, out, err = call(capsys, verb, sweep)
    assert (code, err) == (0, "")
    assert "taps λ=0.3" in out


@pytest.mark.parametrize("verb", EASY)
def test_json_is_one_document_of_title_and_rows(capsys, sweep, verb):
    code, out, _ = call(capsys, verb, sweep, "--json")
    told = json.loads(out)
    assert code == 0
    assert told.keys() == {"title", "rows"}
    assert all("setting" in row for row in told["rows"])


def test_blocks_and_worth_answer_from_the_shell(capsys, tmp_path):
    runs = write_nettailor_study(tmp_path, depth=18, remove=3)
    told = json.loads(call(capsys, "blocks", *runs, "--json")[1])
    assert [row["setting"] for row in told["rows"]] == ["nettailor λ=0.3 retrained"]
    run = write_measured(tmp_path / "w", {"a": 0.8, "b": 0.9})
    told = json.loads(call(capsys, "worth", run, "--json")[1])
    assert [(row["part"], round(row["worth"], 9)) for row in told["rows"]] == [("a", 10), ("b", 0)]


@pytest.mark.parametrize("suffix", answers.FORMATS)
def test_every_format_is_written(capsys, sweep, tmp_path, suffix):
    out = tmp_path / "deep" / f"answer{suffix}"
    code, shown, _ = call(capsys, "pareto", sweep, "--cost", "macs", "--out", out)
    assert code == 0
    assert f"written: {out}" in shown
    begins = {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF", ".csv": b"task,setting,seeds"}
    begins |= {".md": b"# Accuracy against MACs", ".json": b"{"}
    assert out.read_bytes().startswith(begins[suffix])


def test_what_is_written_holds_the_rows_that_json_prints(capsys, sweep, tmp_path):
    told = json.loads(call(capsys, "layers", sweep, "--json", "--out", tmp_path / "a.json")[1])
    assert json.loads((tmp_path / "a.json").read_text()) == told
    call(capsys, "layers", sweep, "--out", tmp_path / "a.csv")
    frame = pd.read_csv(tmp_path / "a.csv")
    assert frame.to_dict("records") == told["rows"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "no run given; name run directories, as in `tailor pareto runs/svhn/*`"),
        (("{sweep}", "--out", "a.html"), "--out 'a.html': the suffix must be one of .png, .svg"),
        (("{sweep}", "--out", "{folder}.png"), "is a folder; name a file in it"),
        (("{folder}",), "is no run directory, it holds no run.json"),
        (("{empty}",), "has no finished run yet; repeat its `tailor sweep` command"),
        (("{unfinished}",), "is not finished; finish it by repeating its command"),
    ],
)
def test_bad_input_is_one_line(capsys, sweep, tmp_path, args, said):
    places = {name: tmp_path / name for name in ("folder", "empty", "unfinished")}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "sweep.json").write_text("{}")
    (write_run(tmp_path / "unfinished", "probe") / "result.json").unlink()
    code, out, err = call(capsys, "pareto", *(a.format(sweep=sweep, **places) for a in args))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_bad_place_is_refused_before_anything_is_read(capsys):
    code, _, err = call(capsys, "layers", "nowhere", "--out", "a.xyz")
    assert (code, "the suffix must be" in err) == (2, True)


@pytest.mark.parametrize("verb", ["layers", "agreement", "pareto", "scores"])
def test_a_table_of_one_task_fits_80_columns(capsys, tmp_path, verb):
    runs = write_study(tmp_path, stages=True)
    lines = call(capsys, verb, *runs)[1].splitlines()
    table = [line.rstrip() for line in lines if line.startswith(" ")]
    assert len(table) > 3
    assert max(map(len, table)) <= 80


def test_unknown_numbers_are_null_in_json_and_a_dash_for_people():
    frame = pd.DataFrame({"a": [math.nan, 0.123456], "b": [True, False]}, index=["x", "y"])
    frame = frame.rename_axis("setting")
    assert records(frame) == [
        {"setting": "x", "a": None, "b": True},
        {"setting": "y", "a": 0.123456, "b": False},
    ]
    assert texts(frame).to_numpy().tolist() == [["x", "–", "yes"], ["y", "0.1235", "no"]]


def test_an_answer_without_a_picture_is_not_drawn(tmp_path):
    frame = pd.DataFrame({"a": [1.0]}, index=["x"]).rename_axis("setting")
    answer = Answer("title", "text", frame, None)
    with pytest.raises(BadInput, match="there is nothing to draw here, only numbers"):
        answers.write(answer, tmp_path / "a.png")
    answers.write(answer, tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text().splitlines()[-1] == "| x | 1 |"
