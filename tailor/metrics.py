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

Where every pixel has a class, ``pixel_accuracy`` is the share of counted pixels whose largest logit
is their class, and ``miou`` the mean over classes of intersection over union, all images taken
together as in VOC's segmentation task. Numbers are judged by ``r2``: 1 - SSE / SST, the squared
error over that of the best constant, per output and averaged; 1 is perfect, 0 no better than the
mean of the split's labels, and there is no lower bound.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.losses import loss_sum
from tailor.target import Target

Array = npt.NDArray[Any]
_NOTHING = "no label of the split is counted, so nothing can be measured: add images with labels"


class Metric(Protocol):
    """Collects predictions; larger is better."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take (b, C) logits of this process and their labels, as `Batches` yields them."""

    def value(self) -> float:
        """The metric over all batches of all processes; all of them must call it."""


def metric_for(target: Target) -> Metric:
    """What collects the metric of ``target``."""
    if target.metric == "map":
        return MeanAveragePrecision()
    if target.metric == "r2":
        return R2()
    if target.metric == "miou":
        return MeanIoU()
    return Top1()


class Top1:
    """Share of images, or of counted pixels, whose largest logit is their label.

    A soft label counts as the class that it holds most likely.
    """

    def __init__(self) -> None:
        """Start from no image."""
        self.right: Tensor | int = 0  # a tensor on the device, so that a GPU need not wait
        self.seen: Tensor | int = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take (b, C) logits and (b,) or (b, C) soft labels, or the same of (H, W) pixels."""
        if labels.is_floating_point():
            labels = labels.argmax(1)
        self.right = self.right + (logits.argmax(1) == labels).sum()
        self.seen = self.seen + (len(labels) if labels.ndim == 1 else (labels >= 0).sum())

    def value(self) -> float:
        """Accuracy over all processes; a process may have had no image."""
        # On the CPU, because a process without an image does not know the others' device.
        totals = torch.tensor([int(self.right), int(self.seen)])
        Group.current().sum_(totals)
        hits, seen = totals.tolist()
        if seen == 0:
            raise BadInput(_NOTHING)
        return float(hits / seen)


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


class MeanIoU:
    """Mean over classes of intersection over union, over all counted pixels of all images."""

    def __init__(self) -> None:
        """Start from no pixel."""
        self.table: Tensor | None = None  # (C, C) counts, labels down and predictions across

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take (b, C, H, W) logits and (b, H, W) labels, -1 where not counted."""
        classes, counted = logits.shape[1], labels >= 0
        pairs = labels[counted].long() * classes + logits.argmax(1)[counted]
        found = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        self.table = found if self.table is None else self.table + found

    def value(self) -> float:
        """The mean over those classes that some counted pixel has.

        Raises:
            BadInput: no pixel is counted.
        """
        table = _summed(self.table)
        hits, present, predicted = table.diagonal(), table.sum(1), table.sum(0)
        union = present + predicted - hits
        there = present > 0
        if not there.any():
            raise BadInput(_NOTHING)
        return float((hits[there] / union[there]).double().mean())


class R2:
    """1 - SSE / SST of every output, averaged; SST is about the mean of all counted labels."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.sums: Tensor | None = None  # (4, K): counted, labels, their squares, squared errors

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take (b, K) or (b, K, H, W) predictions and labels of that shape, NaN not counted."""
        exact = torch.float32 if logits.device.type == "mps" else torch.float64
        counted = ~labels.isnan()
        wanted = labels.nan_to_num(0.0).to(exact)
        error = (logits.to(exact) - wanted) * counted
        parts = (counted.to(exact), wanted, wanted.square(), error.square())
        found = torch.stack([part.transpose(0, 1).flatten(1).sum(1) for part in parts])
        self.sums = found if self.sums is None else self.sums + found

    def value(self) -> float:
        """The mean over those outputs whose labels vary.

        Raises:
            BadInput: the labels of every output are the same number, or none is counted.
        """
        count, total, squares, error = _summed(self.sums).double()
        spread = squares - total.square() / count.clamp_min(1)
        # Of equal labels, rounding leaves a little more than 0.
        varies = spread > 1e-12 * squares
        if not varies.any():
            raise BadInput(
                "the labels of the split do not vary, so no share of their variance can be "
                "explained: add images with other labels"
            )
        return float((1 - error[varies] / spread[varies]).mean())


class MeanLoss:
    """The target's loss over all counted labels of a split, the same in batches of any size."""

    def __init__(self, target: Target) -> None:
        """Start from nothing."""
        self.target = target
        self.sums: Tensor | None = None  # (2,) loss and count

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take what the metric takes."""
        exact = torch.float32 if logits.device.type == "mps" else torch.float64
        found = torch.stack([t.to(exact) for t in loss_sum(logits, labels, target=self.target)])
        self.sums = found if self.sums is None else self.sums + found

    def value(self) -> float:
        """The mean over all processes.

        Raises:
            BadInput: nothing is counted.
        """
        total, count = _summed(self.sums).tolist()
        if count == 0:
            raise BadInput(_NOTHING)
        return float(total / count)


def _summed(mine: Tensor | None) -> Tensor:
    """The sum over processes, on the CPU; one without an image (None) adds 0."""
    group = Group.current()
    # Process 0 always has a batch; the others may not even know the shape.
    shape = torch.zeros(2, dtype=torch.int64)
    if group.rank == 0 and mine is not None:
        shape = torch.tensor([*mine.shape, 0][:2])
    group.sum_(shape)
    table = torch.zeros([n for n in shape.tolist() if n], dtype=torch.float64)
    if mine is not None:
        table += mine.cpu()
    group.sum_(table)
    return table


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
