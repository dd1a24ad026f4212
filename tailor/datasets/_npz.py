"""`npz:PATH`: a folder with train.npz, test.npz and dataset.json; no pickles inside.

    dataset.json    {"name": ..., "task": "classify", "classes": ["daisy", ...], ...}
    train.npz       data uint8     encoded image files (PNG, JPEG, ...), one after the other
                    offsets int64  (n + 1,), image i is data[offsets[i]:offsets[i + 1]]
                    label int64    (n,), classes[label[i]] is its class
                    id bytes       (n,), optional: where the image came from
    test.npz, val.npz   the same, both optional

A "multilabel" task has, instead of label, labels (n, C) of integers: 1 where classes[c] is
present, 0 where it is absent, -1 where that is not to be counted; its metric is mean average
precision.

A "dense" task has labels of every pixel, and may have several kinds of them: `npz:PATH@TARGET` is
the task of one. Instead of label, for every target an encoded image of the size of its picture:

    dataset.json    {"task": "dense", "targets": {TARGET: words, ...}}
    train.npz       target_TARGET_data, target_TARGET_offsets    as data and offsets

The words say what the pixels are, and only two kinds of them are read: "uint8 classes: 0 sky, 1
tree, ..." (255 is not counted) and "uint8/255: ...", a value in 0 to 1 of every channel.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tailor.errors import BadInput
from tailor.target import CLASS, PIXEL_CLASS, SET, Target, target
from tailor.task import Split, Task

Array = npt.NDArray[Any]
TARGETS = {"classify": CLASS, "multilabel": SET}  # by the word for it
NOT_COUNTED = 255  # in a map of classes
# Squared, because most pixels of such maps are 0, which is all that an absolute error asks for.
VALUES_IN_0_TO_1 = target("pixel_values", loss="l2")


class Encoded:
    """A source of encoded image files that lie in one array."""

    def __init__(self, data: Array, offsets: Array, ids: list[str], path: Path) -> None:
        """Take what `_files` has validated."""
        self.data = data
        self.offsets = offsets
        self.ids = ids  # may be empty
        self.path = path

    def __len__(self) -> int:
        return max(0, len(self.offsets) - 1)

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


class EncodedMaps:
    """Label maps that lie as encoded image files in one array."""

    def __init__(self, files: Encoded, name: str, outputs: int, *, numeric: bool) -> None:
        """Take the files of target ``name``."""
        self.files, self.name, self.outputs, self.numeric = files, name, outputs, numeric

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> Array:
        """(H, W) classes, -1 where not counted, or (outputs, H, W) values in 0 to 1."""
        pixels = np.asarray(self.files.read(i))
        if pixels.dtype != np.uint8:
            raise ValueError(f"pixels are {pixels.dtype}, not uint8")
        if self.numeric:
            return np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.float32) / 255
        return np.where(pixels == NOT_COUNTED, -1, pixels.astype(np.int16))

    def encoded(self, i: int) -> bytes:
        """The file of map ``i``."""
        return self.files.encoded(i)

    def where(self, i: int) -> str:
        """File, target, number and, where it is known, id."""
        return f"target {self.name!r} of {self.files.where(i)}"


@dataclass(frozen=True)
class _Said:
    """What dataset.json says about labels."""

    classes: tuple[str, ...]
    target: Target
    name: str = ""  # of a dense target


def read(path: str, root: Path, *, download: bool) -> Task:
    """Open the folder at ``path``, relative to the working directory; nothing is downloaded.

    Raises:
        BadInput: a file or an array is missing or broken; the message names both.
    """
    folder, _, wanted = path.rpartition("@")
    if not folder or "/" in wanted:  # an @ in the name of a folder on the way
        folder, wanted = path, ""
    base = Path(folder).expanduser()
    said = _said(base / "dataset.json", wanted)
    if not (base / "train.npz").is_file():
        raise BadInput(f"{base / 'train.npz'} does not exist: give a folder that holds it")
    splits = {
        name: _split(base / f"{name}.npz", said)
        for name in ("train", "val", "test")
        if (base / f"{name}.npz").is_file()
    }
    name = base.resolve().name + (f"@{wanted}" if wanted else "")
    return Task(name=name, classes=said.classes, splits=splits, target=said.target)


def _said(path: Path, wanted: str) -> _Said:
    """What labels are, of the dense target ``wanted`` if one is named."""
    facts = _facts(path)
    kind = facts.get("task")
    if kind == "dense":
        return _said_dense(path, facts.get("targets"), wanted)
    if wanted:
        raise BadInput(
            f"{path} states task {kind!r}, which has one kind of labels: leave @{wanted} out"
        )
    if not isinstance(kind, str) or kind not in TARGETS:
        raise BadInput(
            f'{path} states task {kind!r}: only "classify", one class per image, "multilabel" and '
            '"dense" can be read'
        )
    if not isinstance(facts.get("classes"), list):
        raise BadInput(f'{path} has no list "classes": name the class of every label there')
    return _Said(tuple(str(c) for c in facts["classes"]), TARGETS[kind])


def _said_dense(path: Path, targets: object, wanted: str) -> _Said:
    if not isinstance(targets, dict) or not targets:
        raise BadInput(f'{path} has no map "targets": say there what every target is')
    if wanted not in targets:
        which = f"has no target {wanted!r}" if wanted else "is dense"
        raise BadInput(
            f"{path} {which}: choose one, such as npz:{path.parent}@{min(targets)}; "
            f"it has {', '.join(targets)}"
        )
    words = str(targets[wanted])
    if words.startswith("uint8/255"):
        return _Said((wanted,), VALUES_IN_0_TO_1, wanted)
    if words.startswith("uint8 classes:"):
        pairs = re.findall(r"(\d+) ([^,]+)", words.partition(":")[2])
        if pairs and [int(number) for number, _ in pairs] == list(range(len(pairs))):
            return _Said(tuple(name.strip() for _, name in pairs), PIXEL_CLASS, wanted)
    raise BadInput(
        f'{path} says of target {wanted!r}: {words!r}; only "uint8 classes: 0 name, 1 name, ..." '
        'and "uint8/255: ..." can be predicted'
    )


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
    return facts if isinstance(facts, dict) else {}


def _split(path: Path, said: _Said) -> Split:
    source = _files(path, "")
    if said.target.dense:
        files = _files(path, f"target_{said.name}_")
        if len(files) != len(source):
            raise BadInput(
                f"{path} has {len(files)} maps of target {said.name!r} for {len(source)} images: "
                "write the file anew"
            )
        numeric = said.target.numeric
        maps = EncodedMaps(files, said.name, len(said.classes), numeric=numeric)
        return Split(source, maps, target=said.target)
    one = said.target == CLASS
    labels = (_numbers if one else _sets)(path, len(said.classes))
    if len(source.offsets) != len(labels) + 1:
        raise BadInput(
            f"{path}: offsets has {len(source.offsets)} entries for {len(labels)} in "
            f"{'label' if one else 'labels'}, one more than labels is needed: "
            "write the file anew"
        )
    return Split(source, torch.from_numpy(labels))


def _files(path: Path, prefix: str) -> Encoded:
    """The encoded files of arrays PREFIXdata and PREFIXoffsets, checked against each other."""
    data = _array(path, f"{prefix}data", "u", 1)
    offsets = _array(path, f"{prefix}offsets", "iu", 1).astype(np.int64)
    if data.dtype != np.uint8:
        raise BadInput(
            f"{path}: {prefix}data is {data.dtype}, uint8 is needed: write the file anew"
        )
    start, end = offsets[:-1], offsets[1:]
    wrong = np.flatnonzero((start < 0) | (end <= start) | (end > len(data)))
    if len(wrong):
        i = int(wrong[0])
        raise BadInput(
            f"{path}: {prefix}offsets say that image {i} is bytes {start[i]} to {end[i]} "
            f"of {len(data)} in {prefix}data: offsets must rise and stay inside: "
            "write the file anew"
        )
    ids = [i.decode(errors="replace") for i in _array(path, "id", "S", 1, needed=False).tolist()]
    return Encoded(data, offsets, ids if len(ids) == len(offsets) - 1 else [], path)


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
