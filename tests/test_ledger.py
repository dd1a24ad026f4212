"""The ledger of a sweep: every point is done once, whatever happens to the workers."""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from tailor.errors import BadInput
from tailor.ledger import LOST, Ledger, Slot
from tailor.storage import Heart, Unreachable, open_storage
from tests import postgresql

ABOUT = {"lam": [0.1, 1.0], "images": {"digits": "aa"}}
POINTS = {f"lam {lam}": {"lam": lam} for lam in (0.1, 1.0)}


opened = contextlib.ExitStack()


@pytest.fixture(autouse=True)
def _closed_after_each_test():
    yield
    opened.close()


def ledger(
    url: str, *, points=POINTS, about=ABOUT, ranges=None, name="study", heartbeat=1
) -> Ledger:
    values = [point["lam"] for point in points.values() if point]
    return Ledger(
        opened.enter_context(open_storage(url, heartbeat)),
        url,
        name,
        slots=[Slot(name, point) for name, point in points.items()],
        distributions=ranges or {"lam": CategoricalDistribution(values)},
        directions=["maximize", "minimize"],
        identity=about,
    )


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'sweep.db'}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[postgresql.Server]:
    with postgresql.server() as server:
        yield server


def statuses(book: Ledger) -> list[str]:
    return [state.status for state in book.states().values()]


def attempts(url: str, name: str = "study") -> list[str]:
    study = optuna.load_study(storage=opened.enter_context(open_storage(url, 1)), study_name=name)
    return [t.state.name for t in study.get_trials()]


def test_every_point_is_handed_out_once_and_then_none(sqlite):
    book = ledger(sqlite)
    first, second = book.claim(), book.claim()
    assert [first.params, second.params] == [{"lam": 0.1}, {"lam": 1.0}]
    assert book.claim() is None
    assert statuses(book) == ["running", "running"]


def test_a_finished_point_is_done_with_its_values_and_facts(sqlite):
    book = ledger(sqlite)
    assert book.finish(book.claim(), [0.9, 0.2], {"val": 0.9})
    state = ledger(sqlite).states()["lam 0.1"]
    assert (state.status, state.trial.values, state.before) == ("done", [0.9, 0.2], 0)
    assert state.facts == {"val": 0.9}


def test_a_dead_worker_s_point_waits_again_after_the_grace_period(sqlite):
    book = ledger(sqlite)
    lost = book.claim()
    kept = book.claim()
    with Heart(book._storage, book.trial_id(kept), 0.5):
        assert book.claim() is None  # still in the grace period
        time.sleep(4.6)  # three missed beats of one second, and SQLite's clock has whole seconds
        again = book.claim()
    assert again.params == lost.params
    assert statuses(book) == ["running", "running"]
    assert attempts(sqlite) == ["FAIL", "RUNNING", "RUNNING"]


def test_a_result_that_comes_after_the_burial_does_not_count(sqlite):
    book = ledger(sqlite, points={"lam 0.1": {"lam": 0.1}})
    slow = book.claim()
    book._storage.set_trial_state_values(book.trial_id(slow), TrialState.FAIL)
    assert not book.finish(slow, [0.5, 0.5], {"val": 0.5})
    again = book.claim()
    assert again.params == slow.params
    assert book.finish(again, [0.7, 0.2], {"val": 0.7})
    assert book.states()["lam 0.1"].trial.values == [0.7, 0.2]


def test_of_two_attempts_at_one_point_the_one_with_the_lower_number_stays(sqlite):
    book = ledger(sqlite)
    book._top_up()
    book._study.enqueue_trial({"lam": 0.1}, user_attrs={"slot": "lam 0.1"})  # as a race would
    claimed = [trial for _ in range(3) if (trial := book.claim())]
    assert [trial.number for trial in claimed] == [0, 1]
    assert attempts(sqlite) == ["RUNNING", "RUNNING", "FAIL"]
    assert [s.before for s in book.states().values()] == [0, 0]  # withdrawn is no attempt


def test_an_attempt_whose_withdrawal_was_cut_short_blocks_nobody(sqlite):
    book = ledger(sqlite, points={"lam 0.1": {"lam": 0.1}})
    first = book.claim()
    book._study.enqueue_trial({"lam": 0.1}, user_attrs={"slot": "lam 0.1", "withdrawn": True})
    book._storage.set_trial_state_values(book.trial_id(first), TrialState.FAIL)
    again = book.claim()
    assert (again.number, again.params) == (2, {"lam": 0.1})
    assert book.finish(again, [0.9, 0.1], {"val": 0.9})
    assert statuses(book) == ["done"]


def test_a_value_that_is_no_number_never_reaches_the_database(sqlite):
    book = ledger(sqlite)
    trial = book.claim()
    with pytest.raises(BadInput, match="must be numbers"):
        book.finish(trial, [float("nan"), 0.1], {})
    assert statuses(ledger(sqlite)) == ["running", "waiting"]


def test_all_workers_of_a_study_beat_at_its_own_pace(sqlite):
    slow = ledger(sqlite, heartbeat=30)
    assert ledger(sqlite, heartbeat=1).heartbeat == slow.heartbeat == 30


def test_hearts_may_beat_before_anybody_is_buried(sqlite):
    """After a time without the database every trial would look dead."""
    old = ledger(sqlite)
    lost = old.claim()
    time.sleep(4.5)  # no beat for longer than the grace period
    fresh = ledger(sqlite)
    assert [fresh.claim().params, fresh.claim()] == [{"lam": 1.0}, None]
    time.sleep(2.1)  # a beat and a second
    assert fresh.claim().params == lost.params


def test_a_point_that_failed_is_tried_again_only_if_asked(sqlite):
    book = ledger(sqlite)
    book.fail(book.claim(), "loss became infinite")
    assert statuses(book) == ["failed", "waiting"]
    assert book.claim().params == {"lam": 1.0}
    assert book.claim() is None
    book.retry_failed()
    assert book.claim().params == {"lam": 0.1}


def test_a_released_point_is_free_at_once_and_is_no_death(sqlite):
    book = ledger(sqlite)
    for _ in range(LOST + 1):
        book.release(book.claim())
    assert set(statuses(book)) <= {"open", "waiting"}
    assert {book.claim().params["lam"] for _ in range(2)} == {0.1, 1.0}


def test_a_point_that_kills_every_worker_is_given_up(sqlite):
    book = ledger(sqlite, points={"lam 0.1": {"lam": 0.1}})
    for _ in range(LOST):
        dead = book.claim()
        book._storage.set_trial_state_values(book.trial_id(dead), TrialState.FAIL)
    assert statuses(book) == ["failed"]
    assert book.claim() is None


def test_a_search_hands_out_as_many_trials_as_asked_inside_the_range(sqlite):
    slots = {f"search {i}": {} for i in range(5)}
    book = ledger(sqlite, points=slots, ranges={"lam": FloatDistribution(0.01, 10, log=True)})
    found = [book.claim() for _ in range(5)]
    assert all(0.01 <= trial.params["lam"] <= 10 for trial in found)
    assert len({trial.params["lam"] for trial in found}) == 5
    assert book.claim() is None


def test_a_search_tries_the_values_of_a_lost_trial_again(sqlite):
    slots = {f"search {i}": {} for i in range(2)}
    book = ledger(sqlite, points=slots, ranges={"lam": FloatDistribution(0.01, 10, log=True)})
    lost = book.claim()
    book._storage.set_trial_state_values(book.trial_id(lost), TrialState.FAIL)
    book.claim()
    assert book.claim().params == lost.params


def test_the_front_of_a_search_are_the_trials_that_no_other_beats(sqlite):
    slots = {f"search {i}": {} for i in range(3)}
    book = ledger(sqlite, points=slots, ranges={"lam": FloatDistribution(0.01, 10)})
    for values in ([0.9, 0.5], [0.8, 0.6], [0.7, 0.1]):
        book.finish(book.claim(), values, {})
    assert book.front() == {0, 2}


def test_another_search_space_under_the_same_name_is_refused(sqlite):
    book = ledger(sqlite)
    book.finish(book.claim(), [0.9, 0.2], {})
    with pytest.raises(BadInput, match=r"another search space \(lam: \[0.1, 1.0\] there, \[3\] n"):
        ledger(sqlite, points={"x": {"lam": 3.0}}, about=ABOUT | {"lam": [3]})
    assert statuses(ledger(sqlite)) == ["done", "waiting"]  # finished trials stay


def test_other_images_under_the_same_name_are_refused(sqlite):
    ledger(sqlite)
    with pytest.raises(BadInput, match="other images or labels of digits"):
        ledger(sqlite, about=ABOUT | {"images": {"digits": "bb"}})


def test_a_study_of_somebody_else_is_left_alone(sqlite):
    study = optuna.create_study(
        storage=opened.enter_context(open_storage(sqlite, 1)), study_name="study"
    )
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(BadInput, match="not of `tailor sweep`"):
        ledger(sqlite)
    assert attempts(sqlite) == ["COMPLETE"]


def test_a_study_of_another_version_of_tailor_is_refused(sqlite):
    ledger(sqlite)._study.set_user_attr("tailor", {"schema": 99, "identity": ABOUT})
    with pytest.raises(BadInput, match="another version of tailor"):
        ledger(sqlite)


def _hammer(url: str, points: dict, start: float, found) -> None:
    """A worker that does nothing but take points, from the same moment on as the others."""
    time.sleep(max(0.0, start - time.time()))
    book = ledger(url, points=points, name="race", heartbeat=30)
    while (trial := book.claim()) is not None:
        found.put(trial.params["lam"])
        book.finish(trial, [0.0, 0.0], {})
    opened.close()


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_workers_that_start_together_take_every_point_exactly_once(database, request):
    found = request.getfixturevalue(database)
    url = getattr(found, "url", found)
    points = {str(lam): {"lam": lam} for lam in range(20)}
    context = multiprocessing.get_context("spawn")
    found, start = context.Queue(), time.time() + 3
    workers = [context.Process(target=_hammer, args=(url, points, start, found)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(found.get() for _ in range(20)) == list(range(20))
    assert found.empty()
    assert attempts(url, "race").count("COMPLETE") == 20


def test_a_server_that_restarts_costs_no_result(postgres):
    book = ledger(postgres.url, name="restart")
    trial = book.claim()
    postgres.stop()
    for ask in (book.states, book.claim, lambda: book.finish(trial, [0.9, 0.1], {"val": 0.9})):
        with pytest.raises(Unreachable, match="cannot be reached"):
            ask()
    postgres.start()
    assert book.finish(trial, [0.9, 0.1], {"val": 0.9})
    assert book.claim().params == {"lam": 1.0}
    assert statuses(book) == ["done", "running"]
