import numpy as np
import pytest
import torch
from torch import Tensor

from tailor import augment


def images(count: int = 6, side: int = 9, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_pad_crop_equals_hand_indexed_windows():
    batch = images(3, side=5)
    corner = torch.tensor([[0, 0], [2, 3], [4, 4]])  # of a 5x5 window in the 9x9 padded image
    padded = np.zeros((3, 3, 9, 9), np.uint8)
    padded[:, :, 2:7, 2:7] = batch.numpy()
    expected = [padded[0, :, 0:5, 0:5], padded[1, :, 2:7, 3:8], padded[2, :, 4:9, 4:9]]
    assert np.array_equal(augment.pad_crop(batch, corner, 5, 2).numpy(), np.stack(expected))


def test_crop_without_a_border_equals_hand_indexed_windows():
    batch = images(2, side=8)
    out = augment.pad_crop(batch, torch.tensor([[0, 3], [2, 1]]), 5, 0)
    assert torch.equal(out[0], batch[0, :, 0:5, 3:8])
    assert torch.equal(out[1], batch[1, :, 2:7, 1:6])


def test_mirrored_border_equals_hand_indexed_windows_of_numpys():
    batch = images(3, side=5)
    padded = np.pad(batch.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    corner = torch.tensor([[0, 0], [3, 7], [8, 8]])
    expected = np.stack(
        [padded[i, :, y : y + 5, x : x + 5] for i, (y, x) in enumerate(corner.tolist())]
    )
    assert np.array_equal(augment.pad_crop(batch, corner, 5, 4, mirrored=True).numpy(), expected)


def test_mirror_flips_only_what_the_mask_says():
    batch = images(2)
    out = augment.mirror(batch, torch.tensor([True, False]))
    assert np.array_equal(out[0].numpy(), batch[0].numpy()[:, :, ::-1])
    assert torch.equal(out[1], batch[1])


def test_box_of_the_whole_image_changes_nothing():
    batch = images().float()
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).expand(6, 4)
    # 1e-3 of 255: sample positions are rounded to float32
    torch.testing.assert_close(augment.resized_crop(batch, whole, 9), batch, atol=1e-3, rtol=0)


def test_box_of_a_quarter_at_full_resolution_is_that_quarter():
    batch = images(side=8).float()
    top_right = torch.tensor([[0.25, 0.75, 0.5, 0.5]]).expand(6, 4)
    out = augment.resized_crop(batch, top_right, 4)
    torch.testing.assert_close(out, batch[:, :, 0:4, 4:8], atol=1e-3, rtol=0)


def test_boxes_lie_inside_the_image():
    box = augment.boxes(torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)))
    low, high = box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2
    assert low.min() >= -1e-6
    assert high.max() <= 1 + 1e-6


def test_boxes_span_the_published_areas_and_ratios():
    corners = torch.tensor([[0.0, 0.0, 0, 0], [0.0, 0.999999, 0, 0], [0.999999, 0.5, 0, 0]])
    _, _, height, width = augment.boxes(corners).unbind(1)
    area = (height * width).tolist()
    assert area == pytest.approx([0.08, 0.08, 1.0], rel=1e-4)
    assert (width / height).tolist() == pytest.approx([3 / 4, 4 / 3, 1.0], rel=1e-4)


def test_jitter_by_one_changes_nothing():
    batch = images().float()
    # float32 rounding of mean + (x - mean)
    torch.testing.assert_close(augment.jitter(batch, torch.ones(6, 3)), batch, atol=1e-3, rtol=0)


def test_brightness_doubles_and_clips():
    batch = torch.tensor([10.0, 200.0]).view(1, 1, 1, 2)
    out = augment.jitter(batch, torch.tensor([[2.0, 1.0, 1.0]]))
    assert out.flatten().tolist() == pytest.approx([20.0, 255.0], abs=1e-3)


def test_contrast_of_zero_is_the_mean_brightness():
    batch = torch.tensor([[255.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2)
    out = augment.jitter(batch, torch.tensor([[1.0, 0.0, 1.0]]))
    # One red pixel (luma 0.299 * 255 = 76.2, rounded 76) and one black: mean 38.
    assert out.flatten().tolist() == pytest.approx([38.0] * 6, abs=1e-3)


def test_saturation_of_zero_is_the_luminance():
    batch = torch.tensor([255.0, 0.0, 100.0]).view(1, 3, 1, 1)
    out = augment.jitter(batch, torch.tensor([[1.0, 1.0, 0.0]]))
    assert out.flatten().tolist() == pytest.approx([0.299 * 255 + 0.114 * 100] * 3, abs=1e-3)


def test_an_image_does_not_depend_on_its_neighbours():
    batch = images(7, side=33).float()
    uniform = torch.rand(7, 7, generator=torch.Generator().manual_seed(1))
    box, factors = augment.boxes(uniform[:, :4]), 0.5 + uniform[:, 4:]

    def both(k: slice) -> Tensor:
        return augment.jitter(augment.resized_crop(batch[k], box[k], 20), factors[k])

    alone = torch.cat([both(slice(k, k + 1)) for k in range(7)])
    assert torch.equal(both(slice(None)), alone)
