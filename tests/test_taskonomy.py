"""Taskonomy: its files in miniature, written from drawn scenes, and its networks by their size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tailor.backbone import Backbone
from tailor.data import Batches
from tailor.datasets import _scenes_world as world
from tailor.datasets import _taskonomy
from tailor.errors import BadInput
from tailor.fusion import new_fusion
from tailor.losses import task_loss
from tailor.metrics import metric_for
from tailor.sequences import taskonomy as sequence
from tailor.side import Fcn5
from tailor.task import open_task
from tailor.taskonomy_decoder import ClassDecoder, ImageDecoder, Transfer, taskonomy_head
from tailor.view import View
from teachers import taskonomy_resnet

PX = 24
BUILDINGS = ("almena", "castor", "hanson", "merom", "uvalda")


def scene(building: str, point: int) -> world.Seen:
    return world.see(world.draw("train", 10 * BUILDINGS.index(building) + point), PX)


def eight(values: np.ndarray) -> np.ndarray:
    """-1..1 to 0..255."""
    return ((values + 1) * 127.5).round().astype(np.uint8)


def sixteen(values: np.ndarray) -> np.ndarray:
    """0..1 to 0..65535."""
    return (values * 65535).round().astype(np.uint16)


def hole() -> np.ndarray:
    """(H, W) where the mesh has none: two rows."""
    found = np.zeros((PX, PX), bool)
    found[5:7] = True
    return found


def soft(seen: world.Seen) -> np.ndarray:
    """(1000,) a share for each kind of surface."""
    share = np.zeros(1000, np.float32)
    share[: len(world.KINDS)] = np.bincount(seen.kind.ravel(), minlength=6) / PX**2
    return share


ENCODED = {
    "rgb": lambda s: eight(2 * s.rgb - 1),
    "normal": lambda s: eight(s.normal),
    "principal_curvature": lambda s: np.concatenate(
        [eight(s.curvature * 0.3), np.zeros((PX, PX, 1), np.uint8)], -1
    ),
    "reshading": lambda s: np.repeat(eight(2 * s.reshading - 1)[..., None], 3, -1),
    "depth_zbuffer": lambda s: np.where(hole(), 65535, (s.depth * 512).round()).astype(np.uint16),
    "depth_euclidean": lambda s: np.where(hole(), 65535, (s.distance * 512).round()).astype(
        np.uint16
    ),
    "edge_texture": lambda s: sixteen(s.albedo[..., 0]),
    "edge_occlusion": lambda s: sixteen(s.albedo[..., 1]),
    "keypoints2d": lambda s: sixteen(s.albedo[..., 2]),
    "keypoints3d": lambda s: sixteen(s.reshading),
    "segment_semantic": lambda s: (s.kind + (s.kind > 0)).astype(np.uint8),  # the floor: unknown
    "mask_valid": lambda s: np.where(hole(), 0, 255).astype(np.uint8),
    "class_object": soft,
}
FILES = {"segment_semantic": "segmentsemantic", "mask_valid": "depth_zbuffer"}  # domain in names


def write(base: Path, inner: str = "", buildings=BUILDINGS, folders=tuple(ENCODED)) -> None:
    """Three points of each building, in ROOT/taskonomy/FOLDER/``inner``/BUILDING."""
    for folder in folders:
        for building in buildings:
            place = base / "taskonomy" / folder / inner / building
            place.mkdir(parents=True, exist_ok=True)
            for point in range(3):
                name = f"point_{point}_view_1_domain_{FILES.get(folder, folder)}"
                found = ENCODED[folder](scene(building, point))
                if folder == "class_object":
                    np.save(place / f"{name}.npy", found)
                else:
                    Image.fromarray(found).save(place / f"{name}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("data")
    write(base)
    rows = ["id,train,val,test", "almena,1,0,0", "castor,1,0,0", "hanson,0,1,0", "merom,0,0,1"]
    (base / "taskonomy" / "train_val_test_few.csv").write_text("\n".join(rows) + "\n")
    return base


def first(root: Path, target: str) -> np.ndarray:
    """The label of building almena, point 0."""
    return open_task(f"taskonomy:{target}@few", root).splits["train"].read_map(0, (PX, PX))


# Values.


def test_normals_come_back_within_a_step_of_eight_bits(root: Path):
    seen, found = scene("almena", 0), first(root, "normal")
    assert np.abs(found - seen.normal.transpose(2, 0, 1))[:, ~hole()].max() <= 1 / 255 + 1e-6


def test_depth_comes_back_within_half_a_step_of_a_512th_of_a_metre(root: Path):
    seen = scene("almena", 0)
    for target, metres in (("depth_zbuffer", seen.depth), ("depth_euclidean", seen.distance)):
        found = (first(root, target)[0] + 1) / 2 * 65535 / 512  # published: 65535 is 1
        assert np.abs(found - metres)[~hole()].max() <= 0.5 / 512 + 1e-4


def test_of_curvature_the_first_two_channels_count(root: Path):
    seen, found = scene("almena", 0), first(root, "curvature")
    assert found.shape == (2, PX, PX)
    wanted = seen.curvature.transpose(2, 0, 1) * 0.3
    assert np.abs(found - wanted)[:, ~hole()].max() <= 1 / 255 + 1e-6


def test_of_reshading_one_channel_counts(root: Path):
    seen, found = scene("almena", 0), first(root, "reshading")
    assert found.shape == (1, PX, PX)
    assert np.abs((found[0] + 1) / 2 - seen.reshading)[~hole()].max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("target", ["edge_texture", "edge_occlusion", "keypoints2d", "keypoints3d"])
def test_edges_and_keypoints_have_sixteen_bits(root: Path, target: str):
    raw = ENCODED[target](scene("almena", 0)).astype(float)
    found = first(root, target)[0]
    assert np.abs(found - (raw / 65535 * 2 - 1))[~hole()].max() < 1e-6


def test_the_rgb_target_is_the_image(root: Path):
    task = open_task("taskonomy:rgb@few", root)
    pixels = np.asarray(task.splits["train"].read(0)).transpose(2, 0, 1)
    found = task.splits["train"].read_map(0, (PX, PX))
    np.testing.assert_allclose(((found + 1) * 127.5)[:, ~hole()], pixels[:, ~hole()], atol=1e-4)


def test_what_the_mask_leaves_out_is_not_counted(root: Path):
    for target in set(_taskonomy.TARGETS) - {"segment_semantic", "class_object"}:
        found = first(root, target)
        assert np.isnan(found[:, hole()]).all()
        assert not np.isnan(found[:, ~hole()]).any()


def test_a_depth_of_65535_is_not_counted_whatever_the_mask_says(root: Path, tmp_path: Path):
    write(tmp_path, buildings=BUILDINGS[:3], folders=("rgb", "depth_zbuffer", "mask_valid"))
    for path in (tmp_path / "taskonomy" / "mask_valid").rglob("*.png"):
        Image.fromarray(np.full((PX, PX), 255, np.uint8)).save(path)
    task = open_task("taskonomy:depth_zbuffer@all", tmp_path)
    assert np.isnan(task.splits["train"].read_map(0, (PX, PX))[0, hole()]).all()


def test_semantic_class_0_is_nobody_knows(root: Path):
    task = open_task("taskonomy:segment_semantic@few", root)
    assert len(task.classes) == 18
    kind = scene("almena", 0).kind
    wanted = np.where(kind == 0, -1, kind + 1)
    assert np.array_equal(task.splits["train"].read_map(0, (PX, PX)), wanted)


def test_objects_are_a_thousand_soft_labels(root: Path):
    task = open_task("taskonomy:class_object@few", root)
    labels = task.splits["train"].labels
    assert labels.shape == (6, 1000)
    assert task.target.kind == "soft"
    np.testing.assert_allclose(labels[0].numpy(), soft(scene("almena", 0)), atol=1e-6)


def test_losses_are_those_of_the_published_sequence():
    losses = {name: wanted.target.loss for name, wanted in _taskonomy.TARGETS.items()}
    others = {"curvature": "l2", "segment_semantic": "cross_entropy"}
    others["class_object"] = "cross_entropy"
    assert losses == dict.fromkeys(losses, "l1") | others


def published_loss(name: str, found: np.ndarray, labels: np.ndarray) -> float:
    """The published formulas, with the mask of `hole` as an image of zeros and ones."""
    if name == "class_object":
        score = found - np.log(np.exp(found).sum(1, keepdims=True))
        return float(-(labels * score).sum() / len(labels))
    if name == "segment_semantic":
        score = found - np.log(np.exp(found).sum(1, keepdims=True))
        picked = np.take_along_axis(score, labels[:, None].clip(0), 1)[:, 0]
        return float(-picked[labels >= 0].mean())
    mask = np.broadcast_to(~hole(), (len(found), 1, PX, PX)).astype(float)
    difference = found - np.nan_to_num(labels)
    each = difference**2 if name == "curvature" else np.abs(difference)
    return float((mask * each).mean() / mask.mean())


@pytest.mark.parametrize("name", _taskonomy.TARGETS)
def test_a_batch_has_the_published_loss_and_a_metric(root: Path, name: str):
    task = open_task(f"taskonomy:{name}@few", root)
    found = Batches(task.splits["train"], View(px=PX), batch=6, train=False)
    (batch,) = found.epoch(0)
    shape = (6, len(task.classes), PX, PX) if task.target.dense else (6, 1000)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    loss = task_loss(logits, batch.labels, target=task.target)
    wanted = published_loss(name, logits.double().numpy(), batch.labels.numpy())
    assert float(loss) == pytest.approx(wanted, rel=1e-4)
    metric = metric_for(task.target)
    metric.add(logits, batch.labels)
    assert metric.value() < 0.2  # predictions at random


# Which images.


def test_a_list_says_which_buildings_go_where(root: Path):
    task = open_task("taskonomy:normal@few", root)
    where = {
        s: {Path(part.where(i)).parent.name for i in range(3)} for s, part in task.splits.items()
    }
    assert where["val"] == {"hanson"}
    assert where["test"] == {"merom"}
    assert {s: len(part) for s, part in task.splits.items()} == {"train": 6, "val": 3, "test": 3}


def test_all_divides_buildings_by_their_sha256(root: Path):
    splits = open_task("taskonomy:normal@all", root).splits
    order = sorted(BUILDINGS, key=lambda b: hashlib.sha256(b.encode()).hexdigest())
    assert Path(splits["val"].where(0)).parent.name == order[0]
    assert Path(splits["test"].where(0)).parent.name == order[1]
    assert len(splits["train"]) == 9


def test_the_layout_of_the_download_tool_is_read(tmp_path: Path):
    write(tmp_path, "taskonomy", BUILDINGS[:3], ("rgb", "normal", "mask_valid"))
    assert len(open_task("taskonomy:normal@all", tmp_path).splits["train"]) == 3


def test_the_sample_building_is_divided_by_points(tmp_path: Path):
    for folder in ("rgb", "normal", "mask_valid"):
        place = tmp_path / "taskonomy" / folder
        place.mkdir(parents=True)
        for point in range(3):
            for view in range(2):
                found = ENCODED[folder](scene("castor", point))
                name = f"point_{point}_view_{view}_domain_{folder}.png"
                Image.fromarray(found).save(place / name)
    splits = open_task("taskonomy:normal@all", tmp_path).splits
    assert {s: len(part) for s, part in splits.items()} == {"train": 2, "val": 2, "test": 2}
    for part in splits.values():  # views of one point stay together
        assert Path(part.where(0)).name.split("_")[1] == Path(part.where(1)).name.split("_")[1]


def test_an_image_without_label_or_mask_is_left_out(tmp_path: Path):
    write(tmp_path, buildings=BUILDINGS[:3], folders=("rgb", "normal", "mask_valid"))
    base = tmp_path / "taskonomy"
    for folder, point in (("normal", 0), ("mask_valid", 1)):
        next((base / folder / "almena").glob(f"point_{point}_*")).unlink()
    task = open_task("taskonomy:normal@all", tmp_path)
    assert sum(len(part) for part in task.splits.values()) == 9 - 2


def test_tiny_is_25_5_and_5_different_buildings():
    counts = {split: len(names) for split, names in _taskonomy.TINY.items()}
    assert counts == {"train": 25, "val": 5, "test": 5}
    assert len({b for names in _taskonomy.TINY.values() for b in names}) == 35


# What is missing.


def test_nothing_there_says_what_to_fetch_and_where_to_put_it(tmp_path: Path):
    with pytest.raises(BadInput) as caught:
        open_task("taskonomy:normal", tmp_path)
    told = str(caught.value)
    assert "omnitools.download rgb mask_valid normal " in told
    assert f"--dest {tmp_path / 'taskonomy'}" in told
    assert "https://" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("normals", "no target 'normals': use one of curvature, "),
        ("normal", "lacks building 'allensville' of partition tiny"),
        ("normal@medium", "needs .*train_val_test_medium.csv"),
        ("normal@bad", "has no columns id, train, val and test"),
    ],
)
def test_what_is_missing_is_named(root: Path, name: str, message: str):
    (root / "taskonomy" / "train_val_test_bad.csv").write_text("building\nalmena\n")
    with pytest.raises(BadInput, match=message) as caught:
        open_task(f"taskonomy:{name}", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [np.ones(1000), np.zeros(1000), np.full(365, 1 / 365), "no array"])
def test_soft_labels_that_are_none_are_refused(tmp_path: Path, row: object):
    write(tmp_path, buildings=BUILDINGS[:3], folders=("rgb", "class_object"))
    path = next((tmp_path / "taskonomy" / "class_object").rglob("*.npy"))
    path.write_text(row) if isinstance(row, str) else np.save(path, row)
    with pytest.raises(BadInput, match=str(path)):
        open_task("taskonomy:class_object@all", tmp_path)


# The sequence.


def test_the_sequence_is_the_published_one():
    # Order and what each task predicts, as the published configuration has them.
    published = [
        *(("curvature", 2), ("segment_semantic", 18), ("reshading", 1), ("keypoints3d", 1)),
        *(("keypoints2d", 1), ("edge_texture", 1), ("edge_occlusion", 1), ("depth_zbuffer", 1)),
        *(("depth_euclidean", 1), ("normal", 3), ("class_object", 1000), ("rgb", 3)),
    ]
    assert sequence.tasks(Path(), download=False) == tuple(f"taskonomy:{n}" for n, _ in published)
    assert [(n, len(_taskonomy.TARGETS[n].outputs)) for n in sequence.ORDERS["12"]] == published


def test_the_other_orders_are_the_published_ones():
    # There they are numbers of entries of this list.
    names = ["normal", "rgb", "reshading", "keypoints3d", "keypoints2d", "edge_texture"]
    names += ["edge_occlusion", "depth_zbuffer", "depth_euclidean", "curvature"]
    names += ["segment_semantic", "class_object"]
    orders = {
        "12cls": [11, 7, 0, 2, 8, 9, 5, 10, 4, 1, 3, 6],
        "12txtr": [5, 8, 9, 10, 1, 3, 6, 2, 11, 4, 0, 7],
        "12rgb": [1, 0, 5, 7, 2, 6, 4, 3, 9, 10, 8, 11],
    }
    for name, order in orders.items():
        assert sequence.ORDERS[name] == tuple(names[k] for k in order)


def test_the_recipe_is_the_published_one():
    train = sequence.RECIPE.train
    assert (train.optimizer, train.lr, train.weight_decay) == ("adam", 1e-4, 2e-6)
    assert (train.batch, train.epochs, train.clip, train.seed) == (32, 3, 1.0, 269)
    images = sequence.RECIPE.images
    assert (images.px, images.crop, images.flip) == (256, "none", False)
    assert images.normalize == "task"


def test_black_and_white_are_seen_as_minus_one_and_one(root: Path):
    task = open_task("taskonomy:normal@few", root)
    assert [
        (v - m) / s for v, m, s in ((0, task.mean[0], task.std[0]), (1, task.mean[0], task.std[0]))
    ] == [-1, 1]


# Networks.


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(make):
    with torch.device("meta"):
        return make()


def test_the_encoder_has_the_published_number_of_parameters_and_map():
    encoder = on_meta(taskonomy_resnet.MODELS["taskonomy_resnet50"])
    assert size(encoder) == 23_655_504
    images = torch.zeros(1, 3, 256, 256, device="meta")
    assert encoder.forward_features(images).shape == (1, 8, 16, 16)


def test_the_encoder_is_a_usual_resnet50_but_for_its_strides():
    # 1x1, 3x3, 1x1 convolutions as in timm's resnet50, whose body has 23,508,032 parameters.
    import timm

    usual = on_meta(lambda: timm.create_model("resnet50", num_classes=0))
    encoder = on_meta(taskonomy_resnet.MODELS["taskonomy_resnet50"])
    shapes = {n: p.shape for n, p in usual.named_parameters()}
    own = {n: p.shape for n, p in encoder.named_parameters() if not n.startswith("compress")}
    assert own == shapes
    assert size(usual) == 23_508_032
    strides = {n: m.stride[0] for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n for n, stride in strides.items() if stride == 2} == {
        "conv1",
        "layer1.2.conv2",
        "layer2.3.conv2",
    }


def test_a_strided_shortcut_takes_every_second_pixel():
    block = taskonomy_resnet.Bottleneck(8, 2, 2)
    for p in block.parameters():
        nn.init.zeros_(p)  # what is left is the shortcut
    x = torch.rand(1, 8, 6, 6)
    assert torch.equal(block.eval()(x), x[:, :, ::2, ::2])


def test_pooled_features_are_the_mean_of_the_map():
    torch.manual_seed(0)
    encoder = taskonomy_resnet.TaskonomyResNet((2, 2, 2, 2)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        mean = encoder.forward_features(images).mean((2, 3))
        torch.testing.assert_close(encoder(images), mean)


def test_the_encoder_is_a_backbone():
    backbone = Backbone.create("taskonomy_resnet50", weights="random", px=32)
    assert backbone.num_params == 23_655_504
    assert len(backbone.blocks) == 3 + 4 + 6 + 3
    assert backbone.num_features == 8


def test_decoders_have_the_published_numbers_of_parameters():
    sizes = [size(on_meta(lambda k=k: ImageDecoder(k))) for k in (1, 2, 3, 18)]
    assert sizes == [16_453_009, 16_453_154, 16_453_299, 16_455_474]
    assert size(on_meta(lambda: ClassDecoder(1000))) == 6_247_400
    assert size(on_meta(Transfer)) == 1_168


def test_the_twelve_tasks_cost_what_the_published_ones_do():
    heads = []
    for wanted in _taskonomy.TARGETS.values():
        outputs, dense = len(wanted.outputs), wanted.target.dense
        head = on_meta(lambda k=outputs, d=dense: ImageDecoder(k) if d else ClassDecoder(k))
        heads.append(size(head))
    assert len(heads) == 12
    assert sum(heads) == 187_233_689
    assert 12 * size(on_meta(Transfer)) == 14_016


def test_the_whole_published_row_adds_up():
    # Base, and of twelve tasks: side networks, fusions, transfer networks and decoders.
    outputs = [len(w.outputs) for w in _taskonomy.TARGETS.values()]
    base = size(on_meta(taskonomy_resnet.MODELS["taskonomy_resnet50"]))
    sides = 12 * size(on_meta(lambda: Fcn5(8)))
    blends = 12 * size(new_fusion("alpha", (8, 16, 16)))
    assert sides == 11_056_512
    assert blends == 12
    decoders = sum(
        size(on_meta(lambda k=k: ClassDecoder(k) if k == 1000 else ImageDecoder(k)))
        for k in outputs
    )
    total = base + sides + 12 * size(on_meta(Transfer)) + decoders + blends
    assert total == 23_655_504 + 11_056_512 + 14_016 + 187_233_689 + 12


def test_a_decoder_ends_sixteen_times_as_large():
    decoder = on_meta(lambda: ImageDecoder(2))
    assert decoder(torch.zeros(2, 8, 16, 16, device="meta")).shape == (2, 2, 256, 256)
    assert on_meta(lambda: ClassDecoder(9))(torch.zeros(2, 8, 16, 16, device="meta")).shape == (
        2,
        9,
    )


def test_a_doubling_layer_spreads_its_kernel_from_every_second_pixel():
    # By hand: out[2 i + a, 2 j + b] += x[i, j] k[a, b], rows and columns 0 to 2 n - 1.
    decoder = on_meta(lambda: ImageDecoder(1))
    layer = decoder.deconv14.to_empty(device="cpu")
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 32, 3, 4), torch.randn(32, 16, 3, 3)
    layer[1].weight.data.copy_(kernel)
    wanted = torch.zeros(16, 7, 9)
    for i in range(3):
        for j in range(4):
            wanted[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += torch.einsum(
                "c,coab->oab", x[0, :, i, j], kernel
            )
    with torch.no_grad():
        found = layer[2](layer[1](layer[0](x)))
    torch.testing.assert_close(found[0], wanted[:, :6, :8], rtol=1e-4, atol=1e-4)


def test_transfer_adds_to_what_comes_in():
    torch.manual_seed(0)
    transfer, x = Transfer(), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        added = transfer(x) - x
        assert (added >= 0).all()
        assert (added > 0).any()
        transfer.conv2.weight.zero_()
        transfer.conv2.bias.zero_()
        assert torch.equal(transfer(x), x)


def test_the_class_decoder_reads_channels_last():
    torch.manual_seed(0)
    decoder, x = ClassDecoder(3).eval(), torch.randn(2, 8, 16, 16)
    flat = np.stack([x.numpy()[:, :, i, j] for i in range(16) for j in range(16)], 1).reshape(2, -1)
    hidden = decoder.fc0(torch.from_numpy(flat))
    hidden = hidden / (1 + 1e-5) ** 0.5  # a fresh batch norm in evaluation
    with torch.no_grad():
        torch.testing.assert_close(decoder(x), decoder.fc2(hidden.relu()))


def test_a_head_depends_on_its_seed_alone():
    heads = [taskonomy_head((8, 16, 16), 3, seed, dense=False, bounded=False) for seed in (1, 1, 2)]
    one, again, other = (h[1].fc2.weight for h in heads)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_values_are_bounded_and_scores_of_classes_are_not():
    bounded, free = (on_meta(lambda b=b: ImageDecoder(2, bounded=b)) for b in (True, False))
    assert isinstance(bounded.decoder_output[1], nn.Tanh)
    assert isinstance(free.decoder_output[1], nn.Identity)


@pytest.mark.parametrize(
    ("shape", "dense", "message"),
    [
        ((64,), True, r"reads a map .* returns \(64,\)"),
        ((8, 8, 8), False, "map of 8x8x8 has 512"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(shape: tuple, dense: bool, message: str):
    with pytest.raises(BadInput, match=message):
        taskonomy_head(shape, 3, 0, dense=dense, bounded=False)
