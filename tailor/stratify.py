"""Draws that give every class its share: a validation split, or fewer training images.

Pure functions of labels and a seed, the same on every machine. Where an image has one class,
each class is drawn from on its own. Where it has several, they cannot all be drawn from at will:
the class furthest behind its share is served first, the rarer one of two, and by an image that
takes no other class beyond its share where there is one. That is iterative stratification
(Sechidis, Tsoumakas & Vlahavas, On the Stratification of Multi-label Data, ECML PKDD 2011) with
a goal per class instead of a queue per part; images without any class count as a class.

Shapes: n images, C classes; labels are (n,) class numbers or (n, C) of 1 (present), 0 (absent)
and -1 (not counted, hence not drawn by).
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def stratified(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Part a list of labels so that every class gives the same share.

    Args:
        labels: (n,) or (n, C).
        share: what to take from each class, in (0, 1), rounded; of a class with two or
            more images at least one is taken and one kept, a single image is kept. Where
            images have several classes, one is always kept, and a class may give more or
            fewer than its share if the others need it.
        seed: of the draw; the same on every machine.

    Returns:
        Indices (kept, taken), each ascending.
    """
    # RandomState, because numpy promises that its stream never changes.
    random = np.random.RandomState(seed)
    if labels.ndim == 2:
        images, classes, counts = _pairs(labels)
        wanted = np.rint(share * counts).clip(1, (counts - 1).clip(0))
        chosen = _draw(images, classes, wanted, keep=1, most=len(labels), random=random)
        return _parts(len(labels), chosen)
    taken = []
    numbers = labels.numpy()
    for label in np.unique(numbers):
        members = np.flatnonzero(numbers == label)
        count = len(members)
        take = min(max(round(share * count), 1), count - 1)
        taken.append(random.permutation(members)[:take])
    return _parts(len(labels), np.concatenate(taken))


def at_most(labels: Tensor, limit: int, seed: int = 0) -> Tensor:
    """Choose images so that every class keeps the same share, and one where ``limit`` allows it.

    Args:
        labels: (n,) or (n, C).
        limit: most images to choose, 1 or more.
        seed: of the draw.

    Returns:
        Ascending indices: ``limit`` of them, or a few less where images have several classes;
        all where there are no more.
    """
    if limit >= len(labels):
        return torch.arange(len(labels))
    images, classes, counts = _pairs(labels)
    wanted = counts * (limit / len(labels))
    random = np.random.RandomState(seed)
    chosen = _draw(images, classes, wanted, keep=0, most=limit, random=random)
    return _parts(len(labels), chosen)[1]


def _pairs(labels: Tensor) -> tuple[Array, Array, Array]:
    """Every (image, class) that is present, and the images of each class.

    Returns:
        (p,) images, (p,) classes, and (C,) counts; for (n, C) labels with one more class of the
        images that have none.
    """
    if labels.ndim == 1:
        classes = labels.numpy()
        return np.arange(len(classes)), classes, np.bincount(classes)
    present = labels.numpy() == 1
    images, classes = np.nonzero(np.column_stack([present, ~present.any(1)]))
    return images, classes, np.bincount(classes, minlength=present.shape[1] + 1)


def _draw(
    images: Array,
    classes: Array,
    wanted: Array,
    *,
    keep: int,
    most: int,
    random: np.random.RandomState,
) -> Array:
    """Pick images until every class has what it wants, or ``most`` are picked.

    Args:
        images, classes: (p,) who has what.
        wanted: (C,) how many images of each class.
        keep: how many of each class are never picked.
        most: of all classes together.
        random: of the order within a class.

    Returns:
        Image numbers in the order in which they were picked.
    """
    count = np.bincount(classes, minlength=len(wanted))
    rank = random.permutation(images.max() + 1)
    by_class = np.lexsort((rank[images], classes))
    queues = [q.tolist() for q in np.split(images[by_class], np.cumsum(count)[:-1])]
    overfull: list[list[int]] = [[] for _ in queues]  # take another class beyond its share
    by_image = np.argsort(images, kind="stable")
    has = np.split(classes[by_image], np.cumsum(np.bincount(images))[:-1])  # classes of image i
    have = np.zeros(len(wanted), dtype=np.int64)
    picked: list[int] = []
    is_picked = np.zeros(len(has), dtype=bool)

    def next_of(target: int) -> int | None:
        # What is passed over stays unwanted: no class ever gives an image back.
        while queue := queues[target] or overfull[target]:
            image = queue.pop()
            mine = has[image]
            if is_picked[image] or (count[mine] - have[mine] <= keep).any():
                continue
            if queue is overfull[target] or (have[mine] < wanted[mine]).all():
                return image
            overfull[target].append(image)
        return None

    # How far each class is, the rarest first of equals; an entry may be out of date.
    heap = [(0.0, int(count[c]), int(c)) for c in np.flatnonzero(wanted > 0)]
    heapq.heapify(heap)
    while heap and len(picked) < most:
        entry, size, target = heapq.heappop(heap)
        reached = float(have[target] / wanted[target])
        if reached < 1 and reached == entry:
            if (image := next_of(target)) is None:
                continue
            picked.append(image)
            is_picked[image] = True
            have[has[image]] += 1
            reached = float(have[target] / wanted[target])
        if reached < 1:
            heapq.heappush(heap, (reached, size, target))
    return np.array(picked, dtype=np.int64)


def _parts(total: int, chosen: Array) -> tuple[Tensor, Tensor]:
    """Indices (left, chosen), each ascending."""
    is_chosen = torch.zeros(total, dtype=torch.bool)
    is_chosen[torch.from_numpy(chosen)] = True
    return (~is_chosen).nonzero()[:, 0], is_chosen.nonzero()[:, 0]
