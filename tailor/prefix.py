"""Prefix: what a student leaves as it was at the start of its network, and how to go on behind it.

The start of a network (its stem, then whole blocks, or all of it) in which a task changed nothing
returns the same for an image in every epoch. It can be computed once, kept (``cache.py``), and the
student resumes behind it: a ``Cut`` runs the network with the blocks of the start replaced by
modules that cost nothing, the last of which hands out what was kept. Whether a network can be cut
there is tried, to the bit; no architecture is named. Left out: what is kept, and where.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from tailor.backbone import Backbone
from tailor.graft import Pass, grafted
from tailor.paths import STEM
from tailor.student import Output, Student

FEATURES = "features"  # the prefix that is the whole backbone
_TRIED = 2  # images that a cut is tried with; the stem sees fewer, which must not matter


@dataclass(frozen=True)
class Prefix:
    """The frozen start of a student.

    Args:
        name: ``features`` for the whole backbone, ``stem``, or the last block of the start.
        run: (B, C, H, W) images to its output (B, ...), in evaluation mode, without gradient.
        exact: whether it rounds as the plain network does (``frozen.py``).
    """

    name: str
    run: Callable[[Tensor], Tensor]
    exact: bool = True


@runtime_checkable
class Starting(Student, Protocol):
    """A student that may have a frozen start."""

    def prefix(self) -> Prefix | None:
        """Its frozen start as it stands; None where it has none."""
        ...

    def resume(self, given: Tensor, images: Tensor) -> Output:
        """What the student returns for ``images``, going on from its prefix's output ``given``.

        Args:
            given: (B, ...) from ``prefix().run``.
            images: (B, C, H, W), for what else looks at them.
        """
        ...


class Resuming(nn.Module):
    """A student that goes on from ``given`` where it is there: one call for both, as DDP needs."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, given: Tensor | None = None) -> Any:
        """The student's output."""
        if given is None:
            return self.student(images)
        return cast(Starting, self.student).resume(given, images)


class Cut:
    """A network of a backbone's make, cut behind its stem, one of its blocks, or its end.

    Args:
        backbone: whose blocks those are, and whose own network is the start.
        network: the backbone's, or one grafted from it; it is the rest.
        blocks: how many of them belong to the start: 0 for the stem alone, None for everything.
        stem: images that the rest's stem is given, 0 where that works. It has no effect but time.
    """

    def __init__(
        self, backbone: Backbone, network: nn.Module, blocks: int | None, stem: int = 0
    ) -> None:
        chain = backbone.blocks
        whole = blocks is None
        self.name = FEATURES if whole else chain[blocks - 1].name if blocks else STEM
        self.trunk, self.stem, self._all = backbone.model, stem, whole
        units = [unit for block in chain[:blocks] for unit in block.units]
        at = units[-1] if units else chain[0].units[0]
        self._here = _Hand(None if units else network.get_submodule(at))
        replaced: dict[str, nn.Module] = {unit: Pass() for unit in units}
        self._rest = grafted(network, replaced | {at: self._here})
        stop = _Stop(backbone.model.get_submodule(at), before=not units)
        self._start = backbone.model if whole else grafted(backbone.model, {at: stop})
        # Containers on the way are copies with a mode of their own.
        above = dict.fromkeys(part for path in [*units, at] for part in _above(path))
        pairs = ((self._rest, network), (self._start, backbone.model))
        self._shells = [(a.get_submodule(p), b.get_submodule(p)) for a, b in pairs for p in above]

    def start(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images to the output of the start, (B, ...), in the mode that it is in."""
        self._follow()
        try:
            output: Tensor = self._start(images)
        except _Reached as reached:
            return reached.output
        assert self._all, f"{self.name} never ran, so nothing can start there"
        return output

    def rest(self, given: Tensor, images: Tensor) -> Tensor:
        """The network's output, from that of its start.

        Args:
            given: (B, ...) from ``start``.
            images: (B, C, H, W) that it was computed from; only their kind matters.
        """
        if self._all:
            return given
        self._follow()
        self._here.given = given
        try:
            return cast(Tensor, self._rest(images[: self.stem]))
        finally:
            self._here.given = None

    def prefix(self) -> Prefix:
        """The start in evaluation mode, for a student to offer."""
        return Prefix(self.name, self._still)

    @torch.no_grad()
    def _still(self, images: Tensor) -> Tensor:
        with _modes(self.trunk, training=False):
            return self.start(images)

    def _follow(self) -> None:
        for ours, theirs in self._shells:
            ours.training = theirs.training


def longest_prefix(
    backbone: Backbone,
    touched: Collection[str],
    *,
    network: nn.Module | None = None,
    trains: bool = False,
) -> Cut | None:
    """The longest start of a backbone that a student left as it was.

    Args:
        backbone: the trunk.
        touched: dotted names of modules, parameters and buffers that are the student's own, or
            behind a gate.
        network: the student's view of the trunk, grafted from it; the trunk itself by default.
        trains: whether the student runs the trunk in training mode (its batch norms apart), where
            dropout would make a start return something else each time.

    Returns:
        The network cut behind that start; None where the stem is touched, or nothing can be cut.
    """
    model = backbone.model
    some, draw = next(model.parameters()), torch.Generator().manual_seed(0)
    images = torch.randn(_TRIED, *backbone.input_size, generator=draw).to(some.device, some.dtype)
    places = [_place(backbone, name) for name in _all_names(model, touched)]
    starts: list[int | None] = [*range(min(places, default=len(backbone.blocks)) + 1)]
    starts += [] if places else [None]
    if trains:  # whatever varies in a start varies in all longer ones
        still = bisect.bisect(starts, False, key=lambda n: _varies(Cut(backbone, model, n), images))
        starts = starts[:still]
    with torch.no_grad(), _modes(model, training=False):
        whole = model(images)
    for blocks in reversed(starts):
        for stem in (0, 1):
            if _cuts(Cut(backbone, model, blocks, stem), images, whole):
                return Cut(backbone, network or model, blocks, stem)
    return None


def _place(backbone: Backbone, name: str) -> int:
    """The number of blocks before the one that this tensor or module is in; -1 for the stem."""
    for number, block in enumerate(backbone.blocks):
        if any(_within(name, unit) or _within(unit, name) for unit in block.units):
            return number
    if any(_within(name, unit) for unit in backbone.chain.tail):
        return len(backbone.blocks)
    return -1


def _within(name: str, owner: str) -> bool:
    return name == owner or name.startswith(f"{owner}.")


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def _all_names(model: nn.Module, touched: Collection[str]) -> set[str]:
    """With the other names of shared modules and tensors."""
    everything = [
        *model.named_modules(remove_duplicate=False),
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    same = {id(thing) for name, thing in everything if name in set(touched)}
    return set(touched) | {name for name, thing in everything if id(thing) in same}


@torch.no_grad()
def _cuts(cut: Cut, images: Tensor, whole: Tensor) -> bool:
    """Whether start and rest together compute ``whole``, as the uncut network does, to the bit."""
    with _modes(cut.trunk, training=False):
        try:
            begun = cut.start(images)
            return begun is not images and torch.equal(cut.rest(begun, images), whole)
        except Exception:  # such as a module that wants the input of one that is replaced
            return False


@torch.no_grad()
def _varies(cut: Cut, images: Tensor) -> bool:
    """Whether the start draws random numbers in training mode, or computes something else."""
    with _modes(cut.trunk, training=False):
        still = cut.start(images)
    with torch.random.fork_rng(), _modes(cut.trunk, training=True):
        before = _random_state(images.device)
        again = cut.start(images)
        return before != _random_state(images.device) or not torch.equal(again, still)


def _random_state(device: torch.device) -> bytes:
    state = torch.get_rng_state()
    if device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(device)])
    return state.numpy().tobytes()


@contextlib.contextmanager
def _modes(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Every module in this mode, batch norms always in evaluation mode; put back at the end."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        module.training = training and not norm
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


class _Reached(Exception):
    """No error: the start has computed its output, and nothing behind it shall run."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class _Stop(nn.Module):
    """Stands for a unit, and ends the pass before or behind it."""

    def __init__(self, unit: nn.Module, *, before: bool) -> None:
        super().__init__()
        self.unit, self.before = unit, before

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        """Never returns."""
        raise _Reached(x if self.before else self.unit(x, *more, **named))


class _Hand(nn.Module):
    """Stands for a unit: hands out what is given, or gives it to the unit."""

    def __init__(self, unit: nn.Module | None) -> None:
        super().__init__()
        self.unit = unit
        self.given: Tensor | None = None

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        """The output of the start, or of the unit behind it."""
        assert self.given is not None
        return (
            self.given if self.unit is None else cast(Tensor, self.unit(self.given, *more, **named))
        )
