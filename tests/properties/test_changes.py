"""What a watch gives, added up, beside what the store holds, through random sequences.

Writers in this process and in another add, delete, replace, write more than the store remembers,
and repair; watches of a writable and of a read-only handle look now and then, and some begin
late. See test_machines.py for how to look for more sequences.
"""

from __future__ import annotations

from types import SimpleNamespace
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

from shmcache import Change, Indexer, RawCodec, Store, Watch
from tests.procs.elsewhere import Elsewhere, attach, elsewhere

KEYS = st.sampled_from([f"k{i}" for i in range(12)])
WRITERS = st.sampled_from(["here", "elsewhere"])
WATCHES = st.integers(0, 2)
RING = 256

Entry = tuple[str, int]


def key_of(data: bytes) -> str:
    return data.partition(b"=")[0].decode()


def by_length(data: bytes) -> list[str]:
    return [str(len(data))]


INDEXERS = {"length": by_length}
OPTIONS: dict[type[Store], dict[str, Any]] = {
    Store: {"codec": RawCodec(), "key_func": key_of},
    Indexer: {"codec": RawCodec(), "key_func": key_of, "indexers": INDEXERS},
}


# --- what writers do, here and elsewhere ----------------------------------------------------------


def add(own: SimpleNamespace, key: str, number: int) -> None:
    own.store.add(b"%s=%d" % (key.encode(), number))


def delete(own: SimpleNamespace, key: str) -> None:
    own.store.delete_by_key(key)


def replace(own: SimpleNamespace, entries: list[Entry]) -> None:
    own.store.replace(b"%s=%d" % (key.encode(), number) for key, number in entries)


def burst(own: SimpleNamespace, key: str, count: int) -> None:
    """More at once than a look expects: of one key, and of others that come and go."""
    for number in range(count):
        add(own, key, 1000 + number)
        if number % 3 == 0:
            add(own, f"brief{number % 5}", number)
            delete(own, f"brief{number % 5}")


def repair(own: SimpleNamespace) -> None:
    own.store._core.testing_repair()


# --- what a reader adds up ------------------------------------------------------------------------


class Sum:
    """The content as the changes of a watch say it is."""

    def __init__(self, watch: Watch[Any]) -> None:
        self._watch = watch
        self._objects: dict[str, bytes] = {}

    def look(self, content: dict[str, bytes]) -> None:
        """Take what there is, and compare the sum of it all with what the store holds."""
        changes = self._watch.take(0)
        assert len({change.key for change in changes}) == len(changes)
        for change in changes:
            self._apply(change)
        assert self._objects == content

    def _apply(self, change: Change[Any]) -> None:
        match change.type:
            case "ADDED":
                assert change.key not in self._objects
                assert change.old is None
            case "MODIFIED":
                assert change.old is self._objects[change.key]
            case "DELETED":
                assert change.object is self._objects.pop(change.key)
                assert change.old is None
                return
        self._objects[change.key] = change.object


class ChangesMachine(RuleBasedStateMachine):
    kind: ClassVar[type[Store]] = Store
    process: ClassVar[Elsewhere]

    @initialize()
    def begin(self) -> None:
        options = OPTIONS[self.kind]
        self.store = self.kind.create(capacity="256KiB", **options)
        self.reader = self.kind.attach(self.store.name, **options)
        self.process.run(attach, self.kind, self.store.name, writable=True, **options)
        self.sums = [self.make_sum(n) for n in range(3)]

    def make_sum(self, number: int) -> Sum:
        return Sum((self.reader if number == 0 else self.store).watch())

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.process.run(close)
            self.reader.close()
            self.store.unlink()
            self.store.close()

    def write(self, writer: str, function: Any, *args: Any) -> None:
        if writer == "here":
            function(SimpleNamespace(store=self.store), *args)
        else:
            self.process.run(function, *args)

    @rule(writer=WRITERS, key=KEYS, number=st.integers(0, 3))
    def add(self, writer: str, key: str, number: int) -> None:
        self.write(writer, add, key, number)

    @rule(writer=WRITERS, key=KEYS)
    def delete(self, writer: str, key: str) -> None:
        self.write(writer, delete, key)

    @rule(writer=WRITERS, key=KEYS, number=st.integers(0, 3))
    def add_again(self, writer: str, key: str, number: int) -> None:
        self.write(writer, delete, key)
        self.write("here", add, key, number)

    @rule(writer=WRITERS, entries=st.lists(st.tuples(KEYS, st.integers(0, 3)), max_size=15))
    def replace(self, writer: str, entries: list[Entry]) -> None:
        self.write(writer, replace, entries)

    @rule(
        writer=WRITERS,
        key=KEYS,
        count=st.sampled_from([RING // 8, RING // 2 - 1, RING // 2, RING // 2 + 1, 3 * RING]),
    )
    def burst(self, writer: str, key: str, count: int) -> None:
        self.write(writer, burst, key, count)

    @rule(writer=WRITERS)
    def repair(self, writer: str) -> None:
        self.write(writer, repair)

    @rule(number=WATCHES)
    def look(self, number: int) -> None:
        self.sums[number].look(dict(self.store.items()))

    @rule(number=WATCHES)
    def begin_again(self, number: int) -> None:
        self.sums[number] = self.make_sum(number)

    @invariant()
    def the_last_looks_always(self) -> None:
        if hasattr(self, "sums"):
            self.sums[2].look(dict(self.store.items()))


def close(own: SimpleNamespace) -> None:
    own.store.close()


def run(machine: type[ChangesMachine], **options: Any) -> None:
    with elsewhere(1) as (process,):
        machine.process = process
        run_state_machine_as_test(machine, settings=settings(**options))


@pytest.mark.parametrize("kind", [Store, Indexer])
def test_the_changes_add_up(kind: type[Store]) -> None:
    """Whatever is written, by whom, and whenever one looks: the sum of the changes is the content,
    each key comes at most once a look, and what was there before is what was given before."""
    run(type("Machine", (ChangesMachine,), {"kind": kind}))


class LosesOne(Sum):
    def look(self, content: dict[str, bytes]) -> None:
        changes = self._watch.take(0)
        for change in changes[:-1] if len(changes) > 2 else changes:
            self._apply(change)
        assert self._objects == content


class Repeats(Sum):
    def _apply(self, change: Change[Any]) -> None:
        super()._apply(change)
        if change.type == "MODIFIED":
            super()._apply(change)


@pytest.mark.parametrize("fault", [LosesOne, Repeats])
def test_planted_faults_are_found(fault: type[Sum]) -> None:
    """A reader that misses one change, or gets one twice, does not get past the machine."""

    class Faulty(ChangesMachine):
        def make_sum(self, number: int) -> Sum:
            return fault(self.store.watch())

    with pytest.raises((AssertionError, KeyError)):
        run(Faulty, phases=[Phase.generate], report_multiple_bugs=False)
