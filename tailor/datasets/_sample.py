"""Drawn stand-ins for public data sets: the same files and readers, their own checksums.

A data folder with a `sample.json` is a sample. The file holds the MD5 sums of those files whose
sums torchvision compares with the published ones, and they are compared with these instead. Its
tasks are named NAME-sample, so that no number on drawn images passes for one on the real set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tailor.errors import BadInput

MARK = "sample.json"


def mark(root: Path, checked: Iterable[Path] = (), **more: Any) -> None:
    """Declare ``root`` a sample.

    Args:
        root: its folder.
        checked: the files whose sums torchvision compares.
        more: what else the reader of the set must know of the sample, as JSON.
    """
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in checked}
    note = "Drawn images in the format of a public data set; see the demo that made them."
    text = json.dumps({"note": note, "md5": sums} | more, indent=1)
    (root / MARK).write_text(text, encoding="utf-8")


def read_mark(root: Path) -> dict[str, Any]:
    """What ``mark`` wrote.

    Raises:
        OSError, ValueError, TypeError: the mark is broken; the caller knows what it needed there.
    """
    return dict(json.loads((root / MARK).read_text(encoding="utf-8")))


def is_sample(root: Path) -> bool:
    """Whether ``root`` is a sample."""
    return (root / MARK).is_file()


def named(name: str, root: Path) -> str:
    """The name of a task below ``root``."""
    return f"{name}-sample" if is_sample(root) else name


@contextlib.contextmanager
def own_sums(make: Any, root: Path) -> Iterator[None]:
    """While it lasts, the torchvision class ``make`` expects the sums of the sample at ``root``.

    Raises:
        BadInput: the sample's mark is broken.
    """
    if not is_sample(root):
        yield
        return
    try:
        sums = dict(read_mark(root)["md5"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{root / MARK} holds no sums of a sample ({error}): draw the sample anew"
        ) from error
    tables = {
        name: getattr(make, name) for name in ("split_list", "_file_dict") if name in vars(make)
    }
    for name, table in tables.items():
        setattr(make, name, {key: _replaced(entry, sums) for key, entry in table.items()})
    try:
        yield
    finally:
        for name, table in tables.items():
            setattr(make, name, table)


def _replaced(entry: Iterable[str], sums: dict[str, str]) -> list[str]:
    """An entry of torchvision's tables, [..., file, sum], with our sum of the file."""
    *before, file, published = entry
    return [*before, file, sums.get(file, published)]
