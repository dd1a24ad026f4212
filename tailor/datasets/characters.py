"""Characters drawn from the fonts that matplotlib ships: a source task without a download.

Every image is a pure function of (split, number): a character in a random font, turned,
scaled, sheared and shifted, in a random colour on a flat, graded or noisy background of
clearly different brightness, 32x32 RGB. It is drawn when it is read, about 0.2 ms each.

Classes are the ten digits and those letters that stay themselves at a random scale: no
capital O (a zero), no lower-case c o s v w x z (small capitals) and no l (a capital I).
Test images use four fonts that training never sees. Fonts of symbols, of single sizes or
with old-style digits (cmmi10) are left out.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tailor.task import Facts, Split, Task

CLASSES = tuple("0123456789ABCDEFGHIJKLMNPQRSTUVWXYZabdefghijkmnpqrtuy")
FACTS = Facts(
    title="Characters drawn from matplotlib's fonts",
    classes=len(CLASSES),
    source="DejaVu, STIX and Computer Modern fonts within the matplotlib package",
    licence="free to use (Bitstream Vera, STIX and BaKoMa font licences)",
)
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmr10",
    "cmti10",
    "cmtt10",
)
TEST_FONTS = ("DejaVuSansMono-Oblique", "DejaVuSerif-Italic", "STIXGeneralBol", "cmss10")
PER_CLASS = {"train": 120, "test": 20}

SIDE = 32  # pixels of an image
GLYPH = 48  # pixels of the canvas a glyph is drawn on before it is transformed
FONT = 32  # font size on that canvas; capitals are about 23 pixels high
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
CONTRAST = 90  # least difference in brightness (0..255) between text and background


class Drawn:
    """A source that draws its images: number i is of class i modulo the number of classes."""

    def __init__(self, split: str, fonts: tuple[str, ...]) -> None:
        """Draw for ``split`` ("train" or "test"), with fonts named as matplotlib's files."""
        self.split = split
        self.fonts = fonts

    def read(self, i: int) -> Image.Image:
        """Draw image ``i``."""
        random = np.random.default_rng((("train", "test").index(self.split), i))
        font = self.fonts[random.integers(len(self.fonts))]
        glyph, extent = _glyph(font, CLASSES[i % len(CLASSES)])
        matrix = _affine(extent, random)
        mask = glyph.transform(
            (SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        cover = np.asarray(mask, dtype=np.float32)[..., None] / 255  # (SIDE, SIDE, 1)
        text, background = _colours(random)
        image = cover * text + (1 - cover) * _texture(background, random)
        return Image.fromarray(image.clip(0, 255).astype(np.uint8))

    def where(self, i: int) -> str:
        """Split, number and character."""
        return f"characters {self.split} image {i} ({CLASSES[i % len(CLASSES)]!r})"


def read(root: Path, *, download: bool) -> Task:
    """Open the characters; the fonts come with matplotlib, so both arguments are unused."""
    fonts = {"train": TRAIN_FONTS, "test": TEST_FONTS}
    splits = {
        split: Split(Drawn(split, fonts[split]), list(range(len(CLASSES))) * count)
        for split, count in PER_CLASS.items()
    }
    return Task(
        name="characters",
        classes=CLASSES,
        splits=splits,
        mean=(0.5, 0.5, 0.5),
        std=(0.31, 0.31, 0.31),
    )


@cache
def _glyph(font: str, character: str) -> tuple[Image.Image, float]:
    """The character in white on black, its ink centred, and the longer side of the ink."""
    canvas = Image.new("L", (GLYPH, GLYPH))
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    pen = ImageFont.truetype(str(path), FONT)
    left, top, right, bottom = pen.getbbox(character)
    corner = ((GLYPH - left - right) / 2, (GLYPH - top - bottom) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=pen)
    return canvas, max(right - left, bottom - top)


def _affine(extent: float, random: np.random.Generator) -> tuple[float, ...]:
    """Pillow's six numbers: where on the glyph's canvas each pixel of the image looks."""
    angle = math.radians(random.uniform(-20, 20))
    zoom = random.uniform(0.6, min(1.25, SIDE / extent))  # capitals 14 to 29 pixels high
    shear = random.uniform(-0.25, 0.25)
    across, down = random.uniform(-3, 3, size=2)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    a, b = cos, sin + shear * cos
    d, e = -sin, cos - shear * sin
    x, y = SIDE / 2 + across, SIDE / 2 + down
    return (a, b, GLYPH / 2 - a * x - b * y, d, e, GLYPH / 2 - d * x - e * y)


def _colours(random: np.random.Generator) -> tuple[npt.NDArray[np.float32], ...]:
    """Two RGB colours that differ by `CONTRAST` or more in brightness."""
    pairs = random.uniform(0, 255, size=(32, 2, 3)).astype(np.float32)
    difference = np.abs((pairs[:, 0] - pairs[:, 1]) @ LUMA)
    # A third of all pairs is far enough apart; black on white never fails.
    pairs[-1], difference[-1] = [[0] * 3, [255] * 3], 255
    first = int(np.argmax(difference >= CONTRAST))
    return pairs[first, 0], pairs[first, 1]


def _texture(
    colour: npt.NDArray[np.float32], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A flat, graded or noisy background of ``colour``, at most 40 brighter or darker."""
    kind = random.integers(3)
    if kind == 0:
        return np.broadcast_to(colour, (SIDE, SIDE, 3))
    if kind == 1:
        angle = random.uniform(0, 2 * math.pi)
        steps = np.linspace(-28, 28, SIDE, dtype=np.float32)
        slope = math.cos(angle) * steps[:, None] + math.sin(angle) * steps[None, :]
        return colour + slope[..., None].astype(np.float32)
    grain = random.uniform(-40, 40, size=(SIDE, SIDE, 1))
    return colour + grain.astype(np.float32)
