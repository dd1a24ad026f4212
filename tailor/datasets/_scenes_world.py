"""Drawn rooms: which solids stand where, what they look like, and what a camera sees of them.

A scene is a pure function of (split, number): a room, four to eight spheres, boxes and cylinders
with plain, striped or checked surfaces, a lamp, and a camera in the origin that is turned sideways
and tilted. The camera has a field of view of 60 degrees; its x runs right, its y down and its z
ahead. Everything that `see` returns is computed per pixel from the geometry, through the pixel's
centre, with no rounding but that of float64. Surfaces are matt (Lambert's law); there are no cast
shadows, no reflections and no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailor.datasets._scenes_rays import SHAPES, Array, room

SPLITS = ("train", "val", "test")
KINDS = ("floor", "ceiling", "wall", "box", "cylinder", "sphere")
FOV = math.radians(60)
UNDER = 1e-3  # metres below the surface where its solid texture is read: a face never flickers


@dataclass(frozen=True, kw_only=True)
class Skin:
    """A solid texture: cells of two colours in turn along each axis."""

    colours: Array  # (2, 3) albedo, in [0, 1]
    cell: Array  # (3,) metres; inf: no change along this axis


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A shape that stands in the room."""

    kind: str  # of `SHAPES`
    centre: Array  # (3,) metres
    half: Array  # (3,) half sizes in metres: (r, r, r) of a sphere, (r, h, r) of a cylinder
    yaw: float  # turned around the vertical
    skin: Skin


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A room with solids, a lamp and a camera in the origin."""

    low: Array  # (3,) corner of the room, metres
    high: Array  # (3,) the opposite corner; its y is the floor's
    skins: tuple[Skin, Skin, Skin]  # of floor, ceiling and walls
    solids: tuple[Solid, ...]
    lamp: Array  # (3,) where the point light hangs
    ambient: float  # light that comes from everywhere, in [0, 1]
    yaw: float  # of the camera, to the right
    pitch: float  # of the camera, upwards


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the camera sees, per pixel (H, W); vectors are in the camera's frame."""

    depth: Array  # (H, W) metres along the camera's axis
    distance: Array  # (H, W) metres to the surface
    normal: Array  # (H, W, 3) unit, towards the camera
    curvature: Array  # (H, W, 2) principal curvatures in 1/metre, the larger first
    kind: npt.NDArray[np.int64]  # (H, W) of `KINDS`
    solid: npt.NDArray[np.int64]  # (H, W) number of the solid, -1 the room
    cell: npt.NDArray[np.int64]  # (H, W) which of its two colours the surface has there
    albedo: Array  # (H, W, 3) colour without light, in [0, 1]
    rgb: Array  # (H, W, 3) in [0, 1]
    reshading: Array  # (H, W) in [0, 1]: a white world lit from the camera


def draw(split: str, number: int) -> Scene:
    """The scene of that number."""
    random = np.random.default_rng((SPLITS.index(split), number))
    low = -random.uniform((1.5, 0.8, 1.0), (4.0, 1.8, 3.0))
    high = random.uniform((1.5, 1.0, 3.0), (4.0, 1.8, 7.0))
    yaw, pitch = random.uniform((-0.7, -0.2), (0.7, 0.2))
    solids = tuple(_solid(random, yaw, high[1]) for _ in range(random.integers(4, 9)))
    return Scene(
        low=low,
        high=high,
        skins=(_skin(random, 1.0), _skin(random, 1.0), _skin(random, 1.0)),
        solids=solids,
        lamp=random.uniform(0.8 * low, 0.8 * high) * (1, 0, 1) + (0, 0.9 * low[1], 0),
        ambient=random.uniform(0.2, 0.5),
        yaw=yaw,
        pitch=pitch,
    )


def see(scene: Scene, px: int) -> Seen:
    """Look at a scene with ``px`` x ``px`` pixels."""
    rays = pixel_rays(px)  # (n, 3) in the camera's frame, z = 1: t along them is the depth
    turn = camera(scene)
    ways = rays @ turn.T  # (n, 3) in the world
    hits, axis = room(np.zeros(3), ways, scene.low, scene.high)
    floor = (axis == 1) & (ways[:, 1] > 0)
    kind = np.where(floor, 0, np.where(axis == 1, 1, 2))
    t, normal, curvature = hits
    solid = np.full(len(ways), -1)
    point = ways * t[:, None]
    cell = np.zeros(len(ways), np.int64)
    albedo = np.zeros((len(ways), 3))
    for k, skin in enumerate(scene.skins):
        mine = kind == k
        cell[mine], albedo[mine] = _paint(skin, point[mine], normal[mine])
    for number, thing in enumerate(scene.solids):
        own = _yaw(thing.yaw)  # columns: its axes in the world
        start = -thing.centre @ own
        found = SHAPES[thing.kind](start, ways @ own, thing.half)
        near = found.t < t
        t[near], solid[near], kind[near] = found.t[near], number, KINDS.index(thing.kind)
        curvature[near] = found.curvature[near]
        normal[near] = found.normal[near] @ own.T
        inside = start + (ways[near] @ own) * t[near, None]
        cell[near], albedo[near] = _paint(thing.skin, inside, found.normal[near])
    point = ways * t[:, None]
    shape = (px, px)
    return Seen(
        depth=t.reshape(shape),
        distance=(t * np.linalg.norm(rays, axis=1)).reshape(shape),
        normal=(normal @ turn).reshape(*shape, 3),
        curvature=curvature.reshape(*shape, 2),
        kind=kind.reshape(shape),
        solid=solid.reshape(shape),
        cell=cell.reshape(shape),
        albedo=albedo.reshape(*shape, 3),
        rgb=(albedo * _light(scene, point, normal)[:, None]).reshape(*shape, 3),
        reshading=_cosine(normal, -point).reshape(shape),
    )


def pixel_rays(px: int) -> Array:
    """(px * px, 3) directions through the centres of pixels, row by row, with z = 1."""
    half = math.tan(FOV / 2)
    across = ((np.arange(px) + 0.5) / px * 2 - 1) * half
    x, y = np.meshgrid(across, across)
    return np.stack([x.ravel(), y.ravel(), np.ones(px * px)], 1)


def camera(scene: Scene) -> Array:
    """(3, 3) the camera's axes in the world, as columns."""
    cos, sin = math.cos(scene.pitch), math.sin(scene.pitch)
    tilt = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    axes: Array = _yaw(scene.yaw) @ tilt
    return axes


def _yaw(angle: float) -> Array:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _solid(random: np.random.Generator, heading: float, floor: float) -> Solid:
    """A solid ahead of a camera with this heading, on the floor or in the air."""
    kind = tuple(SHAPES)[random.integers(len(SHAPES))]
    half = random.uniform(0.3, 0.8, size=3)
    if kind == "sphere":
        half[:] = half[0]
    elif kind == "cylinder":
        half[2] = half[0]
    angle = heading + random.uniform(-0.5, 0.5)
    away = random.uniform(2.0, 4.5)  # further than any solid reaches
    in_air = random.uniform(-0.8, floor - half[1]) if random.random() < 0.5 else floor - half[1]
    return Solid(
        kind=kind,
        centre=np.array([away * math.sin(angle), in_air, away * math.cos(angle)]),
        half=half,
        yaw=random.uniform(0, math.pi),
        skin=_skin(random, 0.3),
    )


def _skin(random: np.random.Generator, size: float) -> Skin:
    """Plain, striped along one axis, or checked."""
    cell = random.uniform(0.5 * size, 1.5 * size, size=3)
    pattern = random.integers(3)
    if pattern == 0:
        cell[:] = np.inf
    elif pattern == 1:
        cell[np.arange(3) != random.integers(3)] = np.inf
    return Skin(colours=random.uniform(0.1, 1.0, size=(2, 3)), cell=cell)


def _paint(skin: Skin, point: Array, normal: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """(n,) cell parity and (n, 3) albedo at points of a surface, in its own frame."""
    number = np.floor((point - UNDER * normal) / skin.cell)
    # A point over an endless cell is 0 or -0.0 of it, whose floors are 0 and -1.
    parity = np.where(np.isinf(skin.cell), 0, number).sum(1).astype(np.int64) % 2
    return parity, skin.colours[parity]


def _light(scene: Scene, point: Array, normal: Array) -> Array:
    """(n,) brightness by Lambert's law."""
    return scene.ambient + (1 - scene.ambient) * _cosine(normal, scene.lamp - point)


def _cosine(normal: Array, way: Array) -> Array:
    """(n,) cosine of the angle between a unit normal and a way, 0 where it looks away."""
    cosine = (normal * way).sum(1) / np.linalg.norm(way, axis=1)
    lit: Array = np.maximum(cosine, 0)
    return lit
