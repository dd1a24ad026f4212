"""Drawn rooms: six targets of the same images, one after the other, for those without Taskonomy.

The first of them is what side-tuning's base was taught, the others follow in the order that they
have in Taskonomy's sequence: curvature, what each pixel shows, light from the camera, rims, depth
and surface normals. 2000 images of 64 px each, without augmentation, six passes; minutes on a CPU.
The base that a run wants is one taught on curvature: ``tailor teach --task scenes:curvature
--backbone small_resnet``, then ``--weights`` with that run. A side network that ends in a map of
the base's size is ``--side narrow``.
"""

from __future__ import annotations

from pathlib import Path

from tailor.options import Images, Net
from tailor.sequence import Defaults
from tailor.settings import Settings

TITLE = "drawn rooms: six targets for every pixel"
RECIPE = Defaults(
    images=Images(px=64, crop="none", normalize="task"),
    net=Net(backbone="small_resnet", weights="random"),
    train=Settings(
        epochs=6,
        batch=32,
        optimizer="adam",
        lr=1e-3,
        clip=1.0,
        schedule="constant",
        select="last",
    ),
)
TARGETS = ("curvature", "segment", "reshading", "edge_occlusion", "depth", "normal")


def tasks(root: Path, *, download: bool) -> tuple[str, ...]:
    """Six targets; they are drawn, so nothing needs to be looked up."""
    return tuple(f"scenes:{name}" for name in TARGETS)
