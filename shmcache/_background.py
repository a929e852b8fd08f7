"""The life cycle that a reflector and a poller share: run once, in either kind of thread, stop.

    made → start() or run() → the work, with its attendants → ended

``stop()`` may come at any point of it, from any thread and from a signal handler. The class
knows nothing of what the work is. May import: nothing of shmcache.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Background", "Flag", "bounded"]

_STOP_EVENT_POLL = 0.05
"""Seconds. An event can only be waited for, so one that belongs to the caller is looked at."""


def bounded(timeout: float | None) -> float | None:
    """``timeout`` of a caller, as a wait of the standard library takes it.

    Which takes a negative one for 0, and refuses ``math.inf``.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds, not {timeout!r}")
    if not timeout >= 0:  # also NaN
        raise ValueError(f"timeout must not be negative, and it is {timeout}")
    return min(timeout, threading.TIMEOUT_MAX)


class Flag:
    """As ``threading.Event``; and a signal handler may call :meth:`set` at any point of
    :meth:`wait`.

    An event has a lock inside, which the thread that the handler has interrupted may hold. Here who
    waits sleeps on a lock that nobody holds once the flag is set, and passes it on.
    """

    def __init__(self) -> None:
        self._flag = False
        self._unset = threading.Lock()
        self._unset.acquire()

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        self._pass_on()

    def wait(self, timeout: float | None = None) -> bool:
        seconds = -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
        if not self._flag and self._unset.acquire(timeout=seconds):
            self._pass_on()
        return self._flag

    def _pass_on(self) -> None:
        with contextlib.suppress(RuntimeError):  # somebody else has
            self._unset.release()


class Background:
    """Work that runs once, until it is stopped: in a thread of its own, or in the caller's.

    A subclass gives :meth:`_work`, which ends soon after ``_stopping`` is set, and may give the
    four methods below it. ``name`` is for people; ``wait`` sleeps through a pause and is, by
    default, woken by :meth:`stop`.
    """

    _role = "background work"
    """What a subclass is, in a word: for thread names and messages."""

    def __init__(self, name: str, wait: Callable[[float], bool] | None = None) -> None:
        self.name = name
        # Re-entrant, because a signal handler may call stop() in the thread that holds it.
        self._lock = threading.RLock()
        self._claimed = False  # guarded by _lock: start() or run() was called
        self._pid: int | None = None  # of the process that called it
        self._thread: threading.Thread | None = None
        self._starter: int | None = None  # the thread that is in start(), or was in run()
        self._runner: int | None = None

        self._stopping = Flag()
        self._ended = Flag()  # the work is over, its attendants may not be
        self._done = Flag()
        self._wait = self._stopping.wait if wait is None else wait

    def start(self) -> None:
        """Run in a daemon thread. Raises :class:`RuntimeError` the second time."""
        with self._lock:
            self._claim()
            thread = threading.Thread(
                target=self._run,
                args=(None,),
                name=f"shmcache-{self._role}-{self.name}",
                daemon=True,
            )
            try:
                thread.start()
            except BaseException:  # the process can have no more threads
                self._claimed = False
                self._finish()
                raise
            finally:
                self._starter = None
            self._thread = thread  # only now, so that stop() never joins one that did not start

    def run(self, stop_event: threading.Event | None = None) -> None:
        """Run in this thread until :meth:`stop` is called or ``stop_event`` is set.

        Returns at once if that was so before. Raises :class:`RuntimeError` the second time, and
        :class:`TypeError` for what is no event.
        """
        if stop_event is not None and not (
            callable(getattr(stop_event, "is_set", None))
            and callable(getattr(stop_event, "wait", None))
        ):
            raise TypeError(f"stop_event must be a threading.Event or None, not {stop_event!r}")
        self._claim()
        self._run(stop_event)

    def stop(self, timeout: float | None = None) -> bool:
        """End the work, and wait up to ``timeout`` seconds until it has ended.

        None waits as long as it takes: a pause ends at once, a call into somebody else's code
        when that returns. Returns whether the work has ended. May be called from any thread,
        more than once, and before :meth:`start`; from the work's own thread (a callback, a
        signal handler), and from a signal handler amid :meth:`start`, it does not wait. In a
        forked child there is nothing to end, and the parent's work goes on. Raises
        :class:`ValueError` for a negative ``timeout``, and nothing is ended then.
        """
        seconds = bounded(timeout)
        if self._is_elsewhere():
            # Its locks may be held for ever, and what it would interrupt (a connection) is the
            # parent's too.
            return True
        self._stopping.set()
        self._interrupt()
        if self._is_waited_for():
            return self._done.is_set()
        with self._lock:
            thread, claimed = self._thread, self._claimed
        if thread is not None:
            thread.join(seconds)
            return not thread.is_alive()
        return not claimed or self._done.wait(seconds)

    @property
    def stopped(self) -> bool:
        """Whether it has run and ended, by :meth:`stop` or of itself: it does not run again.

        In a forked child that of the parent is: its thread is not there.
        """
        return self._is_elsewhere() or self._done.is_set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _is_elsewhere(self) -> bool:
        """Whether the threads are those of another process, of which this is a forked child."""
        return self._pid not in (None, os.getpid())

    def _is_waited_for(self) -> bool:
        """Whether the work cannot end before this thread goes on."""
        return threading.get_ident() in (self._runner, self._starter)

    # -- what a subclass gives ----------------------------------------------------------------

    def _work(self) -> None:
        raise NotImplementedError

    def _prepare(self) -> None:
        """In the caller's thread, before anything runs; what it raises, ``start`` raises."""

    def _attendants(self) -> list[Callable[[], None]]:
        """Functions that run beside the work in threads of their own, until ``_ended``."""
        return []

    def _interrupt(self) -> None:
        """End what the work is blocked in, from any thread; ``_stopping`` is set before it."""

    def _finish(self) -> None:
        """Last of all, after a good end and a bad one; undoes :meth:`_prepare`."""

    # -- what it does with that ---------------------------------------------------------------

    def _claim(self) -> None:
        with self._lock:
            if self._claimed:
                raise RuntimeError(f"{self._role} {self.name!r} runs once: make a new one")
            self._prepare()
            self._starter = threading.get_ident()
            self._claimed = True
            self._pid = os.getpid()

    def _run(self, stop_event: threading.Event | None) -> None:
        self._runner = threading.get_ident()
        tasks = self._attendants()
        if stop_event is not None:
            if stop_event.is_set():
                self._stopping.set()
            tasks.append(functools.partial(self._obey, stop_event))
        with contextlib.ExitStack() as ending:  # from the last to the first, whatever fails
            ending.callback(self._done.set)
            ending.callback(self._finish)
            try:
                for task in tasks:
                    thread = threading.Thread(target=task, daemon=True)
                    thread.start()
                    ending.callback(thread.join)
                self._work()
            finally:
                self._stopping.set()
                self._ended.set()

    def _obey(self, stop_event: threading.Event) -> None:
        while not self._stopping.is_set():
            if stop_event.wait(_STOP_EVENT_POLL):
                self._stopping.set()
        self._interrupt()
