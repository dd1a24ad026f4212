"""Joint compression: the best basis, what it costs, and runs that stand on it."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from demos import _small_tasks
from students import residual_adapters
from students.residual_adapters import Config
from tailor import cli
from tailor.backbone import Backbone
from tailor.compress import joint_basis, on_basis
from tailor.cost import Params, multiple_for
from tailor.errors import BadInput
from tailor.opened import open_run
from tailor.outcome import parameters
from tailor.run import read_tensors, write_tensors
from tests.tiny import noise


def network():
    return Backbone.create("small_resnet", weights="random", px=16)


def lively(backbone, kind="parallel", seed=0, **options):
    """A student every tensor of which has a value of its own."""
    config = Config(adapters=kind, init="he", **options)
    student = residual_adapters.build(backbone, 5, config, seed=seed)
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student.task.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=make))
        for name, b in student.task.named_buffers():
            if "running" in name:
                b.add_(torch.rand(b.shape, generator=make))
    return student.eval()


def maps(student):
    return {n: a.map.matrix().detach() for n, a in student.task.adapters.items()}


def compressed(students, folder, **amount):
    """The students on their joint basis, in a file below ``folder``."""
    found = joint_basis([maps(s) for s in students], **amount)
    about = {"fingerprint": students[0].universal.fingerprint()}
    about["adapters"] = students[0].config.adapters
    write_tensors(folder / "basis.safetensors", found.rows, about)
    return [on_basis(s, folder / "basis.safetensors", found.rows) for s in students]


# The basis


def test_the_error_is_that_of_eckart_and_young():
    tasks = [{"a": noise(12, 7, seed=t)} for t in range(3)]
    found = joint_basis(tasks, rank=4)
    basis = found.rows["a"].numpy()
    stack = np.concatenate([t["a"].numpy() for t in tasks])
    sizes = np.linalg.svd(stack, compute_uv=False)
    left = np.linalg.norm(stack - stack @ basis.T @ basis)
    wanted = np.sqrt((sizes[4:] ** 2).sum())
    np.testing.assert_allclose(left, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.lost["a"], wanted / np.linalg.norm(stack), rtol=1e-6)
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-6)


def test_maps_that_share_four_directions_lose_nothing_at_rank_four():
    common = noise(4, 9)
    tasks = [{"a": noise(6, 4, seed=t + 1) @ common} for t in range(5)]
    assert joint_basis(tasks, rank=4).lost["a"] < 1e-6  # float32 maps
    assert joint_basis(tasks, rank=3).lost["a"] > 0.01


def test_a_share_is_of_the_largest_rank_of_each_layer():
    tasks = [{"wide": noise(64, 32), "tall": noise(3, 32), "stem": noise(32, 3)}]
    rows = joint_basis(tasks * 2, share=0.5).rows
    # 2 tasks: 128 x 32, 6 x 32 and 64 x 3; half of 32, 6 and 3, rounded down
    assert {n: tuple(r.shape) for n, r in rows.items()} == {
        "wide": (16, 32),
        "tall": (3, 32),
        "stem": (1, 3),
    }


def test_a_layer_that_has_fewer_than_the_rank_keeps_all():
    rows = joint_basis([{"wide": noise(64, 32), "stem": noise(32, 3)}], rank=8).rows
    assert (len(rows["wide"]), len(rows["stem"])) == (8, 3)


def test_tasks_may_lack_a_layer():
    found = joint_basis([{"a": noise(4, 4)}, {"a": noise(4, 4, seed=1), "b": noise(4, 4)}], rank=2)
    assert set(found.rows) == {"a", "b"}


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ({"rank": 33}, "'wide', has rank 32 at most; give --rank 1 to 32"),
        ({"rank": 0}, "rank is 0"),
        ({"share": 1.5}, "share is 1.5; give a number above 0, up to 1"),
        ({"share": 0.0}, "share is 0.0"),
        ({}, "give one of --rank K and --share 0.5"),
        ({"rank": 2, "share": 0.5}, "give one of --rank K and --share 0.5"),
    ],
)
def test_an_impossible_rank_is_refused(amount, said):
    with pytest.raises(BadInput) as error:
        joint_basis([{"stem": noise(32, 3), "wide": noise(64, 32)}], **amount)
    assert said in str(error.value)


# Students on it


@pytest.mark.parametrize("kind", ["parallel", "series"])
def test_full_rank_changes_no_output(kind, tmp_path):
    shared = network()
    students = [lively(shared, kind, seed=t) for t in range(3)]
    images = noise(4, 3, 16, 16)
    with torch.no_grad():
        for before, after in zip(students, compressed(students, tmp_path, share=1.0), strict=True):
            # another order of float32 sums in every layer
            torch.testing.assert_close(
                after(images).logits, before(images).logits, rtol=1e-3, atol=1e-4
            )


def test_full_rank_changes_no_output_of_grouped_layers(tmp_path):
    shared = Backbone.create("mobilenetv3_small_050", weights="random", px=32)
    students = [lively(shared, seed=t) for t in range(2)]
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        for before, after in zip(students, compressed(students, tmp_path, share=1.0), strict=True):
            torch.testing.assert_close(
                after(images).logits, before(images).logits, rtol=1e-3, atol=1e-3
            )


def test_a_low_rank_changes_every_map_to_its_projection(tmp_path):
    students = [lively(network(), seed=t) for t in range(2)]
    rows = joint_basis([maps(s) for s in students], rank=5).rows
    for before, after in zip(students, compressed(students, tmp_path, rank=5), strict=True):
        for name, matrix in maps(after).items():
            basis = rows[name]
            torch.testing.assert_close(
                matrix, maps(before)[name] @ basis.T @ basis, rtol=1e-4, atol=1e-5
            )


def test_ten_decathlon_tasks_on_the_published_network_cost_by_hand_count(tmp_path):
    one = residual_adapters.build(
        Backbone.create("resnet26", weights="random", px=16), 10, Config(init="he")
    )
    whole = parameters(one)
    # One student ten times: what counts is how many numbers there are.
    small = parameters(compressed([one] * 10, tmp_path, share=0.5)[0])
    # (outputs, inputs) of the 25 adapters; the paper's K is half of the inputs, of the stem's 3 one
    sizes = [(32, 3), (64, 32), *[(64, 64)] * 7, (128, 64), *[(128, 128)] * 7]
    sizes += [(256, 128), *[(256, 256)] * 7]
    assert whole.adapters == sum(m * n for m, n in sizes) == 645_216
    assert small.adapters == sum(m * (n // 2) for m, n in sizes) == 322_592
    assert small.shared == sum((n // 2) * n for _, n in sizes) == 311_811
    assert (whole.norms, small.norms) == (15_488, 15_488)  # affine and statistics
    # As in the published table: trained numbers of ten tasks in plain networks, heads left out.
    norms, universal = 7_744, 5_814_688
    convolutions = universal - norms
    before = convolutions + 10 * (whole.adapters + norms)
    after = convolutions + small.shared + 10 * (small.adapters + norms)
    assert round(before / universal, 2) == 2.12
    assert round(after / universal, 2) == 1.62


def test_a_shared_part_is_counted_once_over_all_tasks():
    tasks = [Params(universal=100, adapters=10, shared=20) for _ in range(3)]
    assert tasks[0].multiple == 1.3
    assert multiple_for(tasks) == 1.5
    assert tasks[0].task == 10


# The verb

NET = ["--backbone", "small_resnet", "--weights", "random", "--px", "16"]
FAST = ["--epochs", "1", "--batch", "16", "--lr", "0.05", "--device", "cpu"]
ADAPT = ["--method", "residual_adapters", *NET, *FAST]


def call(capsys, *args):
    if capsys:
        capsys.readouterr()
    code = cli.main([str(a) for a in args])
    told = capsys.readouterr() if capsys else None
    return (code, told.out, told.err) if told else code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two tasks on one trunk: their runs below many/, compressed ones below small/."""
    folder = tmp_path_factory.mktemp("compress")
    names = list(_small_tasks.SMALL)[:2]
    for name in names:
        _small_tasks.write(name, folder / "tasks" / name, train=64, test=32)
    tasks = [f"npz:{folder / 'tasks' / name}" for name in names]
    many = ["together", "--task", *tasks, *ADAPT, "--init", "he", "--out", folder / "many"]
    runs = [folder / "many" / name for name in names]
    small = ["compress", *runs, "--out", folder / "small", "--share", "0.5"]
    for args in (many, small):
        assert cli.main([*map(str, args), "--json"]) == 0
    return folder, names


def result(path):
    return json.loads((path / "result.json").read_text())


def test_a_compressed_run_is_measured_and_opened_like_any_other(made, capsys):
    folder, names = made
    for name in names:
        run = folder / "small" / name
        found = result(run)
        assert found["stage"] == "compressed"
        assert found["params"]["shared"] > found["params"]["adapters"] / 2 > 0
        code, out, _ = call(capsys, "evaluate", run, "--json")
        assert code == 0
        assert json.loads(out)["value"] == found["test"]
        assert open_run(run).student.config.basis == str(folder / "small" / "basis.safetensors")


def test_the_file_of_a_task_holds_its_factors_and_no_basis(made):
    folder, names = made
    for name in names:
        held = read_tensors(folder / "small" / name / "student.safetensors")[0]
        numbers = sum(t.numel() for t in held.values() if t.is_floating_point())
        params = result(folder / "small" / name)["params"]
        assert numbers == params["task"] + params["head"]
        assert not [n for n in held if n.endswith("down")]


def test_the_basis_says_what_it_belongs_to(made):
    folder, names = made
    rows, about = read_tensors(folder / "small" / "basis.safetensors")
    assert about["fingerprint"] == result(folder / "many" / names[0])["fingerprint"]
    assert about["ranks"] == {name: len(row) for name, row in rows.items()}
    assert all(0 < lost < 1 for lost in about["lost"].values())
    assert (
        sum(r.numel() for r in rows.values())
        == result(folder / "small" / names[0])["params"]["shared"]
    )


def test_repeating_the_command_repeats_nothing(made, capsys):
    folder, names = made
    files = [p for p in (folder / "small").glob("**/[!.]*") if p.is_file()]
    before = {p: p.read_bytes() for p in files}
    runs = [folder / "many" / name for name in names]
    code, out, _ = call(capsys, "compress", *runs, "--out", folder / "small", "--share", 0.5)
    assert code == 0
    assert "compressed" in out
    assert {p: p.read_bytes() for p in files} == before


def test_retraining_moves_factors_and_no_basis(made, tmp_path, capsys):
    folder, names = made
    basis = folder / "small" / "basis.safetensors"
    before = basis.read_bytes()
    run = folder / "small" / names[0]
    code, out, err = call(capsys, "retrain", run, *FAST, "--out", tmp_path / "again", "--json")
    assert code == 0, err
    assert json.loads(out)["stage"] == "retrained"
    assert basis.read_bytes() == before
    old, new = open_run(run).student, open_run(tmp_path / "again").student
    rows = read_tensors(basis)[0]
    for name, adapter in new.task.adapters.items():
        assert torch.equal(adapter.map.down, rows[name])
        assert not torch.equal(adapter.map.up, old.task.adapters[name].map.up)


def test_a_folder_that_moved_takes_its_basis_along(made, tmp_path):
    folder, names = made
    shutil.copytree(folder / "small", tmp_path / "moved")
    (folder / "small").rename(folder / "away")
    try:
        student = open_run(tmp_path / "moved" / names[0]).student
    finally:
        (folder / "away").rename(folder / "small")
    assert student.config.basis == str(tmp_path / "moved" / "basis.safetensors")


def test_bad_input_is_one_line(made, tmp_path, capsys):
    folder, names = made
    runs = [folder / "many" / name for name in names]
    probe = ["adapt", "--task", f"npz:{folder / 'tasks' / names[0]}", *NET, *FAST]
    assert call(None, *probe, "--method", "probe", "--out", tmp_path / "probe", "--json") == 0
    small = folder / "small"
    cases = [
        ([*runs, "--out", tmp_path / "x", "--rank", "1000"], "give --rank 1 to "),
        ([*runs, "--out", tmp_path / "x"], "give one of --rank K and --share 0.5"),
        ([runs[0], runs[0], "--out", tmp_path / "x", "--rank", "2"], "are both of task"),
        ([runs[0], tmp_path / "probe", "--out", tmp_path / "x", "--rank", "2"], "method 'probe'"),
        ([small / names[0], "--out", tmp_path / "x", "--rank", "2"], "is on a basis already"),
        ([*runs, "--out", small, "--rank", "2"], "choose another --out"),
        (["--out", tmp_path / "x", "--rank", "2"], "no run given"),
    ]
    for args, said in cases:
        code, out, err = call(capsys, "compress", *args)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert said in err
        assert not (tmp_path / "x").exists()


def test_students_on_a_basis_are_independent(tmp_path):
    shared = network()
    one, two = compressed([lively(shared, seed=t) for t in range(2)], tmp_path, rank=4)
    before = copy.deepcopy(two.task.state_dict())
    with torch.no_grad():
        for p in one.task.parameters():
            p.add_(1.0)
    assert all(torch.equal(t, before[n]) for n, t in two.task.state_dict().items())


def test_a_report_on_all_that_lies_in_the_folder_passes_over_the_basis(made, capsys):
    folder, names = made
    paths = sorted(p for p in (folder / "small").iterdir() if not p.name.startswith("."))
    code, out, err = call(capsys, "report", *paths, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(r["task"], r["stage"]) for r in rows] == [(n, "compressed") for n in sorted(names)]
    assert all(r["params"]["shared"] > 0 for r in rows)
