"""What the notebooks share: where their runs are, one backbone, ten small tasks, how things look.

All notebooks use the same runs, so what one of them has trained the next one only reads.

TAILOR_NOTEBOOK_RUNS   folder for the runs; runs/notebooks beside demos/ by default
TAILOR_NOTEBOOK_QUICK  1: a fraction of images, epochs and seeds, as the tests want it
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any, TypeVar

with warnings.catch_warnings():  # timm and optuna draw bars with tqdm, which misses widgets
    warnings.filterwarnings("ignore", message="IProgress not found")
    import tqdm.auto  # noqa: F401

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from analysis import canvas
from analysis.answer import Answer, texts
from demos import _small_tasks
from demos._nettailor import SOURCE
from tailor import workflow
from tailor.options import Data, Images, Net, Sweep
from tailor.settings import Recipe, Settings
from tailor.sweep import sweep
from tailor.task import open_task

QUICK = os.environ.get("TAILOR_NOTEBOOK_QUICK", "") not in ("", "0")
TASKS = ("digits", *_small_tasks.SMALL)
QUESTIONS = {name: small.shows for name, small in _small_tasks.SMALL.items()} | {
    "characters": "what the backbone was taught: which?",
    "digits": "handwritten digits: which?",
}
PX = _small_tasks.PX
_DPI = 96  # a browser's inch, and small enough for a repository
T = TypeVar("T")


def prepare() -> None:
    """Make a kernel ready: how figures and tables look, and one thread.

    Small networks only wait for each other's threads, and one thread gives the same numbers on a
    machine with any number of cores.
    """
    from IPython import get_ipython

    pictures = get_ipython().display_formatter.formatters["image/png"]
    pictures.for_type(Figure, lambda figure: canvas.png(figure, _DPI))
    pd.set_option("display.precision", 2, "display.max_columns", 40, "display.max_rows", 60)
    torch.set_num_threads(1)


def amount(full: T, quick: T) -> T:
    """What a notebook uses, and what it uses in a test."""
    return quick if QUICK else full


def folder() -> Path:
    """Where the runs are, whether the kernel was started in the clone or in its demos/."""
    if chosen := os.environ.get("TAILOR_NOTEBOOK_RUNS"):
        return Path(chosen).resolve()
    here = Path.cwd()
    root = here.parent if here.name == "demos" else here
    return root / "runs" / ("notebooks-quick" if QUICK else "notebooks")


def _spec(name: str) -> str:
    """What ``--task`` takes for one of ``TASKS``; a small task is made where it is missing."""
    if name not in _small_tasks.SMALL:
        return name
    place = folder() / "tasks" / name
    _small_tasks.write(name, place, train=amount(800, 80), test=amount(400, 40))
    return f"npz:{place}"


def examples(names: tuple[str, ...] = TASKS, count: int = 10) -> Figure:
    """The first test images of each task in a row, under its question."""
    shown = canvas.figure(8.4, 0.78 * len(names))
    for axes, name in zip(shown.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        split = open_task(_spec(name)).splits["test"]
        row = Image.new("RGB", (count * (PX + 2) - 2, PX), "white")
        for i in range(count):
            row.paste(split.read(i).resize((PX, PX)), (i * (PX + 2), 0))
        axes.imshow(row, interpolation="nearest")
        axes.set_axis_off()
        shows = QUESTIONS[name]
        axes.annotate(
            f"$\\bf{{{name}}}$\n{shows}", (0, 0.5), xytext=(-10, 0), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="center", fontsize=8.5, color=canvas.INK,
        )  # fmt: skip
    return shown


IMAGES = Images(px=PX, crop="pad", pad=2, limit=amount(None, 80))
RECIPE = Recipe(epochs=amount(4, 1), batch=32, lr=0.02, device="cpu")


def data(name: str) -> Data:
    """How the images of a task are seen: 32 px, shifted by up to 2 in training."""
    return Data(task=_spec(name), **dataclasses.asdict(IMAGES))


def settings(epochs: int, **changed: Any) -> Settings:
    """How everything but the backbone is trained."""
    train = dataclasses.asdict(RECIPE) | {"epochs": amount(epochs, 1)}
    return Settings(**(train | changed))


def source() -> Net:
    """The backbone of all notebooks: a small ResNet, taught here to read drawn characters."""
    out = folder() / "source"
    train = dataclasses.replace(SOURCE.train, epochs=amount(SOURCE.train.epochs, 1), device="cpu")
    few = dataclasses.replace(SOURCE.data, limit=amount(None, 212))
    workflow.teach(dataclasses.replace(SOURCE, out=out, data=few, train=train))
    return Net(backbone=SOURCE.net.backbone, weights=str(out))


def grid(
    study: str,
    *,
    task: tuple[str, ...],
    method: tuple[str, ...] = ("taps",),
    option: tuple[str, ...] = (),
    lr: float = RECIPE.lr,
    **varied: Any,
) -> Sweep:
    """A sweep of ``TASKS`` on ``source()``: 4 epochs to select, 4 to retrain, two processes.

    All sweeps of the notebooks lie in one folder, so that a trial of one is no work for another.
    """
    net = source()
    early = ("taps.price_warmup=1",) if "taps" in method else ()
    return Sweep(
        out=folder() / "sweep",
        study=study,
        task=tuple(_spec(name) for name in task),
        backbone=(net.backbone,),
        weights=net.weights,
        method=method,
        option=(*early, *option),
        retrain_epochs=RECIPE.epochs,
        images=IMAGES,
        train=dataclasses.replace(RECIPE, lr=lr, select="last", schedule="constant"),
        processes=amount(2, 1),
        **varied,
    )


def run(options: Sweep) -> tuple[Path, ...]:
    """Work until every trial is done; the run directories of their last stages."""
    found = sweep(options)
    return tuple(options.out / run for trial in found["trials"] for run in trial["runs"])


def show(answer: Answer, *, text: bool = False, table: bool = False) -> None:
    """An answer of `analysis/` in a cell: title, picture; what it means and its table if wanted."""
    from IPython.display import HTML, Markdown, display

    display(Markdown(f"**{answer.title}.**" + f" {answer.text}" * text))
    if answer.figure is not None:
        display(answer.figure)
    if table:
        shown = texts(answer.table) if answer.shown is None else answer.shown
        display(HTML(shown.to_html(index=False, border=0)))
