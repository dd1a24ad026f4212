"""What a deployed task says about single images: the pictures of the decathlon notebook.

A finished run is merged into one plain network, as it would be deployed, and shown its test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from analysis import canvas
from tailor.opened import Opened, batches, open_run, task_of
from tailor.settings import Settings
from tailor.task import Split

RIGHT, WRONG = "probe", "finetune"  # whose colours they take: green, and orange
MISTAKES = 2


@dataclass(frozen=True)
class Deployed:
    """One domain's plain network, and what it says about the domain's test images."""

    domain: str
    classes: tuple[str, ...]
    network: nn.Module
    images: Split
    labels: Tensor  # (n,)
    predicted: Tensor  # (n,)
    difference: float  # largest one between its logits and the student's

    @property
    def accuracy(self) -> float:
        """Percent of the test images."""
        return 100 * float((self.predicted == self.labels).float().mean())


@torch.no_grad()
def deploy(path: Path) -> Deployed:
    """Merge a finished run into a plain network, and predict the test images of its task."""
    opened: Opened = open_run(path)
    student = opened.student
    student.train(False)
    network = student.merge()
    task = task_of(opened.data)
    shown = batches(task, "test", student.universal, opened.data, Settings(device="cpu"))
    predicted, labels, difference = [], [], 0.0
    for images, truth, *_ in shown.epoch(0):
        logits = network(images)
        difference = max(difference, float((logits - student(images).logits).abs().max()))
        predicted.append(logits.argmax(1))
        labels.append(truth)
    return Deployed(
        domain=task.name,
        classes=tuple(task.classes),
        network=network,
        images=task.splits["test"],
        labels=torch.cat(labels),
        predicted=torch.cat(predicted),
        difference=difference,
    )


def predictions(domains: Sequence[Deployed], count: int = 8) -> Figure:
    """A row of test images per domain: the first ones, then the first mistakes.

    Args:
        domains: from ``deploy``.
        count: images per row; the last ``MISTAKES`` are mistakes where there are any.
    """
    figure = canvas.figure(1.05 * count + 1.4, 1.28 * len(domains))
    rows = figure.subplots(len(domains), count, squeeze=False)
    for row, domain in zip(rows, domains, strict=True):
        wrong = (domain.predicted != domain.labels).nonzero()[:, 0].tolist()
        first = [i for i in range(len(domain.labels)) if i not in wrong[:MISTAKES]]
        chosen = [*first[: count - len(wrong[:MISTAKES])], *wrong[:MISTAKES]]
        for axes, i in zip(row, chosen, strict=True):
            _draw(axes, domain, i)
        text = f"$\\bf{{{domain.domain}}}$\n{domain.accuracy:.1f} %"
        row[0].annotate(
            text, (0, 0.5), xytext=(-10, 0), xycoords="axes fraction", ha="right", va="center",
            textcoords="offset points", fontsize=8.5, color=canvas.INK,
        )  # fmt: skip
    return figure


def _draw(axes: Axes, domain: Deployed, i: int) -> None:
    """The image; below it what was predicted, and the truth where that is something else."""
    said, truth = (domain.classes[int(k[i])] for k in (domain.predicted, domain.labels))
    image = domain.images.read(i).convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
    axes.imshow(image)
    axes.set_axis_off()
    name = canvas.plain(said, 14)
    text = name if said == truth else f"{name}, not\n{canvas.plain(truth, 14)}"
    colour = canvas.palette([])[RIGHT if said == truth else WRONG]
    axes.text(
        0.5, -0.06, text, ha="center", va="top", fontsize=7.5, color=colour,
        transform=axes.transAxes,
    )  # fmt: skip
