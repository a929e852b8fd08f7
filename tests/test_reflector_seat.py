"""The place for one reflector at a store: taken, waited for, reported from, given back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shmcache._errors import (
    ClosedError,
    ExpiredError,
    LockTimeoutError,
    ReadOnlyError,
    ReflectorRunningError,
)
from shmcache._ports import ReflectorSeat
from shmcache._types import Event, ListOptions, ListResult
from shmcache.reflector import Reflector
from tests.reflecting import (
    DEADLINE,
    EMPTY,
    RecordingStore,
    Run,
    SeatStore,
    Shared,
    Silent,
    bookmark,
    pod,
)


def taken() -> Shared:
    """An arena whose place somebody else has."""
    shared = Shared()
    shared.holder = SeatStore(shared)
    shared.name = "first"
    return shared


def left(version: str = "20", name: str = "pods", synced: bool = True) -> Shared:
    """An arena whose reflector is gone."""
    shared = Shared()
    shared.version, shared.name, shared.synced = version, name, synced
    shared.content = {"ns/a": pod("a", 1)}
    return shared


def test_the_stores_of_these_tests_have_what_a_place_needs() -> None:
    """The double of an arena is a ReflectorSeat, and a plain store is none."""
    assert isinstance(SeatStore(), ReflectorSeat)
    assert not isinstance(RecordingStore(), ReflectorSeat)


def test_the_place_is_taken_and_given_back() -> None:
    """While the reflector runs the place is its own under its name; afterwards it is free."""
    store = SeatStore()
    holders: list[Any] = []
    run = Run([EMPTY], [[lambda: holders.append(store.shared.holder)]], store=store, name="pods")
    assert holders == [store]
    assert store.shared.name == "pods"
    assert store.shared.holder is None
    assert run.stats.errors == 0


def test_the_place_is_given_back_after_a_bad_end() -> None:
    """What is no error of a source, like KeyboardInterrupt, leaves run() and the place."""
    store = SeatStore()

    def interrupted(options: ListOptions) -> ListResult[Any]:
        raise KeyboardInterrupt

    source = Silent()
    source.list = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        Reflector(source, None, store).run()
    assert store.shared.holder is None
    assert store.shared.states == ["listing", "stopped"]


@pytest.mark.parametrize("call", ["start", "run"])
def test_a_second_reflector_is_refused(call: str) -> None:
    """start() and run() raise in the caller's thread, with the pid of the first; nothing is asked
    of the source, and the refused one may be started when the first is gone."""
    shared = taken()
    source = Silent()
    reflector = Reflector(source, None, SeatStore(shared))
    with pytest.raises(ReflectorRunningError, match=r"'first' in process 4711") as caught:
        getattr(reflector, call)()
    assert caught.value.pid == 4711
    assert source.lists == 0
    assert shared.reports == []
    assert reflector.stop(0)

    shared.holder = None
    again = Reflector(source, None, SeatStore(shared))
    again.start()
    assert source.watching.wait(DEADLINE)
    assert again.stop(DEADLINE)


def test_a_refused_start_does_not_count() -> None:
    """A reflector that found the place taken can be started later."""
    shared = taken()
    source = Silent()
    reflector = Reflector(source, None, SeatStore(shared))
    with pytest.raises(ReflectorRunningError):
        reflector.start()
    shared.holder = None
    with reflector:
        assert source.watching.wait(DEADLINE)


def test_a_thread_that_cannot_start_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the process can have no more threads, start() says so and holds nothing."""
    store, source = SeatStore(), Silent()
    reflector = Reflector(source, None, store)

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            reflector.start()
    assert store.shared.holder is None
    with reflector:
        assert source.watching.wait(DEADLINE)


def test_each_state_is_reported() -> None:
    """Listing, watching, the pause after an error and the end are reported as they come."""
    store = SeatStore()
    run = Run([EMPTY, EMPTY], [[], [ExpiredError()], []], store=store)
    assert store.shared.states == [
        "listing", "watching", "waiting", "listing", "watching", "stopped",
    ]  # fmt: skip
    assert store.shared.reports[-1][1] == run.stats
    assert store.shared.reports[2][1].last_error.startswith("ExpiredError")


def test_a_stream_is_listing_until_its_end() -> None:
    """The initial events are reported as a list, what follows in the same stream as a watch."""
    store = SeatStore()
    end = bookmark(10, end="true")
    Run([], [[Event("ADDED", pod("a", 1))], [end]], store=store, streams_lists=True)
    assert store.shared.states == ["listing", "waiting", "listing", "watching", "stopped"]


def test_the_heart_beats_each_second() -> None:
    """In a silent watch the state is reported again every second by the attendant's waits."""
    store, source = SeatStore(), Silent()
    waits: list[float] = []
    beaten = threading.Event()

    def attend(seconds: float) -> bool:
        assert source.watching.wait(DEADLINE)
        if len(waits) == 3:
            beaten.set()
            return reflector._stopping.wait(DEADLINE)
        waits.append(seconds)
        return False

    reflector = Reflector(source, None, store, _clock=lambda: 0.0, _attend_wait=attend)
    with reflector:
        assert beaten.wait(DEADLINE)
    assert waits == [1.0, 1.0, 1.0]
    assert store.shared.states[:5] == ["listing", *["watching"] * 4]


def test_versions_follow_the_writes() -> None:
    """Each event's and bookmark's version is written to the store after the event itself; a list
    carries its own."""
    store = SeatStore()
    steps = [
        Event("ADDED", pod("a", 11)),
        bookmark(12),
        Event("DELETED", {"metadata": {"name": "a", "namespace": "ns"}}),
    ]
    Run([EMPTY], [steps], store=store)
    assert store.writes == [
        ("replace", "10"),
        ("add", "a"),
        ("bookmark", "11"),
        ("bookmark", "12"),
        ("delete", "a"),
    ]


def test_a_store_that_cannot_report_hinders_nobody() -> None:
    """Reports and the giving back may fail; a version that cannot be written is an error, and the
    watch goes on."""
    store = SeatStore()
    store.refuses = {
        "report": ClosedError("closed"),
        "release": ClosedError("closed"),
        "bookmark": ReadOnlyError("no"),
    }
    run = Run([EMPTY], [[Event("ADDED", pod("a", 11)), Event("ADDED", pod("b", 12))]], store=store)
    assert run.store.names == ["a", "b"]
    assert run.stats.errors == 2
    assert run.stats.last_error == "ReadOnlyError: no"


# -- standby ----------------------------------------------------------------------------------


def standby(shared: Shared, lists: Any, watches: Any, free_at: int = 0, **options: Any) -> Run:
    """Run a standby through a script; the place becomes free at that pause."""

    def at_pause(count: int) -> None:
        if count == free_at:
            shared.holder = None

    store = options.pop("store", None) or SeatStore(shared)
    return Run(lists, watches, store=store, standby=True, name="pods", at_pause=at_pause, **options)


def test_a_standby_waits_for_the_place() -> None:
    """It looks every 0.2 s, asks the source for nothing meanwhile, then takes over and reports."""
    shared = taken()
    run = standby(shared, [ListResult([pod("a", 3)], "10")], [[]], free_at=3)
    assert run.pauses == [0.2, 0.2, 0.2]
    assert run.source.listed == [ListOptions("0", 500)]
    assert run.store.names == ["a"]
    assert shared.states[0] == "listing"
    assert shared.holder is None
    assert run.stats.errors == 0


def test_a_standby_goes_on_where_the_first_was() -> None:
    """After a reflector of the same name it watches from the store's version and never lists."""
    shared = left("20")
    run = standby(shared, [], [[Event("ADDED", pod("b", 21))], []])
    assert run.source.listed == []
    assert run.source.watched == ["20", "21"]
    assert run.store.names == ["a", "b"]
    assert shared.version == "21"
    assert shared.states[:2] == ["listing", "watching"]  # the claim is reported at once


@pytest.mark.parametrize(
    "before", [{"name": "other"}, {"version": ""}, {"synced": False}, None], ids=str
)
def test_a_standby_without_anything_to_go_on_with_lists(before: dict[str, Any] | None) -> None:
    """Another name, no version, no complete content, or no reflector before: a list at "0"."""
    shared = Shared() if before is None else left(**before)
    run = standby(shared, [ListResult([pod("b", 3)], "10")], [[]])
    assert run.source.listed == [ListOptions("0", 500)]
    assert run.store.names == ["b"]


def test_a_standby_that_comes_too_late_lists() -> None:
    """A version that has expired meanwhile is an error like any 410, and answered by a list."""
    run = standby(left("20"), [ListResult([pod("b", 30)], "30")], [ExpiredError(), []])
    assert run.source.listed == [ListOptions("20", 0)]
    assert run.source.watched == ["20", "30"]
    assert run.store.names == ["b"]


def test_a_standby_of_a_streaming_source_goes_on_too() -> None:
    """Going on needs no stream; one stands in for the list when the version has expired."""
    end = bookmark(30, end="true")
    watches = [ExpiredError(), [Event("ADDED", pod("b", 30)), end]]
    run = standby(left("20"), [], watches, streams_lists=True)
    assert run.source.streamed == [False, True]
    assert run.source.watched == ["20", "20"]
    assert run.store.names == ["b"]


def test_a_standby_asks_again_after_an_error() -> None:
    """A place that cannot be asked for is an error of the store: a pause, and again."""
    store = SeatStore(left("20"))
    store.refuses["claim"] = LockTimeoutError("busy")
    run = standby(store.shared, [], [[]], store=store)
    assert run.pauses == pytest.approx([0.8])
    assert run.source.watched == ["20"]
    assert run.stats.last_error == "LockTimeoutError: busy"


def test_a_standby_can_be_stopped_while_it_waits() -> None:
    """stop() ends the waiting; the place was never taken and nothing reported."""
    shared = taken()
    holder, source = shared.holder, Silent()
    looked = threading.Event()

    class Looking(SeatStore):
        def claim_reflector(self, name: str) -> bool:
            looked.set()
            return super().claim_reflector(name)

    reflector = Reflector(source, None, Looking(shared), standby=True)
    reflector.start()
    assert looked.wait(DEADLINE)
    assert reflector.stop(DEADLINE)
    assert shared.holder is holder
    assert shared.reports == []
    assert source.lists == 0


def test_resync_of_a_standby_needs_no_list() -> None:
    """A store that the first one filled is resynced by the second."""
    resynced = threading.Event()

    class Store(SeatStore):
        def resync(self) -> None:
            resynced.set()

    source = Silent()
    reflector = Reflector(source, None, Store(left(name="any")), standby=True, resync_period=0.001)
    with reflector:
        assert resynced.wait(DEADLINE)
    assert source.lists == 0


def test_standby_needs_a_store_with_a_place() -> None:
    """A store that cannot say whether it has a reflector cannot be waited for."""
    with pytest.raises(ValueError, match="RecordingStore has no place"):
        Reflector(Silent(), None, RecordingStore(), standby=True)
