"""PASCAL VOC 2012 as its makers ship it: image lists, and an XML file of objects per image.

torchvision's reader finds the files; what is in them is read here, because it is not checked
there. Nothing of an image but its path is kept. The labels of the official test images are not
public, so the two readers that build on this take the list "train" as train and "val" as test.
Coordinates count pixels from 1 and include the last one; some have decimals.

Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tailor.datasets._torchvision import Known, construct
from tailor.errors import BadInput, first_line

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
LICENCE = "Flickr's terms of use"
KNOWN = Known(
    {"train": {"image_set": "train"}, "test": {"image_set": "val"}},
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar "
    "(it holds VOCdevkit/VOC2012)",
)
SLACK = 1.0  # pixels that a box may exceed its image by; it is cut then
Box = tuple[int, int, int, int]  # left, top, right, bottom; counted from 0, without the last


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One annotated object."""

    label: int  # position in `CLASSES`
    difficult: bool  # too hard to recognise to be counted, as its annotators found
    box: tuple[float, float, float, float]  # as written: xmin, ymin, xmax, ymax
    size: tuple[float, float] | None  # of the image as annotated: width, height
    path: Path  # of the annotation
    number: int  # of the object within it, from 1

    def pixels(self, size: tuple[float, float] | None = None) -> Box:
        """The box in whole pixels, cut to the image.

        Args:
            size: of the image; as annotated by default.

        Raises:
            BadInput: it is empty, or more than `SLACK` outside.
        """
        width, height = size or self.size or (math.inf, math.inf)
        xmin, ymin, xmax, ymax = self.box
        left, top = max(round(xmin), 1) - 1, max(round(ymin), 1) - 1
        right, bottom = int(min(round(xmax), width)), int(min(round(ymax), height))
        beyond = max(1 - xmin, 1 - ymin, xmax - width, ymax - height)
        if beyond > SLACK or left >= right or top >= bottom:
            raise BadInput(
                f"{self.path} object {self.number} ({CLASSES[self.label]}) has the box xmin "
                f"{xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}, which is empty or not "
                f"inside its image of {width:g}x{height:g} pixels: correct the annotation"
            )
        return left, top, right, bottom


def open_lists(root: Path, *, download: bool, name: str) -> dict[str, list[tuple[Path, Path]]]:
    """(image, annotation) of every image of our splits.

    Raises:
        BadInput: the set is not below ``root``; the message says what to fetch.
    """
    splits = {}
    for split, arguments in KNOWN.splits.items():
        found = construct("VOCDetection", KNOWN, arguments, root, download=download, name=name)
        pairs = zip(found.images, found.annotations, strict=True)
        splits[split] = [(Path(image), Path(annotation)) for image, annotation in pairs]
    return splits


def things(path: Path) -> list[Thing]:
    """The objects of an annotation, in its order.

    Raises:
        BadInput: the file is missing or no XML, an unknown class, or a box that is no four
            numbers; the message names file and object.
    """
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        raise BadInput(
            f"annotation {path} cannot be read ({error.strerror}): unpack the archive again"
        ) from error
    # An unknown encoding is a LookupError or a ValueError.
    except (ET.ParseError, LookupError, ValueError) as error:
        raise BadInput(
            f"annotation {path} is not XML ({first_line(error)}): unpack the archive again"
        ) from error
    size = _size(root)
    # Direct children only: people have parts (head, hand) with names and boxes of their own.
    return [_thing(node, size, path, k) for k, node in enumerate(root.findall("object"), start=1)]


def _thing(node: ET.Element, size: tuple[float, float] | None, path: Path, number: int) -> Thing:
    name = node.findtext("name", "").strip()
    if name not in CLASSES:
        raise BadInput(
            f"{path} object {number} is of class {name!r}, none of the {len(CLASSES)} of VOC 2012 "
            f"({CLASSES[0]} to {CLASSES[-1]}): correct the annotation"
        )
    written = [
        node.findtext(f"bndbox/{side}", "").strip() for side in ("xmin", "ymin", "xmax", "ymax")
    ]
    try:
        xmin, ymin, xmax, ymax = (float(value) for value in written)
        if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
            raise ValueError
    except ValueError as error:
        raise BadInput(
            f"{path} object {number} ({name}) has the box {written}, not four numbers xmin, ymin, "
            "xmax, ymax: correct the annotation"
        ) from error
    return Thing(
        label=CLASSES.index(name),
        difficult=node.findtext("difficult", "0").strip() == "1",
        box=(xmin, ymin, xmax, ymax),
        size=size,
        path=path,
        number=number,
    )


def _size(root: ET.Element) -> tuple[float, float] | None:
    try:
        width, height = (float(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
    except ValueError:
        return None  # the image will tell
    return (width, height) if min(width, height) >= 1 else None
