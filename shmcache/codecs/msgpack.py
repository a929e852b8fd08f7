"""The default codec: msgpack, without extension hooks and without pickle."""

from __future__ import annotations

from typing import Any

from shmcache._core import nested_deeper
from shmcache._frozen import pack, seal, unpack, unpack_sealed

__all__ = ["MAX_LEVELS", "MsgpackCodec", "check_levels"]

MAX_LEVELS = 1024
"""How deep objects may be nested: msgpack's own limit, and the same for every codec of it."""


class MsgpackCodec:
    """Dicts, lists, strings, bytes, numbers, booleans, None and datetimes, as msgpack.

    What can be written can be read. Tuples come back as lists (as tuples where they are keys),
    bytearrays as bytes, and datetimes, which must have a time zone, in UTC. Integers are limited
    to 64 bits, and an object to 1,024 levels, its innermost value included. Of the extension
    types, timestamps are datetimes, cut to microseconds, and others :class:`msgpack.ExtType`.

    >>> codec = MsgpackCodec()
    >>> codec.decode(codec.encode({"metadata": {"name": "web-0"}}))
    {'metadata': {'name': 'web-0'}}
    """

    name = "msgpack"

    def encode(self, obj: Any) -> bytes:
        """The msgpack bytes of ``obj``; TypeError, ValueError or OverflowError if it has none."""
        data: bytes = pack(obj)
        return _encode_unusual(obj) if data is NotImplemented else data

    def decode(self, data: bytes | memoryview) -> Any:
        """A private, mutable object, or ValueError. Its size is bounded by that of ``data``."""
        obj = unpack(data)
        return _decode_unusual(data) if obj is NotImplemented else obj

    def decode_shared(self, data: bytes | memoryview, previous: Any = None) -> Any:
        """A read-only object, for all readers of the process, or ValueError.

        What is the same in ``previous``, a read-only object too, is taken from there: of two
        versions of one document, only what differs is made.

        >>> codec = MsgpackCodec()
        >>> one, two = ({"spec": {"replicas": 3}, "ready": n} for n in (1, 2))
        >>> old = codec.decode_shared(codec.encode(one))
        >>> new = codec.decode_shared(codec.encode(two), old)
        >>> new["ready"], new["spec"] is old["spec"]
        (2, True)
        """
        obj = unpack_sealed(data, previous)
        return seal(_decode_unusual(data)) if obj is NotImplemented else obj


# A packer is cheap to use and not to make. It has one buffer, and objects may run Python while they
# are packed (a time zone, the items of a subclass of dict), in which this thread or another encodes
# something else: so who encodes takes a packer out of here meanwhile. One that failed is not given
# back, nor one whose buffer has grown, for it never shrinks.
_packers: list[Any] = []
_PACKER_BYTES = 256 << 10  # the buffer of a new one


def check_levels(data: bytes) -> None:
    """Refuse what msgpack would write, one level more than it reads, and msgspec any number."""
    if nested_deeper(data, MAX_LEVELS):
        raise ValueError(f"nested deeper than {MAX_LEVELS} levels")


def _encode_unusual(obj: Any) -> bytes:
    """Of an object that our own ``pack`` leaves to the library."""
    try:
        packer = _packers.pop()
    except IndexError:
        from msgpack import Packer  # 0.6 MB, which many a process never needs

        packer = Packer(datetime=True)
    data: bytes = packer.pack(obj)
    if len(data) <= _PACKER_BYTES:
        _packers.append(packer)
    if len(data) > MAX_LEVELS:  # a level takes a byte at least
        check_levels(data)
    return data


def _decode_unusual(data: bytes | memoryview) -> Any:
    """Of bytes that our own ``unpack`` leaves to the library."""
    from msgpack import unpackb

    try:
        return unpackb(data, strict_map_key=False, timestamp=3)
    except (TypeError, OverflowError):
        pass
    # Maps may have arrays as keys: slower, so only once the library has failed for a key.
    try:
        return unpackb(
            data,
            strict_map_key=False,
            timestamp=3,
            object_pairs_hook=lambda pairs: {_as_key(k): v for k, v in pairs},
        )
    except (TypeError, OverflowError, RecursionError) as cause:
        raise ValueError(f"not an object of Python: {cause}") from cause


def _as_key(value: Any) -> Any:
    return tuple(map(_as_key, value)) if isinstance(value, list) else value
