"""`classes:TASK:0-9`: some classes of another task as a task of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tailor.datasets import _classes
from tailor.errors import BadInput
from tailor.task import open_task


def pixels(split, place):
    return np.asarray(split.read(place).convert("L"))


def test_a_range_is_those_images_with_labels_from_zero():
    whole, part = open_task("digits"), open_task("classes:digits:3-5")
    wanted = whole.splits["test"].labels
    chosen = ((wanted >= 3) & (wanted <= 5)).nonzero()[:, 0].tolist()
    found = part.splits["test"]
    assert part.classes == ("3", "4", "5")
    assert found.labels.tolist() == [int(wanted[k]) - 3 for k in chosen]
    assert [found.where(k) for k in range(len(found))] == [
        whole.splits["test"].where(k) for k in chosen
    ]


def test_labels_follow_the_order_given():
    part = open_task("classes:digits:7,0-1,4")
    truth = load_digits().target
    assert part.classes == ("7", "0", "1", "4")
    split = part.splits["train"]
    for place in range(0, len(split), 37):
        number = int(split.where(place).rpartition(" ")[2])  # "digits image 12"
        assert [7, 0, 1, 4][int(split.labels[place])] == truth[number]


def test_parts_of_all_classes_hold_every_image_once():
    parts = [open_task(f"classes:digits:{k}-{k + 4}", val_share=0.2) for k in (0, 5)]
    seen = [s.where(k) for part in parts for s in part.splits.values() for k in range(len(s))]
    assert len(seen) == len(set(seen)) == 1797


def test_without_a_share_for_validation_all_of_train_is_kept():
    # 70 % of 1797 images are train; a tenth goes to validation by default.
    whole = _classes.read("digits:0-4", Path(), download=False).splits["train"]
    kept = open_task("classes:digits:0-4", val_share=0)
    assert set(kept.splits) == {"train", "test"}
    assert len(kept.splits["train"]) == len(whole)
    assert len(open_task("classes:digits:0-4").splits["train"]) < len(whole)


def test_limit_counts_the_images_of_the_part():
    splits = open_task("classes:digits:0-4", limit=40, val_share=0).splits
    assert len(splits["train"]) == 40
    assert splits["train"].labels.unique().tolist() == [0, 1, 2, 3, 4]


def test_parts_may_be_of_parts_and_paths_may_have_colons(tmp_path):
    root = tmp_path / "a:b"
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            for k in range(2):
                file = root / split / name / f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(file)
    part = open_task(f"classes:classes:folder:{root}:0-2:2,0")
    assert part.classes == ("cat", "ant")
    assert {name: len(split) for name, split in part.splits.items()} == {"train": 4, "val": 4}


def test_once_opens_a_data_set_once(monkeypatch):
    opened = []

    def reading(name, root, *, download):
        opened.append(name)
        return real(name, root, download=download)

    real = _classes.read_task
    monkeypatch.setattr(_classes, "read_task", reading)
    with _classes.once():
        first, second = (open_task(f"classes:digits:{k}") for k in ("0-1", "2-3"))
    assert opened == ["digits"]
    assert first.splits["train"].source is second.splits["train"].source
    open_task("classes:digits:0-1")
    assert opened == ["digits", "digits"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("classes:digits:", "names no task or no classes: write classes:TASK:0-9"),
        ("classes:0-4", "names no task or no classes"),
        ("classes:digits:0-", "ends with '0-', which is no number and no range"),
        ("classes:digits:0,,2", "ends with ''"),
        ("classes:digits:five", "ends with 'five'"),
        ("classes:digits:9-5", "range 9-5, which is empty: write 5-9"),
        ("classes:digits:0-4,3", "class 3 twice: give each class once"),
        ("classes:digits:0-999999", "asks for class 10, and digits has 10"),
        ("classes:digits:0-" + "9" * 5000, "class 999999..., a number of 5000 digits"),
        ("classes:digits:5-12", "asks for class 10, and digits has 10: give numbers from 0 to 9"),
        ("classes:digits:3", "there is nothing to tell apart"),
        ("classes:digitz:0-4", "unknown task 'digitz'"),
    ],
)
def test_bad_names_are_one_line(name, said):
    with pytest.raises(BadInput) as error:
        open_task(name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_with_several_labels_per_image_has_no_classes_to_take(monkeypatch):
    whole = open_task("digits")
    split = whole.splits["train"]
    sets = type(split)(split.source, torch.zeros(len(split), 10, dtype=torch.int8), split.index)
    several = type(whole)(name="several", classes=whole.classes, splits={"train": sets})
    monkeypatch.setattr(_classes, "read_task", lambda *_, **__: several)
    with pytest.raises(BadInput, match="whose images have no single class each"):
        open_task("classes:digits:0-4")
