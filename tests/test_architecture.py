"""The shape of the house: which package may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "tailor": {"tailor"},
    "teachers": {"teachers", "tailor"},
    "students": {"students", "tailor"},
    "analysis": {"analysis", "tailor"},
}
OURS = {"tailor", "teachers", "students", "analysis", "demos", "tests"}


def imported(path: Path) -> set[str]:
    """First components of everything that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_dependencies_form_a_star(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & OURS <= MAY_IMPORT[package], path


def test_no_file_unpickles():
    for package in OURS - {"tests"}:
        for path in (ROOT / package).rglob("*.py"):
            assert not imported(path) & {"pickle", "dill", "joblib", "cloudpickle"}, path
