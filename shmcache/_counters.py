"""What a reflector counts. May import: ``_types``."""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmcache._types import ReflectorStats

__all__ = ["Counters"]


class Counters:
    """The figures of :class:`~shmcache.ReflectorStats`, where they are counted.

    All but the errors are written by the reflector's own thread alone; others read single
    values, and a stale one is fine.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lists = self.watches = self.events = self.dropped = 0
        self.last_event: float | None = None
        self.last_contact: float | None = None
        self._clock = clock
        # Re-entrant, because a signal handler may ask for the figures.
        self._lock = threading.RLock()
        self._errors = 0  # guarded by _lock, as are the next two: resync has its own thread
        self._last_error = ""
        self._failed: float | None = None

    def error(self, exc: Exception) -> None:
        """Count an error, in any thread."""
        with self._lock:
            self._errors += 1
            self._last_error = f"{type(exc).__name__}: {exc}"
            self._failed = self._clock()

    def stats(self) -> ReflectorStats:
        """Return the figures, in any thread."""
        with self._lock:
            errors, last_error, failed = self._errors, self._last_error, self._failed
        return ReflectorStats(
            lists=self.lists,
            watches=self.watches,
            events=self.events,
            dropped=self.dropped,
            errors=errors,
            last_error=last_error,
            last_event_monotonic=self.last_event,
            last_contact_monotonic=self.last_contact,
            last_error_monotonic=failed,
        )
