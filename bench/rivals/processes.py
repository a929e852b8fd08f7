"""What the standard library has for processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")


class ProcessQueue:
    """Any queue with `put` and `get`; it has no batches, so one item is a batch."""

    objects = True

    def __init__(self, queue: Any, servers: int = 0) -> None:
        self.put = queue.put
        self.get = queue.get
        self.servers = servers

    def join(self) -> None:
        """Forked: the pipe and its locks are ours already."""

    def put_many(self, items: list[Any]) -> None:
        for item in items:
            self.put(item)

    def get_many(self, most: int) -> list[Any]:
        return [self.get()]


@contextmanager
def process_queue(where: Path) -> Iterator[ProcessQueue]:
    queue = FORK.Queue()
    try:
        yield ProcessQueue(queue)
    finally:
        queue.close()
        queue.join_thread()


@contextmanager
def simple_queue(where: Path) -> Iterator[ProcessQueue]:
    queue = FORK.SimpleQueue()
    try:
        yield ProcessQueue(queue)
    finally:
        queue.close()


@contextmanager
def manager_queue(where: Path) -> Iterator[ProcessQueue]:
    with FORK.Manager() as manager:
        yield ProcessQueue(manager.Queue(), servers=1)


class ManagerDict:
    objects = True

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy
        self.get = proxy.get
        self.fill = proxy.update

    def put(self, pair: tuple[str, Any]) -> None:
        self._proxy[pair[0]] = pair[1]


@contextmanager
def manager_dict(where: Path) -> Iterator[ManagerDict]:
    with FORK.Manager() as manager:
        yield ManagerDict(manager.dict())
