"""Checked by mypy, never run: what users write must type-check as they expect."""

from __future__ import annotations

from typing import Any, assert_type

import shmcache
from shmcache import (
    FIFO,
    Codec,
    ListerWatcher,
    ListWatch,
    MsgpackCodec,
    MsgspecCodec,
    RawCodec,
    Reflector,
    ReflectorStore,
    Stats,
    Store,
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


async def asynchronous(fifo: FIFO) -> None:
    assert_type(await fifo.pop_async(), Any)


def protocols(store: Store, source: ListWatch) -> None:
    reflected: ReflectorStore = store
    watched: ListerWatcher = source
    codecs: list[Codec] = [MsgpackCodec(), RawCodec(), MsgspecCodec(int)]
    with Reflector(watched, "v1/Pod", reflected) as reflector:
        assert_type(reflector.last_sync_resource_version, str)
    shmcache.Store.create(codec=codecs[0])
