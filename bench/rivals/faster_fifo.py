"""faster-fifo: a ring buffer and a POSIX mutex."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faster_fifo


class FasterFifo:
    objects = True
    servers = 0

    def __init__(self) -> None:
        self._queue: Any = faster_fifo.Queue(max_size_bytes=64 << 20)
        self.put = self._queue.put

    def join(self) -> None:
        """Forked: the buffer is ours already."""

    def get(self) -> Any:
        return self._queue.get(timeout=60.0)

    def put_many(self, items: list[Any]) -> None:
        self._queue.put_many(items)

    def get_many(self, most: int) -> list[Any]:
        items: list[Any] = self._queue.get_many(max_messages_to_get=most, timeout=60.0)
        return items


@contextmanager
def queue(where: Path) -> Iterator[FasterFifo]:
    yield FasterFifo()
