"""Prometheus metrics of every arena of the machine, from one process.

All figures are in the segments, so one collector anywhere on the machine exports what all the
processes do: no exporter in each worker, no ``PROMETHEUS_MULTIPROC_DIR``, no files that dead
workers leave. In a process that serves metrics already::

    from prometheus_client import REGISTRY, start_http_server
    from shmcache.observe.prometheus import ShmCacheCollector

    REGISTRY.register(ShmCacheCollector())
    start_http_server(8000)

or in one of its own: ``shmcache metrics --port 9477``. Any registry will do, also the one that
``MultiProcessCollector`` is registered with: this collector needs nothing of it.

====================================  =====================================================
when                                  then
====================================  =====================================================
an arena cannot be read               ``shmcache_up`` is 0, ``shmcache_unreadable_info`` says
                                      why by the name of the error, the log says it once;
                                      the others are exported as ever
its lock is held by a stopped writer  nothing: no figure needs the lock
it vanishes                           its series end; a name that was asked for is
                                      ``ArenaNotFoundError``
it is made anew                       its counters start at 0, and their ``_created`` is new
a standby takes over                  the reflector's counters start at 0: they are of one
                                      reflector. They have no ``_created``
====================================  =====================================================

Each scrape attaches, reads and lets go (about a millisecond an arena). A handle that is kept
would hold the memory of an arena that was unlinked until the next scrape, make arenas that
everybody else has left look used, and be inherited by every worker that is forked. So between
scrapes this holds nothing, and threads and forks are no matter.

The names follow the rules of Prometheus and client-go's reflector and workqueue metrics. No label
grows without end: workers are counted, and named by pid only if asked for (``per_worker``), since
each worker that is restarted is then a new series, which Prometheus keeps for hours. Ages are at
the time of the scrape, by the machine's monotonic clock.

May import: ``_arena``, ``_attach``, ``_errors``, ``_logging``, ``_types``, ``workqueue``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from shmcache import _arena
from shmcache._attach import attach
from shmcache._errors import ArenaNotFoundError, IncompatibleArenaError
from shmcache._logging import get_logger
from shmcache._types import REFLECTOR_STATES, ReflectorStatus, Stats, WorkerInfo
from shmcache.workqueue import WorkQueue

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as cause:
    raise ImportError(
        "shmcache.observe.prometheus needs prometheus-client: pip install 'shmcache[metrics]'"
    ) from cause

__all__ = ["ShmCacheCollector"]

_log = get_logger(__name__)

T = TypeVar("T")

_NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class _Figure(Generic[T]):
    """One metric; a counter if its name ends so. ``read`` gives None where there is no sample."""

    name: str
    help: str
    read: Callable[[T], float | None]


_QUEUES = ("FIFO", "WorkQueue")


def _of_queue(read: Callable[[Stats], float]) -> Callable[[Stats], float | None]:
    return lambda stats: read(stats) if stats.kind in _QUEUES else None


def _of_work_queue(read: Callable[[Stats], float]) -> Callable[[Stats], float | None]:
    return lambda stats: read(stats) if stats.kind == "WorkQueue" else None


def _of_indexer(read: Callable[[Stats], float]) -> Callable[[Stats], float | None]:
    return lambda stats: read(stats) if stats.kind == "Indexer" else None


_OF_THE_ARENA: tuple[_Figure[Stats], ...] = (
    _Figure(
        "shmcache_created_timestamp_seconds",
        "When the arena was made, in seconds since 1970.",
        lambda s: s.created_unix_ns / 1e9,
    ),
    _Figure("shmcache_entries", "Entries in the arena.", lambda s: s.entries),
    _Figure(
        "shmcache_capacity_bytes",
        "The most memory that the arena may ever take.",
        lambda s: s.capacity_bytes,
    ),
    _Figure(
        "shmcache_committed_bytes",
        "Memory that the arena has taken; it is used again and not given back.",
        lambda s: s.committed_bytes,
    ),
    _Figure(
        "shmcache_used_bytes",
        "Keys and payloads of the entries, with their headers.",
        lambda s: s.used_bytes,
    ),
    _Figure("shmcache_free_bytes", "Committed memory that no entry uses.", lambda s: s.free_bytes),
    _Figure(
        "shmcache_free_blocks",
        "Pieces that the free committed memory is in.",
        lambda s: s.free_blocks,
    ),
    _Figure(
        "shmcache_largest_free_block_bytes",
        "The largest of the free pieces.",
        lambda s: s.largest_free_bytes,
    ),
    _Figure(
        "shmcache_attached_handles",
        "Handles of living processes on the arena, without the one that reads this.",
        lambda s: max(s.attached - 1, 0),
    ),
    _Figure("shmcache_writes_total", "Entries added or updated.", lambda s: s.writes),
    _Figure("shmcache_deletes_total", "Entries deleted.", lambda s: s.deletes),
    _Figure(
        "shmcache_reads_total",
        "Reads by key, and objects listed. A process reports every 256.",
        lambda s: s.reads,
    ),
    _Figure("shmcache_read_misses_total", "Reads that had to decode.", lambda s: s.read_misses),
    _Figure(
        "shmcache_repairs_total",
        "Repairs after a writer that died in the middle of a change.",
        lambda s: s.repairs,
    ),
    _Figure(
        "shmcache_last_repair_duration_seconds",
        "How long the last repair took, 0 if there was none.",
        lambda s: s.last_repair_ns / 1e9,
    ),
    _Figure(
        "shmcache_indexes", "Secondary indexes of an Indexer.", _of_indexer(lambda s: s.indexes)
    ),
    _Figure(
        "shmcache_index_values",
        "Values that at least one entry has in one of the indexes.",
        _of_indexer(lambda s: s.index_values),
    ),
    _Figure(
        "shmcache_queue_depth",
        "Items of a FIFO or WorkQueue that wait for a consumer.",
        _of_queue(lambda s: s.entries),
    ),
    _Figure(
        "shmcache_queue_oldest_age_seconds",
        "How long the item waits that is popped next, 0 if there is none.",
        _of_queue(lambda s: s.oldest_age or 0),
    ),
    _Figure(
        "shmcache_queue_in_flight",
        "Items of a queue that consumers have claimed.",
        _of_queue(lambda s: s.in_flight),
    ),
    _Figure(
        "shmcache_queue_oldest_claim_seconds",
        "How long the oldest claim in flight has been held, 0 if there is none.",
        _of_queue(lambda s: s.oldest_claim_age or 0),
    ),
    _Figure(
        "shmcache_queue_delayed",
        "Keys of a WorkQueue that wait for their time.",
        _of_work_queue(lambda s: s.delayed),
    ),
    _Figure(
        "shmcache_queue_dead_letters",
        "Items of a queue whose last permitted claim has failed.",
        _of_queue(lambda s: s.dead_letters),
    ),
    _Figure(
        "shmcache_queue_pops_total",
        "Items of a queue that were popped, or whose claim was done.",
        _of_queue(lambda s: s.pops),
    ),
)

_OF_THE_REFLECTOR: tuple[_Figure[ReflectorStatus], ...] = (
    _Figure(
        "shmcache_reflector_alive",
        "Whether a living process fills the arena, 0 after the last one is gone.",
        lambda r: r.alive,
    ),
    _Figure(
        "shmcache_reflector_heartbeat_age_seconds",
        "Since the reflector reported; a living one does every second.",
        lambda r: r.heartbeat_age,
    ),
    _Figure(
        "shmcache_reflector_contact_age_seconds",
        "Since the source of the reflector answered: a list, an event or a bookmark.",
        lambda r: r.contact_age,
    ),
    _Figure(
        "shmcache_reflector_event_age_seconds",
        "Since the last event, a bookmark too.",
        lambda r: r.event_age,
    ),
    _Figure(
        "shmcache_reflector_error_age_seconds",
        "Since the last error; not there before the first.",
        lambda r: r.last_error_age,
    ),
    _Figure("shmcache_reflector_lists_total", "Lists that reached the arena.", lambda r: r.lists),
    _Figure(
        "shmcache_reflector_watches_total", "Watches that the source opened.", lambda r: r.watches
    ),
    _Figure(
        "shmcache_reflector_events_total",
        "Events received, bookmarks included.",
        lambda r: r.events,
    ),
    _Figure(
        "shmcache_reflector_dropped_total",
        "Listed items and events that did not reach the arena.",
        lambda r: r.dropped,
    ),
    _Figure(
        "shmcache_reflector_errors_total",
        "Failed lists, watches and writes.",
        lambda r: r.errors,
    ),
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a scrape reads of one arena."""

    stats: Stats
    reflector: ReflectorStatus | None
    """None of a WorkQueue, which no reflector fills."""
    synced: bool
    workers: Sequence[WorkerInfo]


class ShmCacheCollector(Collector):
    """A collector of ``prometheus_client``, for any registry: all arenas of the machine.

    ``names``: the arenas to export; None for every one that this user can open, as they come and
    go. One that was named and is not there has ``shmcache_up`` 0. ``owners``: the users, by name
    or number, whose arenas are accepted beside those of this user and of root, as by
    ``Store.attach(owner=)``; an exporter that runs as root needs it. ``per_worker``: export also
    the pops of each living worker, by pid.

    Any thread may scrape, several at once too. A scrape never fails: what cannot be read is
    reported as that. Raises :class:`~shmcache.InvalidNameError`, and :class:`ValueError` for a
    user that does not exist.

    >>> import shmcache
    >>> from prometheus_client import CollectorRegistry
    >>> registry = CollectorRegistry()
    >>> registry.register(ShmCacheCollector(["orders"]))
    >>> with shmcache.FIFO.create("orders", capacity="1MiB") as orders:
    ...     orders.add({"metadata": {"name": "order-1"}})
    ...     labels = {"arena": "orders", "kind": "FIFO"}
    ...     registry.get_sample_value("shmcache_queue_depth", labels)
    ...     orders.unlink()
    1.0
    """

    def __init__(
        self,
        names: Iterable[str] | None = None,
        *,
        owners: Iterable[int | str] = (),
        per_worker: bool = False,
    ) -> None:
        for what, given in (("names", names), ("owners", owners)):
            if isinstance(given, str):
                raise TypeError(f"{what} is an iterable, like [{given!r}], and not a str")
        self._names = None if names is None else list(dict.fromkeys(names))
        for name in self._names or ():
            _arena._path(name)
        self._owners = {_arena._uid(owner) for owner in owners}
        self._per_worker = per_worker
        self._told: dict[str, str] = {}  # what the log knows; replaced as one, by any thread

    def describe(self) -> Iterable[Metric]:
        """The metrics without samples: what registers them, without a scrape."""
        return _Families(self._per_worker).all

    def collect(self) -> Iterable[Metric]:
        """One scrape: the metrics that have samples now."""
        families = _Families(self._per_worker)
        failures: dict[str, str] = {}
        for name in self._list():
            try:
                reading = self._read(name)
            except Exception as exc:  # a damaged segment can give any
                if isinstance(exc, ArenaNotFoundError) and self._names is None:
                    continue  # gone since it was listed
                failures[name] = f"{type(exc).__name__}: {exc}"
                families.add_unreadable(name, exc)
            else:
                families.add(name, reading)
        self._tell(failures)
        families.add_file_system()
        return [family for family in families.all if family.samples]

    def _list(self) -> list[str]:
        if self._names is not None:
            return self._names
        try:
            return [info.name for info in _arena.list_arenas()]
        except OSError as exc:
            _log.warning("cannot list the arenas: %s", exc)
            return []

    def _read(self, name: str) -> _Reading:
        info = _arena.look(name)
        if info.kind in ("busy", "unfinished"):  # attach would wait for who makes it
            raise IncompatibleArenaError(f"arena {name!r} is not completely made")
        owner = info.owner_uid if info.owner_uid in self._owners else None
        with attach(name, owner=owner) as handle:
            stats, workers = handle.stats(), handle.workers()
            if isinstance(handle, WorkQueue):
                return _Reading(stats, None, False, workers)
            return _Reading(stats, handle.reflector_status(), handle.has_synced, workers)

    def _tell(self, failures: dict[str, str]) -> None:
        """Log what is new of the arenas that cannot be read, not the same with each scrape."""
        told, self._told = self._told, failures
        for name, why in failures.items():
            if told.get(name) != why:
                error = why.partition(":")[0]
                _log.warning("cannot read %r: %s", name, why, extra={"arena": name, "error": error})
        for name in told.keys() - failures.keys():
            _log.info("%r is no longer unreadable", name, extra={"arena": name})


class _Families:
    """The metrics of one scrape, and how a reading becomes samples of them."""

    def __init__(self, per_worker: bool) -> None:
        arena, both = ["arena"], ["arena", "kind"]
        self._up = GaugeMetricFamily(
            "shmcache_up", "Whether all figures of the arena could be read.", labels=arena
        )
        self._unreadable = InfoMetricFamily(
            "shmcache_unreadable",
            "Why figures of the arena could not be read, by the name of the error.",
            labels=arena,
        )
        self._synced = GaugeMetricFamily(
            "shmcache_synced",
            "Whether the arena has been complete once; a FIFO: and that was popped.",
            labels=both,
        )
        self._resource_version = GaugeMetricFamily(
            "shmcache_resource_version",
            "The version of the source that the content is at, if that is a number.",
            labels=both,
        )
        self._workers = GaugeMetricFamily(
            "shmcache_workers", "Living handles that have written or popped.", labels=both
        )
        self._worker_pops = CounterMetricFamily(
            "shmcache_worker_pops", "Items that one worker has popped.", labels=[*both, "pid"]
        )
        self._per_worker = per_worker
        self._reflector = InfoMetricFamily(
            "shmcache_reflector", "The name of the reflector that fills the arena.", labels=both
        )
        self._state = GaugeMetricFamily(
            "shmcache_reflector_state",
            "1 for what the reflector does: listing, watching, waiting after an error, stopped.",
            labels=[*both, "state"],
        )
        self._size = GaugeMetricFamily(
            "shmcache_file_system_size_bytes", "Size of the file system of /dev/shm."
        )
        self._available = GaugeMetricFamily(
            "shmcache_file_system_avail_bytes", "What is free in the file system of /dev/shm."
        )
        self._of_the_arena = [(_family(f, both), f.read) for f in _OF_THE_ARENA]
        self._of_the_reflector = [(_family(f, both), f.read) for f in _OF_THE_REFLECTOR]
        self.all: list[Metric] = [
            self._up,
            self._unreadable,
            *(family for family, _ in self._of_the_arena),
            self._synced,
            self._resource_version,
            self._workers,
            *([self._worker_pops] if per_worker else []),
            self._reflector,
            self._state,
            *(family for family, _ in self._of_the_reflector),
            self._size,
            self._available,
        ]

    def add_unreadable(self, name: str, error: Exception) -> None:
        """The samples of an arena that could not be read."""
        self._up.add_metric([name], 0.0)
        self._unreadable.add_metric([name], {"reason": type(error).__name__})

    def add(self, name: str, reading: _Reading) -> None:
        """The samples of one arena."""
        labels = [name, reading.stats.kind]
        self._up.add_metric([name], 1.0)
        created = reading.stats.created_unix_ns / 1e9
        for family, read in self._of_the_arena:
            _add(family, labels, read(reading.stats), created)
        self._workers.add_metric(labels, len(reading.workers))
        if self._per_worker and reading.stats.kind in _QUEUES:
            pops: Counter[int] = Counter()
            for worker in reading.workers:  # a process may have several handles
                pops[worker.pid] += worker.pops
            for pid, count in pops.items():
                self._worker_pops.add_metric([*labels, str(pid)], count)
        if (reflector := reading.reflector) is None:
            return
        self._synced.add_metric(labels, float(reading.synced))
        if _NUMBER.fullmatch(reflector.resource_version):
            self._resource_version.add_metric(labels, float(reflector.resource_version))
        if reflector.alive or reflector.name:  # else there never was one
            self._add_reflector(labels, reflector)

    def _add_reflector(self, labels: list[str], said: ReflectorStatus) -> None:
        self._reflector.add_metric(labels, {"reflector": said.name})
        for state in REFLECTOR_STATES:
            self._state.add_metric([*labels, state], float(said.state == state))
        for family, read in self._of_the_reflector:
            # Not since the arena was made: who takes over counts from 0.
            _add(family, labels, read(said), None)

    def add_file_system(self) -> None:
        """How full the tmpfs is that all arenas are in."""
        try:
            seen = os.statvfs(_arena._DIRECTORY)
        except OSError:
            return  # the log said so, when they could not be listed
        self._size.add_metric([], seen.f_blocks * seen.f_frsize)
        self._available.add_metric([], seen.f_bavail * seen.f_frsize)


def _family(figure: _Figure[T], labels: list[str]) -> CounterMetricFamily | GaugeMetricFamily:
    if figure.name.endswith("_total"):
        return CounterMetricFamily(figure.name, figure.help, labels=labels)
    return GaugeMetricFamily(figure.name, figure.help, labels=labels)


def _add(
    family: CounterMetricFamily | GaugeMetricFamily,
    labels: list[str],
    value: float | None,
    created: float | None,
) -> None:
    if value is None:
        return
    if isinstance(family, CounterMetricFamily):
        family.add_metric(labels, float(value), created)
    else:
        family.add_metric(labels, float(value))
