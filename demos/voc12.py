"""NetTailor on VOC 2012, by the published recipe: objects cut out, or whole images.

python -m demos.voc12 --download                       the published schedule: a GPU
python -m demos.voc12 --quick --sample                 2 to 7 min on 2 cores; teacher 100 %,
                                                       NetTailor 100 % with 7 of 8 blocks
python -m demos.voc12 --quick --sample --form images   5 min on 2 cores; mAP: teacher 45.0 %,
                                                       NetTailor 38.6 % with 7 of 8 blocks

Published (ResNet-34, objects, top-1): fine-tuning 82.82 %, NetTailor 82.90 % with 36.1 % fewer
parameters and 3 of 16 blocks removed. Its balancing of the classes is left out, and so are the
objects marked as difficult (see `tailor/datasets/voc12_objects.py`). Whole images, any number of
classes each, mean average precision, were not published; the recipe is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from demos import _nettailor, _samples
from demos._nettailor import Recipe, schedule
from tailor.options import Data


@dataclass(frozen=True, kw_only=True)
class Options(_nettailor.Options):
    """Tailor a network to VOC 2012: teacher, student, prune, retrain, report.

    Repeating a command continues its runs or shows them.
    """

    form: Literal["objects", "images"] = "objects"
    """Objects cut out of their images, one class each, as published; or whole images with any
    number of classes."""


def recipe(options: Options) -> Recipe:
    """As published: scaled to a square of 224 px whatever the shape, half of them mirrored."""
    task = "voc12_objects" if options.form == "objects" else "voc12"
    published = Recipe(
        name=f"voc12-{options.form}",
        data=Data(task=task, px=224, squash=True, crop="none", flip=True),
        teacher=schedule(epochs=50, batch=64, lr=0.01, step=20),
        student=schedule(epochs=50, batch=32, lr=0.1, step=20),
        retrain=schedule(epochs=60, batch=32, lr=0.01, step=20),
        remove=3,
        proxy_threshold=0.1,
        draw=_samples.voc12,
    )
    if not options.quick:
        return published
    if options.form == "images":  # objects are small within an image
        return _nettailor.quick(published, epochs=20, lr=0.1, px=64)
    return _nettailor.quick(published, epochs=8, lr=0.03)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    return _nettailor.main(Options, recipe, "voc12", argv)


if __name__ == "__main__":
    sys.exit(main())
