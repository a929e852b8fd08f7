"""Watches and informers beside processes that write, die and fork: what they give adds up."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from shmcache import (
    Backoff,
    Change,
    ListOptions,
    ListResult,
    ListWatch,
    RawCodec,
    SharedInformer,
    Store,
    Watch,
    WatchOptions,
)
from tests.procs.control import control, start, stop_as_owner, stopped_owner, until, wait_for
from tests.procs.elsewhere import attach, elsewhere

multi_threaded = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

ROUNDS = 60
KEYS = 60
OPTIONS: dict[str, Any] = {"codec": RawCodec(), "key_func": lambda data: data[:3].decode()}


class Sum:
    """The content as the changes of a watch say it is."""

    def __init__(self, watch: Watch[Any]) -> None:
        self.watch = watch
        self.objects: dict[str, bytes] = {}

    def look(self) -> dict[str, bytes]:
        for change in self.watch.take(0):
            self.apply(change)
        return self.objects

    def apply(self, change: Change[Any]) -> None:
        if change.type == "DELETED":
            assert self.objects.pop(change.key) is change.object
            return
        assert self.objects.get(change.key) is change.old
        assert (change.type == "ADDED") == (change.old is None)
        self.objects[change.key] = change.object


def scribble(store: Store, seed: int) -> None:
    """Random writes, for ever: small ones, many at once, and replaces of all."""
    chance = random.Random(seed)

    def entry() -> bytes:
        return b"k%02d=%d" % (chance.randrange(KEYS), chance.randrange(1000)) + b"x" * (
            chance.randrange(300)
        )

    while True:
        match chance.randrange(8):
            case 0:
                store.replace(entry() for _ in range(chance.randrange(KEYS)))
            case 1:
                store.add_many(entry() for _ in range(chance.randrange(300)))
            case 2 | 3 | 4:
                store.delete_by_key(f"k{chance.randrange(KEYS):02}")
            case _:
                store.add(entry())


def test_beside_writers_that_are_killed(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """Whenever a writer is killed, what a read-only and a writable watch have given adds up to what
    their handles hold, before the repair and after it."""
    chance, amid = random.Random(7), 0
    with (
        Store.create(name, capacity="256KiB", **OPTIONS) as store,
        Store.attach(name, **OPTIONS) as reader,
    ):
        reading, writing = Sum(reader.watch()), Sum(store.watch())

        def write(seed: int) -> Callable[[], None]:
            return lambda: scribble(Store.attach(name, writable=True, **OPTIONS), seed)

        for number in range(ROUNDS):
            version = store.version
            pid = start(write(number))
            try:
                until(lambda version=version: store.version > version + 10)  # type: ignore[misc]
                end = time.monotonic() + chance.random() * 0.02
                while time.monotonic() < end:
                    reading.look()
                    writing.look()
                if number % 2:
                    stop_as_owner(pid, name)
                elif number % 4:
                    stop_as_owner(pid, name, when=lambda seen: seen.mutating)
            finally:
                os.kill(pid, signal.SIGKILL)
                assert wait_for(pid) == -signal.SIGKILL
            amid += control(name).dirty
            assert reading.look() == dict(reader.items())
            assert writing.look() == dict(store.items())
            assert reading.look() == writing.objects
            assert store.check() == []
        fell_behind = [total.watch.fell_behind for total in (reading, writing)]
    record_property("figures", f"{amid} of {ROUNDS} died as owner; fell behind: {fell_behind}")


@multi_threaded
def test_a_fork_while_a_look_waits(name: str) -> None:
    """Forked while a thread is in a look that waits for a writer, the child gets the whole
    difference by itself, and so does the thread, when the writer is gone."""
    with Store.create(name, capacity="1MiB", **OPTIONS) as store:
        store.replace(b"k%02d=0" % n for n in range(KEYS))
        total = Sum(store.watch())
        total.look()
        lists = itertools.cycle([[b"a%02d" % n for n in range(90)], [b"b00"]])
        changing = Store.attach(name, writable=True, **OPTIONS)
        with stopped_owner(
            name, lambda: changing.replace(next(lists)), lambda seen: seen.mutating
        ) as owner:
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(total.watch.take)
                until(lambda: control(name).waiters)

                def child() -> None:
                    mine = Sum(total.watch)
                    mine.objects = dict(total.objects)
                    assert mine.look() == dict(store.items())

                pid = start(child)
                os.kill(owner, signal.SIGKILL)
                changes = future.result()
            assert wait_for(pid) == 0
            for change in changes:
                total.apply(change)
            assert total.look() == dict(store.items())
        changing.close()


def follow(own: SimpleNamespace, count: int) -> list[str]:
    """The keys of the changes, until there were so many."""
    keys: list[str] = []
    for change in own.watch:
        assert change.type == "ADDED"
        keys.append(change.key)
        if len(keys) == count:
            break
    own.watch.close()
    return keys


def begin(own: SimpleNamespace, name: str) -> None:
    own.store = Store.attach(name, codec=RawCodec())
    own.watch = own.store.watch()


def write_keys(own: SimpleNamespace, count: int) -> None:
    for number in range(count):
        own.store.add_raw(f"key-{number}", b"%d" % number)


def test_every_worker_gets_every_key_once(name: str) -> None:
    """Four processes that follow a writer in a fifth get each key once, in the order in which they
    were written."""
    count = 5_000
    with (
        Store.create(name, capacity="16MiB", codec=RawCodec()) as store,
        elsewhere(5) as (writer, *workers),
    ):
        writer.run(attach, Store, name, codec=RawCodec(), writable=True)
        for worker in workers:
            worker.run(begin, name)
            worker.tell(follow, count)
        writer.run(write_keys, count)
        expected = [f"key-{number}" for number in range(count)]
        assert all(worker.answer() == expected for worker in workers)
        assert store.check() == []


# --- informers ------------------------------------------------------------------------------------


def inform(own: SimpleNamespace, server: str, name: str) -> None:
    """Run an informer of ``name``, which any of us may have to fill from the store ``server``."""
    own.server = Store.attach(server)
    own.store = Store.attach(name, writable=True)
    own.names, own.came = set(), threading.Condition()

    def note(change: Callable[[Any], None]) -> Callable[[Any], None]:
        def handle(obj: Any) -> None:
            with own.came:
                change(obj["metadata"]["name"])
                own.came.notify_all()

        return handle

    def list_all(options: ListOptions) -> ListResult[Any]:
        return ListResult(own.server.list(), str(own.server.version))

    def watch(options: WatchOptions) -> Iterator[Any]:
        """None of what a watch has: each change is the end of it, and a new list."""
        own.server.wait_for_change(int(options.resource_version), 0.02)
        return iter(())

    own.informer = SharedInformer(
        ListWatch(list_all, watch), own.store, backoff=Backoff(0.001, cap=0.01)
    )
    own.informer.add_event_handler(note(own.names.add), None, note(own.names.remove))
    own.informer.start()


def elected(own: SimpleNamespace) -> bool:
    return own.store._core.is_reflector


def wait_until_told(own: SimpleNamespace, names: set[str]) -> None:
    with own.came:
        own.came.wait_for(lambda: own.names == names)


def end(own: SimpleNamespace) -> None:
    assert own.informer.stop(60)
    assert own.informer.stats().handler_errors == 0
    own.store.close()
    own.server.close()


def test_informers_outlive_the_one_that_fills(name: str) -> None:
    """When the process whose informer fills the store is killed, the handlers of the others are
    told of all that has happened at the source since, deletes too."""

    def pod(number: int) -> dict[str, Any]:
        return {"metadata": {"name": f"p{number}"}}

    with (
        Store.create(f"{name}-server", capacity="1MiB") as server,
        Store.create(name, capacity="1MiB"),
        elsewhere(3) as workers,
    ):
        server.replace(pod(n) for n in range(3))
        try:
            for worker in workers:
                worker.run(inform, server.name, name)
            for worker in workers:
                worker.run(wait_until_told, {"p0", "p1", "p2"})
            (first,) = [worker for worker in workers if worker.run(elected)]
            first.kill()
            server.replace(pod(n) for n in range(1, 5))
            others = [worker for worker in workers if worker is not first]
            for worker in others:
                worker.run(wait_until_told, {"p1", "p2", "p3", "p4"})
            assert sum(worker.run(elected) for worker in others) == 1
            for worker in others:
                worker.run(end)
        finally:
            server.unlink()
