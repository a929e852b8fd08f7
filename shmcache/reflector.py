"""Keeps a store equal to what a source holds: list once, then follow the watch.

The rules are those of client-go's Reflector (``tools/cache/reflector.go``, 2026):

====================================  =====================================================
when                                  then
====================================  =====================================================
start                                 list at version ``"0"`` (a server may answer from its
                                      cache), in pages; ``store.replace``; watch from there
later lists                           at the last version seen, so never older than the store
list says 410 or "too large version"  list again at once at ``""``, the most recent
continue token expires between pages  one list without limit at the version first asked for
watch ends                            watch again from the last version, no list, no pause
watch ends in 1 s without an event    error
410, as answer or as ERROR event      pause, list
429, or connection refused            pause, watch again from the last version, **no list**: a
                                      server that restarts is not greeted by full lists
any other error                       pause, list
BOOKMARK                              the version advances
wrong type, or no metadata            dropped; the version stays
unknown event type                    nothing is applied; the version advances
``store.add/update/delete`` fails     logged; the version advances
``store.replace`` fails               error; the store is as it was
====================================  =====================================================

A pause is the backoff's next delay, or the server's ``Retry-After`` if that is longer. Unlike
in client-go, the items of a list are type-checked like events, and an object that fails does
not enter the store. Versions are opaque: they are repeated, never compared.

The table and the code that keeps it stand in one file, which is why it is a long one. What it
is not: it sees neither bytes nor segments, and the source decides what an object is.
May import: ``_backoff``, ``_errors``, ``_objects``, ``_ports``, ``_types``, ``listwatch``.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from shmcache._backoff import Backoff
from shmcache._errors import ApiError, ExpiredError, ShmCacheError
from shmcache._objects import describe_object, describe_type, resource_version, type_check
from shmcache._ports import ListerWatcher, ReflectorStore
from shmcache._types import Event, ListOptions, ListResult, WatchOptions
from shmcache.listwatch import error_from_status, read_list

__all__ = ["Reflector", "ReflectorStats"]

_log = logging.getLogger("shmcache.reflector")
_log.addHandler(logging.NullHandler())  # quiet unless the application configures logging

_VERY_SHORT_WATCH = 1.0
"""Seconds. A healthy server holds a watch for minutes; one that ends a watch at once would
otherwise be asked again as fast as it can refuse."""

_STOP_EVENT_POLL = 0.05
"""Seconds. An event can only be waited for, so one that belongs to the caller is looked at."""


@dataclass(frozen=True, slots=True)
class ReflectorStats:
    """What a reflector has done so far. A snapshot: the numbers only ever grow."""

    lists: int
    """Lists that reached the store; the pages of one list count once."""
    watches: int
    """Watches that the source opened."""
    events: int
    """Events received and understood, bookmarks included."""
    dropped: int
    """List items and events of the wrong type or without metadata."""
    errors: int
    """Failed lists and watches, and failed store writes."""
    last_error: str
    """``"ExpiredError: 410: …"``, or ``""`` if there never was one."""
    last_event_monotonic: float | None
    """``time.monotonic()`` of the last event. Bookmarks come about once a minute from a
    Kubernetes server, so a much older time means a silent watch. None before the first."""


class _VeryShortWatchError(ShmCacheError):
    """The watch ended within a second and without an event."""


class Reflector:
    """Fills ``store`` from ``lister_watcher`` and keeps it up to date until stopped.

    ``expected_type``: a class, for ``isinstance``; a ``"v1/Pod"`` or ``"apps/v1/Deployment"``
    string, compared with ``apiVersion/kind`` of dicts; None for any. ``resync_period``: seconds
    between calls of ``store.resync()``, if the store has one, 0 for never. ``name``: for the
    log and the thread, by default the expected type. ``page_size``: most items a page of a
    list, 0 for no paging. ``backoff``: the pauses after errors. ``watch_timeout``: each watch
    asks the server to end it after a random time in this range of seconds, so that the
    watches of many processes do not end together.

    Errors of the source or of the store never end the reflector: they are counted
    (:meth:`stats`), logged to ``shmcache.reflector`` and retried. Raises :class:`TypeError` or
    :class:`ValueError` for arguments that cannot be meant. After client-go's ``Reflector``;
    the module docstring has the rules.

    One reflector runs once. In a thread of its own::

        with Reflector(source, "v1/Pod", store):
            store.wait_for_sync(10)
            ...

    or in this one, until somebody calls :meth:`stop` or sets the event: ``run(stop_event)``.
    """

    def __init__(
        self,
        lister_watcher: ListerWatcher,
        expected_type: type | str | None,
        store: ReflectorStore,
        *,
        resync_period: float = 0.0,
        name: str | None = None,
        page_size: int = 500,
        backoff: Backoff | None = None,
        watch_timeout: tuple[int, int] = (300, 600),
        _clock: Callable[[], float] = time.monotonic,
        _random: Callable[[], float] = random.random,
        _wait: Callable[[float], bool] | None = None,
    ) -> None:
        if resync_period < 0 or page_size < 0:
            raise ValueError(
                f"resync_period and page_size must not be negative: {resync_period}, {page_size}"
            )
        if not 1 <= watch_timeout[0] <= watch_timeout[1]:
            raise ValueError(
                f"watch_timeout must be (least, most) whole seconds from 1, not {watch_timeout}"
            )
        self._source = lister_watcher
        self._store = store
        self._is_expected = type_check(expected_type)
        self._writers: dict[str, Callable[[Any], None]] = {
            "ADDED": store.add,
            "MODIFIED": store.update,
            "DELETED": store.delete,
        }
        self._resync_period = resync_period
        self._page_size = page_size
        self._backoff = Backoff() if backoff is None else backoff
        self._watch_timeout = watch_timeout
        self.name = name or describe_type(expected_type)
        self._clock = _clock
        self._random = _random

        # Written by the thread in run() alone; others read single values, and a stale one is
        # fine.
        self._version = ""
        self._version_lost = False  # the server no longer knows _version
        self._paged = False  # the first list came in pages: this server wants paging
        self._lists = self._watches = self._events = self._dropped = 0
        self._last_event: float | None = None

        # Re-entrant, because a signal handler may call stop() in the thread that holds it.
        self._lock = threading.RLock()
        self._watch: object = None  # guarded by _lock: the open watch, for who closes it
        self._errors = 0  # guarded by _lock, as is _last_error: resync has its own thread
        self._last_error = ""
        self._claimed = False  # guarded by _lock: start() or run() was called
        self._thread: threading.Thread | None = None
        self._runner: int | None = None

        self._stopping = threading.Event()
        self._done = threading.Event()
        self._wait = self._stopping.wait if _wait is None else _wait

    # -- life cycle ---------------------------------------------------------------------------

    def start(self) -> None:
        """Run in a daemon thread. Raises :class:`RuntimeError` the second time."""
        with self._lock:  # so that stop() never joins a thread that is not yet started
            self._claim()
            self._thread = threading.Thread(
                target=self._run, args=(None,), name=f"shmcache-reflector-{self.name}", daemon=True
            )
            self._thread.start()

    def run(self, stop_event: threading.Event | None = None) -> None:
        """Run in this thread until :meth:`stop` is called or ``stop_event`` is set.

        Returns at once if that was so before. Raises :class:`RuntimeError` the second time.
        """
        self._claim()
        self._run(stop_event)

    def stop(self, timeout: float | None = None) -> bool:
        """End the reflector: close the active watch, then wait up to ``timeout`` seconds.

        None waits as long as it takes: an active watch ends at once, a list or the opening of
        a watch when the source's own deadlines say so. Returns whether the reflector has
        ended. May be called from any thread, more than once, and before :meth:`start`; from
        the reflector's own thread (a store's callback, a signal handler) it does not wait.
        """
        self._stopping.set()
        self._close_watch()
        if self._runner == threading.get_ident():
            return self._done.is_set()
        with self._lock:
            thread, claimed = self._thread, self._claimed
        if thread is not None:
            thread.join(timeout)
            return not thread.is_alive()
        return not claimed or self._done.wait(timeout)

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

    @property
    def last_sync_resource_version(self) -> str:
        """The version that the store is at: of the last list or event, ``""`` before them."""
        return self._version

    def stats(self) -> ReflectorStats:
        """Return the counters. May be called from any thread."""
        with self._lock:
            errors, last_error = self._errors, self._last_error
        return ReflectorStats(
            lists=self._lists,
            watches=self._watches,
            events=self._events,
            dropped=self._dropped,
            errors=errors,
            last_error=last_error,
            last_event_monotonic=self._last_event,
        )

    def _claim(self) -> None:
        with self._lock:
            if self._claimed:
                raise RuntimeError(f"reflector {self.name!r} runs once: make a new one")
            self._claimed = True

    def _run(self, stop_event: threading.Event | None) -> None:
        self._runner = threading.get_ident()
        attendants = []
        if stop_event is not None:
            if stop_event.is_set():
                self._stopping.set()
            attendants.append(threading.Thread(target=self._obey, args=(stop_event,), daemon=True))
        resync = getattr(self._store, "resync", None)
        if self._resync_period and resync is not None:
            attendants.append(threading.Thread(target=self._resync, args=(resync,), daemon=True))
        for thread in attendants:
            thread.start()
        try:
            while not self._stopping.is_set():
                try:
                    self._list_and_watch()
                except Exception as exc:  # whatever a source raises, the next try may work
                    self._pause(exc)
        finally:
            self._stopping.set()
            for thread in attendants:
                thread.join()
            self._done.set()

    def _obey(self, stop_event: threading.Event) -> None:
        while not self._stopping.is_set():
            if stop_event.wait(_STOP_EVENT_POLL):
                self._stopping.set()
        self._close_watch()

    def _resync(self, resync: Callable[[], object]) -> None:
        # A thread of its own, because the reflector's is blocked in the watch most of the time.
        while not self._stopping.wait(self._resync_period):
            if not self._lists:
                continue  # nothing is in the store yet
            try:
                resync()
            except Exception as exc:
                self._note_error(exc)
                _log.warning("%s: resync failed", self.name, exc_info=True)

    # -- list ---------------------------------------------------------------------------------

    def _list_and_watch(self) -> None:
        self._list()
        while not self._stopping.is_set():
            try:
                self._follow_watch()
            except Exception as exc:
                if not _needs_no_list(exc):
                    raise
                self._pause(exc)

    def _list(self) -> None:
        version = "" if self._version_lost else self._version or "0"
        try:
            result, paged = self._list_pages(version)
        except ApiError as exc:
            if not _version_unavailable(exc):
                raise
            # No pause: the answer says that this version never works and "" always does.
            _log.info("%s: cannot list at version %r: %s", self.name, version, exc)
            self._version_lost = True
            result, paged = self._list_pages("")
        if self._stopping.is_set():
            return
        self._version_lost = False
        # Only at "0": a list at "" comes in pages even from a server that has a watch cache,
        # and its cache is what later lists should be answered from.
        self._paged = self._paged or (paged and version == "0")
        self._store.replace(self._expected_items(result.items), result.resource_version)
        self._version = result.resource_version
        self._lists += 1

    def _list_pages(self, version: str) -> tuple[ListResult[Any], bool]:
        """Return the whole list and whether it came in pages; part of it when stopping."""
        # With an exact version a server answers from its cache only if there is no limit.
        limit = self._page_size if self._paged or version in ("", "0") else 0
        first = read_list(self._source.list(ListOptions(version, limit)))
        if not first.continue_token:
            return first, False
        items = list(first.items)
        token = first.continue_token
        while token and not self._stopping.is_set():
            try:
                # The token holds the version of the first page, which makes the list one.
                page = read_list(self._source.list(ListOptions("", limit, token)))
            except ExpiredError:
                return read_list(self._source.list(ListOptions(version, 0))), True
            items.extend(page.items)
            token = page.continue_token
        return ListResult(items, first.resource_version), True

    def _expected_items(self, items: Sequence[Any]) -> Sequence[Any]:
        expected = [item for item in items if self._is_expected(item)]
        dropped = len(items) - len(expected)
        if dropped:
            self._dropped += dropped
            example = next(item for item in items if not self._is_expected(item))
            _log.warning(
                "%s: dropped %d listed items of an unexpected type, one is %s",
                self.name,
                dropped,
                describe_object(example),
            )
        return expected

    # -- watch --------------------------------------------------------------------------------

    def _follow_watch(self) -> None:
        least, most = self._watch_timeout
        timeout = int(least + self._random() * (most - least))
        events_before = self._events
        started = self._clock()
        watch = self._source.watch(WatchOptions(self._version, timeout, allow_bookmarks=True))
        self._watches += 1
        with self._lock:
            self._watch = watch
        try:
            self._apply_all(watch)
        finally:
            self._close_watch()
        if self._events == events_before and self._clock() - started < _VERY_SHORT_WATCH:
            raise _VeryShortWatchError(
                f"reflector {self.name!r}: the watch ended in under {_VERY_SHORT_WATCH:g} s "
                "without an event"
            )

    def _apply_all(self, watch: Iterable[Event[Any] | Mapping[str, Any]]) -> None:
        # stop() may have come while the watch was being opened, and found none to close.
        if self._stopping.is_set():
            return
        for event in watch:
            self._apply(event)
            if self._stopping.is_set():
                return

    def _apply(self, event: Event[Any] | Mapping[str, Any]) -> None:
        if isinstance(event, Event):
            kind, obj = event.type, event.object
        elif isinstance(event, Mapping):
            kind, obj = event.get("type", ""), event.get("object")
        else:
            self._drop("something that is no event", event)
            return
        if kind == "ERROR":
            raise error_from_status(obj)
        if not self._is_expected(obj):
            self._drop("an event of an unexpected type", obj)
            return
        version = resource_version(obj)
        if version is None:
            self._drop("an event without metadata", obj)
            return
        write = self._writers.get(kind)
        if write is not None:
            try:
                write(obj)
            except Exception as exc:
                self._note_error(exc)
                _log.warning(
                    "%s: the store refused %s %s: %s",
                    self.name,
                    kind,
                    describe_object(obj),
                    exc,
                )
        elif kind != "BOOKMARK":
            _log.warning("%s: unknown event type %r", self.name, kind)
        if version:
            self._version = version
        self._events += 1
        self._last_event = self._clock()

    def _close_watch(self) -> None:
        """Close the open watch, if any; the first to come closes it, once."""
        with self._lock:
            watch, self._watch = self._watch, None
        close = getattr(watch, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as exc:  # a generator that runs in another thread refuses
            _log.debug("%s: closing the watch: %s", self.name, exc)

    # -- errors -------------------------------------------------------------------------------

    def _drop(self, what: str, obj: Any) -> None:
        self._dropped += 1
        _log.warning("%s: dropped %s: %s", self.name, what, describe_object(obj))

    def _note_error(self, exc: Exception) -> None:
        with self._lock:
            self._errors += 1
            self._last_error = f"{type(exc).__name__}: {exc}"

    def _pause(self, exc: Exception) -> None:
        if self._stopping.is_set():
            return  # a watch that stop() closed may fail in any way
        self._note_error(exc)
        delay = max(self._backoff.next_delay(), getattr(exc, "retry_after", None) or 0.0)
        level = logging.INFO if isinstance(exc, ExpiredError) else logging.WARNING
        _log.log(level, "%s: %s: %s; next try in %.1f s", self.name, type(exc).__name__, exc, delay)
        self._wait(delay)


def _needs_no_list(exc: Exception) -> bool:
    return isinstance(exc, ConnectionRefusedError) or (
        isinstance(exc, ApiError) and exc.status == 429
    )


def _version_unavailable(exc: ApiError) -> bool:
    # A server that is behind (or was restored from a backup) does not know a version yet.
    return isinstance(exc, ExpiredError) or (
        exc.status == 504 and "too large resource version" in exc.message.lower()
    )
