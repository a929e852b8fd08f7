"""SharedInformer: handlers of every change, in one thread, for any store."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from types import FrameType
from typing import Any

import pytest

import shmcache
from shmcache import (
    FIFO,
    HandlerRegistration,
    ListOptions,
    ListResult,
    ListWatch,
    RawCodec,
    ReadOnlyError,
    Reflector,
    SharedInformer,
    Store,
    WatchOptions,
    wait_for_cache_sync,
)
from shmcache.sources.memory import MemorySource
from tests.procs.control import forked, until

DEADLINE = 60.0


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    """A store of small objects with a name and a number."""
    with Store.create(name, capacity="256KiB", key_func=itemgetter("name")) as made:
        made.replace([])
        yield made
        assert made.closed or made.check() == []


def obj(name: str, n: int = 1) -> dict[str, Any]:
    return {"name": name, "n": n}


class Record:
    """A handler that notes its calls, and on the way in does what it was told."""

    def __init__(self, act: Callable[[str], object] = lambda call: None) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self._act = act
        self._came = threading.Condition()

    def _note(self, call: str) -> None:
        self.threads.add(threading.get_ident())
        with self._came:
            self.calls.append(call)
            self._came.notify_all()
        self._act(call)

    def on_add(self, obj: Any) -> None:
        self._note(f"+{obj['name']}{obj['n']}")

    def on_update(self, old: Any, new: Any) -> None:
        assert old["name"] == new["name"]
        self._note(f"{old['name']}{old['n']}>{new['n']}")

    def on_delete(self, obj: Any) -> None:
        self._note(f"-{obj['name']}{obj['n']}")

    def to(self, informer: SharedInformer, **options: Any) -> HandlerRegistration:
        return informer.add_event_handler(self.on_add, self.on_update, self.on_delete, **options)

    def wait(self, *calls: str) -> None:
        """Until these were made, and no others."""
        with self._came:
            self._came.wait_for(lambda: len(self.calls) >= len(calls), DEADLINE)
        assert self.calls == list(calls)


@pytest.fixture
def informer(store: Store) -> Iterator[SharedInformer]:
    """One that follows the store; started by the test, stopped at its end."""
    made = SharedInformer(None, store)
    yield made
    assert made.stop(DEADLINE)


# --- what handlers are called for -----------------------------------------------------------------


def test_the_content_and_the_changes(store: Store, informer: SharedInformer) -> None:
    """A handler is called for what is there, then for each add, update with the old object, and
    delete with the last, all in the informer's thread."""
    store.add(obj("a"))
    record = Record()
    seen = record.to(informer)
    assert not seen.has_synced
    assert not informer.has_synced
    informer.start()
    assert wait_for_cache_sync(informer, seen, timeout=DEADLINE)
    record.wait("+a1")
    store.update(obj("a", 2))
    record.wait("+a1", "a1>2")
    store.add(obj("b"))
    record.wait("+a1", "a1>2", "+b1")
    store.delete(obj("a"))
    record.wait("+a1", "a1>2", "+b1", "-a2")
    assert informer.stop(DEADLINE)
    assert len(record.threads) == 1
    assert threading.get_ident() not in record.threads
    stats = informer.stats()
    assert (stats.changes, stats.calls, stats.handler_errors, stats.errors) == (4, 4, 0, 0)


def test_a_handler_may_lack_functions(store: Store, informer: SharedInformer) -> None:
    """What no function was given for is not called, and not counted as a call."""
    record = Record()
    informer.add_event_handler(on_delete=record.on_delete)
    store.add(obj("a"))
    with informer:
        assert informer.wait_for_sync(DEADLINE)
        store.delete(obj("a"))
        record.wait("-a1")
    assert informer.stats().calls == 1


def test_a_late_handler(store: Store, informer: SharedInformer) -> None:
    """A handler that is added later gets the content as adds, without what is gone, and then what
    follows, in order; the others get nothing again."""
    first, late = Record(), Record()
    first.to(informer)
    store.add(obj("a"))
    store.add(obj("b"))
    store.add(obj("c"))
    with informer:
        assert informer.wait_for_sync(DEADLINE)
        store.delete(obj("c"))
        store.update(obj("a", 2))
        until(lambda: len(first.calls) == 5)
        first.calls.clear()
        seen = late.to(informer)
        assert seen.wait_for_sync(DEADLINE)
        assert sorted(late.calls) == ["+a2", "+b1"]
        store.delete(obj("b"))
        first.wait("-b1")
        until(lambda: len(late.calls) == 3)
        assert late.calls[-1] == "-b1"


def test_the_same_handler_twice(store: Store, informer: SharedInformer) -> None:
    """The same functions added twice are called twice; removing one leaves the other."""
    record = Record()
    first, _ = record.to(informer), record.to(informer)
    store.add(obj("a"))
    with informer:
        assert informer.wait_for_sync(DEADLINE)
        assert record.calls == ["+a1", "+a1"]
        informer.remove_event_handler(first)
        store.delete(obj("a"))
        record.wait("+a1", "+a1", "-a1")


def test_a_filter_turns_an_update_into_what_it_sees(store: Store, informer: SharedInformer) -> None:
    """A handler with a filter is told of an object that comes to match as an add, of one that does
    so no more as a delete of the old, and of nothing that never matched."""
    even, all_of_them = Record(), Record()
    even.to(informer, filter=lambda obj: obj["n"] % 2 == 0)
    all_of_them.to(informer)
    with informer:
        for step, n in enumerate((1, 2, 4, 3, 5, 6)):
            store.update(obj("a", n))
            until(lambda step=step: len(all_of_them.calls) > step)
        store.delete(obj("a"))
        store.add(obj("b", 7))
        until(lambda: len(all_of_them.calls) == 8)
        store.delete(obj("b"))
        until(lambda: len(all_of_them.calls) == 9)
    assert even.calls == ["+a2", "a2>4", "-a4", "+a6", "-a6"]


def test_a_resync_is_for_who_asked(store: Store, informer: SharedInformer) -> None:
    """A handler with a resync period gets all objects again as updates to themselves, again and
    again; the others get nothing."""
    asked, other = Record(), Record()
    same: list[bool] = []
    asked.to(informer, resync_period=0.01)
    informer.add_event_handler(
        on_update=lambda old, new: same.append(old is new), resync_period=1e-9
    )
    other.to(informer)
    store.add(obj("a"))
    store.add(obj("b"))
    with informer:
        until(lambda: asked.calls.count("a1>1") >= 3 and asked.calls.count("b1>1") >= 3)
    assert other.calls == ["+a1", "+b1"]
    assert asked.calls[:2] == ["+a1", "+b1"]
    assert all(same)


# --- handlers that fail, or do more ---------------------------------------------------------------


def test_a_raising_handler(
    store: Store, informer: SharedInformer, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler or filter that raises is logged with its fields and counted; it gets what comes
    later, and the others get everything."""

    def fail(call: str) -> None:
        if "a" in call:
            raise LookupError("no luck")

    failing, filtered, other = Record(fail), Record(), Record()
    failing.to(informer)
    filtered.to(informer, filter=lambda obj: 1 / (obj["name"] != "a"))
    other.to(informer)
    store.add(obj("a"))
    store.add(obj("b"))
    with caplog.at_level(logging.ERROR, "shmcache.informer"), informer:
        assert informer.wait_for_sync(DEADLINE)
    assert failing.calls == other.calls == ["+a1", "+b1"]
    assert filtered.calls == ["+b1"]
    stats = informer.stats()
    assert (stats.calls, stats.handler_errors, stats.errors) == (4, 2, 0)
    assert stats.last_error == "ZeroDivisionError: division by zero"
    first = caplog.records[0]
    assert first.exc_info is not None
    assert "no luck" in first.getMessage()
    fields = {name: getattr(first, name) for name in ("arena", "resource", "error", "key")}
    assert fields == {
        "arena": store.name, "resource": store.name, "error": "LookupError", "key": "a",
    }  # fmt: skip


def test_an_exit_is_one_of_a_program(store: Store, informer: SharedInformer) -> None:
    """sys.exit() in the main thread is what it says; in the informer's own it would end only that,
    without a word, and is an error of the handler."""
    store.add(obj("a"))
    other = Record()
    informer.add_event_handler(lambda _: sys.exit(3))
    other.to(informer)
    with informer:
        other.wait("+a1")
        store.add(obj("b"))
        other.wait("+a1", "+b1")
        assert informer.stats().last_error == "SystemExit: 3"
    again = SharedInformer(None, store)
    again.add_event_handler(lambda _: sys.exit(3))
    with pytest.raises(SystemExit):
        again.run()
    assert again.stop(0)


def test_a_filter_that_raises_is_not_true(store: Store, informer: SharedInformer) -> None:
    """What a filter cannot judge is not seen: it is added when it can be, and what was seen before
    is deleted; each object that failed is counted once."""
    record = Record()
    record.to(informer, filter=lambda obj: 1 / obj["n"])
    store.add(obj("a", 0))
    store.add(obj("b"))
    with informer:
        record.wait("+b1")
        store.add(obj("a", 2))
        record.wait("+b1", "+a2")
        store.add(obj("b", 0))
        record.wait("+b1", "+a2", "-b1")
        store.delete(obj("b"))
        store.add(obj("c"))
        record.wait("+b1", "+a2", "-b1", "+c1")
    assert informer.stats().handler_errors == 2
    assert informer.stats().calls == 4


def test_a_handler_may_do_anything(store: Store, informer: SharedInformer) -> None:
    """From inside a callback handlers can be added and removed, the store be written, and the
    informer stopped, which does not wait for itself; the call that stops it is the last."""
    late = Record()

    def act(call: str) -> None:
        match call:
            case "+a1":
                late.to(informer)
                store.add(obj("b"))
            case "+b1":
                informer.remove_event_handler(mine)
            case "+c1":
                raise AssertionError("removed")

    mine = Record(act).to(informer)

    def stop(call: str) -> None:
        if call == "+c1":
            assert not informer.stop()

    last = Record(stop)
    last.to(informer)
    after = Record()
    after.to(informer)
    store.add(obj("a"))
    informer.start()
    until(lambda: len(late.calls) == 2)
    store.add(obj("c"))
    until(lambda: "+c1" in last.calls)
    assert informer.stop(DEADLINE)
    assert late.calls[:2] == ["+a1", "+b1"]
    assert informer.stats().handler_errors == 0


def test_handlers_come_and_go_amid_the_changes(store: Store, informer: SharedInformer) -> None:
    """A handler that another one removes is not called even for the change at hand; one that is
    added amid the changes gets each object once."""
    late = Record()

    def act(call: str) -> None:
        if call == "+a1":
            informer.remove_event_handler(removed)
            late.to(informer)

    first, gone = Record(act), Record()
    first.to(informer)
    removed = gone.to(informer)
    for name in "abc":
        store.add(obj(name))
    with informer:
        until(lambda: len(late.calls) >= 3)
        store.add(obj("d"))
        until(lambda: "+d1" in late.calls)
    assert late.calls == first.calls == ["+a1", "+b1", "+c1", "+d1"]
    assert gone.calls == []


def test_stop_in_a_callback_is_the_end(store: Store, informer: SharedInformer) -> None:
    """After a callback has stopped the informer no other is made, of that change or a later one."""
    stopping, after = Record(lambda call: informer.stop()), Record()
    stopping.to(informer)
    after.to(informer)
    store.add(obj("a"))
    store.add(obj("b"))
    informer.run()
    assert stopping.calls == ["+a1"]
    assert after.calls == []


def test_stop_waits_for_the_callback(store: Store, informer: SharedInformer) -> None:
    """stop() returns False while a callback runs, and True when it has ended."""
    inside, go_on = threading.Event(), threading.Event()

    def block(call: str) -> None:
        inside.set()
        go_on.wait()

    record = Record(block)
    record.to(informer)
    store.add(obj("a"))
    store.add(obj("b"))
    informer.start()
    inside.wait()
    assert not informer.stop(0)
    go_on.set()
    assert informer.stop(DEADLINE)
    assert record.calls == ["+a1"]


def test_a_signal_handler_stops_what_waits(store: Store) -> None:
    """A signal handler may come between any two bytecodes of a wait for what it ends."""
    if sys.gettrace() is not None:
        pytest.skip("a coverage tool or a debugger traces already")
    struck = at = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal struck
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_name == "wait":
            struck += 1
            if struck == at:
                signal.raise_signal(signal.SIGUSR1)
        return trace

    def give_up(*_: object) -> None:
        raise AssertionError(f"hangs when it is struck at bytecode {at}")

    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGALRM)]
    signal.signal(signal.SIGALRM, give_up)
    try:
        while struck >= at:
            struck, at, informer = 0, at + 1, SharedInformer(None, store)
            signal.signal(signal.SIGUSR1, lambda *_, stop=informer.stop: stop(0))
            signal.setitimer(signal.ITIMER_REAL, DEADLINE)
            sys.settrace(trace)
            informer.wait_for_sync(0.1)
            sys.settrace(None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.settrace(None)
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGALRM, before[1])
    assert at > 10


@pytest.mark.parametrize("how", ["start", "run"])
def test_a_signal_handler_stops_what_begins(
    store: Store, informer: SharedInformer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A signal handler that comes amid start() or run() does not wait for what cannot go on before
    it has returned."""
    took: list[float] = []

    def stop(*_: object) -> None:
        before = time.monotonic()
        informer.stop(DEADLINE)
        took.append(time.monotonic() - before)

    begin, work = threading.Thread.start, informer._run

    def begin_and_signal(thread: threading.Thread) -> None:
        begin(thread)
        signal.raise_signal(signal.SIGUSR1)

    def signal_and_work(stop_event: threading.Event | None) -> None:
        if how == "run":
            signal.raise_signal(signal.SIGUSR1)
        work(stop_event)

    monkeypatch.setattr(informer, "_run", signal_and_work)
    if how == "start":
        monkeypatch.setattr(threading.Thread, "start", begin_and_signal)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        getattr(informer, how)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(took) == 1
    assert took[0] < DEADLINE / 2
    assert informer.stop(DEADLINE)


# --- life cycle -----------------------------------------------------------------------------------


def test_it_runs_once(store: Store, informer: SharedInformer) -> None:
    """A second start is refused, and so is a handler after the end; removing one is not."""
    seen = Record().to(informer)
    with informer, pytest.raises(RuntimeError, match="runs once"):
        informer.start()
    with pytest.raises(RuntimeError, match="was stopped"):
        informer.add_event_handler(print)
    informer.remove_event_handler(seen)
    informer.remove_event_handler(seen)
    informer.remove_event_handler(object())  # type: ignore[arg-type]


def test_run_obeys_an_event(store: Store, informer: SharedInformer) -> None:
    """run() ends when its event is set, in the thread that called it."""
    ending = threading.Event()
    record = Record(lambda call: ending.set())
    record.to(informer)
    store.add(obj("a"))
    informer.run(ending)
    assert record.threads == {threading.get_ident()}


def test_who_waits_is_released_by_the_end(name: str) -> None:
    """Waiting for a sync that never comes ends when the informer does, or a handler is removed."""
    with Store.create(name, capacity="256KiB") as store:
        informer = SharedInformer(None, store)
        removed, kept = informer.add_event_handler(), informer.add_event_handler()
        results: list[bool] = []
        waiters = [
            threading.Thread(target=lambda what=what: results.append(what.wait_for_sync()))
            for what in (removed, kept, informer)
        ]
        for waiter in waiters:
            waiter.start()
        informer.start()
        assert not informer.wait_for_sync(0)
        informer.remove_event_handler(removed)
        waiters[0].join()
        assert informer.stop(DEADLINE)
        for waiter in waiters:
            waiter.join()
        assert results == [False] * 3


def test_a_store_syncs_with_its_first_replace(name: str) -> None:
    """What was added before does not make the content complete; the replace does, and then all of
    it has been given."""
    with Store.create(name, capacity="256KiB", key_func=itemgetter("name")) as store:
        record, informer = Record(), SharedInformer(None, store)
        record.to(informer)
        store.add(obj("a"))
        with informer:
            record.wait("+a1")
            assert not informer.has_synced
            store.replace([obj("a"), obj("b")])
            assert informer.wait_for_sync(DEADLINE)
            assert record.calls == ["+a1", "+b1"]


def test_a_closed_store_ends_it(
    store: Store, informer: SharedInformer, caplog: pytest.LogCaptureFixture
) -> None:
    """When the store is closed the informer ends, and says so in the log."""
    informer.start()
    assert informer.wait_for_sync(DEADLINE)
    with caplog.at_level(logging.WARNING, "shmcache.informer"):
        store.close()
        informer._thread.join()  # type: ignore[union-attr]
    assert informer.stopped
    assert informer.stats().last_error.startswith("ClosedError")
    assert "cannot read the store" in caplog.text


def test_an_entry_that_cannot_be_decoded(name: str) -> None:
    """The others are handled, the log says what it is, and handlers get it when it is mended."""

    class Picky(RawCodec):
        def decode_shared(self, data: bytes, previous: object) -> dict[str, Any]:
            return {"name": data.decode(), "n": 1}

    with Store.create(name, capacity="256KiB", codec=RawCodec()) as writer:
        writer.replace([])
        with Store.attach(name, codec=Picky()) as reader:
            informer = SharedInformer(None, reader)
            record = Record()
            record.to(informer)
            pauses: list[float] = []

            def wait(seconds: float) -> bool:
                pauses.append(seconds)
                assert record.calls == ["+o1"]
                assert informer.stats().unread == 1
                writer.add_raw("bad", b"good")
                return False

            informer._wait = wait
            writer.add_raw("bad", b"\xff")
            writer.add_raw("other", b"o")
            with informer:
                until(lambda: len(record.calls) == 2)
            assert record.calls == ["+o1", "+good1"]
            assert informer.stats().unread == 0
            assert informer.stats().errors == len(pauses) == 1


def test_a_forked_child_has_none(store: Store, informer: SharedInformer) -> None:
    """In a forked child there is no thread to stop, and stop() says so at once; nobody would call
    a handler, which is refused."""
    informer.start()
    assert informer.wait_for_sync(DEADLINE)

    def child() -> None:
        with pytest.raises(RuntimeError, match=r"do not survive a fork: make one in this process"):
            informer.add_event_handler(print)
        assert informer.stopped
        assert informer.stop()

    assert forked(child) == 0
    assert informer.has_synced
    assert not informer.stopped


def test_a_forked_child_does_not_wait_for_a_sync(name: str) -> None:
    """Nobody would tell the child of one."""
    with (
        Store.create(name, capacity="256KiB") as store,
        SharedInformer(None, store) as informer,
    ):
        assert forked(lambda: informer.wait_for_sync() and os._exit(1)) == 0


# --- with a source --------------------------------------------------------------------------------


def pod(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, **fields}


def test_a_source_fills_the_store() -> None:
    """With a source the informer's reflector fills the store, and what the source loses while
    nobody watches is deleted for the handlers, with what they had last."""
    lists = iter([[pod("a"), pod("b", n=1)], [pod("b", n=2), pod("c")]])
    listed = threading.Semaphore(0)

    def list_pods(options: ListOptions) -> ListResult[Any]:
        return ListResult(next(lists), "1")

    def watch(options: WatchOptions) -> Iterator[Any]:
        listed.acquire()
        raise shmcache.ExpiredError("gone")
        yield

    calls: list[tuple[str, Any]] = []
    with Store.create(capacity="1MiB") as store:
        store.unlink()
        informer = SharedInformer(
            ListWatch(list_pods, watch, interrupt_func=listed.release),
            store,
            backoff=shmcache.Backoff(0.001, cap=0.001),
        )
        informer.add_event_handler(
            lambda obj: calls.append(("add", obj)),
            lambda old, new: calls.append(("update", (old, new))),
            lambda obj: calls.append(("delete", obj)),
        )
        with informer:
            assert informer.wait_for_sync(DEADLINE)
            assert calls == [("add", pod("a")), ("add", pod("b", n=1))]
            listed.release()
            until(lambda: len(calls) == 5)
            assert calls[2] == ("delete", pod("a"))
            assert calls[3:] == [
                ("update", (pod("b", n=1), pod("b", n=2))),
                ("add", pod("c")),
            ]
            assert isinstance(informer.reflector, Reflector)
            assert store.reflector_status().alive
        assert not store.reflector_status().alive


def test_stop_waits_for_the_reflector(store: Store) -> None:
    """The informer has ended when its reflector has, also where nothing can end a list."""
    listing, go_on = threading.Event(), threading.Event()

    def list_all(options: ListOptions) -> ListResult[Any]:
        listing.set()
        go_on.wait()
        return ListResult([], "1")

    informer = SharedInformer(ListWatch(list_all, lambda options: iter(())), store)
    informer.start()
    listing.wait()
    assert not informer.stop(0.3)
    assert informer.reflector is not None
    go_on.set()
    assert informer.stop(DEADLINE)
    assert informer.reflector.stop(0)


def test_a_source_may_stop_the_informer(store: Store) -> None:
    """stop() in the reflector's thread does not wait for the informer, which waits for that."""
    took: list[float] = []

    def stop(obj: Any) -> Any:
        before = time.monotonic()
        informer.stop(DEADLINE)
        took.append(time.monotonic() - before)
        return obj

    informer = SharedInformer(MemorySource([pod("a")]), store, transform=stop)
    informer.start()
    until(lambda: bool(took))
    assert informer.stop(DEADLINE)
    assert took[0] < DEADLINE / 2


def test_one_of_several_fills_the_store(name: str) -> None:
    """Of informers with the same source one reflects, all are told, and when it stops another goes
    on without a new list."""
    source = MemorySource([pod("a")])
    with (
        Store.create(name, capacity="1MiB") as one,
        Store.attach(name, writable=True) as other,
    ):
        seen: list[list[str]] = [[], []]
        first, second = (
            SharedInformer(source, store, expected_type="v1/Pod") for store in (one, other)
        )
        for informer, names in zip((first, second), seen, strict=True):
            informer.add_event_handler(
                lambda obj, names=names: names.append(obj["metadata"]["name"])
            )
        first.start()
        assert first.wait_for_sync(DEADLINE)
        with second:
            assert second.wait_for_sync(DEADLINE)
            assert first.stop(DEADLINE)
            source.add(pod("b"))
            until(lambda: seen[1] == ["a", "b"])
            assert second.reflector is not None
            assert second.reflector.stats().lists == 0
        assert seen[0] == ["a"]


# --- what is refused ------------------------------------------------------------------------------


def test_arguments_that_cannot_be_meant(name: str, store: Store, fifo: FIFO) -> None:
    """What is no store, a FIFO, options of a source without one, and a read-only store for a source
    are refused with what to do."""
    with pytest.raises(TypeError, match="Store or an Indexer"):
        SharedInformer(None, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot be watched"):
        SharedInformer(None, fifo)
    with pytest.raises(ValueError, match=r"expected_type, page_size.*source is None"):
        SharedInformer(None, store, expected_type="v1/Pod", page_size=3)
    with pytest.raises(ValueError, match="standby cannot be False"):
        SharedInformer(MemorySource(), store, standby=False)
    with (
        Store.attach(name, key_func=itemgetter("name")) as reader,
        pytest.raises(ReadOnlyError, match="writable=True"),
    ):
        SharedInformer(MemorySource(), reader)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"on_add": 3}, TypeError, "on_add must be a function or None, not 3"),
        ({"filter": "app=web"}, TypeError, "filter must be"),
        ({"resync_period": -1}, ValueError, "resync_period"),
        ({"resync_period": float("nan")}, ValueError, "resync_period"),
        ({"resync_period": float("inf")}, ValueError, "resync_period"),
    ],
)
def test_handlers_that_cannot_be_meant(
    informer: SharedInformer, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    """A handler's arguments are checked when it is added."""
    with pytest.raises(error, match=said):
        informer.add_event_handler(**options)


# --- wait_for_cache_sync --------------------------------------------------------------------------


def test_waiting_for_several(store: Store, name: str) -> None:
    """It is true when all have synced, false when the time is over, for all of them together, and
    true of nothing."""
    with Store.create(f"{name}-2", capacity="256KiB") as late:
        late.unlink()
        assert not wait_for_cache_sync(store, late, timeout=0.01)
        filling = threading.Timer(0.01, lambda: late.replace([]))
        filling.start()
        assert wait_for_cache_sync(store, late)
        filling.join()
    assert wait_for_cache_sync()


def test_one_deadline_for_all() -> None:
    """What is left of the time for the second is what the first has not used."""
    given: list[float | None] = []

    class Slow:
        def wait_for_sync(self, timeout: float | None = None) -> bool:
            given.append(timeout)
            return True

    assert wait_for_cache_sync(Slow(), Slow(), timeout=5)
    in_a_list: Any = [Slow()]
    with pytest.raises(TypeError, match=r"takes stores, informers and registrations themselves"):
        wait_for_cache_sync(in_a_list, timeout=0)
    first, second = given
    assert first is not None
    assert second is not None
    assert 5 >= first > second > 0


def test_what_cannot_be_waited_for(informer: SharedInformer) -> None:
    """What has no wait_for_sync, as the truth of a has_synced, is refused before anything waits."""
    for wrong in (informer.has_synced, [informer]):
        with pytest.raises(TypeError, match="stores, informers and registrations themselves"):
            wait_for_cache_sync(informer, wrong)  # type: ignore[arg-type]


def test_a_timeout_may_be_endless(store: Store, informer: SharedInformer) -> None:
    """math.inf is no limit, as it is for a store."""
    handler = informer.add_event_handler()
    informer.start()
    assert wait_for_cache_sync(store, informer, handler, timeout=math.inf)
    assert informer.stop(math.inf)


@pytest.mark.parametrize(
    ("timeout", "error", "said"),
    [
        (-1, ValueError, "must not be negative, and it is -1"),
        (math.nan, ValueError, "must not be negative, and it is nan"),
        ("x", TypeError, "a number of seconds, not 'x'"),
    ],
)
def test_timeouts_that_cannot_be_meant(
    informer: SharedInformer, timeout: Any, error: type[Exception], said: str
) -> None:
    """They are refused as those of a store are, and nothing is stopped."""
    handler = informer.add_event_handler()
    with informer:
        for wait in (
            handler.wait_for_sync,
            informer.wait_for_sync,
            lambda seconds: wait_for_cache_sync(informer, timeout=seconds),
            lambda seconds: wait_for_cache_sync(timeout=seconds),
            informer.stop,
        ):
            with pytest.raises(error, match=said):
                wait(timeout)
        assert informer.wait_for_sync(DEADLINE)
        assert not informer._stopping.is_set()
