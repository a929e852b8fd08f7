"""``shmcache ls``: every arena of the machine, which ``ipcs`` does not know.

May import: the facade, ``cli._arenas``, ``cli._freshness``, ``cli._output``.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import stat
import sys
import time
from typing import Any

import shmcache
from shmcache.cli._arenas import KINDS, UNFINISHED, complete_names, files, unknown, user_name
from shmcache.cli._freshness import freshness, freshness_style, reflector_of, shown
from shmcache.cli._output import (
    Column,
    add_output,
    duration,
    number,
    paint,
    print_records,
    printable,
    size,
)

__all__ = ["add_arguments", "run"]

_PROBLEMS = UNFINISHED | {
    "corrupt": "damaged: shmcache check NAME",
    "foreign": "not an arena",
    "insecure": "open to others, or not a plain file, so nobody attaches to it",
    "wrong_layout": "of another version of shmcache",
}
_MOST_NAMED = 3

_COLUMNS = (
    Column("name"),
    Column("kind", text=lambda kind: kind if kind in KINDS else "?"),
    Column("entries", text=number, right=True),
    Column("used_bytes", "USED", text=size, right=True),
    Column("capacity_bytes", "CAPACITY", text=size, right=True, optional=2),
    Column("attached", "HANDLES", right=True),
    Column("age_seconds", "AGE", text=duration, right=True, optional=3),
    Column("reflector", text=shown, style=freshness_style, optional=1),
    Column("owner", optional=4),
    Column("codec", optional=5),
    Column("allocated_bytes", "MEMORY", text=size, right=True, optional=6),
    Column("mode", optional=7),
    Column("owner_uid", hidden=True),
    Column("problem", hidden=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
columns:
  USED       bytes of keys, payloads and their headers, of at most CAPACITY
  MEMORY     what the arena takes of /dev/shm now (wide terminals, -o json)
  HANDLES    open handles, of all processes
  REFLECTOR  alive: the content is kept fresh; stale: it was, and is no more

examples:
  shmcache ls
  shmcache ls 'web-*'
  shmcache ls -o json | jq -r '.[] | select(.attached == 0).name'
  watch -n 1 shmcache ls
"""
    patterns = parser.add_argument(
        "patterns", metavar="NAME", nargs="*", help="only these; * and ? stand for other characters"
    )
    patterns.completer = complete_names  # type: ignore[attr-defined]
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """List the arenas."""
    wanted = _wanted(options.patterns)
    arenas = {info.name: info for info in shmcache.list_arenas()}
    records = [
        _describe(arenas[name], file) if name in arenas else _outside(name, file)
        for name, file in wanted.items()
    ]
    if not records and options.output == "table":
        print("no arenas on this machine (in /dev/shm)", file=sys.stderr)
        return 0
    print_records(records, _COLUMNS, options.output)
    if options.output == "table":
        _print_problems(records)
    return 0


def _wanted(patterns: list[str]) -> dict[str, os.stat_result]:
    """The files whose names match one of ``patterns``; all of them if there are none."""
    found = files()
    for pattern in patterns:
        if not fnmatch.filter(found, pattern):
            raise unknown(pattern)
    return {
        name: file
        for name, file in found.items()
        if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def _print_problems(records: list[dict[str, Any]]) -> None:
    """Why some of the table is empty, below it."""
    names: dict[str, list[str]] = {}
    for record in records:
        if record["problem"]:
            names.setdefault(record["problem"], []).append(record["name"])
    for problem, having in names.items():
        more = f" and {len(having) - _MOST_NAMED} more" if len(having) > _MOST_NAMED else ""
        text = f"{', '.join(having[:_MOST_NAMED])}{more}: {problem}"
        print(paint(printable(text), "warn"))


def _outside(name: str, file: os.stat_result) -> dict[str, Any]:
    """What can be known of an arena without opening it."""
    return dict.fromkeys(column.name for column in _COLUMNS) | {
        "name": name,
        "owner": user_name(file.st_uid),
        "owner_uid": file.st_uid,
        "mode": f"{file.st_mode & 0o7777:04o}",
        "allocated_bytes": file.st_blocks * 512,
        "problem": "not ours to open" if stat.S_ISREG(file.st_mode) else "not a file",
    }


def _describe(info: shmcache.ArenaInfo, file: os.stat_result) -> dict[str, Any]:
    """What can be known of an arena that can be opened: all, if it can be attached to."""
    record = _outside(info.name, file) | {"kind": info.kind, "problem": None}
    if info.kind not in KINDS:
        return record | {"problem": _PROBLEMS.get(info.kind, info.kind)}
    record |= {"capacity_bytes": info.capacity_bytes, "codec": info.codec}
    try:
        with shmcache.attach(info.name) as arena:
            stats, reflector = arena.stats(), reflector_of(arena)
    except shmcache.ArenaPermissionError:
        return record | {"problem": "of a user whom we do not trust (stat NAME --owner USER does)"}
    except (shmcache.ShmCacheError, OSError) as error:
        return record | {"problem": str(error)}
    return record | {
        "entries": stats.entries,
        "used_bytes": stats.used_bytes,
        "attached": stats.attached - 1,  # this one is of the command
        "age_seconds": round(time.time() - stats.created_unix_ns / 1e9, 3),
        "reflector": freshness(reflector),
    }
