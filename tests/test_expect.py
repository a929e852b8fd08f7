"""Read your own writes: a store waits for a resource version, and for what a server returned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shmcache import (
    FIFO,
    Indexer,
    KeyFuncError,
    MsgspecCodec,
    RawCodec,
    Reflector,
    Store,
    UndeltaStore,
    list_watch_from_client,
)
from shmcache.sources.memory import MemorySource

DEADLINE = 60.0


def pod(version: object = None, **fields: Any) -> dict[str, Any]:
    """The pod default/web-0 in some version."""
    metadata = {"namespace": "default", "name": "web-0"}
    if version is not None:
        metadata["resourceVersion"] = str(version)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **fields}


class Interposed:
    """The core of a store, in which `before` is called where somebody would sleep."""

    def __init__(self, core: Any, before: Callable[[], object]) -> None:
        self._core = core
        self._before = before
        self.sleeps: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def wait_change(self, version: int, timeout: float) -> int:
        self.sleeps.append(timeout)
        self._before()
        moved: int = self._core.wait_change(version, 0.0)
        return moved


@pytest.fixture
def asleep(store: Store) -> Callable[[Callable[[], object]], Interposed]:
    """Makes something happen while a reader of `store` sleeps."""

    def arrange(what: Callable[[], object]) -> Interposed:
        core = Interposed(store._core, what)
        store._core = core  # type: ignore[assignment]
        return core

    return arrange


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "wanted", "enough"),
    [
        ("9", "9", True),
        ("10", "9", True),
        ("9", "10", False),
        ("99", "100", False),
        ("9" * 40, "1" + "0" * 40, False),
        ("1" + "0" * 40, "9" * 40, True),
        ("18446744073709551616", "18446744073709551615", True),
    ],
)
def test_versions_are_numbers(store: Store, there: str, wanted: str, enough: bool) -> None:
    """Versions are compared as integers, however long they are."""
    store.replace([], there)
    assert store.wait_for_version(wanted, timeout=0) is enough


def test_before_the_first_list_there_is_no_version(store: Store) -> None:
    """A store that nobody has filled is at no version at all."""
    assert not store.wait_for_version("1", timeout=0)
    assert not store.expect(pod(1), timeout=0)


@pytest.mark.parametrize("version", ["", "0", "007", "-1", "1.5", "a-17", "٤٢", " 7"])
def test_what_cannot_be_ordered_is_refused(store: Store, version: str) -> None:
    """A version that is no decimal integer above 0 is a ValueError that shows it, asked for or
    found in the store; so nobody waits for what may have passed."""
    store.replace([], "7")
    with pytest.raises(ValueError, match="decimal integer") as caught:
        store.wait_for_version(version, timeout=0)
    assert repr(version) in str(caught.value)
    if version:
        with pytest.raises(ValueError, match=r"default/web-0.*decimal integer"):
            store.expect(pod(version), timeout=0)
        store.bookmark(version)
        for ask in (lambda: store.wait_for_version("7"), lambda: store.expect(pod(7))):
            with pytest.raises(ValueError, match=rf"arena '{store.name}'.* later than '7'"):
                ask()


def test_wrong_arguments(store: Store) -> None:
    """A version is text, a timeout is not negative, and an object has a key and a version; what
    has none is named."""
    with pytest.raises(TypeError, match="resource_version is a str"):
        store.wait_for_version(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be negative"):
        store.wait_for_version("7", timeout=-1)
    for without in (pod(), {"metadata": {"name": "web-0", "resourceVersion": None}}):
        with pytest.raises(ValueError, match=r"web-0' has no metadata.resourceVersion"):
            store.expect(without)
    with pytest.raises(KeyFuncError):
        store.expect({"metadata": {"resourceVersion": "7"}})


def test_a_bookmark_is_seen_by_who_sleeps(
    store: Store, asleep: Callable[[Callable[[], object]], Interposed]
) -> None:
    """A bookmark does not move the version that a sleep is on: the sleeper looks by itself, ever
    more seldom, and at once again when something has changed."""
    happens = iter([*[lambda: None] * 12, lambda: store.add(pod(6)), lambda: store.bookmark("7")])
    core = asleep(lambda: next(happens)())
    assert store.wait_for_version("7", timeout=DEADLINE)
    assert max(core.sleeps) == 0.5
    assert core.sleeps == [*sorted(core.sleeps[:-1]), min(core.sleeps)]


# --- objects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "bookmark", "seen"),
    [
        (None, "", False),
        ("9", "", False),
        ("10", "", True),
        ("11", "", True),
        ("9", "9", False),
        ("9", "10", True),  # left out by the reflector's source since
        (None, "9", False),
        (None, "11", True),  # deleted since
        ("", "9", False),
        ("", "10", True),  # the entries have no versions
        ("a-9", "9", False),
        ("10", "snapshot-7", True),  # the content has a version of its own kind
    ],
)
def test_what_is_seen(store: Store, entry: str | None, bookmark: str, seen: bool) -> None:
    """An object is seen when its entry is as new, or the content as a whole is."""
    if entry is not None:
        store.add(pod(entry))
    if bookmark:
        store.bookmark(bookmark)
    assert store.expect(pod(10), timeout=0) is seen


def test_who_waits_for_an_object_is_woken_up(
    store: Store, asleep: Callable[[Callable[[], object]], Interposed]
) -> None:
    """A sleeper sees the write that it waits for, and the deletion with its bookmark."""
    happens = iter([lambda: store.add(pod(9)), lambda: store.add(pod(10))])
    asleep(lambda: next(happens)())
    assert store.expect(pod(10), timeout=DEADLINE)
    happens = iter([lambda: store.delete(pod()), lambda: store.bookmark("12")])
    assert store.expect(pod(12), timeout=DEADLINE)
    assert pod() not in store.list()


def test_objects_of_any_shape(store: Store) -> None:
    """What is expected may be a dict, what a store gave out, or have attributes in the names of
    Python or of JSON."""
    metadata = {"namespace": "default", "name": "web-0"}
    store.add(pod(10))
    shapes: list[Callable[[str], Any]] = [
        pod,
        lambda version: SimpleNamespace(
            metadata=SimpleNamespace(**metadata, resource_version=version)
        ),
        lambda version: SimpleNamespace(
            metadata=SimpleNamespace(**metadata, resourceVersion=version)
        ),
        lambda version: SimpleNamespace(metadata={**metadata, "resourceVersion": version}),
    ]
    for shape in shapes:
        assert store.expect(shape("10"), timeout=0)
        assert not store.expect(shape("11"), timeout=0)
    assert store.expect(store["default/web-0"], timeout=0)
    assert store.expect(copy.deepcopy(store["default/web-0"]), timeout=0)


def test_typed_entries(name: str) -> None:
    """A reader of structs sees versions by their field, and without one by the store's."""
    msgspec = pytest.importorskip("msgspec")

    fields = [("name", str), ("namespace", str, ""), ("resource_version", str, "")]
    metadata = msgspec.defstruct("Metadata", fields, frozen=True, rename="camel")
    versioned = msgspec.defstruct("Versioned", [("metadata", metadata)], frozen=True)
    bare = msgspec.defstruct("Bare", [("kind", str, "")], frozen=True)
    with Store.create(name, capacity="1MiB") as writer:
        writer.add(pod(10))
        with Store.attach(name, codec=MsgspecCodec(versioned)) as typed:
            assert typed.expect(typed["default/web-0"], timeout=0)
            assert typed.expect(pod(10), timeout=0)
            assert not typed.expect(pod(11), timeout=0)
        with Store.attach(name, codec=MsgspecCodec(bare)) as untold:
            assert not untold.expect(pod(10), timeout=0)
            writer.bookmark("10")
            assert untold.expect(pod(10), timeout=0)


def test_bytes_have_no_version(name: str) -> None:
    """Of a store of bytes only its resource version tells."""
    with Store.create(name, codec=RawCodec(), capacity="1MiB") as raw:
        raw.add_raw("default/web-0", b"anything")
        assert not raw.expect(pod(10), timeout=0)
        raw.bookmark("10")
        assert raw.expect(pod(10), timeout=0)
        raw.unlink()


def test_a_queue_has_seen_what_was_popped(fifo: FIFO) -> None:
    """Of a queue an item is seen while it is queued, and by the resource version once a consumer
    has it."""
    fifo.add(pod(10))
    assert fifo.expect(pod(10), timeout=0)
    with fifo.claim(0):
        assert not fifo.expect(pod(10), timeout=0)
        fifo.bookmark("10")
        assert fifo.expect(pod(10), timeout=0)


def test_every_kind_of_store() -> None:
    """An Indexer and an UndeltaStore wait as a Store does."""
    with Indexer.create(capacity="1MiB", indexers={}) as indexer:
        indexer.unlink()
        with UndeltaStore(lambda objs: None, store=indexer) as pushing:
            pushing.add(pod(10))
            for store in (indexer, pushing):
                assert store.expect(pod(10), timeout=0)
                assert not store.wait_for_version("10", timeout=0)
            pushing.bookmark("10")
            assert pushing.wait_for_version("10", timeout=0)


# --- from the write to the read -----------------------------------------------------------------


@pytest.fixture
def reader(store: Store) -> Iterator[Store]:
    """A read-only handle, as another process has it."""
    with Store.attach(store.name) as attached:
        yield attached


def test_a_write_is_read(store: Store, reader: Store) -> None:
    """What was written to a source that a reflector follows is in the store once it was expected:
    new, changed, deleted, and what a selector leaves out."""
    source = MemorySource([pod()])

    def written() -> dict[str, Any]:
        (found,) = source.objects()
        return found

    with Reflector(source, "v1/Pod", store):
        assert reader.expect(written(), DEADLINE)
        assert reader["default/web-0"] == written()
        for number in range(20):
            source.update(pod(spec={"nodeName": f"n{number}"}))
            assert reader.expect(written(), DEADLINE)
            assert reader["default/web-0"] == written()
        assert reader.wait_for_version(source.delete(pod()), DEADLINE)
        assert "default/web-0" not in reader
        assert reader.wait_for_version(source.bookmark(), DEADLINE)


def test_a_store_that_stands_still_is_said_to(store: Store, reader: Store) -> None:
    """While nothing comes from the source a write is not seen, and when it goes on it is."""
    source = MemorySource([pod()])
    with Reflector(source, "v1/Pod", store):
        assert reader.wait_for_sync(DEADLINE)
        source.pause()
        version = source.update(pod(n=1))
        assert not reader.expect(pod(version), timeout=0.01)
        source.resume()
        assert reader.expect(pod(version), DEADLINE)
        assert reader["default/web-0"]["n"] == 1


def test_a_write_to_an_api_server_is_read(store: Store, reader: Store) -> None:
    """What the official client's create returned is in the store once it was expected."""
    kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
    pytest.importorskip("msgspec", reason="needs the extra shmcache[kubernetes]")
    from shmcache.demo._api import Endpoint
    from shmcache.demo.apiserver import ApiServer

    with ApiServer() as server:
        client = Endpoint(server.url).connect().client
        api = kubernetes.client.CoreV1Api(client)
        with Reflector(list_watch_from_client(client, "pods"), "v1/Pod", store):
            for number in range(10):
                body = {"metadata": {"name": f"web-{number}"}, "spec": {"containers": []}}
                made = api.create_namespaced_pod("default", body)
                assert reader.expect(made, DEADLINE)
                found = reader[f"default/web-{number}"]["metadata"]
                assert found["resourceVersion"] == made.metadata.resource_version
        client.close()
