"""Flowers-102: photographs of 102 kinds of flowers.

1020 train, 1020 validation and 6149 test images, split by their makers. Nilsback & Zisserman,
Automated Flower Classification over a Large Number of Classes, ICVGIP 2008.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import open_set
from tailor.task import Facts, Task

FACTS = Facts(
    title="Oxford 102 Flowers",
    classes=102,
    source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    licence="none stated",
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    return open_set("Flowers102", root, download=download, name="flowers102")
