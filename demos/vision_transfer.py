"""Vision transfer: what a base that knows one thing of a room is worth for another, on few images.

python -m demos.vision_transfer --out runs/vision-transfer --images 100 2000

A network is taught the curvature of drawn rooms (``scenes:curvature``, exact labels) and then has
to tell their surface normals, from 100 images and from all 2000: fine-tuned, as frozen features,
side-tuned (base and side network both start from the source), and from scratch, three seeds each
and as many steps each. Prints the mean squared error and the explained variance on 400 test images.
Another base joins with ``--sources curvature denoising``. Runs are kept: repeating the command
shows the table. Some ten minutes on two idle cores.

The setting is that of Zhang et al., Side-tuning, ECCV 2020, whose images are photographs of
Taskonomy, 100 or 4 million of them; numbers do not compare.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import tyro

from demos import _study
from students import side_tuning
from tailor import workflow
from tailor.cli import answered
from tailor.metrics import MeanLoss
from tailor.opened import batches, open_run, task_of
from tailor.options import Adapt, Data, Mode, Net, Teach
from tailor.run import read_json, write_bytes, write_json
from tailor.settings import Settings
from tailor.target import target

METHODS = ("finetune", "probe", "side_tuning")


@dataclass(frozen=True, kw_only=True)
class Options:
    """One table; a second run shows what is there."""

    out: Path = Path("vision-transfer")
    """Folder for the runs and the table."""
    sources: tuple[str, ...] = ("curvature",)
    """Targets of the drawn rooms that bases are taught, such as curvature or denoising."""
    target: str = "normal"
    """What is to be learned then."""
    images: tuple[int, ...] = (100, 2000)
    """Training images of the target."""
    seeds: int = 3
    """Repetitions, each with a head, an order of images and a random start of its own."""
    px: int = 64
    """Side of the images."""
    backbone: str = "small_resnet"
    """The network."""
    steps: int = 400
    """Training steps for the target, whatever the number of images."""
    source_steps: int = 1500
    """Training steps of a base, on 2000 images."""
    batch: int = 16
    """Images of a step."""
    workers: int = 2
    """Processes of one thread each; 1 stays in this one."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run on the target."""

    source: str  # what its base knows; empty: it has none
    method: str
    images: int
    seed: int

    @property
    def name(self) -> str:
        """Of its run directory."""
        return f"{self.source or 'nothing'}-{self.method}-{self.images}-s{self.seed}"


def jobs(options: Options) -> list[Job]:
    """Every source with every method, and training from scratch, for every seed and number."""
    rows = [("", "scratch"), *((s, m) for s in options.sources for m in METHODS)]
    return [
        Job(source=source, method=method, images=images, seed=seed)
        for seed in range(options.seeds)
        for source, method in rows
        for images in options.images
    ]


def run(options: Options, command: str) -> list[dict[str, Any]]:
    """Teach the bases, run every job, and return a record of each."""
    with _pool(options.workers) as pool:
        bases = {s: pool.submit(_teach, options, s, command) for s in options.sources}
        found = []
        for job in jobs(options):
            if job.source in bases:  # what needs no base runs beside the first of them
                bases.pop(job.source).result()
            found.append(pool.submit(_run, options, job, command))
        return [future.result() for future in found]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds of MSE and r2 for each number of images."""
    numbers = sorted({r["images"] for r in records})
    head = ["base", "method", *(f"{what}, {n} images" for n in numbers for what in ("MSE", "r2"))]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for source, method in dict.fromkeys((r["source"], r["method"]) for r in records):
        cells = [source or "none", method]
        for n in numbers:
            mine = [
                r for r in records if (r["source"], r["method"], r["images"]) == (source, method, n)
            ]
            for what, digits in (("mse", 4), ("r2", 3)):
                values = [r[what] for r in mine]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    options = tyro.cli(Options, prog="python -m demos.vision_transfer", args=argv)
    command = shlex.join(["python", "-m", "demos.vision_transfer", *(argv or sys.argv[1:])])

    def everything() -> int:
        shown = table(run(options, command))
        write_bytes(options.out / "table.md", shown.encode())
        print(shown, end="")
        return 0

    return answered(everything)


def _pool(workers: int) -> Executor:
    if workers == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, _study.fresh_processes(), _study.end_with_parent)


def _data(options: Options, name: str, images: int | None = None) -> Data:
    return Data(
        task=f"scenes:{name}@{options.px}",
        px=options.px,
        crop="none",
        normalize="task",
        limit=images,
    )


def _training(options: Options, steps: int, seed: int = 0) -> Settings:
    """Ten looks at the validation images; the best of them is kept."""
    return Settings(
        epochs=10,
        steps_per_epoch=max(1, steps // 10),
        batch=options.batch,
        optimizer="adam",
        lr=1e-3,
        weight_decay=2e-6,
        clip=1.0,
        seed=seed,
        device="cpu",
    )


def _base(options: Options, source: str) -> Path:
    return options.out / f"base-{source}"


def _teach(options: Options, source: str, command: str) -> None:
    """In a worker: a base from scratch."""
    torch.set_num_threads(1)
    teacher = Teach(
        out=_base(options, source),
        mode="scratch",
        data=_data(options, source),
        net=Net(backbone=options.backbone, weights="random"),
        train=_training(options, options.source_steps),
    )
    workflow.teach(teacher, command=command)


def _run(options: Options, job: Job, command: str) -> dict[str, Any]:
    """In a worker: one run on the target, and how far off it is on test images."""
    torch.set_num_threads(1)
    data = _data(options, options.target, job.images)
    train = _training(options, options.steps, job.seed)
    weights = str(_base(options, job.source)) if job.source else "random"
    net, out = Net(backbone=options.backbone, weights=weights), options.out / job.name
    if job.method == "side_tuning":
        # As published: the side network is a second copy of the base.
        config = side_tuning.Config(side="narrow", width=1.0, side_init="copy")
        adapted = Adapt(
            out=out, method=job.method, data=data, net=net, settings=config, train=train
        )
        result = workflow.adapt(adapted, command=command)
    else:
        mode = cast(Mode, job.method)
        result = workflow.teach(
            Teach(out=out, mode=mode, data=data, net=net, train=train), command=command
        )
    kept = out.with_name(f"{out.name}.json")
    if not kept.exists():
        write_json(kept, {"mse": _mse(out, options)})
    facts = {"source": job.source, "method": job.method, "images": job.images, "seed": job.seed}
    return facts | {"mse": read_json(kept)["mse"], "r2": result["test"]}


@torch.no_grad()
def _mse(path: Path, options: Options) -> float:
    """Squared error of a test pixel's value, on average."""
    opened = open_run(path)
    data = _data(options, options.target)
    student = opened.student.eval()
    test = batches(task_of(data), "test", student.universal, data, Settings(device="cpu"))
    squared = MeanLoss(target("pixel_values", loss="l2"))
    for batch in test.epoch(0):
        squared.add(student(batch.images).logits, batch.labels)
    return squared.value()


if __name__ == "__main__":
    sys.exit(main())
