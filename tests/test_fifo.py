"""FIFO: order, positions, blocking, shutdown and asyncio."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, WorkerInfo
from tests.procs.control import control, until


def names(items: list[Any]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


def test_one_item_per_key_with_the_newest_content(fifo: FIFO, pod: Any) -> None:
    """Adds and updates of one key are one item: its first position, its last content."""
    fifo.add(pod("a", n=1))
    fifo.add(pod("b"))
    fifo.update(pod("a", n=2))
    assert fifo.qsize() == 2
    assert fifo.pop(0) == pod("a", n=2)
    assert fifo.get(pod("a")) is None
    assert fifo.pop(0) == pod("b")
    with pytest.raises(queue.Empty):
        fifo.pop(0)


def test_no_jumping_the_queue(fifo: FIFO, pod: Any) -> None:
    """A popped key that is added again waits its turn."""
    for name, n in [("foo", 10), ("bar", 1), ("foo", 11), ("foo", 13), ("zab", 30)]:
        fifo.add(pod(name, n=n))
    assert fifo.pop(0)["n"] == 13
    fifo.add(pod("foo", n=14))
    assert [fifo.pop(0)["n"] for _ in range(3)] == [1, 30, 14]


def test_add_if_not_present(fifo: FIFO, pod: Any) -> None:
    """A queued, newer version stays; it says whether it added."""
    fifo.add(pod("a", n=1))
    fifo.add(pod("b", n=2))
    assert fifo.add_if_not_present(pod("b", n=3)) is False
    assert fifo.add_if_not_present(pod("c", n=4)) is True
    with pytest.raises(shmcache.KeyFuncError):
        fifo.add_if_not_present({"no": "metadata"})
    assert len(fifo) == fifo.qsize() == 3
    assert [item["n"] for item in fifo.pop_many(9)] == [1, 2, 4]


def test_a_deleted_key_goes_to_the_tail_when_added_again(fifo: FIFO, pod: Any) -> None:
    """A deleted item is never popped; added again its key is behind the others."""
    for name in "abc":
        fifo.add(pod(name))
    fifo.delete(pod("a"))
    fifo.add(pod("a"))
    assert names(fifo.list()) == ["b", "c", "a"]
    assert names(fifo.pop_many(10, 0)) == ["b", "c", "a"]


def test_add_and_delete_without_pop_stay_bounded(fifo: FIFO, pod: Any) -> None:
    """Any number of add/delete rounds takes no more memory than one."""
    fifo.add(pod("x"))
    fifo.delete(pod("x"))
    committed = fifo.stats().committed_bytes
    for _ in range(20_000):
        fifo.add_raw("k", b"payload")
        fifo.delete_by_key("k")
    assert fifo.stats().committed_bytes == committed


def test_replace_is_the_list_in_its_order(fifo: FIFO, pod: Any) -> None:
    """replace makes queue and set the list; a duplicate keeps its first place, last content."""
    fifo.add(pod("old"))
    fifo.replace([pod("c"), pod("a", n=1), pod("b"), pod("a", n=2)], "5")
    assert [(o["metadata"]["name"], o.get("n")) for o in fifo.list()] == [
        ("c", None),
        ("a", 2),
        ("b", None),
    ]
    assert names([fifo.pop(0) for _ in range(3)]) == ["c", "a", "b"]


def test_replace_of_a_queued_key_is_one_item(fifo: FIFO, pod: Any) -> None:
    """An added item whose key is then replaced is popped once, with the replaced content."""
    fifo.add(pod("a", n=1))
    fifo.replace([pod("a", n=2)], "5")
    assert fifo.pop(0) == pod("a", n=2)
    with pytest.raises(queue.Empty):
        fifo.pop(0)


def test_what_left_the_queue_is_gone_for_every_handle(fifo: FIFO, pod: Any) -> None:
    """A popped key is in no get or list of any handle, and a deleted one is never popped."""
    for name in "abc":
        fifo.add(pod(name))
    with FIFO.attach(fifo.name) as other:
        assert fifo.pop(0) == pod("a")
        fifo.delete(pod("b"))
        for handle in (fifo, other):
            for gone in "ab":
                assert handle.get(pod(gone)) is None
                assert handle.get_by_key(f"default/{gone}") is None
                assert f"default/{gone}" not in handle
            assert names(handle.list()) == ["c"]
            assert handle.qsize() == 1
        assert names(other.pop_many(9)) == ["c"]


def test_deletes_and_an_empty_replace_leave_nothing_to_pop(fifo: FIFO, pod: Any) -> None:
    """A queue whose items were all deleted, or replaced by none, blocks until there is one."""
    fifo.add(pod("a"))
    fifo.delete(pod("a"))
    with pytest.raises(queue.Empty):
        fifo.pop(0.01)
    fifo.add(pod("b"))
    fifo.replace([])
    with pytest.raises(queue.Empty):
        fifo.pop(0.01)
    popped: list[Any] = []
    sleeper = threading.Thread(target=lambda: popped.append(fifo.pop()))
    sleeper.start()
    fifo.replace([])
    fifo.replace([pod("c")])
    sleeper.join()
    assert names(popped) == ["c"]


def test_the_delete_of_the_last_initial_item_ends_the_wait(fifo: FIFO, pod: Any) -> None:
    """The delete of the last initial item syncs, with somebody in wait_for_sync or in pop."""
    fifo.replace([pod("a")], "1")
    synced: list[bool] = []
    waiting = threading.Thread(target=lambda: synced.append(fifo.wait_for_sync()))
    waiting.start()
    fifo.delete(pod("a"))
    waiting.join()
    popped: list[Any] = []
    consumer = threading.Thread(target=lambda: popped.append(fifo.pop()))
    consumer.start()
    assert fifo.has_synced
    fifo.add(pod("b"))
    consumer.join()
    assert synced == [True]
    assert names(popped) == ["b"]


def test_a_popped_item_is_delivered_once(fifo: FIFO, pod: Any) -> None:
    """A popped item is out of the queue for good; putting it back keeps a newer one."""
    fifo.add(pod("a", n=1))
    item = fifo.pop(0)
    assert fifo.empty()
    fifo.add(pod("a", n=2))
    assert fifo.add_if_not_present(item) is False
    assert fifo.pop(0) == pod("a", n=2)
    assert fifo.add_if_not_present(item) is True
    assert fifo.pop(0) == pod("a", n=1)


def test_synced_after_the_initial_items_are_gone(fifo: FIFO, pod: Any) -> None:
    """has_synced: no at first, no while an item of the first replace is queued, then for ever."""
    assert not fifo.has_synced
    fifo.replace([pod("a"), pod("b")], "1")
    assert not fifo.has_synced
    fifo.pop(0)
    fifo.add(pod("later"))
    assert not fifo.has_synced
    fifo.delete(pod("b"))
    assert fifo.has_synced
    fifo.replace([pod("a"), pod("b")], "2")
    assert fifo.has_synced


def test_synced_by_a_first_add_or_an_empty_list(name: str, pod: Any) -> None:
    """A first add, and a first replace with nothing, are synced at once."""
    with FIFO.create(capacity="1MiB") as one, FIFO.create(capacity="1MiB") as two:
        one.unlink()
        two.unlink()
        one.add(pod("a"))
        two.replace([])
        assert one.has_synced
        assert two.has_synced
        assert one.wait_for_sync(0) is True


def test_popped_items_are_private(fifo: FIFO, pod: Any) -> None:
    """What pop returns may be changed; what get returns is shared and may not."""
    fifo.add(pod("a", tags=[]))
    shared = fifo.get_by_key("default/a")
    with pytest.raises(TypeError):
        shared["tags"].append(1)
    mine = fifo.pop(0)
    mine["tags"].append(1)
    assert type(mine) is dict


def test_pop_raw_and_pop_many(fifo: FIFO) -> None:
    """pop_raw gives key and bytes; pop_many gives one to max items in order."""
    for i in range(5):
        fifo.add_raw(f"k{i}", bytes([0xA1, 97 + i]))
    assert fifo.pop_raw(0) == ("k0", b"\xa1a")
    assert fifo.pop_many(2) == ["b", "c"]
    assert fifo.pop_many(9) == ["d", "e"]
    with pytest.raises(queue.Empty):
        fifo.pop_many(1, 0.01)
    with pytest.raises(ValueError, match="max_items"):
        fifo.pop_many(0)
    with pytest.raises(ValueError, match="negative"):
        fifo.pop(-1)


def test_a_payload_that_cannot_be_decoded_is_not_lost(fifo: FIFO) -> None:
    """If the codec fails on a popped payload, the error carries the bytes."""
    fifo.add_raw("k", b"\xc1")
    with pytest.raises(shmcache.CodecError) as caught:
        fifo.pop(0)
    assert caught.value.obj == b"\xc1"


def test_pop_many_with_one_bad_payload_loses_nothing(fifo: FIFO) -> None:
    """If one of several popped payloads cannot be decoded, the error carries all of them."""
    payloads = [("a", b"\xa1x"), ("bad", b"\xc1"), ("c", b"\xa1z")]
    for key, data in payloads:
        fifo.add_raw(key, data)
    with pytest.raises(shmcache.CodecError, match="'bad'") as caught:
        fifo.pop_many(9)
    assert caught.value.obj == payloads


@pytest.mark.parametrize("how", ["add", "add_if_not_present", "add_many", "replace", "add_raw"])
def test_every_way_in_wakes_a_sleeper(fifo: FIFO, pod: Any, how: str) -> None:
    """A blocked pop is woken by whatever puts an item in."""
    popped: list[Any] = []
    sleeper = threading.Thread(target=lambda: popped.append(fifo.pop()))
    sleeper.start()
    match how:
        case "add" | "add_if_not_present":
            getattr(fifo, how)(pod("a"))
        case "add_many" | "replace":
            getattr(fifo, how)([pod("a")])
        case "add_raw":
            fifo.add_raw("default/a", b"\x80")
    sleeper.join()
    assert len(popped) == 1


def test_shutdown_drains_then_raises(fifo: FIFO, pod: Any) -> None:
    """After shutdown queued items still pop, then ShutDown, for every handle; adds are accepted."""
    fifo.add(pod("a"))
    fifo.shutdown()
    fifo.add(pod("b"))
    with FIFO.attach(fifo.name) as other:
        assert names([other.pop(), other.pop()]) == ["a", "b"]
        for call in (other.pop, lambda: other.pop(0), other.pop_raw, lambda: other.pop_many(3)):
            with pytest.raises(shmcache.ShutDown, match="shut down"):
                call()
    assert not issubclass(shmcache.ShutDown, queue.Empty)
    if hasattr(queue, "ShutDown"):
        assert issubclass(shmcache.ShutDown, queue.ShutDown)


def test_shutdown_wakes_everybody(fifo: FIFO) -> None:
    """Ten blocked consumers end with ShutDown."""
    ended = threading.Semaphore(0)

    def consume() -> None:
        with pytest.raises(shmcache.ShutDown):
            fifo.pop()
        ended.release()

    threads = [threading.Thread(target=consume) for _ in range(10)]
    for thread in threads:
        thread.start()
    fifo.shutdown()
    for thread in threads:
        thread.join()
        assert ended.acquire(timeout=60)


def test_immediate_shutdown_drops_what_is_queued(fifo: FIFO, pod: Any) -> None:
    """shutdown(immediate=True) empties the queue."""
    fifo.add(pod("a"))
    fifo.shutdown(immediate=True)
    assert fifo.qsize() == 0
    assert fifo.empty()
    with pytest.raises(shmcache.ShutDown):
        fifo.pop()


def test_close_ends_a_blocked_pop_of_the_same_handle(fifo: FIFO) -> None:
    """Closing a handle in one thread ends the pop of another with ClosedError."""
    failed: list[BaseException] = []
    handle = FIFO.attach(fifo.name)

    def consume() -> None:
        try:
            handle.pop()
        except shmcache.ClosedError as error:
            failed.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    handle.close()
    thread.join()
    assert len(failed) == 1


def test_a_signal_leaves_pop_at_once_and_loses_nothing(fifo: FIFO, pod: Any) -> None:
    """An exception from a signal handler ends a blocked pop; the next item is still delivered."""

    class Interrupted(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Interrupted

    def strike() -> None:
        until(lambda: control(fifo.name).ready_sleepers)
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        thread = threading.Thread(target=strike)
        thread.start()
        with pytest.raises(Interrupted):
            fifo.pop(60)
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    fifo.add(pod("a"))
    assert names([fifo.pop(0)]) == ["a"]


def test_signals_that_return_do_not_end_a_pop(fifo: FIFO, pod: Any) -> None:
    """A storm of handled signals neither ends a pop early nor loses an item."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with pytest.raises(queue.Empty):
            fifo.pop(0.1)
        for i in range(50):
            fifo.add(pod(f"p{i}"))
            assert names([fifo.pop(60)]) == [f"p{i}"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_pop_async(fifo: FIFO, pod: Any) -> None:
    """pop_async gives items in order, Empty after its timeout, and ShutDown."""

    async def scenario() -> list[Any]:
        with pytest.raises(queue.Empty):
            await fifo.pop_async(0.01)
        first = asyncio.create_task(fifo.pop_async())
        await asyncio.sleep(0)
        fifo.add(pod("a"))
        fifo.add(pod("b"))
        got = [await first, await fifo.pop_async(0)]
        fifo.shutdown()
        with pytest.raises(shmcache.ShutDown):
            await fifo.pop_async()
        return got

    assert names(asyncio.run(scenario())) == ["a", "b"]


def test_a_cancelled_pop_async_loses_nothing(fifo: FIFO, pod: Any) -> None:
    """However often pops are cancelled around an add, every item is delivered once."""

    async def scenario() -> list[str]:
        got = []
        for i in range(30):
            task = asyncio.create_task(fifo.pop_async())
            await asyncio.sleep(0)
            fifo.add(pod(f"p{i}"))
            task.cancel()
            try:
                got += names([await task])
            except asyncio.CancelledError:
                got += names([await fifo.pop_async(60)])
        return got

    assert asyncio.run(scenario()) == [f"p{i}" for i in range(30)]


class Counting(ThreadPoolExecutor):
    """An executor that knows how many calls it was given at once, at most."""

    running = most = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        submitted = super().submit(*args, **kwargs)
        submitted.add_done_callback(self._ended)
        return submitted

    def _ended(self, _: Any) -> None:
        self.running -= 1


def test_consumers_of_a_loop_share_one_thread(fifo: FIFO, pod: Any) -> None:
    """Of an executor with one thread twenty consumers use one call at a time, whoever is
    cancelled or gives up meanwhile, and each item goes to one of them."""
    executor = Counting(1)

    async def scenario() -> list[str]:
        asyncio.get_running_loop().set_default_executor(executor)
        tasks = [asyncio.create_task(fifo.pop_async()) for _ in range(20)]
        with pytest.raises(queue.Empty):
            await fifo.pop_async(0.01)
        for task in tasks[:10]:
            task.cancel()
        await asyncio.wait(tasks[:10])
        for number in range(10):
            fifo.add(pod(f"p{number}"))
        return names(await asyncio.gather(*tasks[10:]))

    assert sorted(asyncio.run(scenario())) == [f"p{number}" for number in range(10)]
    assert executor.most == 1


def test_consumers_on_threads_share_the_items(fifo: FIFO) -> None:
    """Two producers and eight consumers on threads: each item once, per producer in order."""
    got: list[str] = []
    lock = threading.Lock()

    def produce(which: str) -> None:
        for i in range(500):
            fifo.add_raw(f"{which}{i:04}", b"\xa1x")

    def consume() -> None:
        while True:
            try:
                key, _ = fifo.pop_raw()
            except shmcache.ShutDown:
                return
            with lock:
                got.append(key)

    producers = [threading.Thread(target=produce, args=(w,)) for w in "ab"]
    consumers = [threading.Thread(target=consume) for _ in range(8)]
    for thread in producers + consumers:
        thread.start()
    for thread in producers:
        thread.join()
    fifo.shutdown()
    for thread in consumers:
        thread.join()
    assert sorted(got) == sorted(f"{w}{i:04}" for w in "ab" for i in range(500))


def test_one_consumer_sees_each_producer_in_order(fifo: FIFO) -> None:
    """Two concurrent producers of 500 keys: 1,000 pops, each producer's strictly increasing."""

    def produce(which: str) -> None:
        for i in range(500):
            fifo.add_raw(f"{which}{i:04}", b"\xa1x")

    threads = [threading.Thread(target=produce, args=(w,)) for w in "ab"]
    for thread in threads:
        thread.start()
    got = [fifo.pop_raw(60)[0] for _ in range(1000)]
    for thread in threads:
        thread.join()
    for which in "ab":
        own = [key for key in got if key.startswith(which)]
        assert own == sorted(own)
        assert len(own) == 500


def queued_between(fifo: FIFO) -> tuple[float, float]:
    """Two times of the monotonic clock between which the oldest item was queued."""
    before = time.monotonic()
    age = fifo.stats().oldest_age
    assert age is not None
    return before - age - TICK, time.monotonic() - age


TICK = 0.02  # seconds: more than one of the coarse clock


def test_the_age_of_the_oldest_item(fifo: FIFO, pod: Any) -> None:
    """oldest_age is of the item that is popped next, since it was queued first; None when empty."""
    assert fifo.stats().oldest_age is None
    before = time.monotonic()
    fifo.add(pod("a"))
    after = time.monotonic()
    fifo.add(pod("b"))
    while time.monotonic() < after + 2 * TICK:
        fifo.update(pod("a"))
    earliest, latest = queued_between(fifo)
    assert earliest <= after
    assert latest >= before - TICK
    replaced = time.monotonic()
    fifo.replace([pod("c")])
    assert queued_between(fifo)[1] >= replaced - TICK
    fifo.pop()
    assert fifo.stats().oldest_age is None


def test_workers_are_those_who_popped_and_live(fifo: FIFO, pod: Any) -> None:
    """workers() tells of each living handle what it has popped; a closed one is gone."""
    fifo.replace([pod("a"), pod("b"), pod("c")])
    with FIFO.attach(fifo.name) as other, FIFO.attach(fifo.name, writable=False):
        fifo.pop()
        other.pop_many(2)
        assert fifo.workers() == [WorkerInfo(os.getpid(), 1), WorkerInfo(os.getpid(), 2)]
    assert fifo.workers() == [WorkerInfo(os.getpid(), 1)]
