"""NetTailor's published pipeline: teacher, student, prune, retrain, report.

A demo of one data set (`svhn.py`, `flowers.py`, `voc12.py`) says in a `Recipe` what was published
for it; this is the main path. Every step is a verb of `tailor` in a run directory of its own, so
a demo that was interrupted continues where it was, and one that is finished is only read.

As published (Morgado & Vasconcelos, CVPR 2019, and its program): ResNet-34 pre-trained on ImageNet,
224 px, proxies from up to 3 blocks back, λ 0.3, distillation 10, SGD with momentum 0.9 and weight
decay 5e-4, a rate that falls to a tenth every few epochs, the last epoch kept. Not as published:
a tenth of the training images is kept for validation where a set has no split of its own, and the
test images are only measured, not watched; the defaults of `students/nettailor.py` are the
paper's where the program differs; a random resized crop is taken out of the image's centre square.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.table import Table

from analysis.report import write_report
from students import nettailor
from tailor import shrink, workflow
from tailor.cli import answered
from tailor.datasets._sample import is_sample
from tailor.errors import BadInput
from tailor.options import Adapt, Data, Net, Prune, Retrain, Teach
from tailor.progress import for_terminal, wide_console
from tailor.run import read_json
from tailor.settings import Settings
from tailor.task import open_task

BLOCKS = 16  # of ResNet-34, which the published numbers of removed blocks are for


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What was published for one data set."""

    name: str  # of the folder below runs/ that its runs go to
    data: Data
    teacher: Settings
    student: Settings
    retrain: Settings
    remove: int  # universal blocks, of `BLOCKS`; the same share of another backbone's
    proxy_threshold: float  # proxies with a smaller gate go
    draw: Callable[[Path], None]  # writes a sample of the data set into a folder


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tailor a network to a data set: teacher, student, prune, retrain, report.

    Repeating a command continues its runs or shows them.
    """

    out: Path | None = None
    """Folder for the runs and the report; one below ./runs by default."""
    root: Path | None = None
    """Folder with the data sets; $TAILOR_DATA, or ./data, by default."""
    download: bool = False
    """Fetch the data set where it is missing."""
    sample: bool = False
    """Draw a small sample in the data set's format into OUT/sample and use that instead."""
    quick: bool = False
    """Minutes on two cores: a small ResNet taught on drawn characters instead of a ResNet-34
    pre-trained on ImageNet, small images and few of them, few epochs."""
    backbone: str | None = None
    """Any timm model or one of ours; resnet34, or small_resnet with --quick."""
    weights: str | None = None
    """Of the backbone: pretrained, random, a file, or a teacher's run."""
    px: int | None = None
    """Side of the network's input; 224, or 32 with --quick."""
    limit: int | None = None
    """Use at most so many training images; all, or 1500 with --quick."""
    epochs: int | None = None
    """Of each of the three trainings, the rate falling in proportion; as published, or 8 with
    --quick."""
    within: float | None = None
    """Search the smallest student within so many points of the teacher on validation images,
    which the paper did by hand, instead of removing the published number of blocks."""
    seed: int = 0
    """Of heads, proxies, order of images and augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: the fastest one that is here."""
    bf16: bool = False
    """Compute in bfloat16."""
    workers: int = 2
    """Threads or processes that decode images."""


Kind = TypeVar("Kind", bound=Options)
QUICK = {"px": 32, "limit": 1500, "epochs": 8}
SOURCE = Teach(
    out=Path("source"),
    mode="scratch",
    data=Data(task="characters", px=32, crop="pad", pad=2),
    net=Net(backbone="small_resnet"),
    train=Settings(
        epochs=6, batch=32, lr=0.03, nesterov=True, warmup_epochs=0.3, weight_decay=5e-4
    ),
)


def schedule(*, epochs: int, batch: int, lr: float, step: int) -> Settings:
    """A published schedule: the rate falls to a tenth every ``step`` epochs."""
    return Settings(
        epochs=epochs,
        batch=batch,
        lr=lr,
        schedule="step",
        step_epochs=step,
        weight_decay=5e-4,
        select="last",
    )


def main(
    kind: type[Kind], recipe: Callable[[Kind], Recipe], name: str, argv: Sequence[str] | None
) -> int:
    """Parse, run, and tell; returns the exit code of a demo."""
    module = f"demos.{name}"
    options = tyro.cli(kind, prog=f"python -m {module}", args=argv)
    command = shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])
    return answered(lambda: _everything(options, recipe(options), command))


def _everything(options: Options, recipe: Recipe, command: str) -> int:
    console, began = wide_console(), time.monotonic()
    out = options.out or Path("runs") / recipe.name
    runs = run(options, recipe, out, command)
    console.print(table([dict(read_json(path / "result.json")) for path in runs]))
    report = out / "report.html"
    write_report(runs, report)
    console.print(f"{time.monotonic() - began:.0f} s. Written: {report}", highlight=False)
    return 0


def run(options: Options, recipe: Recipe, out: Path, command: str = "") -> list[Path]:
    """Teacher, student, pruned and retrained student; what is finished is not done again.

    Args:
        options: what to change about the recipe.
        recipe: what was published.
        out: folder for the runs.
        command: shown in the report as the origin of every run.

    Returns:
        The run directories, in this order.

    Raises:
        BadInput: no data set, no weights, or settings that cannot train.
    """
    told: dict[str, Any] = {"tell": for_terminal, "command": command}
    data = _data(options, recipe, out)
    net = _net(options, out, told)
    names = ("teacher", "student", "pruned", "retrained")
    teacher, student, pruned, retrained = runs = [out / name for name in names]
    trains = [_settings(options, s) for s in (recipe.teacher, recipe.student, recipe.retrain)]

    workflow.teach(Teach(out=teacher, data=data, net=net, train=trains[0]), **told)
    adapt = Adapt(
        out=student,
        method="nettailor",
        teacher=teacher,
        data=data,
        net=net,
        settings=nettailor.Config(),
        train=trains[1],
    )
    workflow.adapt(adapt, **told)
    prune = Prune(
        run=student,
        out=pruned,
        share=recipe.remove / BLOCKS if options.within is None else None,
        within=options.within,
        proxy_threshold=recipe.proxy_threshold,
    )
    shrink.prune(prune, **told)
    shrink.retrain(Retrain(run=pruned, out=retrained, teacher=teacher, train=trains[2]), **told)
    return runs


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Accuracy and cost of every step, the teacher first; sizes are without the head."""
    first = results[0]
    metric = {"top1": "top-1", "map": "mAP"}[first["metric"]]
    shown = Table(box=None, header_style="bold", title=f"{first['task']}, {first['backbone']}")
    for title in ("", f"test {metric} %", "val %", "parameters", "MACs", "blocks kept"):
        shown.add_column(title, justify="right" if title else "left")
    for result in results:
        blocks = result["blocks"]
        shown.add_row(
            Path(result["run"]).name,
            _percent(result["test"]),
            _percent(result["val"]),
            _part(result["params"]["network"], first["params"]["network"]),
            _part(result["macs"]["student"], first["macs"]["student"]),
            f"{sum(b['kept'] for b in blocks)} of {len(blocks)}",
        )
    return shown


def _data(options: Options, recipe: Recipe, out: Path) -> Data:
    """The published view of the images, found or drawn; a missing set is told at once."""
    root = options.root
    if options.sample:
        root = out / "sample"
        if not is_sample(root):
            recipe.draw(root)
    task, limit = recipe.data.task, _chosen(options, "limit")
    try:
        open_task(task, root, limit=limit, download=options.download)
    except BadInput as error:
        if options.sample:
            raise
        raise BadInput(f"{error}; or try it on a drawn sample: --sample") from error
    return dataclasses.replace(
        recipe.data,
        root=None if root is None else str(root),
        px=_chosen(options, "px") or 224,
        limit=limit,
        workers=options.workers,
    )


def _net(options: Options, out: Path, told: dict[str, Any]) -> Net:
    """The backbone; a quick one is taught here."""
    if options.backbone is not None or not options.quick:
        backbone = options.backbone or "resnet34"
        return Net(backbone=backbone, weights=options.weights or "pretrained")
    if options.weights is not None:
        return dataclasses.replace(SOURCE.net, weights=options.weights)
    train = dataclasses.replace(SOURCE.train, device=options.device)
    source = dataclasses.replace(SOURCE, out=out / "source", train=train)
    workflow.teach(source, **told)
    return dataclasses.replace(SOURCE.net, weights=str(source.out))


def _settings(options: Options, published: Settings) -> Settings:
    """The published schedule, or the same one over other epochs."""
    epochs = _chosen(options, "epochs") or published.epochs
    step = max(1, round(published.step_epochs * epochs / published.epochs))
    return dataclasses.replace(
        published,
        epochs=epochs,
        step_epochs=step,
        seed=options.seed,
        device=options.device,
        bf16=options.bf16,
    )


def _chosen(options: Options, name: str) -> int | None:
    """What was asked for, else the quick value, else None: as published."""
    asked: int | None = getattr(options, name)
    return QUICK[name] if asked is None and options.quick else asked


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({100 * count / whole:.1f} %)"
