"""A watch that is open, and how long it has been silent.

A server ends its watches by itself, and tells of its health by bookmarks until then. So one
that has said nothing for longer than the whole watch was to last is gone, behind a peer or a
proxy that keeps the connection. May import: ``_failures``, ``_logging``, ``_types``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from shmcache._failures import VeryShortWatchError
from shmcache._logging import Log
from shmcache._types import Event

__all__ = ["GRACE", "INITIAL_SILENCE", "OpenWatch"]

GRACE = 15.0
"""Seconds. How much later than ``timeout_seconds`` a server may be in ending a watch."""

INITIAL_SILENCE = 30.0
"""Seconds. A server that streams a list sends it without a pause, and then says that this was
all; one that is silent for so long in between does not know that it should. (It waits itself for
its cache to be recent, some seconds at most.)"""

_VERY_SHORT = 1.0
"""Seconds. A healthy server holds a watch for minutes; one that ends a watch at once would
otherwise be asked again as fast as it can refuse."""


class OpenWatch:
    """Iterates over the events of ``stream``, in one thread; any thread may close it.

    ``timeout``: the ``timeout_seconds`` that were asked for. ``started``: when it was asked for
    (some proxies send nothing before the first event, not even that a watch is open).
    ``ordered``: whether the version of an ADDED event is one to resume from; it is not while a
    watch that was opened without a version begins with what is there. ``initial``: whether it
    begins with the initial events, and their end has not come.
    """

    def __init__(
        self,
        stream: Iterable[Event[Any] | Mapping[str, Any]],
        timeout: int,
        ordered: bool,
        initial: bool,
        started: float,
        clock: Callable[[], float],
        log: Log,
    ) -> None:
        self.ordered = ordered
        self.initial = initial
        self.understood = False  # whether an event came that means something
        self.heard = clock()
        self._started = started
        self._stream = stream
        self._events: Iterator[Event[Any] | Mapping[str, Any]] | None = None
        self._timeout = timeout
        self._clock = clock
        self._log = log
        self._overdue = False

    def __iter__(self) -> Iterator[Event[Any] | Mapping[str, Any]]:
        return self

    def __next__(self) -> Event[Any] | Mapping[str, Any]:
        try:
            if self._events is None:  # only now: this may block already, and close() must reach us
                self._events = iter(self._stream)
            event = next(self._events)
        except Exception:
            if self._overdue:  # a watch that is closed under its reader may fail in any way
                raise StopIteration from None
            raise
        self.heard = self._clock()
        return event

    def lasted(self) -> float:
        """Return the seconds since it was asked for."""
        return self._clock() - self._started

    def is_over(self) -> bool:
        """Return whether it was open for as long as it was to be, or given up."""
        return self._overdue or self.lasted() >= self._timeout

    def check_end(self, name: str) -> None:
        """Raise :class:`VeryShortWatchError` if this was none, of the reflector ``name``."""
        if not self.understood and self.lasted() < _VERY_SHORT:
            raise VeryShortWatchError(
                f"reflector {name!r}: the watch ended in under {_VERY_SHORT:g} s without an event"
            )

    def patience(self) -> float:
        """Return the seconds of silence that are left to it."""
        longest = INITIAL_SILENCE if self.initial else self._timeout + GRACE
        return self.heard + longest - self._clock()

    def give_up(self) -> None:
        """Let whatever :meth:`close` causes be an ordinary end: it has been silent too long."""
        self._overdue = True

    def close(self) -> None:
        """Close the stream, if it can be."""
        close = getattr(self._stream, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as exc:  # a generator that runs in another thread refuses
            self._log.debug("closing the watch: %s", exc)
