import numpy as np
import pytest
from PIL import Image

from tailor.errors import BadInput
from tailor.view import View


def picture(width: int, height: int) -> Image.Image:
    random = np.random.RandomState(0)
    return Image.fromarray(random.randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("view", "side"),
    [
        (View(px=64), 64),
        (View(px=64, crop="pad"), 64),
        (View(px=224, crop="random"), 256),  # 224 / 0.875
        (View(px=224, crop="rrc"), 256),
        (View(px=224, crop="rrc", resize=232), 232),
        (View(px=24, resize=32), 32),
        (View(px=24, resize=0), 24),
    ],
)
def test_stored_side(view: View, side: int):
    assert view.side == side


def test_wide_image_is_scaled_by_its_short_side_and_cut_to_its_centre():
    image = picture(40, 16)
    expected = image.resize((20, 8), Image.Resampling.BILINEAR).crop((6, 0, 14, 8))
    assert np.array_equal(View(px=8).store(image, "x"), np.asarray(expected).transpose(2, 0, 1))


def test_squash_keeps_both_sides_whole():
    image = picture(40, 16)
    expected = image.resize((8, 8), Image.Resampling.BILINEAR)
    stored = View(px=8, squash=True).store(image, "x")
    assert np.array_equal(stored, np.asarray(expected).transpose(2, 0, 1))


def test_image_of_the_right_size_is_stored_as_it_is():
    image = picture(8, 8)
    assert np.array_equal(View(px=8).store(image, "x"), np.asarray(image).transpose(2, 0, 1))


def test_resize_0_stores_the_centre_pixels_unscaled():
    image = picture(11, 9)
    stored = View(px=5, resize=0).store(image, "x")
    assert np.array_equal(stored, np.asarray(image)[2:7, 3:8].transpose(2, 0, 1))


def test_image_smaller_than_the_crop_is_named():
    with pytest.raises(BadInput, match=r"cat\.png is 9x4, smaller than the crop of 5 px"):
        View(px=5, resize=0).store(picture(9, 4), "cat.png")


def test_one_channel_is_luminance():
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    # 0.299 * 255 = 76.2
    assert View(px=2, channels=1).store(image, "x").tolist() == [[[76, 76], [76, 76]]]


def test_very_long_image_takes_little_memory():
    # Scaled before it is cut, this would be 64 x 320000 pixels.
    assert View(px=64).store(Image.new("RGB", (5000, 1)), "x").shape == (3, 64, 64)


def test_contrast_and_saturation_change_as_much_as_colour_unless_said():
    assert View(px=8, color=0.4).shares == (0.4, 0.4, 0.4)
    assert View(px=8, color=0.5, contrast=0.2, saturation=0).shares == (0.5, 0.2, 0)
    assert not View(px=8).varies
    assert View(px=8, contrast=0.1).varies


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"px": 0}, "input side is 0"),
        ({"px": 64, "resize": 32}, "resize to 32 px is smaller than the crop of 64"),
        ({"px": 64, "crop": "middle"}, "crop is 'middle'"),
        ({"px": 64, "pad": -1}, "pad is -1"),
        ({"px": 64, "color": 1.5}, "color is 1.5"),
        ({"px": 64, "color": 0.5, "contrast": -0.5}, "contrast is -0.5"),
        ({"px": 64, "saturation": 2}, "saturation is 2"),
        ({"px": 8, "crop": "reflect", "pad": 8}, "give --pad 7 or less"),
        ({"px": 64, "channels": 0}, "channels is 0"),
        ({"px": 64, "std": (0.0, 1.0, 1.0)}, "std"),
        ({"px": 64, "squash": True, "resize": 0}, "squash"),
    ],
)
def test_impossible_view_is_refused(arguments: dict, message: str):
    with pytest.raises(BadInput, match=message):
        View(**arguments)
