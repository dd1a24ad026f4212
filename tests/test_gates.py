"""Gates: exact zeros and ones, and the straight-through gradient."""

from __future__ import annotations

import pytest
import torch

from tailor.gates import _SLICE, delta_product, select, threshold_gate


def test_closed_layer_still_receives_its_gradient():
    score = torch.tensor([0.05, 0.30], requires_grad=True)
    (threshold_gate(score, 0.1) * torch.tensor([3.0, 5.0])).sum().backward()
    assert score.grad.tolist() == [3.0, 5.0]


def test_gate_is_exactly_zero_or_one_for_random_scores():
    score = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gate = threshold_gate(score, 0.1)
    assert set(gate.tolist()) == {0.0, 1.0}  # `hard + s - s.detach()` misses a fifth of them


def test_score_equal_to_the_threshold_opens():
    assert threshold_gate(torch.tensor([0.1, 0.0999]), 0.1).tolist() == [1.0, 0.0]


def test_gate_refuses_a_matrix():
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        threshold_gate(torch.zeros(2, 2), 0.1)


@pytest.mark.parametrize("on", [True, False])
def test_select_equals_the_published_formula_in_value_and_gradient(on):
    make = torch.Generator().manual_seed(1)
    universal, tuned, target = (torch.randn(4, 3, generator=make) for _ in range(3))
    score = torch.tensor(0.3 if on else 0.0)

    def gradients(chosen):
        leaves = [score.clone().requires_grad_(), tuned.clone().requires_grad_()]
        weight = chosen(*leaves)
        (weight - target).square().sum().backward()
        empty = torch.zeros_like(tuned)
        return weight.detach(), leaves[0].grad, empty if leaves[1].grad is None else leaves[1].grad

    def formula(s, t):  # w0 + I(s >= tau) * delta, the indicator straight through
        return universal + threshold_gate(s[None], 0.1) * (t - universal)

    ours = gradients(lambda s, t: select(s, t, universal, on=on))
    theirs = gradients(formula)
    for mine, published in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, published)


def test_select_copies_nothing():
    universal, tuned = torch.zeros(3), torch.ones(3, requires_grad=True)
    score = torch.tensor(0.2, requires_grad=True)
    assert select(score, tuned, universal, on=True).data_ptr() == tuned.data_ptr()
    assert select(score, tuned, universal, on=False).data_ptr() == universal.data_ptr()


def test_closed_select_leaves_no_gradient_on_the_delta():
    universal, tuned = torch.zeros(3), torch.ones(3, requires_grad=True)
    select(torch.tensor(0.0, requires_grad=True), tuned, universal, on=False).sum().backward()
    assert tuned.grad is None


def test_delta_product_over_several_slices_equals_a_double_sum():
    make = torch.Generator().manual_seed(2)
    grad, tuned, universal = (torch.randn(2 * _SLICE + 7, generator=make) for _ in range(3))
    exact = (grad.double() * (tuned.double() - universal.double())).sum()
    # float32 sums of a million products of size 1: error about sqrt(n) * 2^-24 * |sum of squares|.
    assert delta_product(grad, tuned, universal).item() == pytest.approx(exact.item(), abs=0.05)


def test_delta_product_survives_a_tiny_delta():
    make = torch.Generator().manual_seed(3)
    universal = torch.randn(1000, generator=make)
    tuned = universal + 1e-6 * torch.randn(1000, generator=make)
    grad = torch.randn(1000, generator=make)
    exact = (grad.double() * (tuned - universal).double()).sum().item()
    assert delta_product(grad, tuned, universal).item() == pytest.approx(exact, rel=1e-3)
    naive = (torch.dot(grad, tuned) - torch.dot(grad, universal)).item()
    assert naive != pytest.approx(exact, rel=1e-3)  # why the difference is taken first


def test_delta_product_of_channels_last_tensors():
    make = torch.Generator().manual_seed(4)
    grad, tuned, universal = (torch.randn(2, 3, 4, 5, generator=make) for _ in range(3))
    last = [t.to(memory_format=torch.channels_last) for t in (grad, tuned, universal)]
    torch.testing.assert_close(delta_product(*last), delta_product(grad, tuned, universal))
