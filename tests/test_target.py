"""What labels are, and the losses that follow from it."""

import json

import pytest
import torch

from tailor.errors import BadInput
from tailor.losses import task_loss
from tailor.target import (
    CLASS,
    PIXEL_CLASS,
    PIXEL_VALUES,
    SET,
    SOFT,
    VALUES,
    read_back,
    stored,
    target,
    usual,
)

NAN = torch.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "boxes"}, "target kind is 'boxes': use one of class, set"),
        ({"kind": "values", "loss": "cross_entropy"}, "'cross_entropy' does not go with labels"),
        ({"kind": "pixel_class", "metric": "r2"}, "use miou or pixel_accuracy"),
        ({"kind": "class", "flip_signs": (1, -1)}, "only values have a sign"),
        ({"kind": "values", "flip_signs": (2,)}, "use 1 or -1"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, object], message: str):
    with pytest.raises(BadInput, match=message):
        target(**arguments)


def test_labels_without_a_target_are_what_is_usual():
    assert usual(torch.zeros(3, dtype=torch.int64)) == CLASS
    assert usual(torch.zeros(3, 2, dtype=torch.int8)) == SET
    assert usual(torch.zeros(3, 2)) == VALUES


def test_a_run_keeps_its_target_and_older_runs_keep_their_identity():
    assert stored(CLASS) == stored(SET) == {}
    normal = target("pixel_values", loss="l2", flip_signs=(-1, 1, 1))
    assert read_back(json.loads(json.dumps(stored(normal)))) == normal
    assert read_back({"method": "probe"}) == CLASS


@pytest.mark.parametrize(("loss", "expected"), [("l1", 5 / 3), ("l2", (1 + 4 + 4) / 3)])
def test_masked_losses_are_means_over_what_is_counted(loss: str, expected: float):
    predicted = torch.tensor([[1.0, 2.0], [3.0, 7.0]], requires_grad=True)
    labels = torch.tensor([[2.0, NAN], [5.0, 9.0]])
    found = task_loss(predicted, labels, target=target("values", loss=loss))
    assert found.item() == pytest.approx(expected)
    found.backward()
    assert predicted.grad[0, 1] == 0
    # The published masked L1: the mean of the masked difference, divided by the mean of the mask.
    if loss == "l1":
        mask = ~labels.isnan()
        masked = ((predicted - labels.nan_to_num()).abs() * mask).mean() / mask.float().mean()
        assert found.item() == pytest.approx(masked.item())


def test_pixel_cross_entropy_is_torchs_without_what_is_not_counted():
    make = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=make)
    labels = torch.randint(-1, 3, (2, 4, 4), generator=make)
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    assert task_loss(logits, labels.short(), target=PIXEL_CLASS).item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    nothing = torch.full((2, 4, 4), -1)
    assert task_loss(logits, nothing, target=PIXEL_CLASS).item() == 0


def test_soft_cross_entropy_is_the_sum_over_classes():
    logits, labels = torch.tensor([[1.0, 2.0], [0.0, 0.5]]), torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    expected = -(labels * logits.log_softmax(1)).sum(1).mean()
    assert task_loss(logits, labels, target=SOFT).item() == pytest.approx(expected.item())
    hard = task_loss(logits, torch.tensor([1, 0]))
    assert task_loss(logits, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), target=SOFT) == hard


def test_values_of_pixels_may_be_missing_in_whole_images():
    labels = torch.full((2, 1, 3, 3), NAN)
    labels[0] = 1.0
    found = task_loss(torch.zeros(2, 1, 3, 3), labels, target=PIXEL_VALUES)
    assert found.item() == 1
