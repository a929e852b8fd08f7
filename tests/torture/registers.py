"""Reads of the stores, judged as reads of registers with one writer each."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.torture import payload
from tests.torture.history import Operation
from tests.torture.verdict import Violation

__all__ = ["judge_list", "judge_table", "judge_versions"]

_ABSENT = "absent"

Histories = Mapping[str, Sequence[Operation]]


class Write(NamedTuple):
    """``end`` is infinite if the write was cut off."""

    start: float
    end: float
    value: str


class Read(NamedTuple):
    start: float
    end: float
    value: str
    who: str


def judge_table(by_name: Histories) -> Iterator[Violation]:
    """Each key of the table, as seen by ``get`` and as seen by ``list``."""
    writes: dict[str, list[Write]] = defaultdict(list)
    for o in sorted([*by_name["put"], *by_name["drop"]], key=lambda o: o.start):
        for name in o.arguments:
            key, _, version = name.partition(":")
            value = version if o.name == "put" else _ABSENT
            writes[key].append(Write(o.start, _over(o), value))
    got: dict[str, list[Read]] = defaultdict(list)
    for o in by_name["get"]:
        if o.end is not None and o.results != ("torn",):
            key, _, value = o.results[0].partition(":")
            got[key].append(Read(o.start, o.end, value, o.who))
    listed: dict[str, list[Read]] = defaultdict(list)
    for o in by_name["table"]:
        if o.end is not None and "torn" not in o.results:
            seen = dict(name.split(":") for name in o.results)
            for key in writes.keys() | seen.keys():
                listed[key].append(Read(o.start, o.end, seen.get(key, _ABSENT), o.who))
    for key in writes.keys() | got.keys() | listed.keys():
        yield from _register(f"{key} by get", _ABSENT, writes[key], got[key])
        yield from _register(f"{key} by list", _ABSENT, writes[key], listed[key])


def judge_list(by_name: Histories) -> Iterator[Violation]:
    """The whole content of the list, and its resource version."""
    contents = _contents(by_name)
    once = {write.value for write in contents} | {"0"}
    reads = []
    for o in by_name["list"]:
        if o.end is None:
            continue
        digest, torn, *generations = o.results
        if torn != "0":
            continue
        if len(generations) > 1:
            yield Violation("mixed", f"{o.who} saw generations {' and '.join(generations)} at once")
        elif digest not in once:
            yield Violation("mixed", f"{o.who} saw a content that never was, of {generations}")
        else:
            reads.append(Read(o.start, o.end, digest, o.who))
    yield from _register("the list", "0", contents, reads)
    versions = [Write(o.start, _over(o), o.arguments[0]) for o in by_name["replace"]]
    reads = [
        Read(o.start, o.end, o.results[0], o.who)
        for o in by_name["resource_version"]
        if o.end is not None
    ]
    yield from _register("the resource version", "0", sorted(versions), reads)


def _contents(by_name: Histories) -> list[Write]:
    """The digest of the list after each operation of the replacer."""
    contents = []
    now: dict[str, int] = {}
    digest = 0
    for o in sorted([*by_name["replace"], *by_name["event"]], key=lambda o: o.start):
        if o.name == "replace":
            now = payload.content(int(o.arguments[0]))
            digest = payload.digest(f"{key}:{version}" for key, version in now.items())
        else:
            key, version = payload.event(int(o.arguments[0]), int(o.arguments[1]))
            if key in now:
                digest -= payload.digest([f"{key}:{now.pop(key)}"])
            if version is not None:
                now[key] = version
                digest += payload.digest([f"{key}:{version}"])
        contents.append(Write(o.start, _over(o), str(digest)))
    return contents


def judge_versions(by_name: Histories) -> Iterator[Violation]:
    """``version``, of each arena: who looks after another has looked sees no smaller one."""
    reads: dict[str, list[Read]] = defaultdict(list)
    for o in by_name["version"]:
        if o.end is not None:
            reads[o.results[0]].append(Read(o.start, o.end, o.results[1], o.who))
    for arena, of_arena in reads.items():
        over: list[tuple[float, int]] = []
        least = 0
        for read in sorted(of_arena):
            while over and over[0][0] < read.start:
                least = max(least, heapq.heappop(over)[1])
            if int(read.value) < least:
                text = f"{read.who} read version {read.value} of the {arena} after {least}"
                yield Violation("stale", text)
            heapq.heappush(over, (read.end, int(read.value)))


def _register(
    what: str, before: str, later: Sequence[Write], reads: Iterable[Read]
) -> Iterator[Violation]:
    """Whether each read fits the writes, which are in their order; the first found ``before``."""
    writes = [Write(-math.inf, -math.inf, before), *later]
    ends = sorted((write.end, at) for at, write in enumerate(writes))
    forced = 0  # the write that reads from now on see, or a later one
    completed = 0  # of ``ends``
    seen: list[tuple[float, int]] = []  # the end of a read and what it saw, a heap
    for read in sorted(reads):
        while completed < len(ends) and ends[completed][0] < read.start:
            forced = max(forced, ends[completed][1])
            completed += 1
        while seen and seen[0][0] < read.start:
            forced = max(forced, heapq.heappop(seen)[1])
        at = forced
        while at < len(writes) and writes[at].start < read.end and writes[at].value != read.value:
            at += 1
        if at < len(writes) and writes[at].start < read.end:
            # The first that fits: it asks the least of the reads that follow.
            heapq.heappush(seen, (read.end, at))
        else:
            text = f"{read.who} read {what} as {read.value}, when it was {writes[forced].value}"
            yield Violation("stale", f"{text} or later ({read.start} to {read.end})")


def _over(operation: Operation) -> float:
    return math.inf if operation.end is None else operation.end
