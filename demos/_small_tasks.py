"""Ten small tasks without a download: for notebooks, where one backbone serves many.

Two are scikit-learn's handwritten digits under two questions, two are patches of the photographs
that it ships, six are drawn. They differ in what a network must look at (shape, colour, texture,
direction), so that they need not change the same layers. An accuracy on a drawn task says that the
program runs, not how well a method does on photographs.

Image i is a function of its task, split and number alone. Test photographs are another part of the
picture than training ones, and test characters are set in other fonts.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from demos import _samples
from tailor.datasets import characters
from tailor.run import write_bytes, write_json

PX = 32  # side of every image
MIDDLE = (205, 305)  # columns through the middle of what the two photographs show
TRAIN, TEST = "train", "test"
Drawer = Callable[[int, str, np.random.Generator], tuple[Image.Image, int]]


@dataclass(frozen=True)
class Small:
    """A task: what its pictures show, its classes, and picture number i of a split with a label."""

    shows: str
    classes: tuple[str, ...]
    draw: Drawer


def write(name: str, folder: Path, *, train: int = 800, test: int = 400) -> None:
    """Make a task of ``SMALL`` in the format of ``npz:FOLDER``; one that is there stays.

    Args:
        name: a key of ``SMALL``.
        folder: holds train.npz, test.npz and dataset.json afterwards.
        train, test: numbers of images.
    """
    if (folder / "dataset.json").exists():  # written last
        return
    for place, (split, count) in enumerate(((TRAIN, train), (TEST, test))):
        files, labels = [], []
        for i in range(count):
            image, label = SMALL[name].draw(i, split, np.random.default_rng((place, i)))
            file = io.BytesIO()
            image.convert("RGB").resize((PX, PX), Image.Resampling.BOX).save(file, "PNG")
            files.append(np.frombuffer(file.getvalue(), np.uint8))
            labels.append(label)
        archive = io.BytesIO()
        offsets = np.cumsum([0, *(len(file) for file in files)])
        np.savez(archive, data=np.concatenate(files), offsets=offsets, label=np.array(labels))
        write_bytes(folder / f"{split}.npz", archive.getvalue())
    facts = {"name": name, "task": "classify", "classes": SMALL[name].classes}
    write_json(folder / "dataset.json", facts)


@cache
def _handwritten() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    found = load_digits()
    return (found.images * 15.9375).astype(np.uint8), found.target  # 0..16 to 0..255


@cache
def _photographs() -> list[npt.NDArray[np.uint8]]:
    return list(load_sample_images().images)


def _parity(i: int, split: str, _: np.random.Generator) -> tuple[Image.Image, int]:
    pixels, digits = _handwritten()
    i = 2 * i + (split == TEST)
    large = Image.fromarray(pixels[i]).resize((PX, PX), Image.Resampling.BICUBIC)
    return large, int(digits[i]) % 2


def _patch(which: int, split: str, random: np.random.Generator) -> Image.Image:
    """Of photograph ``which``: from right of a middle line to train on, from left of it to test."""
    whole, middle = _photographs()[which], MIDDLE[which]
    part = whole[:, middle:] if split == TRAIN else whole[:, :middle]
    for _ in range(20):  # most places of sky or leaves show nothing; the last try is taken
        side = int(random.integers(64, 160))
        top, left = (int(random.integers(edge - side)) for edge in part.shape[:2])
        patch = part[top : top + side, left : left + side]
        if patch.mean(axis=2).std() > 25:
            break
    return Image.fromarray(patch)


def _upright(i: int, split: str, random: np.random.Generator) -> tuple[Image.Image, int]:
    return _patch(0, split, random).rotate(90 * (i % 4)), i % 4


def _scenes(i: int, split: str, random: np.random.Generator) -> tuple[Image.Image, int]:
    return _patch(i % 2, split, random), i % 2


def _numbers(i: int, split: str, random: np.random.Generator) -> tuple[Image.Image, int]:
    return _samples.digit(i % 10, random), i % 10


def _kinds(i: int, split: str, _: np.random.Generator) -> tuple[Image.Image, int]:
    fonts = {TRAIN: characters.TRAIN_FONTS, TEST: characters.TEST_FONTS}[split]
    i = 7 * i  # prime to the number of characters: kinds alternate
    character = characters.CLASSES[i % len(characters.CLASSES)]
    kind = 0 if character.isdigit() else 1 if character.isupper() else 2
    return characters.Drawn(split, fonts).read(i), kind


def _petals(i: int, split: str, random: np.random.Generator) -> tuple[Image.Image, int]:
    label = int(random.integers(_samples.HUES)) + _samples.HUES * (i % _samples.FORMS)
    return _samples.blossom(label, random), i % _samples.FORMS


def _hues(i: int, split: str, random: np.random.Generator) -> tuple[Image.Image, int]:
    label = i % _samples.HUES + _samples.HUES * int(random.integers(_samples.FORMS))
    return _samples.blossom(label, random), i % _samples.HUES


def _shape(i: int, random: np.random.Generator) -> tuple[Image.Image, int]:
    """One drawn outline, cut out of its scene, and its kind: twice the shape, plus 1 if hollow."""
    image, (first, *_) = _samples.scene(i, random)
    left, top, right, bottom = first.box
    return image.crop((left - 7, top - 7, right + 6, bottom + 6)), i % _samples.KINDS


def _outlines(i: int, split: str, random: np.random.Generator) -> tuple[Image.Image, int]:
    image, kind = _shape(i, random)
    return image, kind // 2


def _hollow(i: int, split: str, random: np.random.Generator) -> tuple[Image.Image, int]:
    image, kind = _shape(i, random)
    return image, kind % 2


def _counted(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word} {k}" for k in range(count))


SMALL = {
    "parity": Small("handwritten digits: is it even?", ("even", "odd"), _parity),
    "scenes": Small("patches of two photographs: which one?", ("pagoda", "flower"), _scenes),
    "upright": Small(
        "patches of the first, turned: by how much?", ("0°", "90°", "180°", "270°"), _upright
    ),
    "numbers": Small("drawn digits between others: which?", tuple("0123456789"), _numbers),
    "kinds": Small(
        "drawn characters: of which kind?", ("digit", "capital", "small letter"), _kinds
    ),
    "petals": Small("drawn flowers: which form?", _counted("form", _samples.FORMS), _petals),
    "hues": Small("drawn flowers: which colour?", _counted("hue", _samples.HUES), _hues),
    "outlines": Small("drawn outlines: which shape?", _counted("shape", 10), _outlines),
    "hollow": Small("drawn outlines: solid or hollow?", ("solid", "hollow"), _hollow),
}
