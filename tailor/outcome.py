"""The outcome of a run: what is measured, saved and written when a student is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from tailor import cost
from tailor.distributed import Group
from tailor.opened import measure
from tailor.options import Data
from tailor.run import Run, read_json, write_json, write_tensors
from tailor.settings import Settings, lam_of
from tailor.student import Gate, Gated, Student
from tailor.task import Task
from tailor.train import Fitted


def finish(
    run: Run,
    student: Student,
    task: Task,
    fitted: Fitted,
    facts: Mapping[str, Any],
    stage: str,
    settings: Settings,
) -> dict[str, Any]:
    """Measure on the test split, save the student, and write the result that ends the run."""
    data = Data(**facts["config"]["data"])
    test = None
    if "test" in task.splits:
        test = measure(student, task, "test", data, settings)[0]
    file = run.path / "student.safetensors"
    assert isinstance(student, nn.Module)
    place = next(student.universal.parameters()).device
    student.to("cpu")
    if Group.current().rank == 0:
        write_tensors(file, student.task.state_dict(), {"method": facts["config"]["method"]})
    Group.current().wait()
    config, states = facts["config"], student.layer_states()
    params = parameters(student)
    merged = student.merge()
    # Of one task alone, without its head; batch norms of proxies are folded into biases.
    own_head = cast(nn.Module, student.task.head)
    network = sum(p.numel() for p in merged.parameters())
    network -= sum(p.numel() for p in own_head.parameters())
    gates: list[Gate] = student.gates() if isinstance(student, Gated) else []
    if config["method"] in ("finetune", "scratch") and Group.current().rank == 0:
        # What `--weights RUN` reads: a decoder has no place in the architecture.
        plain = cast(nn.Module, student.task.body) if student.universal.dense else merged
        write_tensors(run.path / "weights.safetensors", plain.state_dict())
    size = student.universal.input_size
    head = cost.total_macs(own_head, student.universal.feature_shape)
    record = read_json(run.path / "run.json")
    result = {
        "run": str(run.path),
        "task": facts["task"],
        "method": config["method"],
        "backbone": config["net"]["backbone"],
        "seed": config["train"]["seed"],
        "stage": stage,
        "metric": facts["metric"],
        "val": fitted.val,
        "test": test,
        "layers": len(states),
        "layers_adapted": sum(s.on for s in states),
        "params": dataclasses.asdict(params)
        | {"task": params.task, "multiple": params.multiple, "network": network},
        "macs": {
            "backbone": cost.total_macs(student.universal.model, size),
            "student": cost.total_macs(merged, size) - head,
        },
        "bytes": cost.file_bytes(file),
        "seconds": fitted.seconds,
        "best_epoch": fitted.epoch,
        "lam": (lam := lam_of(config["settings"])),
        "price": None if lam is None else config["settings"].get("price"),
        "distill": config["settings"].get("distill"),
        "fingerprint": config["fingerprint"],
        "command": record["command"],
        "made_by": record["made_by"],
        "layer_states": [dataclasses.asdict(s) for s in states],
        "blocks": _blocks(student),
        "gates": [dataclasses.asdict(g) for g in gates],
        **facts,
    }
    if Group.current().rank == 0:
        write_json(run.path / "result.json", result)
        (run.path / "last.safetensors").unlink(missing_ok=True)
        (run.path / "best.safetensors").unlink(missing_ok=True)
    student.universal.to(place)  # another student may be training on it
    Group.current().wait()
    return dict(read_json(run.path / "result.json"))


def _blocks(student: Student) -> list[dict[str, Any]]:
    """The universal blocks of the backbone, and whether the student still has them."""
    backbone = student.universal
    removed = {s.name for s in student.layer_states() if s.removed}
    return [
        {
            "name": block.name,
            "in_shape": block.in_shape,
            "out_shape": block.out_shape,
            "params": params,
            "macs": macs,
            "kept": not any(f"{name}.".startswith(f"{block.name}.") for name in removed),
        }
        for block, (params, macs) in zip(backbone.blocks, backbone.block_costs(), strict=True)
    ]


def parameters(student: Student) -> cost.Params:
    """What ``student`` adds to its backbone, every kind apart; equal to what its file holds.

    A buffer that is not saved with the task is no number of its own: a basis that tasks share.
    """
    saved = student.task.state_dict().keys()
    buffers = dict(student.task.named_buffers())
    own = [t for name, t in buffers.items() if name in saved and not name.startswith("head.")]
    shared = [tensor for name, tensor in buffers.items() if name not in saved]
    params = cost.account(student.universal.model, student.roles(), own, shared)
    # Running statistics of a decoder go with it.
    more = [t for name, t in buffers.items() if name.startswith("head.") and t.is_floating_point()]
    return dataclasses.replace(params, head=params.head + sum(t.numel() for t in more))
