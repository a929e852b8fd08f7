"""Claims of processes that are killed, stopped and forked: what they held comes back, once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import os
import queue
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import FIFO
from tests.procs.control import control, resume, start, states, stop, until, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

DATA = b"\xa1x"


class Log:
    """Lines of several processes, in the order in which they were written.

    A write that crosses the end of a page may be cut there by a kill; so all lines have a length of
    which pages are multiples.
    """

    LENGTH = 64

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def write(self, *words: object) -> None:
        line = " ".join(map(str, words)).ljust(self.LENGTH - 1) + "\n"
        assert os.write(self._file, line.encode()) == self.LENGTH

    def lines(self) -> list[list[str]]:
        """All that is written by now."""
        text = os.pread(self._file, len(self) * self.LENGTH, 0).decode()
        return [line.split() for line in text.splitlines()]

    def __len__(self) -> int:
        return os.fstat(self._file).st_size // self.LENGTH

    def close(self) -> None:
        os.close(self._file)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "log")
    yield made
    made.close()


@pytest.fixture
def started() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Starts processes that are killed at the end, if they still run then."""
    pids: list[int] = []

    def start_one(work: Callable[[], object]) -> int:
        pids.append(start(work))
        return pids[-1]

    yield start_one
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            wait_for(pid)


Starts = Callable[[Callable[[], object]], int]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert wait_for(pid) == -signal.SIGKILL


@contextlib.contextmanager
def blocked(number: signal.Signals) -> Iterator[None]:
    """Who is forked in here gets the signal by sigwait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


def gone(pid: int) -> bool:
    """Whether a process that is nobody's child here has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return set(states(pid)) <= set("ZX")
    return True


def forever() -> None:
    while True:
        signal.pause()


def item(key: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": key}, "version": version}


# --- among producers and other claimers ---------------------------------------------------------

CLAIMERS = 4
KILLS = 60
VERSIONS = 4


def work_on(fifo: FIFO, log: Log) -> None:
    """Claim until the queue is shut down; say when an item's work begins and ends."""
    me = os.getpid()
    with contextlib.suppress(shmcache.ShutDown):
        while True:
            claim = fifo.claim()
            with claim as obj:
                version = obj["version"]
                log.write("begin", me, claim.key, version, claim.attempt)
                for _ in range(version % 3):
                    fifo.qsize()
                log.write("end", me, claim.key, version)


def produce(fifo: FIFO, log: Log, number: int, enough: mmap.mmap) -> None:
    """New keys until it is enough, each four times, the later versions beside all that happens."""
    n = 0
    while not enough[0]:
        for version in range(VERSIONS):
            for key in (f"{number}-{n}", f"{number}-{n}-b"):
                fifo.add(item(key, version))
        n += 1
        until(lambda: len(fifo) < 20)
    log.write("produced", number, n)


def judge(lines: list[list[str]]) -> list[str]:
    """What is wrong with a log of `begin pid key version attempt`, `end pid key version`,
    `kill pid`, which is written before the kill, and `produced number rounds`."""
    wrong = []
    open_by: dict[str, tuple[str, int]] = {}  # key: whose, and the attempt
    killed: set[str] = set()
    done: dict[str, int] = {}  # key: newest version that somebody has finished
    seen: dict[str, int] = {}
    for kind, pid, *words in lines:
        if kind == "kill":
            killed.add(pid)
        if kind == "produced":
            for n, b in itertools.product(range(int(words[0])), ("", "-b")):
                done.setdefault(f"{pid}-{n}{b}", -1)
        if kind not in ("begin", "end"):
            continue
        key, version = words[0], int(words[1])
        if kind == "end":
            if open_by.get(key, ("", 0))[0] == pid:
                del open_by[key]
            elif pid not in killed:
                wrong.append(f"{key} was finished by {pid}, which had not begun")
            done[key] = max(done.get(key, -1), version)
            continue
        attempt = int(words[2])
        if version < seen.get(key, 0):
            wrong.append(f"{key}: version {version} after {seen[key]}")
        seen[key] = version
        if key in open_by:
            other, before = open_by[key]
            if other not in killed:
                wrong.append(f"{key} is with {other} and {pid}")
            if attempt <= before:
                wrong.append(f"{key}: attempt {attempt} after {before} failed")
        elif attempt > 1 + len(killed):
            wrong.append(f"{key}: attempt {attempt} after {len(killed)} kills")
        open_by[key] = (pid, attempt)
    wrong += [f"{key} is still with {pid}" for key, (pid, _) in open_by.items()]
    wrong += [
        f"{key} ended at version {last}" for key, last in done.items() if last != VERSIONS - 1
    ]
    return wrong


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_claimers_among_others(name: str, log: Log, started: Starts, seed: int) -> None:
    """Whoever is killed, whenever: the last version of every key is finished by somebody, no key
    is with two living claimers, each death fails an attempt, and nothing stays in flight."""
    rng = random.Random(seed)
    with FIFO.create(name, capacity="4MiB") as fifo, mmap.mmap(-1, 1) as enough:
        claimers = [started(lambda: work_on(fifo, log)) for _ in range(CLAIMERS)]
        producers = [
            started(lambda number=number: produce(fifo, log, number, enough))  # type: ignore[misc]
            for number in range(2)
        ]
        for _ in range(KILLS):
            size = len(log) + rng.randrange(150)
            until(lambda size=size: len(log) >= size)  # type: ignore[misc]
            for _ in range(rng.randrange(2000)):
                pass
            victim = rng.randrange(CLAIMERS)
            log.write("kill", claimers[victim])
            kill(claimers[victim])
            claimers[victim] = started(lambda: work_on(fifo, log))
        enough[0] = 1
        assert [wait_for(pid) for pid in producers] == [0, 0]
        until(lambda: not len(fifo) and not fifo.in_flight())
        fifo.shutdown()
        assert [wait_for(pid) for pid in claimers] == [0] * CLAIMERS
        assert fifo.check() == []
        assert (len(fifo), fifo.in_flight(), fifo.dead_letters()) == (0, [], [])
    lines = log.lines()
    assert judge(lines) == []
    assert sum(words[0] == "produced" for words in lines) == 2
    assert any(words[0] == "begin" and words[4] == "2" for words in lines)  # killed at work


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ("begin 1 a 3 1;end 1 a 3", []),
        ("begin 1 a 3 1;kill 1;begin 2 a 3 2;end 2 a 3", []),
        ("begin 1 a 3 1;begin 2 a 3 2;end 2 a 3", ["a is with 1 and 2"]),
        ("begin 1 a 3 1;kill 1;begin 2 a 3 1;end 2 a 3", ["a: attempt 1 after 1 failed"]),
        ("begin 1 a 3 2;end 1 a 3", ["a: attempt 2 after 0 kills"]),
        ("begin 1 a 3 1", ["a is still with 1"]),
        ("begin 1 a 2 1;end 1 a 2", ["a ended at version 2"]),
        ("begin 1 a 3 1;end 1 a 3;begin 1 a 2 1;end 1 a 2", ["a: version 2 after 3"]),
        ("begin 1 0-0 3 1;end 1 0-0 3;produced 0 1", ["0-0-b ended at version -1"]),
        ("end 1 a 3", ["a was finished by 1, which had not begun"]),
    ],
)
def test_the_judge(lines: str, wrong: list[str]) -> None:
    """It says what is wrong, and nothing of what is right."""
    assert judge([line.split() for line in lines.split(";")]) == wrong


def test_every_death_is_counted_once(name: str, log: Log, started: Starts) -> None:
    """A claimer is killed at 120 random instants, also inside the core: of what it held then, as a
    reader sees it, one attempt more has failed, and of nothing else."""
    rng = random.Random(7)
    deaths = dict.fromkeys([f"k{n}" for n in range(5)], 0)

    def claim_and_release() -> None:
        for n in itertools.count():
            claim = fifo.claim()
            if n == 20:
                log.write("begun")
            claim.release()

    in_the_core = 0
    with (
        FIFO.create(name, capacity="1MiB") as fifo,
        FIFO.attach(name, writable=False) as reader,
    ):
        for key in deaths:
            fifo.add_raw(key, DATA)
        for _ in range(120):
            size = len(log)
            claimer = started(claim_and_release)
            until(lambda size=size: len(log) > size)  # type: ignore[misc]
            for _ in range(rng.randrange(5000)):
                pass
            kill(claimer)
            in_the_core += control(name).dirty
            for one in reader.in_flight():
                assert one.pid in (claimer, 0)  # 0: its slot has another owner by now
                assert one.attempt == deaths[one.key] + 1
                deaths[one.key] += 1
            until(lambda: not fifo.in_flight())
            assert fifo.list_keys() == [*deaths]
            claims = [fifo.claim(0) for _ in deaths]
            assert {claim.key: claim.attempt - 1 for claim in claims} == deaths
            for claim in claims:
                claim.release()
            assert fifo.check() == []
    assert in_the_core > 0
    assert sum(deaths.values()) > 0


# --- one death ----------------------------------------------------------------------------------

WAITS: dict[str, Callable[[FIFO], str]] = {
    "claim": lambda fifo: f"{(claim := fifo.claim()).key} {claim.attempt} {claim.done()}",
    "pop": lambda fifo: f"{fifo.pop_raw()[0]}",
    "pop_many": lambda fifo: f"{fifo.pop_many(5)}",
    "pop_async": lambda fifo: f"{asyncio.run(fifo.pop_async())}",
}
GOT = {"claim": "k 2 None", "pop": "k", "pop_many": "['x']", "pop_async": "x"}


def holder(fifo: FIFO, log: Log, lease: float | None = None) -> Callable[[], None]:
    """A process that claims and goes on for ever."""

    def hold() -> None:
        claim = fifo.claim(0, lease)
        log.write("holds", claim.key)
        forever()

    return hold


@pytest.mark.parametrize("how", WAITS)
@pytest.mark.parametrize("closed", [False, True])
def test_who_waits_gets_what_the_dead_one_had(
    fifo: FIFO, log: Log, started: Starts, how: str, closed: bool
) -> None:
    """A consumer that was asleep before gets the item of a killed claimer, or of one that closes
    its handle, with nobody else there to act."""

    def consume() -> None:
        log.write("waits")
        log.write("got", WAITS[how](fifo))

    def hold_and_close() -> None:
        with FIFO.attach(fifo.name) as own:
            claim = own.claim(0)
            log.write("holds", claim.key)
            signal.sigwait([signal.SIGUSR1])
        log.write("closed")
        forever()

    fifo.add_raw("k", DATA)
    with blocked(signal.SIGUSR1):
        claimer = started(hold_and_close if closed else holder(fifo, log))
    until(lambda: log.lines() == [["holds", "k"]])
    waiter = started(consume)
    until(lambda: control(fifo.name).ready_sleepers and "S" in states(waiter))
    if closed:
        os.kill(claimer, signal.SIGUSR1)
    else:
        kill(claimer)
    assert wait_for(waiter) == 0
    assert ["got", *GOT[how].split()] in log.lines()
    assert (len(fifo), fifo.in_flight()) == (0, [])


def test_a_stopped_claimer_keeps_its_claim(fifo: FIFO, log: Log, started: Starts) -> None:
    """What a stopped process holds is nobody else's, however often one looks; continued, it
    finishes it."""

    def work() -> None:
        with fifo.claim(0):
            log.write("holds")
            signal.sigwait([signal.SIGUSR1])
        log.write("done")

    fifo.add_raw("k", DATA)
    with blocked(signal.SIGUSR1):
        claimer = started(work)
    until(lambda: log.lines() == [["holds"]])
    stop(claimer)
    for _ in range(5):
        fifo._core.testing_repair()  # so that the next one does look at the owners
        assert [one.pid for one in fifo.in_flight()] == [claimer]
        with pytest.raises(queue.Empty):
            fifo.claim(0)
    os.kill(claimer, signal.SIGUSR1)
    resume(claimer)
    assert wait_for(claimer) == 0
    assert (len(fifo), fifo.in_flight()) == (0, [])


def test_a_stopped_claimer_loses_what_it_leased(fifo: FIFO, log: Log, started: Starts) -> None:
    """After the end of the lease another gets the item of a stopped process; continued, that one is
    told, and spoils nothing."""

    def work() -> None:
        claim = fifo.claim(0, lease=1e-9)
        log.write("holds")
        signal.sigwait([signal.SIGUSR1])
        with pytest.raises(shmcache.ClaimLostError):
            claim.renew(1)
        with pytest.raises(shmcache.ClaimLostError):
            claim.done()

    fifo.add_raw("k", DATA)
    with blocked(signal.SIGUSR1):
        claimer = started(work)
    until(lambda: log.lines() == [["holds"]])
    stop(claimer)
    claim = fifo.claim()
    assert claim.attempt == 2
    os.kill(claimer, signal.SIGUSR1)
    resume(claimer)
    assert wait_for(claimer) == 0
    assert [(one.key, one.pid) for one in fifo.in_flight()] == [("k", os.getpid())]
    claim.done()
    assert len(fifo) == 0


# --- forks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", ["done", "fail", "release", "renew", "block", "failed block", "forget"]
)
def test_a_forked_child_does_not_have_its_parents_claim(fifo: FIFO, end: str) -> None:
    """What a child does with the claim that it was forked with, and its own end, leave the claim to
    the parent; what it claims itself is its own, and fails with it."""
    fifo.add_raw("k", DATA)
    fifo.add_raw("own", DATA)
    claims = [fifo.claim(0)]
    me = os.getpid()

    def child() -> None:
        assert [(one.key, one.pid) for one in fifo.in_flight()] == [("k", me)]
        own = fifo.claim(0)
        assert own.key == "own"
        if end in ("fail", "release"):
            getattr(claims[0], end)()
        elif end == "renew":
            with pytest.raises(shmcache.ClaimLostError):
                claims[0].renew(None)
        elif end == "done":
            with pytest.raises(shmcache.ClaimLostError):
                claims[0].done()
        elif end == "block":
            with pytest.raises(shmcache.ClaimLostError), claims[0]:
                pass
        elif end == "failed block":
            with pytest.raises(LookupError), claims[0]:
                raise LookupError
        else:
            claims.clear()
        assert {(one.key, one.pid) for one in fifo.in_flight()} == {("k", me), ("own", os.getpid())}
        os._exit(0)

    assert wait_for(start(child)) == 0
    until(lambda: len(fifo.in_flight()) == 1)
    assert [(one.key, one.pid) for one in fifo.in_flight()] == [("k", me)]
    again = fifo.claim(0)
    assert (again.key, again.attempt) == ("own", 2)
    again.done()
    claims[0].done()
    assert (len(fifo), fifo.in_flight()) == (0, [])


@pytest.mark.parametrize("how", ["fork", "subprocess"])
def test_a_child_that_outlives_its_parent_does_not_keep_the_claim(
    fifo: FIFO, log: Log, started: Starts, how: str
) -> None:
    """The claim of a killed process fails although a child of it lives on, with all that it
    inherited."""

    def parent() -> None:
        fifo.claim(0).release()
        claim = fifo.claim(0)
        child = (
            start(forever)
            if how == "fork"
            else subprocess.Popen(["sleep", "1000"], close_fds=False).pid
        )
        log.write(child, claim.key)
        forever()

    fifo.add_raw("k", DATA)
    claimer = started(parent)
    until(lambda: len(log) == 1)
    child = int(log.lines()[0][0])
    try:
        kill(claimer)
        assert fifo.claim().attempt == 2
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
    until(lambda: gone(child))
