"""Connections of urllib3 that any thread can cut, at every moment from their TCP connect on.

urllib3 gives a caller its socket with the response, which is too late for one who waits for the
response, or for the end of a TLS handshake. So the connections here are of a class that reports
its socket as soon as there is one. May import: nothing of shmcache.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from urllib3 import PoolManager

__all__ = ["Interruptible"]


class Interruptible:
    """A pool manager like ``manager``, and the requests that are under way through it.

    It takes over the configuration of ``manager`` (TLS, proxy, socket options) and has
    connections of its own. :meth:`interrupt` may be called from any thread and any signal
    handler: it takes no lock.
    """

    def __init__(self, manager: PoolManager) -> None:
        # Of each thread that is in a request, the connection that it uses. Each operation on the
        # dict is one step of the interpreter.
        self._under_way: dict[int, _Cutter] = {}
        self.manager = copy.copy(manager)
        self.manager.pools = type(manager.pools)()
        self.manager.pool_classes_by_scheme = {
            scheme: _reporting(pool, self._under_way)
            for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """What this thread asks for inside can be interrupted."""
        try:
            yield
        finally:
            self._under_way.pop(threading.get_ident(), None)

    def was_interrupted(self) -> bool:
        """Whether the request of this thread was cut."""
        cutter = self._under_way.get(threading.get_ident())
        return cutter is not None and cutter.used

    def interrupt(self) -> None:
        """Cut every request that is under way; one that has not yet connected goes on."""
        for cutter in tuple(self._under_way.values()):
            cutter.cut()


def _reporting(pool: Any, under_way: dict[int, _Cutter]) -> Any:
    """Return the pool class with connections that enter themselves in ``under_way``."""

    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        _cutter: _Cutter | None = None

        def _new_conn(self) -> socket.socket:  # both http and TLS connections begin here
            sock: socket.socket = super()._new_conn()
            self._cutter = under_way[threading.get_ident()] = _Cutter(sock)
            return sock

        def request(self, *args: Any, **kwargs: Any) -> None:
            if self._cutter is not None:  # connected before, or by TLS just now
                under_way[threading.get_ident()] = self._cutter
            super().request(*args, **kwargs)

        def close(self) -> None:
            self._cutter = None  # else its descriptor would keep the connection open
            super().close()

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


class _Cutter:
    """A descriptor of a connection's own, which works below TLS and after it.

    It is closed when nobody refers to it any more, so never while another thread is in
    :meth:`cut` (the kernel would give its number to the next file that is opened).
    """

    def __init__(self, sock: socket.socket) -> None:
        self.used = False
        self._socket = socket.socket(fileno=os.dup(sock.fileno()))

    def cut(self) -> None:
        self.used = True
        with contextlib.suppress(OSError):  # the peer may have been first
            self._socket.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        self._socket.close()
