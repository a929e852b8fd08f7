"""The ``shmcache`` command: one module a sub-command, imported when it is asked for.

A command's module has ``add_arguments(parser)`` and ``run(options) -> int``, which returns the
exit status: 0 fine, 1 a problem found, 2 wrong usage.

May import: the facade's version, ``_errors``, ``cli._failure``, and of the rest of the package the
module of the command that runs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from shmcache import __version__
from shmcache._errors import InvalidNameError, SelectorError, ShmCacheError
from shmcache.cli._failure import Failure

__all__ = ["main"]

_COMMANDS = {
    "ls": "list the arenas of this machine",
    "stat": "show the figures of an arena, once or as they change",
    "get": "print the object of a key",
    "list": "list the objects of an arena, all or some",
    "claims": "list what the consumers of a queue have in flight",
    "dead": "list what has failed too often in a queue, retry it or drop it",
    "watch": "print changes as they happen",
    "top": "show what all arenas are doing, live: on the terminal, or in a browser",
    "check": "verify that arenas are whole",
    "rm": "remove arenas that nobody uses any more",
    "metrics": "serve Prometheus metrics of all arenas of the machine",
    "demo": "run a scheduler of several processes against an embedded API server",
    "reflect": "keep an arena equal to what an API server or a folder has, until stopped",
    "bench": "measure shmcache on this machine, beside what Python has",
    "completion": "print a script that makes a shell complete commands and arenas",
}

_EPILOG = """\
examples:
  shmcache ls                       which arenas there are, how full, who has them
  shmcache stat pods -i 1           a line a second
  shmcache get pods default/web-0   one object, as JSON
  shmcache watch pods               what changes, as it changes

Each command explains itself: shmcache COMMAND --help
Exit status: 0 fine, 1 a problem found, 2 wrong usage.
"""

# Payloads may be nested that deep (1,024 levels), and JSON is written by recursion.
_RECURSION = 5_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: those of the process); return the status.

    >>> main(["demo", "--pods", "100", "--workers", "2"])  # doctest: +SKIP
    0
    """
    for stream in ("stdin", "stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed by who started us, and may stay unseen
            setattr(sys, stream, open(os.devnull, "r" if stream == "stdin" else "w"))  # noqa: SIM115
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # wherever it comes
        return 130


def _main(arguments: Sequence[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions: see cli/completion.py
        importlib.import_module("shmcache.cli.completion").complete(_parser)
    parser = _parser(arguments[0] if arguments else "")
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
        close = difflib.get_close_matches(arguments[0], _COMMANDS, n=1)
        print(
            f"shmcache: there is no command {arguments[0]!r}"
            + (f"; did you mean {close[0]!r}?" if close else f". There are: {', '.join(_COMMANDS)}")
            + " (shmcache --help)",
            file=sys.stderr,
        )
        return 2
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for locales that are not UTF-8
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _RECURSION))
    try:
        status: int = importlib.import_module(f"shmcache.cli.{options.command}").run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Failure as failure:
        return _fail(options.command, failure, failure.status)
    except (InvalidNameError, SelectorError) as error:
        return _fail(options.command, error, 2)
    except (ShmCacheError, OSError) as error:
        return _fail(options.command, error, 1)
    return status


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser of everything, with the options of ``command``: only its module is imported."""
    parser = argparse.ArgumentParser(
        prog="shmcache",
        description="Caches and queues in shared memory, for many processes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shmcache {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        added = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            importlib.import_module(f"shmcache.cli.{name}").add_arguments(added)
    return parser


def _fail(command: str, error: Exception, status: int) -> int:
    sys.stdout.flush()
    print(f"shmcache {command}: {error}", file=sys.stderr)
    return status
