"""cloudtoid-interprocess: a byte ring in shared memory, in Rust."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudtoid_interprocess import Publisher, Subscriber

CAPACITY = 64 << 20


class Cloudtoid:
    objects = False
    servers = 0

    def __init__(self, where: Path) -> None:
        self._where = where
        self._publisher = Publisher(where.name, CAPACITY, where)
        self._try_send = self._publisher.try_send
        self.join()

    def join(self) -> None:
        """An endpoint of one's own."""
        self._subscriber = Subscriber(self._where.name, CAPACITY, self._where)
        self._receive = self._subscriber.receive

    def close(self) -> None:
        self._subscriber.close()
        self._publisher.close()

    def put(self, item: bytes) -> None:
        while not self._try_send(item):
            time.sleep(0)

    def get(self) -> bytes:
        item = self._receive()
        assert item is not None
        return item

    def put_many(self, items: list[bytes]) -> None:
        sent = self._publisher.try_send_batch(items)
        while sent < len(items):
            time.sleep(0)
            sent += self._publisher.try_send_batch(items[sent:])

    def get_many(self, most: int) -> list[bytes]:
        """It has no batches on this side; what is there is taken without sleeping."""
        items = [self.get()]
        while len(items) < most:
            item = self._subscriber.try_receive()
            if item is None:
                break
            items.append(item)
        return items


@contextmanager
def queue(where: Path) -> Iterator[Cloudtoid]:
    opened = Cloudtoid(where)
    try:
        yield opened
    finally:
        opened.close()
