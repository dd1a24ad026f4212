"""Accuracy and mean average precision, against hand counts and other programs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, jaccard_score, r2_score

from tailor.distributed import Group, joined
from tailor.errors import BadInput
from tailor.losses import task_loss
from tailor.metrics import (
    R2,
    MeanAveragePrecision,
    MeanIoU,
    MeanLoss,
    Metric,
    Top1,
    average_precision,
    metric_for,
)
from tailor.target import CLASS, PIXEL_CLASS, PIXEL_VALUES, SET, SOFT, VALUES, target
from tests import processes


def of(metric: Metric, *batches: tuple[torch.Tensor, torch.Tensor]) -> float:
    for logits, labels in batches:
        metric.add(logits, labels)
    return metric.value()


def devkit(scores: np.ndarray, present: np.ndarray) -> float:
    """VOC2012 as its development kit tells it: one image at a time, sentinels, envelope, steps."""
    recall, precision, hits = [0.0], [0.0], 0
    for n, i in enumerate(np.argsort(-scores), start=1):
        hits += int(present[i])
        recall.append(hits / present.sum())
        precision.append(hits / n)
    recall.append(1.0)
    precision.append(0.0)
    for k in range(len(precision) - 2, -1, -1):
        precision[k] = max(precision[k], precision[k + 1])
    return sum(
        (recall[k] - recall[k - 1]) * precision[k]
        for k in range(1, len(recall))
        if recall[k] != recall[k - 1]
    )


ranked = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12).filter(
    lambda pairs: any(present for _, present in pairs)
)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in pairs], np.float32), np.array([p for _, p in pairs])


def test_top1_counts_largest_logits_over_batches():
    first = (torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    last = (torch.tensor([[-3.0, -2.0]]), torch.tensor([1]))
    assert of(Top1(), first, last) == 2 / 3


def test_average_precision_of_voc2012_equals_a_hand_count():
    # From the top: no, yes, yes, no, yes. Precision at the three hits is 1/2, 2/3 and 3/5; the
    # first one rises to 2/3, because precision at a larger recall is that high.
    present = np.array([False, True, True, False, True])
    scores = np.array([5.0, 4, 3, 2, 1])
    assert average_precision(scores, present) == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 3)


def test_average_precision_without_envelope_equals_a_hand_count():
    present = np.array([False, True, True, False, True])
    scores = np.array([5.0, 4, 3, 2, 1])
    found = average_precision(scores, present, envelope=False)
    assert found == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)


def test_images_of_equal_score_enter_together():
    # Two of four at once: precision 1/2 for the first half of the recall, 2/4 for the rest.
    assert average_precision(np.zeros(4), np.array([True, False, True, False])) == 0.5
    assert average_precision(np.zeros(4), np.array([False, True, False, True])) == 0.5


@given(ranked)
def test_without_envelope_it_is_scikit_learns(pairs: list[tuple[int, bool]]):
    scores, present = arrays(pairs)
    expected = average_precision_score(present, scores)
    assert average_precision(scores, present, envelope=False) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.randoms())
def test_with_envelope_it_is_the_development_kits(present: list[bool], random):
    scores = np.arange(len(present), dtype=np.float32)  # no ties, whose order the kit leaves open
    random.shuffle(scores)
    expected = devkit(scores, np.array(present))
    assert average_precision(scores, np.array(present)) == pytest.approx(expected)


@given(ranked)
def test_the_envelope_never_lowers_it(pairs: list[tuple[int, bool]]):
    scores, present = arrays(pairs)
    plain = average_precision(scores, present, envelope=False)
    assert average_precision(scores, present) >= plain - 1e-12  # rounding of a sum


def test_map_leaves_out_what_is_not_to_be_counted():
    # Class 0: the -1 above yes and no is no mistake: 1. Class 1: no above yes: 1/2.
    logits = torch.tensor([[3.0, 2.0], [2.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([[-1, 0], [1, 1], [0, -1]], dtype=torch.int8)
    assert of(MeanAveragePrecision(), (logits, labels)) == 0.75


def test_map_counts_classes_that_no_image_has():
    metric = MeanAveragePrecision()
    labels = torch.tensor([[1, 0, -1], [0, 0, 0]], dtype=torch.int8)
    assert of(metric, (torch.tensor([[1.0, 5, 5], [0.0, 5, 5]]), labels)) == 1.0
    assert metric.left_out == 2


def test_map_does_not_depend_on_batches():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 3, generator=random)
    labels = torch.randint(-1, 2, (20, 3), generator=random).to(torch.int8)
    whole = of(MeanAveragePrecision(), (logits, labels))
    parts = zip(logits.split(7), labels.split(7), strict=True)
    assert of(MeanAveragePrecision(), *parts) == whole


def test_map_without_any_present_class_is_refused():
    with pytest.raises(BadInput, match="none of 3 classes is present in any of 2 images"):
        of(MeanAveragePrecision(), (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8)))


def test_bfloat16_logits_are_ranked():
    logits = torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16)
    assert of(MeanAveragePrecision(), (logits, torch.tensor([[0], [1]]))) == 1.0


def test_the_target_chooses_the_metric():
    assert isinstance(metric_for(CLASS), Top1)
    assert isinstance(metric_for(SOFT), Top1)
    assert isinstance(metric_for(PIXEL_CLASS), MeanIoU)
    assert isinstance(metric_for(target("pixel_class", metric="pixel_accuracy")), Top1)
    assert isinstance(metric_for(PIXEL_VALUES), R2)
    assert isinstance(metric_for(SET), MeanAveragePrecision)


def pixels(count: int = 5, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, K, 6, 6) and labels (B, 6, 6) of which a third is not counted."""
    make = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count, 6, 6), generator=make)
    labels[torch.rand(labels.shape, generator=make) < 1 / 3] = -1
    return torch.randn(count, classes, 6, 6, generator=make), labels.to(torch.int16)


def halves(metric: Metric, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The value after two batches of different size."""
    return of(metric, (logits[:2], labels[:2]), (logits[2:], labels[2:]))


def test_miou_and_pixel_accuracy_equal_scikit_learns():
    logits, labels = pixels()
    labels[labels == 3] = 0  # a class that no pixel has is left out of the mean
    counted = labels >= 0
    true, said = labels[counted].numpy(), logits.argmax(1)[counted].numpy()
    expected = jaccard_score(true, said, labels=[0, 1, 2], average="macro")
    assert halves(MeanIoU(), logits, labels) == pytest.approx(expected, abs=1e-12)
    assert halves(Top1(), logits, labels) == pytest.approx(accuracy_score(true, said), abs=1e-12)


def test_r2_equals_scikit_learns_of_every_counted_pixel():
    make = torch.Generator().manual_seed(0)
    labels = 3 + torch.randn(5, 2, 6, 6, generator=make)
    logits = labels + 0.5 * torch.randn(labels.shape, generator=make)
    labels[torch.rand(labels.shape, generator=make) < 0.3] = torch.nan
    pairs = [
        (t[~t.isnan()], y[~t.isnan()])
        for t, y in zip(*(x.unbind(1) for x in (labels, logits)), strict=True)
    ]
    expected = np.mean([r2_score(t.numpy(), y.numpy()) for t, y in pairs])
    assert halves(R2(), logits, labels) == pytest.approx(expected, abs=1e-6)  # float32 pairs
    # An output whose labels are all the same has no share to explain.
    labels[:, 1] = 0.1
    alone = r2_score(pairs[0][0].numpy(), pairs[0][1].numpy())
    assert halves(R2(), logits, labels) == pytest.approx(alone, abs=1e-6)


def test_r2_of_the_mean_is_0_and_of_labels_that_do_not_vary_refused():
    labels = torch.tensor([[1.0], [2.0], [6.0]])
    assert of(R2(), (torch.full((3, 1), 3.0), labels)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(BadInput, match="do not vary"):
        of(R2(), (labels, torch.full((3, 1), 0.1)))


def test_a_soft_label_is_met_by_its_likeliest_class():
    labels = torch.tensor([[0.6, 0.4], [0.1, 0.9]])
    assert of(Top1(), (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), labels)) == 0.5


def test_labels_of_which_none_is_counted_are_refused():
    nothing = torch.full((2, 3, 3), -1, dtype=torch.int16)
    for metric in (MeanIoU(), Top1(), MeanLoss(PIXEL_CLASS)):
        with pytest.raises(BadInput, match="no label of the split is counted"):
            of(metric, (torch.zeros(2, 4, 3, 3), nothing))


@pytest.mark.parametrize("kind", [CLASS, VALUES, PIXEL_CLASS], ids=lambda t: t.kind)
def test_the_loss_of_a_split_is_the_same_in_any_batches(kind):
    logits, labels = pixels()
    if kind == CLASS:
        logits, labels = logits[:, :, 0, 0], labels[:, 0, 0].long().clamp_min(0)
    elif kind == VALUES:
        logits, labels = logits[:, 0, 0], torch.where(logits[:, 1, 1] > 1, torch.nan, 2.0)
    whole = of(MeanLoss(kind), (logits, labels))
    assert whole == pytest.approx(task_loss(logits, labels, target=kind).item(), rel=1e-6)
    assert halves(MeanLoss(kind), logits, labels) == pytest.approx(whole, rel=1e-6)


def _values(images: int) -> None:
    """In a process of its own: metrics of every ``world``-th of so many images."""
    with joined() as group:
        assert group == Group.current()
        print(*_share(images, group))


def _share(images: int, group: Group) -> list[float]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(images, 3, generator=random)
    sets = torch.randint(-1, 2, (images, 3), generator=random).to(torch.int8)
    sets[0] = 1  # whatever is drawn
    mine = slice(group.rank, None, group.world)
    maps, classes = pixels(images)
    found = []
    for metric, said, labels in (
        (Top1(), logits, sets.argmax(1)),
        (MeanAveragePrecision(), logits, sets),
        (MeanIoU(), maps, classes),
        (R2(), maps, maps.round()),
        (MeanLoss(PIXEL_CLASS), maps, classes),
    ):
        if len(said[mine]):
            metric.add(said[mine], labels[mine])
        found.append(round(metric.value(), 6))  # float sums depend on their order
    return found


@pytest.mark.parametrize("images", [11, 1])
def test_two_processes_find_the_values_of_one(tmp_path: Path, images: int):
    started = processes.start_together(_values, images, output=tmp_path / "out")
    assert [processes.finish(p) for p in started] == [0, 0]
    expected = " ".join(map(str, _share(images, Group())))
    for rank in range(2):
        assert (tmp_path / f"out.{rank}").read_text().strip().splitlines()[-1] == expected
