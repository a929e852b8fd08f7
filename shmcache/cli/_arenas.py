"""Arenas by their names on a command line: opening one, and what to say when it is not there.

May import: the facade, ``cli._arguments``, ``cli._failure``.
"""

from __future__ import annotations

import argparse
import difflib
import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shmcache
from shmcache.cli._arguments import user
from shmcache.cli._failure import Failure

__all__ = [
    "KINDS",
    "UNFINISHED",
    "add_name",
    "add_names",
    "complete_names",
    "exists",
    "files",
    "near",
    "open_arena",
    "open_store",
    "unknown",
    "user_name",
]

KINDS = ("Store", "Indexer", "FIFO", "WorkQueue")

UNFINISHED = {
    "busy": "another process is creating it",
    "unfinished": "its creation was never finished: create() or open() takes it over",
}
"""What ``list_arenas`` calls an arena that somebody creates just now, or began to and died, and
that in words."""

_DIRECTORY = Path("/dev/shm")
_PREFIX = "shmcache."
_MOST_NAMED = 10


def add_name(parser: argparse.ArgumentParser) -> None:
    """Declare NAME, and how an arena of somebody else is opened."""
    _completed(parser.add_argument("name", metavar="NAME", help="of the arena (see shmcache ls)"))
    _add_owner(parser)


def add_names(parser: argparse.ArgumentParser) -> None:
    """Declare NAME..., and how arenas of somebody else are opened."""
    _completed(
        parser.add_argument("names", metavar="NAME", nargs="+", help="of arenas (see shmcache ls)")
    )
    _add_owner(parser)


def _add_owner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--owner", type=user, metavar="USER", help="trust arenas of this user too (name or number)"
    )


def _completed(action: argparse.Action) -> None:
    action.completer = complete_names  # type: ignore[attr-defined]


def complete_names(prefix: str, **_: Any) -> list[str]:
    """The arenas that a shell offers."""
    return [name for name in files() if name.startswith(prefix)]


def open_store(name: str, owner: int | None, does: str) -> shmcache.Store:
    """As :func:`open_arena`, for a command that ``does`` something with objects; a Failure if there
    are none in it."""
    arena = open_arena(name, owner)
    if isinstance(arena, shmcache.WorkQueue):
        arena.close()
        raise Failure(
            f"arena {name!r} is a WorkQueue, which has keys and no objects to {does}: "
            f"shmcache list {name} has what it has",
            2,
        )
    return arena


def open_arena(
    name: str, owner: int | None, *, writable: bool = False
) -> shmcache.Store | shmcache.WorkQueue:
    """A handle of ``name``, which is of any kind and codec."""
    try:
        return shmcache.attach(name, owner=owner, writable=writable)
    except shmcache.ArenaNotFoundError:
        raise unknown(name) from None
    except shmcache.ArenaPermissionError as error:
        path = _DIRECTORY / (_PREFIX + name)
        uid = path.stat().st_uid
        if uid in (0, os.geteuid(), owner) or not os.access(path, os.R_OK | os.W_OK):
            raise
        theirs = user_name(uid)
        raise Failure(
            f"arena {name!r} belongs to {theirs}, and reading it means to trust them: "
            f"add --owner {theirs} if you do ({error})"
        ) from error


def unknown(name: str) -> Failure:
    """The failure that there is no arena ``name``: it says which there are."""
    names = list(files())
    if not names:
        return Failure(
            f"there is no arena {name!r}, and no other one on this machine: is the process that "
            "creates it running, in this container?"
        )
    if close := near(name, names):
        return Failure(f"there is no arena {name!r}; {close} (shmcache ls has all {len(names)})")
    named = ", ".join(names[:_MOST_NAMED])
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return Failure(f"there is no arena {name!r}. There are: {named}{more} (shmcache ls)")


def near(word: str, words: Iterable[str]) -> str:
    """``"did you mean …?"``, ``""`` if nothing is like it."""
    close = difflib.get_close_matches(word, list(words), n=3)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ""


def files() -> dict[str, os.stat_result]:
    """Every name under our prefix, sorted, with what is to be known of it without opening it."""
    found = {}
    for entry in os.scandir(_DIRECTORY):
        if entry.name.startswith(_PREFIX):
            try:
                found[entry.name.removeprefix(_PREFIX)] = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
    return dict(sorted(found.items()))


def exists(name: str) -> bool:
    """Whether something has that name."""
    return (_DIRECTORY / (_PREFIX + name)).exists()


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
