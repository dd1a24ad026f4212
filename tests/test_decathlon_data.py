"""The reader of the Visual Decathlon, on small files of its layout that a test draws."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demos import _decathlon_sample
from tailor import identity
from tailor.backbone import Backbone
from tailor.datasets import _decathlon, _sample
from tailor.decathlon import DOMAINS, images_for
from tailor.errors import BadInput
from tailor.opened import batches, task_of
from tailor.options import Data
from tailor.settings import Settings
from tailor.task import open_task

NAME, UNIT = "aircraft", 10**7  # domain 1


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Aircraft, pedestrians and flowers: 3 classes with 2, 1 and 2 images in train, val, test."""
    root = tmp_path_factory.mktemp("decathlon")
    names = (NAME, "daimlerpedcls", "vgg-flowers")
    _decathlon_sample.draw(root, names, classes=3, train=2, val=1, test=2)
    return root


@pytest.fixture
def copy(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "copy")


def edit(root: Path, split: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations" / f"{NAME}_{split}.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def refused(root: Path, *parts: str, name: str = NAME) -> None:
    with pytest.raises(BadInput) as error:
        open_task(f"decathlon:{name}", root)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_splits_classes_and_colours(drawn):
    task = open_task(f"decathlon:{NAME}", drawn)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 6,
    }
    assert task.classes == ("aircraft 1", "aircraft 2", "aircraft 3")
    assert task.mean == DOMAINS[NAME].mean
    assert task.std == DOMAINS[NAME].std
    assert task.splits["train"].labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_recipe_and_the_domains_colours_reach_the_batches(drawn):
    recipe = images_for("gtsrb", "nettailor")
    data = Data(task=f"decathlon:{NAME}", root=str(drawn), **recipe)
    backbone = Backbone.create("small_resnet", weights="random", px=recipe["px"])
    settings = Settings(batch=2, device="cpu")
    found = batches(task_of(data), "train", backbone, data, settings, train=True)
    view = found.view
    assert (view.px, view.side, view.crop, view.pad, view.squash) == (72, 72, "reflect", 8, True)
    assert (view.flip, view.shares) == (False, (0.5, 0.2, 0.2))
    assert (view.mean, view.std) == (DOMAINS[NAME].mean, DOMAINS[NAME].std)
    assert next(found.epoch(0)).images.shape == (2, 3, 72, 72)


def test_an_image_is_the_file_that_its_annotation_names(drawn):
    split = open_task("decathlon:vgg-flowers", drawn).splits["val"]
    assert split.where(1) == str(drawn / "data/vgg-flowers/val/0002/000002.jpg")
    assert split.read(1).size == (72, 72)
    assert split.source.ids.tolist() == [100_200_006, 100_200_007, 100_200_008]


def test_pedestrians_are_twice_as_high_as_wide(drawn):
    assert open_task("decathlon:daimlerpedcls", drawn).splits["train"].read(0).size == (72, 144)


def test_a_split_without_the_first_class_is_refused_and_never_renumbered(copy):
    def without_the_first(told):
        for mark in told["annotations"]:
            mark["category_id"] = max(mark["category_id"], UNIT + 2)

    edit(copy, "val", without_the_first)
    refused(copy, "aircraft_val.json shows no image of class 10000001 ('aircraft 1'): every split")


def test_annotations_belong_to_images_by_their_ids_not_by_their_order(copy):
    before = open_task(f"decathlon:{NAME}", copy)

    def shuffled(told):
        told["annotations"].reverse()
        told["categories"].reverse()

    for split in ("train", "val", "test"):
        edit(copy, split, shuffled)
    after = open_task(f"decathlon:{NAME}", copy)
    assert after.classes == before.classes
    for split in ("train", "val", "test"):
        assert after.splits[split].labels.tolist() == before.splits[split].labels.tolist()


def test_classes_may_be_named_by_numbers(copy):
    def numbered(told):
        for k, category in enumerate(told["categories"]):
            category["name"] = k

    for split in ("train", "val", "test"):
        edit(copy, split, numbered)
    assert open_task(f"decathlon:{NAME}", copy).classes == ("0", "1", "2")


def test_test_images_without_labels_are_no_split_but_can_be_predicted(copy):
    (copy / "annotations/aircraft_test.json").unlink()
    assert set(open_task(f"decathlon:{NAME}", copy).splits) == {"train", "val"}
    test = _decathlon.open_test(NAME, copy).splits["test"]
    assert test.labels.tolist() == [-1] * 6
    assert test.source.ids.tolist() == list(range(UNIT + 200_009, UNIT + 200_015))


@pytest.mark.parametrize(
    "layout",
    [
        {"annotations": ".", "data": "data"},  # json files in the root itself
        {"annotations": "decathlon-1.0/annotations", "data": "decathlon-1.0/data"},
        {"annotations": "decathlon-1.0/annotations", "data": "decathlon-1.0-data"},
        {"annotations": "annotations", "data": "."},  # NAME.tar unpacked in the root
    ],
)
def test_archives_may_be_unpacked_beside_each_other(drawn, tmp_path, layout):
    for part, place in layout.items():
        shutil.copytree(drawn / part, tmp_path / place, dirs_exist_ok=True)
    shutil.copy(drawn / _sample.MARK, tmp_path)
    task = open_task(f"decathlon:{NAME}", tmp_path)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 6,
    }
    assert task.splits["train"].read(0).size == (96, 72)


def test_the_root_may_come_from_the_environment(drawn, monkeypatch):
    monkeypatch.setenv("TAILOR_DATA", str(drawn))
    assert len(open_task(f"decathlon:{NAME}").splits["train"]) == 6


def test_a_sample_is_named_so_and_has_numbers_of_its_own(drawn, copy):
    assert open_task(f"decathlon:{NAME}", drawn).name == "aircraft-sample"
    (copy / _sample.MARK).unlink()  # then it must be the real set
    refused(copy, "aircraft_train.json lists 3 of 100 classes of aircraft, not 10000004 and 96")


def test_all_ten_domains_can_be_drawn_and_read(tmp_path):
    _decathlon_sample.draw(tmp_path, classes=2, train=1, val=1, test=1)
    for name, domain in DOMAINS.items():
        task = open_task(f"decathlon:{name}", tmp_path)
        assert len(task.splits["test"]) == 2
        assert int(task.splits["train"].source.ids[0]) == domain.number * UNIT + 200_000
        assert min(task.splits["train"].read(0).size) == 72


def test_the_source_pickles_for_worker_processes(drawn):
    split = open_task(f"decathlon:{NAME}", drawn).splits["train"]
    again = pickle.loads(pickle.dumps(split))
    assert np.array_equal(np.asarray(again.read(2)), np.asarray(split.read(2)))


def test_other_images_are_another_identity(drawn, copy):
    first = identity.fingerprint(open_task(f"decathlon:{NAME}", drawn))
    shutil.copytree(drawn / "data", copy / "data", dirs_exist_ok=True)
    assert identity.fingerprint(open_task(f"decathlon:{NAME}", copy)) == first
    target = copy / "data/aircraft/train/0001/000001.jpg"
    target.write_bytes(target.read_bytes() + b"\0")
    assert identity.fingerprint(open_task(f"decathlon:{NAME}", copy)) != first


def test_unknown_domain_is_answered_with_near_ones(drawn):
    refused(drawn, "unknown domain 'flowers': did you mean vgg-flowers", name="flowers")


def test_a_domain_that_was_not_drawn(drawn):
    refused(drawn, "sample.json has no numbers of dtd", name="dtd")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"decathlon": 7}', '{"decathlon": {"aircraft": {"classes": "x"}}}']
)
def test_a_broken_mark_of_a_sample(copy, text):
    (copy / _sample.MARK).write_text(text)
    refused(copy, "sample.json has no numbers of aircraft: draw the sample anew")


def test_missing_annotations_say_what_to_fetch(tmp_path):
    refused(tmp_path, "holds no annotations aircraft_train.json", "devkit.tar.gz", "--root")


def test_missing_validation_is_not_carved_out_of_train(copy):
    (copy / "annotations/aircraft_val.json").unlink()
    refused(copy, "holds no annotations aircraft_val.json")


def test_missing_images_say_what_to_fetch(copy):
    shutil.rmtree(copy / "data/aircraft")
    refused(copy, "holds no images of aircraft", "get aircraft.tar of")


def test_images_that_are_not_on_disk(copy):
    for file in ("0002/000002.jpg", "0003/000003.jpg"):
        (copy / "data/aircraft/train" / file).unlink()
    refused(copy, "aircraft_train.json lists data/aircraft/train/0002/000002.jpg and 1 more")


def test_images_that_no_annotation_lists(copy):
    shutil.copy(copy / "data/aircraft/val/0001/000001.jpg", copy / "data/aircraft/val/0001/9.jpg")
    refused(copy, "holds data/aircraft/val/0001/9.jpg, which no annotations of aircraft list")


def test_hidden_files_and_other_kinds_of_files_do_not_matter(copy):
    for name in ("._000001.jpg", "Thumbs.db", "readme.txt"):
        (copy / "data/aircraft/val/0001" / name).write_bytes(b"x")
    assert len(open_task(f"decathlon:{NAME}", copy).splits["val"]) == 3


def test_an_image_in_two_splits(copy):
    def borrowed(told):
        told["images"][0]["file_name"] = "data/aircraft/train/0001/000001.jpg"

    edit(copy, "val", borrowed)
    refused(copy, "aircraft_val.json lists data/aircraft/train/0001/000001.jpg, which", "already")


BROKEN = {
    "a lost image": (
        lambda t: (t["images"].pop(), t["annotations"].pop()),
        "lists 5 images, aircraft has 6 in train",
    ),
    "a duplicate id": (
        lambda t: t["images"][1].update(id=UNIT + 200_000),
        "image 10200000 is listed 2 times",
    ),
    "an image with two classes": (
        lambda t: t["annotations"].append(dict(t["annotations"][0])),
        "image 10200000 has annotations 2 times",
    ),
    "an image without a class": (
        lambda t: t["annotations"].pop(0),
        "has no class for image 10200000: ",
    ),
    "an annotation without its image": (
        lambda t: t["annotations"][0].update(image_id=UNIT + 7),
        "annotates image 10000007, which it does not list",
    ),
    "a class of another domain": (
        lambda t: t["annotations"][0].update(category_id=2 * UNIT + 1),
        "has category 20000001, but those of aircraft are numbered 10000001 to 10000003",
    ),
    "a class beyond the last": (
        lambda t: t["annotations"][0].update(category_id=UNIT + 4),
        "has category 10000004, but those of aircraft",
    ),
    "class 0": (
        lambda t: t["annotations"][0].update(category_id=UNIT),
        "has category 10000000, but those of aircraft",
    ),
    "an image of another domain": (
        lambda t: t["images"][0].update(id=3 * UNIT + 1),
        "has image 30000001, but those of aircraft are numbered 10000000 to 19999999",
    ),
    "a class that is not listed": (
        lambda t: t["categories"].pop(1),
        "lists 2 of 3 classes of aircraft, not 10000002: ",
    ),
    "a class that is listed twice": (
        lambda t: t["categories"][1].update(id=UNIT + 1),
        "category 10000001 is listed 2 times",
    ),
    "a class that no image shows": (
        lambda t: [a.update(category_id=UNIT + 1) for a in t["annotations"]],
        "shows no image of class 10000002 ('aircraft 2') and 1 more",
    ),
    "classes of other names": (
        lambda t: t["categories"][2].update(name="Concorde"),
        "calls class 10000003 'aircraft 3', aircraft_train.json 'Concorde'",
    ),
    "an id in words": (
        lambda t: t["images"][3].update(id="10200003"),
        "images[3] has id '10200003', not a whole number",
    ),
    "an id of truth": (
        lambda t: t["images"][3].update(id=True),
        "images[3] has id True, not a whole number",
    ),
    "no id": (lambda t: t["images"][3].pop("id"), "images[3] has no 'id'"),
    "an image that is none": (
        lambda t: t["images"].insert(2, 7),
        "images[2] has no 'id'",
    ),
    "no file name": (
        lambda t: t["images"][0].update(file_name=None),
        "images[0] has file_name None, not a text",
    ),
    "a file elsewhere": (
        lambda t: t["images"][0].update(file_name="../secret.jpg"),
        "file_name '../secret.jpg', which leads out of the data set's folder",
    ),
    "no list of images": (lambda t: t.pop("images"), 'has no list "images"'),
    "no annotations": (lambda t: t.pop("annotations"), 'has no list "annotations"'),
    "nothing": (
        lambda t: [t.update({k: []}) for k in ("images", "annotations")],
        "lists 0 images, aircraft has 6 in train",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations_are_told_in_one_line(copy, case):
    change, message = BROKEN[case]
    edit(copy, "train", change)
    refused(copy, "aircraft_train.json", message)


@pytest.mark.parametrize("text", ['{"images": [', "[]", "7", "\xff\xfe", "[" * 100_000, ""])
def test_annotations_that_are_no_such_json(copy, text):
    (copy / "annotations/aircraft_train.json").write_bytes(text.encode("latin-1"))
    refused(copy, "aircraft_train.json", "get the file anew")


def test_stripped_test_images_are_checked_too(copy):
    (copy / "annotations/aircraft_test.json").unlink()
    edit(copy, "test_stripped", lambda t: t["images"].pop())
    refused(copy, "aircraft_test_stripped.json lists 5 images, aircraft has 6 in test")
