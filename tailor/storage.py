"""Storage: the database that workers share, opened so that it can be trusted.

Optuna's tables in SQLite or PostgreSQL. What is added: transactions of SQLite that exclude each
other (two workers must not take one trial), a heart that goes on beating while the database is
away, and one clear line for everything that can be wrong with a database. Left out: what the trials
are (``ledger.py``).
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL

from tailor.errors import BadInput

GRACE = 3  # heartbeats that a worker may miss before its trial is given to another one
_WAIT_SECONDS = 60  # for another worker's transaction, or a server that does not answer
# What a database says, and what to do about it; the first that fits is told.
_LOCKED = "another process keeps it locked: repeat the command when that has ended"
_UNREACHABLE = "it cannot be reached: start it or mend the address, and repeat the command"
_REMEDIES = (
    ("disk is full|No space left|disk full", "it is full: free some space and repeat the command"),
    (
        "readonly|read-only|permission denied|not permitted",
        "it cannot be written: change its mode, or put it back if it was removed",
    ),
    ("unable to open", "its folder is missing or closed to you: make it, or give another path"),
    ("not a database|malformed|corrupt", "it is no database, or damaged: give another --storage"),
    ("locked", _LOCKED),
    ("password|authentication|role .* does not exist", "it refuses you: check user and password"),
    ("database .* does not exist", "create it first, as with `createdb NAME`"),
    (
        "refused|could not translate|timeout|timed out|resolve|unreachable|closed the connection"
        "|connection failed|shutting down|starting up|the connection is (closed|lost)",
        _UNREACHABLE,
    ),
)


class Unreachable(BadInput):
    """The database does not answer now; it may later."""


@contextlib.contextmanager
def open_storage(url: str, heartbeat: int) -> Iterator[RDBStorage]:
    """The database at ``url``, with Optuna's tables; connections end with the block.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST/NAME``.
        heartbeat: seconds between two signs of life of a running trial.

    Raises:
        BadInput: a malformed address, a database that cannot be reached or written, a missing
            driver, or tables of another version.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are pages of SQL
    if heartbeat < 1:
        raise BadInput(f"heartbeat is {heartbeat} seconds; give 1 or more")
    address = _address(url)
    sqlite = address.get_backend_name() == "sqlite"
    if sqlite and address.database in (None, "", ":memory:"):
        raise BadInput(f"storage {url!r} would be forgotten with the process; give sqlite:///FILE")
    connect: dict[str, Any] = {"timeout": _WAIT_SECONDS}
    if not sqlite:  # heartbeats are compared as local times, which must be the same for all workers
        connect = {"connect_timeout": _WAIT_SECONDS // 4, "options": "-c timezone=UTC"}
    engine: dict[str, Any] = {"connect_args": connect, "pool_pre_ping": True}
    with speaking_of(url):
        for attempt in range(5):
            try:
                storage = _opened(address, engine, heartbeat)
                break
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
                # Workers that start together race to make the tables; all but one try again.
                if attempt == 4 or not re.search("already exists|duplicate|UNIQUE", _cause(error)):
                    raise
                time.sleep(0.2 * 2**attempt)
    if sqlite:
        _exclude(storage.engine)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _opened(address: URL, engine: dict[str, Any], heartbeat: int) -> RDBStorage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                address.render_as_string(hide_password=False),
                engine_kwargs=engine,
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat,
            )
    except ImportError as error:
        raise BadInput(
            f"storage {address.render_as_string()} needs a driver that is not installed: "
            f"pip install 'tailor-vision[postgresql]'"
        ) from error
    except RuntimeError as error:  # Optuna's own check of the tables' version
        if "compatible" not in str(error):
            raise
        raise BadInput(
            f"storage {address.render_as_string()} was made by another version of Optuna, here is "
            f"{optuna.__version__}: `optuna storage upgrade --storage URL`, install the version "
            f"that made it, or give another --storage"
        ) from error


def _address(url: str) -> URL:
    """``url`` parsed, with the driver that we install."""
    try:
        address = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise BadInput(
            f"storage {url!r} is no address of a database; give sqlite:///FILE or "
            f"postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    if address.get_backend_name() not in ("sqlite", "postgresql"):
        raise BadInput(
            f"storage {address.render_as_string()} is {address.get_backend_name()}; sqlite and "
            f"postgresql are supported"
        )
    # SQLAlchemy's default driver differs between its versions; psycopg is the one we install.
    return (
        address.set(drivername="postgresql+psycopg")
        if "+" not in url and (address.get_backend_name() == "postgresql")
        else address
    )


def _exclude(engine: sqlalchemy.Engine) -> None:
    """Let SQLite's transactions begin with the write lock, and end without waiting for the disk.

    Python's driver begins a transaction only before its first write, so that two workers could both
    read a trial as waiting and both take it. ``for update`` means nothing to SQLite. A power cut
    may cost the last transactions, not the database: their trials are found in the run directories.
    """

    @event.listens_for(engine, "connect")
    def _by_hand(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")

    @event.listens_for(engine, "begin")
    def _at_once(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections of before know nothing of this


@contextlib.contextmanager
def speaking_of(url: str) -> Iterator[None]:
    """Turn a database's errors into one line that names ``url`` and the remedy."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = _cause(error)
        found = (remedy for said, remedy in _REMEDIES if re.search(said, cause, re.IGNORECASE))
        remedy = next(found, "mend it, or give another --storage")
        cut = _cut(error)
        remedy = _UNREACHABLE if cut else remedy
        kind = Unreachable if cut or remedy in (_UNREACHABLE, _LOCKED) else BadInput
        raise kind(f"storage {shown(url)}: {cause}; {remedy}. Finished trials stay") from error


def _cut(error: BaseException | None) -> bool:
    """Whether the connection to the server broke, whatever the server or its driver said."""
    while error is not None:
        state = str(getattr(error, "sqlstate", "") or "")
        if (
            getattr(error, "connection_invalidated", False)
            or isinstance(error, sqlalchemy.exc.PendingRollbackError)
            or state.startswith(("08", "57P0"))
            or state == "53300"  # too many clients
        ):
            return True
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return False


def shown(url: str) -> str:
    """``url`` without its password.

    Raises:
        BadInput: it is no address of a database.
    """
    _address(url)
    return sqlalchemy.engine.make_url(url).render_as_string()


def _cause(error: BaseException) -> str:
    """What the driver said, in one line; Optuna and SQLAlchemy wrap it in paragraphs."""
    while True:
        inner = getattr(error, "orig", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return " ".join(str(error).split())[:200] or type(error).__name__


class Heart:
    """Beats for a running trial from a thread of its own; ``with Heart(...):``."""

    def __init__(self, storage: RDBStorage, trial: int, every: float) -> None:
        self._storage, self._trial, self._every = storage, trial, every
        self._still = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        while not self._still.wait(self._every):
            # A database that restarts must not kill the trial: the next beat may reach it.
            with contextlib.suppress(Exception):
                self._storage.record_heartbeat(self._trial)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._still.set()
        self._thread.join()


def default_url(out: Path) -> str:
    """A SQLite file beside the runs.

    Raises:
        BadInput: the folder's name means something else in an address.
    """
    if found := set("?#%{}") & set(str(out)):
        raise BadInput(
            f"{min(found)!r} in {str(out)!r} has a meaning of its own in a database's address; "
            f"choose another --out, or give --storage"
        )
    return f"sqlite:///{out / 'sweep.db'}"
