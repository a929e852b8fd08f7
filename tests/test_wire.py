"""Our own packing and unpacking beside the msgpack library, which is the judge of both."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgpack import ExtType, Packer, Timestamp, unpackb

from shmcache import MsgpackCodec
from shmcache._frozen import FrozenDict, FrozenList, freeze, pack, unpack, unpack_sealed

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
    | st.sampled_from([-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1])
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.sampled_from(["x" * 31, "x" * 32, "é" * 130, "x" * 255, "x" * 256, "x" * 65536])
    | st.sampled_from([b"", b"x" * 255, b"x" * 256, b"x" * 65536])
)
OBJECTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=50) | SCALARS, inner, max_size=20)
    ),
    max_leaves=40,
)


def read_only(data: bytes, previous: Any = None) -> Any:
    """What a store's readers share, where it is ours."""
    return unpack_sealed(data, previous)


def by_library(data: bytes) -> Any:
    """What the library makes of it, or its error."""
    try:
        return unpackb(data, strict_map_key=False, timestamp=3)
    except Exception as error:
        return error


def same(a: Any, b: Any) -> bool:
    """Equal, with equal types all the way down, and floats bit by bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, j) and same(v, w) for (k, v), (j, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@settings(deadline=None)
@given(OBJECTS)
@example([{}, [], {"": [{}]}])
@example({"k" * n: n for n in (1, 7, 8, 9, 39, 40, 41)})
@example([list(range(n)) for n in (15, 16, 17)])
@example({"many": {str(n): n for n in range(70_000)}, "list": list(range(70_000))})
def test_packed_as_the_library_packs(obj: Any) -> None:
    """The bytes are the library's; they come back as the library gives them, read-only or plain."""
    data = pack(obj)
    assert data == Packer(datetime=True).pack(obj)
    assert same(unpack(data), by_library(data))
    sealed = read_only(data)
    assert sealed is NotImplemented or same(sealed, freeze(by_library(data)))


@settings(deadline=None)
@given(st.binary(max_size=60) | st.builds(lambda o, n: pack(o)[:n], OBJECTS, st.integers(0, 40)))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff\x01")
@example(b"\xdb\xff\xff\xff\xffx")
@example(b"\xa2\xff\xfe")
@example(b"\x81\x90\x01")
@example(b"\x81\xa1a")
@example(b"\x92\x01")
@example(b"\xc1")
@example(b"\x01\x02")
def test_bytes_that_are_nothing(data: bytes) -> None:
    """Any bytes whatever give what the library gives, or are left to it; nothing is leaked."""
    expected = by_library(data)
    for read, judge in ((unpack, lambda obj: obj), (read_only, freeze)):
        made = read(data)
        assert made is NotImplemented or same(made, judge(expected))
        if isinstance(expected, Exception):
            assert made is NotImplemented


@settings(deadline=None)
@given(OBJECTS, st.data())
def test_one_byte_wrong(obj: Any, data: Any) -> None:
    """Bytes with one of them changed give what the library gives, or are left to it."""
    packed = bytearray(pack(obj))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    made = unpack(bytes(packed))
    assert made is NotImplemented or same(made, by_library(bytes(packed)))


class _Str(str):
    pass


class _Dict(dict[str, int]):
    pass


@pytest.mark.parametrize(
    "obj",
    [
        ExtType(3, b"x"),
        Timestamp(1, 2),
        {1, 2},
        object(),
        2**64,
        -(2**63) - 1,
        "\ud800",
        _Str("x"),
        _Dict(a=1),
        bytearray(b"x"),
        {"a": [object()]},
        {("a", 1): 2, "b": {frozenset(): 1}},
    ],
    ids=lambda obj: type(obj).__name__,  # a repr may have an address, and xdist compares names
)
def test_the_unusual_is_left_to_the_library(obj: Any) -> None:
    """What is not of the usual types, exactly, is not packed by us, wherever it is."""
    assert pack(obj) is NotImplemented
    assert pack([{"a": obj}]) is NotImplemented


def test_ours_are_packed_as_plain_ones() -> None:
    """Read-only containers and tuples are packed as dicts and lists are."""
    obj = {"a": [1, {"b": ()}], "c": ("x", [])}
    assert pack(freeze(obj)) == pack(obj) == Packer().pack(obj)


@pytest.mark.parametrize("make", [lambda inner: [inner], lambda inner: {"k": inner}])
@pytest.mark.parametrize("levels", [1, 63, 64, 65, 500])
def test_depth(levels: int, make: Callable[[Any], Any]) -> None:
    """Up to 64 levels of containers are ours, more are the library's; the codec knows no seam."""
    obj: Any = 1
    for _ in range(levels):
        obj = make(obj)
    data = Packer().pack(obj)
    for made in (pack(obj), unpack(data), read_only(data)):
        assert (made is NotImplemented) == (levels > 64)
    codec = MsgpackCodec()
    assert codec.encode(obj) == data
    assert codec.decode(data) == codec.decode_shared(data) == obj


@st.composite
def versions(draw: st.DrawFn) -> tuple[Any, Any]:
    """An object, and one that was made of it by a few edits."""
    old = draw(OBJECTS)
    new = draw(OBJECTS) if draw(st.integers(0, 9)) == 0 else copy.deepcopy(old)
    boxes = [new] if isinstance(new, dict | list) else []
    for box in boxes:
        inside = box.values() if isinstance(box, dict) else box
        boxes += [value for value in inside if isinstance(value, dict | list)]
    for _ in range(draw(st.integers(0, 3)) if boxes else 0):
        box, value = draw(st.sampled_from(boxes)), draw(SCALARS | OBJECTS)
        if isinstance(box, list):
            at = draw(st.integers(0, len(box)))
            box[at : at + draw(st.integers(0, 1))] = draw(st.sampled_from([[], [value]]))
        elif box and draw(st.booleans()):
            key = draw(st.sampled_from(list(box)))
            if draw(st.booleans()):
                del box[key]
            else:
                box[key] = value
        elif draw(st.booleans()):
            box[draw(st.text(max_size=50))] = value
        else:
            pairs = list(box.items())
            box.clear()
            box.update(reversed(pairs))
    return old, new


def has_text_keys(obj: Any) -> bool:
    """Whether all dicts in it have none but text as keys."""
    if isinstance(obj, dict):
        return all(isinstance(k, str) and has_text_keys(v) for k, v in obj.items())
    return not isinstance(obj, list) or all(map(has_text_keys, obj))


def not_shared(old: Any, new: Any) -> list[Any]:
    """The containers and texts that are the same in both, in the same place, and yet another."""
    if isinstance(old, dict | list | str) and has_text_keys(old) and same(old, new):
        return [] if old is new else [old]
    if isinstance(old, dict) and isinstance(new, dict):
        return [n for key in old.keys() & new.keys() for n in not_shared(old[key], new[key])]
    if isinstance(old, list) and isinstance(new, list):
        return [n for pair in zip(old, new, strict=False) for n in not_shared(*pair)]
    return []


@settings(deadline=None)
@given(versions())
@example(([1, 1.0, True, 0.0, None], [True, 1, 1.0, -0.0, False]))
@example(([{"a": [2**40, 1.5, b"b", "é", "x" * 300]}], [{"a": [2**40, 1.5, b"b", "é", "x" * 300]}]))
@example(({"a": {"b": 1}, "c": 2}, {"c": 2, "a": {"b": 1}}))
@example(({"a": [], "b": {}}, {"a": {}, "b": []}))
@example(({"é": [1], "k" * 40: [2], "k" * 300: [3]}, {"é": [1], "k" * 40: [2], "k" * 300: [4]}))
@example((["x"] * 70_000, ["x"] * 69_999 + ["y"]))
def test_a_new_version_shares_what_has_not_changed(pair: tuple[Any, Any]) -> None:
    """Read beside an earlier version, an object is what it is by itself, read-only and unknown to
    the collector; what is the same in both is one object, and the earlier one stays as it is."""
    before, after = pair
    old = read_only(pack(before))
    if old is NotImplemented:
        pytest.skip("this Python does not let containers be sealed in place")
    new = read_only(pack(after), old)
    assert same(new, freeze(after))
    assert same(old, freeze(before))
    assert not_shared(old, new) == []
    assert not gc.is_tracked(new)


def test_what_an_earlier_version_holds_is_not_believed() -> None:
    """An earlier version that somebody changed, past its being read-only, or that is no object of
    ours at all, changes nothing about what is read."""
    data = pack({"a": {"b": [1, "x"]}, "c": "y"})
    strange: list[Any] = [None, 1, "x", {}, [], {"a": {"b": [1, "x"]}, "c": "y"}, object()]
    for change in (object(), {}, [], 2, "z", True, 1.0):
        for place in ("a", "c", "more"):
            strange.append(read_only(data))
            dict.__setitem__(strange[-1], place, change)
        strange.append(read_only(data))
        list.__setitem__(strange[-1]["a"]["b"], 0, change)
    for previous in strange:
        made = read_only(data, previous)
        assert made is NotImplemented or same(made, freeze({"a": {"b": [1, "x"]}, "c": "y"}))


@settings(deadline=None)
@given(versions(), st.data())
def test_one_byte_wrong_beside_an_earlier_version(pair: tuple[Any, Any], data: Any) -> None:
    """Malformed bytes give beside an earlier version what they give without one."""
    before, after = pair
    packed = bytearray(pack(after))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    for bad in (bytes(packed), bytes(packed[:at])):
        alone, beside = read_only(bad), read_only(bad, read_only(pack(before)))
        assert alone is beside is NotImplemented or same(alone, beside)


def test_keys_are_shared() -> None:
    """Equal short keys of all objects are one string, the interned one; values are not shared."""
    data = pack({"a key that is made only here": "a value", "é": 1, "long" * 11: 1})
    first, second = list(unpack(data)), list(read_only(data))
    assert first[0] is second[0] is sys.intern("a key that is made only " + "here")
    assert first == second == ["a key that is made only here", "é", "long" * 11]


def test_sealed_objects_are_no_work_for_the_collector() -> None:
    """Read-only containers are not on the collector's lists, plain ones are as ever."""
    data = pack({"a": [{"b": [1]}, {}, []], "c": {}})
    sealed, plain = read_only(data), unpack(data)
    if sealed is NotImplemented:
        pytest.skip("this Python does not let containers be sealed in place")
    assert not gc.is_tracked(sealed)
    assert not any(map(gc.is_tracked, [sealed["a"], sealed["a"][0], sealed["a"][0]["b"]]))
    assert gc.is_tracked(plain)
    assert gc.is_tracked(plain["a"][0]["b"])


def test_references_are_counted() -> None:
    """What is read, or given up half way, leaves no references behind."""
    obj = {"a": [{"b": [1, "text", b"bytes", 1.5, 2**60]}, {}], "k": {"l": {"m": []}}}
    data = pack(obj)
    same_one, other = read_only(data), read_only(pack({"a": [{"c": 1}, {}], "k": obj["k"], "l": 2}))
    counted = [FrozenDict, FrozenList, type(None)]
    for previous in (same_one, other):
        if previous is not NotImplemented:
            counted += [previous, previous["a"], *previous["a"], *previous["k"].values()]

    def use() -> None:
        for end in range(len(data) + 1):
            for read in (
                unpack,
                read_only,
                partial(read_only, previous=same_one),
                partial(read_only, previous=other),
            ):
                read(data[:end])
                read(data[:end] + b"\xc1")
                read(data[:end] + data)

    use()
    before = [sys.getrefcount(t) for t in counted], sys.getallocatedblocks()
    for _ in range(20):
        use()
    after = [sys.getrefcount(t) for t in counted], sys.getallocatedblocks()
    assert after[0] == before[0]
    assert abs(after[1] - before[1]) < 50


@pytest.mark.parametrize("previous", ["none", "same", "other"])
def test_no_memory(previous: str) -> None:
    """An allocation that fails is a MemoryError, whichever it is, and leaves nothing behind."""
    capi = pytest.importorskip("_testcapi", reason="this Python has no faults to inject")
    obj = {"a": [[], {}, "text", "é", 1.5, 2**60, b"b"], "b": {"c": [1, {"d": "e" * 50}]}}
    data = pack(obj)
    like = {
        "none": None,
        "same": read_only(data),
        "other": read_only(pack({"a": [[], {}, "text", 1], "b": {"c": [1, {}]}})),
    }[previous]
    failed = 0
    for at in range(1, 500):
        capi.set_nomemory(at, at + 1)
        try:
            made = read_only(data, like)
        except MemoryError:
            made = None
        finally:
            capi.remove_mem_hooks()
        if made is None:
            failed += 1
        else:
            assert made is NotImplemented or same(made, freeze(obj))
    assert same(read_only(data, like), freeze(obj))
    assert failed > 0 or previous == "same"


def test_shared_objects_share_the_texts_that_come_again() -> None:
    """Of many objects that say the same short texts, those decoded to be shared have one str of
    each; a text that came once is kept by nobody else."""
    codec = MsgpackCodec()
    data = [codec.encode({"phase": "Pending-shared", "name": f"unique-{n}"}) for n in range(50)]
    objects = [codec.decode_shared(one) for one in data]
    assert len({id(obj["phase"]) for obj in objects[2:]}) == 1
    assert all(obj["phase"] == "Pending-shared" for obj in objects)
    assert [obj["name"] for obj in objects] == [f"unique-{n}" for n in range(50)]
    alone = {"name": "".join(["unique", "-", "x"])}
    ours, nobody_elses = (sys.getrefcount(obj["name"]) for obj in (objects[7], alone))
    assert ours == nobody_elses
