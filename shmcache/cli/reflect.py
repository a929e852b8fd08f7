"""``shmcache reflect``: a reflector in the foreground, for a sidecar, a service, or a terminal.

It keeps one arena equal to what one source has, until it is told to end. The rules:

====================================  =====================================================
when                                  then
====================================  =====================================================
start                                 the source is asked first: what no waiting mends (a bad
                                      credential, an unknown resource) is status 1, a server
                                      that is down is waited for. Only then is the arena
                                      opened
the arena exists                      it is filled again: readers stay attached over a restart
it has a living reflector             status 1, which names the process; with ``--standby``
                                      wait for its end, and go on from its version
it is of another kind, or has an      status 1: writing to it would fail
index that we do not fill
an error of the source                tried again for ever, as :class:`~shmcache.Reflector` says
the arena is removed by somebody      status 1, so that a supervisor starts us anew
SIGTERM, SIGINT, SIGHUP               a clean end, status 0 (``nohup`` is respected)
the end                               the arena stays, or goes with ``--unlink``
====================================  =====================================================

Under systemd (``Type=notify``) it is ready when the arena is synced, or when it stands by.

May import: the facade, ``cli._arguments``, ``cli._failure``, ``cli._fields``, ``cli._log``,
``cli._origin``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import shmcache
from shmcache.cli._arguments import existing_file, user
from shmcache.cli._failure import Failure
from shmcache.cli._fields import field_path, function, index, leaving_out
from shmcache.cli._log import Log
from shmcache.cli._origin import Origin, reach

__all__ = ["add_arguments", "run"]

_POLL = 0.1
"""Seconds between two looks at how the reflector is doing, and for a signal."""

_LOOK = 1.0
"""Seconds between two looks at whether the arena still has its name."""

_STOP_SECONDS = 10.0
"""How long a call into somebody else's code (a transform, a source) may delay the end."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_KINDS: dict[str, type[shmcache.Store]] = {
    "indexer": shmcache.Indexer,
    "store": shmcache.Store,
    "fifo": shmcache.FIFO,
}

_STOCK_INDEX = {"namespace": shmcache.meta_namespace_index_func}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.usage = "%(prog)s [-h] [RESOURCE] [OPTION ...]"
    parser.epilog = """\
It runs until SIGTERM or Ctrl-C, which is status 0. The arena stays, for its
readers and for the next start. Under systemd: Type=notify, Restart=on-failure.

examples:
  shmcache reflect pods --index node=spec.nodeName
  shmcache reflect deployments.apps -n web -l tier=api
  shmcache reflect pods --standby         twice: one fills, the other takes over
  shmcache reflect pods --kind fifo --field-selector spec.nodeName=
  shmcache reflect ConfigMap --dir /etc --name config

Any process reads it: shmcache.attach("pods").by_index("node", "node-1")
"""
    parser.set_defaults(refuse=parser.error)
    parser.add_argument(
        "resource",
        nargs="?",
        metavar="RESOURCE",
        help="pods, deployments.apps or apps/v1/deployments; with --dir a kind, Job or "
        "batch/v1/Job",
    )
    parser.add_argument("--name", metavar="ARENA", help="(default: RESOURCE, with . for /)")
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="of the lines (text)"
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="what the reflector does; -vv: all"
    )

    source = parser.add_argument_group("what to follow")
    source.add_argument("-n", "--namespace", metavar="NS", help="(default: all)")
    source.add_argument("-l", "--selector", type=_labels, metavar="LABELS", help="app=web,tier!=db")
    source.add_argument(
        "--field-selector", type=_fields, metavar="FIELDS", help="spec.nodeName=node-1"
    )
    source.add_argument(
        "--kubeconfig",
        type=existing_file,
        metavar="PATH",
        help="(default: KUBECONFIG, ~/.kube/config, or the pod that this runs in)",
    )
    source.add_argument("--context", metavar="NAME", help="of the kubeconfig")
    source.add_argument(
        "--dir", type=_folder, metavar="FOLDER", help="follow manifests, YAML and JSON"
    )
    source.add_argument("--source", metavar="NAME", help="follow a source that is installed")
    source.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        type=_setting,
        metavar="OPTION=VALUE",
        help="an option of --source; again for more",
    )

    arena = parser.add_argument_group("the arena")
    arena.add_argument(
        "--kind", choices=tuple(_KINDS), default="indexer", help="fifo: a queue (%(default)s)"
    )
    arena.add_argument(
        "--index",
        action="append",
        default=[],
        type=index,
        metavar="NAME=FIELD",
        help="of an indexer, beside namespace: node=spec.nodeName, or NAME=module:function",
    )
    arena.add_argument("--capacity", metavar="SIZE", help="most memory that it may take (1GiB)")
    arena.add_argument(
        "--mode", choices=("0600", "0660"), default="0600", help="0660: for the group too"
    )
    arena.add_argument(
        "--owner", type=user, metavar="USER", help="take an arena that USER has made"
    )
    arena.add_argument(
        "--unlink", action="store_true", help="remove it at the end (default: it stays)"
    )
    arena.add_argument(
        "--standby",
        action="store_true",
        help="wait while another process fills it, and take over (same options for all)",
    )

    objects = parser.add_argument_group("what is stored")
    objects.add_argument(
        "--drop",
        action="append",
        default=[],
        type=field_path,
        metavar="FIELD",
        help="leave a field out: spec.containers.env; again for more",
    )
    objects.add_argument(
        "--managed-fields",
        action="store_true",
        help="keep metadata.managedFields, which is left out otherwise",
    )
    objects.add_argument(
        "--transform",
        type=lambda text: (text, function(text)),
        default=("", None),
        metavar="MODULE:FUNCTION",
        help="store what the function returns for an object, after --drop",
    )


def run(options: argparse.Namespace) -> int:
    """Run the reflector until a signal; 0 after one, 1 if it cannot start, 2 for wrong usage."""
    _check(options)
    name = options.name or options.resource.replace("/", ".")
    with _handled(lambda *_: sys.exit(0)), Log(options.output == "json", options.verbose) as out:
        origin = reach(options, out)
        _check_existing(name, options, out)
        asked: list[int] = []
        # From here on there is something to end in good order, and not at any moment.
        with (
            _handled(lambda number, _: asked.append(number)),
            _open(name, options) as store,
        ):
            _fill(store, origin, options, out, asked)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    refuse: Callable[[str], NoReturn] = options.refuse
    kubernetes = {
        "--selector": options.selector,
        "--field-selector": options.field_selector,
        "--kubeconfig": options.kubeconfig,
        "--context": options.context,
    }
    given = [option for option, value in kubernetes.items() if value is not None]
    if options.dir is not None and options.source is not None:
        refuse("--dir and --source: follow one of them")
    if options.settings and options.source is None:
        refuse("--set is for --source")
    if options.source is not None:
        given += ["RESOURCE"] if options.resource else []
        given += ["--namespace"] if options.namespace else []
        if given:
            refuse(f"{given[0]} is not for --source, whose options are given by --set")
        if not options.name:
            refuse("--source needs --name, for the arena")
    elif not options.resource:
        refuse(
            "say the kind of object: one arena holds one (shmcache reflect Job --dir FOLDER)"
            if options.dir is not None
            else "say what to follow: RESOURCE, --dir or --source"
        )
    elif options.dir is not None:
        if given:
            refuse(f"{given[0]} is for an API server, not for --dir")
        if not options.resource.rpartition("/")[2][:1].isupper():
            refuse(f"with --dir RESOURCE is a kind as in the files, like Job: {options.resource!r}")
    if options.index and options.kind != "indexer":
        refuse(f"--index needs --kind indexer, not {options.kind}")
    if options.unlink and options.standby:
        refuse("--unlink would take the arena from those who stand by")


def _check_existing(name: str, options: argparse.Namespace, out: Log) -> None:
    """Refuse an arena that we could not fill, before anything of it is changed."""
    try:
        found = shmcache.attach(name, owner=options.owner)
    except (shmcache.ArenaNotFoundError, shmcache.IncompatibleArenaError):
        return  # open() takes over what was never finished, and says what is wrong otherwise
    except ValueError as error:  # of the name
        options.refuse(str(error))
    with found:
        kind = type(found).__name__
        if isinstance(found, shmcache.WorkQueue):
            raise Failure(
                f"arena {name!r} exists and is a WorkQueue, which has no objects to fill it with: "
                f"say another --name, or remove it (shmcache rm {name})"
            )
        if not isinstance(found, _KINDS[options.kind]) or kind.lower() != options.kind:
            raise Failure(
                f"arena {name!r} exists and is of the kind {kind.lower()}: say --kind "
                f"{kind.lower()}, another --name, or remove it (shmcache rm {name})"
            )
        status = found.reflector_status()
        if status.alive and not options.standby:
            raise _taken(name, status.name, status.pid)
        if isinstance(found, shmcache.Indexer):
            ours, theirs = {*_indexers(options)}, {*found.get_indexers()}
            if theirs - ours:
                raise Failure(
                    f"arena {name!r} has an index {min(theirs - ours)!r}, which would not be "
                    "filled: say --index for it too, or remove the arena "
                    f"(shmcache rm {name})"
                )
            if status.alive and ours - theirs:
                raise Failure(
                    f"arena {name!r} has no index {min(ours - theirs)!r}, and process {status.pid} "
                    "that fills it does not know of it: start all with the same --index"
                )
        if options.capacity is not None:
            out.say(
                "existing",
                f"arena {name!r} exists with {found.stats().capacity_bytes:,} bytes of capacity: "
                "--capacity is for a new one",
            )


def _open(name: str, options: argparse.Namespace) -> shmcache.Store:
    more: dict[str, Any] = {}
    if options.kind == "indexer":
        more["indexers"] = _indexers(options)
    try:
        return _KINDS[options.kind].open(
            name,
            capacity=options.capacity or "1GiB",
            mode=int(options.mode, 8),
            owner=options.owner,
            **more,
        )
    except ValueError as error:  # of the name or the capacity
        options.refuse(str(error))
        raise


def _indexers(options: argparse.Namespace) -> dict[str, Any]:
    return _STOCK_INDEX | dict(options.index)


def _taken(name: str, holder: str, pid: int) -> Failure:
    return Failure(
        f"arena {name!r} is filled by process {pid} ({holder}): end that one, take another --name, "
        "or wait for its end with --standby"
    )


def _reflector(
    store: shmcache.Store, origin: Origin, options: argparse.Namespace
) -> shmcache.Reflector:
    paths = [*options.drop]
    if not options.managed_fields:
        paths.append(("metadata", "managedFields"))
    drop, (function_name, then) = leaving_out(paths), options.transform
    # A standby goes on where a reflector of the same name was: so the name stands for all that
    # the content depends on. The segment has 127 bytes for it.
    depends = repr((origin.text, sorted(paths), function_name))
    digest = hashlib.sha256(depends.encode()).hexdigest()[:8]
    return shmcache.Reflector(
        origin.source,
        None,
        store,
        name=f"{origin.text.encode()[:110].decode(errors='ignore')} #{digest}",
        transform=drop if then is None else lambda obj: then(drop(obj)),
        standby=options.standby,
    )


def _fill(
    store: shmcache.Store,
    origin: Origin,
    options: argparse.Namespace,
    out: Log,
    asked: list[int],
) -> None:
    """Fill ``store`` until a signal is in ``asked``, and tell of each change."""
    reflector = _reflector(store, origin, options)
    try:
        reflector.start()
    except shmcache.ReflectorRunningError as error:  # it came after we had looked
        raise _taken(store.name, "a reflector", error.pid) from error
    name = store.name
    out.say(
        "started",
        f"arena {name!r} ({options.kind}): {origin.text}; process {os.getpid()}; "
        f"readers: shmcache.attach({name!r})",
        arena=name,
        kind=options.kind,
        source=origin.text,
        pid=os.getpid(),
    )
    try:
        _tell(shmcache.SharedReflector(store, reflector), out, asked, options.standby)
    finally:
        _notify("STOPPING=1")
        if not reflector.stop(_STOP_SECONDS):
            out.say("stuck", f"the source did not end within {_STOP_SECONDS:g} s")
        if options.unlink:
            store.unlink()
    left = "removed" if options.unlink else "stays"
    why = signal.Signals(asked[0]).name
    out.say("stopped", f"{why}: stopped; arena {name!r} {left}", signal=why, arena=name)


def _tell(shared: shmcache.SharedReflector, out: Log, asked: list[int], standby: bool) -> None:
    """Say what changes: who fills the arena, that it is filled, that errors are over."""
    store, stats = shared.store, shared.reflector.stats
    began = looked = time.monotonic()
    failing: float | None = None
    standing_by = synced = False
    elected = not standby  # else it would not have started
    while not asked:
        if out.broken:
            raise BrokenPipeError
        now, status = time.monotonic(), store.reflector_status()
        if now - looked > _LOOK:
            looked = now
            _check_name(store)
        if not shared.elected:  # asked after the status, which may be ours otherwise
            if elected:
                raise Failure("the reflector has ended by itself")
            if status.alive and not standing_by:
                standing_by = True
                text = f"standing by: process {status.pid} fills the arena ({status.name})"
                out.say("standby", text, pid=status.pid)
                _notify("READY=1")
        elif not elected:
            elected, began = True, now
            if standing_by:
                out.say("elected", "the process before is gone: taking over")
        elif not synced and (stats().lists or status.state == "watching"):
            synced, failing = True, None
            event = "synced" if stats().lists else "resumed"
            _say_filled(out, event, event, store, now - began)
            _notify("READY=1")
        elif status.state == "waiting":
            failing = failing or now
        elif status.state == "watching" and failing is not None:
            _say_filled(out, "recovered", "watching again", store, now - failing)
            failing = None
        time.sleep(_POLL)


def _say_filled(out: Log, event: str, text: str, store: shmcache.Store, seconds: float) -> None:
    count = len(store)
    out.say(
        event,
        f"{text}: {count:,} object{'' if count == 1 else 's'}, after {seconds:.1f} s",
        objects=count,
        seconds=round(seconds, 3),
        resource_version=store.resource_version,
    )


def _check_name(store: shmcache.Store) -> None:
    if all(arena.name != store.name for arena in shmcache.list_arenas()):
        raise Failure(
            f"arena {store.name!r} was removed while it was filled: start again to make a new one"
        )


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Signals that ask for the end go to ``handler``, those that are ignored stay so."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, old in before.items():
            if old is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _notify(state: str) -> None:
    """Tell the service manager, if there is one: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def _labels(text: str) -> str:
    return _parsed(shmcache.LabelSelector.parse, text)


def _fields(text: str) -> str:
    return _parsed(shmcache.FieldSelector.parse, text)


def _parsed(parse: Callable[[str], object], text: str) -> str:
    try:
        parse(text)
    except shmcache.SelectorError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be like address=localhost")
    return name, value


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: {text}")
    return text
