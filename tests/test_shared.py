"""shared_reflector: the same line in every worker, and one of them fills the store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmcache
from shmcache import Indexer, ListOptions, SharedReflector, Store, WatchOptions, shared_reflector
from shmcache.sources.memory import MemorySource
from tests.procs.control import forked

DEADLINE = 30.0
SMALL = {"capacity": "1MiB"}


@pytest.fixture
def source(pod: Callable[..., dict[str, Any]]) -> MemorySource:
    return MemorySource([pod("a")])


@pytest.fixture
def start(name: str) -> Iterator[Callable[..., SharedReflector]]:
    """Starts workers, each with a handle of its own; closes them at the end."""
    started = []

    def one_more(make_source: Any, *args: Any, **options: Any) -> SharedReflector:
        made = shared_reflector(name, make_source, *args, store_options=SMALL, **options)
        started.append(made)
        return made

    yield one_more
    for made in started:
        made.close(DEADLINE)


def seen(store: Store, key: str) -> None:
    """Wait until the store has the key."""
    while key not in store:
        assert store.wait_for_change(store.version, DEADLINE) > 0


def test_one_is_elected_and_all_read(
    start: Callable[..., SharedReflector], source: MemorySource
) -> None:
    """Of several workers one fills the store, and each reads it."""
    workers = [start(lambda: source, "v1/Pod") for _ in range(3)]
    for worker in workers:
        assert worker.store.wait_for_sync(DEADLINE)
        assert worker.store.list_keys() == ["default/a"]
        assert worker.store.reflector_status().alive
    assert [worker.elected for worker in workers].count(True) == 1


def test_the_next_goes_on_where_the_last_was(
    start: Callable[..., SharedReflector], source: MemorySource, pod: Callable[..., dict[str, Any]]
) -> None:
    """When the elected one ends another takes over by a watch, and what happened since is there."""
    first = start(lambda: source)
    seen(first.store, "default/a")  # so that it is the first that is elected
    second = start(lambda: source)
    assert source.wait_for_watch(DEADLINE)
    asked = len(source.requests)  # before: the next asks as soon as the place is free
    first.close(DEADLINE)
    source.add(pod("b"))
    seen(second.store, "default/b")
    assert second.elected
    assert [type(request) for request in source.requests[asked:]] == [WatchOptions]


def test_only_the_elected_makes_a_source(start: Callable[..., SharedReflector]) -> None:
    """Who stands by never calls make_source, so it has no client and no connection."""
    made = []

    def make_source() -> MemorySource:
        made.append(threading.current_thread().name)
        return MemorySource()

    first = start(make_source)
    assert first.store.wait_for_sync(DEADLINE)
    second = start(make_source)
    second.close(DEADLINE)
    assert len(made) == 1


def test_a_source_that_cannot_be_made_is_tried_again(
    start: Callable[..., SharedReflector], source: MemorySource
) -> None:
    """What make_source raises is an error of the source: counted, reported, and tried again."""
    failures = [OSError("no configuration yet")]

    def make_source() -> MemorySource:
        if failures:
            raise failures.pop()
        return source

    worker = start(make_source, backoff=shmcache.Backoff(initial=0.0, cap=0.0))
    assert worker.store.wait_for_sync(DEADLINE)
    assert worker.reflector.stats().last_error == "OSError: no configuration yet"


def test_it_fills_an_indexer_through_a_transform(
    name: str, source: MemorySource, pod: Callable[..., dict[str, Any]]
) -> None:
    """store, store_options and the reflector's options are those of the classes."""
    with shared_reflector(
        name,
        lambda: source,
        store=Indexer,
        store_options=SMALL,
        transform=lambda obj: {"metadata": obj["metadata"], "short": True},
    ) as worker:
        assert isinstance(worker.store, Indexer)
        seen(worker.store, "default/a")
        assert worker.store.by_index("namespace", "default")[0]["short"]
        assert worker.reflector.name == name
    assert worker.store.closed


def test_a_closed_one_can_be_closed_again(
    start: Callable[..., SharedReflector], source: MemorySource
) -> None:
    """close is idempotent, and ends a list that is under way."""
    source.pause()
    worker = start(lambda: source)
    worker.close(DEADLINE)
    worker.close()
    assert not worker.elected
    assert all(isinstance(request, ListOptions | WatchOptions) for request in source.requests)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((MemorySource(),), {}, TypeError, "must be a function that returns a source"),
        ((MemorySource, 7), {}, TypeError, "expected_type"),
        ((MemorySource,), {"store": dict}, TypeError, "must be Store or a class of its kind"),
        ((MemorySource,), {"page_size": -1}, ValueError, "page_size"),
        ((MemorySource,), {"no_such_option": 1}, TypeError, "no_such_option"),
        ((MemorySource,), {"standby": False}, ValueError, "standby cannot be False"),
    ],
)
def test_arguments_that_cannot_be_meant(
    name: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """They are refused at once, and no handle stays open."""
    with pytest.raises(error, match=message):
        shared_reflector(name, *arguments, store_options=SMALL, **options)


class Connected(MemorySource):
    """As if it had a connection, which a forked child would interrupt in the parent too."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def interrupt(self) -> None:
        if os.getpid() != self._pid:
            os._exit(99)
        super().interrupt()


def test_a_forked_child_closes_only_its_own(
    start: Callable[..., SharedReflector], pod: Callable[..., dict[str, Any]]
) -> None:
    """Closed in a forked child, it lets go of the child's handle; the parent's work, and what that
    is blocked in, is left alone."""
    source = Connected()
    worker = start(lambda: source, "v1/Pod")
    assert worker.store.wait_for_sync(DEADLINE)
    assert source.wait_for_watch(DEADLINE)

    def child() -> None:
        worker.close()
        assert worker.store.closed

    assert forked(child) == 0
    assert worker.elected
    source.add(pod("b"))
    seen(worker.store, "default/b")
    assert len(source.requests) == 1
