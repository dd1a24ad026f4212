"""Adapters computed in one piece: outputs, gradients and statistics of the modules they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from students.residual_adapters import Config, build
from tailor import place
from tailor.backbone import Backbone
from tailor.folded import CentredConvolution, framed
from tailor.normed import Normed, joinable, mapped, moments, normed
from tailor.place import NormBehind

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
CONVS = {
    "3x3": nn.Conv2d(4, 6, 3, padding=1),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "5x5 stride 3": nn.Conv2d(4, 6, 5, stride=3, padding=2),
    "no padding": nn.Conv2d(4, 6, 3),
    "much padding": nn.Conv2d(4, 6, 3, padding=3),
    "dilation": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "even": nn.Conv2d(4, 6, 4, stride=2, padding=1),
    "2x2": nn.Conv2d(4, 6, 2),
    "patches": nn.Conv2d(4, 6, 4, stride=4),
    "oblong": nn.Conv2d(4, 6, (1, 5), padding=(0, 2), stride=(2, 1)),
    "groups": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=4),
    "1x1": nn.Conv2d(4, 6, 1, stride=2),
    "named padding": nn.Conv2d(4, 6, 4, padding="same"),
    "Conv2dSame": Conv2dSame(4, 6, 3, stride=2),
    "Conv2dSame even": Conv2dSame(4, 6, 4, stride=3, dilation=2),
}


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(mine, expected, dtype):
    """Within the precision's limit, relative to the largest number."""
    limit = LIMITS[dtype] * max(float(expected.detach().abs().max()), 1.0)
    assert float((mine - expected).detach().abs().max()) <= limit


# Beside a convolution -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONVS)
def test_a_folded_convolution_has_the_gradients_of_autograd(name, layout):
    conv = copy.deepcopy(CONVS[name]).double().requires_grad_(False)
    rows, columns, height, width = conv.weight.shape
    matrix = noise(rows, columns, seed=1).requires_grad_()
    # An odd and an even side: what even strides leave over differs.
    x = noise(2, 4, 11, 14, seed=2).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    around = (width // 2, width - 1 - width // 2, height // 2, height - 1 - height // 2)
    kernel = conv.weight + F.pad(matrix.view(rows, columns, 1, 1), around)
    expected = functional_call(conv, {"weight": kernel}, (x,))
    grad = noise(*expected.shape, seed=3)
    wanted = torch.autograd.grad(expected, (x, matrix), grad)

    padded, frame = framed(x, conv)
    mine = CentredConvolution.apply(padded, matrix, conv.weight, conv.bias, frame)
    close(mine, expected, torch.float64)
    for got, want in zip(torch.autograd.grad(mine, (x, matrix), grad), wanted, strict=True):
        close(got, want, torch.float64)


# Behind it ------------------------------------------------------------------------------------


def norm(channels, seed, dtype, **options):
    made = nn.BatchNorm2d(channels, **options).to(dtype)
    with torch.no_grad():
        made.weight.copy_(noise(channels, seed=seed) + 1.5)
        made.bias.copy_(noise(channels, seed=seed + 1))
    return made


def compare(mine, expected, modules, inputs, dtype):
    """Outputs, gradients of inputs and parameters, and statistics of two lists of modules."""
    close(mine, expected, dtype)
    grad = noise(*expected.shape, seed=9, dtype=dtype)
    params = [[*inputs, *(p for m in side for p in m.parameters())] for side in modules]
    got, want = (
        torch.autograd.grad(mine, params[0], grad),
        torch.autograd.grad(expected, params[1], grad),
    )
    for a, b in zip(got, want, strict=True):
        close(a, b, dtype)
    for ours, theirs in zip(*modules, strict=True):
        for (_, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            close(a.double(), b.double(), dtype)


@pytest.mark.parametrize("channels", [5, 70])  # few channels take another product
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LIMITS)
def test_norm_and_map_in_one_product_equal_the_modules(dtype, layout, channels):
    a = 3 * noise(4, channels, 6, 5, dtype=dtype) + noise(1, channels, 1, 1, seed=1, dtype=dtype)
    a = a.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    matrix = (noise(channels, channels, seed=2, dtype=dtype) / channels).requires_grad_()
    ours = norm(channels, 3, dtype)
    theirs = copy.deepcopy(ours)
    expected = a + F.conv2d(theirs(a), matrix.view(channels, channels, 1, 1))
    compare(mapped(a, matrix, ours)[0], expected, ([ours], [theirs]), [a, matrix], dtype)


@pytest.mark.parametrize("channels", [5, 70])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LIMITS)
def test_map_and_both_norms_in_one_piece_equal_the_modules(dtype, layout, channels):
    a = noise(4, channels, 6, 5, dtype=dtype) + noise(1, channels, 1, 1, seed=1, dtype=dtype)
    a = a.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    matrix = (noise(channels, channels, seed=2, dtype=dtype) / channels).requires_grad_()
    ours = [norm(channels, 3, dtype), norm(channels, 5, dtype, momentum=None, eps=1e-3)]
    theirs = copy.deepcopy(ours)
    y = a + F.conv2d(theirs[0](a), matrix.view(channels, channels, 1, 1))
    mine, made = mapped(a, matrix, ours[0])
    mine = normed(mine, ours[1], (a.detach(), *made))
    compare(mine, theirs[1](y), (ours, theirs), [a, matrix], dtype)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", LIMITS)
def test_a_norm_of_its_own_equals_the_module(dtype, exact):
    y = (noise(3, 4, 5, 7, dtype=dtype) * 2 + 1).requires_grad_()
    ours = norm(4, 3, dtype)
    theirs = copy.deepcopy(ours)
    compare(normed(y, ours, exact=exact), theirs(y), ([ours], [theirs]), [y], dtype)


def test_moments_hold_where_the_mean_is_far_from_zero():
    # The mean of squares less the square of the mean would lose everything at 10^4 deviations.
    a = (noise(8, 3, 16, 16) + 1e4).float()
    a[:, 2] = 7.0  # a dead channel
    mean, var = moments(a)
    exact = a.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), a.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(var[:2].double(), exact[:2], rtol=1e-3, atol=0)
    assert var[2] == 0


def test_one_value_per_channel_is_refused_as_by_torch():
    with pytest.raises(ValueError, match="batch norm needs 2 values"):
        normed(noise(1, 3, 1, 1), nn.BatchNorm2d(3).double())


@pytest.mark.parametrize("exact", [False, True])
def test_only_one_activation_is_kept(exact):
    a = noise(2, 4, 6, 6).requires_grad_()
    matrix, first, second = noise(4, 4), norm(4, 1, torch.float64), norm(4, 2, torch.float64)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t.detach()), lambda t: t
    ):
        y, made = mapped(a, matrix, first)
        normed(y, second, (a.detach(), *made), exact=exact)
    assert [p for p, t in kept.items() if t.ndim == 4] == [a.data_ptr()]


# In a student ---------------------------------------------------------------------------------


def student(kind, *, start="he", dtype=torch.float64, **options):
    backbone = Backbone.create("small_resnet", weights="random", px=32)
    made = build(backbone, 5, Config(adapters=kind, init=start, **options), seed=1)
    made.universal.model.to(dtype)
    return made.to(dtype).train()


def pass_through(made, images):
    """Logits, gradients by name, and buffers by name, of one pass."""
    made.zero_grad()
    logits = made(images).logits
    (logits * noise(*logits.shape, seed=4, dtype=logits.dtype)).sum().backward()
    grads = {n: p.grad for n, p in made.task.named_parameters() if p.grad is not None}
    return logits.detach(), grads, dict(made.task.named_buffers())


@pytest.mark.parametrize("options", [{}, {"select": True}, {"rank": 3}])
@pytest.mark.parametrize("kind", ["parallel", "series"])
@pytest.mark.parametrize("dtype", LIMITS)
def test_a_student_computes_the_same_in_one_piece_and_in_many(kind, options, dtype, monkeypatch):
    images = noise(4, 3, 32, 32, dtype=dtype)
    joined, apart = (student(kind, dtype=dtype, **options) for _ in range(2))
    calls = []
    real = Normed.apply
    monkeypatch.setattr(Normed, "apply", lambda *given: calls.append(1) or real(*given))
    mine = pass_through(joined, images)
    assert len(calls) == len(joined.adapted)
    monkeypatch.setattr(place, "joinable", lambda *_: False)
    expected = pass_through(apart, images)
    assert len(calls) == len(joined.adapted)
    limit = {torch.float64: 1e-9, torch.float32: 1e-3}[dtype]  # grows over the layers
    torch.testing.assert_close(mine, expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("kind", ["parallel", "series"])
def test_the_first_step_in_training_mode_equals_the_network_to_the_bit(kind):
    made = student(kind, start="identity", dtype=torch.float32)
    network, images = copy.deepcopy(made.universal.model).train(), noise(4, 3, 32, 32).float()
    with torch.no_grad():
        assert torch.equal(made(images).logits, made.task.head(network(images)))
    moved = dict(network.named_buffers())
    for name, own in made.task.norms.items():
        assert torch.equal(own.running_var, moved[f"{name}.running_var"])


@pytest.mark.parametrize("kind", ["parallel", "series"])
def test_compiled_it_computes_the_same(kind):
    made = student(kind)
    norms = (m for m in made._view[0].modules() if isinstance(m, NormBehind))
    behind = next(norms)
    both = nn.Sequential(behind.place[0], behind)
    x = noise(2, behind.place[0].layer.in_channels, 6, 6)
    expected = copy.deepcopy(both)(x)
    torch.testing.assert_close(torch.compile(both, backend="eager")(x), expected)
    torch._dynamo.reset()


def test_a_copy_joins_its_own_tensors():
    made = student("series")
    other = copy.deepcopy(made)
    norms = [m for m in other._view[0].modules() if isinstance(m, NormBehind)]
    assert len(norms) == len(made.adapted)
    assert all(m.place[0] in other._places for m in norms)
    before = {n: t.clone() for n, t in made.state_dict().items()}
    pass_through(other, noise(4, 3, 32, 32))
    assert all(torch.equal(t, before[n]) for n, t in made.state_dict().items())


def test_it_is_left_out_where_it_does_not_hold():
    plain, x, some = nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3), torch.ones(4, 4)
    assert joinable(plain, x, some)
    assert not joinable(plain, x.bfloat16(), some.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not joinable(plain, x, some)
    assert not joinable(plain.eval(), x, some)
