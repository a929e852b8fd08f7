"""A WorkQueue beside a model, through random sequences of its public operations.

As in test_claims.py: several users in one process; the death of one is the close of its handle.
What waits for its time waits for thousands of seconds, so in the model only the order of the times
counts; what is to come due is given a delay of nothing, and looked for until it has.
"""

from __future__ import annotations

import contextlib
import itertools
import queue as stdlib_queue
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import shmcache
from shmcache import FastSlow, WorkQueue
from shmcache.workqueue import Work
from tests.procs.control import until

OWNERS = 3
LIMITER = FastSlow(3000.0, 5000.0, 2)
NO_TIME = 1e-9


# --- model --------------------------------------------------------------------------------------


@dataclass
class Held:
    """A key with a worker."""

    owner: int
    place: int
    number: int
    """Of the claim."""


class Model:
    """What a WorkQueue should be: client-go's dirty and processing sets, and what waits."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.dirty: dict[str, int] = {}  # key: its place
        self.processing: dict[str, Held] = {}  # in the order of the claims
        self.delayed: dict[str, float] = {}  # key: when
        self.failures: Counter[str] = Counter()
        self.dead: dict[str, tuple[int, int]] = {}  # key: the number of its claim, its failures
        self.shut = False
        self.numbers = itertools.count(1)

    def queued(self) -> list[str]:
        return sorted(self.dirty, key=lambda key: self.dirty[key])

    def waiting(self) -> list[str]:
        return [key for key in self.queued() if key not in self.processing]

    def put(self, key: str) -> None:
        self.dirty.setdefault(key, next(self.numbers))

    def add(self, key: str) -> bool:
        if not self.shut:
            self.put(key)
        return not self.shut

    def add_after(self, key: str, delay: float) -> bool:
        if not self.shut:
            due = delay + next(self.numbers) * 1e-6  # added later, due later
            self.delayed[key] = min(due, self.delayed.get(key, due))
        return not self.shut

    def add_rate_limited(self, key: str) -> bool:
        self.failures[key] += 1
        return self.add_after(key, LIMITER.delay(self.failures[key] - 1, lambda rate, burst: 0.0))

    def comes_due(self, key: str) -> None:
        del self.delayed[key]
        self.put(key)

    def get(self, owner: int) -> str:
        for key in self.waiting():
            self.processing[key] = Held(owner, self.dirty.pop(key), next(self.numbers))
            return key
        others = any(held.owner != owner for held in self.processing.values())
        raise stdlib_queue.Empty if others or not self.shut else shmcache.ShutDown

    def done(self, key: str) -> None:
        del self.processing[key]

    def released(self, key: str) -> None:
        self.dirty[key] = self.processing.pop(key).place

    def failed(self, key: str) -> bool:
        """Its worker died, or it was the last attempt; whether it is a dead letter, or would be, if
        it had not been added meanwhile."""
        self.failures[key] += 1
        if not 0 < self.max_attempts <= self.failures[key]:
            self.released(key)
            return False
        if key in self.dirty:
            self.released(key)
        else:
            self.dead[key] = (self.processing.pop(key).number, self.failures[key])
        return True

    def retry(self, key: str) -> bool:
        if self.shut or self.dead.pop(key, None) is None:
            return False
        self.put(key)
        self.failures[key] = 0
        return True

    def drop(self, key: str) -> bool:
        return self.dead.pop(key, None) is not None


# --- machine ------------------------------------------------------------------------------------

KEYS = ["a", "b", "ns/c"]
KEY = st.sampled_from(KEYS)
USERS = st.integers(0, OWNERS - 1)


class Failed(Exception):
    """What a block raises whose work has failed."""


class Interrupted(BaseException):
    """What a block raises that is interrupted."""


ENDS: dict[str, BaseException | None] = {
    "done": None,
    "failed": Failed(),
    "released": Interrupted(),
}


class WorkQueueMachine(RuleBasedStateMachine):
    kind: ClassVar[type[WorkQueue]] = WorkQueue

    @initialize(max_attempts=st.sampled_from([0, 0, 1, 3]))
    def begin(self, max_attempts: int) -> None:
        self.model = Model(max_attempts)
        self.owner = self.kind.create(capacity="1MiB", max_attempts=max_attempts)
        self.reader = self.kind.attach(self.owner.name, writable=False)
        self.users = [self.attached() for _ in range(OWNERS)]
        self.steps: dict[str, Work] = {}  # of those with a worker, those in a block

    def attached(self) -> WorkQueue:
        return self.kind.attach(self.owner.name, rate_limiter=LIMITER)

    def teardown(self) -> None:
        if hasattr(self, "owner"):
            self.owner.unlink()
            for handle in (self.owner, self.reader, *self.users):
                handle.close()

    def both(self, user: int, method: str, *args: Any) -> None:
        assert getattr(self.users[user], method)(*args) == getattr(self.model, method)(*args)

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        if not hasattr(self, "owner"):
            return
        model, reader = self.model, self.reader
        assert {
            "queued": model.queued(),
            "len": len(model.waiting()),
            "in_flight": [(key, model.failures[key] + 1) for key in model.processing],
            "delayed": sorted(model.delayed, key=lambda key: model.delayed[key]),
            "failures": [model.failures[key] for key in KEYS],
            "dead": sorted((claim, key, count) for key, (claim, count) in model.dead.items()),
            "shut": model.shut,
            "violations": [],
        } == {
            "queued": reader.queued(),
            "len": len(reader),
            "in_flight": [(one.key, one.attempt) for one in reader.in_flight()],
            "delayed": [one.key for one in reader.delayed()],
            "failures": [reader.num_requeues(key) for key in KEYS],
            "dead": [
                (model.dead.get(one.key, (0, 0))[0], one.key, one.attempts)
                for one in reader.dead_letters()
            ],
            "shut": reader.shutting_down,
            "violations": self.owner.check(),
        }
        stats = reader.stats()
        assert (stats.in_flight, stats.delayed) == (len(model.processing), len(model.delayed))

    # --- producers ---

    @rule(user=USERS, key=KEY)
    def add(self, user: int, key: str) -> None:
        self.both(user, "add", key)

    @rule(user=USERS, key=KEY, delay=st.sampled_from([1000.0, 2000.0, 4000.0]))
    def add_after(self, user: int, key: str, delay: float) -> None:
        self.both(user, "add_after", key, delay)

    @rule(user=USERS, key=KEY)
    def add_rate_limited(self, user: int, key: str) -> None:
        self.both(user, "add_rate_limited", key)

    @rule(user=USERS, key=KEY)
    def comes_due(self, user: int, key: str) -> None:
        """What waits for its time has waited long enough."""
        if self.model.shut:
            return
        self.users[user].add_after(key, NO_TIME)
        self.model.add_after(key, 0.0)
        self.model.comes_due(key)
        until(lambda: len(self.owner) >= 0 and key not in [o.key for o in self.owner.delayed()])

    @rule(user=USERS, key=KEY)
    def forget(self, user: int, key: str) -> None:
        self.users[user].forget(key)
        self.model.failures[key] = 0

    # --- workers ---

    @rule(user=USERS, block=st.booleans(), lease=st.sampled_from([None, 1e6]))
    def get(self, user: int, block: bool, lease: float | None) -> None:
        step = self.users[user].work(0, lease)

        def take() -> str:
            return step.__enter__() if block else self.users[user].get(0, lease)

        try:
            key = self.model.get(user)
        except (stdlib_queue.Empty, shmcache.ShutDown) as error:
            with pytest.raises(type(error)):
                take()
            return
        assert take() == key
        if block:
            self.steps[key] = step

    @rule(key=KEY, how=st.sampled_from([*ENDS]))
    def end(self, key: str, how: str) -> None:
        """Somebody's work on a key ends, as it may."""
        held = self.model.processing.get(key)
        if held is None:
            return
        step = self.steps.pop(key, None)
        if step is None:
            self.users[held.owner].done(key)
            with pytest.raises(ValueError, match="no such key"):
                self.users[held.owner].done(key)
            self.model.done(key)
            return
        error = ENDS[how]
        step.__exit__(type(error) if error else None, error, None)
        if how == "released":
            self.model.released(key)
        elif how == "done":
            self.model.failures[key] = 0
            self.model.done(key)
        elif 0 < self.model.max_attempts <= self.model.failures[key] + 1:
            self.fails(key)
        else:
            self.model.add_rate_limited(key)
            self.model.done(key)

    def fails(self, key: str) -> None:
        """In the model; of what is over, the failures are gone but for those of its delay."""
        before = self.model.failures[key]
        if self.model.failed(key):
            left = self.owner.num_requeues(key)
            assert left == 0 or (key in self.model.delayed and left <= before)
            self.model.failures[key] = left

    @rule(user=USERS, block=st.booleans())
    def lease_runs_out(self, user: int, block: bool) -> None:
        """A lease runs out before the work ends, and the worker is told."""
        if not self.model.waiting():
            return
        key = self.model.get(user)
        step = self.users[user].work(0, NO_TIME)
        assert (step.__enter__() if block else self.users[user].get(0, NO_TIME)) == key
        until(lambda: key not in [one.key for one in self.owner.in_flight()])
        self.fails(key)
        with pytest.raises(shmcache.ClaimLostError):
            step.__exit__(None, None, None) if block else self.users[user].done(key)
        if block:
            step.__exit__(Failed, Failed(), None)
            step.__exit__(Interrupted, Interrupted(), None)

    @rule(user=USERS, repaired=st.booleans())
    def die(self, user: int, repaired: bool) -> None:
        """A user is gone with all its keys, and another takes its place."""
        self.users[user].close()
        self.users[user] = self.attached()
        lost = [key for key, held in self.model.processing.items() if held.owner == user]
        if repaired:
            self.owner._core.testing_repair()
        until(lambda: not {one.key for one in self.owner.in_flight()} & {*lost})
        for key in lost:
            self.steps.pop(key, None)
            self.fails(key)

    @rule()
    def repair(self) -> None:
        self.owner._core.testing_repair()

    @rule(user=USERS, method=st.sampled_from(["retry", "drop"]), key=KEY)
    def settle(self, user: int, method: str, key: str) -> None:
        self.both(user, method, key)

    @rule(user=USERS, how=st.sampled_from(["shutdown", "drain"]), really=st.integers(0, 4))
    def shutdown(self, user: int, how: str, really: int) -> None:
        if really:
            return
        self.model.shut = True
        if how == "shutdown":
            self.users[user].shutdown()
        else:
            idle = not self.model.dirty and not self.model.processing
            assert self.users[user].shutdown_with_drain(0) == idle


def run(machine: type[WorkQueueMachine], times: int = 1, **options: Any) -> None:
    examples = settings.default.max_examples * times
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, **options))


def test_every_sequence_is_as_in_the_model() -> None:
    """Three users in one process, who die now and then: whatever they do, all see what the model
    says."""
    run(WorkQueueMachine)


# --- the machine can fail -----------------------------------------------------------------------


class LaterTimeWins(WorkQueue):
    def add_after(self, key: str, delay: float) -> bool:
        known = {one.key: one.seconds for one in self.delayed()}
        if known.get(key, delay) < delay:
            return True
        return super().add_after(key, delay if delay < 10 else 2 * delay)


class ForgetsAtDone(WorkQueue):
    def done(self, key: str) -> None:
        super().done(key)
        self.forget(key)


class AddsAfterTheEnd(WorkQueue):
    def add(self, key: str) -> bool:
        return super().add(key) or super().add_after(key, 1) or True


class LosesWhatWasAddedAtWork(WorkQueue):
    def add(self, key: str) -> bool:
        if key in [one.key for one in self.in_flight()]:
            return not self.shutting_down
        return super().add(key)


class NeverGivesUp(WorkQueue):
    def dead_letters(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    "fault",
    [LaterTimeWins, ForgetsAtDone, AddsAfterTheEnd, LosesWhatWasAddedAtWork, NeverGivesUp],
)
def test_planted_faults_are_found(fault: type[WorkQueue]) -> None:
    """A WorkQueue with one fault does not get past the machine."""
    faulty = type("Faulty", (WorkQueueMachine,), {"kind": fault})
    with contextlib.ExitStack() as expects:
        expects.enter_context(pytest.raises((AssertionError, shmcache.ShmCacheError)))
        # The first sequence that shows it is enough.
        run(faulty, times=10, phases=[Phase.generate], report_multiple_bugs=False)
