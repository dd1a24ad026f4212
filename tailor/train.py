"""Training: one visible loop for teacher, student and retraining.

``fit`` runs epochs of ``training_step``, evaluates on the validation split, logs, and checkpoints.
All randomness of a step is a function of (seed, step), so a run that was killed continues from its
last checkpoint to the same weights, bit for bit on a CPU. What a method needs differs in its loss
and its student, not here. Left out: what a run directory is (``run.py``), which batches
(``data.py``).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tailor.data import Batches
from tailor.distributed import Group, averaging, synced_batch_norm
from tailor.errors import BadInput
from tailor.losses import LossTerms, step_loss
from tailor.progress import Progress, Silent
from tailor.run import Run, read_tensors, write_tensors, writing
from tailor.student import Student, trained_parameters

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DECAYED = ("body", "adapters", "head", "deltas")  # norms and scores are never decayed


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train: the same for teacher, student and retraining."""

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
    seed: int = 0
    """Of head, order of images, augmentation and dropout."""
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


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind: its loss terms and the number of wrong images, all detached."""

    terms: LossTerms
    wrong: Tensor


@dataclass
class Fitted:
    """What ``fit`` returns; the student itself is trained in place."""

    val: float | None  # metric of the kept weights on the validation split
    epoch: int  # the epoch whose weights were kept, counted from 1
    seconds: float  # training and validation time, earlier sessions of the run included


class Diverged(BadInput):
    """The loss became infinite or not a number."""


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


def build_optimizer(student: Student, settings: Settings) -> torch.optim.Optimizer:
    """One parameter group per role, each with its own learning rate and weight decay."""
    own = {"scores": settings.lr_scores, "norms": settings.lr_norms, "head": settings.lr_head}
    groups: list[dict[str, Any]] = []
    for role, params in student.roles().items():
        rate = own.get(role)
        anchored = role == "deltas"  # decays towards the universal weight: see _decay_to_anchors
        decay = settings.weight_decay if role in DECAYED and not anchored else 0.0
        groups.append(
            {
                "params": params,
                "lr": settings.lr if rate is None else rate,
                "weight_decay": decay,
                "role": role,
            }
        )
    groups = [g for g in groups if g["params"]]
    for group in groups:
        group["base_lr"] = group["lr"]
    # One kernel per group: a fifth of an optimiser step less on a CPU. MPS has none for SGD.
    fused = all(p.device.type in ("cpu", "cuda") for p in trained_parameters(student))
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        fused=fused,
    )


def rate_at(settings: Settings, epoch: float) -> float:
    """The learning rate at a moment, as a share of its base.

    Args:
        settings: schedule, warm-up and length.
        epoch: moment in epochs, 0 at the first step and ``settings.epochs`` after the last.
    """
    if epoch < settings.warmup_epochs:
        return epoch / settings.warmup_epochs
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "step":
        return float(settings.step_factor ** (epoch // settings.step_epochs))
    length = max(settings.epochs - settings.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * (epoch - settings.warmup_epochs) / length))


def training_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    *,
    epoch: float,
    forward: Callable[[Tensor], Any] | None = None,
) -> StepResult:
    """One optimiser step on (B, C, H, W) images and (B,) labels.

    Args:
        student: in training mode.
        optimizer: from ``build_optimizer``; its learning rates are set by the caller.
        images, labels: this process's share of the batch.
        settings: pieces, clipping, precision.
        epoch: moment in epochs, for prices that act later.
        forward: the student or its DistributedDataParallel wrapper.
    """
    forward = forward or student
    optimizer.zero_grad(set_to_none=True)
    task, price, wrong = labels.new_zeros((), dtype=torch.float32), None, labels.new_zeros(())
    pieces = list(
        zip(images.chunk(settings.accumulate), labels.chunk(settings.accumulate), strict=True)
    )
    for i, (x, y) in enumerate(pieces):
        last = i == len(pieces) - 1
        with contextlib.ExitStack() as stack:
            if not last and isinstance(forward, DistributedDataParallel):
                stack.enter_context(forward.no_sync())
            with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.bf16):
                output = forward(x)
            terms = step_loss(
                student, output, y, epoch=epoch, label_smoothing=settings.label_smoothing
            )
            torch.autograd.backward(terms.total * (len(y) / len(labels)))
        task += terms.task.detach() * (len(y) / len(labels))
        price = None if terms.price is None else terms.price.detach()
        wrong += (output.logits.argmax(1) != y).sum()
    for param in student.idle():
        param.grad = None
    if settings.clip is not None:
        nn.utils.clip_grad_norm_(list(trained_parameters(student)), settings.clip)
    if settings.weight_decay > 0:
        _decay_to_anchors(student, optimizer, settings)
    optimizer.step()
    return StepResult(LossTerms(task, price), wrong)


@torch.no_grad()
def _decay_to_anchors(
    student: Student, optimizer: torch.optim.Optimizer, settings: Settings
) -> None:
    """Weight decay of deltas: as in the optimiser at hand, but towards the universal weight."""
    rate = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for param, anchor in student.anchors().items():
        if param.grad is None:
            continue
        if settings.optimizer == "adamw":
            param.lerp_(anchor, rate[param] * settings.weight_decay)
        else:
            param.grad.add_(param - anchor, alpha=settings.weight_decay)


@torch.no_grad()
def evaluate(student: Student, batches: Batches, *, bf16: bool = False) -> float:
    """Share of images whose largest logit is their label, in [0, 1], over all processes."""
    student.train(False)
    right, seen = torch.zeros(2, dtype=torch.int64), 0
    totals = right.to(batches.device)
    for batch in batches.epoch(0):
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            logits = student(batch.images).logits
        totals[0] += (logits.argmax(1) == batch.labels).sum()
        seen += len(batch.labels)
    totals[1] = seen
    Group.current().sum_(totals)
    hits, images = totals.tolist()
    return float(hits / images)


class _Meter:
    """Sums over an epoch and all processes, on the device so that a GPU never waits for the log."""

    def __init__(self, device: torch.device, sums: Sequence[float] = (0.0, 0.0, 0.0, 0.0)):
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.tensor(list(sums), dtype=exact).to(device)

    def add(self, result: StepResult, images: int) -> None:
        loss, task = result.terms.total * images, result.terms.task * images
        seen = torch.stack([loss, task, result.wrong, torch.full_like(loss, images)])
        seen = seen.to(self.sums.dtype)
        Group.current().sum_(seen)
        self.sums += seen

    def read(self) -> dict[str, float]:
        loss, task, wrong, images = self.sums.tolist()
        seen = max(images, 1)
        return {
            "loss": loss / seen,
            "task": task / seen,
            "price": (loss - task) / seen,
            "error": wrong / seen,
        }


def fit(
    student: Student,
    train: Batches,
    val: Batches | None,
    settings: Settings,
    *,
    run: Run | None = None,
    stage: str = "adapt",
    progress: Progress | None = None,
) -> Fitted:
    """Train ``student`` in place.

    Args:
        student: moved to ``train.device``.
        train, val: batches; without ``val`` the last weights are kept.
        settings: everything else.
        run: where to log, checkpoint and resume; nothing is written without one.
        stage: the word for it in the log: ``teacher``, ``adapt`` or ``retrain``.
        progress: who is told about it.

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
    step, best, before = 0, _Best(), 0.0
    meter = _Meter(device)
    saved = None if run is None else run.checkpoint()
    if saved is not None:
        tensors, about = saved
        if about["steps"] != train.steps:
            raise BadInput(
                f"the checkpoint has {about['steps']} steps per epoch, the data now {train.steps}: "
                f"restore the data as it was, or choose another --out"
            )
        _restore(student, optimizer, tensors)
        step, before = about["step"], about["seconds"]
        best = _Best(about["best"], about["best_epoch"])
        meter = _Meter(device, about["sums"])
        progress.say(f"resumed at step {step} of {settings.epochs * train.steps}")
    if run is not None:
        run.rewind(stage, step)
    if settings.compile:
        _compile(student)
    forward: Callable[[Tensor], Any] = student
    if group.world > 1:
        forward = averaging(module)
    board = _Board(run, step)
    started = saved_at = time.monotonic()

    def elapsed() -> float:
        return before + time.monotonic() - started

    def save() -> None:
        nonlocal saved_at
        if run is not None and run.writer:
            about = {
                "step": step,
                "steps": train.steps,
                "seconds": elapsed(),
                "best": best.val,
                "best_epoch": best.epoch,
                "sums": meter.sums.tolist(),
            }
            write_tensors(run.path / "last.safetensors", _snapshot(student, optimizer), about)
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
            board.lap()  # validation is no training time
            epoch_began, timed_from = time.monotonic(), step
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
                        forward=forward,
                    )
                meter.add(result, len(batch.labels))
                step += 1
                if device.type == "cpu" or step % settings.log_every == 0:
                    seen = finite_loss()
                    progress.advance(step - shown, seen)
                    shown = step
                if step % settings.log_every == 0:
                    speed = train.batch * (step - timed_from) / max(board.lap(), 1e-9)
                    timed_from = step
                    line = {"kind": "train", "epoch": epoch + 1, **seen, "lr": settings.lr * share}
                    log(line | {"images_per_second": speed})
                if (
                    time.monotonic() - saved_at > settings.checkpoint_seconds
                    and step % train.steps
                    and _sound(student, optimizer)
                ):
                    save()
            seen = finite_loss()
            if not _sound(student, optimizer):
                raise diverged("weights")
            meter.sums.zero_()
            metric = None
            if val is not None:
                metric = evaluate(student, val, bf16=settings.bf16)
                if settings.select == "best" and best.beaten_by(metric):
                    best = _Best(metric, epoch + 1)
            record = _epoch_record(student, seen, metric, settings.lr * share)
            seconds = time.monotonic() - epoch_began
            log({"kind": "epoch", "epoch": epoch + 1, "seconds": seconds} | record)
            if group.rank == 0:
                board.epoch(record, step)
            save()
            keep_best()
            progress.advance(step - shown, seen)
            shown = step
            progress.epoch(epoch + 1, settings.epochs, record)
    if settings.select == "best" and val is not None:
        best.restore(student, run)
        return Fitted(best.val, best.epoch, elapsed())
    last = None if val is None else evaluate(student, val, bf16=settings.bf16)
    return Fitted(last, settings.epochs, elapsed())


class _Best:
    """The best epoch so far, and where its tensors are."""

    def __init__(self, val: float | None = None, epoch: int = 0) -> None:
        self.val, self.epoch = val, epoch
        self.tensors: dict[str, Tensor] | None = None

    def beaten_by(self, val: float) -> bool:
        return self.val is None or val > self.val

    def keep(self, student: Student, run: Run | None) -> None:
        tensors = student.task.state_dict()
        if run is not None:
            write_tensors(run.path / "best.safetensors", tensors, {"epoch": self.epoch})
        else:
            self.tensors = {n: t.clone() for n, t in tensors.items()}

    def restore(self, student: Student, run: Run | None) -> None:
        group = Group.current()
        if group.rank == 0:
            tensors = self.tensors
            if run is not None:
                tensors = read_tensors(run.path / "best.safetensors")[0]
            if tensors is not None:
                student.task.load_state_dict(tensors)
        for tensor in student.task.state_dict().values():
            group.broadcast_(tensor)


def _epoch_record(
    student: Student, seen: dict[str, float], metric: float | None, rate: float
) -> dict[str, Any]:
    states = student.layer_states()
    total = sum(s.params for s in states)
    record: dict[str, Any] = {
        "train_loss": seen["loss"],
        "train_error": seen["error"],
        "val": metric,
        "val_error": None if metric is None else 1 - metric,
        "share_layers": sum(s.on for s in states) / len(states),
        "share_params": sum(s.params for s in states if s.on) / total,
        "lr": rate,
    }
    scores = {s.name: s.score for s in states if s.score is not None}
    if scores:
        record |= {"scores": scores, "on": {s.name: s.on for s in states}}
    return record


class _Board:
    """TensorBoard under the tags that users of TAPS know, and a stop watch for the log."""

    def __init__(self, run: Run | None, step: int) -> None:
        self.run, self.resumed_at = run, step
        self.writer: SummaryWriter | None = None
        self.since = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        return seconds

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
            for tag, value in tags.items():
                if value is not None:
                    self.writer.add_scalar(tag, value, step)
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


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


def _sound(student: Student, optimizer: torch.optim.Optimizer) -> bool:
    """Whether weights and optimiser state are finite: a step can spoil them after a good loss."""
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return all(bool(t.isfinite().all()) for t in [*trained_parameters(student), *state])


def _snapshot(student: Student, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a step changes, as named tensors: the task's and the optimiser's."""
    tensors = {f"task.{n}": t for n, t in student.task.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{index}.{k}": t for k, t in state.items() if t is not None}
    return tensors


def _restore(
    student: Student, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    task = {n.removeprefix("task."): t for n, t in tensors.items() if n.startswith("task.")}
    try:
        student.task.load_state_dict(task)
    except RuntimeError as error:
        raise BadInput(
            f"the checkpoint does not fit this student ({str(error).splitlines()[-1].strip()}); "
            f"choose another --out"
        ) from error
    params = [p for g in optimizer.param_groups for p in g["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optim."):
            _, index, key = name.split(".", 2)
            like = params[int(index)]
            # Fused kernels read a parameter and its momentum in memory order; a file has no NHWC.
            own = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(index), {})[key] = own
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
