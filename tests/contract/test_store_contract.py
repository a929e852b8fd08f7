"""What every kind of store does alike: one suite over Store, Indexer and FIFO.

What concerns the content alone is asked of an UndeltaStore too, which is a store over a store.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, Store, UndeltaStore


class Indexer(shmcache.Indexer):
    """Without indexes, so that it takes any object and any payload, as the others do."""

    @classmethod
    def create(cls, name: str | None = None, **options: Any) -> Any:
        return super().create(name, indexers={}, **options)

    @classmethod
    def open(cls, name: str, **options: Any) -> Any:
        return super().open(name, indexers={}, **options)


KINDS = [Store, Indexer, FIFO]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Store]:
    return request.param


@pytest.fixture
def made(kind: type[Store], name: str) -> Iterator[Store]:
    with kind.create(name, capacity="16MiB") as store:
        yield store
        assert store.check() == []


@pytest.fixture(params=[*KINDS, UndeltaStore], ids=lambda kind: kind.__name__)
def content(request: pytest.FixtureRequest, name: str) -> Iterator[Any]:
    """A store of any kind, to write to and to read."""
    kind = request.param if request.param in KINDS else Store
    with kind.create(name, capacity="16MiB") as store:
        yield store if kind is request.param else request.param(lambda objs: None, store=store)
        assert store.check() == []


def test_get_by_a_key_only_object(content: Any, pod: Any) -> None:
    """An object with nothing but the right key finds the stored one."""
    content.add(pod("a", spec={"n": 1}))
    assert content.get(pod("a")) == pod("a", spec={"n": 1})


def test_update_replaces_and_inserts(content: Any, pod: Any) -> None:
    """update is add: it inserts what is unknown and replaces what is known, once."""
    content.update(pod("a", n=1))
    content.update(pod("a", n=2))
    assert content.list() == [pod("a", n=2)]


def test_delete_by_a_key_only_object(content: Any, pod: Any) -> None:
    """delete looks at the key alone, and an unknown key is silent."""
    content.add(pod("a", n=1))
    content.delete(pod("a"))
    content.delete(pod("a"))
    content.delete_by_key("no such key")
    assert content.get(pod("a")) is None
    assert content.get(pod("a"), "nothing") == "nothing"


def test_list_is_what_was_added(content: Any, pod: Any) -> None:
    """list gives each entry once, and [] when empty."""
    assert content.list() == []
    assert content.list_keys() == []
    for name in "abc":
        content.add(pod(name))
    assert sorted(content.list_keys()) == ["default/a", "default/b", "default/c"]
    assert sorted(o["metadata"]["name"] for o in content.list()) == ["a", "b", "c"]


def test_a_list_is_a_snapshot(content: Any, pod: Any) -> None:
    """A list does not change under later writes."""
    content.add(pod("a", n=1))
    before = content.list()
    content.update(pod("a", n=2))
    content.add(pod("b"))
    assert before == [pod("a", n=1)]


def test_replace_leaves_exactly_the_new(content: Any, pod: Any) -> None:
    """replace makes the list the content; of duplicates the last wins and counts once."""
    content.add(pod("old"))
    content.replace([pod("a", n=1), pod("b"), pod("a", n=2)], "42")
    assert sorted(content.list_keys()) == ["default/a", "default/b"]
    assert content.get_by_key("default/a") == pod("a", n=2)
    assert content.resource_version == "42"
    content.replace([])
    assert content.list() == []
    assert content.resource_version == ""


def test_a_failing_replace_keeps_everything(content: Any, pod: Any) -> None:
    """One object without a key, or that cannot be encoded, and the old content stays whole."""
    content.replace([pod("a", n=1)], "1")
    with pytest.raises(shmcache.KeyFuncError):
        content.replace([pod("b"), {"no": "metadata"}], "2")
    with pytest.raises(shmcache.CodecError):
        content.replace([pod("b"), pod("c", bad={1, 2})], "2")
    assert content.list() == [pod("a", n=1)]
    assert content.resource_version == "1"


def test_add_many_is_all_or_nothing(content: Any, pod: Any) -> None:
    """add_many adds each, in order; if one cannot be added, none is."""
    content.add_many([pod("a"), pod("b", n=1), pod("b", n=2)])
    assert content.get_by_key("default/b") == pod("b", n=2)
    with pytest.raises(shmcache.KeyFuncError):
        content.add_many([pod("c"), {}])
    with pytest.raises(shmcache.CapacityError):
        content.add_many([pod("c"), pod("d", big=b"x" * (16 << 20))])
    assert sorted(content.list_keys()) == ["default/a", "default/b"]


def test_raw_passes_codec_and_key_function(made: Store) -> None:
    """add_raw and get_raw move payload bytes as they are, from 0 bytes up."""
    made.add_raw("empty", b"")
    made.add_raw("k", bytearray(b"\xc1 not msgpack"))
    assert made.get_raw("empty") == b""
    assert made.get_raw("k") == b"\xc1 not msgpack"
    assert made.get_raw("absent") is None
    for read in (lambda: made.get_by_key("k"), made.list, lambda: dict(made.items())):
        with pytest.raises(shmcache.CodecError, match=r"decode the \d+ bytes of '(k|empty)'"):
            read()
    for bad in (5, "text", None, [1]):
        with pytest.raises(TypeError, match="payload is bytes"):
            made.add_raw("k", bad)


def test_it_is_a_mapping(content: Any, pod: Any) -> None:
    """Keys to objects, in the shapes of collections.abc.Mapping."""
    content.add(pod("a", n=1))
    assert isinstance(content, Mapping)
    assert content["default/a"] == pod("a", n=1)
    with pytest.raises(KeyError):
        content["default/b"]
    assert "default/a" in content
    assert "default/b" not in content
    assert 7 not in content
    assert len(content) == 1
    assert list(content) == ["default/a"]
    assert dict(content.items()) == {"default/a": pod("a", n=1)}
    assert list(content.values()) == [pod("a", n=1)]


def test_reads_are_shared_and_read_only(content: Any, pod: Any) -> None:
    """A read gives an object that refuses to change; thaw and deepcopy give private ones."""
    content.add(pod("a", labels={"x": "y"}, items=[{"n": 1}]))
    obj = content.get_by_key("default/a")
    with pytest.raises(TypeError, match="thaw"):
        obj["new"] = 1
    with pytest.raises(TypeError):
        obj["labels"].update(x="z")
    with pytest.raises(TypeError):
        obj["items"].append(1)
    with pytest.raises(TypeError):
        obj["items"][0].pop("n")
    for private in (shmcache.thaw(obj), copy.deepcopy(obj), pickle.loads(pickle.dumps(obj))):
        private["items"][0]["n"] = 2
        assert type(private) is dict
    assert content.get_by_key("default/a") == pod("a", labels={"x": "y"}, items=[{"n": 1}])
    assert json.loads(json.dumps(obj)) == obj


def test_keys_have_bounds(made: Store) -> None:
    """Keys are 1 to 65,535 bytes of UTF-8; others are refused with the size, reads just miss."""
    longest = "ä" * 32767 + "a"
    assert len(longest.encode()) == 65535
    made.add_raw(longest, b"1")
    assert made.get_raw(longest) == b"1"
    for bad in ("", longest + "b"):
        with pytest.raises(shmcache.KeyFuncError, match="1 to 65535 bytes"):
            made.add_raw(bad, b"1")
        assert made.get_raw(bad) is None
        assert bad not in made
    with pytest.raises(shmcache.KeyFuncError, match="surrogates"):
        made.add_raw("\ud800", b"1")
    assert made.get_by_key("\ud800") is None
    for no_key in (b"bytes", None, 7):
        for call in (made.get_by_key, made.get_raw, made.delete_by_key, made.__getitem__):
            with pytest.raises(TypeError, match="must be a str"):
                call(no_key)


def test_get_without_a_key_raises(content: Any) -> None:
    """get with an object that has no key raises; it never reads as a miss."""
    with pytest.raises(shmcache.KeyFuncError, match="no metadata") as caught:
        content.get({"kind": "Pod"})
    assert caught.value.obj == {"kind": "Pod"}


def test_key_function_errors_keep_their_cause(kind: type[Store], name: str) -> None:
    """Whatever a key function raises or returns becomes a KeyFuncError with the cause chained."""
    with kind.create(name, key_func=lambda obj: obj["id"], capacity="1MiB") as made:
        made.add({"id": "a"})
        with pytest.raises(shmcache.KeyFuncError) as caught:
            made.add({})
        assert isinstance(caught.value.__cause__, KeyError)
        with pytest.raises(shmcache.KeyFuncError, match="must return a str, not int"):
            made.add({"id": 7})
        assert made.list() == [{"id": "a"}]


@pytest.mark.parametrize("how", ["add", "update", "delete", "add_many", "replace"])
def test_a_write_without_a_key_changes_nothing(content: Any, pod: Any, how: str) -> None:
    """Each write of an object without a key is a KeyFuncError with the object, and no change."""
    content.replace([pod("a", n=1)], "1")
    bad = {"no": "metadata"}
    with pytest.raises(shmcache.KeyFuncError) as caught:
        getattr(content, how)([pod("b"), bad] if how in ("add_many", "replace") else bad)
    assert isinstance(caught.value, ValueError)
    assert caught.value.obj == bad
    assert content.list() == [pod("a", n=1)]
    assert content.resource_version == "1"


def test_nested_causes_of_a_key_error(kind: type[Store], name: str) -> None:
    """The error that a key function chained to its own is reached through ours."""

    def key_func(obj: Any) -> str:
        try:
            return obj["id"]
        except KeyError as cause:
            raise RuntimeError("no id") from cause

    with kind.create(name, key_func=key_func, capacity="1MiB") as made:
        with pytest.raises(shmcache.KeyFuncError, match="no id") as caught:
            made.add({})
        cause = caught.value.__cause__
        assert isinstance(cause, RuntimeError)
        assert isinstance(cause.__cause__, KeyError)


def test_a_miss_by_key_is_no_error(content: Any, pod: Any) -> None:
    """get_by_key of what is not there is the default, whatever the text of the key."""
    content.add(pod("a"))
    for key in ("a", "default/b", "", "/", "x" * 70_000, "\ud800"):
        assert content.get_by_key(key) is None
        assert content.get_by_key(key, "nothing") == "nothing"


def test_the_version_of_the_list(content: Any, pod: Any) -> None:
    """resource_version is "" until a replace sets it; writes of single objects leave it."""
    versioned = {"metadata": {"name": "a", "namespace": "default", "resourceVersion": "99"}}
    assert content.resource_version == ""
    for replaced in ("", "7"):
        content.add(versioned)
        content.update(versioned)
        content.add_many([versioned, pod("b")])
        content.delete(versioned)
        content.delete_by_key("default/b")
        assert content.resource_version == replaced
        content.replace([versioned], "7")
        assert content.resource_version == "7"


def test_an_object_that_cannot_be_encoded(content: Any, pod: Any) -> None:
    """A CodecError with the object and the cause; the store is as before."""
    with pytest.raises(shmcache.CodecError, match="cannot encode") as caught:
        content.add(pod("a", when=object()))
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is not None
    assert len(content) == 0


def test_a_value_larger_than_the_arena(made: Store, pod: Any) -> None:
    """CapacityError names sizes and remedy, is a MemoryError, and changes nothing."""
    made.add(pod("a"))
    with pytest.raises(shmcache.CapacityError, match=r"16\.0 MiB.*nothing was changed") as caught:
        made.add_raw("k", b"x" * (17 << 20))
    assert isinstance(caught.value, MemoryError)
    assert made.list() == [pod("a")]


def test_every_use_after_close(made: Store, pod: Any) -> None:
    """Every call on a closed handle says ClosedError; close itself is idempotent."""
    made.add(pod("a"))
    other = type(made).attach(made.name)
    other.close()
    other.close()
    calls = [
        lambda: other.add(pod("a")),
        lambda: other.delete(pod("a")),
        lambda: other.get(pod("a")),
        lambda: other.get_by_key("a"),
        lambda: other.get_raw("a"),
        other.list,
        other.list_keys,
        lambda: other.replace([]),
        lambda: other.add_many([]),
        lambda: len(other),
        lambda: "a" in other,
        lambda: other.version,
        lambda: other.has_synced,
        lambda: other.resource_version,
        other.stats,
        other.check,
        lambda: other.wait_for_sync(0),
        lambda: other.wait_for_change(0, 0),
    ]
    for call in calls:
        with pytest.raises(shmcache.ClosedError, match="closed"):
            call()
    assert "closed" in repr(other)
    assert made.list() == [pod("a")]


def test_pickling_attaches_again(made: Store, pod: Any) -> None:
    """A handle pickles to a name; what comes back sees the same content and may do the same."""
    made.add(pod("a"))
    with pickle.loads(pickle.dumps(made)) as again:
        assert type(again) is type(made)
        assert again.list() == [pod("a")]
        again.add(pod("b"))
    assert len(made) == 2


def test_a_pickled_handle_knows_its_arena(made: Store, pod: Any) -> None:
    """A handle unpickled after another arena has taken the name says so, instead of reading it."""
    pickled = pickle.dumps(made)
    made.unlink()
    with type(made).create(made.name, capacity="1MiB") as successor:
        with pytest.raises(shmcache.ArenaNotFoundError, match="another has taken its name"):
            pickle.loads(pickled)
        successor.unlink()


def test_version_counts_changes(made: Store, pod: Any) -> None:
    """version grows with every change and is seen by every handle; reads leave it."""
    with type(made).attach(made.name) as other:
        seen = [made.version]
        made.add(pod("a"))
        seen.append(other.version)
        made.delete(pod("a"))
        seen.append(other.version)
        made.replace([], "1")
        seen.append(other.version)
        assert seen == sorted(set(seen))
        other.list()
        made.delete(pod("unknown"))
        assert made.version == seen[-1]
        assert made.wait_for_change(seen[0], 0) == seen[-1]
        assert made.wait_for_change(seen[-1], 0.01) == seen[-1]


def test_stats_tell_what_there_is(made: Store, pod: Any) -> None:
    """stats is a frozen record of the arena and of this handle."""
    made.add_raw("k", b"x" * 1000)
    stats = made.stats()
    assert stats.kind == type(made).__name__
    assert stats.name == made.name
    assert stats.entries == 1
    assert stats.capacity_bytes == 16 << 20
    assert 1000 < stats.used_bytes < stats.committed_bytes < stats.capacity_bytes
    assert stats.attached == 1
    assert stats.repairs == 0
    with pytest.raises(AttributeError):
        stats.entries = 2  # type: ignore[misc]


def test_negative_timeouts_are_refused(made: Store) -> None:
    """A negative timeout or NaN is a ValueError, as in the standard library's queue."""
    with pytest.raises(ValueError, match="negative"):
        made.wait_for_sync(float("nan"))
    with pytest.raises(TypeError, match="number of seconds"):
        made.wait_for_sync("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        type(made).attach(made.name, timeout=-1)
    with pytest.raises(ValueError, match="negative"):
        made.wait_for_change(0, -1)
    with pytest.raises(ValueError, match="negative"):
        made.wait_for_sync(-1)
