"""The default codec: msgpack, without extension hooks and without pickle."""

from __future__ import annotations

from typing import Any

import msgpack

from shmcache._frozen import FrozenDict, FrozenList

__all__ = ["MsgpackCodec"]


class MsgpackCodec:
    """Dicts, lists, strings, bytes, numbers, booleans and None, as msgpack.

    Tuples come back as lists and bytearrays as bytes, as msgpack has it. Integers are limited to
    64 bits. Nested at most 512 deep when written, 1,024 when read; no extension types are
    decoded into anything but :class:`msgpack.ExtType`.

    >>> codec = MsgpackCodec()
    >>> codec.decode(codec.encode({"metadata": {"name": "web-0"}}))
    {'metadata': {'name': 'web-0'}}
    """

    name = "msgpack"

    def encode(self, obj: Any) -> bytes:
        """The msgpack bytes of ``obj``; TypeError, ValueError or OverflowError if it has none."""
        data: bytes = msgpack.packb(obj)
        return data

    def decode(self, data: bytes | memoryview) -> Any:
        """A private, mutable object. Its size is bounded by that of ``data``."""
        return msgpack.unpackb(data, strict_map_key=False)

    def decode_shared(self, data: bytes | memoryview) -> Any:
        """A read-only object, for all readers of the process."""
        return msgpack.unpackb(
            data, strict_map_key=False, object_hook=FrozenDict, list_hook=FrozenList
        )
