"""ProcessPoolExecutor over shared data: tasks carry keys, and the objects stay where they are.

    pip install shmcache
    python examples/process_pool.py --start-method spawn --tasks 200 --workers 3

A handle is small and pickles: where it arrives it attaches to the same memory, whatever was the
start method. Pass handles to ``initializer`` for what all tasks use: that attaches once a process.
As an argument of a task (here ``total``) a handle attaches once a task, which costs some
microseconds, and closes itself. What changes later is seen at once: nothing is sent to workers.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from shmcache import Store

cities: Store  # of this worker process


def initialize(handle: Store) -> None:
    global cities
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends us
    cities = handle


def population(key: str) -> tuple[int, int]:
    """Who was asked, and what is in the store now."""
    return os.getpid(), cities[key]["population"]


def total(handle: Store, keys: list[str]) -> int:
    return sum(handle[key]["population"] for key in keys)


def city(number: int, population: int) -> dict[str, object]:
    return {"metadata": {"name": f"city-{number}"}, "population": population}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--workers", type=int, default=3)
    methods = multiprocessing.get_all_start_methods()
    parser.add_argument("--start-method", choices=methods, default=methods[0])
    options = parser.parse_args()

    context = multiprocessing.get_context(options.start_method)
    with Store.create(capacity="64MiB") as store:
        store.replace([city(number, population=1) for number in range(options.tasks)])
        pool = ProcessPoolExecutor(
            options.workers, mp_context=context, initializer=initialize, initargs=(store,)
        )
        try:
            keys = store.list_keys()
            people = sum(count for _, count in pool.map(population, keys))
            print(f"{people} people", flush=True)

            store.replace([city(number, population=2) for number in range(options.tasks)])
            answers = list(pool.map(population, keys))
            workers = Counter(pid for pid, _ in answers)
            print(f"then {sum(n for _, n in answers)}, counted by {len(workers)} processes")

            halves = pool.map(total, [store, store], [keys[::2], keys[1::2]])
            print(f"and {sum(halves)} in two halves")
        finally:
            pool.shutdown(cancel_futures=True)
            store.unlink()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
