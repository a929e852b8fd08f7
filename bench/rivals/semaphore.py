"""A bare POSIX semaphore: no queue at all, one slot of shared memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import posix_ipc


class BareSemaphore:
    objects = False
    servers = 0

    def __init__(self, semaphore: Any) -> None:
        self._slot = mmap.mmap(-1, 8)
        self._release = semaphore.release
        self._acquire = semaphore.acquire

    def join(self) -> None:
        """Forked: slot and semaphore are ours already."""

    def put(self, item: bytes) -> None:
        self._slot[:] = item
        self._release()

    def get(self) -> bytes:
        self._acquire()
        return self._slot[:]


@contextmanager
def bare(where: Path) -> Iterator[BareSemaphore]:
    semaphore = posix_ipc.Semaphore(f"/{where.name}", posix_ipc.O_CREX, initial_value=0)
    semaphore.unlink()
    try:
        yield BareSemaphore(semaphore)
    finally:
        semaphore.close()
