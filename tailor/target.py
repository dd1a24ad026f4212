"""Target: what the labels of a task are, which loss they train by and which metric they are judged
by.

    kind          labels of a batch                        losses              metrics
    class         (B,) class numbers                       cross_entropy       top1
    set           (B, K) 1 present, 0 absent, -1           binary_cross_entropy  map
    soft          (B, K) probabilities                     cross_entropy       top1
    values        (B, K) numbers, NaN                      l2, l1              r2
    pixel_class   (B, H, W) class numbers, -1              cross_entropy       miou, pixel_accuracy
    pixel_values  (B, K, H, W) numbers, NaN                l1, l2              r2

-1 and NaN mark what is not counted: it has no loss, and no metric looks at it. A pixel kind is
*dense*: its labels lie under the images, and crops and flips move both. Left out: the formulas
(``losses.py``, ``metrics.py``), and detection and instances, which are no label per pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from tailor.errors import BadInput

Kind = Literal["class", "set", "soft", "values", "pixel_class", "pixel_values"]
Loss = Literal["cross_entropy", "binary_cross_entropy", "l1", "l2"]
Metric = Literal["top1", "map", "r2", "miou", "pixel_accuracy"]

# What goes with each kind; the first is what a target of that kind has by default.
LOSSES: dict[Kind, tuple[Loss, ...]] = {
    "class": ("cross_entropy",),
    "set": ("binary_cross_entropy",),
    "soft": ("cross_entropy",),
    "values": ("l2", "l1"),
    "pixel_class": ("cross_entropy",),
    "pixel_values": ("l1", "l2"),
}
METRICS: dict[Kind, tuple[Metric, ...]] = {
    "class": ("top1",),
    "set": ("map",),
    "soft": ("top1",),
    "values": ("r2",),
    "pixel_class": ("miou", "pixel_accuracy"),
    "pixel_values": ("r2",),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What labels are, and how a prediction of them is trained and judged; larger is better."""

    kind: Kind
    loss: Loss
    metric: Metric
    # Of every output, what mirroring an image does to its value: -1 for the x of a vector (surface
    # normals), else 1. Empty: nothing changes sign.
    flip_signs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.kind not in get_args(Kind):
            raise BadInput(f"target kind is {self.kind!r}: use one of {', '.join(get_args(Kind))}")
        for word, value, known in (
            ("loss", self.loss, LOSSES[self.kind]),
            ("metric", self.metric, METRICS[self.kind]),
        ):
            if value not in known:
                raise BadInput(
                    f"{word} {value!r} does not go with labels of kind {self.kind!r}: "
                    f"use {' or '.join(known)}"
                )
        if self.flip_signs and not self.kind.endswith("values"):
            raise BadInput(
                f"flip_signs {self.flip_signs} for labels of kind {self.kind!r}: only values have "
                "a sign, leave them out"
            )
        if set(self.flip_signs) - {1, -1}:
            raise BadInput(f"flip_signs are {self.flip_signs}: use 1 or -1 for each output")

    @property
    def dense(self) -> bool:
        """Whether every pixel has a label."""
        return self.kind in ("pixel_class", "pixel_values")

    @property
    def numeric(self) -> bool:
        """Whether outputs are numbers to be met (regression) instead of scores of classes."""
        return self.kind in ("values", "pixel_values")


def target(
    kind: Kind,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    flip_signs: tuple[int, ...] = (),
) -> Target:
    """A target of this kind, with its usual loss and metric where none is given.

    Raises:
        BadInput: an unknown kind, or a loss, metric or sign that does not go with it.
    """
    if kind not in get_args(Kind):
        raise BadInput(f"target kind is {kind!r}: use one of {', '.join(get_args(Kind))}")
    loss, metric = loss or LOSSES[kind][0], metric or METRICS[kind][0]
    return Target(kind=kind, loss=loss, metric=metric, flip_signs=flip_signs)


CLASS, SET, SOFT = target("class"), target("set"), target("soft")
VALUES, PIXEL_CLASS, PIXEL_VALUES = target("values"), target("pixel_class"), target("pixel_values")


def usual(labels: Tensor) -> Target:
    """What labels are if nobody says it: (n,) classes, (n, K) integer sets or floating values."""
    if labels.ndim == 1:
        return CLASS
    return VALUES if labels.is_floating_point() else SET


def stored(target: Target) -> dict[str, Any]:
    """What a run keeps of its target: {"target": ...}, nothing for classes and sets of images.

    They had no target when the first runs were made, which thereby keep their identity.
    """
    if target in (CLASS, SET):
        return {}
    return {"target": asdict(target) | {"flip_signs": list(target.flip_signs)}}


def read_back(config: Mapping[str, Any]) -> Target:
    """The target of a run's configuration; for classes and sets of images `CLASS`."""
    fields = config.get("target")
    if fields is None:
        return CLASS
    return Target(**{**fields, "flip_signs": tuple(fields["flip_signs"])})
