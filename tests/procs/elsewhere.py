"""Processes of their own: they inherit nothing, and do what a test tells them, call by call.

A call is a function of a module and its arguments. Its first argument is what the process keeps
between calls, an empty namespace at first; what it returns comes back, and what it raises is a
failure of the test.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

__all__ = ["Elsewhere", "ask", "attach", "elsewhere"]

# Forked from a server that has nothing of ours, and has imported what takes long.
_CLEAN = multiprocessing.get_context("forkserver")
_CLEAN.set_forkserver_preload(["pytest", "shmcache", "tests.procs.elsewhere"])


class Elsewhere:
    """One such process. The calls that it is told are done one after the other."""

    def __init__(self) -> None:
        self._pipe, theirs = _CLEAN.Pipe()
        self._process = _CLEAN.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        self._killed = False

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Let it call ``function``; :meth:`answer` has the result."""
        self._pipe.send((function, args, kwargs))

    def answer(self) -> Any:
        """What the oldest call without an answer returned."""
        failure, result = self._pipe.recv()
        assert not failure, failure
        return result

    def run(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """Let it call ``function``, and return the result."""
        self.tell(function, *args, **kwargs)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL; on return the process is gone."""
        self._killed = True
        self._process.kill()
        self._process.join()

    def close(self) -> bool:
        """Let it end by itself; whether it ended well, or was killed."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join()
        self._pipe.close()
        status = self._process.exitcode
        self._process.close()
        return status == (-signal.SIGKILL if self._killed else 0)


@contextlib.contextmanager
def elsewhere(count: int) -> Iterator[list[Elsewhere]]:
    """``count`` processes. The list may be added to; all of it is closed at a good end."""
    processes = [Elsewhere() for _ in range(count)]
    try:
        yield processes
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        ends = [process.close() for process in processes]
    assert all(ends)


def attach(own: SimpleNamespace, kind: Any, name: str, **options: Any) -> None:
    """Attach to an arena; :func:`ask` then asks it."""
    own.store = kind.attach(name, **options)


def ask(own: SimpleNamespace, method: str, *args: Any) -> Any:
    """Call a method of the arena that this process is attached to."""
    return getattr(own.store, method)(*args)


def _serve(pipe: Connection) -> None:
    own = SimpleNamespace()
    with contextlib.suppress(EOFError):
        while (call := pipe.recv()) is not None:
            function, args, kwargs = call
            try:
                failure, result = "", function(own, *args, **kwargs)
            except BaseException:
                failure, result = traceback.format_exc(), None
            pipe.send((failure, result))
