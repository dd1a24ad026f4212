"""Sweeps as users run them: workers that die lose nothing and repeat nothing."""

import contextlib
import io
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from tailor import cli, workflow
from tailor.options import Data, Net, Sweep, Teach
from tailor.settings import Recipe, Settings
from tailor.sweep import sweep
from tests import postgresql, processes

TINY = ["--backbone", "small_resnet", "--weights", "random", "--px", "16", "--limit", "100",
        "--epochs", "1", "--retrain-epochs", "1", "--threads", "1", "--device", "cpu"]  # fmt: skip
LARGER = ["--task", "digits", "--method", "taps", "finetune", "probe", "--lam", "1",
          "--seed", "0", "1", "2", "3", "4", "5", "6", "7"]  # fmt: skip
SAME = ("point", "status", "val", "test", "params", "macs", "bytes", "layers_adapted", "runs")


def call(capsys, *args):
    code = cli.main([str(a) for a in args])
    caught = capsys.readouterr()
    return code, caught.out, caught.err


def swept(capsys, *args):
    code, out, err = call(capsys, "sweep", *args, "--json")
    assert code == 0, err
    return json.loads(out)


def one_line(capsys, *args):
    code, out, err = call(capsys, "sweep", *args)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


def table(result):
    return [{name: trial.get(name) for name in SAME} for trial in result["trials"]]


# A grid of four trials.
SMALL = ["--task", "digits", *TINY, "--method", "taps", "probe", "--lam", "1", "--seed", "0", "1"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Folder and result of that grid, finished: to be read, and asked for again."""
    out, said = tmp_path_factory.mktemp("grid") / "sweep", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main(["sweep", *SMALL, "--out", str(out), "--json"]) == 0
    return out, json.loads(said.getvalue())


def test_a_grid_has_every_combination_once_and_references_no_price(grid):
    out, result = grid
    points = [{k: v for k, v in t["point"].items() if k != "backbone"} for t in result["trials"]]
    assert points == [
        {"task": "digits", "method": "taps", "lam": 1.0, "seed": 0},
        {"task": "digits", "method": "taps", "lam": 1.0, "seed": 1},
        {"task": "digits", "method": "probe", "seed": 0},
        {"task": "digits", "method": "probe", "seed": 1},
    ]
    assert (result["total"], result["done"], result["failed"]) == (4, 4, 0)
    noted = json.loads((out / "sweep.json").read_text())["studies"]["sweep"]
    assert noted["trials"] == {"total": 4, "done": 4, "failed": 0, "errors": []}
    assert [t["attempts"] for t in result["trials"]] == [1, 1, 1, 1]


def test_a_trial_says_what_its_run_says(grid):
    trial = grid[1]["trials"][0]
    (run,) = trial["runs"]
    result = json.loads((grid[0] / run / "result.json").read_text())
    assert (result["stage"], result["seed"], result["lam"]) == ("retrained", 0, 1.0)
    assert (trial["val"], trial["test"]) == (result["val"], result["test"])
    assert trial["params"] == pytest.approx(result["params"]["multiple"] - 1)
    assert trial["layers_adapted"] == result["layers_adapted"]


def test_a_sweep_trains_what_the_verbs_train(grid, tmp_path, capsys):
    run = grid[1]["trials"][2]["runs"][0]
    out = tmp_path / "probe"
    same = ["--px", 16, "--limit", 100, "--epochs", 2, "--device", "cpu", "--seed", 0]
    code, _, err = call(
        capsys, "teach", "--task", "digits", "--backbone", "small_resnet", "--weights", "random",
        "--mode", "probe", *same, "--out", out,
    )  # fmt: skip
    assert code == 0, err
    there, here = grid[0] / run / "student.safetensors", out / "student.safetensors"
    assert there.read_bytes() == here.read_bytes()


def test_a_finished_sweep_is_shown_without_training(grid, capsys):
    out, first = grid
    files = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert swept(capsys, *SMALL, "--out", out) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == files


def test_the_order_of_values_makes_no_other_sweep(grid, capsys):
    out, first = grid
    other = list(map(str, SMALL))
    other[other.index("taps")], other[other.index("probe")] = "probe", "taps"
    other[-2:] = ["1", "0"]
    again = swept(capsys, *other, "--out", out)
    by_point = lambda line: json.dumps(line["point"], sort_keys=True)  # noqa: E731
    assert sorted(table(again), key=by_point) == sorted(table(first), key=by_point)


def test_a_run_that_another_worker_finished_meanwhile_is_not_trained_again(tmp_path, monkeypatch):
    net, data = Net(backbone="small_resnet", weights="random"), Data(task="digits", px=16, limit=99)
    train = Settings(epochs=1, device="cpu")
    options = Teach(out=tmp_path / "run", mode="probe", data=data, net=net, train=train)
    first = workflow.teach(options)
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    # As a worker that looked before the other one was finished, and opens the run after.
    monkeypatch.setattr(workflow, "finished", lambda *_: None)
    assert workflow.teach(options) == first
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_another_study_finds_the_runs_of_the_first_by_their_content(tmp_path, capsys):
    first = swept(capsys, *SMALL, "--out", tmp_path / "sweep")
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("result.json")}
    wider = [*SMALL, "--option", "price=params", "--out", tmp_path / "sweep", "--study", "wider"]
    wider[wider.index("--seed") + 1 : wider.index("--seed") + 3] = [0, 1, 2]
    result = swept(capsys, *wider)
    assert result["total"] == 6
    same = [line for line in table(result) if line["point"]["seed"] < 2]
    assert same == table(first)
    assert (
        files.items()
        <= {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("result.json")}.items()
    )


def test_two_ways_to_prune_share_one_adapted_student(tmp_path, capsys):
    out = tmp_path / "sweep"
    result = swept(capsys, "--task", "digits", *TINY, "--lam", 1, "--seed", 0, "--rule", "count=5",
                   "budget=params=0.1,bytes=500000", "--out", out)  # fmt: skip
    assert [t["point"]["rule"] for t in result["trials"]] == [
        "count=5",
        "budget=params=0.1,bytes=500000",
    ]
    assert result["trials"][0]["layers_adapted"] == 15
    assert 0 < result["trials"][1]["params"] <= 0.11
    assert len([*out.glob("digits/*/log.jsonl")]) == 3  # one adapted, two retrained


def test_nettailors_trials_of_one_seed_share_their_teacher(tmp_path, capsys):
    out = tmp_path / "sweep"
    result = swept(capsys, "--task", "digits", *TINY, "--method", "nettailor", "--lam", 0.1, 1,
                   "--seed", 0, "--rule", "count=2", "--out", out)  # fmt: skip
    assert result["done"] == 2
    assert len([*out.glob("digits/small_resnet-finetune-s0-*")]) == 1
    assert all(trial["macs"] < 1 for trial in result["trials"])


def test_a_search_says_which_trials_no_other_beats(tmp_path, capsys):
    result = swept(capsys, "--task", "digits", *TINY, "--seed", 0, "--search", "lam=0.1..10",
                   "price=params,macs", "lr=0.01..0.02", "--trials", 4, "--objectives", "val",
                   "params", "latency", "--out", tmp_path / "sweep")  # fmt: skip
    trials = result["trials"]
    assert result["done"] == 4
    assert all(0.1 <= t["point"]["lam"] <= 10 for t in trials)
    assert all(0.01 <= t["point"]["lr"] <= 0.02 for t in trials)
    assert {t["point"]["price"] for t in trials} <= {"params", "macs"}
    assert all(t["latency"] > 0 for t in trials)
    values = [(-t["val"], t["params"], t["latency"]) for t in trials]
    best = [not any(all(a <= b for a, b in zip(o, v, strict=True)) and o != v for o in values)
            for v in values]  # fmt: skip
    assert [t["front"] for t in trials] == best


def test_a_search_may_choose_among_prices_that_are_named(tmp_path, capsys):
    result = swept(capsys, "--task", "digits", *TINY, "--seed", 0, "--search", "lam=0.1,1",
                   "--trials", 1, "--out", tmp_path / "sweep")  # fmt: skip
    (run,) = result["trials"][0]["runs"]
    told = json.loads((tmp_path / "sweep" / run / "result.json").read_text())["lam"]
    assert told == float(result["trials"][0]["point"]["lam"])


def test_a_search_averages_each_trial_over_the_seeds(tmp_path, capsys):
    out = tmp_path / "sweep"
    (trial,) = swept(capsys, "--task", "digits", *TINY, "--seed", 0, 1, "--search", "lam=0.1..10",
                     "--trials", 1, "--out", out)["trials"]  # fmt: skip
    tests = [json.loads((out / r / "result.json").read_text())["test"] for r in trial["runs"]]
    assert len(tests) == 2
    assert trial["test"] == pytest.approx(sum(tests) / 2)


def test_a_search_may_be_asked_for_more_trials_later(tmp_path, capsys):
    search = ["--task", "digits", *TINY, "--seed", 0, "--search", "lam=0.1..10", "--out",
              tmp_path / "sweep", "--trials"]  # fmt: skip
    first, more = swept(capsys, *search, 1), swept(capsys, *search, 2)
    assert more["total"] == 2
    assert table(more)[:1] == table(first)


def test_several_processes_of_one_command(grid, tmp_path, capsys):
    code, out, err = call(
        capsys, "sweep", *SMALL, "--processes", 2, "--out", tmp_path / "two", "--json"
    )
    assert code == 0, err
    assert table(json.loads(out)) == table(grid[1])


def test_python_and_shell_do_the_same(grid, tmp_path):
    options = Sweep(
        out=tmp_path / "python", task=("digits",), backbone=("small_resnet",), weights="random",
        method=("taps", "probe"), lam=(1.0,), seed=(0, 1), retrain_epochs=1,
        train=Recipe(epochs=1, device="cpu", select="last", schedule="constant"),
        images=Sweep.__dataclass_fields__["images"].default_factory().__class__(px=16, limit=100),
    )  # fmt: skip
    assert table(sweep(options)) == table(grid[1])


def test_a_trial_that_diverges_fails_alone_and_is_named(tmp_path, capsys):
    args = ["--task", "digits", *TINY, "--seed", 0, "--search", "lr=1,1e30", "--trials", 6,
            "--out", tmp_path / "sweep"]  # fmt: skip
    code, _, err = call(capsys, "sweep", *args, "--json")
    assert code == 2
    assert "trials failed" in err
    assert "--retry-failed" in err


# --- workers that are killed -----------------------------------------------------------------


def _busy(log: Path) -> bool:
    """Whether a worker is in the middle of a trial, by what it printed."""
    text = log.read_text() if log.exists() else ""
    return text.count(": begins") > text.count(": done")


def _disturbed(args: list[str], logs: Path, kills: int) -> None:
    """Three workers; every time one is busy, at a random moment later, one is killed by -9 and
    another takes its place."""
    chance = random.Random(0)
    started = 0

    def start():
        nonlocal started
        started += 1
        log = logs / f"worker-{started}"
        return processes.start(cli.main, args, output=log), log

    workers = [start() for _ in range(3)]
    for _ in range(kills):
        place = chance.randrange(3)
        until = time.monotonic() + 60
        while not _busy(workers[place][1]):
            assert time.monotonic() < until
            assert workers[place][0].is_alive(), workers[place][1].read_text()
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.3))
        os.kill(workers[place][0].pid, signal.SIGKILL)
        workers[place][0].join()
        workers[place] = start()
    for worker, log in workers:
        assert processes.finish(worker) == 0, log.read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "undisturbed"
    log = out.with_suffix(".log")
    args = ["sweep", *LARGER, *TINY, "--out", str(out), "--json"]
    assert processes.finish(processes.start(cli.main, args, output=log)) == 0, log.read_text()
    return json.loads(log.read_text().splitlines()[-1])


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_24_trials_of_3_workers_of_which_5_are_killed(database, undisturbed, tmp_path, capsys):
    def check(storage: list[str]) -> None:
        args = ["sweep", *LARGER, *TINY, "--heartbeat", "1", "--out", str(tmp_path / "sweep")]
        _disturbed([*args, *storage], tmp_path, kills=5)
        result = swept(capsys, *args[1:], *storage)
        assert (result["total"], result["done"], result["failed"]) == (24, 24, 0)
        assert table(result) == table(undisturbed)
        lost = sum(trial["attempts"] - 1 for trial in result["trials"])
        assert 1 <= lost <= 5
        assert len({t["trial"] for t in result["trials"]}) == 24
        # What was begun before a kill was continued, not done again: one directory for each.
        finals = [*(tmp_path / "sweep").glob("digits/*-retrained1/result.json")]
        assert len(finals) == 8

    if database == "sqlite":
        check([])
    else:
        with postgresql.server() as server:
            check(["--storage", server.url.replace("tailor@", "tailor:secret@")])
        said = [p for p in (tmp_path / "sweep").rglob("*.json") if "secret" in p.read_text()]
        assert said == []


def test_an_interrupted_worker_gives_its_trial_back_at_once(tmp_path, capsys):
    args = [
        "sweep",
        "--task",
        "digits",
        *TINY,
        "--method",
        "finetune",
        "--seed",
        "0",
        "--retrain-epochs",
        "30",
        "--heartbeat",
        "60",
        "--out",
        str(tmp_path / "sweep"),
    ]
    log = tmp_path / "worker"
    worker = processes.start(cli.main, args, output=log)
    until = time.monotonic() + 60
    while not [*tmp_path.glob("sweep/digits/*/last.safetensors")]:
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGTERM)
    assert processes.finish(worker) == 130, log.read_text()
    began = time.monotonic()
    result = swept(capsys, *args[1:])  # would wait for three minutes, were the worker only missed
    assert result["trials"][0]["attempts"] == 2
    assert time.monotonic() - began < 60
    (run,) = tmp_path.glob("sweep/digits/*")
    epochs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in epochs if e["kind"] == "epoch"] == [*range(1, 32)]


# --- bad input --------------------------------------------------------------------------------

BAD = {
    "unknown method": (["--method", "tap"], "unknown method 'tap': did you mean taps"),
    "unknown task": (["--task", "digit"], "unknown task 'digit'"),
    "no price": (["--method", "probe", "--lam", "1"], "none of probe has a price"),
    "a price twice": (["--lam", "1", "1"], "lam 1.0 is given twice"),
    "a negative price": (["--lam", "-1"], "a price cannot be negative"),
    "an option of nobody": (["--option", "prise=macs"], "unknown option 'prise'"),
    "an option's value": (["--option", "price=gold"], "'gold' is no value of price"),
    "a rule": (["--rule", "number=3"], "rule 'number=3': give options of `tailor prune`"),
    "a range of words": (["--search", "lam=low..high"], "give a range of numbers"),
    "an empty range": (["--search", "lam=3..1"], "the range is empty"),
    "a search over tasks": (
        ["--task", "digits", "characters", "--search", "lam=1..2"],
        "one task, but 2 are given",
    ),
    "processes": (["--processes", "0"], "processes is 0"),
    "no validation": (["--val-share", "0"], "digits has none of its own; give --val-share 0.1"),
    "storage": (["--storage", "mysql://a/b"], "sqlite and postgresql are supported"),
    "no folder": (["--out", "/dev/null/sweep"], "a part of that path is a file"),
    "unreachable": (["--storage", "postgresql://u:secret@127.0.0.1:1/x"], "cannot be reached"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_any_work(case, tmp_path, capsys):
    more, said = BAD[case]
    if case == "unreachable":
        pytest.importorskip("psycopg")
    task = [] if "--task" in more else ["--task", "digits"]
    out = [] if "--out" in more else ["--out", tmp_path / "sweep"]
    error = one_line(capsys, *task, *TINY, "--seed", 0, *more, *out)
    assert said in error
    assert "secret" not in error
    assert not [*tmp_path.rglob("result.json")]


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "no folder of a sweep but holds 'thesis.tex'" in one_line(
        capsys, *SMALL, "--out", tmp_path
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"schema": 1}', '{"schema": 1, "images": 3}'])
def test_a_damaged_note_of_a_sweep_is_one_line(text, tmp_path, capsys):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text(text)
    error = one_line(capsys, *SMALL, "--out", tmp_path / "sweep")
    assert "sweep.json" in error
    assert "damaged" in error or "cannot be read" in error


def test_another_search_space_is_refused_and_finished_trials_stay(tmp_path, capsys):
    first = swept(capsys, *SMALL, "--out", tmp_path / "sweep")
    other = ["10" if word == "1" else word for word in map(str, SMALL)]
    other[other.index("--seed") + 2] = "1"
    error = one_line(capsys, *other, "--out", tmp_path / "sweep")
    assert "another search space (lam: [1.0] there, [10.0] now)" in error
    assert swept(capsys, *SMALL, "--out", tmp_path / "sweep") == first


def images(root, shade):
    """Two classes of four training images and one test image."""
    for split, count in (("train", 4), ("test", 1)):
        for k, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = Image.new("RGB", (16 + i, 16), (shade, 99 * k, i))
                image.save(root / split / name / f"{i}.bmp")


def test_other_images_under_the_same_keys_are_refused_and_finished_trials_stay(tmp_path, capsys):
    task, out = f"folder:{tmp_path / 'data'}", tmp_path / "sweep"
    images(tmp_path / "data", 0)
    tiny = [
        *TINY[: TINY.index("--limit")],
        *TINY[TINY.index("--limit") + 2 :],
        "--crop",
        "none",
        "--batch",
        "4",
    ]
    args = ["--task", task, *tiny, "--val-share", 0.3, "--method", "probe", "--seed", 0, 1]
    first = swept(capsys, *args, "--out", out)
    (tmp_path / "data" / "train" / "a" / "0.bmp").unlink()
    said = f"{out} holds runs on other images or labels of {task}"
    assert said in one_line(capsys, *args, "--out", out)
    assert said in one_line(capsys, *args, "--out", out, "--study", "another")
    elsewhere = one_line(
        capsys, *args, "--out", tmp_path / "new", "--study", "sweep",
        "--storage", f"sqlite:///{out / 'sweep.db'}",
    )  # fmt: skip
    assert f"was started with other images or labels of {task}" in elsewhere
    images(tmp_path / "data", 0)
    assert swept(capsys, *args, "--out", out) == first
