"""SharedInformer: functions that are called for every change of a store, in every worker.

====================================  =====================================================
when                                  then
====================================  =====================================================
start                                 the content, as adds, to every handler
a change of the store                 add, update or delete to every handler, in one order
changes faster than the handlers      what is left of them: one call a key, from what the
                                      handler was last given to what is there
an object went while nobody looked    a delete, with the object as it was last given
a handler is added later              the content as this informer knows it, as adds, to it
                                      alone, and then what follows
a filter's verdict on an object       an add or a delete in the place of the update
changes
a handler's resync period is over     every object as ``on_update(obj, obj)``, to it alone
a handler raises                      logged and counted; that call is gone, nothing else is
a filter raises                       logged and counted; the handler does not see that object
the store cannot be read              logged and counted; after a pause again, nothing is lost
the store is closed                   logged; the informer ends
``stop()``                            the call that runs is waited for, and is the last
====================================  =====================================================

After client-go's ``SharedInformer`` (``tools/cache/shared_informer.go``), of which each process has
its own watch, its own cache, and a goroutine and an unbounded buffer for each handler. Here the
machine has one watch and one cache; an informer is a thread that reads them, and needs no buffer,
because what it has not read yet is in the store. (One class with one job, and long because of its
docstrings.)

May import: ``_background``, ``_errors``, ``_logging``, ``_ports``, ``_types``, ``reflector``,
``store``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from shmcache._background import Background, Flag, bounded
from shmcache._errors import ClosedError, ReadOnlyError
from shmcache._logging import get_logger
from shmcache._ports import ListerWatcher
from shmcache._types import Change
from shmcache.reflector import Reflector, standby_options
from shmcache.store import Store

__all__ = ["HandlerRegistration", "InformerStats", "SharedInformer", "wait_for_cache_sync"]

_SLICE_SECONDS = 0.1
"""The longest that the dispatch thread sleeps before it looks for new handlers and for an end."""

_PAUSE_SECONDS = 1.0
"""After a look that failed."""

_OnAdd = Callable[[Any], object]
_OnUpdate = Callable[[Any, Any], object]
_Filter = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class InformerStats:
    """What an informer has done so far. A snapshot; but for ``unread`` the numbers only grow."""

    changes: int = 0
    """Changes of the store that were given to the handlers, the first content included."""
    calls: int = 0
    """Calls of handlers that returned."""
    handler_errors: int = 0
    """Calls of handlers and filters that raised."""
    errors: int = 0
    """Looks at the store that failed."""
    last_error: str = ""
    """``"KeyError: 'spec'"``, or ``""`` if there never was one, of any kind."""
    fell_behind: int = 0
    """As :attr:`Watch.fell_behind <shmcache.Watch.fell_behind>`."""
    unread: int = 0
    """As :attr:`Watch.unread <shmcache.Watch.unread>`: it may become less again."""


class HandlerRegistration:
    """A handler of an informer, as :meth:`SharedInformer.add_event_handler` returns it."""

    def __init__(
        self,
        on_add: _OnAdd | None,
        on_update: _OnUpdate | None,
        on_delete: _OnAdd | None,
        wants: _Filter | None,
        resync_period: float,
    ) -> None:
        self._on_add = on_add
        self._on_update = on_update
        self._on_delete = on_delete
        self._wants = wants
        self._resync_period = resync_period
        self._removed = False
        self._settled = Flag()
        self._synced = False
        # Of the dispatch thread alone.
        self._known = False  # whether it has been given the content
        self._resync_due = 0.0

    @property
    def has_synced(self) -> bool:
        """Whether the informer has synced, and this handler was called for all that it held."""
        return self._synced

    def wait_for_sync(self, timeout: float | None = None) -> bool:
        """Sleep until :attr:`has_synced`, at most ``timeout`` seconds; return it.

        Returns at once when the informer has ended, or the handler was removed. Raises
        :class:`ValueError` for a negative ``timeout``.
        """
        self._settled.wait(bounded(timeout))
        return self._synced

    def _deliver(self, change: Change[Any], failed: Callable[[Exception], None]) -> bool:
        """Call what a change calls for; whether that was anything. ``failed``: of the filter."""
        was, now = change.type != "ADDED", change.type != "DELETED"
        old = change.old if now else change.object
        # What the filter failed on was not seen, and that was said when it came.
        was = was and self._sees(old, lambda _: None)
        now = now and self._sees(change.object, failed)
        if was and now:
            if self._on_update is None:
                return False
            self._on_update(old, change.object)
            return True
        function = self._on_add if now else self._on_delete
        if function is None or was == now:
            return False
        function(change.object if now else old)
        return True

    def _sees(self, obj: Any, failed: Callable[[Exception], None]) -> bool:
        try:
            return self._wants is None or bool(self._wants(obj))
        except Exception as exc:  # whatever a user's function raises
            failed(exc)
            return False


class SharedInformer(Background):
    """Calls functions for every change of ``store``, and sees that somebody fills it.

    ``source``: what the store is filled from. Every worker may pass it: a
    :class:`~shmcache.Reflector` of each stands by, one of the machine lists and watches, and when
    that ends or is killed another goes on. ``store`` must then be writable. None: others fill the
    store. ``expected_type`` and ``reflector_options``: those of :class:`~shmcache.Reflector`;
    ``standby`` is always True. ``name``: for the log, the threads and the reflector's place, where
    it must be the same in every worker; by default that of the store.

    ``on_add(obj)``, ``on_update(old, new)`` and ``on_delete(obj)`` are called in one thread, the
    informer's, one after the other and each change for all handlers in their order. There is no
    thread and no queue for a handler, so handlers should be quick: put the key into a queue, and
    work elsewhere. One that is slow makes the changes of a key arrive as one; none gets lost, and
    nothing grows. They run without any lock, and may read and write stores, add and remove
    handlers, and call :meth:`stop`. Objects are shared and read-only, those that
    ``store.get_by_key`` gives. What a handler reads in the store is what is there now: at least as
    new as what it was given.

    Every process calls its own handlers, so what must be done once for the machine belongs into a
    :class:`~shmcache.FIFO`. Start it where threads stay: after a fork, in the worker.

    ``has_synced`` follows :attr:`Store.has_synced <shmcache.Store.has_synced>`: a store that is
    never filled by a ``replace`` never syncs.

    Raises :class:`TypeError` or :class:`ValueError` for arguments that cannot be meant (a FIFO
    too), :class:`~shmcache.ReadOnlyError` for a source with a read-only store. Runs once, in a
    thread of its own (:meth:`start`, ``with``) or in this one (:meth:`run`). After client-go's
    ``SharedInformer``; the module docstring has the rules.

    >>> from shmcache import Store
    >>> from shmcache.sources.memory import MemorySource
    >>> source = MemorySource()
    >>> _ = source.add({"metadata": {"name": "web-0"}})
    >>> with Store.create(capacity="1MiB") as store:
    ...     store.unlink()
    ...     informer = SharedInformer(source, store)
    ...     seen = informer.add_event_handler(lambda obj: print("+", obj["metadata"]["name"]))
    ...     with informer:
    ...         seen.wait_for_sync(30)
    + web-0
    True
    """

    _role = "informer"

    def __init__(
        self,
        source: ListerWatcher | None,
        store: Store,
        *,
        expected_type: type | str | None = None,
        name: str | None = None,
        **reflector_options: Any,
    ) -> None:
        if not isinstance(store, Store):
            raise TypeError(f"store must be a Store or an Indexer, not {store!r}")
        if source is None and (expected_type is not None or reflector_options):
            told = ", ".join(sorted({"expected_type", *reflector_options}))
            raise ValueError(f"{told}: these are for a source, and source is None")
        if source is not None and not store.writable:
            raise ReadOnlyError(
                f"this handle of {store.name!r} is read-only, and an informer with a source may "
                "have to fill the store: attach with writable=True, or pass source=None"
            )
        super().__init__(name or store.name)
        self._store = store
        self._watch = store.watch()
        self._reflector: Reflector | None = None
        if source is not None:
            options = standby_options(self.name, reflector_options)
            self._reflector = Reflector(source, expected_type, store, **options)
        self._log = get_logger("shmcache.informer", arena=store.name, resource=self.name)
        self._handlers: tuple[HandlerRegistration, ...] = ()  # replaced, with _lock; read without
        self._settled = Flag()
        self._synced = False
        # Written by the thread in run() alone.
        self._objects: dict[str, Any] = {}  # what the handlers know
        self._changes = self._calls = self._handler_errors = self._errors = 0
        self._last_error = ""

    @property
    def store(self) -> Store:
        """The store, to read from."""
        return self._store

    @property
    def reflector(self) -> Reflector | None:
        """The reflector of this process, at work or standing by; None without a source."""
        return self._reflector

    def stats(self) -> InformerStats:
        """Return the counters. May be called from any thread."""
        return InformerStats(
            self._changes,
            self._calls,
            self._handler_errors,
            self._errors,
            self._last_error,
            self._watch.fell_behind,
            self._watch.unread,
        )

    # --- handlers -------------------------------------------------------------------------------

    def add_event_handler(
        self,
        on_add: _OnAdd | None = None,
        on_update: _OnUpdate | None = None,
        on_delete: _OnAdd | None = None,
        *,
        filter: _Filter | None = None,  # noqa: A002
        resync_period: float = 0.0,
    ) -> HandlerRegistration:
        """Call these from now on, first ``on_add`` for what is there. From any thread, at any time.

        ``on_add(obj)``, ``on_update(old, new)``, ``on_delete(obj)``: functions, None for no call.
        ``filter``: a function of an object; the handler sees those for which it is true, an object
        that comes to be one as added, one that is so no more as deleted. It must depend on the
        object alone; where it raises it is not true. ``resync_period``: after every so many seconds
        ``on_update(obj, obj)`` for all objects, 0 for never. The same functions may be added twice,
        and are then called twice.

        Raises :class:`TypeError` for what is no function, :class:`ValueError` for a negative or
        endless period, :class:`RuntimeError` if the informer was stopped, or is one of the process
        that this was forked from.
        """
        for what, function in (
            ("on_add", on_add),
            ("on_update", on_update),
            ("on_delete", on_delete),
            ("filter", filter),
        ):
            if function is not None and not callable(function):
                raise TypeError(f"{what} must be a function or None, not {function!r}")
        if not 0 <= resync_period <= threading.TIMEOUT_MAX:  # also NaN
            raise ValueError(f"resync_period must be seconds from 0, not {resync_period}")
        if self._is_elsewhere():
            raise RuntimeError(
                f"informer {self.name!r} runs in process {self._pid}, and threads do not survive a "
                "fork: make one in this process, and start it here"
            )
        handler = HandlerRegistration(on_add, on_update, on_delete, filter, resync_period)
        with self._lock:
            if self._stopping.is_set():
                raise RuntimeError(f"informer {self.name!r} was stopped: nobody would call this")
            self._handlers = (*self._handlers, handler)
        return handler

    def remove_event_handler(self, registration: HandlerRegistration) -> None:
        """Call these no more. Idempotent; what is no handler of this informer is ignored.

        A call that is being made in another thread may end after this returns.
        """
        with self._lock:
            if registration not in self._handlers:
                return
            self._handlers = tuple(h for h in self._handlers if h is not registration)
        registration._removed = True
        registration._settled.set()

    # --- being in sync --------------------------------------------------------------------------

    @property
    def has_synced(self) -> bool:
        """Whether the store has synced, and the handlers were called for all that it then held."""
        return self._synced

    def wait_for_sync(self, timeout: float | None = None) -> bool:
        """Sleep until :attr:`has_synced`, at most ``timeout`` seconds; return it.

        Returns at once when the informer has ended, or is not of this process. Raises
        :class:`ValueError` for a negative ``timeout``.
        """
        seconds = bounded(timeout)
        if not self._is_elsewhere():
            self._settled.wait(seconds)
        return self._synced

    # --- life cycle -----------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self._reflector is not None:
            self._reflector.start()

    def _interrupt(self) -> None:
        if self._reflector is not None:
            self._reflector.stop(0)
        self._release_waiters()

    def _finish(self) -> None:
        if self._reflector is not None:
            self._reflector.stop()
        self._watch.close()
        self._release_waiters()

    def _is_waited_for(self) -> bool:
        # The last thing that the work does is to wait for the reflector, whose thread is in here
        # when a source or a transform stops the informer.
        reflector = self._reflector
        return super()._is_waited_for() or (reflector is not None and reflector._is_waited_for())

    def _release_waiters(self) -> None:
        """Nobody will be told of a sync any more."""
        with self._lock:
            self._stopping.set()
            handlers = self._handlers
        for handler in handlers:
            handler._settled.set()
        self._settled.set()

    # --- the work -------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                # Before the look: what it then sees is all that was there when the store synced.
                complete = self._synced or self._store.has_synced
                changes = self._watch.take(self._until_resync())
            except Exception as exc:
                if self._stopping.is_set():
                    return
                self._note_error(exc)
                if isinstance(exc, ClosedError):
                    return
                self._wait(_PAUSE_SECONDS)
                continue
            for handler in self._handlers:
                self._introduce(handler)
            for change in changes:
                self._dispatch(change)
            if complete and not self._stopping.is_set():
                self._note_sync()
            self._resync()

    def _until_resync(self) -> float:
        """Seconds to sleep at most."""
        dues = [h._resync_due for h in self._handlers if h._resync_period and h._known]
        return max(min([_SLICE_SECONDS, *(due - time.monotonic() for due in dues)]), 0)

    def _introduce(self, handler: HandlerRegistration) -> None:
        """Give a new handler what the others know."""
        if handler._known:
            return
        handler._known = True
        for key, obj in self._objects.items():
            self._give(handler, Change("ADDED", key, obj, None))
        handler._resync_due = time.monotonic() + handler._resync_period

    def _dispatch(self, change: Change[Any]) -> None:
        for handler in self._handlers:
            if handler._known:  # else it was added since, and is introduced later
                self._give(handler, change)
        if change.type == "DELETED":
            del self._objects[change.key]
        else:
            self._objects[change.key] = change.object
        self._changes += 1

    def _give(self, handler: HandlerRegistration, change: Change[Any]) -> None:
        if handler._removed or self._stopping.is_set():
            return

        def failed(exc: BaseException) -> None:
            self._handler_errors += 1
            self._last_error = f"{type(exc).__name__}: {exc}"
            self._log.exception(
                "%s: a handler failed on %s of %s: %s",
                self.name,
                change.type,
                change.key,
                exc,
                extra={"error": type(exc).__name__, "key": change.key},
            )

        try:
            self._calls += handler._deliver(change, failed)
        except SystemExit as exc:
            if threading.current_thread() is threading.main_thread():
                raise  # of a signal handler, too
            failed(exc)  # a thread that it ends says nothing, and the process goes on
        except Exception as exc:  # whatever a user's function raises, the others go on
            failed(exc)

    def _note_sync(self) -> None:
        self._synced = True
        self._settled.set()
        for handler in self._handlers:
            if handler._known:
                handler._synced = True
                handler._settled.set()

    def _resync(self) -> None:
        for handler in self._handlers:
            if not (handler._resync_period and handler._known):
                continue
            if time.monotonic() < handler._resync_due:
                continue
            for key, obj in self._objects.items():
                self._give(handler, Change("MODIFIED", key, obj, obj))
            handler._resync_due = time.monotonic() + handler._resync_period

    def _note_error(self, exc: Exception) -> None:
        self._errors += 1
        self._last_error = f"{type(exc).__name__}: {exc}"
        self._log.warning(
            "%s: cannot read the store: %s",
            self.name,
            exc,
            extra={"error": type(exc).__name__},
        )


class _Syncs(Protocol):
    def wait_for_sync(self, timeout: float | None = None) -> bool: ...


def wait_for_cache_sync(*caches: _Syncs, timeout: float | None = None) -> bool:
    """Sleep until all of these have synced, at most ``timeout`` seconds together; say whether.

    ``caches``: stores, informers, registrations of handlers, in any number and mixture: whatever
    has ``wait_for_sync(timeout)``. None waits for as long as it takes; :class:`ValueError` for a
    negative ``timeout``. After client-go's ``WaitForCacheSync``.

    >>> from shmcache import Store
    >>> with Store.create(capacity="1MiB") as pods, Store.create(capacity="1MiB") as nodes:
    ...     for store in (pods, nodes):
    ...         store.unlink()
    ...     pods.replace([])
    ...     wait_for_cache_sync(pods, nodes, timeout=0)
    False
    """
    for cache in caches:
        if not callable(getattr(cache, "wait_for_sync", None)):
            raise TypeError(
                "wait_for_cache_sync() takes stores, informers and registrations themselves, and "
                f"not {cache!r}"
            )
    seconds = bounded(timeout)
    deadline = None if seconds is None else time.monotonic() + seconds
    for cache in caches:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not cache.wait_for_sync(left):
            return False
    return True
