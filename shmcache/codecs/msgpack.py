"""The default codec: msgpack, without extension hooks and without pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from shmcache._frozen import FrozenDict, FrozenList

__all__ = ["MAX_LEVELS", "MsgpackCodec"]

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
        # msgpack writes one level more than it reads, so it gets one more to write: an array of
        # one, whose header is the first byte.
        data: bytes = msgpack.packb((obj,), datetime=True)
        return data[1:]

    def decode(self, data: bytes | memoryview) -> Any:
        """A private, mutable object, or ValueError. Its size is bounded by that of ``data``."""
        try:
            return msgpack.unpackb(data, strict_map_key=False, timestamp=3)
        except (TypeError, OverflowError):
            return _decode_unusual(data, dict, None)

    def decode_shared(self, data: bytes | memoryview) -> Any:
        """A read-only object, for all readers of the process, or ValueError."""
        try:
            return msgpack.unpackb(
                data,
                strict_map_key=False,
                timestamp=3,
                object_hook=FrozenDict,
                list_hook=FrozenList,
            )
        except (TypeError, OverflowError):
            return _decode_unusual(data, FrozenDict, FrozenList)


def _decode_unusual(
    data: bytes | memoryview,
    make_dict: type[dict[Any, Any]],
    make_list: Callable[[list[Any]], Any] | None,
) -> Any:
    """Maps may have arrays as keys: slower, so only once msgpack has failed for a key."""
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            timestamp=3,
            object_pairs_hook=lambda pairs: make_dict((_as_key(k), v) for k, v in pairs),
            list_hook=make_list,
        )
    except (TypeError, OverflowError, RecursionError) as cause:
        raise ValueError(f"not an object of Python: {cause}") from cause


def _as_key(value: Any) -> Any:
    return tuple(map(_as_key, value)) if isinstance(value, list) else value
