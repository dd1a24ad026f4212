"""Run directories: whole files or none, one owner, one writer."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys

import pytest
import torch

from tailor.errors import BadInput
from tailor.run import (
    PLACE,
    Run,
    read_json,
    read_log,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)

CONFIG = {"method": "taps", "train": {"lr": 0.01, "device": "cpu"}, "data": {"workers": 2}}


def refuse(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# Writing


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_bytes(tmp_path / "a", b"one")
    write_bytes(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "no space"), (errno.EACCES, "no permission")]
)
def test_a_failing_call_keeps_the_earlier_file_and_leaves_no_litter(
    tmp_path, monkeypatch, call, code, said
):
    path = tmp_path / "a"
    write_bytes(path, b"earlier")

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BadInput, match=said):
        write_bytes(path, b"later")
    monkeypatch.undo()
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == ["a"]


def test_a_write_cut_short_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_bytes(path, b"earlier")
    true_fdopen = os.fdopen

    @contextlib.contextmanager
    def full(handle, mode):
        with true_fdopen(handle, mode) as file:
            file.write(b"la")  # a disk that fills up while it is written
            file.flush()
            refuse()
            yield file

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(BadInput, match="no space left"):
        write_bytes(path, b"later")
    monkeypatch.undo()
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == ["a"]


def test_an_error_without_a_sentence_of_its_own_is_bad_input_too(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(BadInput, match=r"Input/output error.*--out"):
        write_bytes(tmp_path / "a", b"")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_of_a_file_is_the_umasks(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB that can be filled to the last byte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, timeout=10)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=10)


def test_a_full_disk_keeps_the_checkpoint_and_says_so(full_disk):
    path = full_disk / "last.safetensors"
    write_tensors(path, {"x": torch.arange(5000)}, {"step": 1})
    with pytest.raises(BadInput, match=r"no space left to write .*last\.safetensors: free some"):
        write_tensors(path, {"x": torch.arange(7000)}, {"step": 2})
    tensors, about = read_tensors(path)
    assert about == {"step": 1}
    assert torch.equal(tensors["x"], torch.arange(5000))
    assert names(full_disk) == ["last.safetensors"]


def test_a_full_disk_stops_the_log_in_one_line(full_disk):
    def fill(run):
        for step in range(10_000):
            run.log({"kind": "train", "stage": "adapt", "step": step})

    with Run(full_disk / "run", "adapt", CONFIG) as run:
        with pytest.raises(BadInput, match="no space left"):
            fill(run)
        whole = read_log(full_disk / "run" / "log.jsonl")
        assert [r["step"] for r in whole] == list(range(len(whole)))
        assert len(whole) > 500


# Tensors


def test_tensors_come_back_with_what_was_said_about_them(tmp_path):
    path = tmp_path / "a.safetensors"
    wrote = {
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "slice": torch.arange(12.0).view(3, 4).T,
    }
    write_tensors(path, wrote, {"step": 3, "best": None})
    tensors, about = read_tensors(path)
    assert about == {"step": 3, "best": None}
    assert all(torch.equal(tensors[n], t) and tensors[n].dtype == t.dtype for n, t in wrote.items())


def test_the_same_tensors_make_the_same_bytes(tmp_path):
    for name in "abcdefgh":
        write_tensors(tmp_path / name, {"x": torch.ones(3), "y": torch.zeros(2)}, {"step": 3})
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1


def test_tied_tensors_are_written_under_both_names(tmp_path):
    shared = torch.ones(3)
    write_tensors(tmp_path / "a.safetensors", {"x": shared, "y": shared})
    assert sorted(read_tensors(tmp_path / "a.safetensors")[0]) == ["x", "y"]


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"gone\.safetensors is missing or damaged"):
        read_tensors(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_bad_input(tmp_path, share):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(1000.0)}, {"step": 3})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BadInput, match=r"a\.safetensors is missing or damaged"):
        read_tensors(path)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(4.0), "n": torch.tensor(3)}, {"step": 12})
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(BadInput, match="missing or damaged"):
            read_tensors(path)


# Directories


def test_a_new_directory_says_what_it_belongs_to(tmp_path):
    with Run(tmp_path / "deep" / "run", "adapt", CONFIG, "tailor adapt ...") as run:
        about = read_json(run.path / "run.json")
    assert (about["schema"], about["verb"], about["config"]) == (1, "adapt", CONFIG)
    assert about["command"] == "tailor adapt ..."
    assert about["made_by"]["torch"] == str(torch.__version__)


def test_the_same_command_opens_its_directory_again(tmp_path):
    for _ in range(2):
        with Run(tmp_path, "adapt", CONFIG) as run:
            assert run.result is None
            assert run.checkpoint() is None


def test_another_verb_is_refused(tmp_path):
    Run(tmp_path, "adapt", CONFIG).close()
    with pytest.raises(BadInput, match="`tailor adapt`, not `tailor teach`"):
        Run(tmp_path, "teach", CONFIG)


def test_another_command_is_refused_and_the_difference_is_named(tmp_path):
    Run(tmp_path, "adapt", CONFIG).close()
    other = {**CONFIG, "train": {"lr": 0.1, "device": "cpu"}}
    with pytest.raises(BadInput, match=r"train\.lr: 0\.01 there, 0\.1 now"):
        Run(tmp_path, "adapt", other)


def test_a_long_difference_is_cut(tmp_path):
    Run(tmp_path, "adapt", {"classes": ["name"] * 1000}).close()
    with pytest.raises(BadInput, match=r"classes: \['name'.*\.\.\. there") as refused:
        Run(tmp_path, "adapt", {"classes": ["other"] * 1000})
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("name", PLACE)
def test_where_it_runs_may_change(tmp_path, name):
    Run(tmp_path, "adapt", {"train": {name: 1}}).close()
    Run(tmp_path, "adapt", {"train": {name: 2}}).close()


def test_a_second_writer_is_refused(tmp_path):
    with Run(tmp_path, "adapt", CONFIG), pytest.raises(BadInput, match="in use by another process"):
        Run(tmp_path, "adapt", CONFIG)
    Run(tmp_path, "adapt", CONFIG).close()  # free again


def test_a_refused_command_leaves_the_directory_free(tmp_path):
    Run(tmp_path, "adapt", CONFIG).close()
    with pytest.raises(BadInput):
        Run(tmp_path, "teach", CONFIG)
    Run(tmp_path, "adapt", CONFIG).close()


def test_a_strangers_directory_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(BadInput, match=r"no run directory but holds 'thesis\.tex'"):
        Run(tmp_path, "adapt", CONFIG)
    assert names(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_way_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("text")
    with pytest.raises(BadInput, match=r"cannot write .*a part of that path is a file"):
        Run(tmp_path / "file" / below, "adapt", CONFIG)
    assert (tmp_path / "file").read_text() == "text"


@pytest.fixture
def somebody():
    """Not root, whom permissions do not stop."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_a_directory_without_permission_is_refused(tmp_path, request, mode):
    folder = tmp_path / "closed"
    folder.mkdir()
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    folder.chmod(mode)
    request.getfixturevalue("somebody")
    with pytest.raises(BadInput, match="no permission to write"):
        Run(folder, "adapt", CONFIG)
    with pytest.raises(BadInput, match="no permission to write"):
        Run(folder / "run", "adapt", CONFIG)


def test_a_damaged_run_json_is_named(tmp_path):
    Run(tmp_path, "adapt", CONFIG).close()
    (tmp_path / "run.json").write_text('{"schema": 1, "ver')
    with pytest.raises(BadInput, match=r"run\.json cannot be read"):
        Run(tmp_path, "adapt", CONFIG)


def test_a_newer_schema_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {"schema": 2, "verb": "adapt", "config": CONFIG})
    with pytest.raises(BadInput, match="schema 2"):
        Run(tmp_path, "adapt", CONFIG)


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path):
    # Killed between open and rename: no exception handler runs.
    write = (
        "import os, sys, pathlib\n"
        "from tailor import run\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "run.write_bytes(pathlib.Path(sys.argv[1]) / 'last.safetensors', b'half')\n"
    )
    Run(tmp_path, "adapt", CONFIG).close()
    killed = subprocess.run([sys.executable, "-c", write, str(tmp_path)], timeout=120)
    assert killed.returncode == -9
    assert any(n.endswith(".part") for n in names(tmp_path))
    Run(tmp_path, "adapt", CONFIG).close()
    assert names(tmp_path) == [".lock", "run.json"]


def test_a_finished_run_needs_no_checkpoint(tmp_path):
    Run(tmp_path, "adapt", CONFIG).close()
    write_tensors(tmp_path / "last.safetensors", {})
    write_json(tmp_path / "result.json", {"val": 1.0})  # killed right after this
    with Run(tmp_path, "adapt", CONFIG) as run:
        assert run.result == {"val": 1.0}
    assert names(tmp_path) == [".lock", "result.json", "run.json"]


# Followers and logs


def test_a_follower_reads_the_checkpoint_and_writes_nothing(tmp_path):
    with Run(tmp_path, "adapt", CONFIG):
        write_tensors(tmp_path / "last.safetensors", {"x": torch.ones(1)}, {"step": 5})
        before = names(tmp_path)
        with Run(tmp_path, "adapt", CONFIG, writer=False) as follower:
            assert follower.checkpoint()[1] == {"step": 5}
            follower.log({"kind": "train"})
            follower.rewind("adapt", 0)
        assert names(tmp_path) == before


def test_rewind_drops_later_steps_of_this_stage_only(tmp_path):
    with Run(tmp_path, "adapt", CONFIG) as run:
        for stage, step in (("teacher", 9), ("adapt", 2), ("adapt", 4), ("adapt", 6)):
            run.log({"stage": stage, "step": step})
        run.rewind("adapt", 4)
        kept = [(r["stage"], r["step"]) for r in read_log(tmp_path / "log.jsonl")]
    assert kept == [("teacher", 9), ("adapt", 2), ("adapt", 4)]


def test_a_line_cut_short_spoils_no_other(tmp_path):
    with Run(tmp_path, "adapt", CONFIG) as run:
        run.log({"stage": "adapt", "step": 1})
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"stage": "adapt", "st')  # killed here
        run.rewind("adapt", 1)
        run.log({"stage": "adapt", "step": 2})
        assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_json_never_holds_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.0]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"x": None, "y": [None, 1.0]}


def test_a_chain_of_runs_that_moved_together_goes_on(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder / "taps").mkdir(parents=True)
    here, there = (str(tmp_path / folder / "taps") for folder in ("here", "there"))
    with Run(tmp_path / "pruned", "prune", {"run": here}):
        pass
    with pytest.raises(BadInput, match="belongs to another command"):
        Run(tmp_path / "pruned", "prune", {"run": there})  # the other one is still there
    (tmp_path / "here" / "taps").rmdir()
    with Run(tmp_path / "pruned", "prune", {"run": there}) as run:
        assert run.result is None
    with pytest.raises(BadInput, match="belongs to another command"):
        Run(tmp_path / "pruned", "prune", {"run": str(tmp_path / "there")})
