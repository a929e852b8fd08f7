"""The queue beside other queues: in one process, across processes, and its wake-ups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from time import perf_counter
from typing import Any

import msgpack

from bench import pods
from bench.measure import Side, across, per_item, percentile, wake_ups
from bench.rivals import RIVALS
from bench.workloads.catalogue import Pair, Scale, limit, raw_items, raw_key, three_fields, workload
from shmcache import FIFO, MsgspecCodec, RawCodec


@contextmanager
def queue(**options: Any) -> Iterator[FIFO]:
    with FIFO.create(**options) as fifo:
        fifo.unlink()
        yield fifo


@workload(
    "add + pop",
    "queue",
    "add_raw and pop_raw of 64 bytes in one process",
    {
        "client-go FIFO in Go, as recorded": 2.0,
        "keyed FIFO in Python": 1.0,
        "queue.SimpleQueue": None,
    },
)
def add_and_pop(scale: Scale, rival: str) -> Iterator[Pair]:
    pairs = [(f"default/item-{n}", b"x" * 64) for n in range(1_000)]
    with queue() as fifo, ExitStack() as stack:

        def add_pop(pair: tuple[str, bytes]) -> None:
            fifo.add_raw(*pair)
            fifo.pop_raw()

        def ours() -> float:
            return per_item(add_pop, pairs, scale.seconds)

        if rival not in RIVALS:
            yield ours, limit(0.51)
            return
        peer = stack.enter_context(RIVALS[rival].open(scale.where))

        def put_get(pair: tuple[str, bytes]) -> None:
            peer.put(pair)
            peer.get()

        yield ours, lambda: per_item(put_get, pairs, scale.seconds)


@workload(
    "claim + done",
    "queue",
    "claim of a small object and its end, beside pop of such a queue, in one process",
    {"itself, by pop": 2.5},
)
def claim_and_done(scale: Scale, rival: str) -> Iterator[Pair]:
    objects = [{"id": f"job-{n}", "n": n, "done": False} for n in range(1_000)]

    def emptied(fifo: FIFO, take: Callable[[], object]) -> float:
        """Microseconds an item, without those that fill the queue."""
        took, taken = 0.0, 0
        while took < scale.seconds:
            fifo.add_many(objects)
            began = perf_counter()
            for _ in objects:
                take()
            took += perf_counter() - began
            taken += len(objects)
        return took / taken * 1e6

    with queue(key_func=itemgetter("id")) as claimed, queue(key_func=itemgetter("id")) as popped:
        yield (
            lambda: emptied(claimed, lambda: claimed.claim().done()),
            lambda: emptied(popped, lambda: popped.pop()),
        )


MOST_ITEMS = 200_000
BATCH = 64


class Across:
    """Rounds of one side: the first tries how many items make a round of `seconds`."""

    def __init__(self, make: Callable[[int], Side], consumers: int, seconds: float) -> None:
        self._make, self._consumers, self._seconds = make, consumers, seconds
        self._side: Side | None = None
        self._items = 0

    def __call__(self) -> float:
        if self._side is None:
            tried = 4 * BATCH * self._consumers
            took = across(self._make(tried), tried, self._consumers)
            fit = int(self._seconds * 1e6 / took)
            self._items = max(min(fit, MOST_ITEMS), BATCH * self._consumers)
            self._side = self._make(self._items)
        return across(self._side, self._items, self._consumers)


def loops(put: Callable[[Any], Any], get: Callable[[], Any], items: list[Any], **more: Any) -> Side:
    """The same loops for everybody."""

    def send(count: int) -> None:
        for item in items[:count]:
            put(item)

    def receive(count: int) -> None:
        for _ in range(count):
            get()

    return Side(send, receive, **more)


def batches(
    put_many: Callable[[list[Any]], Any],
    get_many: Callable[[int], list[Any]],
    items: list[Any],
    **more: Any,
) -> Side:
    def send(count: int) -> None:
        for begin in range(0, count, BATCH):
            put_many(items[begin : begin + BATCH])

    def receive(count: int) -> None:
        while count > 0:
            count -= len(get_many(min(BATCH, count)))

    return Side(send, receive, unit=BATCH, **more)


def queue_workload(
    kind: str, meaning: str, rivals: Callable[[int], Mapping[str, float | None]]
) -> Callable[[Callable[..., Iterator[Pair]]], Callable[..., Iterator[Pair]]]:
    """A workload for 1, 2 and 4 consumer processes."""

    def enter(function: Callable[..., Iterator[Pair]]) -> Callable[..., Iterator[Pair]]:
        for consumers in (1, 2, 4):
            workload(
                f"{kind}, {consumers} consumer{'s'[: consumers - 1]}",
                "queue across processes",
                f"{meaning}, from one process to {consumers} other{'s'[: consumers - 1]}",
                rivals(consumers),
                consumers=consumers,
            )(function)
        return function

    return enter


def both(scale: Scale, consumers: int, ours: Callable[[int], Side], theirs: Any) -> Pair:
    return Across(ours, consumers, scale.seconds), Across(theirs, consumers, scale.seconds)


@queue_workload(
    "queue 64 B",
    "add_raw and pop_raw of 64 bytes",
    lambda consumers: (
        {"cloudtoid-interprocess": 1.0}
        | (
            {"multiprocessing.SimpleQueue": 1.0, "Manager().Queue": 1.0, "Redis list": 1.0}
            if consumers == 1
            else {}
        )
    ),
)
def queue_raw(scale: Scale, rival: str, consumers: int) -> Iterator[Pair]:
    with queue() as fifo, RIVALS[rival].open(scale.where) as peer:
        add, pop = fifo.add_raw, fifo.pop_raw

        def ours(count: int) -> Side:
            # The rival gets its bytes in one argument; this is what our second one costs.
            pairs = [(raw_key(item), item) for item in raw_items(count + BATCH * consumers)]

            def send(count: int) -> None:
                for key, item in pairs[:count]:
                    add(key, item)

            def receive(count: int) -> None:
                for _ in range(count):
                    pop()

            return Side(send, receive, servers=peer.servers)

        def theirs(count: int) -> Side:
            items = raw_items(count + BATCH * consumers)
            return loops(peer.put, peer.get, items, join=peer.join, servers=peer.servers)

        yield both(scale, consumers, ours, theirs)


@queue_workload(
    "queue 64 B, batches",
    f"add_many and pop_many of 64 bytes (RawCodec), {BATCH} at a time",
    lambda consumers: (
        {"cloudtoid-interprocess": 1.0, "cloudtoid-interprocess, single": 0.5}
        | ({"faster-fifo": 0.5, "Redis list": 0.5} if consumers == 1 else {})
    ),
)
def queue_batches(scale: Scale, rival: str, consumers: int) -> Iterator[Pair]:
    name, _, single = rival.partition(", ")
    with (
        queue(codec=RawCodec(), key_func=raw_key) as fifo,
        RIVALS[name].open(scale.where) as peer,
    ):

        def ours(count: int) -> Side:
            items = raw_items(count + BATCH * consumers)
            return batches(fifo.add_many, fifo.pop_many, items, servers=peer.servers)

        def theirs(count: int) -> Side:
            items = raw_items(count + BATCH * consumers)
            if single:
                return loops(peer.put, peer.get, items, join=peer.join, servers=peer.servers)
            more = {"join": peer.join, "servers": peer.servers}
            return batches(peer.put_many, peer.get_many, items, **more)

        yield both(scale, consumers, ours, theirs)


def with_codec(peer: Any, items: list[Any], pickles: bool) -> Side:
    """A rival's queue with objects: its own pickle, or the codec that ours has too."""
    put, get = peer.put, peer.get
    more = {"join": peer.join, "servers": peer.servers}
    if peer.objects and pickles:
        return loops(put, get, items, **more)
    pack, unpack = msgpack.packb, msgpack.unpackb
    return loops(lambda item: put(pack(item)), lambda: unpack(get()), items, **more)


@queue_workload(
    "queue, small objects",
    "add and pop of a dict of three fields",
    lambda consumers: (
        {"multiprocessing.Queue": 0.15, "faster-fifo": 0.15}
        | (
            {"multiprocessing.SimpleQueue": 1.0, "Manager().Queue": 1.0, "Redis list": 1.0}
            if consumers == 1
            else {}
        )
    ),
)
def queue_small(scale: Scale, rival: str, consumers: int) -> Iterator[Pair]:
    with queue() as fifo, RIVALS[rival].open(scale.where) as peer:

        def items(count: int) -> list[Any]:
            return [pods.small(number) for number in range(count + BATCH * consumers)]

        yield both(
            scale,
            consumers,
            lambda count: loops(fifo.add, fifo.pop, items(count), servers=peer.servers),
            lambda count: with_codec(peer, items(count), pickles=True),
        )


QUEUES_OF_PODS = ("cloudtoid-interprocess", "faster-fifo", "multiprocessing.SimpleQueue")


@queue_workload(
    "queue, pods",
    "add and pop of pods with the default codec; the rival has msgpack too",
    lambda consumers: dict.fromkeys(QUEUES_OF_PODS[: 3 if consumers == 1 else 1], 0.9),
)
def queue_pods(
    scale: Scale, rival: str, consumers: int, codec: Callable[[], Any] = lambda: None
) -> Iterator[Pair]:
    with queue(codec=codec()) as fifo, RIVALS[rival].open(scale.where) as peer:

        def items(count: int) -> list[Any]:
            return pods.pods(count + BATCH * consumers)

        yield both(
            scale,
            consumers,
            lambda count: loops(fifo.add, fifo.pop, items(count), servers=peer.servers),
            lambda count: with_codec(peer, items(count), pickles=False),
        )


@queue_workload(
    "queue, typed pods",
    "add of pods and pop of a struct of three fields (MsgspecCodec); the rival has msgpack",
    lambda consumers: {"cloudtoid-interprocess": 0.4},
)
def queue_typed_pods(scale: Scale, rival: str, consumers: int) -> Iterator[Pair]:
    yield from queue_pods(scale, rival, consumers, lambda: MsgspecCodec(three_fields()))


@workload(
    "wake-up, p99",
    "wake-up",
    "the same, the slowest in a hundred",
    {"POSIX semaphore": 1.2, "cloudtoid-interprocess": 1.0},
    part=0.99,
)
@workload(
    "wake-up, p50",
    "wake-up",
    "from add_raw to the return of a pop_raw that slept in another process",
    {"POSIX semaphore": 1.2, "cloudtoid-interprocess": 1.0},
    part=0.5,
)
def wake_up(scale: Scale, rival: str, part: float) -> Iterator[Pair]:
    count = max(10, int(scale.seconds * 1_200))
    with queue() as fifo, RIVALS[rival].open(scale.where) as peer:
        yield (
            lambda: percentile(
                wake_ups(lambda item: fifo.add_raw("key", item), lambda: fifo.pop_raw()[1], count),
                part,
            ),
            lambda: percentile(wake_ups(peer.put, peer.get, count, peer.join), part),
        )
