"""Keeps a store equal to what a function returns: asks it again and again.

====================================  =====================================================
when                                  then
====================================  =====================================================
start                                 the first round, at once
a round                               ``get_func()``, then ``store.replace`` of all of it
after a round, good or bad            a pause of ``period`` seconds, however long it took
``get_func`` fails                    logged and counted; the store is as it was
it returns no iterable of objects     the same
``store.replace`` fails               the same
``stop()``                            a pause ends at once, a round is finished; what a
                                      ``get_func`` returns after it is not stored
====================================  =====================================================

After client-go's ``Poller``. May import: ``_background``, ``_logging``, ``_ports``.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shmcache._background import Background
from shmcache._logging import get_logger
from shmcache._ports import GetFunc, ReflectorStore

__all__ = ["Poller", "PollerStats"]


@dataclass(frozen=True, slots=True)
class PollerStats:
    """What a poller has done so far. A snapshot: the numbers only ever grow."""

    polls: int = 0
    """Rounds whose objects reached the store."""
    errors: int = 0
    """Rounds that failed, in ``get_func`` or in the store."""
    last_error: str = ""
    """``"TimeoutError: …"``, or ``""`` if there never was one."""


class Poller(Background):
    """Replaces the content of ``store`` by what ``get_func`` returns, every ``period`` seconds.

    Solves: a source that can be listed and not watched. Where it can be watched use a
    :class:`~shmcache.Reflector`; and a poller makes little sense with a FIFO, which would queue
    everything again in each round. What others write to the store, the next round removes.

    ``get_func`` takes no argument and returns an iterable of objects; of those with the same key
    the last wins. ``period`` is the pause between two rounds. ``name``: for the log and the
    thread, by default that of ``get_func``. Errors never end the poller: they are counted
    (:meth:`stats`), logged to ``shmcache.poller``, and the next round comes after the pause.
    Raises :class:`TypeError` or :class:`ValueError` for arguments that cannot be meant.

    One poller runs once. In a thread of its own::

        with Poller(fetch_nodes, 5.0, store):
            store.wait_for_sync(10)
            ...

    or in this one, until somebody calls :meth:`stop` or sets the event: ``run(stop_event)``.
    """

    _role = "poller"

    def __init__(
        self,
        get_func: GetFunc,
        period: float,
        store: ReflectorStore,
        *,
        name: str | None = None,
        _wait: Callable[[float], bool] | None = None,
    ) -> None:
        if not callable(get_func):
            raise TypeError(f"get_func must be callable, not {get_func!r}")
        if isinstance(period, bool) or not isinstance(period, (int, float)):
            raise TypeError(f"period must be a number of seconds, not {period!r}")
        if isinstance(store, str) or not callable(getattr(store, "replace", None)):
            raise TypeError(f"store must be a Store, or have its writing methods, not {store!r}")
        if not 0 <= period <= threading.TIMEOUT_MAX:  # also NaN
            raise ValueError(f"period must be a number of seconds from 0, not {period}")
        default_name: str = getattr(get_func, "__name__", type(get_func).__name__)
        super().__init__(name or default_name, wait=_wait)
        self._get = get_func
        self._period = period
        self._store = store
        self._log = get_logger(
            "shmcache.poller", arena=str(getattr(store, "name", "")), resource=self.name
        )
        self._stats = PollerStats()  # replaced by the thread in run() alone

    def stats(self) -> PollerStats:
        """Return the counters. May be called from any thread."""
        return self._stats

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._poll()
            except Exception as exc:  # whatever get_func raises, the next round may work
                self._note_error(exc)
            self._wait(self._period)

    def _poll(self) -> None:
        objs = _objects(self._get())
        if self._stopping.is_set():
            return
        self._store.replace(objs)
        self._stats = dataclasses.replace(self._stats, polls=self._stats.polls + 1)

    def _note_error(self, exc: Exception) -> None:
        self._stats = dataclasses.replace(
            self._stats,
            errors=self._stats.errors + 1,
            last_error=f"{type(exc).__name__}: {exc}",
        )
        self._log.warning(
            "%s: %s; next try in %g s",
            self.name,
            self._stats.last_error,
            self._period,
            extra={"error": type(exc).__name__},
        )


def _objects(found: object) -> list[Any]:
    # Text and mappings can be iterated too, and an empty one would empty the store.
    if isinstance(found, (str, bytes, bytearray, Mapping)) or not isinstance(found, Iterable):
        raise TypeError(f"get_func must return an iterable of objects, not {type(found).__name__}")
    return list(found)
