"""A PostgreSQL server on loopback for tests, in a folder of its own; skipped without one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


def _programs() -> Path:
    """The folder of initdb and pg_ctl; Debian keeps them off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return places[-1].parent


def _as_whom() -> tuple[list[str], int]:
    """PostgreSQL refuses to run as root, so root lends it Debian's own user."""
    if os.getuid() != 0:
        return [], os.getuid()
    try:
        user = pwd.getpwnam("postgres").pw_uid
    except KeyError:
        pytest.skip("root cannot start PostgreSQL without a user `postgres`")
    if shutil.which("runuser") is None:
        pytest.skip("root cannot start PostgreSQL without `runuser`")
    return ["runuser", "-u", "postgres", "--"], user


@dataclass(frozen=True)
class Server:
    """A running server, which can be stopped as by a power cut and started again."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def server() -> Iterator[Server]:
    """A server with an empty database; it ends with the block."""
    pytest.importorskip("psycopg", reason="the driver is not installed (extra postgresql)")
    programs, (become, user) = _programs(), _as_whom()
    folder = Path(tempfile.mkdtemp(prefix="tailor-postgresql-"))
    data, log = str(folder / "data"), str(folder / "log")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"

    def call(program: str, *words: str) -> None:
        command = [*become, str(programs / program), "-D", data, *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr + done.stdout

    def start() -> None:
        call("pg_ctl", "-w", "-l", log, "-o", options, "start")

    def stop() -> None:
        call("pg_ctl", "-m", "immediate", "stop")

    try:
        os.chown(folder, user, -1)
        call("initdb", "-A", "trust", "-U", "tailor", "-E", "UTF8")
        start()
        try:
            yield Server(f"postgresql://tailor@127.0.0.1:{port}/postgres", stop, start)
        finally:
            stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
