"""A store beside other stores: reading, listing, writing, replacing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import msgpack

from bench import pods
from bench.measure import Numbers, cores, per_item, percentile, pinned, started
from bench.rivals import RIVALS
from bench.workloads.catalogue import (
    Pair,
    Scale,
    in_turns,
    limit,
    peer_of,
    raw_entry,
    raw_key,
    stored,
    three_fields,
    workload,
)
from shmcache import MsgspecCodec, RawCodec, Store

# --- reading ------------------------------------------------------------------------------------

EVERY_STORE: dict[str, float | None] = {
    "UltraDict": 1.0,
    "diskcache": 1.0,
    "shared-memory-dict": 1.0,
    "Manager().dict": 1.0,
    "Redis": 1.0,
    "memcached": 1.0,
}


@workload(
    "get",
    "read",
    "get_by_key of a pod that has not changed, to the object",
    {"dict": 3.0, **EVERY_STORE},
)
def get(scale: Scale, rival: str) -> Iterator[Pair]:
    objects = pods.pods(scale.keys)
    keys = [pods.key_of(pod) for pod in objects]
    with stored(objects) as store, peer_of(scale, rival, objects) as peer:
        store.list()
        look_up = peer.get if peer.objects else lambda key: msgpack.unpackb(peer.get(key))
        yield (
            lambda: per_item(store.get_by_key, keys, scale.seconds),
            lambda: per_item(look_up, keys, scale.seconds),
        )


@workload(
    "get_raw",
    "read",
    "get_raw of a pod, 3.0 kB, to bytes",
    {
        "LMDB": 0.4,
        "LMDB, held transaction": 0.8,
        "dict": None,
        **{name: target for name, target in EVERY_STORE.items() if name != "shared-memory-dict"},
    },
)
def get_raw(scale: Scale, rival: str) -> Iterator[Pair]:
    objects = pods.pods(scale.keys)
    data = pods.payloads(objects)
    keys = list(data)
    with stored(objects) as store, RIVALS[rival].open(scale.where) as peer:
        peer.fill(data)
        yield (
            lambda: per_item(store.get_raw, keys, scale.seconds),
            lambda: per_item(peer.get, keys, scale.seconds),
        )


@workload(
    "get, changed, typed",
    "read",
    "the same with MsgspecCodec and a struct of three fields; the rival decodes all with msgpack",
    {"LMDB": 0.15},
    typed=True,
)
@workload(
    "get, not kept",
    "read",
    "the same without a cache: all of the pod is decoded at each call, and dropped",
    {"LMDB": 0.8, "dict": None},
    cache=0,
)
@workload(
    "get, changed",
    "read",
    "get_by_key of a pod whose status has just changed: bytes and decoding",
    {"LMDB": 0.8, "dict": None},
)
def get_changed(
    scale: Scale, rival: str, typed: bool = False, cache: str | int = "64MiB"
) -> Iterator[Pair]:
    count = min(scale.keys, 500)
    versions = [
        pods.payloads([pods.make(number, revision) for number in range(count)])
        for revision in range(1, 6)
    ]
    with ExitStack() as stack:
        codec = MsgspecCodec(three_fields()) if typed else None
        store = stack.enter_context(Store.create(codec=codec, cache=cache))
        store.unlink()
        peer = stack.enter_context(RIVALS[rival].open(scale.where))
        peer.fill(versions[0])
        updates = cycle(versions)
        names = list(versions[0])

        def ours() -> float:
            spent, count = 0.0, 0
            while spent < scale.seconds:
                for key, payload in next(updates).items():
                    store.add_raw(key, payload)
                begin = time.perf_counter()
                for key in names:
                    store.get_by_key(key)
                spent += time.perf_counter() - begin
                count += len(names)
            return spent / count * 1e6

        yield (
            ours,
            lambda: per_item(lambda key: msgpack.unpackb(peer.get(key)), names, scale.seconds),
        )


def each_list(objects: Any, change: Callable[[], None], seconds: float) -> float:
    """Microseconds of one `objects()`, with a change before each."""
    spent, count = 0.0, 0
    while spent < seconds:
        change()
        begin = time.perf_counter()
        objects()
        spent += time.perf_counter() - begin
        count += 1
    return spent / count * 1e6


@workload(
    "list, 10 changed",
    "list",
    "list() of all pods after the status of 10 has changed",
    {"dict": 2.0},
    changes=10,
)
@workload("list", "list", "list() of all pods, none changed", {"dict": 1.5}, changes=0)
def list_all(scale: Scale, rival: str, changes: int) -> Iterator[Pair]:
    objects = pods.pods(scale.keys)
    updates = cycle(
        pods.payloads([pods.make(number, revision) for number in range(changes)])
        for revision in range(1, 6)
    )
    few = [pods.key_of(pod) for pod in objects[:changes]]
    with stored(objects) as store, peer_of(scale, rival, objects) as peer:
        store.list()

        def change() -> None:
            for key, payload in next(updates).items():
                store.add_raw(key, payload)

        def change_dict() -> None:
            for key in few:
                peer.data[key] = dict(peer.data[key])

        yield (
            lambda: each_list(store.list, change, scale.seconds),
            lambda: each_list(lambda: list(peer.data.values()), change_dict, scale.seconds),
        )


@workload(
    "list, written",
    "list",
    "list() of many small objects while another process changes 1,000 a second; every snapshot "
    "is checked to be one instant",
    {"dict": None},
)
def list_written(scale: Scale, rival: str) -> Iterator[Pair]:
    count = scale.entries
    at = cores()

    def write(store: Store) -> None:
        """Object n goes to place n % count, so an instant has `count` numbers in a row."""
        number, begin = count, time.monotonic()
        while True:
            store.add(pods.small(number % count) | {"n": number})
            number += 1
            ahead = begin + (number - count) / 1000 - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)

    with stored([pods.small(n) for n in range(count)]) as store:
        store.list()

        def ours() -> float:
            spent, lists = 0.0, 0
            while spent < scale.seconds:
                begin = time.perf_counter()
                objects = store.list()
                spent += time.perf_counter() - begin
                lists += 1
                if len(objects) != count or not one_instant([obj["n"] for obj in objects]):
                    raise AssertionError("a list() was not the content of one instant")
            return spent / lists * 1e6

        with (
            started(write, store, core=at[1] if len(at) > 1 else None),
            peer_of(scale, rival, [pods.small(n) for n in range(count)]) as peer,
        ):
            yield (
                ours,
                lambda: each_list(lambda: list(peer.data.values()), lambda: None, scale.seconds),
            )


def one_instant(numbers: list[int]) -> bool:
    """Whether they are consecutive, in any order."""
    return sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers)))


# --- writing ------------------------------------------------------------------------------------


@workload(
    "add_raw",
    "write",
    "add_raw of a pod, 3.0 kB, to a key that is there",
    {"LMDB": 0.15, "dict": None, **EVERY_STORE},
)
def add_raw(scale: Scale, rival: str) -> Iterator[Pair]:
    objects = pods.pods(scale.keys)
    data = pods.payloads(objects)
    shifted = list(data.values())
    updates = list(zip(data, shifted[1:] + shifted[:1], strict=True))
    with stored(objects) as store, RIVALS[rival].open(scale.where) as peer:
        peer.fill(data)
        add = store.add_raw
        yield (
            lambda: per_item(lambda pair: add(*pair), updates, scale.seconds),
            lambda: per_item(peer.put, updates, scale.seconds),
        )


@workload(
    "replace, 1 % changed",
    "replace",
    "replace of many pods of which 1 % have changed, beside one of which all have",
    {"full rewrite": 0.3},
    unit="ms",
)
def replace_pods(scale: Scale, rival: str) -> Iterator[Pair]:
    objects = pods.pods(scale.entries)
    lists = [objects, pods.changed(objects, 100, 2)]
    others = [pods.changed(objects, 1, 3), pods.changed(objects, 1, 4)]
    with stored(objects) as store, stored(objects) as rewritten:
        yield in_turns(store.replace, lists), in_turns(rewritten.replace, others)


@workload(
    "replace, 1 % changed, raw",
    "replace",
    "the same with RawCodec, 2.8 kB each: no object is encoded",
    {"full rewrite": 0.3, "LMDB": 1.0},
    unit="ms",
)
def replace_raw(scale: Scale, rival: str) -> Iterator[Pair]:
    def entries(every: int, revision: int) -> list[bytes]:
        return [
            raw_entry(n, revision if n % every == 0 else 1, 2_800) for n in range(scale.entries)
        ]

    with Store.create(codec=RawCodec(), key_func=raw_key) as store, ExitStack() as stack:
        store.unlink()
        ours = in_turns(store.replace, [entries(100, 2), entries(100, 3)])
        others = [entries(1, 4), entries(1, 5)]
        if rival == "LMDB":
            peer = stack.enter_context(RIVALS[rival].open(scale.where))
            contents = [{raw_key(entry): entry for entry in other} for other in others]
            yield ours, in_turns(peer.rewrite, contents)
        else:
            rewritten = stack.enter_context(Store.create(codec=RawCodec(), key_func=raw_key))
            rewritten.unlink()
            yield ours, in_turns(rewritten.replace, others)


@workload(
    "get_raw, p99.9 in a replace",
    "replace",
    "get_raw in another process while the content is replaced again and again, 1 % changed",
    {"a limit of 50 µs": 1.0},
)
def read_while_replaced(scale: Scale, rival: str) -> Iterator[Pair]:
    objects = pods.pods(scale.entries)
    lists = [objects, pods.changed(objects, 100, 2)]
    keys = [pods.key_of(pod) for pod in objects]
    at = cores()

    def read(store: Store, latencies: Numbers, done: Numbers) -> None:
        number = 0
        while True:
            key = keys[number % len(keys)]
            begin = time.perf_counter_ns()
            store.get_raw(key)
            latencies[number] = time.perf_counter_ns() - begin
            number += 1
            if done[1] or number == MOST_READS:
                break
        done[0] = number

    with stored(objects) as store:

        def ours() -> float:
            latencies, done = Numbers(MOST_READS), Numbers(2)
            core = at[1] if len(at) > 1 else None
            with started(read, store, latencies, done, core=core) as reader, pinned(at[0]):
                end = time.monotonic() + scale.seconds
                for content in lists * 100:
                    store.replace(content)
                    if time.monotonic() > end:
                        break
                done[1] = 1
                reader.join()
            return percentile([latencies[n] / 1e3 for n in range(done[0])], 0.999)

        yield ours, limit(50.0)


MOST_READS = 1_000_000
