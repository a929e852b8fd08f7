"""The processes of the torture: producer, consumer, claimer, reader, replacer, closer, inspector.

Each works until the board tells it to stop (a consumer or claimer: until its queue is shut down),
and writes its history. Whatever raises ends its process with an error in the history: nothing here
expects an exception other than ``queue.Empty``, ``ShutDown`` and ``ClaimLostError``.

Two queues and two stores: the consumers pop from the *queue*, the claimers claim from the *jobs*;
the producers write single keys of the *table*, each its own; the replacer has the *list* for
itself.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty
from typing import Any, TypeVar

from shmcache import FIFO, ClaimLostError, RawCodec, ShutDown, Store
from tests.torture import payload
from tests.torture.history import Recorder, now
from tests.torture.plan import CREW

__all__ = ["CODEC", "ROLES", "Names", "Work"]

CODEC = RawCodec()
T = TypeVar("T")

# Never reached: a stop lasts 50 ms at most. If it is, that is an error of the process.
LOCK_TIMEOUT = 10.0
# A version is life * LIVES + a count, so that each life of a writer goes on above the last.
LIVES = 1_000_000

# Each belongs to one producer; enough that the index of the table grows.
TABLE_KEYS = [f"t{i}" for i in range(600)]
_HOT_KEYS_OF_A_PRODUCER = 4
_FULL_QUEUE = 400
_FULL_JOBS = 60


@dataclass(frozen=True, slots=True)
class Names:
    """The arenas of an epoch."""

    queue: str
    jobs: str
    table: str
    list: str

    def all(self) -> tuple[str, ...]:
        return self.queue, self.jobs, self.table, self.list


@dataclass(frozen=True, slots=True)
class Work:
    """What a process works with. ``life`` counts from 1, one more after each kill."""

    index: int
    life: int
    names: Names
    rng: random.Random
    record: Recorder
    progress: Callable[[], None]
    popping: Callable[[bool], None]
    stopping: Callable[[], bool]

    def begin(self, name: str, *arguments: str) -> None:
        self.record.begin(name, *arguments)

    def end(self, *results: str) -> None:
        self.record.end(*results)
        self.progress()

    def look(self, name: str, read: Callable[[], T], words: Callable[[T], Iterable[str]]) -> None:
        """Read between two looks at the clock, and record what was seen, in ``words``."""
        start = now()
        seen = read()
        end = now()
        self.record.looked(start, end, name, *words(seen))
        self.progress()

    def fifo(self, name: str, writable: bool = True) -> FIFO:
        return FIFO.attach(
            name,
            writable=writable,
            codec=CODEC,
            key_func=payload.key_of,
            lock_timeout=LOCK_TIMEOUT,
        )

    def store(self, name: str, writable: bool) -> Store:
        return Store.attach(
            name,
            writable=writable,
            codec=CODEC,
            key_func=payload.key_of,
            lock_timeout=LOCK_TIMEOUT,
        )


def _size(rng: random.Random) -> int:
    """Mostly small; some take a while to copy, few enough that the GIL is let go."""
    return rng.choices((rng.randrange(200), rng.randrange(8000), 300_000), (300, 60, 1))[0]


def producer(work: Work) -> None:
    """Adds items and jobs under keys of their own, updates hot keys, deletes some; writes a
    table."""
    rng, me, life = work.rng, work.index, work.life
    queue, jobs = work.fifo(work.names.queue), work.fifo(work.names.jobs)
    table = work.store(work.names.table, True)
    count = 0
    recent: deque[str] = deque(maxlen=50)
    recent_jobs: deque[str] = deque(maxlen=20)
    own_keys = TABLE_KEYS[me :: CREW["producer"]]

    def make(key: str) -> tuple[str, bytes]:
        nonlocal count
        count += 1
        version = life * LIVES + count
        return f"{key}:{version}", payload.make(key, version, _size(rng))

    def add_fresh() -> None:
        made = [make(f"p{me}.{life}.{count}") for _ in range(rng.choice((1, 1, 1, 1, 1, 12)))]
        work.begin("add", *(name for name, _ in made))
        objects = [data for _, data in made]
        if len(objects) > 1:
            queue.add_many(objects)
        elif rng.random() < 0.5:
            queue.add(objects[0])
        elif not queue.add_if_not_present(objects[0]):
            raise AssertionError(f"{made[0][0]} was there before it was added")
        work.end()
        recent.extend(payload.key_of(data) for data in objects)

    def update_hot() -> None:
        name, data = make(f"h{me}.{rng.randrange(_HOT_KEYS_OF_A_PRODUCER)}")
        work.begin("add", name)
        queue.update(data)
        work.end()

    def delete_item() -> None:
        if recent:
            key = recent.pop()
            work.begin("delete", key)
            queue.delete_by_key(key)
            work.end()

    def add_jobs() -> None:
        made = [make(f"j{me}.{life}.{count}") for _ in range(rng.choice((1, 1, 1, 5)))]
        work.begin("job", *(name for name, _ in made))
        jobs.add_many(data for _, data in made)
        work.end()
        recent_jobs.extend(payload.key_of(data) for _, data in made)

    def update_hot_job() -> None:
        name, data = make(f"k{me}.{rng.randrange(_HOT_KEYS_OF_A_PRODUCER)}")
        work.begin("job", name)
        jobs.update(data)
        work.end()

    def delete_job() -> None:
        if recent_jobs:
            key = recent_jobs.pop()
            work.begin("unjob", key)
            jobs.delete_by_key(key)
            work.end()

    def own_key() -> str:
        return rng.choice(own_keys)

    def put() -> None:
        name, data = make(own_key())
        work.begin("put", name)
        table.add(data)
        work.end()

    def put_many() -> None:
        made = dict(make(key) for key in {own_key() for _ in range(20)})
        work.begin("put", *made)
        table.add_many(made.values())
        work.end()

    def drop() -> None:
        nonlocal count
        count += 1
        key = own_key()
        work.begin("drop", f"{key}:{life * LIVES + count}")
        table.delete_by_key(key)
        work.end()

    choices = {add_fresh: 10, update_hot: 4, delete_item: 1, put: 7, put_many: 2, drop: 2}
    choices_of_jobs = {add_jobs: 3, update_hot_job: 4, delete_job: 1}
    while not work.stopping():
        for _ in range(rng.randrange(1, 80)):
            if queue.qsize() < _FULL_QUEUE:
                rng.choices(list(choices), list(choices.values()))[0]()
            if rng.random() < 0.3 and jobs.qsize() < _FULL_JOBS:
                rng.choices(list(choices_of_jobs), list(choices_of_jobs.values()))[0]()
        time.sleep(rng.random() * 0.004)  # so that consumers sleep now and then


def consumer(work: Work) -> None:
    """Pops, one or some at a time, with a timeout and without, until the queue is shut down."""
    rng, queue = work.rng, work.fifo(work.names.queue)

    def one() -> list[bytes]:
        return [queue.pop()]

    def one_soon() -> list[bytes]:
        return [queue.pop(timeout=0.01)]

    def one_raw() -> list[bytes]:
        key, data = queue.pop_raw()
        if key != payload.key_of(data):
            raise AssertionError(f"popped {payload.name_of(data)} under the key {key}")
        return [data]

    def some() -> list[bytes]:
        return queue.pop_many(8)

    while True:
        pop = rng.choice((one, one_soon, one_raw, some))
        work.begin("pop", "8" if pop is some else "1")
        work.popping(True)
        try:
            taken = pop()
        except Empty:
            taken = []
        except ShutDown:
            return work.end()
        finally:
            work.popping(False)
        work.end(*map(payload.name_of, taken))


def claimer(work: Work) -> None:
    """Claims jobs until their queue is shut down. Most are done; some fail, are given back or
    forgotten; of the claims with a lease some outlast it, and some ask for more."""
    rng, jobs = work.rng, work.fifo(work.names.jobs)
    while True:
        lease = rng.choice((0, 0, 0, 4, 40))  # milliseconds
        work.begin("claim", str(lease))
        work.popping(True)
        try:
            claim = jobs.claim(rng.choice((None, 0.01)), lease / 1000 or None)
        except Empty:
            work.end()
            continue
        except ShutDown:
            return work.end()
        finally:
            work.popping(False)
        if claim.key != payload.key_of(claim.item):
            raise AssertionError(f"claimed {payload.name_of(claim.item)} under {claim.key}")
        work.end(payload.name_of(claim.item), str(claim.attempt))
        time.sleep(rng.random() * 0.002)
        if lease and rng.random() < 0.3:
            more = rng.choice((4, 40))
            work.begin("renew", str(more))
            work.end(_whether_ours(lambda: claim.renew(more / 1000)))  # noqa: B023 (called at once)
        if lease and rng.random() < 0.2:
            time.sleep(lease / 1000)
        end = rng.choices(("done", "fail", "release"), (15, 3, 1))[0]
        work.begin(end)
        if end == "done":
            work.end(_whether_ours(claim.done))
            continue
        if end == "fail":
            claim.fail()
        elif rng.random() < 0.5:
            claim.release()
        else:
            del claim  # the last reference
        work.end()


def _whether_ours(act: Callable[[], object]) -> str:
    try:
        act()
    except ClaimLostError:
        return "no"
    return "yes"


def _look_at_key(work: Work, store: Store, key: str) -> None:
    def words(data: bytes | None) -> list[str]:
        return [f"{key}:absent" if data is None else payload.name_of(data)]

    work.look("get", lambda: store.get_raw(key), words)


def _look_at_all(work: Work, name: str, arena: Store) -> None:
    work.look(name, arena.list, lambda seen: map(payload.name_of, seen))


def _look_at_list(work: Work, store: Store) -> None:
    """What tells one content from another, instead of all its entries."""

    def words(seen: list[bytes]) -> list[str]:
        names = [payload.name_of(data) for data in seen]
        generations = {
            payload.generation_of(int(name.rpartition(":")[2]))
            for name in names
            if name != "torn" and not name.startswith("steady")
        }
        return [*map(str, (payload.digest(names), names.count("torn"), *sorted(generations)))]

    work.look("list", store.list, words)


def _look_at_held(work: Work, name: str, read: Callable[[], list[Any]]) -> None:
    work.look(name, read, lambda seen: [payload.name_of(one.item) for one in seen])


def _look_at_version(work: Work, name: str, read: Callable[[], int]) -> None:
    work.look("version", read, lambda version: [name, str(version)])


def _look_at_resource_version(work: Work, store: Store) -> None:
    work.look("resource_version", lambda: store.resource_version, lambda text: [text or "0"])


def reader(work: Work) -> None:
    """Reads everything through handles that cannot write."""
    rng = work.rng
    queue = work.fifo(work.names.queue, False)
    jobs = work.fifo(work.names.jobs, False)
    table = work.store(work.names.table, False)
    listed = work.store(work.names.list, False)
    arenas = [("queue", queue), ("jobs", jobs), ("table", table), ("list", listed)]

    def get() -> None:
        _look_at_key(work, table, rng.choice(TABLE_KEYS))

    def version() -> None:
        name, arena = rng.choice(arenas)
        _look_at_version(work, name, lambda: arena.version)

    def wait() -> None:
        name, arena = rng.choice(arenas)
        seen = arena.version
        _look_at_version(work, name, lambda: arena.wait_for_change(seen, 0.005))

    choices: dict[Callable[[], None], int] = {
        get: 60,
        lambda: _look_at_list(work, listed): 20,
        lambda: _look_at_all(work, "table", table): 1,
        lambda: _look_at_all(work, "queue", queue): 4,
        lambda: _look_at_held(work, "held", jobs.in_flight): 4,
        version: 6,
        wait: 2,
        lambda: _look_at_resource_version(work, listed): 6,
    }
    while not work.stopping():
        rng.choices(list(choices), list(choices.values()))[0]()


def replacer(work: Work) -> None:
    """As a reflector: replaces the whole list, then applies single events to it, and again."""
    rng, store = work.rng, work.store(work.names.list, True)
    generation = work.life * LIVES
    while not work.stopping():
        generation += 1
        content = payload.content(generation)
        size = rng.randrange(300)
        # What does not change must be the same bytes each time.
        objects = [
            payload.make(key, version, size if version else 100) for key, version in content.items()
        ]
        work.begin("replace", str(generation))
        store.replace(objects, str(generation))
        work.end()
        for number in range(1, rng.randrange(12)):
            key, version = payload.event(generation, number)
            work.begin("event", str(generation), str(number))
            if version is None:
                store.delete_by_key(key)
            else:
                store.update(payload.make(key, version, rng.randrange(300)))
            work.end()


def closer(work: Work) -> None:
    """Shuts the queues down, so that consumers and claimers end when they are empty."""
    for name in (work.names.queue, work.names.jobs):
        work.begin("shutdown")
        work.fifo(name).shutdown()
        work.end()


def inspector(work: Work) -> None:
    """When all others have ended: checks the arenas, and reads what they hold in every way."""
    queue, jobs = work.fifo(work.names.queue), work.fifo(work.names.jobs)
    table, listed = work.store(work.names.table, True), work.store(work.names.list, True)
    arenas = [("queue", queue), ("jobs", jobs), ("table", table), ("list", listed)]
    for name, arena in arenas:
        work.begin("check", name)
        work.end(*(broken.replace(" ", "_") for broken in arena.check()))
        work.begin("repairs", name)
        work.end(str(arena.stats().repairs))
    _look_at_all(work, "queue", queue)
    _look_at_all(work, "jobs", jobs)
    _look_at_held(work, "held", jobs.in_flight)
    _look_at_held(work, "dead", jobs.dead_letters)
    _look_at_all(work, "table", table)
    _look_at_list(work, listed)
    _look_at_resource_version(work, listed)
    for key in TABLE_KEYS:
        _look_at_key(work, table, key)


ROLES: dict[str, Callable[[Work], None]] = {
    "producer": producer,
    "consumer": consumer,
    "claimer": claimer,
    "reader": reader,
    "replacer": replacer,
    "closer": closer,
    "inspector": inspector,
}
