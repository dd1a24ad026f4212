"""Networks, images and students so small that a whole training takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from students import finetune, nettailor, probe, taps
from tailor.adapters import linear_head
from tailor.backbone import Backbone
from tailor.data import Batches
from tailor.progress import Silent
from tailor.run import read_log
from tailor.task import Pixels, Split
from tailor.teacher import Teacher
from tailor.view import View

PX, CLASSES = 8, 3


def conv_net(*, dropout: float = 0.0, seed: int = 0) -> Backbone:
    """Two convolutions with batch norm, a residual sum and a linear layer: 3 x 8 x 8 to 10."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(6)
            self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
            self.bn2 = nn.BatchNorm2d(6)
            self.drop = nn.Dropout(dropout)
            self.fc1 = nn.Linear(6, 10)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            x = (x + self.bn2(self.conv2(x))).relu()
            return self.fc1(self.drop(x.mean((2, 3)))).tanh()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(Net(), name="conv_net", input_size=(3, PX, PX))


class Block(nn.Module):
    """A residual block of 6 channels whose final ReLU is a module of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.act = nn.ReLU()

    def forward(self, x):
        """Same shape out as in."""
        return self.act(x + self.bn(self.conv(x)))


def block_net(seed: int = 0) -> Backbone:
    """A stem and a chain of three residual blocks: 3 x 8 x 8 to 6."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.blocks = nn.Sequential(Block(), Block(), Block())

        def forward(self, x):
            return self.blocks(self.stem(x)).mean((2, 3))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(Net(), name="block_net", input_size=(3, PX, PX))


def transformer(*, drop_path: float = 0.0) -> Backbone:
    """timm's vision transformer with layer norms: 2 blocks of 8 channels on 4 patches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=PX,
            patch_size=4,
            embed_dim=8,
            depth=2,
            num_heads=2,
            num_classes=0,
            drop_path_rate=drop_path,
            proj_drop_rate=drop_path,
        )
        return Backbone(model, name="transformer", input_size=(3, PX, PX))


def images(count: int, *, seed: int = 0) -> Split:
    """Noise whose brightness tells the class."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % CLASSES
    noise = random.randint(0, 128, size=(count, PX, PX, 3))
    return Split(
        Pixels((noise + 60 * labels[:, None, None, None]).astype(np.uint8), "noise"), labels
    )


def batches(count: int, batch: int, *, train: bool, seed: int = 0, **options: object) -> Batches:
    """Batches of ``images``, shifted at random by up to a pixel when training."""
    view = View(px=PX, crop="pad" if train else "none", pad=1)
    return Batches(images(count, seed=seed), view, batch=batch, train=train, workers=1, **options)


def student(method: str, backbone: Backbone | None = None, **options: object) -> nn.Module:
    """A student for ``CLASSES`` classes: of ``conv_net``; nettailor of ``block_net``, taught."""
    modules = {"taps": taps, "finetune": finetune, "probe": probe, "nettailor": nettailor}
    module = modules[method]
    if method == "nettailor":
        found = module.build(block_net(), CLASSES, module.Config(**options), seed=1)
        network = nn.Sequential(block_net(seed=2).model, linear_head(6, CLASSES, seed=2))
        found.teacher = Teacher(network, [f"0.blocks.{i}" for i in range(3)])
        return found
    return module.build(backbone or conv_net(), CLASSES, module.Config(**options), seed=1)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers, a function of ``seed``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lively(student: Any, *, by: float = 0.1, seed: int = 0) -> Any:
    """Give what a task trains (head and scores apart) and its statistics values of their own."""
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in student.task.named_parameters():
            if "head" not in name and "scores" not in name:
                p.add_(by * torch.randn(p.shape, generator=make))
        for name, b in student.task.named_buffers():
            if "running" in name:
                b.add_(torch.rand(b.shape, generator=make))
    return student


class Interrupted(Exception):
    """A session of training ends here, as if killed."""


class Until(Silent):
    """Act when a training has done ``step`` steps: by default, interrupt it."""

    def __init__(self, step: int | None, action: Callable[[], None] | None = None) -> None:
        self.step, self.action, self.ended = step, action, False

    def begin(self, total: int, done: int) -> None:
        self.done = done

    def advance(self, steps: int, seen: dict[str, float]) -> None:
        self.done += steps
        if self.done == self.step:
            if self.action is None:
                raise Interrupted
            self.action()

    def end(self) -> None:
        self.ended = True


def log_of(run: Path) -> list[dict[str, Any]]:
    """What a run logged, times left out."""
    timed = ("seconds", "images_per_second")
    return [
        {k: v for k, v in record.items() if k not in timed}
        for record in read_log(run / "log.jsonl")
    ]
