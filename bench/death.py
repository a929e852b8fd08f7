"""From the death of a writer to the next write; see bench/README.md.

Run from the root of the checkout: `python -m bench.death`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import shmcache
from shmcache import Store
from tests.procs.control import control, start, stop_as_owner, until, wait_for


def write_when_told(store: Store, commands: Connection) -> None:
    """Write once for each command; answer with the time before and after, nanoseconds of the
    clock that all processes share."""
    while commands.recv():
        begin = time.monotonic_ns()
        store.add_raw("key", b"\xa1x")
        commands.send((begin, time.monotonic_ns()))


def hold(store: Store) -> None:
    while True:
        store.check()


def kill(pid: int) -> int:
    """When the process was killed."""
    killed = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return killed


def waiting(store: Store, owner: int, writer: Connection) -> tuple[int, int]:
    """A writer already waits for the lock when its owner is killed: from the kill to its write."""
    writer.send(True)
    until(lambda: control(store.name).waiters)
    killed = kill(owner)
    written = writer.recv()[1]
    wait_for(owner)
    return killed, written


def arriving(store: Store, owner: int, writer: Connection) -> tuple[int, int]:
    """A writer comes when the owner is dead: the length of its call."""
    kill(owner)
    wait_for(owner)
    writer.send(True)
    begin, end = writer.recv()
    return begin, end


def figures(nanoseconds: list[int]) -> dict[str, float]:
    """In microseconds."""
    ordered = sorted(nanoseconds)
    hundredths = statistics.quantiles(ordered, n=100, method="inclusive")
    return {
        "p50_us": round(hundredths[49] / 1000, 1),
        "p90_us": round(hundredths[89] / 1000, 1),
        "p99_us": round(hundredths[98] / 1000, 1),
        "max_us": round(ordered[-1] / 1000, 1),
    }


def measure(kills: int, entries: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for case in (waiting, arriving):
        took, repairs = [], []
        ours, theirs = multiprocessing.Pipe()
        with Store.create(capacity="1GiB") as store:
            store.replace({"metadata": {"name": f"n{n}"}, "n": n} for n in range(entries))
            writer = start(partial(write_when_told, store, theirs))
            for _ in range(kills):
                owner = start(partial(hold, store))
                stop_as_owner(owner, store.name)
                begin, end = case(store, owner, ours)
                took.append(end - begin)
                repairs.append(store.stats().last_repair_ns)
            ours.send(False)
            wait_for(writer)
            repaired = store.stats().repairs
            store.unlink()
        results[case.__name__] = {**figures(took), "repairs": repaired, "repair": figures(repairs)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of each case (default 200)")
    parser.add_argument("--entries", type=int, default=1000, help="in the store (default 1000)")
    options = parser.parse_args()
    machine = {
        "python": sys.version.split()[0],
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "shmcache": shmcache.__version__,
    }
    results = measure(options.kills, options.entries)
    print(json.dumps({"machine": machine, **vars(options), **results}, indent=2))


if __name__ == "__main__":
    main()
