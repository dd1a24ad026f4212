"""Fusions: formulas against NumPy, and the published numbers of parameters."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from tailor.errors import BadInput
from tailor.fusion import DENSE, Fusing, new_fusion
from tests.tiny import noise

SHAPES = {"vectors": (64,), "maps": (8, 3, 5)}
KINDS = get_args(Fusing)


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def tensors(shape, count=2):
    """Base, side, and as many more as wanted."""
    return [noise(4, *shape, seed=i) for i in range(count)]


def fused(fusion, *given):
    with torch.no_grad():
        base, side, *earlier = given
        return fusion.eval()(base, side, earlier).numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalised(x, groups, weight, bias):
    """Group norm by a loop over images and groups."""
    out = np.empty_like(x)
    per = x.shape[1] // groups
    for n in range(len(x)):
        for g in range(groups):
            part = x[n, g * per : (g + 1) * per]
            out[n, g * per : (g + 1) * per] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return out * weight.reshape(shape) + bias.reshape(shape)


def linear(x, module):
    """A linear map of axis 1; a 1x1 convolution is the same at every position."""
    weight = module.weight.detach().numpy()
    out = np.einsum("oi,ni...->no...", weight.reshape(len(weight), -1), x)
    if module.bias is not None:
        out += module.bias.detach().numpy().reshape(1, -1, *[1] * (x.ndim - 2))
    return out


def two_layers(x, f):
    """The map of an MLP, read from its modules."""
    if isinstance(f[0], nn.Linear):
        first, norm, _, last = f
        mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
        hidden = (linear(x, first) - mean) / np.sqrt(var + 1e-5)
        hidden = hidden * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        return linear(np.maximum(hidden, 0), last)
    scale, first, norm, _, last = f
    hidden = linear(scale.scale.item() * x, first)
    hidden = normalised(hidden, 2, norm.weight.detach().numpy(), norm.bias.detach().numpy())
    return linear(np.maximum(hidden, 0), last)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_alpha_starts_as_the_mean_and_blends_by_a_sigmoid(shape):
    base, side = tensors(shape)
    fusion = new_fusion("alpha", shape)
    np.testing.assert_array_equal(fused(fusion, base, side), ((base + side) / 2).numpy())
    fusion.alpha.data.fill_(-1.3)
    share = sigmoid(-1.3)
    wanted = share * base.numpy() + (1 - share) * side.numpy()
    np.testing.assert_allclose(fused(fusion, base, side), wanted, rtol=1e-5, atol=1e-6)
    assert numbers(fusion) == 1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dense_alpha_is_a_softmax_over_all(shape):
    base, side, *earlier = given = tensors(shape, 5)
    fusion = new_fusion("alpha", shape, earlier=3)
    assert numbers(fusion) == 5
    mean = sum(t.numpy() for t in given) / 5
    np.testing.assert_allclose(fused(fusion, *given), mean, atol=1e-6)
    fusion.alpha.data = torch.tensor([0.5, -1.0, 0.0, 2.0, 1.0])
    weights = np.exp(fusion.alpha.detach().numpy())
    weights /= weights.sum()
    ordered = [base, *earlier, side]  # the base first, the task's own side last
    wanted = sum(w * t.numpy() for w, t in zip(weights, ordered, strict=True))
    np.testing.assert_allclose(fused(fusion, *given), wanted, rtol=1e-5, atol=1e-6)


def test_a_fixed_share_is_what_was_given():
    base, side = tensors((64,))
    fusion = new_fusion("alpha_fixed", (64,), share=0.25)
    np.testing.assert_allclose(
        fused(fusion, base, side), 0.25 * base.numpy() + 0.75 * side.numpy(), atol=1e-6
    )
    assert numbers(fusion) == 0


def test_the_curriculum_falls_linearly_from_the_base_to_the_end():
    fusion = new_fusion("alpha_curriculum", (64,), end_share=0.2, epochs=4.0)
    shares = [float(fusion.share())]
    for epoch in (0.0, 1.0, 2.0, 4.0, 9.0):
        fusion.at(epoch)
        shares.append(float(fusion.share()))
    np.testing.assert_allclose(shares, [1, 1, 0.8, 0.6, 0.2, 0.2], atol=1e-6)
    base, side = tensors((64,))
    wanted = 0.2 * base.numpy() + 0.8 * side.numpy()
    np.testing.assert_allclose(fused(fusion, base, side), wanted, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sum_and_product_take_earlier_sides_in(shape):
    given = tensors(shape, 4)
    arrays = [t.numpy() for t in given]
    np.testing.assert_allclose(
        fused(new_fusion("sum", shape, earlier=2), *given), np.sum(arrays, axis=0), atol=1e-5
    )
    np.testing.assert_allclose(
        fused(new_fusion("product", shape, earlier=2), *given), np.prod(arrays, axis=0), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["mlp", "mlp2", "res_mlp", "mlp_hidden"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mlps_match_numpy(kind, shape):
    given = base, side, *earlier = [t.numpy() for t in tensors(shape, 4)]
    fusion = new_fusion(kind, shape, earlier=2, seed=1)
    for module in fusion.modules():  # norms with numbers of their own, so that each one counts
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean += noise(64, seed=3)
            module.running_var += noise(64, seed=4).square()
        if isinstance(module, nn.BatchNorm1d | nn.GroupNorm):
            module.weight.data += 0.3 * noise(*module.weight.shape, seed=5)
            module.bias.data += 0.3 * noise(*module.bias.shape, seed=6)
    wanted = two_layers(base, fusion.base)
    wanted = wanted + (side if kind in ("mlp", "mlp_hidden", "res_mlp") else 0)
    wanted = wanted + (two_layers(side, fusion.side) if kind in ("mlp2", "res_mlp") else 0)
    wanted = wanted + sum(two_layers(e, f) for e, f in zip(earlier, fusion.earlier, strict=True))
    wanted = np.maximum(wanted, 0) if kind == "mlp_hidden" else wanted
    found = fused(fusion, *(torch.from_numpy(x) for x in given))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64,), (8, 3, 5), (20,)], ids=str)
def test_film_matches_numpy_at_any_width(shape):
    base, side = (t.numpy() for t in tensors(shape))
    fusion = new_fusion("film", shape, seed=2)
    first, norm, _ = fusion.hidden
    hidden = normalised(
        linear(side, first), 2, norm.weight.detach().numpy(), norm.bias.detach().numpy()
    )
    hidden = np.maximum(hidden, 0)
    wanted = base * (linear(hidden, fusion.times) + side) + (linear(hidden, fusion.plus) + side)
    found = fused(fusion, torch.from_numpy(base), torch.from_numpy(side))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_published_numbers_of_parameters():
    vectors = {"mlp": 8448, "mlp_hidden": 8448, "mlp2": 16896, "res_mlp": 16896, "sum": 0}
    maps = {"mlp": 145, "mlp2": 290, "res_mlp": 290, "film": 1680, "product": 0, "alpha": 1}
    assert {k: numbers(new_fusion(k, (64,))) for k in vectors} == vectors
    assert {k: numbers(new_fusion(k, (8, 16, 16))) for k in maps} == maps


@pytest.mark.parametrize(("kind", "taken"), [("base_only", 0), ("side_only", 1)])
def test_only_one_is_taken_as_it_is(kind, taken):
    given = tensors((64,))
    np.testing.assert_array_equal(fused(new_fusion(kind, (64,)), *given), given[taken].numpy())


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("base_only", "side_only")])
def test_side_and_numbers_of_every_fusion_learn(kind):
    base, side = tensors((8, 3, 5))
    side.requires_grad_(True)
    fusion = new_fusion(kind, (8, 3, 5))
    if kind == "alpha_curriculum":
        fusion.at(3.0)
    fusion(base, side).square().sum().backward()
    assert side.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in fusion.parameters())


def test_the_start_of_the_maps_is_a_function_of_the_seed():
    a, b, c = (new_fusion("mlp2", (64,), seed=s).base[0].weight for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in DENSE])
def test_a_fusion_without_room_for_earlier_sides_says_so(kind):
    with pytest.raises(BadInput, match="has no place for the sides of earlier tasks"):
        new_fusion(kind, (64,), earlier=1)


def test_shares_and_lengths_out_of_range_are_refused():
    with pytest.raises(BadInput, match=r"share is 1.5; give the base's share"):
        new_fusion("alpha_fixed", (64,), share=1.5)
    with pytest.raises(BadInput, match="curriculum_epochs is 0; give a number above 0"):
        new_fusion("alpha_curriculum", (64,), epochs=0.0)
    with pytest.raises(BadInput, match="two groups of channels, and there are 7"):
        new_fusion("mlp", (7, 4, 4))
