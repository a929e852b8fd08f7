"""The details of one arena as lines of text: totals, workers, reflector.

May import: the public names of ``shmcache``, ``cli._columns``, ``cli._sample``.
"""

from __future__ import annotations

from shmcache import ReflectorStatus
from shmcache.cli._columns import age, count, liveliness, printable, rate, size
from shmcache.cli._sample import Sample, Worker

__all__ = ["details"]

# What a line says, and how it is to be coloured: as health() says it, or "title".
Line = tuple[str, str]


def details(sample: Sample) -> list[Line]:
    """What there is to say of an arena beyond its row."""
    lines = _heading(sample)
    if sample.problem:
        return [*lines, ("", ""), (printable(sample.problem), "bad")]
    lines += _figures(sample)
    lines += _workers(sample.workers)
    return lines + _reflector(sample.reflector)


def _heading(sample: Sample) -> list[Line]:
    about = [sample.kind, f"codec {sample.codec}", f"of {sample.owner}"]
    return [(sample.name, "title"), ("  ".join(filter(None, about)), "")]


def _figures(sample: Sample) -> list[Line]:
    stats = sample.stats
    if stats is None:
        return []
    lines = [
        "",
        f"entries {stats.entries:,}   attached {stats.attached:,}   repairs {stats.repairs:,}",
        f"used {size(stats.used_bytes)}   memory {size(stats.committed_bytes)} of "
        f"{size(stats.capacity_bytes)}   free in it {size(stats.free_bytes)} "
        f"in {stats.free_blocks:,} blocks",
    ]
    if sample.queued is not None:
        lines.append(f"waiting {sample.queued:,}   the oldest for {age(stats.oldest_age)}")
        delayed = f"delayed {stats.delayed:,}   " if stats.kind == "WorkQueue" else ""
        lines.append(
            f"{delayed}in flight {stats.in_flight:,}   dead letters {stats.dead_letters:,}"
        )
    lines += ["", f"{'':<14}{'now/s':>8}{'mean/s':>8}{'in all':>18}"]
    for title, field in _COUNTS[: len(_COUNTS) if sample.queued is not None else -1]:
        now, mean = getattr(sample.rates, field), getattr(sample.means, field)
        lines.append(f"{title:<14}{rate(now):>8}{rate(mean):>8}{getattr(stats, field):>18,}")
    return [(line, "") for line in lines]


_COUNTS = (
    ("reads", "reads"),
    ("  decoded", "read_misses"),
    ("writes", "writes"),
    ("deletes", "deletes"),
    ("pops", "pops"),
)


def _workers(workers: tuple[Worker, ...]) -> list[Line]:
    if not workers:
        return [("", ""), ("no living process has written or popped", "")]
    lines = [
        "",
        f"{'WORKER':>8}  {'POP/s':>6}  {'MEAN/s':>6}  {'POPS':>12}  {'IN FLIGHT':>9}  COMMAND",
    ]
    for worker in workers:
        command = printable(worker.command) or "(not to be seen from here)"
        lines.append(
            f"{worker.pid:>8}  {rate(worker.pops_per_second):>6}  "
            f"{rate(worker.mean_pops_per_second):>6}  {worker.pops:>12,}  "
            f"{count(worker.in_flight):>9}  {command}"
        )
    return [(line, "") for line in lines]


def _reflector(status: ReflectorStatus | None) -> list[Line]:
    if status is None:
        return [("", ""), ("no reflector", "")]
    if status.alive:
        where = f"process {status.pid}, {status.state}"
    elif status.state == "stopped":
        where = f"process {status.pid}, stopped"
    else:
        where = f"process {status.pid} died while {status.state}"
    lines = [
        ("", ""),
        (f"reflector {printable(status.name)}: {where}", liveliness(status)),
        (
            f"heartbeat {age(status.heartbeat_age)} ago   source answered "
            f"{age(status.contact_age)} ago   event {age(status.event_age)} ago",
            "",
        ),
        (
            f"lists {status.lists:,}   watches {status.watches:,}   events {status.events:,}   "
            f"dropped {status.dropped:,}   errors {status.errors:,}",
            "",
        ),
        (f"resource version {printable(status.resource_version) or '-'}", ""),
    ]
    if status.last_error:
        said = f"last error, {age(status.last_error_age)} ago: {printable(status.last_error)}"
        lines.append((said, "warn"))
    return lines
