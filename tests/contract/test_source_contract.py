"""What every source does alike: one suite over memory, a directory and a Kubernetes API server.

A case is a source together with somebody else who changes what it shows.
"""

from __future__ import annotations

import abc
import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache import (
    Backoff,
    Event,
    ExpiredError,
    ListerWatcher,
    ListOptions,
    ListWatch,
    Reflector,
    Store,
    WatchOptions,
    meta_namespace_key_func,
)
from shmcache.listwatch import error_from_status, read_list
from shmcache.sources.memory import MemorySource

DEADLINE = 60.0
HISTORY = 20


class Case(abc.ABC):
    """A source of pods, and the hands on the other side of it."""

    source: ListerWatcher

    @abc.abstractmethod
    def put(self, name: str, value: int) -> None:
        """Create the pod or change it."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Delete the pod."""

    @abc.abstractmethod
    def expire(self) -> None:
        """Make every version so far too old."""

    @abc.abstractmethod
    def disconnect(self) -> None:
        """End the open watches."""


def pod(name: str, value: int) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"value": value}}


class Memory(Case):
    def __init__(self) -> None:
        self.source = self.memory = MemorySource()
        self._names: set[str] = set()

    def put(self, name: str, value: int) -> None:
        write = self.memory.update if name in self._names else self.memory.add
        write(pod(name, value))
        self._names.add(name)

    def remove(self, name: str) -> None:
        self.memory.delete(f"default/{name}")
        self._names.remove(name)

    def expire(self) -> None:
        self.memory.expire()

    def disconnect(self) -> None:
        self.memory.disconnect()


class Recorded(Case):
    """A case whose watches only we can end: it remembers them."""

    def __init__(self, inner: ListerWatcher) -> None:
        self._inner = inner
        self._open: list[Any] = []
        self._opening = threading.RLock()
        self.source = ListWatch(
            inner.list,
            self._watch,
            getattr(inner, "streams_lists", False),
            getattr(inner, "interrupt", None),
        )

    def _watch(self, options: WatchOptions) -> Any:
        with self._opening:
            watch = self._inner.watch(options)
            self._open.append(watch)
            return watch

    def disconnect(self) -> None:
        while self._open:
            self._open.pop().close()


class Directory(Recorded):
    def __init__(self, folder: Path) -> None:
        pytest.importorskip("watchfiles", reason="needs the extra shmcache[directory]")
        pytest.importorskip("yaml", reason="needs the extra shmcache[directory]")
        from shmcache.sources.directory import DirectorySource

        super().__init__(DirectorySource(folder, history=HISTORY))
        self._folder = folder

    def put(self, name: str, value: int) -> None:
        written = self._folder / f".{name}"
        written.write_text(json.dumps(pod(name, value)))
        os.replace(written, self._folder / f"{name}.json")

    def remove(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink()

    def expire(self) -> None:
        with self._opening:  # a watch that is open keeps up, and does not expire
            self.disconnect()
            for value in range(HISTORY + 1):
                self.put("filler", value)
                self.source.list(ListOptions())
            self.remove("filler")


class Kubernetes(Recorded):
    def __init__(self, url: str, client: Any) -> None:
        from shmcache.sources.kubernetes import list_watch_from_client

        super().__init__(list_watch_from_client(client, "pods"))
        self._http = http.client.HTTPConnection(url.removeprefix("http://"), timeout=DEADLINE)
        self._names: set[str] = set()

    def _call(self, method: str, path: str, body: Any = None) -> None:
        headers = {"Content-Type": "application/json"}
        self._http.request(method, f"/api/v1/{path}", json.dumps(body), headers)
        response = self._http.getresponse()
        text = response.read()
        assert response.status in (200, 201), text

    def put(self, name: str, value: int) -> None:
        if name in self._names:
            self._call("PUT", f"namespaces/default/pods/{name}", pod(name, value))
        else:
            self._call("POST", "namespaces/default/pods", pod(name, value))
        self._names.add(name)

    def remove(self, name: str) -> None:
        self._call("DELETE", f"namespaces/default/pods/{name}")
        self._names.remove(name)

    def expire(self) -> None:
        for _ in range(HISTORY):  # all kinds share one history
            self._call("POST", "nodes", {"metadata": {"name": "filler"}})
            self._call("DELETE", "nodes/filler")

    def close(self) -> None:
        self._http.close()


@pytest.fixture(params=["memory", "directory", "kubernetes"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    if request.param == "memory":
        yield Memory()
    elif request.param == "directory":
        yield Directory(tmp_path)
    else:
        pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
        pytest.importorskip("msgspec", reason="needs the extra shmcache[kubernetes]")
        from shmcache.demo._api import Endpoint
        from shmcache.demo.apiserver import ApiServer

        with ApiServer(history=HISTORY) as server:
            api = Endpoint(url=server.url).connect()
            with (
                contextlib.closing(api.client),
                contextlib.closing(Kubernetes(server.url, api.client)) as made,
            ):
                yield made


def listed(source: ListerWatcher) -> Any:
    return read_list(source.list(ListOptions()))


def watch(source: ListerWatcher, version: str) -> Any:
    """A watch that ends after a minute, so that a test which waits in vain fails."""
    return iter(source.watch(WatchOptions(version, int(DEADLINE), allow_bookmarks=False)))


def short(event: Event[Any]) -> tuple[str, str, int]:
    return event.type, event.object["metadata"]["name"], event.object["spec"]["value"]


def short_list(items: Any) -> list[tuple[str, int]]:
    return sorted((item["metadata"]["name"], item["spec"]["value"]) for item in items)


def test_is_a_lister_watcher(case: Case) -> None:
    """It has the two methods of the protocol."""
    assert isinstance(case.source, ListerWatcher)


def test_list_shape(case: Case) -> None:
    """A list has every object once, with its type and version, and a version of its own."""
    case.put("a", 1)
    case.put("b", 2)
    result = listed(case.source)
    assert short_list(result.items) == [("a", 1), ("b", 2)]
    assert result.resource_version
    assert result.continue_token == ""
    for item in result.items:
        assert (item["apiVersion"], item["kind"]) == ("v1", "Pod")
        assert item["metadata"]["namespace"] == "default"


def test_an_empty_list_has_a_version(case: Case) -> None:
    """A list without objects is one that can be watched from."""
    result = listed(case.source)
    assert list(result.items) == []
    case.put("a", 1)
    events = watch(case.source, result.resource_version)
    assert short(next(events)) == ("ADDED", "a", 1)
    events.close()


def test_pages_are_one_snapshot(case: Case) -> None:
    """The pages of a list together are what was there at the first, whatever comes between."""
    for number in range(5):
        case.put(f"p{number}", 0)
    page = read_list(case.source.list(ListOptions(limit=2)))
    version, items = page.resource_version, list(page.items)
    case.put("p4", 1)
    case.remove("p3")
    while page.continue_token:
        page = read_list(case.source.list(ListOptions("", 2, page.continue_token)))
        items += page.items
    assert short_list(items) == [(f"p{number}", 0) for number in range(5)]
    events = watch(case.source, version)
    assert {short(next(events))[:2] for _ in range(2)} == {("MODIFIED", "p4"), ("DELETED", "p3")}
    events.close()


def test_versions_are_opaque_strings(case: Case) -> None:
    """Versions are non-empty strings, never "0", and another one after each change."""
    versions = [listed(case.source).resource_version]
    for value in range(3):
        case.put("a", value)
        result = listed(case.source)
        versions.append(result.resource_version)
        assert isinstance(result.items[0]["metadata"]["resourceVersion"], str)
    assert len(set(versions)) == 4
    assert all(isinstance(version, str) and version not in ("", "0") for version in versions)


def test_watch_sees_what_comes_after_its_version(case: Case) -> None:
    """From a list's version a watch has every later change in order, and nothing before."""
    case.put("before", 1)
    version = listed(case.source).resource_version
    case.put("a", 1)
    listed(case.source)
    case.put("a", 2)
    listed(case.source)
    case.remove("before")
    events = watch(case.source, version)
    assert [short(next(events)) for _ in range(3)] == [
        ("ADDED", "a", 1),
        ("MODIFIED", "a", 2),
        ("DELETED", "before", 1),
    ]
    case.put("b", 1)
    assert short(next(events)) == ("ADDED", "b", 1)
    events.close()


def test_each_event_is_a_version_to_resume_from(case: Case) -> None:
    """A watch from the version of an event begins after that event."""
    version = listed(case.source).resource_version
    events = watch(case.source, version)
    seen = []
    case.put("a", 1)
    seen.append(next(events))
    case.put("a", 2)
    seen.append(next(events))
    case.remove("a")
    seen.append(next(events))
    events.close()
    assert [short(event)[0] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
    case.put("end", 0)
    for number, event in enumerate(seen):
        events = watch(case.source, event.object["metadata"]["resourceVersion"])
        assert short(next(events)) == (*map(short, seen[number + 1 :]), ("ADDED", "end", 0))[0]
        events.close()


def test_deleted_has_the_last_state(case: Case) -> None:
    """The object of a DELETED event is as it was last, its type included."""
    case.put("a", 1)
    events = watch(case.source, listed(case.source).resource_version)
    case.put("a", 2)
    assert short(next(events)) == ("MODIFIED", "a", 2)
    case.remove("a")
    event = next(events)
    assert short(event) == ("DELETED", "a", 2)
    assert (event.object["apiVersion"], event.object["kind"]) == ("v1", "Pod")
    events.close()


def test_a_deleted_name_can_come_back(case: Case) -> None:
    """A new object under an old name is ADDED."""
    case.put("a", 1)
    events = watch(case.source, listed(case.source).resource_version)
    case.remove("a")
    assert short(next(events)) == ("DELETED", "a", 1)
    case.put("a", 2)
    assert short(next(events)) == ("ADDED", "a", 2)
    events.close()


@pytest.mark.parametrize("version", ["", "0"])
def test_watch_without_a_version_begins_with_what_is_there(case: Case, version: str) -> None:
    """Present objects are ADDED first, then the changes follow."""
    case.put("a", 1)
    case.put("b", 1)
    listed(case.source)
    events = watch(case.source, version)
    assert sorted(short(next(events)) for _ in range(2)) == [("ADDED", "a", 1), ("ADDED", "b", 1)]
    case.put("a", 2)
    assert short(next(events)) == ("MODIFIED", "a", 2)
    events.close()


def test_close_ends_a_watch_from_another_thread(case: Case) -> None:
    """The iterator ends, be it blocked or not, and closing twice is nothing."""
    opened = case.source.watch(WatchOptions(listed(case.source).resource_version))
    events: list[Any] = []
    case.put("a", 1)
    first = threading.Event()

    def follow() -> None:
        for event in opened:
            events.append(event)
            first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert first.wait(DEADLINE)
    opened.close()  # type: ignore[attr-defined]
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert [short(event) for event in events] == [("ADDED", "a", 1)]
    opened.close()  # type: ignore[attr-defined]
    case.put("a", 2)
    assert list(opened) == []


def test_close_before_the_first_event(case: Case) -> None:
    """A watch that is closed before anybody reads it is empty."""
    opened = case.source.watch(WatchOptions(listed(case.source).resource_version))
    opened.close()  # type: ignore[attr-defined]
    assert list(opened) == []


def test_two_watches_see_the_same(case: Case) -> None:
    """Watches are independent: each has every event."""
    version = listed(case.source).resource_version
    one, two = watch(case.source, version), watch(case.source, version)
    case.put("a", 1)
    assert short(next(one)) == short(next(two)) == ("ADDED", "a", 1)
    one.close()
    case.put("a", 2)
    assert short(next(two)) == ("MODIFIED", "a", 2)
    two.close()


def test_expired_version(case: Case) -> None:
    """A watch from a version that is gone is an ExpiredError, from a new list's it is not."""
    old = listed(case.source).resource_version
    case.expire()

    def from_the_old() -> None:
        events = watch(case.source, old)
        try:
            event = next(events)
            if event.type == "ERROR":
                raise error_from_status(event.object)
        finally:
            events.close()

    with pytest.raises(ExpiredError):
        from_the_old()
    events = watch(case.source, listed(case.source).resource_version)
    case.put("a", 1)
    assert short(next(events)) == ("ADDED", "a", 1)
    events.close()


def test_objects_are_private(case: Case) -> None:
    """Who changes an object that it got changes nobody else's."""
    case.put("a", 1)
    version = listed(case.source).resource_version
    listed(case.source).items[0]["spec"]["value"] = 99
    assert short_list(listed(case.source).items) == [("a", 1)]
    case.put("a", 2)
    for _ in range(2):
        events = watch(case.source, version)
        event = next(events)
        assert short(event) == ("MODIFIED", "a", 2)
        event.object["spec"]["value"] = 99
        events.close()


# -- of sources that stream their lists -------------------------------------------------------


@pytest.fixture
def streaming(case: Case) -> Case:
    if not getattr(case.source, "streams_lists", False):
        pytest.skip("this source does not stream its lists")
    return case


def stream(source: ListerWatcher, version: str) -> Any:
    return iter(source.watch(WatchOptions(version, int(DEADLINE), send_initial_events=True)))


def initial(events: Any) -> tuple[list[tuple[str, int]], str]:
    """The objects of the initial events, all ADDED, and the version of the bookmark after them."""
    items = []
    while (event := next(events)).type != "BOOKMARK":
        assert event.type == "ADDED"
        assert (event.object["apiVersion"], event.object["kind"]) == ("v1", "Pod")
        items.append(event.object)
    metadata = event.object["metadata"]
    assert metadata["annotations"]["k8s.io/initial-events-end"] == "true"
    assert (event.object["apiVersion"], event.object["kind"]) == ("v1", "Pod")
    return short_list(items), metadata["resourceVersion"]


def changes(events: Any) -> Iterator[Event[Any]]:
    return (event for event in events if event.type != "BOOKMARK")


@pytest.mark.parametrize("at", ["", "0", "listed"])
def test_a_stream_begins_with_what_is_there(streaming: Case, at: str) -> None:
    """From any version that a list may have: each object once, as it is now, and then a bookmark
    that says that this was all."""
    streaming.put("a", 1)
    streaming.put("b", 1)
    version = listed(streaming.source).resource_version if at == "listed" else at
    streaming.put("a", 2)
    streaming.remove("b")
    streaming.put("c", 1)
    now = listed(streaming.source)
    events = stream(streaming.source, version)
    assert initial(events)[0] == short_list(now.items) == [("a", 2), ("c", 1)]
    events.close()


def test_a_stream_goes_on_as_a_watch(streaming: Case) -> None:
    """After the bookmark come the later changes in order, each once."""
    streaming.put("a", 1)
    listed(streaming.source)
    events = stream(streaming.source, "")
    assert initial(events)[0] == [("a", 1)]
    streaming.put("a", 2)
    streaming.put("b", 1)
    streaming.remove("a")
    later = changes(events)
    assert [short(next(later)) for _ in range(3)] == [
        ("MODIFIED", "a", 2),
        ("ADDED", "b", 1),
        ("DELETED", "a", 2),
    ]
    events.close()


def test_the_bookmark_of_a_stream_is_a_version_to_resume_from(streaming: Case) -> None:
    """A watch from the bookmark's version begins after the initial events, whatever has been
    missed since."""
    streaming.put("a", 1)
    listed(streaming.source)
    events = stream(streaming.source, "")
    version = initial(events)[1]
    events.close()
    assert version not in ("", "0")
    streaming.put("a", 2)
    events = watch(streaming.source, version)
    assert short(next(events)) == ("MODIFIED", "a", 2)
    events.close()


def test_a_stream_of_nothing_has_an_end(streaming: Case) -> None:
    """Where there is no object the bookmark comes first."""
    events = stream(streaming.source, "")
    assert initial(events)[0] == []
    streaming.put("a", 1)
    assert short(next(changes(events))) == ("ADDED", "a", 1)
    events.close()


def test_interrupt_may_come_at_any_time(case: Case) -> None:
    """A source that can be interrupted is not harmed by it when nothing waits."""
    interrupt = getattr(case.source, "interrupt", None)
    if interrupt is None:
        pytest.skip("this source cannot be interrupted")
    case.put("a", 1)
    interrupt()
    interrupt()
    assert short_list(listed(case.source).items) == [("a", 1)]


# -- with a reflector -------------------------------------------------------------------------


def difference(store: Store, source: ListerWatcher) -> list[str]:
    """The keys whose objects, versions included, are not the same in both."""
    wanted = {meta_namespace_key_func(item): item for item in listed(source).items}
    found = {key: store.get_by_key(key) for key in store.list_keys()}
    return [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]


def wait_until_equal(store: Store, source: ListerWatcher) -> None:
    deadline = time.monotonic() + DEADLINE
    version = store.version
    while left := difference(store, source):
        assert time.monotonic() < deadline, left
        version = store.wait_for_change(version, 1.0)


def test_the_comparison_sees_every_difference(store: Store) -> None:
    """A missing, a changed and a left-over object each show."""
    source = MemorySource([pod("a", 1), pod("b", 1)])
    store.replace(listed(source).items)
    assert difference(store, source) == []
    source.update(pod("a", 2))
    source.add(pod("c", 1))
    source.delete("default/b")
    assert sorted(difference(store, source)) == ["default/a", "default/b", "default/c"]


def test_a_reflector_keeps_a_store_equal(case: Case, store: Store) -> None:
    """Through adds, updates, deletes, disconnects and expiry the store becomes the source."""
    for number in range(5):
        case.put(f"p{number}", 0)
    backoff = Backoff(initial=0.01, cap=0.1)
    with Reflector(case.source, "v1/Pod", store, backoff=backoff, page_size=2) as reflector:
        assert store.wait_for_sync(DEADLINE)
        wait_until_equal(store, case.source)
        for round_number in range(1, 4):
            case.put("p0", round_number)
            case.put(f"new{round_number}", 0)
            case.remove(f"p{round_number}")
            wait_until_equal(store, case.source)
            case.disconnect()
            case.put("p0", -round_number)
            case.remove(f"new{round_number}")
            wait_until_equal(store, case.source)
            case.expire()
            case.disconnect()
            case.put(f"after{round_number}", round_number)
            wait_until_equal(store, case.source)
        assert sorted(store.list_keys()) == sorted(
            f"default/{name}" for name in ("p0", "p4", "after1", "after2", "after3")
        )
        assert reflector.stats().dropped == 0
        assert reflector.stats().lists > 1
