"""Functions and `tailor` commands in processes of their own, to be killed or to train together.

They are forked from a server that has imported torch once, so that each starts in a tenth of a
second instead of five.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    # What the first step of a training would import otherwise, torch._dynamo above all.
    ["pytest", "tyro", "sklearn.datasets", "torch._dynamo", "tailor.sweep", "students.taps"]
)


def start(
    function: Callable[..., object], *args: object, output: Path, **environment: str
) -> BaseProcess:
    """Run ``function(*args)``; what it prints goes to ``output``, what it returns is its status."""
    process = _server.Process(target=_main, args=(function, args, str(output), environment))
    process.start()
    return process


def start_together(
    function: Callable[..., object], *args: object, output: Path, count: int = 2
) -> list[BaseProcess]:
    """The same in ``count`` processes that find each other as torchrun's do, on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        start(
            function,
            *args,
            output=output.with_suffix(f".{rank}"),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **place,
        )
        for rank in range(count)
    ]


def finish(process: BaseProcess, seconds: float = 100) -> int:
    """The exit status; a process that takes longer is killed (-9)."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def command(*argv: str) -> int:
    """``tailor ARGV``."""
    from tailor import cli

    return cli.main(argv)


def _main(
    function: Callable[..., int | None],
    args: tuple[object, ...],
    output: str,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*args))
