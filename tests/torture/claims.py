"""What became of the jobs: items that are claimed, each key by one worker at a time.

A worker has a job for certain from the return of its claim until it begins to end that, until it
is killed, or until the lease is over that it asked for, whichever is first.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.torture.history import Operation
from tests.torture.verdict import Verdict, Violation

__all__ = ["MAX_ATTEMPTS", "judge_claims"]

MAX_ATTEMPTS = 3

_ENDS = ("done", "fail", "release")
_MS = 1_000_000  # nanoseconds

Histories = Mapping[str, Sequence[Operation]]


@dataclass(slots=True)
class Handling:
    """One claim. ``until``: as long as that the worker had it for certain."""

    claim: Operation
    until: float
    end: Operation | None

    @property
    def name(self) -> str:
        return self.claim.results[0]

    @property
    def key(self) -> str:
        return self.name.partition(":")[0]

    @property
    def attempt(self) -> int:
        return int(self.claim.results[1])

    @property
    def begin(self) -> int:
        assert self.claim.end is not None
        return self.claim.end

    @property
    def is_done(self) -> bool:
        """Perhaps only: its worker may have been killed in the act."""
        return self.end is not None and self.end.name == "done" and self.end.results != ("no",)


def judge_claims(by_name: Histories, verdict: Verdict) -> None:
    """Who had each job, and what became of it."""
    adds = {name: o for o in by_name["job"] for name in o.arguments}
    deletes = {o.arguments[0]: o for o in by_name["unjob"]}
    handlings = []
    for handling, violations in _handlings(by_name):
        verdict.violations += violations
        handlings.append(handling)
    verdict.claims = len(handlings)
    verdict.given_back = sum(not handling.is_done for handling in handlings)
    verdict.violations += _shared(handlings)
    verdict.violations += _undue(handlings, adds, deletes)
    for look in by_name["held"]:
        verdict.violations += _look(look, adds)
    # Without a last look at the queue nobody knows what is still in it.
    last = {
        name: set(o.results)
        for name in ("jobs", "held", "dead")
        for o in by_name[name]
        if o.who.startswith("inspector")
    }
    if len(last) == 3:
        for name in sorted(last["jobs"] | last["held"]):
            text = f"{name} was still there after the claimers had emptied the queue of jobs"
            verdict.violations.append(Violation("loss", text))
        verdict.dead_letters = len(last["dead"])
        cut_off = sum(o.end is None for o in by_name["claim"])
        verdict.violations += _dead_too_soon(last["dead"], handlings, cut_off)
        settled = {h.name for h in handlings if h.is_done}.union(*last.values())
        verdict.violations += _lost(adds, deletes, settled)


def _handlings(by_name: Histories) -> Iterator[tuple[Handling, list[Violation]]]:
    """Each claim that gave a job, and what was wrong with its end."""
    deaths = {o.arguments[0]: o.start for name in ("kill", "died") for o in by_name[name]}
    by_worker: dict[str, list[Operation]] = defaultdict(list)
    for name in ("claim", "renew", *_ENDS):
        for o in by_name[name]:
            by_worker[o.who].append(o)
    for who, operations in by_worker.items():
        operations.sort(key=lambda o: o.start)
        claims = [i for i, o in enumerate(operations) if o.name == "claim"]
        for first, after in itertools.pairwise([*claims, len(operations)]):
            claim, *rest = operations[first:after]
            if claim.results and claim.results[0] != "torn":
                yield _handling(claim, rest, deaths.get(who, math.inf))


def _handling(
    claim: Operation, rest: Sequence[Operation], death: float
) -> tuple[Handling, list[Violation]]:
    violations = []
    lease = claim.arguments[0]
    until = claim.start + int(lease) * _MS if lease != "0" else math.inf
    end = None
    for o in rest:
        # What is over may have been taken away; what is not may not.
        if o.results == ("no",) and o.end is not None and o.end < until:
            text = f"{o.who} had {claim.results[0]} taken away while it was at work"
            violations.append(Violation("taken", text))
        if o.name == "renew" and o.results == ("yes",):
            until = o.start + int(o.arguments[0]) * _MS
        else:
            until = min(until, o.start)
        if o.name in _ENDS:
            end = o
    return Handling(claim, min(until, death), end), violations


def _shared(handlings: Iterable[Handling]) -> Iterator[Violation]:
    """Keys that two workers had at a time."""
    by_key: dict[str, list[Handling]] = defaultdict(list)
    for handling in handlings:
        if handling.begin < handling.until:  # else it was over before its worker knew of it
            by_key[handling.key].append(handling)
    for of_key in by_key.values():
        of_key.sort(key=lambda handling: handling.begin)
        longest = of_key[0]
        for handling in of_key[1:]:
            if handling.begin < longest.until:
                text = (
                    f"{handling.claim.who} was given {handling.name} while {longest.claim.who} had "
                    f"{longest.name}"
                )
                yield Violation("shared", text)
            longest = max(longest, handling, key=lambda one: one.until)


def _undue(
    handlings: Iterable[Handling],
    adds: Mapping[str, Operation],
    deletes: Mapping[str, Operation],
) -> Iterator[Violation]:
    """What should not have been given to anybody (any more)."""
    handlings = sorted(handlings, key=lambda handling: handling.claim.start)
    versions: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name, add in adds.items():
        if add.end is not None:
            versions[name.partition(":")[0]].append((add.end, add.start, name))
    for of_key in versions.values():
        of_key.sort()
    done: dict[str, int] = {}
    for handling in handlings:
        if handling.is_done and handling.end is not None and handling.end.end is not None:
            done.setdefault(handling.name, handling.end.end)
    for handling in handlings:
        name, who, start = handling.name, handling.claim.who, handling.claim.start
        if name not in adds or handling.begin < adds[name].start:
            yield Violation("unknown", f"{who} was given {name}, which nobody had added")
            continue
        if done.get(name, math.inf) < start:
            yield Violation("duplicate", f"{who} was given {name} after it was done")
        delete = deletes.get(handling.key)
        if delete and delete.end is not None and delete.end < start:
            yield Violation("unknown", f"{who} was given {name} after its deletion")
        at = bisect.bisect_left(versions[handling.key], (start,)) - 1
        if at >= 0 and versions[handling.key][at][1] > adds[name].start:
            newer = versions[handling.key][at][2]
            yield Violation("stale", f"{who} was given {name} when it was {newer}")
        if not 1 <= handling.attempt <= MAX_ATTEMPTS:
            yield Violation("unknown", f"{who} was given {name} in attempt {handling.attempt}")


def _look(look: Operation, adds: Mapping[str, Operation]) -> Iterator[Violation]:
    keys = [name.partition(":")[0] for name in look.results]
    if len(set(keys)) < len(keys):
        yield Violation("shared", f"{look.who} saw one key in flight twice: {look.results}")
    for name in look.results:
        if name != "torn" and name not in adds:
            yield Violation("unknown", f"{look.who} saw {name} in flight, which nobody had added")


def _dead_too_soon(
    dead: Iterable[str], handlings: Iterable[Handling], cut_off: int
) -> Iterator[Violation]:
    """Dead letters that were not given out often enough. Of a claim that was cut off nobody knows
    which job it gave; a key that is used again hands its failures on."""
    given: dict[str, int] = defaultdict(int)
    for handling in handlings:
        given[handling.key] += 1
    for name in dead:
        key = name.partition(":")[0]
        if given[key] + cut_off < MAX_ATTEMPTS:
            text = f"{name} is a dead letter, and was given out {given[key]} times"
            yield Violation("loss", text)


def _lost(
    adds: Mapping[str, Operation], deletes: Mapping[str, Operation], settled: set[str]
) -> Iterator[Violation]:
    """Jobs that nobody has done, deleted or given up. Of a key that is used again it is the last
    version that counts, or one that was perhaps added after it."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in sorted(adds, key=lambda name: adds[name].start):
        by_key[name.partition(":")[0]].append(name)
    for key, names in by_key.items():
        completed = [name for name in names if adds[name].end is not None]
        if not completed or key in deletes:
            continue
        due = names[names.index(completed[-1]) :]
        if not settled.intersection(due):
            text = f"{due[0]} is neither done nor dead, deleted or queued"
            yield Violation("loss", text)
