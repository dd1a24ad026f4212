"""A task: images with labels, their classes, and the splits a run may look at.

`Source` says where images come from, `Split` is a list of labelled images of a source that
are decoded only when asked, `Task` names the splits. An image has one class, or, in a
multi-label task, any number of them. `open_task` finds a task by name and carves a validation
split out of train where the data set brings none, so that model selection never needs the test
split. How images become batches is `tailor.data`'s matter, what a prediction is worth that of
`tailor.metrics`. EXIF rotation is not applied, as in the loaders of torchvision and timm.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tailor import catalog
from tailor.errors import BadInput
from tailor.stratify import at_most, stratified

Rgb = tuple[float, float, float]
Metric = Literal["top1", "map"]  # accuracy, mean average precision: see `tailor.metrics`

# Of ImageNet, where most backbones come from: for images whose own statistics nobody measured.
MEAN: Rgb = (0.485, 0.456, 0.406)
STD: Rgb = (0.229, 0.224, 0.225)

# Names of the form `folder:PATH`: the word before the colon and the module that reads the rest.
READERS = {
    "decathlon": "tailor.datasets._decathlon",
    "folder": "tailor.datasets._folder",
    "npz": "tailor.datasets._npz",
    "torchvision": "tailor.datasets._torchvision",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What `tailor list tasks` says about a data set."""

    title: str
    classes: int
    source: str  # where it comes from: a page or a package
    licence: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, its label space and its metric."""

    name: str
    classes: tuple[str, ...]  # label k is classes[k]
    splits: Mapping[
        str, Split
    ]  # "train", "val" (always after `open_task`), "test" (if there is one)
    metric: Metric = "top1"  # "map" where an image has any number of classes
    mean: Rgb = MEAN  # per channel, in 0..1
    std: Rgb = STD
    spec: str = ""  # what `open_task` was asked for, such as "folder:PATH"
    root: str | None = None  # where it looked, if that was not the default


class Source(Protocol):
    """Images by number. It must pickle: worker processes read from their own copy."""

    def read(self, i: int) -> Image.Image:
        """Decode image ``i``, in any mode that Pillow knows."""

    def where(self, i: int) -> str:
        """Path or id of image ``i``, for errors."""


class Split:
    """Labelled images of one source, decoded only when asked."""

    def __init__(
        self, source: Source, labels: Sequence[int] | Tensor, index: Tensor | None = None
    ) -> None:
        """Pair images with labels.

        Args:
            source: where the images come from.
            labels: (n,) class of each image of this split, or (n, C) with 1 for each class that
                is present, 0 absent, -1 not to be counted.
            index: (n,) number of each image within ``source``; all of them in order by default.
        """
        found = torch.as_tensor(labels)
        self.labels = found.to(torch.int8 if found.ndim == 2 else torch.int64)  # (n,) or (n, C)
        self.source = source
        self.index = torch.arange(len(self.labels)) if index is None else index  # (n,)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        """Decode image ``i`` to RGB.

        Raises:
            BadInput: the image is missing, truncated or no image; the message names it.
        """
        number = int(self.index[i])
        try:
            return _rgb(self.source.read(number))
        except BadInput:
            raise
        except UnidentifiedImageError as error:
            raise self._unreadable(i, "not an image format that Pillow knows") from error
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
        except Exception as error:
            raise self._unreadable(i, " ".join(str(error).split())) from error

    def where(self, i: int) -> str:
        """Path or id of image ``i``, for errors."""
        return self.source.where(int(self.index[i]))

    def subset(self, indices: Sequence[int] | Tensor) -> Split:
        """The split that holds images ``indices`` of this one, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Split(self.source, self.labels[chosen], self.index[chosen])

    def _unreadable(self, i: int, reason: str) -> BadInput:
        return BadInput(
            f"{self.where(i)} cannot be read as an image ({reason}): replace or remove it, "
            "or leave such images out with --skip-bad-images"
        )


class Pixels:
    """A source of images that already are arrays."""

    def __init__(self, pixels: npt.NDArray[np.uint8], name: str) -> None:
        """Take (n, H, W) grey or (n, H, W, 3) colour images; ``name`` leads every `where`."""
        self.pixels = pixels
        self.name = name

    def read(self, i: int) -> Image.Image:
        """Wrap image ``i``; nothing is decoded."""
        return Image.fromarray(self.pixels[i])

    def where(self, i: int) -> str:
        """The data set's name and the image's number."""
        return f"{self.name} image {i}"


class Files:
    """A source of image files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take the path of every image."""
        self.paths = paths

    def read(self, i: int) -> Image.Image:
        """Open and decode file ``i``."""
        with Image.open(self.paths[i]) as image:
            image.load()
            return image

    def where(self, i: int) -> str:
        """The file's path."""
        return str(self.paths[i])


def open_task(
    name: str,
    root: Path | None = None,
    *,
    val_share: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> Task:
    """Find a task by name and make sure that it can be trained on.

    Args:
        name: a file name in ``tailor/datasets`` (``digits``, ``svhn``, ...), ``folder:PATH``,
            ``npz:PATH``, ``torchvision:CLASS`` or ``decathlon:DOMAIN``.
        root: where data sets lie; ``$TAILOR_DATA`` by default, and ``./data`` without it.
        val_share: share of every class's training images that becomes the validation split
            where the data set has none, in (0, 1); each class keeps one image in train.
        limit: use at most so many training images, the same share of every class and at least
            one; validation is carved out of these, a split of the data set's own stays whole.
        seed: of both draws, not of the run: runs compare only while it stays the same.
        download: fetch a missing data set where torchvision can.

    Returns:
        The task with splits ``train`` and ``val``, and ``test`` where there is one.

    Raises:
        BadInput: unknown name, data that is missing or that cannot be trained on.
    """
    if not 0 < val_share < 1:
        raise BadInput(
            f"validation share is {val_share}: give a share between 0 and 1, such as 0.1"
        )
    asked = None if root is None else str(root)
    task = replace(_read(name, data_root(root), download=download), spec=name, root=asked)
    _check(task)
    if limit is not None:
        task = _limited(task, limit, seed)
    if "val" in task.splits:
        return task
    train = task.splits["train"]
    kept, taken = stratified(train.labels, val_share, seed)
    if len(taken) == 0:
        raise BadInput(
            f"{task.name} has one training image per class, none to spare for validation: "
            f"{'raise the limit' if limit else 'add images or a validation split'}"
        )
    carved = {"train": train.subset(kept), "val": train.subset(taken)}
    return replace(task, splits={**task.splits, **carved})


def data_root(root: str | Path | None) -> Path:
    """The folder of the data sets: ``root``, or else $TAILOR_DATA, or else ``./data``."""
    return Path(root or os.environ.get("TAILOR_DATA", "data")).expanduser()


def _read(name: str, root: Path, *, download: bool) -> Task:
    reader, colon, rest = name.partition(":")
    if not colon:
        known: Task = catalog.load("tailor.datasets", name, "task").read(root, download=download)
        return known
    if reader not in READERS:
        raise catalog.unknown(
            "task", name, [*catalog.names("tailor.datasets"), *(f"{r}:{rest}" for r in READERS)]
        )
    if not rest:
        raise BadInput(f"task {name!r} ends with its colon: say what to read, as in {reader}:NAME")
    opened: Task = importlib.import_module(READERS[reader]).read(rest, root, download=download)
    return opened


def _limited(task: Task, limit: int, seed: int) -> Task:
    if limit < 1:
        raise BadInput(f"limit is {limit} training images: give 1 or more")
    whole = task.splits["train"]
    train = whole.subset(at_most(whole.labels, limit, seed))
    missed = _classes(whole.labels) - _classes(train.labels)
    if missed:
        raise BadInput(
            f"{limit} training images leave {len(missed)} of {len(task.classes)} classes of "
            f"{task.name} without one: raise the limit"
        )
    return replace(task, splits={**task.splits, "train": train})


def _classes(labels: Tensor) -> set[int]:
    """Numbers of the classes that some image has."""
    found = labels if labels.ndim == 1 else (labels == 1).nonzero()[:, 1]
    return set(found.tolist())


def _check(task: Task) -> None:
    """Refuse what no classifier can be trained on."""
    count = len(task.classes)
    if count < 2:
        raise BadInput(
            f"{task.name} has {count} class{'' if count else 'es'} {list(task.classes)}: "
            "there is nothing to tell apart, two or more are needed"
        )
    for name, split in task.splits.items():
        if len(split) == 0:
            raise BadInput(f"{task.name} has no images in {name}: add some or leave {name} out")
        if task.metric == "map":
            _check_sets(task, name, split)
        else:
            _check_numbers(task, split)
    if task.metric == "map":
        return  # a class that no training image has can still be told to be absent
    per_class = torch.bincount(task.splits["train"].labels, minlength=count)
    empty = [task.classes[k] for k in (per_class == 0).nonzero()[:, 0].tolist()]
    if empty:
        raise BadInput(
            f"{task.name} has no training image of class {empty[0]!r}"
            f"{f' and {len(empty) - 1} more' if len(empty) > 1 else ''}: "
            "add images or remove the class"
        )


def _check_numbers(task: Task, split: Split) -> None:
    """(n,) class numbers."""
    count = len(task.classes)
    outside = ((split.labels < 0) | (split.labels >= count)).nonzero()[:, 0].tolist()
    if outside:
        raise BadInput(
            f"{split.where(outside[0])} of {task.name} has label "
            f"{int(split.labels[outside[0]])}, out of range for {count} classes: "
            f"labels count from 0 to {count - 1}"
        )


def _check_sets(task: Task, name: str, split: Split) -> None:
    """(n, C) of 1, 0 and -1, at least one of them present."""
    count = len(task.classes)
    if split.labels.shape[1:] != (count,):
        raise BadInput(
            f"labels of {name} of {task.name} have shape {tuple(split.labels.shape)}, not one "
            f"column for each of {count} classes: give (images, {count})"
        )
    outside = ((split.labels < -1) | (split.labels > 1)).nonzero().tolist()
    if outside:
        row, column = outside[0]
        raise BadInput(
            f"{split.where(row)} of {task.name} has label {int(split.labels[row, column])} for "
            f"class {task.classes[column]!r}: 1 is present, 0 absent, -1 not to be counted"
        )
    if not (split.labels == 1).any():
        raise BadInput(
            f"no image in {name} of {task.name} has any class: add some or leave {name} out"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 and turn most images white.
        grey = np.asarray(image)
        return Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB would warn
    return image.convert("RGB")
