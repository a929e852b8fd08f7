"""Typed objects: msgpack decoded straight into a ``msgspec.Struct`` (or any supported type)."""

from __future__ import annotations

from typing import Any

from shmcache._frozen import freeze

__all__ = ["MsgspecCodec"]


class MsgspecCodec:
    """msgpack by msgspec, decoded into ``type``; dicts if ``type`` is None.

    Decoding three fields of a pod into a struct takes a tenth of the time of decoding all of it
    into dicts. The bytes are those of :class:`MsgpackCodec`, so both have the same name: a
    reflector may write with one and a worker read with the other. Readers share what is decoded,
    so declare structs ``frozen=True`` and their sequences as tuples: a list in a
    struct can be changed, for every reader.

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
        return self._encoder.encode(obj)

    def decode(self, data: bytes | memoryview) -> Any:
        return self._decoder.decode(data)

    def decode_shared(self, data: bytes | memoryview) -> Any:
        return freeze(self._decoder.decode(data))

    def __reduce__(self) -> Any:
        return MsgspecCodec, (self.type,)
