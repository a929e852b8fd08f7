"""What a workload is, how large it is, and what several of them need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench import pods
from bench.rivals import RIVALS
from shmcache import Store

__all__ = [
    "ENTERED",
    "FULL",
    "QUICK",
    "TINY",
    "Measure",
    "Pair",
    "Scale",
    "Workload",
    "in_turns",
    "limit",
    "peer_of",
    "raw_entry",
    "raw_items",
    "raw_key",
    "stored",
    "three_fields",
    "workload",
]

Measure: TypeAlias = Callable[[], float]
Pair: TypeAlias = tuple[Measure, Measure]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    name: str
    rounds: int
    seconds: float
    """Of one round of one side, about."""
    keys: int
    """Pods in a store."""
    entries: int
    """In a big list and for `replace`."""
    growth: int
    """The large store of the rows of growth, beside 1,000."""
    events: int
    """Of a watch."""
    workers: int
    worker_pods: int
    where: Path = Path("/dev/shm")
    """For the files of this row; the runner gives each row a folder."""


TINY = Scale("tiny", 1, 0.002, 20, 200, 2_000, 20, 1, 20)
QUICK = Scale("quick", 3, 0.08, 5_000, 10_000, 100_000, 500, 2, 2_000)
FULL = Scale("full", 7, 0.4, 5_000, 100_000, 1_000_000, 3_000, 8, 20_000)


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload, and the most that its ratio to each rival may be (None: just to know)."""

    name: str
    group: str
    meaning: str
    rivals: Mapping[str, float | None]
    prepare: Callable[[Scale, str], AbstractContextManager[Pair]]
    unit: str = "µs"
    once: bool = False
    """One round is enough: it is long, or not a time."""


ENTERED: dict[str, Workload] = {}


def workload(
    name: str,
    group: str,
    meaning: str,
    rivals: Mapping[str, float | None],
    unit: str = "µs",
    once: bool = False,
    **options: Any,
) -> Callable[[Callable[..., Iterator[Pair]]], Callable[..., Iterator[Pair]]]:
    """Enter a generator function under that name; `options` are its further arguments.

    Of several on one function the lowest is entered first.
    """

    def enter(function: Callable[..., Iterator[Pair]]) -> Callable[..., Iterator[Pair]]:
        def prepare(scale: Scale, rival: str) -> AbstractContextManager[Pair]:
            return contextmanager(function)(scale, rival, **options)

        ENTERED[name] = Workload(name, group, meaning, rivals, prepare, unit, once)
        return function

    return enter


def limit(bound: float) -> Measure:
    """The rival of a row whose target is a figure."""
    return lambda: bound


@contextmanager
def stored(objects: list[dict[str, Any]]) -> Iterator[Store]:
    """A store of these, as a user makes it."""
    with Store.create() as store:
        store.unlink()
        store.replace(objects)
        yield store


@contextmanager
def peer_of(scale: Scale, rival: str, objects: list[dict[str, Any]]) -> Iterator[Any]:
    """The rival, filled with these: as they are if it keeps objects, else as msgpack."""
    with RIVALS[rival].open(scale.where) as peer:
        packed = pods.payloads(objects)
        peer.fill(dict(zip(packed, objects, strict=True)) if peer.objects else packed)
        yield peer


def three_fields() -> Any:
    """Three fields of a pod, as a worker of a scheduler wants them."""
    import msgspec

    name = msgspec.defstruct("Metadata", [("name", str), ("namespace", str)], frozen=True)
    spec = msgspec.defstruct("Spec", [("nodeName", str, "")], frozen=True)
    return msgspec.defstruct("Pod", [("metadata", name), ("spec", spec)], frozen=True)


def raw_entry(number: int, revision: int, size: int) -> bytes:
    """An entry whose key is its first 16 bytes."""
    return b"%016d%08d" % (number, revision) + b"x" * (size - 24)


def raw_key(entry: bytes) -> str:
    return entry[:16].decode()


def raw_items(count: int) -> list[bytes]:
    return [raw_entry(number, 1, 64) for number in range(count)]


def in_turns(call: Callable[[Any], Any], arguments: list[Any]) -> Measure:
    """Milliseconds of a call with one of the arguments, each time another.

    Each has a call before the first that counts, so that the memory it needs is there.
    """
    for argument in arguments:
        call(argument)
    turn = [0]

    def measure() -> float:
        argument = arguments[turn[0] % len(arguments)]
        turn[0] += 1
        begin = time.perf_counter()
        call(argument)
        return (time.perf_counter() - begin) * 1e3

    return measure
