"""Compress: the residual adapters of several tasks become factors on one shared basis.

Of each layer the tasks' maps W_t (M, N) are stacked and their truncated SVD shared out:

    [W_1; ...; W_T]  ~  U S V^T  =  [F_1; ...; F_T] B        B = V_K^T (K, N),  F_t = W_t B^T (M, K)

B has orthonormal rows, is stored once beside the runs and stays frozen; F_t is the task's own and
goes on learning with `tailor retrain`, so that tasks stay independent of each other. No other basis
of that rank is closer to the maps (Eckart & Young, 1936).

Source: Rebuffi, Bilen, Vedaldi: Efficient parametrization of multi-domain deep neural networks,
CVPR 2018, where K is half of the input channels. Left out: what an adapter is (``residual.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailor import catalog
from tailor.adapted import Adapted
from tailor.errors import BadInput
from tailor.opened import Opened, open_run, task_of, validated
from tailor.options import Compress
from tailor.outcome import finish
from tailor.pointwise import Map
from tailor.residual import Own
from tailor.run import BASIS, read_tensors, write_tensors
from tailor.session import Reporter, finished, nobody, open_directory
from tailor.settings import Settings, as_config
from tailor.train import Fitted
from tailor.units import short

METHOD = "residual_adapters"


@dataclass(frozen=True)
class Basis:
    """What the tasks share."""

    rows: dict[str, Tensor]  # layer -> (K, N), orthonormal rows
    lost: dict[str, float]  # layer -> ||W - F B|| / ||W|| over all tasks, 0 for no map at all


def joint_basis(
    maps: Sequence[Mapping[str, Tensor]], *, rank: int | None = None, share: float | None = None
) -> Basis:
    """The best basis for the maps of several tasks.

    Args:
        maps: of each task, layer -> (M, N); a task may lack a layer.
        rank: K, or as many as a layer can have where that is fewer.
        share: K as a share of the largest rank that a layer can have, rounded down, at least 1.

    Raises:
        BadInput: not one of rank and share, a share outside (0, 1], or a rank above every matrix.
    """
    if (rank is None) == (share is None):
        raise BadInput("give one of --rank K and --share 0.5")
    if share is not None and not 0 < share <= 1:
        raise BadInput(f"share is {share}; give a number above 0, up to 1, such as 0.5")
    names = list(dict.fromkeys(name for task in maps for name in task))
    stacks = {
        n: torch.cat([task[n].detach().double().cpu() for task in maps if n in task]) for n in names
    }
    largest = {name: min(stack.shape) for name, stack in stacks.items()}
    if rank is not None:
        widest = max(largest, key=lambda n: largest[n])
        if not 1 <= rank <= largest[widest]:
            raise BadInput(
                f"rank is {rank}, but the largest matrix, the {len(maps)} adapters of {widest!r}, "
                f"has rank {largest[widest]} at most; give --rank 1 to {largest[widest]}"
            )
    rows, lost = {}, {}
    for name, stack in stacks.items():
        most = largest[name]
        k = min(rank, most) if rank is not None else max(int(cast(float, share) * most + 1e-9), 1)
        _, sizes, directions = torch.linalg.svd(stack, full_matrices=False)
        rows[name] = directions[:k].float().contiguous()
        whole = float(sizes.norm())
        lost[name] = float(sizes[k:].norm()) / whole if whole > 0 else 0.0
    return Basis(rows, lost)


def compress(
    options: Compress, *, tell: Reporter = nobody, command: str = ""
) -> list[dict[str, Any]]:
    """Put the adapters of several runs on one basis; each becomes a run below ``options.out``.

    Accuracies are measured before any retraining.

    Returns:
        The new runs' results, in the order of the runs.

    Raises:
        BadInput: no runs, runs of other methods, kinds or backbones, two of one task, a rank or
            share that cannot be, or a directory of another command.
    """
    if not options.runs:
        raise BadInput("no run given; name runs, as in `tailor compress runs/many/* --out DIR`")
    runs = [open_run(path) for path in options.runs]
    _check_alike(runs)
    places = _places(runs, options.out)
    said: dict[str, Any] = {"runs": sorted(str(run.path.resolve()) for run in runs)}
    said |= {"rank": options.rank, "share": options.share}
    basis = options.out / BASIS
    rows = _stored(basis, said) if basis.exists() else None
    if rows is None:
        found = joint_basis([_maps(run) for run in runs], rank=options.rank, share=options.share)
        rows = found.rows
        about = {"fingerprint": runs[0].result["fingerprint"], "adapters": _kind(runs[0])}
        about |= {"backbone": runs[0].student.universal.name, "lost": found.lost}
        about |= {"ranks": {name: len(row) for name, row in rows.items()}}
        write_tensors(basis, rows, about | {"made_from": said})
    return [
        _compressed(run, out, basis, rows, said, tell, command)
        for run, out in zip(runs, places, strict=True)
    ]


def _compressed(
    opened: Opened,
    out: Path,
    basis: Path,
    rows: Mapping[str, Tensor],
    said: Mapping[str, Any],
    tell: Reporter,
    command: str,
) -> dict[str, Any]:
    """One task's run on the basis."""
    config = {"run": str(opened.path.resolve()), **said}
    if (done := finished(out, "compress", config)) is not None:
        return done
    tell(f"compress {out.name}").say("measuring it before it is retrained")
    student = on_basis(cast(Adapted, opened.student), basis, rows)
    task = task_of(opened.data)
    with open_directory(out, "compress", config, command) as run:
        if run.result is not None:  # another process was faster
            return run.result
        settings = Settings(**opened.result["config"]["train"])
        val = validated(student, task, opened.data, settings)
        facts = {name: opened.result[name] for name in ("task", "metric")}
        facts["config"] = opened.result["config"] | {"settings": as_config(student.config)}
        facts |= {"kept": student.kept(), "from": str(opened.path)}
        return finish(run, student, task, Fitted(val, 0, 0.0), facts, "compressed", settings)


@torch.no_grad()
def on_basis(student: Adapted, basis: Path, rows: Mapping[str, Tensor]) -> Adapted:
    """The same student with its maps projected on a basis.

    Args:
        student: with whole or low-rank maps; left as it is.
        basis: the file of ``rows``, which its settings will name.
        rows: layer -> (K, N), orthonormal.
    """
    method = catalog.load("students", METHOD, "method")
    changed: dict[str, Any] = {"basis": str(basis.resolve()), "rank": None, "select": False}
    config = dataclasses.replace(student.config, **changed)
    classes = student.task.head.out_features
    found = cast(Adapted, method.rebuild(student.universal, classes, config, kept=student.kept()))
    found.task.norms.load_state_dict(student.task.norms.state_dict())
    found.task.head.load_state_dict(student.task.head.state_dict())
    for layer in found.adapted:
        old, new = (cast(Any, s.task.adapters[layer.name]) for s in (student, found))
        if isinstance(getattr(new, "norm", None), nn.Module):
            new.norm.load_state_dict(old.norm.state_dict())
        factor = old.map.matrix().double() @ rows[layer.name].double().T
        new.map.up.copy_(factor)
    return found.eval()


def _maps(opened: Opened) -> dict[str, Tensor]:
    """Layer -> (M, N) map of a run."""
    student = cast(Adapted, opened.student)
    found = {}
    for name, adapter in student.task.adapters.items():
        if isinstance(adapter, Own):
            raise BadInput(
                f"run {opened.path} trains the adapters that its source network has at {name!r}; "
                f"compress runs on a source network without adapters"
            )
        found[name] = cast(Map, adapter.map).matrix()
    return found


def _check_alike(runs: Sequence[Opened]) -> None:
    """Runs that can share a basis, or an error that names the first that cannot."""
    for run in runs:
        config = run.result["config"]
        if config["method"] != METHOD:
            raise BadInput(
                f"run {run.path} is of method {config['method']!r}; compress takes runs of "
                f"`tailor adapt --method {METHOD}`"
            )
        student = cast(Adapted, run.student)
        if config["settings"].get("basis"):
            raise BadInput(f"run {run.path} is on a basis already; give the run that it came from")
        if student.gated:
            raise BadInput(
                f"run {run.path} still has scores; first `tailor prune {run.path} --out "
                f"{run.path}-pruned`"
            )
        first = runs[0]
        for what, here, there in (
            ("backbone", run.result["fingerprint"][:8], first.result["fingerprint"][:8]),
            ("adapters", _kind(run), _kind(first)),
        ):
            if here != there:
                raise BadInput(
                    f"run {run.path} has {what} {here}, but {first.path} has {there}; compress "
                    f"runs on one backbone and of one kind"
                )


def _kind(opened: Opened) -> str:
    return str(cast(Any, opened.student).config.adapters)


def _places(runs: Sequence[Opened], out: Path) -> list[Path]:
    """The run directory of each task, named by the task."""
    named: dict[str, Opened] = {}
    for run in runs:
        name = short(run.data.task)
        if name in named:
            raise BadInput(
                f"runs {named[name].path} and {run.path} are both of task {name}; give one of each"
            )
        named[name] = run
    return [out / name for name in named]


def _stored(basis: Path, said: Mapping[str, Any]) -> dict[str, Tensor]:
    """The rows of an earlier session of the same command.

    Raises:
        BadInput: the file is another command's.
    """
    rows, about = read_tensors(basis)
    before = (about or {}).get("made_from")
    if before != said:
        raise BadInput(
            f"{basis} was made from other runs or with another rank or share, and runs may stand "
            f"on it; choose another --out"
        )
    return rows
