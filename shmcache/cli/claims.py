"""``shmcache claims``: what the consumers of a queue have in flight.

May import: ``cli._arenas``, ``cli._held``, ``cli._json``, ``cli._output``, ``cli._processes``,
``cli._sample``, ``cli._selection``.
"""

from __future__ import annotations

import argparse
import sys

from shmcache.cli._arenas import add_name
from shmcache.cli._held import open_queue, readable
from shmcache.cli._json import preview
from shmcache.cli._output import Column, add_output, duration, print_records
from shmcache.cli._processes import command_line
from shmcache.cli._sample import short_command
from shmcache.cli._selection import Selection, add_selection

__all__ = ["add_arguments", "run"]

_COLUMNS = (
    Column("key"),
    Column("pid", text=lambda pid: str(pid) if pid else "gone", right=True),
    Column("command", text=lambda command: command or "-", optional=1),
    Column("attempt", right=True),
    Column("age", text=duration, right=True),
    Column("lease", text=duration, right=True),
    Column("object", text=preview, flexible=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
In the order of the claims, the oldest first. ATTEMPT is 1 for the first claim
of an item, AGE how long it has been held, LEASE what is left until the claim
fails by itself; - for as long as its process lives. PID is as the consumer
knows itself: in a container, its number there. It may have ended since: the
next consumer that pops, claims or waits takes its items back.

examples:
  shmcache claims orders
  shmcache claims orders -o json | jq '.[] | select(.attempt > 1).key'
  shmcache dead orders                             what has failed too often
"""
    add_name(parser)
    add_selection(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """List what is in flight."""
    selection = Selection.of(options)
    with open_queue(options.name, options.owner, "items in flight") as queue:
        claims = readable(queue, options.owner, lambda queue: queue.in_flight())
    records = [
        {
            "key": claim.key,
            "pid": claim.pid,
            "command": short_command(command_line(claim.pid)) if claim.pid else "",
            "attempt": claim.attempt,
            "age": claim.age,
            "lease": claim.lease,
            "object": claim.item,
        }
        for claim in claims
        if selection.wants(claim.key, claim.item)
    ]
    if not records and options.output == "table":
        total = f"none of {len(claims):,} items" if claims else "nothing"
        print(f"{total} in flight", file=sys.stderr)
        return 0
    print_records(records, _COLUMNS, options.output)
    return 0
