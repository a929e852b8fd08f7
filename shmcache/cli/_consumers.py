"""Processes at the other end while it is timed; none outlives the one that started them.

May import: the facade, ``cli._failure``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from multiprocessing.managers import SyncManager
from typing import Any

from shmcache import FIFO
from shmcache.cli._failure import Failure

__all__ = ["SPAWN", "Consumers", "manager"]

SPAWN = multiprocessing.get_context("spawn")

_PATIENCE = 60.0
"""Seconds in which somebody must have taken something."""


class Consumers:
    """``number`` processes that take from ``queue``: the name of a FIFO, or a multiprocessing
    queue. As a context manager it ends them, whatever they do."""

    def __init__(self, what: str, queue: Any, number: int) -> None:
        self._what = what
        self._queue = queue
        self._number = number
        self._all: list[tuple[Any, connection.Connection]] = []

    def __enter__(self) -> Consumers:
        try:
            for _ in range(self._number):
                ours, theirs = SPAWN.Pipe()
                process = SPAWN.Process(target=_consume, args=(theirs, self._queue), daemon=True)
                with theirs, _undisturbed():
                    process.start()
                self._all.append((process, ours))
            for _, ours in self._all:
                self._hear(ours)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process, ours in self._all:
            process.kill()
            process.join()
            process.close()
            ours.close()
        self._all.clear()

    def take(self, put: Callable[[int], None], number: int, each: int, pause: float = 0.0) -> float:
        """Return the microseconds from before ``put(number * each)`` until the last of ``number``
        consumers has its ``each`` items. ``pause``: seconds in which they fall asleep first."""
        chosen = [ours for _, ours in self._all[:number]]
        for ours in chosen:
            with contextlib.suppress(OSError):  # one that is dead does not answer either
                ours.send(each)
        for ours in chosen:
            self._hear(ours)
        time.sleep(pause)
        began = time.monotonic_ns()
        put(number * each)
        return float(max(map(self._hear, chosen)) - began) / 1e3

    def _hear(self, ours: connection.Connection) -> int:
        # All are looked at: one that dies in a queue may take its lock along, and all others hang.
        connection.wait([ours, *(process.sentinel for process, _ in self._all)], _PATIENCE)
        try:
            if ours.poll():
                said: int = ours.recv()
                return said
        except (EOFError, OSError):
            pass
        for process, _ in self._all:
            process.join(0.1)
        codes = [process.exitcode for process, _ in self._all if process.exitcode is not None]
        end = f"exit code {codes[0]}" if codes else f"nothing came in {_PATIENCE:g} s"
        raise Failure(f"a consumer of {self._what} did not do its work: {end}")


@contextlib.contextmanager
def manager() -> Iterator[SyncManager]:
    """A process that keeps objects for others, as the standard library has it."""
    keeper = SyncManager(ctx=SPAWN)
    try:
        with _undisturbed():
            keeper.start(_end_with_parent)
        with keeper:
            yield keeper
    except (EOFError, ConnectionError) as error:
        raise Failure(
            f"the process of multiprocessing.Manager() has ended: {type(error).__name__}"
        ) from error


def _consume(theirs: connection.Connection, queue: Any) -> None:
    _end_with_parent()
    get = FIFO.attach(queue).pop if isinstance(queue, str) else queue.get
    theirs.send(0)
    while True:
        count = theirs.recv()
        theirs.send(0)
        for _ in range(count):
            get()
        theirs.send(time.monotonic_ns())


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however that came about."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A process that is started inside gets no Ctrl-C: that is for us, and we end it."""
    resource_tracker.ensure_running()  # which would undo the mask when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
