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
_SLOTS = _CONTROL + 3 * 64
_SLOT_SIZE = 8
_OWNER_SHIFT = 2 + 17  # two flags, then 17 bits of generation


class LockWord:
    """Of the arena ``name``."""

    def __init__(self, name: str) -> None:
        assert _core.LAYOUT_VERSION == 3, "the offsets above are those of layout 3"
        with Path(f"/dev/shm/shmcache.{name}").open("rb") as file:
            self._map = mmap.mmap(file.fileno(), _SLOTS + 4096, prot=mmap.PROT_READ)

    def holder(self) -> int:
        """The pid of who holds the lock at this moment, 0 if nobody does."""
        (word,) = struct.unpack_from("=I", self._map, _CONTROL)
        slot = word >> _OWNER_SHIFT  # counted from 1; 0: nobody
        if slot == 0:
            return 0
        (pid,) = struct.unpack_from("=I", self._map, _SLOTS + (slot - 1) * _SLOT_SIZE + 4)
        return int(pid)

    def close(self) -> None:
        self._map.close()
