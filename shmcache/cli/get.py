"""``shmcache get``: one object.

May import: the facade, ``cli._arenas``, ``cli._failure``, ``cli._json``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import shmcache
from shmcache.cli._arenas import add_name, near, open_store
from shmcache.cli._failure import Failure
from shmcache.cli._json import hex_dump, to_json

__all__ = ["add_arguments", "run"]

# To compare a key with all keys of a large store would take minutes.
_MOST_COMPARED = 10_000
_MOST_OFFERED = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = """\
Objects of msgpack, the stock codec, are printed as JSON. Payloads of other
codecs only their owners can read: the bytes go to a file or pipe as they are,
and to a terminal as text, or as a dump where they are none.

examples:
  shmcache get pods default/web-0
  shmcache get pods default/web-0 | jq .spec.nodeName
  shmcache get images logo.png > logo.png
  shmcache get pods default/web-0 -o raw > web-0.msgpack
"""
    add_name(parser)
    key = parser.add_argument(
        "key", metavar="KEY", help="of the object (shmcache list NAME --keys)"
    )
    key.completer = complete_keys  # type: ignore[attr-defined]
    parser.add_argument(
        "-o",
        "--output",
        choices=("json", "raw"),
        help="json, or raw for the bytes of the payload (default: as the codec is)",
    )


def complete_keys(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The keys that a shell offers."""
    try:
        with open_store(parsed_args.name, parsed_args.owner, "get") as store:
            found = (key for key in sorted(store.list_keys()) if key.startswith(prefix))
            return list(itertools.islice(found, _MOST_OFFERED))
    except (Failure, shmcache.ShmCacheError, OSError):
        return []


def run(options: argparse.Namespace) -> int:
    """Print the object."""
    with open_store(options.name, options.owner, "get") as store:
        if options.output != "raw":
            try:
                obj = store.get_by_key(options.key, _MISSING)
            except shmcache.CodecError as error:
                raise Failure(f"{error}. Its bytes: add -o raw") from error
            if obj is _MISSING:
                raise _no_key(store, options.key)
            if not isinstance(obj, bytes) or options.output == "json":
                print(to_json(obj, indent=2))
                return 0
        data = store.get_raw(options.key)
        if data is None:
            raise _no_key(store, options.key)
    _print_bytes(data)
    return 0


_MISSING = object()


def _no_key(store: shmcache.Store, key: str) -> Failure:
    keys = sorted(store.list_keys())
    within = [known for known in keys if key in known]
    hint = near(key, (within or keys)[:_MOST_COMPARED])
    if not hint and within:  # much shorter than any key
        hint = f"did you mean {within[0]!r}?"
    hint = hint and f"; {hint}"
    return Failure(
        f"arena {store.name!r} has no key {key!r}{hint} "
        f"(shmcache list {store.name} --keys has all {len(keys):,})"
    )


def _print_bytes(data: bytes) -> None:
    if not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if all(c.isprintable() or c in "\n\t" for c in text):
        print(text, end="" if text.endswith("\n") else "\n")
        return
    for line in hex_dump(data):
        print(line)
    print(f"{len(data):,} bytes; to save them: … > FILE", file=sys.stderr)
