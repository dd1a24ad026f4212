"""Label maps: read, checked and scaled so that they lie under their images."""

import numpy as np
import pytest
from PIL import Image

from tailor.errors import BadInput
from tailor.maps import Arrays, checked, scaled
from tailor.target import PIXEL_CLASS, PIXEL_VALUES, VALUES
from tailor.task import Pixels, Split
from tailor.view import View

NAN = np.float32("nan")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "view",
    [View(px=8), View(px=8, squash=True), View(px=8, resize=0), View(px=8, crop="random")],
)
def test_values_are_scaled_and_cut_as_the_image_above_them(view: View):
    image = noise(14, 23)
    stored = view.store(Image.fromarray(image), "x")
    values = view.store_map(image.transpose(2, 0, 1).astype(np.float32), "x")
    assert np.abs(values - stored).max() <= 1  # Pillow rounds an image in each direction


def test_classes_are_those_of_the_nearest_pixels():
    # 4x4 to 2x2: pixel centres fall between 0 and 1, 2 and 3; Pillow takes the second.
    found = scaled(np.arange(16, dtype=np.int16).reshape(4, 4), (0, 0, 4, 4), 2)
    assert found.tolist() == [[5, 7], [13, 15]]


def test_enlarged_classes_repeat_their_pixels():
    small = np.array([[0, -1], [2, 1]], np.int16)
    assert np.array_equal(scaled(small, (0, 0, 2, 2), 4), small.repeat(2, 0).repeat(2, 1))


def test_a_value_is_the_mean_of_what_is_counted():
    # One output pixel over all four, each of equal weight: half of them is enough, less is not.
    half = np.array([[[1, 3], [NAN, NAN]], [[2, NAN], [NAN, NAN]]], np.float32)
    found = scaled(half, (0, 0, 2, 2), 1)
    assert found[0].item() == pytest.approx(2.0)
    assert np.isnan(found[1].item())


@pytest.mark.parametrize(
    ("found", "numeric", "message"),
    [
        (np.array([[0, 3]]), False, "m has class 3, out of range for 3 classes"),
        (np.array([[0, -2]]), False, "m has class -2"),
        (np.array([[0.0]]), False, "m holds float64, but classes are whole numbers"),
        (np.zeros((1, 2, 2), np.int16), False, r"m has shape \(1, 2, 2\), not \(height, width\)"),
        (np.zeros((2, 2, 2)), True, r"not \(3, height, width\)"),
        (np.full((3, 1, 1), np.inf), True, "m has an infinite value"),
    ],
)
def test_maps_that_cannot_be_labels_are_refused(found: np.ndarray, numeric: bool, message: str):
    with pytest.raises(BadInput, match=message):
        checked(found, 3, numeric=numeric, where="m")


def test_a_map_of_another_size_than_its_image_is_refused():
    maps = Arrays(np.zeros((2, 4, 6), np.uint8), 3, "depth")
    split = Split(Pixels(np.zeros((2, 6, 4, 3), np.uint8), "x"), maps, target=PIXEL_CLASS)
    with pytest.raises(BadInput, match="depth of image 1 is 6x4, its image 4x6"):
        split.read_map(1, (4, 6))


def test_a_part_of_a_split_keeps_its_maps():
    maps = Arrays(np.arange(3).repeat(4).reshape(3, 2, 2), 3, "m")
    split = Split(Pixels(np.zeros((3, 2, 2, 3), np.uint8), "x"), maps).subset([2, 0])
    assert len(split) == 2
    assert split.target == PIXEL_CLASS
    assert split.read_map(0, (2, 2)).tolist() == [[2, 2], [2, 2]]


def test_labels_and_target_must_both_be_of_pixels():
    source = Pixels(np.zeros((2, 2, 2, 3), np.uint8), "x")
    with pytest.raises(BadInput, match="labels of kind 'pixel_values' are maps"):
        Split(source, np.zeros((2, 3), np.float32), target=PIXEL_VALUES)
    with pytest.raises(BadInput, match="labels of kind 'values' are one tensor"):
        Split(source, Arrays(np.zeros((2, 1, 2, 2)), 1, "m"), target=VALUES)
