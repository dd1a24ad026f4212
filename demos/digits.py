"""The main path on real images, without a download: from drawn characters to handwritten digits.

python -m demos.digits --out demo-out      (or `make demo`)

A small ResNet is taught to read 53 kinds of characters, drawn from the fonts that matplotlib ships.
Frozen, it is the backbone for the 1,797 real handwritten digits of scikit-learn (Alpaydin & Kaynak,
UCI 1998): fine-tuned, as a linear probe, against training from scratch, and adapted by TAPS at four
λ, each pruned and retrained, three seeds each. Leaves a table, a heat map of the adapted layers and
report.html.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from demos import _study
from students import taps
from tailor.options import Data, Net, Teach
from tailor.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Options:
    """The whole main path in a few minutes; a second run shows what is there."""

    out: Path = Path("demo-out")
    """Folder for the runs and the report."""
    seeds: int = 3
    """Repetitions of every run."""
    lams: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """Prices of TAPS, in loss per backbone adapted."""
    epochs: int = 12
    """Of every method; TAPS selects layers in a third of them and retrains in the rest."""
    source_epochs: int = 14
    """Of the source teacher."""
    workers: int | None = None
    """Processes; one per core by default."""


def study(options: Options) -> _study.Study:
    """The demo's runs."""
    characters = Data(task="characters", px=32, crop="pad", pad=2)
    digits = Data(task="digits", px=32, crop="pad", pad=2)
    reference = Settings(epochs=options.epochs, batch=32, lr=0.02, device="cpu")
    return _study.Study(
        out=options.out,
        source=Teach(
            out=options.out / "source",
            mode="scratch",
            data=characters,
            net=Net(backbone="small_resnet"),
            train=Settings(
                epochs=options.source_epochs,
                batch=64,
                lr=0.1,
                nesterov=True,
                warmup_epochs=1,
                weight_decay=5e-4,
                device="cpu",
            ),
        ),
        targets=(digits,),
        lams=options.lams,
        seeds=tuple(range(options.seeds)),
        reference=reference,
        taps=taps.Config(price_warmup=1),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    options = tyro.cli(Options, prog="python -m demos.digits", args=argv)
    command = shlex.join(["python", "-m", "demos.digits", *(argv or sys.argv[1:])])
    return _study.main(study(options), command, options.workers)


if __name__ == "__main__":
    sys.exit(main())
