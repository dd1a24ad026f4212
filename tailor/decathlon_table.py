"""Published results on all ten domains of the Visual Decathlon, row by row.

Test images at 72 px, one network of every domain, accuracies as printed. Each row's printed mean
and score agree with those computed from its accuracies: the mean to 0.02 points, the score to 3,
because the challenge's server knew more decimals. Rows whose accuracies nobody could check are left
out. How a row is scored is in ``decathlon.py``.

Sources: the papers that each row names; several are quoted there from Li et al., 2022, or from
Morgado & Vasconcelos, CVPR 2019, table 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Columns of published tables.
ORDER = (
    "imagenet12",
    "aircraft",
    "cifar100",
    "daimlerpedcls",
    "dtd",
    "gtsrb",
    "vgg-flowers",
    "omniglot",
    "svhn",
    "ucf101",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One published result over all ten domains."""

    method: str
    params: float | None  # networks of all domains together, in backbones; None: not stated so
    accuracy: Mapping[str, float]  # percent of test images, as printed
    score: int  # as printed; the server computed it from unrounded errors
    paper: str


def _row(method: str, params: float | None, score: int, paper: str, *accuracy: float) -> Row:
    return Row(method, params, dict(zip(ORDER, accuracy, strict=True)), score, paper)


_RA17, _RA18 = "Rebuffi et al., NIPS 2017", "Rebuffi et al., CVPR 2018"
# fmt: off
PUBLISHED: tuple[Row, ...] = (
    _row("scratch", 10, 1625, _RA17,
         59.87, 57.10, 75.73, 91.20, 37.77, 96.55, 56.30, 88.74, 96.63, 43.27),
    _row("scratch+", 11, 1826, _RA17,
         59.67, 59.59, 76.08, 92.45, 39.63, 96.90, 56.66, 88.74, 96.78, 44.17),
    _row("feature extractor", 1, 544, _RA17,
         59.67, 23.31, 63.11, 80.33, 45.37, 68.16, 73.69, 58.79, 43.54, 26.80),
    _row("fine-tuning", 10, 2500, _RA17,
         59.87, 60.34, 82.12, 92.82, 55.53, 97.53, 81.41, 87.69, 96.55, 51.20),
    _row("learning without forgetting", 10, 2515, _RA17,
         59.87, 61.15, 82.23, 92.34, 58.83, 97.57, 83.05, 88.08, 96.10, 50.04),
    _row("batch-norm adaptation", 1, 1363, _RA17,
         59.87, 43.05, 78.62, 92.07, 51.60, 95.82, 74.14, 84.83, 94.10, 43.51),
    _row("series adapters, 2017", 2, 2118, _RA17,
         59.67, 56.68, 81.20, 93.88, 50.85, 97.05, 66.24, 89.62, 96.13, 47.45),
    _row("series adapters, 2017, decay", 2, 2621, _RA17,
         59.67, 61.87, 81.20, 93.88, 57.13, 97.57, 81.67, 89.62, 96.13, 50.12),
    _row("series adapters, 2017, all fine-tuned", 2, 2643, _RA17,
         59.23, 63.73, 81.31, 93.30, 57.02, 97.47, 83.43, 89.82, 96.17, 50.28),
    _row("series adapters, 2017, domain predicted", 2.5, 2503, _RA17,
         59.18, 63.52, 81.12, 93.29, 54.93, 97.20, 82.29, 89.82, 95.99, 50.10),
    _row("series adapters, 2017, large", 12, 3131, _RA17,
         67.00, 67.69, 84.69, 94.28, 59.41, 97.43, 84.86, 89.92, 96.59, 52.39),
    _row("series adapters", 2, 3159, _RA18,
         60.32, 61.87, 81.22, 93.88, 57.13, 99.27, 81.67, 89.62, 96.57, 50.12),
    # Later tables print 81.91 for CIFAR-100.
    _row("parallel adapters", 2, 3412, _RA18,
         60.32, 64.21, 81.92, 94.73, 58.83, 99.38, 84.68, 89.21, 96.54, 50.94),
    _row("parallel adapters, SVD", 1.5, 3398, _RA18,
         60.32, 66.04, 81.86, 94.23, 57.82, 99.24, 85.74, 89.25, 96.62, 52.50),
    _row("deep adaptation networks", 2.17, 2851, "Rosenfeld & Tsotsos, TPAMI 2018",
         57.74, 64.12, 80.07, 91.30, 56.54, 98.46, 86.05, 89.67, 96.77, 49.38),
    _row("Piggyback", 1.28, 2838, "Mallya et al., ECCV 2018",
         57.69, 65.29, 79.87, 96.99, 57.45, 97.27, 79.09, 87.63, 97.24, 47.48),
    _row("MTAN", 1.74, 2941, "Liu et al., CVPR 2019",
         63.90, 61.81, 81.59, 91.63, 56.44, 98.80, 81.04, 89.83, 96.88, 50.63),
    _row("NetTailor", None, 3744, "Morgado & Vasconcelos, CVPR 2019",
         61.42, 75.07, 81.84, 94.68, 61.28, 99.52, 86.53, 90.09, 96.44, 49.54),
    _row("URL", 1, 3626, "Li et al., Universal Representations, 2022",
         61.45, 74.35, 80.45, 97.55, 59.57, 98.24, 86.73, 89.72, 96.95, 49.01),
    _row("URL with adapters", 2, 4005, "Li et al., Universal Representations, 2022",
         61.97, 77.17, 82.31, 97.58, 60.69, 98.75, 87.28, 90.40, 97.14, 51.89),
)
# fmt: on
BEST = max(PUBLISHED, key=lambda row: row.score)
