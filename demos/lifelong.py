"""Six domains, one after the other: every method of lifelong learning from one backbone. Resumes.

python -m demos.lifelong --data FOLDER --weights FILE   real domains on a published ResNet-20
python -m demos.lifelong --sample                       handwritten digits in pairs: minutes

FOLDER has a folder per domain in the npz format that the README describes. Every method learns the
domains in the same order without going back, and is measured on all of them after each. Leaves the
table of `tailor forgetting`, the matrices as a picture, and a sequence of runs for every method and
seed. Images are not augmented, so that what a frozen backbone computes is computed once.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from analysis import answer, forgetting, sequences
from demos import digits
from demos._lifelong import VARIANTS, Job, Variant, chosen, run
from tailor import catalog, workflow
from tailor.ask import show
from tailor.cli import answered
from tailor.errors import BadInput
from tailor.options import Images, Lifelong, Net
from tailor.progress import wide_console
from tailor.settings import Settings

DOMAINS = ("eurosat", "flowers", "trashnet", "signdigits", "fashion", "quickdraw")
PAIRS = tuple(f"classes:digits:{first}-{first + 1}" for first in range(0, 10, 2))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Methods x seeds on one sequence of tasks: a table, a picture, matrices. Repeating continues.

    Give --data or --sample. What is done is only read, so more methods or seeds can be asked for
    later.

    Example: python -m demos.lifelong --data data/small --weights resnet20.safetensors --workers 2

    Example: python -m demos.lifelong --sample --methods side_tuning finetune ewc --seeds 0
    """

    data: Path | None = None
    """Folder with one folder per domain, train.npz, test.npz and dataset.json in each."""
    sample: bool = False
    """The ten handwritten digits in five pairs, on a small ResNet that was taught on drawn
    characters; nothing is needed."""
    out: Path = Path("runs/lifelong")
    """Folder for runs, table and picture."""
    domains: tuple[str, ...] = DOMAINS
    """Folders in --data, in the order in which they are learned."""
    methods: tuple[str, ...] = tuple(VARIANTS)
    """Lines of the table."""
    published: bool = False
    """Also the baselines as the published program computes them, defects included."""
    option: tuple[str, ...] = ()
    """Another option of a line, or of its training: ewc.coef=10, side_tuning.lr=0.003."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of head, side network, order of images; the backbone is the same."""
    backbone: str = "resnet20"
    """Any of `tailor list backbones`, of --data."""
    weights: str | None = None
    """Of the backbone: a file, or a run of `tailor teach`."""
    px: int = 32
    """Side of the input."""
    limit: int | None = 1000
    """At most so many training images of a domain."""
    epochs: int = 8
    """Of every task."""
    batch: int = 32
    """Images per step."""
    lr: float = 1e-3
    """Of Adam, where weights are tuned. What starts from nothing has 0.01, see --option."""
    workers: int | None = None
    """Processes of one thread each; one per core by default."""
    device: str = "cpu"
    """Where to compute."""


def jobs(options: Options, net: Net) -> list[Job]:
    """Every line with every seed; lines of one seed together, so that a first table is early.

    Raises:
        BadInput: neither or both kinds of data, an unknown line or option.
    """
    tasks, images, train = _tasks(options), _images(options), _training(options)
    found = []
    for seed in options.seeds:
        for name, variant in _chosen(options).items():
            config = catalog.load("students", variant.method, "method").Config
            epochs = max(1, round(train.epochs / 3)) if variant.prunes else train.epochs
            how = {"epochs": epochs, "seed": seed, **variant.train}
            found.append(
                Job(
                    name,
                    seed,
                    Lifelong(
                        out=options.out / "runs" / f"{name}-s{seed}",
                        task=tasks,
                        method=variant.method,
                        retrain_epochs=max(1, train.epochs - epochs) if variant.prunes else None,
                        images=images,
                        net=net,
                        settings=config(**variant.settings),
                        train=dataclasses.replace(train, **how),
                    ),
                )
            )
    return found


def _tasks(options: Options) -> tuple[str, ...]:
    if options.sample == (options.data is not None):
        said = "both" if options.sample else "none"
        raise BadInput(f"{said} given: give one of --data FOLDER, --sample")
    if options.data is None:
        return PAIRS
    if options.weights is None:
        raise BadInput(
            "no --weights given: name a file for --backbone, such as a published "
            "resnet20_cifar10.safetensors, or a run of `tailor teach`"
        )
    return tuple(f"npz:{options.data / name}" for name in options.domains)


def _images(options: Options) -> Images:
    return Images(px=options.px, crop="none", limit=None if options.sample else options.limit)


def _training(options: Options) -> Settings:
    return Settings(
        epochs=options.epochs,
        batch=options.batch,
        optimizer="adam",
        lr=options.lr,
        clip=1.0,
        select="last",
        schedule="constant",
        device=options.device,
    )


def _chosen(options: Options) -> dict[str, Variant]:
    return chosen(options.methods, options.option, published=options.published)


def conclude(out: Path, found: list[Path]) -> list[Path]:
    """Print the table; write it and its picture into ``out``."""
    answered_ = forgetting.answer(sequences.read(found))
    show(answered_, None)
    written = [out / f"lifelong{suffix}" for suffix in (".png", ".md", ".csv")]
    for path in written:
        answer.write(answered_, path)
    return written


def _backbone(options: Options, command: str) -> Net:
    """Which backbone; the sample's is taught here."""
    if not options.sample:
        return Net(backbone=options.backbone, weights=str(options.weights))
    teach = digits.study(digits.Options(out=options.out)).source
    torch.set_num_threads(1)  # as the workers: the same bits on a machine with more cores
    workflow.teach(teach, command=command)
    return Net(backbone=teach.net.backbone, weights=str(teach.out))


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    options = tyro.cli(Options, prog="python -m demos.lifelong", args=argv)
    command = shlex.join(["python", "-m", "demos.lifelong", *(argv or sys.argv[1:])])
    return answered(lambda: _everything(options, command))


def _everything(options: Options, command: str) -> int:
    console, began = wide_console(), time.monotonic()
    _tasks(options), _chosen(options)  # nothing is taught before what is wrong is told
    todo = jobs(options, _backbone(options, command))
    found = run(todo, command, options.workers or os.cpu_count() or 1, console)
    if not found:
        raise BadInput("no method could learn the sequence; what each said stands above")
    written = conclude(options.out, found)
    told = f"{time.monotonic() - began:.0f} s. Written: {', '.join(map(str, written))}"
    console.print(told, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
