"""Typed: values of options that are given as text, NAME=VALUE, wherever a dataclass has them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from tailor import catalog
from tailor.errors import BadInput


def settings_of(kind: type, said: Mapping[str, str]) -> Any:
    """A dataclass whose fields are given as text; the others keep their defaults."""
    return kind(**{name: typed(kind, name, text) for name, text in said.items()})


def pairs(kind: type, texts: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` texts as a map.

    Raises:
        BadInput: another form, or a name that ``kind`` has no field for.
    """
    found: dict[str, str] = {}
    known = [f.name for f in dataclasses.fields(kind)]
    for text in texts:
        name, equal, value = text.partition("=")
        if not equal:
            raise BadInput(f"option {text!r}: give NAME=VALUE")
        if name not in known:
            raise catalog.unknown("option", name, known, shown_by="tailor adapt --help")
        found[name] = value
    return found


@functools.cache
def typed(kind: Any, name: str, text: str) -> Any:
    """``text`` as the command line would read it for field ``name`` of a dataclass.

    A field of several values takes them with commas between: ``depths=early,late``.

    Raises:
        BadInput: it is no value of that field.
    """
    import tyro

    default = next(f.default for f in dataclasses.fields(kind) if f.name == name)
    # A class of this field alone: others may be required, or have another name on the command line.
    one = dataclasses.make_dataclass("Value", [(name, get_type_hints(kind)[name])])
    flag = "--" + name.replace("_", "-")
    words = [flag, *(text.split(",") if isinstance(default, tuple) else [text])]
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise BadInput(f"{name} is {text!r}; give {name}=true or {name}=false")
        words = [flag, text.capitalize()]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return getattr(tyro.cli(one, args=words), name)
        except SystemExit:
            pass
    raise BadInput(f"{name}={text}: {text!r} is no value of {name}; `tailor adapt --help` tells")
