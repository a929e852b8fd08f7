"""``shmcache dead``: the dead letters of a queue, and what becomes of them.

May import: the facade, ``cli._arenas``, ``cli._failure``, ``cli._held``, ``cli._json``,
``cli._output``, ``cli._selection``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import shmcache
from shmcache import DeadLetter
from shmcache.cli._arenas import add_name, near
from shmcache.cli._failure import Failure
from shmcache.cli._held import open_queue, readable
from shmcache.cli._json import preview
from shmcache.cli._output import Column, add_output, duration, print_records, printable
from shmcache.cli._selection import Selection, add_selection

__all__ = ["add_arguments", "run"]

_COLUMNS = (
    Column("key"),
    Column("attempts", right=True),
    Column("age", text=duration, right=True),
    Column("object", text=preview, flexible=True),
)
_DONE = (Column("key"), Column("done"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
A dead letter is an item of which max_attempts claims have failed. It holds up
nobody, and stays until it is retried or dropped. A retried one is queued at the
tail, with all its attempts; where a newer version of its key is there already,
that one stands for it.
Exit status: 1 if a KEY is no dead letter; the others are done all the same.

examples:
  shmcache dead orders
  shmcache dead orders -o json | jq -r '.[].key'
  shmcache dead orders --retry order-7 order-9
  shmcache dead orders --retry --all -l team=web   all that these labels list
  shmcache dead orders --drop --all
"""
    add_name(parser)
    how = parser.add_mutually_exclusive_group()
    for option, what in (("--retry", "queue them again"), ("--drop", "remove them for good")):
        keys = how.add_argument(option, nargs="*", metavar="KEY", help=what)
        keys.completer = complete_dead  # type: ignore[attr-defined]
    parser.add_argument(
        "--all", action="store_true", help="with --retry or --drop: all that would be listed"
    )
    add_selection(parser)
    add_output(parser)


def complete_dead(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The keys that a shell offers."""
    try:
        with open_queue(parsed_args.name, parsed_args.owner, "dead letters") as queue:
            letters = readable(queue, parsed_args.owner, lambda queue: queue.dead_letters())
    except (Failure, shmcache.ShmCacheError, OSError):
        return []
    return [letter.key for letter in letters if letter.key.startswith(prefix)]


def run(options: argparse.Namespace) -> int:
    """List the dead letters, or settle them."""
    keys = options.drop if options.retry is None else options.retry
    _check_usage(options, keys)
    with open_queue(
        options.name, options.owner, "dead letters", writable=keys is not None
    ) as queue:
        letters = readable(queue, options.owner, lambda queue: queue.dead_letters())
        selection = Selection.of(options)
        wanted = [letter for letter in letters if selection.wants(letter.key, letter.item)]
        if keys is None:
            return _list(wanted, len(letters), options.output)
        settle = queue.drop if options.retry is None else queue.retry
        word = "dropped" if options.retry is None else "retried"
        chosen = [letter.key for letter in wanted] if options.all else list(dict.fromkeys(keys))
        records = [{"key": key, "done": word} for key in chosen if settle(key)]
    if options.output != "table":
        print_records(records, _DONE, options.output)
    else:
        for record in records:
            print(f"{word} {printable(record['key'])}")
    sys.stdout.flush()
    if options.all:  # one that somebody else was quicker to settle is no failure
        if not records:
            _say_none(len(letters))
        return 0
    settled = {record["key"] for record in records}
    missing = [key for key in chosen if key not in settled]
    left = [letter.key for letter in letters if letter.key not in settled]
    for key in missing:
        print(f"shmcache dead: {_no_letter(options.name, key, left)}", file=sys.stderr)
    return 1 if missing else 0


def _check_usage(options: argparse.Namespace, keys: list[str] | None) -> None:
    if keys is None and options.all:
        raise Failure("--all says which: add --retry or --drop", 2)
    if keys is None:
        return
    if not keys and not options.all:
        raise Failure("say which: KEY..., or --all", 2)
    if keys and options.all:
        raise Failure("KEY... or --all, not both", 2)
    selection = Selection.of(options)
    if keys and (selection.prefix or selection.labels or selection.fields):
        raise Failure("selectors choose among --all, not among KEY...", 2)


def _list(letters: list[DeadLetter[Any]], total: int, form: str) -> int:
    records = [
        {
            "key": letter.key,
            "attempts": letter.attempts,
            "age": letter.age,
            "object": letter.item,
        }
        for letter in letters
    ]
    if not records and form == "table":
        _say_none(total)
        return 0
    print_records(records, _COLUMNS, form)
    return 0


def _say_none(total: int) -> None:
    print(f"none of {total:,} dead letters" if total else "no dead letters", file=sys.stderr)


def _no_letter(name: str, key: str, left: list[str]) -> str:
    hint = near(key, left)
    return (
        f"arena {name!r} has no dead letter {key!r}{hint and f'; {hint}'} "
        f"(shmcache dead {name} has all {len(left):,})"
    )
