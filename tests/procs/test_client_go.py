"""Each type and function of client-go's cache package, from several processes at once.

The objects are of three shapes: dicts, structs that a codec decodes into, and objects of a plain
class with attributes, by a codec of its own.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import shmcache
from shmcache import (
    FIFO,
    Codec,
    Event,
    Indexer,
    ListOptions,
    ListResult,
    ListWatch,
    MsgpackCodec,
    MsgspecCodec,
    Poller,
    Reflector,
    Store,
    StoreToNodeLister,
    StoreToPodLister,
    StoreToServiceLister,
    UndeltaStore,
    WatchOptions,
    meta_namespace_index_func,
    meta_namespace_key_func,
)
from shmcache.sources.directory import DirectorySource
from shmcache.sources.memory import MemorySource
from tests.procs.elsewhere import Elsewhere, ask, attach, elsewhere

msgspec: Any = pytest.importorskip("msgspec", reason="needs the extra shmcache[msgspec]")

DEADLINE = 60.0
SIZE = "4MiB"


# --- shapes of objects ----------------------------------------------------------------------------


class Meta(msgspec.Struct, frozen=True):  # type: ignore[misc, call-arg]
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012 (msgspec copies it)


class Pod(msgspec.Struct, frozen=True):  # type: ignore[misc, call-arg]
    metadata: Meta
    node: str = ""


@dataclass(frozen=True)
class ModelMeta:
    name: str
    namespace: str
    labels: dict[str, str]


class Model:
    """What a client library hands out: attributes, and nothing that a codec knows."""

    def __init__(self, metadata: ModelMeta, node: str) -> None:
        self.metadata, self.node = metadata, node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class ModelCodec:
    """Models as JSON."""

    name: ClassVar[str] = "model"

    def encode(self, obj: Model) -> bytes:
        return json.dumps([vars(obj.metadata), obj.node]).encode()

    def decode(self, data: bytes | memoryview) -> Model:
        meta, node = json.loads(bytes(data))
        return Model(ModelMeta(**meta), node)


def make_dict(name: str, namespace: str, labels: dict[str, str], node: str) -> Any:
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}, "node": node}


def make_struct(name: str, namespace: str, labels: dict[str, str], node: str) -> Any:
    return Pod(Meta(name, namespace, labels), node)


def make_model(name: str, namespace: str, labels: dict[str, str], node: str) -> Any:
    return Model(ModelMeta(name, namespace, labels), node)


def by_node(obj: Any) -> list[str]:
    node = obj["node"] if isinstance(obj, dict) else obj.node
    return [node] if node else []


@dataclass(frozen=True)
class Shape:
    """A shape of objects, and the codec for it."""

    make: Callable[[str, str, dict[str, str], str], Any]
    codec: Codec

    def pod(self, name: str, node: str = "", namespace: str = "ns", **labels: str) -> Any:
        return self.make(name, namespace, labels, node)


SHAPES = {
    "dict": Shape(make_dict, MsgpackCodec()),
    "struct": Shape(make_struct, MsgspecCodec(Pod)),
    "model": Shape(make_model, ModelCodec()),
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture
def two() -> Iterator[list[Elsewhere]]:
    with elsewhere(2) as processes:
        yield processes


def names(objs: list[Any]) -> list[str]:
    """Theirs, in order, whatever shape they have."""
    return sorted(meta_namespace_key_func(obj).rpartition("/")[2] for obj in objs)


# --- Store, KeyFunc -------------------------------------------------------------------------------


def test_store(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """What one process adds, updates, deletes and replaces, others get, list and find by key, and
    who is attached read-only cannot write."""
    writer, reader = two
    with Store.create(name, codec=shape.codec, capacity=SIZE) as own:
        writer.run(attach, Store, name, writable=True, codec=shape.codec)
        reader.run(attach, Store, name, codec=shape.codec)
        writer.run(ask, "add", shape.pod("a", "n1"))
        writer.run(ask, "add", shape.pod("b", "n1", app="web"))
        writer.run(ask, "update", shape.pod("a", "n2"))
        for got in (reader.run(ask, "get", shape.pod("a")), own.get_by_key("ns/a")):
            assert got == shape.pod("a", "n2")
        assert reader.run(ask, "get_by_key", "ns/b") == shape.pod("b", "n1", app="web")
        assert reader.run(ask, "get_by_key", "ns/c") is None
        assert names(reader.run(ask, "list")) == names(own.list()) == ["a", "b"]
        reader.run(_refused, "add", shape.pod("c"))
        own.delete(shape.pod("a"))
        assert names(reader.run(ask, "list")) == ["b"]
        writer.run(ask, "replace", [shape.pod("c", "n3"), shape.pod("d")], "7")
        assert reader.run(_synced) == "7"
        assert sorted(reader.run(ask, "list_keys")) == sorted(own) == ["ns/c", "ns/d"]
        assert reader.run(ask, "get_by_key", "ns/c") == shape.pod("c", "n3")
        assert own.check() == []


def _refused(own: SimpleNamespace, method: str, *args: Any) -> None:
    with pytest.raises(shmcache.ReadOnlyError):
        getattr(own.store, method)(*args)


def _synced(own: SimpleNamespace) -> str:
    assert own.store.wait_for_sync(DEADLINE)
    version: str = own.store.resource_version
    return version


def by_uid(obj: Any) -> str:
    uid: str = obj["uid"]
    return uid


def test_key_func(name: str, two: list[Elsewhere]) -> None:
    """With a key function of the user's, handed to each process, all agree on the keys."""
    writer, reader = two
    with Store.create(name, key_func=by_uid, capacity=SIZE) as own:
        writer.run(attach, Store, name, writable=True, key_func=by_uid)
        reader.run(attach, Store, name, key_func=by_uid)
        writer.run(ask, "add", {"uid": "u1", "n": 1})
        assert reader.run(ask, "get", {"uid": "u1"}) == {"uid": "u1", "n": 1}
        assert own.list_keys() == ["u1"]


def test_meta_namespace_functions(two: list[Elsewhere], shape: Shape) -> None:
    """meta_namespace_key_func and _index_func say the same of an object in every process."""
    objs = [shape.pod("a"), shape.pod("b", namespace="")]
    for process in two:
        assert process.run(_keys, objs) == [("ns/a", ["ns"]), ("b", [""])]


def _keys(own: SimpleNamespace, objs: list[Any]) -> list[tuple[str, list[str]]]:
    return [(meta_namespace_key_func(obj), meta_namespace_index_func(obj)) for obj in objs]


# --- Indexer --------------------------------------------------------------------------------------


def test_indexer(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """One process writes; others, one of them without any function, find by every index what the
    objects say, after each add, update, delete and replace."""
    writer, reader = two
    functions = {"node": by_node, "namespace": meta_namespace_index_func}
    with Indexer.create(name, codec=shape.codec, indexers=functions, capacity=SIZE) as own:
        options = {"codec": shape.codec, "indexers": functions}
        writer.run(attach, Indexer, name, writable=True, **options)
        reader.run(attach, Indexer, name, codec=shape.codec)
        for pod in ("a", "b"):
            writer.run(ask, "add", shape.pod(pod, "n1"))
        writer.run(ask, "add", shape.pod("c"))

        def found(value: str) -> list[str]:
            there = names(reader.run(ask, "by_index", "node", value))
            assert there == names(own.by_index("node", value))
            keys = reader.run(ask, "index_keys", "node", value)
            assert keys == [f"ns/{pod}" for pod in there]
            return there

        assert (found("n1"), found("n2")) == (["a", "b"], [])
        writer.run(ask, "update", shape.pod("a", "n2"))
        assert (found("n1"), found("n2")) == (["b"], ["a"])
        assert reader.run(ask, "by_index", "node", "n2") == [shape.pod("a", "n2")]
        assert names(writer.run(ask, "index", "node", shape.pod("probe", "n1"))) == ["b"]
        assert names(reader.run(ask, "by_index", "namespace", "ns")) == ["a", "b", "c"]
        own.delete(shape.pod("a", "elsewhere"))
        assert reader.run(ask, "list_index_func_values", "node") == ["n1"]
        writer.run(ask, "replace", [shape.pod("d", "n2"), shape.pod("e", "n2")], "3")
        assert (found("n1"), found("n2")) == ([], ["d", "e"])
        assert own.check() == []


def by_app(obj: Any) -> list[str]:
    return [obj["metadata"]["labels"].get("app", "none")]


def test_add_indexers(name: str, two: list[Elsewhere]) -> None:
    """An index that one process adds is there for readers that were attached before, over old and
    new objects; a writer elsewhere that lacks the function is refused until it is told it."""
    adder, writer = two
    pod = SHAPES["dict"].pod
    with (
        Indexer.create(name, indexers={"node": by_node}, capacity=SIZE) as own,
        Indexer.attach(name) as reader,
    ):
        own.add_many([pod("a", app="web"), pod("b", app="db")])
        for process in two:
            process.run(attach, Indexer, name, writable=True, indexers={"node": by_node})
        adder.run(ask, "add_indexers", {"app": by_app})
        assert names(reader.by_index("app", "web")) == ["a"]
        assert reader.get_indexers() == {"node": None, "app": None}
        writer.run(_lacks, "app", pod("c", app="web"))
        writer.run(ask, "use_indexers", {"app": by_app})
        writer.run(ask, "add", pod("c", app="web"))
        assert names(reader.by_index("app", "web")) == ["a", "c"]
        assert sorted(adder.run(ask, "list_index_func_values", "app")) == ["db", "web"]
        assert own.check() == []


def _lacks(own: SimpleNamespace, index: str, obj: Any) -> None:
    with pytest.raises(shmcache.IndexNotFoundError, match=f"no function for index '{index}'"):
        own.store.add(obj)


# --- FIFO -----------------------------------------------------------------------------------------


def test_fifo(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """A key is queued once, its newest version wins and its place is kept, whoever added it;
    deleted items are not popped, and each item goes to exactly one of two popping processes."""
    with FIFO.create(name, codec=shape.codec, capacity=SIZE) as own:
        for process in two:
            process.run(attach, FIFO, name, codec=shape.codec)
        first, second = two
        first.run(ask, "add", shape.pod("a", "old"))
        second.run(ask, "add", shape.pod("b"))
        first.run(ask, "add", shape.pod("c"))
        second.run(ask, "update", shape.pod("a", "new"))
        assert second.run(ask, "add_if_not_present", shape.pod("a", "other")) is False
        assert second.run(ask, "add_if_not_present", shape.pod("d")) is True
        own.delete(shape.pod("b"))
        assert first.run(ask, "get", shape.pod("a")) == shape.pod("a", "new")
        assert first.run(ask, "get_by_key", "ns/b") is None
        assert names(second.run(ask, "list")) == ["a", "c", "d"]
        assert second.run(ask, "pop", DEADLINE) == shape.pod("a", "new")
        assert first.run(ask, "pop", DEADLINE) == shape.pod("c")
        second.run(ask, "replace", [shape.pod("e"), shape.pod("d")], "9")
        first.tell(ask, "pop_many", 1, DEADLINE)
        second.tell(ask, "pop_many", 1, DEADLINE)
        assert names(first.answer() + second.answer()) == ["d", "e"]
        first.tell(ask, "pop", DEADLINE)  # which sleeps, there or not yet
        own.add(shape.pod("f"))
        assert first.answer() == shape.pod("f")
        second.run(_finds_it_empty)
        assert own.check() == []


def _finds_it_empty(own: SimpleNamespace) -> None:
    with pytest.raises(queue.Empty):
        own.store.pop(0)


# --- UndeltaStore, Poller -------------------------------------------------------------------------


def test_undelta_store(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """Every change through it is one push of the complete list in its process, and another process
    reads each of those states from the store behind it."""
    pushing, reader = two
    with Store.create(name, codec=shape.codec, capacity=SIZE) as own:
        pushing.run(_push, name, shape.codec)
        reader.run(attach, Store, name, codec=shape.codec)
        changes: list[tuple[str, Any]] = [
            ("add", shape.pod("a")),
            ("add", shape.pod("b", "n1")),
            ("update", shape.pod("a", "n2")),
            ("delete", shape.pod("b")),
            ("replace", [shape.pod("c"), shape.pod("d")]),
        ]
        for count, (method, argument) in enumerate(changes, 1):
            pushing.run(ask, method, argument)
            pushes = pushing.run(_pushes)
            assert len(pushes) == count
            read = reader.run(ask, "list")
            assert names(read) == names(pushes[-1])
            assert all(obj in pushes[-1] for obj in read)
        assert pushing.run(ask, "get_by_key", "ns/c") == shape.pod("c")
        own.add(shape.pod("past"))
        assert pushing.run(_pushes) == pushes
        assert names(pushing.run(ask, "list")) == ["c", "d", "past"]


def _push(own: SimpleNamespace, name: str, codec: Codec) -> None:
    own.pushes = []
    own.store = UndeltaStore(
        own.pushes.append, store=Store.attach(name, writable=True, codec=codec)
    )


def _pushes(own: SimpleNamespace) -> Any:
    return own.pushes


def test_poller(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """What get_func returns in one process is what the others read, complete in each round, and
    a round that fails leaves them what they had."""
    polling, reader = two
    with Store.create(name, codec=shape.codec, capacity=SIZE) as own:
        reader.run(attach, Store, name, codec=shape.codec)
        polling.run(_poll, name, shape)
        assert reader.run(ask, "wait_for_sync", DEADLINE)
        seen: set[tuple[str, ...]] = set()
        while len(seen) < 4:
            seen.add(tuple(names(reader.run(ask, "list"))))
        states = [tuple(f"p{i}" for i in range(count)) for count in range(1, 5)]
        assert seen == set(states)
        polls, errors = polling.run(_end_poller)
        assert polls >= 4
        assert errors >= 1
        assert tuple(names(own.list())) in states


def _poll(own: SimpleNamespace, name: str, shape: Shape) -> None:
    rounds = iter(range(1 << 30))

    def get() -> Iterator[Any]:
        count = next(rounds) % 5
        if count == 0:  # the first round too
            raise TimeoutError
        return iter([shape.pod(f"p{i}") for i in range(count)])

    own.store = Store.attach(name, writable=True, codec=shape.codec)
    own.poller = Poller(get, 0.001, own.store)
    own.poller.start()


def _end_poller(own: SimpleNamespace) -> tuple[int, int]:
    assert own.poller.stop(DEADLINE)
    stats = own.poller.stats()
    return stats.polls, stats.errors


# --- Reflector, ListWatch, ListerWatcher ----------------------------------------------------------


def _reflect_memory(own: SimpleNamespace, name: str, codec: Codec, transform: Any) -> None:
    own.source = MemorySource([_listed("a"), _listed("b")])
    own.store = Store.attach(name, writable=True, codec=codec)
    functions = ListWatch(own.source.list, own.source.watch)
    own.reflector = Reflector(functions, "v1/Pod", own.store, transform=transform)
    own.reflector.start()


def _listed(name: str, node: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns"}, "node": node}


def _at_the_source(own: SimpleNamespace, method: str, *args: Any) -> Any:
    return getattr(own.source, method)(*args)


def _end_reflector(own: SimpleNamespace) -> tuple[int, int]:
    assert own.reflector.stop(DEADLINE)
    stats = own.reflector.stats()
    return stats.lists, stats.errors


def _await(store: Store, key: str, wanted: bool) -> None:
    while (key in store) != wanted:
        version = store.version
        if (key in store) != wanted:
            store.wait_for_change(version, DEADLINE)


def as_dict(obj: dict[str, Any]) -> Any:
    return make_dict(obj["metadata"]["name"], "ns", {}, obj["node"])


def as_struct(obj: dict[str, Any]) -> Any:
    return msgspec.convert(obj, Pod)


def as_model(obj: dict[str, Any]) -> Any:
    return make_model(obj["metadata"]["name"], "ns", {}, obj["node"])


@pytest.mark.parametrize("transform", [as_dict, as_struct, as_model])
def test_reflector_and_list_watch(name: str, two: list[Elsewhere], transform: Any) -> None:
    """A reflector over a ListWatch of two functions in one process: the others read its list, then
    each addition, change and deletion of the watch, in the shape that transform gives."""
    shape = SHAPES[transform.__name__.removeprefix("as_")]
    filling, reader = two
    with Store.create(name, codec=shape.codec, capacity=SIZE) as own:
        reader.run(attach, Store, name, codec=shape.codec)
        filling.run(_reflect_memory, name, shape.codec, transform)
        assert reader.run(ask, "wait_for_sync", DEADLINE)
        assert names(reader.run(ask, "list")) == ["a", "b"]
        filling.run(_at_the_source, "add", _listed("c", "n1"))
        _await(own, "ns/c", True)
        assert reader.run(ask, "get_by_key", "ns/c") == shape.pod("c", "n1")
        filling.run(_at_the_source, "update", _listed("a", "n2"))
        filling.run(_at_the_source, "delete", "ns/b")
        _await(own, "ns/b", False)
        assert reader.run(ask, "get_by_key", "ns/a") == shape.pod("a", "n2")
        assert names(reader.run(ask, "list")) == ["a", "c"]
        assert filling.run(_end_reflector) == (1, 0)


def _reflect_directory(own: SimpleNamespace, kind: Any, name: str, path: str) -> None:
    own.store = kind.attach(name, writable=True)
    own.reflector = Reflector(DirectorySource(path), "v1/Pod", own.store)
    own.reflector.start()


@pytest.mark.parametrize("kind", [Store, Indexer, FIFO])
def test_reflector_and_directory(
    name: str, two: list[Elsewhere], kind: type[Store], tmp_path: Path
) -> None:
    """A reflector in one process follows a folder; others read, find by index or pop what is in
    its files."""
    pytest.importorskip("watchfiles", reason="needs the extra shmcache[directory]")
    pytest.importorskip("yaml", reason="needs the extra shmcache[directory]")
    filling, other = two

    def write(pod: str) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "Pod", **_listed(pod)})
        (tmp_path / ".new").write_text(text)
        (tmp_path / ".new").rename(tmp_path / f"{pod}.json")

    write("a")
    with kind.create(name, capacity=SIZE) as own:
        other.run(attach, kind, name)
        filling.run(_reflect_directory, kind, name, str(tmp_path))
        if kind is FIFO:
            assert other.run(ask, "pop", DEADLINE)["metadata"]["name"] == "a"
            write("b")
            assert other.run(ask, "pop", DEADLINE)["metadata"]["name"] == "b"
        else:
            _await(own, "ns/a", True)
            write("b")
            _await(own, "ns/b", True)
            assert names(other.run(ask, "list")) == ["a", "b"]
            (tmp_path / "a.json").unlink()
            _await(own, "ns/a", False)
            if kind is Indexer:
                assert names(other.run(ask, "by_index", "namespace", "ns")) == ["b"]
        assert filling.run(_end_reflector) == (1, 0)


class Once:
    """A source with nothing but the two methods."""

    def list(self, options: ListOptions) -> ListResult[Any]:
        return ListResult([_listed("a")], "1")

    def watch(self, options: WatchOptions) -> Iterator[Event[Any]]:
        added = _listed("b")
        added["metadata"]["resourceVersion"] = "2"
        return iter([Event("ADDED", added)] if options.resource_version == "1" else [])


def _reflect_once(own: SimpleNamespace, name: str) -> None:
    own.store = Store.attach(name, writable=True)
    own.reflector = Reflector(Once(), None, own.store)
    own.reflector.start()


def test_lister_watcher(name: str, two: list[Elsewhere]) -> None:
    """Any object with list and watch feeds a reflector, and its objects reach other processes."""
    filling, reader = two
    with Store.create(name, capacity=SIZE) as own:
        reader.run(attach, Store, name)
        filling.run(_reflect_once, name)
        _await(own, "ns/b", True)
        assert names(reader.run(ask, "list")) == ["a", "b"]
        filling.run(_end_reflector)


def _feed(own: SimpleNamespace, name: str) -> None:
    own.source = MemorySource([_listed("a")])
    own.pushes = []
    own.store = UndeltaStore(own.pushes.append, store=Store.attach(name, writable=True))
    own.reflector = Reflector(own.source, "v1/Pod", own.store)
    own.reflector.start()


def _count_pushes(own: SimpleNamespace, count: int) -> list[list[str]]:
    """The names in the first ``count`` pushes."""
    while len(own.pushes) < count:
        own.store.store.wait_for_change(own.store.store.version, 0.01)
    return [names(push) for push in own.pushes[:count]]


def test_reflector_and_undelta_store(name: str, two: list[Elsewhere]) -> None:
    """A reflector that fills an UndeltaStore pushes each complete state in its own process; another
    reads the objects, and the reflector's state, of the store behind it."""
    filling, reader = two
    with Store.create(name, capacity=SIZE):
        reader.run(attach, Store, name)
        filling.run(_feed, name)
        assert reader.run(ask, "wait_for_sync", DEADLINE)
        filling.run(_at_the_source, "add", _listed("b"))
        filling.run(_at_the_source, "delete", "ns/a")
        assert filling.run(_count_pushes, 3) == [["a"], ["a", "b"], ["b"]]
        assert names(reader.run(ask, "list")) == ["b"]
        status = reader.run(ask, "reflector_status")
        assert (status.alive, status.pid, status.name) == (True, filling.pid, "v1/Pod")
        filling.run(_end_reflector)


# --- listers --------------------------------------------------------------------------------------


def _list_by(own: SimpleNamespace, lister: Any, method: str, *args: Any) -> Any:
    """Ask a lister over the read-only handle of this process."""
    assert not own.store.writable
    return getattr(lister(own.store), method)(*args)


def _not_found(own: SimpleNamespace, lister: Any, method: str, *args: Any) -> None:
    with pytest.raises(shmcache.NotFoundError):
        getattr(lister(own.store), method)(*args)


def test_pod_lister(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """Pods that one process wrote another lists by label selector, in each syntax."""
    with Store.create(name, codec=shape.codec, capacity=SIZE) as own:
        for process in two:
            process.run(attach, Store, name, codec=shape.codec)
        own.add_many([shape.pod("a", app="web"), shape.pod("b", app="db"), shape.pod("c")])
        expected: list[tuple[Any, list[str]]] = [
            (None, ["a", "b", "c"]),
            ("app in (web, api)", ["a"]),
            ({"app": "db"}, ["b"]),
            (shmcache.LabelSelector.of("!app"), ["c"]),
        ]
        for selector, wanted in expected:
            for process in two:
                found = process.run(_list_by, StoreToPodLister, "list", selector)
                assert names(found) == wanted


def test_node_lister(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """Nodes that one process wrote another lists and gets by name, and misses by NotFoundError."""
    with Store.create(name, codec=shape.codec, capacity=SIZE) as own:
        for process in two:
            process.run(attach, Store, name, codec=shape.codec)
        own.replace([shape.pod("n1", namespace="", zone="x"), shape.pod("n2", namespace="")])
        for process in two:
            found = process.run(_list_by, StoreToNodeLister, "list")
            assert names(found) == ["n1", "n2"]
            got = process.run(_list_by, StoreToNodeLister, "get_node_info", "n1")
            assert got == shape.pod("n1", namespace="", zone="x")
            process.run(_not_found, StoreToNodeLister, "get_node_info", "n3")


class Spec(msgspec.Struct, frozen=True):  # type: ignore[misc, call-arg]
    selector: dict[str, str] | None = None


class Service(msgspec.Struct, frozen=True):  # type: ignore[misc, call-arg]
    metadata: Meta
    spec: Spec


SERVICES = [
    {"metadata": {"name": "web", "namespace": "ns"}, "spec": {"selector": {"app": "web"}}},
    {"metadata": {"name": "all", "namespace": "ns"}, "spec": {"selector": {}}},
    {"metadata": {"name": "none", "namespace": "ns"}, "spec": {}},
    {"metadata": {"name": "far", "namespace": "other"}, "spec": {"selector": {"app": "web"}}},
]


def test_service_lister(name: str, two: list[Elsewhere], shape: Shape) -> None:
    """The services of a pod, of whatever shape it is, are found by a process that reads them as
    structs and by one that reads them as dicts, from a writer of dicts."""
    with Store.create(name, capacity=SIZE) as own:
        own.replace(SERVICES, "1")
        reader, other = two
        reader.run(attach, Store, name, codec=MsgspecCodec(Service))
        other.run(attach, Store, name)
        pod = shape.pod("p", app="web")
        ask_for = (_list_by, StoreToServiceLister, "get_pod_services", pod)
        keys = [meta_namespace_key_func(service) for service in reader.run(*ask_for)]
        assert sorted(keys) == ["ns/all", "ns/web"]
        assert names(other.run(*ask_for)) == ["all", "web"]
        assert len(reader.run(_list_by, StoreToServiceLister, "list")) == 4
        far = shape.pod("p", namespace="third")
        reader.run(_not_found, StoreToServiceLister, "get_pod_services", far)
