"""Accuracy and mean average precision, against hand counts and other programs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tailor.distributed import Group, joined
from tailor.errors import BadInput
from tailor.metrics import MeanAveragePrecision, Metric, Top1, average_precision, metric_for
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


def test_labels_choose_the_metric():
    assert isinstance(metric_for(torch.zeros(4).ndim), Top1)
    assert isinstance(metric_for(torch.zeros(4, 2).ndim), MeanAveragePrecision)


def _values(images: int) -> None:
    """In a process of its own: metrics of every ``world``-th of so many images."""
    with joined() as group:
        assert group == Group.current()
        print(*_share(images, group))


def _share(images: int, group: Group) -> tuple[float, float]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(images, 3, generator=random)
    sets = torch.randint(-1, 2, (images, 3), generator=random).to(torch.int8)
    sets[0] = 1  # whatever is drawn
    mine = slice(group.rank, None, group.world)
    found = []
    for metric, labels in ((Top1(), sets.argmax(1)), (MeanAveragePrecision(), sets)):
        if len(logits[mine]):
            metric.add(logits[mine], labels[mine])
        found.append(metric.value())
    return found[0], found[1]


@pytest.mark.parametrize("images", [11, 1])
def test_two_processes_find_the_values_of_one(tmp_path: Path, images: int):
    started = processes.start_together(_values, images, output=tmp_path / "out")
    assert [processes.finish(p) for p in started] == [0, 0]
    expected = " ".join(map(str, _share(images, Group())))
    for rank in range(2):
        assert (tmp_path / f"out.{rank}").read_text().strip().splitlines()[-1] == expected
