"""Settings: how to train, the same for teacher, student and retraining.

Left out: what the settings do (``optim.py``, ``train.py``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro

from tailor.errors import BadInput


def added(default: Any) -> Any:
    """A field of an options dataclass that older runs do not know; see ``as_config``."""
    return dataclasses.field(default=default, metadata={"added": True})


def as_config(options: Any) -> dict[str, Any]:
    """A dataclass of options as the plain dictionary that a run and a sweep keep.

    A field that was ``added`` later is left out while it has its default: a run of before then
    still belongs to the command that made it, and a sweep finds what it has trained.
    """
    default = {f.name: f.default for f in dataclasses.fields(options) if "added" in f.metadata}
    return {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if name not in default or value != default[name]
    }


def lam_of(settings: Mapping[str, Any]) -> float | None:
    """The price that a method's settings train with; None where nothing has one."""
    return settings.get("lam") if settings.get("select", True) else None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, whatever the seed."""

    epochs: int = 20
    """Passes over the training split."""
    batch: int = 32
    """Images per optimiser step, over all processes."""
    accumulate: int = 1
    """Compute each batch in so many pieces and average: less memory, same step."""
    steps_per_epoch: int | None = added(None)
    """An epoch of exactly so many batches: as many shuffled passes over the training split as it
    takes, each of which ends with its short batch. One pass of full batches by default."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, Adam (weight decay is part of its gradient), or
    AdamW (weight decay apart)."""
    lr: float = 0.01
    """Learning rate of every role that has none of its own."""
    lr_scores: float | None = None
    """Learning rate of the layer-selection scores."""
    lr_norms: float | None = None
    """Learning rate of the normalisation layers."""
    lr_head: float | None = None
    """Learning rate of the classifier."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's momentum instead of the plain one."""
    weight_decay: float = 0.0
    """Pulls body, adapters and head to zero, and a delta to zero, that is, its weight to the
    universal one, where they have no decay of their own; norms have only that, scores and masks
    none."""
    decay_body: float | None = added(None)
    """Weight decay of a trained copy of the backbone, its norms apart."""
    decay_deltas: float | None = added(None)
    """Weight decay of deltas, towards the universal weight."""
    decay_adapters: float | None = added(None)
    """Weight decay of adapters and proxies."""
    decay_norms: float | None = added(None)
    """Weight decay of the normalisation layers; none by default."""
    decay_head: float | None = added(None)
    """Weight decay of the classifier."""
    legacy_weight_decay: bool = added(False)
    """The rule that the published residual adapters came to: along the network each 3x3
    convolution hands --decay-body, each 1x1 one --decay-adapters to all tensors behind it, norms
    and head too; --weight-decay is for what lies before the first."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls; cosine reaches 0 after the last step."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from 0."""
    step_epochs: int = 10
    """Epochs between two drops of the step schedule."""
    step_factor: float = 0.1
    """What one drop multiplies the learning rate by."""
    clip: float | None = None
    """Largest norm of the gradient; longer ones are shortened."""
    label_smoothing: float = 0.0
    """Share of a label spread over all classes, in [0, 1)."""
    # On the command line --keep, because --select is what methods call their learned selection.
    select: Annotated[Literal["best", "last"], tyro.conf.arg(name="keep")] = "best"
    """Which epoch's weights to keep: the best on the validation split, or the last."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: the fastest one that is here."""
    bf16: bool = False
    """Compute in bfloat16 (autocast); weights stay float32."""
    channels_last: bool = False
    """Memory format NHWC: faster convolutions on recent GPUs."""
    compile: bool = False
    """torch.compile the network: slow first step, faster ones after."""
    checkpoint_seconds: float = 60.0
    """Save within an epoch after so many seconds; the end of an epoch always saves."""
    log_every: int = 20
    """Steps between two lines of the log."""

    def check(self) -> None:
        """Refuse values that cannot train.

        Raises:
            BadInput: names the first bad one.
        """
        positive = {"epochs": self.epochs, "batch": self.batch, "accumulate": self.accumulate}
        positive |= {"step_epochs": self.step_epochs, "log_every": self.log_every}
        if self.steps_per_epoch is not None:
            positive["steps_per_epoch"] = self.steps_per_epoch
        for name, count in positive.items():
            if count < 1:
                raise BadInput(f"{name} is {count}; give 1 or more")
        rates = {n: getattr(self, n) for n in ("lr", "lr_scores", "lr_norms", "lr_head", "clip")}
        for name, rate in rates.items():
            if rate is not None and not (0 < rate < math.inf):
                raise BadInput(f"{name} is {rate}; give a finite number above 0")
        decays = [f"decay_{n}" for n in ("body", "deltas", "adapters", "norms", "head")]
        for name in ("weight_decay", "warmup_epochs", "step_factor", *decays):
            value = getattr(self, name)
            if value is not None and not (0 <= value < math.inf):
                raise BadInput(f"{name} is {value}; give 0 or more")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; give a number in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise BadInput("nesterov needs a momentum above 0; give --momentum 0.9")
        if self.accumulate > self.batch:
            raise BadInput(f"accumulate {self.accumulate} is above batch {self.batch}; lower it")


@dataclass(frozen=True, kw_only=True)
class Settings(Recipe):
    """How to train: the same for teacher, student and retraining."""

    seed: int = 0
    """Of head, order of images, augmentation and dropout."""


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        BadInput: it is not on this machine.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {name!r} is not available here; give --device cpu") from error
    return device
