"""Batches: the images of a split, cut, augmented and normalised, in a reproducible order.

Every image is decoded to a square of uint8 pixels once and kept in memory where the split
fits; larger splits are decoded again each epoch by worker processes. Both feed the same
augmentation (`tailor.augment`), so a training loop gets bit-identical batches from either.

The order of an epoch is a function of (seed, epoch), or of (seed, epoch, pass) where it has a set
number of steps; the augmentation of a batch is one of (seed, epoch, step). Random numbers are drawn
for the global batch and then shared out: several processes see together what one would, and a
resumed run sees what it would have.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tailor import identity
from tailor.decode import Stream, bytes_per_image, decode, unreadable
from tailor.errors import BadInput
from tailor.moves import NUMBERS, Moves, centre
from tailor.task import Pixels, Split
from tailor.view import View

__all__ = ["Batch", "Batches", "View", "throughput"]


class Batch(NamedTuple):
    """What one process gets for one step."""

    images: Tensor  # (b, channels, px, px) float32, normalised, on the device
    labels: Tensor  # as the split's target says (`tailor.target`), on the device
    indices: Tensor  # (b,) int64, on the CPU: positions in `Batches.split`
    given: Tensor | None = None  # (b, ...) what a student's frozen start returns for the images


class Batches:
    """The batches of a split, epoch by epoch."""

    def __init__(
        self,
        split: Split,
        view: View,
        *,
        batch: int,
        seed: int = 0,
        train: bool,
        steps_per_epoch: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        memory_limit_bytes: int = 4 << 30,
        workers: int = 2,
        skip_bad_images: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Decode the split, or get ready to stream it.

        Args:
            split: what to read.
            view: how to cut, augment and normalise it.
            batch: images per step over all processes.
            seed: of order and augmentation, 0 or more.
            train: shuffled, augmented, full batches only; otherwise in order, from the centre,
                every image once, the last batch as short as it comes.
            steps_per_epoch: of training: an epoch of exactly so many batches instead, from as
                many shuffled passes over the split as it takes, each with its short last batch.
            device: where batches shall lie.
            rank: number of this process; it gets every ``world``-th image of a batch.
            world: number of processes.
            memory_limit_bytes: a split that takes more than this as uint8 is streamed.
            workers: threads that decode into memory, or processes that stream.
            skip_bad_images: leave unreadable images out and list them in ``skipped``;
                a split that is streamed is then decoded once to find them.
            progress: called with (images done, images in all) while that happens.

        Raises:
            BadInput: an unreadable image, one smaller than the crop, a batch larger than
                the split or not divisible by ``world``, a negative seed, ``steps_per_epoch`` for
                several processes. A split that is streamed names an unreadable image when it
                meets it.
        """
        if batch < 1 or (train and batch % world):
            raise BadInput(
                f"batch is {batch} for {world} process{'es' if world > 1 else ''}: "
                f"give a multiple of {world}"
            )
        if seed < 0:
            raise BadInput(f"seed is {seed}: give 0 or more")
        if steps_per_epoch is not None and world > 1:
            # A short batch would not share out evenly, and its gradient would be averaged wrongly.
            raise BadInput(
                f"steps_per_epoch is {steps_per_epoch} for {world} processes: its short batches "
                f"are for one; leave --steps-per-epoch out, or start one process"
            )
        self.view = view
        self.batch = batch
        self.seed = seed
        self.train = train
        self.steps_per_epoch = steps_per_epoch if train else None
        self.device = torch.device(device)
        self.rank = rank
        self.world = world
        self.skipped: list[str] = []  # names of images left out
        self._given: Tensor | None = None
        self.in_memory = len(split) * bytes_per_image(split, view) <= memory_limit_bytes
        self._require(len(split))
        bad: list[int] = []
        if self.in_memory:
            pixels, maps, bad = decode(
                split, view, workers=workers, skip=skip_bad_images, progress=progress
            )
        elif skip_bad_images:
            bad = unreadable(split, view, workers=workers, progress=progress)
        good = torch.ones(len(split), dtype=torch.bool)
        good[bad] = False
        self.skipped = [split.where(i) for i in bad]
        self.split = split.subset(good.nonzero()[:, 0]) if bad else split
        self._require(len(self.split))
        if self.in_memory:
            self._pixels = placed(pixels[good] if bad else pixels, self.device)
            if maps is not None:
                maps = placed(maps[good] if bad else maps, self.device)
            self._maps = maps
        else:
            pin = self.device.type == "cuda"
            self._stream = Stream(self.split, view, workers=workers, pin=pin)
        self._labels = self.split.labels.to(self.device)
        repeated = [k % 3 for k in range(view.channels)]
        self._channels = None if view.channels in (1, 3) else torch.tensor(repeated).to(self.device)
        mean, std = (_per_channel(v, view.channels).to(self.device) for v in (view.mean, view.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std  # (channels, 1, 1)

    @property
    def steps(self) -> int:
        """Batches per epoch that this process gets."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        if self.train:
            return len(self.split) // self.batch
        mine = len(range(self.rank, len(self.split), self.world))
        return -(-mine // self._share)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Go through the split once, or ``steps_per_epoch`` batches far; a streamed split allows
        one epoch at a time.

        Args:
            epoch: number of the epoch, from 0; it decides order and augmentation.
            start_step: first step to yield; a resumed run continues here.

        Yields:
            This process's part of each batch.

        Raises:
            BadInput: a streamed image that cannot be read.
        """
        plan = self._plan(epoch)[start_step:]
        target = self.split.target
        for step, (stored, maps, index) in enumerate(self._stored(plan), start_step):
            labels = self._labels[index.to(self.device)] if maps is None else maps
            if self.train:
                moves = self._moves(epoch, step, len(stored))
                images = moves.images(stored)
                move = moves.values if maps is None else moves.maps
                labels = move(labels, target)
            else:
                images = centre(stored, self.view.px)
                labels = labels if maps is None else centre(labels, self.view.px)
            yield Batch(self._normalise(images), labels, index, self._given_to(index))

    def give(self, outputs: Tensor | None) -> None:
        """From now on hand out, with each image, its row of ``outputs`` (see ``cache.py``).

        Args:
            outputs: (len(split), ...) on any device; None takes them back.
        """
        if outputs is not None and len(outputs) != len(self.split):
            raise ValueError(f"{len(outputs)} outputs for {len(self.split)} images: give one each")
        self._given = outputs

    def _given_to(self, index: Tensor) -> Tensor | None:
        return None if self._given is None else _rows(self._given, index, self.device)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image of the split once, from the centre, whatever the process: (images, places).

        Raises:
            BadInput: a streamed image that cannot be read.
        """
        for stored, _, index in self._stored(_parts(torch.arange(len(self.split)), self.batch)):
            yield self._normalise(centre(stored, self.view.px)), index

    def fingerprint(self) -> str:
        """SHA-256 over the images in their order: of their pixels where they are in memory."""
        if not self.in_memory:
            return identity.of_images(self.split)
        digest = hashlib.sha256(str(tuple(self._pixels.shape)).encode())
        for part in torch.split(self._pixels, 1024):  # may lie on an accelerator
            digest.update(part.cpu().numpy().data)
        return digest.hexdigest()

    @property
    def _share(self) -> int:
        return -(-self.batch // self.world)

    def _require(self, count: int) -> None:
        if count == 0:
            raise BadInput(
                f"none of {len(self.skipped)} images can be read, {self.skipped[0]} among them: "
                "check the files"
                if self.skipped
                else "a split without images cannot be batched: add images"
            )
        if self.train and self.batch > count and self.steps_per_epoch is None:
            raise BadInput(
                f"batch of {self.batch} is larger than the training set of {count} images: "
                f"use --batch {count} or less"
            )

    def _plan(self, epoch: int) -> list[Tensor]:
        """This process's image numbers, one tensor per step."""
        count = len(self.split)
        if not self.train:
            mine = torch.arange(count)[self.rank :: self.world]
            return _parts(mine, self._share)
        if self.steps_per_epoch is not None:
            return self._passes(epoch, self.steps_per_epoch)
        order = torch.randperm(count, generator=_generator(self.seed, epoch, 0))
        batches = order[: self.steps * self.batch].view(self.steps, self.batch)
        return list(batches[:, self.rank :: self.world])

    def _passes(self, epoch: int, steps: int) -> list[Tensor]:
        """So many batches from as many passes as it takes, each shuffled anew."""
        plan: list[Tensor] = []
        number = 0
        while len(plan) < steps:
            generator = _generator(self.seed, epoch, 0, number)
            order = torch.randperm(len(self.split), generator=generator)
            plan += _parts(order, self.batch)
            number += 1
        return plan[:steps]

    def _stored(self, plan: list[Tensor]) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Stored pixels, the label maps under them if there are any, and image numbers."""
        if not self.in_memory:
            stream = self._stream.load(index.tolist() for index in plan)
            for (pixels, maps, errors), index in zip(stream, plan, strict=True):
                if errors:
                    raise BadInput(next(iter(errors.values())))
                if maps is not None:
                    maps = maps.to(self.device, non_blocking=True)
                yield pixels.to(self.device, non_blocking=True), maps, index
            return
        for index in plan:
            maps = None if self._maps is None else _rows(self._maps, index, self.device)
            yield _rows(self._pixels, index, self.device), maps, index

    def _moves(self, epoch: int, step: int, count: int) -> Moves:
        # Everything is drawn always: whether images are flipped does not move their crops.
        generator = _generator(self.seed, epoch, step + 1)
        uniform = torch.rand(self.batch, NUMBERS, generator=generator)
        # The last batch of a pass may be short.
        return Moves(self.view, uniform[self.rank :: self.world][:count].to(self.device))

    def _normalise(self, images: Tensor) -> Tensor:
        if self._channels is not None:
            images = images.index_select(1, self._channels)
        return images.float().mul_(self._scale).add_(self._shift)  # floats are ours alone here


def throughput(
    *, px: int = 64, batch: int = 128, n: int = 4096, seconds: float = 2.0, device: str = "cpu"
) -> float:
    """Measure training batches from memory with pad-crop and flip.

    Args:
        px: side of the images, stored and cut.
        batch: images per step.
        n: images in the set, of random pixels.
        seconds: how long to measure, after one epoch to warm up.
        device: where batches shall lie.

    Returns:
        Images per second, with as many threads as torch has.
    """
    random = np.random.RandomState(0)
    images = random.randint(0, 256, size=(n, px, px, 3), dtype=np.uint8)
    split = Split(Pixels(images, "random pixels"), [0] * n)
    view = View(px=px, crop="pad", flip=True)
    batches = Batches(split, view, batch=batch, train=True, device=device)
    for _ in batches.epoch(0):
        pass
    start, done, epoch = time.perf_counter(), 0, 1
    while time.perf_counter() - start < seconds:
        for found in batches.epoch(epoch):
            done += len(found.images)
        epoch += 1
    if batches.device.type == "cuda":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def _generator(seed: int, epoch: int, purpose: int, number: int = 0) -> torch.Generator:
    """Independent random numbers for the order (0) of a pass, and for each step (step + 1)."""
    words = (seed, epoch, purpose, number) if number else (seed, epoch, purpose)
    high, low = np.random.SeedSequence(words).generate_state(2).tolist()
    return torch.Generator().manual_seed(high << 32 | low)


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """(channels, 1, 1): the mean over colours for grey, repeated for more than three."""
    if channels == 1:
        values = (sum(values) / len(values),)
    return torch.tensor([values[k % len(values)] for k in range(channels)]).view(-1, 1, 1)


def _rows(stored: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Those rows of ``stored``, wherever it lies, on ``device``."""
    return stored.index_select(0, index.to(stored.device)).to(device)


def _parts(places: Tensor, size: int) -> list[Tensor]:
    """``places`` in pieces of ``size``, the last as short as it comes."""
    return [places[k : k + size] for k in range(0, len(places), size)]


def placed(stored: Tensor, device: torch.device) -> Tensor:
    """Keep what is stored on the accelerator if it leaves at least half of its free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return stored.to(device) if 2 * stored.nbytes <= free else stored.pin_memory()
    return stored
