"""Which processes have an arena open, as far as this user may know.

May import: nothing of shmcache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Process", "attached_processes", "command_line"]

_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Process:
    """A process, and its command line."""

    pid: int
    command: str

    @property
    def short(self) -> str:
        """The command line, cut."""
        return self.command if len(self.command) <= _LONGEST else self.command[: _LONGEST - 1] + "…"


def attached_processes(name: str) -> list[Process]:
    """The other processes with a descriptor of the arena that has ``name`` now.

    ``/proc/locks`` has no process for the locks that count handles (they belong to open files and
    not to processes), so this looks at the files of every process: those of other users only
    root may see.
    """
    path = f"/dev/shm/shmcache.{name}"
    try:
        arena = os.stat(path)
    except OSError:
        return []
    return [
        Process(pid, " ".join(command_line(pid)))
        for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        if pid != os.getpid() and any(os.path.samestat(arena, file) for file in _shm_files(pid))
    ]


def command_line(pid: int) -> list[str]:
    """The words of a process's command line; none if it is gone, or not to be seen from here (in
    another PID namespace)."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
        return [word.decode(errors="replace") for word in words]
    return []


def _shm_files(pid: int) -> Iterator[os.stat_result]:
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):  # it has ended, or is not ours to look into
        for number in os.listdir(folder):
            with suppress(OSError):
                if "shmcache." in os.readlink(f"{folder}/{number}"):
                    yield os.stat(f"{folder}/{number}")
