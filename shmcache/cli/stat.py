"""``shmcache stat``: all figures of one arena, or a line every so many seconds.

May import: the facade, ``cli._arenas``, ``cli._arguments``, ``cli._failure``, ``cli._figures``,
``cli._freshness``, ``cli._json``, ``cli._output``, ``cli._sample``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import shmcache
from shmcache.cli._arenas import add_name, exists, open_arena
from shmcache.cli._arguments import count, seconds
from shmcache.cli._failure import Failure
from shmcache.cli._figures import figures, sections
from shmcache.cli._freshness import freshness, reflector_of
from shmcache.cli._json import to_json
from shmcache.cli._output import (
    Column,
    Lines,
    add_output,
    duration,
    number,
    paint,
    printable,
    size,
    until_interrupted,
)
from shmcache.cli._sample import per_second

__all__ = ["add_arguments", "run"]

Arena = shmcache.Store | shmcache.WorkQueue

_COUNTERS = ("writes", "deletes", "pops", "reads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
With -i the first line comes at once and has no rates yet. Ctrl-C ends it.
READS are those of all processes, each of which reports every 256. OLDEST is
how long the first item of a queue has waited, REFLECTOR the age of its last
report: one a second while it is well.

examples:
  shmcache stat pods
  shmcache stat pods -i 1                          a line a second
  shmcache stat queue -i 60 -o csv >> queue.csv    for a plot
  shmcache stat pods -o json | jq .reflector.contact_age
"""
    add_name(parser)
    parser.add_argument(
        "-i", "--interval", type=seconds, metavar="SECONDS", help="print a line that often"
    )
    parser.add_argument(
        "-n", "--count", type=count, metavar="COUNT", help="with -i: end after that many lines"
    )
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Show the figures."""
    if options.count and options.interval is None:
        raise Failure("-n says how many lines: say how often with -i SECONDS", 2)
    with open_arena(options.name, options.owner) as arena:
        if options.interval is None:
            _print_once(arena, options)
            return 0
        lines = Lines(_columns(arena), options.output)
        with until_interrupted():
            for record in itertools.islice(_records(arena, options.interval), options.count):
                lines.show(record)
    return 0


def _print_once(arena: Arena, options: argparse.Namespace) -> None:
    found = figures(arena, options.owner)
    if options.output == "json":
        print(to_json(found, indent=2))
    elif options.output == "csv":
        flat = dict(_flat(found.items()))
        csv.writer(sys.stdout, lineterminator="\n").writerows([flat, flat.values()])
    else:
        for title, lines in sections(found):
            print(paint(printable(title), "head"))
            for name, text in lines:
                print(f"  {name:<17} {printable(text)}")


def _flat(figures: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in figures:
        if isinstance(value, dict):
            yield from _flat((f"{name}.{inner}", item) for inner, item in value.items())
        else:
            yield name, to_json(value) if isinstance(value, (bool, list)) else value


def _columns(arena: Arena) -> list[Column]:
    queue = isinstance(arena, (shmcache.FIFO, shmcache.WorkQueue))

    def rate(counter: str, hidden: bool = False) -> Column:
        title = f"{counter.upper()}/s"
        return Column(
            f"{counter}_per_second", title, text=number, right=True, width=9, hidden=hidden
        )

    return [
        Column("time", text=lambda at: time.strftime("%H:%M:%S", time.localtime(at))),
        Column("entries", "DEPTH" if queue else "ENTRIES", text=number, right=True, width=9),
        rate("writes"),
        rate("deletes"),
        rate("pops", hidden=not queue),
        rate("reads", hidden=queue),
        Column("oldest_age", "OLDEST", text=duration, right=True, width=6, hidden=not queue),
        Column("used_bytes", "USED", text=size, right=True, width=7),
        Column("reflector_age", "REFLECTOR", text=duration, right=True, optional=int(queue)),
        Column("reflector", hidden=True),
    ]


def _records(arena: Arena, interval: float) -> Iterator[dict[str, Any]]:
    """A record now, and one each ``interval`` seconds; they end with the arena."""
    began = time.monotonic()
    before: tuple[float, shmcache.Stats] | None = None
    for round_ in itertools.count(1):
        at, stats, status = time.monotonic(), arena.stats(), reflector_of(arena)
        yield {
            "time": round(time.time(), 3),
            "entries": stats.entries,
            "oldest_age": stats.oldest_age,
            "used_bytes": stats.used_bytes,
            "reflector": freshness(status),
            "reflector_age": status and status.heartbeat_age,
        } | {
            f"{counter}_per_second": before
            and _rate(getattr(before[1], counter), getattr(stats, counter), at - before[0])
            for counter in _COUNTERS
        }
        before = at, stats
        # By the clock and not by the time that it took to print: lines do not drift.
        time.sleep(max(began + round_ * interval - time.monotonic(), 0.0))
        if not exists(arena.name):
            raise Failure(f"arena {arena.name!r} has been removed: nobody new can attach to it")


def _rate(before: int, now: int, span: float) -> float | None:
    rate = per_second(before, now, span)
    return None if rate is None else round(rate, 2)
