"""UndeltaStore: one push of the complete list per change, in the order of the changes."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Mapping
from typing import Any

import pytest

import shmcache
from shmcache import (
    FIFO,
    Event,
    ListResult,
    ListWatch,
    Poller,
    Reflector,
    ReflectorStore,
    Store,
    UndeltaStore,
)

DEADLINE = 30.0


def pod(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns"}, **fields}


class Pushed(list[dict[str, Any]]):
    """Every push: name to what is in field n."""

    def __call__(self, objs: list[Any]) -> None:
        self.append({obj["metadata"]["name"]: obj.get("n") for obj in objs})


@pytest.fixture
def pushed() -> Pushed:
    return Pushed()


@pytest.fixture
def made(pushed: Pushed, store: Store) -> UndeltaStore:
    return UndeltaStore(pushed, store=store)


def test_each_change_is_one_push_of_everything(made: UndeltaStore, pushed: Pushed) -> None:
    """add, update, delete, delete_by_key, add_many and replace push the full list once each."""
    made.add(pod("a", n=1))
    made.add(pod("b", n=1))
    made.update(pod("a", n=2))
    made.delete(pod("b"))
    made.add_many([pod("c", n=3), pod("d", n=4)])
    made.delete_by_key("ns/c")
    made.replace([pod("e", n=5), pod("e", n=6)], "42")
    made.delete(pod("e"))
    assert pushed == [
        {"a": 1},
        {"a": 1, "b": 1},
        {"a": 2, "b": 1},
        {"a": 2},
        {"a": 2, "c": 3, "d": 4},
        {"a": 2, "d": 4},
        {"e": 6},
        {},
    ]
    assert made.resource_version == "42"


def test_a_change_of_nothing_is_a_push_too(made: UndeltaStore, pushed: Pushed) -> None:
    """Deleting the unknown, and writing what is there already, push once each."""
    made.delete(pod("unknown"))
    made.delete_by_key("unknown")
    made.replace([])
    made.add_many([])
    assert pushed == [{}, {}, {}, {}]


def test_a_failed_write_pushes_nothing(made: UndeltaStore, pushed: Pushed) -> None:
    """A write that raises leaves the content as it was, and nobody is told."""
    made.add(pod("a", n=1))
    for write in (made.add, made.update, made.delete):
        with pytest.raises(shmcache.KeyFuncError):
            write({"no": "metadata"})
    for write_all in (made.add_many, made.replace):
        with pytest.raises(shmcache.KeyFuncError):
            write_all([pod("b"), {}])
        with pytest.raises(shmcache.CodecError):
            write_all([pod("b", bad={1})])
    assert pushed == [{"a": 1}]
    assert made.list() == [pod("a", n=1)]


def test_reads_are_the_stores_and_push_nothing(made: UndeltaStore, store: Store) -> None:
    """Every way to read gives what the store behind gives, and none pushes."""
    store.replace([pod("a", n=1), pod("b", n=2)], "7")

    def push(objs: list[Any]) -> None:
        raise AssertionError("pushed by a read")

    made = UndeltaStore(push, store=store)
    assert made.get(pod("a")) is store.get(pod("a"))
    assert made.get(pod("c"), "nothing") == "nothing"
    assert made.get_by_key("ns/a") is made["ns/a"] is store["ns/a"]
    assert made.get_by_key("ns/c") is None
    assert made.list() == store.list()
    assert made.list_keys() == list(made) == list(made.keys()) == store.list_keys()
    assert dict(made) == dict(made.items()) == dict(store)
    assert list(made.values()) == store.list()
    assert ("ns/a" in made, "ns/c" in made, 7 in made, len(made)) == (True, False, False, 2)
    assert (made.resource_version, made.has_synced, made.wait_for_sync(0)) == ("7", True, True)
    assert (made.name, made.store) == (store.name, store)
    with pytest.raises(KeyError):
        made["ns/c"]
    with pytest.raises(TypeError, match="read-only"):
        made["ns/a"]["n"] = 2


def test_it_is_what_reflectors_and_listers_take(made: UndeltaStore) -> None:
    """It is a Mapping, a ReflectorStore and a ListerStore; equal to itself alone, and hashable."""
    assert isinstance(made, Mapping)
    assert isinstance(made, ReflectorStore)
    assert isinstance(made, shmcache.ListerStore)
    assert made == made
    assert made != UndeltaStore(print, store=made.store)
    assert len({made, made}) == 1


def test_the_pushed_list_is_the_receivers(made: UndeltaStore, store: Store) -> None:
    """What a push does to its list changes neither the store nor the next list."""
    seen: list[int] = []

    def push(objs: list[Any]) -> None:
        seen.append(len(objs))
        objs.clear()

    made = UndeltaStore(push, store=store)
    made.add(pod("a"))
    made.add(pod("b"))
    assert seen == [1, 2]
    assert len(made.list()) == 2


def test_a_raising_push_reaches_the_writer_and_the_write_stands(store: Store) -> None:
    """The exception of push_func comes out of the write, after which the store works on."""
    answers = [OSError("no disk"), None]

    def push(objs: list[Any]) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    made = UndeltaStore(push, store=store)
    with pytest.raises(OSError, match="no disk"):
        made.add(pod("a"))
    assert made.list_keys() == ["ns/a"]
    other = threading.Thread(target=made.add, args=(pod("b"),))  # the lock was let go
    other.start()
    other.join(DEADLINE)
    assert not other.is_alive()
    assert answers == []


def test_push_may_read_and_write_the_store(store: Store) -> None:
    """A push that changes the store pushes again, inside, with the newer state."""
    pushes: list[list[str]] = []

    def push(objs: list[Any]) -> None:
        pushes.append(sorted(made.list_keys()))
        if "ns/marker" not in made:
            made.add(pod("marker"))

    made = UndeltaStore(push, store=store)
    made.add(pod("a"))
    made.add(pod("b"))
    assert pushes == [["ns/a"], ["ns/a", "ns/marker"], ["ns/a", "ns/b", "ns/marker"]]


def test_threads_push_once_per_change_in_its_order(made: UndeltaStore, pushed: Pushed) -> None:
    """Four threads that add: each push has exactly one entry more than the one before."""
    start = threading.Barrier(4)

    def write(thread: int) -> None:
        start.wait(DEADLINE)
        for i in range(50):
            made.add(pod(f"{thread}-{i}", n=i))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(push) for push in pushed] == list(range(1, 201))
    assert all(one.items() < next_.items() for one, next_ in itertools.pairwise(pushed))


def test_a_store_of_its_own_goes_with_it(pushed: Pushed) -> None:
    """Without a store it makes one, with the key function; close removes the name, twice too."""
    with UndeltaStore(pushed, lambda obj: obj["id"]) as made:
        made.add({"id": "x", "metadata": {"name": "a"}})
        assert made.list_keys() == ["x"]
        with Store.attach(made.name) as reader:
            assert reader.list_keys() == ["x"]
        assert made.name in [arena.name for arena in shmcache.list_arenas()]
    assert made.name not in [arena.name for arena in shmcache.list_arenas()]
    with pytest.raises(shmcache.ClosedError):
        made.add({"id": "y"})
    made.close()
    assert len(pushed) == 1
    assert repr(made) == f"<UndeltaStore over {made.store!r}>"


def test_a_given_store_stays(made: UndeltaStore, store: Store) -> None:
    """close leaves a store that was given open, and its name in place."""
    made.close()
    assert not store.closed
    Store.attach(made.name).close()


def test_arguments_are_checked(store: Store) -> None:
    """push_func must be callable, and a key function that the given store has not is refused."""
    not_callable: Any = None
    with pytest.raises(TypeError, match="push_func must be callable"):
        UndeltaStore(not_callable)
    with pytest.raises(ValueError, match="key_func is for a new store"):
        UndeltaStore(print, lambda obj: "k", store)
    no_store: Any = "pods"
    with pytest.raises(TypeError, match="store must be a Store or None, not 'pods'"):
        UndeltaStore(print, store=no_store)
    key_func = lambda obj: obj["id"]  # noqa: E731
    with Store.create(key_func=key_func, capacity="1MiB") as other:
        other.unlink()
        UndeltaStore(lambda objs: None, key_func, other).add({"id": "x"})
        assert other.list_keys() == ["x"]


def test_over_a_fifo(fifo: FIFO, pushed: Pushed) -> None:
    """Over a queue it pushes the items not yet popped."""
    made = UndeltaStore(pushed, store=fifo)
    made.add(pod("a", n=1))
    made.add(pod("b", n=2))
    assert fifo.pop() == pod("a", n=1)
    made.update(pod("b", n=3))
    assert pushed == [{"a": 1}, {"a": 1, "b": 2}, {"b": 3}]


def test_a_read_only_store_pushes_nothing(store: Store, pushed: Pushed) -> None:
    """Over a read-only handle every write is refused and none is pushed."""
    with Store.attach(store.name) as reader:
        made = UndeltaStore(pushed, store=reader)
        with pytest.raises(shmcache.ReadOnlyError):
            made.add(pod("a"))
    assert pushed == []


def test_a_reflector_fills_it(made: UndeltaStore, pushed: Pushed) -> None:
    """Behind a reflector each list and each event is a push of the state after it."""

    def versioned(name: str, version: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": version},
            "n": version,
        }

    def watch(options: Any) -> Any:
        yield Event("ADDED", versioned("b", "11"))
        yield Event("MODIFIED", versioned("a", "12"))
        yield Event("DELETED", versioned("b", "13"))
        reflector.stop()

    source = ListWatch(lambda options: ListResult([versioned("a", "9")], "10"), watch)
    reflector = Reflector(source, None, made)
    reflector.run()
    assert pushed == [{"a": "9"}, {"a": "9", "b": "11"}, {"a": "12", "b": "11"}, {"a": "12"}]


def test_a_poller_fills_it(made: UndeltaStore, pushed: Pushed) -> None:
    """Behind a poller each round is one push; a push that raises is the poller's error."""
    rounds: list[list[Any]] = [[pod("a", n=1)], [pod("b", n=2)]]

    def pause(seconds: float) -> bool:
        if not rounds:
            poller.stop()
        return False

    poller = Poller(lambda: rounds.pop(0), 1, made, _wait=pause)
    poller.run()
    assert pushed == [{"a": 1}, {"b": 2}]
    assert poller.stats().errors == 0


def write_past(store: Store) -> None:
    store.add(pod("other", n=1))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_write_past_it(
    made: UndeltaStore, pushed: Pushed, method: str, run_all: Any
) -> None:
    """A write of another process is no push here, and is in the list of the next one."""
    context = multiprocessing.get_context(method)
    made.add(pod("a", n=0))
    run_all([context.Process(target=write_past, args=(made.store,))])
    assert pushed == [{"a": 0}]
    made.delete(pod("a"))
    assert pushed == [{"a": 0}, {"other": 1}]
