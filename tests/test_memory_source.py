"""The source in memory goes wrong as it is told, and only then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from shmcache import ApiError, Event, ExpiredError, ListOptions, Reflector, Store, WatchOptions
from shmcache.sources.memory import MemorySource

DEADLINE = 30.0
NOW = ListOptions()


def pod(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, **fields}


def names(source: MemorySource) -> list[str]:
    return [item["metadata"]["name"] for item in source.list(NOW).items]


def test_objects_get_type_and_version() -> None:
    """What is added is copied, gets kind and version, and keeps a type of its own."""
    mine = pod("a")
    source = MemorySource([mine], api_version="apps/v1", kind="Deployment")
    source.add(pod("b", kind="Other", apiVersion="v2"))
    first, second = source.list(NOW).items
    assert (first["apiVersion"], first["kind"]) == ("apps/v1", "Deployment")
    assert (second["apiVersion"], second["kind"]) == ("v2", "Other")
    assert int(first["metadata"]["resourceVersion"]) < int(second["metadata"]["resourceVersion"])
    assert mine == pod("a")


def test_writes_that_cannot_be_meant() -> None:
    """Adding a key twice, or changing or deleting what is not there, is an error."""
    source = MemorySource([pod("a")])
    with pytest.raises(ValueError, match="'a'"):
        source.add(pod("a"))
    with pytest.raises(KeyError):
        source.update(pod("b"))
    with pytest.raises(KeyError):
        source.delete("b")
    assert names(source) == ["a"]
    source.delete(pod("a"))
    assert names(source) == []


def test_requests_are_recorded() -> None:
    """Every request is there in order, with its options."""
    source = MemorySource()
    source.list(ListOptions("0", 500))
    source.watch(WatchOptions("1", 300))
    assert source.requests == [ListOptions("0", 500), WatchOptions("1", 300)]


def test_fail() -> None:
    """The error comes so many times, from the call that was named, and is then over."""
    source = MemorySource([pod("a")])
    source.fail(ApiError(500, "no"), times=2)
    source.fail(ConnectionRefusedError("no"), on="watch")
    for _ in range(2):
        with pytest.raises(ApiError):
            source.list(NOW)
    assert names(source) == ["a"]
    with pytest.raises(ConnectionRefusedError):
        source.watch(WatchOptions())
    source.watch(WatchOptions())
    assert len(source.requests) == 5


def test_versions_that_it_never_gave() -> None:
    """A version of the future is 504 "too large", and text that is no number 400."""
    source = MemorySource()
    for options, status in [("99", 504), ("x", 400)]:
        with pytest.raises(ApiError) as caught:
            source.watch(WatchOptions(options))
        assert caught.value.status == status


def test_expire_ends_watches_and_pages() -> None:
    """An open watch gets its events, then an ERROR event of 410; tokens expire too."""
    source = MemorySource([pod("a"), pod("b")])
    page = source.list(ListOptions(limit=1))
    watch = source.watch(WatchOptions(page.resource_version))
    source.add(pod("c"))
    source.expire()
    added, error = watch
    assert (added.type, error.type, error.object["code"]) == ("ADDED", "ERROR", 410)
    with pytest.raises(ExpiredError):
        source.list(ListOptions(continue_token=page.continue_token))
    for version in (page.resource_version, added.object["metadata"]["resourceVersion"]):
        with pytest.raises(ExpiredError):
            source.watch(WatchOptions(version))
    source.watch(WatchOptions(source.list(NOW).resource_version))


def test_disconnect_ends_watches_after_their_events() -> None:
    """What was sent before still arrives; what comes after does not."""
    source = MemorySource()
    watch = source.watch(WatchOptions("1"))
    source.add(pod("a"))
    source.disconnect()
    source.add(pod("b"))
    assert [event.object["metadata"]["name"] for event in watch] == ["a"]


def test_bookmarks_go_to_those_who_allow_them() -> None:
    """A bookmark has a new version and a type, and no data."""
    source = MemorySource(kind="Node")
    told = source.watch(WatchOptions("1"))
    untold = source.watch(WatchOptions("1", allow_bookmarks=False))
    version = source.bookmark()
    source.disconnect()
    bookmark = {"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": version}}
    assert list(told) == [Event("BOOKMARK", bookmark)]
    assert list(untold) == []
    assert source.list(NOW).resource_version == version


def test_send_is_raw() -> None:
    """Whatever is sent arrives as it is, and is not content."""
    source = MemorySource()
    watch = source.watch(WatchOptions("1"))
    wrong: list[Any] = [Event("UNKNOWN", {}), {"type": "ADDED", "object": None}, Event("ADDED", 1)]
    for event in wrong:
        source.send(event)
    source.disconnect()
    assert list(watch) == wrong
    assert names(source) == []


def test_timeout_by_the_clock() -> None:
    """A watch ends when its seconds have passed on the clock that was given, and not before."""
    now = [100.0]
    source = MemorySource(clock=lambda: now[0])
    watch = source.watch(WatchOptions("1", timeout_seconds=300))
    now[0] = 399.0
    source.add(pod("a"))
    assert next(watch).type == "ADDED"
    ended = threading.Event()

    def read() -> None:
        assert list(watch) == []
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    now[0] = 400.0
    source.wake()
    assert ended.wait(DEADLINE)
    thread.join()


def test_pause_holds_everything_back() -> None:
    """While paused no list is answered and no event arrives; close still ends a watch."""
    source = MemorySource([pod("a")])
    watch = source.watch(WatchOptions("1"))
    closed = source.watch(WatchOptions("1"))
    source.pause()
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(source.list(NOW).resource_version)),
        threading.Thread(target=lambda: answers.append(next(watch).type)),
    ]
    for thread in threads:
        thread.start()
    closed.close()
    assert list(closed) == []
    assert answers == []
    source.resume()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(answers) == ["2", "ADDED"]


def test_interrupt_fails_what_waits() -> None:
    """A list and a watch that wait for resume() fail; what comes later waits again, and open
    watches stay."""
    source = MemorySource([pod("a")])
    watch = source.watch(WatchOptions("1"))
    source.pause()
    failed: list[str] = []

    def ask(call: Callable[[], object]) -> None:
        with pytest.raises(InterruptedError) as caught:
            call()
        failed.append(str(caught.value))

    calls = [lambda: source.list(NOW), lambda: source.watch(WatchOptions("1"))]
    threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    with source._changed:
        assert source._changed.wait_for(lambda: len(source.requests) == 3, DEADLINE)
    source.interrupt()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(failed) == ["the list was interrupted", "the watch was interrupted"]
    source.resume()
    assert names(source) == ["a"]
    assert next(watch).type == "ADDED"


def test_initial_events_are_of_now() -> None:
    """What is there comes first, then the bookmark that says so, then the changes; also from a
    version that has expired, but not from one of the future."""
    source = MemorySource([pod("b"), pod("a")], kind="Node")
    source.expire()
    version = source.list(NOW).resource_version
    watch = source.watch(WatchOptions("2", send_initial_events=True))
    source.delete("a")
    source.disconnect()
    first, second, end, change = watch
    assert [event.object["metadata"]["name"] for event in (first, second)] == ["a", "b"]
    assert (end.type, end.object["kind"]) == ("BOOKMARK", "Node")
    assert end.object["metadata"] == {
        "resourceVersion": version,
        "annotations": {"k8s.io/initial-events-end": "true"},
    }
    assert change.type == "DELETED"
    with pytest.raises(ApiError):
        source.watch(WatchOptions("99", send_initial_events=True))


def test_no_bookmark_to_those_who_allow_none() -> None:
    """Initial events without bookmarks have no end to be seen."""
    source = MemorySource([pod("a")])
    watch = source.watch(WatchOptions("", allow_bookmarks=False, send_initial_events=True))
    source.disconnect()
    assert [event.type for event in watch] == ["ADDED"]


def test_wrong_events_do_not_reach_a_store(store: Store) -> None:
    """With a reflector: unknown types and objects without metadata pass, the content stays."""
    source = MemorySource([pod("a")])
    with Reflector(source, "v1/Pod", store) as reflector:
        assert source.wait_for_watch(DEADLINE)
        source.send(Event("UNKNOWN", pod("x", kind="Pod", apiVersion="v1")))
        source.send(Event("ADDED", {"kind": "Pod", "apiVersion": "v1"}))
        source.send(Event("ADDED", pod("x", kind="Service", apiVersion="v1")))
        source.add(pod("end"))
        while "end" not in store:
            version = store.version
            if "end" not in store:
                assert store.wait_for_change(version, DEADLINE) != version
        assert sorted(store.list_keys()) == ["a", "end"]
        assert reflector.stats().dropped == 2


def test_wait_for_watch_says_whether_one_is_open() -> None:
    """It returns at once if a watch is open, and False when the time is over."""
    source = MemorySource()
    assert not source.wait_for_watch(0.0)
    watch = source.watch(WatchOptions("1"))
    assert source.wait_for_watch(0.0)
    watch.close()
    assert not source.wait_for_watch(0.0)


def test_many_threads_write_and_watch() -> None:
    """Writers in several threads: every watch sees every change once, in the order of versions."""
    source = MemorySource()
    watches = [source.watch(WatchOptions("1")) for _ in range(3)]

    def write(number: int) -> None:
        for turn in range(100):
            source.add(pod(f"{number}-{turn}"))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    source.disconnect()
    for watch in watches:
        versions = [int(event.object["metadata"]["resourceVersion"]) for event in watch]
        assert versions == list(range(2, 402))
