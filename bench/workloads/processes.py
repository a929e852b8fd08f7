"""A reflector beside the official ones, and the memory of whole workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench import pods
from bench.measure import cores, in_a_process, kilobytes
from bench.rivals import RIVALS
from bench.server import pod_server
from bench.worker import workers
from bench.workloads.catalogue import Pair, Scale, limit, workload
from shmcache import ListWatch, Reflector, Store, list_watch_from_client

# --- a reflector --------------------------------------------------------------------------------


@workload(
    "ingest",
    "reflector",
    "an event of a watch, 3.6 kB of JSON, from a server on the other core into the store; "
    "connecting included",
    {"official informer": 0.1, "official Watch": 0.1},
)
def ingest(scale: Scale, rival: str) -> Iterator[Pair]:
    at = cores()
    core = at[0] if len(at) > 1 else None
    with (
        pod_server([], pods.pods(scale.events), core=at[-1] if len(at) > 1 else None) as url,
        RIVALS[rival].open(scale.where) as read,
    ):

        def per_event(ingest: Callable[[str, int], None]) -> float:
            return in_a_process(lambda: ingest(url, scale.events), core) / scale.events * 1e6

        pods_of(url)  # everything is imported once
        yield lambda: per_event(reflect), lambda: per_event(read)


def pods_of(url: str) -> ListWatch:
    from kubernetes import client

    return list_watch_from_client(client.ApiClient(client.Configuration(host=url)), "pods")


def reflect(url: str, count: int) -> None:
    """Fill a store from the server until it has that many."""
    with Store.create() as store:
        store.unlink()
        with Reflector(pods_of(url), "v1/Pod", store):
            while len(store) < count:
                time.sleep(0.002)


# --- memory -------------------------------------------------------------------------------------


def megabytes(pids: list[int]) -> float:
    return sum(kilobytes(pid) for pid in pids) / 1024


@contextmanager
def named_store(scale: Scale, count: int) -> Iterator[str]:
    """A store that workers attach to, and that nobody else has mapped."""
    with Store.create(f"{scale.where.name}-memory") as store:
        store.replace(pods.pods(count))
        store.close()
        try:
            yield store.name
        finally:
            store.unlink()


@workload(
    "memory, all decoded",
    "memory",
    "the same, each worker holding a list() of all objects",
    {"official informer": 1 / 12},
    unit="MB",
    once=True,
    kind="listed",
)
@workload(
    "memory",
    "memory",
    "PSS of all workers together, interpreters included, each having read the bytes of every pod",
    {"official informer": 1 / 12},
    unit="MB",
    once=True,
    kind="read",
)
def memory(scale: Scale, rival: str, kind: str) -> Iterator[Pair]:
    count = scale.worker_pods

    def ours() -> float:
        with named_store(scale, count) as name, workers(scale.workers, kind, name) as pids:
            return megabytes(pids)

    def theirs() -> float:
        with (
            pod_server(pods.pods(count), []) as url,
            workers(scale.workers, "informer", url, str(count)) as pids,
        ):
            return megabytes(pids)

    with RIVALS[rival].open(scale.where):
        yield ours, theirs


@workload(
    "idle worker, imports",
    "memory",
    "the same beyond a bare interpreter",
    {"a limit of 1 MB": 1.0},
    unit="MB",
    once=True,
    beyond="interpreter",
)
@workload(
    "idle worker",
    "memory",
    "PSS of a worker that has attached and looked one pod up, beyond an interpreter that has "
    "imported shmcache",
    {"a limit of 1 MB": 1.0},
    unit="MB",
    once=True,
    beyond="imported",
)
def idle_worker(scale: Scale, rival: str, beyond: str) -> Iterator[Pair]:
    number = max(scale.workers, 2)
    key = pods.key_of(pods.make(0))

    def ours() -> float:
        with named_store(scale, scale.keys) as name, workers(number, "attached", name, key) as pids:
            attached = megabytes(pids)
        with workers(number, beyond) as pids:
            return (attached - megabytes(pids)) / number

    yield ours, limit(1.0)
