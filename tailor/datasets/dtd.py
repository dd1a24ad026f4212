"""DTD: photographs of 47 kinds of textures.

1880 train, 1880 validation and 1880 test images: the first of its makers' ten partitions.
Cimpoi et al., Describing Textures in the Wild, CVPR 2014.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import open_set
from tailor.task import Facts, Task

FACTS = Facts(
    title="Describable Textures Dataset, partition 1",
    classes=47,
    source="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    licence="research use",
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    return open_set("DTD", root, download=download, name="dtd")
