"""The control page of an arena as tests look at it, and processes that are held still in it.

What a process does inside the core cannot be seen from outside by waiting a little. It can be seen
in the words of the segment: who owns the lock, whether somebody waits for it, who sleeps. The
offsets are those of layout.hpp, the lock word is that of lock.hpp.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shmcache import FIFO, Store, _core

__all__ = [
    "CHANGE_SLEEPERS",
    "CONTROL",
    "LOCK",
    "META",
    "READY_SLEEPERS",
    "READY_WORD",
    "Control",
    "adopting",
    "control",
    "forked",
    "path_of",
    "poke",
    "resume",
    "start",
    "states",
    "stop",
    "stop_as_owner",
    "stopped_owner",
    "until",
    "wait_for",
]

CONTROL = 4096
META = CONTROL + 9 * 4096
LOCK, CHANGE_SLEEPERS, READY_WORD, READY_SLEEPERS, _SLOTS = 0, 68, 128, 132, 256
_MUTATION_SEQ = META - CONTROL + 64


def path_of(name: str) -> Path:
    """The file of the arena of that name."""
    return Path("/dev/shm") / f"shmcache.{name}"


@dataclass(frozen=True)
class Control:
    """What the words of a control page say."""

    owner: int
    """The pid, in its own PID namespace, that the owner of the lock has written into its slot;
    0 if nobody holds the lock."""
    slot: int
    dirty: bool
    waiters: bool
    change_sleepers: bool
    ready_sleepers: bool
    ready_word: int
    """Moves with each wake-up for an item."""
    mutating: bool
    """Whether a change is half done, so that snapshots wait."""


def control(name: str) -> Control:
    """The control page of the arena of that name, now."""
    assert _core.LAYOUT_VERSION == 6, "the offsets of this module are those of layout 6"
    with path_of(name).open("rb", buffering=0) as file:
        page = os.pread(file.fileno(), META - CONTROL + 4096, CONTROL)
    (word,) = struct.unpack_from("=I", page, LOCK)
    slot = (word >> 19) - 1
    return Control(
        owner=struct.unpack_from("=I", page, _SLOTS + slot % 512 * 64 + slot // 512 * 16 + 4)[0]
        if slot >= 0
        else 0,
        slot=slot,
        dirty=bool(word & 2),
        waiters=bool(word & 1),
        change_sleepers=page[CHANGE_SLEEPERS] != 0,
        ready_sleepers=page[READY_SLEEPERS] != 0,
        ready_word=struct.unpack_from("=I", page, READY_WORD)[0],
        mutating=page[_MUTATION_SEQ] % 2 != 0,
    )


def poke(name: str, offset: int, word: int) -> None:
    """Overwrite a word of the control page."""
    with path_of(name).open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), struct.pack("=I", word), CONTROL + offset)


def until(condition: Callable[[], bool]) -> None:
    """Look until it holds: for states that only the kernel or the segment can tell."""
    while not condition():
        time.sleep(0.0005)


def alone(handle: Store | FIFO) -> None:
    """Wait until no process but ours has the arena open. The lock of one that has ended goes with
    the last reference to its memory, and who reads its /proc just then holds one."""
    until(lambda: handle.stats().attached == 1)


def stop(pid: int) -> None:
    """Stop a process; on return none of its threads runs."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: set(states(pid)) <= set("TZX"))


def resume(pid: int) -> None:
    """Let a stopped process go on."""
    os.kill(pid, signal.SIGCONT)


def states(pid: int) -> list[str]:
    """The state letter of each thread, see proc(5)."""
    states = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def stop_as_owner(
    pid: int, name: str, inner_pid: int = 0, when: Callable[[Control], bool] = lambda _: True
) -> None:
    """Stop a process that takes the lock of the arena again and again while it has it.

    ``inner_pid`` is its pid in its own PID namespace, where that is another than ours. ``when``
    says more about the moment.
    """
    while True:
        stop(pid)
        seen = control(name)
        if seen.owner == (inner_pid or pid) and when(seen):
            return
        resume(pid)
        time.sleep(0.0005)  # else it is stopped again before it has moved


def start(work: Callable[[], object]) -> int:
    """The pid of a forked child that does ``work`` and ends with status 0, or 1 if it fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def wait_for(pid: int) -> int:
    """The exit status of a child, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked child; its exit status."""
    return wait_for(start(work))


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Grandchildren whose parent has died become children of this process, which can wait for
    them."""
    set_child_subreaper, libc = 36, ctypes.CDLL(None)
    assert libc.prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(set_child_subreaper, 0, 0, 0, 0)


@contextlib.contextmanager
def stopped_owner(
    name: str, step: Callable[[], object], when: Callable[[Control], bool] = lambda _: True
) -> Iterator[int]:
    """The pid of a process that repeats ``step`` and was stopped while it held the lock.

    ``check`` of a handle is a step that holds the lock most of the time and changes nothing. The
    process is killed at the end if it still lives then.
    """

    def forever() -> None:
        while True:
            step()

    pid = start(forever)
    try:
        stop_as_owner(pid, name, when=when)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        wait_for(pid)
