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
from tailor.link import remember
from tailor.options import Data, Net, Split
from tailor.run import SEQUENCE, read_object, read_tensors
from tailor.settings import Settings, pick_device
from tailor.student import Gated, Student
from tailor.target import CLASS, Target, read_back
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
    result = result_of(path)
    config = result["config"]
    net = Net(**config["net"])
    backbone = backbone_of(net, Data(**config["data"]))
    if (now := backbone.fingerprint()) != config["fingerprint"]:
        raise BadInput(
            f"{path} belongs to backbone {config['fingerprint'][:8]}, but {net.backbone} with "
            f"weights {net.weights} is {now[:8]}; put the weights of that run back"
        )
    before: list[Student] = []
    for name in config.get("before", ()):  # of a sequence whose tasks share something
        earlier = path.resolve().parent / name
        before.append(student_of(earlier, result_of(earlier), backbone, before))
    return Opened(path, result, student_of(path, result, backbone, before))


def result_of(path: Path) -> dict[str, Any]:
    """What a finished run says.

    Raises:
        BadInput: no finished run there.
    """
    if (path / SEQUENCE).exists():
        raise BadInput(
            f"{path} is a sequence of runs: `tailor evaluate {path} --task NAME` measures a task "
            f"as the last one left it; name one of its runs, such as {path}/01-..., for all else"
        )
    if not path.is_dir():
        raise BadInput(f"run {str(path)!r} does not exist; `--out` of teach or adapt makes one")
    if not (path / "run.json").exists():
        raise BadInput(f"{path} is no run directory; name one that `--out` of a command made")
    if not (path / "result.json").exists():
        raise BadInput(f"run {path} is not finished; repeat the command that made it")
    result = read_object(path / "result.json")
    if missing := {"config", "stage", "task", "metric"} - result.keys():
        raise BadInput(
            f"{path}/result.json lacks {min(missing)!r}, so it is damaged; restore it, or delete "
            f"the run and repeat its command"
        )
    if result["stage"] == "distilled":
        raise BadInput(
            f"{path} is the run of a side network, which is no student; start one from it with "
            f"`tailor adapt --method side_tuning --side-weights {path}`"
        )
    return result


def student_of(
    path: Path, result: dict[str, Any], backbone: Backbone, before: Sequence[Student] = ()
) -> Student:
    """The student of a finished run, in evaluation mode.

    Args:
        path: the run; ``result`` what it says.
        backbone: with the weights that it was trained on.
        before: students of the earlier tasks of its sequence, where it was made from them; what it
            shares with them is overwritten by what it was when this run ended.

    Raises:
        BadInput: its files are missing or damaged.
    """
    config = result["config"]
    method = catalog.load("students", config["method"], "method")
    settings = _moved_along(path, method.Config(**config["settings"]))
    classes, seed = len(config["classes"]), config["train"]["seed"]
    backbone = backbone.seen_by(read_back(config), config["net"].get("decoder", "light"))
    if config.get("before") and result.get("kept") is None:
        student = method.sequel(before, backbone, classes, settings, seed=seed)
    elif result.get("kept") is None:
        student = method.build(backbone, classes, settings, seed=seed)
    else:
        student = method.rebuild(backbone, classes, settings, kept=result["kept"])
    read_into(student, path)
    found: Student = student.eval()
    return found


def read_into(student: Student, path: Path) -> None:
    """Give a student what it was when the run at ``path`` ended.

    Raises:
        BadInput: the files are missing, damaged or of another student.
    """
    tensors, _ = read_tensors(path / "student.safetensors")
    try:
        student.task.load_state_dict(tensors)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise BadInput(f"{path}/student.safetensors is not of this run ({why})") from error
    remember(student, path)


def _moved_along(path: Path, settings: Any) -> Any:
    """Settings that name a basis, which lies beside the run, where that folder is now; and without
    the file that a side network only started from."""
    if getattr(settings, "side_weights", ""):
        settings = dataclasses.replace(settings, side_weights="")
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
        steps_per_epoch=settings.steps_per_epoch if train else None,
        device=pick_device(settings.device),
        rank=group.rank,
        world=group.world,
        memory_limit_bytes=int(data.memory_gb * 2**30),
        workers=data.workers,
        skip_bad_images=data.skip_bad_images,
        progress=progress,
    )


def backbone_of(net: Net, data: Data, target: Target = CLASS) -> Backbone:
    """The trunk that the options name, as a task of this target sees it."""
    trunk = Backbone.create(net.backbone, weights=net.weights, px=data.px)
    return trunk.seen_by(target, net.decoder)


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
        ("labels of pixels", theirs.dense, ours.dense),
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
    """The metric of a split of the task, and how many images that are."""
    found = batches(task, split, student.universal, data, settings)
    assert isinstance(student, nn.Module)
    student.to(found.device)
    return accuracy(student, found, bf16=settings.bf16), len(found.split)


def validated(student: Student, task: Task, data: Data, settings: Settings) -> float | None:
    """The metric of the validation split; None where all of train is trained on."""
    return measure(student, task, "val", data, settings)[0] if "val" in task.splits else None
