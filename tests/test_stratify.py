"""Draws that give every class its share, by counting what they drew."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailor.stratify import at_most, stratified


def sets(count: int, shares: tuple[float, ...], seed: int = 0) -> torch.Tensor:
    """(count, C) int8: class c is present with probability ``shares[c]``."""
    drawn = np.random.RandomState(seed).rand(count, len(shares))
    return torch.from_numpy((drawn < np.array(shares)).astype(np.int8))


def per_class(labels: torch.Tensor) -> list[int]:
    return (labels == 1).sum(0).tolist()


# One class per image.


def test_stratified_takes_the_rounded_share_of_every_class():
    labels = torch.tensor([0] * 10 + [1] * 26 + [2] * 4)
    _, taken = stratified(labels, 0.1, seed=0)
    # 10 % of 10, 26 and 4 images: 1, 2.6 -> 3, 0.4 -> at least 1.
    assert labels[taken].bincount().tolist() == [1, 3, 1]


def test_stratified_keeps_one_image_of_a_class_with_two():
    kept, taken = stratified(torch.tensor([0, 0, 1, 1]), 0.9, seed=0)
    assert torch.tensor([0, 0, 1, 1])[kept].tolist() == [0, 1]
    assert torch.tensor([0, 0, 1, 1])[taken].tolist() == [0, 1]


def test_stratified_keeps_a_single_image():
    kept, _ = stratified(torch.tensor([0, 1, 1]), 0.5, seed=0)
    assert 0 in kept.tolist()


def test_stratified_parts_the_whole():
    labels = torch.arange(50) % 7
    kept, taken = stratified(labels, 0.3, seed=3)
    assert sorted(kept.tolist() + taken.tolist()) == list(range(50))


def test_stratified_repeats_itself():
    labels = torch.arange(50) % 7
    first, again, other = (stratified(labels, 0.3, seed=s)[1] for s in (3, 3, 4))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_stratified_draw_is_the_same_on_every_machine():
    # RandomState(0).permutation([0 1 2 3]) starts with 2; numpy never changes that stream.
    _, taken = stratified(torch.tensor([0, 0, 0, 0]), 0.25, seed=0)
    assert taken.tolist() == [2]


# Several classes per image.


def test_every_class_of_sets_gives_the_rounded_share():
    labels = sets(1000, (0.02, 0.1, 0.3, 0.6))
    _, taken = stratified(labels, 0.1, seed=0)
    assert per_class(labels[taken]) == [round(0.1 * n) for n in per_class(labels)]


def test_a_random_draw_would_not_do():
    # What the test above rests on: of about 20 images, 10 % drawn at random are rarely 2.
    labels = sets(1000, (0.02, 0.1, 0.3, 0.6))
    exact = [round(0.1 * n) for n in per_class(labels)]
    draws = [np.random.RandomState(s).permutation(1000)[:100] for s in range(20)]
    assert sum(per_class(labels[draw]) == exact for draw in draws) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_class_is_served_by_images_that_take_no_other_beyond_its_share(seed: int):
    labels = torch.tensor([[1, 1]] * 10 + [[1, 0]] * 10, dtype=torch.int8)
    _, taken = stratified(labels, 0.5, seed)
    assert per_class(labels[taken]) == [10, 5]


def test_images_without_a_class_give_their_share():
    labels = sets(1000, (0.1, 0.2))
    empty = (labels == 0).all(1)
    _, taken = stratified(labels, 0.1, seed=0)
    assert int(empty[taken].sum()) == round(0.1 * int(empty.sum()))


def test_what_is_not_counted_is_not_drawn_by():
    labels = torch.tensor([[1, -1]] * 10 + [[0, 1]] * 10, dtype=torch.int8)
    _, taken = stratified(labels, 0.2, seed=0)
    assert per_class(labels[taken]) == [2, 2]


def test_the_only_image_of_a_class_is_kept():
    labels = torch.tensor([[1, 1]] + [[0, 1]] * 9, dtype=torch.int8)
    kept, taken = stratified(labels, 0.5, seed=0)
    assert 0 in kept.tolist()
    assert per_class(labels[taken]) == [0, 5]


rows = st.lists(st.lists(st.integers(-1, 1), min_size=3, max_size=3), min_size=1, max_size=30)


@given(rows, st.floats(0.05, 0.95), st.integers(0, 5))
def test_sets_are_parted_and_every_class_keeps_an_image(
    found: list[list[int]], share: float, seed: int
):
    labels = torch.tensor(found, dtype=torch.int8)
    kept, taken = stratified(labels, share, seed)
    assert sorted(kept.tolist() + taken.tolist()) == list(range(len(labels)))
    before, after = per_class(labels), per_class(labels[kept])
    assert all((a > 0) == (b > 0) for a, b in zip(before, after, strict=True))


@given(rows, st.integers(0, 5))
def test_sets_are_drawn_the_same_each_time(found: list[list[int]], seed: int):
    labels = torch.tensor(found, dtype=torch.int8)
    first, again = (stratified(labels, 0.3, seed)[1].tolist() for _ in range(2))
    assert first == again


# Fewer images.


def test_at_most_keeps_the_same_share_of_every_class():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    assert labels[at_most(labels, 50)].bincount().tolist() == [30, 15, 5]


def test_at_most_takes_no_more_where_shares_are_broken():
    # 7 of 3 x 10: shares of 2.33, and nobody gets 4.
    labels = torch.arange(30) % 3
    assert sorted(labels[at_most(labels, 7)].bincount().tolist()) == [2, 2, 3]


def test_at_most_keeps_one_of_a_rare_class():
    labels = torch.tensor([0] * 999 + [1])
    assert labels[at_most(labels, 10)].bincount().tolist() == [9, 1]


def test_at_most_all_is_all():
    assert at_most(torch.tensor([1, 0, 1]), 3).tolist() == [0, 1, 2]


def test_at_most_repeats_itself():
    labels = torch.arange(50) % 7
    first, again, other = (at_most(labels, 20, seed).tolist() for seed in (3, 3, 4))
    assert first == again == sorted(first)
    assert first != other


def test_at_most_keeps_the_share_of_sets():
    labels = sets(1000, (0.02, 0.1, 0.3, 0.6))
    chosen = at_most(labels, 100)
    assert len(chosen) <= 100
    for before, after in zip(per_class(labels), per_class(labels[chosen]), strict=True):
        assert after == pytest.approx(0.1 * before, abs=2)  # the last images serve one class each


@given(rows, st.integers(1, 30))
def test_at_most_is_never_exceeded(found: list[list[int]], limit: int):
    chosen = at_most(torch.tensor(found, dtype=torch.int8), limit).tolist()
    assert len(chosen) == len(set(chosen)) <= limit


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(5, 40))
def test_a_limit_of_a_class_each_leaves_none_out(found: list[int], limit: int):
    labels = torch.tensor(found)
    assert set(labels[at_most(labels, limit)].tolist()) == set(found)
    assert len(at_most(labels, limit)) == min(limit, len(found))
