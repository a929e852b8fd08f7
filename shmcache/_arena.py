"""Names and the life of arenas: create, attach, open, unlink, list.

``posix_ipc`` makes and unlinks the segments, as ``/shmcache.NAME``; what is in them is the
core's. ``multiprocessing.shared_memory`` is not used: its resource tracker unlinks segments that
others still use. May import: ``_core``, ``_errors``, ``_status``, ``_types``.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import posix_ipc

from shmcache import _core
from shmcache._errors import (
    ArenaExistsError,
    ArenaNotFoundError,
    ArenaPermissionError,
    CapacityError,
    IncompatibleArenaError,
    InvalidNameError,
    ShmCacheError,
)
from shmcache._status import error
from shmcache._types import ArenaInfo

__all__ = ["Opening", "count_attached", "identity", "list_arenas", "look", "parse_size", "unlink"]

_DIRECTORY = "/dev/shm"
_PREFIX = "shmcache."
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?\s*")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_LOCK_READINGS = 8
# While somebody else creates the arena (milliseconds), look again this often.
_POLL_SECONDS = 0.002
_CREATION_SECONDS = 10.0
# A creator has made the file and not yet locked it: microseconds, or it died just there.
_GRACE_SECONDS = 0.25
_MOST_UID = (1 << 32) - 2  # the next one stands for none


class Opening:
    """How a handle opens its core: what ``create``, ``attach`` and ``open`` have in common."""

    def __init__(
        self,
        kind: str,
        codec: str,
        decode: Any,
        cache_bytes: int,
        lock_timeout: float,
        *,
        mode: int = 0o600,
        owner: int | str | None = None,
        indexes: Sequence[str] = (),
        max_attempts: int = 0,
        priority_func: Callable[[str], int] | None = None,
    ) -> None:
        if mode not in (0o600, 0o660):
            raise ValueError(
                "mode is 0o600 (this user) or 0o660 (this user and the group), not "
                f"{oct(mode) if isinstance(mode, int) else repr(mode)}: who may attach may write, "
                "if only to wait for a change"
            )
        self.mode = mode
        self.owner = _uid(owner)
        self.kind = kind
        self.indexes = list(indexes)
        self.max_attempts = max_attempts
        if priority_func is not None and not callable(priority_func):
            raise TypeError(f"priority_func must be callable, not {priority_func!r}")
        self.priority_func = priority_func
        self.codec = codec
        self.decode = decode
        self.cache_bytes = cache_bytes
        self.lock_timeout = lock_timeout

    def create(self, name: str | None, capacity: int) -> tuple[_core.Arena, str]:
        """A new arena and its name; takes over what a creator that died left unfinished."""
        _check_size(capacity)
        given = name
        deadline = time.monotonic() + _CREATION_SECONDS
        while True:
            name = given if given is not None else os.urandom(8).hex()
            try:
                with _opened(name, posix_ipc.O_CREAT) as fd:
                    core = _core.Arena.create(
                        fd,
                        _path(name),
                        self.kind,
                        capacity,
                        self.codec,
                        self.mode,
                        self.indexes,
                        self.max_attempts,
                        name,
                        self.decode,
                        self.priority_func,
                        self.cache_bytes,
                        self.lock_timeout,
                    )
                    if os.fstat(fd).st_nlink > 0:
                        return core, name
                    core.close()  # unlinked while we made it: a fresh file, then
            except ArenaExistsError:
                if given is not None and not self._being_created(name, deadline):
                    raise

    def _being_created(self, name: str, deadline: float) -> bool:
        """Whether another process is creating ``name`` right now; sleeps a little if so."""
        try:
            with _opened(name) as fd:
                busy = _core.inspect(fd)["status"] == "busy"
        except ArenaNotFoundError:
            return True
        if busy and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            return True
        return False

    def attach(self, name: str, writable: bool, timeout: float) -> _core.Arena:
        """The arena of that name; waits up to ``timeout`` seconds for it to appear."""
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            try:
                with _opened(name) as fd:
                    status = _core.inspect(fd)["status"]
                    if not (
                        (status == "busy" and waited < max(timeout, _CREATION_SECONDS))
                        or (status == "unfinished" and waited < max(timeout, _GRACE_SECONDS))
                    ):
                        core = _core.Arena.attach(
                            fd,
                            _path(name),
                            self.kind,
                            self.codec,
                            writable,
                            self.owner,
                            name,
                            self.decode,
                            self.priority_func,
                            self.cache_bytes,
                            self.lock_timeout,
                        )
                        if os.fstat(fd).st_nlink > 0:
                            return core
                        core.close()  # unlinked between the two steps
            except ArenaNotFoundError:
                if waited >= timeout:
                    raise
            time.sleep(_POLL_SECONDS)

    def open(self, name: str, capacity: int) -> _core.Arena:
        """Attach writable, or create. Of many processes at once, one creates."""
        while True:
            try:
                with _opened(name) as fd:
                    unfinished = _core.inspect(fd)["status"] == "unfinished"
                if not unfinished:  # else create takes it over
                    return self.attach(name, True, 0.0)
            except ArenaNotFoundError:
                pass
            try:
                return self.create(name, capacity)[0]
            except ArenaExistsError:
                continue


def parse_size(size: int | str) -> int:
    """Bytes of ``"64MiB"``, ``"1.5 GiB"``, ``"100kB"`` or a number. The i makes it 1024s.

    >>> parse_size("64MiB"), parse_size("100kB"), parse_size(4096)
    (67108864, 100000, 4096)
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"a size is an int of bytes or a str like '64MiB', not {size!r}")
    if isinstance(size, int):
        return min(size, sys.maxsize)
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"cannot read the size {size!r}: write bytes, or like '64MiB' or '1GiB'")
    number, unit, binary = match.groups()
    return int(min(float(number) * (1024 if binary else 1000) ** _POWER[unit], sys.maxsize))


def unlink(name: str) -> None:
    """Remove the name of an arena. Processes that are attached go on; nobody new can attach.

    When another arena takes the name, the handles of the old one notice: their next call raises
    :class:`~shmcache.ClosedError`.

    Raises :class:`~shmcache.ArenaNotFoundError` if there is none.

    >>> import shmcache
    >>> store = shmcache.Store.create("an-arena", capacity="1MiB")
    >>> shmcache.unlink("an-arena")
    """
    with suppress(ShmCacheError), _opened(name) as fd:
        _core.mark_unlinked(fd)
    with _translated(name):
        posix_ipc.unlink_shared_memory(_path(name))


def list_arenas() -> list[ArenaInfo]:
    """What is in ``/dev/shm`` under our prefix and can be opened, sorted by name."""
    found = []
    for file in sorted(os.listdir(_DIRECTORY)):
        name = file.removeprefix(_PREFIX)
        if name == file or not _NAME.fullmatch(name):
            continue
        try:
            found.append(look(name))
        except (ShmCacheError, OSError):
            continue  # gone meanwhile, or somebody else's
    return found


def look(name: str) -> ArenaInfo:
    """What can be said of an arena without attaching; ArenaNotFoundError if there is none."""
    with _opened(name) as fd:
        seen, status = _core.inspect(fd), os.fstat(fd)
    whole = seen["status"] == "ok"
    return ArenaInfo(
        name=name,
        kind=seen["kind"] if whole else seen["status"],
        codec=seen["codec"],
        capacity_bytes=seen["capacity"],
        allocated_bytes=status.st_blocks * 512,
        in_use=seen["in_use"],
        owner_uid=status.st_uid,
        mode=status.st_mode & 0o7777,
    )


def identity(name: str) -> tuple[int, int] | None:
    """Device and inode that ``name`` stands for now, None if for nothing."""
    try:
        with _opened(name) as fd:
            status = os.fstat(fd)
            return status.st_dev, status.st_ino
    except ShmCacheError:
        return None


def count_attached(device: int, inode: int) -> int:
    """How many living handles an arena has: each holds one read lock, which the kernel lists.

    The kernel gives the list page by page and by position, so that locks that come or go between
    two pages shift the others: it is read until two readings agree, a few times at most.
    """
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    counts = [-1]
    for _ in range(_LOCK_READINGS):
        with open("/proc/locks") as locks:
            lines = map(str.split, locks)
            counts.append(sum(line[-3:-1] == [file, str(_core.ATTACH_BYTE)] for line in lines))
        if counts[-1] == counts[-2]:
            break
    return counts[-1]


def _uid(owner: int | str | None) -> int | None:
    """The number of a user."""
    if isinstance(owner, str):
        try:
            return pwd.getpwnam(owner).pw_uid
        except KeyError:
            raise ValueError(f"there is no user {owner!r} on this machine") from None
    if owner is not None and (isinstance(owner, bool) or not isinstance(owner, int) or owner < 0):
        raise TypeError(f"owner is the name or the number of a user, not {owner!r}")
    if owner is not None and owner > _MOST_UID:
        raise ValueError(f"owner is the number of a user, at most {_MOST_UID}, and not {owner}")
    return owner


def _path(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} cannot be the name of an arena: use 1 to 200 letters, digits, '.', '_' or "
            "'-' that do not begin with '.' or '-' (no slash: names are not paths)"
        )
    return "/" + _PREFIX + name


@contextmanager
def _opened(name: str, flags: int = 0) -> Iterator[int]:
    """A descriptor of the segment; only the caller's view of it, closed at the end."""
    with _translated(name):
        memory = posix_ipc.SharedMemory(_path(name), flags=flags, mode=0o600, size=0)
    try:
        yield memory.fd
    finally:
        memory.close_fd()


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except InvalidNameError:
        raise
    except ValueError as cause:  # what posix_ipc makes of EINVAL, which a directory gives
        raise _not_a_file(name) from cause
    except posix_ipc.ExistentialError as cause:
        raise ArenaNotFoundError(
            f"there is no arena {name!r} (looked for {_DIRECTORY}/{_PREFIX}{name}): is the process "
            "that creates it running?"
        ) from cause
    except posix_ipc.PermissionsError as cause:
        raise ArenaPermissionError(
            f"{_DIRECTORY}/{_PREFIX}{name} is not ours to open: it belongs to another user"
        ) from cause
    except OSError as cause:
        if cause.errno == errno.ELOOP:  # shm_open follows no symbolic link
            raise ArenaPermissionError(
                f"{_DIRECTORY}/{_PREFIX}{name} is a symbolic link, and those are not followed"
            ) from cause
        if cause.errno in (errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EPERM):
            raise _not_a_file(name) from cause
        raise


def _not_a_file(name: str) -> IncompatibleArenaError:
    return IncompatibleArenaError(
        f"{_DIRECTORY}/{_PREFIX}{name} is not a file, so it is no arena: choose another name, or "
        "remove it"
    )


def _check_size(capacity: int) -> None:
    """Refuse what can be refused before a file is made."""
    if capacity < _core.MIN_CAPACITY:
        raise error("too_small", "", {"wanted": capacity, "available": _core.MIN_CAPACITY})
    try:
        vfs = os.statvfs(_DIRECTORY)
    except FileNotFoundError as cause:
        raise CapacityError(f"{_DIRECTORY} does not exist: mount a tmpfs there") from cause
    total = vfs.f_blocks * vfs.f_frsize
    if 0 < total < capacity:  # 0: a tmpfs mounted without a limit
        raise error("too_big", "", {"wanted": capacity, "available": total})
