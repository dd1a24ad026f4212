"""FGVC-Aircraft: photographs of 100 variants of aircraft.

3334 train, 3333 validation and 3333 test images, split by their makers. Maji et al.,
Fine-Grained Visual Classification of Aircraft, arXiv 1306.5151, 2013.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import open_set
from tailor.task import Facts, Task

FACTS = Facts(
    title="FGVC-Aircraft, variants",
    classes=100,
    source="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    licence="non-commercial research use",
)


def read(root: Path, *, download: bool) -> Task:
    """Open it below ``root``, or raise BadInput with what to fetch from where."""
    return open_set("FGVCAircraft", root, download=download, name="fgvc_aircraft")
