"""Streamed lists: the initial state as events of a watch, collected in private until its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shmcache import FIFO, Store
from shmcache._errors import ApiError, CapacityError, ExpiredError
from shmcache._types import Event, ListOptions, ListResult, WatchOptions
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
    bookmark,
    pod,
)

UNSUPPORTED = ApiError(422, "sendInitialEvents is forbidden for watch")
END = bookmark(10, end="true")


def streaming(lists: Any, watches: Any, *args: Any, **options: Any) -> Run:
    return Run(lists, watches, *args, streams_lists=True, **options)


def added(name: str, version: int, **fields: Any) -> Event[Any]:
    return Event("ADDED", pod(name, version, **fields))


def test_a_stream_stands_in_for_the_list() -> None:
    """The first request is a watch at "" with initial events; nothing is ever listed."""
    run = streaming([], [[added("a", 3), END], []])
    assert run.source.calls == [
        WatchOptions("", 450, allow_bookmarks=True, send_initial_events=True),
        WatchOptions("10", 450, allow_bookmarks=True),
    ]
    assert run.store.writes == [("replace", "10")]
    assert run.store.names == ["a"]
    assert (run.stats.lists, run.stats.watches, run.stats.events) == (1, 2, 2)


def test_nothing_is_visible_before_the_end() -> None:
    """The store is untouched until the bookmark annotated "true"; "false", other text and a plain
    bookmark do not count."""
    store = RecordingStore()
    seen: list[int] = []

    def look() -> None:
        seen.append(len(store.writes))

    steps = [
        added("a", 3),
        look,
        bookmark(4),
        look,
        bookmark(5, end="false"),
        look,
        bookmark(6, end="True"),
        look,
        END,
        look,
    ]
    streaming([], [steps], store=store)
    assert seen == [0, 0, 0, 0, 1]


def test_changes_before_the_end_are_part_of_it() -> None:
    """Modifies and deletes among the initial events are applied to the collection."""
    steps = [
        added("a", 1, n=1),
        added("b", 2),
        added("c", 3),
        Event("MODIFIED", pod("a", 4, n=2)),
        Event("DELETED", pod("b", 5)),
        Event("DELETED", pod("never", 6)),
        Event("MODIFIED", pod("d", 7)),
        END,
    ]
    run = streaming([], [steps])
    assert run.store.writes == [("replace", "10")]
    assert run.store.names == ["a", "c", "d"]
    assert run.store.content["ns/a"]["n"] == 2


def test_the_stream_goes_on_as_the_watch() -> None:
    """After the end the events of the same stream are applied as they come, and each is one to
    resume from."""
    run = streaming([], [[added("a", 3), END, added("b", 11)], [Event("DELETED", pod("a", 12))]])
    assert run.store.writes == [("replace", "10"), ("add", "b"), ("delete", "a")]
    assert run.source.watched == ["", "11"]
    assert run.source.streamed == [True, False]
    assert [stream.closed for stream in run.source.streams] == [1, 1]


def test_a_stream_that_closes_after_the_end_is_watched_again() -> None:
    """Once filled, the end of the stream is that of any watch: the next starts at the last
    version, at once."""
    run = streaming([], [Short([added("a", 3), END]), []])
    assert run.source.watched == ["", "10"]
    assert run.pauses == []


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stream_that_closes_early_is_opened_again(at_once: bool) -> None:
    """Before the end the store stays as it was, and a new stream comes after a pause."""
    cut = [added("a", 3), Event("MODIFIED", pod("a", 4)), bookmark(5)]
    first = Short(cut) if at_once else cut
    run = streaming([], [first, first, [added("b", 7), END]])
    assert run.store.writes == [("replace", "10")]
    assert run.store.names == ["b"]
    assert run.source.watched == ["", "", ""]
    assert run.pauses == pytest.approx([0.8, 1.6 if at_once else 0.8])  # 300 s are a quiet time
    assert run.stats.last_error.startswith("EndedEarlyError")


def test_the_version_is_the_bookmarks() -> None:
    """No initial event's version is ever resumed from; the bookmark's is."""
    versions: list[str] = []

    def look() -> None:
        versions.append(reflector.last_sync_resource_version)

    steps = [added("a", 77), look, Event("MODIFIED", pod("a", 78)), look, END, look]
    source = Script([], [steps], streams_lists=True)
    reflector = Reflector(source, None, RecordingStore(), _clock=source.clock)
    source.stop = reflector.stop
    reflector.run()
    assert versions == ["", "", "10"]


def test_a_stream_that_knows_no_end_is_given_up() -> None:
    """A server that holds a stream for its whole time and never marks its end is listed, then and
    later: it does not know what it was asked for."""
    lists = [EMPTY, ListResult([pod("a", 3)], "20")]
    run = streaming(lists, [[added("a", 3)], [ExpiredError()], []], watch_timeout=(300, 300))
    assert [options.resource_version for options in run.source.listed] == ["0", "10"]
    assert run.source.streamed == [True, False, False]
    assert run.store.names == ["a"]


def test_a_stream_that_falls_silent_before_its_end_is_given_up() -> None:
    """Half a minute without an event, and without the end of the initial ones, is as good as the
    whole time: a list takes its place, long before the watch would be over."""
    clock = Clock()
    watching = threading.Event()

    class Mute(Silent):
        streams_lists = True

        def watch(self, options: WatchOptions) -> Any:
            if not options.send_initial_events:  # after the list: all has been seen
                reflector._stopping.set()
                return []
            return self

        def __iter__(self) -> Iterator[Event[Any]]:
            yield added("a", 3)
            watching.set()
            assert self.closing.wait(DEADLINE)

    def attend(seconds: float) -> bool:
        assert watching.wait(DEADLINE)
        if source.closed:
            return reflector._stopping.wait(DEADLINE)
        clock.now += 30.0
        return False

    source = Mute()
    store = RecordingStore()
    reflector = Reflector(source, None, store, _clock=clock, _attend_wait=attend)
    reflector.run()
    assert source.closed == 1
    assert source.lists == 1
    assert clock.now == 30.0
    assert store.writes == [("replace", EMPTY.resource_version)]


@pytest.mark.parametrize(
    "answer",
    [
        UNSUPPORTED,
        OSError("broken"),
        ApiError(500, "no"),
        [added("a", 3), Event("ERROR", {"code": 500, "message": "boom"})],
        [added("a", 3), ApiError(0, "cut")],
        Short(),
    ],
)
def test_what_a_stream_cannot_a_list_can(answer: Any) -> None:
    """A server that refuses, and any other failure, is followed at once by a list and a watch."""
    run = streaming([ListResult([pod("b", 3)], "10")], [answer, []])
    assert run.source.listed == [ListOptions("0", 500)]
    assert run.source.streamed == [True, False]
    assert run.store.names == ["b"]
    assert run.pauses == []
    assert [stream.closed for stream in run.source.streams] == [1] * len(run.source.streams)


def test_a_later_list_is_tried_as_a_stream_again() -> None:
    """The list stands in for one stream only: where the next is due, a stream is asked for."""
    run = streaming([EMPTY], [UNSUPPORTED, [ExpiredError()], [added("a", 3), bookmark(20, "true")]])
    assert run.source.streamed == [True, False, True]
    assert run.source.watched == ["", "10", "10"]
    assert run.store.names == ["a"]


def test_busy_servers_are_asked_for_the_stream_again() -> None:
    """429 and refused connections are one pause each, and no list."""
    busy = Event("ERROR", {"code": 429, "message": "slow down"})
    run = streaming([], [TOO_MANY, REFUSED, [added("a", 3), busy], [added("b", 4), END]])
    assert run.source.listed == []
    assert run.pauses == pytest.approx([0.8, 1.6, 3.2])
    assert run.store.names == ["b"]


@pytest.mark.parametrize(
    "gone", [ExpiredError(), ApiError(504, "Too large resource version: 10, current: 5")]
)
def test_a_version_that_is_gone_is_streamed_anew(gone: Exception) -> None:
    """A filled store's watch that expires leads, after a pause, to a stream at the last version,
    and if that is gone too, at once to one at ""."""
    run = streaming([], [[END, ExpiredError()], gone, [added("a", 3), bookmark(4, "true")], []])
    assert run.source.watched == ["", "10", "", "4"]
    assert run.source.streamed == [True, True, True, False]
    assert len(run.pauses) == 1
    assert run.source.listed == []
    assert run.store.names == ["a"]


def test_a_gone_version_at_the_most_recent_is_left_to_the_list() -> None:
    """A server that calls "" expired is not asked the same again and again."""
    run = streaming([EMPTY], [ExpiredError(), []])
    assert run.source.listed == [ListOptions("0", 500)]
    assert run.pauses == []


def test_initial_events_are_checked_as_all_are(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong type, no metadata and no name are dropped, what stands around them is stored."""
    steps = [
        added("a", 1),
        Event("ADDED", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}}),
        Event("ADDED", {"kind": "Pod", "apiVersion": "v1"}),
        Event("ADDED", {"kind": "Pod", "apiVersion": "v1", "metadata": {"uid": "1"}}),
        "no event",
        Event("RENAMED", pod("b", 2)),
        added("c", 3),
        END,
    ]
    with caplog.at_level(logging.WARNING, "shmcache.reflector"):
        run = streaming([], [steps], "v1/Pod")
    assert run.store.names == ["a", "c"]
    assert run.stats.dropped == 4
    assert "KeyFuncError" in caplog.text
    assert "RENAMED" in caplog.text


def test_transform_sees_each_object_of_a_stream_once() -> None:
    """It is called for every initial event and never again at the end; a key is that of the
    object as it came, and one that it fails on is dropped."""
    calls: list[str] = []

    def transform(obj: Any) -> Any:
        name = obj["metadata"]["name"]
        calls.append(name)
        if name == "bad":
            raise ValueError(name)
        return {**obj, "slim": True}

    steps = [
        added("a", 1),
        added("bad", 2),
        Event("MODIFIED", pod("a", 3, n=1)),
        END,
        added("b", 11),
    ]
    run = streaming([], [steps], transform=transform)
    assert calls == ["a", "bad", "a", "b"]
    assert run.store.names == ["a", "b"]
    assert all(obj["slim"] for obj in run.store.content.values())
    assert run.stats.dropped == 1


def test_a_store_that_refuses_a_stream_gets_another() -> None:
    """A failed replace is the store's error: a pause and a new stream, no list."""
    store = RecordingStore()
    store.refuses["replace"] = CapacityError("full")
    run = streaming([], [[added("a", 1), END], [added("b", 2), END]], store=store)
    assert run.source.streamed == [True, True]
    assert run.source.listed == []
    assert len(run.pauses) == 1
    assert run.store.names == ["b"]
    assert run.source.streams[0].closed == 1


def test_stop_in_a_stream_leaves_the_store_alone() -> None:
    """What was collected when stop() came is not stored, and nothing is listed in its place."""
    closing = threading.Event()
    source = Silent()

    class Stream:
        def __iter__(self) -> Any:
            yield added("a", 1)
            source.watching.set()
            assert closing.wait(DEADLINE)
            raise OSError("closed under its reader")

        def close(self) -> None:
            closing.set()

    source.watch = lambda options: Stream()  # type: ignore[method-assign,assignment,return-value]
    source.streams_lists = True  # type: ignore[attr-defined]
    store = RecordingStore()
    reflector = Reflector(source, None, store)
    reflector.start()
    assert source.watching.wait(DEADLINE)
    assert reflector.stop(DEADLINE)
    assert store.writes == []
    assert source.lists == 0
    assert reflector.stats().errors == 0


def test_stop_at_the_end_of_a_stream_closes_it() -> None:
    """A stream is closed also when the reflector is stopped by the replace that ends it."""

    class StoppingStore(RecordingStore):
        def replace(self, objs: Any, resource_version: str = "") -> None:
            reflector.stop()

    source = Script([], [[END, AssertionError("read after stop")]], streams_lists=True)
    reflector = Reflector(source, None, StoppingStore())
    reflector.run()
    assert source.streams[0].closed == 1
    assert reflector.stats().errors == 0


def test_a_fifo_is_filled_in_the_order_of_the_stream(fifo: FIFO) -> None:
    """A queue gets the streamed objects in the order in which they first came."""
    streaming([], [[added("b", 2), added("a", 1), Event("MODIFIED", pod("b", 3)), END]], store=fifo)
    assert [obj["metadata"]["name"] for obj in fifo.pop_many(9)] == ["b", "a"]


def test_with_a_source_that_streams(store: Store) -> None:
    """From end to end: a source in memory fills a store by streams alone, also after expiry."""
    source = MemorySource([{"metadata": {"name": f"p{number}"}} for number in range(5)])
    with Reflector(source, "v1/Pod", store) as reflector:
        assert store.wait_for_sync(DEADLINE)
        assert len(store) == 5
        source.delete("p0")
        source.add({"metadata": {"name": "new"}})
        version = store.version
        while sorted(store.list_keys()) != ["new", "p1", "p2", "p3", "p4"]:
            version = store.wait_for_change(version, DEADLINE)
        assert reflector.stats().lists == 1
    assert [type(request) for request in source.requests] == [WatchOptions]
