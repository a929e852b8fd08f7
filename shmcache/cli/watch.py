"""``shmcache watch``: changes as they happen.

An arena keeps what is, and not what was: this looks again and again (``Store.watch``; of a FIFO it
compares one snapshot with the next). Several changes of a key between two looks are seen as one,
and the arena's counters tell how many those were.

May import: the facade, ``cli._arenas``, ``cli._failure``, ``cli._json``, ``cli._output``,
``cli._selection``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import shmcache
from shmcache import Change
from shmcache.cli._arenas import add_name, exists, open_store
from shmcache.cli._failure import Failure
from shmcache.cli._json import preview
from shmcache.cli._output import Column, Lines, add_output, until_interrupted
from shmcache.cli._selection import Selection, add_selection

__all__ = ["add_arguments", "run"]

# How long to sleep before a look whether there still is an arena.
_LOOK_SECONDS = 1.0

_STYLES = {"ADDED": "good", "MODIFIED": "warn", "DELETED": "bad"}

_COLUMNS = (
    Column("type", width=8, style=lambda kind: _STYLES[kind]),
    Column("key", width=24),
    Column(
        "folded", text=lambda count: f"+{count}" if count else "", right=True, style=lambda _: "dim"
    ),
    Column("version", hidden=True),
    Column("object", text=preview, flexible=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
Begins with what is there, as ADDED. An object that comes to match a selector
is ADDED, one that does so no more is DELETED, and so is an item of a FIFO that
has been popped. Ctrl-C ends it.

What changes faster than it can be printed is folded: FOLDED is how many
changes (of any key, at least) since the line before no line shows: overwritten
in between, added and deleted again, or written anew as they were. Nothing that
lasts is missed.

-o json has one line a change: {"type", "key", "folded", "version", "object"}.

examples:
  shmcache watch pods
  shmcache watch pods -l app=web --no-initial
  shmcache watch queue -o json | jq -r 'select(.type == "DELETED").key'
"""
    add_name(parser)
    add_selection(parser)
    parser.add_argument("--no-initial", action="store_true", help="leave out what is there already")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Print changes until Ctrl-C, or until the arena is removed."""
    selection, lines = Selection.of(options), Lines(_COLUMNS, options.output)
    with open_store(options.name, options.owner, "watch") as store, until_interrupted():
        for record in _changes(store, selection, initial=not options.no_initial):
            lines.show(record)
    return 0


def _changes(
    store: shmcache.Store, selection: Selection, *, initial: bool
) -> Iterator[dict[str, Any]]:
    """A record a change; they end with the arena."""
    look, initially = _changes_since(store), True
    counted_before, folded = 0, 0
    while True:
        began = time.monotonic()
        # In this order: what happens meanwhile wakes us once more, and is not called folded.
        version, counted = store.version, _counted(store)
        changes = [c for c in look() if c.type != "MODIFIED" or c.old != c.object]
        counted_after = _counted(store)
        if not initially:
            folded += max(counted - counted_before - len(changes), 0)
        elif not initial:
            changes.clear()
        for change in sorted(changes, key=lambda change: change.key) if initially else changes:
            kind, obj = _kind(change, selection)
            if kind:
                yield {
                    "type": kind,
                    "key": change.key,
                    "folded": folded,
                    "version": version,
                    "object": obj,
                }
                folded = 0
        counted_before, initially = counted_after, False
        # A large arena that never rests must not cost a whole core: look half of the time.
        time.sleep(time.monotonic() - began)
        while store.wait_for_change(version, _LOOK_SECONDS) == version:
            if not exists(store.name):
                raise Failure(f"arena {store.name!r} has been removed: nobody new can attach to it")


def _changes_since(store: shmcache.Store) -> Callable[[], list[Change[Any]]]:
    """A function that gives what has changed since it was called last, at first the content."""
    if not isinstance(store, shmcache.FIFO):
        watch = store.watch()
        return lambda: watch.take(0)
    before: dict[str, Any] = {}

    def compare() -> list[Change[Any]]:
        now = dict(store.items())
        changes = [Change("DELETED", key, before[key], None) for key in before if key not in now]
        for key, obj in now.items():
            if key not in before:
                changes.append(Change("ADDED", key, obj, None))
            elif before[key] != obj:
                changes.append(Change("MODIFIED", key, obj, before[key]))
        before.clear()
        before.update(now)
        return changes

    return compare


def _kind(change: Change[Any], selection: Selection) -> tuple[str, Any]:
    """What a change is to one who sees only the selection, and the object; ``""`` for nothing."""
    before = change.object if change.type == "DELETED" else change.old
    was = change.type != "ADDED" and selection.wants(change.key, before)
    if change.type != "DELETED" and selection.wants(change.key, change.object):
        return "MODIFIED" if was else "ADDED", change.object
    return ("DELETED", before) if was else ("", None)


def _counted(store: shmcache.Store) -> int:
    """How many changes of an entry there have been."""
    stats = store.stats()
    return stats.writes + stats.deletes + stats.pops
