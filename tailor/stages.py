"""Stages: the parts of a side network that a score can switch off, one by one.

A stage that is off is a path without parameters from its input to its output: the shortcut of
option A, average pooling to the output's sides and channels filled with zeros or cut. Where both
have one shape, that is the identity. So whatever stages are off, the rest still runs, and a stage
that is off costs nothing.

    y = stage(x)     if score >= threshold       shortcut(x) otherwise

The gradient passes straight through to the score, dL/ds = <dL/dy, stage(x) - shortcut(x)>, as in
TAPS. Left out: prices and pruning, which belong to the student.

Sources: He et al., Deep residual learning, CVPR 2016 (option A); Wallingford et al., TAPS, CVPR
2022 (scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.cost import module_macs
from tailor.graft import grafted
from tailor.trace import trace


@dataclass(frozen=True)
class Stage:
    """A part of a side network."""

    name: str  # dotted module name in it
    in_shape: tuple[int, ...]  # batch axis left out
    out_shape: tuple[int, ...]
    params: int
    macs: int  # multiply-adds for one image


class Shortcut(nn.Module):
    """From ``in_shape`` to ``out_shape`` without parameters.

    Args:
        in_shape, out_shape: equal, or (C, H, W) both.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *in_shape) to (B, *out_shape); at another image size, the sides keep their ratio."""
        if self.in_shape == self.out_shape:
            return x
        channels = self.out_shape[0]
        height, width = (
            max(1, here * out // given)
            for here, out, given in zip(
                x.shape[2:], self.out_shape[1:], self.in_shape[1:], strict=True
            )
        )
        x = F.adaptive_avg_pool2d(x, (height, width))
        more = channels - x.shape[1]
        return F.pad(x, (0, 0, 0, 0, 0, more)) if more > 0 else x[:, :channels]


class Switch(nn.Module):
    """A stage behind a score.

    Args:
        stage: the module itself.
        shapes: its input and output shapes.
    """

    def __init__(self, stage: nn.Module, shapes: Stage) -> None:
        super().__init__()
        self.stage, self.shortcut = stage, Shortcut(shapes.in_shape, shapes.out_shape)
        self.on = True
        self.score: Tensor | None = None  # set before every pass

    def forward(self, x: Tensor) -> Tensor:
        """The stage's output, or the shortcut's."""
        if self.score is None or not torch.is_grad_enabled():
            result: Tensor = self.stage(x) if self.on else self.shortcut(x)
            return result
        with torch.set_grad_enabled(self.on):
            open_value = self.stage(x)
        with torch.set_grad_enabled(not self.on):
            closed_value = self.shortcut(x)
        return straight_through(self.score, open_value, closed_value, on=self.on)


def straight_through(score: Tensor, opened: Tensor, closed: Tensor, *, on: bool) -> Tensor:
    """``opened`` or ``closed``, to the bit; the score's gradient is that of mixing them.

    Args:
        score: scalar; only its gradient is used.
        opened, closed: of one shape; the one that is not taken gets no gradient.
        on: which is taken.
    """
    # (score - score) is 0 exactly, so that nothing is rounded.
    chosen = opened if on else closed
    result: Tensor = chosen + (score - score.detach()) * (opened - closed).detach()
    return result


def stages_of(side: nn.Module, input_size: tuple[int, int, int]) -> tuple[Stage, ...]:
    """The stages of a side network in the order in which they run.

    The FCNs name theirs; of another network they are its universal blocks, as ``trace`` finds them.
    One whose shapes no shortcut connects is not listed: it cannot be switched off by itself.

    Args:
        side: (1, *input_size) to features.
        input_size: (C, H, W).
    """
    names: Sequence[str] = getattr(side, "stage_names", ())
    if not names:
        was = side.training
        names = [block.name for block in trace(side.eval(), "side", input_size)[1].blocks]
        side.train(was)
    shapes = _shapes(side, names, input_size)
    names = [n for n in names if n in shapes]
    macs = module_macs(side, input_size, names)
    return tuple(
        Stage(
            name,
            *shapes[name],
            params=sum(p.numel() for p in side.get_submodule(name).parameters()),
            macs=macs[name],
        )
        for name in names
        if _connects(*shapes[name])
    )


def switched(side: nn.Module, stages: Sequence[Stage]) -> tuple[nn.Module, dict[str, Switch]]:
    """A view of ``side`` (every tensor shared) whose stages are behind switches, and those."""
    switches = {s.name: Switch(side.get_submodule(s.name), s) for s in stages}
    return grafted(side, switches), switches


def without(side: nn.Module, gone: Sequence[Stage]) -> nn.Module:
    """``side`` with shortcuts in place of these stages; the tensors of the others are shared."""
    return grafted(side, {s.name: Shortcut(s.in_shape, s.out_shape) for s in gone})


def _connects(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> bool:
    return in_shape == out_shape or len(in_shape) == len(out_shape) == 3


def _shapes(
    side: nn.Module, names: Sequence[str], input_size: tuple[int, int, int]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Input and output shape of each named module that takes and returns one tensor, once."""
    found: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    hooks = []
    for name in names:

        def note(_: nn.Module, given: Any, result: Any, name: str = name) -> None:
            single = len(given) == 1 and isinstance(given[0], Tensor) and isinstance(result, Tensor)
            shape = (tuple(given[0].shape[1:]), tuple(result.shape[1:])) if single else ((), (0,))
            found.setdefault(name, []).append(shape)

        hooks.append(side.get_submodule(name).register_forward_hook(note))
    some, was = next(side.parameters()), side.training
    try:
        with torch.no_grad():
            side.eval()(torch.zeros(1, *input_size, device=some.device, dtype=some.dtype))
    finally:
        side.train(was)
        for hook in hooks:
            hook.remove()
    return {name: calls[0] for name, calls in found.items() if len(calls) == 1}
