"""shared-memory-dict: one pickle of the whole dict in shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared_memory_dict import SharedMemoryDict


class SharedDict:
    objects = True

    def __init__(self, shared: SharedMemoryDict) -> None:
        self._shared = shared
        self.get = shared.get

    def fill(self, pairs: Mapping[str, Any]) -> None:
        self._shared.update(pairs)

    def put(self, pair: tuple[str, Any]) -> None:
        self._shared[pair[0]] = pair[1]


@contextmanager
def shared_dict(where: Path) -> Iterator[SharedDict]:
    shared = SharedMemoryDict(name=f"{where.name}-smd", size=256 << 20)
    try:
        yield SharedDict(shared)
    finally:
        shared.shm.close()
        shared.shm.unlink()
