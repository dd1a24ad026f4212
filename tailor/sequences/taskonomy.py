"""Taskonomy's sequence: twelve things to tell of an image of a room, one after the other.

Three passes over the training images of partition `tiny` (25 buildings, 262,745 images) for each,
in batches of 32 at 256 px, without augmentation; no task is seen again. What a task is trained by
follows from its labels: L1 within the mask, squared error for curvature, cross-entropy for semantic
classes and for objects, whose labels are the output of a network. The base is the curvature encoder
of Taskonomy (``--weights``), the published side network ``--side fcn5``, and every task brings its
decoder, which the light head replaces with ``--decoder light``.

The published program also left out building `hanson`, which other experiments of its authors were
tested on, and ran the order that starts with curvature and three others: `ORDERS`, of which
``tailor lifelong --task taskonomy:class_object taskonomy:depth_zbuffer ...`` runs any. For those
the base is meant to be the encoder of the order's own first task.

Source: Zhang, Sax, Zamir, Guibas, Malik: Side-tuning, ECCV 2020, https://arxiv.org/abs/1912.13503;
numbers from the configuration in https://github.com/jozhang97/side-tuning.
"""

from __future__ import annotations

from pathlib import Path

from tailor.datasets._taskonomy import TARGETS
from tailor.options import Images, Net
from tailor.sequence import Defaults
from tailor.settings import Settings

TITLE = "Taskonomy: twelve targets of indoor images"
RECIPE = Defaults(
    images=Images(px=256, crop="none", normalize="task"),
    net=Net(backbone="taskonomy_resnet50", decoder="taskonomy"),
    train=Settings(
        epochs=3,
        batch=32,
        optimizer="adam",
        lr=1e-4,
        weight_decay=2e-6,
        clip=1.0,
        schedule="constant",
        select="last",
        seed=269,
    ),
)
# The published orders, by what they were called there.
ORDERS = {
    "12": tuple(TARGETS),
    "12cls": (
        *("class_object", "depth_zbuffer", "normal", "reshading", "depth_euclidean", "curvature"),
        *("edge_texture", "segment_semantic", "keypoints2d", "rgb", "keypoints3d"),
        "edge_occlusion",
    ),
    "12txtr": (
        *("edge_texture", "depth_euclidean", "curvature", "segment_semantic", "rgb"),
        *("keypoints3d", "edge_occlusion", "reshading", "class_object", "keypoints2d", "normal"),
        "depth_zbuffer",
    ),
    "12rgb": (
        *("rgb", "normal", "edge_texture", "depth_zbuffer", "reshading", "edge_occlusion"),
        *("keypoints2d", "keypoints3d", "curvature", "segment_semantic", "depth_euclidean"),
        "class_object",
    ),
}


def tasks(root: Path, *, download: bool) -> tuple[str, ...]:
    """The twelve in the published order; nothing needs to be looked up."""
    return tuple(f"taskonomy:{name}" for name in ORDERS["12"])
