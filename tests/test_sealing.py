"""Sealing: fresh trees become read-only where they are, and are in all else what copies are."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache import MsgpackCodec, Store, thaw
from shmcache._core import sealer
from shmcache._frozen import FrozenDict, FrozenList, freeze, seal

pytestmark = pytest.mark.skipif(
    seal is freeze, reason="this Python is not known to allow sealing, and trees are copied"
)

ROUNDS = 100_000


def tree() -> dict[str, Any]:
    """A fresh tree of seven containers, of which two hold no others and two are empty."""
    return {
        "metadata": {"name": "web-0", "labels": {"app": "web"}},
        "spec": [{"n": 1}, [], {}],
    }


DICTS, LISTS = 5, 2


def containers(obj: Any) -> Iterator[Any]:
    todo = [obj]
    while todo:
        box = todo.pop()
        yield box
        values = box.values() if isinstance(box, dict) else box
        todo += [value for value in values if isinstance(value, (dict, list))]


def types(obj: Any) -> set[type]:
    return {type(box) for box in containers(obj)}


READ_ONLY = {FrozenDict, FrozenList}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=30,
)

# --- what is sealed -----------------------------------------------------------------------------


def test_a_fresh_tree_is_not_copied() -> None:
    """Each container of a fresh tree is read-only afterwards, at the address that it had."""
    hand = [tree()]
    before = {id(box) for box in containers(hand[0])}
    sealed = seal(hand.pop())
    assert {id(box) for box in containers(sealed)} == before
    assert len(before) == DICTS + LISTS
    assert types(sealed) == READ_ONLY


@given(obj=JSON)
def test_sealed_is_what_frozen_is(obj: Any) -> None:
    """A sealed tree and a read-only copy are equal, of the same types, and so are the copies,
    pickles and texts of both."""
    frozen, sealed = freeze(obj), seal(json.loads(json.dumps(obj)))
    assert sealed == frozen == obj
    assert repr(sealed) == repr(frozen) == repr(obj)
    assert json.dumps(sealed) == json.dumps(frozen)
    if isinstance(obj, (dict, list)):
        assert types(sealed) == types(frozen) <= READ_ONLY
    for made in (thaw(sealed), copy.deepcopy(sealed), pickle.loads(pickle.dumps(sealed))):
        assert made == obj
        if isinstance(obj, (dict, list)):
            assert types(made) <= {dict, list}
            assert type(copy.copy(sealed)) is type(obj)


@pytest.mark.parametrize("atom", [None, 1, "a", b"a", (1, [2]), {1}], ids=repr)
def test_what_is_no_container_stays(atom: Any) -> None:
    """Atoms, tuples and what else there is, is the same object before and after, alone or inside;
    what is in a tuple is not looked at."""
    assert seal(atom) is atom
    assert seal([atom])[0] is atom
    assert type(seal([(1, [2])])[0][1]) is list


def test_as_deep_as_there_is_memory() -> None:
    """100,000 levels are sealed, and freed, without recursion."""
    hand: list[Any] = [{}]
    for _ in range(50_000):
        hand.append([{"a": hand.pop()}])
    before = id(hand[0])
    sealed = seal(hand.pop())
    assert id(sealed) == before
    assert sum(1 for _ in containers(sealed)) == 100_001
    assert types(sealed) == READ_ONLY


def test_dicts_of_every_making() -> None:
    """Dicts that shrank, grew, have keys of other types, or share their keys with the instances of
    a class are sealed whole."""

    class Instance:
        def __init__(self, n: int) -> None:
            self.n, self.m = n, [n]

    def shrunk() -> dict[Any, Any]:
        made: dict[Any, Any] = {n: [n] for n in range(1000)}
        for n in range(990):
            del made[n]
        return made

    keep = Instance(0)
    for make in (
        shrunk,
        lambda: {n: [n] for n in range(1000)},
        lambda: {(1, 2): [], None: {}, 1.5: "a", b"b": [1]},
        lambda: vars(Instance(1)),
        lambda: dict.fromkeys("abc", 0),
    ):
        sealed = seal(make())
        assert sealed == make()
        assert types(sealed) <= READ_ONLY
        assert thaw(sealed) == make()
        del sealed
    assert vars(keep) == {"n": 0, "m": [0]}


# --- what is copied -----------------------------------------------------------------------------


def test_what_somebody_else_has_is_copied() -> None:
    """A tree of which a container has another reference is copied: that container stays as it was,
    and twice the same is twice the same afterwards."""
    mine = [1]
    sealed = seal({"a": mine, "b": [mine, {"c": mine}]})
    assert sealed == {"a": [1], "b": [[1], {"c": [1]}]}
    assert types(sealed) == READ_ONLY
    assert sealed["a"] is sealed["b"][0] is sealed["b"][1]["c"] is not mine
    mine.append(2)
    assert type(mine) is list
    assert sealed["a"] == [1]


def test_a_root_that_somebody_has_is_copied() -> None:
    """A root that is iterated over, or that the caller goes on to use, is left alone."""
    root = [[1], [2]]
    for item in root:
        sealed = seal(root)
        assert type(item) is type(root) is list
        assert types(sealed) == {FrozenList}
    holder = {"root": root}
    assert type(seal(holder["root"])) is FrozenList
    assert type(root[0]) is list


def test_a_cycle_is_copied() -> None:
    """A container that is in itself is so in the copy."""
    loop: dict[str, Any] = {"in": []}
    loop["in"].append(loop)
    hand = [loop]
    del loop
    sealed = seal(hand.pop())
    assert sealed["in"][0]["in"] is sealed["in"]
    assert type(sealed["in"][0]) is FrozenDict


class MyList(list[Any]):
    attribute = 1


@pytest.mark.parametrize(
    "inner", [OrderedDict(a=[1]), MyList([[1]]), FrozenDict(a=[1]), FrozenList([[1]])], ids=repr
)
def test_subclasses_are_copied(inner: Any) -> None:
    """Instances of subclasses become read-only ones of ours, as copies, alone or inside."""
    for sealed in (seal(copy.copy(inner)), seal([{}, inner])[1]):
        assert sealed == inner
        assert types(sealed) <= READ_ONLY
        assert type(sealed) in READ_ONLY
    assert type(inner["a"] if isinstance(inner, dict) else inner[0]) is list


class WithDict(dict[Any, Any]):
    pass


class WithSlot(list[Any]):
    __slots__ = ("more",)


class WithWeakReferences(dict[Any, Any]):
    __slots__ = ("__weakref__",)


class WithFinalizer(list[Any]):
    __slots__ = ()

    def __del__(self) -> None:
        pass


class OfSubclass(FrozenDict):
    __slots__ = ()


@pytest.mark.parametrize(
    ("for_dict", "for_list"),
    [
        (WithDict, FrozenList),
        (FrozenDict, WithSlot),
        (WithWeakReferences, FrozenList),
        (FrozenDict, WithFinalizer),
        (OfSubclass, FrozenList),
        (FrozenList, FrozenDict),
        (dict, list),
        (OrderedDict, FrozenList),
    ],
)
def test_types_of_another_layout_are_refused(for_dict: Any, for_list: Any) -> None:
    """With types that are laid out in another way there is no sealing, but the copy."""
    assert sealer(for_dict, for_list, freeze) is freeze
    assert sealer(FrozenDict, FrozenList, freeze) is not freeze


# --- read-only ----------------------------------------------------------------------------------

DICT_CHANGES: list[Callable[[Any], Any]] = [
    lambda d: d.__setitem__("a", 1),
    lambda d: d.__delitem__("a"),
    lambda d: d.__ior__({"b": 1}),
    lambda d: d.clear(),
    lambda d: d.pop("a"),
    lambda d: d.pop("b", None),
    lambda d: d.popitem(),
    lambda d: d.setdefault("b", 1),
    lambda d: d.update(b=1),
    lambda d: d.update({}),
    lambda d: setattr(d, "__class__", dict),
]
LIST_CHANGES: list[Callable[[Any], Any]] = [
    lambda x: x.__setitem__(0, 1),
    lambda x: x.__setitem__(slice(None), []),
    lambda x: x.__delitem__(0),
    lambda x: x.__delitem__(slice(None)),
    lambda x: x.__iadd__([1]),
    lambda x: x.__imul__(2),
    lambda x: x.append(1),
    lambda x: x.extend([]),
    lambda x: x.insert(0, 1),
    lambda x: x.pop(),
    lambda x: x.remove(1),
    lambda x: x.clear(),
    lambda x: x.reverse(),
    lambda x: x.sort(),
    lambda x: setattr(x, "__class__", list),
]


def test_nothing_changes_it() -> None:
    """Every way to change a dict or a list is a TypeError, at every level, and changes nothing."""
    sealed = seal({"a": [1, {"a": 1}], "b": {"a": [1]}})
    text = repr(sealed)
    for box in containers(sealed):
        for change in DICT_CHANGES if isinstance(box, dict) else LIST_CHANGES:
            with pytest.raises(TypeError):
                change(box)
        with pytest.raises(AttributeError):
            box.attribute = 1
    with pytest.raises(TypeError):
        sealed["a"][1]["a"] += 1
    with pytest.raises(TypeError):
        sealed |= {"c": 1}
    assert repr(sealed) == text


def test_reading_is_that_of_dict_and_list() -> None:
    """What reads a dict or a list reads a sealed one: operators, views, patterns, unpacking."""
    sealed = seal({"a": [3, 1, 2], "b": {"c": 1}})
    match sealed:
        case {"a": [first, *rest], "b": {"c": 1}}:
            assert (first, rest) == (3, [1, 2])
        case _:
            pytest.fail("no match")
    assert sorted(sealed["a"]) == [1, 2, 3]
    assert sealed["a"] + [4] == [*sealed["a"], 4] == [3, 1, 2, 4]
    assert sealed | {"d": 1} == {**sealed, "d": 1}
    assert sealed["a"] * 2 == [3, 1, 2] * 2
    assert list(reversed(sealed)) == ["b", "a"]
    assert sealed.keys() & {"a"} == {"a"}
    assert "a" in sealed
    assert dict(**sealed) == sealed
    assert sealed["a"].index(2) == 2
    assert type(sealed.copy()) is dict
    assert type(sealed["a"][:]) is list


# --- memory -------------------------------------------------------------------------------------


def test_each_container_owns_its_type() -> None:
    """A sealed container has a reference to its class, which it gives back when it goes."""
    before = sys.getrefcount(FrozenDict), sys.getrefcount(FrozenList)
    sealed = [seal(tree()) for _ in range(100)]
    assert sys.getrefcount(FrozenDict) == before[0] + 100 * DICTS
    assert sys.getrefcount(FrozenList) == before[1] + 100 * LISTS
    del sealed
    assert (sys.getrefcount(FrozenDict), sys.getrefcount(FrozenList)) == before


def test_nothing_leaks() -> None:
    """100,000 trees that are decoded, sealed and dropped, or copied because they are shared, leave
    no memory, no reference and nothing to collect."""
    value, codec = object(), MsgpackCodec()
    data = codec.encode(tree())
    mine = [value]

    def rounds(count: int) -> tuple[int, ...]:
        for n in range(count):
            seal({"a": [value], "b": {"c": value}})
            codec.decode_shared(data)
            if n % 10 == 0:
                seal([mine, {"a": mine}])
        garbage = gc.collect()
        references = (value, FrozenDict, FrozenList, seal, freeze)
        return garbage, sys.getallocatedblocks(), *map(sys.getrefcount, references)

    gc.collect()
    rounds(1000)
    _, blocks, *references = rounds(1000)
    garbage, blocks_after, *references_after = rounds(ROUNDS)
    assert garbage == 0
    assert references_after == references
    assert blocks_after - blocks < 1000


def test_plain_ones_stay_plain() -> None:
    """The memory of sealed containers never comes back as a container that is read-only: dicts and
    lists that are made later are plain."""
    for _ in range(10):
        sealed = [seal({"a": [1]}) for _ in range(500)]
        del sealed
        plain: list[Any] = [{"a": []} for _ in range(500)]
        for made in plain:
            assert type(made) is dict
            assert type(made["a"]) is list
            made["a"].append(made.setdefault("b", 1))
        del plain, made


class Marked:
    pass


@pytest.mark.parametrize("make", [dict, lambda: {"a": 1}, lambda: [()]])
def test_cycles_are_still_collected(make: Callable[[], Any]) -> None:
    """The collector sees sealed containers: a cycle of them, made past their own methods, goes,
    also of dicts that were not tracked."""
    sealed = seal(make())
    marked = Marked()
    gone = weakref.ref(marked)
    if isinstance(sealed, dict):
        dict.update(sealed, {"self": sealed, "marked": marked})
    else:
        list.extend(sealed, [sealed, marked])
    assert gc.is_tracked(sealed)
    del sealed, marked
    gc.collect()
    assert gone() is None


def test_the_collector_need_not_know_of_plain_trees() -> None:
    """A tree of containers and plain values is untracked; one with anything else stays tracked."""
    plain = seal({"a": [1, "x", b"y", None, 1.5, True, {}], "b": {"c": [[]]}})
    assert not any(map(gc.is_tracked, (plain, plain["a"], plain["a"][-1], plain["b"]["c"][0])))
    for other in ({"a": (1, [2])}, {"a": [iter([])]}, {(1, 2): {}}):
        assert gc.is_tracked(seal(other))


def test_the_collector_at_every_step() -> None:
    """Trees that are decoded and sealed while the collector runs all the time are whole, and so
    are those that survive it."""
    codec = MsgpackCodec()
    data = codec.encode([tree() for _ in range(20)])
    kept: list[Any] = []
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(50):
            kept.append(codec.decode_shared(data))
            kept.append(seal(tree()))
            kept = kept[-20:]
    finally:
        gc.set_threshold(*before)
    gc.collect()
    for n, sealed in enumerate(kept):
        assert sealed == (tree() if n % 2 else [tree() for _ in range(20)])
        assert types(sealed) == READ_ONLY


def test_threads(store: Store) -> None:
    """Threads that decode, seal, read and drop at once see whole trees."""
    codec = MsgpackCodec()
    data = codec.encode([tree() for _ in range(10)])
    store.add_raw("k", data)
    wrong: list[Any] = []

    def work() -> None:
        with Store.attach(store.name, cache=0) as reader:
            for _ in range(300):
                for sealed in (codec.decode_shared(data), reader["k"]):
                    if types(sealed) != READ_ONLY or codec.encode(sealed) != data:
                        wrong.append(sealed)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
