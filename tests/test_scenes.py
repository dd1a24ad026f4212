"""The drawn scenes: labels against geometry that is worked out in another way."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tailor.datasets import _scenes
from tailor.datasets import _scenes_world as world
from tailor.datasets._scenes_world import Skin, Solid
from tailor.errors import BadInput
from tailor.sequences import scenes as sequence
from tailor.task import open_task

PLAIN = Skin(colours=np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]), cell=np.full(3, np.inf))
NUMBERS = range(12)


def bare(*solids: Solid, **changes) -> world.Scene:
    """A plain room 6 m wide, floor and ceiling 1 m away, the wall ahead at 5 m; a level camera."""
    facts = {
        "low": np.array([-3.0, -1.0, -2.0]),
        "high": np.array([3.0, 1.0, 5.0]),
        "skins": (PLAIN, PLAIN, PLAIN),
        "solids": solids,
        "lamp": np.array([0.0, -0.5, 0.0]),
        "ambient": 0.3,
        "yaw": 0.0,
        "pitch": 0.0,
    }
    return world.Scene(**(facts | changes))


def thing(kind: str, centre, half, yaw: float = 0.0) -> Solid:
    return Solid(kind=kind, centre=np.array(centre), half=np.array(half), yaw=yaw, skin=PLAIN)


def rays(px: int) -> np.ndarray:
    """(px, px, 3) by the pinhole model: focal length px / 2 / tan 30 degrees."""
    focal = px / 2 / math.tan(math.pi / 6)
    found = np.ones((px, px, 3))
    for row in range(px):
        for column in range(px):
            found[row, column, 0] = (column + 0.5 - px / 2) / focal
            found[row, column, 1] = (row + 0.5 - px / 2) / focal
    return found


def points(seen: world.Seen) -> np.ndarray:
    """(H, W, 3) what each pixel sees, in the camera's frame."""
    return rays(len(seen.depth)) * seen.depth[..., None]


def turned(scene: world.Scene, vector) -> np.ndarray:
    """A vector of the world in the camera's frame: back by the yaw, then by the pitch."""
    x, y, z = vector
    x, z = (
        x * math.cos(scene.yaw) - z * math.sin(scene.yaw),
        x * math.sin(scene.yaw) + z * math.cos(scene.yaw),
    )
    y, z = (
        y * math.cos(scene.pitch) + z * math.sin(scene.pitch),
        -y * math.sin(scene.pitch) + z * math.cos(scene.pitch),
    )
    return np.array([x, y, z])


# By hand.


def test_the_wall_ahead_is_as_far_as_it_stands():
    seen = world.see(bare(), 8)
    assert (seen.depth[3:5] == 5).all()  # rows 3, 4 look 1/8 of tan 30 degrees up and down
    assert (seen.kind[3:5] == world.KINDS.index("wall")).all()
    assert (seen.normal[3:5] == [0, 0, -1]).all()


def test_depth_of_the_floor_follows_from_the_row():
    seen = world.see(bare(), 8)
    slope = 7 / 8 * math.tan(math.pi / 6)  # of the last row; it meets the floor 1 m below
    np.testing.assert_allclose(seen.depth[7], 1 / slope, rtol=1e-12)
    assert (seen.kind[7] == world.KINDS.index("floor")).all()
    assert (seen.kind[0] == world.KINDS.index("ceiling")).all()


def test_a_sphere_ahead_is_its_radius_nearer_than_its_centre():
    seen = world.see(bare(thing("sphere", (0, 0, 4), (0.5,) * 3)), 101)
    assert seen.depth[50, 50] == pytest.approx(3.5, abs=1e-12)
    assert seen.normal[50, 50] == pytest.approx([0, 0, -1], abs=1e-12)
    assert seen.curvature[50, 50].tolist() == [2, 2]
    assert seen.curvature[0, 0].tolist() == [0, 0]


def test_a_cylinder_is_curved_around_and_not_along():
    seen = world.see(bare(thing("cylinder", (0, 0.5, 3), (0.4, 0.5, 0.4))), 101)
    hit = seen.solid == 0
    side = hit & (np.abs(seen.normal[..., 1]) < 0.5)
    assert np.unique(seen.curvature[side], axis=0).tolist() == [[2.5, 0]]
    assert np.unique(seen.curvature[hit & ~side], axis=0).tolist() in ([], [[0, 0]])
    # The camera looks down on nothing: the top is level with its eye.
    assert seen.depth[50 + 5, 50] == pytest.approx(2.6, abs=1e-12)


def test_a_box_turned_by_an_eighth_shows_two_faces():
    seen = world.see(bare(thing("box", (0, 0, 3), (0.5, 0.5, 0.5), math.pi / 4)), 65)
    hit = seen.solid == 0
    half = math.sqrt(0.5)
    assert np.unique(seen.normal[hit].round(12), axis=0).tolist() == [
        [round(-half, 12), 0, round(-half, 12)],
        [round(half, 12), 0, round(-half, 12)],
    ]
    assert seen.depth[32, 32] == pytest.approx(3 - half, abs=1e-12)


def test_a_checked_floor_changes_colour_with_every_cell():
    skin = Skin(colours=np.array([[0.0] * 3, [1.0] * 3]), cell=np.array([1.0, np.inf, 1.0]))
    seen = world.see(bare(skins=(skin, PLAIN, PLAIN)), 64)
    for row, column in np.argwhere(seen.kind == 0)[::7]:
        x, _, z = points(seen)[row, column]
        assert seen.albedo[row, column, 0] == (math.floor(x) + math.floor(z)) % 2


# By laws, for scenes as they are drawn.


def inside(thing: Solid, point: np.ndarray) -> np.ndarray:
    """(n,) below 0 inside of a solid, 0 on its surface."""
    x, y, z = (point - thing.centre).T
    x, z = (
        x * math.cos(thing.yaw) - z * math.sin(thing.yaw),
        x * math.sin(thing.yaw) + z * math.cos(thing.yaw),
    )
    if thing.kind == "sphere":
        return np.sqrt(x**2 + y**2 + z**2) - thing.half[0]
    if thing.kind == "cylinder":
        return np.maximum(np.sqrt(x**2 + z**2) - thing.half[0], np.abs(y) - thing.half[1])
    return np.max(np.abs(np.stack([x, y, z], 1)) - thing.half, axis=1)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_pixel_sees_the_first_surface_on_its_way(number: int):
    scene = world.draw("train", number)
    seen = world.see(scene, 32)
    to_world = np.stack([turned(scene, axis) for axis in np.eye(3)], 1).T  # a rotation: inverse
    place = points(seen).reshape(-1, 3) @ to_world.T
    gaps = np.stack(
        [inside(thing, place) for thing in scene.solids]
        + [np.minimum(place - scene.low, scene.high - place).min(1)]
    )
    hit = seen.solid.ravel()
    on_surface = gaps[np.where(hit < 0, len(scene.solids), hit), np.arange(len(hit))]
    assert np.abs(on_surface).max() < 1e-9
    for share in (0.1, 0.5, 0.9, 0.99):  # on the way there is nothing
        assert all((inside(thing, share * place) > -1e-9).all() for thing in scene.solids)


@pytest.mark.parametrize("number", NUMBERS)
def test_normals_on_spheres_point_away_from_their_centre(number: int):
    scene = world.draw("train", number)
    seen = world.see(scene, 32)
    for k, thing in enumerate(scene.solids):
        if thing.kind == "sphere":
            mine, radius = seen.solid == k, thing.half[0]
            away = points(seen)[mine] - turned(scene, thing.centre)
            np.testing.assert_allclose(seen.normal[mine], away / radius, atol=1e-9)
            assert (seen.curvature[mine] == 1 / radius).all()


def patches(seen: world.Seen) -> np.ndarray:
    """(H - 2, W - 2) pixels whose neighbours lie on the same smooth surface."""
    same = np.ones_like(seen.solid, bool)[1:-1, 1:-1]
    height, width = seen.solid.shape
    for down, across in ((0, 1), (1, 0), (2, 1), (1, 2)):
        part = (slice(down, height - 2 + down), slice(across, width - 2 + across))
        same &= seen.solid[part] == seen.solid[1:-1, 1:-1]
        # A cap and the side of a cylinder meet at a right angle; within a surface it is small.
        same &= (seen.normal[part] * seen.normal[1:-1, 1:-1]).sum(-1) > 0.995
        same &= (seen.curvature[part] == seen.curvature[1:-1, 1:-1]).all(-1)
    return same


def slopes(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences along rows and columns, of inner pixels."""
    return (
        (field[1:-1, 2:] - field[1:-1, :-2]) / 2,
        (field[2:, 1:-1] - field[:-2, 1:-1]) / 2,
    )


@pytest.mark.parametrize("number", NUMBERS[:6])
def test_normals_agree_with_finite_differences_of_depth(number: int):
    seen = world.see(world.draw("test", number), 256)
    across, down = slopes(points(seen))
    found = np.cross(down, across)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    smooth = patches(seen)
    assert smooth.mean() > 0.8
    flat = smooth & (seen.curvature[1:-1, 1:-1, 0] == 0)
    error = np.linalg.norm(found - seen.normal[1:-1, 1:-1], axis=-1)
    assert error[flat].max() < 1e-9  # differences of a plane are exact
    frontal = smooth & (seen.reshading[1:-1, 1:-1] > 0.5)  # at a rim the depth has no slope
    assert error[frontal].max() < 0.01  # curved: of second order in the pixel


@pytest.mark.parametrize("number", NUMBERS[:6])
def test_curvature_agrees_with_how_fast_the_normals_turn(number: int):
    seen = world.see(world.draw("test", number), 256)
    smooth = patches(seen) & (seen.normal[1:-1, 1:-1, 2] < -0.3)  # not at the rim
    steps = np.stack([s[smooth] for s in slopes(points(seen))], 2)  # (n, 3, 2)
    turns = np.stack([s[smooth] for s in slopes(seen.normal)], 2)
    # Weingarten: turns = steps @ S; trace and determinant of S are k1 + k2 and k1 * k2.
    shape = np.linalg.pinv(steps) @ turns
    k1, k2 = seen.curvature[1:-1, 1:-1][smooth].T
    np.testing.assert_allclose(np.trace(shape, axis1=1, axis2=2), k1 + k2, atol=0.03)
    np.testing.assert_allclose(np.linalg.det(shape), k1 * k2, atol=0.03 * 3.4)


def test_distance_is_the_length_of_the_way():
    seen = world.see(world.draw("train", 3), 32)
    np.testing.assert_allclose(seen.distance, np.linalg.norm(points(seen), axis=-1), rtol=1e-12)


def test_normals_are_unit_and_face_the_camera():
    for number in NUMBERS:
        seen = world.see(world.draw("train", number), 32)
        np.testing.assert_allclose(np.linalg.norm(seen.normal, axis=-1), 1, rtol=1e-12)
        assert ((seen.normal * points(seen)).sum(-1) < 0).all()


def test_brightness_is_lamberts_law():
    scene = world.draw("train", 4)
    seen = world.see(scene, 32)
    way = turned(scene, scene.lamp) - points(seen)
    cosine = np.einsum("hwc,hwc->hw", seen.normal, way) / np.sqrt((way**2).sum(-1))
    bright = scene.ambient + (1 - scene.ambient) * cosine.clip(0)
    np.testing.assert_allclose(seen.rgb, seen.albedo * bright[..., None], atol=1e-12)
    lit = -(seen.normal * points(seen)).sum(-1) / seen.distance
    np.testing.assert_allclose(seen.reshading, lit, atol=1e-12)


def test_a_scene_is_a_function_of_split_and_number():
    first, again = world.draw("train", 7), world.draw("train", 7)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            dataclasses.astuple(world.see(first, 16)),
            dataclasses.astuple(world.see(again, 16)),
            strict=True,
        )
    )
    assert not np.array_equal(first.low, world.draw("test", 7).low)
    assert not np.array_equal(first.low, world.draw("train", 8).low)


def test_more_pixels_show_the_same_scene():
    scene = world.draw("train", 5)
    coarse, fine = world.see(scene, 16), world.see(scene, 48)
    np.testing.assert_allclose(coarse.depth, fine.depth[1::3, 1::3], rtol=1e-9)  # same centres


# As tasks.


def label(target: str, number: int = 0, split: str = "val", px: int = 64) -> np.ndarray:
    return open_task(f"scenes:{target}@{px}").splits[split].read_map(number, (px, px))


def test_all_targets_lie_under_the_same_images():
    size = {"train": 2000, "val": 200, "test": 400}
    for name in set(_scenes.TARGETS) - {"denoising"}:
        task = open_task(f"scenes:{name}")
        assert {s: len(part) for s, part in task.splits.items()} == size
        assert np.array_equal(
            task.splits["test"].read(3), open_task("scenes:rgb").splits["test"].read(3)
        )


def test_values_are_the_quantities_within_one():
    seen = world.see(world.draw("val", 0), 64)
    np.testing.assert_allclose((label("depth")[0] + 1) * 5, seen.depth, rtol=1e-6)
    np.testing.assert_allclose((label("distance")[0] + 1) * 5, seen.distance, rtol=1e-6)
    np.testing.assert_allclose(label("curvature")[0] / 0.3, seen.curvature[..., 0], rtol=1e-6)
    np.testing.assert_allclose(label("normal")[2], seen.normal[..., 2], rtol=1e-6)
    np.testing.assert_allclose((label("reshading")[0] + 1) / 2, seen.reshading, atol=1e-6)
    assert np.array_equal(label("segment"), seen.kind)
    for name in set(_scenes.TARGETS) - {"segment"}:
        for number in range(20):
            assert np.abs(label(name, number)).max() <= 1


def test_the_rgb_target_is_the_image_itself():
    task = open_task("scenes:rgb")
    pixels = np.asarray(task.splits["val"].read(1)).transpose(2, 0, 1)
    np.testing.assert_allclose((label("rgb", 1) + 1) * 127.5, pixels, atol=1e-4)


def test_denoising_is_the_same_from_an_image_with_grain():
    noisy = np.asarray(open_task("scenes:denoising").splits["val"].read(1), dtype=float)
    clean = np.asarray(open_task("scenes:rgb").splits["val"].read(1), dtype=float)
    assert np.array_equal(label("denoising", 1), label("rgb", 1))
    inner = (clean > 60) & (clean < 195)  # where the grain is not cut off
    assert (noisy - clean)[inner].std() == pytest.approx(0.2 * 255, rel=0.1)


def test_a_sphere_in_front_of_the_wall_has_a_rim_and_a_box_on_the_floor_no_lower_one():
    seen = world.see(bare(thing("sphere", (0, 0, 3), (0.5,) * 3)), 64)
    rim = _scenes.occlusion(seen) == 1
    hit = seen.solid == 0
    grown = np.zeros_like(hit)
    for down, across in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        grown |= np.roll(~hit, (down, across), (0, 1))
    assert np.array_equal(rim, hit & grown)  # the sphere's pixels next to others
    seen = world.see(bare(thing("box", (0, 0.6, 3), (0.4, 0.4, 0.4))), 65)
    hit = seen.solid == 0
    rows = np.flatnonzero(hit[:, 32])
    edges = _scenes.occlusion(seen)[:, 32]
    assert edges[rows[0]] == 1  # its top, with the wall behind
    assert edges[rows[-1]] == 0  # where it stands on the floor
    assert edges.sum() == 1


def test_contrast_is_the_largest_change_of_colour_around():
    seen = world.see(world.draw("val", 2), 24)
    found = _scenes.contrast(seen)
    for row in range(24):
        for column in range(24):
            around = [(row, column + 1), (row, column - 1), (row + 1, column), (row - 1, column)]
            changes = [
                math.dist(seen.albedo[place], seen.albedo[row, column]) / math.sqrt(3)
                for place in around
                if min(place) >= 0 and max(place) < 24
            ]
            assert found[row, column] == pytest.approx(max(changes), abs=1e-12)


def test_mean_and_std_are_those_of_the_images():
    task = open_task("scenes:rgb")
    pixels = np.stack([np.asarray(task.splits["train"].read(i)) for i in range(0, 2000, 10)]) / 255
    np.testing.assert_allclose(task.mean, pixels.mean((0, 1, 2)), atol=0.02)  # 200 of 2000 scenes
    np.testing.assert_allclose(task.std, pixels.std((0, 1, 2)), atol=0.02)


def test_a_mirrored_normal_points_to_the_other_side():
    # The mirrored picture of a room is the picture of the mirrored room.
    scene = bare(thing("sphere", (0.4, 0.2, 3), (0.5,) * 3))
    other = bare(thing("sphere", (-0.4, 0.2, 3), (0.5,) * 3))
    signs = open_task("scenes:normal").target.flip_signs
    mirrored = world.see(scene, 32).normal[:, ::-1] * signs
    np.testing.assert_allclose(mirrored, world.see(other, 32).normal, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("normals", "no target 'normals': use one of curvature, "),
        ("normal@", "'' px: write a number, as in scenes:normal@128"),
        ("normal@0", "'0' px"),
        ("normal@big", "'big' px"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_refused(name: str, message: str):
    with pytest.raises(BadInput, match=message):
        open_task(f"scenes:{name}")


def test_six_targets_are_a_sequence():
    specs = sequence.tasks(Path(), download=False)
    assert len(specs) == 6
    assert [open_task(spec).metric for spec in specs] == ["r2", "miou", "r2", "r2", "r2", "r2"]
    assert specs[0] == "scenes:curvature"
