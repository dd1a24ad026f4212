"""Settings: how to train, the same for teacher, student and retraining.

Left out: what the settings do (``optim.py``, ``train.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from tailor.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, whatever the seed."""

    epochs: int = 20
    """Passes over the training split."""
    batch: int = 32
    """Images per optimiser step, over all processes."""
    accumulate: int = 1
    """Compute each batch in so many pieces and average: less memory, same step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or AdamW."""
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
    universal one; norms and scores are left alone."""
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
    select: Literal["best", "last"] = "best"
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
        for name, value in positive.items():
            if value < 1:
                raise BadInput(f"{name} is {value}; give 1 or more")
        rates = {n: getattr(self, n) for n in ("lr", "lr_scores", "lr_norms", "lr_head", "clip")}
        for name, rate in rates.items():
            if rate is not None and not (0 < rate < math.inf):
                raise BadInput(f"{name} is {rate}; give a finite number above 0")
        for name in ("weight_decay", "warmup_epochs", "step_factor"):
            if not (0 <= getattr(self, name) < math.inf):
                raise BadInput(f"{name} is {getattr(self, name)}; give 0 or more")
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
