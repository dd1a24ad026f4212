"""A task's fingerprint changes with its images and labels, and with nothing else."""

import numpy as np
import pytest
from PIL import Image

from tailor.errors import BadInput
from tailor.identity import fingerprint
from tailor.run import Run
from tailor.task import Pixels, Split, Task, open_task


def task(pixels, labels=(0, 1, 0), classes=("a", "b")):
    split = Split(Pixels(pixels, "made up"), list(labels))
    return Task(name="made up", classes=classes, splits={"train": split})


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)


def test_one_pixel_one_label_one_class_name_make_another_task(pixels):
    changed = pixels.copy()
    changed[2, 0, 0] ^= 1
    found = {
        fingerprint(task(pixels)),
        fingerprint(task(changed)),
        fingerprint(task(pixels, labels=(0, 1, 1))),
        fingerprint(task(pixels, classes=("a", "c"))),
    }
    assert len(found) == 4
    assert fingerprint(task(pixels.copy())) == fingerprint(task(pixels))


def test_the_order_of_images_counts(pixels):
    assert fingerprint(task(pixels[[1, 0, 2]], labels=(1, 0, 0))) != fingerprint(task(pixels))


def folder(root):
    for split, count in (("train", 3), ("test", 1)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.effect_noise((8, 8), 9 + i)
                image.save(root / split / name / f"{i}.png")
    return root


def test_a_folder_is_the_same_wherever_it_lies_until_a_file_changes(tmp_path):
    here = folder(tmp_path / "here")
    before = fingerprint(open_task(f"folder:{here}"))
    there = here.rename(tmp_path / "there")
    assert fingerprint(open_task(f"folder:{there}")) == before
    Image.new("L", (30, 30), 7).save(there / "train" / "a" / "0.png")
    assert fingerprint(open_task(f"folder:{there}")) != before


def test_files_of_equal_sizes_are_told_apart_by_their_content(tmp_path):
    for name, shade in (("dark", 1), ("bright", 200)):
        for split in ("train", "test"):
            for label in "ab":
                (tmp_path / name / split / label).mkdir(parents=True)
                for i in range(3):
                    Image.new("L", (8, 8), shade).save(tmp_path / name / split / label / f"{i}.bmp")
    dark, bright = (fingerprint(open_task(f"folder:{tmp_path / n}")) for n in ("dark", "bright"))
    assert dark != bright


@pytest.mark.parametrize("name", ["digits", "characters"])
def test_reading_a_known_task_twice_gives_one_fingerprint(name):
    first = fingerprint(open_task(name, limit=200))
    assert fingerprint(open_task(name, limit=200)) == first
    assert fingerprint(open_task(name, limit=100)) != first


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    config = {"data": {"task": "digits"}, "images": "aaaa"}
    with Run(tmp_path / "run", "adapt", config):
        pass
    with pytest.raises(BadInput, match="started with other images or labels of digits"):
        Run(tmp_path / "run", "adapt", config | {"images": "bbbb"})


def test_a_run_of_an_older_version_goes_on(tmp_path):
    with Run(tmp_path / "run", "adapt", {"data": {"task": "digits"}}):
        pass
    with Run(tmp_path / "run", "adapt", {"data": {"task": "digits"}, "images": "aaaa"}) as run:
        assert run.result is None
