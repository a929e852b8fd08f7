"""Objects to bytes and back: one module a codec, which may import ``_core`` and ``_frozen``."""

from shmcache.codecs.msgpack import MsgpackCodec
from shmcache.codecs.msgspec import MsgspecCodec
from shmcache.codecs.raw import RawCodec

__all__ = ["MsgpackCodec", "MsgspecCodec", "RawCodec"]
