"""What the core's status codes mean to a user: one exception and one sentence for each.

The native module calls :func:`error` with the name of a code and what it found. A test proves
that every code of the core has exactly one entry here. May import: ``_errors``, ``_core``.
"""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Callable, Mapping
from typing import Any

from shmcache._core import LAYOUT_VERSION, MAX_KEY_SIZE
from shmcache._errors import (
    ArenaExistsError,
    ArenaPermissionError,
    CapacityError,
    ClosedError,
    CorruptArenaError,
    IncompatibleArenaError,
    KeyFuncError,
    LockTimeoutError,
    PriorityFuncError,
    ReadOnlyError,
    ReindexedError,
    ShmCacheError,
    ShutDown,
)

__all__ = ["error"]

Context = Mapping[str, Any]

_ENLARGE = (
    "enlarge /dev/shm (docker run --shm-size=..., Kubernetes: an emptyDir with medium: Memory "
    "mounted there)"
)


def human_size(size: int) -> str:
    """``size`` in bytes for people: ``'64.0 MiB (67108864 bytes)'``.

    >>> human_size(65536)
    '64.0 KiB (65536 bytes)'
    """
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit} ({size} bytes)"


def _too_small(name: str, c: Context) -> Exception:
    return CapacityError(
        f"capacity {c['wanted']} bytes is too small for an arena: "
        f"use at least {human_size(c['available'])}"
    )


def _too_big(name: str, c: Context) -> Exception:
    return CapacityError(
        f"capacity {human_size(c['wanted'])} is more than the file system of /dev/shm holds, "
        f"{human_size(c['available'])}: pass a smaller capacity=, or {_ENLARGE}"
    )


def _arena_full(name: str, c: Context) -> Exception:
    return CapacityError(
        f"arena {name!r} is full: {human_size(c['committed'])} of {human_size(c['capacity'])} are "
        f"taken and this write needs {human_size(c['key_size'] + c['value_size'])} of key and "
        "payload; nothing was changed. Delete entries, or create the arena with a larger capacity="
    )


def _no_space(name: str, c: Context) -> Exception:
    if c.get("wanted"):  # at creation
        limited = c["errno"] == errno.EFBIG
        why = "the process's file size limit (ulimit -f)" if limited else "/dev/shm"
        return CapacityError(
            f"no room to create arena {name!r}: it needs {human_size(c['wanted'])} now, and "
            f"{why} allows {human_size(c['available'])}: pass a smaller capacity=, or {_ENLARGE}"
        )
    return CapacityError(
        f"/dev/shm is full: arena {name!r} has {human_size(c['committed'])} of its "
        f"{human_size(c['capacity'])} and cannot get more; nothing was changed. "
        f"Free space there, or {_ENLARGE}"
    )


def _key_size(name: str, c: Context) -> Exception:
    if "key" in c:
        return KeyFuncError(f"key {c['key']!r} is not valid Unicode: it has lone surrogates")
    return KeyFuncError(
        f"a key has 1 to {MAX_KEY_SIZE} bytes in UTF-8, and this one has {c['key_size']}"
    )


def _priority(name: str, c: Context) -> Exception:
    return PriorityFuncError(
        f"the priority function gave {c['priority']!r} for key {c['key']!r}: a priority is an int "
        f"from 0, which is usual, to {c['most']}, which is first"
    )


def _reindexed(name: str, c: Context) -> Exception:
    return ReindexedError(f"arena {name!r} has got another index")


def _read_only(name: str, c: Context) -> Exception:
    return ReadOnlyError(
        f"this handle of arena {name!r} is read-only: attach with writable=True to write"
    )


def _lock_timeout(name: str, c: Context) -> Exception:
    return LockTimeoutError(
        f"process {c['pid']} has held the lock of arena {name!r} for more than "
        f"{c['lock_timeout']} s; it is alive (stopped, or in a debugger?), so it is not robbed. "
        "Continue or kill it",
        pid=c["pid"],
    )


def _no_slot(name: str, c: Context) -> Exception:
    return ShmCacheError(
        f"arena {name!r} has no free owner slot: 2047 living handles write to it already"
    )


def _closed(name: str, c: Context) -> Exception:
    return ClosedError(f"this handle of arena {name!r} is closed")


def _superseded(name: str, c: Context) -> Exception:
    return ClosedError(
        f"arena {name!r} was unlinked and another one has its name now: this handle is of the old "
        "one, which nobody new can find. Attach again"
    )


def _foreign(name: str, c: Context) -> Exception:
    return IncompatibleArenaError(
        f"/dev/shm/shmcache.{name} is not a shmcache arena: choose another name, or remove the file"
    )


def _wrong_layout(name: str, c: Context) -> Exception:
    return IncompatibleArenaError(
        f"arena {name!r} has layout {c['layout']}, this version of shmcache reads layout "
        f"{LAYOUT_VERSION}: use one version everywhere, or shmcache.unlink({name!r}) and fill it "
        "again"
    )


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "Indexer" else f"a {kind}"


def _wrong_kind(name: str, c: Context) -> Exception:
    return IncompatibleArenaError(
        f"arena {name!r} is {_a(c['kind'])}, not {_a(c['wanted_kind'])}: "
        f"use shmcache.{c['kind']}.attach({name!r})"
    )


def _wrong_codec(name: str, c: Context) -> Exception:
    return IncompatibleArenaError(
        f"the payloads of arena {name!r} are written with codec {c['codec']!r}, this handle has "
        f"{c['wanted_codec']!r}: pass the same codec= everywhere"
    )


def _insecure(name: str, c: Context) -> Exception:
    expected = [f"{os.geteuid()}", "root"]
    if c.get("trusted_uid") is not None:
        expected.append(f"owner={c['trusted_uid']}")
    return ArenaPermissionError(
        f"/dev/shm/shmcache.{name} is not safe to attach: owner uid {c['uid']} (expected "
        f"{' or '.join(expected)}), mode {c['mode']:04o} (must not be writable for others), and it "
        "must be a regular file with one link. To share with a group, create it with mode=0o660 "
        "and attach with owner= its creator"
    )


def _corrupt(name: str, c: Context) -> Exception:
    return CorruptArenaError(
        f"arena {name!r} breaks its own invariants: something else wrote into "
        f"/dev/shm/shmcache.{name}, or truncated it. check() says what is wrong; "
        f"shmcache.unlink({name!r}) and fill it again"
    )


def _lost(name: str, c: Context) -> Exception:
    return CorruptArenaError(
        f"arena {name!r} has lost pages of its memory: another process truncated "
        f"/dev/shm/shmcache.{name}. Nothing of it can be trusted any more; "
        f"shmcache.unlink({name!r}) and fill it again"
    )


def _system(name: str, c: Context) -> Exception:
    number = c.get("errno", 0)
    if number in (errno.EPERM, errno.EACCES):
        return ArenaPermissionError(number, os.strerror(number), f"/dev/shm/shmcache.{name}")
    return OSError(number, os.strerror(number), f"/dev/shm/shmcache.{name}")


def _internal(name: str, c: Context) -> Exception:
    return ShmCacheError(f"arena {name!r}: a status that no caller should see")


_EXCEPTIONS: dict[str, Callable[[str, Context], Exception]] = {
    "ok": _internal,
    "miss": _internal,
    "interrupted": _internal,
    "empty": lambda name, c: queue.Empty(),
    "shut_down": lambda name, c: ShutDown(f"{c['kind']} {name!r} was shut down and is empty"),
    "exists": lambda name, c: ArenaExistsError(
        f"arena {name!r} exists: attach to it, use open(), or shmcache.unlink({name!r}) first"
    ),
    "busy": lambda name, c: ArenaExistsError(f"arena {name!r} is being created by another process"),
    "unfinished": lambda name, c: IncompatibleArenaError(
        f"the creation of arena {name!r} was never finished: create() or open() takes it over"
    ),
    "too_small": _too_small,
    "too_big": _too_big,
    "arena_full": _arena_full,
    "no_space": _no_space,
    "key_size": _key_size,
    "priority": _priority,
    "reindexed": _reindexed,
    "read_only": _read_only,
    "lock_timeout": _lock_timeout,
    "no_slot": _no_slot,
    "closed": _closed,
    "superseded": _superseded,
    "foreign": _foreign,
    "wrong_layout": _wrong_layout,
    "wrong_kind": _wrong_kind,
    "wrong_codec": _wrong_codec,
    "insecure": _insecure,
    "corrupt": _corrupt,
    "lost": _lost,
    "no_memory": lambda name, c: MemoryError(f"no private memory to work on arena {name!r}"),
    "system": _system,
}


def error(status: str, name: str, context: Context) -> Exception:
    """The exception for a ``status`` of arena ``name``, with what the core found in it."""
    return _EXCEPTIONS[status](name, context)
