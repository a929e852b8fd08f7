"""A reflector's place at its store: taking it, waiting for it, and reporting from it.

A store that processes share has one such place (:class:`~shmcache.ReflectorSeat`); a store
without one makes everything here do nothing. Reports are for others to read: one that fails
says nothing about the reflector's work, so it is logged and forgotten.

May import: ``_errors``, ``_logging``, ``_ports``, ``_types``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmcache._errors import ReflectorRunningError
from shmcache._logging import Log
from shmcache._ports import ReflectorSeat, ReflectorStore
from shmcache._types import ReflectorStats

__all__ = ["HEARTBEAT", "Seat"]

HEARTBEAT = 1.0
"""Seconds between two reports, whatever happens."""


class Seat:
    """The place of the reflector ``name``, whose counters are ``stats()``."""

    def __init__(
        self,
        store: ReflectorStore,
        name: str,
        stats: Callable[[], ReflectorStats],
        log: Log,
    ) -> None:
        self._store = store
        self._seat = store if isinstance(store, ReflectorSeat) else None
        self._name = name
        self._stats = stats
        self._log = log
        self._reporting = threading.Lock()  # so that an old state never follows a new one
        self._state = "listing"
        self._taken = False

    @property
    def exists(self) -> bool:
        """Whether the store has such a place."""
        return self._seat is not None

    def take(self) -> None:
        """Take the place. Raises :class:`ReflectorRunningError` if another reflector has it."""
        if self._seat is None:
            return
        if not self._seat.claim_reflector(self._name):
            status = self._seat.reflector_status()
            raise ReflectorRunningError(
                f"the store has a reflector already: {status.name!r} in process {status.pid} "
                "(standby=True waits for its end)",
                status.pid,
            )
        self._taken = True
        self.beat()

    def try_to_succeed(self) -> str | None:
        """Take the place if it is free, and return the version at which the work goes on.

        None if it is taken. ``""`` if there is nothing to go on with: only of a reflector of
        the same name is the content that of the same source.
        """
        assert self._seat is not None
        if not self._seat.claim_reflector(self._name):
            return None
        before = self._seat.reflector_status()  # what the one before us said, until we report
        self._taken = True
        self.beat()
        if before.name != self._name or not getattr(self._store, "has_synced", False):
            return ""
        return str(getattr(self._store, "resource_version", ""))

    def report(self, state: str) -> None:
        """Publish a state, if it is a new one; else the next beat does."""
        if state != self._state:
            self._state = state
            self.beat()

    def beat(self) -> None:
        """Publish the state and the counters."""
        if self._seat is None or not self._taken:
            return
        with self._reporting:
            try:
                self._seat.report_reflector(self._state, self._stats())
            except Exception as exc:
                self._log.debug("%s: cannot report to the store: %s", self._name, exc)

    def leave(self) -> None:
        """Report the end and give the place back, if we have it."""
        if self._seat is None or not self._taken:
            return
        self.report("stopped")
        self._taken = False
        try:
            self._seat.release_reflector()
        except Exception as exc:  # the store was closed before us, which gave it back
            self._log.debug("%s: cannot release the store: %s", self._name, exc)
