"""GTSRB: 43 German traffic signs, from 15 to 250 pixels wide.

26640 train and 12630 test images. Frames of one passing sign follow each other, so a validation
split that is carved out of train is easier than test. Stallkamp et al., Neural Networks 2012.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import open_set
from tailor.task import Facts, Task

FACTS = Facts(
    title="German Traffic Sign Recognition Benchmark",
    classes=43,
    source="https://benchmark.ini.rub.de/",
    licence="none stated",
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    return open_set("GTSRB", root, download=download, name="gtsrb")
