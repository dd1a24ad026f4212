"""A PostgreSQL server on loopback for tests, in a folder of its own; skipped without one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def server() -> Iterator[str]:
    """The address of an empty database; the server ends with the block."""
    pytest.importorskip("psycopg", reason="the driver is not installed (extra postgresql)")
    programs, (become, user) = _programs(), _as_whom()
    folder = Path(tempfile.mkdtemp(prefix="tailor-postgresql-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*words: str) -> None:
        done = subprocess.run(
            [*become, *words], cwd=folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr + done.stdout

    try:
        os.chown(folder, user, -1)
        data = str(folder / "data")
        call(str(programs / "initdb"), "-D", data, "-A", "trust", "-U", "tailor", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        log = str(folder / "log")
        call(str(programs / "pg_ctl"), "-D", data, "-w", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql://tailor@127.0.0.1:{port}/postgres"
        finally:
            call(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
