"""Priorities of the keys of a FIFO and of a WorkQueue, as their handles give them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from shmcache import FIFO, PriorityFuncError, RawCodec, WorkQueue


def make_pod(name: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": name}}


def by_first_digit(key: str) -> int:
    """``default/3-b`` has priority 3."""
    return int(key.rpartition("/")[2][0])


@pytest.fixture
def fifo(name: str) -> Iterator[FIFO]:
    with FIFO.create(name, capacity="4MiB", priority_func=by_first_digit) as fifo:
        yield fifo
        assert fifo.check() == []
        fifo.unlink()


@pytest.fixture
def work() -> Iterator[WorkQueue]:
    with WorkQueue.create(priority_func=by_first_digit) as queue:
        yield queue
        assert queue.check() == []
        queue.unlink()


def pods(*names: str) -> list[Any]:
    return [make_pod(name) for name in names]


def names(objects: list[Any]) -> list[str]:
    return [obj["metadata"]["name"] for obj in objects]


def test_the_urgent_come_first_and_equals_in_turn(fifo: FIFO) -> None:
    """Items go by priority, and those of one priority in the order in which they were queued."""
    for pod in pods("0-a", "7-b", "0-c", "3-d", "7-e", "3-f"):
        fifo.add(pod)
    order = ["7-b", "7-e", "3-d", "3-f", "0-a", "0-c"]
    assert names(fifo.list()) == order
    assert [fifo.pop()["metadata"]["name"] for _ in order] == order


@pytest.mark.parametrize("fill", [FIFO.add_many, FIFO.replace])
def test_many_at_once_have_priorities_too(fifo: FIFO, fill: Any) -> None:
    """`add_many` and `replace` ask for the priority of each key, and `pop_many` goes by them."""
    fill(fifo, pods("0-a", "1-b", "0-c", "5-d", "1-b"))
    assert names(fifo.pop_many(9)) == ["5-d", "1-b", "0-a", "0-c"]
    assert fifo.has_synced


def test_raw_items_have_priorities_too(name: str) -> None:
    """What is added past codec and key function has the priority of its key."""
    with FIFO.create(name, capacity="1MiB", codec=RawCodec(), priority_func=by_first_digit) as fifo:
        for key in ("0-a", "2-b", "1-c"):
            fifo.add_raw(key, b"")
        assert [fifo.pop_raw()[0] for _ in range(3)] == ["2-b", "1-c", "0-a"]
        fifo.unlink()


def test_an_initial_list_is_done_when_its_last_item_is(fifo: FIFO) -> None:
    """`has_synced` waits for the items of the first `replace`, whatever their priorities, and not
    for more urgent ones that came later."""
    fifo.replace(pods("0-a", "4-b"))
    fifo.add(make_pod("7-late"))
    fifo.add(make_pod("0-late"))
    seen = []
    while not fifo.has_synced:
        seen.append(fifo.pop()["metadata"]["name"])
    assert seen == ["7-late", "4-b", "0-a"]


def test_another_priority_moves_a_key_and_keeps_its_time(name: str) -> None:
    """A key that is updated with another priority stands where it would if it had had that from
    the first; without a change of priority it stays where it is."""
    urgent: set[str] = set()
    with FIFO.create(
        name, capacity="1MiB", priority_func=lambda key: 7 if key in urgent else 0
    ) as fifo:
        for pod in pods("a", "b", "c", "d"):
            fifo.add(pod)
        urgent |= {"default/b", "default/d"}
        fifo.update(make_pod("d"))
        fifo.update(make_pod("b"))
        fifo.update(make_pod("a"))
        assert names(fifo.list()) == ["b", "d", "a", "c"]
        urgent.clear()
        fifo.update(make_pod("b"))
        assert names(fifo.list()) == ["d", "a", "b", "c"]
        assert fifo.check() == []
        fifo.unlink()


def test_what_fails_goes_back_among_its_own(fifo: FIFO) -> None:
    """A claim that fails puts its item back at its place in its priority."""
    fifo.add_many(pods("0-a", "3-b", "3-c"))
    claim = fifo.claim()
    assert claim.item["metadata"]["name"] == "3-b"
    claim.fail()
    assert names(fifo.list()) == ["3-b", "3-c", "0-a"]


@pytest.mark.parametrize("given", [-1, 8, 2**70, True, 1.0, "1", None])
def test_what_is_no_priority_is_refused(name: str, given: Any) -> None:
    """An int from 0 to 7 is a priority; anything else is a PriorityFuncError with the key and what
    the function gave, and changes nothing."""
    with FIFO.create(name, capacity="1MiB", priority_func=lambda key: given) as fifo:
        with pytest.raises(PriorityFuncError) as caught:
            fifo.add_many(pods("a"))
        assert repr(given) in str(caught.value)
        assert "'default/a'" in str(caught.value)
        with pytest.raises(PriorityFuncError):
            fifo.add(make_pod("a"))
        assert len(fifo) == 0
        fifo.unlink()


def test_what_the_function_raises_leaves_the_call(fifo: FIFO) -> None:
    """An exception of the function is that of the call, and changes nothing."""
    with pytest.raises(ValueError, match="invalid literal"):
        fifo.add_many(pods("0-a", "x-b"))
    assert len(fifo) == 0


def test_a_function_is_asked_for(name: str) -> None:
    """What cannot be called is a TypeError, and no arena is made."""
    with pytest.raises(TypeError, match="priority_func"):
        FIFO.create(name, priority_func=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="priority_func"):
        WorkQueue.create(name, priority_func="high")  # type: ignore[arg-type]


def test_priorities_travel_with_a_handle(fifo: FIFO, work: WorkQueue) -> None:
    """A handle that was pickled gives the same priorities; one that attaches gives its own."""
    with pickle.loads(pickle.dumps(fifo)) as again:
        again.add_many(pods("0-a", "1-b"))
    with FIFO.attach(fifo.name) as plain:
        plain.add(make_pod("7-but-nobody-says-so"))
    assert names(fifo.list()) == ["1-b", "0-a", "7-but-nobody-says-so"]
    with pickle.loads(pickle.dumps(work)) as worker:
        assert worker.add("0-a")
        assert worker.add("2-b")
    assert work.queued() == ["2-b", "0-a"]


def test_dirty_keys_only_become_more_urgent(name: str) -> None:
    """A key that is queued and added again takes the more urgent of the two priorities."""
    now = {"a": 0, "b": 0, "c": 3}
    with WorkQueue.create(name, priority_func=now.__getitem__) as queue:
        for key in now:
            queue.add(key)
        now |= {"b": 5, "c": 0}
        for key in now:
            queue.add(key)
        assert queue.queued() == ["b", "c", "a"]
        assert queue.check() == []
        queue.unlink()


def test_delayed_keys_come_with_their_priority(work: WorkQueue) -> None:
    """What was put off has, once it is due, the priority that its key had then."""
    work.add_after("0-a", 0.001)
    work.add_after("6-b", 0.001)
    first = work.get(timeout=30)
    second = work.get(timeout=30)
    assert {first, second} == {"0-a", "6-b"}
    work.done(first)
    work.done(second)
    work.add("1-c")
    work.add_rate_limited("4-d")
    while work.delayed():  # due within 5 ms
        assert len(work) in (1, 2)
    assert work.queued() == ["4-d", "1-c"]


def test_behind_a_claim_the_newer_priority_counts(work: WorkQueue) -> None:
    """A key that is added while a worker has it is queued with its own priority after that."""
    work.add("2-a")
    work.add("5-b")
    assert work.get() == "5-b"
    work.add("5-b")
    work.done("5-b")
    assert work.queued() == ["5-b", "2-a"]
