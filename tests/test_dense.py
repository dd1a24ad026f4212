"""Dense tasks from label maps to finished runs: every pixel has a class or values."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tailor import catalog
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.identity import fingerprint
from tailor.opened import backbone_of, batches, open_run, task_of
from tailor.optim import build_optimizer
from tailor.options import Data, Net, Prune, Retrain, Teach
from tailor.run import read_json
from tailor.settings import Settings
from tailor.shrink import prune, retrain
from tailor.step import training_step
from tailor.student import Gated, trained_parameters
from tailor.target import CLASS, PIXEL_CLASS, PIXEL_VALUES, SOFT, VALUES, target
from tailor.task import Pixels, Split, Task, open_task
from tailor.train import evaluate, evaluate_both
from tailor.workflow import evaluate as evaluate_run
from tailor.workflow import fit, merge, teach

METHODS = catalog.names("students")
CLASSES = 3


@pytest.fixture(scope="module")
def trunk():
    """Pooled features of small_resnet at 32 px."""
    return Backbone.create("small_resnet", weights="random", px=32)


@pytest.fixture(params=METHODS)
def student(request, trunk):
    module = catalog.load("students", request.param, "method")
    try:
        return module.build(trunk.seen_by(PIXEL_CLASS), CLASSES, module.Config(), seed=3)
    except BadInput as refused:
        pytest.skip(f"refused: {refused}")


def batch(seed=0, count=4):
    make = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 32, 32, generator=make)
    labels = torch.randint(-1, CLASSES, (count, 32, 32), generator=make)
    return images, labels.to(torch.int16)


def step(student):
    settings = Settings(lr=0.05)
    optimizer = build_optimizer(student, settings)
    student.train()
    return training_step(student, optimizer, *batch(), settings, epoch=0.0, target=PIXEL_CLASS)


def test_every_method_trains_on_pixels_and_leaves_the_trunk(student):
    before, fingerprint = student.task.state_dict(), student.universal.fingerprint()
    before = {n: t.clone() for n, t in before.items()}
    for _ in range(2):
        step(student)
    assert student.universal.fingerprint() == fingerprint
    assert student.eval()(batch(1)[0]).logits.shape == (4, CLASSES, 32, 32)
    for name in ("head.first.0.weight", "head.out.bias"):
        assert not torch.equal(student.task.state_dict()[name], before[name])
    assert {id(p) for p in trained_parameters(student)} == {
        id(p) for p in student.task.parameters()
    }


def test_every_method_merges_into_a_plain_network_of_pixels(student):
    step(student)
    merged, images = student.merge(), batch(1)[0]
    with torch.no_grad():
        # float32 rounding where merging folds batch norm into convolutions
        torch.testing.assert_close(
            merged(images), student.eval()(images).logits, rtol=1e-3, atol=1e-4
        )


def test_every_gated_method_is_pruned_on_pixels(student):
    if not isinstance(student, Gated) or not student.gates():
        pytest.skip(f"{student.method} has no gates")
    gates = student.gates()
    smaller = student.keep([g.name for g in gates if g.kind == "universal"] or [gates[0].name])
    step(smaller)
    module = catalog.load("students", student.method, "method")
    other = module.rebuild(student.universal, CLASSES, module.Config(), kept=smaller.kept())
    other.task.load_state_dict(smaller.task.state_dict())
    images = batch(1)[0]
    assert torch.equal(smaller.eval()(images).logits, other.eval()(images).logits)


# Files of the npz format -----------------------------------------------------------------------

WORDS = {
    "mask": "uint8 classes: 0 background, 1 disc, 2 its rim",
    "bright": "uint8/255: how bright it is",
    "number": "uint16 number of the disc",
}


def scene(seed: int, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc with a dark rim on grey noise: (side, side, 3) uint8 and its classes."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(y - random.randint(10, 30), x - random.randint(10, 30))
    classes = np.where(distance < 7, 1, np.where(distance < 11, 2, 0)).astype(np.uint8)
    grey = np.choose(classes, [120, 250, 10]) + random.randint(-5, 6, (side, side))
    return grey.clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2), classes


def png(pixels: np.ndarray) -> np.ndarray:
    Image.fromarray(pixels).save(stream := io.BytesIO(), "PNG")
    return np.frombuffer(stream.getvalue(), np.uint8)


def write(base: Path, *, train: int = 40, test: int = 8) -> Path:
    """dataset.json, train.npz and test.npz of scenes with masks and brightness."""
    base.mkdir(exist_ok=True)
    (base / "dataset.json").write_text(json.dumps({"task": "dense", "targets": WORDS}))
    for split, seeds in (("train", range(train)), ("test", range(train, train + test))):
        files: dict[str, list[np.ndarray]] = {"": [], "target_mask_": [], "target_bright_": []}
        for seed in seeds:
            image, classes = scene(seed)
            if seed == 0:
                classes[:5] = 255
            for prefix, pixels in zip(files, (image, classes, image[..., 0]), strict=True):
                files[prefix].append(png(pixels))
        arrays = {f"{p}data": np.concatenate(f) for p, f in files.items()}
        arrays |= {f"{p}offsets": np.cumsum([0, *map(len, f)]) for p, f in files.items()}
        np.savez(base / f"{split}.npz", **arrays)
    return base


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("archive") / "scenes")


def test_an_at_in_the_name_of_a_folder_is_part_of_it(archive: Path, tmp_path: Path):
    folder = tmp_path / "user@host"
    folder.mkdir()
    (folder / "scenes").symlink_to(archive)
    assert open_task(f"npz:{folder}/scenes@mask").name == f"{archive.name}@mask"


def test_a_mask_is_read_with_its_names(archive: Path):
    task = open_task(f"npz:{archive}@mask", val_share=0.2)
    assert task.classes == ("background", "disc", "its rim")
    assert (task.target, task.metric, task.name) == (PIXEL_CLASS, "miou", "scenes@mask")
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 32,
        "val": 8,
        "test": 8,
    }
    found = task.splits["test"].read_map(3, (40, 40))
    assert np.array_equal(found, scene(43)[1])


def test_255_of_a_mask_is_not_counted(archive: Path):
    task = open_task(f"npz:{archive}@mask")
    split = next(s for s in (task.splits["train"], task.splits["val"]) if 0 in s.index)
    found = split.read_map(split.index.tolist().index(0), (40, 40))
    assert (found[:5] == -1).all()
    assert (found[5:] >= 0).all()


def test_values_are_read_in_0_to_1(archive: Path):
    task = open_task(f"npz:{archive}@bright")
    assert (task.classes, task.target) == (("bright",), target("pixel_values", loss="l2"))
    found = task.splits["test"].read_map(0, (40, 40))
    assert found.shape == (1, 40, 40)
    assert np.array_equal(found[0], np.float32(scene(40)[0][..., 0]) / 255)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("", "dataset.json is dense: choose one, such as npz:.*@bright; it has mask, bright"),
        ("@depth", "has no target 'depth'"),
        ("@number", "says of target 'number': 'uint16 number of the disc'; only"),
    ],
)
def test_a_target_that_cannot_be_predicted_is_refused(archive: Path, end: str, message: str):
    with pytest.raises(BadInput, match=message):
        open_task(f"npz:{archive}{end}")


def test_one_kind_of_labels_has_no_target_to_choose(tmp_path: Path):
    (tmp_path / "dataset.json").write_text('{"task": "classify", "classes": ["a", "b"]}')
    with pytest.raises(BadInput, match="leave @mask out"):
        open_task(f"npz:{tmp_path}@mask")


def test_other_labels_are_other_data(archive: Path, tmp_path: Path):
    same = open_task(f"npz:{write(tmp_path / 'scenes')}@mask")
    mask, bright = (open_task(f"npz:{archive}@{name}") for name in ("mask", "bright"))
    assert fingerprint(mask) == fingerprint(same)
    assert fingerprint(mask) != fingerprint(dataclasses.replace(bright, classes=mask.classes))


# Tasks of images with numbers ------------------------------------------------------------------


def numbers(labels: np.ndarray, kind=VALUES, **more) -> Task:
    """A task of grey images; the labels of ``train``."""
    grey = np.linspace(0, 255, len(labels)).astype(np.uint8)
    source = Pixels(np.broadcast_to(grey[:, None, None, None], (len(labels), 8, 8, 3)).copy(), "g")
    split = Split(source, torch.as_tensor(labels, dtype=torch.float32), target=kind)
    names = tuple(f"value {k}" for k in range(labels.shape[1]))
    return Task(name="numbers", classes=names, splits={"train": split}, target=kind, **more)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (np.array([[0.5, 0.6]]), SOFT, "g image 0 of numbers has no probabilities that sum to 1"),
        (np.array([[1.5, -0.5]]), SOFT, "has no probabilities"),
        (np.array([[1.0, np.inf]]), VALUES, "has an infinite value"),
        (
            np.array([[1.0, np.nan]]),
            VALUES,
            "no image in train of numbers has a value for 'value 1'",
        ),
        (np.zeros((2, 2)), target("values", flip_signs=(1,)), "has 1 flip_signs for 2 outputs"),
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(labels, kind, message):
    from tailor.check import check

    with pytest.raises(BadInput, match=message):
        check(numbers(labels, kind))


def test_a_regression_is_learned_from_brightness(trunk, tmp_path: Path):
    from students import probe

    labels = np.linspace(-1, 1, 64)[:, None] * [[1.0, -2.0]]
    task = numbers(labels)
    task = dataclasses.replace(
        task, splits=dict.fromkeys(("train", "val", "test"), task.splits["train"])
    )
    student = probe.build(trunk, 2, seed=0)
    how = Settings(epochs=20, batch=16, lr=0.01, optimizer="adamw", device="cpu")
    result = fit(student, task, out=tmp_path / "run", train=how, data=Data(task="x", crop="none"))
    assert result["metric"] == "r2"
    assert result["test"] > 0.9
    assert read_json(tmp_path / "run" / "result.json")["config"]["target"]["kind"] == "values"


# From data to finished runs --------------------------------------------------------------------

HOW = Settings(epochs=1, batch=8, lr=0.003, optimizer="adamw", device="cpu")


@pytest.fixture(scope="module")
def taught(archive, tmp_path_factory) -> Path:
    """The run of a fine-tuned teacher on the masks."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    data = Data(task=f"npz:{archive}@mask", px=32, flip=True, workers=1)
    net = Net(backbone="small_resnet", weights="random")
    teach(Teach(out=out, data=data, net=net, train=dataclasses.replace(HOW, epochs=30)))
    return out


def test_discs_are_found(taught: Path):
    result = read_json(taught / "result.json")
    assert result["metric"] == "miou"
    # All of background is right and nothing else: a third of its share.
    share = np.mean([scene(i)[1] == 0 for i in range(40, 48)])
    assert share / 3 < 0.26
    assert result["test"] > 0.4


def test_the_head_is_counted_apart(taught: Path):
    result = read_json(taught / "result.json")
    student = open_run(taught).student
    head = sum(p.numel() for p in student.task.head.parameters())
    assert result["params"]["head"] == head
    assert result["params"]["network"] == student.universal.num_params
    assert result["macs"]["student"] == result["macs"]["backbone"]


def test_a_dense_run_is_opened_with_its_predictions(taught: Path, archive: Path):
    opened = open_run(taught)
    found = evaluate_run(taught, split="test", device="cpu")
    assert found["value"] == pytest.approx(opened.result["test"], abs=1e-6)
    test = batches(task_of(opened.data), "test", opened.student.universal, opened.data, HOW)
    metric, loss = evaluate_both(opened.student, test)
    assert metric == evaluate(opened.student, test) == pytest.approx(found["value"])
    (batch,) = test.epoch(0)
    logits = opened.student(batch.images).logits
    expected = torch.nn.functional.cross_entropy(logits, batch.labels.long())
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_body_of_a_dense_teacher_is_a_trunk_for_other_tasks(taught: Path, archive: Path):
    trunk = backbone_of(
        Net(backbone="small_resnet", weights=str(taught)), Data(task="x", px=32), PIXEL_VALUES
    )
    body = open_run(taught).student.task.body
    mine, theirs = dict(trunk.model.named_parameters()), dict(body.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_a_gated_student_goes_from_adapt_to_retrain(taught: Path, archive: Path, tmp_path: Path):
    from students import taps

    data = Data(task=f"npz:{archive}@bright", px=32, workers=1)
    net = Net(backbone="small_resnet", weights=str(taught))
    task = task_of(data)
    student = taps.build(backbone_of(net, data, task.target), 1, taps.Config(), seed=0)
    fit(student, task, out=tmp_path / "a", train=HOW, data=data)
    prune(Prune(run=tmp_path / "a", out=tmp_path / "p", share=0.5))
    result = retrain(Retrain(run=tmp_path / "p", out=tmp_path / "r", train=HOW))
    assert result["layers_adapted"] == 10
    merge(tmp_path / "r", tmp_path / "plain.safetensors")
    opened = open_run(tmp_path / "r")
    test = batches(task, "test", opened.student.universal, data, HOW)
    assert evaluate(opened.student, test) == pytest.approx(result["test"], abs=1e-6)


def test_a_student_of_images_does_not_take_labels_of_pixels(trunk, archive: Path, tmp_path: Path):
    from students import probe

    task = open_task(f"npz:{archive}@mask")
    with pytest.raises(BadInput, match=r"build it on backbone\.seen_by\(task\.target\)"):
        fit(probe.build(trunk, 3, seed=0), task, out=tmp_path / "run", train=HOW)
    assert trunk.target == CLASS
