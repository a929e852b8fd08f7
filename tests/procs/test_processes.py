"""Several processes on one arena: every start method, fork at any time, consumers and kills."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from multiprocessing.context import BaseContext
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, Store
from tests.procs.control import alone

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> BaseContext:
    return multiprocessing.get_context(request.param)


def write_own(store: Store, number: int) -> None:
    for i in range(100):
        store.add({"metadata": {"name": f"{number}-{i}"}, "writer": os.getpid()})
    assert store.get_by_key(f"{number}-99")["writer"] == os.getpid()
    assert store.check() == []


def test_a_handle_goes_to_a_child(context: BaseContext, store: Store, run_all: Any) -> None:
    """A handle given to a child of any start method writes and reads there what we see here."""
    children = [context.Process(target=write_own, args=(store, n)) for n in range(3)]
    run_all(children)
    assert len(store) == len(store.list()) == 300
    assert len({obj["writer"] for obj in store.list()}) == 3


def consume(name: str, results: Any) -> None:
    with FIFO.attach(name) as fifo:
        got = []
        try:
            while True:
                got.append(fifo.pop_raw()[0])
        except shmcache.ShutDown:
            results.put(got)


@pytest.mark.parametrize("consumers", [1, 2, 8])
@pytest.mark.parametrize("method", METHODS)
def test_each_item_goes_to_exactly_one_consumer(fifo: FIFO, method: str, consumers: int) -> None:
    """1, 2 and 8 consumer processes: every item once, each consumer's in queue order."""
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    processes = [
        context.Process(target=consume, args=(fifo.name, results)) for _ in range(consumers)
    ]
    for process in processes:
        process.start()
    items = [f"item-{i:05}" for i in range(2000)]
    for i, item in enumerate(items):
        fifo.add_raw(item, b"\xa1x")
        if i % 10 == 0:
            fifo.add_raw(item, b"\xa1y")  # again while it may be queued: still one item or two
    fifo.shutdown()
    got = [results.get() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    counts = collections.Counter(key for keys in got for key in keys)
    # A second add of a key that was popped in between is a second item, rightly.
    assert set(counts) == set(items)
    assert all(1 <= n <= 2 for n in counts.values())
    assert all(n == 1 for key, n in counts.items() if int(key[5:]) % 10 != 0)
    for keys in got:
        first_times = list(dict.fromkeys(keys))
        assert first_times == sorted(first_times)


def produce_own(fifo: FIFO, which: str) -> None:
    for i in range(500):
        fifo.add({"metadata": {"name": f"{which}{i:04}"}, "n": i})


def test_two_producers_keep_their_order(context: BaseContext, fifo: FIFO) -> None:
    """Two producer processes of 500 keys: 1,000 pops, each producer's values increasing."""
    producers = [context.Process(target=produce_own, args=(fifo, which)) for which in "ab"]
    for producer in producers:
        producer.start()
    got = [fifo.pop(60) for _ in range(1000)]
    for producer in producers:
        producer.join()
        assert producer.exitcode == 0
        producer.close()
    for which in "ab":
        own = [item["n"] for item in got if item["metadata"]["name"].startswith(which)]
        assert own == list(range(500))
    assert fifo.empty()


def pop_and_die(name: str) -> None:
    with FIFO.attach(name) as fifo:
        fifo.pop()
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_item_goes_down_with_its_consumer(fifo: FIFO) -> None:
    """Delivery is at most once: what a killed consumer had popped nobody else gets."""
    for name in "ab":
        fifo.add({"metadata": {"name": name}})
    consumer = multiprocessing.get_context("fork").Process(target=pop_and_die, args=(fifo.name,))
    consumer.start()
    consumer.join()
    assert consumer.exitcode == -signal.SIGKILL
    consumer.close()
    assert [item["metadata"]["name"] for item in fifo.pop_many(9)] == ["b"]


def write_and_look(store: Store) -> None:
    assert store.resource_version == "7"
    store.add({"metadata": {"name": "b", "resourceVersion": "9"}})
    assert store.resource_version == "7"
    store.replace([{"metadata": {"name": "c"}}], "10")


def test_the_version_of_the_list_is_everybodys(
    context: BaseContext, store: Store, run_all: Any
) -> None:
    """resource_version is the last replace's, in each process, whoever replaced."""
    store.replace([{"metadata": {"name": "a"}}], "7")
    run_all([context.Process(target=write_and_look, args=(store,))])
    assert store.resource_version == "10"


def count_versions(name: str, keys: int, last: int, ready: Any) -> None:
    with Store.attach(name) as store:
        ready.set()
        seen = dict.fromkeys(range(keys), 0)
        while min(seen.values()) < last:
            for key in seen:
                now = store.get_by_key(f"k{key}")["n"]
                assert now >= seen[key]
                seen[key] = now


def test_reads_are_monotonic_in_every_process(store: Store) -> None:
    """Readers in other processes never see a key go back in time."""
    keys, last = 5, 2000
    for key in range(keys):
        store.add({"metadata": {"name": f"k{key}"}, "n": 0})
    context = multiprocessing.get_context("fork")
    ready = [context.Event() for _ in range(2)]
    readers = [
        context.Process(target=count_versions, args=(store.name, keys, last, event))
        for event in ready
    ]
    for reader in readers:
        reader.start()
    for event in ready:
        assert event.wait(60)
    for n in range(1, last + 1):
        for key in range(keys):
            store.add({"metadata": {"name": f"k{key}"}, "n": n})
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
        reader.close()


def forked(work: Any) -> int:
    """Run `work` in a forked child; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_while_other_threads_use_the_handle(store: Store, fifo: FIFO) -> None:
    """Children forked while threads of the parent write, pop and wait can use both handles."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.add_raw("busy", b"\xa1x")
            store.list()

    def pop() -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                fifo.pop(0.01)

    threads = [threading.Thread(target=write), threading.Thread(target=pop)]
    for thread in threads:
        thread.start()

    def child(n: int) -> None:
        store.add_raw(f"child-{n}", b"\xa1x")
        assert store.get_by_key(f"child-{n}") == "x"
        assert f"child-{n}" in store.list_keys()

    statuses = [forked(lambda n=n: child(n)) for n in range(30)]
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 30
    assert len(store) == 31


def test_a_forked_child_counts_for_itself(store: Store) -> None:
    """A child that inherits a handle is attached by itself; its death does not end the parent's."""
    store.add_raw("parent", b"\xa1x")

    def child() -> None:
        assert store.stats().attached == 2
        store.add_raw("child", b"\xa1x")
        assert store.stats().attached == 2
        with Store.attach(store.name):
            assert store.stats().attached == 3

    assert forked(child) == 0
    alone(store)
    store.add_raw("parent", b"\xa1y")


def hammer(name: str, seed: int) -> None:
    with Store.attach(name, writable=True) as store:
        i = seed
        while True:
            i += 1
            store.add({"metadata": {"name": f"k{i % 500}"}, "fill": "x" * (i * 7919 % 3000)})
            if i % 3 == 0:
                store.delete_by_key(f"k{i * 31 % 500}")
            if i % 200 == 0:
                store.replace([{"metadata": {"name": f"k{j}"}} for j in range(i % 300)], str(i))


def test_killed_writers_leave_a_whole_store(store: Store) -> None:
    """Two writers, one killed at random instants and replaced: the store is whole each time."""
    context = multiprocessing.get_context("fork")
    steady = context.Process(target=hammer, args=(store.name, 1))
    steady.start()
    for round_ in range(15):
        victim = context.Process(target=hammer, args=(store.name, round_))
        victim.start()
        version = store.version
        while store.version < version + 300:
            store.wait_for_change(store.version, 1)
        victim.kill()
        victim.join()
        victim.close()
        assert store.check() == []
        assert len(store.list()) >= 0
    steady.kill()
    steady.join()
    steady.close()


def sleep_in_pop(name: str, ready: Any) -> None:
    with FIFO.attach(name) as fifo:
        ready.set()
        fifo.pop()


def test_killed_idle_consumers_hinder_nobody(fifo: FIFO) -> None:
    """Consumers killed while they sleep in pop: the next items reach the living, all of them."""
    context = multiprocessing.get_context("fork")
    for round_ in range(5):
        ready = [context.Event() for _ in range(4)]
        sleepers = [
            context.Process(target=sleep_in_pop, args=(fifo.name, event)) for event in ready
        ]
        for sleeper in sleepers:
            sleeper.start()
        for event in ready:
            assert event.wait(60)
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.join()
            sleeper.close()
        for i in range(20):
            fifo.add_raw(f"{round_}-{i}", b"\xa1x")
        assert [fifo.pop_raw(60)[0] for _ in range(20)] == [f"{round_}-{i}" for i in range(20)]


def hold_the_lock(name: str) -> None:
    """Write so much at a time that the lock is held most of the time."""
    with Store.attach(name, writable=True) as store:
        big = [{"metadata": {"name": f"n{i}"}, "fill": "x" * 200} for i in range(20_000)]
        while True:
            store.replace(big)


def test_a_stopped_owner_is_not_robbed(name: str) -> None:
    """While a stopped process holds the lock, writers get an error naming it and readers read."""
    with Store.create(name, capacity="64MiB", lock_timeout=0.2) as store:
        store.add_raw("k", b"\xa1x")
        context = multiprocessing.get_context("fork")
        owner = context.Process(target=hold_the_lock, args=(name,))
        owner.start()
        try:
            caught = None
            deadline = time.monotonic() + 60
            while caught is None:
                assert time.monotonic() < deadline
                os.kill(owner.pid, signal.SIGSTOP)  # holds the lock, most of the time
                try:
                    store.delete_by_key("unknown")
                except shmcache.LockTimeoutError as error:
                    caught = error
                else:
                    os.kill(owner.pid, signal.SIGCONT)
            assert caught.pid == owner.pid
            assert str(owner.pid) in str(caught)
            with Store.attach(name) as reader:
                assert reader.get_raw("n1") is not None or reader.get_raw("k") is not None
            os.kill(owner.pid, signal.SIGCONT)
        finally:
            owner.kill()
            owner.join()
            owner.close()
        store.add_raw("after", b"\xa1x")
        assert store.check() == []
