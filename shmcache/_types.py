"""Values that cross a boundary: immutable, without behaviour.

May import: nothing of shmcache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

__all__ = [
    "REFLECTOR_STATES",
    "ArenaInfo",
    "Change",
    "DeadLetter",
    "Delayed",
    "Event",
    "InFlight",
    "ListOptions",
    "ListResult",
    "ReflectorStats",
    "ReflectorStatus",
    "Stats",
    "WatchOptions",
    "WorkerInfo",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """One change that a watch reports.

    ``type`` is ``"ADDED"``, ``"MODIFIED"``, ``"DELETED"``, ``"BOOKMARK"`` or ``"ERROR"`` (the
    names of the Kubernetes API); of an ``ERROR`` the object is a Kubernetes ``Status``.
    """

    type: str
    object: T


class Change(NamedTuple, Generic[T]):
    """One change of a store, as a :class:`~shmcache.Watch` gives it.

    A tuple, because the core makes one for every change in every process that watches.
    """

    type: str
    """``"ADDED"``, ``"MODIFIED"`` or ``"DELETED"``, the names of the Kubernetes API."""
    key: str
    object: T
    """As it is now; of a ``DELETED``, as this watch last gave it."""
    old: T | None
    """Of a ``MODIFIED``, what this watch gave before; else None."""


@dataclass(frozen=True, slots=True)
class ListOptions:
    """What a reflector asks of ``ListerWatcher.list``.

    ``resource_version``: ``""`` for the most recent, ``"0"`` for any (a server may answer from
    its cache), else at least that one. ``limit``: most items a page, 0 for all.
    ``continue_token``: of the page before, ``""`` for the first.
    """

    resource_version: str = ""
    limit: int = 0
    continue_token: str = ""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a reflector asks of ``ListerWatcher.watch``.

    ``timeout_seconds``: the server ends the watch after that many seconds, None for its own
    choice. ``allow_bookmarks``: send BOOKMARK events, which advance the version without data.
    ``send_initial_events``: begin with what is there, as ADDED events, and say by a BOOKMARK
    with the annotation ``k8s.io/initial-events-end: "true"`` that this was all; asked only of
    sources with ``streams_lists``.
    """

    resource_version: str = ""
    timeout_seconds: int | None = None
    allow_bookmarks: bool = True
    send_initial_events: bool = False


@dataclass(frozen=True, slots=True)
class ListResult(Generic[T]):
    """One page of a list. ``continue_token`` is ``""`` on the last."""

    items: Sequence[T]
    resource_version: str = ""
    continue_token: str = ""


@dataclass(frozen=True, slots=True)
class ReflectorStats:
    """What a reflector has done so far. A snapshot: the numbers only ever grow.

    Times are of ``time.monotonic()``, None before the first.
    """

    lists: int
    """Lists that reached the store; the pages of one list count once, a streamed one too."""
    watches: int
    """Watches that the source opened."""
    events: int
    """Events received and understood, bookmarks included."""
    dropped: int
    """List items and events that did not reach the store: of the wrong type, without metadata,
    without a key or a code, or such that ``transform`` failed on them."""
    errors: int
    """Failed lists and watches, and failed store writes."""
    last_error: str
    """``"ExpiredError: 410: …"``, or ``""`` if there never was one."""
    last_event_monotonic: float | None
    """When the last event came. Bookmarks come about once a minute from a Kubernetes server, so
    a much older time means a silent watch."""
    last_contact_monotonic: float | None
    """When the source last answered: a list, a page of one, or anything in a watch."""
    last_error_monotonic: float | None


REFLECTOR_STATES = ("listing", "watching", "waiting", "stopped")
"""What ``state`` of a :class:`ReflectorStatus` may be; ``""`` if there never was a reflector."""


@dataclass(frozen=True, slots=True)
class ReflectorStatus:
    """What the reflector of an arena says of itself, for every process that is attached.

    ``alive``: whether a living process holds the reflector's place. If not, the rest is what
    the last one said. Ages are seconds, None for what never was.
    """

    name: str
    """``""`` if there never was a reflector."""
    alive: bool
    pid: int
    state: str
    """``"listing"``, ``"watching"``, ``"waiting"`` (a pause after an error) or ``"stopped"``."""
    heartbeat_age: float | None
    """Since the last report; a living reflector reports every second."""
    contact_age: float | None
    """Since the source last answered: see :attr:`ReflectorStats.last_contact_monotonic`."""
    event_age: float | None
    """Since the last event, a bookmark too."""
    resource_version: str
    lists: int
    watches: int
    events: int
    dropped: int
    errors: int
    last_error: str
    last_error_age: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one arena, as ``stats()`` read them. Sizes are bytes, ages seconds, and what ends
    in ``_ns`` nanoseconds.

    All but the last group come from the segment and are the same for every process.
    """

    name: str
    kind: str
    entries: int
    capacity_bytes: int
    committed_bytes: int
    used_bytes: int
    """Key and payload bytes of the entries with their headers. The rest of the committed bytes
    is overhead, and free memory that is used again."""
    free_bytes: int
    """Committed memory that no entry uses, in ``free_blocks`` pieces."""
    free_blocks: int
    """Separate free pieces in the heap: high against ``entries`` means fragmentation."""
    largest_free_bytes: int
    version: int
    index_slots: int
    indexes: int
    """Secondary indexes of an Indexer."""
    index_values: int
    """Values that at least one entry has in one of them."""
    writes: int
    deletes: int
    pops: int
    reads: int
    """Reads by key, and objects listed, of all processes. A process tells every 256 reads, and when
    it lists, asks for ``stats``, or closes; what a killed one had not told is lost."""
    read_misses: int
    """Those of them that had to decode."""
    in_flight: int
    """Items of a FIFO that are claimed, keys of a WorkQueue that a worker has."""
    dead_letters: int
    """Items of a FIFO or keys of a WorkQueue that have failed as often as they may."""
    delayed: int
    """Keys of a WorkQueue that wait for their time."""
    oldest_age: float | None
    """Seconds since the item that is popped next was queued, to some milliseconds; an update does
    not make it younger. None if nothing is queued, and for a Store or Indexer."""
    oldest_claim_age: float | None
    """Seconds since the oldest claim in flight was given: a consumer that hangs shows in it. None
    if nothing is in flight."""
    attached: int
    """Handles of living processes, read-only ones and this one included, as the kernel lists them;
    approximate while others attach and detach."""
    repairs: int
    last_repair_ns: int
    created_unix_ns: int

    hits: int
    """Reads through this handle that found the decoded object in its cache."""
    misses: int
    """Reads through this handle that had to decode."""
    cached_bytes: int
    """Payload bytes of the entries whose decoded objects this handle keeps."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A living handle that has written or popped, as the kernel and the segment tell it."""

    pid: int
    """As its process knows itself: in another PID namespace the number is another's."""
    pops: int
    """Items that it has popped, or whose claim it has ended as done."""


@dataclass(frozen=True, slots=True)
class InFlight(Generic[T]):
    """An item that a consumer has claimed."""

    key: str
    item: T
    pid: int
    """Of the consumer, as its process knows itself; 0 if it is gone and another has its place."""
    attempt: int
    """1 for the first claim."""
    lease: float | None
    """Seconds until the claim has failed, None for as long as its process lives."""
    age: float = field(compare=False)
    """Seconds since it was claimed."""


@dataclass(frozen=True, slots=True)
class DeadLetter(Generic[T]):
    """An item of which ``max_attempts`` claims have failed."""

    key: str
    item: T
    attempts: int
    age: float = field(compare=False)
    """Seconds since the last of them failed."""


@dataclass(frozen=True, slots=True)
class Delayed:
    """A key of a WorkQueue that waits for its time."""

    key: str
    seconds: float
    """Until it is queued; 0.0 if that is due."""
    failures: int
    """How often it has failed since it was forgotten."""


@dataclass(frozen=True, slots=True)
class ArenaInfo:
    """One line of ``list_arenas()``: what can be said of an arena without attaching."""

    name: str
    kind: str
    codec: str
    capacity_bytes: int
    allocated_bytes: int
    """Bytes of memory that the segment's file takes now."""
    in_use: bool
    """Whether any living process is attached, as the kernel tells it."""
    owner_uid: int
    mode: int
