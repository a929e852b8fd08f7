"""The keys of a WorkQueue, and what is with each.

May import: the facade, ``cli._failure``, ``cli._output``, ``cli._selection``.
"""

from __future__ import annotations

from typing import Any

from shmcache import WorkQueue
from shmcache.cli._failure import Failure
from shmcache.cli._output import Column, duration, number
from shmcache.cli._selection import Selection

__all__ = ["COLUMNS", "work"]

COLUMNS = (
    Column("key"),
    Column("state"),
    Column("due", text=duration, right=True),
    Column("failures", text=number, right=True),
    Column("pid", right=True),
)


def work(queue: WorkQueue, selection: Selection) -> list[dict[str, Any]]:
    """A record for each state that each key is in, by key: what a table, or JSON, has of it.

    ``due`` are seconds, of what is delayed; ``pid`` is that of the worker that has the key.
    """
    if selection.labels is not None or selection.fields is not None:
        raise Failure(
            f"arena {queue.name!r} is a WorkQueue, whose keys have no labels or fields to select "
            "by: use --prefix",
            2,
        )
    found = [_record(key, "queued", failures=queue.num_requeues(key)) for key in queue.queued()]
    found += [
        _record(one.key, "in flight", failures=one.attempt - 1, pid=one.pid)
        for one in queue.in_flight()
    ]
    found += [
        _record(one.key, "delayed", failures=one.failures, due=one.seconds)
        for one in queue.delayed()
    ]
    found += [_record(one.key, "dead", failures=one.attempts) for one in queue.dead_letters()]
    return sorted(
        (record for record in found if selection.wants_key(record["key"])),
        key=lambda record: record["key"],
    )


def _record(
    key: str, state: str, *, failures: int, due: float | None = None, pid: int | None = None
) -> dict[str, Any]:
    return {"key": key, "state": state, "due": due, "failures": failures, "pid": pid}
