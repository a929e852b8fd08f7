"""``shmcache bench``: shmcache on this machine and on your objects, beside what Python has.

Rounds of the two sides take turns, so that what else the machine does meets both alike; a ratio
is the median of the rounds' ratios. Beside libraries that must be installed first it is measured
by ``scripts/bench`` of the repository.

May import: the facade, ``cli._arguments``, ``cli._consumers``, ``cli._output``, ``cli._samples``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import shmcache
from shmcache.cli._arguments import count
from shmcache.cli._consumers import SPAWN, Consumers, manager
from shmcache.cli._output import Column, Lines, add_output
from shmcache.cli._samples import key_func, loaded, made

__all__ = ["add_arguments", "run"]

_IN_FLIGHT = 8 << 20  # most bytes that are in a queue at once
_ASLEEP = 0.001  # seconds after which a consumer has stopped looking, and sleeps


@dataclass(frozen=True, slots=True)
class _Scale:
    """How often each side is measured, and for about how many seconds."""

    rounds: int
    seconds: float
    wakes: int


_FULL = _Scale(rounds=7, seconds=0.08, wakes=20)
_QUICK = _Scale(rounds=3, seconds=0.02, wakes=5)


@dataclass(frozen=True, slots=True)
class _Row:
    """Microseconds of one call: median, least and most of the rounds."""

    work: str
    shmcache_us: float
    shmcache_least: float
    shmcache_most: float
    rival: str
    rival_us: float
    rival_least: float
    rival_most: float
    ratio: float


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


_COLUMNS = (
    Column("work", width=25),
    Column("shmcache_us", "SHMCACHE", _figure, right=True, width=8),
    Column("shmcache_least", "LEAST", _figure, right=True, width=6, optional=1),
    Column("shmcache_most", "MOST", _figure, right=True, width=6, optional=1),
    Column("rival", "BESIDE", width=21),
    Column("rival_us", "ITS", _figure, right=True, width=8),
    Column("rival_least", "LEAST", _figure, right=True, width=6, optional=1),
    Column("rival_most", "MOST", _figure, right=True, width=6, optional=1),
    Column("ratio", text=_figure, right=True, width=8),
)


@dataclass(frozen=True, slots=True)
class _Queue:
    """One side, and the processes at its other end."""

    put: Callable[[Any], Any]
    get: Callable[[], Any]
    consumers: Consumers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
The two sides take turns; a RATIO below 1 means that shmcache takes less time.

examples:
  shmcache bench
  kubectl get pods -A -o json | shmcache bench --objects -
  shmcache bench --processes 8 -o json
"""
    objects = parser.add_mutually_exclusive_group()
    objects.add_argument(
        "--objects",
        type=loaded,
        metavar="FILE",
        help="measure with these: JSON lines, a JSON list, or what kubectl get -o json prints; "
        "- is stdin",
    )
    objects.add_argument(
        "--size", type=count, default=3000, help="bytes of JSON of made-up objects (%(default)s)"
    )
    parser.add_argument("--processes", type=count, default=2, help="consumers (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few seconds, and less exact")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and print; 0 when all was measured."""
    objects = made(options.size) if options.objects is None else options.objects
    # kill and a closed terminal end it as Ctrl-C does, with everything cleaned up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    scale = _QUICK if options.quick else _FULL
    with contextlib.closing(_rows(scale, objects, options.processes)) as rows:
        _show(rows, options.output, scale, objects)
    return 0


# --- what is measured ----------------------------------------------------------------------------


def _rows(scale: _Scale, objects: list[Any], processes: int) -> Generator[_Row, None, None]:
    yield from _store_rows(scale, objects)
    yield from _queue_rows(scale, objects, processes)


def _store_rows(scale: _Scale, objects: list[Any]) -> Generator[_Row, None, None]:
    key_of = key_func(objects)
    plain = {key_of(obj): obj for obj in objects}
    keys, pairs = list(plain), list(plain.items())
    encode = shmcache.MsgpackCodec().encode
    data = {key: encode(obj) for key, obj in pairs}
    capacity = max(32 << 20, 4 * sum(map(len, data.values())))

    def calls(call: Callable[[Any], Any], items: Sequence[Any]) -> Callable[[], float]:
        return lambda: _per_call(call, items, scale.seconds)

    with (
        shmcache.Store.create(capacity=capacity, key_func=key_of) as store,
        shmcache.Store.attach(store.name, cache=0) as cold,
    ):
        store.unlink()  # now, so that nothing is left whatever ends us
        store.add_many(objects)
        store.list()  # decoded once, as in a process that has been at work for a while
        known, raw = calls(store.get_by_key, keys), calls(store.get_raw, keys)
        listed = calls(lambda _: list(plain.values()), [0])
        yield _row(scale, "get, unchanged", known, "dict", calls(plain.get, keys))
        yield _row(scale, "get_raw, to bytes", raw, "dict", calls(data.get, keys))
        yield _row(scale, "list, unchanged", calls(lambda _: store.list(), [0]), "dict", listed)
        with manager() as keeper:
            shared = keeper.dict(plain)
            rival, get = "Manager().dict", calls(shared.get, keys)
            put = calls(lambda pair: shared.__setitem__(*pair), pairs)
            yield _row(scale, "get, unchanged", known, rival, get)
            yield _row(scale, "get, to be decoded", calls(cold.get_by_key, keys), rival, get)
            yield _row(scale, "add", calls(store.add, objects), rival, put)


def _queue_rows(scale: _Scale, objects: list[Any], processes: int) -> Generator[_Row, None, None]:
    size = max(len(shmcache.MsgpackCodec().encode(obj)) for obj in objects)
    most = max(_IN_FLIGHT // size, processes)  # items that wait at once
    numbers = itertools.count()  # a FIFO holds a key once; this one takes whatever comes
    with contextlib.ExitStack() as stack:
        fifo = stack.enter_context(
            shmcache.FIFO.create(
                capacity=max(64 << 20, 4 * most * size), key_func=lambda _: str(next(numbers))
            )
        )
        stack.callback(fifo.unlink)
        queue: Any = SPAWN.Queue()
        stack.callback(queue.close)
        stack.callback(queue.cancel_join_thread)  # else what nobody took keeps us at the end
        rival = "multiprocessing.Queue"
        consumers = stack.enter_context(Consumers("the FIFO", fifo.name, processes))
        fifo.unlink()
        ours = _Queue(fifo.add, fifo.pop, consumers)
        consumers = stack.enter_context(Consumers(rival, queue, processes))
        theirs = _Queue(queue.put, queue.get, consumers)

        def alone(q: _Queue) -> float:
            return _per_call(lambda obj: (q.put(obj), q.get()), objects, scale.seconds)

        def across(q: _Queue) -> float:
            def send(count: int) -> None:
                for obj in itertools.islice(itertools.cycle(objects), count):
                    q.put(obj)

            each = max(min(16, most // processes), 1)
            took = q.consumers.take(send, processes, each) / each / processes
            each = max(min(int(scale.seconds * 1e6 / took), most) // processes, 1)
            return q.consumers.take(send, processes, each) / each / processes

        def wake(q: _Queue) -> float:
            def send(count: int) -> None:
                q.put(objects[0])

            return statistics.median(
                q.consumers.take(send, 1, 1, _ASLEEP) for _ in range(scale.wakes)
            )

        for work, timed in (
            ("add + pop, one process", alone),
            (f"add to pop, {processes} consumers", across),
            ("wake-up of a consumer", wake),
        ):
            yield _row(scale, work, partial(timed, ours), rival, partial(timed, theirs))


def _row(
    scale: _Scale, work: str, ours: Callable[[], float], rival: str, theirs: Callable[[], float]
) -> _Row:
    rounds = [(ours(), theirs()) for _ in range(scale.rounds)]
    a, b = zip(*rounds, strict=True)
    ratio, middle = statistics.median(x / y for x, y in rounds), statistics.median
    return _Row(work, middle(a), min(a), max(a), rival, middle(b), min(b), max(b), ratio)


def _per_call(call: Callable[[Any], Any], items: Sequence[Any], seconds: float) -> float:
    """Microseconds of one call, items in turn. Batches grow until the clock costs nothing."""
    turn = itertools.cycle(items)
    size, done, spent = 1, 0, 0.0
    while spent < seconds:
        batch = list(itertools.islice(turn, size))
        began = time.perf_counter()
        for item in batch:
            call(item)
        took = time.perf_counter() - began
        if took < seconds / 10 and not done:
            size *= 2
            continue
        done, spent = done + size, spent + took
    return spent / done * 1e6


# --- how it is shown -----------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.statvfs("/dev/shm")
    return {
        "shmcache": shmcache.__version__,
        "python": platform.python_version(),
        "linux": platform.release(),
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "shm_bytes": memory.f_blocks * memory.f_frsize,
    }


def _show(rows: Iterable[_Row], form: str, scale: _Scale, objects: list[Any]) -> None:
    if form == "json":
        about = {"rounds": scale.rounds, "seconds_a_round": scale.seconds, "objects": len(objects)}
        said = {"machine": _machine(), "measured": about, "rows": [asdict(row) for row in rows]}
        print(json.dumps(said, indent=2))
        return
    if form == "table":
        print(" · ".join(f"{name} {value}" for name, value in _machine().items()))
        print(
            f"{len(objects):,} objects; microseconds a call, the median of {scale.rounds} rounds\n"
        )
    table = Lines(_COLUMNS, form)
    for row in rows:
        table.show(asdict(row))
