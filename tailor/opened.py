"""Opened runs: a finished run directory rebuilt as backbone, task and student."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tailor import catalog
from tailor.backbone import Backbone
from tailor.data import Batches, View
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.options import Data, Net, Split
from tailor.run import read_json, read_tensors
from tailor.settings import Settings, pick_device
from tailor.student import Gated, Student
from tailor.task import Task, open_task
from tailor.teacher import Teacher
from tailor.train import evaluate as accuracy


@dataclass
class Opened:
    """A finished run, rebuilt: what ``evaluate``, ``prune``, ``retrain`` and ``merge`` start
    from."""

    path: Path
    result: dict[str, Any]
    student: Student

    @property
    def data(self) -> Data:
        """The data options of the run."""
        return Data(**self.result["config"]["data"])


def open_run(path: str | Path) -> Opened:
    """Rebuild the student of a finished run.

    Raises:
        BadInput: no finished run there, or the backbone's weights are not those of the run.
    """
    path = Path(path)
    if not path.is_dir():
        raise BadInput(f"run {str(path)!r} does not exist; `--out` of teach or adapt makes one")
    if not (path / "run.json").exists():
        raise BadInput(f"{path} is no run directory; name one that `--out` of a command made")
    if not (path / "result.json").exists():
        raise BadInput(f"run {path} is not finished; repeat the command that made it")
    result = dict(read_json(path / "result.json"))
    if missing := {"config", "stage", "task", "metric"} - result.keys():
        raise BadInput(
            f"{path}/result.json lacks {min(missing)!r}, so it is damaged; restore it, or delete "
            f"the run and repeat its command"
        )
    config = result["config"]
    net = Net(**config["net"])
    backbone = backbone_of(net, Data(**config["data"]))
    if (now := backbone.fingerprint()) != config["fingerprint"]:
        raise BadInput(
            f"{path} belongs to backbone {config['fingerprint'][:8]}, but {net.backbone} with "
            f"weights {net.weights} is {now[:8]}; put the weights of that run back"
        )
    method = catalog.load("students", config["method"], "method")
    settings = _moved_along(path, method.Config(**config["settings"]))
    classes = len(config["classes"])
    if result.get("kept") is None:
        student = method.build(backbone, classes, settings, seed=config["train"]["seed"])
    else:
        student = method.rebuild(backbone, classes, settings, kept=result["kept"])
    tensors, _ = read_tensors(path / "student.safetensors")
    try:
        student.task.load_state_dict(tensors)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise BadInput(f"{path}/student.safetensors is not of this run ({why})") from error
    return Opened(path, result, student.eval())


def _moved_along(path: Path, settings: Any) -> Any:
    """Settings that name a basis, which lies beside the run, where that folder is now."""
    named = getattr(settings, "basis", "")
    beside = path.resolve().parent / Path(named).name
    if named and not Path(named).exists() and beside.exists():
        return dataclasses.replace(settings, basis=str(beside))
    return settings


def batches(
    task: Task,
    split: Split,
    backbone: Backbone,
    data: Data,
    settings: Settings,
    *,
    train: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Batches:
    """The batches of a split, seen as ``backbone`` expects them."""
    group = Group.current()
    channels, _, px = backbone.input_size
    own = data.normalize == "task"
    view = View(
        px=px,
        resize=data.resize,
        squash=data.squash,
        crop=data.crop,
        pad=data.pad,
        flip=data.flip,
        color=data.color,
        contrast=data.contrast,
        saturation=data.saturation,
        channels=channels,
        mean=task.mean if own else backbone.mean,
        std=task.std if own else backbone.std,
    )
    return Batches(
        task.splits[split],
        view,
        batch=settings.batch if train else max(settings.batch, 64),
        seed=settings.seed,
        train=train,
        device=pick_device(settings.device),
        rank=group.rank,
        world=group.world,
        memory_limit_bytes=int(data.memory_gb * 2**30),
        workers=data.workers,
        skip_bad_images=data.skip_bad_images,
        progress=progress,
    )


def backbone_of(net: Net, data: Data) -> Backbone:
    return Backbone.create(net.backbone, weights=net.weights, px=data.px)


def task_of(data: Data) -> Task:
    """The task that the options name, with its splits."""
    root = Path(data.root) if data.root else None
    return open_task(
        data.task, root, val_share=data.val_share, limit=data.limit, download=data.download
    )


def teacher_of(student: Student, path: Path, classes: Sequence[str], data: Data) -> Teacher:
    """The finished run at ``path`` as a teacher of ``student``.

    Args:
        student: whose backbone the teacher must share the architecture and input size of.
        path: a run of `tailor teach`, or of any method that leaves all blocks in place.
        classes: of the student's task; the teacher must know the same ones.
        data: how the student sees images; the teacher will see the same ones.

    Raises:
        BadInput: no such run, or one that cannot teach this student; names what differs.
    """
    try:
        opened = open_run(path)
    except BadInput as error:
        raise BadInput(f"teacher: {error} (name it with --teacher RUN)") from error
    theirs, ours = opened.student.universal, student.universal
    config = opened.result["config"]
    facts = [
        ("backbone", theirs.name, ours.name),
        ("input size", theirs.input_size, ours.input_size),
        ("number of classes", len(config["classes"]), len(classes)),
        ("classes", list(config["classes"]), list(classes)),
        ("--normalize", opened.data.normalize, data.normalize),
        ("mean", list(theirs.mean), list(ours.mean)),
    ]
    for what, there, here in facts:
        if there != here:
            raise BadInput(
                f"teacher {path} has {what} {_short(there)}, the student {_short(here)}; teach one "
                f"with `tailor teach --task {data.task} --backbone {ours.name} "
                f"--px {ours.input_size[-1]}`"
            )
    blocks = [block.name for block in ours.blocks]
    gates = opened.student.gates() if isinstance(opened.student, Gated) else []
    if any(gate.kind == "universal" for gate in gates):
        raise BadInput(
            f"teacher {path} mixes blocks with proxies (method {opened.student.method!r}), so its "
            f"blocks have no outputs to learn from; give the run of `tailor teach`"
        )
    network = opened.student.merge()
    inside = {name for name, _ in network.named_modules()}
    # Where the architecture has no place for a head, merging makes a sequence of body and head.
    return Teacher(network, [n if n in inside else f"0.{n}" for n in blocks])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def measure(
    student: Student, task: Task, split: Split, data: Data, settings: Settings
) -> tuple[float, int]:
    found = batches(task, split, student.universal, data, settings)
    assert isinstance(student, nn.Module)
    student.to(found.device)
    return accuracy(student, found, bf16=settings.bf16), len(found.split)
