"""The command in this process: what it returns and says."""

from __future__ import annotations

import json

from tailor import cli


def call(capsys, *args):
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    code = cli.main([str(a) for a in args])
    told = capsys.readouterr()
    return code, told.out, told.err


def machine(capsys, *args):
    """The document that ``--json`` prints."""
    code, out, err = call(capsys, *args, "--json")
    assert code == 0, err
    return json.loads(out)
