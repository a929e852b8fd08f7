"""A FIFO with claims beside a model, through random sequences of its public operations.

As in test_machines.py, whose parts are used here. Several users in one process; the death of one
is the close of its handle, for that is all that the kernel sees of either. A lease that runs out is
one of a nanosecond, and the clock that the core looks at is waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import time
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
from shmcache import FIFO
from shmcache.claims import Claim
from tests.procs.control import until
from tests.properties.test_machines import CAPACITY, CODEC, KEY_FUNC, LARGE, outcome, shown

OWNERS = 3
BROKEN = b"\xc1"  # no msgpack
NO_LEASE_LEFT = 1e-9
CLOCK_MONOTONIC_COARSE = 6


# --- model --------------------------------------------------------------------------------------


@dataclass
class Item:
    """A version of a key, queued or waiting for the end of a claim."""

    data: bytes
    place: int
    failures: int


@dataclass
class Held:
    """An item in flight, or a dead letter."""

    key: str
    item: Item
    owner: int
    number: int
    """Of the claim."""
    cancelled: bool = False


class Model:
    """What a FIFO with claims should be. Raises what shmcache raises."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.items: dict[str, Item] = {}  # what readers see
        self.flying: dict[str, Held] = {}  # in the order of the claims
        self.dead: dict[str, Held] = {}
        self.numbers = itertools.count(1)  # of places
        self.claims = itertools.count(1)
        self.pops = 0
        self.shut = False
        self.asker = 0
        """Whose call it is."""

    def queued(self) -> list[str]:
        waiting = [key for key in self.items if key not in self.flying]
        return sorted(waiting, key=lambda key: self.items[key].place)

    # --- producers ---

    def put(self, key: str, data: bytes) -> None:
        if key in self.items:
            self.items[key].data = data
        else:
            self.items[key] = Item(data, next(self.numbers), 0)

    def add(self, obj: Any) -> None:
        self.put(obj["key"], CODEC.encode(obj))

    update = add

    def add_many(self, objs: list[Any]) -> None:
        for obj in objs:
            self.add(obj)

    def add_raw(self, key: str, data: bytes) -> None:
        self.put(key, data)

    def add_if_not_present(self, obj: Any) -> bool:
        if obj["key"] in self.items:
            return False
        self.add(obj)
        return True

    def delete_by_key(self, key: str) -> None:
        self.items.pop(key, None)
        if key in self.flying:
            self.flying[key].cancelled = True

    def replace(self, objs: list[Any], resource_version: str) -> None:
        self.items = {}
        self.add_many(objs)
        for held in self.flying.values():
            held.cancelled = True

    def shutdown(self, immediate: bool) -> None:
        self.shut = True
        for key in [*self.items, *self.flying] if immediate else []:
            self.delete_by_key(key)

    # --- consumers ---

    def first(self) -> str:
        if self.queued():
            return self.queued()[0]
        others = any(  # who may bring something back
            held.owner != self.asker and (key in self.items or not held.cancelled)
            for key, held in self.flying.items()
        )
        raise queue.Empty if others or not self.shut else shmcache.ShutDown

    def pop_raw(self, timeout: float) -> tuple[str, bytes]:
        key = self.first()
        self.pops += 1
        return key, self.items.pop(key).data

    def pop_many(self, max_items: int, timeout: float) -> list[Any]:
        count = min(max_items, max(len(self.queued()), 1))
        taken = [self.pop_raw(timeout)[1] for _ in range(count)]
        if BROKEN in taken:
            raise shmcache.CodecError("cannot decode")
        return [CODEC.decode(data) for data in taken]

    def claim(self, owner: int) -> Held:
        self.asker = owner
        key = self.first()
        held = Held(key, self.items.pop(key), owner, next(self.claims))
        self.flying[key] = held
        if held.item.data == BROKEN:
            self.back(held, 1)
            raise shmcache.CodecError("cannot decode")
        return held

    def holds(self, held: Held) -> bool:
        return self.flying.get(held.key) is held

    def done(self, held: Held) -> None:
        del self.flying[held.key]
        self.pops += 1

    def back(self, held: Held, failures: int) -> None:
        """The claim has failed (1), or is released (0)."""
        key, item = held.key, held.item
        del self.flying[key]
        item.failures += failures
        spent = failures > 0 and item.failures == self.max_attempts
        if key in self.items:
            if not held.cancelled:
                self.items[key].place = item.place
                self.items[key].failures = 0 if spent else item.failures
        elif held.cancelled:
            pass
        elif spent:
            self.dead[key] = held
        else:
            self.items[key] = item

    def dies(self, owner: int) -> None:
        for held in [each for each in self.flying.values() if each.owner == owner]:
            self.back(held, 1)

    # --- dead letters ---

    def retry(self, key: str) -> bool:
        if key not in self.dead:
            return False
        letter = self.dead.pop(key)
        if key not in self.items and key not in self.flying:
            self.items[key] = Item(letter.item.data, next(self.numbers), 0)
        return True

    def drop(self, key: str) -> bool:
        return self.dead.pop(key, None) is not None

    # --- what is seen ---

    def look(self) -> dict[str, Any]:
        by_place = sorted(self.items, key=lambda key: self.items[key].place)
        dead = sorted(self.dead.values(), key=lambda held: held.number)
        return {
            "content": [(key, shown(self.items[key].data)) for key in by_place],
            "len": len(self.items),
            "qsize": len(self.queued()),
            "empty": not self.queued(),
            "in_flight": [
                (key, shown(CODEC.decode(held.item.data)), held.item.failures + 1)
                for key, held in self.flying.items()
            ],
            "dead_letters": [(d.key, shown(d.item.data), d.item.failures) for d in dead],
            "pops": self.pops,
            "violations": [],
        }

    def size(self) -> int:
        versions = [*self.items.values()]
        versions += [held.item for held in (*self.flying.values(), *self.dead.values())]
        return sum(len(item.data) for item in versions)


# --- machine ------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c", "ns/d"])
VALUES = st.integers(0, 9) | st.text(max_size=3) | LARGE
OBJECTS = st.fixed_dictionaries({"key": KEYS, "value": VALUES})
BATCHES = st.lists(OBJECTS, max_size=5)
USERS = st.integers(0, OWNERS - 1)
CHOICE = st.integers(0, 5)


class Failed(Exception):
    """What a block raises whose work has failed."""


class Interrupted(BaseException):
    """What a block raises that is interrupted."""


ENDS: dict[str, BaseException | None] = {
    "done": None,
    "failed": Failed(),
    "released": Interrupted(),
}


@dataclass
class Pair:
    """A claim, and what the model knows of it."""

    claim: Claim[Any]
    held: Held
    ended: bool = False


class ClaimsMachine(RuleBasedStateMachine):
    kind: ClassVar[type[FIFO]] = FIFO

    @initialize(max_attempts=st.sampled_from([0, 1, 2]), objs=BATCHES)
    def begin(self, max_attempts: int, objs: list[Any]) -> None:
        self.model = Model(max_attempts)
        self.owner = self.kind.create(
            capacity=CAPACITY, key_func=KEY_FUNC, max_attempts=max_attempts
        )
        self.reader = self.kind.attach(self.owner.name, writable=False, key_func=KEY_FUNC)
        self.users = [self.attached() for _ in range(OWNERS)]
        self.pairs: list[Pair] = []
        self.both(0, "add_many", objs)

    def attached(self) -> FIFO:
        return self.kind.attach(self.owner.name, key_func=KEY_FUNC)

    def teardown(self) -> None:
        if hasattr(self, "owner"):
            self.owner.unlink()
            for handle in (self.owner, self.reader, *self.users):
                handle.close()

    def both(self, user: int, method: str, *args: Any) -> None:
        """The user and the model do the same and say the same, unless the arena is full."""
        self.model.asker = user
        said = outcome(self.users[user], method, *args)
        if said == "CapacityError":
            assert self.model.size() + len(repr(args)) > CAPACITY // 4
        else:
            assert said == outcome(self.model, method, *args)

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        if not hasattr(self, "owner"):
            return
        reader = self.reader
        stats = reader._core.stats()
        expected = self.model.look()
        assert expected == {
            "content": [(key, shown(reader.get_raw(key))) for key in reader.list_keys()],
            "len": len(reader),
            "qsize": reader.qsize(),
            "empty": reader.empty(),
            "in_flight": [(one.key, shown(one.item), one.attempt) for one in reader.in_flight()],
            "dead_letters": [
                (key, shown(data), failures) for key, data, failures, *_ in reader._core.held(True)
            ],
            "pops": stats["pops"],
            "violations": self.owner.check(),
        }
        assert stats["in_flight"] == len(expected["in_flight"])
        assert stats["dead_letters"] == len(expected["dead_letters"])

    # --- producers ---

    @rule(user=USERS, how=st.sampled_from(["add", "update", "add_if_not_present"]), obj=OBJECTS)
    def add(self, user: int, how: str, obj: Any) -> None:
        self.both(user, how, obj)

    @rule(user=USERS, key=KEYS)
    def add_what_is_broken(self, user: int, key: str) -> None:
        self.both(user, "add_raw", key, BROKEN)

    @rule(user=USERS, objs=BATCHES)
    def add_many(self, user: int, objs: list[Any]) -> None:
        self.both(user, "add_many", objs)

    @rule(user=USERS, objs=BATCHES)
    def replace(self, user: int, objs: list[Any]) -> None:
        self.both(user, "replace", objs, "1")

    @rule(user=USERS, key=KEYS)
    def delete(self, user: int, key: str) -> None:
        self.both(user, "delete_by_key", key)

    @rule(user=USERS, immediate=st.sampled_from([False, False, False, True]))
    def shutdown(self, user: int, immediate: bool) -> None:
        self.both(user, "shutdown", immediate)

    # --- consumers ---

    @rule(user=USERS)
    def pop(self, user: int) -> None:
        self.both(user, "pop_raw", 0)

    @rule(user=USERS, max_items=st.integers(1, 4))
    def pop_many(self, user: int, max_items: int) -> None:
        self.both(user, "pop_many", max_items, 0)

    @rule(user=USERS, lease=st.sampled_from([None, 1e6]))
    def claim(self, user: int, lease: float | None) -> None:
        self.claims(user, lease)

    def claims(self, user: int, lease: float | None) -> Pair | None:
        """The user's new claim, if both say that there is one."""
        fifo = self.users[user]
        try:
            held = self.model.claim(user)
        except (queue.Empty, shmcache.ShutDown, shmcache.CodecError) as error:
            with pytest.raises(type(error)):
                fifo.claim(0, lease)
            return None
        claim = fifo.claim(0, lease)
        assert (claim.key, shown(claim.item), claim.attempt) == (
            held.key,
            shown(CODEC.decode(held.item.data)),
            held.item.failures + 1,
        )
        pair = Pair(claim, held)
        self.pairs.append(pair)
        return pair

    @rule(choice=CHOICE, how=st.sampled_from([*ENDS]), as_block=st.booleans())
    def end(self, choice: int, how: str, as_block: bool) -> None:
        """The end of a claim, which may have ended, or be lost, already."""
        if not self.pairs:
            return
        pair = self.pairs[-1 - choice % len(self.pairs)]
        expected = self.ended(pair, how)
        if as_block:
            error = ENDS[how]
            with contextlib.ExitStack() as raises:
                if expected or error:
                    raises.enter_context(pytest.raises(expected or type(error)))
                with pair.claim as item:
                    assert shown(item) == shown(pair.claim.item)
                    if error:
                        raise error
        else:
            call = {"done": pair.claim.done, "failed": pair.claim.fail}
            with pytest.raises(expected) if expected else contextlib.nullcontext():
                call.get(how, pair.claim.release)()

    def ended(self, pair: Pair, how: str) -> type[Exception] | None:
        """The same end in the model, and what it raises."""
        if pair.ended:
            return None
        if pair.claim._core.closed:
            return shmcache.ClosedError
        pair.ended = True
        if not self.model.holds(pair.held):
            return shmcache.ClaimLostError if how == "done" else None
        if how == "done":
            self.model.done(pair.held)
        else:
            self.model.back(pair.held, how == "failed")
        return None

    @rule(choice=CHOICE, lease=st.sampled_from([None, 1000, 0.5e6]))
    def renew(self, choice: int, lease: float | None) -> None:
        if not self.pairs:
            return
        pair = self.pairs[-1 - choice % len(self.pairs)]
        if pair.ended or not self.model.holds(pair.held):
            with pytest.raises((shmcache.ClaimLostError, shmcache.ClosedError)):
                pair.claim.renew(lease)
        else:
            pair.claim.renew(lease)

    @rule(
        user=USERS,
        choice=CHOICE,
        method=st.sampled_from(
            ["in_flight", "dead_letters", "pop_raw", "pop_many", "claim", "end"]
        ),
    )
    def lease_runs_out(self, user: int, choice: int, method: str) -> None:
        """A lease runs out, and this is what happens next."""
        held = [pair for pair in self.pairs if self.model.holds(pair.held) and not pair.ended]
        if not held:
            return
        pair = held[choice % len(held)]
        pair.claim.renew(NO_LEASE_LEFT)
        now = time.monotonic_ns()
        while time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) <= now:
            pass
        if method == "end":  # nobody has looked: it is still ours
            self.end(-1 - self.pairs.index(pair), "done", False)
            return
        self.model.back(pair.held, 1)
        if method == "claim":
            self.claims(user, None)
        elif method in ("in_flight", "dead_letters"):
            self.users[user]._core.held(method == "dead_letters")
        else:
            self.both(user, method, *([2, 0] if method == "pop_many" else [0]))

    @rule(user=USERS, repaired=st.booleans())
    def die(self, user: int, repaired: bool) -> None:
        """A user is gone with all its claims, and another takes its place."""
        before = len(self.model.flying)
        self.users[user].close()
        self.users[user] = self.attached()
        self.model.dies(user)
        if repaired:
            self.owner._core.testing_repair()
            self.owner.in_flight()
        elif len(self.model.flying) < before:
            until(lambda: len(self.owner.in_flight()) == len(self.model.flying))

    @rule()
    def repair(self) -> None:
        self.owner._core.testing_repair()

    # --- dead letters ---

    @rule(user=USERS, method=st.sampled_from(["retry", "drop"]), key=KEYS)
    def settle(self, user: int, method: str, key: str) -> None:
        self.both(user, method, key)


def run(machine: type[ClaimsMachine], times: int = 1, **options: Any) -> None:
    examples = settings.default.max_examples * times
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, **options))


def test_every_sequence_with_claims_is_as_in_the_model() -> None:
    """Three users in one process, who die now and then: whatever they do, all see what the model
    says."""
    run(ClaimsMachine)


# --- the machine can fail -----------------------------------------------------------------------


class NeverFails(FIFO):
    """Releases what has failed."""

    def claim(self, timeout: float | None = None, lease: float | None = None) -> Claim[Any]:
        claim = super().claim(timeout, lease)
        claim.__class__ = Lenient
        return claim


class Lenient(Claim[Any]):
    __slots__ = ()
    fail = Claim.release


class BringsBackTheDeleted(FIFO):
    def delete_by_key(self, key: str) -> None:
        if key in self:
            super().delete_by_key(key)


class LosesWhatTheDeadHad(FIFO):
    def close(self) -> None:
        for held in [] if self.closed or not self.writable else self._core.held(False):
            self.delete_by_key(held[0])
        super().close()


class RetriesInPlaceOfTheNewer(FIFO):
    def retry(self, key: str) -> bool:
        self.delete_by_key(key)
        return super().retry(key)


@pytest.mark.parametrize(
    "fault", [NeverFails, BringsBackTheDeleted, LosesWhatTheDeadHad, RetriesInPlaceOfTheNewer]
)
def test_planted_faults_are_found(fault: type[FIFO]) -> None:
    """A FIFO with one fault in what it does with claims does not get past the machine."""
    faulty = type("Faulty", (ClaimsMachine,), {"kind": fault})
    # What it says where the model says something else is an error of ours, at times.
    with pytest.raises((AssertionError, queue.Empty, shmcache.ShmCacheError)):
        # The first sequence that shows it is enough.
        run(faulty, times=50, phases=[Phase.generate], report_multiple_bugs=False)
