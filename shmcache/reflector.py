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
watch is silent for longer than its   closed from outside; an ordinary end
``timeout_seconds`` and 15 s
410, as answer or as ERROR event      pause, list
429, or connection refused            pause, watch again from the last version, **no list**: a
                                      server that restarts is not greeted by full lists
500, as answer or as ERROR event      pause, list; within ``internal_error_retry`` seconds of
                                      the first of them pause, watch again, no list. A minute
                                      without one, or a list, opens a new window
any other error                       pause, list
BOOKMARK                              the version advances
wrong type, or no metadata            dropped; the version stays
``transform`` fails                   that object or event dropped; the version advances
unknown event type                    nothing is applied; the version advances
``store.add/update/delete`` fails     logged; the version advances
the same: a ``LockTimeoutError``      pause, the same write again: whoever has the lock will
                                      let go of it, and nobody would bring this event again
the same: a ``CapacityError``         logged; the store is told no later version, which would say
                                      that it has this event, and at the end of the watch there
                                      is a list; if that has no room either, watch again
``store.replace`` cannot hold an      that item dropped, the others replaced: see ``_intake``
item (no key, or no encoding)
``store.replace`` fails               error; the store is as it was
``stop()``                            the watch is closed, the source interrupted
====================================  =====================================================

A source with ``streams_lists`` is not listed but asked for a watch with its initial events:

====================================  =====================================================
streaming: when                       then
====================================  =====================================================
start, and where else a list stands   watch with ``send_initial_events`` from the last version
above                                 (``""`` at first); nothing enters the store yet
ADDED, MODIFIED, DELETED              applied to the collection; the version stays
BOOKMARK, annotated as the end        one ``store.replace`` at that bookmark's version; the
                                      same stream goes on as the watch
any other BOOKMARK                    nothing
the stream ends before                pause, a new stream; the store is as it was
it lasted all its time, or was        a list in its place, from now on always: this server
silent for 30 s                       does not know of the end
429, or connection refused            pause, a new stream
410 or "too large version"            a new stream at once at ``""``
any other error, also an end in 1 s   a list in its place; where the next list would be, a
without an event                      stream is tried again
====================================  =====================================================

A store may have a place for one reflector (``ReflectorSeat``), which is taken and left so:

====================================  =====================================================
seat: when                            then
====================================  =====================================================
``start()``, ``run()``                take it, or raise ``ReflectorRunningError``
the same with ``standby``             wait until it is free; if the one before had our name
                                      and left a version, watch from there, no list
an event, a bookmark                  ``store.bookmark(version)`` after the write, so that
                                      this is possible; ``replace`` carries a list's version
each second, and at each new state    ``store.report_reflector``
the end, good or bad                  ``"stopped"`` is reported, the place given back
====================================  =====================================================

A pause is the backoff's next delay, or the server's ``Retry-After`` if that is longer. Unlike
in client-go, the items of a list are type-checked like events, and an object that fails does
not enter the store; a stream that never marks its end is given up; and repeated watches after
a 500 have pauses between them. Versions are opaque: they are repeated, never compared. While a
watch that was opened without a version brings what is there, in no order, the versions of its
ADDED events are not taken.

What is not here: what may enter the store (``_intake``), a watch's silence (``_open_watch``),
the collection of a stream (``_initial_events``), the place at the store (``_seat``), pages
(``_pager``), which failure is which (``_failures``), the figures (``_counters``), starting and
stopping (``_background``). It sees neither bytes nor segments, and the source decides what an
object is. May import: those, ``_backoff``, ``_errors``, ``_logging``, ``_objects``, ``_ports``,
``_types``, ``listwatch``.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from shmcache._background import Background
from shmcache._backoff import LONGEST_PAUSE, Backoff, RetryWindow
from shmcache._counters import Counters
from shmcache._errors import ApiError, CapacityError, ExpiredError, LockTimeoutError
from shmcache._failures import (
    EndedEarlyError,
    NoEndError,
    may_watch_again,
    needs_no_list,
    version_unavailable,
)
from shmcache._initial_events import InitialEvents, marks_the_end
from shmcache._intake import Intake
from shmcache._logging import get_logger
from shmcache._objects import describe_object, describe_type, type_check
from shmcache._open_watch import GRACE, OpenWatch
from shmcache._pager import list_pages
from shmcache._ports import ListerWatcher, ReflectorStore
from shmcache._seat import HEARTBEAT, Seat
from shmcache._types import ListOptions, ListResult, ReflectorStats, WatchOptions
from shmcache.listwatch import read_list

__all__ = ["Reflector"]

_INTERRUPT_EVERY = 0.05
"""Seconds. A call that began just after an interruption is ended by the next."""

_STANDBY_POLL = 0.2
"""Seconds between two looks at whether the place at the store is free."""


def standby_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` of a reflector for those that always stand by."""
    if not options.get("standby", True):
        raise ValueError(
            "standby cannot be False here: the reflector of every worker stands by, so that one "
            "of them takes over; for one that does not, make a Reflector"
        )
    return {"name": name, **options, "standby": True}


class Reflector(Background):
    """Fills ``store`` from ``lister_watcher`` and keeps it up to date until stopped.

    ``expected_type``: a class, for ``isinstance``; a ``"v1/Pod"`` or ``"apps/v1/Deployment"``
    string, compared with ``apiVersion/kind`` of dicts; None for any. ``resync_period``: seconds
    between calls of ``store.resync()``, if the store has one, 0 for never. ``name``: for the
    log, the thread and the store's status, by default the expected type. ``page_size``: most
    items a page of a list, 0 for no paging. ``backoff``: the pauses after errors.
    ``watch_timeout``: each watch asks the server to end it after a random time in this range of
    seconds, so that the watches of many processes do not end together.

    ``transform``: a function of an object that returns what is stored in its place, called once
    for each object that a list or an event brings (to leave out ``managedFields``, say); it may
    change the object that it gets. ``internal_error_retry``: seconds for which a watch that
    fails with 500 is opened again before a list is tried. ``standby``: wait while another
    reflector fills the store, and take over when that is gone; give both the same ``name``, and
    the same source, and the second goes on where the first was. Needs a store with a place for
    a reflector (:class:`~shmcache.ReflectorSeat`).

    Errors of the source or of the store never end the reflector: they are counted
    (:meth:`stats`), logged to ``shmcache.reflector`` and retried. Raises :class:`TypeError` or
    :class:`ValueError` for arguments that cannot be meant; :meth:`start` and :meth:`run` raise
    :class:`~shmcache.ReflectorRunningError` if the store has a reflector and this is no standby.
    After client-go's ``Reflector``; the module docstring has the rules.

    One reflector runs once. In a thread of its own::

        with Reflector(source, "v1/Pod", store):
            store.wait_for_sync(10)
            ...

    or in this one, until somebody calls :meth:`stop` or sets the event: ``run(stop_event)``.
    :meth:`stop` ends an open watch at once, and a list too if the source can be interrupted;
    else a list ends when the source's own deadlines say so.
    """

    _role = "reflector"

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
        transform: Callable[[Any], Any] | None = None,
        internal_error_retry: float = 0.0,
        standby: bool = False,
        _clock: Callable[[], float] = time.monotonic,
        _random: Callable[[], float] = random.random,
        _wait: Callable[[float], bool] | None = None,
        _attend_wait: Callable[[float], bool] | None = None,
    ) -> None:
        if isinstance(lister_watcher, type) or not (
            callable(getattr(lister_watcher, "list", None))
            and callable(getattr(lister_watcher, "watch", None))
        ):
            raise TypeError(
                "lister_watcher must be a source, an object with list and watch like "
                f"ListWatch(list_func, watch_func), not {lister_watcher!r}"
            )
        if isinstance(store, str) or not callable(getattr(store, "replace", None)):
            raise TypeError(f"store must be a Store, or have its writing methods, not {store!r}")
        if backoff is not None and not callable(getattr(backoff, "next_delay", None)):
            raise TypeError(f"backoff must be a Backoff() or None, not {backoff!r}")
        if not (page_size >= 0 and internal_error_retry >= 0):  # also NaN
            raise ValueError(
                "page_size and internal_error_retry must not be negative: "
                f"{page_size}, {internal_error_retry}"
            )
        if not 0 <= resync_period <= LONGEST_PAUSE:
            raise ValueError(f"resync_period must be seconds from 0, not {resync_period}")
        if not isinstance(watch_timeout, (tuple, list)) or len(watch_timeout) != 2:
            raise TypeError(
                f"watch_timeout must be (least, most) in seconds, not {watch_timeout!r}"
            )
        if not 1 <= watch_timeout[0] <= watch_timeout[1]:
            raise ValueError(
                f"watch_timeout must be (least, most) whole seconds from 1, not {watch_timeout}"
            )
        is_expected = type_check(expected_type)
        super().__init__(name or describe_type(expected_type), wait=_wait)
        self._source = lister_watcher
        self._store = store
        self._log = get_logger(
            "shmcache.reflector",
            arena=str(getattr(store, "name", "")),
            resource=describe_type(expected_type),
        )
        self._counters = Counters(_clock)
        self._intake = Intake(is_expected, transform, self._counters, self.name, self._log)
        self._writers: dict[str, Callable[[Any], None]] = {
            "ADDED": store.add,
            "MODIFIED": store.update,
            "DELETED": store.delete,
        }
        self._bookmark: Callable[[str], None] | None = getattr(store, "bookmark", None)
        self._seat = Seat(store, self.name, self.stats, self._log)
        if standby and not self._seat.exists:
            raise ValueError(
                f"standby must be False: {type(store).__name__} has no place for a reflector"
            )
        self._standby = standby
        self._resync_period = resync_period
        self._page_size = page_size
        self._backoff = Backoff() if backoff is None else backoff
        self._watch_timeout = watch_timeout
        self._internal_error_retry = internal_error_retry
        self._clock = _clock
        self._random = _random
        self._attend_wait = self._stopping.wait if _attend_wait is None else _attend_wait

        # Written by the thread in run() alone; others read single values, and a stale one is
        # fine.
        self._version = ""
        self._version_lost = False  # the server no longer knows _version
        self._incomplete = False  # there was no room for an event since the last list
        self._paged = False  # the first list came in pages: this server wants paging
        self._filled = False  # the store has what some list said
        self._streams: bool | None = None  # whether the source does; asked when it is needed

        self._watch: OpenWatch | None = None  # guarded by _lock: the open one, for who closes it

    @property
    def last_sync_resource_version(self) -> str:
        """The version that the store is at: of the last list or event, ``""`` before them."""
        return self._version

    def stats(self) -> ReflectorStats:
        """Return the counters. May be called from any thread."""
        return self._counters.stats()

    # -- life cycle ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        if not self._standby:
            self._seat.take()

    def _finish(self) -> None:
        self._seat.leave()

    def _attendants(self) -> list[Callable[[], None]]:
        resync = getattr(self._store, "resync", None)
        if self._resync_period and resync is not None:
            return [self._attend, lambda: self._resync(resync)]
        return [self._attend]

    def _attend(self) -> None:
        """See to what the reflector's own thread cannot: it is blocked most of the time."""
        # No watch that is opened from now on can have been silent for too long before this.
        least = self._watch_timeout[0] + GRACE
        if self._seat.exists:
            least = min(least, HEARTBEAT)
        while not self._attend_wait(min(least, self._close_if_silent())):
            self._seat.beat()
        while not self._ended.wait(_INTERRUPT_EVERY):
            self._interrupt()

    def _close_if_silent(self) -> float:
        """Close a watch that has been silent too long; return the seconds until one can be."""
        with self._lock:
            watch = self._watch
            left = GRACE + self._watch_timeout[0] if watch is None else watch.patience()
            if watch is None or left > 0:
                return left
            self._watch = None
            watch.give_up()
        self._log.warning("%s: the watch is silent: closing it", self.name)
        watch.close()
        return GRACE + self._watch_timeout[0]

    def _interrupt(self) -> None:
        self._close_watch()
        interrupt = getattr(self._source, "interrupt", None)
        if interrupt is None:
            return
        try:
            interrupt()
        except Exception as exc:
            self._log.debug("%s: interrupting the source: %s", self.name, exc)

    def _resync(self, resync: Callable[[], object]) -> None:
        # A thread of its own: a store's resync may take its time.
        while not self._stopping.wait(self._resync_period):
            if not self._filled:
                continue
            try:
                resync()
            except Exception as exc:
                self._counters.error(exc)
                self._log.warning("%s: resync failed", self.name, exc_info=True, extra=_fields(exc))

    def _work(self) -> None:
        resuming = self._standby and self._succeed()
        while not self._stopping.is_set():
            try:
                self._list_and_watch(resuming)
            except Exception as exc:  # whatever a source raises, the next try may work
                self._pause(exc)
            resuming = False

    def _succeed(self) -> bool:
        """Wait for the place at the store; return whether there is a version to go on from."""
        while not self._stopping.is_set():
            try:
                version = self._seat.try_to_succeed()
            except Exception as exc:
                self._pause(exc)
                continue
            if version is not None:
                self._version = version
                self._filled = version != ""
                self._log.info("%s: taking over at version %r", self.name, version)
                return self._filled
            self._wait(_STANDBY_POLL)
        return False

    # -- list ---------------------------------------------------------------------------------

    def _list_and_watch(self, resuming: bool) -> None:
        try:
            watch = None if resuming else self._fill()
            window = RetryWindow(self._internal_error_retry, clock=self._clock)
            quiet_since = self._clock()
            while not self._stopping.is_set():
                try:
                    self._follow(watch or self._open_watch(self._version))
                except Exception as exc:
                    if not may_watch_again(exc, window, self._clock() - quiet_since):
                        raise
                    self._pause(exc)
                    quiet_since = self._clock()
                watch = self._complete() if self._incomplete else None
        finally:
            self._close_watch()  # a stream that stop() did not let us follow

    def _fill(self) -> OpenWatch | None:
        """Fill the store; return the stream that did it, to be followed, or None after a list."""
        self._seat.report("listing")
        if self._streams is None:
            self._streams = getattr(self._source, "streams_lists", False)
        if self._streams:
            try:
                streamed = self._stream()
            except Exception as exc:
                # A stream that is held open in vain costs minutes, each time.
                self._streams = not isinstance(exc, NoEndError)
                self._log.info(
                    "%s: listing, not streaming: %s: %s",
                    self.name,
                    type(exc).__name__,
                    exc,
                    extra=_fields(exc),
                )
            else:
                if streamed is None:
                    return None
                watch, initial, version = streamed
                self._replace(initial.objects(), version)
                return watch
        self._list()
        return None

    def _complete(self) -> OpenWatch | None:
        """Fill the store again; while there is no room, what follows is better than nothing."""
        try:
            return self._fill()
        except CapacityError as exc:
            self._close_watch()
            self._pause(exc)
            return None

    def _list(self) -> None:
        if self._stopping.is_set():
            return
        version = "" if self._version_lost else self._version or "0"
        try:
            items, listed_version, paged = self._list_pages(version)
        except ApiError as exc:
            if not version_unavailable(exc):
                raise
            # No pause: the answer says that this version never works and "" always does.
            self._log.info(
                "%s: cannot list at version %r: %s", self.name, version, exc, extra=_fields(exc)
            )
            self._version_lost = True
            items, listed_version, paged = self._list_pages("")
        if self._stopping.is_set():
            return
        # Only at "0": a list at "" comes in pages even from a server that has a watch cache,
        # and its cache is what later lists should be answered from.
        self._paged = self._paged or (paged and version == "0")
        self._replace(items, listed_version)

    def _list_pages(self, version: str) -> tuple[list[Any], str, bool]:
        # With an exact version a server answers from its cache only if there is no limit.
        limit = self._page_size if self._paged or version in ("", "0") else 0
        return list_pages(
            self._list_page, version, limit, self._intake.listed, self._stopping.is_set
        )

    def _list_page(self, options: ListOptions) -> ListResult[Any]:
        page = read_list(self._source.list(options))
        self._counters.last_contact = self._clock()
        return page

    def _replace(self, objs: list[Any], version: str) -> None:
        self._intake.replace(self._store, objs, version)
        self._version = version
        self._version_lost = False
        self._incomplete = False
        self._filled = True
        self._counters.lists += 1
        self._log.debug("%s: %d objects at version %r", self.name, len(objs), version)

    # -- stream -------------------------------------------------------------------------------

    def _stream(self) -> tuple[OpenWatch, InitialEvents, str] | None:
        """Return an open stream, what it began with, and the version of that.

        None when stopping. Raises what a list may answer better.
        """
        while not self._stopping.is_set():
            version = "" if self._version_lost else self._version
            try:
                watch = self._open_watch(version, initial_events=True)
                initial = InitialEvents(self._intake.transformed)
                end = self._collect(watch, initial)
                if end is not None:
                    return watch, initial, end
                self._close_watch()
                if not self._stopping.is_set():
                    watch.check_end(self.name)
                    raise (NoEndError if watch.is_over() else EndedEarlyError)(
                        f"after {watch.lasted():.0f} s the initial events had not ended"
                    )
            except Exception as exc:
                self._close_watch()
                if version and version_unavailable(exc):
                    self._log.info(
                        "%s: cannot stream at version %r: %s",
                        self.name,
                        version,
                        exc,
                        extra=_fields(exc),
                    )
                    self._version_lost = True
                elif isinstance(exc, EndedEarlyError) or needs_no_list(exc):
                    self._pause(exc)
                    self._seat.report("listing")
                else:
                    raise
        return None

    def _collect(self, watch: OpenWatch, initial: InitialEvents) -> str | None:
        """Collect the initial events; return the version at their end, None if there was none."""
        for kind, obj, version in self._events_of(watch):
            if kind == "BOOKMARK":
                if marks_the_end(obj):
                    watch.ordered, watch.initial = True, False
                    return version
            elif kind in self._writers:
                try:
                    initial.apply(kind, obj)
                except Exception as exc:
                    self._intake.drop(f"an initial event ({type(exc).__name__})", obj)
            else:
                self._log.warning("%s: unknown event type %r", self.name, kind)
        return None

    # -- watch --------------------------------------------------------------------------------

    def _open_watch(self, version: str, initial_events: bool = False) -> OpenWatch:
        least, most = self._watch_timeout
        timeout = int(least + self._random() * (most - least))
        options = WatchOptions(version, timeout, True, initial_events)
        started = self._clock()
        stream = self._source.watch(options)
        ordered = version != "" and not initial_events
        watch = OpenWatch(stream, timeout, ordered, initial_events, started, self._clock, self._log)
        self._counters.watches += 1
        with self._lock:
            self._watch = watch
        self._log.debug("%s: watching from version %r for %d s", self.name, version, timeout)
        return watch

    def _follow(self, watch: OpenWatch) -> None:
        self._seat.report("watching")
        try:
            for kind, obj, version in self._events_of(watch):
                if not self._apply(kind, obj):
                    break
                watch.ordered = watch.ordered or kind != "ADDED"
                if version and watch.ordered:
                    self._advance(version)
        finally:
            self._close_watch()
        watch.check_end(self.name)

    def _events_of(self, watch: OpenWatch) -> Iterator[tuple[str, Any, str]]:
        """Yield type, object and version of each event that means something, until stop()."""
        # Asked before the first event too: stop() may have come while the watch was being
        # opened, and found none to close.
        while not self._stopping.is_set():
            try:
                event = next(watch)
            except StopIteration:
                return
            self._counters.last_contact = watch.heard
            read = self._intake.event(event)
            if read is not None:
                watch.understood = True
                self._counters.events += 1
                self._counters.last_event = watch.heard
                yield read

    def _apply(self, kind: str, obj: Any) -> bool:
        """Do what an event asks for; whether it is done with, and the version may advance."""
        write = self._writers.get(kind)
        if write is None:
            if kind != "BOOKMARK":
                self._log.warning("%s: unknown event type %r", self.name, kind)
            return True
        try:
            made = self._intake.transformed(obj)
        except Exception as exc:
            self._intake.drop(f"{kind}, transform failed ({type(exc).__name__})", obj)
            return True
        while True:
            try:
                write(made)
                return True
            except LockTimeoutError as exc:
                self._pause(exc)
                if self._stopping.is_set():
                    return False
                self._seat.report("watching")
            except Exception as exc:
                self._counters.error(exc)
                self._log.warning(
                    "%s: the store refused %s %s: %s",
                    self.name,
                    kind,
                    describe_object(obj),
                    exc,
                    extra=_fields(exc),
                )
                self._incomplete = self._incomplete or isinstance(exc, CapacityError)
                return True

    def _advance(self, version: str) -> None:
        """Note how far the store is: after the write, so that nobody resumes behind it."""
        self._version = version
        if self._bookmark is None or self._incomplete:
            return
        try:
            self._bookmark(version)
        except Exception as exc:
            self._counters.error(exc)
            self._log.warning(
                "%s: the store refused the version %r: %s",
                self.name,
                version,
                exc,
                extra=_fields(exc),
            )

    def _close_watch(self) -> None:
        """Close the open watch, if any; the first to come closes it, once."""
        with self._lock:
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    # -- errors -------------------------------------------------------------------------------

    def _pause(self, exc: Exception) -> None:
        if self._stopping.is_set():
            return  # what stop() closed and interrupted may fail in any way
        self._counters.error(exc)
        self._seat.report("waiting")
        asked = min(getattr(exc, "retry_after", None) or 0.0, LONGEST_PAUSE)
        delay = max(self._backoff.next_delay(), asked)
        level = logging.INFO if isinstance(exc, ExpiredError) else logging.WARNING
        self._log.log(
            level,
            "%s: %s: %s; next try in %.1f s",
            self.name,
            type(exc).__name__,
            exc,
            delay,
            extra=_fields(exc),
        )
        self._wait(delay)


def _fields(exc: Exception) -> dict[str, Any]:
    """What the record of a failed list or watch has beside the reflector's own fields."""
    return {"error": type(exc).__name__, "status": exc.status if isinstance(exc, ApiError) else 0}
