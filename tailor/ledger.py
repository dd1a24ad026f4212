"""Ledger: which points of a sweep are done, which are being worked on, and by whom.

A study of Optuna holds one trial per attempt at a point. Points wait in Optuna's queue, where a
transaction of the database gives each to one worker; GridSampler alone may hand a point out twice
while several workers ask. A worker's heart beats in the database. Where it stopped, the attempt is
marked as lost and the point waits again. If a race ever leaves two attempts at a point alive, the
one with the lower number stays and the other is withdrawn: nothing is lost or counted twice.

Left out: what a point means (``space.py``), what is trained (``units.py``).
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, GridSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from tailor.errors import BadInput
from tailor.storage import GRACE, Unreachable, shown, speaking_of

SCHEMA = 1
_AT_ONCE = 4  # slots that a worker puts into an empty queue
LOST = 20  # attempts at one point whose worker died; then something about the point kills workers
Status = Literal["done", "running", "waiting", "open", "failed"]  # open: not even in the queue


@dataclass(frozen=True)
class Slot:
    """A point that must be done once."""

    name: str  # unique within the study
    point: Mapping[str, Any]  # its values; empty where the sampler chooses them


@dataclass(frozen=True)
class State:
    """How far a slot is."""

    status: Status
    trial: FrozenTrial | None  # the attempt that counts; of an open slot the last one
    before: int  # attempts that ended without a result

    @property
    def facts(self) -> dict[str, Any]:
        """What ``finish`` was told, of a slot that is done."""
        return {} if self.trial is None else dict(self.trial.user_attrs.get("facts", {}))

    @property
    def error(self) -> str | None:
        """Why the last attempt failed."""
        return None if self.trial is None else self.trial.user_attrs.get("error")


class Ledger:
    """One study in a database, as one worker sees it.

    Args:
        storage: from ``open_storage``.
        url: of the storage, for errors.
        name: of the study.
        slots: all points.
        distributions: of the points' values, by name.
        directions: ``maximize`` or ``minimize`` per objective.
        identity: what the study is about, JSON-able; another one is refused.

    Raises:
        BadInput: the study has another search space or was made by another version, or the
            database fails.
    """

    def __init__(
        self,
        storage: RDBStorage,
        url: str,
        name: str,
        *,
        slots: Sequence[Slot],
        distributions: Mapping[str, BaseDistribution],
        directions: Sequence[Literal["minimize", "maximize"]],
        identity: Mapping[str, Any],
    ) -> None:
        self._storage, self._url, self._distributions = storage, url, dict(distributions)
        self._looked = time.monotonic()
        self._slots = {slot.name: slot for slot in slots}
        with speaking_of(url):
            try:
                self._study = optuna.create_study(
                    storage=storage, study_name=name, directions=list(directions)
                )
            except DuplicatedStudyError:
                self._study = optuna.load_study(storage=storage, study_name=name)
            self._claim_study(name, identity)

    def _claim_study(self, name: str, identity: Mapping[str, Any]) -> None:
        """Write down what the study is about, or compare."""
        asked = json.loads(json.dumps(identity))
        begun = bool(self._trials())  # first: another worker may write both in between
        known = self._study.user_attrs
        if not known and not begun:
            beat = self._storage.get_heartbeat_interval()
            about = {"schema": SCHEMA, "identity": asked, "heartbeat": beat}
            self._study.set_user_attr("tailor", about)
            known = self._study.user_attrs
        noted, study = known.get("tailor"), f"study {name!r} in {shown(self._url)}"
        if not isinstance(noted, dict):
            raise BadInput(f"{study} is not of `tailor sweep`; give another --study")
        if noted.get("schema") != SCHEMA:
            raise BadInput(
                f"{study} was made by another version of tailor (schema {noted.get('schema')}, "
                f"here {SCHEMA}); install that one, or give another --study"
            )
        # Whoever waits for shorter than others beat would take their trials away.
        beat = int(noted.get("heartbeat") or self.heartbeat)
        self._storage.heartbeat_interval, self._storage.grace_period = beat, GRACE * beat
        found = noted["identity"]
        for part in sorted(asked.keys() | found.keys()):
            if found.get(part) != asked.get(part):
                raise BadInput(_differs(name, part, found.get(part), asked.get(part)))

    def retry_failed(self) -> None:
        """Put the slots that ended in an error into the queue again."""
        with speaking_of(self._url):
            for name, state in self._states().items():
                if state.status == "failed":
                    self._enqueue(self._slots[name], state)

    def claim(self) -> optuna.Trial | None:
        """A trial to work on, now this worker's own; None while all are done or taken."""
        try:
            # After a time without the database all hearts seem to stand still: let them beat first.
            if time.monotonic() - self._looked > self.heartbeat + 1:
                self._bury()
            with speaking_of(self._url):
                return self._take() or (self._take() if self._top_up() else None)
        except Unreachable:
            self._looked = time.monotonic()
            raise

    def _top_up(self) -> bool:
        """Put slots into the queue that nobody has done, is doing or waits for; whether any was.

        A few at a time: workers that start together would otherwise all enqueue everything.
        """
        found = [(name, state) for name, state in self._states().items() if state.status == "open"]
        for name, state in found[:_AT_ONCE]:
            self._enqueue(self._slots[name], state)
        return bool(found)

    def _enqueue(self, slot: Slot, state: State) -> None:
        point = dict(slot.point)
        if not point and state.trial is not None:
            point = dict(state.trial.params)  # a search tries the same values again
        self._study.enqueue_trial(point, user_attrs={"slot": slot.name})

    def _take(self) -> optuna.Trial | None:
        """The first waiting trial that no other worker takes first."""
        trials = self._trials()
        for trial in (t for t in trials if t.state == TrialState.WAITING):
            if trial.user_attrs.get("slot") not in self._slots:
                continue  # of a session that asked for more trials
            number = self.trial_id(trial)
            # First the heartbeat: a worker that dies right after the claim must be missed.
            self._storage.record_heartbeat(number)
            try:
                if not self._storage.set_trial_state_values(number, TrialState.RUNNING):
                    continue
                if "withdrawn" in trial.user_attrs or _better(trial, trials):
                    self._close(number, TrialState.FAIL, {"withdrawn": True})
                    continue
                self._study.sampler = self._sampler(trial)
                claimed = optuna.Trial(self._study, number)
                for name, distribution in self._dimensions(trial).items():
                    _suggest(claimed, name, distribution)
            except UpdateFinishedTrialError:
                continue  # this process slept for so long that it was taken for dead
            return claimed
        return None

    def _dimensions(self, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What a point fixes is all that it has; a search has every dimension."""
        slot = self._slots[trial.user_attrs["slot"]]
        return {n: d for n, d in self._distributions.items() if not slot.point or n in slot.point}

    def _sampler(self, trial: FrozenTrial) -> BaseSampler:
        if any(slot.point for slot in self._slots.values()):
            choices = {
                name: found.choices
                for name, found in self._distributions.items()
                if isinstance(found, CategoricalDistribution)
            }
            return GridSampler(choices, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Running trials count as bad for a moment, so that workers look at different places.
            return TPESampler(seed=trial.number, constant_liar=True)

    @property
    def heartbeat(self) -> int:
        """Seconds between two signs of life, the same for all workers of the study."""
        return int(self._storage.get_heartbeat_interval() or 1)

    def trial_id(self, trial: optuna.Trial | FrozenTrial) -> int:
        """The database's number of a trial, for its heart; asks nobody, so it cannot fail."""
        return int(trial._trial_id)

    def finish(
        self, trial: optuna.Trial, values: Sequence[float], facts: Mapping[str, Any]
    ) -> bool:
        """Close a trial with its result; False if it was given to somebody else meanwhile.

        Raises:
            BadInput: a value that is no number; the study could not be read any more.
        """
        if not all(map(math.isfinite, values)):
            raise BadInput(f"the objectives of the trial are {list(values)}; they must be numbers")
        # One attribute: each is a transaction of its own.
        return self._close(self.trial_id(trial), TrialState.COMPLETE, {"facts": facts}, values)

    def fail(self, trial: optuna.Trial, error: str) -> None:
        """Close a trial that cannot be done; it is not tried again by itself."""
        self._close(self.trial_id(trial), TrialState.FAIL, {"error": error})

    def release(self, trial: optuna.Trial) -> None:
        """Give a trial back unfinished: another worker, or a later one, goes on with it."""
        self._close(self.trial_id(trial), TrialState.FAIL, {"released": True})

    def _close(
        self,
        number: int,
        state: TrialState,
        facts: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> bool:
        with speaking_of(self._url):
            try:
                for name, value in facts.items():
                    self._storage.set_trial_user_attr(number, name, value)
                self._storage.set_trial_state_values(number, state, values)
            except UpdateFinishedTrialError:
                return False
        return True

    def _bury(self) -> None:
        """Mark the trials of dead workers as failed, which makes their slots open again."""
        with speaking_of(self._url), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)

    def states(self) -> dict[str, State]:
        """How far every slot is, in the order of the slots."""
        with speaking_of(self._url):
            return self._states()

    def front(self) -> set[int]:
        """Numbers of the done trials that no other one beats in every objective."""
        with speaking_of(self._url):
            return {trial.number for trial in self._study.best_trials}

    def _states(self) -> dict[str, State]:
        found: dict[str, list[FrozenTrial]] = {name: [] for name in self._slots}
        for trial in self._trials():
            if (name := trial.user_attrs.get("slot")) in found:
                found[name].append(trial)
        return {name: _state(trials) for name, trials in found.items()}

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _state(trials: Sequence[FrozenTrial]) -> State:
    """Of one slot's attempts, by number."""
    trials = [t for t in trials if "withdrawn" not in t.user_attrs]
    ended = [t for t in trials if t.state == TrialState.FAIL]
    words: tuple[tuple[TrialState, Status], ...] = (
        (TrialState.COMPLETE, "done"),
        (TrialState.RUNNING, "running"),
        (TrialState.WAITING, "waiting"),
    )
    for state, word in words:
        for trial in trials:
            if trial.state == state:
                return State(word, trial, len(ended))
    last = ended[-1] if ended else None
    lost = [t for t in ended if not t.user_attrs.keys() & {"error", "released"}]
    failed = last is not None and ("error" in last.user_attrs or len(lost) >= LOST)
    return State("failed" if failed else "open", last, len(ended))


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Let the queue, or the sampler, give a trial the value of ``name``."""
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _better(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether another living attempt at the same slot has a lower number."""
    slot = trial.user_attrs.get("slot")
    return any(
        other.number < trial.number
        and other.user_attrs.get("slot") == slot
        and other.state != TrialState.FAIL
        and "withdrawn" not in other.user_attrs
        for other in trials
    )


def _differs(name: str, part: str, there: Any, here: Any) -> str:
    """Why a study is refused, in one line."""
    if part == "images" and isinstance(there, dict) and isinstance(here, dict):
        task = next(t for t in sorted(there.keys() | here.keys()) if there.get(t) != here.get(t))
        return (
            f"study {name!r} was started with other images or labels of {task}; put them back as "
            f"they were, or give another --study and --out"
        )
    if isinstance(there, dict) and isinstance(here, dict):
        part_of = {k for k in there.keys() | here.keys() if there.get(k) != here.get(k)}
        there, here = ({k: v[k] for k in sorted(part_of & v.keys())} for v in (there, here))
    return (
        f"study {name!r} has another search space ({part}: {_short(there)} there, {_short(here)} "
        f"now); repeat it as it was, or give another --study: trials that both have are found "
        f"under the same --out and not repeated"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
