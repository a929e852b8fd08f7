"""Every exception of shmcache, and what it means.

    ShmCacheError
    ├── KeyFuncError          (ValueError)         no key: bad object, or a key out of bounds
    ├── CodecError            (ValueError)         an object that the codec cannot encode or decode
    ├── CapacityError         (MemoryError)        the arena or its tmpfs is full; content unchanged
    ├── ArenaExistsError      (FileExistsError)    create: the name is taken
    ├── ArenaNotFoundError    (FileNotFoundError)  attach: no arena of that name
    ├── ArenaPermissionError  (PermissionError)    the operating system, or our own checks, refuse
    ├── InvalidNameError      (ValueError)         not a name that an arena can have
    ├── IncompatibleArenaError                     another kind, codec, layout, or not an arena
    ├── CorruptArenaError                          the segment breaks its own invariants
    ├── ReadOnlyError                              a write through a read-only handle
    ├── ClosedError                                use after close()
    ├── IndexNotFoundError    (KeyError)           no index of that name, or no function for it
    ├── IndexExistsError      (ValueError)         add_indexers: the arena has one of that name
    ├── IndexFuncError        (ValueError)         an index function failed, or gave no list of str
    ├── PriorityFuncError     (ValueError)         a priority function gave what is no priority
    ├── NotFoundError         (KeyError)           a lister has not what was asked for by name
    ├── ClaimLostError                             end or renewal of a claim that was taken away
    ├── LockTimeoutError      (TimeoutError)       a living process holds the lock too long
    ├── ReflectorRunningError                      the store has a living reflector already
    ├── SelectorError         (ValueError)         a label or field selector that cannot be parsed
    ├── ShutDown              (queue.ShutDown)*    pop after shutdown() on an empty queue
    └── ApiError                                   the watched server answered with an error
        └── ExpiredError                           410: the resource version is gone, list again

Each class also derives from the standard exception in brackets, so ``except MemoryError``
or ``except FileNotFoundError`` works for those who do not know shmcache. (* from Python 3.13)
May import: nothing of shmcache.
"""

from __future__ import annotations

import queue
import re
from typing import Any

__all__ = [
    "ApiError",
    "ArenaExistsError",
    "ArenaNotFoundError",
    "ArenaPermissionError",
    "CapacityError",
    "ClaimLostError",
    "ClosedError",
    "CodecError",
    "CorruptArenaError",
    "ExpiredError",
    "IncompatibleArenaError",
    "IndexExistsError",
    "IndexFuncError",
    "IndexNotFoundError",
    "InvalidNameError",
    "KeyFuncError",
    "LockTimeoutError",
    "NotFoundError",
    "PriorityFuncError",
    "ReadOnlyError",
    "ReflectorRunningError",
    "SelectorError",
    "ShmCacheError",
    "ShutDown",
]


class ShmCacheError(Exception):
    """Base of everything that shmcache raises on purpose."""


class KeyFuncError(ShmCacheError, ValueError):
    """A key function failed on ``obj``, or gave something that cannot be a key.

    The key function's own exception is the ``__cause__``. Nothing was changed.
    """

    def __init__(self, message: str, obj: object = None) -> None:
        super().__init__(message)
        self.obj = obj


class CodecError(ShmCacheError, ValueError):
    """A codec could not encode ``obj`` or decode the bytes ``obj``; the cause is chained."""

    def __init__(self, message: str, obj: object = None) -> None:
        super().__init__(message)
        self.obj = obj


class CapacityError(ShmCacheError, MemoryError):
    """The arena, or the file system below it, has no room. The content is as it was."""


class ArenaExistsError(ShmCacheError, FileExistsError):
    """``create`` found the name taken."""


class ArenaNotFoundError(ShmCacheError, FileNotFoundError):
    """``attach`` or ``unlink`` found no arena of that name."""


class ArenaPermissionError(ShmCacheError, PermissionError):
    """The arena belongs to somebody else, or is not as private as it must be."""


class InvalidNameError(ShmCacheError, ValueError):
    """A name that no arena can have: empty, too long, or with a character like ``/``."""


class IncompatibleArenaError(ShmCacheError):
    """Something of that name exists, and it is not an arena that this handle can use."""


class CorruptArenaError(ShmCacheError):
    """The segment breaks its own invariants; ``check()`` lists which."""


class ReadOnlyError(ShmCacheError):
    """A write was asked of a handle attached without ``writable=True``."""


class ClosedError(ShmCacheError):
    """The handle was closed."""


class IndexNotFoundError(ShmCacheError, KeyError):
    """The indexer has no index of that name."""

    def __str__(self) -> str:  # KeyError would show repr(message)
        return str(self.args[0]) if self.args else ""


class IndexExistsError(ShmCacheError, ValueError):
    """``add_indexers`` found one of the names taken; none was added."""


class IndexFuncError(ShmCacheError, ValueError):
    """An index function failed on ``obj``, or gave something that cannot be its values.

    The function's own exception is the ``__cause__``. Nothing was changed.
    """

    def __init__(self, message: str, obj: object = None) -> None:
        super().__init__(message)
        self.obj = obj


class PriorityFuncError(ShmCacheError, ValueError):
    """A priority function gave something that is no priority. Nothing was changed."""


class NotFoundError(ShmCacheError, KeyError):
    """A lister has no object of that name, or none that belongs to it."""

    __str__ = IndexNotFoundError.__str__


class ClaimLostError(ShmCacheError):
    """The end of a claim, or of the work on a key, that is not this process's any more; or
    ``renew()`` of one that has ended.

    Its lease ran out, or the handle was closed, or a forked child asks for its parent's: the item
    went back to the queue, and somebody else may have handled it, or does now.
    """


class LockTimeoutError(ShmCacheError, TimeoutError):
    """A living process kept the arena's lock for longer than the handle waits.

    ``pid`` is the holder in its own PID namespace. A dead holder never causes this: it is
    replaced.
    """

    def __init__(self, message: str, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain_error, (type(self), str(self), vars(self))


class ReflectorRunningError(ShmCacheError):
    """The store has a living reflector already, in the process ``pid`` (0 if that is unknown)."""

    def __init__(self, message: str, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


class SelectorError(ShmCacheError, ValueError):
    """A selector that cannot be parsed. The message shows the text with a caret at the place.

    ``text`` is the selector and ``position`` the index in it at which parsing failed.
    """

    def __init__(self, message: str, text: str, position: int) -> None:
        # A caret only lines up under text that is one line wide as printed.
        shown = re.sub(r"\s", " ", text)
        super().__init__(f"{message}\n    {shown}\n    {' ' * position}^")
        self.text = text
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain_error, (type(self), str(self), vars(self))


_QueueShutDown: type[Exception] = getattr(queue, "ShutDown", Exception)


class ShutDown(ShmCacheError, _QueueShutDown):  # type: ignore[misc,valid-type]
    """The queue was shut down and holds nothing more.

    A subclass of :class:`queue.ShutDown` where Python has it (3.13). Never of
    :class:`queue.Empty`, so that a loop which retries when empty ends.
    """


class ApiError(ShmCacheError):
    """The server answered with an error ``status`` (an HTTP status code, 0 if there was none).

    ``retry_after`` is the number of seconds that the server asked us to wait, or None.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain_error, (type(self), str(self), vars(self))


class ExpiredError(ApiError):
    """410 Gone: the resource version (or continue token) is too old, list again."""

    def __init__(
        self, message: str = "the resource version is too old", *, retry_after: float | None = None
    ) -> None:
        super().__init__(410, message, retry_after=retry_after)


class ReindexedError(ShmCacheError):
    """The arena has other indexes than a write was made for. Private: the write is made anew."""


def _plain_error(cls: type[Exception], text: str, fields: dict[str, Any]) -> Exception:
    """An error as it was, without calling its constructor: how those with other arguments than
    their text come out of a pickle (a worker's error on its way to the parent)."""
    error = cls.__new__(cls)
    Exception.__init__(error, text)
    vars(error).update(fields)
    return error
