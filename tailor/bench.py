"""What a method costs in seconds and memory, against plain fine-tuning of the same network.

Two worker processes stay alive, one with the plain network, one with the method's student, and the
parent lets them compute in turns: plain, method, method, plain, ... so that never more than one
computes and both see the same machine. A ratio compares the two turns of one round; the median
over the rounds is reported, and how far the rounds lie apart.

Plain means: the network of timm with a new head, every parameter trained by torch's own SGD with
momentum, in eager mode, no code of ours in its step. The method runs the step that ``fit`` runs.
Inference compares ``student.merge()`` with the plain network.

The clock is the process's CPU time for one thread on the CPU, which a busy machine disturbs least,
and wall time for everything else; wall-clock numbers are always beside it. Peak memory is what
training takes (weights, gradients, the optimiser's state, activations) until three steps end: on
CUDA the largest size of allocated tensors; on the CPU the largest resident size of the process less
that of an idle worker, which has loaded the libraries and computed one convolution, and which is
told beside it. Left to itself, glibc keeps or returns freed memory by the luck of the heap's
layout: page faults cost one process a sixth of its time and the next nothing, and peaks differ by
40 MB. So, on Linux, the workers that are timed keep all memory, and a second pair, which returns
all of it at once, is weighed.
Reading images is no part of a step; ``data`` measures it alone.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from tailor import catalog
from tailor.adapters import linear_head, with_head
from tailor.backbone import Backbone
from tailor.cost import spread
from tailor.data import throughput
from tailor.errors import BadInput
from tailor.optim import build_optimizer
from tailor.prefix import Starting
from tailor.settings import Settings
from tailor.step import training_step
from tailor.student import Distilled, Gated, Student
from tailor.teacher import Teacher
from tailor.typed import pairs, settings_of

CLASSES = 10
_PATIENCE_SECONDS = 900.0  # for one answer of a worker; a step takes seconds, building a minute
# What is measured, the worker's word for it, calls per training step (a step takes about as long
# as three passes, and a pass of one image is short), images in a call (None: the config's batch).
_PHASES: tuple[tuple[str, str, int, int | None], ...] = (
    ("train", "train", 1, None),
    ("infer", "infer", 3, None),
    ("infer_batch1", "infer", 6, 1),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure. The defaults end within a minute on two cores.

    Example: tailor bench --method taps --backbone resnet34 --px 64 --batch 32 --threads 1
    """

    method: str = "taps"
    """Whose training step and merged network; `tailor list methods`."""
    option: tuple[str, ...] = ()
    """Options of the method, such as adapters=series."""
    backbone: str = "resnet34"
    """Of the method and of the plain network, with random weights; `tailor list backbones`."""
    px: int = 64
    """Side of the square input."""
    batch: int = 32
    """Images in a training step, and in the larger inference batch."""
    threads: int = 1
    """Threads of the CPU that one step may use."""
    rounds: int = 5
    """Turns of each side; ratios are medians over them."""
    steps: int = 2
    """Training steps in one turn."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    channels_last: bool = False
    """Images and weights with channels innermost in memory, on both sides."""
    bf16: bool = False
    """Forward pass in bfloat16 (autocast), on both sides."""
    lr: float = 0.01
    """Learning rate of SGD with momentum 0.9; changes no time, but must keep the loss finite."""
    cache: bool = False
    """Train on what the method's frozen start returns, as from the second epoch on where images do
    not vary."""
    off: tuple[int, ...] = ()
    """Universal blocks (from 0) that are pruned before inference is timed, for methods with proxy
    blocks; each keeps the proxy from the block before, and no other proxy stays."""
    data: bool = False
    """Measure the in-memory data path too: images/s with crop and flip at this size."""


def run(
    config: Config, on_progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """Measure one method.

    Args:
        config: what to measure.
        on_progress: told (turns done, turns in all, what runs now).

    Returns:
        The fields of ``bench --json``. ``train`` and ``infer`` (at ``batch``) and ``infer_batch1``:
        images/s of ``plain`` and ``method``, median ``ratio`` (above 1: faster than plain), its
        interquartile range ``spread``, and the same by wall clock under ``wall``. ``train`` also
        has both peaks of what training takes, in MB (10^6 bytes), their ``memory`` ratio (below 1:
        less than plain), and ``idle_mb``, what an idle worker takes besides.
        ``data_images_per_second`` where ``data`` is asked for.

    Raises:
        BadInput: an unknown method or backbone, a number that must be positive, a device that is
            not there.
        RuntimeError: a worker died or fell silent; the message ends with its last words.
    """
    _check(config)
    report: dict[str, Any] = {}
    done, turns = 0, 2 * config.rounds * len(_PHASES)
    with contextlib.ExitStack() as stack:
        sides = _pair(stack, config, keep_memory=True)
        for what, do, calls_per_step, batch in _PHASES:
            calls, images = calls_per_step * config.steps, batch or config.batch
            command = {"do": do, "calls": calls, "batch": images}
            for worker in sides.values():
                worker.ask({**command, "calls": 2})  # warm up: memory, kernels, optimiser state
            seconds: dict[str, list[dict[str, float]]] = {"plain": [], "method": []}
            for turn in range(config.rounds):
                for side in ("plain", "method") if turn % 2 == 0 else ("method", "plain"):
                    if on_progress is not None:
                        on_progress(done, turns, f"{what} {side}")
                    seconds[side].append(sides[side].ask(command))
                    done += 1
            report[what] = _compare(seconds, calls * images, _clock(config))
    report["train"] |= _peaks(config)
    if config.data:
        report["data_images_per_second"] = round(_data_images_per_second(config))
    if on_progress is not None:
        on_progress(done, turns, "done")
    asked = dataclasses.asdict(config) | {"off": list(config.off), "option": list(config.option)}
    return {**asked, **report, "clock": _clock(config)} | _made_by(config)


@contextlib.contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """An ``on_progress`` for people: a bar with the time that is left, on standard error."""
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description:21}"), *columns, console=Console(stderr=True)
    ) as progress:
        row = progress.add_task("building", total=None)

        def tell(done: int, total: int, what: str) -> None:
            progress.update(row, completed=done, total=total, description=what)

        yield tell


def show(report: dict[str, Any]) -> None:
    """Print what ``run`` returned as a table."""
    layout = "channels last" if report["channels_last"] else "channels first"
    precision = "bf16" if report["bf16"] else "fp32"
    table = Table(
        title=f"{report['method']} and plain fine-tuning, {report['backbone']} at "
        f"{report['px']} px, {precision}, {layout}",
        caption=f"{report['clock']} clock, {report['threads']} thread(s), {report['machine']}, "
        f"torch {report['torch']}; medians of {report['rounds']} rounds; training takes "
        f"{report['train']['memory']:.2f}x of plain's memory, and an idle worker "
        f"{report['train']['idle_mb']:.0f} MB",
        box=None,
    )
    table.add_column("")
    for name in ("batch", "plain img/s", "method img/s", "ratio", "±", "plain MB", "method MB"):
        table.add_column(name, justify="right")
    for what, batch in (
        ("train", report["batch"]),
        ("infer", report["batch"]),
        ("infer_batch1", 1),
    ):
        side = report[what]
        peaks = [f"{side[k]:.0f}" if k in side else "" for k in ("peak_mb_plain", "peak_mb")]
        speeds = [f"{side['plain']:.1f}", f"{side['method']:.1f}"]
        ratio = [f"{side['ratio']:.3f}x", f"{side['spread']:.3f}"]
        table.add_row(what.split("_")[0], str(batch), *speeds, *ratio, *peaks)
    Console().print(table)
    if report["data"]:
        print(f"data: {report['data_images_per_second']} images/s from memory")


def _check(config: Config) -> None:
    for name in ("px", "batch", "threads", "rounds", "steps"):
        if (value := getattr(config, name)) < 1:
            raise BadInput(f"{name} is {value}; give --{name} 1 or more")
    if not config.lr > 0:
        raise BadInput(f"lr is {config.lr}; give --lr above 0")
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(config.device, False):
        here = ", ".join(name for name, there in present.items() if there)
        raise BadInput(f"device {config.device!r} is not here; give --device {here}")
    # What no worker could build is known before any is started.
    backbone = Backbone.create(config.backbone, weights="random", px=config.px)
    _method(dataclasses.replace(config, device="cpu"), backbone)


def _pair(stack: contextlib.ExitStack, config: Config, *, keep_memory: bool) -> dict[str, _Worker]:
    """Both workers, built at the same time; from then on only one may compute at a time."""
    sides = {
        side: stack.enter_context(contextlib.closing(_Worker(side, config, keep_memory)))
        for side in ("plain", "method")
    }
    for worker in sides.values():
        worker.receive()
    return sides


def _peaks(config: Config) -> dict[str, float]:
    """Peak memory of training, in MB: three steps reach it."""
    with contextlib.ExitStack() as stack:
        peaks = {}
        for side, worker in _pair(stack, config, keep_memory=False).items():
            worker.ask({"do": "train", "calls": 3, "batch": config.batch})
            peaks[side] = worker.ask({"do": "peak"})
    plain, method = peaks["plain"], peaks["method"]
    return {
        "peak_mb_plain": plain["mb"],
        "peak_mb": method["mb"],
        "memory": round(method["mb"] / plain["mb"], 3),
        "idle_mb": min(plain["idle_mb"], method["idle_mb"]),
    }


def _clock(config: Config) -> Literal["cpu", "wall"]:
    return "cpu" if config.device == "cpu" and config.threads == 1 else "wall"


def _compare(seconds: dict[str, list[dict[str, float]]], images: int, clock: str) -> dict[str, Any]:
    """Images per second of both sides, and their ratio round by round."""

    def by(clock: str) -> dict[str, float]:
        plain, method = ([turn[clock] for turn in seconds[side]] for side in ("plain", "method"))
        ratios = [p / m for p, m in zip(plain, method, strict=True)]
        return {
            "plain": round(images / statistics.median(plain), 3),
            "method": round(images / statistics.median(method), 3),
            "ratio": round(statistics.median(ratios), 4),
            "spread": round(spread(ratios), 4),
        }

    return {**by(clock), "wall": by("wall")}


def _data_images_per_second(config: Config) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return throughput(px=config.px, batch=config.batch, device=config.device)
    finally:
        torch.set_num_threads(before)


def _made_by(config: Config) -> dict[str, Any]:
    cuda = config.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores"
    return {"torch": torch.__version__, "machine": name}


# glibc: to time, never shrink the heap and take from it whatever it may hold (32 MiB at most); to
# weigh, map every tensor by itself and give it back at once.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
_FREE_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 16), "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}


class _Worker:
    """A process that computes when it is asked; one line of JSON each way."""

    def __init__(self, side: str, config: Config, keep_memory: bool) -> None:
        self.side = side
        # Not a pipe: one that nobody reads would block the worker when it is full.
        self.words = tempfile.TemporaryFile("w+")  # noqa: SIM115
        threads = str(config.threads)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tailor.bench", "--worker", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                **(_KEEP_MEMORY if keep_memory else _FREE_MEMORY),
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            },
        )
        self.send(dataclasses.asdict(config))

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: receive() says so
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def receive(self) -> dict[str, float]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _PATIENCE_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            gone = f"died with status {self.process.wait()}" if ready else "fell silent"
            self.words.seek(0)
            last = self.words.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise RuntimeError(f"the {self.side} worker of the benchmark {gone}: {last[0]}")
        answer: dict[str, Any] = json.loads(line)
        if "bad_input" in answer:
            raise BadInput(answer["bad_input"])
        return answer

    def ask(self, message: dict[str, Any]) -> dict[str, float]:
        self.send(message)
        return self.receive()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.words.close()


# In the worker --------------------------------------------------------------------------------

Step = Callable[[Tensor, Tensor], object]


def _plain(config: Config, backbone: Backbone) -> tuple[Step, Callable[[], nn.Module]]:
    """Ordinary fine-tuning, as a user of timm would write it."""
    model = with_head(backbone.model, linear_head(backbone.num_features, CLASSES, seed=0))
    model = _placed(model, config).requires_grad_(True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
            loss = F.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()

    return step, model.eval


def _method(config: Config, backbone: Backbone) -> tuple[Step, Callable[[], nn.Module]]:
    """The step of ``fit``, on a student of the method.

    A method that distils has a teacher with the backbone's architecture, whose forward pass is part
    of the step.
    """
    method = catalog.load("students", config.method, "method")
    own = settings_of(method.Config, pairs(method.Config, config.option))
    student = _placed(method.build(backbone, CLASSES, own), config).train()
    if isinstance(student, Distilled) and student.wants_teacher():
        network = with_head(
            copy.deepcopy(backbone.model), linear_head(backbone.num_features, CLASSES, seed=0)
        )
        names = [block.name for block in backbone.blocks]
        student.teacher = Teacher(_placed(network, config), names)
    settings = Settings(lr=config.lr, bf16=config.bf16, batch=config.batch)
    optimizer = build_optimizer(student, settings)

    given = _kept(student, config) if config.cache else lambda _: None

    def step(images: Tensor, labels: Tensor) -> None:
        # At the last epoch every price acts: the dearest step that the method has.
        last, start = settings.epochs, given(images)
        training_step(student, optimizer, images, labels, settings, epoch=last, given=start)

    return step, _pruned(student, config.off).merge


def _kept(student: Student, config: Config) -> Callable[[Tensor], Tensor]:
    """What the student's frozen start returns for a batch, computed at the first call."""
    prefix = student.prefix() if isinstance(student, Starting) else None
    if prefix is None:
        raise BadInput(
            f"method {student.method!r} leaves no start of {config.backbone} frozen, so nothing "
            f"can be kept; leave --cache out, or adapt less of the network with --option"
        )
    found: dict[int, Tensor] = {}

    def given(images: Tensor) -> Tensor:
        if len(images) not in found:
            with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
                found[len(images)] = prefix.run(images)
        return found[len(images)]

    return given


def _pruned(student: Student, off: Sequence[int]) -> Student:
    """``student`` without these universal blocks, of proxies only the nearest into each of them."""
    if not off:
        return student
    gates = student.gates() if isinstance(student, Gated) else []
    blocks = [gate.name for gate in gates if gate.kind == "universal"]
    if not blocks or not set(off) <= set(range(len(blocks))):
        raise BadInput(
            f"off names blocks {sorted(off)}, but method {student.method!r} can drop "
            f"{f'blocks 0 to {len(blocks) - 1}' if blocks else 'none'}; give --off accordingly"
        )
    assert isinstance(student, Gated)
    gone = {blocks[i] for i in off}
    nearest = {name: next(g.name for g in gates if g.target == name != g.name) for name in gone}
    return student.keep([name for name in blocks if name not in gone] + [*nearest.values()])


def _placed(network: Any, config: Config) -> Any:
    network = network.to(config.device)
    return network.to(memory_format=torch.channels_last) if config.channels_last else network


class _Side:
    """What one worker answers; every answer is a small dictionary of numbers."""

    def __init__(self, side: str, config: Config) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(0)
        self.config = config
        # The first convolution loads what computes all others.
        F.conv2d(torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3)).sum()
        self.idle = 0 if config.device == "cuda" else _resident_bytes("VmRSS")
        backbone = Backbone.create(config.backbone, weights="random", px=config.px)
        self.step, self.finish = (_plain if side == "plain" else _method)(config, backbone)
        images = torch.randn(config.batch, *backbone.input_size).to(config.device)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.images = images.contiguous(memory_format=layout)
        self.labels = torch.randint(CLASSES, (config.batch,)).to(config.device)
        self.network: nn.Module | None = None

    def train(self, calls: int, batch: int) -> dict[str, float]:
        return self._timed(lambda: self.step(self.images[:batch], self.labels[:batch]), calls)

    def infer(self, calls: int, batch: int) -> dict[str, float]:
        if self.network is None:
            self.network = self.finish().eval()
        network, images = self.network, self.images[:batch]
        with (
            torch.inference_mode(),
            torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.bf16),
        ):
            return self._timed(lambda: network(images), calls)

    def peak(self) -> dict[str, float]:
        if self.config.device == "cuda":
            return {"mb": round(torch.cuda.max_memory_allocated() / 1e6, 1), "idle_mb": 0.0}
        peak = _resident_bytes("VmHWM") - self.idle
        return {"mb": round(peak / 1e6, 1), "idle_mb": round(self.idle / 1e6, 1)}

    def _timed(self, call: Callable[[], object], calls: int) -> dict[str, float]:
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            call()
        self._wait()
        return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}

    def _wait(self) -> None:
        if self.config.device != "cpu":
            getattr(torch, self.config.device).synchronize()


def _resident_bytes(which: str) -> int:
    """Resident size of this process: VmHWM its largest so far, VmRSS now, where Linux tells."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of Linux starts at the size of the parent; this one does not
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields[which].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _work(side: str) -> None:
    """Answer each line of standard input with one line on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        asked = _Side(side, Config(**json.loads(sys.stdin.readline())))
    except BadInput as error:
        answer({"bad_input": str(error)})
        return
    answer({})
    for line in sys.stdin:
        command = json.loads(line)
        answer(getattr(asked, command.pop("do"))(**command))


if __name__ == "__main__":
    _work(sys.argv[sys.argv.index("--worker") + 1])
