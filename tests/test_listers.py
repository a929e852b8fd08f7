"""The listers: which pods, nodes and services they find, and what they do with the rest."""

from __future__ import annotations

import multiprocessing
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

import shmcache
from shmcache import (
    FIFO,
    FieldSelector,
    LabelSelector,
    MsgspecCodec,
    NotFoundError,
    SelectorError,
    Store,
    StoreToNodeLister,
    StoreToPodLister,
    StoreToServiceLister,
    UndeltaStore,
)


def pod(name: str, namespace: str = "ns", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}}


def service(name: str, namespace: str = "ns", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def names(objs: list[Any]) -> list[str]:
    return sorted(obj["metadata"]["name"] for obj in objs)


class Model:
    """An object with the attributes that a mapping has as keys, labels and selectors aside."""

    def __init__(self, obj: dict[str, Any]) -> None:
        for key, value in obj.items():
            plain = key in ("labels", "selector") or not isinstance(value, dict)
            setattr(self, key, value if plain else Model(value))


class ListOf(list[Any]):
    """A store of objects that no codec could encode."""

    def get(self, obj: Any, default: Any = None) -> Any:
        key = shmcache.meta_namespace_key_func
        return next((found for found in self if key(found) == key(obj)), default)

    def list(self) -> Any:
        return self


PODS = [
    pod("web-0", app="web", tier="front"),
    pod("api-0", "other", app="api"),
    pod("db-0", app="db"),
    {"metadata": {"name": "bare", "namespace": "ns"}},
    {"metadata": {"name": "null", "namespace": "ns", "labels": None}},
]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, ["api-0", "bare", "db-0", "null", "web-0"]),
        ("", ["api-0", "bare", "db-0", "null", "web-0"]),
        ({}, ["api-0", "bare", "db-0", "null", "web-0"]),
        ("app=web", ["web-0"]),
        ("app in (web, api)", ["api-0", "web-0"]),
        ("app!=web", ["api-0", "bare", "db-0", "null"]),
        ("app,!tier", ["api-0", "db-0"]),
        ("app=nothing", []),
        ({"app": "web", "tier": "front"}, ["web-0"]),
        ({"app": "web", "tier": "back"}, []),
        (LabelSelector.parse("tier"), ["web-0"]),
    ],
    ids=str,
)
def test_pods_by_selector(store: Store, selector: Any, expected: list[str]) -> None:
    """Text, dicts and parsed selectors choose by labels, None chooses all; dicts and models."""
    store.add_many(PODS)
    assert names(StoreToPodLister(store).list(selector)) == expected
    models: Any = ListOf(Model(obj) for obj in PODS)
    found = StoreToPodLister(models).list(selector)
    assert sorted(model.metadata.name for model in found) == expected


def test_one_pod_by_its_label(store: Store) -> None:
    """A selector of equality gives exactly the pod that has the label; others exist beside it."""
    store.add_many([pod(app, app=app) for app in ("foo", "bar", "zab")])
    assert StoreToPodLister(store).list("app=foo") == [pod("foo", app="foo")]
    assert "ns/bar" in store
    assert "ns/none" not in store


def test_one_of_ten_by_label(name: str) -> None:
    """Of 100,000 pods a selector gives the 10,000 that match, all of them, or none."""
    with Store.create(name, capacity="256MiB") as store:
        store.replace([pod(f"pod-{i}", tenth=str(i % 10)) for i in range(100_000)])
        lister = StoreToPodLister(store)
        found = lister.list("tenth=3")
        assert {obj["metadata"]["name"] for obj in found} == {
            f"pod-{i}" for i in range(3, 100_000, 10)
        }
        assert len(found) == 10_000
        assert len(lister.list()) == len(lister.list("")) == 100_000
        assert lister.list("tenth=none") == []


def test_any_object_that_matches_is_a_selector(store: Store) -> None:
    """A selector of the caller's own class is asked with the labels of each pod."""
    store.add_many(PODS[:2])

    class Long:
        def matches(self, values: Any, /) -> bool:
            return len(values) == 2

    assert names(StoreToPodLister(store).list(Long())) == ["web-0"]


@pytest.mark.parametrize(
    ("selector", "error"),
    [
        ("app in (", SelectorError),
        (7, TypeError),
        (["app=web"], TypeError),
        (FieldSelector.parse("metadata.name=web-0"), TypeError),
    ],
)
def test_what_is_no_label_selector_is_refused(
    store: Store, selector: Any, error: type[Exception]
) -> None:
    """Bad text and selectors of fields are errors, also when the store is empty."""
    with pytest.raises(error):
        StoreToPodLister(store).list(selector)


def test_pods_are_the_stores_own(store: Store) -> None:
    """A lister copies nothing: it gives the shared, read-only objects of the store."""
    store.add(PODS[0])
    (found,) = StoreToPodLister(store).list("app=web")
    assert found is store.get_by_key("ns/web-0")


def test_nodes(store: Store) -> None:
    """list gives every node, get_node_info the one of that name."""
    lister = StoreToNodeLister(store)
    assert lister.list() == []
    nodes = [{"metadata": {"name": f"node-{i}"}, "n": i} for i in range(3)]
    store.replace(nodes)
    assert names(lister.list()) == ["node-0", "node-1", "node-2"]
    assert lister.get_node_info("node-1") == nodes[1]


def test_a_missing_node_is_named(store: Store) -> None:
    """A miss is a NotFoundError, which is a KeyError and pickles, with the name in its text."""
    with pytest.raises(NotFoundError, match=r"^node 'node-7' is not in the store$") as caught:
        StoreToNodeLister(store).get_node_info("node-7")
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, shmcache.ShmCacheError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_failing_lookup_is_not_a_miss(store: Store) -> None:
    """A key function that cannot look a node up is a KeyFuncError, and so is an empty name."""
    other = Store.attach(store.name, key_func=lambda obj: obj["id"])
    with other, pytest.raises(shmcache.KeyFuncError):
        StoreToNodeLister(other).get_node_info("node-1")
    with pytest.raises(shmcache.KeyFuncError):
        StoreToNodeLister(store).get_node_info("")


SERVICES = [
    service("web", selector={"app": "web"}),
    service("front", selector={"app": "web", "tier": "front"}),
    service("all", selector={}),
    service("api", selector={"app": "api"}),
    service("elsewhere", "other", selector={"app": "web"}),
    service("null", selector=None),
    service("manual"),
    {"metadata": {"name": "bare", "namespace": "ns"}},
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (pod("p", app="web", tier="front", extra="x"), ["all", "front", "web"]),
        (pod("p", app="web"), ["all", "web"]),
        (pod("p"), ["all"]),
        ({"metadata": {"name": "p", "namespace": "ns"}}, ["all"]),
        (pod("p", "other", app="web"), ["elsewhere"]),
    ],
)
def test_services_of_a_pod(store: Store, asked: Any, expected: list[str]) -> None:
    """Services of the pod's namespace whose selector it fulfils: {} always, none never."""
    store.add_many(SERVICES)
    lister = StoreToServiceLister(store)
    assert names(lister.list()) == sorted(obj["metadata"]["name"] for obj in SERVICES)
    assert names(lister.get_pod_services(asked)) == expected
    assert names(lister.get_pod_services(Model(asked))) == expected
    models: Any = ListOf(Model(obj) for obj in SERVICES)
    found = StoreToServiceLister(models).get_pod_services(asked)
    assert sorted(model.metadata.name for model in found) == expected


@pytest.mark.parametrize("namespace", ["other", "", "ns"])
def test_no_service_names_the_pod(store: Store, namespace: str) -> None:
    """Without a service that matches, a NotFoundError says for which pod."""
    store.add_many([service("web", selector={"app": "web"}), service("manual")])
    with pytest.raises(NotFoundError) as caught:
        StoreToServiceLister(store).get_pod_services(pod("p-0", namespace, app="db"))
    assert str(caught.value) == (
        f"no service for pod 'p-0' in namespace '{namespace}' with labels {{'app': 'db'}}"
    )


def test_a_missing_namespace_is_the_empty_one(store: Store) -> None:
    """No namespace, None and "" are one namespace."""
    store.add({"metadata": {"name": "s", "namespace": None}, "spec": {"selector": {"a": "b"}}})
    asked = {"metadata": {"name": "p", "labels": {"a": "b"}}}
    assert names(StoreToServiceLister(store).get_pod_services(asked)) == ["s"]


BAD = [7, "text", {"spec": {}}, {"metadata": None}, SimpleNamespace(), None]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_what_has_no_metadata_is_a_type_error(bad: Any) -> None:
    """An object that cannot be asked is refused where it stands, in a store or as the pod."""
    good: Any = ListOf([service("all", selector={})])
    holding: Any = ListOf([bad])
    with pytest.raises(TypeError, match="without metadata"):
        StoreToPodLister(holding).list("app=web")
    with pytest.raises(TypeError, match="without metadata"):
        StoreToServiceLister(holding).get_pod_services(PODS[0])
    with pytest.raises(TypeError, match="without metadata"):
        StoreToServiceLister(good).get_pod_services(bad)


def test_labels_and_selectors_are_mappings(store: Store) -> None:
    """Labels or a selector of another type are a TypeError that names the object."""
    store.add({"metadata": {"name": "odd", "labels": ["app"]}, "spec": {"selector": "app=web"}})
    with pytest.raises(TypeError, match=r"/odd whose metadata\.labels are no mapping"):
        StoreToPodLister(store).list("app")
    with pytest.raises(TypeError, match=r"/odd whose spec\.selector is no mapping"):
        StoreToServiceLister(store).get_pod_services(pod("p", ""))


def test_structs(name: str) -> None:
    """Typed objects work too: a struct's field that is not set is no selector."""
    msgspec = pytest.importorskip("msgspec")
    unset = dict[str, str] | msgspec.UnsetType
    meta = msgspec.defstruct(
        "Meta", [("name", str), ("namespace", str, ""), ("labels", unset, msgspec.UNSET)]
    )
    spec = msgspec.defstruct("Spec", [("selector", unset, msgspec.UNSET)])
    kind = msgspec.defstruct("Object", [("metadata", meta), ("spec", spec)])
    labels = {"app": "web"}
    objs = [
        kind(meta("all"), spec({})),
        kind(meta("web", "", labels), spec(labels)),
        kind(meta("manual"), spec()),
    ]
    with Store.create(name, codec=MsgspecCodec(kind), capacity="1MiB") as store:
        store.replace(objs)
        assert StoreToPodLister(store).list("app=web") == [objs[1]]
        assert StoreToNodeLister(store).get_node_info("web") == objs[1]
        found = StoreToServiceLister(store).get_pod_services(objs[1])
        assert sorted(obj.metadata.name for obj in found) == ["all", "web"]
        assert StoreToServiceLister(store).get_pod_services(objs[2]) == [objs[0]]


def test_over_any_store(store: Store, fifo: FIFO) -> None:
    """A queue, a pushing store and a read-only handle are read like a store."""
    pushing = UndeltaStore(lambda objs: None, store=fifo)
    for filled in (store, pushing):
        filled.replace([*PODS, {"metadata": {"name": "node-1"}}])
    with Store.attach(store.name) as reader:
        for any_store in (store, fifo, pushing, reader):
            assert names(StoreToPodLister(any_store).list("app in (db)")) == ["db-0"]
            assert names([StoreToNodeLister(any_store).get_node_info("node-1")]) == ["node-1"]


def ask(pods: StoreToPodLister, nodes: StoreToNodeLister, services: StoreToServiceLister) -> None:
    assert names(pods.list("app in (web, api)")) == ["api-0", "web-0"]
    assert services.list() == []
    with pytest.raises(NotFoundError, match="'node-1'"):
        nodes.get_node_info("node-1")
    store: Any = pods.store
    assert not store.writable


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_listers_go_to_other_processes(store: Store, fifo: FIFO, method: str, run_all: Any) -> None:
    """A lister pickles with its store, and answers in other processes through a read-only one."""
    store.replace(PODS)
    context = multiprocessing.get_context(method)
    with Store.attach(store.name) as reader:
        listers = (
            StoreToPodLister(reader),
            StoreToNodeLister(reader),
            StoreToServiceLister(fifo),
        )
        run_all([context.Process(target=ask, args=listers) for _ in range(2)])
