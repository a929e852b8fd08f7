"""``shmcache rm``: remove arenas, and not by accident one that somebody uses.

May import: the facade, ``cli._arenas``, ``cli._failure``, ``cli._output``, ``cli._processes``.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import shmcache
from shmcache.cli._arenas import complete_names, files, unknown, user_name
from shmcache.cli._failure import Failure
from shmcache.cli._output import Column, add_output, print_records, size
from shmcache.cli._processes import attached_processes

__all__ = ["add_arguments", "run"]

_COLUMNS = (Column("name"), Column("removed"), Column("bytes"), Column("reason"))
_MOST_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
To remove an arena is to remove its name: nobody new can attach, processes that
are attached go on with what they have, and its memory is free when the last of
them ends. So an arena that is in use is refused, with who uses it, unless you
--force.

--stale removes the arenas of this user that no living process has open. That
is what killed programs and test runs leave behind; an arena that is meant to
wait for its next user looks the same, so look first with --dry-run.

examples:
  shmcache rm pods
  shmcache rm --stale --dry-run
  shmcache rm --stale
"""
    names = parser.add_argument("names", metavar="NAME", nargs="*", help="of arenas to remove")
    names.completer = complete_names  # type: ignore[attr-defined]
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--stale", action="store_true", help="those that nobody has open (of NAME..., or of all)"
    )
    how.add_argument("--force", action="store_true", help="also those that are in use")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Remove what was asked for."""
    if not options.names and not options.stale:
        raise Failure("say which arenas: NAME..., or --stale for all that nobody has open", 2)
    arenas = {info.name: info for info in shmcache.list_arenas()}
    names = options.names or [
        name for name, info in arenas.items() if _reason_to_keep(info) is None
    ]
    records, failures = [], []
    for name in dict.fromkeys(names):
        try:
            records.append(_remove(name, arenas.get(name), options))
        except (Failure, shmcache.ShmCacheError, OSError) as error:
            failures.append(str(error))
    if options.output != "table":
        print_records(records, _COLUMNS, options.output)
    else:
        for record in records:
            print(_sentence(record, options.dry_run))
        if not records and not failures:
            print("nothing to remove: no arena of this user is stale", file=sys.stderr)
    sys.stdout.flush()
    for failure in failures:
        print(f"shmcache rm: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _remove(
    name: str, info: shmcache.ArenaInfo | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Remove one arena, or say in ``reason`` why not; a Failure if that is not what was meant."""
    reason = None
    if info is None and name not in files():
        raise unknown(name)
    if options.stale:
        reason = "is not ours to open" if info is None else _reason_to_keep(info)
    elif info is not None and info.in_use and not options.force:
        raise Failure(
            f"arena {name!r} is in use by {_users(name)}. End them first, or --force: they go on "
            "with what they have, and nobody new can attach"
        )
    removed = reason is None and not options.dry_run
    if removed:
        shmcache.unlink(name)
    return {
        "name": name,
        "removed": removed,
        "bytes": info.allocated_bytes if info else None,
        "reason": reason,
    }


def _reason_to_keep(info: shmcache.ArenaInfo) -> str | None:
    """Why ``--stale`` leaves an arena alone, None if it does not."""
    if info.in_use:
        return "is in use"
    if info.kind == "foreign":
        return "is not an arena"
    if info.owner_uid != os.geteuid():
        return f"belongs to {user_name(info.owner_uid)}: remove it by name"
    return None


def _users(name: str) -> str:
    processes = attached_processes(name)
    if not processes:
        return f"processes that are not ours to see{_writers(name)}"
    named = [f"{process.pid} ({process.short})" for process in processes[:_MOST_NAMED]]
    more = f" and {len(processes) - _MOST_NAMED} more" if len(processes) > _MOST_NAMED else ""
    return f"process{'es' if len(processes) > 1 else ''} {', '.join(named)}{more}"


def _writers(name: str) -> str:
    """Those of them that write, which the arena itself knows."""
    try:
        with shmcache.attach(name) as store:
            pids = sorted({worker.pid for worker in store.workers()})
    except (shmcache.ShmCacheError, OSError):
        return ""
    return f" (writers: {', '.join(map(str, pids))})" if pids else ""


def _sentence(record: dict[str, Any], dry_run: bool) -> str:
    if record["reason"]:
        return f"kept {record['name']}: {record['reason']}"
    taken = f" ({size(record['bytes'])})" if record["bytes"] is not None else ""
    return f"{'would remove' if dry_run else 'removed'} {record['name']}{taken}"
