"""A small Visual Decathlon, drawn, in the files of the real one: for machines without it.

As in ``_samples.py`` a writer of the published layout and a drawer of images are kept apart. An
image is a function of its domain, class and number. A folder that was drawn states its own numbers
of images and classes and its tasks are called NAME-sample: a score on it says that the program
runs, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demos import _samples
from tailor.datasets import _sample
from tailor.decathlon import DOMAINS

PX = 72  # short side of every image
SPLITS = ("train", "val", "test")
FIRST = 200_000  # number of a domain's first image, as published


def write(
    root: Path,
    name: str,
    splits: Mapping[str, tuple[Sequence[Image.Image], Sequence[int]]],
    classes: Sequence[str],
    *,
    test_labels: bool = True,
) -> None:
    """Annotations and JPEG files of one domain.

    Args:
        root: gets annotations/ and data/.
        name: of the domain.
        splits: images and their classes, from 0, of "train", "val" and "test".
        classes: their names.
        test_labels: write NAME_test.json, which the challenge keeps to itself, beside
            NAME_test_stripped.json.
    """
    unit = DOMAINS[name].number * 10**7
    running = unit + FIRST
    for split in SPLITS:
        images, labels = splits[split]
        listed, marks = [], []
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            inner = "" if split == "test" else f"{label + 1:04d}/"
            file = f"data/{name}/{split}/{inner}{i + 1:06d}.jpg"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / file, quality=92)
            width, height = image.size
            listed.append({"id": running, "width": width, "height": height, "file_name": file})
            marks.append({"id": running, "image_id": running, "category_id": unit + 1 + label})
            running += 1
        told: dict[str, Any] = {"info": {"description": f"drawn: {name}"}, "images": listed}
        if split == "test":
            _write_json(root, f"{name}_test_stripped", told | {"annotations": []})
        if split != "test" or test_labels:
            named = [
                {"id": unit + 1 + k, "name": text, "supercategory": name}
                for k, text in enumerate(classes)
            ]
            _write_json(root, f"{name}_{split}", told | {"annotations": marks, "categories": named})
    noted = _sample.read_mark(root).get("decathlon", {}) if _sample.is_sample(root) else {}
    numbers = {split: len(splits[split][0]) for split in SPLITS}
    _sample.mark(root, decathlon=noted | {name: {"classes": len(classes)} | numbers})


def _write_json(root: Path, stem: str, value: object) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{stem}.json").write_text(json.dumps(value), encoding="utf-8")


def draw(
    root: Path,
    names: Iterable[str] = tuple(DOMAINS),
    *,
    classes: int = 4,
    train: int = 8,
    val: int = 3,
    test: int = 5,
    test_labels: bool = True,
) -> None:
    """Draw so many images of each class of some domains.

    Args:
        root: a folder of its own.
        names: of the domains.
        classes: of each domain, up to 10; pedestrians have two as ever.
        train, val, test: images of each class.
        test_labels: see ``write``.
    """
    for name in names:
        count = min(classes, DOMAINS[name].classes)
        splits = {}
        for place, (split, each) in enumerate(zip(SPLITS, (train, val, test), strict=True)):
            labels = [i % count for i in range(each * count)]
            images = [picture(name, label, (place, i)) for i, label in enumerate(labels)]
            splits[split] = (images, labels)
        kinds = [f"{name} {k + 1}" for k in range(count)]
        write(root, name, splits, kinds, test_labels=test_labels)


def picture(name: str, label: int, number: tuple[int, ...]) -> Image.Image:
    """A picture of class ``label``, below 10, of a domain: a digit, a blossom, or an outline."""
    random = np.random.default_rng((DOMAINS[name].number, *number))
    if name == "svhn":
        return _samples.digit(label, random).resize((PX, PX), Image.Resampling.BILINEAR)
    if name == "vgg-flowers":
        form, hue = label % _samples.FORMS, (3 * label) % _samples.HUES
        found = _samples.blossom(form * _samples.HUES + hue, random)
        return found.resize((PX, PX), Image.Resampling.BILINEAR)
    if name == "omniglot":
        return _outline(label, (PX, PX), (0, 0, 0), (255, 255, 255), random, width=3)
    if name == "daimlerpedcls":  # nothing, or something in the middle
        grey = [int(v) for v in random.permutation((40, 210))]
        back, front = ((grey[0],) * 3, (grey[1],) * 3)
        if label == 0:
            return Image.new("RGB", (PX, 2 * PX), back)
        return _outline(0, (PX, 2 * PX), back, front, random, width=9)
    size = (PX, PX) if name in ("cifar100", "gtsrb") else (PX + 24, PX)
    tint = int(255 * DOMAINS[name].number / 11)
    back = (tint, int(random.integers(60)), 255 - tint)
    front = (int(random.integers(200, 256)), int(random.integers(200, 256)), 60)
    return _outline(label, size, back, front, random, width=0)


def _outline(
    kind: int,
    size: tuple[int, int],
    back: tuple[int, ...],
    front: tuple[int, ...],
    random: np.random.Generator,
    *,
    width: int,
) -> Image.Image:
    """One of ten outlines near the middle, solid where ``width`` is 0."""
    image = Image.new("RGB", size, back)
    radius = random.uniform(20, 28)
    x, y = (edge / 2 + random.uniform(-5, 5) for edge in size)
    corners = [(x + radius * across, y + radius * down) for across, down in _samples.OUTLINES[kind]]
    pen = ImageDraw.Draw(image)
    if width:
        pen.line([*corners, *corners[:2]], fill=front, width=width, joint="curve")
    else:
        pen.polygon(corners, fill=front)
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.8)))
