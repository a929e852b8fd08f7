"""Watch: the changes of a store, one after the other, in any process that reads it.

The work is done by the core (``Changes`` in bind.cpp): it compares what the store holds with what
this watch has given. Here are waiting, ending and asyncio. May import: ``_core``, ``_errors``,
``_handle``, ``_sleeper``, ``_types``.
"""

from __future__ import annotations

import builtins
import contextlib
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from shmcache._core import Arena
from shmcache._errors import ClosedError, CodecError
from shmcache._handle import _checked
from shmcache._sleeper import Sleeper, take_note
from shmcache._types import Change

if TYPE_CHECKING:
    import asyncio

__all__ = ["Watch"]

T = TypeVar("T")


class Watch(Generic[T]):
    """The content of a store as ``ADDED``, and then its changes; made by :meth:`Store.watch`.

    An iterator, an async iterator and a context manager, of :class:`~shmcache.Change`. What it has
    given adds up to the content of the store: a list and a watch of the Kubernetes API in one,
    without the gap between them.

    * Every look at the store is at one instant, and gives each key at most once: changes of a key
      that follow each other faster than they are read arrive as one. A key that was deleted and
      added again meanwhile is ``MODIFIED``; one that came and went is not there at all.
    * ``old`` is always what this watch last gave of that key, and so is the ``object`` of a
      ``DELETED``.
    * Nothing that lasts is skipped. The store remembers its last changes, and who falls behind that
      gets the difference all the same, for the price of a look at all entries
      (:attr:`fell_behind`). The same after a writer was killed and what it left was repaired.
    * Of one look the added and modified come in the order in which they were written (of a
      ``replace``, in that of its list), and a deletion where it was made; one whose entry had been
      updated since the last look, and what a ``replace`` left out, earlier than that.

    It keeps the objects that it has given, as many as the store has, and some 50 bytes for each;
    they are those that ``get_by_key`` returns, shared and read-only. (So for a thousand clients of
    one process make one watch, and hand its changes on.) One thread at a time may read it, and any
    may :meth:`close` it; who shares a store makes a watch each. After a fork the child goes on by
    itself from where its parent was.

    An entry that the codec cannot decode delays nobody: the others are given, then a look raises
    one :class:`~shmcache.CodecError`, and until that entry changes it stands as it was given last,
    if it ever was (:attr:`unread`). A watch goes on after an error.

    After the watch and list of client-go's ``ListWatch``; it has no resource versions, and no error
    of the kind "too old".
    """

    def __init__(self, core: Arena, sleeper: Sleeper, timeout: float | None, initial: bool) -> None:
        self._core = core
        self._changes = core.changes(Change)
        self._sleeper = sleeper
        self._timeout = timeout
        # The next to give is the last. The core puts them here, rather than to return them, so that
        # an exception of a signal handler loses none.
        self._hand: builtins.list[Change[T]] = []
        self._looked = False
        self._synced = False
        self._closed = False
        self._looking: asyncio.Future[None] | None = None
        if not initial:
            for _ in range(2):  # what it cannot decode it says after the look, and has to give none
                with contextlib.suppress(CodecError):
                    self._look(0)
            self._looked = True
            self._hand = []
            self._synced = True

    # --- what there is to know ------------------------------------------------------------------

    @property
    def synced(self) -> bool:
        """Whether all that the store held at the first look has been given.

        The content of a store may itself be incomplete; that :attr:`Store.has_synced` says.
        """
        return self._synced

    @property
    def fell_behind(self) -> int:
        """How often all entries were compared, because there was more to tell than a store
        remembers: some 256 to 65,536 changes, by its capacity, of which an update is two. A repair
        and a large ``replace`` count too."""
        return self._changes.fell_behind

    @property
    def unread(self) -> int:
        """How many entries are in a version that the codec could not decode."""
        return self._changes.unread

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    # --- reading --------------------------------------------------------------------------------

    def take(self, timeout: float | None = None) -> builtins.list[Change[T]]:
        """All changes since the last, at one instant; waits for one up to ``timeout`` seconds.

        None waits for as long as it takes, 0 not at all; ``[]`` if there was none. The first call
        returns the content at once, also if there is none. Raises
        :class:`~shmcache.ClosedError` after :meth:`close` of this watch or of the store, and
        :class:`~shmcache.CodecError` and :class:`~shmcache.CorruptArenaError` as other reads do.

        >>> from shmcache import Store
        >>> with Store.create(capacity="1MiB") as store:
        ...     store.unlink()
        ...     with store.watch(initial=False) as watch:
        ...         store.add({"metadata": {"name": "a"}, "n": 1})
        ...         store.add({"metadata": {"name": "a"}, "n": 2})
        ...         [(change.type, change.object["n"]) for change in watch.take()]
        [('ADDED', 2)]
        """
        if self._closed:
            raise ClosedError("this watch is closed: call watch() of the store for another")
        timeout = _checked(timeout)
        if not self._hand:
            self._look(timeout)
        self._synced = True
        hand = self._hand
        taken = hand[::-1]
        try:
            del hand[:]
            return taken
        except BaseException:  # of a signal handler
            hand[:] = taken[::-1]
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change[T]:
        hand = self._hand
        if not hand:
            self._refill()
            hand = self._hand
            if not hand or self._closed:
                raise StopIteration
        if len(hand) == 1:
            self._synced = True
        change = hand[-1]
        try:
            del hand[-1]
            return change
        except BaseException:  # of a signal handler
            if not (hand and hand[-1] is change):
                hand.append(change)
            raise

    def _refill(self) -> None:
        """Look until there is something in the hand; nothing is, if this has ended."""
        if not self._looked and not self._closed:
            self._look(None)
            if self._hand:
                return
            self._synced = True
        if not self._closed:
            self._look(self._timeout)

    def _look(self, timeout: float | None) -> None:
        # The first does not wait: there may be nothing, and then that is what there is.
        self._changes.next(timeout if self._looked else 0, self._hand)
        self._looked = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[T]:
        if not self._hand:
            await self._refill_async()
            if not self._hand or self._closed:
                raise StopAsyncIteration
        try:
            return next(self)
        except StopIteration:  # closed just now, by another thread
            raise StopAsyncIteration from None

    async def _refill_async(self) -> None:
        """As :meth:`_refill`. A thread of the loop's executor looks, and what it finds is in our
        hand: cancelling this loses nothing."""
        until = math.inf if self._timeout is None else time.monotonic() + self._timeout
        while not self._hand and not self._closed:
            version = self._core.version()  # first: what changes after the look wakes us
            if not (self._looked and self._changes.current()):
                await self._look_async()
            if self._hand:
                return
            self._synced = True
            left = until - time.monotonic()
            if left <= 0:
                return
            await self._sleeper.sleep(partial(self._core.wait_change, version), left)

    async def _look_async(self) -> None:
        import asyncio  # 3 MB, and 20 ms of every import of shmcache

        loop, looking = asyncio.get_running_loop(), self._looking
        if looking is None or looking.get_loop() is not loop:
            looking = self._looking = loop.run_in_executor(None, self._look, 0)
            looking.add_done_callback(take_note)
        # Not awaited itself: it goes on when we are cancelled, and the next call waits for it.
        await asyncio.wait((looking,))
        self._looking = None
        looking.result()

    # --- its end --------------------------------------------------------------------------------

    def close(self) -> None:
        """End it, and let go of what it keeps. Idempotent; any thread may call it.

        Who iterates over it in another thread ends within some 100 milliseconds.
        """
        self._closed = True
        self._hand = []  # another: a thread may be about to take from this one
        self._changes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
