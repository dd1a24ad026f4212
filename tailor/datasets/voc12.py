"""VOC 2012, whole images: photographs with any of 20 kinds of objects; mean average precision.

5717 images of the list "train" are train, 5823 of "val" are test (see `_voc.py`). A class is
present where the image has an object of it that is not marked as difficult, and is not counted
where all of its objects are, which is the development kit's rule for classification.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tailor.datasets import _sample, _voc
from tailor.target import SET
from tailor.task import Facts, Files, Split, Task

FACTS = Facts(
    title="PASCAL VOC 2012, classes present in an image",
    classes=len(_voc.CLASSES),
    source=_voc.SOURCE,
    licence=_voc.LICENCE,
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    splits = {}
    for split, pairs in _voc.open_lists(root, download=download, name="voc12").items():
        rows = [_present(_voc.things(annotation)) for _, annotation in pairs]
        labels = torch.tensor(rows, dtype=torch.int8).view(len(rows), len(_voc.CLASSES))
        splits[split] = Split(Files([image for image, _ in pairs]), labels)
    name = _sample.named("voc12", root)
    return Task(name=name, classes=_voc.CLASSES, splits=splits, target=SET)


def _present(things: list[_voc.Thing]) -> list[int]:
    """(20,) of 1 present, 0 absent, -1 only as difficult."""
    labels = [0] * len(_voc.CLASSES)
    for thing in sorted(things, key=lambda t: not t.difficult):  # what counts has the last word
        labels[thing.label] = -1 if thing.difficult else 1
    return labels
