"""SVHN: house numbers photographed from the street, cropped to one digit, 32x32.

73257 train and 26032 test images; the "extra" images are left out, as is usual where sets are
compared. Netzer et al., Reading Digits in Natural Images, NIPS workshop 2011.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import open_set
from tailor.task import Facts, Task

FACTS = Facts(
    title="Street View House Numbers, cropped digits",
    classes=10,
    source="http://ufldl.stanford.edu/housenumbers/",
    licence="non-commercial use",
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    return open_set(
        "SVHN",
        root,
        download=download,
        name="svhn",
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    )
