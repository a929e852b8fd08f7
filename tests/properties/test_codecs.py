"""Codecs: what was written is read, and what anybody else wrote is read or refused."""

from __future__ import annotations

import copy
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import shmcache
from shmcache import FIFO, Codec, MsgpackCodec, MsgspecCodec, RawCodec, Store
from shmcache._frozen import FrozenDict, FrozenList, freeze, thaw
from shmcache.codecs.msgpack import MAX_LEVELS

msgspec = pytest.importorskip("msgspec")

CODECS: list[Codec] = [MsgpackCodec(), MsgspecCodec(), RawCodec()]
OBJECT_CODECS = CODECS[:2]
both_codecs = pytest.mark.parametrize(
    "codec", OBJECT_CODECS, ids=lambda codec: type(codec).__name__
)
one_store_for_all_examples = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

# --- what can be written ------------------------------------------------------------------------

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.datetimes(
        datetime(2, 1, 1),
        datetime(9998, 1, 1),
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=-30))]),
    ).map(lambda when: when.replace(fold=0))  # which a time zone without summer has not
)
KEYS = st.text(max_size=8) | st.recursive(
    ATOMS, lambda inner: st.tuples(inner, inner), max_leaves=4
)
OBJECTS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=5)
    ),
    max_leaves=20,
)


def as_read(obj: Any) -> Any:
    """What an object is once written and read: no tuples but in keys, and UTC."""
    if isinstance(obj, dict):
        return {as_key(key): as_read(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [as_read(value) for value in obj]
    return obj.astimezone(UTC) if isinstance(obj, datetime) else obj


def as_key(key: Any) -> Any:
    return tuple(map(as_key, key)) if isinstance(key, tuple) else as_read(key)


@both_codecs
@given(obj=OBJECTS)
def test_what_is_written_is_read(codec: Codec, obj: Any) -> None:
    """Any object comes back, private or shared, and from the other codec of that name too; written
    again it has the same bytes."""
    data = codec.encode(obj)
    expected = repr(as_read(obj))  # as a text: NaN is not equal to itself
    for reader in OBJECT_CODECS:
        private, shared = reader.decode(data), reader.decode_shared(memoryview(data))
        assert repr(private) == repr(shared) == repr(thaw(shared)) == expected
        assert repr(copy.deepcopy(shared)) == repr(pickle.loads(pickle.dumps(shared))) == expected
        assert codec.encode(private) == codec.encode(shared) == data


@given(data=st.binary())
def test_raw_is_what_it_was(data: bytes) -> None:
    """RawCodec takes bytes, bytearrays and memoryviews, with gaps too, and gives bytes."""
    raw = RawCodec()
    assert raw.encode(data) == raw.encode(bytearray(data)) == raw.encode(memoryview(data)) == data
    assert raw.encode(memoryview(data)[::2]) == data[::2]
    assert raw.decode(memoryview(data)) == data


@both_codecs
@pytest.mark.parametrize(
    "obj",
    [
        2**64,
        -(2**63) - 1,
        "\ud800",
        {"\ud800": 1},
        object(),
        [object()],
        lambda: None,
        1j,
    ],
    ids=[
        "large",
        "small",
        "surrogate",
        "surrogate-key",
        "object",
        "in-a-list",
        "function",
        "complex",
    ],
)
def test_what_cannot_be_written(codec: Codec, obj: Any, store: Store) -> None:
    """An object without bytes is a CodecError at add, with the object, and nothing is changed."""
    with Store.attach(store.name, writable=True, codec=codec, key_func=lambda obj: "k") as writer:
        for write in (writer.add, writer.update, lambda o: writer.replace([b"x", o])):
            with pytest.raises(shmcache.CodecError, match="cannot encode") as caught:
                write(obj)
            assert caught.value.obj is obj
        assert writer.version == 0


# --- what anybody may have written --------------------------------------------------------------

# What once was, or might be, more than a ValueError or a value.
SEEDS = [
    b"",
    b"\xc1",  # never used
    b"\x01\x02",  # two objects
    b"\x81\x90\x01",  # an array as a key
    b"\x81\x91\x91\x90\x01",  # of arrays
    b"\x81\x80\x01",  # a map as a key
    b"\x81\x91\x80\x01",  # a map in an array as a key
    b"\x81\xd4\x05a\x01",  # an extension as a key
    b"\x81" + b"\x91" * 900 + b"\xc0\x01",  # a deep key
    b"\x91" * 5000 + b"\xc0",
    b"\x81\xa1a" * 5000 + b"\xc0",
    b"\x91" * MAX_LEVELS + b"\x90",
    b"\xdd\xff\xff\xff\xff",  # claims: 2^32 elements,
    b"\xdf\xff\xff\xff\xff",  # pairs,
    b"\xdb\xff\xff\xff\xff",  # bytes of text,
    b"\xc6\xff\xff\xff\xff",  # bytes,
    b"\xc9\xff\xff\xff\xff\x05",  # bytes of an extension
    b"\xd6\xff\x00\x00\x00\x01",  # a timestamp
    b"\xd7\xff" + b"\xff" * 8,  # with too many nanoseconds
    b"\xc7\x0c\xff\x00\x00\x00\x00" + b"\x7f" + b"\xff" * 7,  # beyond the year 9999
    b"\xc7\x0c\xff\x00\x00\x00\x00" + b"\x80" + b"\x00" * 7,  # before the year 1
    b"\xc7\x0c\xff\x00\x00\x00\x00" + (10**12).to_bytes(8, "big"),
    b"\xc7\x03\xffabc",  # a timestamp of a wrong size
    b"\xd4\x80a",  # an extension of the reserved types
    b"\xa3\xed\xa0\x80",  # a surrogate in UTF-8
    b"\xa1\xff",
    b"\x82\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00\x01\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00\x02",
]


def with_seeds(test: Any) -> Any:
    for seed in SEEDS:
        test = example(data=seed)(test)
    return test


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The bytes of an object, some of them changed, lost or doubled."""
    data = bytearray(CODECS[0].encode(draw(OBJECTS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        upto = draw(st.integers(at, min(at + 8, len(data))))
        data[at:upto] = draw(st.binary(max_size=4) | st.just(bytes(data[at:upto]) * 2))
    return bytes(data)


def read(decode: Callable[[bytes], Any], data: bytes) -> str:
    """The object as a text, or that it was refused; nothing else is caught."""
    try:
        return repr(decode(data))
    except ValueError:
        return "refused"


@with_seeds
@given(data=st.binary() | mutated())
def test_any_bytes_are_an_object_or_a_value_error(data: bytes) -> None:
    """decode of whatever bytes gives an object or a ValueError, shared and private alike."""
    for codec in OBJECT_CODECS:
        assert read(codec.decode, data) == read(codec.decode_shared, data)
    assert read(RawCodec().decode, data) == repr(data)


class Inner(msgspec.Struct, frozen=True):  # type: ignore[misc,name-defined]
    when: datetime | None = None
    many: tuple[int, ...] = ()


class Outer(msgspec.Struct, frozen=True):  # type: ignore[misc,name-defined]
    key: str = ""
    inner: Inner | None = None


@with_seeds
@given(data=st.binary() | mutated())
def test_any_bytes_are_a_typed_object_or_a_value_error(data: bytes) -> None:
    """The same with types: structs, and containers of them."""
    for kind in (Outer, dict[str, Outer], list[Inner], tuple[int, ...], bytes, datetime):
        codec = MsgspecCodec(kind)
        assert read(codec.decode, data) == read(codec.decode_shared, data)


@with_seeds
@given(data=st.binary() | mutated())
@one_store_for_all_examples
def test_any_bytes_in_a_store_are_an_object_or_a_codec_error(store: Store, data: bytes) -> None:
    """A peer's bytes in a store: every way to read them gives one object, or a CodecError with
    the key; the other entries stay readable."""
    store.add_raw("good", b"\xa4good")
    store.add_raw("any", data)
    try:
        obj = MsgpackCodec().decode(data)
    except ValueError:
        for call in (lambda: store.get_by_key("any"), store.list, lambda: list(store.items())):
            with pytest.raises(shmcache.CodecError, match="'any'") as caught:
                call()
            assert caught.value.obj == data
    else:
        text = repr(obj)
        assert repr(store.get_by_key("any")) == repr(store["any"]) == text
        assert sorted(map(repr, store.list())) == sorted(["'good'", text])
        assert repr(dict(store.items())["any"]) == text
    assert store.get_by_key("good") == "good"
    assert store.get_raw("any") == data


def test_a_codec_that_lets_something_else_through_is_found() -> None:
    """The check above fails for a codec without the care of ours."""

    def careless(data: bytes) -> Any:
        return msgpack.unpackb(data, strict_map_key=False, timestamp=3)

    through = set()
    for seed in SEEDS:
        try:
            read(careless, seed)
        except Exception as error:
            through.add(type(error))
    assert through == {TypeError, OverflowError}


# --- depth --------------------------------------------------------------------------------------


def lists(levels: int) -> Any:
    """``levels`` of nesting, the innermost an empty list."""
    obj: Any = []
    for _ in range(levels - 1):
        obj = [obj]
    return obj


def maps(levels: int) -> Any:
    """The same, the innermost value a number."""
    obj: Any = 1
    for _ in range(levels - 1):
        obj = {"a": obj}
    return obj


@pytest.mark.parametrize("nested", [lists, maps])
def test_one_limit_of_depth(nested: Callable[[int], Any], name: str) -> None:
    """1,024 levels can be written, read, listed, thawed, copied and popped; 1,025 are a CodecError
    at add, and change nothing."""
    most = nested(MAX_LEVELS)
    for kind in (Store, FIFO):
        with kind.create(name, capacity="1MiB", key_func=lambda obj: "k") as made:
            made.add(most)
            data = made.get_raw("k")
            for write in (made.add, lambda o: made.add_many([o]), lambda o: made.replace([o])):
                with pytest.raises(shmcache.CodecError, match="cannot encode"):
                    write(nested(MAX_LEVELS + 1))
            read = [made.get_by_key("k"), *made.list(), *dict(made.items()).values()]
            read += [shmcache.thaw(read[0]), copy.deepcopy(read[0])]
            if isinstance(made, FIFO):
                read.append(made.pop(0))
            assert [MsgpackCodec().encode(obj) for obj in read] == [data] * len(read)
            assert made.check() == []
            made.unlink()


@pytest.mark.parametrize("unit", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01", b"\x81\x91"])
@pytest.mark.parametrize("levels", [MAX_LEVELS + 1, 5_000, 100_000])
@both_codecs
def test_what_a_peer_has_nested_too_deep(
    codec: Codec, levels: int, unit: bytes, fifo: FIFO
) -> None:
    """A payload nested too deep is a CodecError for every reader, whatever it is made of."""
    if sys.version_info >= (3, 12) and isinstance(codec, MsgspecCodec) and levels < 100_000:
        pytest.skip("msgspec may read it there: the limit of recursion in C is higher")
    with FIFO.attach(fifo.name, codec=codec) as reader:
        reader.add_raw("deep", unit * levels + b"\xc0")
        for call in (lambda: reader.get_by_key("deep"), reader.list, lambda: reader.pop(0)):
            with pytest.raises(shmcache.CodecError, match="cannot decode"):
                call()


def test_msgspec_writes_no_deeper_than_msgpack_reads() -> None:
    """MsgspecCodec has the limit of MsgpackCodec, however high Python's own."""
    codec = MsgspecCodec()
    assert codec.decode(codec.encode(maps(400))) == maps(400)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(4 * MAX_LEVELS)
    try:
        data = codec.encode(maps(MAX_LEVELS))
        assert MsgpackCodec().encode(MsgpackCodec().decode(data)) == data
        for levels in (MAX_LEVELS + 2, 2 * MAX_LEVELS):
            with pytest.raises(ValueError, match="1024 levels"):
                codec.encode(maps(levels))
    finally:
        sys.setrecursionlimit(before)
    with pytest.raises(ValueError, match="1024 levels"):
        codec.encode(maps(100_000))


def test_freezing_and_thawing_do_not_recurse() -> None:
    """Copies of containers are as deep as the containers, beyond every limit of recursion."""
    deep = maps(100_000)
    frozen = freeze(deep)
    assert type(frozen) is FrozenDict
    private = thaw(frozen)
    for _ in range(99_999):
        assert type(frozen) is FrozenDict
        assert type(private) is dict
        frozen, private = frozen["a"], private["a"]
    assert frozen == private == 1


def test_a_copy_has_what_is_there_twice_once() -> None:
    """Containers that are twice in an object, or in themselves, are so in the copy."""
    inner = [1]
    shared = FrozenList([inner, inner, {"inner": inner}])
    copied = thaw(shared)
    assert copied == [[1], [1], {"inner": [1]}]
    assert copied[0] is copied[1] is copied[2]["inner"]
    assert copied[0] is not inner
    loop: list[Any] = []
    loop.append(loop)
    copied = thaw(loop)
    assert copied is not loop
    assert copied[0][0] is copied[0]


# --- extension types ----------------------------------------------------------------------------


@both_codecs
def test_timestamps_are_datetimes(codec: Codec, store: Store) -> None:
    """A timestamp is an aware datetime in UTC, immutable, to the microsecond; as a key too."""
    with Store.attach(store.name, writable=True, codec=codec, key_func=lambda o: "k") as typed:
        typed.add_raw("32", b"\xd6\xff\x00\x00\x00\x01")
        assert typed["32"] == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
        typed.add_raw("64", b"\xd7\xff" + (123_456_400 << 34 | 1).to_bytes(8, "big"))
        assert typed["64"] == datetime(1970, 1, 1, 0, 0, 1, 123_456, tzinfo=UTC)
        typed.add_raw("96", b"\xc7\x0c\xff\x00\x00\x00\x00" + b"\xff" * 8)
        assert typed["96"] == datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
        typed.add_raw("key", b"\x81\xd6\xff\x00\x00\x00\x01\xc0")
        assert typed["key"] == {datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC): None}
        when = datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=2)))
        typed.add({"when": when})
        assert typed["k"] == {"when": when}
        assert typed["k"]["when"].tzinfo is UTC


def test_other_extensions_are_no_code(store: Store) -> None:
    """An extension is an ExtType, immutable, and can be written again; the types that msgpack
    reserves are refused."""
    store.add_raw("ext", b"\x81\xa1x\xd5\x05ab")
    assert store["ext"] == {"x": msgpack.ExtType(5, b"ab")}
    assert type(store["ext"]["x"]) is msgpack.ExtType
    assert MsgpackCodec().encode(thaw(store["ext"])) == store.get_raw("ext")
    store.add_raw("reserved", b"\xd4\xfea")
    with pytest.raises(shmcache.CodecError, match="code must be"):
        store.get_by_key("reserved")
    with Store.attach(store.name, codec=MsgspecCodec()) as reader:
        ext = reader["ext"]["x"]
        assert type(ext) is msgspec.msgpack.Ext
        assert (ext.code, ext.data) == (5, b"ab")
        with pytest.raises(AttributeError):
            ext.data = b""


# --- memory -------------------------------------------------------------------------------------

SIZE = 200_000


def filled(unit: bytes) -> bytes:
    """One array of as many of ``unit`` as there is room for."""
    count = (SIZE - 5) // len(unit)
    return b"\xdd" + count.to_bytes(4, "big") + unit * count


def claiming(header: bytes, size: int) -> bytes:
    """1,000 arrays in each other, each of which claims to have ``size`` elements."""
    return (header * 1000).ljust(size, b"\xc0")


def peak_of(decode: Callable[[bytes], Any], data: bytes) -> int:
    tracemalloc.start()
    try:
        read(lambda data: decode(data) and None, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        filled(b"\x90"),
        filled(b"\x80"),
        filled(b"\x91\xc0"),
        filled(b"\x81\xc0\xc0"),
        filled(b"\x81\x01\x80"),
        filled(b"\xd4\x05a"),
        filled(b"\xd6\xff\x00\x00\x00\x01"),
        filled(b"\xa2ab"),
        b"\x91" * 1000 + filled(b"\x80"),
    ],
    ids=lambda data: data[-6:].hex(),
)
def test_memory_of_the_worst_objects(data: bytes) -> None:
    """To decode any payload with MsgpackCodec takes at most about 110 times its bytes."""
    assert peak_of(MsgpackCodec().decode, data) < 110 * len(data)
    assert peak_of(MsgpackCodec().decode_shared, data) < 110 * len(data)


@pytest.mark.parametrize("size", [3_000, 10_000, SIZE])
def test_memory_of_false_claims(size: int) -> None:
    """Arrays that claim more elements than there are bytes cost no more than 100 MiB on top."""
    for header in (
        b"\xdd" + size.to_bytes(4, "big"),
        b"\xdc" + min(size, 65535).to_bytes(2, "big"),
    ):
        for codec in OBJECT_CODECS:
            assert peak_of(codec.decode_shared, claiming(header, size)) < (100 << 20) + 110 * size
