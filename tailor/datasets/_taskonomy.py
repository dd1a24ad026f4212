"""`taskonomy:TARGET`: one of the twelve targets of Taskonomy's lifelong sequence, from its files.

    ROOT/taskonomy/rgb/BUILDING/point_3_view_0_domain_rgb.png
    ROOT/taskonomy/TARGET/BUILDING/point_3_view_0_domain_TARGET.png   (class_object: .npy)
    ROOT/taskonomy/mask_valid/BUILDING/point_3_view_0_domain_....png  0 where the mesh has a hole

The download tool writes TARGET/taskonomy/BUILDING, the sample building has TARGET alone; both are
read. ``taskonomy:TARGET`` is the official partition `tiny` (25, 5 and 5 buildings),
``taskonomy:TARGET@NAME`` what ROOT/taskonomy/train_val_test_NAME.csv says (columns id, train, val,
test), ``@all`` every building there is, a tenth each for val and test in the order of their SHA-256
(with fewer than three, points take the part of buildings). Images that lack their label or their
mask are left out.

As published, all values are scaled to [-1, 1]: 0 to -1, the largest number of the file's type to 1;
of reshading the first channel counts, of curvature the first two. Not counted are pixels outside of
the mask and depths of 65535. Of the 18 semantic classes number 0 says that nobody knows: it keeps
its output, so that numbers of parameters are the published ones, and is never counted.

Source: Zamir et al., Taskonomy, CVPR 2018, and the data's README on github.com/StanfordVL.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tailor.errors import BadInput
from tailor.maps import Array
from tailor.target import PIXEL_CLASS, PIXEL_VALUES, SOFT, Target, target
from tailor.task import Files, Split, Task

TITLE = "Taskonomy, Zamir et al., CVPR 2018"
PAGE = "https://github.com/StanfordVL/taskonomy/tree/master/data"
MISSING_DEPTH = 65535  # in 1/512 m: nothing was hit
# fmt: off
TINY = {
    "train": (
        "allensville", "beechwood", "benevolence", "coffeen", "cosmos", "forkland", "hanson",
        "hiteman", "klickitat", "lakeville", "leonardo", "lindenwood", "marstons", "merom",
        "mifflinburg", "newfields", "onaga", "pinesdale", "pomaria", "ranchester", "shelbyville",
        "stockman", "tolstoy", "wainscott", "woodbine",
    ),
    "val": ("collierville", "corozal", "darden", "markleeville", "wiconisco"),
    "test": ("ihlen", "mcdade", "muleshoe", "noxapater", "uvalda"),
}
SEMANTIC = (
    "uncertain", "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table",
    "toilet", "tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
)
# fmt: on

View = tuple[str, int, int]  # building, point, view


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A target: its outputs, what they are, and which pixels count."""

    outputs: tuple[str, ...]
    target: Target = PIXEL_VALUES
    folders: tuple[str, ...] = ()  # other names than its own
    masked: bool = True  # by mask_valid


RGB = ("red", "green", "blue")
# In the published order.
TARGETS = {
    "curvature": Wanted(
        outputs=("k1", "k2"),
        target=target("pixel_values", loss="l2"),
        folders=("principal_curvature",),
    ),
    "segment_semantic": Wanted(outputs=SEMANTIC, target=PIXEL_CLASS, masked=False),
    "reshading": Wanted(outputs=("light",)),
    "keypoints3d": Wanted(outputs=("keypoint",)),
    "keypoints2d": Wanted(outputs=("keypoint",)),
    "edge_texture": Wanted(outputs=("edge",)),
    "edge_occlusion": Wanted(outputs=("edge",)),
    "depth_zbuffer": Wanted(outputs=("depth",)),
    "depth_euclidean": Wanted(outputs=("distance",)),
    "normal": Wanted(outputs=("x", "y", "z"), target=target("pixel_values", flip_signs=(-1, 1, 1))),
    "class_object": Wanted(
        outputs=tuple(f"imagenet {k}" for k in range(1000)), target=SOFT, masked=False
    ),
    "rgb": Wanted(outputs=RGB),
}


class Labels:
    """Label maps in files: `tailor.maps.Maps`."""

    def __init__(self, name: str, paths: Sequence[Path], masks: Sequence[Path]) -> None:
        """Take the files of target ``name``, and as many masks or none."""
        self.name, self.paths, self.masks = name, paths, masks
        self.outputs = len(TARGETS[name].outputs)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> Array:
        """(K, H, W) values in [-1, 1] with NaN where nothing is known, or (H, W) classes."""
        pixels = _pixels(self.paths[i])
        if self.name == "segment_semantic":
            return np.where(pixels == 0, -1, pixels.astype(np.int64))
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[: self.outputs]
        values = planes.astype(np.float32) * (2 / np.iinfo(pixels.dtype).max) - 1
        if self.name.startswith("depth"):
            values[planes == MISSING_DEPTH] = np.nan
        if self.masks:
            mask = _pixels(self.masks[i])
            values[:, (mask if mask.ndim == 2 else mask[..., 0]) == 0] = np.nan
        return values

    def where(self, i: int) -> str:
        """The label's path."""
        return str(self.paths[i])


def read(name: str, root: Path, *, download: bool) -> Task:
    """Open ``taskonomy:name`` below ``root``; nothing is downloaded.

    Raises:
        BadInput: an unknown target or partition, a missing folder or building, or a label file
            that is no array of 1000 probabilities.
    """
    chosen, _, partition = name.partition("@")
    if chosen not in TARGETS:
        raise BadInput(f"Taskonomy has no target {chosen!r}: use one of {', '.join(TARGETS)}")
    base, wanted = root / "taskonomy", TARGETS[chosen]
    images = _views(base, "rgb", chosen)
    labels = _views(base, (chosen, *wanted.folders), chosen)
    masks = _views(base, "mask_valid", chosen) if wanted.masked else {}
    there = [v for v in images if v in labels and (not wanted.masked or v in masks)]
    if not there:
        raise BadInput(
            f"no image in {base / 'rgb'} has a label in {base / chosen}"
            f"{' and a mask in mask_valid' if wanted.masked else ''}: fetch the same buildings "
            f"for all of them, {_how(base, chosen)}"
        )
    splits = {}
    for split, views in _divided(sorted(there), base, partition or "tiny", chosen).items():
        paths = [labels[v] for v in views]
        found = (
            _probabilities(paths)
            if wanted.target.kind == "soft"
            else Labels(chosen, paths, [masks[v] for v in views] if wanted.masked else [])
        )
        source = Files([images[v] for v in views])
        splits[split] = Split(source, found, torch.arange(len(views)), target=wanted.target)
    return Task(
        name=f"taskonomy-{name}",
        classes=wanted.outputs,
        splits=splits,
        target=wanted.target,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _views(base: Path, folders: str | Sequence[str], chosen: str) -> dict[View, Path]:
    """Every file of a folder by its view, whichever layout it has."""
    names = (folders,) if isinstance(folders, str) else folders
    place = next((base / n for n in names if (base / n).is_dir()), None)
    if place is None:
        raise BadInput(f"{base} has no folder {names[0]}: fetch it, {_how(base, chosen)}")
    inner = place / "taskonomy" if (place / "taskonomy").is_dir() else place
    found = {}
    for path in sorted([*inner.glob("point_*"), *inner.glob("*/point_*")]):
        view = re.fullmatch(r"point_(\d+)_view_(\d+)_domain_\w+\.(png|npy)", path.name)
        if view:
            building = "" if path.parent == inner else path.parent.name
            found[building, int(view[1]), int(view[2])] = path
    return found


def _how(base: Path, chosen: str) -> str:
    return (
        f"with `omnitools.download rgb mask_valid {chosen} --components taskonomy --subset tiny "
        f"--dest {base}` ({PAGE})"
    )


def _divided(
    views: Sequence[View], base: Path, partition: str, chosen: str
) -> dict[str, list[View]]:
    """The views of each split."""
    there = sorted({v[0] for v in views})
    if partition == "all":
        return _hashed(views, len(there) >= 3)
    listed = _listed(base, partition)
    found = {}
    for split, buildings in listed.items():
        missing = [b for b in buildings if b not in there]
        if missing:
            raise BadInput(
                f"{base} lacks building {missing[0]!r} of partition {partition} "
                f"({len(missing)} of {len(buildings)} in {split}): fetch it, "
                f"{_how(base, chosen)}, or take what is there with taskonomy:{chosen}@all"
            )
        found[split] = [v for v in views if v[0] in buildings]
    return found


def _hashed(views: Sequence[View], by_building: bool) -> dict[str, list[View]]:
    """A tenth, but one at least, of buildings (or points) for val and for test."""

    def group(view: View) -> str:
        return view[0] if by_building else f"{view[0]}/{view[1]}"

    groups = sorted({group(v) for v in views}, key=lambda g: hashlib.sha256(g.encode()).hexdigest())
    few = max(1, len(groups) // 10)
    parts = {"train": groups[2 * few :], "val": groups[:few], "test": groups[few : 2 * few]}
    return {split: [v for v in views if group(v) in part] for split, part in parts.items()}


def _listed(base: Path, partition: str) -> dict[str, list[str]]:
    """Buildings of each split, by a file or, for `tiny` without one, as they are known."""
    path = base / f"train_val_test_{partition}.csv"
    if not path.is_file():
        if partition == "tiny":
            return {split: list(buildings) for split, buildings in TINY.items()}
        raise BadInput(
            f"Taskonomy's partition {partition!r} needs {path}: put it there (columns id, train, "
            f"val, test), or use tiny or all"
        )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"id", "train", "val", "test"} <= set(rows[0]):
        raise BadInput(f"{path} has no columns id, train, val and test: fetch it anew from {PAGE}")
    return {s: [r["id"] for r in rows if r[s] == "1"] for s in ("train", "val", "test")}


def _probabilities(paths: Sequence[Path]) -> torch.Tensor:
    """(n, 1000) soft labels; those of `tiny` take 1 GB."""
    found = np.empty((len(paths), 1000), np.float32)
    for i, path in enumerate(paths):
        try:
            row = np.load(path, allow_pickle=False).reshape(-1)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} is no NumPy array: fetch it anew from {PAGE}") from error
        if row.shape != (1000,) or not (row >= 0).all() or not abs(row.sum() - 1) < 0.01:
            raise BadInput(f"{path} holds no 1000 probabilities: fetch it anew from {PAGE}")
        found[i] = row / row.sum(dtype=np.float64)  # some are stored with few digits
    return torch.from_numpy(found)


def _pixels(path: Path) -> Array:
    """(H, W) or (H, W, C) of the file's own type; a 16-bit PNG stays one."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    # Some versions of Pillow widen 16-bit grey to int32.
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels
