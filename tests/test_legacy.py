"""Published NetTailor checkpoints: our student answers as a re-statement of the program does."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch

from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.legacy import nettailor_student, read_nettailor
from tests.references import nettailor_published as published

CLASSES = 5


@functools.cache
def backbone(name="resnet18"):
    """With norms that do something: a fresh network's are the identity."""
    made = Backbone.create(name, weights="random", px=64)
    draw = torch.Generator().manual_seed(3)
    for module_name, tensor in made.model.named_parameters():
        if tensor.ndim == 1:
            centre = 1.0 if module_name.endswith("weight") else 0.0
            tensor.data.copy_(centre + 0.2 * torch.randn(tensor.shape, generator=draw))
    return made


def universal(name="resnet18"):
    return backbone(name).model.state_dict()


def images(count=3):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(9))


def saved(name="resnet18", **options):
    return published.checkpoint(name, universal(name), **{"classes": CLASSES, **options})


def read(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    return read_nettailor(tmp_path / "checkpoint.pth.tar")


def student(tmp_path, content, name="resnet18", classes=CLASSES):
    found, _ = nettailor_student(read(tmp_path, content), backbone(name), classes)
    return found.eval()


def without(flags, *paths):
    """Flags with these (block, path) switched off; both count from 0, path 0 is the universal."""
    for block, path in paths:
        flags[block][path] = False
    return flags


def assert_answers_alike(tmp_path, content, name="resnet18"):
    ours = student(tmp_path, content, name)
    with torch.no_grad():
        expected = published.logits(name, universal(name), content, images())
        # Gates scale the norm here and its output there, so sums of 512 products round apart.
        torch.testing.assert_close(ours(images()).logits, expected, rtol=1e-4, atol=1e-5)
    return ours


def test_the_reference_writes_the_layout_as_published():
    resnet34 = Backbone.create("resnet34", weights="random", px=64).model.state_dict()
    content = published.checkpoint("resnet34", resnet34, classes=10)
    assert published.tensors_and_numbers(content) == (396, 2_794_776)


@pytest.mark.parametrize("skips", [1, 3, 8])
def test_an_unpruned_checkpoint_answers_as_published(tmp_path, skips):
    ours = assert_answers_alike(tmp_path, saved(skips=skips))
    assert ours.config.max_skip == skips
    assert len(ours.kept()) == sum(1 + min(block, skips) for block in range(1, 9))


def test_a_bottleneck_checkpoint_answers_as_published(tmp_path):
    assert_answers_alike(tmp_path, saved("resnet50"), "resnet50")


def test_a_pruned_checkpoint_answers_as_published(tmp_path):
    flags = without(published.all_kept("resnet18"), (1, 0), (4, 0), (4, 2), (6, 3), (7, 1))
    ours = assert_answers_alike(tmp_path, saved(flags=flags))
    kept = [name for name in ours.kept() if "<-" not in name]
    assert kept == ["layer1.0", "layer2.0", "layer2.1", "layer3.1", "layer4.0", "layer4.1"]
    assert len(ours.kept()) == 29 - 5


def test_flags_may_be_numbers(tmp_path):
    flags = without(published.all_kept("resnet18"), (2, 0), (5, 1))
    numbers = [[float(flag) for flag in row] for row in flags]
    ours = assert_answers_alike(tmp_path, saved(flags=numbers))
    assert ours.kept() == student(tmp_path, saved(flags=flags)).kept()


def test_a_path_from_nowhere_still_takes_its_share(tmp_path):
    # Nothing arrives at block 3, which block 4 would read twice: as universal path and as proxy.
    flags = without(published.all_kept("resnet18"), (2, 0), (2, 1), (2, 2), (2, 3))
    content = saved(flags=flags)
    ours = assert_answers_alike(tmp_path, content)
    left = [gate for gate in ours.gates() if gate.target == "layer2.1"]
    expected = published.gates(content, 3)
    assert [gate.source for gate in left] == ["layer1.1", "layer1.0"]
    assert [gate.value for gate in left] == pytest.approx(expected[2:], rel=1e-5)
    assert sum(expected[:2]) > 0.1  # much more than rounding


def test_what_leads_nowhere_is_gone(tmp_path):
    # Block 2 still runs in the program, though no later path reads it.
    readers = [(2, 0), (2, 1), (3, 2), (4, 3)]
    content = saved(flags=without(published.all_kept("resnet18"), *readers))
    ours = assert_answers_alike(tmp_path, content)
    assert not [name for name in ours.kept() if name.startswith("layer1.1")]


def test_gates_are_a_softmax_over_what_is_kept(tmp_path):
    content = saved(flags=without(published.all_kept("resnet18"), (4, 0), (4, 2)))
    gates = [g.value for g in student(tmp_path, content).gates() if g.target == "layer3.0"]
    expected = published.gates(content, 4)
    assert gates == pytest.approx([expected[1], expected[3]], rel=1e-5)
    assert sum(gates) == pytest.approx(1, rel=1e-5)


def test_the_comparison_would_notice_any_tensor():
    content, network = saved(), universal()
    before = published.logits("resnet18", network, content, images(1))
    for name, tensor in content["state_dict"].items():
        if not name.endswith("num_batches_tracked"):
            changed = content | {"state_dict": content["state_dict"] | {name: 1.5 * tensor + 0.1}}
            after = published.logits("resnet18", network, changed, images(1))
            assert (after - before).abs().max() > 3e-5, name  # the tolerance of the others


def test_a_file_of_the_time_reads(tmp_path):
    # What torch.save wrote before 1.6: no zip archive.
    torch.save(saved(), tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    found = read_nettailor(tmp_path / "old.pth.tar")
    assert torch.equal(found.state["bn1.running_var"], saved()["state_dict"]["bn1.running_var"])


def test_importing_moves_nothing_universal(tmp_path):
    before = backbone().fingerprint()
    student(tmp_path, saved(flags=without(published.all_kept("resnet18"), (1, 0))))(images())
    assert backbone().fingerprint() == before


def test_settings_are_those_of_the_program(tmp_path):
    config = student(tmp_path, saved()).config
    assert (config.statistics, config.hidden, config.proxy) == ("drift", "code", "conv")
    assert (config.complexity, config.accounting) == ("code", "published")
    assert (config.distillation, config.distill_norm) == ("local", "code")


def test_what_the_program_noted_is_kept(tmp_path):
    assert read(tmp_path, saved()).facts == {"epoch": 20.0, "acc": 0.5, "xent": 1.25}
    noted = saved() | {"acc": torch.tensor(0.25), "xent": None}
    assert read(tmp_path, noted).facts == {"epoch": 20.0, "acc": 0.25}


def test_flags_that_keep_all_are_no_pruning(tmp_path):
    content = read(tmp_path, saved(flags=published.all_kept("resnet18")))
    assert nettailor_student(content, backbone(), CLASSES)[1] is False


# What can be wrong ----------------------------------------------------------------------------


def changed(**tensors):
    """A checkpoint with tensors replaced (None removes), "__" standing for "."."""
    content = saved()
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del content["state_dict"][name]
        else:
            content["state_dict"][name] = tensor
    return content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: changed(layers__3__proxies__1__bn__weight=None), "lacks 'layers.3.proxies.1.bn"),
        (lambda: changed(layers__2__main__bn_res__running_var=None), "lacks 'layers.2.main.bn_res"),
        (lambda: changed(bn1__running_mean=None), "lacks 'bn1.running_mean'"),
        (lambda: changed(classifier__bias=None), r"lacks 'classifier.bias' \(1 missing, 0 extra"),
        (lambda: changed(classifier__weight=None), "lacks 'classifier.weight'"),
        (lambda: changed(conv1__weight=torch.zeros(1)), "unknown 'conv1.weight'.*1 extra"),
        (lambda: changed(layers__8__alphas_params=torch.zeros(4)), "has 9 blocks and 'resnet18'"),
        (lambda: changed(layers__4__alphas_params=torch.zeros(3)), "alphas_params' is .3,., but"),
        (lambda: changed(layers__4__alphas_params=torch.zeros(4, 1)), r"is \(4, 1\), not one"),
        (lambda: changed(bn1__running_var=torch.ones(32)), r"is \(32,\), but \(64,\)"),
        (lambda: saved(classes=7), "tells 7 classes apart and the task has 5"),
        (lambda: saved("resnet50"), "has 16 blocks and 'resnet18' has 8"),
        (lambda: saved(flags=[[True, True]]), "keep_flags do not say yes or no to each of its 29"),
        (lambda: saved(flags=7), "keep_flags do not say"),
        (lambda: saved(flags=[[0] * len(r) for r in published.all_kept("resnet18")]), "no path"),
        (lambda: {"state_dict": {"conv1.weight": torch.zeros(1)}}, "no NetTailor student"),
        (lambda: {"state_dict": {"layers.0.alphas_params": [1.0, 2.0]}}, "no state_dict of ten"),
        (lambda: [1, 2, 3], "no state_dict of tensors"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(tmp_path, content, why):
    with pytest.raises(BadInput, match=why) as caught:
        student(tmp_path, content())
    assert "\n" not in str(caught.value)
    assert "checkpoint.pth.tar" in str(caught.value)


def test_a_network_cut_apart_is_refused(tmp_path):
    # The last block is gone: where the program crashes.
    flags = without(published.all_kept("resnet18"), *((7, path) for path in range(4)))
    with pytest.raises(BadInput, match="no path leads through the network"):
        student(tmp_path, saved(flags=flags))


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_checkpoint_that_needs_code_is_refused_without_running_it(tmp_path, capsys):
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save(saved() | {"keep_flags": Evil()}, tmp_path / "evil.pth")
    for name in ("plain.pth", "evil.pth"):
        with pytest.raises(BadInput, match=f"{name}: it needs unpickling"):
            read_nettailor(tmp_path / name)
    assert "unpickled" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_refused(tmp_path):
    torch.save(saved(), tmp_path / "cut.pth")
    content = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"cannot be read.*fetch or write it again"):
        read_nettailor(tmp_path / "cut.pth")


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere\.pth' is no file"):
        read_nettailor(tmp_path / "nowhere.pth")
