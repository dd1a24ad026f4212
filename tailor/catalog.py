"""Finds a method, a dataset or an architecture family by its file name.

``students/taps.py`` is the method ``taps``: adding one thing is adding one file, and no
registry has to be told. Files that begin with an underscore are not listed.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from tailor.errors import BadInput


def names(package: str) -> list[str]:
    """File names (without ``.py``) of the public modules of ``package``, sorted."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise BadInput(f"package {package!r} is not importable; reinstall tailor (`pip install .`)")
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(m.name for m in found if not m.name.startswith("_"))


def load(package: str, name: str, kind: str) -> ModuleType:
    """Import ``package.name``.

    Args:
        package: dotted package that holds one file per thing, such as ``students``.
        name: the thing's file name; ``-`` and ``_`` are the same.
        kind: the word for the thing in the error, such as ``method``.

    Raises:
        BadInput: no such file; the message suggests the nearest names.
    """
    known = names(package)
    wanted = name.replace("-", "_")
    if wanted not in known:
        raise unknown(kind, name, known)
    return importlib.import_module(f"{package}.{wanted}")


def unknown(kind: str, name: str, known: Iterable[str], *, shown_by: str = "") -> BadInput:
    """The error for a name that nobody knows, with the nearest known names.

    Args:
        kind: the word for the thing, such as ``method``.
        name: what was asked for.
        known: what there is.
        shown_by: the command that shows all; ``tailor list`` of the kind by default.
    """
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown_by = shown_by or f"tailor list {kind}s"
    return BadInput(f"unknown {kind} {name!r}: {hint}`{shown_by}` shows all {len(known)}")
