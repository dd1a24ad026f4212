"""NetTailor on Flowers-102: photographs of 102 kinds of flowers, by the published recipe.

python -m demos.flowers --download             the published schedule: a GPU
python -m demos.flowers --quick --sample       2 to 6 min on 2 cores; teacher 92.0 %, NetTailor
                                               89.6 % with 5 of 8 blocks, 71 % of the MACs

Published (ResNet-34): fine-tuning 95.84 %, NetTailor 95.51 % with 64.6 % fewer parameters and 7 of
16 blocks removed. There, the set's validation images were trained on, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from demos import _nettailor, _samples
from demos._nettailor import Options, Recipe, schedule
from tailor.options import Data


def recipe(options: Options) -> Recipe:
    """As published: the short side 256 px, a random resized crop of 224, half of them mirrored."""
    published = Recipe(
        name="flowers",
        data=Data(task="flowers102", px=224, crop="rrc", flip=True),
        teacher=schedule(epochs=50, batch=64, lr=0.01, step=20),
        student=schedule(epochs=50, batch=32, lr=0.1, step=20),
        retrain=schedule(epochs=60, batch=32, lr=0.01, step=20),
        remove=7,
        proxy_threshold=0.04,
        draw=_samples.flowers,
    )
    return _nettailor.quick(published, epochs=20, lr=0.03) if options.quick else published


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    return _nettailor.main(Options, recipe, "flowers", argv)


if __name__ == "__main__":
    sys.exit(main())
