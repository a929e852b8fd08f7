"""What the arenas of this machine are doing: totals, and rates between two looks.

A look opens each arena anew and closes it again. So nothing is held between two looks: an arena
that its owner unlinked goes, none counts as in use because somebody watches it, and one that was
made again under the same name is told from the old one by its time of creation.

May import: the public names of ``shmcache``, ``cli._arenas``, ``cli._freshness``, ``cli._held``,
``cli._processes``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import shmcache
from shmcache import ArenaInfo, InvalidNameError, ReflectorStatus, ShmCacheError, Stats, WorkerInfo
from shmcache.cli._arenas import KINDS, UNFINISHED, user_name
from shmcache.cli._freshness import reflector_of
from shmcache.cli._held import in_flight_by_process
from shmcache.cli._processes import command_line

__all__ = ["Look", "Rates", "Sample", "Sampler", "Worker", "compare", "per_second", "short_command"]

_QUEUES = ("FIFO", "WorkQueue")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an arena found. ``stats`` is None where ``problem`` says why."""

    name: str
    kind: str = ""
    """``""`` if it is not a whole arena."""
    codec: str = ""
    owner: str = ""
    """The user to whom the segment belongs."""
    taken: float = 0.0
    """When, by ``time.monotonic()``."""
    problem: str = ""
    stats: Stats | None = None
    reflector: ReflectorStatus | None = None
    workers: tuple[WorkerInfo, ...] = ()
    """One for each handle: a process may have several."""
    in_flight: Mapping[int, int] | None = None
    """Items of a queue that each process has claimed; None where nothing is known."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Events per second, of all processes together; None where nothing is known."""

    reads: float | None = None
    """A process reports its reads 256 at a time, so over one second this comes in steps."""
    read_misses: float | None = None
    writes: float | None = None
    deletes: float | None = None
    pops: float | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """One process that writes to an arena or pops from it."""

    pid: int
    command: str
    """``"python worker.py"``; ``""`` if the process cannot be seen from here."""
    pops: int
    pops_per_second: float | None
    mean_pops_per_second: float | None
    in_flight: int | None
    """Items that it has claimed; None of what is no queue."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One arena at one moment, beside the moments before.

    ``stats`` is None where ``problem`` says why the arena cannot be looked into.
    """

    name: str
    kind: str
    codec: str
    owner: str
    problem: str
    stats: Stats | None
    """The totals. ``attached`` is without the handle that looked."""
    queued: int | None
    """Items that wait in a FIFO or WorkQueue; None of other kinds."""
    rates: Rates
    """Since the look before."""
    means: Rates
    """Since the first look, or since :meth:`Sampler.reset`."""
    workers: tuple[Worker, ...]
    """By process, the busiest first."""
    reflector: ReflectorStatus | None
    """None if the arena never had one."""


class Sampler:
    """Looks at all arenas, or at those that ``names`` says, and compares with its last look.

    >>> with shmcache.Store.create("an-arena", capacity="1MiB") as store:
    ...     sampler = Sampler(["an-arena"])
    ...     store.unlink()
    ...     sampler.take()[0].stats is None
    True
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._last: dict[str, Look] = {}
        self._first: dict[str, Look] = {}

    def take(self) -> tuple[Sample, ...]:
        """Look now; by name. A name that was asked for and has no arena is there too.

        Raises :class:`~shmcache.InvalidNameError` for a name that no arena can have.
        """
        infos: dict[str, ArenaInfo | None] = {info.name: info for info in shmcache.list_arenas()}
        if self._names:
            infos = {name: infos.get(name) for name in sorted(self._names)}
        looks = {name: _look(name, info) for name, info in infos.items()}
        # Of the arenas that are gone nothing is kept.
        first = {
            name: self._first[name] if _same(self._first.get(name), look) else look
            for name, look in looks.items()
        }
        samples = tuple(
            compare(look, self._last.get(name), first[name]) for name, look in looks.items()
        )
        self._first, self._last = first, looks
        return samples

    def reset(self) -> None:
        """Let the means begin with the last look."""
        self._first = dict(self._last)


def compare(look: Look, before: Look | None, first: Look | None) -> Sample:
    """What ``look`` found, with the rates since ``before`` and the means since ``first``.

    An earlier look at another arena of the same name counts as none.
    """
    before = before if _same(before, look) else None
    first = first if _same(first, look) else None
    stats = look.stats
    return Sample(
        name=look.name,
        kind=look.kind,
        codec=look.codec,
        owner=look.owner,
        problem=look.problem,
        stats=stats,
        queued=stats.entries if stats is not None and stats.kind in _QUEUES else None,
        rates=_rates(before, look),
        means=_rates(first, look),
        workers=_workers(look, before, first),
        reflector=look.reflector,
    )


def per_second(before: int, now: int, seconds: float) -> float | None:
    """The rate of a count that was ``before`` and is ``now``; None if there is none.

    A count that went back is of something else by now.

    >>> per_second(10, 40, 2.0), per_second(40, 10, 2.0)
    (15.0, None)
    """
    if now < before or seconds <= 0:
        return None
    return (now - before) / seconds


def short_command(arguments: Sequence[str]) -> str:
    """What a person calls a process with this command line; options and their secrets stay out.

    >>> short_command(["/usr/bin/python3", "-u", "jobs/worker.py", "--token=x"])
    'python3 worker.py'
    >>> short_command(["python", "-m", "celery", "worker"])
    'python -m celery'
    """
    if not arguments:
        return ""
    if " " in arguments[0]:  # a title that the process gave itself, "gunicorn: worker [web]"
        return arguments[0].strip()
    program = os.path.basename(arguments[0])
    if not program.startswith("python"):
        return program
    for position, argument in enumerate(arguments[1:], 1):
        if argument == "-m":
            return " ".join([program, *arguments[position : position + 2]])
        if argument == "-c":
            return f"{program} -c"
        if not argument.startswith("-"):
            return f"{program} {os.path.basename(argument)}"
    return program


def _same(earlier: Look | None, look: Look) -> bool:
    """Whether both looks were at the same arena, and could see it."""
    if earlier is None or earlier.stats is None or look.stats is None:
        return False
    return earlier.stats.created_unix_ns == look.stats.created_unix_ns


def _rates(earlier: Look | None, look: Look) -> Rates:
    if earlier is None or earlier.stats is None or look.stats is None:
        return Rates()
    then, now, seconds = earlier.stats, look.stats, look.taken - earlier.taken
    return Rates(
        reads=per_second(then.reads, now.reads, seconds),
        read_misses=per_second(then.read_misses, now.read_misses, seconds),
        writes=per_second(then.writes, now.writes, seconds),
        deletes=per_second(then.deletes, now.deletes, seconds),
        pops=per_second(then.pops, now.pops, seconds),
    )


def _workers(look: Look, before: Look | None, first: Look | None) -> tuple[Worker, ...]:
    now = _pops(look)
    recent, mean = _pop_rates(now, before, look), _pop_rates(now, first, look)
    workers = [
        Worker(
            pid,
            short_command(command_line(pid)),
            pops,
            recent[pid],
            mean[pid],
            None if look.in_flight is None else look.in_flight.get(pid, 0),
        )
        for pid, pops in now.items()
    ]
    return tuple(sorted(workers, key=lambda worker: (-worker.pops, worker.pid)))


def _pop_rates(now: dict[int, int], earlier: Look | None, look: Look) -> dict[int, float | None]:
    if earlier is None:
        return dict.fromkeys(now)
    then, seconds = _pops(earlier), look.taken - earlier.taken
    # Who was not there then has popped nothing by then.
    return {pid: per_second(then.get(pid, 0), pops, seconds) for pid, pops in now.items()}


def _pops(look: Look | None) -> dict[int, int]:
    """Pops of each process, all its handles together."""
    pops: dict[int, int] = {}
    for worker in look.workers if look is not None else ():
        pops[worker.pid] = pops.get(worker.pid, 0) + worker.pops
    return pops


def _look(name: str, info: ArenaInfo | None) -> Look:
    found = Look(name, taken=time.monotonic())
    if info is not None:
        kind = info.kind if info.kind in KINDS else ""
        found = replace(found, kind=kind, codec=info.codec, owner=user_name(info.owner_uid))
        if info.kind in UNFINISHED:  # to attach would wait for the creator
            return replace(found, problem=UNFINISHED[info.kind])
    try:
        with shmcache.attach(name) as arena:
            stats, workers, reflector = arena.stats(), arena.workers(), reflector_of(arena)
            in_flight = in_flight_by_process(arena)
    except InvalidNameError:
        raise
    except (ShmCacheError, OSError) as error:
        return replace(found, problem=str(error))
    return replace(
        found,
        kind=stats.kind,
        taken=time.monotonic(),
        stats=replace(stats, attached=max(stats.attached - 1, 0)),
        reflector=reflector if reflector and reflector.name else None,
        workers=tuple(workers),
        in_flight=in_flight,
    )
