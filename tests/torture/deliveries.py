"""What became of the items of the queue."""

from __future__ import annotations

import bisect
import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.torture.history import Operation
from tests.torture.verdict import Verdict, Violation

__all__ = ["judge_queue"]

Histories = Mapping[str, Sequence[Operation]]


@dataclass(slots=True, eq=False)
class Item:
    """One key and version that a producer added, or began to add."""

    name: str
    producer: str
    add: Operation
    place: int  # in its add
    pops: list[Pop] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.name.partition(":")[0]

    @property
    def is_hot(self) -> bool:
        """Whether its key is used again and again."""
        return self.name.startswith("h")

    @property
    def rank(self) -> tuple[int, int]:
        """The order of the items of one producer."""
        return self.add.start, self.place

    @property
    def added(self) -> float:
        return math.inf if self.add.end is None else self.add.end


class Pop(NamedTuple):
    """A delivery. ``end`` is of the pop; ``place`` in what it took."""

    start: int
    end: int
    place: int
    item: Item
    who: str


def judge_queue(by_name: Histories, verdict: Verdict) -> None:
    """Every item's fate, and every look at the queue."""
    items = {
        name: Item(name, o.who.partition(".")[0], o, place)
        for o in by_name["add"]
        for place, name in enumerate(o.arguments)
    }
    pops = []
    for o in by_name["pop"]:
        for place, name in enumerate(o.results):
            if o.end is None or name == "torn":
                continue
            verdict.deliveries += 1
            if name not in items or o.end < items[name].add.start:
                text = f"{o.who} was given {name}, which nobody had added"
                verdict.violations.append(Violation("unknown", text))
            else:
                pops.append(Pop(o.start, o.end, place, items[name], o.who))
    pops.sort(key=lambda pop: pop[:3])
    for pop in pops:
        pop.item.pops.append(pop)
    deletes = {o.arguments[0]: o for o in by_name["delete"]}
    verdict.violations += _duplicates(items.values())
    verdict.violations += _undead(pops, deletes)
    verdict.violations += _order(pops)
    verdict.violations += _stale_deliveries(items.values(), pops)
    for look in by_name["queue"]:
        verdict.violations += _look(look, items, deletes)
    verdict.violations += _overlooked(by_name["queue"], items.values(), deletes)
    # Without a last look at the queue nobody knows what is still in it.
    last = [o for o in by_name["queue"] if o.who.startswith("inspector")]
    if last:
        left = set(last[0].results)
        for name in last[0].results:
            text = f"{name} was still in the queue after the consumers had emptied it"
            verdict.violations.append(Violation("loss", text))
        missing = [i for i in _missing(items.values(), deletes) if i.name not in left]
        _account(missing, items.values(), by_name, verdict)


def _duplicates(items: Iterable[Item]) -> Iterator[Violation]:
    for item in items:
        if len(item.pops) > 1:
            who = " and ".join(pop.who for pop in item.pops)
            yield Violation("duplicate", f"{item.name} was delivered to {who}")


def _undead(pops: Iterable[Pop], deletes: Mapping[str, Operation]) -> Iterator[Violation]:
    for pop in pops:
        delete = deletes.get(pop.item.key)
        if delete and delete.end is not None and delete.end < pop.start:
            yield Violation("unknown", f"{pop.who} was given {pop.item.name} after its deletion")


# --- order --------------------------------------------------------------------------------------


def _order(pops: Sequence[Pop]) -> Iterator[Violation]:
    fresh = [pop for pop in pops if not pop.item.is_hot]
    # Adds of one producer follow each other; of two, where one was over before the other began.
    yield from _overtaken(fresh, lambda item: item.add.start, lambda item: item.added)
    by_source: dict[str, list[Pop]] = defaultdict(list)
    for pop in pops:
        by_source[pop.item.key if pop.item.is_hot else pop.item.producer].append(pop)
    for of_source in by_source.values():
        yield from _overtaken(of_source, lambda item: item.rank, lambda item: item.rank)


def _overtaken(
    pops: Sequence[Pop], begun: Callable[[Item], Any], over: Callable[[Item], Any]
) -> Iterator[Violation]:
    """Items popped after one whose add began when theirs was over."""
    before: list[tuple[int, Any, str]] = []  # (end of a pop, begun, name), a heap
    latest: tuple[Any, str] | None = None  # of those that were over
    in_pop: tuple[Any, str] | None = None  # of those in the same pop
    last = None
    for pop in pops:
        while before and before[0][0] < pop.start:
            _, *found = heapq.heappop(before)
            latest = max(latest or tuple(found), tuple(found))
        if last is None or (last.who, last.start) != (pop.who, pop.start):
            in_pop = None
        last = pop
        for earlier in (latest, in_pop):
            if earlier is not None and earlier[0] > over(pop.item):
                text = f"{pop.who} was given {pop.item.name} after the later {earlier[1]}"
                yield Violation("order", text)
                break
        mine = (begun(pop.item), pop.item.name)
        in_pop = max(in_pop or mine, mine)
        heapq.heappush(before, (pop.end, *mine))


def _stale_deliveries(items: Iterable[Item], pops: Iterable[Pop]) -> Iterator[Violation]:
    """Hot items delivered in a version when a newer one had been put in their place."""
    added: dict[str, list[tuple[float, tuple[int, int], str]]] = defaultdict(list)
    for item in items:
        if item.is_hot and item.add.end is not None:
            added[item.key].append((item.added, item.rank, item.name))
    for of_key in added.values():
        of_key.sort()
    for pop in pops:
        at = bisect.bisect_left(added[pop.item.key], (pop.start,)) - 1
        if at >= 0 and added[pop.item.key][at][1] > pop.item.rank:
            newer = added[pop.item.key][at][2]
            text = f"{pop.who} was given {pop.item.name} when it was {newer}"
            yield Violation("stale", text)


# --- looks --------------------------------------------------------------------------------------


def _look(
    look: Operation, items: Mapping[str, Item], deletes: Mapping[str, Operation]
) -> Iterator[Violation]:
    """What one look at the queue shows: only what is there, oldest first."""
    latest: dict[str, tuple[int, int]] = {}
    for name in look.results:
        if name == "torn":
            continue
        if name not in items:
            yield Violation("unknown", f"{look.who} saw {name} queued, which nobody had added")
            continue
        item = items[name]
        gone = [pop.end for pop in item.pops]
        if not item.is_hot and (delete := deletes.get(item.key)) and delete.end is not None:
            gone.append(delete.end)
        if any(end < look.start for end in gone):
            yield Violation("stale", f"{look.who} saw {name} queued after it had gone")
        if not item.is_hot:
            if latest.get(item.producer, item.rank) > item.rank:
                yield Violation("order", f"{look.who} saw {name} queued behind a later one")
            latest[item.producer] = item.rank


def _overlooked(
    looks: Iterable[Operation], items: Iterable[Item], deletes: Mapping[str, Operation]
) -> Iterator[Violation]:
    """Items that were queued all through a look, which did not show them."""
    arrivals, departures = [], []
    for item in items:
        if item.is_hot or item.key in deletes or not item.pops:
            continue
        if item.added < item.pops[0].start:
            arrivals.append((item.added, item))
            departures.append((item.pops[0].start, item))
    arrivals.sort(key=lambda event: event[0], reverse=True)
    departures.sort(key=lambda event: event[0], reverse=True)
    queued: set[Item] = set()
    for look in sorted(looks, key=lambda look: look.start):
        while arrivals and arrivals[-1][0] < look.start:
            queued.add(arrivals.pop()[1])
        while departures and departures[-1][0] <= look.start:
            queued.discard(departures.pop()[1])
        seen = set(look.results)
        for item in queued:
            if look.end is not None and item.pops[0].start > look.end and item.name not in seen:
                yield Violation("stale", f"{look.who} did not see {item.name}, which was queued")


# --- losses -------------------------------------------------------------------------------------


def _missing(items: Iterable[Item], deletes: Mapping[str, Operation]) -> Iterator[Item]:
    """Items that should have been delivered, and were not."""
    by_add: dict[int, list[Item]] = defaultdict(list)
    by_key: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.is_hot:
            by_key[item.key].append(item)
        else:
            by_add[id(item.add)].append(item)
    for together in by_add.values():
        # Of an add that was cut off, those before one that did arrive.
        due = len(together)
        if together[0].add.end is None:
            due = max((item.place for item in together if item.pops), default=0)
        for item in together[:due]:
            if not item.pops and item.key not in deletes:
                yield item
    for versions in by_key.values():
        versions.sort(key=lambda item: item.rank)
        completed = [item for item in versions if item.add.end is not None]
        if completed:
            last = completed[-1]
            if not any(item.pops for item in versions if item.rank >= last.rank):
                yield last


class Cut(NamedTuple):
    """A pop whose consumer was killed in it: it may have taken up to ``most`` items."""

    start: int
    death: float
    most: int
    who: str


def _account(
    missing: Sequence[Item], items: Iterable[Item], by_name: Histories, verdict: Verdict
) -> None:
    """Find for each missing item a pop that took it to the grave, or call it a loss."""
    deaths = {o.arguments[0]: o.end for o in by_name["kill"]}
    cuts = [
        Cut(o.start, deaths.get(o.who) or math.inf, int(o.arguments[0]), o.who)
        for o in by_name["pop"]
        if o.end is None
    ]
    windows = _windows(missing, items)
    fitting = [
        [c for c, cut in enumerate(cuts) if cut.death >= earliest and cut.start <= latest]
        for earliest, latest in windows
    ]
    taken: dict[int, list[int]] = defaultdict(list)  # cut to places in `missing`

    def place(m: int, tried: set[int]) -> bool:
        """Kuhn's algorithm: move others to where else they fit, if need be."""
        for c in fitting[m]:
            if c in tried:
                continue
            tried.add(c)
            if len(taken[c]) < cuts[c].most:
                taken[c].append(m)
                return True
            for i, other in enumerate(taken[c]):
                if place(other, tried):
                    taken[c][i] = m
                    return True
        return False

    for m, item in enumerate(missing):
        if not place(m, set()):
            text = f"{item.name} of {item.producer} was never delivered, and no killed pop fits"
            verdict.violations.append(Violation("loss", text))
    for c, lost in taken.items():
        for m in lost:
            verdict.lost.append(
                f"{missing[m].name} of {missing[m].producer}, with {cuts[c].who} in a pop of up to "
                f"{cuts[c].most} begun at {cuts[c].start}"
            )


def _windows(missing: Sequence[Item], items: Iterable[Item]) -> list[tuple[float, float]]:
    """Between which times each was taken. The queue keeps the order of each producer, so it was
    after the start of each pop of an earlier item of the same, and before the end of each of a
    later one."""
    by_producer: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.rank):
        if not item.is_hot:
            by_producer[item.producer].append(item)
    earliest: dict[str, float] = {}
    latest: dict[str, float] = {}
    for of_producer in by_producer.values():
        start = -math.inf
        for item in of_producer:
            earliest[item.name] = max(start, item.add.start)
            start = max([start, *(pop.start for pop in item.pops)])
        end = math.inf
        for item in reversed(of_producer):
            latest[item.name] = end
            end = min([end, *(pop.end for pop in item.pops)])
    return [
        (earliest.get(item.name, item.add.start), latest.get(item.name, math.inf))
        for item in missing
    ]
