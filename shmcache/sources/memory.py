"""A source in memory that does what a test tells it: for tests of what is fed by a source.

It answers as a Kubernetes API server does towards a client that lists and watches, and goes
wrong on demand:

====================  =====================================================================
the test says         a client sees
====================  =====================================================================
``add`` ``update``    the object in lists, and an event in watches
``delete``            the object gone, and a DELETED event with its last state
``bookmark``          a BOOKMARK event with a new version, if it allowed them
``disconnect``        its watch ends, after the events so far
``expire``            every version so far is gone: its watch ends with an ERROR event 410,
                      a watch from such a version and a page of an older list raise
                      :class:`~shmcache.ExpiredError`
``fail``              the next list or watch raises that error
``send``              that event in its watch, whatever it is
``pause`` ``resume``  lists, watches and their events wait in between
``interrupt``         a list, or a watch that is being opened, fails if it waits for that
====================  =====================================================================

May import: ``_errors``, ``_types``, ``keys``.
"""

from __future__ import annotations

import builtins
import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from shmcache._errors import ApiError, ExpiredError
from shmcache._types import Event, ListOptions, ListResult, WatchOptions
from shmcache.keys import meta_namespace_key_func

__all__ = ["MemorySource"]


class MemorySource:
    """A :class:`~shmcache.ListerWatcher` whose content and failures a test decides.

    ``objects``: what it holds at first. ``api_version`` and ``kind``: of objects that name
    none, and of bookmarks. ``clock``: monotonic seconds, by which watches end after their
    ``timeout_seconds``; call :meth:`wake` when a clock of your own was moved.

    Objects are mappings of the Kubernetes shape; they are copied on the way in and out, and
    get versions: decimal strings that grow, opaque to clients. Thread-safe. A watch with
    ``send_initial_events`` is answered (``streams_lists``); let it ``fail`` where it should not.

    >>> source = MemorySource([{"metadata": {"name": "a"}}])
    >>> page = source.list(ListOptions())
    >>> source.delete("a")
    '3'
    >>> watch = source.watch(WatchOptions(page.resource_version))
    >>> next(watch).type
    'DELETED'
    >>> watch.close()
    """

    streams_lists = True

    def __init__(
        self,
        objects: Iterable[Mapping[str, Any]] = (),
        *,
        api_version: str = "v1",
        kind: str = "Pod",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests: list[ListOptions | WatchOptions] = []
        """Every request, in the order of arrival, the failed ones too."""
        self._type = {"kind": kind, "apiVersion": api_version}
        self._clock = clock
        self._changed = threading.Condition()  # guards all below, and what watches hold
        self._objects: dict[str, dict[str, Any]] = {}
        self._version = 1  # "0" has a meaning of its own
        self._expired = 0  # watches may start from versions above
        self._history: list[tuple[int, Event[Any]]] = []
        self._pages: dict[str, tuple[str, list[Any]]] = {}
        self._pages_given = 0
        self._watches: list[_Watch] = []
        self._failures: dict[str, deque[Exception]] = {"list": deque(), "watch": deque()}
        self._paused = False
        self._interruptions = 0
        for obj in objects:
            self.add(obj)

    # -- the test's side ----------------------------------------------------------------------

    def add(self, obj: Mapping[str, Any]) -> str:
        """Hold a new object and return its version. ``ValueError`` if its key is taken."""
        with self._changed:
            key = meta_namespace_key_func(obj)
            if key in self._objects:
                raise ValueError(f"there is an object {key!r} already")
            return self._change("ADDED", key, obj)

    def update(self, obj: Mapping[str, Any]) -> str:
        """Put ``obj`` in the place of the object of its key, and return its version.

        ``KeyError`` if there is none.
        """
        with self._changed:
            key = meta_namespace_key_func(obj)
            if key not in self._objects:
                raise KeyError(key)
            return self._change("MODIFIED", key, obj)

    def delete(self, obj_or_key: Mapping[str, Any] | str) -> str:
        """Remove the object of that key, and return the version after it.

        ``KeyError`` if there is none. The event has the object as it last was.
        """
        with self._changed:
            is_key = isinstance(obj_or_key, str)
            key = str(obj_or_key) if is_key else meta_namespace_key_func(obj_or_key)
            return self._change("DELETED", key, self._objects.pop(key))

    def bookmark(self) -> str:
        """Advance the version, as writes of other objects do, and tell who allowed bookmarks."""
        with self._changed:
            self._version += 1
            for watch in self._watches:
                if watch.bookmarks:
                    watch.events.append(self._make_bookmark())
            self._changed.notify_all()
            return str(self._version)

    def disconnect(self) -> None:
        """End the open watches, after the events that they have not yet taken."""
        with self._changed:
            for watch in self._watches:
                watch.ending = True
            self._watches.clear()
            self._changed.notify_all()

    def expire(self) -> None:
        """Forget the history: every version and continue token given out so far is gone.

        The open watches get an ERROR event with a ``Status`` of 410, and end.
        """
        with self._changed:
            self._version += 1
            self._expired = self._version - 1
            self._history.clear()
            self._pages.clear()
            message = f"too old resource version ({self._version})"
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": message}
            self.send(Event("ERROR", status))
            self.disconnect()

    def fail(self, error: Exception, times: int = 1, on: Literal["list", "watch"] = "list") -> None:
        """Raise ``error`` from the next ``times`` calls of :meth:`list` or :meth:`watch`."""
        with self._changed:
            self._failures[on].extend([error] * times)

    def send(self, event: Event[Any] | Mapping[str, Any]) -> None:
        """Send ``event`` as it is to the open watches; the content does not change."""
        with self._changed:
            for watch in self._watches:
                watch.events.append(event)
            self._changed.notify_all()

    def pause(self) -> None:
        """Let every list, watch and event wait until :meth:`resume`; ``close`` still works."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def objects(self) -> builtins.list[dict[str, Any]]:
        """Copies of what it holds now, in the order of keys; even while it is paused."""
        with self._changed:
            return [copy.deepcopy(obj) for _, obj in sorted(self._objects.items())]

    def wake(self) -> None:
        """Let the open watches look at the clock again."""
        with self._changed:
            self._changed.notify_all()

    def wait_for_watch(self, timeout: float | None = None) -> bool:
        """Sleep until a watch is open, at most ``timeout`` seconds; return whether one is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._watches), timeout)

    # -- the client's side --------------------------------------------------------------------

    def list(self, options: ListOptions) -> ListResult[Any]:
        """Return one page, in the order of keys; all pages of a list are of one moment."""
        with self._changed:
            self._receive("list", options)
            if options.continue_token:
                if options.continue_token not in self._pages:
                    raise ExpiredError("the continue token is too old")
                version, items = self._pages[options.continue_token]
            else:
                self._read_version(options.resource_version)
                version, items = str(self._version), [o for _, o in sorted(self._objects.items())]
            token = ""
            if 0 < options.limit < len(items):
                self._pages_given += 1
                token = f"page-{self._pages_given}"
                self._pages[token] = version, items[options.limit :]
                items = items[: options.limit]
            return ListResult(copy.deepcopy(items), version, token)

    def watch(self, options: WatchOptions) -> _Watch:
        """Return the changes after the version, past and to come, until somebody ends it.

        From ``""`` or ``"0"``, and with ``send_initial_events``, it begins with the present
        objects, as ADDED; in the latter case a bookmark follows them and says so, if bookmarks
        are allowed.
        """
        with self._changed:
            self._receive("watch", options)
            start = self._read_version(options.resource_version)
            if start == 0 or options.send_initial_events:
                events = [Event("ADDED", obj) for _, obj in sorted(self._objects.items())]
                if options.send_initial_events and options.allow_bookmarks:
                    end = {"k8s.io/initial-events-end": "true"}
                    events.append(self._make_bookmark(annotations=end))
            elif start <= self._expired:
                raise ExpiredError(f"too old resource version: {start} ({self._expired + 1})")
            else:
                events = [event for version, event in self._history if version > start]
            watch = _Watch(self, events, options)
            self._watches.append(watch)
            self._changed.notify_all()
            return watch

    def interrupt(self) -> None:
        """Fail the lists that wait, and the watches that wait to be opened."""
        with self._changed:
            self._interruptions += 1
            self._changed.notify_all()

    # -- both hold the lock -------------------------------------------------------------------

    def _change(self, kind: str, key: str, obj: Mapping[str, Any]) -> str:
        self._version += 1
        version = str(self._version)
        made = {**self._type, **copy.deepcopy(dict(obj))}
        made["metadata"] = {**made["metadata"], "resourceVersion": version}
        if kind != "DELETED":
            self._objects[key] = made
        event = Event(kind, made)
        self._history.append((self._version, event))
        self.send(event)
        return version

    def _make_bookmark(self, **metadata: Any) -> Event[Any]:
        metadata["resourceVersion"] = str(self._version)
        return Event("BOOKMARK", {**self._type, "metadata": metadata})

    def _receive(self, call: str, options: ListOptions | WatchOptions) -> None:
        self.requests.append(options)
        self._changed.notify_all()
        before = self._interruptions
        self._changed.wait_for(lambda: not self._paused or self._interruptions != before)
        if self._paused:
            raise InterruptedError(f"the {call} was interrupted")
        if self._failures[call]:
            raise self._failures[call].popleft()

    def _read_version(self, text: str) -> int:
        if not text:
            return 0
        if not (text.isascii() and text.isdecimal()):
            raise ApiError(400, f"invalid resource version {text!r}")
        if int(text) > self._version:
            raise ApiError(504, f"Too large resource version: {text}, current: {self._version}")
        return int(text)


class _Watch:
    """An open watch: the events that its client has not taken, and how it ends."""

    def __init__(
        self, source: MemorySource, events: Iterable[Event[Any]], options: WatchOptions
    ) -> None:
        self._source = source
        self._changed = source._changed  # guards all below
        self.events: deque[Event[Any] | Mapping[str, Any]] = deque(events)
        self.bookmarks = options.allow_bookmarks
        self.ending = False
        self._deadline = None
        if options.timeout_seconds is not None:
            self._deadline = source._clock() + options.timeout_seconds

    def __iter__(self) -> Iterator[Event[Any] | Mapping[str, Any]]:
        return self

    def __next__(self) -> Event[Any] | Mapping[str, Any]:
        with self._changed:
            while True:
                if self.events and not self._source._paused:
                    return copy.deepcopy(self.events.popleft())
                if self.ending and not self.events:
                    raise StopIteration
                left = None
                if self._deadline is not None and not self._source._paused:
                    left = self._deadline - self._source._clock()
                    if left <= 0:
                        self.close()
                        continue
                self._changed.wait(left)

    def close(self) -> None:
        """End the watch at once; what its client has not taken is lost. Idempotent."""
        with self._changed:
            self.events.clear()
            self.ending = True
            if self in self._source._watches:
                self._source._watches.remove(self)
            self._changed.notify_all()
