"""CIFAR-100: objects and animals in 100 fine classes, 32x32.

50000 train and 10000 test images. Krizhevsky, Learning Multiple Layers of Features, 2009.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import open_set
from tailor.task import Facts, Task

FACTS = Facts(
    title="CIFAR-100",
    classes=100,
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated",
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    return open_set(
        "CIFAR100",
        root,
        download=download,
        name="cifar100",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )
