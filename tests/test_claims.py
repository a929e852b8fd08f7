"""Claims: items in flight, their ends, newer versions behind them, dead letters."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, Claim, ClaimLostError, DeadLetter, RawCodec


@pytest.fixture
def jobs() -> Iterator[FIFO]:
    """A queue whose items may be tried twice, whole at the end of the test."""
    with FIFO.create(capacity="4MiB", max_attempts=2) as made:
        yield made
        assert made.closed or made.check() == []
        made.unlink()


def keys(fifo: FIFO) -> list[str]:
    return [key.removeprefix("default/") for key in fifo.list_keys()]


def flying(fifo: FIFO) -> list[tuple[str, int]]:
    return [(one.key.removeprefix("default/"), one.attempt) for one in fifo.in_flight()]


def test_a_block_that_ends_is_done(jobs: FIFO, pod: Any) -> None:
    """In the block the item is in flight and nobody else's; after it, it is gone."""
    jobs.replace([pod("a"), pod("b")])
    with jobs.claim() as item:
        item["mine"] = True
        assert keys(jobs) == ["b"]
        assert flying(jobs) == [("a", 1)]
        assert (jobs.qsize(), len(jobs), jobs.get_by_key("default/a")) == (1, 1, None)
        stats = jobs.stats()
        assert (stats.in_flight, stats.pops) == (1, 0)
        assert jobs.in_flight()[0].pid == os.getpid()
        assert jobs.in_flight()[0].item == pod("a")
    assert keys(jobs) == ["b"]
    assert flying(jobs) == []
    assert jobs.stats().pops == 1
    assert [worker.pops for worker in jobs.workers()] == [1]


def test_a_block_that_raises_gives_the_item_back(jobs: FIFO, pod: Any) -> None:
    """An exception puts the item back to its old place, and counts; it goes on."""
    jobs.replace([pod("a"), pod("b"), pod("c")])
    first = jobs.claim()
    with pytest.raises(ZeroDivisionError), jobs.claim():
        raise ZeroDivisionError
    first.release()
    assert keys(jobs) == ["a", "b", "c"]
    claims = [jobs.claim(0) for _ in range(3)]
    assert [claim.attempt for claim in claims] == [1, 2, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_not_the_items_fault_is_not_counted(
    jobs: FIFO, pod: Any, error: type[BaseException]
) -> None:
    """Ctrl-C, exit and a cancelled task in the block give the item back as it was."""
    jobs.add(pod("a"))
    with pytest.raises(error), jobs.claim():
        raise error
    claim = jobs.claim(0)
    assert claim.attempt == 1
    claim.done()


def test_an_end_is_the_end(jobs: FIFO, pod: Any) -> None:
    """done(), fail() and release() end a claim once; what follows does nothing."""
    for end in ("done", "fail", "release"):
        jobs.add(pod("a"))
        claim = jobs.claim(0)
        with claim:
            getattr(claim, end)()
            assert flying(jobs) == []
        claim.fail()
        claim.release()
        claim.done()
        with pytest.raises(ClaimLostError):
            claim.renew(1)
        assert keys(jobs) == ([] if end == "done" else ["a"])
        if end != "done":
            jobs.pop(0)
    assert repr(claim) == "<Claim of 'default/a', attempt 1, ended>"


def test_the_last_failure_makes_a_dead_letter(jobs: FIFO, pod: Any) -> None:
    """After max_attempts an item is a dead letter, which retry() queues anew and drop() removes."""
    jobs.replace([pod("a"), pod("b")])
    for _ in range(2):
        jobs.claim(0).fail()
    assert keys(jobs) == ["b"]
    assert jobs.dead_letters() == [DeadLetter("default/a", pod("a"), 2, age=0.0)]
    assert jobs.stats().dead_letters == 1
    assert jobs.retry("default/a")
    assert not jobs.retry("default/a")
    assert keys(jobs) == ["b", "a"]
    jobs.pop(0)
    claim = jobs.claim(0)
    assert claim.attempt == 1
    claim.fail()
    jobs.claim(0).fail()
    assert jobs.drop("default/a")
    assert not jobs.drop("default/a")
    assert (jobs.dead_letters(), keys(jobs)) == ([], [])


def test_a_dead_letter_does_not_keep_its_key(jobs: FIFO, pod: Any) -> None:
    """The key of a dead letter can be added again; the newer version stands for it in a retry, and
    takes its place if it fails too."""
    jobs.add(pod("a", n=1))
    for _ in range(2):
        jobs.claim(0).fail()
    jobs.add(pod("a", n=2))
    assert jobs.get_by_key("default/a") == pod("a", n=2)
    assert [letter.item["n"] for letter in jobs.dead_letters()] == [1]
    for _ in range(2):
        jobs.claim(0).fail()
    assert [letter.item["n"] for letter in jobs.dead_letters()] == [2]
    jobs.add(pod("a", n=3))
    assert jobs.retry("default/a")
    assert (jobs.dead_letters(), [item["n"] for item in jobs.list()]) == ([], [3])


def test_without_a_limit_nothing_dies(fifo: FIFO, pod: Any) -> None:
    """max_attempts 0, the default, tries for ever."""
    fifo.add(pod("a"))
    for attempt in range(1, 20):
        claim = fifo.claim(0)
        assert claim.attempt == attempt
        claim.fail()
    assert fifo.dead_letters() == []


def test_a_newer_version_waits_for_the_claim(jobs: FIFO, pod: Any) -> None:
    """What is added while its key is in flight is seen by readers and given to nobody, until the
    claim is done: then it comes at its own place."""
    jobs.replace([pod("a", n=1), pod("b")])
    claim = jobs.claim(0)
    jobs.add(pod("a", n=2))
    jobs.add(pod("a", n=3))
    jobs.add(pod("c"))
    assert jobs.get_by_key("default/a") == pod("a", n=3)
    assert (jobs.qsize(), len(jobs)) == (2, 3)
    assert jobs.pop(0) == pod("b")
    assert jobs.pop(0) == pod("c")
    with pytest.raises(queue.Empty):
        jobs.pop(0)
    with pytest.raises(queue.Empty):
        jobs.claim(0)
    assert jobs.empty()
    claim.done()
    assert jobs.pop(0) == pod("a", n=3)


def test_a_newer_version_replaces_what_failed(jobs: FIFO, pod: Any) -> None:
    """It gets the old place and the attempts of what failed, but is no dead letter for them."""
    jobs.replace([pod("a", n=1), pod("b")])
    claim = jobs.claim(0)
    jobs.add(pod("a", n=2))
    claim.fail()
    assert [item.get("n") for item in jobs.list()] == [2, None]
    claim = jobs.claim(0)
    assert (claim.item["n"], claim.attempt) == (2, 2)
    jobs.add(pod("a", n=3))
    claim.fail()
    claim = jobs.claim(0)
    assert (claim.item["n"], claim.attempt, jobs.dead_letters()) == (3, 1, [])
    claim.done()


def test_what_is_deleted_does_not_come_back(jobs: FIFO, pod: Any) -> None:
    """A delete of a key in flight takes the newer version, and the item if it fails; what is added
    after that waits, and has its own place."""
    jobs.replace([pod("a", n=1), pod("b")])
    claim = jobs.claim(0)
    jobs.add(pod("a", n=2))
    jobs.delete(pod("a"))
    assert keys(jobs) == ["b"]
    claim.fail()
    assert keys(jobs) == ["b"]
    jobs.pop(0)
    jobs.add(pod("a", n=3))
    claim = jobs.claim(0)
    jobs.delete(pod("a"))
    jobs.add(pod("b"))
    jobs.add(pod("a", n=4))
    claim.fail()
    assert [item.get("n") for item in jobs.list()] == [None, 4]
    claims = [jobs.claim(0) for _ in range(2)]
    assert [claim.attempt for claim in claims] == [1, 1]


def test_replace_decides_what_comes_back(jobs: FIFO, pod: Any) -> None:
    """After a replace the queue is the list: what is in flight and not in it does not come back,
    what is in it waits for the claim."""
    jobs.replace([pod("a"), pod("b"), pod("c")])
    claims = [jobs.claim(0) for _ in range(3)]
    jobs.replace([pod("d"), pod("b", n=2), pod("e")])
    assert jobs.qsize() == 2
    claims[0].fail()
    claims[2].done()
    assert keys(jobs) == ["d", "b", "e"]
    claims[1].fail()
    assert [jobs.pop(0).get("n") for _ in range(3)] == [None, 2, None]
    assert jobs.check() == []


def test_pop_and_claim_share_a_queue(jobs: FIFO, pod: Any) -> None:
    """Consumers that pop and consumers that claim get different items, in order."""
    jobs.replace([pod(name) for name in "abcd"])
    assert jobs.pop(0) == pod("a")
    claim = jobs.claim(0)
    assert [item["metadata"]["name"] for item in jobs.pop_many(5, 0)] == ["c", "d"]
    assert claim.item == pod("b")
    claim.done()


def test_a_claim_waits_for_an_item(jobs: FIFO, pod: Any) -> None:
    """claim() sleeps until something is added, and until shutdown."""
    got: list[object] = []

    def work() -> None:
        try:
            while True:
                with jobs.claim() as item:
                    got.append(item)
        except shmcache.ShutDown:
            got.append("end")

    worker = threading.Thread(target=work)
    worker.start()
    jobs.add(pod("a"))
    jobs.add(pod("b"))
    jobs.shutdown()
    worker.join()
    assert got == [pod("a"), pod("b"), "end"]


def test_a_lease_runs_out(jobs: FIFO, pod: Any) -> None:
    """After its lease a claim has failed, and who held it is told; one that was renewed has not."""
    jobs.add(pod("a"))
    claim = jobs.claim(0, lease=1e-9)
    again = jobs.claim(60)
    assert (again.key, again.attempt) == ("default/a", 2)
    with pytest.raises(ClaimLostError, match="twice"):
        claim.done()
    claim = jobs.in_flight()[0]
    assert claim.lease is None
    again.renew(1000)
    left = jobs.in_flight()[0].lease
    assert left is not None
    assert 900 < left <= 1000
    again.renew(None)
    assert jobs.in_flight()[0].lease is None
    again.done()
    for lease in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="lease"):
            jobs.claim(0, lease=lease)
    wrong: Any = "60"
    with pytest.raises(TypeError, match=r"lease is a number of seconds, .*not '60'"):
        jobs.claim(0, lease=wrong)


def test_a_closed_handle_has_no_claims(jobs: FIFO, pod: Any) -> None:
    """What a handle held when it was closed comes back to the others, and counts as failed."""
    jobs.replace([pod("a"), pod("b")])
    with FIFO.attach(jobs.name) as other:
        claim = other.claim(0)
    with pytest.raises(shmcache.ClosedError):
        claim.done()
    jobs.pop(0)
    again = jobs.claim(60)
    assert (again.key, again.attempt) == ("default/a", 2)
    again.done()


def test_a_payload_that_cannot_be_read_has_failed(jobs: FIFO) -> None:
    """A claim whose codec fails is a CodecError with the payload, and a failure of the item."""
    jobs.add_raw("k", b"\xc1")
    for _ in range(2):
        with pytest.raises(shmcache.CodecError) as caught:
            jobs.claim(0)
        assert caught.value.obj == b"\xc1"
    assert jobs.stats().dead_letters == 1
    with shmcache.attach(jobs.name) as reader, pytest.raises(shmcache.CodecError):
        reader.dead_letters()
    with pytest.raises(shmcache.CodecError) as caught:
        jobs.dead_letters()
    assert caught.value.obj == [("k", b"\xc1")]
    assert jobs.drop("k")


def test_reading_what_is_claimed(pod: Any) -> None:
    """A read-only handle sees what is in flight and changes nothing; it cannot claim."""
    with FIFO.create(capacity="1MiB", codec=RawCodec(), max_attempts=1) as fifo:
        fifo.add_raw("a", b"1")
        fifo.add_raw("b", b"2")
        fifo.claim(0).fail()
        claim: Claim[bytes] = fifo.claim(0)
        with FIFO.attach(fifo.name, writable=False, codec=RawCodec()) as reader:
            assert [(one.key, one.item) for one in reader.in_flight()] == [("b", b"2")]
            assert [(one.key, one.item) for one in reader.dead_letters()] == [("a", b"1")]
            for call in (reader.claim, lambda: reader.retry("a"), lambda: reader.drop("a")):
                with pytest.raises(shmcache.ReadOnlyError):
                    call()
        claim.done()
        assert not fifo.retry("")
        assert not fifo.drop("\ud800")
        fifo.unlink()


@pytest.mark.parametrize("wrong", [-1, 65_536, True, 1.5, "3", None])
def test_max_attempts_is_a_small_number(wrong: Any) -> None:
    """max_attempts is 0 to 65,535; anything else is refused, and no arena is made."""
    for make in (FIFO.create, lambda **options: FIFO.open("never-made", **options)):
        with pytest.raises((TypeError, ValueError), match="max_attempts"):
            make(max_attempts=wrong)


def test_max_attempts_belongs_to_the_arena(name: str, pod: Any) -> None:
    """Who attaches or opens later has the limit of who created it."""
    with FIFO.open(name, capacity="1MiB", max_attempts=1), FIFO.open(name) as fifo:
        fifo.add(pod("a"))
        fifo.claim(0).fail()
        assert [letter.attempts for letter in fifo.dead_letters()] == [1]
        fifo.unlink()


def test_how_long_a_claim_is_held(jobs: FIFO, pod: Any) -> None:
    """The age of a claim, and that of the oldest one in the figures, count from when it was given;
    there is none where nothing is in flight."""
    assert jobs.stats().oldest_claim_age is None
    began = time.monotonic()
    jobs.add_many([pod("a"), pod("b")])
    first = jobs.claim()
    second = jobs.claim()
    oldest, newest = (one.age for one in jobs.in_flight())
    age = jobs.stats().oldest_claim_age
    assert age is not None
    assert 0 <= newest <= oldest <= age <= time.monotonic() - began
    first.done()
    later = jobs.stats().oldest_claim_age
    assert later is not None
    assert newest <= later <= time.monotonic() - began
    second.release()
    assert jobs.stats().oldest_claim_age is None


def test_how_long_a_dead_letter_is_one(name: str, pod: Any) -> None:
    """The age of a dead letter counts from the failure that made it one."""
    with FIFO.create(name, capacity="1MiB", max_attempts=1) as fifo:
        fifo.add(pod("a"))
        claim = fifo.claim()
        began = time.monotonic()
        claim.fail()
        (letter,) = fifo.dead_letters()
        assert 0 <= letter.age <= time.monotonic() - began
        fifo.unlink()


def test_an_undone_pop_does_not_replace_what_is_in_flight(jobs: FIFO) -> None:
    """What a struck pop gives back is older than a version that was claimed meanwhile."""
    jobs.add_raw("k", b"\xa2v1")
    hand: list[Any] = []
    jobs._core.pop(1, 0, hand)
    jobs.add_raw("k", b"\xa2v2")
    claim = jobs.claim(0)
    jobs._core.put_back(hand)
    claim.fail()
    assert jobs.list() == ["v2"]


def test_shutdown_at_once_brings_nothing_older_back(jobs: FIFO) -> None:
    """If shutdown(immediate=True) drops a newer version, the older one in flight stays away."""
    jobs.add_raw("k", b"\xa2v1")
    claim = jobs.claim(0)
    jobs.add_raw("k", b"\xa2v2")
    jobs.shutdown(immediate=True)
    claim.fail()
    assert jobs.list() == []


@pytest.mark.parametrize("lease", [0, -1, float("nan")])
def test_a_lease_is_renewed_for_some_time(jobs: FIFO, pod: Any, lease: float) -> None:
    """renew() refuses what claim() refuses, and the claim stays as it was."""
    jobs.add(pod("a"))
    claim = jobs.claim(0)
    with pytest.raises(ValueError, match="lease"):
        claim.renew(lease)
    assert jobs.in_flight()[0].lease is None
    claim.done()


def test_a_shutdown_waits_for_what_others_have(jobs: FIFO, pod: Any) -> None:
    """After shutdown() a consumer stays while another handle has something in flight, and gets what
    comes back; it does not wait for what it holds itself."""
    jobs.replace([pod("a"), pod("b")])
    with FIFO.attach(jobs.name) as other:
        theirs, ours = other.claim(0), jobs.claim(0)
        jobs.shutdown()
        with pytest.raises(queue.Empty):
            jobs.claim(0)
        with pytest.raises(queue.Empty):
            jobs.pop(0.01)
        theirs.fail()
        assert jobs.pop(0) == pod("a")
        with pytest.raises(shmcache.ShutDown):
            jobs.claim()
        ours.done()
        with pytest.raises(shmcache.ShutDown):
            other.pop()


def test_an_immediate_shutdown_lets_nothing_come_back(jobs: FIFO, pod: Any) -> None:
    """shutdown(immediate=True) drops what is queued and behind claims, and cancels the claims."""
    jobs.replace([pod("a", n=1), pod("b")])
    with FIFO.attach(jobs.name) as other:
        theirs = other.claim(0)
        jobs.add(pod("a", n=2))
        jobs.shutdown(immediate=True)
        assert jobs.stats().deletes == 2
        with pytest.raises(shmcache.ShutDown):
            jobs.pop()
        theirs.fail()
    assert (keys(jobs), flying(jobs)) == ([], [])
