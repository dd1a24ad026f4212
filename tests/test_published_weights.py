"""Published weights: recognised by names and shapes, loaded whole, measured on images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tailor import cli, published_weights
from tailor.errors import BadInput
from tailor.published_weights import load, recognise, write
from tailor.side import fcn4, fcn5
from tailor.weights_check import agreement
from teachers.resnet_cifar import CifarResNet
from tests.references import resnet_cifar as reference
from tests.test_resnet_cifar import images, published

SHARED = Path(__file__).parents[2] / "shared" / "data"
FILES = {  # network, parameters without head, classes
    "resnet20_cifar10_akamaster": ("resnet20", 269_072, 10),
    "resnet44_cifar10_akamaster": ("resnet44", 657_936, 10),
    "sidetuning_fcn4_cifar": ("fcn4", 25_904, 10),
    "sidetuning_fcn5_curvature": ("fcn5", 921_376, None),
}


def fcn4_file(place, seed=0):
    """A side network as the published program saves it: its head is a module in a module."""
    torch.manual_seed(seed)
    head = nn.Linear(64, 10)
    state = dict(fcn4(64).state_dict())
    state |= {f"linear.module.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file({name: tensor.clone() for name, tensor in state.items()}, place)
    return place


@pytest.fixture
def resnet20(tmp_path):
    file = tmp_path / "resnet20.safetensors"
    save_file(published("resnet20"), file)
    return file


@pytest.fixture
def side(tmp_path):
    return fcn4_file(tmp_path / "fcn4.safetensors")


def call(capsys, *args):
    capsys.readouterr()
    code = cli.main(["weights", *map(str, args)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_file_is_told_by_its_tensors_not_by_its_name(capsys, tmp_path, resnet20, side):
    wrong = tmp_path / "resnet44.safetensors"
    wrong.write_bytes(resnet20.read_bytes())
    found = json.loads(call(capsys, wrong, side, "--json")[1])["files"]
    assert [row["network"] for row in found] == ["resnet20", "fcn4"]
    assert [row["params"] for row in found] == [269_072, 25_904]
    assert [(row["head"], row["classes"]) for row in found] == [(650, 10), (650, 10)]
    assert [row["buffers"] for row in found] == [2 * 688, 0]  # two numbers for 688 channels
    assert [row["output"] for row in found] == [[64], [64]]


def test_the_fcn5_returns_eight_channels_at_a_sixteenth(tmp_path):
    file = tmp_path / "fcn5.safetensors"
    save_file(fcn5(8).state_dict(), file)
    one = load(file)
    assert (one.name, one.output_shape, one.input_size) == ("fcn5", (8, 16, 16), (3, 256, 256))
    assert load(file, px=64).output_shape == (8, 4, 4)
    assert one.head is None
    assert (one.mean, one.std) == ((0.5,) * 3, (0.5,) * 3)  # images from -1 to 1


def test_a_loaded_file_computes_what_its_tensors_say(resnet20):
    one, state = load(resnet20), load_file(resnet20)
    with torch.no_grad():
        got = one.head(one.network(images()))
    torch.testing.assert_close(got, reference.logits(state, images()), rtol=1e-4, atol=1e-3)


def test_one_tensor_of_another_shape_is_refused(tmp_path, side):
    state = load_file(side)
    state["conv2.0.weight"] = state["conv2.0.weight"][:, :8].clone()
    with pytest.raises(BadInput, match=r"fit none of our networks \(9 of 10 tensors .* fcn4\)"):
        recognise(state, side)


def test_one_tensor_too_many_is_refused(side):
    with pytest.raises(BadInput, match=r"\(10 of 11 tensors are those of fcn4\)"):
        recognise(load_file(side) | {"conv9.weight": torch.zeros(1)}, side)


def test_what_is_no_file_of_ours_exits_with_two(capsys, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    code, out, err = call(capsys, tmp_path / "other.safetensors")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "fit none of our networks (none is alike)" in err


def test_among_several_files_a_strange_one_is_told_and_the_others_shown(capsys, tmp_path, side):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    code, out, _ = call(capsys, tmp_path / "other.safetensors", side)
    assert code == 0
    assert "fit none of our networks" in out
    assert "25,904" in out


def test_a_pickled_module_is_refused_and_told_how_to_save_its_tensors(capsys, tmp_path):
    torch.save(fcn4(64), tmp_path / "fcn4.pth")
    code, _, err = call(capsys, tmp_path / "fcn4.pth")
    assert (code, err.count("\n")) == (2, 1)
    assert "would run code stored in the file" in err
    assert "save its tensors alone" in err


def test_a_pth_of_tensors_is_read(tmp_path, side):
    torch.save({"state_dict": load_file(side)}, tmp_path / "fcn4.pth")
    assert load(tmp_path / "fcn4.pth").name == "fcn4"


def test_a_missing_and_a_cut_file_are_one_line(capsys, tmp_path, side):
    side.write_bytes(side.read_bytes()[:500])
    for file in (side, tmp_path / "gone.safetensors"):
        code, _, err = call(capsys, file)
        assert (code, err.count("\n")) == (2, 1)


def test_two_files_of_the_same_numbers_are_told(capsys, tmp_path, side):
    copy, other = tmp_path / "copy.safetensors", fcn4_file(tmp_path / "o.safetensors", seed=1)
    copy.write_bytes(side.read_bytes())
    found = json.loads(call(capsys, side, other, copy, "--json")[1])["files"]
    assert [row["same_as"] for row in found] == [None, None, str(side)]
    assert "copy.safetensors: the same numbers as fcn4.safetensors" in call(capsys, side, copy)[1]


# In our layout.


def test_a_head_of_another_name_is_written_under_ours(capsys, tmp_path, side):
    out, before = tmp_path / "ours.safetensors", load_file(side)
    call(capsys, side, "--out", out)
    after = load_file(out)
    assert torch.equal(after.pop("linear.weight"), before.pop("linear.module.weight"))
    assert torch.equal(after.pop("linear.bias"), before.pop("linear.module.bias"))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)


class Blend(nn.Module):
    """A network of two published ones."""

    def __init__(self, in_chans=3):
        super().__init__()
        self.base, self.side = CifarResNet(in_chans, blocks=3), fcn4(64, in_chans)
        self.alpha = nn.Parameter(torch.zeros(()))


def test_two_files_become_the_network_whose_parts_they_are(
    capsys, monkeypatch, tmp_path, resnet20, side
):
    monkeypatch.setattr(published_weights, "families", lambda: {"blend": Blend})
    whole, parts = tmp_path / "blend.safetensors", [load_file(f) for f in (resnet20, side)]
    monkeypatch.setattr(published_weights, "recognise", lambda state, path: path.stem)
    assert write([load(side), load(resnet20)], whole) == "blend"  # in any order
    tensors = load_file(whole)
    assert torch.equal(tensors["base.layer3.2.conv2.weight"], parts[0]["layer3.2.conv2.weight"])
    assert torch.equal(tensors["side.conv5.0.weight"], parts[1]["conv5.0.weight"])
    assert tensors["alpha"] == 0
    assert not any("linear" in name for name in tensors)


def test_files_that_are_parts_of_nothing_are_refused(capsys, tmp_path, side):
    code, _, err = call(capsys, side, side, "--out", tmp_path / "two.safetensors")
    assert code == 2
    assert "no network of ours has fcn4 and fcn4 as its parts" in err
    assert not (tmp_path / "two.safetensors").exists()


# On images.


def test_agreement_matches_a_numpy_loop():
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(size=(2, 50, 4))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (theirs, ours))
    best = [x.argmax(1) for x in (ours, theirs)]
    chance = sum((best[0] == k).mean() * (best[1] == k).mean() for k in range(4))
    centred = [x - x.mean(1, keepdims=True) for x in (ours, theirs)]
    found = agreement(torch.tensor(ours), torch.tensor(theirs))
    assert found["top1"] == pytest.approx((best[0] == best[1]).mean())
    assert found["chance"] == pytest.approx(chance)
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean())
    expected = np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]
    assert found["correlation"] == pytest.approx(expected)


def test_a_file_agrees_with_itself_and_not_with_another(capsys, tmp_path, side):
    other = fcn4_file(tmp_path / "other.safetensors", seed=1)
    asked = ("--task", "digits", "--teacher", side, "--json")
    files = json.loads(call(capsys, side, other, *asked)[1])["files"]
    same, strange = (row["measured"]["agreement"] for row in files)
    assert (same["top1"], round(same["correlation"], 6), round(same["kl"], 6)) == (1, 1, 0)
    assert strange["kl"] > 0
    assert abs(strange["correlation"]) < 0.9
    assert files[0]["measured"]["n"] == 539  # every test image


def test_the_top1_is_that_of_the_files_classifier(capsys, tmp_path, side):
    # A head that ignores its features and always says 3: right for every digit that is a 3.
    state = load_file(side)
    state["linear.module.weight"].zero_()
    state["linear.module.bias"].copy_(torch.eye(10)[3])
    save_file(state, side)
    found = json.loads(call(capsys, side, "--task", "digits", "--json")[1])["files"][0]["measured"]
    from tailor.task import open_task

    labels = open_task("digits").splits["test"].labels
    assert found["top1"] == pytest.approx(float((labels == 3).float().mean()))


def test_outputs_of_two_shapes_cannot_be_compared(capsys, tmp_path, side):
    file = tmp_path / "fcn5.safetensors"
    save_file(fcn5(8).state_dict(), file)
    code, _, err = call(capsys, file, "--task", "digits", "--teacher", side, "--px", 32)
    assert code == 2
    assert "(8, 2, 2)" in err
    assert "(64,)" in err


def test_a_teacher_needs_images(capsys, side):
    code, _, err = call(capsys, side, "--teacher", side)
    assert code == 2
    assert "give --task" in err


# The published files themselves.


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published weights are not here")
@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_recognised_and_loads_whole(name):
    one = load(SHARED / "weights" / f"{name}.safetensors")
    network, params, classes = FILES[name]
    assert one.name == network
    assert sum(p.numel() for p in one.network.parameters()) == params
    assert (None if one.head is None else one.head.out_features) == classes


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published weights are not here")
def test_the_published_side_network_does_what_it_was_distilled_from(capsys):
    asked = ("--task", f"npz:{SHARED / 'trashnet'}", "--json")
    teacher = SHARED / "weights" / "resnet44_cifar10_akamaster.safetensors"
    file = SHARED / "weights" / "sidetuning_fcn4_cifar.safetensors"
    said = json.loads(call(capsys, file, "--teacher", teacher, *asked)[1])["files"][0]
    same = said["measured"]["agreement"]
    # 502 images: by chance the share would have a deviation of about 1.5 points.
    deviation = math.sqrt(same["chance"] * (1 - same["chance"]) / said["measured"]["n"])
    assert same["top1"] > same["chance"] + 8 * deviation
    assert same["correlation"] > 0.4
