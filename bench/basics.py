"""The basic workloads, each beside a rival, in turns; see bench/README.md."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import queue
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import msgpack

import shmcache
from shmcache import FIFO, RawCodec, Store

KEYS = 5_000
LOOPS = 100_000


def pod(i: int) -> dict[str, Any]:
    """A pod of about 2.8 kB as msgpack, different for every `i`."""
    return {
        "metadata": {
            "name": f"web-{i}",
            "namespace": f"team-{i % 20}",
            "uid": f"00000000-0000-4000-8000-{i:012}",
            "labels": {f"label-{n}": f"value-{(i * 31 + n) % 97}" for n in range(12)},
            "annotations": {f"example.com/{n}": "x" * (40 + (i + n) % 20) for n in range(10)},
        },
        "spec": {
            "containers": [
                {
                    "name": f"c{n}",
                    "image": f"registry.example.com/app-{i % 50}:{n}",
                    "env": [{"name": f"V{e}", "value": "y" * 24} for e in range(12)],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                }
                for n in range(2)
            ],
            "nodeName": f"node-{i % 100}",
        },
        "status": {"phase": "Running", "podIP": f"10.0.{i % 250}.{i % 200}"},
    }


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def per_call(call: Callable[[str], Any], keys: list[str]) -> float:
    """Microseconds of one call, keys in turn."""

    def loop() -> None:
        for key in keys:
            call(key)

    return timed(loop) / len(keys) * 1e6


def consume(get: Callable[[], Any], count: int, ready: Any) -> None:
    ready.wait()
    for _ in range(count):
        get()


def across_processes(put: Callable[[int], None], get: Any, items: int, consumers: int) -> float:
    """Microseconds an item from one producer to `consumers` processes, start-up not counted."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(consumers + 1)
    each = items // consumers
    processes = [context.Process(target=consume, args=(get, each, ready)) for _ in range(consumers)]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    for i in range(each * consumers):
        put(i)
    for process in processes:
        process.join()
    return (time.perf_counter() - start) / (each * consumers) * 1e6


Pair = tuple[Callable[[], float], Callable[[], float]]


def workloads(store: Store, raw: FIFO) -> dict[str, Pair]:
    """Name -> (ours, the rival's), each giving microseconds."""
    objects = {f"team-{i % 20}/web-{i}": pod(i) for i in range(KEYS)}
    payloads = {key: msgpack.packb(obj) for key, obj in objects.items()}
    store.replace(objects.values())
    store.list()
    keys = (list(objects) * (LOOPS // KEYS + 1))[:LOOPS]
    few = list(objects)[:2000]
    item = b"x" * 64
    simple: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def cold() -> float:
        for key in few:
            store.add_raw(key, payloads[key])
        return per_call(store.get_by_key, few)

    def ours_queue(_: str) -> None:
        raw.add_raw("key", item)
        raw.pop_raw()

    def simple_queue(_: str) -> None:
        simple.put(item)
        simple.get()

    def ours_processes(consumers: int) -> float:
        return across_processes(lambda i: raw.add_raw(str(i), item), raw.pop_raw, 20_000, consumers)

    def theirs_processes(consumers: int) -> float:
        rival: Any = multiprocessing.get_context("fork").Queue()
        took = across_processes(lambda i: rival.put(item), rival.get, 20_000, consumers)
        rival.close()
        rival.join_thread()
        return took

    pairs: dict[str, Pair] = {
        "warm get": (lambda: per_call(store.get_by_key, keys), lambda: per_call(objects.get, keys)),
        "raw get, 2.8 kB": (
            lambda: per_call(store.get_raw, keys),
            lambda: per_call(lambda key: bytes(memoryview(payloads[key])), keys),
        ),
        "cold get, 2.8 kB": (
            cold,
            lambda: per_call(lambda key: msgpack.unpackb(payloads[key]), few),
        ),
        "list of 5,000": (
            lambda: timed(lambda: [store.list() for _ in range(20)] and None) / 20 * 1e6,
            lambda: timed(lambda: [list(objects.values()) for _ in range(20)] and None) / 20 * 1e6,
        ),
        "queue, one process": (
            lambda: per_call(ours_queue, keys),
            lambda: per_call(simple_queue, keys),
        ),
    }
    for n in (1, 2, 4):
        pairs[f"queue, {n} consumers"] = (
            lambda n=n: ours_processes(n),  # type: ignore[misc]
            lambda n=n: theirs_processes(n),  # type: ignore[misc]
        )
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    rivals = {
        "warm get": "dict.get",
        "raw get, 2.8 kB": "dict and a copy",
        "cold get, 2.8 kB": "msgpack.unpackb",
        "list of 5,000": "list(dict.values())",
        "queue, one process": "queue.SimpleQueue",
    }
    results = []
    with (
        Store.create(capacity="64MiB") as store,
        FIFO.create(capacity="64MiB", codec=RawCodec()) as raw,
    ):
        store.unlink()
        raw.unlink()
        print(f"{'workload':20} {'ours µs':>9} {'rival µs':>9} {'ratio':>7}  rival")
        for name, (ours, theirs) in workloads(store, raw).items():
            pairs = [(ours(), theirs()) for _ in range(options.rounds)]
            median = [statistics.median(column) for column in zip(*pairs, strict=True)]
            ratios = sorted(a / b for a, b in pairs)
            rival = rivals.get(name, "multiprocessing.Queue")
            ratio = statistics.median(ratios)
            print(f"{name:20} {median[0]:9.3f} {median[1]:9.3f} {ratio:7.2f}  {rival}", flush=True)
            results.append(
                {
                    "workload": name,
                    "rival": rival,
                    "ours_us": median[0],
                    "rival_us": median[1],
                    "ratio": ratio,
                    "ratio_lowest": ratios[0],
                    "ratio_highest": ratios[-1],
                }
            )
    if options.json:
        machine = {
            "python": sys.version.split()[0],
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "shmcache": shmcache.__version__,
            "rounds": options.rounds,
        }
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "results": results}, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
