"""Every change to every process: watches of a store, beside a queue for each process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice

from bench.measure import FORK, PATIENCE, Numbers, started
from bench.rivals import RIVALS
from bench.workloads.catalogue import Measure, Pair, Scale, limit, raw_entry, raw_key, workload
from shmcache import RawCodec, Store

WORKERS = 8
TIMES_EVENTS = 20  # of the scale: so many make a round

Receive = Callable[[int], object]


def fanned_out(
    send: Callable[[list[bytes]], object], follow: Callable[[int], Receive], count: int
) -> Measure:
    """Microseconds an event and worker, start-up not counted: from one process to `WORKERS` others,
    of which each gets all. It ends when the last has its last.

    `follow(number)` is called in a worker, and gives what receives so many.
    """
    revision = [0]

    def measure() -> float:
        revision[0] += 1
        first, items = (
            [raw_entry(number, 2 * revision[0] + n, 64) for number in range(count)] for n in (0, 1)
        )
        barrier, ended = FORK.Barrier(WORKERS + 1), Numbers(WORKERS)

        def work(number: int) -> None:
            receive = follow(number)
            barrier.wait(PATIENCE)
            receive(count)  # once for the memory that it needs
            barrier.wait(PATIENCE)
            receive(count)
            ended[number] = time.monotonic_ns()

        with ExitStack() as stack:
            workers = [stack.enter_context(started(work, n)) for n in range(WORKERS)]
            barrier.wait(PATIENCE)
            send(first)
            barrier.wait(PATIENCE)
            begin = time.monotonic_ns()
            send(items)
            for worker in workers:
                worker.join()
                if worker.exitcode:
                    raise RuntimeError(f"a worker ended with {worker.exitcode}")
        return (max(ended[n] for n in range(WORKERS)) - begin) / (count * WORKERS) / 1e3

    return measure


@workload(
    "fan-out",
    "fan-out",
    f"64 bytes of a key each (RawCodec), from one process to {WORKERS} that follow the store; an "
    "event and worker",
    {"a limit of 1.5 µs": 1.0, "multiprocessing.SimpleQueue": 0.5},
)
def fan_out(scale: Scale, rival: str) -> Iterator[Pair]:
    count = scale.events * TIMES_EVENTS
    with ExitStack() as stack:
        store = stack.enter_context(Store.create(codec=RawCodec(), key_func=raw_key))
        store.unlink()

        def write(items: list[bytes]) -> None:
            for item in items:
                store.add(item)

        def follow(_: int) -> Receive:
            watch = store.watch(initial=False)
            return lambda count: deque(islice(watch, count), maxlen=0)

        ours = fanned_out(write, follow, count)
        if rival not in RIVALS:
            yield ours, limit(1.5)
            return
        peers = [stack.enter_context(RIVALS[rival].open(scale.where)) for _ in range(WORKERS)]

        def put(items: list[bytes]) -> None:
            for item in items:
                for peer in peers:
                    peer.put(item)

        def get(number: int) -> Receive:
            take = peers[number].get

            def receive(count: int) -> None:
                for _ in range(count):
                    take()

            return receive

        yield ours, fanned_out(put, get, count)
