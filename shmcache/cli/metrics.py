"""``shmcache metrics``: Prometheus metrics of all arenas, served or printed.

May import: ``_errors``, ``cli._arguments``, ``observe``.
"""

from __future__ import annotations

import argparse
import signal
import sys

from shmcache._errors import InvalidNameError
from shmcache.cli._arguments import port, user

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="arenas to export (default: all)")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--port", type=port, metavar="PORT", help="serve http://ADDRESS:PORT/metrics, 0: any port"
    )
    how.add_argument(
        "--once", action="store_true", help="print the metrics once, for textfile collectors"
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1",
        help="where to serve (default: %(default)s, this machine alone; 0.0.0.0: everywhere)",
    )
    parser.add_argument(
        "--owner",
        action="append",
        default=[],
        dest="owners",
        type=user,
        metavar="USER",
        help="also export arenas of this user, by name or number; may be repeated",
    )
    parser.add_argument(
        "--per-worker",
        action="store_true",
        help="also export the pops of each living worker, by pid: a series for each restart",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, or print once; 1 if the port cannot be had."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest, start_http_server

        from shmcache.observe.prometheus import ShmCacheCollector
    except ImportError:
        print(
            "shmcache metrics needs prometheus-client: pip install 'shmcache[metrics]'",
            file=sys.stderr,
        )
        return 2
    registry = CollectorRegistry()
    try:
        registry.register(
            ShmCacheCollector(
                options.names or None, owners=options.owners, per_worker=options.per_worker
            )
        )
    except InvalidNameError as error:
        print(f"shmcache metrics: {error}", file=sys.stderr)
        return 2
    if options.once:
        sys.stdout.write(generate_latest(registry).decode())
        return 0
    # Blocked before any thread is there, so that all inherit it and sigwait gets the signal.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        server, thread = start_http_server(options.port, options.address, registry)
    except OSError as error:
        print(
            f"shmcache metrics: cannot serve on {options.address} port {options.port}: "
            f"{error.strerror}: choose another --port or --address",
            file=sys.stderr,
        )
        return 1
    address = f"[{options.address}]" if ":" in options.address else options.address
    print(f"shmcache metrics: http://{address}:{server.server_port}/metrics", file=sys.stderr)
    signal.sigwait(ends)
    server.shutdown()
    server.server_close()
    thread.join()
    return 0
