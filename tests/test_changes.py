"""Store.watch: what has changed since the last look, exactly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shmcache import (
    FIFO,
    Change,
    ClosedError,
    CodecError,
    Indexer,
    RawCodec,
    Store,
    Watch,
)
from tests.procs.control import control, forked, until
from tests.test_interrupted_pop import strikes

Pod = Callable[..., dict[str, Any]]

RING = 256  # entries of the smallest arena; an update takes two


@pytest.fixture
def small(name: str) -> Iterator[Store]:
    """The store that remembers the fewest changes, of payloads that are their own objects."""
    with Store.create(name, capacity="256KiB", codec=RawCodec()) as made:
        yield made
        assert made.closed or made.check() == []


def brief(changes: list[Change[Any]]) -> list[tuple[Any, ...]]:
    """Without what is None."""
    return [tuple(part for part in change if part is not None) for change in changes]


# --- what a look gives --------------------------------------------------------------------------


def test_first_the_content_then_the_changes(store: Store, pod: Pod) -> None:
    """A watch gives what is there as ADDED, in the order of the writes, and then each change with
    what was there before."""
    first, second = pod("b", n=1), pod("a", n=1)
    store.add(first)
    store.add(second)
    watch = store.watch(timeout=0)
    assert list(watch) == [
        Change("ADDED", "default/b", first, None),
        Change("ADDED", "default/a", second, None),
    ]
    newer = pod("b", n=2)
    store.update(newer)
    assert list(watch) == [Change("MODIFIED", "default/b", newer, first)]
    store.delete(newer)
    assert list(watch) == [Change("DELETED", "default/b", newer, None)]
    assert list(watch) == []


def test_changes_of_a_key_arrive_as_one(small: Store) -> None:
    """Between two looks only the difference counts: the last of many updates, nothing of what came
    and went, and a key that was deleted and added again as modified."""
    small.add_raw("updated", b"1")
    small.add_raw("again", b"1")
    small.add_raw("gone", b"1")
    watch = small.watch()
    assert len(watch.take()) == 3
    for version in (b"2", b"3", b"4"):
        small.add_raw("updated", version)
    small.delete_by_key("again")
    small.add_raw("again", b"5")
    small.add_raw("gone", b"6")
    small.delete_by_key("gone")
    small.add_raw("brief", b"7")
    small.delete_by_key("brief")
    assert sorted(brief(watch.take())) == [
        ("DELETED", "gone", b"1"),
        ("MODIFIED", "again", b"5", b"1"),
        ("MODIFIED", "updated", b"4", b"1"),
    ]


def test_the_order_is_that_of_the_writes(small: Store) -> None:
    """Adds, updates and deletes of different keys come in the order in which they were made."""
    for key in "abc":
        small.add_raw(key, b"1")
    watch = small.watch()
    watch.take()
    small.add_raw("x", b"1")
    small.delete_by_key("b")
    small.add_raw("c", b"2")
    small.add_raw("y", b"1")
    small.delete_by_key("a")
    assert [(change.type, change.key) for change in watch.take()] == [
        ("ADDED", "x"),
        ("DELETED", "b"),
        ("MODIFIED", "c"),
        ("ADDED", "y"),
        ("DELETED", "a"),
    ]


def test_a_delete_comes_before_what_took_its_record(small: Store) -> None:
    """Where the memory of a deleted entry has been used again, the delete comes first."""
    small.add_raw("old", b"1")
    watch = small.watch()
    watch.take()
    small.delete_by_key("old")
    small.add_raw("new", b"2")
    assert brief(watch.take()) == [("DELETED", "old", b"1"), ("ADDED", "new", b"2")]


@pytest.mark.parametrize("kept", [0, 3])
def test_a_replace_is_its_difference(small: Store, kept: int) -> None:
    """What a replace leaves as it was is no change; what it left out is deleted, before what is
    new, which comes in the order of the list."""
    small.replace([])
    for i in range(5):
        small.add_raw(f"k{i}", b"%d" % i)
    with Store.attach(small.name, writable=True, codec=RawCodec(), key_func=key_of) as writer:
        writer.replace([b"k%d" % i for i in range(5)])
        watch = small.watch()
        watch.take()
        writer.replace([b"n2", *(b"k%d" % i for i in range(kept)), b"n1"])
    changes = watch.take()
    assert {change.key for change in changes[: 5 - kept]} == {f"k{i}" for i in range(kept, 5)}
    assert all(change.type == "DELETED" for change in changes[: 5 - kept])
    assert brief(changes[5 - kept :]) == [("ADDED", "n2", b"n2"), ("ADDED", "n1", b"n1")]


def key_of(data: bytes) -> str:
    return data.decode()


def test_an_equal_replace_is_no_change(store: Store, pod: Pod) -> None:
    """A list that is equal to the content moves the version, and gives nothing."""
    store.replace([pod("a"), pod("b")])
    watch = store.watch()
    watch.take()
    before = store.version
    store.replace([pod("b"), pod("a")])
    assert store.version > before
    assert watch.take(0) == []


def test_an_indexer_can_be_watched(pod: Pod) -> None:
    """An Indexer has the same changes; a new index rewrites its entries, with equal objects."""
    with Indexer.create(capacity="1MiB") as indexer:
        indexer.unlink()
        watch = indexer.watch()
        indexer.add(pod("a"))
        assert brief(watch.take()) == [("ADDED", "default/a", pod("a"))]
        indexer.add_indexers({"name": lambda obj: [obj["metadata"]["name"]]})
        assert brief(watch.take()) == [("MODIFIED", "default/a", pod("a"), pod("a"))]


def test_a_fifo_cannot_be_watched(fifo: FIFO) -> None:
    """A FIFO has no record of its changes: a TypeError that names it and says what to do."""
    with pytest.raises(TypeError, match=rf"{fifo.name}.*pop\(\) or claim\(\)"):
        fifo.watch()


def test_the_objects_are_those_of_get(store: Store, pod: Pod) -> None:
    """What a change has is the read-only object that get_by_key gives, whoever decoded it first,
    and the key is one object for as long as the entry lives."""
    store.add(pod("a"))
    store.add(pod("b"))
    known = store.get_by_key("default/a")
    changes = {change.key: change for change in store.watch().take()}
    assert changes["default/a"].object is known
    assert store.get_by_key("default/b") is changes["default/b"].object
    with pytest.raises(TypeError):
        changes["default/b"].object["metadata"]["name"] = "c"


def test_old_is_what_was_given(store: Store, pod: Pod) -> None:
    """old is the very object that the change before gave, and so is that of a DELETED."""
    watch = store.watch()
    store.add(pod("a", n=1))
    (added,) = watch.take()
    store.add(pod("a", n=2))
    store.add(pod("a", n=3))
    (modified,) = watch.take()
    assert modified.old is added.object
    store.add(pod("a", n=4))
    store.delete(pod("a"))
    (deleted,) = watch.take()
    assert deleted.object is modified.object
    assert deleted.old is None


def test_a_modified_object_shares_what_has_not_changed(store: Store, pod: Pod) -> None:
    """What is the same before and after a change is one object, so a handler may compare by is."""
    watch = store.watch(timeout=0)
    store.add(pod("a", spec={"nodeName": "n"}, status={"phase": "Pending"}))
    list(watch)
    store.add(pod("a", spec={"nodeName": "n"}, status={"phase": "Running"}))
    ((_, _, new, old),) = watch
    assert (old["status"], new["status"]) == ({"phase": "Pending"}, {"phase": "Running"})
    assert new["spec"] is old["spec"]


def test_a_change_is_a_frozen_tuple(store: Store, pod: Pod) -> None:
    """A Change cannot be changed, pickles, matches by name, and is equal and hashes like another
    that was made in Python, whether or not the collector looks at it."""
    store.add_raw("k", store._codec.encode(pod("a")))
    with Store.create(capacity="1MiB", codec=RawCodec()) as raw:
        raw.unlink()
        raw.add_raw("k", b"1")
        (packed,), (plain,) = store.watch().take(), raw.watch().take()
    with pytest.raises(AttributeError):
        plain.key = "other"  # type: ignore[misc]
    assert type(plain) is Change
    assert plain == Change("ADDED", "k", b"1", None)
    assert hash(plain) == hash(Change("ADDED", "k", b"1", None))
    assert pickle.loads(pickle.dumps(packed)) == packed
    match packed:
        case Change(type="ADDED", key=key):
            assert key == "k"
    assert gc.is_tracked(packed)
    assert not gc.is_tracked(plain)


# --- falling behind -----------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [RING // 4, RING, 3 * RING])
def test_who_falls_behind_gets_the_difference(small: Store, writes: int) -> None:
    """More changes than the store remembers are the exact difference all the same, and counted."""
    for i in range(50):
        small.add_raw(f"k{i}", b"old")
    watch = small.watch()
    watch.take()
    for i in range(writes):
        small.add_raw("often", b"%d" % i)
    small.delete_by_key("k7")
    small.add_raw("k8", b"new")
    assert brief(watch.take()) == [
        ("ADDED", "often", b"%d" % (writes - 1)),
        ("DELETED", "k7", b"old"),
        ("MODIFIED", "k8", b"new", b"old"),
    ]
    assert watch.fell_behind == (writes >= RING)


def test_a_repair_changes_nothing(small: Store) -> None:
    """After a repair all entries are compared, and what has not changed is not given again."""
    small.add_raw("a", b"1")
    small.add_raw("b", b"1")
    watch = small.watch()
    watch.take()
    small.delete_by_key("a")
    small._core.testing_repair()
    assert brief(watch.take()) == [("DELETED", "a", b"1")]
    assert watch.take(0) == []
    assert watch.fell_behind == 1


class Decoded:
    """An object that can be watched while it goes."""

    def __init__(self, data: bytes) -> None:
        if data == b"bad":
            raise ValueError("bad")
        self.data = data


class Decoding(RawCodec):
    """A codec that fails on one payload."""

    def decode_shared(self, data: bytes, previous: object) -> Decoded:
        return Decoded(data)


def test_a_watch_keeps_what_is_there_and_no_more(small: Store) -> None:
    """A watch keeps the objects that it has given for as long as they are there, and until it is
    closed."""
    with Store.attach(small.name, codec=Decoding(), cache=0) as reader:
        watch = reader.watch()
        small.add_raw("a", b"1")
        small.add_raw("b", b"1")
        old, other = (weakref.ref(change.object) for change in watch.take())
        assert old() is not None
        small.add_raw("a", b"2")
        assert watch.take()[0].old.data == b"1"
        assert old() is None
        assert other() is not None
        watch.close()
        assert other() is None


# --- errors -------------------------------------------------------------------------------------


def test_what_cannot_be_decoded_delays_nobody(small: Store) -> None:
    """The other changes of a look are given, then it raises one CodecError that names the key; what
    cannot be decoded stands as it was given, if it was, until it changes."""
    with Store.attach(small.name, codec=Decoding()) as reader:
        watch = reader.watch(timeout=0)
        small.add_raw("a", b"1")
        assert [change.key for change in watch] == ["a"]
        small.add_raw("b", b"1")
        small.add_raw("c", b"bad")
        small.delete_by_key("a")
        assert [(c.type, c.key) for c in watch.take()] == [("ADDED", "b"), ("DELETED", "a")]
        assert watch.unread == 1
        with pytest.raises(CodecError, match="'c'"):
            next(watch)
        assert list(watch) == []
        small.add_raw("c", b"good")
        small.add_raw("b", b"bad")
        assert [(c.type, c.key, c.old) for c in watch.take()] == [("ADDED", "c", None)]
        with pytest.raises(CodecError, match="'b'"):
            watch.take(60)
        small.add_raw("d", b"bad")
        with pytest.raises(CodecError, match="'d'"):
            watch.take()
        assert watch.unread == 2
        small.add_raw("b", b"bad")  # again, and another version
        with pytest.raises(CodecError, match="'b'"):
            watch.take()
        small.add_raw("b", b"3")
        ((_, _, new, old),) = watch
        assert (new.data, old.data) == (b"3", b"1")
        small.add_raw("b", b"bad")
        with pytest.raises(CodecError):
            watch.take()
        small.delete_by_key("b")
        small.delete_by_key("d")
        assert [(c.type, c.key, c.object.data) for c in watch] == [("DELETED", "b", b"3")]
        assert watch.unread == 0


def test_what_cannot_be_decoded_and_is_left_out(small: Store) -> None:
    """A watch without the content is made, and says nothing of what in it cannot be decoded."""
    small.add_raw("bad", b"bad")
    with Store.attach(small.name, codec=Decoding()) as reader:
        alone = reader.watch(timeout=0, initial=False)
        small.add_raw("good", b"1")
        among = reader.watch(timeout=0, initial=False)
        assert [change.key for change in alone] == ["good"]
        assert list(among) == []
        assert (alone.unread, among.unread) == (1, 1)
        among.close()
        assert among.unread == 0


def test_one_reader_at_a_time(store: Store) -> None:
    """A second thread that reads the same watch is told to make its own; the first reads on."""
    watch = store.watch()
    watch.take()
    given: list[Change[Any]] = []
    reader = threading.Thread(target=lambda: given.extend(watch.take()))
    reader.start()
    until(lambda: control(store.name).change_sleepers)
    with pytest.raises(RuntimeError, match=r"another thread.*watch\(\) once for each"):
        watch.take()
    store.add_raw("k", b"\xa1x")
    reader.join()
    assert brief(given) == [("ADDED", "k", "x")]


def test_a_closed_watch(store: Store, pod: Pod) -> None:
    """close() ends the iteration of another thread, is idempotent, and lets take() raise."""
    watch = store.watch()
    given: list[Change[Any]] = []
    reader = threading.Thread(target=lambda: given.extend(watch))
    reader.start()
    until(lambda: control(store.name).change_sleepers)
    watch.close()
    reader.join()
    watch.close()
    assert watch.closed
    store.add(pod("a"))
    assert given == list(watch) == []
    with pytest.raises(ClosedError, match="this watch is closed"):
        watch.take()


def test_a_watch_of_a_closed_store(store: Store) -> None:
    """When the store's handle is closed a watch raises ClosedError, whether it waits or comes
    later; so does watch()."""
    watch = store.watch()
    failures: list[Exception] = []

    def read() -> None:
        try:
            list(watch)
        except ClosedError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: control(store.name).change_sleepers)
    store.close()
    reader.join()
    assert len(failures) == 1
    with pytest.raises(ClosedError):
        next(watch)
    with pytest.raises(ClosedError):
        store.watch()


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_is_checked(store: Store, timeout: float) -> None:
    """A timeout that cannot be meant is a ValueError, of watch() and of take()."""
    with pytest.raises(ValueError, match="timeout"):
        store.watch(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        store.watch().take(timeout)


def test_a_timeout_is_a_number(store: Store) -> None:
    """What is no number is a TypeError that names the argument."""
    wrong: Any = "1"
    with pytest.raises(TypeError, match="timeout is a number of seconds, not '1'"):
        store.watch().take(wrong)


def test_a_signal_loses_nothing(store: Store, pod: Pod) -> None:
    """An exception of a signal handler ends the wait, and the watch goes on as if it had not
    been."""

    def leave(*_: object) -> None:
        if control(store.name).change_sleepers:  # else it does not wait yet
            signal.setitimer(signal.ITIMER_REAL, 0)
            store.add(pod("b"))
            raise KeyboardInterrupt

    store.add(pod("a"))
    watch = store.watch()
    watch.take()
    before = signal.signal(signal.SIGALRM, leave)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        with pytest.raises(KeyboardInterrupt):
            next(watch)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert next(watch).key == "default/b"


READS: dict[str, Callable[[Watch[Any]], list[Change[Any]]]] = {
    "next": lambda watch: [next(watch)],
    "take": lambda watch: watch.take(0),
    "anext": lambda watch: [asyncio.run(anext(watch))],
}


# Struck between the making of a coroutine and its await.
@pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
@pytest.mark.parametrize("how", READS)
def test_struck_at_any_bytecode(small: Store, how: str) -> None:
    """An exception between any two bytecodes of a read leaves every change to be given, once and
    in order."""
    if sys.gettrace() is not None:
        pytest.skip("another tracer is at work")
    keys = [f"k{i}" for i in range(8)]
    watch = small.watch()
    given: list[Change[Any]] = []
    for few in (keys[:4], keys[4:]):  # first of a look, then of what is left of one
        for key in few:
            small.add_raw(key, b"1")
        if given:
            given.append(next(watch))
        rounds = 0
        for taken in strikes(watch, READS[how], ("shmcache/changes.py",)):
            rounds += 1
            given += taken or []
        assert rounds > 10
    given += watch.take(0)
    given += watch.take(0)
    assert [change.key for change in given] == keys


# --- waiting ------------------------------------------------------------------------------------


def test_synced_is_when_all_was_given(store: Store, pod: Pod) -> None:
    """synced turns true with the last of the first content; of an empty store with the first
    look."""
    empty = store.watch(timeout=0)
    assert not empty.synced
    assert list(empty) == []
    assert empty.synced
    store.add(pod("a"))
    store.add(pod("b"))
    watch = store.watch()
    assert (next(watch).key, watch.synced) == ("default/a", False)
    assert (next(watch).key, watch.synced) == ("default/b", True)


def test_without_the_content(store: Store, pod: Pod) -> None:
    """initial=False begins at the call: what was there is known and not given."""
    store.add(pod("a", n=1))
    watch = store.watch(timeout=0, initial=False)
    assert watch.synced
    store.add(pod("a", n=2))
    store.add(pod("b"))
    assert [(change.type, change.old) for change in watch] == [
        ("MODIFIED", pod("a", n=1)),
        ("ADDED", None),
    ]


def test_take_gives_the_rest(store: Store, pod: Pod) -> None:
    """take() after a part was iterated over gives what is left of that look, in order."""
    for name in "abc":
        store.add(pod(name))
    watch = store.watch()
    assert next(watch).key == "default/a"
    store.add(pod("d"))
    assert [change.key for change in watch.take()] == ["default/b", "default/c"]
    assert [change.key for change in watch.take()] == ["default/d"]


def test_a_change_wakes_the_reader(store: Store, pod: Pod) -> None:
    """A reader that sleeps without a timeout gets the change of another thread."""
    watch = store.watch()
    given: list[Change[Any]] = []
    reader = threading.Thread(target=lambda: given.append(next(watch)))
    reader.start()
    until(lambda: control(store.name).change_sleepers)
    store.add(pod("a"))
    reader.join()
    assert given[0].key == "default/a"


def test_an_iteration_ends_after_its_timeout_and_goes_on(store: Store, pod: Pod) -> None:
    """With a timeout a for loop ends when nothing has come for so long; another goes on there."""
    watch = store.watch(timeout=0.01)
    store.add(pod("a"))
    assert [change.key for change in watch] == ["default/a"]
    store.add(pod("b"))
    assert [change.key for change in watch] == ["default/b"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_restless_store_does_not_delay_the_end(
    store: Store, pod: Pod, asynchronous: bool
) -> None:
    """An iteration ends after its timeout also where somebody writes without a pause what changes
    nothing."""

    async def main() -> list[Change[Any]]:
        return [change async for change in store.watch(timeout=0.05, initial=False)]

    store.replace([pod("a")])
    ending = threading.Event()

    def write() -> None:
        while not ending.is_set():
            store.replace([pod("a")])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        if asynchronous:
            assert asyncio.run(main()) == []
        else:
            assert list(store.watch(timeout=0.05, initial=False)) == []
    finally:
        ending.set()
        writer.join()


# --- asyncio ------------------------------------------------------------------------------------


def test_async_for(store: Store, pod: Pod) -> None:
    """async for gives the content and then the changes, while the loop does other things, and ends
    when the watch is closed."""

    async def main() -> list[tuple[str, str]]:
        given = []

        async def read() -> None:
            async for change in watch:
                given.append((change.type, change.key))

        async with store.watch() as watch:
            reader = asyncio.create_task(read())
            while not watch.synced:
                await asyncio.sleep(0)
            store.update(pod("a", n=2))
            while len(given) < 2:
                await asyncio.sleep(0)
            watch.close()
            await reader
        return given

    store.add(pod("a"))
    assert asyncio.run(main()) == [("ADDED", "default/a"), ("MODIFIED", "default/a")]


def test_async_for_ends_after_its_timeout(store: Store, pod: Pod) -> None:
    """async for ends when nothing has come for as long as the timeout, also of an empty store."""

    async def main(timeout: float) -> list[str]:
        return [change.key async for change in store.watch(timeout=timeout)]

    assert asyncio.run(main(0)) == []
    assert asyncio.run(main(0.01)) == []
    store.add(pod("a"))
    assert asyncio.run(main(0)) == ["default/a"]


def test_many_watches_share_a_thread(store: Store, pod: Pod) -> None:
    """All watches of a handle in a loop sleep in one thread of its executor: with two threads any
    number of them is told of each change, and the other thread is free."""

    async def main() -> list[str]:
        asyncio.get_running_loop().set_default_executor(executor)
        watches = [store.watch(initial=False) for _ in range(20)]
        readers = [asyncio.create_task(anext(watch)) for watch in watches]
        while not control(store.name).change_sleepers:
            await asyncio.sleep(0)
        await asyncio.to_thread(store.add, pod("a"))
        return [(await reader).key for reader in readers]

    class Counting(ThreadPoolExecutor):
        asleep = most = 0

        def submit(self, function: Any, /, *args: Any) -> Any:
            future = super().submit(function, *args)
            if getattr(getattr(function, "func", None), "__name__", "") == "wait_change":
                self.asleep += 1
                self.most = max(self.most, self.asleep)
                future.add_done_callback(self._awake)
            return future

        def _awake(self, _: object) -> None:
            self.asleep -= 1

    executor = Counting(2)
    assert asyncio.run(main()) == ["default/a"] * 20
    assert 1 <= executor.most <= 2  # one that ends, and the next


def test_cancelled_while_a_look_goes_on(small: Store) -> None:
    """A reader that is cancelled while a thread still decodes leaves the look to the next reader,
    who gets the change."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(RawCodec):
        def decode_shared(self, data: bytes, previous: object) -> bytes:
            inside.set()
            go_on.wait()
            return data

    async def main(watch: Watch[bytes]) -> str:
        first = asyncio.create_task(anext(watch))
        await asyncio.to_thread(inside.wait)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        go_on.set()
        return (await second).key

    small.add_raw("a", b"1")
    with Store.attach(small.name, codec=Slow()) as reader:
        assert asyncio.run(main(reader.watch())) == "a"


def test_a_cancelled_reader_loses_nothing(store: Store, pod: Pod) -> None:
    """However often waiting for the next change is cancelled, all changes arrive, once each."""

    async def main() -> list[str]:
        given: list[str] = []
        watch = store.watch()
        for i in range(40):
            waiting = asyncio.create_task(anext(watch))
            for _ in range(i % 5):
                await asyncio.sleep(0)
            store.add(pod(f"p{i}"))
            if i % 2:
                await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                given.append((await waiting).key)
        while len(given) < 40:
            given.append((await anext(watch)).key)
        watch.close()
        return given

    assert asyncio.run(main()) == [f"default/p{i}" for i in range(40)]


def test_an_error_comes_out_of_async_for(small: Store) -> None:
    """What a look raises, anext raises; the watch goes on after it, in another loop too."""
    small.add_raw("a", b"bad")
    with Store.attach(small.name, codec=Decoding()) as reader:
        watch: Watch[Decoded] = reader.watch()

        async def read() -> str:
            return (await anext(watch)).key

        with pytest.raises(CodecError):
            asyncio.run(read())
        small.add_raw("a", b"1")
        assert asyncio.run(read()) == "a"


# --- after a fork -------------------------------------------------------------------------------


def test_a_child_goes_on_by_itself(small: Store) -> None:
    """A forked child gets what its parent had not been given, and its reading changes nothing for
    the parent."""
    small.add_raw("a", b"1")
    small.add_raw("b", b"1")
    watch = small.watch()
    assert next(watch).key == "a"

    def child() -> None:
        small.add_raw("c", b"1")
        assert next(watch).key == "b"
        assert [change.key for change in watch.take()] == ["c"]

    assert forked(child) == 0
    assert next(watch).key == "b"
    assert brief(watch.take()) == [("ADDED", "c", b"1")]


def test_a_child_of_a_fork_in_the_middle(small: Store) -> None:
    """While another thread waits in the watch, and while it decodes, a forked child can read on:
    what it gets is the difference to what was given before."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(RawCodec):
        def decode_shared(self, data: bytes, previous: object) -> bytes:
            if data == b"slow" and os.getpid() == parent:
                inside.set()
                go_on.wait()
            return data

    parent = os.getpid()
    with Store.attach(small.name, codec=Slow()) as reader:
        watch = reader.watch()
        small.add_raw("a", b"1")
        watch.take()
        given: list[Change[Any]] = []
        thread = threading.Thread(target=lambda: given.extend(watch.take()))
        thread.start()
        until(lambda: control(small.name).change_sleepers)

        def waits() -> None:
            assert watch.take(0) == []

        assert forked(waits) == 0
        small.delete_by_key("a")
        small.add_raw("b", b"slow")
        inside.wait()
        expected = [("DELETED", "a", b"1"), ("ADDED", "b", b"slow")]

        def decodes() -> None:
            assert brief(watch.take(0)) == expected

        assert forked(decodes) == 0
        go_on.set()
        thread.join()
        if len(given) == 1:  # it woke between the two writes
            given += watch.take()
        assert brief(given) == expected
