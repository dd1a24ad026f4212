"""Small samples of public data sets, drawn: for a machine without the data and without network.

Two things per set, kept apart: a writer of its files, as its makers publish them, and a drawer of
images that a small network can learn to tell apart. Nothing drawn resembles a photograph: a
number on a sample says that the program runs, not how well a method does. A written folder is
marked as a sample (`tailor/datasets/_sample.py`), and so are the names of its tasks.

- SVHN: digits in matplotlib's fonts, with neighbours that are cut off, on a noisy background.
- Flowers-102: 17 colours times 6 forms of blossoms on green.
- VOC 2012: scenes with outlines of 10 kinds, solid or hollow; the pale ones are "difficult".
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.io import savemat

from tailor.datasets import _sample, _voc

Array = npt.NDArray[Any]
Random = np.random.Generator
Colour = tuple[int, int, int]
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
HUES, FORMS = 17, 6  # 102 blossoms
# Petals, their width over their length, and the radius of the centre over that of the blossom.
BLOSSOMS = (
    (4, 0.9, 0.2),
    (5, 0.6, 0.45),
    (6, 0.3, 0.15),
    (8, 0.45, 0.3),
    (12, 0.2, 0.5),
    (3, 0.7, 0.1),
)
KINDS = len(_voc.CLASSES)  # outlines, each solid and hollow


@dataclass(frozen=True)
class Marked:
    """An object in a scene: its class, and its box in pixels from 1, with the last one."""

    name: str
    box: tuple[int, int, int, int]  # xmin, ymin, xmax, ymax
    difficult: bool = False


# Writers: the files as they are published.


def write_svhn(root: Path, splits: Mapping[str, tuple[Array, Array]]) -> None:
    """train_32x32.mat and test_32x32.mat from (n, 32, 32, 3) uint8 and (n,) digits."""
    root.mkdir(parents=True, exist_ok=True)
    files = []
    for split, (pixels, digits) in splits.items():
        files.append(root / f"{split}_32x32.mat")
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)  # zero is class 10 there
        savemat(files[-1], {"X": pixels.transpose(1, 2, 3, 0), "y": labels[:, None]})
    _sample.mark(root, files)


def write_flowers(
    root: Path, images: Sequence[Image.Image], labels: Array, ids: Mapping[str, Sequence[int]]
) -> None:
    """flowers-102/ from images, their classes from 0, and the image numbers of each split.

    Args:
        root: folder that holds flowers-102.
        images: image number i + 1 is ``images[i]``.
        labels: (n,) classes, from 0.
        ids: image numbers, from 1, of "trnid", "valid" and "tstid".
    """
    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, start=1):
        image.save(base / "jpg" / f"image_{number:05d}.jpg", quality=92)
    savemat(base / "imagelabels.mat", {"labels": labels[None] + 1})
    savemat(base / "setid.mat", {name: np.array(of)[None] for name, of in ids.items()})
    _sample.mark(root, [base / "imagelabels.mat", base / "setid.mat"])


def write_voc(
    root: Path, splits: Mapping[str, Sequence[tuple[Image.Image, Sequence[Marked]]]]
) -> None:
    """VOCdevkit/VOC2012/ from the scenes of the image lists "train" and "val"."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for k, (split, scenes) in enumerate(splits.items()):
        names = [f"{2008 + k}_{i:06d}" for i in range(len(scenes))]
        for name, (image, objects) in zip(names, scenes, strict=True):
            image.save(base / "JPEGImages" / f"{name}.jpg", quality=92)
            tree = ET.ElementTree(_annotation(name, image, objects))
            ET.indent(tree)
            tree.write(base / "Annotations" / f"{name}.xml")
        listed = "".join(f"{name}\n" for name in names)
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text(listed)
    _sample.mark(root)


def _annotation(name: str, image: Image.Image, objects: Sequence[Marked]) -> ET.Element:
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "VOC2012"
    ET.SubElement(root, "filename").text = f"{name}.jpg"
    size = ET.SubElement(root, "size")
    for tag, value in zip(("width", "height", "depth"), (*image.size, 3), strict=True):
        ET.SubElement(size, tag).text = str(value)
    for thing in objects:
        node = ET.SubElement(root, "object")
        ET.SubElement(node, "name").text = thing.name
        ET.SubElement(node, "difficult").text = str(int(thing.difficult))
        box = ET.SubElement(node, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True):
            ET.SubElement(box, tag).text = str(value)
    return root


# Samples: what is drawn, and how many.


def svhn(root: Path, *, train: int = 1500, test: int = 600) -> None:
    """Draw so many images, each a function of its number, equally many of every digit."""
    write_svhn(
        root,
        {
            split: (
                np.stack([np.asarray(digit(i % 10, _random(k, i))) for i in range(count)]),
                np.arange(count) % 10,
            )
            for k, (split, count) in enumerate((("train", train), ("test", test)))
        },
    )


def flowers(root: Path, *, train: int = 10, val: int = 3, test: int = 5) -> None:
    """Draw so many images of each of the 102 classes; the real set has 10, 10 and 20 or more."""
    per_class = train + val + test
    labels = np.arange(HUES * FORMS * per_class) % (HUES * FORMS)
    images = [blossom(label, _random(2, i)) for i, label in enumerate(labels.tolist())]
    numbers = np.arange(1, len(labels) + 1)
    parts = np.split(numbers, np.cumsum([train, val]) * HUES * FORMS)
    ids = dict(zip(("trnid", "valid", "tstid"), (p.tolist() for p in parts), strict=True))
    write_flowers(root, images, labels, ids)


def voc12(root: Path, *, train: int = 800, test: int = 300) -> None:
    """Draw so many scenes of one to four objects."""
    write_voc(
        root,
        {
            split: [scene(i, _random(3 + k, i)) for i in range(count)]
            for k, (split, count) in enumerate((("train", train), ("val", test)))
        },
    )


def _random(*numbers: int) -> Random:
    return np.random.default_rng(numbers)


# Drawers: one image, a pure function of its class and of random numbers.


def digit(value: int, random: Random) -> Image.Image:
    """A 32x32 digit in the middle, parts of its neighbours left and right of it."""
    side = 96  # drawn three times as large
    mask = Image.new("L", (side, side))
    font = _font(FONTS[random.integers(len(FONTS))], int(random.integers(56, 84)))
    step, pen = 1.1 * font.getlength("0"), ImageDraw.Draw(mask)
    for place, text in ((-1, random.integers(10)), (0, value), (1, random.integers(10))):
        if place == 0 or random.random() < 0.5:
            where = (side / 2 + place * step, side / 2)
            pen.text(where, str(text), fill=255, font=font, anchor="mm")
    mask = mask.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR)
    mask = mask.filter(ImageFilter.GaussianBlur(random.uniform(0, 3)))
    back, front = _two_colours(random)
    image = Image.composite(
        Image.new("RGB", mask.size, front), _ground(mask.size, back, random), mask
    )
    return image.resize((32, 32), Image.Resampling.BOX)


def blossom(label: int, random: Random) -> Image.Image:
    """A 96x96 picture of a flower of one of 17 colours and 6 forms, on green."""
    side = 96
    petals, slim, heart = BLOSSOMS[label // HUES]
    image = _ground((side, side), (50, 110, 50), random)
    pen = ImageDraw.Draw(image)
    length = side * random.uniform(0.3, 0.45)
    x, y = side / 2 + random.uniform(-8, 8, size=2)
    turn = random.uniform(0, 2 * math.pi)
    hue = label % HUES / HUES + random.uniform(-0.008, 0.008)
    colour = _rgb(hue, random.uniform(0.75, 1), random.uniform(0.8, 1))
    edge = _rgb(hue, 1, 0.55)
    around = np.linspace(0, 2 * math.pi, 20)
    along, across = (1 + np.cos(around)) / 2, slim * np.sin(around) / 2
    for k in range(petals):
        angle = turn + 2 * math.pi * k / petals
        cos, sin = length * math.cos(angle), length * math.sin(angle)
        points = np.column_stack([x + cos * along - sin * across, y + sin * along + cos * across])
        pen.polygon([tuple(p) for p in points.tolist()], fill=colour, outline=edge)
    radius = heart * length
    centre = (240, 220, 60) if label % 2 else (70, 40, 30)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=centre)
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0, 1)))


def scene(number: int, random: Random) -> tuple[Image.Image, list[Marked]]:
    """One to four objects; the first is of class ``number`` modulo 20 and never difficult."""
    size = (160, 120) if random.random() < 0.7 else (120, 160)
    back, front = _two_colours(random)
    image = _ground(size, back, random)
    taken, objects = Image.new("L", size), []
    for k in range(int(random.integers(1, 5))):
        kind = int(random.integers(KINDS)) if k else number % KINDS
        difficult = bool(k) and bool(random.random() < 0.25)
        for _ in range(8):  # places that may be taken already
            mask = _outline(kind, size, random)
            box = mask.getbbox()
            if box is not None and taken.crop(box).getbbox() is None:
                break
        else:
            continue
        left, top, right, bottom = box
        taken.paste(255, box)
        objects.append(Marked(_voc.CLASSES[kind], (left + 1, top + 1, right, bottom), difficult))
        if difficult:
            mask = mask.point(lambda value: value // 5)
        image.paste(front, mask=mask)
        _, front = _two_colours(random, back)
    return image, objects


def _outline(kind: int, size: tuple[int, int], random: Random) -> Image.Image:
    """White on black: outline ``kind`` // 2 somewhere in the picture, solid or hollow."""
    radius = random.uniform(20, 34)
    turn = math.radians(random.uniform(-12, 12))
    x, y = (random.uniform(radius + 8, edge - radius - 8) for edge in size)
    across, down = np.array(OUTLINES[kind // 2]).T * radius
    cos, sin = math.cos(turn), math.sin(turn)
    points = np.column_stack([x + cos * across - sin * down, y + sin * across + cos * down])
    mask = Image.new("L", size)
    fill = None if kind % 2 else 255
    corners = [tuple(p) for p in points.tolist()]
    ImageDraw.Draw(mask).polygon(corners, fill=fill, outline=255, width=5)
    return mask


def _round(count: int, inner: float = 1.0, start: float = -0.25, turns: float = 1.0) -> list[Any]:
    """Points on a circle, every other one at ``inner`` of its radius, from ``start`` turns."""
    angles = [2 * math.pi * (start + turns * k / count) for k in range(count)]
    radii = [1.0 if k % 2 == 0 else inner for k in range(count)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


HALF_PLUS = [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)]
OUTLINES: tuple[list[Any], ...] = (
    _round(24),  # disc
    [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],  # square
    _round(3),  # triangle
    _round(4),  # diamond
    _round(10, inner=0.45),  # star
    [*HALF_PLUS, *((-x, -y) for x, y in HALF_PLUS)],
    _round(13, start=0.5, turns=0.5 * 13 / 12),  # half a disc
    [(-1, -0.35), (0.1, -0.35), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.35), (-1, 0.35)],  # arrow
    [(-0.8, -1), (-0.1, -1), (-0.1, 0.3), (0.8, 0.3), (0.8, 1), (-0.8, 1)],  # corner
    [(-0.8, -1), (0.8, -1), (0.2, 0), (0.8, 1), (-0.8, 1), (-0.2, 0)],  # hourglass
)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _two_colours(random: Random, first: Colour | None = None) -> tuple[Colour, Colour]:
    """A colour and another one that is 90 or more of 255 brighter or darker."""
    luma = np.array([0.299, 0.587, 0.114])
    colours = random.integers(0, 256, size=(64, 3))
    if first is not None:
        colours[0] = first
    far = np.abs((colours - colours[0]) @ luma) >= 90
    second = colours[np.argmax(far)] if far.any() else 255 - 255 * (colours[0] > 127)
    return tuple(colours[0].tolist()), tuple(second.tolist())


def _ground(size: tuple[int, int], colour: Colour, random: Random) -> Image.Image:
    """Coarse and fine noise around a colour."""
    coarse = random.uniform(-30, 30, size=(6, 6, 3)) + np.array(colour)
    image = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = pixels + random.uniform(-12, 12, size=(size[1], size[0], 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
