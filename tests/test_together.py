"""Several tasks on one trunk: each ends with what it would end with alone, bit for bit."""

from __future__ import annotations

import json
from collections import deque

import pytest
import torch

from demos import _small_tasks
from students import bn_adapt, residual_adapters
from tailor import board, cli
from tailor.board import Watch
from tailor.errors import BadInput
from tailor.progress import Silent
from tailor.run import Run
from tailor.settings import Settings
from tailor.together import Member, fit_together
from tailor.train import Diverged, fit
from tailor.turns import in_turn
from tests import tiny
from tests.tiny import Interrupted, Until, log_of

METHODS = ("taps", "probe", "finetune", "bn_adapt", "parallel", "series")


def settings(**changed):
    return Settings(**({"epochs": 3, "batch": 8, "lr": 0.05, "log_every": 2} | changed))


def student_of(method, backbone):
    if method == "bn_adapt":
        return bn_adapt.build(backbone, tiny.CLASSES, bn_adapt.Config(), seed=1)
    if method in ("parallel", "series"):
        config = residual_adapters.Config(adapters=method, init="he")
        return residual_adapters.build(backbone, tiny.CLASSES, config, seed=1)
    return tiny.student(method, backbone)


def trunk():
    """With dropout, which some students leave on and others off."""
    return tiny.conv_net(dropout=0.3)


def member(method, backbone, *, seed=0, run=None, progress=None, **how):
    return Member(
        student=student_of(method, backbone),
        train=tiny.batches(40, 8, train=True, seed=seed),
        val=tiny.batches(20, 8, train=False, seed=seed + 1),
        settings=settings(**how),
        run=run,
        progress=progress,
    )


def alone(method, backbone, **options):
    one = member(method, backbone, **options)
    fit(one.student, one.train, one.val, one.settings, run=one.run)
    return one.student


def tensors(student):
    return {name: tensor.clone() for name, tensor in student.task.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_together_equals_alone_bit_for_bit():
    shared = trunk()
    before = shared.fingerprint()
    # Of different lengths and data, so that some train while others have ended.
    plans = [(m, {"seed": i, "epochs": 2 + i % 3}) for i, m in enumerate(METHODS)]
    members = [member(m, shared, **options) for m, options in plans]
    fit_together(members)
    assert shared.fingerprint() == before
    for (method, options), one in zip(plans, members, strict=True):
        expected = alone(method, trunk(), **options)
        assert same(tensors(one.student), tensors(expected)), method


class Told(Silent):
    """Writes down whose step it is, and what a student holds when it has ended."""

    def __init__(self, name, story, student=None):
        self.name, self.story, self.student = name, story, student
        self.at_the_end = None

    def advance(self, steps, seen):
        self.story += self.name * steps

    def end(self):
        self.story += self.name.upper()


def test_everybody_takes_one_step_in_turn_and_leaves_when_done():
    shared, story = trunk(), []
    # 5 steps per epoch: one epoch, and two
    short = member("probe", shared, epochs=1, progress=Told("a", story))
    long = member("taps", shared, epochs=2, progress=Told("b", story))
    fit_together([short, long])
    assert "".join(story) == "ab" * 5 + "A" + "b" * 5 + "B"


def test_an_idle_task_does_not_drift():
    shared = trunk()
    kept = {}

    class Keeps(Silent):
        def end(self):
            kept.update(tensors(short.student))

    # With weight decay and momentum, which moved idle adapters in the published program.
    decay = {"weight_decay": 0.1, "select": "last"}
    short = member("parallel", shared, epochs=1, progress=Keeps(), **decay)
    fit_together([short, member("parallel", shared, seed=1, epochs=3, **decay)])
    assert kept
    assert same(tensors(short.student), kept)


def test_a_task_that_joins_at_run_time_changes_nobody():
    shared, queue = trunk(), deque()
    joined = []

    def join():
        joined.append(member("parallel", shared, seed=5))
        queue.append(joined[0])

    first = member("taps", shared, progress=Until(4, join))
    queue.append(first)
    assert len(fit_together(queue)) == 2
    assert same(tensors(first.student), tensors(alone("taps", trunk())))
    assert same(tensors(joined[0].student), tensors(alone("parallel", trunk(), seed=5)))


def test_interrupted_tasks_resume_to_the_same_weights(tmp_path):
    def session(cut):
        shared = trunk()
        runs = [Run(tmp_path / m, "adapt", {}) for m in ("taps", "probe")]
        found = [
            member("taps", shared, run=runs[0], checkpoint_seconds=0),
            member("probe", shared, run=runs[1], progress=Until(cut), epochs=4),
        ]
        try:
            fit_together(found)
        finally:
            for run in runs:
                run.close()
        return found

    with pytest.raises(Interrupted):
        session(12)
    found = session(None)
    undisturbed = [alone("taps", trunk()), alone("probe", trunk(), epochs=4)]
    for one, expected in zip(found, undisturbed, strict=True):
        assert same(tensors(one.student), tensors(expected))
    steps = [line["step"] for line in log_of(tmp_path / "probe") if line["kind"] == "epoch"]
    assert steps == [5, 10, 15, 20]


def test_a_task_that_diverges_does_not_stop_the_others():
    shared = trunk()
    good = member("taps", shared)
    # 3e38 is all but the largest float32: the second loss is infinite.
    bad = member("finetune", shared, lr=3e38, seed=1)
    with pytest.raises(Diverged, match="became infinite"):
        fit_together([bad, good])
    assert same(tensors(good.student), tensors(alone("taps", trunk())))


def test_an_exception_gives_every_training_free():
    ended = []

    def training(name):
        try:
            yield
            if name == "b":
                raise KeyboardInterrupt
            yield
        finally:
            ended.append(name)

    with pytest.raises(KeyboardInterrupt):
        in_turn(deque("abc"), training)
    assert sorted(ended) == ["a", "b", "c"]


def test_one_trunk_has_one_memory_format():
    shared = trunk()
    members = [member("taps", shared), member("probe", shared, channels_last=True)]
    with pytest.raises(BadInput, match="one trunk cannot be at"):
        fit_together(members)


def test_the_time_of_others_is_not_counted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    watch = Watch()
    now[0] += 2
    with watch.stopped():
        now[0] += 30
    now[0] += 1
    assert (watch.seconds(), watch.lap()) == (3, 3)
    now[0] += 4
    assert (watch.lap(), watch.seconds()) == (4, 7)


# The verb

NET = ["--backbone", "small_resnet", "--weights", "random", "--px", "16"]
FAST = ["--epochs", "1", "--batch", "16", "--lr", "0.05", "--device", "cpu"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    names = list(_small_tasks.SMALL)[:3]
    for name in names:
        _small_tasks.write(name, folder / name, train=48, test=16)
    return [f"npz:{folder / name}" for name in names]


def call(capsys, *args):
    capsys.readouterr()
    code = cli.main([str(a) for a in args])
    told = capsys.readouterr()
    return code, told.out, told.err


def content(run):
    return (run / "student.safetensors").read_bytes()


def test_the_verb_trains_each_task_as_adapt_would(tasks, tmp_path, capsys):
    how = ["--method", "taps", *NET, *FAST]
    code, out, _ = call(
        capsys, "together", "--task", *tasks, *how, "--out", tmp_path / "many", "--json"
    )
    assert code == 0
    rows = json.loads(out)
    names = [task.rpartition("/")[2] for task in tasks]
    assert [row["task"] for row in rows] == names
    assert [row["run"] for row in rows] == [str(tmp_path / "many" / name) for name in names]
    for task, name in zip(tasks, names, strict=True):
        code, *_ = call(capsys, "adapt", "--task", task, *how, "--out", tmp_path / name)
        assert code == 0
        assert content(tmp_path / name) == content(tmp_path / "many" / name)


def test_one_more_task_trains_only_that_one(tasks, tmp_path, capsys):
    how = ["--method", "probe", *NET, *FAST, "--out", tmp_path / "many"]
    assert call(capsys, "together", "--task", *tasks[:2], *how)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "many").glob("*/[!.]*")}
    code, out, err = call(capsys, "together", "--task", *tasks, *how)
    assert code == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    third = tasks[2].rpartition("/")[2]
    # One line per epoch that was trained: all of the new task.
    assert [line.split(":")[0] for line in err.splitlines()] == [f"adapt {third}"]
    assert all(task.rpartition("/")[2] in out for task in tasks)


def test_tasks_that_cannot_train_are_told_and_the_others_are_trained(tasks, tmp_path, capsys):
    how = [*NET, *FAST, "--out", tmp_path / "many", "--method", "probe"]
    second = tasks[1].rpartition("/")[2]
    (tmp_path / "many" / second).mkdir(parents=True)
    (tmp_path / "many" / second / "letter.txt").write_text("mine")
    code, out, err = call(capsys, "together", "--task", *tasks[:2], *how, "--json")
    assert code == 2
    assert f"1 of 2 tasks failed, the first, {second}, with: " in err
    assert "is no run directory but holds 'letter.txt'" in err.splitlines()[-1]
    good, bad = json.loads(out)
    assert good["val"] is not None
    assert set(bad) == {"run", "task", "failed"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--task"], "no task to adapt to; give --task one or more names"),
        (["--task", "digits", "folder:/x/digits"], "would both train in"),
        (["--task", "digits", "--teacher", "a", "b"], "2 teachers for 1 tasks; give --teacher one"),
        (["--task", "digits", "--epochs", "0"], "epochs is 0"),
        (["--task", "digits", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line(args, said, tmp_path, capsys):
    code, out, err = call(capsys, "together", *args, *NET, "--out", tmp_path / "many")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "many").exists()
