"""CIFAR-10: objects and animals, 32x32.

50000 train and 10000 test images. Krizhevsky, Learning Multiple Layers of Features, 2009.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import open_set
from tailor.task import Facts, Task

FACTS = Facts(
    title="CIFAR-10",
    classes=10,
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated",
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    return open_set(
        "CIFAR10",
        root,
        download=download,
        name="cifar10",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
