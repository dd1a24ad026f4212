"""The verbs: teach, adapt, prune, retrain, merge, evaluate, each from its options to a run
directory.

The command line and the demos call these functions; each one reads like the step it is. A finished
run is found and returned, an unfinished one continued. Left out: how options are parsed
(``cli.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from torch import nn

from tailor import catalog, cost
from tailor.backbone import Backbone
from tailor.data import Batches, View
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.progress import Progress, Silent, for_terminal
from tailor.prune import prune as prune_student
from tailor.run import Run, read_json, read_tensors, write_json, write_tensors
from tailor.student import Student
from tailor.task import Task, open_task
from tailor.train import Fitted, Settings, pick_device
from tailor.train import evaluate as accuracy
from tailor.train import fit as train_student

Split = Literal["train", "val", "test"]
Mode = Literal["finetune", "scratch", "probe"]
# The best epoch may lie before the price has acted, so the last one is kept. The rate stays up
# while layers are selected, and falls while the pruned student is retrained: one schedule, not two.
SELECTING = Settings(select="last", schedule="constant")
C = TypeVar("C")  # a method's own options


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and how the network sees them."""

    task: str
    """A data set of `tailor list tasks`, folder:PATH, npz:PATH or torchvision:CLASS."""
    root: str | None = None
    """Folder with the data sets; $TAILOR_DATA, or ./data, by default."""
    download: bool = False
    """Fetch a missing data set where torchvision can."""
    val_share: float = 0.1
    """Share of train kept for validation where the set has no split of its own."""
    px: int | None = None
    """Side of the network's input; the backbone's own by default."""
    resize: int | None = None
    """Short side before cropping; fits the crop by default; 0 leaves images as they are."""
    squash: bool = False
    """Scale to a square whatever the aspect, instead of cutting the centre."""
    crop: Literal["none", "pad", "random", "rrc"] = "pad"
    """Training crop: the whole, a window of the padded or of the larger image, or a random resized
    crop."""
    pad: int = 4
    """Border of crop `pad`, in pixels."""
    flip: bool = False
    """Mirror half of the training images; wrong for digits and letters."""
    color: float = 0.0
    """Change brightness, contrast and saturation by up to this share."""
    normalize: Literal["backbone", "task"] = "backbone"
    """Mean and deviation that the weights expect, or those of the data set."""
    skip_bad_images: bool = False
    """Leave unreadable images out and count them, instead of stopping."""
    memory_gb: float = 4.0
    """Larger sets are streamed by worker processes instead of kept in memory."""
    workers: int = 2
    """Threads or processes that decode images."""


@dataclass(frozen=True, kw_only=True)
class Net:
    """Which backbone, and where its numbers come from."""

    backbone: str = "resnet34"
    """Any timm model or one of ours: `tailor list backbones`."""
    weights: str = "pretrained"
    """pretrained (timm fetches them), random, a safetensors or .pth file, or a teacher's run."""


@dataclass(frozen=True, kw_only=True)
class Teach:
    """Train a teacher: the whole network fine-tuned, from scratch, or only a head (probe).

    Its weights become universal blocks for other tasks with --weights RUN.

    Example: tailor teach --task svhn --backbone resnet34 --out runs/svhn/teacher
    """

    out: Path
    """Run directory; repeating the command continues or shows it."""
    mode: Mode = "finetune"
    """What to train."""
    data: Data
    net: Net = field(default_factory=Net)
    train: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class Adapt(Generic[C]):
    """Adapt a frozen backbone to a task, learning where it must change.

    Example: tailor adapt --task svhn --method taps --backbone resnet34 --lam 0.1 --out
    runs/svhn/taps
    """

    out: Path
    """Run directory; repeating the command continues or shows it."""
    method: str = "taps"
    """A method of `tailor list methods`; it brings options of its own."""
    data: Data
    net: Net = field(default_factory=Net)
    settings: C
    train: Settings = field(default_factory=lambda: SELECTING)


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove every layer that a student switched off; the result is a smaller student.

    Example: tailor prune runs/svhn/taps --out runs/svhn/taps-pruned --budget params=0.2
    """

    run: Path
    """A finished run of a method with gates."""
    out: Path
    """Run directory of the smaller student."""
    threshold: float | None = None
    """Keep layers with at least this score instead of the student's own threshold."""
    budget: str | None = None
    """Keep the highest scores that fit, such as params=0.2 (share of the backbone)."""


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Continue a pruned student without scores and without a price.

    Example: tailor retrain runs/svhn/taps-pruned --epochs 5
    """

    run: Path
    """A pruned run; it stays as it is."""
    out: Path | None = None
    """Run directory; RUN-retrained by default."""
    train: Settings = field(default_factory=Settings)


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


Reporter = Callable[[str], Progress]  # title -> who is told


def _nobody(_: str) -> Progress:
    return Silent()


def teach(options: Teach, *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Train a teacher; its plain weights are left in ``weights.safetensors``.

    Returns:
        The run's result, as in result.json.

    Raises:
        BadInput: see ``Backbone.create``, ``open_task``, ``Batches``, ``fit``.
    """
    net = options.net
    if options.mode == "scratch" and net.weights == "pretrained":
        net = dataclasses.replace(net, weights="random")
    return _train_new(options.mode, None, net, options, "teacher", tell, command)


def adapt(options: Adapt[Any], *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Train a student of ``options.method``; see ``teach`` for what comes back."""
    return _train_new(
        options.method, options.settings, options.net, options, "adapt", tell, command
    )


def _train_new(
    name: str,
    settings: Any,
    net: Net,
    options: Teach | Adapt[Any],
    stage: str,
    tell: Reporter,
    command: str,
) -> dict[str, Any]:
    # Cheap checks first: fetching weights or decoding images may take minutes.
    method = catalog.load("students", name, "method")
    options.train.check()
    task = _task(options.data)
    backbone = _backbone(net, options.data)
    student = method.build(backbone, len(task.classes), settings, seed=options.train.seed)
    return fit(
        student,
        task,
        out=options.out,
        train=options.train,
        data=options.data,
        stage=stage,
        tell=tell,
        command=command,
    )


def fit(
    student: Student,
    task: Task,
    *,
    out: str | Path,
    train: Settings | None = None,
    data: Data | None = None,
    stage: str = "adapt",
    tell: Reporter | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train any student on a task, in a run directory that every verb understands.

    Args:
        student: from a method's ``build``; trained in place.
        task: from ``open_task``.
        out: run directory; continued or shown where it exists.
        train: how to train; ``SELECTING`` by default.
        data: how images are seen; the backbone's size and normalisation by default.
        stage: ``adapt``, or ``teacher`` for a reference.
        tell: who is told; a progress bar where somebody watches.
        command: what to show as the origin of the run.

    Returns:
        The run's result, as in result.json.

    Raises:
        BadInput: the directory belongs to something else, or training is impossible.
    """
    train = train or SELECTING
    backbone = student.universal
    data = data or Data(task=task.spec, root=task.root)
    data = dataclasses.replace(data, px=backbone.input_size[-1])
    settings = getattr(student, "config", None)
    config = {
        "method": student.method,
        "data": dataclasses.asdict(data),
        "net": {"backbone": backbone.name, "weights": _resolved(backbone.weights)},
        "settings": dataclasses.asdict(settings) if settings is not None else {},
        "train": dataclasses.asdict(train),
        "fingerprint": backbone.fingerprint(),
        "classes": list(task.classes),
    }
    verb, out = "teach" if stage == "teacher" else "adapt", Path(out)
    progress = (tell or for_terminal)(f"{stage} {out.name}")
    # A new directory is only made once nothing more can be wrong with the data.
    splits = None if out.exists() else _splits(task, backbone, data, train, progress)
    with _open_run(out, verb, config, command) as run:
        if (done := run.result) is not None:
            return done
        splits = splits or _splits(task, backbone, data, train, progress)
        fitted = train_student(student, *splits, train, run=run, stage=stage, progress=progress)
        facts = {"task": task.name, "metric": task.metric, "config": config, "kept": None}
        return _finish(run, student, task, fitted, facts, stage, train)


def prune(options: Prune, *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Make a smaller student of a finished run; its accuracy is measured before any retraining."""
    opened = open_run(options.run)
    budget = cost.Budget.parse(options.budget) if options.budget else None
    smaller, report = prune_student(opened.student, threshold=options.threshold, budget=budget)
    config = {
        "run": str(options.run.resolve()),
        "threshold": options.threshold,
        "budget": options.budget,
    }
    settings = Settings(**opened.result["config"]["train"])
    task = _task(opened.data)
    with _open_run(options.out, "prune", config, command) as run:
        if (done := run.result) is not None:
            return done
        val = _measure(smaller, task, "val", opened.data, settings)[0]
        facts = _inherited(opened) | {"kept": list(report.kept), "pruned_by": report.why}
        fitted = Fitted(val, 0, 0.0)
        return _finish(run, smaller, task, fitted, facts, "pruned", settings)


def retrain(options: Retrain, *, tell: Reporter = _nobody, command: str = "") -> dict[str, Any]:
    """Continue a pruned student from its trained weights."""
    options.train.check()
    opened = open_run(options.run)
    if opened.result["stage"] != "pruned":
        raise BadInput(
            f"{options.run} is a run of stage {opened.result['stage']!r}, not a pruned one; "
            f"first `tailor prune {options.run} --out {options.run}-pruned`"
        )
    out = options.out or options.run.with_name(options.run.name + "-retrained")
    task = _task(opened.data)
    config = {
        "run": str(options.run.resolve()),
        "train": dataclasses.asdict(options.train),
        "kept": opened.result["kept"],
    }
    progress = tell(f"retrain {out.name}")
    student, train = opened.student, options.train
    splits = (
        None if out.exists() else _splits(task, student.universal, opened.data, train, progress)
    )
    with _open_run(out, "retrain", config, command) as run:
        if (done := run.result) is not None:
            return done
        splits = splits or _splits(task, student.universal, opened.data, train, progress)
        fitted = train_student(student, *splits, train, run=run, stage="retrain", progress=progress)
        facts = _inherited(opened) | {"kept": opened.result["kept"]}
        return _finish(run, student, task, fitted, facts, "retrained", train)


def evaluate(
    path: Path, *, split: Split = "test", device: str = "auto", root: str | None = None
) -> dict[str, Any]:
    """Measure a finished run again: {run, task, split, metric, value, n}.

    Args:
        path: the run.
        split: which images; ``val`` where the task has no test split.
        device: where to compute.
        root: the data sets' folder, if it moved since.
    """
    opened = open_run(path)
    data = dataclasses.replace(opened.data, root=root) if root else opened.data
    settings = dataclasses.replace(Settings(**opened.result["config"]["train"]), device=device)
    task = _task(data)
    if split not in task.splits:
        raise BadInput(
            f"task {task.name} has no {split} split; give --split {' or '.join(task.splits)}"
        )
    value, images = _measure(opened.student, task, split, data, settings)
    return {
        "run": str(path),
        "task": task.name,
        "split": split,
        "metric": task.metric,
        "value": value,
        "n": images,
    }


def merge(path: Path, out: Path) -> dict[str, Any]:
    """Write a finished run as one plain state dict (timm names), everything folded in."""
    opened = open_run(path)
    network = opened.student.merge()
    if out.suffix != ".safetensors":
        raise BadInput(f"{out} does not end in .safetensors; name the file so")
    backbone = opened.student.universal
    about = {
        "backbone": backbone.name,
        "classes": opened.result["config"]["classes"],
        "input_size": backbone.input_size,
        "mean": backbone.mean,
        "std": backbone.std,
    }
    write_tensors(out, network.state_dict(), about)
    return {
        "run": str(path),
        "out": str(out),
        "backbone": opened.student.universal.name,
        "classes": len(opened.result["config"]["classes"]),
        "bytes": cost.file_bytes(out),
    }


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
    config = result["config"]
    net = Net(**config["net"])
    backbone = _backbone(net, Data(**config["data"]))
    if (now := backbone.fingerprint()) != config["fingerprint"]:
        raise BadInput(
            f"{path} belongs to backbone {config['fingerprint'][:8]}, but {net.backbone} with "
            f"weights {net.weights} is {now[:8]}; put the weights of that run back"
        )
    method = catalog.load("students", config["method"], "method")
    settings = method.Config(**config["settings"])
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


def _backbone(net: Net, data: Data) -> Backbone:
    return Backbone.create(net.backbone, weights=net.weights, px=data.px)


def _task(data: Data) -> Task:
    root = Path(data.root) if data.root else None
    return open_task(data.task, root, val_share=data.val_share, download=data.download)


def _resolved(weights: str) -> str:
    return weights if weights in ("pretrained", "random") else str(Path(weights).resolve())


def _open_run(path: Path, verb: str, config: dict[str, Any], command: str) -> Run:
    """Process 0 writes, the others follow."""
    group = Group.current()
    if group.rank == 0:
        run = Run(path, verb, config, command)
        group.wait()
        return run
    group.wait()
    return Run(path, verb, config, command, writer=False)


def _splits(
    task: Task, backbone: Backbone, data: Data, settings: Settings, progress: Progress
) -> tuple[Batches, Batches]:
    """Training and validation batches; bad images that were left out are counted aloud."""
    train = batches(task, "train", backbone, data, settings, train=True)
    val = batches(task, "val", backbone, data, settings)
    for name, found in (("train", train), ("val", val)):
        if found.skipped:
            count = len(found.skipped)
            progress.say(f"left out {count} bad images of {name}, such as {found.skipped[0]}")
    return train, val


def _measure(
    student: Student, task: Task, split: Split, data: Data, settings: Settings
) -> tuple[float, int]:
    found = batches(task, split, student.universal, data, settings)
    assert isinstance(student, nn.Module)
    student.to(found.device)
    return accuracy(student, found, bf16=settings.bf16), len(found.split)


def _inherited(opened: Opened) -> dict[str, Any]:
    facts = ("task", "metric", "config")
    return {name: opened.result[name] for name in facts} | {"from": str(opened.path)}


def _finish(
    run: Run,
    student: Student,
    task: Task,
    fitted: Fitted,
    facts: Mapping[str, Any],
    stage: str,
    settings: Settings,
) -> dict[str, Any]:
    """Measure on the test split, save the student, and write the result that ends the run."""
    data = Data(**facts["config"]["data"])
    test = None
    if "test" in task.splits:
        test = _measure(student, task, "test", data, settings)[0]
    file = run.path / "student.safetensors"
    assert isinstance(student, nn.Module)
    student.to("cpu")
    if Group.current().rank == 0:
        write_tensors(file, student.task.state_dict(), {"method": facts["config"]["method"]})
    Group.current().wait()
    config, states = facts["config"], student.layer_states()
    params = parameters(student)
    merged = student.merge()
    if config["method"] in ("finetune", "scratch") and Group.current().rank == 0:
        write_tensors(run.path / "weights.safetensors", merged.state_dict())
    size = student.universal.input_size
    head = cost.linear_macs(student.universal.num_features, len(task.classes))
    record = read_json(run.path / "run.json")
    result = {
        "run": str(run.path),
        "task": facts["task"],
        "method": config["method"],
        "backbone": config["net"]["backbone"],
        "seed": config["train"]["seed"],
        "stage": stage,
        "metric": facts["metric"],
        "val": fitted.val,
        "test": test,
        "layers": len(states),
        "layers_adapted": sum(s.on for s in states),
        "params": dataclasses.asdict(params) | {"task": params.task, "multiple": params.multiple},
        "macs": {
            "backbone": cost.total_macs(student.universal.model, size),
            "student": cost.total_macs(merged, size) - head,
        },
        "bytes": cost.file_bytes(file),
        "seconds": fitted.seconds,
        "best_epoch": fitted.epoch,
        "lam": config["settings"].get("lam"),
        "price": config["settings"].get("price"),
        "fingerprint": config["fingerprint"],
        "command": record["command"],
        "made_by": record["made_by"],
        "layer_states": [dataclasses.asdict(s) for s in states],
        **facts,
    }
    if Group.current().rank == 0:
        write_json(run.path / "result.json", result)
        (run.path / "last.safetensors").unlink(missing_ok=True)
        (run.path / "best.safetensors").unlink(missing_ok=True)
    Group.current().wait()
    return dict(read_json(run.path / "result.json"))


def parameters(student: Student) -> cost.Params:
    """What ``student`` adds to its backbone, every kind apart; equal to what its file holds."""
    return cost.account(
        student.universal.model, student.roles(), (b for b in student.task.buffers())
    )
