"""Run directories as the contract describes them, drawn from a formula instead of training.

A ResNet-18 of 20 convolutions; accuracies, scores and curves are smooth made-up functions of
method, λ and seed, so that every figure has something to show. No network is built.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SCORE, THRESHOLD = 0.15, 0.1  # where a score begins, and where its layer closes
SEED_SHIFT = (0.0, 0.004, -0.004)  # of the accuracy: sample standard deviation 0.4 points


def resnet18_layers() -> list[dict[str, Any]]:
    """Name, kind, parameters and MACs of the 20 convolutions at 64 px."""
    layers = [("conv1", 3 * 64 * 49, 32)]
    for stage, (before, width, side) in enumerate(
        ((64, 64, 16), (64, 128, 8), (128, 256, 4), (256, 512, 2)), start=1
    ):
        for block in range(2):
            name, fed = f"layer{stage}.{block}", before if block == 0 else width
            layers += [(f"{name}.conv1", fed * width * 9, side)]
            layers += [(f"{name}.conv2", width * width * 9, side)]
            if block == 0 and before != width:
                layers += [(f"{name}.downsample.0", before * width, side)]
    return [
        {"name": name, "kind": "conv", "params": size, "macs": size * side * side}
        for name, size, side in layers
    ]


def write_run(
    path: Path,
    method: str,
    *,
    seed: int = 0,
    lam: float | None = None,
    stage: str | None = None,
    task: str = "digits",
    backbone: str = "resnet18",
    price: str = "params",
    epochs: int = 8,
    layers: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write one finished run directory; ``changes`` replace fields of result.json."""
    layers = layers or resnet18_layers()
    gated = lam is not None
    stage = stage or ("adapt" if gated else "teacher")
    universal = sum(layer["params"] for layer in layers) + 9600
    states = [
        _state(method, layer, i, layer["params"] / universal, lam, seed)
        for i, layer in enumerate(layers)
    ]
    deltas = sum(s["params"] for s in states if s["on"])
    norms = 0 if method == "probe" else 19200
    scores = len(layers) if gated and stage == "adapt" else 0
    test = _accuracy(method, lam) + SEED_SHIFT[seed % 3] + (0.003 if stage == "retrained" else 0)
    flags = f" --lam {lam:g}" if gated else f" --mode {method}"
    command = f"tailor {'adapt' if gated else 'teach'} --task {task}{flags} --seed {seed}"
    result = {
        "run": str(path),
        "task": task,
        "method": method,
        "backbone": backbone,
        "seed": seed,
        "stage": stage,
        "metric": "top1",
        "val": test + 0.01,
        "test": test,
        "layers": len(layers),
        "layers_adapted": sum(s["on"] for s in states),
        "params": {
            "universal": universal,
            "task": deltas + norms + scores,
            "deltas": deltas,
            "norms": norms,
            "scores": scores,
            "head": 5130,
            "multiple": (universal + deltas + norms + scores) / universal,
        },
        "macs": {"backbone": 148_000_000, "student": 148_000_000},
        "bytes": 4 * (deltas + norms + scores + 5130),
        "seconds": 61.2 + seed,
        "lam": lam,
        "price": price if gated else None,
        "config": {"epochs": epochs, "lr": 0.01},
        "fingerprint": "ab12cd34ef56",
        "command": f"{command} --out {path}",
        "layer_states": states,
    } | changes
    path.mkdir(parents=True)
    setup = {
        "schema": 1,
        "verb": "adapt" if gated else "teach",
        "config": result["config"],
        "made_by": {"tailor": "0.1.0", "torch": "2.11.0"},
        "command": result["command"],
    }
    (path / "run.json").write_text(json.dumps(setup))
    log = [] if stage == "pruned" else _log(stage, test, states, lam, seed, epochs)
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (path / "result.json").write_text(json.dumps(result))
    return path


def write_study(root: Path, task: str = "digits", *, stages: bool = False) -> list[Path]:
    """3 seeds of each reference and of TAPS at 3 λ; ``stages`` adds TAPS retrained."""
    runs = [
        write_run(root / task / f"{method}-{seed}", method, seed=seed, task=task)
        for method in ("finetune", "scratch", "probe")
        for seed in range(3)
    ]
    for lam in (0.1, 0.3, 1.0):
        for stage in ("adapt", "retrained") if stages else ("adapt",):
            for seed in range(3):
                out = root / task / f"taps-{lam:g}-{stage}-{seed}"
                runs.append(write_run(out, "taps", seed=seed, lam=lam, stage=stage, task=task))
    return runs


def _accuracy(method: str, lam: float | None) -> float:
    if lam is not None:
        return {0.1: 0.97, 0.3: 0.962, 1.0: 0.931}.get(lam, 0.95)
    return {"finetune": 0.972, "scratch": 0.91, "probe": 0.82}[method]


def _final_score(index: int, share: float, lam: float, seed: int) -> float:
    """Large layers are dear: the higher λ, the earlier they close."""
    wish = 0.03 * math.sin(2.4 * index + 0.7 * seed)
    return 0.145 + wish - 0.06 * lam**0.7 * (0.5 + share / 0.1)


def _state(
    method: str, layer: dict[str, Any], index: int, share: float, lam: float | None, seed: int
) -> dict[str, Any]:
    score = None if lam is None else _final_score(index, share, lam, seed)
    on = method != "probe" if score is None else score >= THRESHOLD
    return layer | {"on": on, "score": score, "change": 0.02 * (1 + index % 5) if on else 0.0}


def _log(
    stage: str, test: float, states: list[dict[str, Any]], lam: float | None, seed: int, epochs: int
) -> list[dict[str, Any]]:
    total = sum(s["params"] for s in states)
    lines: list[dict[str, Any]] = []
    for epoch in range(epochs):
        part = (epoch + 1) / epochs
        error = 1 - test + 0.5 * math.exp(-4 * part)
        step = 50 * (epoch + 1)
        lines.append(
            {"kind": "train", "stage": stage, "step": step, "epoch": epoch, "loss": 2 * error}
            | {"task": 2 * error, "price": 0.01, "error": error, "lr": 0.01}
            | {"images_per_second": 800.0}
        )
        line = {"kind": "epoch", "stage": stage, "epoch": epoch, "step": step, "lr": 0.01}
        line |= {"train_loss": 2 * error, "train_error": 0.7 * error, "seconds": 4.0}
        line |= {"val": 1 - error, "val_error": error + 0.01 * math.sin(3 * epoch + seed)}
        if lam is not None and stage == "adapt":  # a pruned student has no scores
            late = min(1.0, max(0.0, (part - 0.25) * 2))
            scores = {s["name"]: SCORE + (s["score"] - SCORE) * late for s in states}
            on = {name: score >= THRESHOLD for name, score in scores.items()}
            line |= {"scores": scores, "on": on, "share_layers": sum(on.values()) / len(on)}
            line |= {"share_params": sum(s["params"] for s in states if on[s["name"]]) / total}
        lines.append(line)
    return lines
