"""The database of a sweep: what can be wrong with one is told in a line."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest
import sqlalchemy

from tailor.errors import BadInput
from tailor.ledger import Ledger, Slot
from tailor.storage import Heart, Unreachable, open_storage


def refusal(url, kind=BadInput):
    with pytest.raises(kind) as caught, open_storage(url, 1):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sweep.db", "is no address of a database; give sqlite:///FILE"),
        ("sqlite://", "would be forgotten with the process"),
        ("sqlite:///:memory:", "would be forgotten with the process"),
        ("postgresql://me@host:port/name", "is no address of a database"),
        ("mysql://user@host/name", "sqlite and postgresql are supported"),
        ("sqlite:////nowhere/at/all/sweep.db", "its folder is missing or closed to you"),
    ],
)
def test_an_address_that_cannot_work_is_named(url, said):
    assert said in refusal(url)


def test_a_server_that_is_not_there_is_named_without_its_password():
    pytest.importorskip("psycopg")
    said = refusal("postgresql://me:secret@127.0.0.1:1/name", Unreachable)
    assert "postgresql://me:***@127.0.0.1:1/name" in said
    assert "it cannot be reached: start it or mend the address" in said


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path):
    file = tmp_path / "notes.db"
    file.write_text("my notes, which are longer than a hundred bytes" * 9)
    assert "it is no database, or damaged" in refusal(f"sqlite:///{file}")
    assert file.read_text().startswith("my notes")


def test_tables_of_another_version_of_optuna_are_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    with open_storage(url, 1):
        pass
    with closing(sqlite3.connect(tmp_path / "sweep.db")) as connection:
        connection.execute("update alembic_version set version_num = 'v2.6.0.a'")
        connection.commit()
    said = refusal(url)
    assert "was made by another version of Optuna" in said
    assert "optuna storage upgrade" in said


def test_a_heartbeat_below_a_second_is_refused(tmp_path):
    with pytest.raises(BadInput, match="heartbeat is 0 seconds"), open_storage("sqlite:///x", 0):
        pass


def test_a_full_database_is_one_line_and_finished_trials_stay(tmp_path):
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    limit = {"pages": 0}

    def small(connection, _):
        if limit["pages"]:
            connection.execute(f"pragma max_page_count = {limit['pages']}")

    def book(storage):
        return Ledger(
            storage,
            url,
            "study",
            slots=[Slot(str(i), {}) for i in range(50)],
            distributions={},
            directions=["maximize"],
            identity={},
        )

    def fill(storage):
        for _ in range(50):
            book(storage).finish(book(storage).claim(), [0.5], {"note": "x" * 9000})

    with open_storage(url, 1) as storage:
        assert book(storage).finish(book(storage).claim(), [0.5], {"note": "first"})
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", small)
    try:
        limit["pages"] = 45
        with pytest.raises(BadInput) as caught, open_storage(url, 1) as storage:
            fill(storage)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", small)
    assert "it is full: free some space and repeat the command. Finished trials" in str(
        caught.value
    )
    with open_storage(url, 1) as storage:
        assert book(storage).states()["0"].facts == {"note": "first"}


def test_the_heart_goes_on_beating_after_the_database_was_away():
    beats, failing = [], threading.Event()

    class Flaky:
        def record_heartbeat(self, trial):
            if failing.is_set():
                raise OSError("gone")
            beats.append(trial)

    with Heart(Flaky(), 7, 0.01):
        while not beats:
            time.sleep(0.005)
        failing.set()
        time.sleep(0.05)
        before = len(beats)
        failing.clear()
        while len(beats) <= before:
            time.sleep(0.005)
    assert set(beats) == {7}


def test_sqlite_takes_the_write_lock_before_it_reads(tmp_path):
    """Two workers could otherwise both read a trial as waiting, and both take it."""
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    with (
        open_storage(url, 1) as storage,
        storage.engine.begin(),
        closing(sqlite3.connect(tmp_path / "sweep.db", timeout=0)) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("begin immediate")
