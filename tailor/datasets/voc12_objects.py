"""VOC 2012, objects: every annotated object cut out of its image, 20 classes, accuracy.

The form in which NetTailor (Morgado & Vasconcelos, CVPR 2019) was published on VOC 2012: one
class per object, its box as the image. 13609 objects of the list "train" are train, 13841 of
"val" are test (see `_voc.py`). An image is decoded when one of its objects is read; no crop is
kept.

Objects marked as difficult are left out of both splits: they cannot be recognised without their
surroundings, and the development kit never counts them. The published program draws 1000
objects of each class, with replacement, once before training. That is left out: copies of one
object would lie on both sides of the validation split that is carved out of train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tailor.datasets import _sample, _voc
from tailor.task import Facts, Split, Task

FACTS = Facts(
    title="PASCAL VOC 2012, objects cut out of their images",
    classes=len(_voc.CLASSES),
    source=_voc.SOURCE,
    licence=_voc.LICENCE,
)


class Objects:
    """A source of objects of images."""

    def __init__(self, paths: Sequence[Path], things: Sequence[_voc.Thing]) -> None:
        """Take each object and the image that it is in."""
        self.paths = paths
        self.things = things

    def read(self, i: int) -> Image.Image:
        """Decode the image of object ``i`` and cut it out."""
        with Image.open(self.paths[i]) as image:
            return image.crop(self.things[i].pixels(image.size))

    def where(self, i: int) -> str:
        """The image's path, the object's number in its annotation, and its class."""
        thing = self.things[i]
        return f"{self.paths[i]} object {thing.number} ({_voc.CLASSES[thing.label]})"


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    splits = {}
    for split, pairs in _voc.open_lists(root, download=download, name="voc12_objects").items():
        found = [
            (image, thing)
            for image, annotation in pairs
            for thing in _voc.things(annotation)
            if not thing.difficult
        ]
        for _, thing in found:
            thing.pixels()  # a box that cannot be cut out is told before any training
        paths, things = [path for path, _ in found], [thing for _, thing in found]
        splits[split] = Split(Objects(paths, things), [thing.label for thing in things])
    name = _sample.named("voc12_objects", root)
    return Task(name=name, classes=_voc.CLASSES, splits=splits)
