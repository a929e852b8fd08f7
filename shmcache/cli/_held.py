"""What a queue holds back: items that consumers have in flight, and dead letters.

May import: the facade, ``cli._arenas``, ``cli._failure``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import shmcache
from shmcache.cli._arenas import open_arena
from shmcache.cli._failure import Failure

__all__ = ["in_flight_by_process", "open_queue", "readable"]

T = TypeVar("T")

# Who looks at figures does not wait for a writer that was stopped with the lock in its hands.
_LOCK_SECONDS = 0.1


def open_queue(name: str, owner: int | None, what: str, *, writable: bool = False) -> shmcache.FIFO:
    """A handle of the FIFO ``name``; a Failure if it is another kind, which has not ``what``."""
    arena = open_arena(name, owner, writable=writable)
    if not isinstance(arena, shmcache.FIFO):
        arena.close()
        raise Failure(
            f"only a FIFO has {what}, and arena {name!r} is of the kind {type(arena).__name__}", 2
        )
    return arena


def readable(queue: shmcache.FIFO, owner: int | None, read: Callable[[shmcache.FIFO], T]) -> T:
    """``read(queue)``, with the bytes of each payload in the place of an item that the codec cannot
    decode: it must not hide the others, and may be why an item is a dead letter."""
    try:
        return read(queue)
    except shmcache.CodecError:  # of msgpack: of other codecs attach gives the bytes
        with shmcache.attach(queue.name, owner=owner, codec=_Lenient()) as again:
            assert isinstance(again, shmcache.FIFO)
            return read(again)


def in_flight_by_process(arena: shmcache.Store, owner: int | None = None) -> Counter[int] | None:
    """How many items each process has in flight, by its pid; None if ``arena`` is no FIFO, or if
    its lock is not to be had."""
    if not isinstance(arena, shmcache.FIFO):
        return None
    if arena.stats().in_flight == 0:  # which takes no lock
        return Counter()
    with shmcache.attach(arena.name, owner=owner, lock_timeout=_LOCK_SECONDS) as queue:
        assert isinstance(queue, shmcache.FIFO)
        try:
            return Counter(claim.pid for claim in readable(queue, owner, shmcache.FIFO.in_flight))
        except shmcache.LockTimeoutError:
            return None


class _Lenient(shmcache.MsgpackCodec):
    def decode(self, data: bytes | memoryview) -> Any:
        try:
            return super().decode(data)
        except Exception:
            return bytes(data)
