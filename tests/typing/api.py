"""Checked by mypy, never run: what users write must type-check as they expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

import shmcache
from shmcache import (
    FIFO,
    Change,
    Codec,
    DeadLetter,
    Delayed,
    Enumerator,
    ExponentialBackoff,
    FastSlow,
    GetFunc,
    Index,
    Indexers,
    IndexFunc,
    Indices,
    InFlight,
    InformerStats,
    KeyFunc,
    LabelSelector,
    ListerStore,
    ListerWatcher,
    ListFunc,
    ListWatch,
    MaxOf,
    MsgpackCodec,
    MsgspecCodec,
    Poller,
    PollerStats,
    RateLimiter,
    RawCodec,
    Reflector,
    ReflectorRunningError,
    ReflectorSeat,
    ReflectorStats,
    ReflectorStatus,
    ReflectorStore,
    SharedInformer,
    Stats,
    Store,
    StoreToNodeLister,
    StoreToPodLister,
    StoreToServiceLister,
    TokenBucket,
    UndeltaStore,
    Watch,
    WatchFunc,
    WorkQueue,
    meta_namespace_index_func,
    meta_namespace_key_func,
    wait_for_cache_sync,
)


def stores() -> None:
    with Store.create("name", capacity="64MiB") as store:
        assert_type(store, Store)
        assert_type(store.list_keys(), list[str])
        assert_type(store.get_raw("k"), bytes | None)
        assert_type(store.stats(), Stats)
        assert_type(len(store), int)
        for key in store:
            assert_type(key, str)
    fifo = FIFO.attach("name", timeout=1.0)
    assert_type(fifo, FIFO)
    assert_type(fifo.pop_raw(), tuple[str, bytes])
    assert_type(fifo.add_if_not_present({}), bool)
    assert_type(fifo.pop_many(3), list[Any])


def workers(queue: WorkQueue) -> None:
    assert_type(queue.add("a"), bool)
    assert_type(queue.get(timeout=1.0, lease=5), str)
    with queue.work() as key:
        assert_type(key, str)
    assert_type(queue.delayed(), list[Delayed])
    assert_type(queue.in_flight(), list[InFlight[str]])
    assert_type(queue.dead_letters(), list[DeadLetter[str]])
    assert_type(queue.shutdown_with_drain(5), bool)
    assert_type(shmcache.attach("name"), Store | WorkQueue)


class Steady:
    def delay(self, failures: int, reserve: Callable[[float, int], float], /) -> float:
        return 1.0 + reserve(5.0, 1)


def limiters() -> None:
    mine: RateLimiter = Steady()
    limiter = MaxOf(mine, ExponentialBackoff(base=1), FastSlow(1, 2, 3), TokenBucket(rate=5))
    assert_type(WorkQueue.open("name", rate_limiter=limiter), WorkQueue)


async def asynchronous(fifo: FIFO) -> None:
    assert_type(await fifo.pop_async(), Any)


def followed(store: Store, source: ListWatch) -> None:
    with store.watch(timeout=1.5) as watch:
        assert_type(watch, Watch[Any])
        assert_type(watch.take(), list[Change[Any]])
        for change in watch:
            assert_type(change, Change[Any])
            assert_type(change.key, str)
    informer = SharedInformer(source, store, expected_type="v1/Pod", transform=dict)
    informer.add_event_handler(print, lambda old, new: print(old, new), filter=lambda obj: obj["n"])
    seen = informer.add_event_handler(on_delete=print, resync_period=30)
    with informer:
        assert_type(wait_for_cache_sync(store, informer, seen, timeout=3), bool)
        assert_type(informer.stats(), InformerStats)
    informer.remove_event_handler(seen)


async def followed_asynchronously(store: Store) -> None:
    async for change in store.watch():
        assert_type(change.old, Any | None)


def protocols(store: Store, source: ListWatch) -> None:
    reflected: ReflectorStore = store
    watched: ListerWatcher = source
    codecs: list[Codec] = [MsgpackCodec(), RawCodec(), MsgspecCodec(int)]
    with Reflector(watched, "v1/Pod", reflected) as reflector:
        assert_type(reflector.last_sync_resource_version, str)
        assert_type(reflector.stats(), ReflectorStats)
        assert_type(reflector.stats().last_contact_monotonic, float | None)
    Reflector(watched, dict, reflected, transform=dict, internal_error_retry=30, standby=True)
    shmcache.Store.create(codec=codecs[0])


def seated(seat: ReflectorSeat, reflector: Reflector) -> None:
    assert_type(seat.claim_reflector("pods"), bool)
    assert_type(seat.reflector_status(), ReflectorStatus)
    assert_type(seat.reflector_status().contact_age, float | None)
    seat.report_reflector("watching", reflector.stats())
    try:
        reflector.start()
    except ReflectorRunningError as error:
        assert_type(error.pid, int)


def polled(store: Store) -> None:
    def get() -> list[dict[str, Any]]:
        return []

    get_func: GetFunc = get
    with Poller(get_func, 1.0, store) as poller:
        assert_type(poller.stats(), PollerStats)
        assert_type(poller.stop(1.0), bool)
        assert_type(poller.stopped, bool)
    Poller(lambda: (), 1, store).run()


def undelta() -> None:
    def push(objs: list[Any]) -> None: ...

    with UndeltaStore(push) as store:
        assert_type(store, UndeltaStore)
        assert_type(store.list_keys(), list[str])
        assert_type(store.store, Store)
        for key in store:
            assert_type(key, str)
        reflected: ReflectorStore = store
    UndeltaStore(push, meta_namespace_key_func, Store.open("name"))
    Poller(list, 1.0, reflected)


def listers(store: Store, fifo: FIFO, pushing: UndeltaStore) -> None:
    stores: list[ListerStore] = [store, fifo, pushing]
    pods = StoreToPodLister(stores[0])
    for selector in (None, "app in (web, api)", {"app": "web"}, LabelSelector.parse("app")):
        assert_type(pods.list(selector), list[Any])
    assert_type(StoreToNodeLister(fifo).get_node_info("node-1"), Any)
    assert_type(StoreToServiceLister(pushing).get_pod_services({}), list[Any])


def aliases(source: ListWatch) -> None:
    key_func: KeyFunc = meta_namespace_key_func
    index_func: IndexFunc = meta_namespace_index_func
    indexers: Indexers = {"namespace": index_func}
    index: Index = {"default": {"default/web-0"}}
    indices: Indices = {"namespace": index}
    list_func: ListFunc = source.list
    watch_func: WatchFunc = source.watch
    enumerator: Enumerator = (key_func, indexers, indices, list_func, watch_func)
    assert list(enumerator)
