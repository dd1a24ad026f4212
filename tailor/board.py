"""What a training says about itself: sums over an epoch, its record, its time, TensorBoard."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tailor.distributed import Group
from tailor.run import Run, writing
from tailor.step import StepResult
from tailor.student import Gated, Student

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Meter:
    """Sums over an epoch and all processes, on the device so that a GPU never waits for the log."""

    def __init__(self, device: torch.device, sums: Sequence[float] = (0.0,) * 5):
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.tensor(list(sums), dtype=exact).to(device)

    def add(self, result: StepResult, images: int) -> None:
        terms = result.terms
        taught = torch.zeros_like(terms.task) if terms.distillation is None else terms.distillation
        means = torch.stack([terms.total, terms.task, taught])
        counts = torch.stack([result.wrong.to(means.dtype), torch.full_like(terms.task, images)])
        seen = torch.cat([means * images, counts]).to(self.sums.dtype)
        Group.current().sum_(seen)
        self.sums += seen

    def read(self) -> dict[str, float]:
        loss, task, taught, wrong, images = self.sums.tolist()
        seen = max(images, 1)
        found = {
            "loss": loss / seen,
            "task": task / seen,
            "price": (loss - task - taught) / seen,
            "distillation": taught / seen,
        }
        # Of a task of numbers no image is right or wrong.
        return found if math.isnan(wrong) else found | {"error": wrong / seen}


def epoch_record(
    student: Student,
    seen: dict[str, float],
    val: float | None,
    rate: float,
    metric: str,
) -> dict[str, Any]:
    """What the log says about an epoch: losses, metric, and what is switched on how far."""
    states = student.layer_states()
    total = sum(s.params for s in states)
    record: dict[str, Any] = {
        "train_loss": seen["loss"],
        "train_error": seen.get("error"),
        "metric": metric,
        "val": val,
        "val_error": None if val is None else 1 - val,
        "share_layers": sum(s.on for s in states) / len(states),
        "share_params": sum(s.params for s in states if s.on) / total,
        "lr": rate,
    }
    scores = {s.name: s.score for s in states if s.score is not None}
    if scores:
        record |= {"scores": scores, "on": {s.name: s.on for s in states}}
    paths = student.gates() if isinstance(student, Gated) else []
    if gates := {g.name: g.value for g in paths if g.kind != "delta"}:
        terms = {f"train_{name}": seen[name] for name in ("task", "price", "distillation")}
        record |= {"gates": gates, **terms}
    return record


class Watch:
    """A stop watch of one training: while others have their turn, it stands still."""

    def __init__(self) -> None:
        self.away = 0.0
        self.began, self.lapped = time.monotonic(), 0.0

    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self.began - self.away

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = self.seconds()
        seconds, self.lapped = now - self.lapped, now
        return seconds

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Within, no time passes."""
        left = time.monotonic()
        try:
            yield
        finally:
            self.away += time.monotonic() - left


class Board:
    """TensorBoard under the tags that users of TAPS know."""

    def __init__(self, run: Run | None, step: int) -> None:
        self.run, self.resumed_at = run, step
        self.writer: SummaryWriter | None = None

    def epoch(self, record: dict[str, Any], step: int) -> None:
        if self.run is None:
            return
        folder = self.run.path / "tensorboard"
        with writing(folder):
            if self.writer is None:
                from torch.utils.tensorboard import SummaryWriter  # a second to import

                # What a killed session wrote past its last checkpoint is shown once, not twice.
                self.writer = SummaryWriter(str(folder), purge_step=self.resumed_at + 1)
            tags = {
                "Training Loss": record["train_loss"],
                "Training Error": record["train_error"],
                "Validation Error": record["val_error"],
                "Learning Rate": record["lr"],
                "Share of Layers Adapted": record["share_layers"],
                "Share of Parameters Adapted": record["share_params"],
            }
            tags |= {f"Score/{n}": s for n, s in record.get("scores", {}).items()}
            tags |= {f"Gate/{n}": g for n, g in record.get("gates", {}).items()}
            for term in ("task", "price", "distillation"):
                tags[f"Loss/{term}"] = record.get(f"train_{term}")
            for tag, value in tags.items():
                if value is not None:
                    self.writer.add_scalar(tag, value, step)
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
