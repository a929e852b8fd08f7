"""``shmcache demo``: a scheduler of several processes, from nothing to a report.

May import: ``cli._arguments``, ``demo``.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys

from shmcache.cli._arguments import count, existing_file

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--pods", type=count, default=5000, help="pods to schedule (%(default)s)")
    parser.add_argument("--nodes", type=count, default=50, help="nodes to use (%(default)s)")
    parser.add_argument("--workers", type=count, default=4, help="processes (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    parser.add_argument(
        "--kubeconfig",
        type=existing_file,
        metavar="PATH",
        help="use this cluster instead of the embedded API server",
    )
    parser.add_argument(
        "--namespace", default="", metavar="NS", help="for the pods (default: a new one)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the demo and print its report; 0 only if every pod was bound exactly once."""
    missing = [name for name in ("kubernetes", "msgspec") if not importlib.util.find_spec(name)]
    if missing:
        print(
            f"shmcache demo needs {' and '.join(missing)}: pip install 'shmcache[kubernetes]'",
            file=sys.stderr,
        )
        return 2

    from shmcache.demo._display import open_display
    from shmcache.demo.scheduler import DemoError, DemoOptions, run_demo

    # kill and a closed terminal end the demo as Ctrl-C does, with everything cleaned up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    display = open_display(sys.stderr if options.json else sys.stdout)
    try:
        report = run_demo(
            DemoOptions(
                options.pods,
                options.nodes,
                options.workers,
                options.kubeconfig or "",
                options.namespace,
            ),
            display,
        )
    except DemoError as error:
        print(f"shmcache demo: {error}", file=sys.stderr)
        return 1
    finally:
        display.close()
    print(report.as_json() if options.json else report.as_text())
    return 0 if report.good else 1
