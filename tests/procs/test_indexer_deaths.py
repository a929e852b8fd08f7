"""An Indexer whose writers are killed, and one that is inherited: what is found is what is there.

After a death the first to look is a read-only handle, which can repair nothing; then one that
writes. Half of the writers are killed at any moment, half while they own the lock.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import shmcache
from shmcache import Indexer, IndexFunc
from tests.procs.control import control, forked, resume, start, states, stop, until, wait_for

multi_threaded = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

OBJECTS = 200
SHARDS = [f"s{i}" for i in range(7)]
ROUNDS = 16


def by_shard(obj: Any) -> list[str]:
    return [obj["shard"]]


def by_tag(obj: Any) -> list[str]:
    """None to three values, some of them of many objects and some of one."""
    return list(obj["tags"])


INDEXERS: dict[str, IndexFunc] = {"shard": by_shard, "tag": by_tag}


def make(number: int, chance: random.Random, generation: int = 0) -> dict[str, Any]:
    tags = [f"t{chance.randrange(5)}", f"own-{number}", "common"][: chance.randrange(4)]
    return {
        "metadata": {"name": f"k{number}"},
        "shard": chance.choice(SHARDS),
        "tags": tags,
        "generation": generation,
        "fill": "x" * chance.randrange(600),
    }


def make_all(chance: random.Random, generation: int = 0) -> list[dict[str, Any]]:
    return [make(number, chance, generation) for number in range(OBJECTS)]


def attach(name: str) -> Indexer:
    return Indexer.attach(name, writable=True, indexers=INDEXERS)


# --- what must hold -------------------------------------------------------------------------------


def differences(indexer: Any, functions: dict[str, IndexFunc]) -> list[str]:
    """Where the indexes of a store that nobody writes to differ from what its objects say."""
    found = []
    objs = {obj["metadata"]["name"]: obj for obj in indexer.list()}
    if sorted(objs) != sorted(indexer.list_keys()) or len(objs) != len(indexer.list()):
        found.append("list and list_keys differ")
    for index, function in functions.items():
        expected: dict[str, list[str]] = collections.defaultdict(list)
        for key, obj in objs.items():
            for value in function(obj):
                expected[value].append(key)
        if sorted(indexer.list_index_func_values(index)) != sorted(expected):
            found.append(f"{index}: the values are not those of the objects")
        for value in {*expected, *SHARDS, "no such value"}:
            keys = sorted(expected.get(value, []))
            members = indexer.by_index(index, value)
            if sorted(obj["metadata"]["name"] for obj in members) != keys:
                found.append(f"{index}={value}: by_index has others")
            elif any(obj != objs[obj["metadata"]["name"]] for obj in members):
                found.append(f"{index}={value}: by_index has another version")
            if indexer.index_keys(index, value) != keys:
                found.append(f"{index}={value}: index_keys has others")
    return found


class Faulty:
    """An Indexer one of whose reads is wrong."""

    def __init__(self, indexer: Indexer, method: str, change: Callable[[list[Any]], Any]) -> None:
        self._indexer, self._method, self._change = indexer, method, change

    def __getattr__(self, name: str) -> Any:
        read = getattr(self._indexer, name)
        if name != self._method:
            return read
        return lambda *args: self._change(list(read(*args)))


FAULTS: dict[str, tuple[str, Callable[[list[Any]], Any], str]] = {
    "one missing": ("by_index", lambda objs: objs[1:], "by_index has others"),
    "one twice": ("by_index", lambda objs: objs + objs[:1], "by_index has others"),
    "an old one": (
        "by_index",
        lambda objs: [{**obj, "generation": -1} for obj in objs],
        "another version",
    ),
    "a key missing": ("index_keys", lambda keys: keys[1:], "index_keys has others"),
    "a ghost value": ("list_index_func_values", lambda values: [*values, "x"], "the values"),
    "a value twice": ("list_index_func_values", lambda values: values * 2, "the values"),
    "a value missing": ("list_index_func_values", lambda values: values[1:], "the values"),
    "an entry twice": ("list_keys", lambda keys: keys + keys[:1], "list and list_keys"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_finds_faults(made: Indexer, fault: str) -> None:
    """Of a whole Indexer nothing is reported, and each kind of wrong answer is."""
    method, change, message = FAULTS[fault]
    assert differences(made, INDEXERS) == []
    found = differences(Faulty(made, method, change), INDEXERS)
    assert found
    assert all(message in line for line in found)


def assert_whole(name: str, functions: dict[str, IndexFunc]) -> None:
    """Look as a reader, which repairs nothing, as a writer, and as a reader again."""
    with Indexer.attach(name) as reader:
        assert differences(reader, functions) == []
        with attach(name) as writer:
            assert differences(writer, functions) == []
            assert writer.check() == []
            assert differences(writer, functions) == []
        assert differences(reader, functions) == []
        assert reader.check() == []


# --- who is killed --------------------------------------------------------------------------------


@pytest.fixture
def made(name: str) -> Iterator[Indexer]:
    with Indexer.create(name, indexers=INDEXERS, capacity="16MiB") as indexer:
        indexer.replace(make_all(random.Random(0)), "0")
        yield indexer
        assert indexer.check() == []


def move(indexer: Indexer, chance: random.Random) -> None:
    """Give every object another shard, other tags and another size."""
    number = chance.randrange(OBJECTS)
    indexer.update(make(number, chance))


def delete(indexer: Indexer, chance: random.Random) -> None:
    number = chance.randrange(OBJECTS)
    if chance.random() < 0.5:
        indexer.delete_by_key(f"k{number}")
    else:
        indexer.add(make(number, chance))


def replace(indexer: Indexer, chance: random.Random) -> None:
    generation = chance.randrange(1 << 30)
    indexer.replace(make_all(chance, generation), str(generation))


def add_many(indexer: Indexer, chance: random.Random) -> None:
    indexer.add_many([make(chance.randrange(OBJECTS), chance) for _ in range(20)])


def all_there(indexer: Indexer) -> bool:
    return len(indexer.list()) == OBJECTS


def one_generation(indexer: Indexer) -> bool:
    """A replace happened as a whole, its version with it, as soon as somebody may repair."""
    generations = {str(obj["generation"]) for obj in indexer.list()}
    return all_there(indexer) and (
        generations == {indexer.resource_version} if indexer.writable else len(generations) == 1
    )


def anything(indexer: Indexer) -> bool:
    return True


Step = Callable[[Indexer, random.Random], None]

WRITERS: dict[str, tuple[Step, Callable[[Indexer], bool]]] = {
    "update": (move, all_there),
    "delete": (delete, anything),
    "replace": (replace, one_generation),
    "add_many": (add_many, all_there),
}


def endlessly(name: str, step: Step, seed: int) -> None:
    chance = random.Random(seed)
    with attach(name) as writer:
        while True:
            step(writer, chance)


def kill(pid: int, name: str, chance: random.Random, as_owner: bool) -> bool:
    """Kill a process at some moment; whether it then was in the middle of a change.

    ``as_owner``: while it owns the lock, unless it ends before it is met so.
    """
    time.sleep(chance.random() * 0.003)  # which moment, not how long: any will do
    while as_owner:
        stop(pid)
        seen = control(name)
        if (seen.owner == pid and seen.mutating) or set(states(pid)) <= set("ZX"):
            break
        resume(pid)
        time.sleep(chance.random() * 0.001)  # else it is stopped again before it has moved
    os.kill(pid, signal.SIGKILL)
    wait_for(pid)
    return control(name).mutating


@pytest.mark.parametrize("kind", WRITERS)
def test_killed_writers_leave_exact_indexes(
    made: Indexer, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """However a writer that moves, deletes and replaces objects is killed, every reader then finds
    in each index what the objects say, and no object that was there is lost."""
    step, holds = WRITERS[kind]
    chance = random.Random(kind)
    amid = 0
    for round_ in range(ROUNDS):
        seed, before = chance.randrange(1 << 30), made.version
        pid = start(partial(endlessly, made.name, step, seed))
        while made.version < before + 1 + chance.randrange(200):
            made.wait_for_change(made.version, 1)
        amid += kill(pid, made.name, chance, as_owner=round_ % 2 == 0)
        with Indexer.attach(made.name) as reader:
            assert holds(reader)
        assert_whole(made.name, INDEXERS)
        assert holds(made)
    assert amid >= ROUNDS // 2
    record_property("figures", f"{kind}: {amid} of {ROUNDS} killed in the middle of a change")


@multi_threaded
def test_writers_killed_beside_others(made: Indexer) -> None:
    """While one writer goes on, another is killed again and again: whenever the first rests, the
    indexes are exact."""
    chance = random.Random("beside")
    writing = threading.Lock()
    over = threading.Event()

    def go_on() -> None:
        own = random.Random(1)
        while not over.is_set():
            with writing:
                move(made, own)

    steady = threading.Thread(target=go_on)
    steady.start()
    try:
        for _ in range(ROUNDS):
            seed = chance.randrange(1 << 30)
            pid = start(partial(endlessly, made.name, delete, seed))
            before = made.version
            while made.version < before + 100:
                made.wait_for_change(made.version, 1)
            kill(pid, made.name, chance, as_owner=False)
            with writing:
                assert_whole(made.name, INDEXERS)
    finally:
        over.set()
        steady.join()


# --- indexes that are added -----------------------------------------------------------------------


def by_generation(obj: Any) -> list[str]:
    return [str(obj["generation"])]


def by_first_tag(obj: Any) -> list[str]:
    return list(obj["tags"][:1])


PAIRS = 15  # which makes 32 indexes, the most there can be


def pair(number: int) -> dict[str, IndexFunc]:
    return {f"generation-{number}": by_generation, f"first-{number}": by_first_tag}


def test_a_killed_add_indexers_is_all_or_nothing(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """Of two indexes that were being added at a kill both are there and complete, or none; then the
    same call works, or says that they are there, and all writers and readers go on."""
    chance = random.Random("add_indexers")
    amid = 0
    for round_ in range(ROUNDS):
        with Indexer.create(name, indexers=INDEXERS, capacity="16MiB") as made:
            made.replace(make_all(chance), "1")

            def add_pairs() -> None:
                with attach(name) as adder:
                    for number in range(PAIRS):
                        adder.add_indexers(pair(number))

            pid = start(add_pairs)
            wanted = 2 + 2 * chance.randrange(PAIRS // 2)
            while len(made.get_indexers()) < wanted:
                made.wait_for_change(made.version, 1)
            amid += kill(pid, name, chance, as_owner=round_ % 2 == 0)
            with Indexer.attach(name) as reader:
                there = list(reader.get_indexers())
            count = (len(there) - 2) // 2
            assert there == [*INDEXERS, *(index for n in range(count) for index in pair(n))]
            functions = {**INDEXERS}
            for number in range(count):
                functions |= pair(number)
            with Indexer.attach(name) as reader:
                assert differences(reader, functions) == []
            if count:
                with pytest.raises(shmcache.IndexExistsError):
                    made.add_indexers(pair(count - 1))
                made.use_indexers(functions)
            if count < PAIRS:
                made.add_indexers(pair(count))
                functions |= pair(count)
            made.add(make(0, chance, 7))
            with Indexer.attach(name) as reader:
                assert differences(reader, functions) == []
            assert all_there(made)
            assert made.check() == []
            made.unlink()
    record_property("figures", f"{amid} of {ROUNDS} killed in the middle of the change")


@pytest.mark.parametrize("calls", [0, 1, OBJECTS // 2, OBJECTS - 1])
def test_killed_in_an_index_function(made: Indexer, calls: int) -> None:
    """Killed by its own function, over the first object or the last, add_indexers leaves nothing
    behind, and can be repeated."""

    def deadly() -> None:
        left = calls

        def function(obj: Any) -> list[str]:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return ["x"]

        with attach(made.name) as adder:
            adder.add_indexers({"new": function})

    version = made.version
    assert forked(deadly) == -signal.SIGKILL
    assert list(made.get_indexers()) == list(INDEXERS)
    assert made.version == version
    made.add_indexers({"new": by_first_tag})
    functions = {**INDEXERS, "new": by_first_tag}
    with Indexer.attach(made.name) as reader:
        assert differences(reader, functions) == []


def test_adders_race(made: Indexer) -> None:
    """Of four processes that add the same index one succeeds and three are told so, and the indexes
    that each adds besides are all there."""
    owns = [f"own-{n}" for n in range(4)]

    def add(own: str) -> None:
        with attach(made.name) as adder:
            adder.add_indexers({own: by_first_tag})
            try:
                adder.add_indexers({"same": by_generation})
            except shmcache.IndexExistsError:
                os._exit(3)

    pids = [start(partial(add, own)) for own in owns]
    assert sorted(wait_for(pid) for pid in pids) == [0, 3, 3, 3]
    functions = {**INDEXERS, "same": by_generation} | dict.fromkeys(owns, by_first_tag)
    assert set(made.get_indexers()) == set(functions)
    assert differences(made, functions) == []


# --- fork -----------------------------------------------------------------------------------------


def test_a_forked_child_uses_the_handle(made: Indexer) -> None:
    """A child reads, writes and adds indexes by the handle that it inherited, functions and all;
    the parent, and the handle's pickle elsewhere, find what it did."""
    chance = random.Random("fork")

    def child() -> None:
        assert differences(made, INDEXERS) == []
        for _ in range(200):
            move(made, chance)
        made.add_indexers({"new": by_first_tag})
        move(made, chance)
        assert differences(made, {**INDEXERS, "new": by_first_tag}) == []

    before = made.version
    assert forked(child) == 0
    assert made.version > before
    assert differences(made, {**INDEXERS, "new": by_first_tag}) == []
    with pytest.raises(shmcache.IndexNotFoundError, match="no function for index 'new'"):
        move(made, chance)
    made.use_indexers({"new": by_first_tag})
    move(made, chance)
    with pickle.loads(pickle.dumps(made)) as other:
        move(other, chance)
        assert differences(other, {**INDEXERS, "new": by_first_tag}) == []


@multi_threaded
def test_forks_amid_writes(made: Indexer) -> None:
    """Children forked while a thread of the parent writes: each finds its own writes by every
    index, also after its siblings were killed in theirs."""
    chance = random.Random("amid")
    over = threading.Event()

    def write() -> None:
        own = random.Random(2)
        while not over.is_set():
            move(made, own)

    def child(number: int, dies: bool) -> None:
        while True:
            obj = make(OBJECTS + number, chance) | {"shard": f"child-{number}"}
            made.add(obj)
            assert made.by_index("shard", f"child-{number}") == [obj]
            if not dies:
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(ROUNDS):
            dying = start(partial(child, number, dies=True))
            while f"k{OBJECTS + number}" not in made:
                made.wait_for_change(made.version, 1)
            kill(dying, made.name, chance, as_owner=False)
            assert forked(partial(child, number, dies=False)) == 0
            assert made.index_keys("shard", f"child-{number}") == [f"k{OBJECTS + number}"]
    finally:
        over.set()
        writer.join()
    assert differences(made, INDEXERS) == []


# --- readers beside a writer ----------------------------------------------------------------------


def wrong_reads(indexer: Any, chance: random.Random) -> list[str]:
    """What is wrong with one read of each kind, while every object is in one shard at any time and
    each shard of a replace has as many as the others."""
    everyone = [f"k{number}" for number in range(OBJECTS)]
    found = []
    union = indexer.index("shard", SHARDS)
    if sorted(obj["metadata"]["name"] for obj in union) != sorted(everyone):
        found.append("the union of all values is not every object once")
    if indexer.index_keys("all", "") != sorted(everyone):
        found.append("a value of every object has not every object once")
    shard = chance.choice(SHARDS)
    members = indexer.by_index("shard", shard)
    if any(obj["shard"] != shard for obj in members):
        found.append("an object under a value that it has not")
    if len({obj["metadata"]["name"] for obj in members}) != len(members):
        found.append("an object twice")
    values = indexer.list_index_func_values("shard")
    if len(set(values)) != len(values) or not set(values) <= set(SHARDS):
        found.append("values that are not those of the objects")
    return found


def by_shards(obj: Any) -> list[str]:
    """Of a stored object its shard; of a probe all that it names."""
    return [obj["shard"]] if isinstance(obj, dict) else list(obj)


def by_nothing(obj: Any) -> list[str]:
    return [""]


BESIDE: dict[str, IndexFunc] = {"shard": by_shards, "all": by_nothing}


@pytest.fixture
def moving(name: str) -> Iterator[Indexer]:
    with Indexer.create(name, indexers=BESIDE, capacity="16MiB") as indexer:
        indexer.replace(make_all(random.Random(0)), "0")
        yield indexer
        assert indexer.check() == []


@pytest.mark.parametrize("method", ["index", "index_keys", "by_index", "list_index_func_values"])
@pytest.mark.parametrize(
    "change", [lambda found: found[1:], lambda found: found + found[:1]], ids=["less", "twice"]
)
def test_wrong_reads_are_found(moving: Indexer, method: str, change: Any) -> None:
    """Whole reads are not reported, and each kind of wrong answer is, unless it is possible."""
    possible = method in ("by_index", "list_index_func_values") and change([1]) == []
    assert wrong_reads(moving, random.Random(0)) == []
    assert bool(wrong_reads(Faulty(moving, method, change), random.Random(0))) != possible


def read_until_done(name: str, seed: int) -> None:
    chance = random.Random(seed)
    with Indexer.attach(name, indexers=BESIDE) as reader:
        reads = 0
        while reader.resource_version != "done":
            assert wrong_reads(reader, chance) == []
            reads += 1
        assert reads > 10


@contextlib.contextmanager
def four_readers(moving: Indexer) -> Iterator[None]:
    """Processes that read all the time, and found nothing wrong until the end."""
    readers = [start(partial(read_until_done, moving.name, seed)) for seed in range(4)]
    # Our handle, that of each reader, and ours that each has inherited; or one has failed.
    until(lambda: moving.stats().attached == 9 or any(states(pid) == ["Z"] for pid in readers))
    try:
        yield
    finally:
        moving.bookmark("done")
        statuses = [wait_for(pid) for pid in readers]
    assert statuses == [0] * 4


def test_readers_see_each_object_in_one_value(moving: Indexer) -> None:
    """While objects move between values, one by one and all at once, four readers find each object
    exactly once at every instant, and none under a value that it has not."""
    chance = random.Random("moves")
    with four_readers(moving):
        for number in range(6000):
            move(moving, chance)
            if number % 100 == 0:
                moving.replace(make_all(chance, number), str(number))


def test_readers_see_each_object_while_writers_die(moving: Indexer) -> None:
    """The same while the writers are killed one after the other, half of them in a change."""
    chance = random.Random("deaths")

    def work(seed: int) -> None:
        own = random.Random(seed)
        with Indexer.attach(moving.name, writable=True, indexers=BESIDE) as writer:
            while True:
                (replace if own.randrange(20) == 0 else move)(writer, own)

    with four_readers(moving):
        for round_ in range(ROUNDS):
            before, seed = moving.version, chance.randrange(1 << 30)
            pid = start(partial(work, seed))
            while moving.version < before + chance.randrange(1, 200):
                moving.wait_for_change(moving.version, 1)
            kill(pid, moving.name, chance, as_owner=round_ % 2 == 0)
