from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tailor.data import Batch, Batches, View, throughput
from tailor.errors import BadInput
from tailor.task import Files, Pixels, Split

# Workers are forked, which newer Pythons warn about wherever torch has started threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

RICH = View(px=12, crop="rrc", flip=True, color=0.4)
VIEWS = [
    View(px=12),
    View(px=12, crop="pad", pad=3, flip=True),
    View(px=12, crop="random", flip=True),
    View(px=12, crop="pad", flip=True, color=0.4, channels=1),
    View(px=12, crop="reflect", pad=3, color=0.5, contrast=0.2, saturation=0.2),
    RICH,
]


def split_of(count: int, side: int = 16) -> Split:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Split(Pixels(pixels, "noise"), [i % 3 for i in range(count)])


def train(split: Split, view: View = RICH, **more: object) -> Batches:
    return Batches(split, view, **{"batch": 8, "train": True, **more})


def evaluation(split: Split, view: View = RICH, **more: object) -> Batches:
    return Batches(split, view, **{"batch": 8, "train": False, **more})


def files(base: Path, count: int, *, bad: tuple[int, ...] = ()) -> Split:
    """PNG files 00.png, 01.png, ...; those in ``bad`` are cut in half."""
    random = np.random.RandomState(0)
    paths = [base / f"{i:02d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(random.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        if i in bad:
            path.write_bytes(path.read_bytes()[:300])
    return Split(Files(paths), [i % 3 for i in range(count)])


def equal(one: Iterator[Batch], other: Iterator[Batch]) -> bool:
    """Bit for bit."""
    pairs = list(zip(one, other, strict=True))
    assert pairs
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x[:3], y[:3], strict=True))


def test_training_drops_the_short_last_batch():
    assert train(split_of(30)).steps == 3
    assert len(list(train(split_of(30)).epoch(0))) == 3


def test_training_uses_an_image_at_most_once_per_epoch():
    seen = torch.cat([b.indices for b in train(split_of(30)).epoch(0)])
    assert len(seen.unique()) == 24


def test_epochs_have_different_orders():
    batches = train(split_of(24))
    first, second = (torch.cat([b.indices for b in batches.epoch(e)]).tolist() for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


def first_of(view: View, split: Split) -> Batch:
    return next(train(split, view, batch=len(split)).epoch(0))


def test_mirrored_border_shows_windows_of_the_mirrored_image():
    split = split_of(6, side=12)
    view = View(px=12, crop="reflect", pad=3, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    images, _, indices, _ = first_of(view, split)
    tops = set()
    for image, i in zip(images.round().to(torch.uint8).numpy(), indices.tolist(), strict=True):
        pixels = split.source.pixels[i].transpose(2, 0, 1)
        padded = np.pad(pixels, ((0, 0), (3, 3), (3, 3)), mode="reflect")
        places = [
            (y, x)
            for y in range(7)
            for x in range(7)
            if np.array_equal(padded[:, y : y + 12, x : x + 12], image)
        ]
        assert len(places) == 1
        tops.add(places[0][0])
    assert len(tops) > 1


def test_shares_of_brightness_contrast_and_saturation_are_separate():
    grey = Split(Pixels(np.full((64, 12, 12, 3), 100, np.uint8), "grey"), [0, 1] * 32)
    shown = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    # Contrast and saturation leave a grey plane as it is, brightness scales it.
    images = first_of(View(px=12, contrast=0.5, saturation=0.5, **shown), grey).images
    torch.testing.assert_close(images, torch.full_like(images, 100))
    images = first_of(View(px=12, color=0.5, contrast=0, saturation=0, **shown), grey).images
    assert 50 <= images.min() < 60
    assert 140 < images.max() <= 150.0001


def test_labels_belong_to_their_images():
    split = split_of(24)
    for _, labels, indices, _ in train(split).epoch(0):
        assert labels.tolist() == [i % 3 for i in indices.tolist()]


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_sets_belong_to_their_images(limit: int):
    one = split_of(24)
    rows = torch.stack([one.labels == 0, one.labels > 0, -one.labels.clamp(max=1)], 1)
    split = Split(Pixels(np.zeros((24, 16, 16, 3), np.uint8), "x"), rows)
    for _, labels, indices, _ in train(split, memory_limit_bytes=limit, workers=0).epoch(0):
        assert labels.dtype == torch.int8
        assert torch.equal(labels, split.labels[indices])


def test_same_seed_gives_the_same_batches():
    split = split_of(24)
    assert equal(train(split, seed=5).epoch(2), train(split, seed=5).epoch(2))


def test_another_seed_gives_other_batches():
    split = split_of(24)
    assert not equal(train(split, seed=5).epoch(0), train(split, seed=6).epoch(0))


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_resuming_at_a_step_gives_the_batches_of_a_whole_epoch(limit: int):
    batches = train(split_of(40), memory_limit_bytes=limit, workers=0)
    assert equal(iter(list(batches.epoch(1))[3:]), batches.epoch(1, start_step=3))


@pytest.mark.parametrize("view", VIEWS)
def test_two_ranks_together_see_the_batches_of_one_process(view: View):
    split = split_of(24)
    ranks = [train(split, view, rank=r, world=2) for r in range(2)]
    for whole, even, odd in zip(
        train(split, view).epoch(1), *(r.epoch(1) for r in ranks), strict=True
    ):
        for joined, left, right in zip(whole[:3], even[:3], odd[:3], strict=True):
            assert torch.equal(joined[0::2], left)
            assert torch.equal(joined[1::2], right)


@pytest.mark.parametrize("view", VIEWS)
def test_streaming_gives_the_batches_from_memory(view: View):
    split = split_of(24)
    memory, stream = train(split, view), train(split, view, memory_limit_bytes=0, workers=0)
    assert (memory.in_memory, stream.in_memory) == (True, False)
    assert equal(memory.epoch(1), stream.epoch(1))


def test_streaming_by_processes_gives_the_batches_from_memory():
    split = split_of(24)
    stream = train(split, memory_limit_bytes=0, workers=2)
    for epoch in range(2):
        assert equal(train(split).epoch(epoch), stream.epoch(epoch))


def test_streaming_evaluation_gives_the_batches_from_memory():
    split = split_of(21)
    stream = evaluation(split, memory_limit_bytes=0, workers=0)
    assert equal(evaluation(split).epoch(0), stream.epoch(0))


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_batches_leave_the_global_random_numbers_alone(limit: int):
    before = torch.get_rng_state()
    list(train(split_of(24), memory_limit_bytes=limit, workers=0).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_split_that_just_fits_the_limit_stays_in_memory():
    split, view = split_of(10), View(px=12)
    need = 10 * 3 * 12 * 12
    assert evaluation(split, view, memory_limit_bytes=need).in_memory
    assert not evaluation(split, view, memory_limit_bytes=need - 1).in_memory


def test_evaluation_goes_in_order_and_ends_with_a_short_batch():
    indices = [b.indices.tolist() for b in evaluation(split_of(10), batch=4).epoch(0)]
    assert indices == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_ranks_evaluate_every_image_exactly_once(count: int):
    ranks = [evaluation(split_of(count), rank=r, world=3) for r in range(3)]
    epochs = [list(rank.epoch(0)) for rank in ranks]
    assert [len(epoch) for epoch in epochs] == [rank.steps for rank in ranks]
    seen = [i for epoch in epochs for b in epoch for i in b.indices.tolist()]
    assert sorted(seen) == list(range(count))


def test_evaluation_shows_the_normalised_centre():
    pixels = np.random.RandomState(0).randint(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    view = View(px=8, resize=16, mean=mean, std=std, crop="rrc", flip=True, color=0.5)
    batch = next(evaluation(Split(Pixels(pixels, "x"), [0]), view).epoch(0))
    expected = ((pixels[0, 4:12, 4:12] / 255 - mean) / std).transpose(2, 0, 1)
    # float32 against float64
    torch.testing.assert_close(
        batch.images[0].double(), torch.from_numpy(expected), atol=1e-6, rtol=1e-6
    )


def test_pad_crop_shifts_by_no_more_than_the_border():
    # One white pixel in the middle of a black image: it shows where the window lies.
    pixels = np.zeros((400, 9, 9, 3), np.uint8)
    pixels[:, 4, 4] = 255
    view = View(px=9, crop="pad", pad=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = next(train(Split(Pixels(pixels, "x"), [0] * 400), view, batch=400).epoch(0))
    places = batch.images[:, 0].nonzero()[:, 1:].tolist()
    # All 5 x 5 shifts occur: 25 * (24/25)^400 = 2e-6 is the chance that one is missing.
    assert {tuple(p) for p in places} == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_half_of_the_training_images_are_flipped():
    pixels = np.zeros((4096, 2, 2, 3), np.uint8)
    pixels[:, :, 0] = 255
    view = View(px=2, flip=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = next(train(Split(Pixels(pixels, "x"), [0] * 4096), view, batch=4096).epoch(0))
    # Five standard deviations of a fair coin: 5 * 0.5 / sqrt(4096) = 0.039.
    assert batch.images[:, 0, 0, 1].mean().item() == pytest.approx(0.5, abs=0.039)


def test_flipping_does_not_move_the_crops():
    split = split_of(24)
    plain, flipped = (
        next(train(split, View(px=12, crop="pad", flip=flip)).epoch(0)).images
        for flip in (False, True)
    )
    for a, b in zip(plain, flipped, strict=True):
        assert torch.equal(a, b) or torch.equal(a, b.flip(-1))
    assert not torch.equal(plain, flipped)


def test_augmentation_changes_from_epoch_to_epoch():
    pixels = np.random.RandomState(0).randint(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    batches = train(Split(Pixels(pixels.repeat(8, 0), "x"), [0] * 8))
    first, second = (next(batches.epoch(e)).images for e in (0, 1))
    assert not torch.equal(first, second)


def test_augmentation_changes_from_step_to_step():
    pixels = np.random.RandomState(0).randint(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    batches = train(Split(Pixels(pixels.repeat(16, 0), "x"), [0] * 16))
    first, second = (b.images for b in batches.epoch(0))
    assert not torch.equal(first, second)


def test_four_channels_repeat_red_with_its_statistics():
    view = View(px=12, channels=4)
    images = next(evaluation(split_of(3), view).epoch(0)).images
    assert images.shape == (3, 4, 12, 12)
    assert torch.equal(images[:, 3], images[:, 0])


def test_grey_is_normalised_by_the_mean_of_the_colours():
    white = Split(Pixels(np.full((1, 4, 4, 3), 255, np.uint8), "x"), [0])
    view = View(px=4, channels=1, mean=(0.1, 0.2, 0.6), std=(0.5, 0.5, 0.5))
    images = next(evaluation(white, view).epoch(0)).images
    # (1 - 0.3) / 0.5
    assert images.flatten().tolist() == pytest.approx([1.4] * 16)


def test_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(BadInput, match="batch of 8 is larger than the training set of 5 images"):
        train(split_of(5))


def test_evaluation_batch_may_be_larger_than_the_data_set():
    assert [len(b.labels) for b in evaluation(split_of(5)).epoch(0)] == [5]


@pytest.mark.parametrize("batch", [7, 0, -2])
def test_batch_that_processes_cannot_share_is_refused(batch: int):
    with pytest.raises(BadInput, match=f"batch is {batch} for 2 processes"):
        train(split_of(24), batch=batch, world=2)


def test_negative_seed_is_refused():
    with pytest.raises(BadInput, match="seed is -1"):
        train(split_of(24), seed=-1)


def test_unreadable_image_is_named_before_training_starts(tmp_path: Path):
    with pytest.raises(BadInput, match=r"07\.png cannot be read"):
        train(files(tmp_path, 24, bad=(7, 9)))


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_names_an_unreadable_image_in_one_line(tmp_path: Path, workers: int):
    batches = evaluation(files(tmp_path, 24, bad=(7,)), memory_limit_bytes=0, workers=workers)
    with pytest.raises(BadInput, match=r"07\.png cannot be read") as caught:
        list(batches.epoch(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_skipped_images_are_counted_and_never_seen(tmp_path: Path, limit: int):
    split = files(tmp_path, 26, bad=(7, 9))
    batches = train(split, skip_bad_images=True, memory_limit_bytes=limit, workers=0)
    assert [Path(name).name for name in batches.skipped] == ["07.png", "09.png"]
    seen = torch.cat([b.indices for b in batches.epoch(0)]).tolist()
    assert sorted(seen) == list(range(24))
    assert {batches.split.where(i) for i in seen}.isdisjoint(batches.skipped)


def test_skipping_gives_the_same_batches_from_memory_and_stream(tmp_path: Path):
    split = files(tmp_path, 26, bad=(7, 9))
    memory = train(split, skip_bad_images=True)
    stream = train(split, skip_bad_images=True, memory_limit_bytes=0, workers=2)
    assert equal(memory.epoch(0), stream.epoch(0))


def test_nothing_readable_is_an_error(tmp_path: Path):
    with pytest.raises(BadInput, match="none of 3 images can be read"):
        evaluation(files(tmp_path, 3, bad=(0, 1, 2)), skip_bad_images=True)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_small_image_is_an_error_even_when_bad_images_are_skipped(limit: int):
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    view = View(px=9, resize=0)
    with pytest.raises(BadInput, match="x image 0 is 8x8, smaller than the crop of 9"):
        evaluation(
            Split(Pixels(pixels, "x"), [0, 1, 2]),
            view,
            skip_bad_images=True,
            memory_limit_bytes=limit,
            workers=0,
        )


def test_progress_counts_up_to_all_images():
    seen: list[tuple[int, int]] = []
    evaluation(split_of(150), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 150), (128, 150), (150, 150)]


def test_throughput_is_a_rate():
    assert throughput(px=8, batch=32, n=64, seconds=0.02) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_images_of_the_cpu():
    split = split_of(24)
    here, there = (next(train(split, device=d).epoch(0)).images.cpu() for d in ("cpu", "cuda"))
    # bilinear sampling is rounded differently: about 1e-3 of 255, divided by std
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
