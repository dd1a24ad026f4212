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

from analysis.architecture import draw
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

NET = Net(backbone="resnet34", weights="pretrained")
CONFIG = nettailor.Config(lam=0.3, distill=10.0, max_skip=3)
BLOCKS = 16  # of ResNet-34, which the published numbers of removed blocks are for


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one demo does: as published, or quick."""

    name: str  # of the folder below runs/ that its runs go to
    data: Data
    net: Net | None = NET  # None: `SOURCE`, taught by the demo itself
    teacher: Settings
    student: Settings
    retrain: Settings
    config: nettailor.Config = CONFIG
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
    """Side of the network's input; 224, or the quick recipe's."""
    limit: int | None = None
    """Use at most so many training images; all, or 1500 with --quick."""
    epochs: int | None = None
    """Of each of the three trainings, the rate falling in proportion."""
    lam: float | None = None
    """λ, the price of a backbone's compute; 0.3, or 1 with --quick."""
    distill: float | None = None
    """Weight of the distance to the teacher; 10, or 0.3 with --quick."""
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
SOURCE = Teach(  # the backbone of a quick run; test accuracy 82 % of 53 characters
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


def quick(published: Recipe, *, epochs: int, lr: float, px: int = 32) -> Recipe:
    """The same pipeline in hundreds of steps instead of tens of thousands.

    Gates get ten times the rate, because they must move as far in fewer steps, and a higher price.
    The teacher's weight is for the block outputs of `SOURCE`, whose squares are larger.

    Args:
        published: the recipe to shorten.
        epochs: of each of the three trainings.
        lr: of teacher and retraining.
        px: side of the network's input.
    """
    short = [
        dataclasses.replace(_over(settings, epochs), batch=32)
        for settings in (published.teacher, published.student, published.retrain)
    ]
    return dataclasses.replace(
        published,
        data=dataclasses.replace(published.data, px=px, limit=1500),
        net=None,
        teacher=dataclasses.replace(short[0], lr=lr),
        student=dataclasses.replace(short[1], lr_scores=1.0),
        retrain=dataclasses.replace(short[2], lr=lr),
        config=dataclasses.replace(published.config, lam=1.0, distill=0.3),
    )


def main(
    kind: type[Kind], recipe: Callable[[Kind], Recipe], name: str, argv: Sequence[str] | None
) -> int:
    """Parse, run, and tell; returns the exit code of a demo."""
    module = f"demos.{name}"
    options = tyro.cli(kind, prog=f"python -m {module}", args=argv)
    command = shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])
    return answered(lambda: _everything(options, adjusted(recipe(options), options), command))


def _everything(options: Options, recipe: Recipe, command: str) -> int:
    console, began = wide_console(), time.monotonic()
    out = options.out or Path("runs") / recipe.name
    runs = run(options, recipe, out, command)
    results = [dict(read_json(path / "result.json")) for path in runs]
    console.print(table(results))
    if back := results[2]["reopened"]:
        console.print(f"Kept, because nothing else was left in their place: {', '.join(back)}")
    report, gates = out / "report.html", out / "gates.gif"
    write_report(runs, report)
    draw(runs[1], gates)
    told = f"{time.monotonic() - began:.0f} s. Written: {report}, {gates} (gates over epochs)"
    console.print(told, highlight=False)
    return 0


def adjusted(recipe: Recipe, options: Options) -> Recipe:
    """The recipe with what was asked for."""
    changes = {"seed": options.seed, "device": options.device, "bf16": options.bf16}
    teacher, student, retrain = (
        dataclasses.replace(_over(s, options.epochs or s.epochs), **changes)
        for s in (recipe.teacher, recipe.student, recipe.retrain)
    )

    def asked(**wanted: Any) -> dict[str, Any]:
        return {name: value for name, value in wanted.items() if value is not None}

    net = recipe.net
    if options.backbone or options.weights:
        backbone = options.backbone or (net or SOURCE.net).backbone
        net = Net(backbone=backbone, weights=options.weights or NET.weights)
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data, workers=options.workers, **asked(px=options.px, limit=options.limit)
        ),
        net=net,
        teacher=teacher,
        student=student,
        retrain=retrain,
        config=dataclasses.replace(
            recipe.config, **asked(lam=options.lam, distill=options.distill)
        ),
    )


def _over(settings: Settings, epochs: int) -> Settings:
    """The same schedule over other epochs."""
    step = max(1, round(settings.step_epochs * epochs / settings.epochs))
    return dataclasses.replace(settings, epochs=epochs, step_epochs=step)


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
    data = _found(options, recipe, out)
    net = _taught(recipe, out, told)
    names = ("teacher", "student", "pruned", "retrained")
    teacher, student, pruned, retrained = runs = [out / name for name in names]

    workflow.teach(Teach(out=teacher, data=data, net=net, train=recipe.teacher), **told)
    adapt = Adapt(
        out=student,
        method="nettailor",
        teacher=teacher,
        data=data,
        net=net,
        settings=recipe.config,
        train=recipe.student,
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
    shrink.retrain(Retrain(run=pruned, out=retrained, train=recipe.retrain), **told)
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


def _found(options: Options, recipe: Recipe, out: Path) -> Data:
    """The images, found or drawn; a missing set is told before anything is written."""
    root = options.root
    if options.sample:
        root = out / "sample"
        if not is_sample(root):
            recipe.draw(root)
    data = dataclasses.replace(recipe.data, root=None if root is None else str(root))
    try:
        open_task(data.task, root, limit=data.limit, download=options.download)
    except BadInput as error:
        if options.sample:
            raise
        raise BadInput(f"{error}; or try it on a drawn sample: --sample") from error
    return data


def _taught(recipe: Recipe, out: Path, told: dict[str, Any]) -> Net:
    """The backbone; that of a quick run is taught here."""
    if recipe.net is not None:
        return recipe.net
    train = dataclasses.replace(SOURCE.train, device=recipe.teacher.device)
    source = dataclasses.replace(SOURCE, out=out / SOURCE.out, train=train)
    workflow.teach(source, **told)
    return dataclasses.replace(SOURCE.net, weights=str(source.out))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({100 * count / whole:.1f} %)"
