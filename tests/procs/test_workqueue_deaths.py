"""Workers of a WorkQueue among others, that are killed at random moments: no key is with two, none
is lost."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
from collections.abc import Callable

import pytest

import shmcache
from shmcache import FastSlow, WorkQueue
from tests.procs.control import until, wait_for
from tests.procs.test_claim_deaths import Log, Starts, kill, log, started

__all__ = ["log", "started"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

WORKERS = 4
PRODUCERS = 3
KILLS = 40
KEYS = [f"key-{n}" for n in range(30)]


def work_on(queue: WorkQueue, log: Log) -> None:
    """Work until the queue is shut down; say when work on a key begins, and how it ends."""
    me, rng = os.getpid(), random.Random(os.getpid())
    with contextlib.suppress(shmcache.ShutDown):
        while True:
            with contextlib.suppress(LookupError), queue.work() as key:
                log.write("begin", me, key, queue.num_requeues(key))
                for _ in range(rng.randrange(4)):
                    len(queue)
                if rng.random() < 0.2:
                    log.write("fail", me, key)
                    raise LookupError
                log.write("end", me, key)


def produce(queue: WorkQueue, log: Log, seed: int, enough: mmap.mmap) -> None:
    """Add keys that others add too, now and a little later, until it is enough."""
    rng = random.Random(seed)
    while not enough[0]:
        key = rng.choice(KEYS)
        log.write("add", os.getpid(), key)  # before it happens
        if rng.random() < 0.5:
            queue.add(key)
        else:
            queue.add_after(key, rng.random() * 0.004)
        until(lambda: len(queue) < 10)


def judge(lines: list[list[str]]) -> list[str]:
    """What is wrong with a log of `add pid key`, written before the key is added, `begin pid key
    failures`, `end pid key`, `fail pid key`, and `kill pid`, which is written before the kill."""
    wrong = []
    open_by: dict[str, tuple[str, int]] = {}  # key: whose, and its failures
    undone: set[str] = set()  # added, and not begun since; or begun, and not yet ended well
    begun: set[str] = set()  # those of them that were begun since they were added
    killed: set[str] = set()
    for kind, pid, *words in lines:
        if kind == "kill":
            killed.add(pid)
            continue
        key = words[0]
        if kind == "add":
            undone.add(key)
            begun.discard(key)
        elif kind == "begin":
            failures = int(words[1])
            if key in open_by:
                other, before = open_by[key]
                if other not in killed:
                    wrong.append(f"{key} is with {other} and {pid}")
                if failures <= before:
                    wrong.append(f"{key}: {failures} failures after {before} and a death")
            open_by[key] = (pid, failures)
            begun.add(key)
        else:
            if open_by.pop(key, ("", 0))[0] != pid:
                wrong.append(f"{key} was ended by {pid}, which had not begun")
            if kind == "end" and key in begun:
                undone.discard(key)
    wrong += [f"{key} is still with {pid}" for key, (pid, _) in open_by.items()]
    return wrong + [f"{key} is lost" for key in sorted(undone)]


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_workers_among_others(name: str, log: Log, started: Starts, seed: int) -> None:
    """Whoever is killed, whenever: each key is worked on after its last add, and with success; no
    key is with two living workers, each death counts as a failure, and nothing stays behind."""
    rng = random.Random(seed)
    limiter = FastSlow(0.001, 0.001, 0)
    with (
        WorkQueue.create(name, capacity="1MiB", rate_limiter=limiter) as queue,
        mmap.mmap(-1, 1) as enough,
    ):

        def worker() -> int:
            return started(lambda: work_on(queue, log))

        workers = [worker() for _ in range(WORKERS)]
        producers = [
            started(lambda number=number: produce(queue, log, number, enough))  # type: ignore[misc]
            for number in range(PRODUCERS)
        ]
        for _ in range(KILLS):
            size = len(log) + rng.randrange(200)
            until(lambda size=size: len(log) >= size)  # type: ignore[misc]
            for _ in range(rng.randrange(2000)):
                pass
            victim = rng.randrange(WORKERS)
            log.write("kill", workers[victim])
            kill(workers[victim])
            workers[victim] = worker()
        enough[0] = 1
        assert [wait_for(pid) for pid in producers] == [0] * PRODUCERS
        until(lambda: not len(queue) and not queue.in_flight() and not queue.delayed())
        assert queue.shutdown_with_drain()
        assert [wait_for(pid) for pid in workers] == [0] * WORKERS
        assert queue.check() == []
        assert (queue.queued(), queue.in_flight(), queue.delayed()) == ([], [], [])
        assert [queue.num_requeues(key) for key in KEYS] == [0] * len(KEYS)
    lines = log.lines()
    assert judge(lines) == []
    assert {words[2] for words in lines if words[0] == "end"} == set(KEYS)
    ended = {words[1] for words in lines if words[0] == "fail"}
    assert len(ended) > WORKERS  # also by those that were started later


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ("add 9 a;begin 1 a 0;end 1 a", []),
        ("add 9 a;begin 1 a 0;fail 1 a;begin 2 a 1;end 2 a", []),
        ("add 9 a;begin 1 a 0;kill 1;begin 2 a 1;end 2 a", []),
        ("add 9 a;begin 1 a 0;add 9 a;end 1 a;begin 1 a 0;end 1 a", []),
        ("add 9 a;begin 1 a 0;add 9 a;end 1 a", ["a is lost"]),
        ("add 9 a;begin 1 a 0;fail 1 a", ["a is lost"]),
        ("add 9 a", ["a is lost"]),
        ("add 9 a;begin 1 a 0;kill 1;begin 2 a 0;end 2 a", ["a: 0 failures after 0 and a death"]),
        ("add 9 a;begin 1 a 0;begin 2 a 1;end 2 a", ["a is with 1 and 2"]),
        ("add 9 a;begin 1 a 0;end 1 a;end 2 a", ["a was ended by 2, which had not begun"]),
        ("begin 1 a 0;kill 1", ["a is still with 1"]),
    ],
)
def test_the_judge(lines: str, wrong: list[str]) -> None:
    """It says what is wrong, and nothing of what is right."""
    assert judge([line.split() for line in lines.split(";")]) == wrong


def test_killed_producers(name: str, log: Log, started: Starts) -> None:
    """A producer is killed at 60 random instants while it adds, delays, counts and forgets, also
    inside the core: the arena is whole, and whatever it added is handed out."""
    rng = random.Random(3)
    limiter = FastSlow(0.0, 0.001, 1)

    def produce() -> None:
        own = random.Random(os.getpid())
        steps: list[Callable[[str], object]] = [
            queue.add,
            lambda key: queue.add_after(key, own.random() / 1000),
            queue.add_rate_limited,
            queue.forget,
        ]
        while True:
            own.choice(steps)(own.choice(KEYS))
            log.write("step", 0)

    with WorkQueue.create(name, capacity="1MiB", rate_limiter=limiter) as queue:
        for _ in range(60):
            size = len(log) + rng.randrange(25)
            producer = started(produce)
            until(lambda size=size: len(log) > size)  # type: ignore[misc]
            for _ in range(rng.randrange(3000)):
                pass
            kill(producer)
            assert queue.check() == []
            seen = {one.key for one in queue.delayed()}  # first: it may come due
            seen |= {*queue.queued()}
            got = set()
            while len(queue) or queue.delayed():
                with queue.work() as key:
                    got.add(key)
            assert got == seen
            for key in KEYS:
                queue.forget(key)
            assert (queue.check(), queue.stats().entries) == ([], 0)
