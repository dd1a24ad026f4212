"""Directories of sequences as ``tailor lifelong`` leaves them, without training."""

from __future__ import annotations

import json
import math
from pathlib import Path

TASKS = ("eurosat", "flowers", "trashnet", "signdigits", "fashion", "quickdraw")


def write_matrix(folder: Path, method: str, accuracy, *, seed: int = 0, **changes) -> Path:
    """Write one matrix.json; ``changes`` replace its fields, None leaves one out."""
    count = len(accuracy)
    tasks = changes.get("tasks", TASKS[:count])
    said = {
        "run": folder.name,
        "method": method,
        "seed": seed,
        "sequence": "domains",
        "backbone": "resnet20",
        "metric": ["top1"] * len(tasks),
        "tasks": list(tasks),
        "accuracy": accuracy,
        "loss": [[-math.log(max(value, 1e-3)) for value in row] for row in accuracy],
        "settings": {},
        "finished": count == len(tasks),
    } | changes
    folder.mkdir(parents=True)
    text = json.dumps({name: value for name, value in said.items() if value is not None})
    (folder / "matrix.json").write_text(text)
    return folder


def write_study(root: Path, *, seeds=(0, 1, 2), tasks=TASKS, upto: int | None = None) -> list[Path]:
    """Methods that forget all, some and nothing; their accuracies are smooth made-up functions."""
    kinds = {  # level when learned, share kept per later task, numbers per task, trunk
        "finetune": (0.90, 0.86, 650, 270_000),
        "ewc": (0.88, 0.96, 650, 270_000),
        "probe": (0.72, 1.0, 650, 270_000),
        "independent": (0.91, 1.0, 270_000, 0),
        "side_tuning": (0.84, 1.0, 26_555, 270_000),
        "side_tuning mlp": (0.86, 1.0, 35_002, 270_000),
        "progressive": (0.85, 1.0, 38_079, 270_000),
        "lwf": (0.87, 0.98, 650, 270_000),
        "superposition": (0.80, 0.94, 14_000, 270_000),
        "taps": (0.88, 1.0, 30_000, 270_000),
    }
    found = []
    for name, (level, kept, own, trunk) in kinds.items():
        method, _, fusion = name.partition(" ")
        for seed in seeds:
            count = upto if upto and (name, seed) == ("taps", seeds[-1]) else len(tasks)
            accuracy = [
                [
                    round(level * (1 - 0.05 * math.sin(3 * j + seed)) * kept ** (t - j), 6)
                    for j in range(t + 1)
                ]
                for t in range(count)
            ]
            found.append(
                write_matrix(
                    root / f"{name.replace(' ', '-')}-s{seed}", method, accuracy, seed=seed,
                    tasks=tasks, trunk=trunk or None,
                    params=[trunk + own * (t + 1) for t in range(count)],
                    heads=[650] * count, task_params=[own - 650] * count,
                    trainable=[own] * count,
                    memory=[540_000 if name == "ewc" else 0] * count,
                    seconds=[20 + seed + len(name)] * count,
                    sequel=method in ("finetune", "ewc", "lwf", "superposition", "progressive"),
                    settings={"fusion": fusion or "alpha"} if method == "side_tuning" else {},
                )
            )  # fmt: skip
    return found
