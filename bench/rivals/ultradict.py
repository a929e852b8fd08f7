"""UltraDict: a dict in each process, and a stream of the changes in shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from UltraDict import UltraDict


class Ultra:
    objects = True

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self.get = shared.get

    def fill(self, pairs: Mapping[str, Any]) -> None:
        self._shared.update(pairs)

    def put(self, pair: tuple[str, Any]) -> None:
        self._shared[pair[0]] = pair[1]


@contextmanager
def ultra_dict(where: Path) -> Iterator[Ultra]:
    shared = UltraDict(name=f"{where.name}-ultra", create=True, buffer_size=64 << 20)
    try:
        yield Ultra(shared)
    finally:
        shared.close()
        shared.unlink()
