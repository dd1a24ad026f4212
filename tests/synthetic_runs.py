"""Run directories as the contract describes them, drawn from a formula instead of training.

A ResNet-18 of 20 convolutions, or the residual blocks of any ResNet with NetTailor's proxies;
accuracies, scores, gates and curves are smooth made-up functions of method, λ and seed, so that
every figure has something to show. No network is built.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SCORE, THRESHOLD = 0.15, 0.1  # where a score begins, and where its layer closes
GATE_THRESHOLD = 0.05
RESNETS = {
    18: (2, 2, 2, 2),
    26: (2, 4, 4, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
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


def resnet_blocks(depth: int) -> list[dict[str, Any]]:
    """Name, shapes, parameters and MACs of the residual blocks of a ResNet at 64 px.

    Parameters are those of convolutions and batch norms: 9 c c' for a 3x3 convolution, 2 c' for the
    norm behind it, and a 1x1 convolution with norm where the shape changes.
    """
    deep = depth >= 50
    blocks, before, place = [], 64, 16
    for stage, count in enumerate(RESNETS[depth]):
        planes, side = 64 * 2**stage, 16 // 2**stage
        width = 4 * planes if deep else planes
        for i in range(count):
            shapes = [(planes, before, 1), (planes, planes, 9), (width, planes, 1)]
            shapes = shapes if deep else [(planes, before, 9), (planes, planes, 9)]
            if i == 0 and (before != width or place != side):
                shapes.append((width, before, 1))
            weights = sum(a * b * c for a, b, c in shapes)
            blocks.append(
                {
                    "name": f"layer{stage + 1}.{i}",
                    "in_shape": [before, place, place],
                    "out_shape": [width, side, side],
                    "params": weights + 2 * sum(a for a, _, _ in shapes),
                    "macs": weights * side * side,
                }
            )
            before, place = width, side
    return blocks


def write_nettailor(
    path: Path,
    *,
    stage: str = "adapt",
    depth: int = 34,
    skips: int = 3,
    remove: int = 7,
    seed: int = 0,
    lam: float = 0.3,
    epochs: int = 8,
    logged: bool = True,
    blocks: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write a finished NetTailor run; from stage ``pruned`` on, ``remove`` blocks are gone."""
    blocks = blocks or resnet_blocks(depth)
    final = network_gates(blocks, skips, 1.0, seed)
    kept = set(final)
    if stage != "adapt":
        kept = _kept(blocks, final, remove)
    costs = {block["name"]: (block["params"], block["macs"]) for block in blocks}
    shapes = {block["name"]: block["out_shape"] for block in blocks}
    shapes["stem"] = blocks[0]["in_shape"]
    gates = []
    for name in (name for name in final if name in kept):
        target, arrow, source = name.partition("<-")
        if arrow:
            before, after = shapes[source][0], shapes[target][0]
            hidden = max(after // 32, 16) if depth >= 50 else 0  # two thin convolutions, or one
            size = (before + after) * hidden or before * after
            params, macs = size + 2 * (hidden + after), size * shapes[target][-1] ** 2
        else:
            params, macs = costs[name]
        gates.append(
            {"name": name, "kind": "proxy" if arrow else "universal", "source": source or None}
            | {"target": target, "params": params, "macs": macs, "value": final[name]}
            | {"on": final[name] >= GATE_THRESHOLD}
        )
    told = [block | {"kept": block["name"] in kept} for block in blocks]
    universal = 9408 + 128 + sum(block["params"] for block in blocks)
    proxies = sum(g["params"] for g in gates if g["kind"] == "proxy")
    left = universal - sum(block["params"] for block in told if not block["kept"])
    total = 9_633_792 + sum(block["macs"] for block in blocks)
    macs = 9_633_792 + sum(g["macs"] for g in gates)
    params = {
        "universal": universal, "task": proxies + len(gates), "deltas": 0, "norms": 0,
        "scores": len(gates), "adapters": proxies, "head": 5130, "network": left + proxies,
        "multiple": (universal + proxies + len(gates)) / universal,
    }  # fmt: skip
    states = [
        {"name": f"{block['name']}.conv{i}", "kind": "conv", "params": 1000, "macs": 1000}
        | {"on": False, "score": None, "change": 0.0, "removed": not block["kept"]}
        for block in told
        for i in (1, 2)
    ]
    config = {
        "settings": {"lam": lam, "price": "macs", "threshold": GATE_THRESHOLD, "max_skip": skips},
        "data": {"px": 64},
        "classes": [str(i) for i in range(10)],
    }
    facts = {"gates": gates, "blocks": told, "params": params, "layer_states": states}
    facts |= {"macs": {"backbone": total, "student": macs}, "layers": states}
    facts |= {"layers_adapted": 0, "bytes": 4 * (proxies + 5130), "config": config}
    options = {"seed": seed, "lam": lam, "stage": stage, "epochs": epochs, "price": "macs"}
    backbone = changes.pop("backbone", f"resnet{depth}")
    write_run(path, "nettailor", backbone=backbone, **options, **(facts | changes))
    if logged and stage != "pruned":
        log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for entry in log:
            for name in ("scores", "on", "share_layers", "share_params"):
                entry.pop(name, None)
            if entry["kind"] == "epoch":
                part = 1.0 if stage == "retrained" else (entry["epoch"] + 1) / epochs
                found = network_gates(blocks, skips, part, seed)
                entry["gates"] = {name: found[name] for name in found if name in kept}
        (path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return path


def write_nettailor_study(root: Path, task: str = "digits", **options: Any) -> list[Path]:
    """3 seeds of fine-tuning and of NetTailor as adapted, pruned and retrained."""
    depth = options.get("depth", 34)
    universal = 9408 + 128 + sum(block["params"] for block in resnet_blocks(depth))
    tuned = {"universal": universal, "task": universal, "deltas": universal, "norms": 0}
    tuned |= {"scores": 0, "head": 5130, "network": universal, "multiple": 2.0}
    macs = 9_633_792 + sum(block["macs"] for block in resnet_blocks(depth))
    runs = []
    for seed in range(3):
        told = {"seed": seed, "task": task, "backbone": f"resnet{depth}", "params": tuned}
        told["macs"] = {"backbone": macs, "student": macs}
        runs.append(write_run(root / task / f"finetune-{seed}", "finetune", **told))
        for stage in ("adapt", "pruned", "retrained"):
            out = root / task / f"nettailor-{stage}-{seed}"
            runs.append(write_nettailor(out, stage=stage, seed=seed, task=task, **options))
    return runs


def network_gates(
    blocks: list[dict[str, Any]], skips: int, part: float, seed: int
) -> dict[str, float]:
    """Softmax gates of every path after ``part`` of a training, from +2 and -2 at its start."""
    names = ["stem", *(block["name"] for block in blocks)]
    found = {}
    for place in range(1, len(names)):
        sources = names[max(0, place - skips) : place][::-1]
        wish = 2.6 * math.sin(1.7 * place + 0.4 * seed) - 0.4
        logits = [2 + part * (wish - 1)]
        logits += [
            -2 + part * (2.2 + 1.4 * math.sin(2.3 * place + 4.1 * i) - 0.5 * i)
            for i in range(len(sources))
        ]
        total = sum(map(math.exp, logits))
        paths = [names[place], *(f"{names[place]}<-{source}" for source in sources)]
        found |= {p: math.exp(x) / total for p, x in zip(paths, logits, strict=True)}
    return found


def _kept(blocks: list[dict[str, Any]], gates: dict[str, float], remove: int) -> set[str]:
    """All but the blocks with the least gates and weak proxies; each block keeps one path."""
    names = [block["name"] for block in blocks]
    gone = sorted(names, key=gates.__getitem__)[:remove]
    kept = {n for n, g in gates.items() if ("<-" in n and g >= GATE_THRESHOLD) or n in names}
    kept -= set(gone)
    for name in gone:
        proxies = [path for path in gates if path.startswith(f"{name}<-")]
        kept.add(max(proxies, key=gates.__getitem__))
    return kept


def _accuracy(method: str, lam: float | None) -> float:
    if lam is not None:
        return {0.1: 0.97, 0.3: 0.962, 1.0: 0.931}.get(lam, 0.95)
    return {"finetune": 0.972, "scratch": 0.91, "probe": 0.82}.get(method, 0.95)


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
