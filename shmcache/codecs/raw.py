"""No codec at all: the objects are bytes."""

from __future__ import annotations

from typing import Any

__all__ = ["RawCodec"]


class RawCodec:
    """Bytes in, bytes out. The key function of the store sees the bytes.

    >>> RawCodec().encode(b"anything")
    b'anything'
    """

    name = "raw"
    decode_shared = None  # the payload bytes themselves are handed out: immutable already

    def encode(self, obj: Any) -> bytes:
        """``obj`` as bytes; TypeError if it is not bytes-like."""
        if isinstance(obj, bytes):
            return obj
        if isinstance(obj, (bytearray, memoryview)):
            return bytes(obj)
        raise TypeError(f"RawCodec stores bytes, not {type(obj).__name__}")

    def decode(self, data: bytes | memoryview) -> bytes:
        return data if type(data) is bytes else bytes(data)
