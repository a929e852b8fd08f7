"""Signals at any moment of a call: handlers that use the API, stops, and kills of those asleep.

Whatever sets a signal handler or a timer here does so in a forked child.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, Store
from tests.procs.control import (
    READY_SLEEPERS,
    alone,
    control,
    forked,
    poke,
    resume,
    start,
    states,
    stop,
    stopped_owner,
    until,
    wait_for,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

DATA = b"\xa1x"
MANY = [{"metadata": {"name": f"many-{n}"}, "fill": "x" * 50} for n in range(3000)]


# --- a storm of handlers ------------------------------------------------------------------------


class Storm:
    """A timer whose handler, each millisecond, calls ``step`` until the end of the block."""

    def __init__(self, step: Callable[[int], object]) -> None:
        self._step = step
        self._busy = False
        self.count = 0

    def _handle(self, *_: object) -> None:
        if self._busy:
            return  # the handler is slower than the timer
        self._busy = True
        self._step(self.count)
        self.count += 1
        self._busy = False

    def __enter__(self) -> Storm:
        signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def until(self, count: int, work: Callable[[], object]) -> None:
        """Do the work again and again until the handler has run so often."""
        while self.count < count:
            work()


def item(n: int) -> dict[str, Any]:
    return {"metadata": {"name": f"item-{n}"}}


def name_of(obj: Any) -> str:
    return str(obj["metadata"]["name"])


CALLS: dict[str, Callable[[Store, FIFO], Any]] = {
    "add": lambda store, fifo: store.add(MANY[0]),
    "add_many": lambda store, fifo: store.add_many(MANY[:200]),
    "replace": lambda store, fifo: store.replace(MANY),
    "delete": lambda store, fifo: store.delete(MANY[1]),
    "list": lambda store, fifo: store.list(),
    "items": lambda store, fifo: list(store.items()),
    "get": lambda store, fifo: store.get_by_key("many-2"),
    "get large": lambda store, fifo: store.get_raw("large"),
    "check": lambda store, fifo: store.check(),
    "wait_for_change": lambda store, fifo: store.wait_for_change(store.version),
    "pop": lambda store, fifo: fifo.pop(),
    "pop_many": lambda store, fifo: fifo.pop_many(5),
    "attach": lambda store, fifo: Store.attach(store.name).close(),
    "create": lambda store, fifo: create_and_unlink(),
}


def create_and_unlink() -> None:
    with Store.create(capacity="1MiB") as made:
        made.unlink()


@pytest.mark.parametrize("call", CALLS)
def test_handlers_that_call_the_api_inside_a_call(store: Store, fifo: FIFO, call: str) -> None:
    """A timer's handler writes, reads and pops through the handles whose calls it interrupts: no
    call fails, and every item is popped once."""
    store.replace(MANY)
    store.add_raw("large", bytes([0xC6]) + (2 << 20).to_bytes(4, "big") + bytes(2 << 20))

    def process() -> None:
        popped: list[str] = []
        numbers = itertools.count()

        def step(_: int) -> None:
            store.add_raw("by handler", DATA)
            assert store.get_by_key("by handler") == "x"
            store.list()
            for _ in range(2):  # one for the pop that was interrupted, if one was
                fifo.add(item(next(numbers)))
            with contextlib.suppress(queue.Empty):
                popped.append(name_of(fifo.pop(0)))

        def work() -> None:
            got = CALLS[call](store, fifo)
            if call == "pop":
                popped.append(name_of(got))
            elif call == "pop_many":
                popped.extend(map(name_of, got))

        with Storm(step) as storm:
            storm.until(100, work)
        popped += fifo.list_keys()
        assert sorted(popped) == sorted(f"item-{n}" for n in range(next(numbers)))

    assert forked(process) == 0
    assert store.check() == fifo.check() == []


def test_a_storm_between_processes(fifo: FIFO) -> None:
    """Producers and consumers under a timer each: every item is delivered once."""
    ours, theirs = multiprocessing.Pipe()
    each = 500

    def produce(number: int) -> None:
        with Storm(lambda _: fifo.qsize()):
            for n in range(each):
                fifo.add_raw(f"{number}-{n}", DATA)

    def consume() -> None:
        got = []
        with Storm(lambda _: fifo.list_keys()), contextlib.suppress(shmcache.ShutDown):
            while True:
                got.append(fifo.pop_raw()[0])
        theirs.send(got)

    consumers = [start(consume) for _ in range(3)]
    producers = [start(lambda number=number: produce(number)) for number in range(2)]  # type: ignore[misc]
    assert [wait_for(pid) for pid in producers] == [0, 0]
    fifo.shutdown()
    got = [key for _ in consumers for key in ours.recv()]
    assert [wait_for(pid) for pid in consumers] == [0, 0, 0]
    assert sorted(got) == sorted(f"{a}-{b}" for a in range(2) for b in range(each))


def test_growth_under_a_storm(name: str) -> None:
    """A timer of a kilohertz does not keep an arena from growing to its capacity."""

    def process() -> None:
        with Store.create(name, capacity="64MiB") as store, Storm(lambda _: store.version) as storm:
            n = 0
            with contextlib.suppress(shmcache.CapacityError):
                for n in itertools.count():
                    store.add_raw(f"k{n}", bytes(4 << 20))
            assert n >= 10
            storm.until(5, lambda: store.add_raw("k0", bytes(1)))
            assert store.check() == []

    assert forked(process) == 0


# --- handlers that raise ------------------------------------------------------------------------

# Calls that would never return by themselves, and how one sees that a thread sleeps in them.
ENDLESS: dict[str, Callable[[Store, FIFO], object]] = {
    "Store.wait_for_change": lambda store, fifo: store.wait_for_change(store.version),
    "Store.wait_for_sync": lambda store, fifo: store.wait_for_sync(),
    "FIFO.wait_for_change": lambda store, fifo: fifo.wait_for_change(fifo.version),
    "FIFO.wait_for_sync": lambda store, fifo: fifo.wait_for_sync(),
}


def asleep(handle: Store) -> bool:
    seen = control(handle.name)
    return seen.change_sleepers or seen.ready_sleepers


@pytest.mark.parametrize("call", ENDLESS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
def test_a_raising_handler_leaves_an_endless_wait(
    store: Store, fifo: FIFO, call: str, error: type[BaseException]
) -> None:
    """Waits without a timeout, for what never happens, end with the exception of a handler; the
    handle is as good as before."""

    def process() -> None:
        def raises(*_: object) -> None:
            raise error

        signal.signal(signal.SIGUSR1, raises)
        with pytest.raises(error):
            ENDLESS[call](store, fifo)
        store.add_raw("key", DATA)
        fifo.add_raw("key", DATA)
        assert (store.get_by_key("key"), fifo.pop()) == ("x", "x")

    pid = start(process)
    until(lambda: asleep(fifo if "FIFO" in call else store))
    os.kill(pid, signal.SIGUSR1)
    assert wait_for(pid) == 0


def test_a_raising_handler_leaves_the_wait_for_the_lock(store: Store) -> None:
    """A write that waits for the lock of a stopped owner ends with the exception of a handler, and
    nothing is written."""

    def process() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Store.attach(store.name, writable=True, lock_timeout=1e9) as patient:
            with pytest.raises(KeyboardInterrupt):
                patient.add_raw("key", DATA)
            assert "key" not in patient

    with stopped_owner(store.name, store.check):
        pid = start(process)
        until(lambda: control(store.name).waiters)
        os.kill(pid, signal.SIGINT)
        assert wait_for(pid) == 0
    assert store.list_keys() == []


# --- stops and kills of consumers ---------------------------------------------------------------


class Consumers:
    """Processes that pop until the queue is shut down, and tell of each item."""

    def __init__(self, fifo: FIFO) -> None:
        self._fifo = fifo
        self._ours, self._theirs = multiprocessing.Pipe(duplex=False)
        self.living: list[int] = []

    def start(self) -> int:
        """The pid of another one, which sleeps in pop, or would if nothing were queued."""
        ready, tell = multiprocessing.Pipe(duplex=False)

        def consume() -> None:
            tell.send("ready")
            with contextlib.suppress(shmcache.ShutDown):
                while True:
                    # In one system call, so that a kill leaves the pipe to the others.
                    os.write(self._theirs.fileno(), f"{self._fifo.pop_raw()[0]}\n".encode())

        self.living.append(start(consume))
        assert ready.recv() == "ready"
        until(lambda: states(self.living[-1]) == ["S"])
        return self.living[-1]

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        wait_for(pid)
        self.living.remove(pid)

    def next(self) -> str:
        """What one of them has popped."""
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(self._ours.fileno(), 1)
        return text.decode().strip()

    def end(self) -> None:
        """Shut the queue down and wait until they have popped the rest and ended."""
        self._fifo.shutdown()
        assert [wait_for(pid) for pid in self.living] == [0] * len(self.living)


@pytest.fixture
def consumers(fifo: FIFO) -> Iterator[Consumers]:
    made = Consumers(fifo)
    yield made
    made.end()
    assert fifo.empty()


def test_stopped_and_continued_sleepers(fifo: FIFO, consumers: Consumers) -> None:
    """Consumers that are stopped and continued between all items pop every item once."""
    pids = [consumers.start() for _ in range(4)]
    got = []
    for n in range(400):
        pid = pids[n % 3]  # the fourth is never stopped
        stop(pid)
        fifo.add_raw(f"item-{n}", DATA)
        if n % 2:
            fifo.add_raw(f"item-{n}-b", DATA)
            got.append(consumers.next())
        resume(pid)
        got.append(consumers.next())
    assert len(set(got)) == len(got) == 600


def test_the_one_just_woken_is_killed(fifo: FIFO, consumers: Consumers) -> None:
    """An item whose consumer is killed between waking and taking reaches another that slept."""
    pid, other = consumers.start(), consumers.start()
    for each in (pid, other):
        stop(each)
    fifo.add_raw("item", DATA)
    with stopped_owner(fifo.name, fifo.check):
        resume(pid)
        until(lambda: control(fifo.name).waiters)
        consumers.kill(pid)
        assert fifo.qsize() == 1
        resume(other)
    assert consumers.next() == "item"


def test_the_one_just_woken_is_stopped_and_continued(fifo: FIFO, consumers: Consumers) -> None:
    """A consumer that is stopped and continued fifty times between waking and taking takes its
    item once."""
    pid = consumers.start()
    stop(pid)
    fifo.add_raw("item", DATA)
    with stopped_owner(fifo.name, fifo.check):
        resume(pid)
        until(lambda: control(fifo.name).waiters)
        for _ in range(50):
            stop(pid)
            resume(pid)
        assert fifo.qsize() == 1
    assert consumers.next() == "item"


def test_a_wake_up_that_dies_with_its_process(fifo: FIFO, consumers: Consumers) -> None:
    """A sleeper whom nobody wakes for an item, because the wake-up is lost, pops it all the
    same."""
    sleeper = consumers.start()
    lost = 0
    for n in range(100):
        until(lambda: states(sleeper) == ["S"])
        # As a wake-up leaves it that was given to a process which is dead by now.
        poke(fifo.name, READY_SLEEPERS, 0)
        before = control(fifo.name).ready_word
        fifo.add_raw(f"item-{n}", DATA)
        lost += control(fifo.name).ready_word == before
        assert consumers.next() == f"item-{n}"
        if lost == 5:
            break
    assert lost == 5


def test_many_sleepers_and_one_producer(fifo: FIFO, consumers: Consumers) -> None:
    """64 sleeping consumers and one producer: every item is delivered once."""
    for _ in range(64):
        consumers.start()
    for n in range(1000):
        fifo.add_raw(f"item-{n}", DATA)
    got = [consumers.next() for _ in range(1000)]
    assert sorted(got) == sorted(f"item-{n}" for n in range(1000))


def test_hundreds_of_killed_sleepers(fifo: FIFO, consumers: Consumers) -> None:
    """After 300 consumers have worked, slept and been killed, a thousand items are queued and
    popped as ever."""
    for round_ in range(30):
        for n in range(10):
            pid = consumers.start()
            fifo.add_raw(f"{round_}-{n}", DATA)
            assert consumers.next() == f"{round_}-{n}"
        for pid in list(consumers.living):
            consumers.kill(pid)
        alone(fifo)
    for n in range(1000):
        fifo.add_raw(f"item-{n}", DATA)
        assert fifo.pop_raw() == (f"item-{n}", DATA)


def test_killed_waiters_for_changes(store: Store) -> None:
    """Readers killed while they wait for a change hinder neither the writer nor those that wait
    beside them."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def wait() -> None:
        version = store.version
        theirs.send("ready")
        store.wait_for_change(version)

    for _ in range(5):
        pids = [start(wait) for _ in range(6)]
        for _ in pids:
            assert ours.recv() == "ready"
        until(lambda pids=pids: all(states(pid) == ["S"] for pid in pids))  # type: ignore[misc]
        for pid in pids[::2]:
            os.kill(pid, signal.SIGKILL)
        store.add_raw("key", DATA)
        assert [wait_for(pid) for pid in pids] == [-signal.SIGKILL, 0] * 3
