"""Store: the cache of decoded objects, snapshots, syncing, and threads on one handle."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import shmcache
from shmcache import MsgspecCodec, RawCodec, Store


def test_an_unchanged_entry_is_the_same_object(store: Store, pod: Any) -> None:
    """An entry is decoded once per version: all reads hand out one object until it changes."""
    store.add(pod("a", n=1))
    store.add(pod("b"))
    first = store.get_by_key("default/a")
    assert store.get_by_key("default/a") is first
    assert first in store.list()
    assert any(obj is first for obj in store.list())
    store.add(pod("b", n=2))
    assert store.get_by_key("default/a") is first
    store.add(pod("a", n=2))
    assert store.get_by_key("default/a") is not first
    stats = store.stats()
    assert stats.hits > 0
    assert stats.misses > 0


READS: dict[str, Callable[[Store], list[Any]]] = {
    "get_by_key": lambda store: [store.get_by_key(f"default/{i}") for i in range(2)],
    "list": lambda store: sorted(store.list(), key=lambda obj: obj["metadata"]["name"]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_versions_of_an_object_share_what_has_not_changed(
    store: Store, pod: Any, read: Callable[[Store], list[Any]]
) -> None:
    """Of two versions of an object, a reader that had the first makes only what has changed."""
    store.add_many([pod(str(i), n=1, more=[i]) for i in range(2)])
    olds = read(store)
    for i in (1, 0):  # what is read first is where the other's last version was
        store.add(pod(str(i), n=2, more=[i]))
    for old, new in zip(olds, read(store), strict=True):
        assert (old["n"], new["n"]) == (1, 2)
        assert new["metadata"] is old["metadata"]
        assert new["more"] is old["more"]


def test_keys_are_plain_text(store: Store, pod: Any) -> None:
    """A key of a subclass of str finds its entry, and nobody else is given it."""

    class Key(str):
        pass

    store.add(pod("a"))
    assert store.get_by_key(Key("default/a")) == pod("a")
    assert [type(key) for key in store] == [str]
    assert [type(key) for key in store.keys()] == [str]  # noqa: SIM118


def test_replace_keeps_what_did_not_change(store: Store, pod: Any) -> None:
    """An entry that a replace leaves byte for byte is not decoded again."""
    store.replace([pod("a"), pod("b")], "1")
    kept = store.get_by_key("default/a")
    store.replace([pod("a"), pod("b", n=2), pod("c")], "2")
    assert store.get_by_key("default/a") is kept


def test_the_cache_is_bounded(name: str) -> None:
    """A handle keeps decoded objects of at most `cache` payload bytes, and reads stay right."""
    with Store.create(name, codec=RawCodec(), capacity="16MiB", cache="100kB") as store:
        for i in range(100):
            store.add_raw(f"k{i}", bytes([i]) * 10_000)
        for _ in range(3):
            assert sorted(store.list()) == [bytes([i]) * 10_000 for i in range(100)]
            assert all(store.get_by_key(f"k{i}") == bytes([i]) * 10_000 for i in range(100))
            assert store.stats().cached_bytes <= 100_000
        assert sorted(store.list_keys()) == sorted(f"k{i}" for i in range(100))


def test_list_follows_the_changes(store: Store) -> None:
    """After any mix of writes, by any handle, list equals the content; more than a ring of them."""
    model: dict[str, bytes] = {}
    with Store.attach(store.name, codec=None) as reader:
        for round_ in range(40):
            for i in range(0 if round_ == 7 else 10 ** (round_ % 5)):
                key = f"k{(i * 7919 + round_) % 3000}"
                if (i + round_) % 5 == 0:
                    model.pop(key, None)
                    store.delete_by_key(key)
                else:
                    model[key] = b"\xa3abc" if i % 2 else b"\xa1" + bytes([97 + i % 26])
                    store.add_raw(key, model[key])
            assert sorted(reader.list_keys()) == sorted(model)
            assert sorted(reader.list()) == sorted(v[1:].decode() for v in model.values())
            assert dict(reader.items()) == {k: v[1:].decode() for k, v in model.items()}


class Interrupting:
    """A codec that, once, does something in the middle of a list: as another thread may."""

    name = "raw"

    def __init__(self) -> None:
        self.then: Callable[[], object] | None = None

    def encode(self, obj: bytes) -> bytes:
        return obj

    def decode(self, data: bytes | memoryview) -> bytes:
        then, self.then = self.then, None
        if then is not None:
            then()
        return bytes(data)


@pytest.mark.parametrize("read", ["list", "list_keys", "items"])
def test_snapshots_within_a_snapshot(name: str, read: str) -> None:
    """What changes and is read while a list is being built is in the next list."""
    codec = Interrupting()
    with Store.create(name, codec=codec, capacity="1MiB") as store:
        store.add_raw("a", b"1")
        store.add_raw("b", b"1")

        def change_and_read() -> None:
            store.add_raw("a", b"2")
            store.add_raw("new", b"1")
            assert len(list(getattr(store, read)())) == 3

        for again in (False, True):  # the first list, and one that goes on from the last
            if again:
                store.add_raw("b", b"3")
                store.delete_by_key("new")
            codec.then = change_and_read
            assert len(store.list()) in (2, 3)
            assert codec.then is None
            assert sorted(store.list()) == sorted(store.get_raw(key) for key in store.list_keys())


def test_snapshots_under_a_writer_are_of_one_instant(store: Store) -> None:
    """While two entries are changed together (add_many of a pair), every list has them equal."""
    stop = threading.Event()
    payload = [f"{i:04}" for i in range(2000)]

    def write() -> None:
        with Store.attach(store.name, writable=True, key_func=lambda o: o["k"]) as writer:
            for text in payload:
                writer.add_many([{"k": "left", "v": text}, {"k": "right", "v": text}])
        stop.set()

    with Store.attach(store.name) as reader:
        thread = threading.Thread(target=write)
        thread.start()
        lists = 0
        while not stop.is_set() or lists == 0:
            values = [obj["v"] for obj in reader.list()]
            assert len(set(values)) <= 1
            lists += 1
        thread.join()


def test_sync_is_set_by_the_first_replace(store: Store, pod: Any) -> None:
    """has_synced is false until the first replace, adds do not set it, every handle sees it."""
    with Store.attach(store.name) as reader:
        store.add(pod("a"))
        assert not reader.has_synced
        assert reader.wait_for_sync(0) is False
        waiting = threading.Thread(target=reader.wait_for_sync)
        waiting.start()
        store.replace([pod("a")], "7")
        waiting.join()
        assert reader.has_synced
        assert reader.resource_version == "7"


def test_wait_for_change_wakes_every_waiter(store: Store, pod: Any) -> None:
    """All who sleep on a version are woken by the next change."""
    version = store.version
    seen: list[int] = []
    threads = [
        threading.Thread(target=lambda: seen.append(store.wait_for_change(version)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    store.add(pod("a"))
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert min(seen) > version


def test_read_only_handles_cannot_write(store: Store, pod: Any) -> None:
    """A handle attached without writable=True reads everything and refuses every write."""
    store.replace([pod("a")], "1")
    with Store.attach(store.name) as reader:
        assert not reader.writable
        for write in (
            lambda: reader.add(pod("b")),
            lambda: reader.update(pod("b")),
            lambda: reader.delete(pod("a")),
            lambda: reader.delete_by_key("default/a"),
            lambda: reader.delete_by_key(""),
            lambda: reader.replace([]),
            lambda: reader.add_many([pod("b")]),
            lambda: reader.add_raw("k", b""),
        ):
            with pytest.raises(shmcache.ReadOnlyError, match="writable=True"):
                write()
        assert reader.list() == [pod("a")]
        assert reader.check() == []


def test_threads_share_a_handle(store: Store) -> None:
    """Several threads write and read through one handle, and nothing is lost."""

    def work(number: int) -> None:
        for i in range(300):
            store.add_raw(f"{number}-{i}", b"\xa1x")
            assert store.get_by_key(f"{number}-{i}") == "x"
            if i % 50 == 0:
                store.list()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == len(store.list()) == 1800


def test_large_values_are_never_torn(name: str) -> None:
    """Threads that read a large value (copied without the GIL) while it changes get it whole."""
    size = 1 << 20
    stop = threading.Event()
    torn: list[bytes] = []
    with Store.create(name, codec=RawCodec(), capacity="64MiB") as store:
        store.add_raw("k", bytes(size))

        def read() -> None:
            while not stop.is_set():
                value = store.get_by_key("k")
                if value.count(value[:1]) != size:
                    torn.append(value[:8])

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for i in range(300):
            store.add_raw("k", bytes([i % 256]) * size)
        stop.set()
        for thread in threads:
            thread.join()
    assert torn == []


def test_who_is_told_of_a_version_finds_its_change(store: Store) -> None:
    """A reader that wakes with a new version sees what made it, every time."""

    def write() -> None:
        for i in range(3000):
            store.add({"metadata": {"name": "k"}, "n": i})

    with Store.attach(store.name) as reader:
        thread = threading.Thread(target=write)
        thread.start()
        version = 0
        while version < 3000:
            # Each write is one version, and this store has had no others.
            version = reader.wait_for_change(version)
            assert reader.get_by_key("k")["n"] >= version - 1
        thread.join()


def test_a_decoder_may_use_the_store(name: str) -> None:
    """Decoding runs outside every lock, so a codec may read the very store it decodes for."""

    class Following(RawCodec):
        name = "following"

        def decode_shared(self, data: bytes, previous: object) -> Any:  # type: ignore[override]
            link = bytes(data).decode()
            return [link, *store.get_by_key(link, [])]

    with Store.create(name, codec=Following(), capacity="1MiB") as store:
        store.add_raw("a", b"b")
        store.add_raw("b", b"c")
        assert store.get_by_key("a") == ["b", "c"]
        assert sorted(store.list()) == [["b", "c"], ["c"]]


def test_typed_reads(store: Store, pod: Any) -> None:
    """A typed codec reads what msgpack wrote, as structs."""
    msgspec = pytest.importorskip("msgspec")
    meta = msgspec.defstruct("Meta", [("name", str)], frozen=True)
    typed = msgspec.defstruct("Pod", [("metadata", meta), ("n", int)], frozen=True)
    store.add(pod("a", n=1))
    with Store.attach(store.name, codec=MsgspecCodec(typed)) as reader:
        assert reader.get_by_key("default/a").metadata.name == "a"
        store.add(pod("b", n="not a number"))
        with pytest.raises(shmcache.CodecError):
            reader.get_by_key("default/b")


def test_reads_of_all_handles_are_counted(store: Store, pod: Any) -> None:
    """Each handle adds its reads to those of the arena: lookups, raw ones, and listed objects."""
    for i in range(10):
        store.add(pod(f"p{i}"))
    with Store.attach(store.name) as reader:
        for _ in range(300):
            reader.get_by_key("default/p0")
        reader.list()
        reader.get_raw("default/p1")
        assert reader.get_by_key("default/nobody") is None
    stats = store.stats()
    assert (stats.reads, stats.read_misses) == (311, 10)
    for _ in range(255):  # one more is told at once
        store.get_raw("default/p0")
    with Store.attach(store.name) as other:
        assert other.stats().reads == 311
        store.get_raw("default/p0")
        assert other.stats().reads == 311 + 256


def test_a_full_and_held_arena_still_gives_its_figures(store: Store, pod: Any) -> None:
    """stats() takes no lock: free memory is counted as it is given and taken."""
    store.add(pod("a"))
    before = store.stats()
    store.add(pod("b"))
    between = store.stats()
    store.delete_by_key("default/b")
    after = store.stats()
    assert between.free_bytes < before.free_bytes == after.free_bytes
    assert after.free_blocks == 1
    assert after.largest_free_bytes == after.free_bytes
    assert after.oldest_age is None
