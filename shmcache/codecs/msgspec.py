"""Typed objects: msgpack decoded straight into a ``msgspec.Struct`` (or any supported type)."""

from __future__ import annotations

from typing import Any

from shmcache._frozen import seal
from shmcache.codecs.msgpack import MAX_LEVELS, check_levels

__all__ = ["MsgspecCodec"]


class MsgspecCodec:
    """msgpack by msgspec, decoded into ``type``; dicts if ``type`` is None.

    Decoding three fields of a pod into a struct takes a tenth of the time of decoding all of it
    into dicts. The bytes are those of :class:`MsgpackCodec`, so both have the same name: a
    reflector may write with one and a worker read with the other. Readers share what is decoded,
    so declare structs ``frozen=True`` and their sequences as tuples: a list in a
    struct can be changed, for every reader.

    Objects have at most 1,024 levels, as there. msgspec recurses, so it also needs as many of
    Python's recursion limit (of 1,000 by default, in Python 3.11 less what the caller has used).
    An extension type that is no timestamp comes back as :class:`msgspec.msgpack.Ext`.

    Needs ``pip install 'shmcache[msgspec]'``.

    >>> import msgspec
    >>> class Port(msgspec.Struct, frozen=True):
    ...     name: str
    ...     number: int
    >>> codec = MsgspecCodec(Port)
    >>> codec.decode(codec.encode({"name": "http", "number": 80, "ignored": True}))
    Port(name='http', number=80)
    """

    name = "msgpack"

    def __init__(self, type: Any = None) -> None:  # noqa: A002 (msgspec calls it type)
        try:
            import msgspec
        except ImportError as error:
            raise ImportError(
                "MsgspecCodec needs msgspec: pip install 'shmcache[msgspec]'"
            ) from error
        self.type = type
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: Any = msgspec.msgpack.Decoder(Any if type is None else type)

    def encode(self, obj: Any) -> bytes:
        """The msgpack bytes of ``obj``; TypeError, ValueError or OverflowError if it has none."""
        try:
            data: bytes = self._encoder.encode(obj)
        except RecursionError as cause:
            raise ValueError(_TOO_DEEP) from cause
        if len(data) > MAX_LEVELS:  # a level takes a byte at least
            check_levels(data)
        return data

    def decode(self, data: bytes | memoryview) -> Any:
        """A private object, or ValueError."""
        try:
            return self._decoder.decode(data)
        except RecursionError as cause:
            raise ValueError(_TOO_DEEP) from cause

    def decode_shared(self, data: bytes | memoryview, previous: Any = None) -> Any:
        """A read-only object, for all readers of the process, or ValueError. ``previous`` is of no
        use here."""
        return seal(self.decode(data))

    def __reduce__(self) -> Any:
        return MsgspecCodec, (self.type,)


_TOO_DEEP = f"nested deeper than {MAX_LEVELS} levels, or than Python's recursion limit allows"
