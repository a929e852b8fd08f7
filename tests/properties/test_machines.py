"""Store, Indexer and FIFO beside a plain dict, through random sequences of their public operations.

A *model* is what an arena should be, in a few lines over a dict. An *actor* is a user of the
arena, in this process or in one of its own, with a writable and a read-only handle. A *machine*
draws one operation after another, lets an actor do it and the model too, and compares what they
say. After each, another actor compares the content, the figures and the invariants of the arena.

The sequences are the same in every run. To look for new ones, for half an hour or so:

    HYPOTHESIS_PROFILE=long scripts/test tests/properties

A failure ends with the shortest sequence that shows it, as a program.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import zlib
from collections.abc import Iterable
from multiprocessing.connection import Connection
from operator import itemgetter
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import shmcache
from shmcache import FIFO, Indexer, MsgpackCodec, Store

CODEC = MsgpackCodec()
KEY_FUNC = itemgetter("key")  # it pickles
CAPACITY = 256 << 10  # the least there is: full every now and then

Pair = tuple[str, bytes]


def by_type(obj: Any) -> list[str]:
    """One value for each object, few of them; fails on what is no dict with a value."""
    return [type(obj["value"]).__name__]


def by_letters(obj: Any) -> list[str]:
    """None, one or several values, some twice, the empty one among them."""
    value = obj["value"]
    return [*value, value[:0]] if isinstance(value, str) else []


INDEXERS = {"type": by_type, "letters": by_letters}


class Indexed(Indexer):
    """An Indexer with these indexes; every handle has the functions."""

    @classmethod
    def create(cls, name: str | None = None, **options: Any) -> Any:
        return super().create(name, indexers=INDEXERS, **options)

    @classmethod
    def attach(cls, name: str, **options: Any) -> Any:
        return super().attach(name, **{"indexers": INDEXERS, **options})


# --- models -------------------------------------------------------------------------------------


class StoreModel:
    """A Store: payloads by key. Raises what shmcache raises, and has then changed nothing."""

    def __init__(self) -> None:
        self.payloads: dict[str, bytes] = {}
        self.resource_version = ""
        self.replaced = False
        self.writes = self.deletes = self.pops = self.repairs = 0
        self.changes = 0  # the version of the arena grows if and only if this does

    def key(self, obj: Any) -> str:
        try:
            key = KEY_FUNC(obj)
        except Exception:
            raise shmcache.KeyFuncError("no key") from None
        if not isinstance(key, str):
            raise shmcache.KeyFuncError("not a str")
        return key

    def pairs(self, objs: Iterable[Any]) -> list[Pair]:
        made = []
        for obj in objs:
            key = self.key(obj)
            try:
                made.append((key, CODEC.encode(obj)))
            except Exception:
                raise shmcache.CodecError("cannot encode") from None
        return made

    def decoded(self, data: bytes) -> Any:
        try:
            return CODEC.decode(data)
        except Exception:
            raise shmcache.CodecError("cannot decode") from None

    def checked(self, pairs: list[Pair]) -> list[Pair]:
        for key, _ in pairs:
            try:
                size = len(key.encode())
            except UnicodeEncodeError:
                raise shmcache.KeyFuncError("surrogates") from None
            if not 1 <= size <= 65535:
                raise shmcache.KeyFuncError("too short or too long")
        return pairs

    def put(self, pairs: list[Pair]) -> None:
        self.payloads.update(self.checked(pairs))  # a key that is there keeps its place
        self.writes += len(pairs)
        self.changes += len(pairs)

    def add(self, obj: Any) -> None:
        self.put(self.pairs([obj]))

    def update(self, obj: Any) -> None:
        self.put(self.pairs([obj]))

    def add_many(self, objs: list[Any]) -> None:
        self.put(self.pairs(objs))

    def add_raw(self, key: str, data: bytes) -> None:
        self.put([(key, data)])

    def delete(self, obj: Any) -> None:
        self.delete_by_key(self.key(obj))

    def delete_by_key(self, key: str) -> None:
        if self.payloads.pop(key, None) is not None:
            self.deletes += 1
            self.changes += 1

    def replace(self, objs: list[Any], resource_version: str) -> None:
        pairs = self.pairs(objs)
        if len(resource_version.encode()) > 240:
            raise ValueError("resource version too long")
        new = dict(self.checked(pairs))
        kept = self.kept_by(new)
        self.writes += len(new) - kept
        self.deletes += len(self.payloads) - kept
        self.payloads, self.resource_version = new, resource_version
        self.replaced = True
        self.changes += 1

    def kept_by(self, new: dict[str, bytes]) -> int:
        """How many entries a replace leaves as they are."""
        return len(new.items() & self.payloads.items())

    def repair(self) -> None:
        self.repairs += 1
        self.changes += 1

    @property
    def has_synced(self) -> bool:
        return self.replaced

    def get(self, obj: Any, default: Any = None) -> Any:
        return self.get_by_key(self.key(obj), default)

    def get_by_key(self, key: str, default: Any = None) -> Any:
        return self.decoded(self.payloads[key]) if key in self.payloads else default

    def get_raw(self, key: str) -> bytes | None:
        return self.payloads.get(key)

    def items(self) -> list[tuple[str, Any]]:
        return [(key, self.decoded(data)) for key, data in self.payloads.items()]

    def values(self) -> list[Any]:
        return [self.decoded(data) for data in self.payloads.values()]

    list = values

    def list_keys(self) -> Iterable[str]:
        return self.payloads.keys()

    __iter__ = list_keys

    def __getitem__(self, key: str) -> Any:
        return self.decoded(self.payloads[key])

    def __contains__(self, key: object) -> bool:
        return key in self.payloads

    def __len__(self) -> int:
        return len(self.payloads)


class IndexerModel(StoreModel):
    """An Indexer: the values of an index are what its function says of what is stored."""

    def values_of(self, index: str, obj: Any) -> set[str]:
        try:
            values = set(INDEXERS[index](obj))
            for value in values:
                value.encode()
        except Exception:
            raise shmcache.IndexFuncError("no values") from None
        return values

    def pairs(self, objs: Iterable[Any]) -> list[Pair]:
        made = []
        for obj in objs:
            made += super().pairs([obj])
            for index in INDEXERS:
                self.values_of(index, obj)
        return made

    def add_raw(self, key: str, data: bytes) -> None:
        obj = self.decoded(data)
        for index in INDEXERS:
            self.values_of(index, obj)
        super().add_raw(key, data)

    def having(self, index: str, wanted: set[str]) -> list[str]:
        return [key for key, obj in self.items() if wanted & self.values_of(index, obj)]

    def index_keys(self, index: str, value: str) -> list[str]:
        return sorted(self.having(index, {value}))

    def by_index(self, index: str, value: str) -> list[Any]:
        return [self[key] for key in self.having(index, {value})]

    def index(self, index: str, obj: Any) -> list[Any]:
        return [self[key] for key in self.having(index, self.values_of(index, obj))]

    def list_index_func_values(self, index: str) -> set[str]:
        return {value for _, obj in self.items() for value in self.values_of(index, obj)}


class FIFOModel(StoreModel):
    """A FIFO: a dict is in the order of insertion already."""

    def __init__(self) -> None:
        super().__init__()
        self.initial: set[str] | None = None  # what is left of the first replace
        self.shut_down = False

    def put(self, pairs: list[Pair]) -> None:
        super().put(pairs)
        if pairs and self.initial is None:
            self.initial = set()

    def delete_by_key(self, key: str) -> None:
        super().delete_by_key(key)
        self.gone(key)

    def gone(self, key: str) -> None:
        if self.initial:
            self.initial.discard(key)

    def replace(self, objs: list[Any], resource_version: str) -> None:
        super().replace(objs, resource_version)
        self.initial = set(self.payloads) if self.initial is None else set()

    def kept_by(self, new: dict[str, bytes]) -> int:
        return 0  # each gets a new place

    @property
    def has_synced(self) -> bool:
        return self.initial is not None and not self.initial

    def add_if_not_present(self, obj: Any) -> bool:
        ((key, data),) = self.checked(self.pairs([obj]))
        if key in self.payloads:
            return False
        self.put([(key, data)])
        return True

    def pop_raw(self, timeout: float) -> Pair:
        if not self.payloads:
            raise shmcache.ShutDown if self.shut_down else queue.Empty
        key = next(iter(self.payloads))
        self.gone(key)
        self.pops += 1
        self.changes += 1
        return key, self.payloads.pop(key)

    def pop(self, timeout: float) -> Any:
        return self.decoded(self.pop_raw(timeout)[1])

    def pop_many(self, max_items: int, timeout: float) -> list[Any]:
        count = min(max_items, max(len(self), 1))
        return [self.decoded(data) for _, data in [self.pop_raw(timeout) for _ in range(count)]]

    def shutdown(self, immediate: bool) -> None:
        self.shut_down = True
        for key in [*self.payloads] if immediate else []:
            self.delete_by_key(key)

    def qsize(self) -> int:
        return len(self)

    def empty(self) -> bool:
        return not self.payloads


# --- actors -------------------------------------------------------------------------------------

MANY = {
    "list", "values", "items", "list_keys", "__iter__", "pop_many",
    "by_index", "index", "index_keys", "list_index_func_values",
}  # fmt: skip


def shown(result: Any) -> str:
    """A result in a form that can be compared whatever is in it (NaN), and that is not long."""
    text = repr(result)
    return text if len(text) < 200 else f"{text[:50]}... {len(text)} {zlib.crc32(text.encode())}"


def outcome(target: Any, method: str, *args: Any) -> Any:
    """What a call says: the name of its exception, its result, or each of its results."""
    try:
        result = getattr(target, method)
        if callable(result):
            result = result(*args)
        return [shown(each) for each in result] if method in MANY else shown(result)
    except (shmcache.ShmCacheError, queue.Empty, LookupError, ValueError) as error:
        return type(error).__name__


class Actor:
    """A user of an arena, in this process."""

    def __init__(self, kind: type[Store], name: str) -> None:
        self.writer = kind.attach(name, writable=True, key_func=KEY_FUNC)
        self.reader = kind.attach(name, writable=False, key_func=KEY_FUNC)

    def do(self, handle: str, method: str, *args: Any) -> Any:
        return outcome(getattr(self, handle), method, *args)

    def look(self) -> dict[str, Any]:
        """All that can be seen of the arena from outside."""
        stats = self.reader._core.stats()  # stats() also counts handles, in all of /proc/locks
        figures = ("entries", "writes", "deletes", "pops", "repairs", "used_bytes")
        return {
            "content": [(key, shown(self.reader.get_raw(key))) for key in self.reader.list_keys()],
            "resource_version": self.reader.resource_version,
            "has_synced": self.reader.has_synced,
            "version": self.reader.version,
            "violations": self.writer.check(),
            **{figure: stats[figure] for figure in figures},
        }

    def repair(self) -> None:
        self.writer._core.testing_repair()

    def reattach(self) -> None:
        """Close both handles and attach again."""
        for handle in ("writer", "reader"):
            old = getattr(self, handle)
            old.close()
            assert outcome(old, "list") == outcome(old, "delete_by_key", "a") == "ClosedError"
            again = type(old).attach(old.name, writable=handle == "writer", key_func=KEY_FUNC)
            setattr(self, handle, again)

    def repickle(self) -> None:
        for handle in ("writer", "reader"):
            old = getattr(self, handle)
            setattr(self, handle, pickle.loads(pickle.dumps(old)))
            old.close()

    def close(self) -> None:
        self.writer.close()
        self.reader.close()


class RemoteActor:
    """An actor in a process of its own, that can be killed."""

    def __init__(self, kind: type[Store], name: str) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(kind, name, theirs, self.pipe))
        self.process.start()
        theirs.close()
        self.pipe.recv()  # attached

    def __getattr__(self, method: str) -> Any:
        return lambda *args: self.call(method, *args)

    def call(self, method: str, *args: Any) -> Any:
        self.pipe.send((method, args))
        return self.pipe.recv()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.join(-signal.SIGKILL)

    def close(self) -> None:
        self.pipe.send(None)
        self.join(0)

    def join(self, exitcode: int) -> None:
        self.process.join()
        assert self.process.exitcode == exitcode
        self.process.close()
        self.pipe.close()


def serve(kind: type[Store], name: str, pipe: Connection, parents: Connection) -> None:
    parents.close()  # or we would never learn of its end
    actor = Actor(kind, name)
    pipe.send(None)
    try:
        for method, args in iter(pipe.recv, None):
            pipe.send(getattr(actor, method)(*args))
    except EOFError:  # the parent was killed
        pass
    actor.close()


# --- what is drawn ------------------------------------------------------------------------------

ODD_KEYS = st.sampled_from([("\ud800", 1), ("a\udfff", 2), ("", 1)]) | st.sampled_from(
    [("k", 65535), ("k", 65536), ("😀", 16383), ("😀", 16384), ("ä", 32768)]
)
FEW_KEYS = st.sampled_from(["a", "b", "ns/a", "ñ/😀"])
KEYS = st.one_of([FEW_KEYS] * 6 + [st.text(max_size=6), ODD_KEYS.map(lambda odd: odd[0] * odd[1])])
LARGE = st.sampled_from([10_000, 50_000, 90_000]).map(bytes)  # two or three fill the arena
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
VALUES = st.one_of(st.sampled_from([0, 1]), JSON, LARGE)
GOOD_OBJECTS = st.fixed_dictionaries({"key": FEW_KEYS, "value": VALUES})
BAD_OBJECTS = st.sampled_from(
    [None, {}, {"key": 5}, {"key": b"a"}, {"key": "a", "value": {1}}, {"key": "", "value": 1 << 64}]
)
OBJECTS = st.one_of(
    [GOOD_OBJECTS] * 6 + [st.fixed_dictionaries({"key": KEYS, "value": VALUES}), BAD_OBJECTS]
)
BATCHES = st.lists(GOOD_OBJECTS, min_size=1, max_size=8) | st.lists(OBJECTS, max_size=5)
PAYLOADS = st.binary(max_size=40) | JSON.map(CODEC.encode) | LARGE
RESOURCE_VERSIONS = st.sampled_from(["", "1", "42", "ä" * 120, "ä" * 121]) | st.text(max_size=4)
ACTORS = st.integers(0, 2)
HANDLES = st.sampled_from(["writer", "reader"])


# --- machines -----------------------------------------------------------------------------------


class StoreMachine(RuleBasedStateMachine):
    kind: ClassVar[type[Store]] = Store
    model_kind: ClassVar[type[StoreModel]] = StoreModel
    actor_kind: ClassVar[Any] = Actor

    def __init__(self) -> None:
        super().__init__()
        self.model = self.model_kind()
        self.owner = self.kind.create(capacity=CAPACITY)
        self.actors = [self.actor_kind(self.kind, self.owner.name) for _ in range(3)]
        self.version = self.owner.version
        self.changes = 0  # of the model, when the version was that
        self.was_full = False
        self.steps = 0

    def teardown(self) -> None:
        self.owner.unlink()
        self.owner.close()
        for actor in self.actors:
            actor.close()

    def both(self, actor: int, handle: str, method: str, *args: Any) -> None:
        """The actor and the model do the same and say the same, unless the arena is full."""
        said = self.actors[actor].do(handle, method, *args)
        if said == "CapacityError":
            self.was_full = True
            assert self.held() + len(pickle.dumps(args)) > CAPACITY // 4
            return
        expected = outcome(self.model, method, *args)
        if method in MANY and not isinstance(self.model, FIFOModel):
            said, expected = sorted(said), sorted(expected)
        assert said == expected

    def held(self) -> int:
        return sum(len(key.encode()) + len(data) for key, data in self.model.payloads.items())

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        self.steps += 1
        seen = self.actors[self.steps % 3].look()
        content = [(key, shown(data)) for key, data in self.model.payloads.items()]
        if not isinstance(self.model, FIFOModel):
            content.sort()
            seen["content"].sort()
        assert seen["content"] == content
        assert seen["violations"] == []
        for name in ("resource_version", "has_synced", "writes", "deletes", "pops", "repairs"):
            assert seen[name] == getattr(self.model, name), name
        assert seen["entries"] == len(content)
        assert seen["used_bytes"] >= self.held()
        assert (seen["used_bytes"] == 0) == (content == [])
        grew, changed = seen["version"] > self.version, self.model.changes > self.changes
        assert grew == changed or (grew and self.was_full)  # a version once given is used up
        assert seen["version"] >= self.version
        self.version, self.changes, self.was_full = seen["version"], self.model.changes, False

    @initialize(objs=BATCHES)
    def begin(self, objs: list[Any]) -> None:
        self.both(0, "writer", "add_many", objs)

    @rule(actor=ACTORS, how=st.sampled_from(["add", "update"]), obj=OBJECTS)
    def add(self, actor: int, how: str, obj: Any) -> None:
        self.both(actor, "writer", how, obj)

    @rule(actor=ACTORS, key=KEYS, data=PAYLOADS)
    def add_raw(self, actor: int, key: str, data: bytes) -> None:
        self.both(actor, "writer", "add_raw", key, data)

    @rule(actor=ACTORS, objs=BATCHES)
    def add_many(self, actor: int, objs: list[Any]) -> None:
        self.both(actor, "writer", "add_many", objs)

    @rule(actor=ACTORS, objs=BATCHES, resource_version=RESOURCE_VERSIONS)
    def replace(self, actor: int, objs: list[Any], resource_version: str) -> None:
        self.both(actor, "writer", "replace", objs, resource_version)

    @rule(actor=ACTORS, obj=OBJECTS, by_key=st.booleans())
    def delete(self, actor: int, obj: Any, by_key: bool) -> None:
        if by_key and isinstance(obj, dict) and isinstance(obj.get("key"), str):
            self.both(actor, "writer", "delete_by_key", obj["key"])
        else:
            self.both(actor, "writer", "delete", obj)

    @rule(actor=ACTORS, handle=HANDLES, key=KEYS, obj=OBJECTS)
    def read(self, actor: int, handle: str, key: str, obj: Any) -> None:
        for method in ("get_by_key", "get_raw", "__getitem__", "__contains__"):
            self.both(actor, handle, method, key)
        for method in ("list", "values", "items", "list_keys", "__iter__", "__len__"):
            self.both(actor, handle, method)
        self.both(actor, handle, "get_by_key", key, "default")
        self.both(actor, handle, "get", obj)
        self.both(actor, handle, "get", obj, "default")

    @rule(actor=ACTORS, handle=HANDLES, back=st.integers(0, 2), obj=GOOD_OBJECTS)
    def wait_and_be_refused(self, actor: int, handle: str, back: int, obj: Any) -> None:
        do = self.actors[actor].do
        assert do(handle, "wait_for_change", max(self.version - back, 0), 0) == repr(self.version)
        assert do(handle, "wait_for_sync", 0) == repr(self.model.has_synced)
        for method, *args in self.writes(obj):
            assert do("reader", method, *args) == "ReadOnlyError"

    def writes(self, obj: Any) -> list[tuple[Any, ...]]:
        return [
            ("add", obj),
            ("update", obj),
            ("add_raw", obj["key"], CODEC.encode(obj)),
            ("add_many", [obj]),
            ("delete", obj),
            ("delete_by_key", ""),
            ("replace", [obj], "1"),
        ]

    @rule(actor=ACTORS, how=st.sampled_from(["repair", "reattach", "repickle"]))
    def renew(self, actor: int, how: str) -> None:
        getattr(self.actors[actor], how)()
        if how == "repair":
            self.model.repair()


class IndexerMachine(StoreMachine):
    kind = Indexed
    model_kind = IndexerModel

    @rule(
        actor=ACTORS,
        handle=HANDLES,
        index=st.sampled_from([*INDEXERS]),
        value=st.sampled_from(["str", "int", "dict", "", "a", "0", "\ud800"]),
        obj=OBJECTS,
    )
    def read_by_index(self, actor: int, handle: str, index: str, value: str, obj: Any) -> None:
        for method in ("by_index", "index_keys"):
            self.both(actor, handle, method, index, value)
        self.both(actor, handle, "index", index, obj)
        self.both(actor, handle, "list_index_func_values", index)


class FIFOMachine(StoreMachine):
    kind = FIFO
    model_kind = FIFOModel

    @rule(actor=ACTORS, obj=OBJECTS)
    def add_if_not_present(self, actor: int, obj: Any) -> None:
        self.both(actor, "writer", "add_if_not_present", obj)

    @rule(actor=ACTORS, how=st.sampled_from(["pop", "pop_raw"]))
    def pop(self, actor: int, how: str) -> None:
        self.both(actor, "writer", how, 0)

    @rule(actor=ACTORS, handle=HANDLES, max_items=st.integers(1, 4))
    def pop_many(self, actor: int, handle: str, max_items: int) -> None:
        self.both(actor, handle, "qsize")
        self.both(actor, handle, "empty")
        self.both(actor, "writer", "pop_many", max_items, 0)

    @rule(actor=ACTORS, immediate=st.sampled_from([False, False, False, True]))
    def shutdown(self, actor: int, immediate: bool) -> None:
        self.both(actor, "writer", "shutdown", immediate)

    def writes(self, obj: Any) -> list[tuple[Any, ...]]:
        return [*super().writes(obj), ("pop", 0), ("pop_many", 2, 0), ("shutdown", True)]


class Processes:
    """Each actor is a process; killed, another takes its place and finds all as it was."""

    actor_kind = RemoteActor

    @rule(actor=ACTORS)
    def kill(self, actor: int) -> None:
        self.actors[actor].kill()  # type: ignore[attr-defined]
        self.actors[actor] = RemoteActor(self.kind, self.owner.name)  # type: ignore[attr-defined]


class StoreProcesses(Processes, StoreMachine):
    pass


class IndexerProcesses(Processes, IndexerMachine):
    pass


class FIFOProcesses(Processes, FIFOMachine):
    pass


def run(machine: type[StoreMachine], times: int = 1, **options: Any) -> None:
    profile = settings.default
    slower = 3 if issubclass(machine, Processes) else 1
    examples = profile.max_examples * times // slower
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, **options))


@pytest.mark.parametrize("machine", [StoreMachine, IndexerMachine, FIFOMachine])
def test_every_sequence_is_as_in_the_model(machine: type[StoreMachine]) -> None:
    """Three users in one process: whatever they do, all see what a dict would hold."""
    run(machine)


@pytest.mark.parametrize("machine", [StoreProcesses, IndexerProcesses, FIFOProcesses])
def test_every_sequence_is_as_in_the_model_across_processes(machine: type[StoreMachine]) -> None:
    """Three processes, killed between two operations now and then: the same holds."""
    run(machine)


# --- the machines can fail ----------------------------------------------------------------------


class LosesOneDelete(Store):
    def delete_by_key(self, key: str) -> None:
        if len(self) % 2:
            super().delete_by_key(key)


class LosesItsPlace(FIFO):
    def add(self, obj: Any) -> None:
        self.delete(obj)
        super().add(obj)

    update = add


class HidesTheFirst(Indexed):
    def by_index(self, index_name: str, value: str) -> list[Any]:
        found = super().by_index(index_name, value)
        return found[1:]


class WritesWhatItRefuses(Store):
    def replace(self, objs: Any, resource_version: str = "") -> None:
        try:
            super().replace(objs, resource_version)
        except shmcache.CodecError:
            self.add_many([obj for obj in objs if isinstance(obj, dict) and obj.get("value") == 1])
            raise


@pytest.mark.parametrize(
    ("machine", "fault"),
    [
        (StoreMachine, LosesOneDelete),
        (StoreMachine, WritesWhatItRefuses),
        (IndexerMachine, HidesTheFirst),
        (FIFOMachine, LosesItsPlace),
        (StoreProcesses, LosesOneDelete),
        (FIFOProcesses, LosesItsPlace),
    ],
)
def test_planted_faults_are_found(machine: type[StoreMachine], fault: type[Store]) -> None:
    """A store with one fault does not get past its machine."""
    faulty = type("Faulty", (machine,), {"kind": fault})
    with pytest.raises(AssertionError):
        # The first sequence that shows it is enough, and it comes soon; when is a matter of luck.
        run(faulty, times=10, phases=[Phase.generate], report_multiple_bugs=False)
