"""VOC 2012 in both forms, on scenes of two by two colours that the test knows."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from demos import _samples
from demos._samples import Marked
from tailor.datasets import _voc
from tailor.errors import BadInput
from tailor.task import open_task

CAT, DOG, PERSON = (_voc.CLASSES.index(name) for name in ("cat", "dog", "person"))


def quarters() -> Image.Image:
    """40 x 20 pixels in four grey quarters: 0, 80 above 160, 240."""
    values = np.array([[0, 80], [160, 240]], np.uint8).repeat(10, 0).repeat(20, 1)
    return Image.fromarray(values).convert("RGB")


def every_class() -> list[tuple[Image.Image, list[Marked]]]:
    """Two images of all 20 kinds, as training needs them."""
    return [(quarters(), [Marked(name, (1, 1, 20, 10)) for name in _voc.CLASSES])] * 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    scenes = [
        (quarters(), [Marked("cat", (21, 1, 40, 10)), Marked("cat", (1, 1, 5, 5), difficult=True)]),
        (quarters(), [Marked("dog", (1, 11, 20, 20), difficult=True)]),
        (quarters(), [Marked("person", (1, 11, 20, 20)), Marked("person", (21, 11, 40, 20))]),
    ]
    _samples.write_voc(tmp_path, {"train": every_class(), "val": scenes})
    return tmp_path


def annotation(root: Path, number: int = 0) -> Path:
    """That of a test image."""
    return root / "VOCdevkit" / "VOC2012" / "Annotations" / f"2009_{number:06d}.xml"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_images_know_their_classes_and_what_is_only_difficult(root: Path):
    task = open_task("voc12", root)
    labels = task.splits["test"].labels
    assert (task.metric, task.name, labels.shape) == ("map", "voc12-sample", (3, 20))
    assert [labels[0, CAT], labels[1, DOG], labels[2, PERSON]] == [1, -1, 1]
    assert int(labels.abs().sum()) == 3


def test_an_object_without_the_mark_is_not_difficult(root: Path):
    change(annotation(root, 1), "<difficult>1</difficult>", "")
    assert open_task("voc12", root).splits["test"].labels[1, DOG] == 1


def test_objects_are_cut_out_of_their_images(root: Path):
    task = open_task("voc12_objects", root)
    test = task.splits["test"]
    assert (task.metric, task.name) == ("top1", "voc12_objects-sample")
    assert test.labels.tolist() == [CAT, PERSON, PERSON]  # the difficult ones are left out
    assert [test.read(i).size for i in range(3)] == [(20, 10)] * 3
    # Upper right, lower left, lower right; JPEG changes flat grey by a step at most.
    extremes = [test.read(i).getchannel(0).getextrema() for i in range(3)]
    for (low, high), grey in zip(extremes, (80, 160, 240), strict=True):
        assert abs(low - grey) <= 1
        assert abs(high - grey) <= 1


def test_an_object_is_named_by_its_image_its_number_and_its_class(root: Path):
    where = open_task("voc12_objects", root).splits["test"].where(2)
    assert where.endswith("JPEGImages/2009_000002.jpg object 2 (person)")


def test_training_images_are_parted_into_train_and_val(root: Path):
    splits = open_task("voc12", root).splits
    assert (len(splits["train"]), len(splits["val"])) == (1, 1)


@pytest.mark.parametrize("name", ["voc12", "voc12_objects"])
def test_both_forms_survive_pickling(root: Path, name: str):
    split = open_task(name, root).splits["test"]
    assert pickle.loads(pickle.dumps(split)).read(2).tobytes() == split.read(2).tobytes()


def test_no_crop_is_kept(root: Path):
    split = open_task("voc12_objects", root).splits["train"]
    before = len(pickle.dumps(split))
    split.read(0)
    assert len(pickle.dumps(split)) == before


def test_decimals_are_rounded(root: Path):
    change(annotation(root), "<xmin>21<", "<xmin>20.6000000381<")
    assert open_task("voc12_objects", root).splits["test"].read(0).size == (20, 10)


def test_a_box_one_pixel_outside_is_cut(root: Path):
    change(annotation(root), "<xmax>40<", "<xmax>41<")
    change(annotation(root), "<ymin>1<", "<ymin>0<")
    assert open_task("voc12_objects", root).splits["test"].read(0).size == (20, 10)


def test_parts_of_people_are_no_objects(root: Path):
    part = "<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>"
    change(annotation(root, 2), "<name>", f"{part}<name>")
    test = open_task("voc12_objects", root).splits["test"]
    assert test.labels.tolist() == [CAT, PERSON, PERSON]
    assert test.read(1).size == (20, 10)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmax>40<", "<xmax>42<", r"object 1 \(cat\) has the box .*not inside .* of 40x20 pixels"),
        ("<xmin>21<", "<xmin>-1<", "is empty or not inside"),
        ("<xmin>21<", "<xmin>41<", "is empty or not inside"),
        ("<xmin>21<", "<xmin>x<", r"object 1 \(cat\) has the box \['x', .*not four numbers"),
        ("<xmin>21<", "<xmin>nan<", "not four numbers"),
        ("<xmin>21</xmin>", "", "not four numbers"),
        ("<name>cat<", "<name>cats<", "object 1 is of class 'cats', none of the 20"),
        ("<name>cat</name>", "", "object 1 is of class '', none of the 20"),
        ("<annotation>", "<annotation", "is not XML"),
    ],
)
def test_a_broken_annotation_is_named_in_one_line(root: Path, old: str, new: str, message: str):
    change(annotation(root), old, new)
    with pytest.raises(BadInput, match=message) as caught:
        open_task("voc12_objects", root)
    assert "2009_000000.xml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_annotation_is_named(root: Path):
    annotation(root).unlink()
    with pytest.raises(BadInput, match=r"annotation .*2009_000000\.xml cannot be read \(No such"):
        open_task("voc12", root)


@pytest.mark.parametrize("name", ["voc12", "voc12_objects"])
def test_a_missing_image_is_named(root: Path, name: str):
    (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2009_000000.jpg").unlink()
    with pytest.raises(BadInput, match=r"2009_000000\.jpg.* cannot be read as an image"):
        open_task(name, root).splits["test"].read(0)


def test_an_image_of_another_size_than_annotated_is_refused(root: Path):
    quarters().resize((20, 20)).save(root / "VOCdevkit/VOC2012/JPEGImages/2009_000000.jpg")
    test = open_task("voc12_objects", root).splits["test"]
    with pytest.raises(BadInput, match="not inside its image of 20x20 pixels"):
        test.read(0)


def test_a_missing_image_list_says_what_to_fetch(root: Path):
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(BadInput, match=r"val\.txt.* fetch https://thor"):
        open_task("voc12", root)


def test_an_empty_image_list_is_refused(root: Path):
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "val.txt").write_text("")
    with pytest.raises(BadInput, match="no images in test"):
        open_task("voc12", root)


def refusal(path: Path) -> str:
    """Read all boxes; what BadInput says, any other error is a defect."""
    try:
        for thing in _voc.things(path):
            left, top, right, bottom = thing.pixels()
            assert 0 <= left < right
            assert 0 <= top < bottom
    except BadInput as error:
        return str(error)
    return ""


@given(damage=st.data())
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_annotation_is_read_or_refused_in_one_line(tmp_path: Path, damage: st.DataObject):
    _samples.write_voc(tmp_path, {"val": [(quarters(), [Marked("cat", (21, 1, 40, 10))])]})
    path = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "2008_000000.xml"
    content = bytearray(path.read_bytes())
    for _ in range(damage.draw(st.integers(1, 3))):
        content[damage.draw(st.integers(0, len(content) - 1))] = damage.draw(st.integers(0, 255))
    path.write_bytes(content[: damage.draw(st.integers(0, len(content)))])
    assert "\n" not in refusal(path)
