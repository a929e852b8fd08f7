"""FIFO: one queue of keyed objects that any number of processes may pop.

May import: ``claims``, ``store`` and what it may import.
"""

from __future__ import annotations

import builtins
import math
import queue
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Self

from shmcache._core import Token
from shmcache._errors import CodecError
from shmcache._handle import _at_least_zero, _attempts, _checked
from shmcache._ports import Codec, KeyFunc, PriorityFunc
from shmcache._types import DeadLetter, InFlight
from shmcache.claims import FAILED, RELEASED, Claim, checked_lease
from shmcache.keys import meta_namespace_key_func
from shmcache.store import Store

__all__ = ["FIFO"]

# Key, payload, place in the queue: an item between the queue and its consumer. It is in a list that
# the Python frame of the pop owns from the moment that it is taken: a signal handler may raise as
# soon as a native call has returned, and the interpreter then drops what the call returned.
# So in the frame of a pop one try covers every bytecode from there on: a try inside it would begin
# with one that neither covers. What is being decoded says whose error it is.
_Popped = tuple[str, bytes, int]

# Key, payload, what the core knows the claim by, failures before: as above. With the last reference
# to the third the core releases the claim, unless it has ended.
_Claimed = tuple[str, bytes, Token, int]

# Key, payload, failures, pid, seconds left of its lease or None, seconds since it was claimed, or
# since it has been dead.
_Held = tuple[str, bytes, int, int, float | None, float]


class FIFO(Store):
    """A store whose entries are the items not yet popped, in the order of their arrival.

    Keyed: several adds of one key while it is queued are one item, popped once, at the position
    of the first and with the content of the last. A deleted key is never popped; added again it
    goes to the tail. Every item goes to exactly one :meth:`pop`, whichever processes and threads
    call it; killed consumers and producers hinder nobody.

    Delivery by :meth:`pop` is at most once: an item leaves the queue before it is returned, so a
    consumer that fails must add it back (:meth:`add_if_not_present`, which never replaces a newer
    version), and what a killed one had is lost. By :meth:`claim` it is at least once: the item
    stays until the work is done.

    ``has_synced`` and ``wait_for_sync`` are true once the items of the first :meth:`replace` have
    been popped or deleted, or at once where the first item was added by itself (client-go's
    ``HasSynced``): wait for it where items are consumed, not before there is a consumer.

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

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        max_attempts: int = 0,
        priority_func: PriorityFunc | None = None,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        capacity: int | str = "1GiB",
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        mode: int = 0o600,
    ) -> Self:
        """As :meth:`Store.create`. ``max_attempts``: after so many failed claims an item is a dead
        letter, 0 for never; it belongs to the arena, whoever attaches.

        ``priority_func``: a function of the key that gives the priority of what this handle adds,
        an int from 0, as without it, to 7. The more urgent item goes first, but nobody starves: it
        stands as if it had been queued 10 seconds earlier for each step. Those of one priority go
        in the order of the queue. An update that gives a key another priority changes where it
        stands, and not when it was queued. What the function raises leaves the call; what is no
        priority is a :class:`~shmcache.PriorityFuncError`.

        >>> with FIFO.create(capacity="1MiB", priority_func=lambda key: 7 * key.startswith("kube-")
        ... ) as pods:
        ...     for namespace in ("web", "kube-system", "shop"):
        ...         pods.add({"metadata": {"namespace": namespace, "name": "a"}})
        ...     [pods.pop_raw()[0] for _ in range(3)]
        ...     pods.unlink()
        ['kube-system/a', 'web/a', 'shop/a']
        """
        self = cls._prepare(
            True,
            key_func,
            codec,
            cache,
            lock_timeout,
            mode=mode,
            max_attempts=_attempts(max_attempts),
            priority_func=priority_func,
        )
        self._create(name, capacity)
        return self

    @classmethod
    def open(
        cls,
        name: str,
        *,
        max_attempts: int = 0,
        priority_func: PriorityFunc | None = None,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        capacity: int | str = "1GiB",
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        mode: int = 0o600,
        owner: int | str | None = None,
    ) -> Self:
        """As :meth:`Store.open`; ``max_attempts`` as for :meth:`create`, if it creates, and
        ``priority_func`` in any case."""
        self = cls._prepare(
            True,
            key_func,
            codec,
            cache,
            lock_timeout,
            mode=mode,
            owner=owner,
            max_attempts=_attempts(max_attempts),
            priority_func=priority_func,
        )
        self._open(name, capacity)
        return self

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        writable: bool = True,
        timeout: float = 0.0,
        priority_func: PriorityFunc | None = None,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        owner: int | str | None = None,
    ) -> Self:
        """As :meth:`Store.attach`, but writable unless said otherwise: to pop is to write.
        ``priority_func`` as for :meth:`create`: all that add need the same."""
        self = cls._prepare(
            writable,
            key_func,
            codec,
            cache,
            lock_timeout,
            owner=owner,
            priority_func=priority_func,
        )
        self._attach(name, writable, timeout)
        return self

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
            if decoding is not None and isinstance(error, Exception) and self._fails(decoding):
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
            if decoding is not None and isinstance(error, Exception) and self._fails(decoding):
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
                await asyncio.get_running_loop().run_in_executor(None, self._core.settle)
                continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise queue.Empty
            await self._sleeper.sleep(self._core.wait_ready, remaining)

    def claim(self, timeout: float | None = None, lease: float | None = None) -> Claim[Any]:
        """Take the oldest item and keep it in flight until the claim ends: work that is not lost.

        ``with fifo.claim() as item:`` is done when the block is, and gives the item back if that
        raises (see :class:`~shmcache.Claim`). It also goes back, to its old place and with one
        attempt more, when this process dies, however it does: the kernel says so, no clock. Who
        waits in ``pop`` or ``claim`` gets it within some 100 milliseconds. ``lease``: seconds after
        which it goes back although this process lives; None for never.

        Until the claim ends nobody gets the same key: a newer version that is added meanwhile
        waits, and replaces what failed. A delete, or a ``replace``, of what is in flight keeps it
        from coming back. What is in flight is not in ``get``, ``list`` and ``len``; ``in_flight``
        has it. After ``max_attempts`` (of :meth:`create`) it is in ``dead_letters``.

        Blocks, and raises :class:`queue.Empty` and :class:`~shmcache.ShutDown`, as :meth:`pop`. A
        payload that the codec cannot decode is a :class:`~shmcache.CodecError`, and has failed.

        client-go has nothing of the kind: its ``Pop`` leaves what a dead consumer had to the next
        list.
        """
        lease = checked_lease(lease)
        hand: builtins.list[_Claimed] = []
        decoding: _Claimed | None = None
        try:
            self._core.claim(lease, None if timeout is None else _at_least_zero(timeout), hand)
            decoding = hand[0]
            key, data, token, failures = decoding
            return Claim(self._core, key, self._codec.decode(data), token, failures + 1)
        except BaseException as error:
            if decoding is not None and isinstance(error, Exception) and self._fails(decoding):
                self._core.end_claim(decoding[2], FAILED)
                raise self._undecodable((decoding[0], decoding[1], 0), error) from error
            if hand:
                self._core.end_claim(hand[0][2], RELEASED)
            raise

    def in_flight(self) -> builtins.list[InFlight[Any]]:
        """What consumers have claimed, in the order of the claims. What a dead one had is gone
        back to the queue before, if this handle is writable."""
        return [
            InFlight(key, item, pid, failures + 1, lease, age)
            for (key, _, failures, pid, lease, age), item in self._held(False)
        ]

    def dead_letters(self) -> builtins.list[DeadLetter[Any]]:
        """What failed ``max_attempts`` times, in the order of its last claims. The key can be added
        again all the same. If the codec cannot decode one of them, all are in the ``.obj`` of the
        :class:`~shmcache.CodecError`, as key and bytes."""
        return [
            DeadLetter(key, item, failures, age)
            for (key, _, failures, _, _, age), item in self._held(True)
        ]

    def _held(self, dead: bool) -> Iterator[tuple[_Held, Any]]:
        """All or nothing: a codec's error has them all, key and payload, in ``.obj``."""
        held = self._core.held(dead)
        for one in held:
            try:
                item = self._decode((one[0], one[1], 0))
            except CodecError as error:
                error.obj = [(key, data) for key, data, *_ in held]
                raise
            yield one, item

    def retry(self, key: str) -> bool:
        """Queue a dead letter again, at the tail and with all its attempts; unless a newer version
        of the key is there, which then stands for it. Whether there was one."""
        return self._core.settle_dead(key, False)

    def drop(self, key: str) -> bool:
        """Remove a dead letter. Whether there was one."""
        return self._core.settle_dead(key, True)

    def qsize(self) -> int:
        """How many items could be popped now."""
        return self._core.waiting()

    def empty(self) -> bool:
        """Whether nothing could be popped now."""
        return self._core.waiting() == 0

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue for every process: once it is empty, ``pop`` raises ``ShutDown``.

        What is queued is still popped, unless ``immediate``, which drops it. A consumer waits for
        what others have in flight too, as it may come back to the queue; after an ``immediate`` end
        it does not. Adding stays allowed (as after ``Close`` in client-go).
        """
        self._core.shut_down(bool(immediate))

    def _decode(self, taken: _Popped) -> Any:
        try:
            return self._codec.decode(taken[1])
        except Exception as cause:
            if not self._fails(taken):
                raise
            raise self._undecodable(taken, cause) from cause

    def _fails(self, taken: _Popped | _Claimed) -> bool:
        """Whether it is the codec that fails, and not a signal handler that ran while it was at
        work: those raise an ``Exception`` too, a time limit, say."""
        try:
            self._codec.decode(taken[1])
        except Exception:
            return True
        return False

    def _undecodable(self, taken: _Popped, cause: Exception) -> CodecError:
        key, data, _ = taken
        return CodecError(
            f"codec {self._codec.name!r} cannot decode the payload of {key!r}; "
            f"its {len(data)} bytes are in .obj: {cause!r}",
            data,
        )
