"""The rivals: one adapter a file, imported when it is used.

An adapter gives a rival at its best settings; the table says which and why. It does nothing that
the rival's user would not do: no caching, no batching beyond what the workload allows everybody.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["RIVALS", "KeyValue", "Missing", "Queue", "Rival"]


class KeyValue(Protocol):
    """A dict that processes share (or do not: then it says so in the table)."""

    objects: bool
    """Whether it keeps objects; else bytes, and the workload packs and unpacks them."""

    def fill(self, pairs: Mapping[str, Any]) -> None:
        """Put all of them, as fast as it can."""

    def put(self, pair: tuple[str, Any]) -> Any: ...
    def get(self, key: str) -> Any: ...


class Queue(Protocol):
    """A queue between forked processes."""

    objects: bool
    """Whether it takes objects; else bytes, and the workload packs and unpacks them."""
    servers: int
    """Processes of its own."""

    def join(self) -> None:
        """Called once in a forked consumer, before `get`."""

    def put(self, item: Any) -> Any: ...
    def get(self) -> Any: ...
    def put_many(self, items: list[Any]) -> Any: ...
    def get_many(self, most: int) -> list[Any]:
        """1 to `most` items."""


class Missing(Exception):
    """The rival needs something that this machine does not have; the row says so."""


@dataclass(frozen=True, slots=True)
class Rival:
    """How to open a rival: `opens(where)` of its module is a context manager."""

    module: str
    opens: str
    settings: str
    """What was chosen, and why."""
    package: str | None = None
    """On PyPI; None for the standard library."""

    def open(self, where: Path) -> AbstractContextManager[Any]:
        """The rival, with files and names that are its own below `where`."""
        try:
            module = importlib.import_module(f"bench.rivals.{self.module}")
        except ImportError as cause:
            raise ImportError(f"not installed (pip install {self.package}): {cause}") from cause
        opened: AbstractContextManager[Any] = getattr(module, self.opens)(where)
        return opened

    def version(self) -> str:
        """Of what is installed."""
        if self.package is None:
            return f"Python {platform.python_version()}"
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{self.package}, not installed"


RIVALS = {
    "dict": Rival(
        "builtin",
        "builtin_dict",
        "the process's own dict: shares nothing, the floor of every lookup in Python",
    ),
    "keyed FIFO in Python": Rival(
        "builtin",
        "python_fifo",
        "client-go's FIFO in Python (dict, deque, Condition): one process only",
    ),
    "queue.SimpleQueue": Rival("builtin", "thread_queue", "the C queue for threads of one process"),
    "multiprocessing.Queue": Rival(
        "processes",
        "process_queue",
        "unbounded, so that its feeder thread never blocks the producer",
    ),
    "multiprocessing.SimpleQueue": Rival(
        "processes", "simple_queue", "as it is: no feeder thread, one write to a pipe an item"
    ),
    "Manager().dict": Rival("processes", "manager_dict", "fork, an AF_UNIX connection a process"),
    "Manager().Queue": Rival("processes", "manager_queue", "fork, an AF_UNIX connection a process"),
    "LMDB": Rival(
        "lmdb",
        "new_transactions",
        "on /dev/shm; sync, metasync, readahead and meminit off, writemap on; a read "
        "transaction a get, which is what sees new data",
        "lmdb",
    ),
    "LMDB, held transaction": Rival(
        "lmdb",
        "held_transaction",
        "the same with one read transaction for all gets: its fastest, and it never sees a change",
        "lmdb",
    ),
    "diskcache": Rival(
        "diskcache",
        "cache",
        "on /dev/shm; no statistics, no eviction, synchronous off, values up to 64 kB in SQLite",
        "diskcache",
    ),
    "UltraDict": Rival(
        "ultradict",
        "ultra_dict",
        "a stream buffer of 64 MiB so that it seldom dumps all, full dumps of any size; the "
        "default lock, its faster one",
        "UltraDict",
    ),
    "shared-memory-dict": Rival(
        "shared_memory_dict",
        "shared_dict",
        "pickle (its faster serializer), no lock; it writes and reads the whole dict each time",
        "shared-memory-dict",
    ),
    "Redis": Rival(
        "redis", "key_value", "unix socket, hiredis parser, no persistence, default I/O", "redis"
    ),
    "Redis list": Rival(
        "redis",
        "queue",
        "LPUSH and BRPOP over a unix socket, hiredis parser; a pipeline for batches",
        "redis",
    ),
    "memcached": Rival(
        "memcached",
        "key_value",
        "unix socket, one thread, pylibmc (C) with the binary protocol off: its faster one",
        "pylibmc",
    ),
    "faster-fifo": Rival(
        "faster_fifo",
        "queue",
        "a buffer of 64 MiB so that the producer never waits; pickle of objects, its default",
        "faster-fifo",
    ),
    "cloudtoid-interprocess": Rival(
        "cloudtoid",
        "queue",
        "a ring of 64 MiB on /dev/shm so that the producer never waits; try_send_batch for batches",
        "cloudtoid-interprocess",
    ),
    "POSIX semaphore": Rival(
        "semaphore",
        "bare",
        "sem_post, sem_wait and eight bytes of shared memory: what a wake-up costs at least",
        "posix-ipc",
    ),
    "official informer": Rival(
        "kubernetes",
        "informer",
        "SharedInformer of the official client, models as it makes them",
        "kubernetes",
    ),
    "official Watch": Rival(
        "kubernetes",
        "watch",
        "Watch.stream of the official client into a dict, models as it makes them",
        "kubernetes",
    ),
}
