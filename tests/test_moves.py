"""Labels lie under the images, whatever is cut, mirrored or streamed."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tailor import augment
from tailor.data import Batches
from tailor.maps import Arrays
from tailor.moves import NUMBERS, Moves
from tailor.target import PIXEL_CLASS, PIXEL_VALUES, VALUES, target
from tailor.task import Pixels, Split
from tailor.view import View

# Workers are forked, which newer Pythons warn about wherever torch has started threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

CUTS = [
    View(px=12, flip=True),
    View(px=12, crop="pad", pad=3, flip=True),
    View(px=12, crop="reflect", pad=3, flip=True),
    View(px=12, crop="random", flip=True, color=0.3),
]
BOXES = View(px=12, crop="rrc", flip=True)
NORMAL = target("pixel_values", flip_signs=(-1, 1, 1))


def pictures(count: int = 8, side: int = 16) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (count, side, side, 3), dtype=np.uint8)


def dense(kind: str, pixels: np.ndarray) -> Split:
    """Labels that are the colours of their pixels: red as class, all three as values."""
    if kind == "class":
        return Split(Pixels(pixels, "x"), Arrays(pixels[..., 0].astype(np.int16), 256, "red"))
    colours = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    return Split(Pixels(pixels, "x"), Arrays(colours, 3, "colours"), target=PIXEL_VALUES)


def moved(view: View, count: int) -> Moves:
    return Moves(view, torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(0)))


def stored(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("view", CUTS[:3])
@pytest.mark.parametrize("kind", ["class", "values"])
def test_a_label_stays_under_its_pixel(view: View, kind: str):
    batches = Batches(dense(kind, pictures(side=12)), view, batch=8, train=True, workers=1)
    batch = next(batches.epoch(0))
    scale = 255 * torch.tensor(view.std).view(-1, 1, 1)
    shown = batch.images * scale + 255 * torch.tensor(view.mean).view(-1, 1, 1)
    labels = batch.labels.float() if kind == "values" else batch.labels[:, None].float()
    shown = shown if kind == "values" else shown[:, :1]
    counted = ~labels.isnan() & (labels >= 0)
    assert 0.4 < counted.float().mean() <= 1  # a border has no labels
    torch.testing.assert_close(shown[counted], labels[counted], atol=0.01, rtol=0)


def test_values_are_scaled_with_their_random_box():
    pixels = stored(pictures())
    moves = moved(BOXES, 8)
    torch.testing.assert_close(
        moves.maps(pixels.float(), PIXEL_VALUES), moves.images(pixels), atol=1e-3, rtol=0
    )


def test_classes_of_a_box_are_those_of_the_nearest_pixels():
    quarter = torch.tensor([[0.25, 0.75, 0.5, 0.5]])  # of the upper right
    maps = torch.arange(16, dtype=torch.int16).view(1, 1, 4, 4)
    found = augment.resized_classes(maps, quarter, 4)
    assert found[0, 0].tolist() == [[2, 2, 3, 3], [2, 2, 3, 3], [6, 6, 7, 7], [6, 6, 7, 7]]
    assert found.dtype == torch.int16


def test_a_value_of_a_box_is_the_mean_of_what_is_counted():
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    maps = torch.tensor([[[[1.0, 3.0], [torch.nan, torch.nan]]]])
    assert augment.resized_values(maps, whole, 1).item() == 2.0
    maps = torch.tensor([[[[1.0, torch.nan], [torch.nan, torch.nan]]]])
    assert augment.resized_values(maps, whole, 1).isnan().item()


def test_no_border_is_counted():
    view = View(px=6, crop="pad", pad=6)  # windows of 6 from 18, of which the middle 6 are known
    maps = torch.zeros(64, 6, 6, dtype=torch.int16)
    found = moved(view, 64).maps(maps, PIXEL_CLASS)
    values = moved(view, 64).maps(torch.zeros(64, 1, 6, 6), PIXEL_VALUES)
    assert set(found.unique().tolist()) == {-1, 0}
    assert torch.equal(found == -1, values[:, 0].isnan())


def normals(height: Tensor) -> Tensor:
    """(B, 3, S, S) of height fields (B, S, S): minus its slopes, and 1."""
    x = -(height.roll(-1, 2) - height.roll(1, 2)) / 2
    y = -(height.roll(-1, 1) - height.roll(1, 1)) / 2
    return torch.stack([x, y, torch.ones_like(x)], dim=1)


def test_mirrored_normals_are_those_of_the_mirrored_surface():
    height = torch.rand(8, 12, 12, generator=torch.Generator().manual_seed(1))
    moves = moved(View(px=12, flip=True), 8)
    surface = moves.images(height[:, None])[:, 0]
    assert not torch.equal(surface, height)
    assert torch.equal(moves.maps(normals(height), NORMAL), normals(surface))


def test_values_of_an_image_change_sign_with_its_mirror():
    labels = torch.tensor([[2.0, 3.0]] * 8)
    moves = moved(View(px=12, flip=True), 8)
    found = moves.values(labels, target("values", flip_signs=(-1, 1)))
    sign = torch.where(moves.uniform[:, 6] < 0.5, -1.0, 1.0)
    assert sign.unique().tolist() == [-1, 1]
    assert torch.equal(found[:, 0], 2 * sign)
    assert found[:, 1].unique().tolist() == [3]
    assert torch.equal(moves.values(labels, VALUES), labels)


@pytest.mark.parametrize("kind", ["class", "values"])
@pytest.mark.parametrize("view", [CUTS[1], CUTS[3], BOXES])
@pytest.mark.parametrize("train", [True, False])
def test_memory_and_stream_give_the_same_labels(view: View, kind: str, train: bool):
    split = dense(kind, pictures(20))
    options = {"batch": 6, "train": train}
    memory = Batches(split, view, workers=1, **options)
    stream = Batches(split, view, workers=0, memory_limit_bytes=0, **options)
    assert memory.in_memory
    assert not stream.in_memory
    for one, other in zip(memory.epoch(1), stream.epoch(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels.nan_to_num(-9), other.labels.nan_to_num(-9))
        assert one.labels.shape[-2:] == (12, 12)


def test_evaluation_takes_the_centre_of_both():
    pixels = pictures(3, side=14)
    batches = Batches(dense("class", pixels), View(px=8, resize=14), batch=3, train=False)
    (batch,) = batches.epoch(0)
    assert np.array_equal(batch.labels.numpy(), pixels[:, 3:11, 3:11, 0])
