"""Options of the verbs: dataclasses that the command line and Python callers fill in.

A field's docstring is its ``--help``. A field exists only while code reads it. Left out: how they
are parsed (``cli.py``) and what they do (``workflow.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from tailor.settings import Recipe, Settings, added

Split = Literal["train", "val", "test"]
Mode = Literal["finetune", "scratch", "probe"]
# The best epoch may lie before the price has acted, so the last one is kept. The rate stays up
# while layers are selected, and falls while the pruned student is retrained: one schedule, not two.
SELECTING = Settings(select="last", schedule="constant")
IMITATING = Settings(optimizer="adam", lr=1e-3, weight_decay=1e-6)  # as the published side networks
Objective = Literal["val", "params", "macs", "bytes", "latency"]
C = TypeVar("C")  # a method's own options


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where images lie, and how the network sees them."""

    root: str | None = None
    """Folder with the data sets; $TAILOR_DATA, or ./data, by default."""
    download: bool = False
    """Fetch a missing data set where torchvision can."""
    val_share: float = 0.1
    """Share of train kept for validation where the set has no split of its own; 0 trains on all,
    without validation."""
    limit: int | None = None
    """Use at most so many training images, the same share of every class."""
    px: int | None = None
    """Side of the network's input; the backbone's own by default."""
    resize: int | None = None
    """Short side before cropping; fits the crop by default; 0 leaves images as they are."""
    squash: bool = False
    """Scale to a square whatever the aspect, instead of cutting the centre."""
    crop: Literal["none", "pad", "reflect", "random", "rrc"] = "pad"
    """Training crop: the whole, a window of the image with a black (pad) or mirrored (reflect)
    border or of the larger image (random), or a random resized crop."""
    pad: int = 4
    """Border of crops `pad` and `reflect`, in pixels."""
    flip: bool = False
    """Mirror half of the training images; wrong for digits and letters."""
    color: float = 0.0
    """Change brightness, contrast and saturation by up to this share."""
    contrast: float | None = added(None)
    """Change contrast by up to this share, other than --color."""
    saturation: float | None = added(None)
    """Change saturation by up to this share, other than --color."""
    normalize: Literal["backbone", "task"] = "backbone"
    """Mean and deviation that the weights expect, or those of the data set."""
    skip_bad_images: bool = False
    """Leave unreadable images out and count them, instead of stopping."""
    memory_gb: float = 4.0
    """Larger sets are streamed by worker processes instead of kept in memory."""
    workers: int = 2
    """Threads or processes that decode images."""
    cache: str = added("auto")
    """Where training sees each image in one way (--crop none, which is not the default), what the
    frozen start of the network returns for it is computed once: kept in memory if it fits (auto),
    in memory (memory), in a folder that later runs, seeds and tasks share (its name), or not at all
    (off)."""


@dataclass(frozen=True, kw_only=True)
class Data(Images):
    """Which images, and how the network sees them."""

    task: str
    """A data set of `tailor list tasks`, folder:PATH, npz:PATH, torchvision:CLASS or
    decathlon:NAME."""


@dataclass(frozen=True, kw_only=True)
class Net:
    """Which backbone, and where its numbers come from."""

    backbone: str = "resnet34"
    """Any timm model or one of ours: `tailor list backbones`."""
    weights: str = "pretrained"
    """pretrained (timm fetches them), random, a safetensors or .pth file, or a teacher's run."""
    decoder: Literal["light", "taskonomy"] = added("light")
    """What turns a feature map into labels of pixels: a small decoder, or the large published one
    of Taskonomy (for taskonomy_resnet50, and for its classes too)."""


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

    Each method has options of its own: `tailor adapt --method nettailor --help` shows NetTailor's.

    Example: tailor adapt --task svhn --method taps --backbone resnet34 --lam 0.1 --out
    runs/svhn/taps
    """

    out: Path
    """Run directory; repeating the command continues or shows it."""
    method: str = "taps"
    """A method of `tailor list methods`; it brings options of its own."""
    teacher: Path | None = None
    """Run of a finished teacher of this task on this backbone, for methods that distil."""
    data: Data
    net: Net = field(default_factory=Net)
    settings: C
    train: Settings = field(default_factory=lambda: SELECTING)


@dataclass(frozen=True, kw_only=True)
class Together(Generic[C]):
    """Adapt one trunk to several tasks at once, one training step of each in turn.

    The trunk is in memory once, and every task ends with what `tailor adapt` would give it alone.
    Each has a run directory of its own, OUT/TASK. Repeating the command continues all of them; with
    another --task more, only that one is new. A task that fails does not stop the others.

    Each method has options of its own: `tailor together --method taps --help` shows TAPS's.

    Example: tailor together --task svhn gtsrb dtd --method residual_adapters --backbone resnet34
    --px 64 --out runs/many
    """

    out: Path
    """Folder for the run directories; repeating the command continues or shows them."""
    task: tuple[str, ...]
    """Data sets of `tailor list tasks`, folder:PATH, npz:PATH, torchvision:CLASS or
    decathlon:NAME."""
    method: str = "taps"
    """A method of `tailor list methods`; it brings options of its own."""
    teacher: tuple[Path, ...] = ()
    """Runs of finished teachers for a method that distils: one per task, in the same order."""
    images: Images = field(default_factory=Images)
    net: Net = field(default_factory=Net)
    settings: C
    train: Settings = field(default_factory=lambda: SELECTING)


@dataclass(frozen=True, kw_only=True)
class Lifelong(Generic[C]):
    """Learn tasks one after the other, without going back, and measure all of them after each.

    OUT/matrix.json says how good every task was after every task: what was forgotten, what helped.
    Methods on the frozen backbone forget nothing; finetune, ewc and others share a body between
    tasks and may. Each task is a run of its own, OUT/01-NAME; at test its name is known. Repeating
    the command continues or shows the sequence; with more --task behind, only those are learned.

    A known sequence brings its authors' settings as defaults: `tailor list sequences`. Each method
    has options of its own: `tailor lifelong --method ewc --help` shows EWC's.

    Example: tailor lifelong --sequence icifar --method side_tuning --weights resnet44.safetensors
    --out runs/icifar

    Example: tailor lifelong --task svhn dtd gtsrb --method finetune --backbone resnet34 --px 64
    --out runs/lifelong

    Example: tailor evaluate runs/lifelong --task svhn
    """

    out: Path
    """Folder for the runs and matrix.json; repeating the command continues or shows them."""
    sequence: str | None = None
    """A sequence of `tailor list sequences`, with its authors' settings as defaults."""
    task: tuple[str, ...] = ()
    """Or any tasks in order: data sets of `tailor list tasks`, folder:PATH, classes:TASK:0-9."""
    method: str = "side_tuning"
    """A method of `tailor list methods`; it brings options of its own."""
    carry_optimizer: bool = True
    """What tasks share goes on with the optimiser's state (momentum, Adam's moments), as if one
    optimiser had trained all tasks."""
    retrain_epochs: int | None = None
    """Of a method with gates: prune each task's student and retrain it for so many epochs before
    the next task."""
    alone: bool = False
    """Also train every task as if it were the first, in OUT/alone: what it could be without the
    others. Methods whose tasks share nothing know it anyway."""
    images: Images = field(default_factory=Images)
    net: Net = field(default_factory=Net)
    settings: C
    train: Settings = field(default_factory=lambda: SELECTING)


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """What a side network learns to say like the backbone, and which side network."""

    loss: Literal["soft_ce", "features", "perceptual"] = "soft_ce"
    """Cross-entropy with the probabilities of the backbone's own classifier (soft_ce), squared
    error of features, or the distance of what a frozen head makes of both (perceptual)."""
    distance: Literal["l2", "l1", "soft_ce"] = "l2"
    """Of --loss perceptual, between the head's outputs."""
    head: str = ""
    """Of --loss perceptual: the run of a probe, whose head is taken; the classifier of the
    backbone's weights by default."""
    side: str = "fcn4"
    """The side network: fcn4, fcn5, narrow or timm:NAME."""
    width: float = 0.25
    """Of --side narrow: 1, 0.5, 0.25 or another 1/k of the backbone's channels."""
    side_init: Literal["random", "copy"] = "random"
    """Start a side of the backbone's own architecture from its weights (copy)."""
    side_weights: str = ""
    """Start the side from this file, or from another run of `tailor distill`."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Train a side network to say what the backbone says, on the images of any task.

    Labels are not used. The result, OUT/side.safetensors, is what side-tuning starts from:
    `tailor adapt --method side_tuning --side-weights OUT`.

    Example: tailor distill --task npz:data/source_objects --backbone resnet44 --weights
    resnet44.safetensors --epochs 20 --batch 128 --flip --out runs/side

    Example: tailor distill --task npz:data/source_objects --backbone resnet44 --weights
    resnet44.safetensors --loss perceptual --head runs/probe --out runs/side
    """

    out: Path
    """Run directory; repeating the command continues or shows it."""
    settings: Imitation = field(default_factory=Imitation)
    data: Data
    net: Net = field(default_factory=Net)
    train: Settings = field(default_factory=lambda: IMITATING)


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove what a student switched off; the result is a smaller student.

    Without a rule everything goes whose gate is off: TAPS's closed layers, NetTailor's paths with a
    gate below its threshold. Give at most one of --threshold, --count, --share, --budget, --within.

    Example: tailor prune runs/svhn/taps --out runs/svhn/taps-pruned --budget params=0.2

    Example: tailor prune runs/svhn/nt --out runs/svhn/nt-pruned --count 11 --proxy-threshold 0.075
    """

    run: Path
    """A finished run of a method with gates."""
    out: Path
    """Run directory of the smaller student."""
    threshold: float | None = None
    """Keep layers, blocks and proxies with at least this score or gate."""
    count: int | None = None
    """Remove so many layers or universal blocks, smallest scores or gates first. Proxies below
    their threshold go too, and blocks that nothing arrives at or leaves then."""
    share: float | None = None
    """Remove this share of the layers or universal blocks, in [0, 1]."""
    budget: str | None = None
    """Keep the largest that fit: params (added) and macs (left) as shares of the backbone, bytes
    of the file; such as params=0.2,macs=0.6."""
    within: float | None = None
    """Search the smallest student whose validation metric stays within so many points of the
    teacher's (of its own before pruning, without a teacher)."""
    trial_epochs: int = 0
    """Retrain every candidate of --within for so many epochs before it is measured."""
    proxy_threshold: float | None = None
    """Keep proxies with at least this gate, whatever happens to the universal blocks."""
    renormalise: bool = False
    """Let the gates of what is left sum to 1 again, as NetTailor's published program."""
    teacher: Path | None = None
    """The teacher's run, if it moved since."""


@dataclass(frozen=True, kw_only=True)
class Compress:
    """Put the residual adapters of several tasks on one shared basis, by a joint SVD per layer.

    The basis is written once, OUT/basis.safetensors, and frozen; each task keeps its factors in a
    run directory OUT/TASK, measured as it is. `tailor retrain OUT/TASK` lets the factors learn.

    Example: tailor compress runs/many/* --out runs/compressed --share 0.5
    """

    runs: tuple[Path, ...] = ()
    """Finished runs of residual_adapters on one backbone, one per task."""
    out: Path
    """Folder for the basis and the runs; repeating the command shows them."""
    rank: int | None = None
    """Rank of the basis of every layer; layers that have fewer keep all."""
    share: float | None = None
    """Rank as a share of the largest that a layer can have; the paper's is 0.5."""


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Continue a pruned student without a price; it goes on learning from its teacher.

    A compressed one learns on its factors, and its basis stays as it is.

    Example: tailor retrain runs/svhn/taps-pruned --epochs 5
    """

    run: Path
    """A pruned or compressed run; it stays as it is."""
    out: Path | None = None
    """Run directory; RUN-retrained by default."""
    teacher: Path | None = None
    """The teacher's run, if it moved since."""
    distill: float | None = None
    """Another weight of the distance to the teacher; 0 retrains without."""
    train: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a student that a published program trained into a run of ours.

    A NetTailor checkpoint holds no universal weights: they are torchvision's of ImageNet.

    Example: tailor import checkpoint.pth.tar --format nettailor --task svhn --px 224 --resize 256
    --backbone resnet34.tv_in1k --out runs/svhn/published
    """

    checkpoint: Path
    """The file that the program saved; no code in it is run."""
    out: Path
    """Run directory; repeating the command shows it."""
    format: Literal["nettailor"] = "nettailor"
    """Which program saved it."""
    data: Data
    net: Net = field(default_factory=lambda: Net(backbone="resnet34.tv_in1k"))


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a finished run again, on any split.

    Example: tailor evaluate runs/svhn/taps --split val

    Example: tailor evaluate runs/lifelong --task svhn
    """

    run: Path
    """A finished run, or a sequence of `tailor lifelong` with --task."""
    task: str | None = None
    """Of a sequence: which task, by name or number from 1, measured after all of them."""
    split: Literal["train", "val", "test"] = "test"
    """Which images."""
    device: str = "auto"
    """Where to compute."""
    latency: bool = False
    """Also time one image through the merged network, and through the plain backbone in turns with
    it, on one thread of the CPU."""
    root: str | None = None
    """Folder with the data sets, if it moved since."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score the Visual Decathlon: a perfect domain earns 1000 points, plain fine-tuning 250.

    Any of the ten domains can be scored; missing ones are named and earn nothing. With a baseline
    of your own the domains may be any.

    Example: tailor score decathlon results.json --annotations data/decathlon/annotations

    Example: tailor score decathlon --accuracies mine.json --baseline finetuned.json
    """

    predictions: Path | None = None
    """The challenge's JSON, such as `tailor submit` writes: [{"image_id": 10006667,
    "category_id": 10000001}, ...], of one domain or all."""
    annotations: Path | None = None
    """Folder with the labels of the test images, NAME_test.json."""
    accuracies: Path | None = None
    """Instead of predictions: JSON that maps domains to percent of test images right."""
    baseline: Path | None = None
    """Such a map of fine-tuning to score against; the published fine-tuning by default."""


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Predict the test images of decathlon runs and write the Visual Decathlon's JSON.

    Labels of the test images are not needed.

    Example: tailor submit runs/decathlon/aircraft runs/decathlon/dtd --out results.json
    """

    runs: Annotated[tuple[Path, ...], "positional"]
    """Finished runs of tasks decathlon:NAME, one per domain."""
    out: Path = Path("results.json")
    """File to write."""
    root: str | None = None
    """Folder with the data sets, if it moved since."""
    device: str = "auto"
    """Where to compute."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Fold a finished run into one plain network: a state dict under timm's names.

    A network of NetTailor is no plain timm model: its state dict fits what
    `tailor.open_run(RUN).student.merge()` builds in Python.

    Example: tailor merge runs/svhn/taps-pruned-retrained --out svhn.safetensors
    """

    run: Path
    """A finished run."""
    out: Path
    """A .safetensors file; load it with timm.create_model(NAME, num_classes=K)."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Say which of our networks published weights belong to, and what they compute on images.

    Nothing in a file is run; it is loaded whole or not at all.

    Example: tailor weights resnet44_cifar10.safetensors sidetuning_fcn4.safetensors

    Example: tailor weights sidetuning_fcn4.safetensors --task npz:data/source_objects --teacher
    resnet44_cifar10.safetensors
    """

    files: Annotated[tuple[Path, ...], "positional"]
    """Files of weights, .safetensors or .pth, or runs of finished teachers."""
    task: str | None = None
    """Images to compute on: a data set of `tailor list tasks`, npz:PATH, ...; top-1 where the
    file's classifier has as many classes, which should then be the same ones."""
    teacher: Path | None = None
    """Another file: also say how far each of FILES agrees with it on these images."""
    split: Split = "test"
    """Which images."""
    out: Path | None = None
    """Write the file in our layout, .safetensors; of several files the network of ours whose parts
    they are."""
    images: Images = field(default_factory=Images)
    device: str = "auto"
    """Where to compute."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Tables and pictures from one or many finished runs.

    Example: tailor report runs/svhn/* --out report.html

    Example: tailor report runs/sweep --out sweep.html

    The suffix decides: .html (one self-contained page), .md (with pictures beside it), .json.
    Without --out the table is printed.
    """

    runs: Annotated[tuple[Path, ...], "positional"]
    """Run directories, or the folders of sweeps."""
    out: Path | None = None
    """File to write."""
    static: bool = False
    """Leave out the interactive chart of an .html and its 5 MB of plotly; a still picture stays."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draw the network that a run tailored: its blocks, the proxies between them, their gates.

    Example: tailor draw runs/svhn/nettailor --out network.gif

    The suffix decides: .png, .svg or .pdf show the network as the run ended, .gif every epoch.
    """

    run: Path
    """A finished run of a method with gated paths, such as nettailor."""
    out: Path
    """File to write."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Run every combination of tasks, backbones, methods, λ and seeds; or search among them.

    A method with gates is adapted, pruned and retrained, a reference (finetune, scratch, probe) is
    trained for as many epochs; NetTailor's teacher is the fine-tuned reference. Every process of
    this command is a worker: start as many as you like, on many machines with --storage
    postgresql://..., and kill any: its trial is continued by another one. A trial that was run
    before is never repeated. Repeating the command continues or shows the sweep.

    Example: tailor sweep --task svhn --backbone resnet34 --px 64 --method taps finetune
    --lam 0.03 0.1 0.3 1 3 --seed 0 1 2 --epochs 5 --out runs/sweep

    Example: tailor sweep --task svhn --backbone resnet34 --px 64 --search lam=0.01..3
    price=params,macs lr=0.003..0.1 --trials 40 --objectives val params macs --out runs/search
    """

    out: Path
    """Folder for the runs; `tailor report OUT` reads it."""
    task: tuple[str, ...]
    """Data sets of `tailor list tasks`, folder:PATH, npz:PATH, torchvision:CLASS or
    decathlon:NAME."""
    backbone: tuple[str, ...] = ("resnet34",)
    """Any timm models or ours: `tailor list backbones`."""
    weights: str = "pretrained"
    """pretrained (timm fetches them), random, a safetensors or .pth file, or a teacher's run."""
    method: tuple[str, ...] = ("taps",)
    """Methods of `tailor list methods`."""
    lam: tuple[float, ...] = ()
    """Prices to try with every method that has one."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds; a search averages each trial over them."""
    rule: tuple[str, ...] = ()
    """Ways to prune, one or more, such as count=11 share=0.5 budget=macs=0.6 or
    count=11,proxy_threshold=0.1; what is switched off goes by default."""
    option: tuple[str, ...] = ()
    """Options of the methods, such as price=macs, or nettailor.max_skip=2 for one of them."""
    search: tuple[str, ...] = ()
    """Search instead of a grid: ranges or choices of options of the method or of training, such as
    lam=0.01..3 lr=0.003..0.1 price=params,macs."""
    trials: int = 24
    """Trials of a search; more may be asked for later."""
    objectives: tuple[Objective, ...] = ("val", "params")
    """What a search trades off: validation metric, parameters added, MACs, bytes of the file,
    milliseconds of one image on one thread."""
    until: Literal["adapt", "pruned", "retrained"] = "retrained"
    """The last stage of a method with gates."""
    retrain_epochs: int | None = None
    """Epochs after pruning; twice --epochs by default. References train for both together."""
    storage: str | None = None
    """Database that workers share: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME;
    OUT/sweep.db by default. SQLite is for one machine."""
    study: str | None = None
    """Name of the sweep in the database; OUT's own name by default."""
    processes: int = 1
    """Workers that this command starts on this machine."""
    threads: int | None = None
    """Threads of each worker; the cores shared out among --processes by default."""
    heartbeat: int = 20
    """Seconds between two signs of life; a worker that missed three is taken for dead."""
    retry_failed: bool = False
    """Try trials again that ended in an error."""
    images: Images = field(default_factory=Images)
    train: Recipe = field(default_factory=lambda: Recipe(select="last", schedule="constant"))
