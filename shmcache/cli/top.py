"""``shmcache top``: what all arenas are doing, live, on a terminal or in a browser.

May import: ``cli._arguments``, ``cli._columns``, ``cli._output``, ``cli._sample``,
``cli._screen``, ``cli._web``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from shmcache.cli._arguments import port, refresh_interval
from shmcache.cli._columns import COLUMNS, arranged, find, plain_table
from shmcache.cli._output import Column, add_output, print_records
from shmcache.cli._sample import Sample, Sampler

__all__ = ["add_arguments", "run"]

# What a program reads is called as in the other commands, with its unit.
_FIELDS = {
    "used": "used_bytes",
    "memory": "committed_bytes",
    "capacity": "capacity_bytes",
    "reads": "reads_per_second",
    "writes": "writes_per_second",
    "deletes": "deletes_per_second",
    "pops": "pops_per_second",
    "oldest": "oldest_age",
    "contact": "contact_age",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these arenas (all)")
    parser.add_argument(
        "-i",
        "--interval",
        type=refresh_interval,
        default=1.0,
        metavar="SECONDS",
        help="look this often (%(default)g)",
    )
    parser.add_argument(
        "--sort",
        choices=[column.id for column in COLUMNS],
        default="name",
        metavar="COLUMN",
        help="sort by it: %(choices)s (%(default)s)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--once", action="store_true", help="print the table once, after SECONDS, and end"
    )
    where.add_argument("--web", action="store_true", help="show it in a browser instead")
    parser.add_argument(
        "--port", type=port, default=None, help="of --web (8765); 0: one that is free"
    )
    parser.add_argument("--host", default=None, help="loopback address of --web (127.0.0.1)")
    add_output(parser)
    parser.epilog = """\
examples:
  shmcache top
  shmcache top --once --sort pops
  shmcache top --once -o json | jq -r '.[] | select(.full > 0.9).name'
"""


def run(options: argparse.Namespace) -> int:
    """Show what is asked for until the user ends it."""
    if not options.web and (options.port is not None or options.host is not None):
        return _wrong("--port and --host are of the browser view: add --web")
    if options.output != "table" and not options.once:
        return _wrong(f"-o {options.output} is of the table that is printed once: add --once")
    if options.web:
        from shmcache.cli._web import serve

        host = "127.0.0.1" if options.host is None else options.host
        at = 8765 if options.port is None else options.port
        return serve(options.names, options.interval, host, at)
    if options.once:
        return _once(options)
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        return _wrong(
            "this is not a terminal that can show a screen. For a line every second: "
            "shmcache stat -i 1; for one table: shmcache top --once"
        )
    if importlib.util.find_spec("textual") is None:
        return _wrong("the full screen needs textual: pip install 'shmcache[cli]'")
    from shmcache.cli._screen import show

    return show(Sampler(options.names), options.interval, options.sort)


def _once(options: argparse.Namespace) -> int:
    sampler = Sampler(options.names)
    sampler.take()
    time.sleep(options.interval)
    samples = arranged(sampler.take(), find(options.sort))
    if options.output != "table":
        records = [_record(sample) for sample in samples]
        names = [*(_FIELDS.get(column.id, column.id) for column in COLUMNS), "problem"]
        print_records(records, [Column(name) for name in names], options.output)
        return _status(options, samples)
    # In a pipe nothing limits the width, so all columns come.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print(plain_table(samples, width))
    return _status(options, samples)


def _record(sample: Sample) -> dict[str, Any]:
    values = {_FIELDS.get(column.id, column.id): column.value(sample) for column in COLUMNS}
    if sample.reflector is None:
        values["reflector"] = "none"  # as the other commands say
    return values | {"problem": sample.problem or None}


def _status(options: argparse.Namespace, samples: Sequence[Sample]) -> int:
    return 1 if options.names and any(sample.problem for sample in samples) else 0


def _wrong(message: str) -> int:
    print(f"shmcache top: {message}", file=sys.stderr)
    return 2
