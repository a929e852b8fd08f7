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

__all__ = ["Queue", "in_flight_by_process", "open_queue", "readable"]

T = TypeVar("T")

Queue = shmcache.FIFO | shmcache.WorkQueue

# Who looks at figures does not wait for a writer that was stopped with the lock in its hands.
_LOCK_SECONDS = 0.1


def open_queue(name: str, owner: int | None, what: str, *, writable: bool = False) -> Queue:
    """A handle of the queue ``name``; a Failure if it is a Store, which has not ``what``."""
    arena = open_arena(name, owner, writable=writable)
    if not isinstance(arena, Queue):
        arena.close()
        raise Failure(
            f"only a FIFO or a WorkQueue has {what}, and arena {name!r} is of the kind "
            f"{type(arena).__name__}",
            2,
        )
    return arena


def readable(queue: Queue, owner: int | None, read: Callable[[Queue], T]) -> T:
    """``read(queue)``, with the bytes of each payload in the place of an item that the codec cannot
    decode: it must not hide the others, and may be why an item is a dead letter."""
    try:
        return read(queue)
    except shmcache.CodecError:  # of msgpack: of other codecs attach gives the bytes
        with shmcache.attach(queue.name, owner=owner, codec=_Lenient()) as again:
            assert isinstance(again, shmcache.FIFO)
            return read(again)


def in_flight_by_process(
    arena: shmcache.Store | shmcache.WorkQueue, owner: int | None = None
) -> Counter[int] | None:
    """How many items each process has in flight, by its pid; None if ``arena`` is no queue, or if
    its lock is not to be had."""
    if not isinstance(arena, Queue):
        return None
    if arena.stats().in_flight == 0:  # which takes no lock
        return Counter()
    with shmcache.attach(arena.name, owner=owner, lock_timeout=_LOCK_SECONDS) as queue:
        assert isinstance(queue, Queue)
        try:
            return Counter(
                claim.pid for claim in readable(queue, owner, lambda queue: queue.in_flight())
            )
        except shmcache.LockTimeoutError:
            return None


class _Lenient(shmcache.MsgpackCodec):
    def decode(self, data: bytes | memoryview) -> Any:
        try:
            return super().decode(data)
        except Exception:
            return bytes(data)
