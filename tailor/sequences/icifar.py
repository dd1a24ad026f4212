"""iCIFAR: the classes of CIFAR-100 ten by ten, in alphabetical order, as ten tasks.

Each has 5000 training and 1000 test images of 32 px, seen as they are (no augmentation) for 157
batches of 128: three whole passes, which end with a batch of 8, and 37 batches of a fourth, 19,736
images in all. All of train is trained on, so there is no validation split, and the weights after
the last batch are kept: nothing is chosen, and the test images are only measured.

Source: Zhang, Sax, Zamir, Guibas, Malik: Side-tuning, ECCV 2020, https://arxiv.org/abs/1912.13503;
numbers from the configuration in https://github.com/jozhang97/side-tuning. Its base is a ResNet-44
trained on CIFAR-10 without its classifier, and ImageNet's mean and deviation are subtracted and
divided by, as ``resnet44`` does.
"""

from __future__ import annotations

from pathlib import Path

from tailor.options import Images, Net
from tailor.sequence import Defaults
from tailor.settings import Settings

TITLE = "iCIFAR: ten times ten classes of CIFAR-100"
RECIPE = Defaults(
    images=Images(px=32, crop="none", val_share=0.0),
    net=Net(backbone="resnet44"),
    train=Settings(
        epochs=1,
        batch=128,
        steps_per_epoch=157,
        optimizer="adam",
        lr=1e-3,
        clip=1.0,
        schedule="constant",
        select="last",
        seed=269,
    ),
)


def tasks(root: Path, *, download: bool) -> tuple[str, ...]:
    """Ten tasks of ten consecutive classes; nothing needs to be looked up."""
    return tuple(f"classes:cifar100:{first}-{first + 9}" for first in range(0, 100, 10))
