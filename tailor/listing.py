"""What there is: ``tailor list methods | tasks | backbones | sequences``."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import timm
from rich.table import Table

from tailor import catalog, sequence
from tailor.backbone import families
from tailor.datasets import _scenes, _taskonomy
from tailor.decathlon import DOMAINS
from tailor.progress import wide_console

KINDS = ("methods", "tasks", "backbones", "sequences")


def entries(kind: str, pattern: str = "*") -> list[dict[str, Any]]:
    """Name, origin and kind of everything of a sort.

    Args:
        kind: one of ``KINDS``.
        pattern: shell pattern for the names.

    Raises:
        BadInput: unknown kind.
    """
    if kind not in KINDS:
        raise catalog.unknown("list", kind, KINDS, shown_by="tailor list --help")
    found = {
        "methods": _methods,
        "tasks": _tasks,
        "backbones": _backbones,
        "sequences": _sequences,
    }[kind]()
    return [e for e in found if fnmatch.fnmatch(e["name"], pattern)]


def _methods() -> list[dict[str, Any]]:
    found = []
    for name in catalog.names("students"):
        module = catalog.load("students", name, "method")
        found.append({"name": name, "paper": module.PAPER, "kind": module.KIND})
    return found


def _tasks() -> list[dict[str, Any]]:
    found = []
    for name in catalog.names("tailor.datasets"):
        facts = catalog.load("tailor.datasets", name, "task").FACTS
        found.append({"name": name, "paper": facts.title, "kind": f"{facts.classes} classes"})
    return [
        *found,
        *(
            {"name": f"decathlon:{n}", "paper": d.title, "kind": f"{d.classes} classes, 72 px"}
            for n, d in DOMAINS.items()
        ),
        {
            "name": "folder:PATH",
            "paper": "class folders in train/ and test/ or val/",
            "kind": "own",
        },
        {"name": "npz:PATH", "paper": "train.npz, test.npz, dataset.json", "kind": "own"},
        {"name": "torchvision:CLASS", "paper": "any classification set there", "kind": "own"},
        {"name": "classes:TASK:0-9", "paper": "some classes of another task", "kind": "own"},
        *_dense_tasks("scenes", _scenes.TARGETS, _scenes.TITLE),
        *_dense_tasks("taskonomy", _taskonomy.TARGETS, _taskonomy.TITLE),
    ]


def _dense_tasks(reader: str, targets: Mapping[str, Any], title: str) -> list[dict[str, Any]]:
    found = []
    for name, wanted in targets.items():
        what = "values" if wanted.target.numeric else "classes"
        kind = f"{len(wanted.outputs)} {what}{' of pixels' if wanted.target.dense else ''}"
        found.append({"name": f"{reader}:{name}", "paper": title, "kind": kind})
    return found


def _sequences() -> list[dict[str, Any]]:
    found = []
    for name in catalog.names(sequence.PACKAGE):
        module = sequence.known(name)
        found.append({"name": name, "paper": module.TITLE, "kind": module.RECIPE.net.backbone})
    return found


def _backbones() -> list[dict[str, Any]]:
    fetched = set(timm.list_models(pretrained=True))
    known = {m.split(".")[0] for m in fetched}
    own = families()
    ours = [{"name": n, "paper": "teachers/", "kind": "own family"} for n in own]
    return ours + [
        {"name": n, "paper": "timm", "kind": "pretrained" if n in known else "random only"}
        for n in timm.list_models()
        if n not in own  # timm's of the same name can be had with its tag
    ]


def show(found: list[dict[str, Any]]) -> None:
    """A table for people."""
    table = Table(box=None, header_style="bold")
    for column in ("name", "what", "kind"):
        table.add_column(column)
    for entry in found:
        table.add_row(entry["name"], entry["paper"], entry["kind"])
    wide_console().print(table)
