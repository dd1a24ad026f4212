"""tailor: adapt one frozen, pre-trained network to many tasks by learning where it must change.

The names that a script needs, each loaded when it is first used, so that ``tailor --help`` does not
wait for torch. Everything else is imported from the module that holds it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailor.backbone import Backbone
    from tailor.errors import BadInput
    from tailor.opened import open_run
    from tailor.options import Data
    from tailor.settings import Settings
    from tailor.task import Task, open_task
    from tailor.workflow import fit

__all__ = [
    "Backbone",
    "BadInput",
    "Data",
    "Settings",
    "Task",
    "fit",
    "open_run",
    "open_task",
]

_PLACES = {
    "Backbone": "backbone",
    "BadInput": "errors",
    "Data": "options",
    "Settings": "settings",
    "Task": "task",
    "fit": "workflow",
    "open_run": "opened",
    "open_task": "task",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'tailor' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tailor.{_PLACES[name]}"), name)
