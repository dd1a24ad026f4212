"""NetTailor on SVHN: house-number digits, by the published recipe.

python -m demos.svhn --download                the published schedule: a GPU
python -m demos.svhn --quick --sample          2 min on 2 cores; teacher 99.8 %, NetTailor 98.0 %
                                               with 3 of 8 blocks and 47 % of the MACs

Published (ResNet-34): fine-tuning 96.59 %, NetTailor 96.53 % with 73.4 % fewer parameters and 11 of
16 blocks removed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from demos import _nettailor, _samples
from demos._nettailor import Options, Recipe, schedule
from tailor.options import Data


def recipe(options: Options) -> Recipe:
    """As published: enlarged to 256 px, a random window of 224, never mirrored."""
    published = Recipe(
        name="svhn",
        data=Data(task="svhn", px=224, crop="random"),
        teacher=schedule(epochs=20, batch=64, lr=0.01, step=8),
        student=schedule(epochs=20, batch=32, lr=0.1, step=8),
        retrain=schedule(epochs=20, batch=32, lr=0.01, step=8),
        remove=11,
        proxy_threshold=0.075,
        draw=_samples.svhn,
    )
    return _nettailor.quick(published, epochs=8, lr=0.01) if options.quick else published


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    return _nettailor.main(Options, recipe, "svhn", argv)


if __name__ == "__main__":
    sys.exit(main())
