"""Real image domains: one small backbone taught on photographs of objects, adapted to other
domains.

python -m demos.domains --root DATA --out runs/domains

``--root`` is a folder with one folder per domain in the npz format that the README describes. Per
target and seed: fine-tuning, linear probe, and TAPS at four λ, each pruned and retrained; with
``--nettailor λ ...`` also NetTailor, which learns from the fine-tuned network. RESULTS.md holds
runs.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from demos import _study
from students import nettailor, taps
from tailor.losses import Pricing
from tailor.options import Data, Net, Teach
from tailor.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Options:
    """One backbone, many domains."""

    root: Path
    """Folder that holds one folder per domain."""
    out: Path = Path("runs/domains")
    """Folder for the runs and the report."""
    source: str = "source_objects"
    """The domain that the backbone is taught on."""
    targets: tuple[str, ...] = ("eurosat", "flowers", "trashnet", "signdigits")
    """The domains that it is adapted to."""
    flip: tuple[str, ...] = ("eurosat", "flowers", "trashnet", "source_objects", "fashion")
    """Domains whose pictures may be mirrored."""
    seeds: int = 3
    """Repetitions of every run."""
    lams: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """Prices of TAPS, in loss per backbone adapted."""
    nettailor: tuple[float, ...] = ()
    """Prices of NetTailor, in loss per backbone."""
    counts: tuple[int, ...] = (3, 4)
    """Universal blocks that NetTailor's students lose; each count is retrained."""
    variants: tuple[Literal["alone", "local"], ...] = ()
    """NetTailor also without a teacher, or with the published program's local distillation."""
    limit: int | None = None
    """Use at most so many training images of a target."""
    references: tuple[str, ...] = ("finetune", "probe")
    """What to compare with: finetune, probe, scratch."""
    price: Pricing = "params"
    """What a layer costs; `paper` is the published code's."""
    backbone: str = "small_resnet"
    """One of our own families, or a timm model."""
    px: int = 56
    """Side of the input."""
    epochs: int = 14
    """Of every method; TAPS selects layers in a third of them and retrains in the rest."""
    batch: int = 32
    """Images per step."""
    source_epochs: int = 30
    """Of the source teacher."""
    source_batch: int = 64
    """Images per step of the source teacher."""
    workers: int | None = None
    """Processes; one per core by default."""


def study(options: Options) -> _study.Study:
    """The runs of ``options``."""

    def data(name: str) -> Data:
        return Data(
            task=f"npz:{options.root / name}",
            px=options.px,
            crop="random",
            flip=name in options.flip,
        )

    source = Settings(
        epochs=options.source_epochs,
        batch=options.source_batch,
        lr=0.1,
        warmup_epochs=1,
        weight_decay=5e-4,
        label_smoothing=0.1,
        device="cpu",
    )
    reference = Settings(epochs=options.epochs, batch=options.batch, lr=0.02, device="cpu")
    tailored = {}
    for lam in options.nettailor:
        config = nettailor.Config(lam=lam)
        tailored[f"nettailor-{lam:g}"] = config
        changes: dict[str, dict[str, Any]] = {
            "alone": {"distill": 0.0},
            "local": {"distillation": "local"},
        }
        for word in options.variants:
            tailored[f"nettailor-{lam:g}-{word}"] = dataclasses.replace(config, **changes[word])
    return _study.Study(
        out=options.out,
        source=Teach(
            out=options.out / "source",
            mode="scratch",
            data=dataclasses.replace(data(options.source), color=0.2),
            net=Net(backbone=options.backbone),
            train=source,
        ),
        targets=tuple(
            dataclasses.replace(data(name), limit=options.limit) for name in options.targets
        ),
        lams=options.lams,
        references=options.references,
        seeds=tuple(range(options.seeds)),
        reference=reference,
        taps=taps.Config(price=options.price),
        tailored=tailored,
        tailoring=dataclasses.replace(reference, lr=0.05),
        counts=options.counts,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    options = tyro.cli(Options, prog="python -m demos.domains", args=argv)
    command = shlex.join(["python", "-m", "demos.domains", *(argv or sys.argv[1:])])
    return _study.main(study(options), command, options.workers)


if __name__ == "__main__":
    sys.exit(main())
