"""``shmcache list``: the objects of an arena, all or some.

May import: the facade, ``cli._arenas``, ``cli._arguments``, ``cli._failure``, ``cli._json``,
``cli._output``, ``cli._selection``, ``cli._work``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

import shmcache
from shmcache.cli._arenas import add_name, open_arena
from shmcache.cli._arguments import limit
from shmcache.cli._failure import Failure
from shmcache.cli._json import preview
from shmcache.cli._output import Column, add_output, print_records, printable
from shmcache.cli._selection import Selection, add_selection
from shmcache.cli._work import COLUMNS, work

__all__ = ["add_arguments", "run"]

_COLUMNS = (Column("key"), Column("object", text=preview, flexible=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
Sorted by key. The table shows of each object what its key does not say;
-o json has it all, as a list of {"key": …, "object": …}. All of it is of
one instant, but with --index.

Of a WorkQueue: its keys, and for each whether it is queued, in flight (a
worker has it), delayed (DUE in so many seconds) or dead. A key may be several
of these.

examples:
  shmcache list pods
  shmcache list pods -l 'app in (web, api),tier!=db'
  shmcache list pods --field-selector spec.nodeName=    without a node
  shmcache list pods --index node=worker-3              by an index: no scan
  shmcache list pods --prefix kube-system/ --keys
  shmcache list pods -o json | jq '.[].object.metadata.name'
  shmcache list queue -o json | jq 'map(select(.due != null))'
"""
    add_name(parser)
    add_selection(parser)
    parser.add_argument(
        "--index", type=_index, metavar="NAME=VALUE", help="objects that an index has under VALUE"
    )
    parser.add_argument("--limit", type=limit, metavar="N", help="show at most N")
    parser.add_argument("--keys", action="store_true", help="only the keys, one a line")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """List what is asked for."""
    selection = Selection.of(options)
    columns: tuple[Column, ...] = _COLUMNS
    with open_arena(options.name, options.owner) as arena:
        try:
            if isinstance(arena, shmcache.WorkQueue):
                columns = COLUMNS
                found = work(arena, selection)
                if options.keys:
                    found = [{"key": key} for key in dict.fromkeys(one["key"] for one in found)]
                if options.index is not None:
                    raise _no_indexes(arena)
            else:
                found = [
                    {"key": key, "object": obj}
                    for key, obj in sorted(_candidates(arena, options), key=lambda item: item[0])
                    if selection.wants(key, obj)
                ]
            total = arena.stats().entries
        except shmcache.CodecError as error:
            raise Failure(f"{error}. The keys alone: add --keys, without a selector") from error
    shown = found[: options.limit]
    if not options.keys:
        print_records(shown, columns, options.output)
    elif options.output == "table":  # for the next command of a pipe, so no header
        for record in shown:
            print(printable(record["key"]))
    else:
        print_records(shown, _COLUMNS[:1], options.output)
    if not found and options.output == "table":
        print(f"none of {total:,} entries", file=sys.stderr)
    if len(shown) < len(found):
        print(f"{len(shown):,} of {len(found):,} shown (--limit)", file=sys.stderr)
    return 0


def _candidates(store: shmcache.Store, options: argparse.Namespace) -> Iterable[tuple[str, Any]]:
    """Keys and objects, before any selector. An object that nobody will look at is None."""
    if options.index is None:
        if options.keys and options.selector is None and options.field_selector is None:
            return [(key, None) for key in store.list_keys()]
        return store.items()
    if not isinstance(store, shmcache.Indexer):
        raise _no_indexes(store)
    # The index gives keys at one instant, and each object is as it is a moment later.
    objects = ((key, store.get_by_key(key)) for key in store.index_keys(*options.index))
    return [(key, obj) for key, obj in objects if obj is not None]


def _no_indexes(arena: shmcache.Store | shmcache.WorkQueue) -> Failure:
    kind = type(arena).__name__
    return Failure(f"arena {arena.name!r} is a {kind}, and only an Indexer has indexes", 2)


def _index(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"like node=worker-3, not {text!r}")
    return name, value
