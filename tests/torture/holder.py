"""Who holds the lock of an arena: the lock word and the owner's slot, seen from outside.

By docs/design/segment-format.md: the driver looks, so as to kill its victims inside their critical
sections as often as outside, and takes part in nothing.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from shmcache import _core

__all__ = ["LockWord"]

_CONTROL = 4096
_SLOTS = _CONTROL + 4 * 64
_LINES = 512  # slots of neighbouring numbers are in different cache lines
_OWNER_SHIFT = 2 + 17  # two flags, then 17 bits of generation


class LockWord:
    """Of the arena ``name``."""

    def __init__(self, name: str) -> None:
        assert _core.LAYOUT_VERSION == 6, "the offsets above are those of layout 6"
        with Path(f"/dev/shm/shmcache.{name}").open("rb") as file:
            self._map = mmap.mmap(file.fileno(), _SLOTS + _LINES * 64, prot=mmap.PROT_READ)

    def holder(self) -> int:
        """The pid of who holds the lock at this moment, 0 if nobody does."""
        (word,) = struct.unpack_from("=I", self._map, _CONTROL)
        slot = (word >> _OWNER_SHIFT) - 1
        if slot < 0:
            return 0
        place = _SLOTS + slot % _LINES * 64 + slot // _LINES * 16
        (pid,) = struct.unpack_from("=I", self._map, place + 4)
        return int(pid)

    def close(self) -> None:
        self._map.close()
