"""Large stores and queues beside small ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.measure import per_item
from bench.workloads.catalogue import (
    Measure,
    Pair,
    Scale,
    in_turns,
    limit,
    raw_entry,
    raw_items,
    raw_key,
    workload,
)
from shmcache import FIFO, RawCodec, Store

SMALL = 1_000


@workload(
    "growth: get_raw",
    "growth",
    "get_raw of 64 bytes in a large store beside one of 1,000",
    {"itself, 1,000 entries": 2.0},
)
def growth_get(scale: Scale, rival: str) -> Iterator[Pair]:
    with grown(Store, scale.growth) as large, grown(Store, SMALL) as small:
        # The same number of different keys, so that Python's own objects are as warm for both.
        some = [f"{n:016}" for n in range(0, scale.growth, scale.growth // SMALL)]
        every = [f"{n:016}" for n in range(SMALL)]
        yield (
            lambda: per_item(large.get_raw, some, scale.seconds),
            lambda: per_item(small.get_raw, every, scale.seconds),
        )


@workload(
    "growth: pop",
    "growth",
    "add_raw and pop_raw of 64 bytes on a long queue beside one of 1,000",
    {"itself, 1,000 entries": 2.0},
)
def growth_pop(scale: Scale, rival: str) -> Iterator[Pair]:
    def turning(fifo: FIFO) -> Measure:
        def turn(_: None) -> None:
            fifo.add_raw(*fifo.pop_raw())

        return lambda: per_item(turn, [None], scale.seconds)

    with grown(FIFO, scale.growth) as large, grown(FIFO, SMALL) as small:
        yield turning(large), turning(small)


@workload(
    "growth: replace",
    "growth",
    "replace of many 64-byte entries, all changed, an entry, beside one of 1,000",
    {"itself, 1,000 entries": 1.25},
)
def growth_replace(scale: Scale, rival: str) -> Iterator[Pair]:
    def turning(store: Store, count: int) -> Measure:
        contents = [[raw_entry(n, revision, 64) for n in range(count)] for revision in (2, 3)]
        turn = in_turns(store.replace, contents)
        times = max(1, 20_000 // count)
        return lambda: sum((turn() for _ in range(times)), 0.0) / times / count * 1e3

    with grown(Store, scale.growth) as large, grown(Store, SMALL) as small:
        yield turning(large, scale.growth), turning(small, SMALL)


@workload(
    "growth: repair",
    "growth",
    "the repair of a large store after a crash, by its own clock; the limit is 100 ms a million",
    {"a limit of 0.1 µs an entry": 1.0},
)
def growth_repair(scale: Scale, rival: str) -> Iterator[Pair]:
    with grown(Store, scale.growth) as large:

        def ours() -> float:
            large._core.testing_repair()  # what the next writer does when an owner has died
            took: int = large.stats().last_repair_ns
            return took / scale.growth / 1e3

        yield ours, limit(0.1)


@contextmanager
def grown(kind: type[Store], count: int) -> Iterator[Any]:
    """A store or queue of that many entries of 64 bytes."""
    with kind.create(codec=RawCodec(), key_func=raw_key) as store:
        store.unlink()
        store.replace(raw_items(count))
        yield store
