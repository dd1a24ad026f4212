"""Backbones: blocks, layers and weights of any architecture."""

from __future__ import annotations

import pickle
import stat

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tailor.backbone import Backbone, norm_tensors
from tailor.errors import BadInput


def block_names(name, **options):
    return [b.name for b in Backbone.create(name, weights="random", **options).blocks]


def test_blocks_of_resnet34_are_its_sixteen_residual_blocks():
    counts = {1: 3, 2: 4, 3: 6, 4: 3}
    expected = [f"layer{s}.{i}" for s, n in counts.items() for i in range(n)]
    assert block_names("resnet34", px=64) == expected


def test_block_shapes_are_real():
    blocks = Backbone.create("resnet34", weights="random", px=64).blocks
    assert blocks[0].in_shape == (64, 16, 16)
    assert blocks[3].in_shape == (64, 16, 16)
    assert blocks[3].out_shape == (128, 8, 8)
    assert blocks[-1].out_shape == (512, 2, 2)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("vit_tiny_patch16_224", 12, "blocks.0"),
        ("convnext_atto", 12, "stages.0.blocks.0"),
        ("regnety_002", 13, "s1"),  # two stages of one block count as blocks
        ("mobilenetv3_small_050", 12, "blocks.0.0"),
        ("efficientnet_b0", 16, "blocks.0.0"),
    ],
)
def test_blocks_are_found_without_naming_an_architecture(name, count, first):
    names = block_names(name)
    assert (len(names), names[0]) == (count, first)


def test_a_transformer_takes_another_image_size():
    backbone = Backbone.create("vit_tiny_patch16_224", weights="random", px=64)
    assert backbone.blocks[0].in_shape == (17, 192)  # 4 x 4 patches and the class token
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


def test_one_input_channel():
    backbone = Backbone.create("resnet18", weights="random", px=32, in_chans=1)
    assert backbone(torch.zeros(2, 1, 32, 32)).shape == (2, 512)
    assert len(backbone.mean) == len(backbone.std) == 1


def test_layers_are_all_convolutions_and_linear_maps():
    layers = Backbone.create("resnet34", weights="random", px=64).layers
    assert len(layers) == 36
    assert sum(layer.params for layer in layers) == 21_267_648  # taps.md, conv weights of r34
    assert layers[0].tensors == ("conv1.weight",)
    assert layers[0].macs == 3 * 49 * 64 * 32 * 32  # 7x7 over 3 channels, 64 maps of 32 x 32


def test_a_layer_has_weight_and_bias():
    layers = Backbone.create("vit_tiny_patch16_224", weights="random", px=32).layers
    qkv = next(x for x in layers if x.name == "blocks.0.attn.qkv")
    assert qkv.tensors == ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias")
    assert qkv.params == 192 * 576 + 576
    assert qkv.kind == "linear"


def test_a_weight_that_two_modules_share_is_one_layer_with_the_macs_of_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x):
            return self.b(self.a(x.flatten(1)))

    layers = Backbone(Twice(), name="twice", input_size=(3, 2, 2)).layers
    assert [(x.name, x.params, x.macs) for x in layers] == [("a", 156, 288)]


def test_norms_are_found_by_structure():
    params, buffers = norm_tensors(timm.create_model("resnet18", num_classes=0))
    model = timm.create_model("resnet18")
    assert sum(dict(model.named_parameters())[n].numel() for n in params) == 7808 + 1792
    assert len(buffers) == 20 * 3
    model = timm.create_model("convnext_atto", num_classes=0)
    params, buffers = norm_tensors(model)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    assert params == [f"{n}.{part}" for n in norms for part in ("weight", "bias")]
    assert not buffers


def test_training_mode_of_a_student_moves_no_universal_buffer():
    backbone = Backbone.create("small_resnet", weights="random")
    before = backbone.fingerprint()
    backbone.train()
    backbone(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert backbone.fingerprint() == before


def test_fingerprint_sees_a_single_buffer():
    backbone = Backbone.create("small_resnet", weights="random")
    before = backbone.fingerprint()
    backbone.model.bn1.running_mean[0] += 1e-3
    assert backbone.fingerprint() != before


def test_random_weights_are_a_function_of_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.randn(1)
    torch.manual_seed(5)
    first = Backbone.create("small_resnet", weights="random", seed=1).fingerprint()
    assert torch.randn(1) == expected
    assert Backbone.create("small_resnet", weights="random", seed=1).fingerprint() == first
    assert Backbone.create("small_resnet", weights="random", seed=2).fingerprint() != first


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_with_another_head_loads(tmp_path, suffix):
    model = timm.create_model("resnet18", num_classes=7)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, path)
    else:
        save_file(model.state_dict(), path)
    backbone = Backbone.create("resnet18", weights=path, px=32)
    assert torch.equal(backbone.model.conv1.weight, model.conv1.weight)


def test_published_first_convolution_is_summed_for_grey_images(tmp_path):
    model = timm.create_model("resnet18", num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    grey = Backbone.create("resnet18", weights=tmp_path / "w.safetensors", px=32, in_chans=1)
    torch.testing.assert_close(grey.model.conv1.weight, model.conv1.weight.sum(1, keepdim=True))


def test_position_embeddings_are_resampled(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone.create("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", px=96)
    assert backbone.model.pos_embed.shape == (1, 37, 192)
    assert torch.equal(backbone.model.pos_embed[:, 0], model.pos_embed[:, 0])


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_file_that_needs_unpickling_is_refused_without_running_it(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(BadInput, match="needs unpickling"):
            Backbone.create("resnet18", weights=tmp_path / name, px=32)
    assert "unpickled" not in capsys.readouterr().out


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"another architecture.*layer1\.2"):
        Backbone.create("resnet18", weights=tmp_path / "w.safetensors", px=32)


def test_weights_of_another_width_are_refused(tmp_path):
    wide = Backbone.create("small_resnet_w32", weights="random").model
    save_file(wide.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"\(32, 3, 3, 3\) in the file and \(16, 3, 3, 3\)"):
        Backbone.create("small_resnet", weights=tmp_path / "w.safetensors")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    path.chmod(path.stat().st_mode | stat.S_IWUSR)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadInput, match="cannot be read"):
        Backbone.create("resnet18", weights=path, px=32)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet43", "random", "did you mean resnet"),
        ("small_resnet", "pretrained", "no weights to fetch"),
        ("resnet18", "nowhere.pth", "no file or run directory"),
    ],
)
def test_bad_names_get_one_line(name, weights, message):
    with pytest.raises(BadInput, match=message) as caught:
        Backbone.create(name, weights=weights, px=32)
    assert "\n" not in str(caught.value)


def test_an_image_too_small_for_the_network_is_refused():
    with pytest.raises(BadInput, match=r"inception_v3.*3x8x8"):
        Backbone.create("inception_v3", weights="random", px=8)
