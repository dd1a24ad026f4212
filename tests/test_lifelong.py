"""Sequences of tasks: what is forgotten, what is not, and what survives a kill."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from students import ewc, finetune, independent, probe, side_tuning
from tailor import catalog, cli, course, learner, lifelong, lifelong_show, outcome, progress, shrink
from tailor.account import Account, trunk_read_by
from tailor.backbone import Backbone
from tailor.data import Batches
from tailor.errors import BadInput
from tailor.learner import open_sequence
from tailor.opened import open_run
from tailor.options import Images, Lifelong, Net, Prune
from tailor.progress import Silent
from tailor.run import read_json, read_tensors, write_tensors
from tailor.sequence import check_disjoint, defaults, folder_names, tasks_of
from tailor.sequences import icifar
from tailor.settings import Settings
from tailor.task import Pixels, Split, open_task
from tailor.view import View
from tests import tiny
from tests.tiny import Interrupted, Until

TASKS = ("classes:digits:0-2", "classes:digits:3-5", "classes:digits:6-8")
NAMES = ("01-digits_0-2", "02-digits_3-5", "03-digits_6-8")
NET = Net(backbone="small_resnet", weights="random")
IMAGES = Images(px=16, limit=48, crop="none")
TRAIN = Settings(
    epochs=1, batch=16, lr=0.01, optimizer="adam", select="last", schedule="constant", device="cpu"
)


def options(out, method="finetune", *, settings=None, tasks=TASKS, **changed):
    config = catalog.load("students", method, "method").Config()
    made = {
        "out": out,
        "task": tasks,
        "method": method,
        "images": IMAGES,
        "net": NET,
        "settings": config if settings is None else settings,
        "train": TRAIN,
    }
    return Lifelong(**(made | changed))


def learned(out, method="finetune", **changed):
    return lifelong.run(options(out, method, **changed))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """A finished sequence of a method that shares its body."""
    out = tmp_path_factory.mktemp("finetuned") / "run"
    return out, learned(out)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of the same sequence, of which only two tasks are learned."""
    out = tmp_path_factory.mktemp("pair") / "run"
    learned(out, tasks=TASKS[:2])
    return out


def images(count=4):
    return tiny.noise(count, 3, 16, 16)


def watch_first(monkeypatch):
    """The logits of the first task on some images, whenever it is measured."""
    seen, measure = [], course.Course._measure

    def measured(self, student, place):
        found = measure(self, student, place)
        if place == 0:
            with torch.inference_mode():
                seen.append(student(images()).logits.clone())
        return found

    monkeypatch.setattr(course.Course, "_measure", measured)
    return seen


# Forgetting


def independents():
    """Every method whose tasks share nothing that is trained."""
    found = []
    for name in catalog.names("students"):
        method = catalog.load("students", name, "method")
        if not lifelong.shares(method, method.Config()):
            found.append(name)
    return found


@pytest.mark.parametrize("method", independents())
def test_methods_on_a_frozen_backbone_forget_nothing_bit_for_bit(method, tmp_path, monkeypatch):
    settings = None
    if method == "nettailor":  # its teachers would be trained, too: not what is asked here
        config = catalog.load("students", method, "method").Config
        settings = config(distill=0.0)
    seen = watch_first(monkeypatch)
    found = learned(tmp_path / "run", method, settings=settings)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    for table in (found["accuracy"], found["loss"]):
        assert [len(row) for row in table] == [1, 2, 3]
        assert all(row[k] == table[k][k] for row in table for k in range(len(row)))
    assert found["alone"] == [row[-1] for row in found["accuracy"]]
    after = open_sequence(tmp_path / "run").predict(images(), 1)
    assert torch.equal(after, seen[0])


def test_a_shared_body_forgets(tmp_path, monkeypatch):
    seen = watch_first(monkeypatch)
    found = learned(tmp_path / "run")
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert len({row[0] for row in found["loss"]}) == 3


def test_a_task_ends_as_adapt_would_end_it_where_nothing_is_shared(tmp_path):
    learned(tmp_path / "run", "taps", tasks=TASKS[:2])
    text = (
        f"adapt --task {TASKS[1]} --method taps --backbone small_resnet --weights random --px 16 "
        f"--limit 48 --crop none --epochs 1 --batch 16 --lr 0.01 --optimizer adam --device cpu "
        f"--out {tmp_path / 'one'} --json"
    )
    assert cli.main(text.split()) == 0
    one, other = (
        read_tensors(run / "student.safetensors")[0]
        for run in (tmp_path / "one", tmp_path / "run" / NAMES[1])
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# What is left of a sequence


def test_a_run_is_the_state_after_its_task_and_the_learner_that_after_all(finetuned):
    out, _ = finetuned
    first, last = (open_run(out / name).student for name in (NAMES[0], NAMES[2]))
    found = open_sequence(out)
    body = dict(last.task.body.named_parameters())  # running statistics are each task's own
    for number in (1, 2, 3):
        now = found.student(number).task.body.named_parameters()
        assert all(torch.equal(tensor, body[name]) for name, tensor in now)
    assert not torch.equal(first.task.body.conv1.weight, last.task.body.conv1.weight)
    assert torch.equal(first.task.head.weight, found.student(1).task.head.weight)
    assert found.student(1).task.body.conv1.weight is found.student(3).task.body.conv1.weight


def test_the_learner_measures_what_the_last_row_says(finetuned):
    out, matrix = finetuned
    for number, value in enumerate(matrix["accuracy"][2], 1):
        assert learner.evaluate(out, number, device="cpu")["value"] == value
    said = learner.evaluate(out, "digits:3-5", device="cpu")
    assert (said["task"], said["split"], said["n"]) == ("digits:3-5", "test", 164)


@pytest.mark.parametrize("name", [2, "2", "digits:3-5", "classes:digits:3-5", "02-digits_3-5"])
def test_a_task_is_found_by_number_and_by_name(finetuned, name):
    assert open_sequence(finetuned[0]).find(name).run.name == "02-digits_3-5"


@pytest.mark.parametrize("name", [0, 4, "digits:6-9", ""])
def test_a_task_that_does_not_exist_is_refused_and_all_are_named(finetuned, name):
    with pytest.raises(BadInput) as error:
        open_sequence(finetuned[0]).student(name)
    assert f"there is no task {str(name)!r}" in str(error.value)
    assert "1 (digits:0-2), 2 (digits:3-5), 3 (digits:6-8)" in str(error.value)


def test_a_moved_sequence_is_opened_where_it_is(finetuned, tmp_path):
    shutil.copytree(finetuned[0], tmp_path / "moved")
    here, there = open_sequence(tmp_path / "moved"), open_sequence(finetuned[0])
    assert torch.equal(here.predict(images(), 2), there.predict(images(), 2))
    run = open_run(tmp_path / "moved" / NAMES[1])
    assert run.result["config"]["before"] == [NAMES[0]]


def test_the_matrix_file_is_what_run_returns(finetuned):
    out, matrix = finetuned
    assert read_json(out / "matrix.json") == json.loads(json.dumps(matrix))
    assert matrix["finished"] is True
    assert matrix["tasks"] == ["digits:0-2", "digits:3-5", "digits:6-8"]
    assert (matrix["split"], matrix["metric"]) == (["test"] * 3, ["top1"] * 3)
    sizes = [(out / name / "student.safetensors").stat().st_size for name in NAMES]
    assert matrix["bytes"] == [sizes[0], sum(sizes[:2]), sum(sizes)]
    results = [read_json(out / name / "result.json") for name in NAMES]
    assert matrix["seconds"] == [result["seconds"] for result in results]
    assert matrix["macs"] == [result["macs"]["student"] for result in results]
    assert [row[-1] for row in matrix["accuracy"]] == [result["test"] for result in results]


# Counting


def students_of(method, config, backbone, tasks=10, classes=10):
    found = []
    for _ in range(tasks):
        if found and hasattr(method, "sequel"):
            found.append(method.sequel(found, backbone, classes, config, seed=0))
        else:
            found.append(method.build(backbone, classes, config, seed=0))
    return found


ALPHA = side_tuning.Config(side="fcn4", fusion="alpha")


# The tables of side-tuning: ResNet-44 657,936, FCN4 25,904, head 650, alpha 1; ten tasks.
@pytest.mark.parametrize(
    ("method", "config", "total", "trained", "added"),
    [
        (finetune, finetune.Config(), 664_436, 658_586, [657_936] + 9 * [0]),
        (independent, independent.Config(), 6_585_860, 658_586, 10 * [657_936]),
        (probe, probe.Config(), 664_436, 650, 10 * [0]),
        (side_tuning, ALPHA, 923_486, 26_555, 10 * [25_905]),
    ],
)
def test_parameters_of_icifar_as_published(method, config, total, trained, added):
    backbone = Backbone.create("resnet44", weights="random", px=32)
    account = Account()
    counted = [account.add(student) for student in students_of(method, config, backbone)]
    assert counted[-1]["params"] == total
    assert [count["task_params"] for count in counted] == added
    assert {count["trainable"] for count in counted} == {trained}
    assert [count["heads"] for count in counted] == 10 * [650]


def test_the_trunk_counts_where_a_prediction_reads_it():
    backbone = tiny.conv_net()
    every = sum(p.numel() for p in backbone.parameters())
    read = {name: trunk_read_by(tiny.student(name, backbone)) for name in ("probe", "finetune")}
    assert sum(p.numel() for p in read["probe"]) == every
    assert read["finetune"] == []


def test_memory_is_counted_apart_and_once():
    backbone = tiny.conv_net()
    account, count = Account(), sum(p.numel() for p in backbone.parameters())
    students = students_of(ewc, ewc.Config(), backbone, tasks=2, classes=3)
    before = account.add(students[0])
    after = account.add(students[1])
    assert after["params"] == before["params"] + after["heads"] == count + 2 * (10 * 3 + 3)
    assert after["memory"] == before["memory"] > 0  # one memory that both share


# Kills


class Once:
    """A reporter that interrupts the training whose title holds a word, after so many steps."""

    def __init__(self, word: str, step: int) -> None:
        self.word, self.step = word, step

    def __call__(self, title: str):
        return Until(self.step) if self.word in title else Silent()


def state(out):
    """Everything that a sequence keeps, times left out."""
    matrix = read_json(out / "matrix.json")
    tensors = {
        f"{name}/{file.name}": read_tensors(file)[0]
        for name in NAMES
        for file in sorted((out / name).glob("[sm]*.safetensors"))
    }
    matrix = {k: v for k, v in matrix.items() if k not in ("seconds", "run")}
    return matrix, tensors


def equal(one, other):
    (first, tensors), (second, others) = one, other
    assert first == second
    assert tensors.keys() == others.keys()
    for file, found in tensors.items():
        assert all(torch.equal(tensor, others[file][n]) for n, tensor in found.items()), file


LONG = dataclasses.replace(TRAIN, epochs=2, checkpoint_seconds=0.0)  # 2 steps per epoch


@pytest.mark.parametrize("method", ["finetune", "ewc"])
def test_a_killed_sequence_goes_on_to_the_same_weights(method, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    learned(whole, method, train=LONG)
    # In the first task, at the end of an epoch of the second, and in its last step.
    for word, step in (("1 of 3", 1), ("2 of 3", 2), ("2 of 3", 4)):
        with pytest.raises(Interrupted):
            lifelong.run(options(cut, method, train=LONG), tell=Once(word, step))
    learned(cut, method, train=LONG)
    equal(state(whole), state(cut))


@pytest.mark.parametrize("place", ["learned", "result.json", "matrix.json"])
def test_a_kill_between_two_files_loses_nothing(place, finetuned, tmp_path, monkeypatch):
    out = tmp_path / "run"

    # Of the second task: before it consolidates, before its result, before its row.
    owner, name = {
        "learned": (course.Link, "learned"),
        "result.json": (outcome, "write_json"),
        "matrix.json": (course, "write_json"),
    }[place]
    real = getattr(owner, name)

    def dying(*args, **more):
        if place == "learned":
            second = bool(args[0].before)
        else:
            second = args[0].name == place and NAMES[1] in f"{args}"
        if second:
            raise Interrupted
        return real(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, dying)
        with pytest.raises(Interrupted):
            learned(out)
    learned(out)
    equal(state(finetuned[0]), state(out))


def test_a_finished_sequence_is_shown_and_not_touched(finetuned, monkeypatch):
    out, matrix = finetuned
    before = {p: p.stat().st_mtime_ns for p in out.rglob("[!.]*") if p.is_file()}
    monkeypatch.setattr(course.Course, "_learn", lambda *_, **__: pytest.fail("learned again"))
    assert learned(out) == matrix
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_more_tasks_go_on_where_the_sequence_ended(finetuned, tmp_path):
    out = tmp_path / "run"
    assert len(learned(out, tasks=TASKS[:2])["accuracy"]) == 2
    first = (out / NAMES[0] / "result.json").stat().st_mtime_ns
    learned(out)
    assert (out / NAMES[0] / "result.json").stat().st_mtime_ns == first
    equal(state(finetuned[0]), state(out))


def test_a_lost_matrix_is_measured_again_from_the_runs(finetuned, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finetuned[0], out)
    (out / "matrix.json").unlink()
    assert learned(out) | {"run": str(finetuned[0])} == finetuned[1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runs": []}'])
def test_a_damaged_matrix_says_how_to_get_it_back(finetuned, tmp_path, text):
    out = tmp_path / "run"
    shutil.copytree(finetuned[0], out)
    (out / "matrix.json").write_text(text)
    for read in (learned, open_sequence):
        with pytest.raises(BadInput, match=r"matrix.json is damaged .*; delete it and repeat"):
            read(out)


# One optimiser


def test_the_optimiser_goes_on_with_what_is_shared_alone(tmp_path, monkeypatch):
    met = []

    def begin(self, student, optimizer):
        real(self, student, optimizer)
        named = {p: n for n, p in student.task.named_parameters()}
        met.append({named[p]: s["step"].item() for p, s in optimizer.state.items()})

    real = course.Link.begin
    monkeypatch.setattr(course.Link, "begin", begin)
    learned(tmp_path / "run")
    # 48 images, a tenth of each class for validation: 42, in batches of 16 two steps per task.
    assert met[0] == {}
    for steps, state_ in ((2, met[1]), (4, met[2])):
        assert set(state_.values()) == {float(steps)}
        assert "body.conv1.weight" in state_
        assert not any(name.startswith("head") for name in state_)


def test_a_fresh_optimiser_gives_other_weights(finetuned, tmp_path):
    learned(tmp_path / "run", carry_optimizer=False)
    one, other = (
        [read_tensors(out / name / "student.safetensors")[0] for name in NAMES[:2]]
        for out in (finetuned[0], tmp_path / "run")
    )
    assert torch.equal(one[0]["body.conv1.weight"], other[0]["body.conv1.weight"])
    assert not torch.equal(one[1]["body.conv1.weight"], other[1]["body.conv1.weight"])


def test_only_the_last_optimiser_is_kept(finetuned):
    kept = [(finetuned[0] / name / "optimizer.safetensors").exists() for name in NAMES]
    assert kept == [False, False, True]


# Alone, gates, teachers


def test_alone_trains_every_task_as_the_first(finetuned, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finetuned[0], out)
    found = learned(out, alone=True)
    assert len(found["alone"]) == len(found["alone_loss"]) == 3
    assert found["alone"][0] == found["accuracy"][0][0]
    assert found["accuracy"] == finetuned[1]["accuracy"]
    other = learned(tmp_path / "other", "independent", tasks=TASKS[1:])
    assert found["alone_loss"][1:] == other["alone_loss"]
    one, two = (
        read_tensors(p / "student.safetensors")[0]["body.conv1.weight"]
        for p in (out / "alone" / NAMES[1], tmp_path / "other" / "01-digits_3-5")
    )
    assert torch.equal(one, two)


def test_a_gated_student_is_pruned_and_retrained_before_the_next_task(tmp_path):
    taps = catalog.load("students", "taps", "method")
    found = learned(
        tmp_path / "run",
        "taps",
        tasks=TASKS[:2],
        settings=taps.Config(lam=100.0),
        train=dataclasses.replace(TRAIN, lr_scores=10.0),
        images=dataclasses.replace(IMAGES, val_share=0.0),  # none of these verbs needs one
        retrain_epochs=1,
    )
    assert found["runs"] == [f"{name}-retrained" for name in NAMES[:2]]
    pruned = Prune(run=tmp_path / "run" / NAMES[0], out=tmp_path / "searched", within=1.0)
    with pytest.raises(BadInput, match="kept no validation images to search on"):
        shrink.prune(pruned)
    kept = read_json(tmp_path / "run" / f"{NAMES[1]}-pruned" / "result.json")["kept"]
    assert open_sequence(tmp_path / "run").student(2).kept() == kept
    assert len(kept) < 20  # convolutions of the backbone
    assert found["params"][0] < 2 * 700_000
    assert found["alone"] == [row[-1] for row in found["accuracy"]]


def test_a_method_that_distils_gets_a_teacher_of_each_task(tmp_path):
    nettailor = catalog.load("students", "nettailor", "method")
    found = learned(
        tmp_path / "run", "nettailor", tasks=TASKS[:2], settings=nettailor.Config(max_skip=1)
    )
    for name in NAMES[:2]:
        teacher = read_json(tmp_path / "run" / f"{name}-teacher" / "result.json")
        student = read_json(tmp_path / "run" / name / "result.json")
        assert teacher["stage"] == "teacher"
        assert student["config"]["teacher"] == str((tmp_path / "run" / f"{name}-teacher").resolve())
    times = [
        read_json(tmp_path / "run" / run / "result.json")["seconds"]
        for run in (f"{NAMES[0]}-teacher", NAMES[0])
    ]
    assert found["seconds"][0] == sum(times)


# Bad input


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": ()}, "no task to learn; give --task one or more names"),
        ({"task": ("digits", "digits")}, "task 'digits' is twice in the sequence"),
        ({"sequence": "icifar"}, "--sequence icifar brings its tasks; leave --task out"),
        ({"sequence": "icifur", "task": ()}, "unknown sequence 'icifur': did you mean icifar?"),
        ({"method": "finetone"}, "unknown method 'finetone': did you mean"),
        ({"task": ("classes:digits:0-4", "classes:digits:4-9")}, "share 1 class of digits, such"),
        ({"task": ("digits", "classes:digits:4-9")}, "share 6 classes of digits, such as 4 (4)"),
        (
            {"task": ("classes:digits:0-1", "classes:classes:digits:1-4:0-1")},
            "share 1 class of digits, such as 1 (1)",
        ),
        ({"task": ("digits", "folder:nowhere")}, "nowhere"),
        ({"retrain_epochs": 2}, "has nothing to prune; leave --retrain-epochs out"),
        ({"retrain_epochs": 0}, "retrain_epochs is 0; give 1 or more"),
        ({"train": dataclasses.replace(TRAIN, lr=0)}, "lr is 0"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(changed, said, tmp_path):
    asked = options(tmp_path / "run")
    with pytest.raises(BadInput) as error:
        lifelong.run(dataclasses.replace(asked, **changed))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_stays_as_it_is(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"is no run directory but holds 'letter.txt'"):
        learned(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": dataclasses.replace(TRAIN, lr=0.5)}, "train.lr: 0.01 there, 0.5 now"),
        ({"tasks": TASKS[:2]}, "holds the sequence classes:digits:0-2 classes:digits:3-5"),
        ({"tasks": TASKS[::-1]}, "repeat it, add tasks behind it, or choose another --out"),
        ({"carry_optimizer": False}, "carry_optimizer: True there, False now"),
    ],
)
def test_another_sequence_may_not_go_on_with_this_one(finetuned, changed, said):
    with pytest.raises(BadInput) as error:
        learned(finetuned[0], **changed)
    assert said in str(error.value)


def test_a_task_that_could_not_be_learned_binds_nobody(tmp_path, monkeypatch):
    out = tmp_path / "run"
    before = learned(out, tasks=TASKS[:2])

    def fit(student, task, *, out, **how):
        if out.name == NAMES[2]:
            raise BadInput("a broken image")
        return real(student, task, out=out, **how)

    real = course.workflow.fit
    with monkeypatch.context() as at:
        at.setattr(course.workflow, "fit", fit)
        with pytest.raises(BadInput, match="a broken image"):
            learned(out)
    assert learned(out, tasks=TASKS[:2]) == before
    other = (*TASKS[:2], "classes:digits:6-7")
    assert learned(out, tasks=other)["tasks"][2] == "digits:6-7"


@pytest.mark.parametrize("text", ["[]", "{}", '{"config": 5}', '{"config": {}}'])
def test_a_record_of_another_form_is_one_line(finetuned, tmp_path, text):
    out = tmp_path / "run"
    shutil.copytree(finetuned[0], out)
    (out / "sequence.json").write_text(text)
    for read in (learned, open_sequence):
        with pytest.raises(BadInput, match=r"sequence\.json"):
            read(out)


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("text", ["[]", "5", "{}"])
def test_a_run_of_another_form_is_one_line_and_not_gone_on_from(pair, tmp_path, name, text):
    out = tmp_path / "run"
    shutil.copytree(pair, out)
    (out / NAMES[0] / name).write_text(text)
    with pytest.raises(BadInput, match=rf"{NAMES[0]}"):
        learned(out)


def test_a_lost_memory_is_refused(tmp_path):
    out, tasks = tmp_path / "run", TASKS[:2]
    learned(out, "ewc", tasks=tasks)
    (out / NAMES[1] / "memory.safetensors").unlink()
    for read in (lambda: learned(out, "ewc"), lambda: open_sequence(out)):
        with pytest.raises(BadInput, match=rf"{NAMES[1]}/memory\.safetensors is missing"):
            read()


def test_a_state_of_other_tensors_is_refused(pair, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(pair, out)
    path = out / NAMES[1] / "optimizer.safetensors"
    tensors, about = read_tensors(path)
    name = next(n for n in tensors if n.endswith("exp_avg"))
    write_tensors(path, tensors | {name: torch.zeros(3)}, about)
    with pytest.raises(BadInput, match=r"optimizer\.safetensors is not of this run"):
        learned(out)


@pytest.mark.parametrize("method", ["lwf", "finetune"])
def test_momentum_goes_on_too(method, tmp_path):
    # Learning without forgetting trains the heads of earlier tasks again, which have no momentum.
    train = dataclasses.replace(TRAIN, optimizer="sgd", momentum=0.9)
    found = learned(tmp_path / "run", method, train=train, tasks=TASKS[:2])
    assert found["finished"]


def test_a_changed_backbone_behind_finished_tasks_is_refused(tmp_path):
    out, weights = tmp_path / "run", tmp_path / "weights.safetensors"
    for seed in (1, 2):
        model = Backbone.create("small_resnet", weights="random", px=16).model
        with torch.no_grad():
            model.conv1.weight.fill_(seed)
        write_tensors(weights, model.state_dict())
        net = Net(backbone="small_resnet", weights=str(weights))
        if seed == 1:
            learned(out, "probe", tasks=TASKS[:2], net=net)
    before = {p: p.read_bytes() for p in out.rglob("*.json")}
    for again in (
        lambda: learned(out, "probe", net=net),
        lambda: open_sequence(out),
    ):
        with pytest.raises(BadInput, match=r"were learned on backbone .* put the weights of that"):
            again()
    assert {p: p.read_bytes() for p in before} == before


def test_a_sequence_is_no_run_and_a_run_no_sequence(finetuned, capsys):
    out, _ = finetuned
    assert cli.main(["evaluate", str(out)]) == 2
    assert (
        "--task NAME` measures a task as the last one left it; name one of its runs"
        in capsys.readouterr().err
    )
    assert cli.main(["evaluate", str(out / NAMES[0]), "--task", "1"]) == 2
    assert "is no sequence of tasks" in capsys.readouterr().err


# iCIFAR


def cifar100(root: Path, monkeypatch, *, per_class: int) -> None:
    """A drawn CIFAR-100 in the format of the published files."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for name, count in (("train", per_class), ("test", 2)):
        labels = np.repeat(np.arange(100), count).tolist()
        data = random.randint(0, 256, (len(labels), 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}))
    names = {"fine_label_names": [f"class {k:02d}" for k in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


def test_icifar_is_ten_times_ten_consecutive_classes(tmp_path):
    specs = icifar.tasks(tmp_path, download=False)
    assert specs[0] == "classes:cifar100:0-9"
    assert specs[9] == "classes:cifar100:90-99"
    assert len(specs) == 10


def test_icifars_recipe_shows_19736_images():
    how, view = icifar.RECIPE.train, View(px=8)
    split = Split(Pixels(np.zeros((5000, 8, 8, 3), np.uint8), "black"), [0] * 5000)
    found = Batches(
        split, view, batch=how.batch, train=True, steps_per_epoch=how.steps_per_epoch, seed=269
    )
    seen = [len(batch.labels) for epoch in range(how.epochs) for batch in found.epoch(epoch)]
    assert (len(seen), sum(seen)) == (157, 19_736)
    assert (how.optimizer, how.lr, how.clip, how.weight_decay) == ("adam", 1e-3, 1.0, 0.0)
    assert (how.seed, how.schedule, how.select) == (269, "constant", "last")


def test_icifar_trains_on_all_of_train_and_the_command_line_overrides(
    tmp_path, monkeypatch, capsys
):
    cifar100(tmp_path / "data", monkeypatch, per_class=3)
    text = (
        f"lifelong --sequence icifar --method probe --backbone resnet20 --weights random --root "
        f"{tmp_path / 'data'} --steps-per-epoch 2 --batch 16 --device cpu --json "
        f"--out {tmp_path / 'run'}"
    )
    assert cli.main(text.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["accuracy"]) == 10
    run = read_json(tmp_path / "run" / "10-cifar100_90-99" / "run.json")["config"]
    assert run["classes"] == [f"class {k}" for k in range(90, 100)]
    assert (run["train"]["seed"], run["train"]["batch"], run["data"]["px"]) == (269, 16, 32)
    assert (run["data"]["val_share"], run["data"]["crop"]) == (0.0, "none")
    result = read_json(tmp_path / "run" / "01-cifar100_0-9" / "result.json")
    assert result["val"] is None
    task = open_task("classes:cifar100:0-9", tmp_path / "data", val_share=0)
    assert len(task.splits["train"]) == 30


def test_icifar_without_cifar_says_what_to_fetch(tmp_path, capsys):
    asked = f"lifelong --sequence icifar --root {tmp_path} --out {tmp_path / 'run'}"
    assert cli.main(asked.split()) == 2
    told = capsys.readouterr().err
    assert "cifar-100-python.tar.gz" in told
    assert len(told.splitlines()) == 1


def test_keeping_the_best_epoch_needs_a_validation_split(tmp_path):
    best = dataclasses.replace(TRAIN, select="best")
    all_of_train = dataclasses.replace(IMAGES, val_share=0.0)
    with pytest.raises(
        BadInput, match="no validation split to keep the best epoch by; give --keep"
    ):
        learned(tmp_path / "run", images=all_of_train, train=best)


def test_defaults_of_a_sequence_are_its_authors(tmp_path):
    begun = defaults("icifar", "probe")
    assert (begun.sequence, begun.net.backbone, begun.images.crop) == ("icifar", "resnet44", "none")
    assert defaults(None, "probe").train.batch == 32


def test_names_of_runs_sort_as_the_sequence():
    assert folder_names(["svhn", "classes:folder:/a/b:0-4"]) == ["01-svhn", "02-b_0-4"]


def test_different_data_sets_may_have_the_same_numbers():
    one = open_task("classes:digits:0-4")
    check_disjoint(["classes:digits:0-4", "classes:svhn:0-4"], [one, one])


def test_a_list_of_tasks_stays_in_order():
    assert tasks_of(None, ("b", "a"), IMAGES) == ("b", "a")


def test_the_command_prints_the_matrix_and_one_line_per_task(tmp_path, capsys):
    text = (
        f"lifelong --task {' '.join(TASKS)} --method probe --backbone small_resnet --weights "
        f"random --px 16 --limit 48 --epochs 1 --batch 16 --device cpu --out {tmp_path / 'run'}"
    )
    assert cli.main(text.split()) == 0
    told = capsys.readouterr()
    matrix = read_json(tmp_path / "run" / "matrix.json")
    lines = [line.split() for line in told.out.splitlines()]
    last = next(line for line in lines if line[:2] == ["3", "digits:6-8"])
    assert last[2:5] == [f"{100 * value:.1f}" for value in matrix["accuracy"][2]]
    mean = sum(matrix["accuracy"][2]) / 3
    assert f"probe: top1 {100 * mean:.2f} on average over 3 tasks, 0.00 forgotten" in told.out
    assert [line.partition(":")[0] for line in told.err.splitlines()] == [
        f"{k} of 3" for k in (1, 2, 3)
    ]


@pytest.mark.parametrize("method", catalog.names("students"))
def test_the_options_of_every_method_go_with_those_of_a_sequence(method, capsys):
    config = catalog.load("students", method, "method").Config
    with pytest.raises(SystemExit) as stop:
        cli.main(["lifelong", "--method", method, "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    for field in dataclasses.fields(config):
        assert f"--{field.name.replace('_', '-')}" in told


def test_numbers_that_are_no_shares_are_no_percent():
    found = {"method": "probe", "metric": ["r2", "r2"], "accuracy": [[0.5], [0.25, -0.5]]}
    said = lifelong_show.summary(found | {"run": "runs/x"})[0]
    assert said == "probe: r2 -0.125 on average over 2 tasks, 0.250 forgotten"
    rows = [[0.5], [0.75, 0.5], [0.25, 0.5, 0.5]]  # the fall is from the best, 0.75
    best = lifelong_show.summary(found | {"run": "x", "metric": ["r2"] * 3, "accuracy": rows})[0]
    assert best.endswith("0.250 forgotten")
    assert progress.told(-10.25, "r2") == "r2 -10.250"
    assert progress.told(0.68, "miou", digits=1) == "68.0 %"
    mixed = lifelong_show.summary(found | {"run": "runs/x", "metric": ["r2", "miou"]})[0]
    assert mixed == "probe: r2 and miou - on average over 2 tasks"


def test_help_explains_and_shows_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["lifelong", "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("--sequence", "--carry-optimizer", "Example: tailor lifelong --sequence icifar"):
        assert word in told


def test_sequences_are_listed(capsys):
    assert cli.main(["list", "sequences", "--json"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert "icifar" in names
