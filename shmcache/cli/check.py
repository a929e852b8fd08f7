"""``shmcache check``: are these arenas whole?

May import: the facade, ``cli._arenas``, ``cli._failure``, ``cli._output``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import shmcache
from shmcache.cli._arenas import add_names, open_arena
from shmcache.cli._failure import Failure
from shmcache.cli._output import Column, add_output, paint, print_records

__all__ = ["add_arguments", "run"]

_COLUMNS = (Column("name"), Column("whole"), Column("violations"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
Walks the whole arena and compares it with every invariant; writers wait
meanwhile, readers do not.
Exit status: 0 all are whole, 1 one is not, or could not be opened.

examples:
  shmcache check pods nodes
  shmcache check pods || systemctl restart reflector
  shmcache ls -o json | jq -r '.[].name' | xargs shmcache check
"""
    add_names(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Check each arena."""
    records = [_checked(name, options.owner) for name in options.names]
    if options.output == "table":
        for record in records:
            _print(record)
    else:
        print_records([r for r in records if r["whole"] is not None], _COLUMNS, options.output)
    sys.stdout.flush()
    for record in records:
        if record["whole"] is None:
            print(f"shmcache check: {record['violations'][0]}", file=sys.stderr)
    return 0 if all(record["whole"] for record in records) else 1


def _checked(name: str, owner: int | None) -> dict[str, Any]:
    """``whole`` is None of what could not be checked."""
    try:
        with open_arena(name, owner) as store:
            violations = store.check()
    except shmcache.CorruptArenaError as error:
        violations = [str(error)]
    except (Failure, shmcache.ShmCacheError, OSError) as error:
        return {"name": name, "whole": None, "violations": [str(error)]}
    return {"name": name, "whole": not violations, "violations": violations}


def _print(record: dict[str, Any]) -> None:
    if record["whole"]:
        print(f"{record['name']}: {paint('whole', 'good')}")
    elif record["whole"] is not None:
        print(f"{record['name']}: {paint('not whole', 'bad')}")
        for violation in record["violations"]:
            print(f"  {violation}")
