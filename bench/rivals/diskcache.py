"""diskcache: SQLite and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diskcache


class Cache:
    objects = True

    def __init__(self, cache: diskcache.Cache) -> None:
        self._cache = cache
        self.get = cache.get

    def fill(self, pairs: Mapping[str, Any]) -> None:
        with self._cache.transact():
            for key, value in pairs.items():
                self._cache.set(key, value)

    def put(self, pair: tuple[str, Any]) -> None:
        self._cache.set(*pair)


@contextmanager
def cache(where: Path) -> Iterator[Cache]:
    with diskcache.Cache(
        str(where / "diskcache"),
        statistics=0,
        eviction_policy="none",
        size_limit=4 << 30,
        cull_limit=0,
        disk_min_file_size=64 << 10,
        sqlite_synchronous=0,
        sqlite_mmap_size=1 << 30,
    ) as opened:
        yield Cache(opened)
