"""The Visual Decathlon: its ten domains, its score, and what was published on it.

A domain earns ``alpha * max(0, Emax - E)^2`` points: E is the test error, Emax twice the error of
plain fine-tuning, and ``alpha = 1000 / Emax^2``. A perfect domain has 1000 points, fine-tuning 250,
twice its error or more none. Where fine-tuning errs little (gtsrb, svhn) a point of accuracy is
worth hundreds, elsewhere ten. The same formula scores any other set of domains against a
fine-tuning of its own. Left out: reading images (``datasets/_decathlon.py``), predictions
(``submission.py``), the published rows (``decathlon_table.py``).

Sources: Rebuffi, Bilen, Vedaldi, Learning multiple visual domains with residual adapters, NIPS
2017 (protocol, score, fine-tuning's row); numbers of images as in TensorFlow Datasets'
catalogue; mean and deviation of each domain as published with the residual adapters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tailor import catalog
from tailor.decathlon_table import BEST, PUBLISHED
from tailor.errors import BadInput
from tailor.task import MEAN, STD, Rgb

HIGHEST = 1000.0  # points of a domain without errors
GAMMA = 2
Recipe = Literal["published", "nettailor"]


@dataclass(frozen=True)
class Domain:
    """One of the ten: numbers of images, colours in 0..1, and fine-tuning's accuracy."""

    number: int  # 1 to 10; ids of images and classes begin with it
    title: str
    classes: int
    train: int  # images
    val: int
    test: int
    mean: Rgb
    std: Rgb
    baseline: float  # percent of test images that the published fine-tuning gets right

    @property
    def emax(self) -> float:
        """The error, in 0..1, from which on there are no points."""
        return 2 * (1 - self.baseline / 100)

    @property
    def alpha(self) -> float:
        """Points per squared error below ``emax``."""
        return HIGHEST / self.emax**GAMMA


# fmt: off
DOMAINS: Mapping[str, Domain] = MappingProxyType({
    "aircraft": Domain(
        1, "FGVC-Aircraft: variants of aeroplanes", 100, 3334, 3333, 3333,
        (0.47983041, 0.51074066, 0.53437998), (0.21070221, 0.20508901, 0.23729657), 60.34),
    "cifar100": Domain(
        2, "CIFAR-100: small photographs", 100, 40000, 10000, 10000,
        (0.50705882, 0.48666667, 0.44078431), (0.26745098, 0.25647059, 0.27607843), 82.12),
    "daimlerpedcls": Domain(
        3, "Daimler: pedestrian or not", 2, 23520, 5880, 19600,
        (0.48203529, 0.48203529, 0.48203529), (0.23612616, 0.23612616, 0.23612616), 92.82),
    "dtd": Domain(
        4, "Describable Textures", 47, 1880, 1880, 1880,
        (0.52696497, 0.47025164, 0.42396662), (0.25226877, 0.24091760, 0.24994090), 55.53),
    "gtsrb": Domain(
        5, "German traffic signs", 43, 31367, 7842, 12630,
        (0.33921263, 0.31178360, 0.32047045), (0.27560347, 0.26576119, 0.27089863), 97.53),
    "imagenet12": Domain(
        6, "ImageNet, ILSVRC 2012", 1000, 1232167, 49000, 48238, MEAN, STD, 59.87),
    "omniglot": Domain(
        7, "Omniglot: handwritten characters", 1623, 17853, 6492, 8115,
        (0.08099839, 0.08099839, 0.08099839), (0.27046935, 0.27046935, 0.27046935), 87.69),
    "svhn": Domain(
        8, "Street View House Numbers", 10, 47217, 26040, 26032,
        (0.43768210, 0.44376970, 0.47280442), (0.19803012, 0.20101562, 0.19703614), 96.55),
    "ucf101": Domain(
        9, "UCF101: actions, as dynamic images", 101, 7585, 1952, 3783,
        (0.49953101, 0.49880386, 0.49981996), (0.10898684, 0.10810246, 0.10679939), 51.20),
    "vgg-flowers": Domain(
        10, "Oxford 102 flowers", 102, 1020, 1020, 6149,
        (0.43414682, 0.38309883, 0.29714763), (0.28509808, 0.23842338, 0.26396330), 81.41),
})
# fmt: on
@dataclass(frozen=True)
class DomainScore:
    """What one domain earned."""

    accuracy: float  # percent
    score: float  # points, 0 to 1000
    baseline: float  # percent, of fine-tuning
    best: float | None = None  # points of the best published row; None: no published domain
    lost: float | None = None  # points behind that row; negative: ahead of it
    share: float | None = None  # of all points behind; None where the total is not behind


@dataclass(frozen=True)
class Standing:
    """A published row over the domains of a score."""

    method: str
    total: float
    paper: str


@dataclass(frozen=True)
class Score:
    """Points in total and per domain, over the domains that there are."""

    total: float
    domains: dict[str, DomainScore]
    missing: tuple[str, ...]
    best: str | None = None  # published method that the domains are compared with
    published: tuple[Standing, ...] = ()  # all rows over the same domains, best first

    @property
    def rank(self) -> int | None:
        """Place among the published rows, from 1; None where there is no comparison."""
        return 1 + sum(r.total > self.total for r in self.published) if self.published else None


def points(accuracy: float, baseline: float) -> float:
    """The points of one domain.

    Args:
        accuracy, baseline: percent right, here and of fine-tuning; ``baseline`` below 100.
    """
    emax = 2 * (1 - baseline / 100)
    return HIGHEST / emax**GAMMA * max(0.0, emax - (1 - accuracy / 100)) ** GAMMA


def accuracy_for(score: float, baseline: float) -> float:
    """The inverse of ``points`` for 0 < ``score``: percent right."""
    emax = 2 * (1 - baseline / 100)
    return 100 * (1 - emax + math.sqrt(score * emax**GAMMA / HIGHEST))


def score(accuracy: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> Score:
    """Score any domains; those that are missing are named and earn nothing.

    The best published row loses nothing; a domain's ``lost`` is that row's points there less ours,
    and its ``share`` is ``lost`` over the sum of all ``lost`` (what we are behind in total): what
    part of the way to the best published total lies in this domain. Shares sum to 1; where we are
    ahead in a domain its share is negative, where we are ahead in total there are none.

    Args:
        accuracy: percent of test images right, by domain.
        baseline: the same of fine-tuning; its domains are the decathlon then, and nothing is
            compared with published rows. The published fine-tuning of ``DOMAINS`` by default.

    Raises:
        BadInput: a domain that the baseline does not have, an accuracy outside 0 to 100, or a
            baseline without errors, against which there is no score.
    """
    reference = {n: d.baseline for n, d in DOMAINS.items()} if baseline is None else dict(baseline)
    _check(accuracy, reference, own=baseline is not None)
    here = [name for name in reference if name in accuracy]
    earned = {name: points(accuracy[name], reference[name]) for name in here}
    published: tuple[Standing, ...] = ()
    best: dict[str, float] = {}
    if baseline is None:
        best = {name: points(BEST.accuracy[name], reference[name]) for name in here}
        totals = (
            Standing(r.method, sum(points(r.accuracy[n], reference[n]) for n in here), r.paper)
            for r in PUBLISHED
        )
        published = tuple(sorted(totals, key=lambda standing: -standing.total))
    behind = sum(best.values()) - sum(earned.values()) if best else 0.0
    domains = {}
    for name in here:
        theirs = best.get(name)
        lost = None if theirs is None else theirs - earned[name]
        share = None if lost is None or behind <= 0 else lost / behind
        domains[name] = DomainScore(
            accuracy[name], earned[name], reference[name], theirs, lost, share
        )
    missing = tuple(name for name in reference if name not in accuracy)
    method = BEST.method if baseline is None else None
    return Score(sum(earned.values()), domains, missing, method, published)


def _check(accuracy: Mapping[str, Any], reference: Mapping[str, Any], *, own: bool) -> None:
    if not reference:
        raise BadInput("the baseline names no domain: give fine-tuning's accuracy of one or more")
    if not accuracy:
        raise BadInput("no domain has an accuracy: give one or more of " + ", ".join(reference))
    for name in accuracy:
        if name not in reference:
            shown_by = "the baseline" if own else "tailor list tasks 'decathlon:*'"
            raise catalog.unknown("domain", name, reference, shown_by=shown_by)
    for where, numbers in (("accuracy", accuracy), ("baseline", reference)):
        for name, value in numbers.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= 100:
                raise BadInput(f"{where} of {name} is {value!r}: give percent, from 0 to 100")
    for name, value in reference.items():
        if value == 100:
            raise BadInput(
                f"baseline of {name} is 100 %: twice no error is no scale to score on; measure "
                "fine-tuning on more images, or leave the domain out"
            )


# Whole images are seen, nothing is mirrored: signs and characters have a handedness.
_WHOLE = ("gtsrb", "omniglot", "svhn")


def images_for(domain: str, recipe: Recipe = "published") -> dict[str, Any]:
    """How a recipe shows a domain's images: fields of ``tailor.options.Images``.

    ``published`` is that of residual adapters: 72 px whole for gtsrb, omniglot, svhn; otherwise a
    window of 64 px, mirrored or not. ``nettailor`` augments more: whole squares shifted by up to
    8 px over a mirrored border, colours of traffic signs changed. The input's side ``px`` differs
    between domains.

    One deviation: of an image that is not square the middle square is stored, so windows never
    lie in the ends of its long side. ``squash`` is as published.

    Raises:
        BadInput: unknown domain or recipe.

    Source: Rebuffi et al., NIPS 2017; Morgado & Vasconcelos, CVPR 2019; their programs.
    """
    if domain not in DOMAINS:
        raise catalog.unknown("domain", domain, DOMAINS, shown_by="tailor list tasks 'decathlon:*'")
    own = {"resize": 72, "normalize": "task"}
    window = {**own, "px": 64, "crop": "random", "flip": True}
    whole = {**own, "px": 72, "crop": "none", "flip": False}
    shifted = {**own, "px": 72, "squash": True, "crop": "reflect", "pad": 8, "flip": True}
    if recipe == "published":
        return whole if domain in _WHOLE else window
    if recipe != "nettailor":
        raise BadInput(f"recipe is {recipe!r}: use published or nettailor")
    special: dict[str, dict[str, Any]] = {
        "svhn": {**window, "flip": False},
        "omniglot": {**window, "flip": False},
        "aircraft": shifted,
        "daimlerpedcls": shifted,
        "cifar100": shifted,
        "gtsrb": {**shifted, "flip": False, "color": 0.5, "contrast": 0.2, "saturation": 0.2},
        "dtd": {**whole, "flip": True},
    }
    return special.get(domain, window)
