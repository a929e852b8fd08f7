"""FIFO: one queue of keyed objects that any number of processes may pop.

May import: ``store`` and what it may import.
"""

from __future__ import annotations

import builtins
import math
import queue
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self

from shmcache._errors import CodecError
from shmcache._ports import Codec, KeyFunc
from shmcache.keys import meta_namespace_key_func
from shmcache.store import Store, _at_least_zero, _checked

if TYPE_CHECKING:
    import asyncio

__all__ = ["FIFO"]

# Key, payload, place in the queue: an item between the queue and its consumer. It is in a list that
# the Python frame of the pop owns from the moment that it is taken: a signal handler may raise as
# soon as a native call has returned, and the interpreter then drops what the call returned.
# So in the frame of a pop one try covers every bytecode from there on: a try inside it would begin
# with one that neither covers. What is being decoded says whose error it is.
_Popped = tuple[str, bytes, int]

# A cancelled pop_async leaves a thread of the executor asleep for at most this long.
_ASYNC_SLICE_SECONDS = 0.1


class FIFO(Store):
    """A store whose entries are the items not yet popped, in the order of their arrival.

    Keyed: several adds of one key while it is queued are one item, popped once, at the position
    of the first and with the content of the last. A deleted key is never popped; added again it
    goes to the tail. Every item goes to exactly one :meth:`pop`, whichever processes and threads
    call it; killed consumers and producers hinder nobody.

    Delivery is at most once: an item leaves the queue before it is returned, so a consumer that
    fails must add it back (:meth:`add_if_not_present`, which never replaces a newer version).

    ``has_synced`` and ``wait_for_sync`` are true once the items of the first :meth:`replace` have
    been popped or deleted (client-go's ``HasSynced``): wait for it where items are consumed, not
    before there is a consumer.

    Solves: workers process the latest state of each object, once, in order. Not for histories of
    changes, and not for byte streams.

    >>> fifo = FIFO.create(capacity="1MiB")
    >>> fifo.unlink()
    >>> fifo.add({"metadata": {"name": "web-0"}, "n": 1})
    >>> fifo.update({"metadata": {"name": "web-0"}, "n": 2})
    >>> fifo.pop()
    {'metadata': {'name': 'web-0'}, 'n': 2}
    """

    _kind: ClassVar[str] = "FIFO"

    _waiter: asyncio.Future[object] | None = None
    """The wait of this handle's consumers in an event loop, the last that there was."""

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        writable: bool = True,
        timeout: float = 0.0,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        owner: int | str | None = None,
    ) -> Self:
        """As :meth:`Store.attach`, but writable unless said otherwise: to pop is to write."""
        return super().attach(
            name,
            writable=writable,
            timeout=timeout,
            key_func=key_func,
            codec=codec,
            cache=cache,
            lock_timeout=lock_timeout,
            owner=owner,
        )

    def add_if_not_present(self, obj: Any) -> bool:
        """Queue ``obj`` unless its key is queued; say whether it was added.

        The safe way to retry: a newer version that arrived meanwhile stays.
        """
        return self._core.add(self._key(obj), self._encode(obj), True)

    def pop(self, timeout: float | None = None) -> Any:
        """Remove and return the oldest item, as a private, mutable object.

        Blocks until there is one, at most ``timeout`` seconds (0 does not wait), then
        :class:`queue.Empty`. Raises :class:`~shmcache.ShutDown` once the FIFO is shut down and
        empty. ``KeyboardInterrupt`` and other exceptions of signal handlers leave ``pop`` at
        once, and nothing is lost: an item that was already taken goes back to its place, unless a
        newer version of it has been queued meanwhile.
        """
        hand: builtins.list[_Popped] = []
        decoding: _Popped | None = None
        try:
            self._core.pop(1, None if timeout is None else _at_least_zero(timeout), hand)
            decoding = hand[0]
            return self._codec.decode(decoding[1])
        except BaseException as error:
            if decoding is not None and isinstance(error, Exception):
                # It carries the payload; back in the queue it would fail for ever.
                raise self._undecodable(decoding, error) from error
            if hand:
                self._core.put_back(hand)
            raise

    def pop_many(self, max_items: int, timeout: float | None = None) -> builtins.list[Any]:
        """Remove and return the oldest items, 1 to ``max_items``, in order; wait as :meth:`pop`.

        If one of them cannot be decoded, the :class:`~shmcache.CodecError` has all that were
        taken, as (key, bytes), in ``.obj``.
        """
        if not isinstance(max_items, int):
            raise TypeError(f"max_items is a number of items, not {max_items!r}")
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, and it is {max_items}")
        hand: builtins.list[_Popped] = []
        decoding: _Popped | None = None
        try:
            self._core.pop(min(max_items, sys.maxsize), _checked(timeout), hand)
            decode, objs = self._codec.decode, []
            for taken in hand:
                decoding = taken
                obj = decode(taken[1])
                decoding = None
                objs.append(obj)
            return objs
        except BaseException as error:
            if decoding is not None and isinstance(error, Exception):
                failed = self._undecodable(decoding, error)
                failed.obj = [(key, data) for key, data, _ in hand]
                raise failed from error
            if hand:
                self._core.put_back(hand)
            raise

    def pop_raw(self, timeout: float | None = None) -> tuple[str, bytes]:
        """As :meth:`pop`, past the codec: key and payload bytes."""
        hand: builtins.list[_Popped] = []
        try:
            self._core.pop(1, None if timeout is None else _at_least_zero(timeout), hand)
            key, data, _ = hand[0]
            return key, data
        except BaseException:
            if hand:
                self._core.put_back(hand)
            raise

    async def pop_async(self, timeout: float | None = None) -> Any:
        """As :meth:`pop`, for asyncio. Cancelling it never loses an item.

        A thread of the loop's default executor waits for all consumers of the loop, in short
        slices, so that any number of them leaves the others to the rest of the program; the item
        is taken by the loop's own thread, between two suspensions.
        """
        import asyncio  # 3 MB, and 20 ms of every import of shmcache

        deadline = math.inf if timeout is None else time.monotonic() + (_checked(timeout) or 0.0)
        loop = asyncio.get_running_loop()
        run = loop.run_in_executor
        hand: builtins.list[_Popped] = []
        while True:
            try:
                taken = self._core.poll(hand)
                if taken:
                    return self._decode(hand[0])
            except CodecError:
                raise
            except BaseException:
                if hand:
                    self._core.put_back(hand)
                raise
            if taken is False:  # the lock is taken: not a thing to wait for on the loop
                await run(None, self._core.settle)
                continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise queue.Empty
            waiter = self._waiter
            if waiter is None or waiter.done() or waiter.get_loop() is not loop:
                slice_seconds = min(remaining, _ASYNC_SLICE_SECONDS)
                waiter = self._waiter = run(None, self._core.wait_ready, slice_seconds)
                waiter.add_done_callback(_retrieve)
            # Not awaited itself: cancelling one consumer must not cancel the wait of the others.
            await asyncio.wait((waiter,), timeout=min(remaining, _ASYNC_SLICE_SECONDS))

    def qsize(self) -> int:
        """How many items are queued."""
        return self._core.size()

    def empty(self) -> bool:
        """Whether nothing is queued."""
        return self._core.size() == 0

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue for every process: once it is empty, ``pop`` raises ``ShutDown``.

        What is queued is still popped, unless ``immediate``, which drops it. Adding stays
        allowed (as after ``Close`` in client-go).
        """
        self._core.shut_down(bool(immediate))

    def _decode(self, taken: _Popped) -> Any:
        try:
            return self._codec.decode(taken[1])
        except Exception as cause:
            raise self._undecodable(taken, cause) from cause

    def _undecodable(self, taken: _Popped, cause: Exception) -> CodecError:
        key, data, _ = taken
        return CodecError(
            f"codec {self._codec.name!r} cannot decode the popped payload of {key!r}; "
            f"its {len(data)} bytes are in .obj: {cause!r}",
            data,
        )


def _retrieve(waiter: asyncio.Future[object]) -> None:
    """Take note of an error of the wait: the consumer gets the same from its next look."""
    if not waiter.cancelled():
        waiter.exception()
