"""Annotation files of the Visual Decathlon: COCO's JSON with one class per image, checked.

``images`` (id, file_name), ``annotations`` (image_id, category_id), ``categories`` (id, name).
Domain d has the classes d * 10^7 + 1, 2, ... and images between d * 10^7 and (d + 1) * 10^7. Label
k is the class d * 10^7 + 1 + k, whichever classes a split shows. Everything else in the files is
ignored. Where the files and their images lie is in ``_decathlon.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailor.decathlon import Domain
from tailor.errors import BadInput, first_line

PAGE = "https://www.robots.ox.ac.uk/~vgg/decathlon/"
UNIT = 10_000_000  # ids of domain d lie from d * UNIT to (d + 1) * UNIT
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Annotated:
    """What one annotation file says about its n images."""

    path: Path
    files: list[str]  # n times `file_name`
    ids: Ids  # (n,)
    labels: Ids | None  # (n,) from 0; None: a file without labels
    classes: tuple[str, ...]  # may be empty in a file without labels


def read_annotations(
    path: Path, name: str, domain: Domain, split: str, *, labelled: bool = True
) -> Annotated:
    """Read and check one file; images are not looked for.

    Args:
        path: the file.
        name: of the domain.
        domain: its numbers.
        split: ``train``, ``val`` or ``test``.
        labelled: whether every image must have its class.

    Raises:
        BadInput: the file is no such JSON, or ids, classes or numbers are not the domain's.
    """
    tables = _tables(path, labelled)
    ids = _numbers(path, "images", tables["images"], "id")
    files = _files(path, tables["images"])
    first = domain.number * UNIT
    _within(path, name, "image", ids, first, first + UNIT)
    _once(path, "image", ids, "is listed")
    classes: tuple[str, ...] = ()
    if labelled or tables["categories"]:
        classes = _classes(path, name, domain, tables["categories"])
    labels = None
    if labelled:
        marks = tables["annotations"]
        labels = _labels(path, name, domain, ids, marks)
    expected = getattr(domain, split)
    if len(ids) != expected:
        raise BadInput(
            f"{path} lists {len(ids)} images, {name} has {expected} in {split}: "
            f"get the file anew from {PAGE}"
        )
    if labels is not None:
        shown = np.bincount(labels, minlength=domain.classes)
        if len(absent := np.flatnonzero(shown == 0)):
            raise BadInput(
                f"{path} shows no image of class {first + 1 + int(absent[0])} "
                f"({classes[absent[0]]!r}){more(len(absent) - 1)}: every split of {name} has all "
                f"{domain.classes} classes; get the file anew from {PAGE}"
            )
    return Annotated(path, files, ids, labels, classes)


def _labels(path: Path, name: str, domain: Domain, ids: Ids, marks: list[Any]) -> Ids:
    """(n,) label of each image, from its one annotation."""
    of = _numbers(path, "annotations", marks, "image_id")
    category = _numbers(path, "annotations", marks, "category_id")
    first = domain.number * UNIT + 1
    _within(path, name, "category", category, first, first + domain.classes)
    _once(path, "image", of, "has annotations")
    order = np.argsort(ids)
    place = np.searchsorted(ids, of, sorter=order).clip(max=max(len(ids) - 1, 0))
    known = ids[order[place]] == of if len(ids) else np.zeros(len(of), bool)
    if not known.all():
        raise BadInput(
            f"{path} annotates image {of[~known][0]}{more(int((~known).sum()) - 1)}, which it "
            f"does not list: get the file anew from {PAGE}"
        )
    if len(of) < len(ids):
        bare = ids[~np.isin(ids, of)]
        raise BadInput(
            f"{path} has no class for image {bare[0]}{more(len(bare) - 1)}: get the file anew "
            f"from {PAGE}; a file without labels is called {name}_test_stripped.json"
        )
    labels = np.empty(len(ids), np.int64)
    labels[order[place]] = category - first
    return labels


def _classes(path: Path, name: str, domain: Domain, listed: list[Any]) -> tuple[str, ...]:
    """Names of the classes by their number."""
    ids = _numbers(path, "categories", listed, "id")
    names = [str(name) for name in _values(path, "categories", listed, "name")]  # some count
    first = domain.number * UNIT + 1
    _within(path, name, "category", ids, first, first + domain.classes)
    _once(path, "category", ids, "is listed")
    if len(ids) < domain.classes:
        absent = sorted({*range(first, first + domain.classes)} - {*ids.tolist()})
        raise BadInput(
            f"{path} lists {len(ids)} of {domain.classes} classes of {name}, not {absent[0]}"
            f"{more(len(absent) - 1)}: get the file anew from {PAGE}"
        )
    return tuple(names[k] for k in np.argsort(ids))


def _tables(path: Path, labelled: bool) -> dict[str, list[Any]]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): get it from {PAGE}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{path} is not JSON ({first_line(error)}): get the file anew from {PAGE}"
        ) from error
    tables = {}
    for name in ("images", "annotations", "categories"):
        table = found.get(name) if isinstance(found, dict) else None
        if table is None and not labelled and name != "images":
            table = []
        if not isinstance(table, list):
            raise BadInput(f'{path} has no list "{name}": get the file anew from {PAGE}')
        tables[name] = table
    return tables


def _numbers(path: Path, table: str, entries: list[Any], key: str) -> Ids:
    values = _values(path, table, entries, key)
    for i, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**62:
            raise BadInput(
                f"{path}: {table}[{i}] has {key} {value!r}, not a whole number: "
                f"get the file anew from {PAGE}"
            )
    return np.array(values, dtype=np.int64)


def _files(path: Path, entries: list[Any]) -> list[str]:
    """(n,) `file_name` of each image, below the data set's folder."""
    values = _values(path, "images", entries, "file_name")
    for i, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise BadInput(
                f"{path}: images[{i}] has file_name {value!r}, not a text: "
                f"get the file anew from {PAGE}"
            )
        if value.startswith("/") or ".." in value.split("/"):
            raise BadInput(
                f"{path}: images[{i}] has file_name {value!r}, which leads out of the data set's "
                f"folder: get the file anew from {PAGE}"
            )
    return values


def _values(path: Path, table: str, entries: list[Any], key: str) -> list[Any]:
    try:
        return [entry[key] for entry in entries]
    except (KeyError, TypeError, IndexError) as error:
        i = next(i for i, e in enumerate(entries) if not isinstance(e, dict) or key not in e)
        raise BadInput(
            f"{path}: {table}[{i}] has no {key!r}: get the file anew from {PAGE}"
        ) from error


def _within(path: Path, name: str, what: str, ids: Ids, start: int, stop: int) -> None:
    outside = ids[(ids < start) | (ids >= stop)]
    if len(outside):
        raise BadInput(
            f"{path} has {what} {outside[0]}{more(len(outside) - 1)}, but those of {name} are "
            f"numbered {start} to {stop - 1}: get the file anew from {PAGE}"
        )


def _once(path: Path, what: str, ids: Ids, did: str) -> None:
    values, counts = np.unique(ids, return_counts=True)
    twice = np.flatnonzero(counts > 1)
    if len(twice):
        k = twice[0]
        raise BadInput(
            f"{path}: {what} {values[k]} {did} {counts[k]} times{more(len(twice) - 1)}: "
            f"get the file anew from {PAGE}"
        )


def more(count: int) -> str:
    """How a message goes on after the first of several."""
    return f" and {count} more" if count > 0 else ""
