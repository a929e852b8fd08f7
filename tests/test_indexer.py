"""Indexer: what is found under which value, and what is refused."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmcache
from shmcache import Indexer

SPAWN = multiprocessing.get_context("spawn")


def by_owner(obj: Any) -> list[str]:
    """The names in a comma-separated field, as client-go's test of multi-valued indexes has it."""
    return [name for name in obj.get("owner", "").split(",") if name]


def by_phase(obj: Any) -> list[str]:
    return [obj["phase"]] if "phase" in obj else []


@pytest.fixture
def made(name: str) -> Iterator[Indexer]:
    with Indexer.create(name, indexers={"owner": by_owner}, capacity="16MiB") as indexer:
        yield indexer
        assert indexer.closed or indexer.check() == []


Pod = Callable[..., dict[str, Any]]


def names(objs: list[Any]) -> list[str]:
    return sorted(obj["metadata"]["name"] for obj in objs)


def test_index_by_a_probe_returns_its_set(made: Indexer, pod: Pod) -> None:
    """index finds the objects that share a value with an object, which need not be stored."""
    for name, owner in {"a": "b", "c": "b", "e": "f", "g": "h"}.items():
        made.add(pod(name, owner=owner))
    found = {owner: names(made.index("owner", {"owner": owner})) for owner in "bfh"}
    assert found == {"b": ["a", "c"], "f": ["e"], "h": ["g"]}
    assert made.index("owner", {"owner": "nobody"}) == []
    assert made.index("owner", {}) == []


def test_a_probe_of_many_values_gives_each_object_once(made: Indexer, pod: Pod) -> None:
    """index over several values is their union, without duplicates."""
    made.add(pod("a", owner="ernie,bert"))
    made.add(pod("b", owner="bert,oscar"))
    made.add(pod("c", owner="elmo"))
    assert names(made.index("owner", {"owner": "ernie,bert,oscar"})) == ["a", "b"]


def test_an_unknown_index_is_named(made: Indexer) -> None:
    """Every read of an index that is not there raises IndexNotFoundError with its name."""
    for read in (
        lambda: made.index("colour", {}),
        lambda: made.by_index("colour", "red"),
        lambda: made.index_keys("colour", "red"),
        lambda: made.list_index_func_values("colour"),
        lambda: made.use_indexers({"colour": by_owner}),
    ):
        with pytest.raises(shmcache.IndexNotFoundError, match="no index 'colour'; it has 'owner'"):
            read()
    with pytest.raises(KeyError):
        made.by_index("colour", "red")


def test_an_error_of_the_function_on_the_probe_is_raised(made: Indexer) -> None:
    """index raises what the function made of the probe, with the cause chained."""
    with pytest.raises(
        shmcache.IndexFuncError, match="'owner' failed on an object of type int"
    ) as e:
        made.index("owner", 7)
    assert isinstance(e.value.__cause__, AttributeError)
    assert e.value.obj == 7


def test_several_values_and_none(made: Indexer, pod: Pod) -> None:
    """An object is found under each of its values; every live value is listed once."""
    made.add(pod("a", owner="ernie,bert"))
    made.add(pod("b", owner="bert,bert"))
    made.add(pod("c"))
    assert names(made.by_index("owner", "ernie")) == ["a"]
    assert names(made.by_index("owner", "bert")) == ["a", "b"]
    assert sorted(made.list_index_func_values("owner")) == ["bert", "ernie"]
    assert made.by_index("owner", "nobody") == made.index_keys("owner", "nobody") == []
    assert made.stats().index_values == 2


def test_update_moves_an_object_between_values(made: Indexer, pod: Pod) -> None:
    """An update takes the object out of the values that it lost and into those that it got."""
    made.add(pod("other", owner="bar"))
    made.add(pod("a", owner="bar"))
    made.update(pod("a", owner="foo,bar"))
    assert names(made.by_index("owner", "foo")) == ["a"]
    assert names(made.by_index("owner", "bar")) == ["a", "other"]
    made.update(pod("a", owner="foo"))
    assert names(made.by_index("owner", "bar")) == ["other"]
    made.update(pod("a"))
    assert made.by_index("owner", "foo") == []


def test_a_value_goes_with_its_last_object(made: Indexer, pod: Pod) -> None:
    """A value stays while one object has it, and is gone with the last."""
    made.add(pod("a", owner="x"))
    made.add(pod("b", owner="x"))
    made.delete(pod("a"))
    assert made.list_index_func_values("owner") == ["x"]
    made.delete(pod("b"))
    assert made.list_index_func_values("owner") == []
    assert made.stats().index_values == 0


def test_delete_goes_by_the_stored_object(made: Indexer, pod: Pod) -> None:
    """However the object that is deleted differs, the stored one leaves every value it had."""
    made.add(pod("a", owner="x,y"))
    made.delete(pod("a", owner="z"))
    made.add(pod("a", owner="x,y"))
    made.delete_by_key("default/a")
    assert made.list_index_func_values("owner") == []
    assert made.by_index("owner", "x") == made.by_index("owner", "y") == []


def test_replace_rebuilds_every_index(made: Indexer, pod: Pod) -> None:
    """After a replace the indexes are those of the new objects, and of no other."""
    made.add(pod("a", owner="x"))
    made.add(pod("b", owner="y"))
    made.replace([pod("a", owner="x"), pod("c", owner="x,z"), pod("c", owner="z")], "7")
    assert made.resource_version == "7"
    assert made.index_keys("owner", "x") == ["default/a"]
    assert made.index_keys("owner", "z") == ["default/c"]
    assert sorted(made.list_index_func_values("owner")) == ["x", "z"]
    made.replace([])
    assert made.list_index_func_values("owner") == []


def test_index_keys_are_sorted_keys_of_the_store(made: Indexer, pod: Pod) -> None:
    """index_keys gives keys in order, which get_by_key takes."""
    made.add_many([pod(name, owner="x") for name in "cab"])
    keys = made.index_keys("owner", "x")
    assert keys == ["default/a", "default/b", "default/c"]
    assert [made.get_by_key(key)["metadata"]["name"] for key in keys] == ["a", "b", "c"]


def test_objects_of_an_index_are_those_of_the_store(made: Indexer, pod: Pod) -> None:
    """by_index gives the object that every read of this handle gets: read-only, decoded once."""
    made.add(pod("a", owner="x"))
    (found,) = made.by_index("owner", "x")
    assert found is made.get_by_key("default/a")
    with pytest.raises(TypeError):
        found["owner"] = "y"
    assert made.stats().misses == 1


@pytest.mark.parametrize("write", ["add", "update", "add_many", "replace"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ValueError("no"), "failed on an object of type dict: ValueError"),
        ("a str", "must return a list of str, not 'a str'"),
        (None, "must return a list of str, not None"),
        ([1], r"must return a list of str, not \[1\]"),
        (["\ud800"], "must return a list of str"),
        (["x" * 65536], "at most 65535 bytes in UTF-8, and this one has 65536"),
    ],
)
def test_a_failing_index_function_rejects_the_write(
    write: str, given: Any, message: str, pod: Pod
) -> None:
    """The write raises IndexFuncError with object and cause, and the store is as before."""

    def function(obj: Any) -> Any:
        result = given if obj["metadata"]["name"] == "bad" else ["fine"]
        if isinstance(result, Exception):
            raise result
        return result

    with Indexer.create(
        indexers={"fine": lambda obj: ["y"], "f": function}, capacity="1MiB"
    ) as made:
        made.unlink()
        made.add(pod("old"))
        many = write in ("add_many", "replace")
        argument = [pod("good"), pod("bad")] if many else pod("bad")
        with pytest.raises(shmcache.IndexFuncError, match=message) as caught:
            getattr(made, write)(argument)
        assert isinstance(caught.value, ValueError)
        assert caught.value.obj == pod("bad")
        assert made.list_keys() == ["default/old"]
        assert made.index_keys("f", "fine") == made.index_keys("fine", "y") == ["default/old"]
        assert made.check() == []


def test_values_at_the_edges(made: Indexer) -> None:
    """Empty values, values of 65,535 bytes and text outside ASCII are found; nonsense is not."""
    longest = "ä" * 32767 + "a"
    with Indexer.create(indexers={"v": lambda obj: obj["values"]}, capacity="4MiB") as edges:
        edges.unlink()
        edges.add({"metadata": {"name": "a"}, "values": ["", longest, "日本"]})
        for value in ("", longest, "日本"):
            assert edges.index_keys("v", value) == ["a"]
        assert edges.by_index("v", "\ud800") == []
        assert edges.check() == []
    for wrong in (7, None, b"x"):
        with pytest.raises(TypeError, match="value of an index is a str"):
            made.by_index("owner", wrong)  # type: ignore[arg-type]


def test_the_stock_index_is_the_namespace(pod: Pod) -> None:
    """Without indexers there is one of namespaces, cluster-scoped objects under ''."""
    with Indexer.create(capacity="1MiB") as made:
        made.unlink()
        made.add(pod("a", namespace="kube-system"))
        made.add({"metadata": {"name": "node-1"}})
        assert made.index_keys("namespace", "kube-system") == ["kube-system/a"]
        assert made.index_keys("namespace", "") == ["node-1"]
        assert made.get_indexers() == {"namespace": shmcache.meta_namespace_index_func}


@pytest.mark.parametrize(
    ("indexers", "error", "message"),
    [
        ({"": by_owner}, ValueError, "1 to 127 bytes"),
        ({"x" * 128: by_owner}, ValueError, "1 to 127 bytes"),
        ({"a\0b": by_owner}, ValueError, "none of them 0"),
        ({7: by_owner}, TypeError, "name of an index is a str"),
        ({"x": "no function"}, TypeError, "must be callable"),
        ({f"i{n}": by_owner for n in range(33)}, ValueError, "at most 32 indexes"),
    ],
)
def test_indexers_that_cannot_be(
    made: Indexer, indexers: Any, error: type[Exception], message: str
) -> None:
    """Bad names, functions and counts are refused by name, at creation and later."""
    with pytest.raises(error, match=message):
        Indexer.create(indexers=indexers, capacity="1MiB")
    with pytest.raises(error, match=message):
        made.add_indexers(indexers)
    assert list(made.get_indexers()) == ["owner"]


# --- indexes that come later ----------------------------------------------------------------------


def test_add_indexers_finds_old_and_new_objects(made: Indexer, pod: Pod) -> None:
    """An index that is added to a filled store is complete at once, over all that is there."""
    made.replace([pod(f"p{i}", owner="x", phase="Running" if i % 2 else "Pending")
                  for i in range(100)], "5")  # fmt: skip
    before = made.version
    made.add_indexers({"phase": by_phase, "name": lambda obj: [obj["metadata"]["name"]]})
    assert len(made.by_index("phase", "Running")) == len(made.by_index("phase", "Pending")) == 50
    assert made.index_keys("name", "p7") == ["default/p7"]
    assert len(made.by_index("owner", "x")) == 100
    made.add(pod("new", owner="y", phase="Running"))
    assert len(made.by_index("phase", "Running")) == 51
    assert made.index_keys("owner", "y") == ["default/new"]
    assert made.resource_version == "5"
    assert made.version > before
    assert made.check() == []


def test_add_indexers_to_a_store_that_never_synced(made: Indexer, pod: Pod) -> None:
    """Adding an index says nothing of the source: has_synced stays as it was."""
    made.add(pod("a", phase="Running"))
    made.add_indexers({"phase": by_phase})
    assert not made.has_synced
    assert made.resource_version == ""


def test_add_indexers_is_all_or_nothing(made: Indexer, pod: Pod) -> None:
    """A taken name, or a function that fails on an object that is there, and none is added."""
    made.add(pod("a", owner="x"))
    with pytest.raises(shmcache.IndexExistsError, match="index 'owner' already; none was added"):
        made.add_indexers({"phase": by_phase, "owner": by_owner})
    with pytest.raises(shmcache.IndexFuncError, match="'broken' failed"):
        made.add_indexers({"phase": by_phase, "broken": lambda obj: [obj["no such field"]]})
    assert list(made.get_indexers()) == ["owner"]
    with pytest.raises(shmcache.IndexNotFoundError):
        made.by_index("phase", "Running")


def test_add_indexers_needs_room(pod: Pod) -> None:
    """Without room for the second copy nothing changes, and CapacityError says so."""
    with Indexer.create(indexers={}, capacity="1MiB") as made:
        made.unlink()
        made.add(pod("a", owner="x", big=b"x" * 600_000))
        with pytest.raises(shmcache.CapacityError, match="nothing was changed"):
            made.add_indexers({"owner": by_owner})
        assert made.get_indexers() == {}
        assert made.check() == []


def test_add_indexers_while_others_write(made: Indexer, pod: Pod) -> None:
    """Objects that are written meanwhile are found too: those before, those during, those after."""
    made.add_many([pod(f"old{i}", phase="Running") for i in range(300)])
    numbers = itertools.count()

    def write() -> None:
        with Indexer.attach(made.name, writable=True, indexers={"owner": by_owner}) as other:

            def add_until_refused() -> None:
                while True:
                    other.add(pod(f"new{next(numbers) % 500}", phase="Running"))

            with pytest.raises(shmcache.IndexNotFoundError, match="no function for index 'phase'"):
                add_until_refused()
            other.use_indexers({"phase": by_phase})
            other.add(pod("last", phase="Running"))

    writer = threading.Thread(target=write)
    writer.start()
    made.add_indexers({"phase": by_phase})
    writer.join()
    assert set(made.index_keys("phase", "Running")) == set(made.list_keys())


def test_a_writer_without_the_functions_is_refused(made: Indexer, pod: Pod) -> None:
    """A handle that lacks a function cannot write, can read and delete, and can be told it."""
    made.add(pod("a", owner="x"))
    with Indexer.attach(made.name, writable=True, indexers={}) as other:
        with pytest.raises(shmcache.IndexNotFoundError, match="no function for index 'owner'"):
            other.add(pod("b", owner="x"))
        assert other.get_indexers() == {"owner": None}
        assert names(other.by_index("owner", "x")) == ["a"]
        other.delete(pod("a"))
        other.use_indexers({"owner": by_owner})
        other.add(pod("b", owner="x"))
    assert made.index_keys("owner", "x") == ["default/b"]


def test_open_adds_what_is_lacking(made: Indexer, pod: Pod) -> None:
    """open gives an arena the indexes that it lacks, and leaves those that it has."""
    made.add(pod("a", owner="x", phase="Running"))
    with Indexer.open(made.name, indexers={"phase": by_phase, "owner": by_owner}) as other:
        assert other.index_keys("phase", "Running") == ["default/a"]
        assert list(made.get_indexers()) == ["owner", "phase"]
    with Indexer.open(made.name, indexers={"phase": by_phase}) as other:
        assert other.get_indexers() == {"owner": None, "phase": by_phase}


@pytest.mark.parametrize("opened", ["open", "attach"])
def test_the_stock_function_need_not_be_given(opened: str, pod: Pod) -> None:
    """Who names other indexes alone can write to an arena that has the stock one too."""
    with Indexer.create(capacity="1MiB") as first:
        first.add_indexers({"owner": by_owner})
        if opened == "open":
            other = Indexer.open(first.name, indexers={"owner": by_owner})
        else:
            other = Indexer.attach(first.name, writable=True, indexers={"owner": by_owner})
        with other:
            other.add(pod("a", owner="x"))
            assert other.get_indexers() == {
                "namespace": shmcache.meta_namespace_index_func,
                "owner": by_owner,
            }
        assert first.index_keys("namespace", "default") == ["default/a"]
        first.unlink()


def test_a_given_function_goes_before_the_stock_one(pod: Pod) -> None:
    """The stock function is not taken for an index whose own is given."""
    with Indexer.create(indexers={"namespace": by_owner}, capacity="1MiB") as first:
        with Indexer.open(first.name, indexers={"namespace": by_owner}) as other:
            other.add(pod("a", owner="x"))
        first.unlink()
        assert first.index_keys("namespace", "x") == ["default/a"]


def test_attach_with_an_index_that_is_not_there(made: Indexer) -> None:
    """attach names the index that the arena lacks, and leaves no handle behind."""
    with pytest.raises(shmcache.IndexNotFoundError, match="no index 'phase'"):
        Indexer.attach(made.name, indexers={"phase": by_phase})
    assert made.stats().attached == 1


# --- other processes ------------------------------------------------------------------------------


def _read_elsewhere(name: str, results: Any) -> None:
    with Indexer.attach(name) as reader:
        results.send(
            (
                sorted(reader.list_index_func_values("owner")),
                reader.index_keys("owner", "x"),
                names(reader.by_index("owner", "x")),
                reader.get_indexers(),
            )
        )
        with pytest.raises(shmcache.IndexNotFoundError, match="no function"):
            reader.index("owner", {"owner": "x"})
        with pytest.raises(shmcache.ReadOnlyError):
            reader.add_indexers({"phase": by_phase})


def test_readers_elsewhere_need_no_functions(
    made: Indexer, pod: Pod, run_all: Callable[[list[Any]], None]
) -> None:
    """A process that has none of the functions reads every index by its name."""
    made.add_many([pod("a", owner="x,y"), pod("b", owner="x")])
    receive, send = SPAWN.Pipe(duplex=False)
    with receive, send:
        run_all([SPAWN.Process(target=_read_elsewhere, args=(made.name, send))])
        assert receive.recv() == (
            ["x", "y"],
            ["default/a", "default/b"],
            ["a", "b"],
            {"owner": None},
        )


def test_a_handle_pickles_with_its_functions(made: Indexer, pod: Pod) -> None:
    """An unpickled handle writes as the original does."""
    with pickle.loads(pickle.dumps(made)) as other:
        assert other.get_indexers() == {"owner": by_owner}
        other.add(pod("a", owner="x"))
    assert made.index_keys("owner", "x") == ["default/a"]


def test_other_kinds_are_told_apart(made: Indexer) -> None:
    """A Store handle cannot be had of an Indexer's arena, nor the other way round."""
    with pytest.raises(shmcache.IncompatibleArenaError, match=r"use shmcache\.Indexer\.attach"):
        shmcache.Store.attach(made.name)
    with shmcache.Store.create(capacity="1MiB") as store:
        with pytest.raises(shmcache.IncompatibleArenaError, match=r"use shmcache\.Store\.attach"):
            Indexer.attach(store.name)
        store.unlink()
