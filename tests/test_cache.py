"""The cache of frozen starts: what is kept, what trains from it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from students import lora, nettailor, probe, side_tuning, taps
from tailor import cache
from tailor.data import Batches
from tailor.errors import BadInput
from tailor.options import Images
from tailor.progress import Silent
from tailor.run import Run, read_tensors, write_tensors
from tailor.settings import Settings
from tailor.task import Pixels, Split
from tailor.train import evaluate, fit
from tailor.view import View
from tests.tiny import CLASSES, PX, Interrupted, Until, block_net, conv_net, images, lively

HOW = Settings(epochs=2, batch=4, lr=0.1, device="cpu", seed=3)
STILL = View(px=PX)
FEW = 10  # images: two full batches of 4 per epoch, and a rest that differs


def splits(*, view: View = STILL, count: int = FEW, seed: int = 0, train_only: bool = False):
    train = Batches(images(count, seed=seed), view, batch=4, seed=3, train=True, workers=1)
    if train_only:
        return {"train": train}
    val = Batches(images(7, seed=9), View(px=PX), batch=5, train=False, workers=1)
    return {"train": train, "val": val}


class Told(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def give(student, found, where="auto", *, how=HOW, memory_gb=4.0) -> list[str]:
    told = Told()
    options = Images(cache=str(where), memory_gb=memory_gb)
    cache.give_outputs(student, found, options, how, told)
    return told.lines


def students():
    """One whose whole trunk is frozen, and one whose first two blocks of three are."""
    late = lora.Config(norms="universal", depths=("late",), stem=False, rank=2)
    return {
        "probe": lambda: probe.build(conv_net(), CLASSES, seed=1),
        "lora": lambda: lora.build(block_net(), CLASSES, late, seed=1),
        "nettailor": lambda: nettailor.build(
            block_net(), CLASSES, nettailor.Config(distill=0.0), seed=1
        ),
    }


@pytest.fixture(params=list(students()))
def new(request):
    return students()[request.param]


def weights(student) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in student.task.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def trained(student, found, **options) -> dict[str, torch.Tensor]:
    fit(student, found["train"], found.get("val"), HOW, **options)
    return weights(student)


def test_every_image_carries_the_output_that_it_has(new):
    student, found = new(), splits()
    give(student, found)
    for batch in [*found["train"].epoch(0), *found["val"].epoch(0)]:
        torch.testing.assert_close(batch.given, student.prefix().run(batch.images))


def test_training_with_the_cache_is_training_without_it(new):
    plain, kept = new(), new()
    found = splits()
    give(kept, found)
    assert next(found["train"].epoch(0)).given is not None
    expected = trained(plain, splits())
    for name, tensor in trained(kept, found).items():
        # Outputs were computed in other batches, which may round otherwise.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_the_cached_start_is_not_run_in_training():
    student, found = students()["probe"](), splits()
    give(student, found)
    student.universal.forward = None
    assert trained(student, found)


def test_evaluation_with_the_cache_finds_the_same_accuracy(new):
    student, found = lively(new()), splits()
    expected = evaluate(student, found["val"])
    give(student, found)
    assert evaluate(student, found["val"]) == expected


def test_pieces_of_a_batch_get_their_own_outputs(new):
    plain, kept, found = new(), new(), splits()
    give(kept, found)
    how = replace(HOW, accumulate=3)
    fit(plain, *splits().values(), how)
    fit(kept, *found.values(), how)
    for name, tensor in weights(kept).items():
        torch.testing.assert_close(tensor, weights(plain)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(new, tmp_path, where):
    where = tmp_path / "cache" if where == "folder" else where
    calm, found = new(), splits()
    give(calm, found, where)
    expected = trained(calm, found)
    config = {"data": {}}
    for end in (Until(3), None):
        student, found = new(), splits()
        give(student, found, where)
        with Run(tmp_path / "run", "adapt", config) as run:
            often = replace(HOW, checkpoint_seconds=0.0)
            try:
                fit(student, *found.values(), often, run=run, progress=end)
            except Interrupted:
                assert end is not None
                continue
    assert same(weights(student), expected)


def test_images_that_vary_are_not_kept():
    for view in (View(px=PX, crop="pad", pad=1), View(px=PX, flip=True), View(px=PX, color=0.1)):
        found = splits(view=view)
        assert give(students()["probe"](), found) == []
        assert next(found["train"].epoch(0)).given is None
        for where in ("memory", "folder"):
            with pytest.raises(BadInput, match="--crop none"):
                give(students()["probe"](), found, where)


def test_a_method_without_a_frozen_start_trains_as_ever(tmp_path):
    student, found = taps.build(conv_net(), CLASSES), splits()
    assert give(student, found) == []
    assert next(found["train"].epoch(0)).given is None
    (line,) = give(student, found, tmp_path)
    assert "taps" in line


def test_off_keeps_nothing():
    found = splits()
    assert give(students()["probe"](), found, "off") == []
    assert next(found["train"].epoch(0)).given is None


def test_what_does_not_fit_is_not_kept_and_refused_where_asked_for(tmp_path):
    # 17 images, 10 features of 4 bytes: 680 bytes
    student, found = students()["probe"](), splits()
    for limit, fits in ((680, True), (679, False)):
        found = splits()
        give(student, found, memory_gb=limit / 2**30)
        assert (next(found["train"].epoch(0)).given is not None) == fits
    with pytest.raises(BadInput, match="--memory-gb"):
        give(student, splits(), tmp_path, memory_gb=679 / 2**30)


# Files ----------------------------------------------------------------------------------------


def one_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def fill(folder: Path, **options) -> list[str]:
    return give(students()["probe"](), splits(train_only=True), folder, **options)


def test_a_file_is_computed_once_and_read_by_the_next_run(tmp_path):
    assert len(fill(tmp_path)) == 2
    before = one_file(tmp_path).read_bytes()
    assert fill(tmp_path) == []
    assert one_file(tmp_path).read_bytes() == before


def test_a_file_holds_the_features_of_the_images_in_their_order(tmp_path):
    fill(tmp_path)
    tensors, about = read_tensors(one_file(tmp_path))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (STILL.mean, STILL.std))
    pixels = torch.from_numpy(images(FEW).source.pixels).permute(0, 3, 1, 2)
    expected = conv_net()((pixels / 255 - mean) / std)
    torch.testing.assert_close(tensors["outputs"], expected, rtol=1e-5, atol=1e-6)
    assert about["fingerprint"] == conv_net().fingerprint()


def moved(split: Split) -> Split:
    return Split(split.source, split.labels, split.index.flip(0))


def other(what: str):
    """A student and batches of which one thing differs from those of ``fill``."""
    student, found, how = students()["probe"](), splits(train_only=True), HOW
    train = found["train"]
    if what == "backbone":
        with torch.no_grad():
            student.universal.model.conv1.weight[0, 0, 0, 0] += 1e-6
    elif what == "preprocessing":
        found = splits(train_only=True, view=View(px=PX, mean=(0.5, 0.5, 0.5)))
    elif what == "images":
        pixels = images(FEW).source.pixels.copy()
        pixels[9, 0, 0, 0] ^= 1
        split = Split(Pixels(pixels, "noise"), np.arange(FEW) % CLASSES)
        found = {"train": Batches(split, STILL, batch=4, train=True, workers=1)}
    elif what == "order":
        pixels = images(FEW).source.pixels[::-1].copy()
        split = Split(Pixels(pixels, "noise"), np.arange(FEW) % CLASSES)
        found = {"train": Batches(split, STILL, batch=4, train=True, workers=1)}
    elif what == "precision":
        how = replace(how, bf16=True)
    elif what == "rounding":  # side-tuning's features come from channels-last images
        config = side_tuning.Config(norm=False, fusion="base_only")
        student = side_tuning.build(student.universal, CLASSES, config)
    assert what in ("backbone", "preprocessing", "images", "order", "precision", "rounding")
    return student, found, how, train


@pytest.mark.parametrize(
    "what", ["backbone", "preprocessing", "images", "order", "precision", "rounding"]
)
def test_another_identity_has_another_file(tmp_path, what):
    fill(tmp_path)
    before = one_file(tmp_path)
    content = before.read_bytes()
    student, found, how, _ = other(what)
    give(student, found, tmp_path, how=how)
    assert len([*tmp_path.iterdir()]) == 2
    assert before.read_bytes() == content


def test_what_makes_the_old_file_useless_is_said(tmp_path):
    fill(tmp_path)
    student, found, how, _ = other("backbone")
    lines = give(student, found, tmp_path, how=how)
    assert "another backbone" in lines[0]
    assert one_file_names(tmp_path)[0] in lines[0] or one_file_names(tmp_path)[1] in lines[0]


def one_file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_other_labels_of_the_same_images_share_a_file(tmp_path):
    fill(tmp_path)
    split = Split(images(FEW).source, (np.arange(FEW) + 1) % CLASSES)
    found = {"train": Batches(split, STILL, batch=4, seed=8, train=True, workers=1)}
    assert give(students()["probe"](), found, tmp_path) == []


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    fill(tmp_path)
    path = one_file(tmp_path)
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for at in (start, (start + len(good)) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bad)
        with pytest.raises(BadInput, match="delete it") as error:
            fill(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == bytes(bad)
    path.unlink()
    fill(tmp_path)
    assert path.read_bytes() == good


def test_a_truncated_file_is_refused(tmp_path):
    fill(tmp_path)
    path = one_file(tmp_path)
    good = path.read_bytes()
    for size in (0, 5, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(BadInput, match="delete it"):
            fill(tmp_path)


def test_a_changed_backbone_behind_a_file_is_refused(tmp_path):
    """A sound file of other weights under the name that ours would have."""
    student, found, how, _ = other("backbone")
    give(student, found, tmp_path / "theirs", how=how)
    fill(tmp_path / "ours")
    path = one_file(tmp_path / "ours")
    path.write_bytes(one_file(tmp_path / "theirs").read_bytes())
    with pytest.raises(BadInput, match=r"other backbone than its name says; delete it"):
        fill(tmp_path / "ours")


def test_a_file_of_something_else_is_refused(tmp_path):
    fill(tmp_path)
    path = one_file(tmp_path)
    write_tensors(path, {"outputs": torch.zeros(FEW, 10)})
    with pytest.raises(BadInput, match="other origin"):
        fill(tmp_path)


def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "taken").write_text("precious")
    with pytest.raises(BadInput, match="--cache") as error:
        fill(tmp_path / "taken")
    assert "\n" not in str(error.value)
    assert (tmp_path / "taken").read_text() == "precious"


def test_bfloat16_outputs_are_kept_as_they_are(tmp_path):
    student, found = students()["lora"](), splits(train_only=True)
    give(student, found, tmp_path, how=replace(HOW, bf16=True))
    tensors, about = read_tensors(one_file(tmp_path))
    assert tensors["outputs"].dtype == torch.bfloat16
    assert json.dumps(about["bf16"]) == "true"


def test_streamed_images_are_kept_too():
    student = students()["probe"]()
    whole, found = splits(train_only=True), splits(train_only=True)
    streamed = Batches(
        images(FEW), STILL, batch=4, seed=3, train=True, workers=0, memory_limit_bytes=0
    )
    give(student, whole)
    give(student, {"train": streamed})
    mine, theirs = (next(b.epoch(0)).given for b in (streamed, whole["train"]))
    assert torch.equal(mine, theirs)
    assert found["train"].fingerprint() == whole["train"].fingerprint()


def test_every_process_keeps_all_images():
    student = students()["probe"]()
    alone = splits(train_only=True)
    give(student, alone)
    for rank in range(2):
        found = Batches(
            images(FEW), STILL, batch=4, seed=3, train=True, workers=1, rank=rank, world=2
        )
        give(student, {"train": found})
        for whole, part in zip(alone["train"].epoch(1), found.epoch(1), strict=True):
            assert torch.equal(whole.given[rank::2], part.given)


def test_outputs_of_another_number_of_images_are_no_cache():
    with pytest.raises(ValueError, match="10 images"):
        splits()["train"].give(torch.zeros(9, 2))
