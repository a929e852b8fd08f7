"""All that is known of one arena, and the page that ``shmcache stat`` makes of it.

May import: the facade, ``cli._arenas``, ``cli._freshness``, ``cli._held``, ``cli._output``,
``cli._processes``.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import shmcache
from shmcache.cli._arenas import user_name
from shmcache.cli._freshness import freshness
from shmcache.cli._held import in_flight_by_process
from shmcache.cli._output import duration, number, size
from shmcache.cli._processes import Process, attached_processes

__all__ = ["figures", "sections"]

Figures = dict[str, Any]
Section = tuple[str, list[tuple[str, str]]]

_OF_A_HANDLE = ("hits", "misses", "cached_bytes")


def figures(arena: shmcache.Store | shmcache.WorkQueue, owner: int | None) -> Figures:
    """Every figure of the arena, by the names that JSON has them under. ``owner``: of
    :meth:`~shmcache.Store.attach`.

    What is only true of the handle ``arena`` is left out, and it is not counted as attached.
    """
    found = dataclasses.asdict(arena.stats())
    for name in _OF_A_HANDLE:
        del found[name]
    found["attached"] -= 1
    info = next((info for info in shmcache.list_arenas() if info.name == arena.name), None)
    found |= {
        "workers": _workers(arena, owner),
        "processes": [dataclasses.asdict(process) for process in attached_processes(arena.name)],
        "owner": info and user_name(info.owner_uid),
        "mode": info and f"{info.mode:04o}",
        "codec": info and info.codec,
        "allocated_bytes": info and info.allocated_bytes,
    }
    if isinstance(arena, shmcache.WorkQueue):
        return found | {"shutting_down": arena.shutting_down}
    status = arena.reflector_status()
    return found | {
        "resource_version": arena.resource_version,
        "has_synced": arena.has_synced,
        "index_names": list(arena.get_indexers()) if isinstance(arena, shmcache.Indexer) else [],
        "reflector": {"freshness": freshness(status)} | dataclasses.asdict(status),
    }


def _workers(
    arena: shmcache.Store | shmcache.WorkQueue, owner: int | None
) -> list[dict[str, int | None]]:
    """By process, all its handles together."""
    pops: Counter[int] = Counter()
    for worker in arena.workers():
        pops[worker.pid] += worker.pops
    in_flight = in_flight_by_process(arena, owner)
    return [
        {"pid": pid, "pops": count, "in_flight": None if in_flight is None else in_flight[pid]}
        for pid, count in sorted(pops.items())
    ]


def sections(f: Figures) -> Iterator[Section]:
    """The same for people: titles, and what stands below each."""
    created = f["created_unix_ns"] / 1e9
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created))
    yield (
        f"{f['name']}  {f['kind']}",
        [
            ("entries", number(f["entries"]) + _waiting(f)),
            *([("shut down", "yes: adds do nothing")] if f.get("shutting_down") else []),
            ("codec", f["codec"] or "-"),
            ("made", f"{duration(time.time() - created)} ago ({made})"),
            ("owner", f"{f['owner'] or '-'}, mode {f['mode'] or '-'}"),
            ("handles", number(f["attached"])),
            *_processes(f),
        ],
    )
    share = f["committed_bytes"] / f["capacity_bytes"]
    yield (
        "memory",
        [
            ("capacity", size(f["capacity_bytes"])),
            ("taken", f"{size(f['committed_bytes'])} ({share:.1%})"),
            ("of it entries", size(f["used_bytes"])),
            (
                "of it free",
                f"{size(f['free_bytes'])}, in one piece {size(f['largest_free_bytes'])} "
                f"(pieces: {number(f['free_blocks'])})",
            ),
        ],
    )
    yield "since it was made", list(_history(f))
    if f["kind"] == "WorkQueue":
        return
    if f["kind"] == "Indexer":
        yield (
            "indexes",
            [
                ("names", ", ".join(f["index_names"]) or "-"),
                ("values", number(f["index_values"])),
            ],
        )
    if f["reflector"]["freshness"] != "none":
        yield f"reflector  {f['reflector']['freshness']}", list(_reflector(f))
    elif f["resource_version"]:
        yield "content", [("resource version", f["resource_version"])]


def _processes(f: Figures) -> Iterator[tuple[str, str]]:
    """Who has it open, what each has popped, and what it has in flight: those whom we may see,
    and those who write."""
    work = {worker["pid"]: worker for worker in f["workers"]}
    commands = dict.fromkeys(work, "-") | {p["pid"]: Process(**p).short for p in f["processes"]}
    for pid, command in sorted(commands.items()):
        counts = [
            f"{number(work[pid][what])} {what.replace('_', ' ')}"
            for what in ("pops", "in_flight")
            if pid in work and work[pid][what]
        ]
        yield f"  {pid}", "  ".join([command, *filter(None, [", ".join(counts)])])


def _history(f: Figures) -> Iterator[tuple[str, str]]:
    yield "version", number(f["version"])
    yield from ((counter, number(f[counter])) for counter in ("writes", "deletes"))
    if f["kind"] in ("FIFO", "WorkQueue"):
        yield "pops", number(f["pops"])
        if f["kind"] == "WorkQueue":
            yield "delayed", number(f["delayed"])
        yield "in flight", number(f["in_flight"])
        yield "dead letters", number(f["dead_letters"])
    yield "reads", f"{number(f['reads'])}, of which {number(f['read_misses'])} had to decode"
    repairs = number(f["repairs"])
    if f["repairs"]:
        repairs += f", the last took {f['last_repair_ns'] / 1e6:.1f} ms"
    yield "repairs", repairs


def _waiting(f: Figures) -> str:
    age = f["oldest_age"]
    return "" if age is None else f", the oldest has waited {duration(age)}"


def _reflector(f: Figures) -> Iterator[tuple[str, str]]:
    r = f["reflector"]
    yield "name", f"{r['name']}, process {r['pid']}{'' if r['alive'] else ' (gone)'}"
    yield "state", r["state"]
    for what, age in (
        ("last report", "heartbeat_age"),
        ("last answer", "contact_age"),
        ("last event", "event_age"),
    ):
        yield what, "never" if r[age] is None else f"{duration(r[age])} ago"
    yield "resource version", f["resource_version"] or "-"
    yield "synced", "yes" if f["has_synced"] else "not yet"
    yield (
        "so far",
        ", ".join(
            f"{what} {number(r[what])}"
            for what in ("lists", "watches", "events", "dropped", "errors")
        ),
    )
    if r["last_error"]:
        yield "last error", f"{duration(r['last_error_age'] or 0.0)} ago: {r['last_error']}"
