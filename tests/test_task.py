import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tailor.check import check
from tailor.errors import BadInput
from tailor.target import SET
from tailor.task import Files, Pixels, Split, Task, open_task


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.RandomState(seed)
    return Image.fromarray(random.randint(0, 256, (height, width, 3), dtype=np.uint8))


def write_folder(base: Path, splits: dict[str, dict[str, int]]) -> Path:
    """Folders {split: {class: number of images}} of 6x6 PNG files."""
    for split, classes in splits.items():
        for k, (name, count) in enumerate(classes.items()):
            (base / split / name).mkdir(parents=True)
            for i in range(count):
                noise(6, 6, seed=100 * k + i).save(base / split / name / f"{i}.png")
    return base


def write_npz(base: Path, labels: list[int], classes: list[str]) -> Path:
    """train.npz with 4x4 PNG files and its dataset.json."""
    files = []
    for i in range(len(labels)):
        noise(4, 4, seed=i).save(stream := io.BytesIO(), "PNG")
        files.append(np.frombuffer(stream.getvalue(), np.uint8))
    base.mkdir(exist_ok=True)
    (base / "dataset.json").write_text(json.dumps({"task": "classify", "classes": classes}))
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(base / "train.npz", data=np.concatenate(files), offsets=offsets, label=labels)
    return base


def test_validation_is_carved_out_of_train_and_leaves_test_alone():
    task = open_task("digits")
    names = {k: {s.where(i) for i in range(len(s))} for k, s in task.splits.items()}
    assert names["val"].isdisjoint(names["train"])
    assert names["test"].isdisjoint(names["train"] | names["val"])
    assert sum(map(len, names.values())) == 1797


def test_carving_does_not_change_the_test_split():
    one, other = (open_task("digits", val_share=share).splits["test"] for share in (0.1, 0.4))
    assert [one.where(i) for i in range(len(one))] == [other.where(i) for i in range(len(other))]


def test_every_class_is_in_train_and_val():
    splits = open_task("digits", val_share=0.01).splits
    assert splits["train"].labels.unique().tolist() == list(range(10))
    assert splits["val"].labels.unique().tolist() == list(range(10))


def test_a_validation_split_of_the_data_set_is_used_as_it_is(tmp_path: Path):
    write_folder(tmp_path, {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 1}})
    splits = open_task(f"folder:{tmp_path}").splits
    assert (len(splits["train"]), len(splits["val"])) == (10, 3)


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_validation_share_outside_0_to_1_is_refused(share: float):
    with pytest.raises(BadInput, match="validation share"):
        open_task("digits", val_share=share)


def test_one_image_per_class_leaves_nothing_for_validation(tmp_path: Path):
    write_folder(tmp_path, {"train": {"a": 1, "b": 1}})
    with pytest.raises(BadInput, match="none to spare for validation"):
        open_task(f"folder:{tmp_path}")


def test_limit_counts_validation_in():
    splits = open_task("digits", limit=100).splits
    assert (len(splits["train"]), len(splits["val"]), len(splits["test"])) == (90, 10, 539)


def test_limit_leaves_a_validation_split_of_the_data_set_alone(tmp_path: Path):
    write_folder(tmp_path, {"train": {"a": 6, "b": 6}, "val": {"a": 3, "b": 3}})
    splits = open_task(f"folder:{tmp_path}", limit=4).splits
    assert splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert len(splits["val"]) == 6


def test_limit_above_the_data_set_changes_nothing():
    one, other = (open_task("digits", limit=n).splits["train"] for n in (None, 10_000))
    assert [one.where(i) for i in range(len(one))] == [other.where(i) for i in range(len(other))]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0, "limit is 0 training images"),
        (9, "9 training images leave 1 of 10 classes of digits without one: raise the limit"),
        (10, "none to spare for validation: raise the limit"),
    ],
)
def test_limit_that_leaves_nothing_to_learn_from_is_refused(limit: int, message: str):
    with pytest.raises(BadInput, match=message):
        open_task("digits", limit=limit)


def test_unknown_task_suggests_the_nearest():
    with pytest.raises(BadInput, match="unknown task 'digit': did you mean digits"):
        open_task("digit")


def test_unknown_scheme_suggests_the_nearest():
    with pytest.raises(BadInput, match=r"did you mean folder:pets"):
        open_task("foldr:pets")


def test_scheme_without_a_path_is_refused():
    with pytest.raises(BadInput, match="ends with its colon"):
        open_task("folder:")


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAILOR_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(BadInput, match="elsewhere"):
        open_task("svhn")


def test_one_class_only_is_refused(tmp_path: Path):
    write_folder(tmp_path, {"train": {"cat": 3}})
    with pytest.raises(BadInput, match=r"1 class \['cat'\]"):
        open_task(f"folder:{tmp_path}")


def test_class_without_training_images_is_refused(tmp_path: Path):
    write_npz(tmp_path, [0, 0, 2, 2], ["ant", "bee", "cow"])
    with pytest.raises(BadInput, match="no training image of class 'bee'"):
        open_task(f"npz:{tmp_path}")


def test_split_without_images_is_refused(tmp_path: Path):
    write_npz(tmp_path, [0, 1], ["ant", "bee"])
    np.savez(
        tmp_path / "test.npz",
        data=np.zeros(0, np.uint8),
        offsets=np.zeros(1, np.int64),
        label=np.zeros(0, np.int64),
    )
    with pytest.raises(BadInput, match="no images in test"):
        open_task(f"npz:{tmp_path}")


def test_subset_keeps_its_order_labels_and_names():
    pixels = np.arange(4, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    subset = Split(Pixels(pixels, "x"), [0, 1, 2, 3]).subset([3, 1]).subset([1, 0])
    assert subset.labels.tolist() == [1, 3]
    assert [subset.where(i) for i in range(2)] == ["x image 1", "x image 3"]
    assert [subset.read(i).getpixel((0, 0)) for i in range(2)] == [(1, 1, 1), (3, 3, 3)]


def test_split_survives_pickling(tmp_path: Path):
    split = open_task(f"npz:{write_npz(tmp_path, [0, 0, 1, 1], ['a', 'b'])}").splits["train"]
    copy = pickle.loads(pickle.dumps(split))
    assert copy.read(0).tobytes() == split.read(0).tobytes()


def read_one(path: Path) -> Image.Image:
    return Split(Files([path]), [0]).read(0)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "gif", "tif", "ppm"])
def test_truncated_image_is_an_error_that_names_it(tmp_path: Path, ending: str):
    path = tmp_path / f"cut.{ending}"
    noise(40, 40).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=rf"cut\.{ending} cannot be read as an image"):
        read_one(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40])
def test_what_is_no_image_is_an_error_in_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(BadInput, match=r"odd\.png cannot be read as an image") as caught:
        read_one(tmp_path / "odd.png")
    assert "\n" not in str(caught.value)


def test_missing_image_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(BadInput, match=r"gone\.png"):
        read_one(tmp_path / "gone.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    path = tmp_path / "x.tif"
    noise(5, 5).convert(mode).save(path)
    assert read_one(path).mode == "RGB"


def test_palette_with_transparency_keeps_its_colours(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    assert np.asarray(read_one(tmp_path / "x.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path):
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "x.png")
    # The high byte: 0, 1, 255. Pillow's own conversion would give 0, 255, 255.
    assert np.asarray(read_one(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 1, 255]


def test_floating_point_image_is_refused(tmp_path: Path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadInput, match="floating-point"):
        read_one(tmp_path / "x.tif")


def task_of_sets(rows: list[list[int]], classes: int = 2) -> Task:
    pixels = np.zeros((len(rows), 2, 2), np.uint8)
    split = Split(Pixels(pixels, "x"), torch.tensor(rows))
    names = tuple("abc"[:classes])
    return Task(name="t", classes=names, splits={"train": split}, target=SET)


def test_split_of_sets_keeps_rows_together():
    subset = task_of_sets([[1, 0], [0, -1], [1, 1]]).splits["train"].subset([2, 1])
    assert subset.labels.tolist() == [[1, 1], [0, -1]]
    assert subset.labels.dtype == torch.int8
    assert len(subset) == 2


def test_a_class_that_no_image_of_a_set_has_is_no_error():
    check(task_of_sets([[1, 0], [0, 0]]))


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        ([[1, 0], [0, 2]], 2, "x image 1 of t has label 2 for class 'b'"),
        ([[1, -2], [0, 0]], 2, "x image 0 of t has label -2 for class 'b'"),
        ([[0, -1], [0, 0]], 2, "no image in train of t has any class"),
        ([[1, 0], [0, 1]], 3, r"labels of train of t have shape \(2, 2\), .* each of 3 classes"),
    ],
)
def test_sets_that_are_none_are_refused(rows: list[list[int]], classes: int, message: str):
    with pytest.raises(BadInput, match=message):
        check(task_of_sets(rows, classes))
