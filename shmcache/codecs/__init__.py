"""Objects to bytes and back: one module a codec. May import: ``_core``, ``_frozen``,
``_errors``."""

from shmcache.codecs.msgpack import MsgpackCodec
from shmcache.codecs.msgspec import MsgspecCodec
from shmcache.codecs.raw import RawCodec

__all__ = ["MsgpackCodec", "MsgspecCodec", "RawCodec"]
