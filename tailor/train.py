"""Training: one visible loop for teacher, student and retraining.

``steps`` runs epochs of ``training_step``, evaluates on the validation split, logs, and
checkpoints; it pauses after every step, so that several trainings can take turns (``turns.py``),
and ``fit`` goes through it without a pause. All randomness of a step is a function of (seed, step),
so a run that was killed or paused continues to the same weights, bit for bit on a CPU. What a
method needs differs in its loss and its student, not here. Left out: what a run directory is
(``run.py``), which batches (``data.py``).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tailor.board import Board, Meter, Watch, epoch_record
from tailor.checkpoint import Best, restore, snapshot, sound
from tailor.data import Batches
from tailor.distributed import Group, averaging, synced_batch_norm
from tailor.errors import BadInput
from tailor.link import Link
from tailor.metrics import MeanLoss, metric_for
from tailor.optim import build_optimizer, rate_at
from tailor.prefix import Resuming, Starting
from tailor.progress import Progress, Silent
from tailor.run import Run, write_tensors
from tailor.settings import Settings
from tailor.step import training_step
from tailor.student import Student
from tailor.turns import InSteps, alone


@dataclass
class Fitted:
    """What ``fit`` returns; the student itself is trained in place."""

    val: float | None  # metric of the kept weights on the validation split
    epoch: int  # the epoch whose weights were kept, counted from 1
    seconds: float  # training and validation time, earlier sessions of the run included


class Diverged(BadInput):
    """The loss became infinite or not a number."""


def evaluate(student: Student, batches: Batches, *, bf16: bool = False) -> float:
    """The split's metric over all processes, larger is better; see ``evaluate_both``."""
    return evaluate_both(student, batches, bf16=bf16)[0]


@torch.no_grad()
def evaluate_both(student: Student, batches: Batches, *, bf16: bool = False) -> tuple[float, float]:
    """The split's metric and its mean loss over all processes.

    Args:
        student: put into evaluation mode.
        batches: of a split, whose target says what is measured.
        bf16: compute in bfloat16.

    Returns:
        The metric, larger is better, and the task loss over all counted labels, without label
        smoothing and in whatever batches.
    """
    student.train(False)
    metric, loss = metric_for(batches.split.target), MeanLoss(batches.split.target)
    for batch in batches.epoch(0):
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            if batch.given is None:
                logits = student(batch.images).logits
            else:
                logits = cast(Starting, student).resume(batch.given, batch.images).logits
        metric.add(logits, batch.labels)
        loss.add(logits, batch.labels)
    return metric.value(), loss.value()


def steps(
    student: Student,
    train: Batches,
    val: Batches | None,
    settings: Settings,
    *,
    run: Run | None = None,
    stage: str = "adapt",
    progress: Progress | None = None,
    link: Link | None = None,
) -> InSteps[Fitted]:
    """Train ``student`` in place, with a pause after every optimiser step; ``fit`` has none.

    Args:
        student: moved to ``train.device``.
        train, val: batches; without ``val`` the last weights are kept.
        settings: everything else.
        run: where to log, checkpoint and resume; nothing is written without one.
        stage: the word for it in the log: ``teacher``, ``adapt`` or ``retrain``.
        progress: who is told about it.
        link: the task's place in a sequence: where the optimiser's state comes from and goes to.

    Returns:
        The kept weights' metric, epoch and the time that they took, pauses left out.

    Raises:
        Diverged: infinite or not-a-number loss; names step, learning rate and checkpoint.
        BadInput: unusable settings, no room to write, or no memory for a step.
    """
    settings.check()
    progress, device, group = progress or Silent(), train.device, Group.current()
    module = cast(nn.Module, student)
    module.to(device)
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(student, settings)
    step, best, before = 0, Best(), 0.0
    meter = Meter(device)
    saved = None if run is None else run.checkpoint()
    if saved is not None:
        tensors, about = saved
        if about["steps"] != train.steps:
            raise BadInput(
                f"the checkpoint has {about['steps']} steps per epoch, the data now {train.steps}: "
                f"restore the data as it was, or choose another --out"
            )
        restore(student, optimizer, tensors)
        step, before = about["step"], about["seconds"]
        best = Best(about["best"], about["best_epoch"])
        meter = Meter(device, about["sums"])
        progress.say(f"resumed at step {step} of {settings.epochs * train.steps}")
    elif link is not None:
        link.begin(student, optimizer)
    if run is not None:
        run.rewind(stage, step)
    if settings.compile:
        _compile(student)
    forward: Callable[..., Any] = Resuming(student)
    if group.world > 1:
        forward = averaging(cast(nn.Module, forward))
    board, watch, saved_at = Board(run, step), Watch(), time.monotonic()

    def save() -> None:
        nonlocal saved_at
        if run is not None and run.writer:
            about = {
                "step": step,
                "steps": train.steps,
                "seconds": before + watch.seconds(),
                "best": best.val,
                "best_epoch": best.epoch,
                "sums": meter.sums.tolist(),
            }
            write_tensors(run.path / "last.safetensors", snapshot(student, optimizer), about)
        saved_at = time.monotonic()

    def keep_best() -> None:
        """Follows ``save``, so that a resumed run can make good for a crash between the two."""
        if group.rank == 0 and best.epoch > 0 and step == best.epoch * train.steps:
            best.keep(student, run)

    def log(record: dict[str, Any]) -> None:
        if run is not None:
            run.log({"kind": record.pop("kind"), "stage": stage, "step": step} | record)

    def diverged(what: str) -> Diverged:
        rate = optimizer.param_groups[0]["lr"]
        kept = run.path / "last.safetensors" if run is not None else None
        good = f"the last good checkpoint is {kept}" if kept and kept.exists() else "none saved"
        return Diverged(
            f"the {what} became infinite or not a number by step {step} at learning rate "
            f"{rate:.3g} ({good}); lower --lr, or give --clip 1, under another --out"
        )

    def finite_loss() -> dict[str, float]:
        seen = meter.read()
        if not math.isfinite(seen["loss"]):
            raise diverged("loss")
        return seen

    keep_best()
    with contextlib.ExitStack() as until_done:
        until_done.callback(progress.end)
        until_done.callback(board.close)
        progress.begin(settings.epochs * train.steps, step)
        shown = step
        for epoch in range(step // train.steps, settings.epochs):
            watch.lap()  # validation is no training time
            epoch_began, images = watch.seconds(), 0
            student.train()
            for batch in train.epoch(epoch, start_step=step - epoch * train.steps):
                share = rate_at(settings, step / train.steps)
                for params in optimizer.param_groups:
                    params["lr"] = params["base_lr"] * share
                # All generators are a function of (seed, step, rank): there is no state to save.
                seed = (settings.seed * 1_000_003 + step) * 1_009 + group.rank
                torch.manual_seed(seed % 2**63)
                with synced_batch_norm(group), _mendable():
                    result = training_step(
                        student,
                        optimizer,
                        batch.images,
                        batch.labels,
                        settings,
                        epoch=step / train.steps,
                        indices=batch.indices,
                        target=train.split.target,
                        given=batch.given,
                        forward=forward,
                    )
                meter.add(result, len(batch.labels))
                images += len(batch.labels) * group.world
                step += 1
                if device.type == "cpu" or step % settings.log_every == 0:
                    seen = finite_loss()
                    progress.advance(step - shown, seen)
                    shown = step
                if step % settings.log_every == 0:
                    speed, images = images / max(watch.lap(), 1e-9), 0
                    line = {"kind": "train", "epoch": epoch + 1, **seen, "lr": settings.lr * share}
                    log(line | {"images_per_second": speed})
                if (
                    time.monotonic() - saved_at > settings.checkpoint_seconds
                    and step % train.steps
                    and sound(student, optimizer)
                ):
                    save()
                with watch.stopped():
                    yield
            seen = finite_loss()
            if not sound(student, optimizer):
                raise diverged("weights")
            meter.sums.zero_()
            metric = None
            if val is not None:
                metric = evaluate(student, val, bf16=settings.bf16)
                if settings.select == "best" and best.beaten_by(metric):
                    best = Best(metric, epoch + 1)
            kind = train.split.target.metric
            record = epoch_record(student, seen, metric, settings.lr * share, kind)
            seconds = watch.seconds() - epoch_began
            log({"kind": "epoch", "epoch": epoch + 1, "seconds": seconds} | record)
            if group.rank == 0:
                board.epoch(record, step)
            save()
            keep_best()
            progress.advance(step - shown, seen)
            shown = step
            progress.epoch(epoch + 1, settings.epochs, record)
    if link is not None and group.rank == 0:
        link.end(student, optimizer)
    if settings.select == "best" and val is not None:
        best.restore(student, run)
        return Fitted(best.val, best.epoch, before + watch.seconds())
    last = None if val is None else evaluate(student, val, bf16=settings.bf16)
    return Fitted(last, settings.epochs, before + watch.seconds())


fit = alone(steps)


@contextlib.contextmanager
def _mendable() -> Iterator[None]:
    """Say what to do about what stops a step for want of images, memory or a compiler."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BadInput(
            f"no memory left for a step ({str(error).partition('.')[0]}); "
            f"lower --batch, raise --accumulate, or give --bf16"
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise BadInput(
            "batch norm cannot train on one number per channel; "
            "raise --batch, lower --accumulate, or give a larger --px"
        ) from error
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise BadInput(
            f"torch.compile failed ({str(error).splitlines()[0]}); "
            f"install what it names, or leave --compile out"
        ) from error


def _compile(student: Student) -> None:
    """Compile the student's ``trunk`` where it has one, otherwise all of it.

    A gated student reads its gates in Python; compiled as a whole, every new pattern of open gates
    would compile it again.
    """
    compiled = cast(Any, student)
    if hasattr(student, "trunk"):
        compiled.trunk = torch.compile(compiled.trunk)
    else:
        compiled.compile()
