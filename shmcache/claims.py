"""Claim: an item that a consumer works on, and that comes back if the consumer dies.

May import: ``_core``, ``_errors``.
"""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

from shmcache._core import Arena, Token
from shmcache._errors import ClaimLostError

__all__ = ["DONE", "FAILED", "RELEASED", "Claim", "checked_lease"]

T = TypeVar("T")

DONE, FAILED, RELEASED = range(3)  # Arena::End

_FOREVER = 1e9  # seconds: what the core takes for no limit


class Claim(Generic[T]):
    """An item in flight, made by :meth:`FIFO.claim <shmcache.FIFO.claim>`. As a context manager it
    gives the item, and ends the claim as the block ends:

    =================================  ===========================================================
    the block                          the item
    =================================  ===========================================================
    ends                               is done
    raises an ``Exception``            goes back to its place, with one attempt more
    raises another ``BaseException``   goes back as it was: Ctrl-C, ``SystemExit`` and a cancelled
                                       task are not its fault
    =================================  ===========================================================

    The exception goes on. A claim that nobody refers to any more, and that has not ended, goes back
    as it was. Unlike the objects that a store gives out, the item is private.

    >>> import shmcache
    >>> with shmcache.FIFO.create(capacity="1MiB") as jobs:
    ...     jobs.add({"metadata": {"name": "job-1"}, "n": 3})
    ...     with jobs.claim() as job:
    ...         print("working on", job["n"], "of", len(jobs.in_flight()))
    ...     len(jobs), len(jobs.in_flight())
    ...     jobs.unlink()
    working on 3 of 1
    (0, 0)
    """

    __slots__ = ("_core", "_token", "attempt", "item", "key")

    key: str
    item: T
    attempt: int
    """1 if no claim of the item has failed before."""

    def __init__(self, core: Arena, key: str, item: T, token: Token, attempt: int) -> None:
        self._core = core
        self._token = token  # with its last reference a claim that has not ended is released
        self.key = key
        self.item = item
        self.attempt = attempt

    def done(self) -> None:
        """The work is done: the item leaves the queue for good. A newer version of it that came
        meanwhile is queued now.

        Raises :class:`~shmcache.ClaimLostError` if the claim was taken away before. After an end
        of any kind it does nothing.
        """
        if not self._end(DONE):
            raise ClaimLostError(
                f"the claim of {self.key!r} is not this process's any more: its lease has run out, "
                "or its handle was closed, or this is a forked child. The item went back to the "
                "queue, so what was done may be done twice"
            )

    def fail(self) -> None:
        """The work has failed: the item goes back to its place, with one attempt more, or, after
        ``max_attempts``, to the dead letters. Nothing, if the claim was taken away or has ended.
        """
        self._end(FAILED)

    def release(self) -> None:
        """Give the item back as it was. Nothing, if the claim was taken away or has ended."""
        self._end(RELEASED)

    def renew(self, lease: float | None) -> None:
        """Hold the claim for ``lease`` seconds from now, None for as long as this process lives.

        Raises :class:`~shmcache.ClaimLostError` if it was taken away, or has ended, and
        ``ValueError`` if ``lease`` is not above 0.
        """
        lease = checked_lease(lease)
        if self._token.ended or not self._core.renew(self._token, lease):
            raise ClaimLostError(f"the claim of {self.key!r} has ended: it cannot be renewed")

    def _end(self, how: int) -> bool:
        return self._token.ended or self._core.end_claim(self._token, how)

    def __enter__(self) -> T:
        return self.item

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.done()
        elif issubclass(kind, Exception):
            self.fail()
        else:
            self.release()

    def __repr__(self) -> str:
        state = "ended" if self._token.ended else "in flight"
        return f"<Claim of {self.key!r}, attempt {self.attempt}, {state}>"


def checked_lease(lease: float | None) -> float | None:
    """``lease``, if it is one, and no longer than for ever; ValueError or TypeError if not."""
    if lease is None:
        return None
    if not isinstance(lease, (int, float)):
        raise TypeError(f"lease is a number of seconds, or None for no end, and not {lease!r}")
    if not lease > 0:  # also NaN
        raise ValueError(f"lease is seconds above 0, or None for no end, and not {lease!r}")
    return min(lease, _FOREVER)
