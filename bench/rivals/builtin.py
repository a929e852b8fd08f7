"""dict, and queues of one process: they share nothing, and are the floor."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class BuiltinDict:
    objects = True

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.get = self.data.get
        self.fill = self.data.update

    def put(self, pair: tuple[str, Any]) -> None:
        self.data[pair[0]] = pair[1]


@contextmanager
def builtin_dict(where: Path) -> Iterator[BuiltinDict]:
    yield BuiltinDict()


class PythonFifo:
    """client-go's FIFO, line by line: a queue of keys, a dict of objects, one lock."""

    objects = True

    def __init__(self) -> None:
        self._items: dict[str, Any] = {}
        self._keys: deque[str] = deque()
        self._condition = threading.Condition(threading.Lock())

    def put(self, pair: tuple[str, Any]) -> None:
        with self._condition:
            if pair[0] not in self._items:
                self._keys.append(pair[0])
            self._items[pair[0]] = pair[1]
            self._condition.notify()

    def get(self) -> tuple[str, Any]:
        with self._condition:
            while True:
                while not self._keys:
                    self._condition.wait()
                key = self._keys.popleft()
                if key in self._items:
                    return key, self._items.pop(key)


@contextmanager
def python_fifo(where: Path) -> Iterator[PythonFifo]:
    yield PythonFifo()


@contextmanager
def thread_queue(where: Path) -> Iterator[Any]:
    yield queue.SimpleQueue()
