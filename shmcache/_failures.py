"""What a failure of a source asks of a reflector: which of them need no list, which a newer one.

May import: ``_backoff``, ``_errors``.
"""

from __future__ import annotations

from shmcache._backoff import RetryWindow
from shmcache._errors import ApiError, ExpiredError, ShmCacheError

__all__ = [
    "EndedEarlyError",
    "NoEndError",
    "VeryShortWatchError",
    "may_watch_again",
    "needs_no_list",
    "version_unavailable",
]


class VeryShortWatchError(ShmCacheError):
    """The watch ended within a second and without an event."""


class EndedEarlyError(ShmCacheError):
    """A stream ended before its initial events did, and in less than its time."""


class NoEndError(ShmCacheError):
    """A stream lasted all its time and did not mark the end of its initial events."""


def needs_no_list(exc: Exception) -> bool:
    """Return whether the server is only down or busy, and has lost nothing."""
    return isinstance(exc, ConnectionRefusedError) or (
        isinstance(exc, ApiError) and exc.status == 429
    )


def may_watch_again(exc: Exception, window: RetryWindow, quiet: float) -> bool:
    """Return whether a watch may follow this one, ``quiet`` seconds after the last failure."""
    if isinstance(exc, ApiError) and exc.status == 500:
        return window.admits(quiet)
    return needs_no_list(exc)


def version_unavailable(exc: Exception) -> bool:
    """Return whether the server cannot serve the version that it was asked for."""
    # One that is behind (or was restored from a backup) does not know a version yet.
    return isinstance(exc, ExpiredError) or (
        isinstance(exc, ApiError)
        and exc.status == 504
        and "too large resource version" in exc.message.lower()
    )
