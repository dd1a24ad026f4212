"""`decathlon:NAME`: a domain of the Visual Decathlon as its makers ship it, images at 72 px.

    annotations/NAME_train.json, NAME_val.json      needed
    annotations/NAME_test.json                      test labels, where you have them
    annotations/NAME_test_stripped.json             test images without labels, to submit
    data/NAME/...                                   where the `file_name` of each image says

The archives may be unpacked beside each other below ``--root``, with or without their outermost
folders. Everything is checked before a network sees it: ids, classes and numbers of images
(``_decathlon_annotations.py``), and that the folders hold those images and no others. A test split
without labels is no split of the task; `open_test` reads it for a submission. A drawn sample
(``_sample.py``) states numbers of its own.

Rebuffi, Bilen, Vedaldi, Learning multiple visual domains with residual adapters, NIPS 2017.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image

from tailor import catalog
from tailor.datasets import _sample
from tailor.datasets._decathlon_annotations import (
    PAGE,
    UNIT,
    Annotated,
    Ids,
    more,
    read_annotations,
)
from tailor.datasets._folder import ENDINGS
from tailor.decathlon import DOMAINS, Domain
from tailor.errors import BadInput
from tailor.task import Split, Task

# Below the root: as the archives unpack, or by hand.
FOLDERS = ("", "decathlon-1.0", "decathlon-1.0-devkit/decathlon-1.0", "decathlon-1.0-data")


class Listed:
    """A source of image files that have ids."""

    def __init__(self, paths: list[str], ids: Ids) -> None:
        """Take the path and the id of every image."""
        self.paths = paths
        self.ids = ids

    def read(self, i: int) -> Image.Image:
        """Open and decode file ``i``."""
        with Image.open(self.paths[i]) as image:
            image.load()
            return image

    def where(self, i: int) -> str:
        """The file's path."""
        return self.paths[i]


def read(name: str, root: Path, *, download: bool) -> Task:
    """Open domain ``name`` below ``root``; nothing is downloaded.

    Raises:
        BadInput: unknown domain; a file is missing or broken; ids, classes, numbers of images or
            the images themselves are not those of the domain.
    """
    domain = facts(name, root)
    found = {}
    for split in ("train", "val", "test"):
        path = _place(root, f"{name}_{split}.json")
        if path is not None:
            found[split] = read_annotations(path, name, domain, split)
        elif split != "test":
            raise _not_there(root, f"annotations {name}_{split}.json")
    if "test" not in found and (path := _place(root, f"{name}_test_stripped.json")) is not None:
        found["test"] = read_annotations(path, name, domain, "test", labelled=False)
    where = _located(root, name, found.values())
    train = found["train"]
    for other in found.values():
        if other.classes and other.classes != train.classes:
            k = next(k for k, c in enumerate(train.classes) if other.classes[k] != c)
            raise BadInput(
                f"{other.path} calls class {domain.number * UNIT + 1 + k} {other.classes[k]!r}, "
                f"{train.path.name} {train.classes[k]!r}: get both files from one place"
            )
    splits = {
        split: _split(where, some) for split, some in found.items() if some.labels is not None
    }
    return Task(
        name=_sample.named(name, _marked(root)),
        classes=train.classes,
        splits=splits,
        mean=domain.mean,
        std=domain.std,
    )


def open_test(name: str, root: Path) -> Task:
    """The domain's test images alone, labelled or not, to be predicted.

    Returns:
        A task with the one split ``test``, its source a ``Listed``; labels are -1 where there are
        none. Never a task to train on.

    Raises:
        BadInput: as ``read``.
    """
    domain = facts(name, root)
    for file, labelled in ((f"{name}_test.json", True), (f"{name}_test_stripped.json", False)):
        if (path := _place(root, file)) is not None:
            found = read_annotations(path, name, domain, "test", labelled=labelled)
            where = _located(root, name, [found])
            return Task(
                name=_sample.named(name, _marked(root)),
                classes=found.classes,
                splits={"test": _split(where, found)},
                mean=domain.mean,
                std=domain.std,
            )
    raise _not_there(root, f"test images ({name}_test.json or {name}_test_stripped.json)")


def test_labels(name: str, root: Path) -> Annotated:
    """Ids and labels of the test images below ``root``, which may be the annotations' own folder.

    Raises:
        BadInput: the labelled file is missing, broken or not the domain's.
    """
    domain = facts(name, root)
    path = _place(root, f"{name}_test.json")
    if path is None:
        only = _place(root, f"{name}_test_stripped.json")
        has = f"; {only.name} has no labels" if only else ""
        raise BadInput(
            f"{root} holds no test labels of {name} ({name}_test.json){has}: the labels of all ten "
            "domains come with the program of the residual adapters (labels_test.zip)"
        )
    return read_annotations(path, name, domain, "test")


def is_sample(root: Path) -> bool:
    """Whether what lies below ``root`` was drawn."""
    return _sample.is_sample(_marked(root))


def facts(name: str, root: Path) -> Domain:
    """What domain ``name`` must hold; a drawn sample states its own numbers.

    Raises:
        BadInput: unknown domain, or one that the sample does not hold.
    """
    if name not in DOMAINS:
        raise catalog.unknown("domain", name, DOMAINS, shown_by="tailor list tasks 'decathlon:*'")
    domain, drawn = DOMAINS[name], _marked(root)
    if not _sample.is_sample(drawn):
        return domain
    try:
        noted = _sample.read_mark(drawn)["decathlon"][name]
        classes, train, val, test = (int(noted[k]) for k in ("classes", "train", "val", "test"))
        return dataclasses.replace(domain, classes=classes, train=train, val=val, test=test)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{drawn / _sample.MARK} has no numbers of {name}: draw the sample anew with {name}"
        ) from error


def _split(where: Callable[[str], str], found: Annotated) -> Split:
    source = Listed([where(file) for file in found.files], found.ids)
    nothing = torch.full((len(found.ids),), -1)
    return Split(source, nothing if found.labels is None else torch.from_numpy(found.labels))


def _place(root: Path, file: str) -> Path | None:
    """The annotation file below ``root``, which may be the annotations' own folder."""
    for folder in FOLDERS:
        for place in (root / folder / "annotations" / file, root / folder / file):
            if place.is_file():
                return place
    return None


def _marked(root: Path) -> Path:
    """The folder that would hold a sample's mark."""
    return root.parent if root.name == "annotations" and not _sample.is_sample(root) else root


def _not_there(root: Path, what: str) -> BadInput:
    return BadInput(
        f"{root} holds no {what}: get decathlon-1.0-devkit.tar.gz from {PAGE} and unpack it there, "
        "or name the folder that holds it with --root"
    )


def _located(root: Path, name: str, found: Iterable[Annotated]) -> Callable[[str], str]:
    """Where the image of a `file_name` lies; the folders hold all of them and no others.

    A folder is listed once: looking for a million files one by one takes minutes on a network.

    Raises:
        BadInput: no such folder, images that are not there, images that are not annotated.
    """
    expected: dict[str, dict[str, Path]] = defaultdict(dict)  # folder, file: annotated by
    for some in found:
        for file in some.files:
            folder, _, last = file.rpartition("/")
            if last in expected[folder]:
                raise BadInput(
                    f"{some.path} lists {file}, which {expected[folder][last].name} lists already: "
                    f"an image belongs to one split; get the files anew from {PAGE}"
                )
            expected[folder][last] = some.path
    base, prefix = _base(root, name, list(expected))
    absent: list[tuple[str, Path]] = []
    strange: list[str] = []
    for folder, files in expected.items():
        inner = folder.removeprefix(prefix)
        there = _listing(base / inner)
        lacking = [file for file in files if file not in there]
        absent += [(f"{inner}/{file}", files[file]) for file in lacking]
        if len(there) + len(lacking) > len(files):
            strange += [f"{inner}/{file}" for file in sorted(there - files.keys())]
    if absent:
        file, by = absent[0]
        raise BadInput(
            f"{by} lists {file}{more(len(absent) - 1)}, which {base} does not hold: "
            f"unpack the images of {name} anew, or name their folder with --root"
        )
    if strange:
        raise BadInput(
            f"{base} holds {strange[0]}{more(len(strange) - 1)}, which no annotations of {name} "
            "list: move it away, or put the annotations there that belong to these images"
        )
    return lambda file: f"{base}/{file.removeprefix(prefix)}"


def _base(root: Path, name: str, folders: list[str]) -> tuple[Path, str]:
    """The folder of the images, and what of a `file_name` is not below it.

    Archives of single domains unpack to NAME/... where `file_name` says data/NAME/...
    """
    for prefix in ("", "data/"):
        for folder in FOLDERS:
            if any((root / folder / inner.removeprefix(prefix)).is_dir() for inner in folders):
                return root / folder, prefix
    archive = "decathlon-1.0-data-imagenet.tar" if name == "imagenet12" else f"{name}.tar"
    raise BadInput(
        f"{root} holds no images of {name} (no folder {folders[0]}): get {archive} of {PAGE} and "
        f"unpack it to {root / 'data'}"
    )


def _listing(folder: Path) -> set[str]:
    """Names of the image files in a folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return set()
    return {n for n in names if n.lower().endswith(ENDINGS) and not n.startswith(".")}
