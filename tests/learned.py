"""What a student learns of scikit-learn's digits in two seconds, on a network of two random layers.

At the toolkit's default learning rate, so that a method's own defaults are on trial too.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tailor.backbone import Backbone
from tailor.optim import build_optimizer
from tailor.settings import Settings
from tailor.step import training_step


class TwoConvolutions(nn.Module):
    """Two convolutions of 32 channels with batch norm: (B, 3, 8, 8) to (B, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def accuracy(method: ModuleType, *, epochs: int = 3, **options: Any) -> float:
    """Share of 400 unseen digits that a student gets right after training on 800.

    Args:
        method: module of ``students``; ``options`` are its Config's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Backbone(TwoConvolutions(), name="two_convolutions", input_size=(3, 8, 8))
    config = method.Config(**options)
    student = method.build(backbone, 10, config, seed=0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).div(8).sub(1)
    images, labels = images[:, None].repeat(1, 3, 1, 1), torch.tensor(data.target)
    settings = Settings()
    optimizer = build_optimizer(student, settings)
    draw = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        for at in torch.randperm(800, generator=draw).split(settings.batch):
            student.train()
            training_step(student, optimizer, images[at], labels[at], settings, epoch=epoch)
    with torch.no_grad():
        found = student.eval()(images[800:1200]).logits.argmax(1)
    return float((found == labels[800:1200]).float().mean())
