"""How to measure: calls in a loop, queues across processes, wake-ups, memory of processes.

Everything gives one figure of one round; `run` takes the rounds of two sides in turns.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "Numbers",
    "Side",
    "Spread",
    "across",
    "cores",
    "in_a_process",
    "kilobytes",
    "per_item",
    "percentile",
    "pinned",
    "spread",
    "started",
    "wake_ups",
]

Item = TypeVar("Item")
FORK = multiprocessing.get_context("fork")
PATIENCE = 60.0  # seconds at a barrier, before somebody must have died


@dataclass(frozen=True, slots=True)
class Spread:
    """The rounds of one figure."""

    median: float
    p10: float
    p90: float


def spread(figures: Sequence[float]) -> Spread:
    return Spread(statistics.median(figures), percentile(figures, 0.1), percentile(figures, 0.9))


def percentile(figures: Sequence[float], part: float) -> float:
    """The nearest rank."""
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def per_item(call: Callable[[Item], Any], items: Sequence[Item], seconds: float) -> float:
    """Microseconds of one call, items in turn, for about `seconds`.

    The loop is the same for everybody. Batches grow until looking at the clock costs nothing;
    only what comes after that counts, unless a single call takes that long.
    """
    turn = cycle(items)
    size, done, spent = 1, 0, 0.0
    while spent < seconds:
        batch = list(islice(turn, size))
        begin = time.perf_counter()
        for item in batch:
            call(item)
        took = time.perf_counter() - begin
        if took < seconds / 10 and spent == 0:
            size *= 2
            continue
        done += size
        spent += took
    return spent / done * 1e6


# --- processes ----------------------------------------------------------------------------------


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """This thread, and what it starts, runs on that core only; None: wherever the kernel likes."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def places(processes: int) -> list[int | None]:
    """A core for each process if there are enough; else none is told where to run."""
    mine = cores()
    return [*mine[:processes]] if processes <= len(mine) else [None] * processes


@contextlib.contextmanager
def started(target: Callable[..., None], *args: Any, core: int | None = None) -> Iterator[Any]:
    """A forked process on that core; killed at the end if it still runs."""

    def main() -> None:
        with pinned(core):
            target(*args)

    process = FORK.Process(target=main)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def in_a_process(call: Callable[[], object], core: int | None) -> float:
    """Seconds that the call takes in a forked process, which takes along all that it leaves."""
    took = Numbers(1)

    def main() -> None:
        begin = time.perf_counter_ns()
        call()
        took[0] = time.perf_counter_ns() - begin

    with started(main, core=core) as process:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the process ended with {process.exitcode}")
    return took[0] / 1e9


def kilobytes(pid: int, field: str = "Pss") -> int:
    """Memory of a process as the kernel counts it; pages of n processes count 1/n in Pss."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"no {field} in smaps_rollup")


class Numbers:
    """Integers that forked processes share, without a lock."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, max(count, 1) * 8)

    def __setitem__(self, at: int, value: int) -> None:
        struct.pack_into("q", self._memory, at * 8, value)

    def __getitem__(self, at: int) -> int:
        value: int = struct.unpack_from("q", self._memory, at * 8)[0]
        return value


# --- queues -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """A queue with its items. `send(n)` puts the first n of them; `receive(n)` takes n."""

    send: Callable[[int], None]
    receive: Callable[[int], None]
    join: Callable[[], None] = lambda: None  # called first in a consumer
    servers: int = 0  # processes beside producer and consumers
    unit: int = 1  # items of one call


def across(side: Side, items: int, consumers: int) -> float:
    """Microseconds an item from one producer to `consumers` processes, start-up not counted.

    It ends when the last consumer has its last item. Each takes the same number. Processes have a
    core each if there are enough of them for all.
    """
    each = max(items // consumers // side.unit, 1) * side.unit
    at = places(1 + consumers + side.servers)
    barrier = FORK.Barrier(consumers + 1)
    ended = Numbers(consumers)

    def consume(number: int) -> None:
        side.join()
        side.receive(side.unit)  # everything is loaded and mapped once
        barrier.wait(PATIENCE)
        side.receive(each)
        ended[number] = time.monotonic_ns()

    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(started(consume, number, core=at[1 + number]))
            for number in range(consumers)
        ]
        with pinned(at[0]):
            side.send(consumers * side.unit)
            barrier.wait(PATIENCE)
            begin = time.monotonic_ns()
            side.send(each * consumers)
        for process in processes:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a consumer ended with {process.exitcode}")
    return (max(ended[n] for n in range(consumers)) - begin) / (each * consumers) / 1e3


def wake_ups(
    put: Callable[[bytes], Any],
    get: Callable[[], bytes],
    count: int,
    join: Callable[[], None] = lambda: None,
) -> list[float]:
    """Microseconds from `put` to the return of a `get` that slept, in another process."""
    at = places(2)
    latencies, done = Numbers(count), Numbers(1)

    def consume() -> None:
        join()
        for number in range(count):
            stamp = struct.unpack("q", get()[:8])[0]
            latencies[number] = time.monotonic_ns() - stamp
            done[0] = number + 1

    with started(consume, core=at[1]) as process, pinned(at[0]):
        for number in range(count):
            while done[0] < number:
                if not process.is_alive():
                    raise RuntimeError(f"the consumer ended with {process.exitcode}")
                time.sleep(0.0001)
            time.sleep(0.001)  # long enough for the consumer to stop looking and sleep
            put(struct.pack("q", time.monotonic_ns()))
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the consumer ended with {process.exitcode}")
    return [latencies[number] / 1e3 for number in range(count)]
