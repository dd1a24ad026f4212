"""Legacy: students that a published program trained, as students of ours.

NetTailor's program (Morgado & Vasconcelos, CVPR 2019) saves a dict of epoch, acc, xent and

    state_dict   layers.{l}.proxies.{j}.(conv, bn or conv1, bn1, conv2, bn2): nearest source first
                 layers.{l}.alphas_params: gate logits, of the universal path, then of the proxies
                 bn1, layers.{l}.main.(bn1, ..., bn_res): statistics of the universal norms
                 classifier
    keep_flags   per block a flag per path, None where nothing was pruned

and no universal weight: those are torchvision's of ImageNet and must be named beside it. Its norms
followed the task's statistics while it trained, so a student that answers alike has
``statistics="drift"``. Gates are a softmax over the flagged paths. A path that starts where nothing
arrives still takes its share; it is left out here, and the others keep theirs.

Files are read without running code in them. Left out: the run that this becomes (`workflow.py`),
and the Decathlon variant, none of whose checkpoints is public.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tailor import catalog, paths
from tailor.backbone import Backbone
from tailor.errors import BadInput
from tailor.student import Gated
from tailor.weights import read_pth

NEVER = -1e4  # a gate logit whose softmax is exactly 0
COUNTER = "num_batches_tracked"  # no prediction reads it
Flags = tuple[tuple[bool, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A NetTailor checkpoint of the published layout."""

    path: Path
    state: dict[str, Tensor]
    flags: Flags | None  # per block and path; None where all are kept
    facts: dict[str, float]  # epoch, acc and xent, as far as they are there

    @property
    def logits(self) -> list[Tensor]:
        """Gate logits of every block, in order."""
        return _logits(self.state)


def read_nettailor(path: str | Path) -> Saved:
    """Read a checkpoint, running no code in it.

    Raises:
        BadInput: no such file, not readable without running code, or another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"checkpoint {str(path)!r} is no file; name a checkpoint.pth.tar")
    found = read_pth(path, "checkpoint")
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise BadInput(
            f"checkpoint {path} holds no state_dict of tensors, so it is no published NetTailor "
            f"student; name its checkpoint.pth.tar"
        )
    if not (logits := _logits(state)):
        raise BadInput(
            f"checkpoint {path} has no 'layers.0.alphas_params', so it is no NetTailor student; a "
            f"plain network is read by --weights"
        )
    if odd := [n for n, row in enumerate(logits) if row.ndim != 1 or len(row) < 2]:
        raise BadInput(
            f"checkpoint {path}: 'layers.{odd[0]}.alphas_params' is {tuple(logits[odd[0]].shape)}, "
            f"not one number for the universal path and each proxy; it is damaged: fetch it again"
        )
    facts = {name: value for name in ("epoch", "acc", "xent") for value in _numbers(found, name)}
    flags = _flags(path, found.get("keep_flags"), [len(row) for row in logits])
    return Saved(path=path, state=state, flags=flags, facts=facts)


def nettailor_student(saved: Saved, backbone: Backbone, num_classes: int) -> tuple[Gated, bool]:
    """The student of a checkpoint, with gates and outputs as published.

    Args:
        saved: from ``read_nettailor``.
        backbone: with the universal weights that it was trained on.
        num_classes: K of the task.

    Returns:
        The student, and whether paths were pruned. Its settings are the published program's, as far
        as a checkpoint shows them; λ is not in it.

    Raises:
        BadInput: missing, extra or differently shaped tensors, another number of classes or blocks,
            or flags that leave no way through the network.
    """
    logits = saved.logits
    if len(logits) != len(backbone.blocks):
        raise BadInput(
            f"checkpoint {saved.path} has {len(logits)} blocks and {backbone.name!r} has "
            f"{len(backbone.blocks)}; give the --backbone that it was trained on"
        )
    head = saved.state.get("classifier.weight")
    if head is not None and len(head) != num_classes:
        raise BadInput(
            f"checkpoint {saved.path} tells {len(head)} classes apart and the task has "
            f"{num_classes}; give the --task that it was trained on"
        )
    method: Any = catalog.load("students", "nettailor", "method")
    config = method.Config(
        max_skip=max(len(row) for row in logits) - 1,
        complexity="code",
        accounting="published",
        distillation="local",
        distill_norm="code",
        proxy="conv" if "layers.0.proxies.0.conv.weight" in saved.state else "bottleneck",
        hidden="code",
        statistics="drift",
        renormalise=True,
    )
    whole = method.build(backbone, num_classes, config)
    _fill(whole, saved)
    if saved.flags is None:
        return whole, False
    flagged = [
        path
        for row, flags in zip(_rows(whole.paths), saved.flags, strict=True)
        for path, keeps in zip(row, flags, strict=True)
        if keeps
    ]
    through = paths.alive(flagged, len(logits))
    if not through:
        raise BadInput(
            f"checkpoint {saved.path} is pruned so far that no path leads through the network; "
            f"prune less and save it again"
        )
    if len(through) < len(flagged):
        # What starts or ends nowhere goes, but its share of the softmax must stay taken.
        whole = method.build(backbone, num_classes, replace(config, renormalise=False))
        _fill(whole, saved)
    return whole.keep([path.name for path in through]), True


def _fill(student: Any, saved: Saved) -> None:
    """Copy every tensor of ``saved`` into an unpruned student; all or nothing."""
    rows = enumerate(_rows(student.paths))
    logits = {f"layers.{number}.alphas_params": (len(row),) for number, row in rows}
    places = dict(_places(student))
    wanted = logits | {name: tuple(place.shape) for name, place in places.items()}
    missing = [name for name in wanted if name not in saved.state]
    extra = [n for n in saved.state if n not in wanted and not n.endswith(COUNTER)]
    remedy = "give the --backbone that it was trained on"
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown {extra[0]!r}"
        raise BadInput(
            f"checkpoint {saved.path} {what} ({len(missing)} missing, {len(extra)} extra tensors "
            f"for {student.universal.name!r}); {remedy}"
        )
    for name, shape in wanted.items():
        if (found := tuple(saved.state[name].shape)) != shape:
            raise BadInput(
                f"checkpoint {saved.path}: {name!r} is {found}, but {shape} for "
                f"{student.universal.name!r}; {remedy}"
            )
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(saved.state[name])
        row = torch.cat([saved.state[name].float() for name in logits])
        if saved.flags is not None:
            row = row.masked_fill(~torch.tensor(list(itertools.chain(*saved.flags))), NEVER)
        student.task.scores.copy_(row)


def _places(student: Any) -> Iterator[tuple[str, Tensor]]:
    """Published name and our tensor, for all but the gate logits."""
    proxies = iter(student.task.proxies.values())
    for number, row in enumerate(_rows(student.paths)):
        for back in range(len(row) - 1):
            for name, tensor in next(proxies).state_dict().items():
                if not name.endswith(COUNTER):
                    yield f"layers.{number}.proxies.{back}.{name}", tensor
    blocks = {block.name: number for number, block in enumerate(student.universal.blocks)}
    for name, tensor in student.task.drift.items():
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if block is None:
            yield name, tensor
        else:
            local = name.removeprefix(f"{block}.").replace("downsample.1.", "bn_res.")
            yield f"layers.{blocks[block]}.main.{local}", tensor
    yield from ((f"classifier.{name}", t) for name, t in student.task.head.state_dict().items())


def _rows(found: Sequence[paths.Path]) -> list[list[paths.Path]]:
    """The paths into each block, in order."""
    return [list(row) for _, row in itertools.groupby(found, key=lambda path: path.target)]


def _logits(state: dict[str, Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    while (name := f"layers.{len(found)}.alphas_params") in state:
        found.append(state[name])
    return found


def _flags(path: Path, found: object, wanted: list[int]) -> Flags | None:
    if found is None:
        return None
    try:
        flags = tuple(tuple(bool(flag) for flag in row) for row in cast("Any", found))
    except (TypeError, ValueError, RuntimeError):
        flags = ()
    if [len(row) for row in flags] != wanted:
        raise BadInput(
            f"checkpoint {path}: keep_flags do not say yes or no to each of its {sum(wanted)} "
            f"paths into {len(wanted)} blocks; it is damaged: fetch it again"
        )
    return None if all(map(all, flags)) else flags


def _numbers(found: dict[str, Any], name: str) -> list[float]:
    """The number of that name, if it is there and one."""
    value = found.get(name)
    single = isinstance(value, Tensor) and value.numel() == 1
    return [float(cast("float", value))] if single or isinstance(value, int | float) else []
