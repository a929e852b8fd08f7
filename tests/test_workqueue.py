"""WorkQueue: what is queued once, when it comes, who has it, how it ends; beside client-go's
workqueue."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import multiprocessing
import os
import pickle
import queue as stdlib_queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import shmcache
import shmcache.workqueue
from shmcache import (
    ClaimLostError,
    DeadLetter,
    ExponentialBackoff,
    FastSlow,
    MaxOf,
    Store,
    TokenBucket,
    WorkQueue,
)
from tests.procs.control import forked, start, stopped_owner, until, wait_for
from tests.test_interrupted_pop import strikes

LONG = 10_000.0  # seconds: what waits so long does not come in a test


@pytest.fixture
def queue() -> Iterator[WorkQueue]:
    """A queue whose failed keys wait for ever and a day, whole at the end of the test."""
    with WorkQueue.create(capacity="4MiB", rate_limiter=FastSlow(LONG, LONG, 0)) as made:
        yield made
        assert made.closed or made.check() == []
        made.unlink()


def drained(queue: WorkQueue) -> list[str]:
    """All keys that are to be had, in their order; done at once."""
    found = []
    with contextlib.suppress(stdlib_queue.Empty, shmcache.ShutDown):
        while True:
            found.append(queue.get(0))
            queue.done(found[-1])
    return found


def flying(queue: WorkQueue) -> list[str]:
    return [one.key for one in queue.in_flight()]


# --- dirty and processing -----------------------------------------------------------------------


def test_a_key_is_queued_once(queue: WorkQueue) -> None:
    """Adds of a queued key are one piece of work, at the place of the first, and count once."""
    assert queue.add_many(["a", "b", "a", "c", "b"])
    assert queue.add("a")
    assert (len(queue), queue.queued()) == (3, ["a", "b", "c"])
    assert drained(queue) == ["a", "b", "c"]
    assert (len(queue), queue.queued(), queue.in_flight()) == (0, [], [])


def test_added_at_work_comes_after_done_once(queue: WorkQueue) -> None:
    """A key that is added while a worker has it is handed out after its done, and once, however
    often it was added."""
    queue.add("a")
    assert queue.get(0) == "a"
    for _ in range(3):
        queue.add("a")
    assert (len(queue), queue.queued(), flying(queue)) == (0, ["a"], ["a"])
    with pytest.raises(stdlib_queue.Empty):
        queue.get(0)
    queue.done("a")
    assert (len(queue), flying(queue)) == (1, [])
    assert drained(queue) == ["a"]


def test_added_at_work_has_the_place_of_the_add(queue: WorkQueue) -> None:
    """A key that is added while a worker has it comes before what was added after that."""
    queue.add_many(["a", "b"])
    key = queue.get(0)
    queue.add(key)
    queue.add("c")
    queue.add(key)
    queue.done(key)
    assert drained(queue) == ["b", "a", "c"]


def test_added_after_done_is_new_work(queue: WorkQueue) -> None:
    """A key that is done can be added again, and goes to the tail."""
    queue.add_many(["a", "b"])
    queue.done(queue.get(0))
    queue.add("a")
    assert drained(queue) == ["b", "a"]


def test_done_of_what_one_has_not(queue: WorkQueue) -> None:
    """done() of a key that get() has not returned here, or for the second time, is a ValueError
    that names it, and changes nothing."""
    queue.add("a")
    with pytest.raises(ValueError, match=r"done.'a'.*no such key"):
        queue.done("a")
    queue.done(queue.get(0))
    with pytest.raises(ValueError, match="no such key"):
        queue.done("a")
    queue.add("a")
    with WorkQueue.attach(queue.name) as other:
        key = other.get(0)
        with pytest.raises(ValueError, match="no such key"):
            queue.done(key)
        assert flying(queue) == ["a"]
        other.done(key)


def test_get_waits(queue: WorkQueue) -> None:
    """get() sleeps until a key is there, and raises queue.Empty after its timeout."""
    with pytest.raises(stdlib_queue.Empty):
        queue.get(0.01)
    got: list[str] = []
    worker = threading.Thread(target=lambda: got.append(queue.get()))
    worker.start()
    queue.add("a")
    worker.join()
    assert got == ["a"]
    queue.done("a")


@pytest.mark.parametrize("key", ["", "x" * 70_000, "\ud800"])
def test_what_cannot_be_a_key(queue: WorkQueue, key: str) -> None:
    """A key without or with too many bytes, or with half a character, is a KeyFuncError."""
    for call in (
        queue.add,
        queue.add_rate_limited,
        queue.forget,
        queue.num_requeues,
        lambda key: queue.add_after(key, 1),
    ):
        with pytest.raises(shmcache.KeyFuncError):
            call(key)
    assert queue.delayed() == []


def test_one_key_is_not_several(queue: WorkQueue) -> None:
    """A str where several keys belong is a TypeError, and not one key for each letter."""
    with pytest.raises(TypeError, match=r"add\('web-0'\)"):
        queue.add_many("web-0")
    assert queue.queued() == []


def test_what_is_no_key(queue: WorkQueue) -> None:
    """A key that is no str is a TypeError that says of what type it is."""
    wrong: Any
    for wrong in (None, 3, b"a"):
        for call in (queue.add, queue.forget, queue.num_requeues, queue.add_rate_limited):
            with pytest.raises(TypeError, match=f"a key must be a str, not {type(wrong).__name__}"):
                call(wrong)


# --- delays -------------------------------------------------------------------------------------


def test_not_before_its_time(queue: WorkQueue) -> None:
    """A key that is added with a delay is not queued before that has passed, and then is."""
    for delay in (0.001, 0.03):
        began = time.monotonic()
        assert queue.add_after("a", delay)
        assert queue.get() == "a"
        assert time.monotonic() - began >= delay
        queue.done("a")
    assert queue.delayed() == []


def test_delays_come_in_their_order(queue: WorkQueue) -> None:
    """What is due comes in the order of its times, whatever the order of the adds, and to a worker
    that was asleep before."""
    got: list[str] = []
    worker = threading.Thread(target=lambda: got.extend(queue.get() for _ in range(3)))
    worker.start()
    for key, delay in (("later", 0.06), ("soon", 0.02), ("last", 0.1)):
        queue.add_after(key, delay)
    worker.join()
    assert got == ["soon", "later", "last"]
    for key in got:
        queue.done(key)


def test_the_earlier_time_stands(queue: WorkQueue) -> None:
    """Of two delays of a key the one that ends first stands, whichever came first."""
    queue.add_after("a", LONG)
    queue.add_after("a", 10 * LONG)
    queue.add_after("b", 10 * LONG)
    queue.add_after("b", LONG)
    waiting = queue.delayed()
    assert [one.key for one in waiting] == ["a", "b"]
    assert all(0 < one.seconds <= LONG for one in waiting)
    queue.add_after("b", 0.001)
    assert queue.get() == "b"
    queue.done("b")
    assert [one.key for one in queue.delayed()] == ["a"]


@pytest.mark.parametrize("delay", [0, 0.0, -0.0, -1, float("-inf")])
def test_no_delay_is_now(queue: WorkQueue, delay: float) -> None:
    """A delay of nothing or less queues the key at once."""
    assert queue.add_after("a", delay)
    assert (drained(queue), queue.delayed()) == (["a"], [])


def test_a_delay_is_a_number(queue: WorkQueue) -> None:
    """NaN is a ValueError and text a TypeError; endless is as long as it gets."""
    wrong: Any
    for wrong, error in ((float("nan"), ValueError), ("1", TypeError), (None, TypeError)):
        with pytest.raises(error, match="delay is a number of seconds"):
            queue.add_after("a", wrong)
    assert queue.add_after("a", float("inf"))
    assert queue.delayed()[0].seconds > 1e8


def test_a_delay_is_independent_of_the_queue(queue: WorkQueue) -> None:
    """A key may be queued, with a worker and delayed at a time: an add neither ends nor moves its
    delay, and each leads to work of its own."""
    queue.add_after("a", LONG)
    queue.add("a")
    assert queue.get(0) == "a"
    queue.add("a")
    assert (queue.queued(), flying(queue)) == (["a"], ["a"])
    assert [one.key for one in queue.delayed()] == ["a"]
    queue.done("a")
    assert drained(queue) == ["a"]
    assert [one.key for one in queue.delayed()] == ["a"]


def test_due_while_at_work(queue: WorkQueue) -> None:
    """What comes due while a worker has the key is queued after its done, once, though it was
    added too."""
    queue.add("a")
    key = queue.get(0)
    queue.add_after(key, 0.001)
    until(lambda: not len(queue) and not queue.delayed())
    queue.add(key)
    with pytest.raises(stdlib_queue.Empty):
        queue.get(0)
    queue.done(key)
    assert drained(queue) == ["a"]


# --- failures and limits ------------------------------------------------------------------------


def test_failures_are_counted_until_forgotten(queue: WorkQueue) -> None:
    """Each add_rate_limited counts one failure of the key, which add, get and done leave as it is,
    and forget sets back."""
    assert queue.num_requeues("a") == 0
    for count in range(1, 4):
        assert queue.add_rate_limited("a")
        assert queue.num_requeues("a") == count
    assert [(one.key, one.failures) for one in queue.delayed()] == [("a", 3)]
    queue.add("a")
    key = queue.get(0)
    assert (queue.num_requeues(key), queue.in_flight()[0].attempt) == (3, 4)
    queue.done(key)
    assert queue.num_requeues("a") == 3
    queue.forget("a")
    queue.forget("never seen")
    assert queue.num_requeues("a") == 0
    assert [(one.key, one.failures) for one in queue.delayed()] == [("a", 0)]


def test_the_limiter_says_how_long(name: str) -> None:
    """The delay is the limiter's for the failures that the key had before; other keys have
    theirs."""
    limiter = FastSlow(100.0, LONG, 2)
    with WorkQueue.create(name, capacity="1MiB", rate_limiter=limiter) as queue:
        for key, failures in (("a", 1), ("b", 2), ("c", 3)):
            for _ in range(failures):
                queue.add_rate_limited(key)
                queue.forget(key) if key == "a" else None
        by_key = {one.key: one.seconds for one in queue.delayed()}
        assert all(0 < by_key[key] <= 100.0 for key in "abc")  # the earlier time stands
        queue.add_rate_limited("b")  # its third, and later than what stands
        assert {one.key for one in queue.delayed() if one.seconds > 100} == set()
    with WorkQueue.attach(name, rate_limiter=limiter) as again:
        for key in "bc":
            again.add_after(key, 0.001)
            assert again.get() == key
            again.add_rate_limited(key)  # the third of b, the fourth of c
            again.done(key)
        assert sorted(one.key for one in again.delayed() if one.seconds > 100) == ["b", "c"]


def test_backoff_grows_with_each_failure(name: str) -> None:
    """A key that fails again and again waits twice as long each time, and starts over when it is
    forgotten."""
    limiter = ExponentialBackoff(base=1000.0, most=6000.0)
    with WorkQueue.create(name, capacity="1MiB", rate_limiter=limiter) as queue:
        seen = []
        for _ in range(5):
            queue.add("a")
            key = queue.get(0)
            queue.add_rate_limited(key)
            queue.done(key)
            seen.append(round(queue.delayed()[0].seconds / 1000))
            with WorkQueue.attach(name) as other:  # nothing else makes it come early
                other.add_after("a", 0.001)
                assert other.get() == "a"
                other.done("a")
        assert seen == [1, 2, 4, 6, 6]
        queue.forget("a")
        queue.add_rate_limited("a")
        assert round(queue.delayed()[0].seconds / 1000) == 1


def test_one_bucket_for_all_handles(name: str) -> None:
    """Of a burst of 3 tokens three failures, of whatever keys and through whatever handles, wait
    for nothing, and each one more waits a token longer."""
    limiter = TokenBucket(rate=0.001, burst=3)
    with (
        WorkQueue.create(name, capacity="1MiB", rate_limiter=limiter) as queue,
        WorkQueue.attach(name, rate_limiter=limiter) as other,
    ):
        for key, handle in zip("abcde", [queue, other] * 3, strict=False):
            handle.add_rate_limited(key)
        assert queue.queued() == ["a", "b", "c"]
        assert [(one.key, round(one.seconds / 1000)) for one in queue.delayed()] == [
            ("d", 1),
            ("e", 2),
        ]


def test_the_longest_delay_wins(name: str) -> None:
    """With MaxOf a key waits as long as the strictest of the limiters says."""
    limiter = MaxOf(FastSlow(5000.0, 5000.0, 0), TokenBucket(rate=0.0001, burst=1))
    with WorkQueue.create(name, capacity="1MiB", rate_limiter=limiter) as queue:
        queue.add_rate_limited("a")
        queue.add_rate_limited("b")
        assert [(one.key, round(one.seconds / 1000)) for one in queue.delayed()] == [
            ("a", 5),
            ("b", 10),
        ]


class Broken:
    def delay(self, failures: int, reserve: object, /) -> Any:
        return "soon"


def test_a_limiter_of_ones_own(name: str) -> None:
    """A limiter that gives no number is a TypeError, in work() too, where the key goes back at once
    with the failure counted."""
    with WorkQueue.create(name, capacity="1MiB", rate_limiter=Broken()) as queue:
        queue.add("a")
        with pytest.raises(TypeError, match="delay") as caught, queue.work(0):
            raise LookupError
        assert (queue.queued(), queue.delayed(), queue.in_flight()) == (["a"], [], [])
        assert isinstance(caught.value.__context__, LookupError)  # and keeps no claim
        assert queue.num_requeues("a") == 1


# --- one step of a worker -----------------------------------------------------------------------


def test_a_block_that_ends_is_done(queue: WorkQueue) -> None:
    """In the block the key is in flight and nobody else's; after it, it is done and forgotten."""
    queue.add_rate_limited("a")
    queue.add("a")
    with queue.work(0) as key:
        assert (key, flying(queue), len(queue)) == ("a", ["a"], 0)
        assert queue.in_flight()[0].pid == os.getpid()
    assert (flying(queue), queue.queued(), queue.num_requeues("a")) == ([], [], 0)
    assert queue.stats().pops == 1


def test_a_block_that_raises_is_tried_again(queue: WorkQueue) -> None:
    """An exception counts a failure, and the key waits as the limiter says; it goes on."""
    queue.add("a")
    with pytest.raises(ZeroDivisionError), queue.work(0):
        raise ZeroDivisionError
    assert (flying(queue), queue.queued(), queue.num_requeues("a")) == ([], [], 1)
    assert [one.key for one in queue.delayed()] == ["a"]


def test_a_failed_key_that_was_added_meanwhile_comes_at_once(queue: WorkQueue) -> None:
    """What is added while its work fails is worked on now; the delay stands beside it."""
    queue.add("a")

    def work() -> None:
        with queue.work(0) as key:
            queue.add(key)
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert (queue.queued(), [one.key for one in queue.delayed()]) == (["a"], ["a"])
    assert queue.num_requeues("a") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_not_the_keys_fault_is_not_counted(
    queue: WorkQueue, error: type[BaseException]
) -> None:
    """Ctrl-C, exit and a cancelled task in the block give the key back to its place, as it was."""
    queue.add_many(["a", "b"])
    with pytest.raises(error), queue.work(0):
        raise error
    assert (queue.queued(), queue.num_requeues("a"), queue.delayed()) == (["a", "b"], 0, [])


def test_work_without_a_key(queue: WorkQueue) -> None:
    """work() takes nothing before its block begins, and raises what get() raises."""
    queue.add("a")
    step = queue.work(0)
    assert len(queue) == 1
    with step:
        assert len(queue) == 0
        with pytest.raises(stdlib_queue.Empty), queue.work(0):
            raise AssertionError
    queue.shutdown()
    with pytest.raises(shmcache.ShutDown, match=r"WorkQueue .* was shut down"), queue.work():
        raise AssertionError


def test_one_step_has_one_key(queue: WorkQueue) -> None:
    """What work() returned is a RuntimeError in a second block (of another thread, say) while the
    first has its key, which stays with that; after it, it may be used again."""
    queue.add_many(["a", "b"])
    step = queue.work(0)
    with step:
        with pytest.raises(RuntimeError, match=r"has the key 'a'"), step:
            raise AssertionError
        assert (flying(queue), queue.queued()) == (["a"], ["b"])
    with step as key:
        assert key == "b"


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan")])
def test_a_lease_is_some_time(queue: WorkQueue, wrong: float) -> None:
    """A lease or timeout that is none is a ValueError, and nothing is taken."""
    queue.add("a")
    for take in (queue.get, queue.work):
        with pytest.raises(ValueError, match="lease"):
            take(0, wrong)
        with pytest.raises(ValueError, match="timeout"):
            take(-1)
    assert len(queue) == 1


def test_a_lease_is_a_number(queue: WorkQueue) -> None:
    """Text is a TypeError, and nothing is taken; an int too large for a float is for ever."""
    wrong: Any = "5"
    queue.add("a")
    for take in (queue.get, queue.work):
        with pytest.raises(TypeError, match="lease is a number of seconds"):
            take(0, wrong)
    assert queue.get(0, 10**400) == "a"
    assert (queue.in_flight()[0].lease or 0) > 1e8
    queue.done("a")


def test_a_lease_runs_out(queue: WorkQueue) -> None:
    """After its lease a key goes back with one failure more, and who held it is told; its failure
    does nothing then."""
    queue.add("a")
    assert queue.get(0, lease=1e-9) == "a"
    assert queue.get(60, lease=1000) == "a"
    assert (queue.num_requeues("a"), queue.in_flight()[0].attempt) == (1, 2)
    queue.done("a")
    with WorkQueue.attach(queue.name) as other:
        for end, error in ((None, ClaimLostError), (LookupError, LookupError)):
            other.forget("a")
            other.add("a")
            with contextlib.ExitStack() as block:
                block.enter_context(pytest.raises(error))
                block.enter_context(queue.work(0, lease=1e-9))
                assert other.get(60) == "a"
                if end is not None:
                    raise end
            assert (flying(queue), queue.num_requeues("a")) == (["a"], 1)
            other.done("a")
            with pytest.raises(ValueError, match="no such key"):
                queue.done("a")
        other.add("a")
        assert queue.get(0, lease=1e-9) == "a"
        assert other.get(60) == "a"
        with pytest.raises(ClaimLostError, match="twice"):
            queue.done("a")
        assert flying(queue) == ["a"]
        other.done("a")
    assert queue.delayed() == []


def test_the_last_attempt_makes_a_dead_letter(name: str) -> None:
    """The last of max_attempts failures, of whatever sort, makes the key a dead letter, which
    retry() queues anew, drop() removes, and which does not keep anybody from adding it."""
    limiter = FastSlow(0.0, 0.0, 0)
    with WorkQueue.create(name, capacity="1MiB", max_attempts=3, rate_limiter=limiter) as creator:
        with WorkQueue.attach(name, rate_limiter=limiter) as queue:
            queue.add("a")
            queue.get(0)
        queue = creator  # the handle that had it is closed: one failure
        for _ in range(2):
            with pytest.raises(LookupError), queue.work(60):
                raise LookupError
        assert (queue.queued(), queue.delayed(), queue.in_flight()) == ([], [], [])
        assert queue.dead_letters() == [DeadLetter("a", "a", 3, age=0.0)]
        queue.add("a")
        assert drained(queue) == ["a"]
        assert queue.retry("a")
        assert not queue.retry("a")
        assert (drained(queue), queue.num_requeues("a")) == (["a"], 0)
        queue.add("a")
        for _ in range(3):
            with pytest.raises(LookupError), queue.work(0):
                raise LookupError
        assert queue.stats().dead_letters == 1
        assert queue.drop("a")
        assert not queue.drop("a")
        assert (queue.dead_letters(), queue.queued()) == ([], [])
        assert queue.check() == []


def test_a_retried_key_has_not_failed(name: str) -> None:
    """A dead letter that is queued again has no failures, also where a delay of it had counted
    some; the delay stands."""
    limiter = FastSlow(LONG, LONG, 0)
    with WorkQueue.create(name, capacity="1MiB", max_attempts=2, rate_limiter=limiter) as queue:
        queue.add_rate_limited("a")
        queue.add("a")
        with pytest.raises(LookupError), queue.work(0):
            raise LookupError
        assert [letter.attempts for letter in queue.dead_letters()] == [2]
        assert queue.retry("a")
        assert (queue.queued(), queue.num_requeues("a")) == (["a"], 0)
        assert [(one.key, one.failures) for one in queue.delayed()] == [("a", 0)]


def test_done_while_the_lock_is_taken(queue: WorkQueue) -> None:
    """done() that cannot have the lock is a LockTimeoutError, and can be called again."""
    queue.add("a")
    with WorkQueue.attach(queue.name, lock_timeout=0.05) as worker:
        key = worker.get(0)
        with stopped_owner(queue.name, queue.check), pytest.raises(shmcache.LockTimeoutError):
            worker.done(key)
        worker.done(key)
    assert (flying(queue), queue.queued()) == ([], [])


def test_a_death_counts_on_top_of_all(name: str) -> None:
    """A worker that dies adds one failure to those that were counted for its key meanwhile, though
    the key was added, and came due, while it had it."""
    with WorkQueue.create(name, capacity="1MiB", rate_limiter=FastSlow(0.001, 0.001, 0)) as queue:
        queue.add("a")
        with WorkQueue.attach(name) as dying:
            assert dying.get(0) == "a"
            for _ in range(3):
                queue.add_rate_limited("a")
            until(lambda: not len(queue) and not queue.delayed())
            assert queue.queued() == ["a"]
        assert queue.get(60) == "a"
        assert queue.num_requeues("a") == 4
        queue.done("a")


def test_a_release_leaves_the_count(name: str) -> None:
    """A key that goes back uncounted has failed as often as before, also where that is as often as
    it may."""
    with WorkQueue.create(name, capacity="1MiB", max_attempts=1) as queue:
        queue.add("a")
        with contextlib.suppress(KeyboardInterrupt), queue.work(0):
            queue.add("a")
            queue.add_rate_limited("a")
            raise KeyboardInterrupt
        assert (queue.num_requeues("a"), queue.dead_letters()) == (1, [])


# --- signals ------------------------------------------------------------------------------------


def blocks(queue: WorkQueue) -> list[Any]:
    with queue.work(0, lease=1e6) as key:
        assert key == "a"
    return [key]


def failing_blocks(queue: WorkQueue) -> list[Any]:
    try:
        with queue.work(0):
            raise LookupError
    except LookupError:
        return ["a"]


GOT: list[str] = []


def gets_and_done(queue: WorkQueue) -> list[Any]:
    GOT.clear()
    GOT.append(queue.get(0))
    queue.done(GOT[0])
    return GOT


@pytest.fixture
def struck() -> Iterator[WorkQueue]:
    if sys.gettrace() is not None:
        pytest.skip("another tracer is at work")
    with WorkQueue.create(capacity="1MiB", rate_limiter=FastSlow(LONG, LONG, 0)) as made:
        yield made
        made.unlink()


HERE = "tests/test_workqueue.py"


@pytest.mark.parametrize(
    ("step", "files"),
    [
        (blocks, ("shmcache/workqueue.py", HERE)),
        (failing_blocks, ("shmcache/workqueue.py", "shmcache/ratelimiters.py", HERE)),
        # Between the two nobody but the caller knows of the key.
        (gets_and_done, ("shmcache/workqueue.py",)),
    ],
)
def test_struck_at_any_bytecode(
    struck: WorkQueue, step: Callable[[WorkQueue], list[Any]], files: tuple[str, ...]
) -> None:
    """An exception of a signal handler between any two bytecodes of a step leaves nothing in
    flight, and the key queued, delayed or done."""
    queue = struck
    queue.add_many(["a", "b"])
    back = ended = 0
    for taken in strikes(queue, step, files):
        gc.collect()  # struck in an `except`, an exception and its frame keep each other
        if step is gets_and_done and GOT and flying(queue):  # struck before done() did anything
            queue.done("a")
        assert flying(queue) == []
        assert queue.check() == []
        assert queue.queued() in (["a", "b"], ["b"])
        if queue.queued() == ["b"]:
            ended += 1
            waiting = [one.key for one in queue.delayed()]
            assert waiting == (["a"] if step is failing_blocks else [])
        else:
            back += 1
            assert taken is None
        with WorkQueue.attach(queue.name) as other:  # as it was
            if queue.delayed():
                other.add_after("a", 0.001)
                until(lambda: len(queue) and not queue.delayed())
            drained(other)
            other.forget("a")
            assert (other.delayed(), other.num_requeues("a")) == ([], 0)
        queue.add_many(["a", "b"])
    assert back > 15
    assert ended > 0


def test_struck_at_the_end_of_a_shut_down_queue() -> None:
    """An exception of a signal handler between any two bytecodes of a step that fails after the
    shutdown leaves the queue whole: what has ended is not ended again."""
    if sys.gettrace() is not None:
        pytest.skip("another tracer is at work")
    queues: list[WorkQueue] = []

    def another() -> None:
        queues.append(WorkQueue.create(capacity="1MiB", rate_limiter=FastSlow(LONG, LONG, 0)))
        queues[-1].unlink()
        queues[-1].add("a")

    def step(_: object) -> list[Any]:
        try:
            with queues[-1].work(0):
                queues[-1].shutdown()  # what fails from now on is not queued again
                raise LookupError
        except LookupError:
            return ["a"]

    another()
    rounds = 0
    for _ in strikes(None, step, ("shmcache/workqueue.py",)):
        rounds += 1
        gc.collect()
        with queues.pop() as queue:
            assert queue.check() == []
            assert flying(queue) == []
        another()
    queues.pop().close()
    assert rounds > 30


def test_the_planted_fault_is_found(struck: WorkQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the block's end keeps the claim to itself, the same test finds the key in flight."""
    kept: list[object] = []
    enter = shmcache.workqueue.Work.__enter__

    def keeping(self: Any) -> str:
        key = enter(self)
        kept.append(self._token)
        return key

    monkeypatch.setattr(shmcache.workqueue.Work, "__enter__", keeping)
    struck.add_many(["a", "b"])
    assert any(flying(struck) for _ in strikes(struck, blocks, (HERE,)))


# --- shutdown -----------------------------------------------------------------------------------


def test_after_shutdown(queue: WorkQueue) -> None:
    """A shut down queue hands out what is queued, takes nothing more in, wakes nothing up, and
    then is ShutDown for all."""
    queue.add_many(["a", "b"])
    queue.add_after("c", 0.001)
    assert not queue.shutting_down
    queue.shutdown()
    assert queue.shutting_down
    assert not queue.add("d")
    assert not queue.add_many(["d", "e"])
    assert not queue.add_after("d", 1)
    assert not queue.add_rate_limited("d")
    with WorkQueue.attach(queue.name, writable=False) as reader:
        assert reader.shutting_down
    until(lambda: not queue.delayed()[0].seconds)
    assert drained(queue) == ["a", "b"]
    with pytest.raises(shmcache.ShutDown):
        queue.get()
    assert [one.key for one in queue.delayed()] == ["c"]


def test_shutdown_wakes_the_workers(queue: WorkQueue) -> None:
    """Every worker that waits for a key is told of the end."""
    ended: list[str] = []

    def work() -> None:
        try:
            queue.get()
        except shmcache.ShutDown as error:
            ended.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    queue.shutdown()
    for worker in workers:
        worker.join()
    assert ended == [f"WorkQueue {queue.name!r} was shut down and is empty"] * 3


def test_what_fails_after_a_shutdown_is_gone(queue: WorkQueue) -> None:
    """A key whose block raises after the shutdown is not tried again, and a drain does not wait
    for it: it is as if it were added."""
    queue.add("a")

    def work() -> None:
        with queue.work(0):
            queue.shutdown()
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert (queue.queued(), queue.delayed(), queue.dead_letters()) == ([], [], [])
    assert queue.shutdown_with_drain(0)


def test_what_was_added_at_work_comes_after_a_shutdown(queue: WorkQueue) -> None:
    """A key that was added again before the end is handed out after its done all the same."""
    queue.add("a")
    key = queue.get(0)
    queue.add("a")
    queue.shutdown()
    queue.done(key)
    assert drained(queue) == ["a"]


def draining(queue: WorkQueue, **options: Any) -> tuple[threading.Thread, list[bool]]:
    """A thread in shutdown_with_drain; its answer."""
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(queue.shutdown_with_drain(**options)))
    thread.start()
    until(lambda: queue.shutting_down)
    return thread, said


def test_a_drain_waits_for_done(queue: WorkQueue) -> None:
    """shutdown_with_drain returns when every key is done, those that were added at work too."""
    queue.add_many(["a", "b"])
    key = queue.get(0)
    queue.add(key)
    thread, said = draining(queue)
    assert not queue.add("c")
    queue.done(key)
    assert (queue.get(0), queue.get(0)) == ("b", "a")
    queue.done("b")
    assert said == []
    with pytest.raises(shmcache.ShutDown):
        queue.get()
    queue.done("a")
    thread.join()
    assert said == [True]


def test_a_drain_of_nothing(queue: WorkQueue) -> None:
    """Nothing queued and nothing in flight is drained at once; what waits for its time is not
    waited for."""
    queue.add_after("a", LONG)
    assert queue.shutdown_with_drain()
    assert queue.shutdown_with_drain(0)
    assert queue.shutting_down


def test_a_second_shutdown_forces(queue: WorkQueue) -> None:
    """shutdown() ends the wait of those who drain; a drain after a shutdown waits again."""
    queue.add("a")
    key = queue.get(0)
    thread, said = draining(queue)
    with WorkQueue.attach(queue.name) as other:
        other.shutdown()
    thread.join()
    assert said == [False]
    assert not queue.shutdown_with_drain(0.01)
    thread, said = draining(queue)
    queue.done(key)
    thread.join()
    assert said == [True]


def test_a_drain_gives_up(queue: WorkQueue) -> None:
    """After its timeout a drain says False, and the queue stays shut down."""
    queue.add("a")
    assert not queue.shutdown_with_drain(timeout=0.01)
    assert queue.shutting_down
    with pytest.raises(ValueError, match="timeout"):
        queue.shutdown_with_drain(-1)
    assert drained(queue) == ["a"]
    assert queue.shutdown_with_drain()


def test_a_drain_sees_that_a_worker_dies(queue: WorkQueue) -> None:
    """A worker that dies with a key does not keep a drain waiting for ever: the key comes back, and
    when another has done it, all is drained."""
    queue.add("a")

    def work() -> None:
        queue.get(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(work) == -signal.SIGKILL
    thread, said = draining(queue)
    assert queue.get() == "a"
    assert queue.num_requeues("a") == 1
    queue.done("a")
    thread.join()
    assert said == [True]


# --- processes ----------------------------------------------------------------------------------


def test_delays_and_failures_outlive_every_process(name: str) -> None:
    """What a process adds with a delay, and counts as failed, is there for others after it was
    killed, with nobody else attached meanwhile, and comes at its time."""

    def work() -> None:
        queue = WorkQueue.create(name, capacity="1MiB", rate_limiter=FastSlow(LONG, LONG, 0))
        queue.add("queued")
        queue.add_after("soon", 0.02)
        for _ in range(3):
            queue.add_rate_limited("failed")
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(start(work)) == -signal.SIGKILL
    assert not next(info for info in shmcache.list_arenas() if info.name == name).in_use
    with WorkQueue.attach(name) as queue:
        assert [queue.get(), queue.get()] == ["queued", "soon"]
        assert [(one.key, one.failures) for one in queue.delayed()] == [("failed", 3)]
        assert (queue.num_requeues("failed"), queue.num_requeues("soon")) == (3, 0)
        assert queue.check() == []


def test_what_a_dead_worker_had_comes_back(queue: WorkQueue) -> None:
    """A worker that is killed with keys gives them back to their places, each with one failure
    more, and one that waits is woken for them."""
    queue.add_many(["a", "b", "c"])

    def work() -> None:
        assert (queue.get(0), queue.get(0)) == ("a", "b")
        queue.add("a")
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(work) == -signal.SIGKILL
    assert queue.get() in ("c", "a")
    until(lambda: {*queue.queued(), *flying(queue)} == {"a", "b", "c"} and len(queue) == 2)
    assert [queue.num_requeues(key) for key in "abc"] == [1, 1, 0]


def test_a_forked_child_does_not_have_its_parents_keys(queue: WorkQueue) -> None:
    """done() in a child of what its parent got is a ClaimLostError; the parent's key is its own
    still, whatever becomes of the child, and so is that of a block."""
    queue.add_many(["a", "b"])
    key = queue.get(0)

    step = queue.work(0)

    def child() -> None:
        with pytest.raises(ClaimLostError):
            queue.done(key)
        with pytest.raises(ClaimLostError):
            step.__exit__(None, None, None)
        for error in (LookupError(), KeyboardInterrupt()):
            step.__exit__(type(error), error, None)
        assert flying(queue) == ["a", "b"]

    with step:
        assert forked(child) == 0
        assert flying(queue) == ["a", "b"]
    queue.done(key)
    assert (flying(queue), queue.delayed(), queue.queued()) == ([], [], [])
    assert [queue.num_requeues(key) for key in "ab"] == [0, 0]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_handles_travel(method: str) -> None:
    """A handle pickles with its limiter, to children of any start method, and works there."""
    context = multiprocessing.get_context(method)
    with WorkQueue.create(capacity="1MiB", rate_limiter=FastSlow(LONG, LONG, 0)) as queue:
        queue.add("a")
        worker = context.Process(target=_fail_once, args=(queue,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        worker.close()
        assert [(one.key, one.failures) for one in queue.delayed()] == [("a", 1)]
        assert queue.delayed()[0].seconds > LONG / 2
        queue.unlink()


def _fail_once(queue: WorkQueue) -> None:
    with contextlib.suppress(LookupError), queue.work(60):
        raise LookupError


# --- handles ------------------------------------------------------------------------------------


def test_a_handle_is_no_store(queue: WorkQueue) -> None:
    """A WorkQueue is no Mapping and no Store, has none of their reads, and says what it has."""
    assert not isinstance(queue, (Mapping, Store))
    for missing in ("list", "get_by_key", "replace", "pop", "claim", "reflector_status"):
        assert not hasattr(queue, missing)
    queue.add_many(["a", "b"])
    assert repr(queue) == f"<WorkQueue {queue.name!r}: 2 queued>"
    with pytest.raises(TypeError, match=r"use WorkQueue\.create"):
        WorkQueue()
    for kind in (WorkQueue, Store, shmcache.FIFO, shmcache.Indexer):
        made: Any = kind
        with pytest.raises(TypeError, match=rf"use {kind.__name__}\.create"):
            made("a-name", capacity="1MiB")
    assert copy.copy(queue) is not queue


def test_a_handle_pickles_and_closes(queue: WorkQueue) -> None:
    """A pickled handle attaches to the same arena, with the same limiter, and to no other of its
    name; what it had when it was closed comes back, counted."""
    with pickle.loads(pickle.dumps(queue)) as again:
        assert again.name == queue.name
        queue.add("a")
        assert again.get(0) == "a"
        again.add_rate_limited("b")
        assert queue.delayed()[0].seconds > LONG / 2
    assert again.closed
    assert repr(again) == f"<WorkQueue {queue.name!r}: closed>"
    with pytest.raises(shmcache.ClosedError):
        again.done("a")
    for call in (again.get, again.shutdown, again.delayed, again.shutdown_with_drain):
        with pytest.raises(shmcache.ClosedError):
            call()
    assert queue.get() == "a"
    assert queue.num_requeues("a") == 1
    frozen = pickle.dumps(queue)
    queue.unlink()
    with WorkQueue.create(queue.name, capacity="1MiB") as other:
        with pytest.raises(shmcache.ArenaNotFoundError, match="another has taken its name"):
            pickle.loads(frozen)
        other.unlink()


def test_reading_only(queue: WorkQueue) -> None:
    """A read-only handle sees all, and changes nothing."""
    queue.add_many(["a", "b"])
    key = queue.get(0)
    queue.add_rate_limited("c")
    with WorkQueue.attach(queue.name, writable=False) as reader:
        assert not reader.writable
        assert (len(reader), reader.queued(), flying(reader)) == (1, ["b"], ["a"])
        assert [(one.key, one.failures) for one in reader.delayed()] == [("c", 1)]
        assert (reader.num_requeues("c"), reader.dead_letters()) == (1, [])
        stats = reader.stats()
        assert (stats.kind, stats.entries, stats.in_flight, stats.delayed) == ("WorkQueue", 1, 1, 1)
        call: Callable[[], object]
        for call in (
            lambda: reader.add("d"),
            lambda: reader.add_rate_limited("d"),
            lambda: reader.forget("c"),
            lambda: reader.retry("d"),
            reader.get,
            reader.shutdown,
            reader.shutdown_with_drain,
        ):
            with pytest.raises(shmcache.ReadOnlyError):
                call()
    queue.done(key)


def test_one_creates_and_all_open(name: str) -> None:
    """open() creates, then attaches; the limit of attempts is the creator's, the limiter one's
    own."""
    with (
        WorkQueue.open(name, capacity="1MiB", max_attempts=1) as first,
        WorkQueue.open(name, rate_limiter=FastSlow(LONG, LONG, 0)) as second,
    ):
        second.add_rate_limited("a")
        assert second.delayed()[0].seconds > LONG / 2
        first.add("b")
        with pytest.raises(LookupError), second.work(0):
            raise LookupError
        assert [letter.key for letter in first.dead_letters()] == ["b"]
    with pytest.raises(shmcache.ArenaExistsError):
        WorkQueue.create(name)
    for wrong in (-1, 65_536, True, "3"):
        with pytest.raises((TypeError, ValueError), match="max_attempts"):
            WorkQueue.open(name, max_attempts=wrong)  # type: ignore[arg-type]


def test_another_kind(name: str, queue: WorkQueue) -> None:
    """A WorkQueue is not attached to as a FIFO, nor a Store as a WorkQueue; attach() without a
    kind finds it."""
    with pytest.raises(shmcache.IncompatibleArenaError, match="is a WorkQueue, not a FIFO"):
        shmcache.FIFO.attach(queue.name)
    with Store.create(name, capacity="1MiB"), pytest.raises(shmcache.IncompatibleArenaError):
        WorkQueue.attach(name)
    queue.add("a")
    with shmcache.attach(queue.name, cache=0, codec=shmcache.RawCodec()) as found:
        assert isinstance(found, WorkQueue)
        assert (found.writable, found.queued()) == (False, ["a"])


def test_a_full_queue(name: str) -> None:
    """What does not fit is a CapacityError, and changes nothing; work that fails without room for
    its delay goes back to the queue."""
    with WorkQueue.create(name, capacity="256KiB") as queue:
        with pytest.raises(shmcache.CapacityError):
            queue.add_many(f"{n:060}" for n in range(100_000))
        count = len(queue)
        with pytest.raises(shmcache.CapacityError):
            queue.add_after("x" * 100, 1)
        assert (len(queue), queue.delayed()) == (count, [])
        assert queue.check() == []
        with pytest.raises((LookupError, shmcache.CapacityError)), queue.work(0) as key:
            raise LookupError
        assert queue.in_flight() == []
        assert key in queue.queued() or key in [one.key for one in queue.delayed()]
        assert drained(queue)


def test_a_failure_in_a_full_arena_waits_its_time(name: str) -> None:
    """A key that fails while the arena is full is parked as ever: that asks for no memory."""
    with WorkQueue.create(
        name, capacity="256KiB", rate_limiter=ExponentialBackoff(3600, 7200)
    ) as q:
        with pytest.raises(shmcache.CapacityError):
            q.add_many(f"{n:05}" + "x" * 500 for n in itertools.count())
        with pytest.raises(LookupError), q.work(0) as key:
            raise LookupError
        assert [(one.key, one.failures, one.seconds > 3000) for one in q.delayed()] == [
            (key, 1, True)
        ]
        assert q.in_flight() == []
        assert q.check() == []


def test_delays_are_in_the_order_of_their_times(queue: WorkQueue) -> None:
    """delayed() is sorted by the time, whichever way a key came to wait."""
    queue.add("worked on")
    queue.add_rate_limited(queue.get(0))
    queue.done("worked on")
    queue.add_after("worked on", 10)
    queue.add_after("late", 100)
    assert [one.key for one in queue.delayed()] == ["worked on", "late"]


def test_a_dead_letter_that_is_retried_is_added(name: str) -> None:
    """retry adds the key as add does: behind the worker that has it, and not after a shutdown."""
    with WorkQueue.create(name, capacity="1MiB", max_attempts=1) as queue:
        queue.add("a")
        with pytest.raises(LookupError), queue.work(0):
            raise LookupError
        queue.add("a")
        with queue.work(0):
            assert queue.retry("a")
            assert (len(queue), queue.dead_letters()) == (0, [])
        with pytest.raises(LookupError), queue.work(0):
            raise LookupError
        queue.shutdown()
        assert not queue.retry("a")
        assert [one.key for one in queue.dead_letters()] == ["a"]
        assert queue.check() == []
