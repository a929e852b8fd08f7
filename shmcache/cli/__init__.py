"""The ``shmcache`` command: one module a sub-command, imported when it is asked for.

A command's module has ``add_arguments(parser)`` and ``run(options) -> int``, which returns the
exit status: 0 fine, 1 a problem found, 2 wrong usage.

May import: ``_errors``, and of the rest of the package the module of the command that runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from shmcache._errors import ShmCacheError

__all__ = ["main"]

_COMMANDS = {
    "demo": "run a scheduler of several processes against an embedded API server",
    "metrics": "serve Prometheus metrics of all arenas of the machine",
    "top": "show what all arenas are doing, live: on the terminal, or in a browser",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: those of the process); return the status.

    >>> main(["demo", "--pods", "100", "--workers", "2"])  # doctest: +SKIP
    0
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="shmcache", description="Caches and queues in shared memory, for many processes."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in arguments[:1]:
            importlib.import_module(f"shmcache.cli.{name}").add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        status: int = importlib.import_module(f"shmcache.cli.{options.command}").run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ShmCacheError as error:
        print(f"shmcache: {error}", file=sys.stderr)
        return 1
    return status
