"""The data sets, and the files that the makers of public ones ship, in miniature.

Where torchvision compares MD5 sums, the published sums are replaced by those of our
miniature, so that its check runs and passes.
"""

import hashlib
import io
import itertools
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat
from sklearn.datasets import load_digits

from demos import _samples
from tailor import catalog
from tailor.datasets import characters
from tailor.errors import BadInput
from tailor.task import Facts, Split, Task, open_task

IN_PACKAGES = {"characters", "digits"}  # need no files
NAMES = catalog.names("tailor.datasets")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def solid(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    solid(value).save(path)


def values(split: Split) -> list[int]:
    """First red value of every image, which tells our solid images apart."""
    return [split.read(i).getpixel((0, 0))[0] for i in range(len(split))]


def counts(task: Task) -> dict[str, int]:
    return {name: len(split) for name, split in task.splits.items()}


# What every data set owes.


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_states_its_facts(name: str):
    facts = catalog.load("tailor.datasets", name, "task").FACTS
    assert isinstance(facts, Facts)
    assert facts.classes >= 2
    assert all((facts.title, facts.source, facts.licence))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in IN_PACKAGES])
def test_missing_data_set_says_what_to_fetch_and_where_to_put_it(name: str, tmp_path: Path):
    with pytest.raises(BadInput, match=r"--download.* fetch .*http.* into ") as caught:
        open_task(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(IN_PACKAGES))
def test_data_set_from_a_package_has_the_classes_it_states(name: str):
    task = open_task(name)
    assert len(task.classes) == catalog.load("tailor.datasets", name, "task").FACTS.classes
    for split in task.splits.values():
        assert split.labels.unique().tolist() == list(range(len(task.classes)))


@pytest.mark.parametrize("name", sorted(IN_PACKAGES))
def test_mean_and_std_are_those_of_the_images(name: str):
    task = open_task(name)
    train = task.splits["train"]
    pixels = np.stack([np.asarray(train.read(i)) for i in range(len(train))]) / 255
    # Each stated to two digits; they only centre the input.
    assert pixels.mean() == pytest.approx(np.mean(task.mean), abs=0.02)
    assert pixels.std() == pytest.approx(np.mean(task.std), abs=0.02)


# Digits.


def test_digits_are_those_of_scikit_learn_scaled_to_255():
    original, labels = load_digits(return_X_y=True)
    train = open_task("digits").splits["train"]
    number = int(train.where(5).split()[-1])
    expected = np.rint(original[number].reshape(8, 8) * 255 / 16)
    assert np.array_equal(np.asarray(train.read(5))[..., 0], expected)
    assert int(train.labels[5]) == labels[number]


def test_digits_hold_out_30_percent_of_every_class():
    # 178 zeros: 53.4 -> 53; 182 ones: 54.6 -> 55; in all 540 of 1797 before rounding by class.
    test = open_task("digits").splits["test"].labels.bincount().tolist()
    assert test == [53, 55, 53, 55, 54, 55, 54, 54, 52, 54]


# Characters.


def test_characters_are_the_same_each_time():
    one, other = (open_task("characters").splits["train"] for _ in range(2))
    assert all(one.read(i).tobytes() == other.read(i).tobytes() for i in range(60))


def test_characters_differ_from_each_other_and_between_splits():
    drawn = [
        characters.Drawn(split, characters.TRAIN_FONTS).read(i).tobytes()
        for split in ("train", "test")
        for i in (0, 53, 106)  # the same class
    ]
    assert len(set(drawn)) == 6


def test_characters_have_120_and_20_images_per_class():
    splits = characters.read(Path(), download=False).splits
    assert splits["train"].labels.bincount().tolist() == [120] * 53
    assert splits["test"].labels.bincount().tolist() == [20] * 53


def test_test_fonts_are_never_seen_in_training():
    assert set(characters.TEST_FONTS).isdisjoint(characters.TRAIN_FONTS)


@pytest.mark.parametrize("font", characters.TRAIN_FONTS + characters.TEST_FONTS)
def test_every_font_has_every_character(font: str):
    drawn = {c: characters._glyph(font, c)[0].tobytes() for c in characters.CLASSES}
    assert len(set(drawn.values())) == len(characters.CLASSES)  # no two share a "missing" box
    assert all(max(ink) == 255 for ink in drawn.values())


@pytest.mark.parametrize("number", range(53))
def test_text_stands_out_from_its_background(number: int):
    image = characters.Drawn("train", characters.TRAIN_FONTS).read(number)
    luma = np.asarray(image, np.float32) @ characters.LUMA
    # Colours are 90 apart; the background may come 40 closer, and thin strokes are blurred.
    assert np.percentile(luma, 99.5) - np.percentile(luma, 0.5) > 45


def test_characters_lie_inside_their_image():
    # Whatever the transform, some ink of each character is in the middle half.
    source = characters.Drawn("test", characters.TEST_FONTS)
    for i in range(53):
        luma = np.asarray(source.read(i), np.float32)[8:24, 8:24] @ characters.LUMA
        assert luma.max() - luma.min() > 45


# Samples.


def small_svhn(root: Path) -> Path:
    pixels = np.zeros((20, 32, 32, 3), np.uint8)
    digits = np.arange(20) % 10
    _samples.write_svhn(root, {"train": (pixels, digits), "test": (pixels, digits)})
    return root


def test_the_name_of_a_sample_says_so(tmp_path: Path):
    assert open_task("svhn", small_svhn(tmp_path)).name == "svhn-sample"


def test_without_its_mark_a_sample_is_refused_by_the_published_sums(tmp_path: Path):
    (small_svhn(tmp_path) / "sample.json").unlink()
    with pytest.raises(BadInput, match="corrupted"):
        open_task("svhn", tmp_path)


def test_a_sample_is_held_to_its_own_sums(tmp_path: Path):
    with (small_svhn(tmp_path) / "test_32x32.mat").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadInput, match="corrupted"):
        open_task("svhn", tmp_path)


def test_opening_a_sample_leaves_torchvisions_sums_as_they_are(tmp_path: Path):
    before = {k: list(v) for k, v in torchvision.datasets.SVHN.split_list.items()}
    open_task("svhn", small_svhn(tmp_path))
    assert torchvision.datasets.SVHN.split_list == before


@pytest.mark.parametrize("text", ["", "[]", '{"md5": 3}', "{}"])
def test_a_broken_mark_of_a_sample_is_named(tmp_path: Path, text: str):
    (small_svhn(tmp_path) / "sample.json").write_text(text)
    with pytest.raises(BadInput, match=r"sample\.json holds no sums"):
        open_task("svhn", tmp_path)


# torchvision's sets.


def test_svhn(tmp_path: Path):
    splits = {}
    for split, count in (("train", 20), ("test", 10)):
        pixels = np.zeros((count, 32, 32, 3), np.uint8)
        pixels[..., 0] = np.arange(count)[:, None, None] + 1
        splits[split] = (pixels, (np.arange(count) + 1) % 10)
    _samples.write_svhn(tmp_path, splits)
    labels = loadmat(tmp_path / "test_32x32.mat")["y"]
    assert labels.ravel().tolist() == list(range(1, 11))  # as published: 10 means zero
    task = open_task("svhn", tmp_path)
    assert counts(task) == {"train": 10, "val": 10, "test": 10}
    assert task.splits["test"].labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert values(task.splits["test"]) == list(range(1, 11))


def test_damaged_svhn_is_refused(tmp_path: Path):
    (tmp_path / "train_32x32.mat").write_bytes(b"not what was published")
    with pytest.raises(BadInput, match="corrupted"):
        open_task("svhn", tmp_path)


def write_cifar(base: Path, names: list[str], key: str, classes: int) -> dict[str, str]:
    """Batches as they are published: pickles of rows of 1024 red, green, blue values."""
    base.mkdir()
    sums = {}
    for name in names:
        rows = np.repeat(np.arange(2 * classes, dtype=np.uint8)[:, None], 3072, 1)
        labels = [i % classes for i in range(2 * classes)]
        (base / name).write_bytes(pickle.dumps({"data": rows, key: labels}))
        sums[name] = md5(base / name)
    return sums


@pytest.mark.parametrize(
    ("name", "cls", "train", "test", "key", "classes"),
    [
        (
            "cifar10",
            "CIFAR10",
            [f"data_batch_{k}" for k in range(1, 6)],
            "test_batch",
            "labels",
            10,
        ),
        ("cifar100", "CIFAR100", ["train"], "test", "fine_labels", 100),
    ],
)
def test_cifar(
    name: str,
    cls: str,
    train: list[str],
    test: str,
    key: str,
    classes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    made = getattr(torchvision.datasets, cls)
    base = tmp_path / made.base_folder
    sums = write_cifar(base, [*train, test], key, classes)
    meta = base / made.meta["filename"]
    meta.write_bytes(pickle.dumps({made.meta["key"]: [f"class {k}" for k in range(classes)]}))
    monkeypatch.setattr(made, "train_list", [[n, sums[n]] for n in train])
    monkeypatch.setattr(made, "test_list", [[test, sums[test]]])
    monkeypatch.setattr(made, "meta", {**made.meta, "md5": md5(meta)})
    task = open_task(name, tmp_path)
    assert len(task.splits["train"]) + len(task.splits["val"]) == 2 * classes * len(train)
    assert task.classes[3] == "class 3"
    assert task.splits["test"].labels.tolist() == [i % classes for i in range(2 * classes)]
    assert values(task.splits["test"]) == list(range(2 * classes))


def test_flowers102(tmp_path: Path):
    ids = {"trnid": range(1, 103), "valid": range(103, 205), "tstid": range(205, 307)}
    images = [solid(i % 102) for i in range(306)]
    _samples.write_flowers(tmp_path, images, np.arange(306) % 102, ids)
    task = open_task("flowers102", tmp_path)
    assert counts(task) == {"train": 102, "val": 102, "test": 102}
    assert task.splits["val"].where(0).endswith("image_00103.jpg")
    assert task.splits["val"].labels.tolist() == list(range(102))
    assert values(task.splits["val"])[50] == 50
    assert task.classes[77] == "lotus"


def test_dtd(tmp_path: Path):
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for k, split in enumerate(("train", "val", "test")):
        lines = []
        for c, name in enumerate(("banded", "dotted")):
            save(base / "images" / name / f"{name}_{k}.jpg", 100 * c + k)
            lines.append(f"{name}/{name}_{k}.jpg")
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines))
    task = open_task("dtd", tmp_path)
    assert task.classes == ("banded", "dotted")
    assert {k: values(s) for k, s in task.splits.items()} == {
        "train": [0, 100],
        "val": [1, 101],
        "test": [2, 102],
    }


def test_gtsrb(tmp_path: Path):
    base = tmp_path / "gtsrb"
    for label in range(2):
        for i in range(3):
            save(base / "GTSRB/Training" / f"{label:05d}" / f"0000{i}.ppm", 10 * label + i)
    save(base / "GTSRB/Final_Test/Images/00000.ppm", 77)
    (base / "GT-final_test.csv").write_text(
        "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n00000.ppm;8;8;1;1;6;6;1\n"
    )
    task = open_task("gtsrb", tmp_path)
    assert counts(task) == {"train": 4, "val": 2, "test": 1}
    assert task.splits["test"].labels.tolist() == [1]
    assert values(task.splits["test"]) == [77]
    assert task.splits["test"].where(0).endswith("00000.ppm")


def test_fgvc_aircraft(tmp_path: Path):
    base = tmp_path / "fgvc-aircraft-2013b" / "data"
    for k, split in enumerate(("train", "val", "test")):
        for c in range(2):
            save(base / "images" / f"{k}00{c}.jpg", 100 * c + k)
        (base / f"images_variant_{split}.txt").write_text(f"{k}000 707-320\n{k}001 An-12 B\n")
    (base / "variants.txt").write_text("707-320\nAn-12 B\n")
    task = open_task("fgvc_aircraft", tmp_path)
    assert task.classes == ("707-320", "An-12 B")
    assert values(task.splits["test"]) == [2, 102]
    assert task.splits["test"].labels.tolist() == [0, 1]


def test_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base, sums = tmp_path / "omniglot-py", {}
    halves = {"images_background": ("Greek", 2), "images_evaluation": ("Tengwar", 1)}
    for half, (alphabet, count) in halves.items():
        for c in range(count):
            for drawer in range(1, 21):
                folder = base / half / alphabet / f"character{c + 1:02d}"
                save(folder / f"0{c}00_{drawer:02d}.png", drawer)
        with zipfile.ZipFile(base / f"{half}.zip", "w") as archive:
            archive.writestr("a", half)
        sums[half] = md5(base / f"{half}.zip")
    monkeypatch.setattr(torchvision.datasets.Omniglot, "zips_md5", sums)
    task = open_task("omniglot", tmp_path)
    assert task.classes == ("Greek/character01", "Greek/character02", "Tengwar/character01")
    # Three characters by 11, 4 and 5 drawers.
    assert counts(task) == {"train": 33, "val": 12, "test": 15}
    assert sorted(set(values(task.splits["test"]))) == [16, 17, 18, 19, 20]
    assert task.splits["test"].labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST: magic number, sizes, bytes."""
    head = b"\0\0\x08" + bytes([array.ndim])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + np.array(array.shape, ">i4").tobytes() + array.tobytes())


def test_any_other_set_of_torchvision_with_a_train_flag(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    for name, count in (("train", 20), ("t10k", 10)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 784).reshape(count, 28, 28)
        write_idx(raw / f"{name}-images-idx3-ubyte", images)
        write_idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    task = open_task("torchvision:mnist", tmp_path)  # case does not matter
    assert task.name == "MNIST"
    assert task.classes[7] == "7 - seven"
    assert counts(task) == {"train": 10, "val": 10, "test": 10}
    assert values(task.splits["test"]) == list(range(10))


def test_undivided_set_of_torchvision_has_no_test(tmp_path: Path):
    for c, name in enumerate(("Forest", "River")):
        for i in range(4):
            save(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.jpg", 10 * c + i)
    task = open_task("torchvision:EuroSAT", tmp_path)
    assert counts(task) == {"train": 6, "val": 2}
    assert task.classes == ("Forest", "River")


def test_labels_that_do_not_start_at_0_are_numbered_anew(tmp_path: Path):
    base = tmp_path / "clevr" / "CLEVR_v1.0"
    for split in ("train", "val"):
        scenes = []
        for number in (3, 5, 10):
            save(base / "images" / split / f"{number:02d}.png", number)
            scenes.append({"image_filename": f"{number:02d}.png", "objects": [{}] * number})
        (base / "scenes").mkdir(exist_ok=True)
        (base / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    task = open_task("torchvision:CLEVRClassification", tmp_path)
    assert task.classes == ("3", "5", "10")
    assert task.splits["val"].labels.tolist() == [0, 1, 2]


def test_unknown_set_of_torchvision_lists_the_known():
    with pytest.raises(BadInput, match=r"torchvision:MNISTT is no .* MNIST, "):
        open_task("torchvision:MNISTT")


def test_torchvisions_own_halves_of_omniglot_are_refused():
    with pytest.raises(BadInput, match="use task omniglot"):
        open_task("torchvision:Omniglot")


def test_every_known_class_exists_in_torchvision():
    from tailor.datasets._torchvision import SETS

    assert [name for name in SETS if not hasattr(torchvision.datasets, name)] == []


def test_failed_download_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.SVHN, "download", refuse)
    with pytest.raises(BadInput, match=r"no route to host\): the download failed; fetch http"):
        open_task("svhn", tmp_path, download=True)


def test_download_talks_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torchvision.datasets.SVHN, "download", lambda self: print("downloading"))
    with pytest.raises(BadInput):
        open_task("svhn", tmp_path, download=True)
    assert capsys.readouterr().out == ""


# Folders.


def fill(base: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        save(base / name, k)
    return base


def test_folder_with_train_and_test(tmp_path: Path):
    fill(tmp_path / "pets", "train/cat/1.png", "train/cat/2.png", "train/dog/1.png")
    fill(tmp_path / "pets", "train/dog/2.png", "test/cat/9.png", "test/dog/9.png")
    task = open_task(f"folder:{tmp_path / 'pets'}")
    assert (task.name, task.classes) == ("pets", ("cat", "dog"))
    assert counts(task) == {"train": 2, "val": 2, "test": 2}
    assert task.splits["test"].where(1) == str(tmp_path / "pets" / "test" / "dog" / "9.png")


def test_folder_with_val_only_has_no_test(tmp_path: Path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    assert counts(open_task(f"folder:{tmp_path}")) == {"train": 2, "val": 2}


def test_folder_takes_image_endings_of_any_case_and_no_hidden_files(tmp_path: Path):
    endings = ["png", "JPG", "Jpeg", "bmp", "webp", "gif", "TIF", "tiff", "ppm"]
    fill(tmp_path, *(f"train/a/{i}.{e}" for i, e in enumerate(endings)), "val/a/1.png")
    fill(tmp_path, "train/b/more/1.png", "val/b/1.png", "train/b/.2.png", "train/b/.x/3.png")
    for other in ("train/a/notes.txt", "train/README.md", "train/.cache/x", "train/a/Thumbs.db"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("no image")
    task = open_task(f"folder:{tmp_path}")
    assert task.splits["train"].labels.bincount().tolist() == [len(endings), 1]
    assert task.classes == ("a", "b")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["images/1.png"], "has no folder train"),
        (["train/1.png"], "has no class folders"),
        (["train/a/1.png", "train/b/1.txt"], r"class folder .*b holds no image"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "no class 'b'"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"], "class 'c'"),
    ],
)
def test_folder_that_is_no_task_is_refused(files: list[str], message: str, tmp_path: Path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("png"):
            solid(0).save(tmp_path / name)
        else:
            (tmp_path / name).write_text("no image")
    with pytest.raises(BadInput, match=message):
        open_task(f"folder:{tmp_path}")


# Archives.


def png(value: int) -> bytes:
    solid(value, (3, 3)).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def arrays(labels: list[int]) -> dict[str, np.ndarray]:
    files = [png(i) for i in range(len(labels))]
    return {
        "data": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "label": np.array(labels),
        "id": np.array([f"photo-{i}".encode() for i in range(len(labels))]),
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    facts = {"task": "classify", "classes": ["ant", "bee"]}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    np.savez(tmp_path / "train.npz", **arrays([0, 1, 0, 1, 0, 1]))
    np.savez(tmp_path / "test.npz", **arrays([1, 0]))
    return tmp_path


def test_npz(archive: Path):
    task = open_task(f"npz:{archive}")
    assert task.classes == ("ant", "bee")
    assert counts(task) == {"train": 4, "val": 2, "test": 2}
    assert values(task.splits["test"]) == [0, 1]
    assert task.splits["test"].labels.tolist() == [1, 0]
    assert task.splits["test"].where(1) == f"{archive / 'test.npz'} image 1 (photo-1)"


def test_npz_without_ids_counts_its_images(archive: Path):
    kept = {k: v for k, v in arrays([1, 0]).items() if k != "id"}
    np.savez(archive / "test.npz", **kept)
    test = open_task(f"npz:{archive}").splits["test"]
    assert test.where(1) == f"{archive / 'test.npz'} image 1"


@pytest.mark.parametrize("name", ["data", "offsets", "label"])
def test_npz_without_a_needed_array_names_file_and_array(archive: Path, name: str):
    np.savez(archive / "test.npz", **{k: v for k, v in arrays([1, 0]).items() if k != name})
    with pytest.raises(BadInput, match=rf"test\.npz has no array '{name}'"):
        open_task(f"npz:{archive}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"label": np.array([0, 2])}, "label of image 1 is 2, out of range"),
        (lambda a: a | {"label": np.array([-1, 0])}, "label of image 0 is -1, out of range"),
        (lambda a: a | {"label": np.array([0, 1, 1])}, "offsets has 3 entries for 3 in label"),
        (lambda a: a | {"label": np.array([0.5, 1.0])}, "array 'label' is float64"),
        (lambda a: a | {"label": np.array([[0, 1]])}, r"array 'label' is int64 of shape \(1, 2\)"),
        (lambda a: a | {"offsets": a["offsets"][[0, 2, 1]]}, "offsets say that image 1"),
        (lambda a: a | {"offsets": a["offsets"] + 1}, "offsets say that image 1"),
        (lambda a: a | {"offsets": a["offsets"] - 1}, "offsets say that image 0 is bytes -1"),
        (lambda a: a | {"data": a["data"].astype(np.uint16)}, "data is uint16, uint8 is needed"),
        (lambda a: a | {"data": np.array([{}])}, "array 'data' cannot be read .*allow_pickle"),
    ],
)
def test_npz_that_contradicts_itself_names_file_and_array(
    archive: Path, change: Callable[[dict], dict], message: str
):
    np.savez(archive / "test.npz", **change(arrays([1, 0])))
    with pytest.raises(BadInput, match=message) as caught:
        open_task(f"npz:{archive}")
    assert "test.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "states task None"),
        ('{"task": "detect", "classes": ["a"]}', "states task 'detect'"),
        ('{"task": "dense", "classes": ["a"]}', 'has no map "targets"'),
        ('{"task": ["classify"], "classes": ["a"]}', r"states task \['classify'\]"),
        ('{"task": "classify"}', 'has no list "classes"'),
        ('{"task": "classify", "classes": 7}', 'has no list "classes"'),
    ],
)
def test_npz_with_facts_of_another_kind_is_refused(archive: Path, facts: str, message: str):
    (archive / "dataset.json").write_text(facts)
    with pytest.raises(BadInput, match=message):
        open_task(f"npz:{archive}")


@pytest.mark.parametrize("name", ["dataset.json", "train.npz"])
def test_npz_without_a_needed_file_names_it(archive: Path, name: str):
    (archive / name).unlink()
    with pytest.raises(BadInput, match=name):
        open_task(f"npz:{archive}")


def refusal(base: Path) -> str:
    """Open and decode everything; what BadInput says, any other error is a defect."""
    try:
        task = open_task(f"npz:{base}")
        for split in task.splits.values():
            for i in range(len(split)):
                split.read(i)
    except BadInput as error:
        return str(error)
    return ""


@given(damage=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_npz_is_either_read_or_refused_in_one_line(damage: st.DataObject):
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "dataset.json").write_text('{"task": "classify", "classes": ["a", "b"]}')
        np.savez(base / "train.npz", **arrays([0, 1, 0, 1]))
        content = bytearray((base / "train.npz").read_bytes())
        if damage.draw(st.booleans()):
            content = content[: damage.draw(st.integers(0, len(content) - 1))]
        else:
            for _ in range(damage.draw(st.integers(1, 4))):
                content[damage.draw(st.integers(0, len(content) - 1))] = damage.draw(
                    st.integers(0, 255)
                )
        (base / "train.npz").write_bytes(content)
        assert "\n" not in refusal(base)


small = st.integers(-3, 12)


@given(
    size=st.integers(0, 10),
    offsets=st.lists(small, max_size=5),
    labels=st.lists(st.integers(-1, 2), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_offsets_and_labels_are_accepted_only_where_they_fit(
    size: int, offsets: list[int], labels: list[int]
):
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "dataset.json").write_text('{"task": "classify", "classes": ["a", "b"]}')
        np.savez(base / "train.npz", **arrays([0, 1, 0, 1]))
        np.savez(
            base / "test.npz",
            data=np.zeros(size, np.uint8),
            offsets=np.array(offsets, np.int64),
            label=np.array(labels, np.int64),
        )
        fits = (
            len(offsets) == len(labels) + 1 >= 2
            and all(0 <= a < b <= size for a, b in itertools.pairwise(offsets))
            and all(label in (0, 1) for label in labels)
        )
        try:
            task = open_task(f"npz:{base}")
        except BadInput:
            assert not fits
        else:
            assert fits
            assert task.splits["test"].labels.tolist() == labels


def test_labels_of_any_integer_type_become_int64(archive: Path):
    changed = arrays([1, 0])
    np.savez(archive / "test.npz", **{**changed, "label": changed["label"].astype(np.uint8)})
    assert open_task(f"npz:{archive}").splits["test"].labels.dtype == torch.int64


# Archives of images with any number of classes.


SETS = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]]


def sets(rows: list[list[int]]) -> dict[str, np.ndarray]:
    kept = {k: v for k, v in arrays([0] * len(rows)).items() if k != "label"}
    return kept | {"labels": np.array(rows)}


@pytest.fixture
def sets_archive(tmp_path: Path) -> Path:
    facts = {"task": "multilabel", "classes": ["ant", "bee", "cow"]}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    np.savez(tmp_path / "train.npz", **sets(SETS))
    np.savez(tmp_path / "test.npz", **sets([[0, 0, 1], [1, -1, 0]]))
    return tmp_path


def test_multilabel_npz(sets_archive: Path):
    task = open_task(f"npz:{sets_archive}")
    assert task.metric == "map"
    assert task.splits["test"].labels.tolist() == [[0, 0, 1], [1, -1, 0]]
    assert task.splits["test"].labels.dtype == torch.int8
    assert len(task.splits["train"]) + len(task.splits["val"]) == 6
    assert values(task.splits["test"]) == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"labels": a["labels"][:, :2]}, "labels has 2 columns for the 3 classes"),
        (lambda a: a | {"labels": a["labels"][:1]}, "offsets has 3 entries for 1 in labels"),
        (lambda a: a | {"labels": a["labels"] + 1}, "labels of image 0 has 2 in column 2"),
        (lambda a: a | {"labels": a["labels"] - 256}, "labels of image 0 has -256 in column 0"),
        (lambda a: a | {"labels": a["labels"] * 0.5}, "array 'labels' is float64"),
        (lambda a: a | {"labels": a["labels"][:, 0]}, r"array 'labels' is int64 of shape \(2,\)"),
        (lambda a: a | {"labels": a["labels"] * 0}, "no image in test of .* has any class"),
        (lambda a: {k: v for k, v in a.items() if k != "labels"}, "has no array 'labels'"),
    ],
)
def test_multilabel_npz_that_contradicts_itself_is_refused(
    sets_archive: Path, change: Callable[[dict], dict], message: str
):
    np.savez(sets_archive / "test.npz", **change(sets([[0, 0, 1], [1, -1, 0]])))
    with pytest.raises(BadInput, match=message):
        open_task(f"npz:{sets_archive}")


def test_numbers_where_sets_are_announced_are_refused(sets_archive: Path):
    np.savez(sets_archive / "test.npz", **arrays([1, 0]))
    with pytest.raises(BadInput, match=r"test\.npz has no array 'labels'"):
        open_task(f"npz:{sets_archive}")
