"""Batches: the images of a split, cut, augmented and normalised, in a reproducible order.

Every image is decoded to a square of uint8 pixels once and kept in memory where the split
fits; larger splits are decoded again each epoch by worker processes. Both feed the same
augmentation (`tailor.augment`), so a training loop gets bit-identical batches from either.

The order of an epoch is a function of (seed, epoch), the augmentation of a batch one of
(seed, epoch, step). Random numbers are drawn for the global batch and then shared out:
several processes see together what one would, and a resumed run sees what it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tailor import augment
from tailor.decode import Stream, decode, unreadable
from tailor.errors import BadInput
from tailor.task import Pixels, Split
from tailor.view import View

__all__ = ["Batch", "Batches", "View", "throughput"]


class Batch(NamedTuple):
    """What one process gets for one step."""

    images: Tensor  # (b, channels, px, px) float32, normalised, on the device
    labels: Tensor  # (b,) int64, or (b, C) int8 of a multi-label split, on the device
    indices: Tensor  # (b,) int64, on the CPU: positions in `Batches.split`


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
                the split or not divisible by ``world``, a negative seed. A split that is
                streamed names an unreadable image when it meets it.
        """
        if batch < 1 or (train and batch % world):
            raise BadInput(
                f"batch is {batch} for {world} process{'es' if world > 1 else ''}: "
                f"give a multiple of {world}"
            )
        if seed < 0:
            raise BadInput(f"seed is {seed}: give 0 or more")
        self.view = view
        self.batch = batch
        self.seed = seed
        self.train = train
        self.device = torch.device(device)
        self.rank = rank
        self.world = world
        self.skipped: list[str] = []  # names of images left out
        self.in_memory = len(split) * view.planes * view.side**2 <= memory_limit_bytes
        self._require(len(split))
        bad: list[int] = []
        if self.in_memory:
            pixels, bad = decode(
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
            self._pixels = _place(pixels[good] if bad else pixels, self.device)
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
        if self.train:
            return len(self.split) // self.batch
        mine = len(range(self.rank, len(self.split), self.world))
        return -(-mine // self._share)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Go through the split once; a streamed split allows one epoch at a time.

        Args:
            epoch: number of the epoch, from 0; it decides order and augmentation.
            start_step: first step to yield; a resumed run continues here.

        Yields:
            This process's part of each batch.

        Raises:
            BadInput: a streamed image that cannot be read.
        """
        plan = self._plan(epoch)[start_step:]
        for step, (stored, index) in enumerate(self._stored(plan), start_step):
            images = self._augment(stored, epoch, step) if self.train else self._centre(stored)
            yield Batch(self._normalise(images), self._labels[index.to(self.device)], index)

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
        if self.train and self.batch > count:
            raise BadInput(
                f"batch of {self.batch} is larger than the training set of {count} images: "
                f"use --batch {count} or less"
            )

    def _plan(self, epoch: int) -> list[Tensor]:
        """This process's image numbers, one tensor per step."""
        count = len(self.split)
        if not self.train:
            mine = torch.arange(count)[self.rank :: self.world]
            return [mine[k : k + self._share] for k in range(0, len(mine), self._share)]
        order = torch.randperm(count, generator=_generator(self.seed, epoch, 0))
        batches = order[: self.steps * self.batch].view(self.steps, self.batch)
        return list(batches[:, self.rank :: self.world])

    def _stored(self, plan: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.in_memory:
            stream = self._stream.load(index.tolist() for index in plan)
            for (pixels, errors), index in zip(stream, plan, strict=True):
                if errors:
                    raise BadInput(next(iter(errors.values())))
                yield pixels.to(self.device, non_blocking=True), index
            return
        for index in plan:
            pixels = self._pixels.index_select(0, index.to(self._pixels.device))
            yield pixels.to(self.device), index

    def _augment(self, images: Tensor, epoch: int, step: int) -> Tensor:
        view = self.view
        # Everything is drawn always: whether images are flipped does not move their crops.
        generator = _generator(self.seed, epoch, step + 1)
        uniform = torch.rand(self.batch, 10, generator=generator)
        uniform = uniform[self.rank :: self.world].to(self.device)
        pad = view.pad if view.crop in ("pad", "reflect") else 0
        if view.crop == "rrc":
            images = augment.resized_crop(images.float(), augment.boxes(uniform[:, :4]), view.px)
        elif view.crop == "none":
            images = self._centre(images)
        else:
            places = view.side + 2 * pad - view.px + 1
            # float32 can round up to 1, one place too far
            corner = (uniform[:, 4:6] * places).long().clamp(max=places - 1)
            mirrored = view.crop == "reflect"
            images = augment.pad_crop(images, corner, view.px, pad, mirrored=mirrored)
        if view.flip:
            images = augment.mirror(images, uniform[:, 6] < 0.5)
        if max(view.shares) > 0:
            shares = torch.tensor(view.shares, device=self.device)
            factors = 1 + shares * (2 * uniform[:, 7:10] - 1)
            images = augment.jitter(images.float(), factors)
        return images

    def _centre(self, images: Tensor) -> Tensor:
        start = (self.view.side - self.view.px) // 2
        end = start + self.view.px
        return images[:, :, start:end, start:end]

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
        for images_, _, _ in batches.epoch(epoch):
            done += len(images_)
        epoch += 1
    if batches.device.type == "cuda":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def _generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Independent random numbers for the order (0) and for each step (step + 1)."""
    high, low = np.random.SeedSequence((seed, epoch, purpose)).generate_state(2).tolist()
    return torch.Generator().manual_seed(high << 32 | low)


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """(channels, 1, 1): the mean over colours for grey, repeated for more than three."""
    if channels == 1:
        values = (sum(values) / len(values),)
    return torch.tensor([values[k % len(values)] for k in range(channels)]).view(-1, 1, 1)


def _place(pixels: Tensor, device: torch.device) -> Tensor:
    """Keep pixels on the accelerator if they leave it at least half of its free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return pixels.to(device) if 2 * pixels.nbytes <= free else pixels.pin_memory()
    return pixels
