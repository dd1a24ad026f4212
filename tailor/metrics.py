"""Metrics: one number for a split, summed over batches and processes.

Accuracy (``top1``) is the share of images whose largest logit is their class. Mean average
precision (``map``) is for images with any number of classes: per class, images are ranked by
their logit, entries that are not to be counted left out, and the area under precision over
recall is taken; the mean is over the classes that some image has.

Two definitions of that area are in use, and this file has the first as default:

- VOC2010 to 2012 (development kit, section 3.4.1): precision at a recall is the highest at that
  or any larger recall, so that a lucky order of two neighbours costs nothing. A published number
  on VOC2012 means this one.
- scikit-learn's ``average_precision_score``: the precision as it is, sum of
  (R_n - R_{n-1}) P_n. Never larger.

VOC2007's mean of eleven points is left out. Images of equal logit enter at once, in both: the
number does not depend on their order, which the kit leaves open.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailor.distributed import Group
from tailor.errors import BadInput

Array = npt.NDArray[Any]


class Metric(Protocol):
    """Collects predictions; larger is better."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take (b, C) logits of this process and their labels, as `Batches` yields them."""

    def value(self) -> float:
        """The metric in [0, 1] over all batches of all processes; all of them must call it."""


def metric_for(ndim: int) -> Metric:
    """Accuracy for labels of 1 axis (class numbers), mean average precision for 2."""
    return Top1() if ndim == 1 else MeanAveragePrecision()


class Top1:
    """Share of images whose largest logit is their label."""

    def __init__(self) -> None:
        """Start from no image."""
        self.right: Tensor | int = 0  # a tensor on the device, so that a GPU need not wait
        self.seen = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take (b, C) logits and (b,) labels."""
        self.right = self.right + (logits.argmax(1) == labels).sum()
        self.seen += len(labels)

    def value(self) -> float:
        """Accuracy over all processes; a process may have had no image."""
        # On the CPU, because a process without an image does not know the others' device.
        totals = torch.tensor([int(self.right), self.seen])
        Group.current().sum_(totals)
        hits, images = totals.tolist()
        return float(hits / images)


class MeanAveragePrecision:
    """Mean over classes of the average precision, by the definition of VOC2012."""

    def __init__(self) -> None:
        """Start from no image."""
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.left_out = 0  # classes that no image has, known after `value`

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take (b, C) logits and (b, C) labels: 1 present, 0 absent, -1 not to be counted."""
        self.logits.append(logits.detach().float().cpu())
        self.labels.append(labels.cpu())

    def value(self) -> float:
        """The mean over those classes that some image has.

        Raises:
            BadInput: no class is present in any image.
        """
        logits, labels = (_joined(part) for part in (self.logits, self.labels))
        found = [
            average_precision(scores[is_counted], present[is_counted])
            for scores, present, is_counted in zip(
                logits.T, (labels == 1).T, (labels >= 0).T, strict=True
            )
            if present.any()
        ]
        self.left_out = labels.shape[1] - len(found)
        if not found:
            raise BadInput(
                f"none of {labels.shape[1]} classes is present in any of {len(labels)} images: "
                "mean average precision needs images that show something; add some"
            )
        return float(np.mean(found))


def average_precision(scores: Array, present: Array, *, envelope: bool = True) -> float:
    """Area under precision over recall of one class.

    Args:
        scores: (n,) larger where the class is more likely.
        present: (n,) whether the image has the class; at least one must.
        envelope: precision at a recall is the highest at that or any larger recall (VOC2010 to
            2012); otherwise the precision itself (scikit-learn).

    Returns:
        A number in (0, 1]; 1 where every image with the class is ranked above all others.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    is_last = np.append(ranked[1:] != ranked[:-1], True)  # of images of equal score
    hits = np.cumsum(present[order])[is_last]
    precision = hits / (np.flatnonzero(is_last) + 1)
    if envelope:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = hits / hits[-1]
    return float((np.diff(recall, prepend=0) * precision).sum())


def _joined(parts: list[Tensor]) -> Array:
    """The rows of all processes: a sum of tables that are 0 where another one has its rows."""
    group = Group.current()
    mine = torch.cat(parts) if parts else torch.zeros(0, 0)
    sizes = torch.zeros(group.world + 1, dtype=torch.int64)
    sizes[group.rank] = len(mine)
    sizes[-1] = mine.shape[1] if group.rank == 0 else 0  # process 0 always has a batch
    group.sum_(sizes)
    *rows, columns = sizes.tolist()
    table = torch.zeros(sum(rows), columns)
    start = sum(rows[: group.rank])
    if len(mine):
        table[start : start + len(mine)] = mine
    group.sum_(table)
    return table.numpy()
