"""`tailor` commands in processes of their own, to be killed or to train together.

They are forked from a server that has imported torch once, so that each starts in a tenth of a
second instead of five.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["pytest", "tailor.workflow", "tyro", "students.taps"])

Command = multiprocessing.process.BaseProcess


def start(argv: Sequence[str], output: Path, **environment: str) -> Command:
    """Run ``tailor ARGV``; what it prints goes to ``output``."""
    process = _server.Process(target=_main, args=(list(argv), str(output), environment))
    process.start()
    return process


def finish(process: Command, seconds: float = 120) -> int:
    """The exit code; a process that takes longer is killed (-9)."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def together(argv: Sequence[str], output: Path, count: int = 2) -> list[Command]:
    """Start ``count`` processes of one command as torchrun does, on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        start(argv, output.with_suffix(f".{rank}"), RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(count)
    ]


def _main(argv: list[str], output: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    from tailor import cli

    torch.set_num_threads(1)
    sys.exit(cli.main(argv))
