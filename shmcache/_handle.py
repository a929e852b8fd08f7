"""Handle: one process's access to an arena, of whatever kind; what all kinds have in common.

It opens and closes, pickles, survives ``fork``, and looks inside. What is in the arena is the
business of the subclasses. May import: ``_arena``, ``_core``, ``_errors``, ``_types``.
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar, Never, Self

from shmcache import _arena
from shmcache._core import Arena
from shmcache._errors import ArenaNotFoundError, ClosedError, CorruptArenaError
from shmcache._types import Stats, WorkerInfo

__all__ = ["Handle"]

_FOREVER = 1e9  # seconds: what the core takes for no limit
_MOST_ATTEMPTS = 65_535


class Handle:
    """Base of the classes that users open arenas with.

    A subclass makes itself without ``__init__``, sets ``_opening`` and ``_options``, and calls one
    of ``_create``, ``_attach`` and ``_open``. ``_options`` are those of its ``attach``, by which a
    handle attaches again where it is unpickled.
    """

    _kind: ClassVar[str]

    _core: Arena
    _name: str
    _opening: _arena.Opening
    _options: dict[str, Any]
    _identity: tuple[int, int]

    def __init__(self, *arguments: Never, **options: Never) -> None:
        raise TypeError(f"use {type(self).__name__}.create(), .attach() or .open()")

    def _create(self, name: str | None, capacity: int | str) -> None:
        self._use(*self._opening.create(name, _arena.parse_size(capacity)))

    def _attach(self, name: str, writable: bool, timeout: float) -> None:
        self._use(self._opening.attach(name, bool(writable), _at_least_zero(timeout)), name)

    def _open(self, name: str, capacity: int | str) -> None:
        self._use(self._opening.open(name, _arena.parse_size(capacity)), name)

    def _use(self, core: Arena, name: str) -> None:
        self._core, self._name, self._identity = core, name, core.identity

    def close(self) -> None:
        """Let go of this handle. The arena and the handles of others stay. Idempotent."""
        self._core.close()

    def unlink(self) -> None:
        """Remove the name of this arena; who is attached goes on. Idempotent.

        An arena that has meanwhile taken the same name is left alone.
        """
        if _arena.identity(self._name) == self._identity:
            with contextlib.suppress(ArenaNotFoundError):  # somebody else was quicker
                _arena.unlink(self._name)

    @property
    def name(self) -> str:
        """The name that other processes attach by."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._core.closed

    @property
    def writable(self) -> bool:
        """Whether this handle may write."""
        return self._core.writable

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        return _attach_again, (type(self), self._name, self._identity, self._options)

    def __repr__(self) -> str:
        try:
            state = self._content()
        except (ClosedError, CorruptArenaError) as error:
            state = "closed" if self.closed else str(error)
        return f"<{type(self).__name__} {self._name!r}: {state}>"

    def _content(self) -> str:
        """What there is, in a few words."""
        return f"{self._core.size()} entries"

    def stats(self) -> Stats:
        """Figures of the arena and of this handle. Takes no lock and waits for nobody."""
        return Stats(
            name=self._name,
            kind=self._kind,
            attached=_arena.count_attached(*self._identity),
            **self._core.stats(),
        )

    def workers(self) -> list[WorkerInfo]:
        """The living handles that have written or popped, in whatever processes.

        >>> import os, shmcache
        >>> with shmcache.FIFO.create(capacity="1MiB") as fifo:
        ...     fifo.add({"metadata": {"name": "web-0"}})
        ...     _ = fifo.pop()
        ...     [(worker.pid == os.getpid(), worker.pops) for worker in fifo.workers()]
        ...     fifo.unlink()
        [(True, 1)]
        """
        return [WorkerInfo(pid, pops) for pid, pops in self._core.workers()]

    def check(self) -> list[str]:
        """Walk the whole arena; the invariants that do not hold, ``[]`` when it is whole.

        Writers wait meanwhile; for tests and for doubts.
        """
        return self._core.check()


def _attach_again(
    cls: Any, name: str, identity: tuple[int, int], options: dict[str, Any]
) -> Handle:
    handle: Handle = cls.attach(name, **options)
    if handle._identity != identity:
        handle.close()
        raise ArenaNotFoundError(
            f"the arena {name!r} of this handle is gone, and another has taken its name"
        )
    return handle


def _at_least_zero(seconds: float, what: str = "timeout") -> float:
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} is a number of seconds, not {seconds!r}")
    if not seconds >= 0:  # also NaN
        raise ValueError(f"{what} must not be negative, and it is {seconds}")
    return min(seconds, _FOREVER)


def _checked(timeout: float | None) -> float | None:
    return None if timeout is None else _at_least_zero(timeout)


def _attempts(max_attempts: int) -> int:
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int):
        raise TypeError(f"max_attempts is an int, not {max_attempts!r}")
    if not 0 <= max_attempts <= _MOST_ATTEMPTS:
        raise ValueError(
            f"max_attempts is 0 (no limit) to {_MOST_ATTEMPTS}, and not {max_attempts}"
        )
    return max_attempts
