"""The reflector's rules, one test a rule, against a scripted source.

Most tests run the reflector in their own thread, through a script: see ``tests.reflecting``.
"""

from __future__ import annotations

import copy
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmcache import FIFO, Store
from shmcache._backoff import Backoff
from shmcache._errors import (
    ApiError,
    CapacityError,
    ExpiredError,
    KeyFuncError,
    LockTimeoutError,
)
from shmcache._types import Event, ListOptions, ListResult, WatchOptions
from shmcache.listwatch import ListWatch
from shmcache.reflector import Reflector
from shmcache.sources.memory import MemorySource
from tests.reflecting import (
    DEADLINE,
    EMPTY,
    REFUSED,
    TOO_MANY,
    Clock,
    RecordingStore,
    Run,
    Script,
    Short,
    Silent,
    Stream,
    Wait,
    bookmark,
    pod,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")


# -- list -------------------------------------------------------------------------------------


def test_first_list_and_watch() -> None:
    """The first list asks for version "0" in pages of 500, the watch for the list's version."""
    run = Run([ListResult([pod("a", 3)], "10")], [[]])
    assert run.source.calls == [
        ListOptions("0", 500, ""),
        WatchOptions("10", 450, allow_bookmarks=True),
    ]
    assert run.store.writes == [("replace", "10")]
    assert run.store.names == ["a"]
    assert run.reflector.last_sync_resource_version == "10"


@pytest.mark.parametrize(("share", "seconds"), [(0.0, 1800), (0.5, 2700), (0.999, 3598)])
def test_watch_timeout_is_random_within_its_range(share: float, seconds: int) -> None:
    """Each watch asks for whole seconds somewhere between the two bounds."""
    source = Script([EMPTY], [[]])
    reflector = Reflector(
        source,
        None,
        RecordingStore(),
        watch_timeout=(1800, 3600),
        _clock=source.clock,
        _random=lambda: share,
    )
    source.stop = reflector.stop
    reflector.run()
    assert source.calls[1] == WatchOptions("10", seconds, allow_bookmarks=True)


def test_list_in_pages_reaches_the_store_as_one() -> None:
    """Ten items in pages of four are three requests and one replace at the first version."""
    pages = [
        ListResult([pod(f"p{i}", i) for i in range(4)], "10", "one"),
        ListResult([pod(f"p{i}", i) for i in range(4, 8)], "11", "two"),
        ListResult([pod(f"p{i}", i) for i in range(8, 10)], "12"),
    ]
    run = Run(pages, [[]], page_size=4)
    assert run.source.listed == [
        ListOptions("0", 4, ""),
        ListOptions("", 4, "one"),
        ListOptions("", 4, "two"),
    ]
    assert run.store.writes == [("replace", "10")]
    assert len(run.store.content) == 10
    assert run.stats.lists == 1


def test_token_that_expires_between_pages_leads_to_a_full_list() -> None:
    """An expired second page is followed by one list at the first version without limit."""
    lists = [
        ListResult([pod("old", 1)], "10", "one"),
        ExpiredError("continue token expired"),
        ListResult([pod("a", 1), pod("b", 2)], "20"),
    ]
    run = Run(lists, [[]])
    assert run.source.listed[1:] == [ListOptions("", 500, "one"), ListOptions("0", 0, "")]
    assert run.store.names == ["a", "b"]
    assert run.pauses == []


def test_other_errors_between_pages_fail_the_list() -> None:
    """Half a list never reaches the store."""
    run = Run([ListResult([pod("a", 1)], "10", "one"), ApiError(500, "no"), EMPTY], [[]])
    assert run.store.writes == [("replace", "10")]
    assert run.store.names == []
    assert len(run.pauses) == 1


def test_later_lists_ask_for_the_last_version_without_limit() -> None:
    """With a version the server's cache may answer, but only a list without limit."""
    run = Run([EMPTY, ListResult([], "30")], [[Event("ADDED", pod("a", 20)), ExpiredError()], []])
    assert run.source.listed == [ListOptions("0", 500), ListOptions("20", 0)]
    assert run.source.watched == ["10", "30"]


def test_server_that_paged_the_first_list_is_asked_in_pages_later() -> None:
    """A first list in pages means that there is no cache to answer a whole one from."""
    lists: list[Any] = [ListResult([], "10", "one"), ListResult([], "10"), ListResult([], "20")]
    run = Run(lists, [ExpiredError(), []])
    assert run.source.listed[-1] == ListOptions("10", 500)


def test_pages_of_a_list_at_the_most_recent_version_do_not_count() -> None:
    """A list at "" comes in pages from any server, so later lists are still asked whole."""
    lists = [EMPTY, ExpiredError(), ListResult([], "20", "one"), ListResult([], "20"), EMPTY]
    run = Run(lists, [ExpiredError(), ExpiredError(), []])
    assert run.source.listed[-1] == ListOptions("20", 0)


@pytest.mark.parametrize(
    "error",
    [
        ExpiredError("too old"),
        ApiError(504, "Timeout: Too large resource version: 20, current: 5"),
        ApiError(504, "Timeout (Too large resource version)"),
    ],
)
def test_list_falls_back_to_the_most_recent_version(error: ApiError) -> None:
    """A version the server cannot serve is followed at once by a list at ""."""
    run = Run([EMPTY, error, ListResult([pod("a", 1)], "3"), EMPTY], [ExpiredError()] * 2 + [[]])
    versions = [options.resource_version for options in run.source.listed]
    assert versions == ["0", "10", "", "3"]
    assert len(run.pauses) == 2  # for the watches; none for the list
    assert run.source.watched == ["10", "3", "10"]


def test_version_stays_lost_until_a_list_succeeds() -> None:
    """When the list at "" fails too, the next round asks for "" again."""
    run = Run([EMPTY, ExpiredError(), ApiError(500, "no"), EMPTY], [ExpiredError(), []])
    versions = [options.resource_version for options in run.source.listed]
    assert versions == ["0", "10", "", ""]


def test_list_error_leaves_the_store_as_it_was() -> None:
    """Failed lists change nothing and are tried again for ever, later and later."""
    failures = [ApiError(500, "no"), OSError("no route"), KeyError("bug in the source")]
    run = Run([ListResult([pod("a", 1)], "10"), *failures], [ExpiredError()])
    assert run.store.names == ["a"]
    assert run.store.writes == [("replace", "10")]
    assert run.pauses == pytest.approx([0.8, 1.6, 3.2, 6.4])
    assert run.stats.errors == 4
    assert run.stats.last_error == "KeyError: 'bug in the source'"


@pytest.mark.parametrize("answer", [None, {"items": []}, {"kind": "Table", "metadata": {}}])
def test_what_is_no_list_is_an_error(answer: Any) -> None:
    """A list of an unknown shape is not stored and not followed by a watch."""
    run = Run([answer], [[]])
    assert run.store.writes == []
    assert run.source.watched == []
    assert run.stats.last_error.startswith("TypeError")


def test_kubernetes_list_dict_is_read() -> None:
    """A raw PodList works as a list result, and its items are v1 Pods."""
    document = {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "10"},
        "items": [{"metadata": {"name": "a", "namespace": "ns"}}],
    }
    run = Run([document], [[]], "v1/Pod")
    assert run.store.content["ns/a"]["kind"] == "Pod"
    assert run.source.watched == ["10"]


def test_replace_error_ends_the_round() -> None:
    """A store that refuses the list is asked again after a pause, and nothing is watched."""
    store = RecordingStore()
    store.refuses["replace"] = CapacityError("full")
    run = Run([EMPTY, ListResult([pod("a", 1)], "11")], [[]], store=store)
    assert run.store.names == ["a"]
    assert run.source.watched == ["11"]
    assert run.stats.last_error == "CapacityError: full"
    assert run.stats.lists == 1


def test_listed_items_of_a_wrong_type_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Lists are type-checked like events; the log names what was dropped, not its content."""
    other = pod("secret", 2, kind="Secret", data="hush")
    with caplog.at_level(logging.WARNING, "shmcache.reflector"):
        run = Run([ListResult([pod("a", 1), other], "10")], [[]], "v1/Pod")
    assert run.store.names == ["a"]
    assert run.stats.dropped == 1
    assert "Secret ns/secret" in caplog.text
    assert "hush" not in caplog.text


class Weak(dict[str, Any]):
    """An object that tells whether it is still there."""


def test_a_page_is_freed_before_the_next() -> None:
    """With a transform, the objects of a page are gone when the next page is asked for."""
    pages: list[list[weakref.ref[Weak]]] = []
    alive: list[int] = []

    def list_func(options: ListOptions) -> ListResult[Any]:
        gc.collect()
        alive.append(sum(ref() is not None for page in pages for ref in page))
        number = len(pages)
        items = [Weak(pod(f"p{number}-{i}", 1)) for i in range(3)]
        pages.append([weakref.ref(item) for item in items])
        return ListResult(items, "10", "more" if number < 2 else "")

    store = RecordingStore()
    source = Script([], [[]])
    listing = ListWatch(list_func, source.watch)
    reflector = Reflector(listing, None, store, transform=dict, _clock=source.clock)
    source.stop = reflector.stop
    reflector.run()
    assert alive == [0, 0, 0]
    assert len(store.content) == 9


def names_of(store: Any) -> list[str]:
    return sorted(obj["metadata"]["name"] for obj in store.list())


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"metadata": {}}, "empty metadata.name"),
        ({"metadata": {"name": 7}}, "must be a str"),
        ({"kind": "Pod"}, "has no metadata"),
        (7, "has no metadata"),
        (pod("c", 3, number=1 << 70), "cannot encode"),
    ],
)
def test_items_that_the_store_cannot_hold_are_dropped(
    store: Store, bad: Any, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A listed object without a key, or that cannot be encoded, is dropped, counted and logged
    once; all the others are stored, at the list's version."""
    items = [bad, pod("a", 1), bad, pod("b", 2), copy.deepcopy(bad)]
    with caplog.at_level(logging.WARNING, "shmcache.reflector"):
        run = Run([ListResult(items, "10")], [[]], store=store)
    assert names_of(store) == ["a", "b"]
    assert (store.has_synced, store.resource_version) == (True, "10")
    assert run.stats.lists == 1
    assert run.stats.dropped == 3
    assert run.stats.errors == 0
    assert [error in record.message for record in caplog.records] == [True]


def test_a_list_of_nothing_that_can_be_held_is_an_empty_one(store: Store) -> None:
    """If no item at all has a key, the store has synced and is empty."""
    store.add(pod("old", 1))
    run = Run(
        [ListResult([{"metadata": {"uid": str(i)}} for i in range(50)], "10")], [[]], store=store
    )
    assert names_of(store) == []
    assert store.has_synced
    assert run.stats.dropped == 50


def test_a_refusal_of_something_else_is_an_error() -> None:
    """An error that names no listed object fails the list, and is not guessed at."""
    store = RecordingStore()
    store.refuses["replace"] = KeyFuncError("somebody else's", pod("x", 1))
    run = Run([ListResult([pod("a", 1)], "10"), ListResult([pod("a", 1)], "11")], [[]], store=store)
    assert run.stats.dropped == 0
    assert run.stats.errors == 1
    assert run.source.watched == ["11"]


# -- watch ------------------------------------------------------------------------------------


def test_events_are_applied_as_they_come() -> None:
    """ADDED, MODIFIED and DELETED are add, update and delete, at once and in order."""
    store = RecordingStore()
    seen: list[int] = []
    steps = [
        Event("ADDED", pod("a", 11)),
        lambda: seen.append(len(store.writes)),
        {"type": "MODIFIED", "object": pod("a", 12)},
        lambda: seen.append(len(store.writes)),
        Event("DELETED", pod("a", 13)),
        lambda: seen.append(len(store.writes)),
    ]
    run = Run([EMPTY], [steps], store=store)
    assert store.writes[1:] == [("add", "a"), ("update", "a"), ("delete", "a")]
    assert seen == [2, 3, 4]
    assert run.stats.events == 3


def test_closed_watch_resumes_at_the_last_version_without_a_list() -> None:
    """A normal end is followed at once by a watch from the last event's version."""
    run = Run(
        [ListResult([], "1")],
        [[Event("ADDED", pod("a", 2)), Event("ADDED", pod("b", 3))], [Event("ADDED", pod("c", 4))]],
    )
    assert run.source.watched == ["1", "3"]
    assert len(run.source.listed) == 1
    assert run.pauses == []
    assert run.store.names == ["a", "b", "c"]


def test_versions_are_opaque() -> None:
    """The next watch starts at the last event's version, also when that is a smaller number."""
    run = Run([EMPTY], [[Event("ADDED", pod("a", 55)), Event("ADDED", pod("b", 32))]])
    assert run.reflector.last_sync_resource_version == "32"


def test_event_without_a_version_is_applied_and_does_not_advance() -> None:
    """A source need not give every object a version; the last one known stays."""
    run = Run([EMPTY], [[Event("ADDED", {"metadata": {"name": "a", "namespace": "ns"}})]])
    assert run.store.names == ["a"]
    assert run.reflector.last_sync_resource_version == "10"


def test_bookmarks_only_advance_the_version() -> None:
    """The store sees nothing of a bookmark, the next watch starts there."""
    steps = [
        Event("ADDED", pod("a", 10)),
        Event("MODIFIED", pod("a", 20)),
        Event("BOOKMARK", pod("", 30)),
    ]
    run = Run([ListResult([], "1")], [steps, [Event("DELETED", pod("a", 40))]], "v1/Pod")
    assert [call for call, _ in run.store.writes] == ["replace", "add", "update", "delete"]
    assert run.source.watched == ["1", "30"]
    assert run.reflector.last_sync_resource_version == "40"


def test_unknown_event_type_applies_nothing_and_advances() -> None:
    """An event type from the future is logged, and its version counts."""
    run = Run([EMPTY], [[Event("RENAMED", pod("a", 20))]])
    assert run.store.writes == [("replace", "10")]
    assert run.reflector.last_sync_resource_version == "20"
    assert run.stats.dropped == 0


@pytest.mark.parametrize(
    "event",
    [
        Event("ADDED", {"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}),
        Event("ADDED", {"kind": "Pod", "apiVersion": "v1"}),
        Event("ADDED", None),
        {"type": "ADDED"},
        "ADDED",
    ],
)
def test_wrong_events_are_dropped_and_do_not_advance(event: Any) -> None:
    """A wrong type or no metadata is dropped; what stands around it is applied."""
    steps = [Event("ADDED", pod("a", 11)), event]
    run = Run([EMPTY], [steps, [Event("DELETED", pod("a", 12))]], "v1/Pod")
    assert run.source.watched == ["10", "11"]
    assert run.store.writes[1:] == [("add", "a"), ("delete", "a")]
    assert run.stats.dropped == 1
    assert run.stats.events == 2


class Typed:
    """An object in the manner of the official client's models."""

    def __init__(self, name: str, version: str) -> None:
        class Metadata:
            namespace = "ns"

        self.metadata = Metadata()
        self.metadata.name = name  # type: ignore[attr-defined]
        self.metadata.resource_version = version  # type: ignore[attr-defined]


def test_expected_type_may_be_a_class() -> None:
    """With a class, instances pass and everything else is dropped."""
    lists = [ListResult([Typed("a", "1"), pod("b", 2)], "10")]
    run = Run(lists, [[Event("ADDED", pod("c", 3)), Event("ADDED", Typed("d", "4"))]], Typed)
    assert run.store.names == ["a", "d"]
    assert run.reflector.last_sync_resource_version == "4"
    assert run.stats.dropped == 2


def test_expected_type_may_be_of_a_group() -> None:
    """The string is everything of apiVersion, a slash, and the kind."""
    deployment = pod("d", 1) | {"kind": "Deployment", "apiVersion": "apps/v1"}
    run = Run([ListResult([deployment, pod("a", 1)], "10")], [[]], "apps/v1/Deployment")
    assert run.store.names == ["d"]


@pytest.mark.parametrize("error", [CapacityError("full"), RuntimeError("bug in the store")])
def test_store_error_in_a_watch_is_logged_and_passed(error: Exception) -> None:
    """An event that the store refuses is counted as an error, and the watch goes on."""
    store = RecordingStore()
    store.refuses["a"] = error
    run = Run([EMPTY], [[Event("ADDED", pod("a", 11)), Event("ADDED", pod("b", 12))]], store=store)
    assert run.store.names == ["b"]
    assert run.reflector.last_sync_resource_version == "12"
    assert run.stats.errors == 1
    assert run.stats.last_error == f"{type(error).__name__}: {error}"


class Full(RecordingStore):
    """A store that is told versions, and has no room for "a", nor for the first list after it."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses["a"] = CapacityError("full")

    def add(self, obj: Any) -> None:
        if obj["metadata"]["name"] == "a":
            self.refuses["replace"] = CapacityError("full")
        super().add(obj)

    def bookmark(self, version: str) -> None:
        self.writes.append(("bookmark", version))


def test_what_found_no_room_is_listed_later() -> None:
    """After an event for which there was no room the store is told no later version, until a list
    at the end of a watch has brought all; while that finds no room either, the watch goes on."""
    lists = [EMPTY, ListResult([pod("a", 11)], "13"), ListResult([pod("a", 11)], "20")]
    watches = [
        [Event("ADDED", pod("z", 11)), Event("ADDED", pod("a", 12)), Event("ADDED", pod("b", 13))],
        [Event("ADDED", pod("c", 14))],
        [Event("ADDED", pod("d", 21))],
    ]
    run = Run(lists, watches, store=Full())
    assert run.source.watched == ["10", "13", "20"]
    assert run.store.writes == [
        ("replace", "10"),
        *[("add", "z"), ("bookmark", "11"), ("add", "a"), ("add", "b"), ("add", "c")],
        ("replace", "20"),
        *[("add", "d"), ("bookmark", "21")],
    ]
    assert run.pauses == pytest.approx([0.8])


def test_a_write_waits_for_who_has_the_lock() -> None:
    """While a stopped process has the lock an event is written again after a pause, and nothing
    follows it."""
    store = RecordingStore()
    store.refuses["a"] = LockTimeoutError("process 7 has held the lock")

    def at_pause(count: int) -> None:
        if count == 2:
            del store.refuses["a"]

    events = [Event("ADDED", pod("a", 11)), Event("ADDED", pod("b", 12))]
    run = Run([EMPTY], [events], store=store, at_pause=at_pause)
    assert store.writes[1:] == [("add", "a")] * 3 + [("add", "b")]
    assert run.pauses == pytest.approx([0.8, 1.6])
    assert run.source.watched == ["10"]
    assert run.stats.errors == 2


def test_what_waits_to_be_written_does_not_count() -> None:
    """stop() ends the wait, and leaves the event to a successor."""
    store = RecordingStore()
    store.refuses["a"] = LockTimeoutError("process 7 has held the lock")
    source = Script([EMPTY], [[Event("ADDED", pod("a", 11))]])
    reflector = Reflector(source, None, store, _wait=lambda seconds: reflector.stop())
    reflector.run()
    assert store.writes == [("replace", "10"), ("add", "a")]
    assert reflector.last_sync_resource_version == "10"


@pytest.mark.parametrize(
    "end",
    [
        ExpiredError("gone"),
        Event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}),
        {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}},
        Event("ERROR", {"kind": "Status", "code": 500, "message": "corrupt object"}),
        Event("ERROR", "nonsense"),
        ApiError(500, "no"),
        OSError("broken"),
    ],
)
def test_errors_of_a_watch_lead_to_a_list(end: Any) -> None:
    """After 410 and every other error the watch is closed, and the list repaired the store."""
    steps = [Event("ADDED", pod("a", 11)), end]
    run = Run([EMPTY, ListResult([pod("b", 5)], "20")], [steps, []])
    assert len(run.source.listed) == 2
    assert run.source.watched == ["10", "20"]
    assert run.store.names == ["b"]
    assert run.pauses == pytest.approx([0.8])
    assert [stream.closed for stream in run.source.streams] == [1, 1]


@pytest.mark.parametrize("count", [5, 40])
def test_refused_connections_are_retried_without_a_list(count: int) -> None:
    """A server that is down costs exponential, capped pauses and no list."""
    run = Run([EMPTY], [[Event("ADDED", pod("a", 11))], *[REFUSED] * count, []])
    assert len(run.source.listed) == 1
    assert run.source.watched == ["10"] + ["11"] * (count + 1)
    expected = [min(0.8 * 2**i, 30.0) for i in range(count)]
    assert run.pauses == pytest.approx(expected)


def test_too_many_requests_are_retried_without_a_list() -> None:
    """429, as an answer or as an event, is one pause each and no list."""
    event = Event("ERROR", {"code": 429, "message": "slow", "details": {"retryAfterSeconds": 7}})
    run = Run([EMPTY], [TOO_MANY, [event], [TOO_MANY], TOO_MANY, []])
    assert len(run.source.watched) == 5
    assert len(run.source.listed) == 1
    assert run.pauses == pytest.approx([0.8, 7.0, 3.2, 6.4])


@pytest.mark.parametrize(("seconds", "pause"), [(0.1, 0.8), (12.0, 12.0), (1e11, 1e9)])
def test_retry_after_is_the_least_pause(seconds: float, pause: float) -> None:
    """The server may ask for a longer pause than the backoff's, not for a shorter one, nor for one
    that cannot be waited for."""
    run = Run([ApiError(503, "busy", retry_after=seconds), EMPTY], [[]])
    assert run.pauses == pytest.approx([pause])


def test_backoff_may_be_chosen() -> None:
    """The pauses are the given backoff's."""
    backoff = Backoff(initial=0.01, cap=0.1, jitter=0.0)
    run = Run([EMPTY], [*[REFUSED] * 5, []], backoff=backoff)
    assert run.pauses == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.1])


def test_quiet_time_resets_the_pauses() -> None:
    """After a long healthy watch the next error starts with the shortest pause."""
    run = Run([EMPTY], [REFUSED, REFUSED, [], REFUSED, []])  # the watch takes 300 s
    assert run.pauses == pytest.approx([0.8, 1.6, 0.8])


def test_very_short_watch_is_an_error() -> None:
    """A watch that ends at once without an event leads to a pause and a list."""
    run = Run([EMPTY, EMPTY], [Short(), []], name="pods")
    assert len(run.source.listed) == 2
    assert len(run.pauses) == 1
    assert "VeryShortWatch" in run.stats.last_error
    assert "'pods'" in run.stats.last_error


def test_short_watch_with_an_event_is_no_error() -> None:
    """One event, or a bookmark, makes even a short watch a good one."""
    run = Run([EMPTY], [Short([Event("BOOKMARK", pod("", 11))]), []])
    assert len(run.source.listed) == 1
    assert run.pauses == []


def test_store_equals_each_list_whatever_came_before() -> None:
    """Through events, deletes and errors, the store is what the list said after each list."""
    store = RecordingStore()
    lists = [
        ListResult([pod("a", 1), pod("b", 2)], "2"),
        ApiError(500, "no"),
        ListResult([pod("c", 5)], "5"),
        ListResult([], "6"),
    ]
    after_list: list[list[str]] = []

    def look() -> None:
        after_list.append(store.names)

    watches = [
        [look, Event("DELETED", pod("a", 3)), Event("ADDED", pod("x", 4)), ExpiredError()],
        [look, ApiError(500, "no")],
        [look],
    ]
    Run(lists, watches, store=store)
    assert after_list == [["a", "b"], ["c"], []]


# -- transform --------------------------------------------------------------------------------


def test_transform_is_applied_once_to_each_object() -> None:
    """Listed items and the objects of ADDED, MODIFIED and DELETED go through it once and enter the
    store as it made them; bookmarks, wrong types and unknown events do not."""
    calls: list[tuple[str, str]] = []

    def transform(obj: Any) -> Any:
        calls.append((obj["metadata"]["name"], obj["metadata"]["resourceVersion"]))
        return {**obj, "slim": True}

    steps = [
        Event("ADDED", pod("b", 11)),
        Event("MODIFIED", pod("a", 12)),
        bookmark(13),
        Event("RENAMED", pod("a", 14)),
        Event("ADDED", pod("n", 15, kind="Node")),
        Event("DELETED", pod("b", 16)),
    ]
    listed = ListResult([pod("a", 1), pod("n", 2, kind="Node")], "10")
    run = Run([listed], [steps], "v1/Pod", transform=transform)
    assert calls == [("a", "1"), ("b", "11"), ("a", "12"), ("b", "16")]
    assert run.store.writes == [("replace", "10"), ("add", "b"), ("update", "a"), ("delete", "b")]
    assert [obj["slim"] for obj in run.store.content.values()] == [True]


def test_the_version_is_that_of_the_object_as_it_came() -> None:
    """A transform may leave out the version."""

    def transform(obj: Any) -> Any:
        del obj["metadata"]["resourceVersion"]
        return obj

    run = Run([EMPTY], [[Event("ADDED", pod("a", 11))], []], transform=transform)
    assert run.source.watched == ["10", "11"]


def test_what_transform_fails_on_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A listed item or an event is dropped, counted, and logged without its content; the version
    advances and what stands around it is stored."""

    def transform(obj: Any) -> Any:
        if "hush" in obj:
            raise ValueError(obj)
        return obj

    listed = ListResult([pod("a", 1), pod("b", 2, hush="hush"), pod("c", 3, hush="hush")], "10")
    steps = [Event("MODIFIED", pod("a", 11, hush="hush")), Event("ADDED", pod("d", 12))]
    with caplog.at_level(logging.DEBUG, "shmcache.reflector"):
        run = Run(
            [listed], [[*steps, Event("ADDED", pod("e", 13, hush="hush"))], []], transform=transform
        )
    assert run.store.names == ["a", "d"]
    assert (run.stats.dropped, run.stats.errors) == (4, 0)
    assert run.source.watched == ["10", "13"]
    assert "ns/b" in caplog.text
    assert "ValueError" in caplog.text
    assert "hush" not in caplog.text


def test_transform_is_checked() -> None:
    """What cannot be called is refused when the reflector is made."""
    with pytest.raises(TypeError, match="transform must be callable"):
        Reflector(Silent(), None, RecordingStore(), transform="slim")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lister_watcher": None}, "lister_watcher must be a source.*not None"),
        ({"lister_watcher": MemorySource}, "lister_watcher must be a source.*not <class"),
        ({"store": {}}, r"store must be a Store.*not {}"),
        ({"store": "pods"}, "store must be a Store.*not 'pods'"),
        ({"store": None}, "store must be a Store.*not None"),
        ({"backoff": 1.5}, r"backoff must be a Backoff\(\) or None, not 1.5"),
        ({"watch_timeout": 300}, r"watch_timeout must be \(least, most\) in seconds, not 300"),
    ],
)
def test_what_can_never_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    """Arguments of another kind are a TypeError when the reflector is made, and not an error of
    every list that only a log would tell of."""
    fit = {"lister_watcher": Silent(), "expected_type": None, "store": RecordingStore()}
    with pytest.raises(TypeError, match=message):
        Reflector(**{**fit, **arguments})
    with pytest.raises(ValueError, match="resync_period must be seconds from 0, not nan"):
        Reflector(**fit, resync_period=float("nan"))


# -- internal errors --------------------------------------------------------------------------

INTERNAL = Event("ERROR", {"kind": "Status", "code": 500, "message": "boom"})


def failing(seconds: float, error: Any = INTERNAL) -> list[Any]:
    """A watch that fails so many seconds after it was opened."""
    return [Wait(seconds), error]


def test_internal_errors_are_listed_after_by_default() -> None:
    """A 500, as an event and as an answer, is not retried unless that was asked for."""
    for error in (INTERNAL, ApiError(500, "no")):
        run = Run([EMPTY, EMPTY], [[error], []])
        assert len(run.source.listed) == 2


def test_internal_errors_are_retried_in_a_window() -> None:
    """With a window of 30 s, and an error each second, 31 watches follow without a list, each after
    a pause; then one list."""
    watches = [*[failing(1.0)] * 32, []]
    run = Run([EMPTY, EMPTY], watches, internal_error_retry=30.0)
    kinds = [type(call) for call in run.source.calls]
    assert kinds == [ListOptions, *[WatchOptions] * 32, ListOptions, WatchOptions]
    assert len(run.pauses) == 32
    assert run.stats.errors == 32


def test_a_quiet_minute_opens_a_new_window() -> None:
    """A minute without such an error makes the next one the first of another window."""
    watches = [*[failing(2.0)] * 15, failing(60.0), *[failing(2.0)] * 15, failing(59.0), []]
    run = Run([EMPTY, EMPTY], watches, internal_error_retry=30.0)
    kinds = [type(call) for call in run.source.calls]
    assert kinds == [ListOptions, *[WatchOptions] * 32, ListOptions, WatchOptions]


def test_a_quiet_minute_may_hold_good_watches_and_no_pause() -> None:
    """Watches that end well count as quiet, the pauses between the tries do not."""
    clock = Clock()

    def pause(seconds: float) -> bool:
        clock.now += 100.0
        return False

    source = Script([EMPTY, EMPTY], [failing(1.0), failing(1.0), []])
    source.clock = clock
    reflector = Reflector(
        source, None, RecordingStore(), internal_error_retry=30.0, _clock=clock, _wait=pause
    )
    source.stop = reflector.stop
    reflector.run()
    assert len(source.listed) == 2

    run = Run([EMPTY], [failing(1.0), [], failing(1.0), []], internal_error_retry=30.0)
    assert len(run.source.listed) == 1


def test_a_list_opens_a_new_window() -> None:
    """The window belongs to one list: after the next the retries begin anew."""
    watches = [failing(1.0), failing(31.0), failing(1.0), []]
    run = Run([EMPTY, EMPTY], watches, internal_error_retry=30.0)
    assert len(run.source.listed) == 2
    assert len(run.source.watched) == 4


@pytest.mark.parametrize(
    "error", [ApiError(503, "no"), ApiError(0, "cut"), OSError("broken"), ExpiredError()]
)
def test_other_errors_are_never_retried_so(error: Exception) -> None:
    """Within the window too, any error but 500 leads to a list."""
    run = Run([EMPTY, EMPTY], [failing(1.0), failing(1.0, error), []], internal_error_retry=30.0)
    assert len(run.source.listed) == 2


# -- silence ----------------------------------------------------------------------------------


class Stalled(Silent):
    """A source whose first watch gives some events and then nothing; the second ends the test."""

    def __init__(self, *steps: Any, closing_fails: bool = False) -> None:
        super().__init__()
        self.steps = steps
        self.closing_fails = closing_fails
        self.clock = Clock()
        self.versions: list[str] = []
        self.stop: Callable[[], object] = lambda: None

    def watch(self, options: WatchOptions) -> Any:
        self.versions.append(options.resource_version)
        if len(self.versions) == 2:
            self.stop()
            return []
        return self

    def __iter__(self) -> Iterator[Any]:
        for step in self.steps:
            if isinstance(step, Wait):
                self.clock.now += step.seconds
            else:
                yield step
        self.watching.set()
        assert self.closing.wait(DEADLINE)
        if self.closing_fails:
            raise OSError("closed under its reader")


@pytest.mark.parametrize(
    ("steps", "version", "waits", "times"),
    [
        ([], "10", [315.0], [315.0]),
        ([Wait(100), Event("ADDED", pod("a", 11))], "11", [315.0, 100.0], [315.0, 415.0]),
        ([Wait(100), bookmark(12)], "12", [315.0, 100.0], [315.0, 415.0]),
        ([Wait(100), "no event"], "10", [315.0, 100.0], [315.0, 415.0]),
    ],
)
@pytest.mark.parametrize("closing_fails", [False, True])
def test_a_silent_watch_is_closed_and_resumed(
    steps: list[Any], version: str, waits: list[float], times: list[float], closing_fails: bool
) -> None:
    """Nothing for the watch's own time and 15 s ends it from outside, as any watch ends: the next
    is at the last version, with no list, pause or error. Whatever comes counts as a sign of life,
    and nobody looks before the time."""
    source = Stalled(*steps, closing_fails=closing_fails)
    waited: list[float] = []
    left = iter(times)

    def attend(seconds: float) -> bool:
        assert source.watching.wait(DEADLINE)
        if source.closed:
            return reflector._stopping.wait(DEADLINE)
        waited.append(seconds)
        source.clock.now = next(left)
        return False

    reflector = Reflector(
        source,
        None,
        RecordingStore(),
        watch_timeout=(300, 300),
        _clock=source.clock,
        _attend_wait=attend,
    )
    source.stop = reflector.stop
    reflector.run()
    assert waited == waits
    assert source.closed == 1
    assert source.versions == ["10", version]
    assert source.lists == 1
    assert reflector.stats().errors == 0


def test_a_watch_that_speaks_is_left_open() -> None:
    """A sign of life that comes while the attendant looks at another clock saves the watch."""
    source = Silent()
    looks: list[float] = []
    looked = threading.Event()
    now = Clock()

    def attend(seconds: float) -> bool:
        assert source.watching.wait(DEADLINE)
        looks.append(seconds)
        if len(looks) == 3:
            looked.set()
            return reflector._stopping.wait(DEADLINE)
        now.now += 100.0
        return False

    reflector = Reflector(
        source, None, RecordingStore(), watch_timeout=(300, 300), _clock=now, _attend_wait=attend
    )
    with reflector:
        assert looked.wait(DEADLINE)
        assert source.closed == 0
    assert looks == [315.0, 215.0, 115.0]


# -- errors of a watch, from end to end -------------------------------------------------------


def test_a_corrupt_object_disappears_with_the_next_list() -> None:
    """An ERROR event about an object that cannot be read leads to a list without it: the others
    stay, and the version is the new list's."""
    lists = [ListResult([pod("a", 1), pod("corrupt", 2)], "10"), ListResult([pod("a", 1)], "20")]
    error = Event("ERROR", {"kind": "Status", "code": 500, "message": "unable to decode an object"})
    run = Run(lists, [[Event("ADDED", pod("b", 11)), error], []])
    assert run.store.names == ["a"]
    assert run.source.watched == ["10", "20"]


def test_versions_of_an_unordered_beginning_are_not_taken() -> None:
    """A watch without a version begins with what is there in any order: the versions of ADDED
    events count only after a bookmark or another event."""
    first = [Event("ADDED", pod("a", 9)), Event("ADDED", pod("b", 3))]
    second = [*first, Event("MODIFIED", pod("a", 12)), Event("ADDED", pod("c", 14))]
    third = [Event("ADDED", pod("d", 15))]
    run = Run([ListResult([], "")], [first, second, third, []])
    assert run.source.watched == ["", "", "14", "15"]
    run = Run([ListResult([], "")], [[*first, bookmark(20)], []])
    assert run.source.watched == ["", "20"]


def test_a_queue_gets_each_event_in_order(fifo: FIFO) -> None:
    """List at version 1, watch from 1, closed after 3, watched again from 3 without a list: five
    items are popped in order, with versions 2 to 6."""
    watches = [
        [Event("ADDED", pod("a", 2)), Event("ADDED", pod("b", 3))],
        [Event("ADDED", pod(name, version)) for name, version in [("c", 4), ("d", 5), ("e", 6)]],
        [],
    ]
    run = Run([ListResult([], "1")], watches, store=fifo)
    popped = [
        (obj["metadata"]["name"], obj["metadata"]["resourceVersion"]) for obj in fifo.pop_many(9)
    ]
    assert popped == [("a", "2"), ("b", "3"), ("c", "4"), ("d", "5"), ("e", "6")]
    assert run.source.watched == ["1", "3", "6"]
    assert len(run.source.listed) == 1


def test_a_queue_equals_each_list(fifo: FIFO) -> None:
    """Six rounds of events, deletes, list errors, watch errors and new lists: at each list that
    succeeds the queue holds what the list said."""
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(names_of(fifo))

    lists = [
        ListResult([pod("a", 1)], "1"),
        ListResult([pod("a", 1), pod("b", 3)], "4"),
        ApiError(500, "no"),
        ListResult([pod("c", 5)], "6"),
        ListResult([], "8"),
    ]
    watches = [
        [look, Event("ADDED", pod("b", 3)), Event("DELETED", pod("a", 4)), ExpiredError()],
        [look, ApiError(500, "no")],
        ApiError(500, "no"),
        [look, Event("MODIFIED", pod("d", 9))],
    ]
    Run(lists, watches, store=fifo)
    assert seen == [["a"], ["a", "b"], []]
    assert names_of(fifo) == ["d"]


# -- against a model of a server --------------------------------------------------------------

ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcd")),
    st.tuples(st.just("delete"), st.sampled_from("abcd")),
    st.tuples(st.sampled_from(["cut", "bookmark", "compact", "refuse", "fail"]), st.just("")),
)


class ModelServer:
    """Objects, their history, and a script of changes and faults; a list or watch consumes it.

    Changes happen while a watch is open and while none is; ``compact`` forgets the history.
    """

    def __init__(self, actions: list[tuple[str, str]], streams_lists: bool = False) -> None:
        self.actions = list(actions)
        self.streams_lists = streams_lists
        self.objects: dict[str, Any] = {}
        self.history: list[Event[Any]] = []
        self.forgotten = 0
        self.version = 0
        self.stop: Callable[[], object] = lambda: None

    def act(self) -> str:
        if not self.actions:
            return "end"
        action, name = self.actions.pop(0)
        if action == "put":
            self.version += 1
            kind = "MODIFIED" if name in self.objects else "ADDED"
            self.objects[name] = pod(name, self.version)
            self.history.append(Event(kind, self.objects[name]))
        elif action == "delete" and name in self.objects:
            self.version += 1
            del self.objects[name]
            self.history.append(Event("DELETED", pod(name, self.version)))
        elif action == "compact":
            self.forgotten = self.version
        return action

    def answer(self) -> None:
        action = self.act()
        if action == "refuse":
            raise REFUSED
        if action == "fail":
            raise ApiError(500, "no")

    def list(self, options: ListOptions) -> ListResult[Any]:
        self.answer()
        return ListResult(list(self.objects.values()), str(self.version))

    def watch(self, options: WatchOptions) -> Iterator[Event[Any]]:
        self.answer()
        if options.send_initial_events:
            return self.initial_events()
        return self.events(int(options.resource_version))

    def initial_events(self) -> Iterator[Event[Any]]:
        seen = self.version
        for obj in list(self.objects.values()):
            yield Event("ADDED", obj)
            if self.act() == "cut":
                return
        yield bookmark(seen, end="true")
        yield from self.events(seen)

    def events(self, seen: int) -> Iterator[Event[Any]]:
        while True:
            if seen < self.forgotten:
                yield Event("ERROR", {"code": 410, "reason": "Expired"})
                return
            for event in self.history[seen:]:
                seen += 1
                yield event
            action = self.act()
            if action == "end" and seen == self.version:
                self.stop()
                return
            if action == "bookmark":
                yield Event("BOOKMARK", pod("", seen))
            if action == "cut":
                return


@settings(max_examples=200, deadline=None)
@given(st.lists(ACTIONS, max_size=30), st.booleans())
def test_store_follows_any_server(actions: list[tuple[str, str]], streams_lists: bool) -> None:
    """Whatever changes and fails on the server, and whether it streams its lists or not, the store
    ends equal to it, object by object."""
    server = ModelServer(actions, streams_lists)
    store = RecordingStore()
    reflector = Reflector(server, "v1/Pod", store, _wait=lambda seconds: False)
    server.stop = reflector.stop
    reflector.run()
    assert store.names == sorted(server.objects)
    assert {obj["metadata"]["name"]: obj for obj in store.content.values()} == server.objects
    assert reflector.last_sync_resource_version == str(server.version)


# -- life cycle, with threads -----------------------------------------------------------------


def test_stop_ends_a_blocked_watch() -> None:
    """stop() closes the active watch once, waits for the thread, and reports no error."""
    source = Silent()
    reflector = Reflector(source, None, RecordingStore(), name="pods")
    reflector.start()
    assert source.watching.wait(DEADLINE)
    assert "shmcache-reflector-pods" in [thread.name for thread in threading.enumerate()]
    assert reflector.stop(DEADLINE)
    assert reflector.stop()
    assert source.closed == 1
    assert reflector.stats().errors == 0


def test_stop_event_ends_a_blocked_watch() -> None:
    """run() returns after the caller's event is set, which stays the caller's."""
    source = Silent()
    stop = threading.Event()
    reflector = Reflector(source, None, RecordingStore())
    thread = threading.Thread(target=reflector.run, args=(stop,))
    thread.start()
    assert source.watching.wait(DEADLINE)
    stop.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert source.closed == 1


def test_stop_does_not_set_the_callers_event() -> None:
    """An event may be shared by many reflectors, so stop() of one leaves it alone."""
    source = Silent()
    stop = threading.Event()
    reflector = Reflector(source, None, RecordingStore())
    thread = threading.Thread(target=reflector.run, args=(stop,))
    thread.start()
    assert source.watching.wait(DEADLINE)
    assert reflector.stop(DEADLINE)
    thread.join(DEADLINE)
    assert not stop.is_set()


def test_stop_wakes_a_pause() -> None:
    """A reflector that waits out a long pause stops at once."""
    listed = threading.Event()

    def fail(options: ListOptions) -> ListResult[Any]:
        listed.set()
        raise ApiError(503, "busy", retry_after=10 * DEADLINE)

    reflector = Reflector(ListWatch(fail, lambda options: ()), None, RecordingStore())
    reflector.start()
    assert listed.wait(DEADLINE)
    assert reflector.stop(DEADLINE)


def test_stop_before_start_calls_nothing() -> None:
    """A reflector that was stopped first neither lists nor watches."""
    for by_event in (False, True):
        source = Silent()
        reflector = Reflector(source, None, RecordingStore())
        stop = threading.Event()
        if by_event:
            stop.set()
        else:
            assert reflector.stop()
        reflector.run(stop)
        assert source.lists == 0
        assert reflector.stats().errors == 0


def test_stop_from_the_reflectors_own_thread_does_not_wait() -> None:
    """A store's callback may stop the reflector that called it; later events do not count."""
    stopped: list[bool] = []

    class StoppingStore(RecordingStore):
        def add(self, obj: Any) -> None:
            stopped.append(reflector.stop())

    source = Script([EMPTY], [[Event("ADDED", pod("a", 11)), Event("ADDED", pod("b", 12))]])
    reflector = Reflector(source, None, StoppingStore())
    reflector.run()
    assert stopped == [False]
    assert source.streams[0].closed == 1
    assert reflector.stop()


def test_stop_interrupts_a_blocked_list() -> None:
    """A list that waits for a server ends at stop(), if the source can be interrupted."""
    source = MemorySource()
    source.pause()
    store = RecordingStore()
    reflector = Reflector(
        ListWatch(source.list, source.watch, False, source.interrupt), None, store
    )
    reflector.start()
    with source._changed:
        assert source._changed.wait_for(lambda: len(source.requests) == 1, DEADLINE)
    assert reflector.stop(DEADLINE)
    assert store.writes == []
    assert reflector.stats().errors == 0


@pytest.mark.parametrize("by_event", [True, False])
def test_no_call_slips_through_a_stop(by_event: bool) -> None:
    """A list that begins just after stop() interrupted the source is ended by a later
    interruption: they go on until the reflector has ended."""
    stop = threading.Event()
    blocked, released = threading.Event(), threading.Event()
    interruptions: list[bool] = []

    def list_func(options: ListOptions) -> ListResult[Any]:
        if by_event:
            stop.set()
        else:
            reflector.stop()  # in its own thread, as a signal handler does: it interrupts once
        blocked.set()
        assert released.wait(DEADLINE)
        raise OSError("interrupted")

    def interrupt() -> None:
        interruptions.append(blocked.is_set())
        if interruptions.count(True) == 3:
            released.set()
        raise RuntimeError("a source may fail at this too")

    source = ListWatch(list_func, lambda options: [], interrupt_func=interrupt)
    reflector = Reflector(source, None, RecordingStore())
    reflector.run(stop if by_event else None)
    assert released.is_set()
    assert reflector.stats().errors == 0


def test_stop_while_a_watch_opens_closes_it() -> None:
    """A watch that opens after stop() is closed and not read."""
    source = Script([EMPTY], [[AssertionError("read after stop")]])
    reflector = Reflector(source, None, RecordingStore())
    open_watch = source.watch

    def stop_while_opening(options: WatchOptions) -> Stream:
        reflector.stop()
        return open_watch(options)

    source.watch = stop_while_opening  # type: ignore[method-assign]
    reflector.run()
    assert source.streams[0].closed == 1
    assert reflector.stats().errors == 0


def test_stop_between_pages_leaves_the_store_alone() -> None:
    """A list that was stopped half-way is not stored."""
    source = Script([], [])

    def list_func(options: ListOptions) -> ListResult[Any]:
        reflector.stop()
        return ListResult([pod("a", 1)], "10", "more")

    store = RecordingStore()
    reflector = Reflector(ListWatch(list_func, source.watch), None, store)
    reflector.run()
    assert store.writes == []


def test_watch_may_be_a_generator() -> None:
    """A generator, which no other thread can close, is left at its next event."""
    watching, proceed = threading.Event(), threading.Event()

    def events(options: WatchOptions) -> Iterator[Event[Any]]:
        watching.set()
        assert proceed.wait(DEADLINE)
        yield Event("ADDED", pod("a", 11))
        raise AssertionError("read after stop")

    store = RecordingStore()
    reflector = Reflector(ListWatch(lambda options: EMPTY, events), None, store)
    reflector.start()
    assert watching.wait(DEADLINE)
    assert not reflector.stop(0)
    proceed.set()
    assert reflector.stop(DEADLINE)
    assert reflector.stats().errors == 0


def test_context_manager_runs_and_stops() -> None:
    """The reflector runs inside the with block and has ended after it."""
    source = Silent()
    with Reflector(source, None, RecordingStore()) as reflector:
        assert source.watching.wait(DEADLINE)
        assert reflector.last_sync_resource_version == "10"
    assert source.closed == 1


def test_a_reflector_runs_once() -> None:
    """The second start or run is refused, by name."""
    source = Silent()
    with (
        Reflector(source, None, RecordingStore(), name="pods") as reflector,
        pytest.raises(RuntimeError, match="'pods' runs once"),
    ):
        reflector.start()
    with pytest.raises(RuntimeError, match="runs once"):
        reflector.run()


class ResyncingStore(RecordingStore):
    """A store that fails its first resync and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.resyncs = 0
        self.third = threading.Event()

    def resync(self) -> None:
        self.resyncs += 1
        if self.resyncs == 1:
            raise RuntimeError("first resync fails")
        if self.resyncs == 3:
            self.third.set()


def test_resync_goes_on_through_a_blocked_watch_and_errors() -> None:
    """The store's resync is called each period, whatever the watch does, also after an error."""
    store = ResyncingStore()
    with Reflector(Silent(), None, store, resync_period=0.001) as reflector:
        assert store.third.wait(DEADLINE)
    assert reflector.stats().last_error == "RuntimeError: first resync fails"


def test_resync_waits_for_the_first_list() -> None:
    """A store that was never filled is not resynced, however long the first list takes."""
    resynced, listing = threading.Event(), threading.Event()

    class Store(RecordingStore):
        def resync(self) -> None:
            resynced.set()

    def list_func(options: ListOptions) -> ListResult[Any]:
        assert not resynced.wait(0.05)  # far more than the period
        listing.set()
        return EMPTY

    silent = Silent()
    source = ListWatch(list_func, silent.watch)
    with Reflector(source, None, Store(), resync_period=0.001) as reflector:
        assert resynced.wait(DEADLINE)
        assert listing.is_set()
    assert reflector.stats().errors == 0


def test_resync_needs_a_store_that_can() -> None:
    """A store without resync() makes the period harmless."""
    source = Silent()
    with Reflector(source, None, RecordingStore(), resync_period=0.001) as reflector:
        assert source.watching.wait(DEADLINE)
    assert reflector.stats().errors == 0


# -- the rest ---------------------------------------------------------------------------------


def test_stats_count() -> None:
    """Each counter counts what its docstring says, and the time is the clock's."""
    store = RecordingStore()
    store.refuses["b"] = RuntimeError("a bug")
    steps = [
        Event("ADDED", pod("a", 11)),
        Event("ADDED", pod("b", 12)),
        Event("ADDED", None),
        Event("BOOKMARK", pod("", 13)),
    ]
    run = Run([EMPTY, EMPTY], [[], steps, ExpiredError("old"), []], store=store)
    assert (run.stats.lists, run.stats.watches, run.stats.events) == (2, 3, 3)
    assert (run.stats.dropped, run.stats.errors) == (1, 2)
    assert run.stats.last_error == "ExpiredError: 410: old"
    assert run.stats.last_event_monotonic == 300.0
    assert run.stats.last_contact_monotonic == 600.0
    assert run.stats.last_error_monotonic == 600.0
    fresh = Reflector(run.source, None, store).stats()
    assert fresh.last_event_monotonic is None
    assert fresh.last_contact_monotonic is None
    assert fresh.last_error_monotonic is None


def test_log_is_quiet_by_default_and_names_the_reflector(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Errors go to the logger shmcache.reflector, and to stderr only if somebody asked."""
    with caplog.at_level(logging.INFO, "shmcache.reflector"):
        Run([ApiError(500, "no"), EMPTY], [[]], name="pods")
    assert [record.name for record in caplog.records] == ["shmcache.reflector"]
    assert "pods: ApiError: 500: no; next try in 0.8 s" in caplog.text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("expected_type", "error"),
    [("Pod", ValueError), ("v1/", ValueError), ("/Pod", ValueError), (7, TypeError)],
)
def test_expected_type_is_checked(expected_type: Any, error: type[Exception]) -> None:
    """An expected type that could never match is refused when the reflector is made."""
    with pytest.raises(error, match="expected_type"):
        Reflector(Silent(), expected_type, RecordingStore())


@pytest.mark.parametrize(
    "options",
    [
        {"resync_period": -1.0},
        {"resync_period": float("nan")},
        {"resync_period": float("inf")},
        {"page_size": -1},
        {"internal_error_retry": -1.0},
        {"watch_timeout": (0, 10)},
        {"watch_timeout": (20, 10)},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    """Figures that cannot be meant are refused when the reflector is made."""
    with pytest.raises(ValueError, match="must"):
        Reflector(Silent(), None, RecordingStore(), **options)


@pytest.mark.parametrize(
    ("expected_type", "name"), [(None, "any"), ("v1/Pod", "v1/Pod"), (dict, "dict")]
)
def test_default_name_is_the_expected_type(expected_type: Any, name: str) -> None:
    """A reflector without a name is called after what it expects."""
    assert Reflector(Silent(), expected_type, RecordingStore()).name == name
