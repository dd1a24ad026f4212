"""From a split to stored pixels: all at once into memory, or batch by batch by workers.

Threads fill the memory (Pillow lets go of Python's lock while it decodes), processes feed
the stream. An unreadable image is an error that names it; it is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tailor.errors import BadInput
from tailor.task import Split
from tailor.view import View

CHUNK = 64  # images per unit of work
Progress = Callable[[int, int], None]  # (images done, images in all)
# (b, planes, side, side) uint8; the label maps that lie under them, (b, side, side) int16 or
# (b, K, side, side) float32, if every pixel has a label; and the error messages of unreadable
# images by their number. Messages, because an exception that its own frame remembers would keep
# the workers alive.
Loaded = tuple[Tensor, Tensor | None, dict[int, str]]


def decode(
    split: Split, view: View, *, workers: int, skip: bool, progress: Progress | None = None
) -> tuple[Tensor, Tensor | None, list[int]]:
    """Decode a whole split.

    Args:
        split: n images.
        view: says what is stored of each.
        workers: threads.
        skip: go on after an unreadable image.
        progress: called after every few images.

    Returns:
        (n, planes, side, side) uint8; the label maps under them, if there are any; and which
        images are unreadable (and black).

    Raises:
        BadInput: an image is smaller than the crop, or unreadable without ``skip``.
    """
    count = len(split)
    pixels = torch.empty(count, view.planes, view.side, view.side, dtype=torch.uint8)
    maps = empty_maps(split, view, count)

    def fill(chunk: range) -> dict[int, str]:
        pixels[chunk.start : chunk.stop], labels, errors = _load(split, view, chunk)
        if maps is not None and labels is not None:
            maps[chunk.start : chunk.stop] = labels
        return errors

    bad: list[int] = []
    with ThreadPoolExecutor(_workers(workers) or 1) as pool:
        chunks = _chunks(count)
        try:
            for chunk, errors in zip(chunks, pool.map(fill, chunks), strict=True):
                if errors and not skip:
                    raise BadInput(next(iter(errors.values())))
                bad += errors
                if progress:
                    progress(chunk.stop, count)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else all the rest is decoded first
            raise
    return pixels, maps, bad


def empty_maps(split: Split, view: View, count: int) -> Tensor | None:
    """Room for the stored label maps of ``count`` images; None where labels are no maps."""
    if split.maps is None:
        return None
    if split.target.numeric:
        return torch.full((count, split.maps.outputs, view.side, view.side), torch.nan)
    return torch.full((count, view.side, view.side), -1, dtype=torch.int16)


def bytes_per_image(split: Split, view: View) -> int:
    """What one image takes as it is stored, with the labels under it."""
    maps = empty_maps(split, view, 1)
    return view.planes * view.side**2 + (0 if maps is None else maps.nbytes)


def unreadable(
    split: Split, view: View, *, workers: int, progress: Progress | None = None
) -> list[int]:
    """Decode a whole split, keep nothing, and say which images are unreadable."""
    bad: list[int] = []
    chunks = _chunks(len(split))
    stream = Stream(split, view, workers=workers)
    for chunk, (_, _, errors) in zip(chunks, stream.load(chunks), strict=True):
        bad += errors
        if progress:
            progress(chunk.stop, len(split))
    return bad


class Stream:
    """Decodes batches of a split in processes that live as long as the stream."""

    def __init__(self, split: Split, view: View, *, workers: int, pin: bool = False) -> None:
        """Get ready; processes start with the first batch.

        Args:
            split: what to read.
            view: says what is stored of each image.
            workers: processes; 0 decodes in this one.
            pin: put batches into page-locked memory, for a fast copy to a GPU.
        """
        self._plan: list[list[int]] = []
        workers = _workers(workers)
        self._loader: DataLoader[Loaded | str] = DataLoader(
            _Chunks(split, view),
            batch_size=None,
            sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            collate_fn=_as_it_is,
            # Its own, or else streaming would move the global random numbers.
            generator=torch.Generator(),
        )

    def load(self, plan: Iterable[Iterable[int]]) -> Iterator[Loaded]:
        """Decode one batch of image numbers after the other, a few ahead.

        Raises:
            BadInput: an image is smaller than the crop.
        """
        self._plan[:] = [list(indices) for indices in plan]
        for loaded in self._loader:
            if isinstance(loaded, str):
                raise BadInput(loaded)
            yield loaded


class _Chunks(Dataset[Loaded | str]):
    def __init__(self, split: Split, view: View) -> None:
        self.split = split
        self.view = view

    def __getitem__(self, indices: list[int]) -> Loaded | str:
        try:
            return _load(self.split, self.view, indices)
        except BadInput as error:
            return str(error)  # raised here, it would arrive with the worker's traceback


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _load(split: Split, view: View, indices: Iterable[int]) -> Loaded:
    numbers = list(indices)
    pixels = np.zeros((len(numbers), view.planes, view.side, view.side), np.uint8)
    maps = empty_maps(split, view, len(numbers))
    errors = {}
    for row, i in enumerate(numbers):
        try:
            image = split.read(i)
            labels = None if maps is None else split.read_map(i, image.size)
        except BadInput as error:
            errors[i] = str(error)
            continue
        pixels[row] = view.store(image, split.where(i))
        if maps is not None and labels is not None:
            maps[row] = torch.from_numpy(view.store_map(labels, split.where(i)).copy())
    return torch.from_numpy(pixels), maps, errors


def _chunks(count: int) -> list[range]:
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def _workers(wanted: int) -> int:
    """No more than this process has cores."""
    if hasattr(os, "sched_getaffinity"):
        return min(wanted, len(os.sched_getaffinity(0)))
    return min(wanted, os.cpu_count() or 1)
