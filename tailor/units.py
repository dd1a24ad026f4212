"""Units: what one trial of a sweep trains, named by its content.

A *unit* is one chain of verbs for one seed: teach a reference, or adapt, prune and retrain. Its key
is a hash of everything that the result depends on, so the same unit has the same run directories in
every sweep under one folder and is trained once. Left out: which units a sweep has (``space.py``),
who trains them (``ledger.py``, ``sweep.py``).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args

from tailor import shrink, workflow
from tailor.options import Adapt, Data, Mode, Net, Prune, Retrain, Teach
from tailor.run import PLACE, InUse
from tailor.session import Reporter
from tailor.settings import Settings, as_config, lam_of

MODES = get_args(Mode)  # methods that `tailor teach` trains


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One chain for one seed."""

    method: str
    settings: Any  # the method's Config; None of a reference
    data: Data
    net: Net
    weights: str  # fingerprint of the backbone
    train: Settings  # of the teacher, or of adapting
    rule: tuple[tuple[str, Any], ...] = ()  # fields of Prune
    retrain: Settings | None = None  # None: stop after pruning
    prune: bool = True
    teacher: Unit | None = None

    @property
    def lam(self) -> float | None:
        """The price that the unit is adapted at."""
        return None if self.settings is None else lam_of(as_config(self.settings))

    def key(self) -> str:
        """Hash of everything that the final result depends on, data set's content apart."""
        return _hash(self._start() | {"rule": self.rule, "retrain": said(self.retrain)})

    def stem(self) -> str:
        """Folder of the first stage below the sweep's: readable, and different if it differs."""
        price = "" if self.lam is None else f"-lam{self.lam:g}"
        backbone = re.sub(r"[^\w.+-]", "_", self.net.backbone)
        name = f"{backbone}-{self.method}{price}-s{self.train.seed}"
        return f"{short(self.data.task)}/{name}-{_hash(self._start())[:6]}"

    def stages(self, out: Path) -> list[Path]:
        """The run directories of the chain below ``out``, in order."""
        paths = [out / self.stem()]
        if self.settings is not None and self.prune:
            slug = "-".join(f"{name}{value}" for name, value in self.rule).replace("/", "_")
            paths.append(paths[0].with_name(f"{paths[0].name}-{slug or 'pruned'}"))
            if self.retrain is not None:
                paths.append(paths[1].with_name(f"{paths[1].name}-retrained{self.retrain.epochs}"))
        return paths

    def _start(self) -> dict[str, Any]:
        """What the first stage depends on."""
        return {
            "method": self.method,
            "settings": said(self.settings),
            "data": said(self.data),
            "backbone": self.net.backbone,
            "weights": self.weights,
            "train": said(self.train),
            "teacher": None if self.teacher is None else self.teacher.key(),
            "prune": self.prune,
        }


def run(unit: Unit, out: Path, *, tell: Reporter, command: str) -> dict[str, Any]:
    """Train what is missing of ``unit`` below ``out``; returns the last stage's result.

    Raises:
        BadInput: see the verbs; what was finished stays.
    """
    stages = unit.stages(out)
    if unit.settings is None:
        mode = cast(Mode, unit.method)
        teach = Teach(out=stages[0], mode=mode, data=unit.data, net=unit.net, train=unit.train)
        return _alone(lambda: workflow.teach(teach, tell=tell, command=command))
    teacher = None
    if unit.teacher is not None:
        run(unit.teacher, out, tell=tell, command=command)
        teacher = unit.teacher.stages(out)[0]
    adapt: Adapt[Any] = Adapt(
        out=stages[0],
        method=unit.method,
        teacher=teacher,
        data=unit.data,
        net=unit.net,
        settings=unit.settings,
        train=unit.train,
    )
    result = _alone(lambda: workflow.adapt(adapt, tell=tell, command=command))
    if len(stages) > 1:
        prune = Prune(run=stages[0], out=stages[1], **dict(unit.rule))
        result = _alone(lambda: shrink.prune(prune, tell=tell, command=command))
    if len(stages) > 2:
        assert unit.retrain is not None
        retrain = Retrain(run=stages[1], out=stages[2], train=unit.retrain)
        result = _alone(lambda: shrink.retrain(retrain, tell=tell, command=command))
    return result


def prunes(method: ModuleType, settings: Any) -> bool:
    """Whether a student of ``method`` with these settings can switch something off."""
    return hasattr(method, "rebuild") and bool(getattr(settings, "select", True))


def _alone(verb: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Wait while another worker writes to the same directory: what it finishes is then found.

    Units share first stages and teachers. A worker that dies gives its directory free, and whoever
    waits continues from its last checkpoint.
    """
    while True:
        try:
            return verb()
        except InUse:
            time.sleep(0.5)


def short(task: str) -> str:
    """The task's name without the path it is read from, fit to name a folder."""
    reader, _, place = task.partition(":")
    name = Path(place).expanduser().resolve().name if place else reader
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "task"


def said(options: Any) -> Any:
    """A dataclass without what only says where it runs."""
    if options is None:
        return None
    return {k: v for k, v in as_config(options).items() if k not in PLACE}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
