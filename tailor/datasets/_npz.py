"""`npz:PATH`: a folder with train.npz, test.npz and dataset.json; no pickles inside.

    dataset.json    {"name": ..., "task": "classify", "classes": ["daisy", ...], ...}
    train.npz       data uint8     encoded image files (PNG, JPEG, ...), one after the other
                    offsets int64  (n + 1,), image i is data[offsets[i]:offsets[i + 1]]
                    label int64    (n,), classes[label[i]] is its class
                    id bytes       (n,), optional: where the image came from
    test.npz, val.npz   the same, both optional

A "multilabel" task has, instead of label, labels (n, C) of integers: 1 where classes[c] is
present, 0 where it is absent, -1 where that is not to be counted; its metric is mean average
precision. Dense tasks of this format are refused.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tailor.errors import BadInput
from tailor.task import Metric, Split, Task

Array = npt.NDArray[Any]
METRICS: dict[object, Metric] = {"classify": "top1", "multilabel": "map"}  # by the word for it


class Encoded:
    """A source of encoded image files that lie in one array."""

    def __init__(self, data: Array, offsets: Array, ids: list[str], path: Path) -> None:
        """Take what `_split` has validated."""
        self.data = data
        self.offsets = offsets
        self.ids = ids  # may be empty
        self.path = path

    def read(self, i: int) -> Image.Image:
        """Decode image ``i``."""
        image = Image.open(io.BytesIO(self.encoded(i)))
        image.load()
        return image

    def encoded(self, i: int) -> bytes:
        """The file of image ``i``."""
        found: bytes = self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()
        return found

    def where(self, i: int) -> str:
        """File, number and, where it is known, id."""
        return f"{self.path} image {i}" + (f" ({self.ids[i]})" if self.ids else "")


def read(path: str, root: Path, *, download: bool) -> Task:
    """Open the folder at ``path``, relative to the working directory; nothing is downloaded.

    Raises:
        BadInput: a file or an array is missing or broken; the message names both.
    """
    base = Path(path).expanduser()
    facts = _facts(base / "dataset.json")
    if not (base / "train.npz").is_file():
        raise BadInput(f"{base / 'train.npz'} does not exist: give a folder that holds it")
    classes = tuple(str(c) for c in facts["classes"])
    metric = METRICS[facts["task"]]
    splits = {
        name: _split(base / f"{name}.npz", len(classes), metric)
        for name in ("train", "val", "test")
        if (base / f"{name}.npz").is_file()
    }
    return Task(name=base.resolve().name, classes=classes, splits=splits, metric=metric)


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}): give a folder that holds "
            "dataset.json, train.npz and test.npz"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}): get the file anew") from error
    kind = facts.get("task") if isinstance(facts, dict) else None
    if not isinstance(kind, str) or kind not in METRICS:
        raise BadInput(
            f'{path} states task {kind!r}: only "classify", one class per image, and "multilabel" '
            "can be read"
        )
    if not isinstance(facts.get("classes"), list):
        raise BadInput(f'{path} has no list "classes": name the class of every label there')
    return dict(facts)


def _split(path: Path, classes: int, metric: Metric) -> Split:
    data = _array(path, "data", "u", 1)
    offsets = _array(path, "offsets", "iu", 1).astype(np.int64)
    labels = _numbers(path, classes) if metric == "top1" else _sets(path, classes)
    if data.dtype != np.uint8:
        raise BadInput(f"{path}: data is {data.dtype}, uint8 is needed: write the file anew")
    if len(offsets) != len(labels) + 1:
        raise BadInput(
            f"{path}: offsets has {len(offsets)} entries for {len(labels)} in "
            f"{'label' if metric == 'top1' else 'labels'}, one more than labels is needed: "
            "write the file anew"
        )
    start, end = offsets[:-1], offsets[1:]
    wrong = np.flatnonzero((start < 0) | (end <= start) | (end > len(data)))
    if len(wrong):
        i = int(wrong[0])
        raise BadInput(
            f"{path}: offsets say that image {i} is bytes {start[i]} to {end[i]} "
            f"of {len(data)} in data: offsets must rise and stay inside: write the file anew"
        )
    ids = [i.decode(errors="replace") for i in _array(path, "id", "S", 1, needed=False).tolist()]
    source = Encoded(data, offsets, ids if len(ids) == len(labels) else [], path)
    return Split(source, torch.from_numpy(labels))


def _numbers(path: Path, classes: int) -> Array:
    """(n,) class of each image."""
    labels = _array(path, "label", "iu", 1).astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise BadInput(
            f"{path}: label of image {outside[0]} is {labels[outside[0]]}, out of range for "
            f"the {classes} classes in dataset.json: labels count from 0 to {classes - 1}"
        )
    return labels


def _sets(path: Path, classes: int) -> Array:
    """(n, C) of 1, 0 and -1."""
    labels = _array(path, "labels", "iu", 2).astype(np.int64)
    if labels.shape[1] != classes:
        raise BadInput(
            f"{path}: labels has {labels.shape[1]} columns for the {classes} classes in "
            "dataset.json, one each is needed: write the file anew"
        )
    outside = np.argwhere((labels < -1) | (labels > 1))
    if len(outside):
        row, column = outside[0]
        raise BadInput(
            f"{path}: labels of image {row} has {labels[row, column]} in column {column}: "
            "1 is present, 0 absent, -1 not to be counted"
        )
    return labels


def _array(path: Path, name: str, kinds: str, ndim: int, *, needed: bool = True) -> Array:
    """One array of the archive, checked for its kind ("i", "u", "S") and dimensions."""
    try:
        # Opened here, because numpy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if name not in archive.files and not needed:
                return np.empty(0, "S1")
            array: Array = archive[name]
    except KeyError as error:
        raise BadInput(f"{path} has no array {name!r}: write the file anew") from error
    # Broken archives reach us as BadZipFile, zlib.error, EOFError, ValueError, MemoryError, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{path}: array {name!r} cannot be read ({reason}): get the file anew"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.ndim != ndim:
        raise BadInput(
            f"{path}: array {name!r} is {getattr(array, 'dtype', 'no array')} of shape "
            f"{np.shape(array)}, which is not what the format says: write the file anew"
        )
    return array
