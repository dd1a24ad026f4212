"""Rays against spheres, boxes, upright cylinders and a room: what each ray meets, in closed form.

A shape has half sizes (3,) and stands at the origin of its own frame; y points down, as in
images. Rays start at ``start`` (3,) outside of it and run along ``ways`` (n, 3), which need no unit
length: a hit lies at ``start + t * way``. Principal curvatures are in 1/length, positive where the
surface bulges towards the outside: 1/r twice on a sphere, (1/r, 0) around a cylinder, 0 on faces.
Left out: anything that needs iteration (meshes, tori), refraction, shadows.

Source: the textbook formulas: a quadratic for round shapes, slabs for boxes (Kay & Kajiya, Ray
tracing complex scenes, SIGGRAPH 1986).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Hits(NamedTuple):
    """The first point of a shape that each ray meets."""

    t: Array  # (n,) along the ray; inf where it misses
    normal: Array  # (n, 3) unit, out of the shape (into the room), in the shape's frame
    curvature: Array  # (n, 2) principal curvatures, the larger first


def sphere(start: Array, ways: Array, half: Array) -> Hits:
    """Rays against a sphere of radius ``half[0]``."""
    radius = half[0]
    t = _round(start, ways, radius)
    normal = _at(start, ways, t) / radius
    return Hits(t, normal, np.full((len(ways), 2), 1 / radius))


def box(start: Array, ways: Array, half: Array) -> Hits:
    """Rays against a box of half sizes ``half``, from outside."""
    enter, leave = _slabs(start, ways, -half, half)
    axis = enter.argmax(1)
    t = enter.max(1)
    t = np.where((t > 0) & (t < leave.min(1)), t, np.inf)
    return Hits(t, _facing(ways, axis), np.zeros((len(ways), 2)))


def cylinder(start: Array, ways: Array, half: Array) -> Hits:
    """Rays against an upright cylinder of radius ``half[0]`` and height 2 ``half[1]``, capped."""
    radius, height = half[0], half[1]
    flat = np.array([1.0, 0.0, 1.0])
    side = _round(start * flat, ways * flat, radius)
    point = _at(start, ways, side)
    side = np.where(np.abs(point[:, 1]) <= height, side, np.inf)
    # Of the two caps a ray from outside meets the one that faces it.
    with np.errstate(divide="ignore", invalid="ignore"):
        cap = (-np.sign(ways[:, 1]) * height - start[1]) / ways[:, 1]
    over = _at(start, ways, np.where(np.isfinite(cap), cap, 0.0))
    on_cap = (cap > 0) & (over[:, 0] ** 2 + over[:, 2] ** 2 <= radius**2)
    cap = np.where(on_cap, cap, np.inf)
    is_side = side < cap
    outward = point * flat / radius
    normal = np.where(is_side[:, None], outward, _facing(ways, np.ones(len(ways), np.int64)))
    curvature = np.stack([is_side / radius, np.zeros(len(ways))], 1)
    return Hits(np.minimum(side, cap), normal, curvature)


def room(start: Array, ways: Array, low: Array, high: Array) -> tuple[Hits, npt.NDArray[np.int64]]:
    """Rays against the inside of an axis-parallel box from ``low`` to ``high``.

    Returns:
        The hits, whose normals point into the room, and (n,) the axis across each face hit.
    """
    _, leave = _slabs(start, ways, low, high)
    axis = leave.argmin(1)
    return Hits(leave.min(1), _facing(ways, axis), np.zeros((len(ways), 2))), axis


SHAPES = {"box": box, "cylinder": cylinder, "sphere": sphere}


def _round(start: Array, ways: Array, radius: float) -> Array:
    """(n,) the nearer root of |start + t * way| = radius, inf without one ahead."""
    a = (ways**2).sum(1)
    b = ways @ start
    root = b**2 - a * (start @ start - radius**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (t > 0), t, np.inf)


def _slabs(start: Array, ways: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """(n, 3) twice: where each ray enters and leaves the slab of each axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (low - start) / ways, (high - start) / ways
    # A ray within a face's plane (0 / 0) runs along the slab: it is never entered, never left.
    enter, leave = np.fmin(first, second), np.fmax(first, second)
    return np.where(np.isnan(enter), -np.inf, enter), np.where(np.isnan(leave), np.inf, leave)


def _facing(ways: Array, axis: npt.NDArray[np.int64]) -> Array:
    """(n, 3) unit normals along ``axis`` that look back at the ray."""
    rows = np.arange(len(ways))
    normal = np.zeros_like(ways)
    normal[rows, axis] = -np.sign(ways[rows, axis])
    return normal


def _at(start: Array, ways: Array, t: Array) -> Array:
    """(n, 3) points; the start where a ray misses, so that nothing is infinite."""
    return start + np.where(np.isfinite(t), t, 0.0)[:, None] * ways
