"""Attach to an arena of whatever kind and codec: for tools, which know nothing but its name.

May import: ``_arena``, ``_ports``, ``codecs``, ``fifo``, ``indexer``, ``store``.
"""

from __future__ import annotations

from typing import Any

from shmcache import _arena
from shmcache._ports import Codec
from shmcache.codecs import MsgpackCodec, RawCodec
from shmcache.fifo import FIFO
from shmcache.indexer import Indexer
from shmcache.store import Store

__all__ = ["attach"]

_KINDS: dict[str, type[Store]] = {"Store": Store, "FIFO": FIFO, "Indexer": Indexer}


def attach(name: str, *, writable: bool = False, **options: Any) -> Store:
    """Return a handle of the arena ``name``, a ``Store``, ``Indexer`` or ``FIFO`` as it is one.

    For tools that look into arenas that others made. Objects come as :class:`MsgpackCodec` reads
    them where they are msgpack, and as their bytes where the codec is another. ``options`` are
    those of :meth:`Store.attach`; ``writable`` is False for a FIFO too.

    Raises what :meth:`Store.attach` raises.

    >>> import shmcache
    >>> with shmcache.FIFO.create("jobs", capacity="1MiB") as jobs:
    ...     with shmcache.attach("jobs") as found:
    ...         type(found).__name__, len(found)
    ...     jobs.unlink()
    ('FIFO', 0)
    """
    info = _arena.look(name)
    codec: Codec = MsgpackCodec() if info.codec == MsgpackCodec.name else _Opaque(info.codec)
    # Of what is no arena, or not a whole one, attach says why it refuses.
    return _KINDS.get(info.kind, Store).attach(
        name, writable=writable, **({"codec": codec} | options)
    )


class _Opaque(RawCodec):
    """The bytes of a codec that only its owner has."""

    def __init__(self, name: str) -> None:
        self.name = name or RawCodec.name
