"""Attach to an arena of whatever kind and codec: for tools, which know nothing but its name.

May import: ``_arena``, ``_ports``, ``codecs``, ``fifo``, ``indexer``, ``store``,
``workqueue``.
"""

from __future__ import annotations

from typing import Any

from shmcache import _arena
from shmcache._ports import Codec
from shmcache.codecs import MsgpackCodec, RawCodec
from shmcache.fifo import FIFO
from shmcache.indexer import Indexer
from shmcache.store import Store
from shmcache.workqueue import WorkQueue

__all__ = ["attach"]

_KINDS: dict[str, type[Store]] = {"Store": Store, "FIFO": FIFO, "Indexer": Indexer}


# What attach takes for objects, which a WorkQueue has not.
_OF_OBJECTS = {"cache", "codec", "key_func"}


def attach(name: str, *, writable: bool = False, **options: Any) -> Store | WorkQueue:
    """Return a handle of the arena ``name``, a ``Store``, ``Indexer``, ``FIFO`` or ``WorkQueue`` as
    it is one.

    For tools that look into arenas that others made. Objects come as :class:`MsgpackCodec` reads
    them where they are msgpack, and as their bytes where the codec is another. ``options`` are
    those of :meth:`Store.attach`; ``writable`` is False for a FIFO and a WorkQueue too. Of what is
    for objects a WorkQueue, which has none, takes no notice.

    Raises what :meth:`Store.attach` raises.

    >>> import shmcache
    >>> with shmcache.FIFO.create("jobs", capacity="1MiB") as jobs:
    ...     with shmcache.attach("jobs") as found:
    ...         type(found).__name__, len(found)
    ...     jobs.unlink()
    ('FIFO', 0)
    """
    info = _arena.look(name)
    if info.kind == "WorkQueue":
        of_keys = {option: value for option, value in options.items() if option not in _OF_OBJECTS}
        return WorkQueue.attach(name, writable=writable, **of_keys)
    codec: Codec = MsgpackCodec() if info.codec == MsgpackCodec.name else _Opaque(info.codec)
    # Of what is no arena, or not a whole one, attach says why it refuses.
    return _KINDS.get(info.kind, Store).attach(
        name, writable=writable, **({"codec": codec} | options)
    )


class _Opaque(RawCodec):
    """The bytes of a codec that only its owner has."""

    def __init__(self, name: str) -> None:
        self.name = name or RawCodec.name
