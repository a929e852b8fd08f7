"""Encoding: packers that are kept, and the limit of depth by the bytes."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import ItemsView, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache import MsgpackCodec
from shmcache._core import nested_deeper
from shmcache.codecs.msgpack import MAX_LEVELS

CODEC = MsgpackCodec()

# --- one packer at a time -----------------------------------------------------------------------


class EncodingZone(tzinfo):
    """A time zone that encodes something else whenever it is asked."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        assert CODEC.decode(CODEC.encode({"inner": [1, 2, 3]})) == {"inner": [1, 2, 3]}
        return timedelta(0)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)


class EncodingDict(dict[str, Any]):
    """A dict that encodes something else, and fails to encode something, when it is read."""

    def items(self) -> ItemsView[str, Any]:
        assert CODEC.decode(CODEC.encode(["inner"])) == ["inner"]
        with pytest.raises(TypeError):
            CODEC.encode(["lost", object()])
        return super().items()


def test_encoding_within_encoding() -> None:
    """An object that runs Python while it is encoded may encode others: each gets its bytes."""
    when = datetime(2024, 2, 29, tzinfo=EncodingZone())
    obj = ["before", when, EncodingDict(a=when, b=EncodingDict(c=1)), "after"]
    plain = ["before", when.replace(tzinfo=UTC), {"a": when.replace(tzinfo=UTC), "b": {"c": 1}}]
    for _ in range(3):
        assert CODEC.decode(CODEC.encode(obj)) == [*plain, "after"]


def test_encoding_in_threads() -> None:
    """Threads that encode at once, each changing to the others in the middle, get their bytes."""
    here = threading.Barrier(4)
    wrong: list[Any] = []

    class Waiting(dict[str, Any]):
        def items(self) -> ItemsView[str, Any]:
            here.wait(60)
            return super().items()

    def work(n: int) -> None:
        for _ in range(20):
            obj = {"n": n, "inner": Waiting(n=n), "more": [n] * n}
            if CODEC.decode(CODEC.encode(obj)) != obj:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_packer_that_is_shared_is_found() -> None:
    """The first check above fails for a packer that all use."""
    packer = msgpack.Packer()

    class Careless(dict[str, Any]):
        def items(self) -> ItemsView[str, Any]:
            packer.pack("inner")
            return super().items()

    assert packer.pack(["before", Careless(a=1)]) != msgpack.packb(["before", {"a": 1}])


@pytest.mark.parametrize(
    "bad", [object(), 2**64, "\ud800", {1j: 1}], ids=lambda bad: type(bad).__name__
)
def test_what_failed_leaves_nothing(bad: Any) -> None:
    """After an object that cannot be encoded, the next has its own bytes only."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        CODEC.encode(["x" * 1000, bad])
    assert CODEC.encode([1]) == b"\x91\x01"


def test_large_objects_are_not_kept() -> None:
    """Memory for a large object is given back, whether it was encoded or refused."""
    large = b"x" * (32 << 20)
    tracemalloc.start()
    try:
        CODEC.encode(0)
        before = tracemalloc.get_traced_memory()[0]
        CODEC.encode(large)
        with pytest.raises(TypeError):
            CODEC.encode([large, object()])
        assert tracemalloc.get_traced_memory()[0] < before + (1 << 20)
    finally:
        tracemalloc.stop()


# --- depth --------------------------------------------------------------------------------------

# One of each kind and width that msgpack has.
WIDTHS: list[Any] = [
    *(None, True, False, 0, 127, -1, -32, -33, 128, 255, 256, 65535, 65536, 2**32, 2**64 - 1),
    *(-128, -129, -32769, -(2**31) - 1, 0.5),
    *("a" * size for size in (0, 31, 32, 255, 256, 65536)),
    *(b"\xdc" * size for size in (0, 1, 255, 256, 65536)),
    *(msgpack.ExtType(5, b"\x91" * size) for size in (1, 2, 4, 8, 16, 3, 0, 256, 65536)),
    msgpack.Timestamp(1, 0),
    msgpack.Timestamp(1, 1),
    msgpack.Timestamp(-1, 1),
    *([1] * size for size in (0, 15, 16, 65536)),
    *(dict.fromkeys(range(size), "\u00df") for size in (0, 15, 16, 65536)),
]
OBJECTS = st.recursive(
    st.sampled_from(WIDTHS[:-8]) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=2) | st.tuples(st.integers(-9, 9)), inner, max_size=20)
    ),
    max_leaves=60,
)


def levels(obj: Any) -> int:
    if isinstance(obj, msgpack.ExtType) or not isinstance(obj, (dict, list, tuple)):
        return 1
    inner: Iterator[Any] = iter(obj)
    if isinstance(obj, dict):
        inner = iter([*obj, *obj.values()])
    return 1 + max(map(levels, inner), default=0)


@given(obj=OBJECTS)
def test_levels_are_counted(obj: Any) -> None:
    """The levels of an object are told from its bytes, whatever it is made of."""
    data, depth = msgpack.packb(obj), levels(obj)
    assert [n for n in range(1, depth + 3) if nested_deeper(data, n)] == list(range(1, depth))


@pytest.mark.parametrize("before", WIDTHS, ids=lambda obj: msgpack.packb(obj)[:6].hex())
def test_every_kind_is_stepped_over(before: Any) -> None:
    """Depth is found behind a value of any kind and width, as many times as it is there."""
    deep: Any = 1
    for _ in range(5):
        deep = {"a": [deep]}
    data = msgpack.packb([before, before, {"k": before}, deep])
    assert nested_deeper(data, 11)
    assert not nested_deeper(data, 12)


def test_bytes_that_are_no_object() -> None:
    """Bytes that end too early, or claim what is not there, are walked to their end and no more."""
    for header in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        assert not nested_deeper(b"\x91" + header, 10)
        for size in range(len(header)):
            assert not nested_deeper(header[:size], 10)
    assert nested_deeper(b"\x91" * 11, 10)


def test_one_level_too_many() -> None:
    """1,024 levels are encoded, and of 1,025 none, in little and in much data."""
    for padding in ("", "\u00df" * 200_000):
        deep: Any = padding
        for _ in range(MAX_LEVELS - 1):
            deep = [deep]
        data = CODEC.encode(deep)
        assert CODEC.encode(CODEC.decode(data)) == data
        for too_deep in ([deep], {"a": deep}, [[deep]]):
            with pytest.raises(ValueError, match=r"1024 levels|recursion limit"):
                CODEC.encode(too_deep)
