"""Omniglot: 1623 hand-drawn characters of 50 alphabets, each drawn by the same 20 people.

Made for learning from one example, its two halves (background, evaluation) share no
characters. Here all characters are classes, and drawings are split by drawer: 11 for
train, 4 for validation, 5 for test, the counts of Omniglot in the Visual Decathlon
(Rebuffi et al., NIPS 2017), though not its very split. Lake et al., Science 350, 2015.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._torchvision import OMNIGLOT, construct
from tailor.task import Facts, Files, Split, Task

FACTS = Facts(
    title="Omniglot, split by drawer",
    classes=1623,
    source="https://github.com/brendenlake/omniglot",
    licence="MIT",
)
DRAWERS = {"train": range(1, 12), "val": range(12, 16), "test": range(16, 21)}


def read(root: Path, *, download: bool) -> Task:
    """Open both halves below ``root``, or raise BadInput with what to fetch from where."""
    found: list[tuple[str, Path]] = []  # character, drawing
    for arguments in OMNIGLOT.splits.values():
        half = construct("Omniglot", OMNIGLOT, arguments, root, download=download, name="omniglot")
        for image, number in half._flat_character_images:
            character = half._characters[number]
            found.append((character, Path(half.target_folder, character, image)))
    # torchvision numbers characters in the order of the file system, another on each machine.
    found.sort()
    classes = sorted({character for character, _ in found})
    number_of = {character: label for label, character in enumerate(classes)}
    paths = [path for _, path in found]
    every = Split(Files(paths), [number_of[character] for character, _ in found])
    drawers = [int(path.stem.rpartition("_")[2]) for path in paths]  # 0003_17.png: drawer 17
    splits = {
        name: every.subset([i for i, drawer in enumerate(drawers) if drawer in chosen])
        for name, chosen in DRAWERS.items()
    }
    return Task(name="omniglot", classes=tuple(classes), splits=splits)
