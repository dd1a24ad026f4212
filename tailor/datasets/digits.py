"""Handwritten digits: 1797 grey images of 8x8 pixels that come with scikit-learn.

The copy in scikit-learn is the test part of the UCI set "Optical Recognition of Handwritten
Digits" (Alpaydin & Kaynak, 1998). It has no split of its own: a fixed, stratified 30 % is
test here. Images stay 8x8; how far they are enlarged is the view's matter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from tailor.stratify import stratified
from tailor.task import Facts, Pixels, Split, Task

FACTS = Facts(
    title="scikit-learn's handwritten digits",
    classes=10,
    source="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    licence="CC BY 4.0",
)
TEST_SHARE = 0.3
TEST_SEED = 0


def read(root: Path, *, download: bool) -> Task:
    """Open the digits; they lie in scikit-learn, so both arguments are unused."""
    values, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16, (1797,)
    images = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    every = Split(Pixels(images, "digits"), torch.from_numpy(labels))
    train, test = stratified(every.labels, TEST_SHARE, TEST_SEED)
    return Task(
        name="digits",
        classes=tuple("0123456789"),
        splits={"train": every.subset(train), "test": every.subset(test)},
        mean=(0.305, 0.305, 0.305),
        std=(0.376, 0.376, 0.376),
    )
