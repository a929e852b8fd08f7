"""The place of the one reflector of an arena, in real processes: who has it, who waits, who learns.

The server is a folder: a file of events that the test appends to, and a file of requests that the
process of every reflector appends to, so that it is known who asked for what, and in which order.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

from shmcache import (
    FIFO,
    ApiError,
    Backoff,
    Event,
    ExpiredError,
    Indexer,
    ListOptions,
    ListResult,
    Reflector,
    ReflectorRunningError,
    ReflectorStats,
    ReflectorStatus,
    Store,
    WatchOptions,
)
from shmcache.sources.directory import DirectorySource
from tests.procs.control import adopting, resume, start, states, stop, until, wait_for
from tests.procs.elsewhere import Elsewhere, ask, attach, elsewhere

SIZE = "4MiB"
DEADLINE = 60.0

Request: TypeAlias = tuple[int, str, str]
"""Process, ``list`` or ``watch``, and version."""


# --- a server, and what reflectors ask it ---------------------------------------------------------


class Server:
    """The test's side. A version is a count of events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("events", "requests"):
            (path / name).touch()

    def add(self, *names: str) -> None:
        self._happen("ADDED", names)

    def delete(self, *names: str) -> None:
        self._happen("DELETED", names)

    def _happen(self, kind: str, names: tuple[str, ...]) -> None:
        with (self.path / "events").open("a") as file:
            file.writelines(f"{kind} {name}\n" for name in names)

    def expire(self) -> None:
        """No watch starts from the version of now, or from one before."""
        (self.path / "expired").write_text(str(len(events(self.path))))

    def fail_once(self) -> None:
        """Answer the next list with an error."""
        (self.path / "failing").touch()

    @property
    def requests(self) -> list[Request]:
        lines = (self.path / "requests").read_text().splitlines()
        return [(int(pid), what, version) for pid, what, version in map(str.split, lines)]

    def asked(self, process: Elsewhere) -> list[tuple[str, str]]:
        return [(what, version) for pid, what, version in self.requests if pid == process.pid]

    @property
    def names(self) -> list[str]:
        return sorted(objects(self.path))


def events(path: Path) -> list[Event[Any]]:
    """All that ever happened, without a line that is half written."""
    lines = (path / "events").read_text().rpartition("\n")[0].splitlines()
    found = []
    for version, line in enumerate(lines, 1):
        kind, name = line.split()
        found.append(Event(kind, {"metadata": {"name": name, "resourceVersion": str(version)}}))
    return found


def objects(path: Path) -> dict[str, Any]:
    there: dict[str, Any] = {}
    for event in events(path):
        name = event.object["metadata"]["name"]
        if event.type == "DELETED":
            del there[name]
        else:
            there[name] = event.object
    return there


def note(path: Path, what: str, version: str) -> None:
    """One line in the order of all processes."""
    with (path / "requests").open("a") as file:
        file.write(f"{os.getpid()} {what} {version or 'none'}\n")


class Client:
    """The reflector's side: a source."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def list(self, options: ListOptions) -> ListResult[Any]:
        note(self._path, "list", options.resource_version)
        failing = self._path / "failing"
        if failing.exists():
            failing.unlink()
            raise ApiError(503, "as the test wishes")
        version = len(events(self._path))
        return ListResult(list(objects(self._path).values()), str(version))

    def watch(self, options: WatchOptions) -> Watch:
        note(self._path, "watch", options.resource_version)
        expired = self._path / "expired"
        if expired.exists() and int(options.resource_version) <= int(expired.read_text()):
            raise ExpiredError(f"too old: {options.resource_version}")
        return Watch(self._path, int(options.resource_version))


class Watch:
    """The events after a version, past and to come, until it is closed."""

    def __init__(self, path: Path, version: int) -> None:
        self._path, self._version = path, version
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Event[Any]]:
        while not self._closed.wait(0.005):
            for event in events(self._path)[self._version :]:
                self._version += 1
                yield event

    def close(self) -> None:
        self._closed.set()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    made = Server(tmp_path)
    made.add("a", "b")
    return made


# --- what the processes do ------------------------------------------------------------------------


class Looking(Store):
    """A store that counts how often somebody wanted to fill it."""

    looks = 0

    def claim_reflector(self, name: str) -> bool:
        self.looks += 1
        return super().claim_reflector(name)


def looks(own: SimpleNamespace) -> int:
    count: int = own.store.looks
    return count


def make(own: SimpleNamespace, kind: Any, name: str, source: Any, standby: bool) -> Reflector:
    own.store = kind.attach(name, writable=True) if kind is not FIFO else kind.attach(name)
    backoff = Backoff(initial=0.01, cap=0.01, jitter=0.0)
    return Reflector(source, None, own.store, name="pods", standby=standby, backoff=backoff)


def reflect(
    own: SimpleNamespace, name: str, source: Any, *, standby: bool = False, kind: Any = Looking
) -> None:
    own.reflector = make(own, kind, name, source, standby)
    own.reflector.start()


def refused(own: SimpleNamespace, name: str, source: Any, kind: Any, call: str) -> tuple[int, str]:
    """Try to run a reflector in vain; the pid and the text of the error."""
    reflector = make(own, kind, name, source, False)
    with own.store, pytest.raises(ReflectorRunningError) as caught:
        getattr(reflector, call)()
    assert caught.value.pid is not None
    return caught.value.pid, str(caught.value)


def end(own: SimpleNamespace) -> ReflectorStats:
    assert own.reflector.stop(DEADLINE)
    stats: ReflectorStats = own.reflector.stats()
    return stats


def filler(store: Store, *dead: Elsewhere) -> int:
    """Wait until somebody watches for the store; its pid. Until the first report of a successor
    its status is that of the ``dead`` before it."""
    ended = {process.pid for process in dead}

    def watches() -> bool:
        status = store.reflector_status()
        return status.alive and status.state == "watching" and status.pid not in ended

    until(watches)
    return store.reflector_status().pid


def names(store: Store) -> list[str]:
    return sorted(store.list_keys())


# --- (a) a second one -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["start", "run"])
@pytest.mark.parametrize("kind", [Store, Indexer, FIFO])
def test_a_second_reflector_is_refused(
    name: str, server: Server, kind: type[Store], call: str
) -> None:
    """In another process start and run raise ReflectorRunningError with the pid of the first, and
    ask the source for nothing; once the first has ended, the place is free."""
    source = Client(server.path)
    with kind.create(name, capacity=SIZE) as store, elsewhere(2) as (first, second):
        first.run(reflect, name, source, kind=kind)
        assert filler(store) == first.pid
        pid, message = second.run(refused, name, source, kind, call)
        assert pid == first.pid
        assert f"'pods' in process {first.pid}" in message
        assert server.asked(second) == []
        first.run(end)
        second.run(reflect, name, source, kind=kind)
        assert filler(store, first) == second.pid
        second.run(end)


# --- (b) a standby takes over ---------------------------------------------------------------------


def test_a_standby_goes_on_without_a_list(name: str, server: Server) -> None:
    """When the first is killed, the standby asks only for a watch from where the first was, and
    brings what happened while nobody watched."""
    source = Client(server.path)
    with Store.create(name, capacity=SIZE) as store, elsewhere(2) as (first, second):
        first.run(reflect, name, source)
        assert filler(store) == first.pid
        second.run(reflect, name, source, standby=True)
        server.add("c")
        until(lambda: store.resource_version == "3")
        until(lambda: second.run(looks) >= 2)
        assert server.asked(second) == []
        first.kill()
        server.add("d")
        server.delete("a")
        assert filler(store, first) == second.pid
        until(lambda: store.resource_version == "5")
        assert names(store) == server.names == ["b", "c", "d"]
        assert server.asked(first) == [("list", "0"), ("watch", "2")]
        assert server.asked(second) == [("watch", "3")]
        assert second.run(end).lists == 0


def test_a_standby_lists_when_the_version_is_gone(name: str, server: Server) -> None:
    """Where the server no longer knows the version of the first, the standby's watch is a 410, and
    a list brings the store up to date."""
    source = Client(server.path)
    with Store.create(name, capacity=SIZE) as store, elsewhere(2) as (first, second):
        first.run(reflect, name, source)
        assert filler(store) == first.pid
        second.run(reflect, name, source, standby=True)
        stop(first.pid)  # so that it sees nothing of what follows
        server.delete("a")
        server.add("c", "d")
        server.expire()
        server.add("e")
        first.kill()
        assert filler(store, first) == second.pid
        until(lambda: store.resource_version == "6")
        assert names(store) == server.names == ["b", "c", "d", "e"]
        assert server.asked(second) == [("watch", "2"), ("list", "2"), ("watch", "6")]
        stats = second.run(end)
        assert (stats.lists, stats.errors) == (1, 1)
        assert stats.last_error.startswith("ExpiredError: 410")


def test_a_standby_over_a_directory(name: str, tmp_path: Path) -> None:
    """The versions of a folder mean nothing to another process: the standby lists, and the store
    follows the folder as before, with what changed between the two."""
    pytest.importorskip("watchfiles", reason="needs the extra shmcache[directory]")
    pytest.importorskip("yaml", reason="needs the extra shmcache[directory]")

    def write(pod: str) -> None:
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}}
        (tmp_path / ".new").write_text(json.dumps(document))
        (tmp_path / ".new").rename(tmp_path / f"{pod}.json")

    write("a")
    write("b")
    with Store.create(name, capacity=SIZE) as store, elsewhere(2) as (first, second):
        first.run(reflect_directory, name, str(tmp_path))
        assert filler(store) == first.pid
        second.run(reflect_directory, name, str(tmp_path))
        write("c")
        until(lambda: names(store) == ["a", "b", "c"])
        stop(first.pid)
        (tmp_path / "a.json").unlink()
        write("d")
        first.kill()
        until(lambda: names(store) == ["b", "c", "d"])
        write("e")
        until(lambda: names(store) == ["b", "c", "d", "e"])
        assert filler(store, first) == second.pid
        stats = second.run(end)
        assert stats.lists == 1
        assert stats.last_error.startswith("ExpiredError: 410")


def reflect_directory(own: SimpleNamespace, name: str, path: str) -> None:
    reflect(own, name, DirectorySource(path), standby=True)


# --- (c) stopped is not dead ----------------------------------------------------------------------


def test_a_stopped_reflector_is_not_robbed(name: str, server: Server) -> None:
    """While the first is stopped the standby waits on, and a third process sees it alive with a
    heartbeat that grows older; when it continues it goes on filling the store."""
    source = Client(server.path)
    with Store.create(name, capacity=SIZE) as store, elsewhere(3) as (first, second, third):
        first.run(reflect, name, source)
        assert filler(store) == first.pid
        second.run(reflect, name, source, standby=True)
        third.run(attach, Store, name)
        stop(first.pid)
        looked = second.run(looks)
        ages = [third.run(ask, "reflector_status").heartbeat_age]
        while ages[-1] < 2.0:  # twice what a living one lets it become
            status = third.run(ask, "reflector_status")
            assert (status.alive, status.pid) == (True, first.pid)
            assert status.heartbeat_age > ages[-1]
            ages.append(status.heartbeat_age)
            time.sleep(0.01)  # so that the others come to run
        until(lambda: second.run(looks) >= looked + 3)
        assert server.asked(second) == []
        resume(first.pid)
        server.add("c")
        until(lambda: "c" in store)
        until(lambda: third.run(ask, "reflector_status").heartbeat_age < 2.0)
        assert server.asked(second) == []
        stop(first.pid)
        first.kill()
        assert filler(store, first) == second.pid
        second.run(end)


# --- (d) what others learn ------------------------------------------------------------------------


def test_the_status_is_everybodys(name: str, server: Server) -> None:
    """A read-only handle of another process tells who fills the store, in which state, with which
    counts and last error; after its death that it is dead, and the rest as it last was."""
    source = Client(server.path)
    with Store.create(name, capacity=SIZE), elsewhere(2) as (first, reader):
        reader.run(attach, Store, name)

        def status() -> ReflectorStatus:
            found: ReflectorStatus = reader.run(ask, "reflector_status")
            return found

        before = status()
        assert (before.alive, before.name, before.pid, before.state) == (False, "", 0, "")
        assert before.heartbeat_age is before.contact_age is before.last_error_age is None
        server.fail_once()
        first.run(reflect, name, source)
        until(lambda: status().state == "watching")
        server.add("c")
        server.delete("a")
        until(lambda: status().events == 2)  # with a heartbeat
        said = status()
        assert (said.alive, said.pid, said.name) == (True, first.pid, "pods")
        assert (said.state, said.resource_version) == ("watching", "4")
        assert (said.lists, said.watches, said.dropped, said.errors) == (1, 1, 0, 1)
        assert said.last_error == "ApiError: 503: as the test wishes"
        assert None not in (
            said.heartbeat_age,
            said.contact_age,
            said.event_age,
            said.last_error_age,
        )
        assert said.last_error_age >= said.contact_age  # type: ignore[operator]
        first.kill()
        dead = status()
        assert not dead.alive
        for field in ("pid", "name", "state", "resource_version", "lists", "events", "last_error"):
            assert getattr(dead, field) == getattr(said, field)
        assert status().heartbeat_age > dead.heartbeat_age  # type: ignore[operator]


def test_a_good_end_is_told(name: str, server: Server) -> None:
    """After stop() the others see that it is not alive, and was stopped."""
    with Store.create(name, capacity=SIZE) as store, elsewhere(2) as (first, reader):
        reader.run(attach, Store, name)
        first.run(reflect, name, Client(server.path))
        filler(store)
        first.run(end)
        status = reader.run(ask, "reflector_status")
        assert (status.alive, status.state, status.pid) == (False, "stopped", first.pid)


# --- (e) fork, and closing ------------------------------------------------------------------------


def said(name: str, value: object) -> dict[str, Any]:
    return {"metadata": {"name": name}, "value": value}


def fork_a_child(own: SimpleNamespace) -> int:
    """A child that tries to take the place at once, and again when it is told."""

    def child() -> None:
        store = own.store  # as inherited
        store.add(said("before", store.claim_reflector("child")))
        until(lambda: "go" in store)
        store.add(said("after", store.claim_reflector("child")))
        until(lambda: "end" in store)

    return start(child)


def test_a_forked_child_does_not_hold_the_place(name: str, server: Server) -> None:
    """A child of the reflector's process has not the place while its parent lives, and does not
    keep it when that was killed: it is free, also for the child by its inherited handle."""
    with (
        adopting(),
        Store.create(name, capacity=SIZE) as store,
        elsewhere(1) as (first,),
    ):
        first.run(reflect, name, Client(server.path))
        assert filler(store) == first.pid
        child = first.run(fork_a_child)
        try:
            until(lambda: "before" in store)
            assert store.get_by_key("before")["value"] is False
            assert store.reflector_status().alive
            first.kill()
            assert not store.reflector_status().alive
            assert store.claim_reflector("test")
            store.release_reflector()
            assert set(states(child)) <= set("SRD")
            store.add(said("go", True))
            until(lambda: "after" in store)
            assert store.get_by_key("after")["value"] is True
            assert store.reflector_status().alive
            assert not store.claim_reflector("test")
            store.add(said("end", True))
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            status = wait_for(child)
        assert status == 0
        assert not store.reflector_status().alive


def close_store(own: SimpleNamespace) -> None:
    own.store.close()


def test_closing_the_handle_frees_the_place(name: str, server: Server) -> None:
    """Closed under a running reflector, the handle holds the place no longer: a standby takes over,
    and the end of the first takes nothing from it."""
    source = Client(server.path)
    with Store.create(name, capacity=SIZE) as store, elsewhere(2) as (first, second):
        first.run(reflect, name, source)
        assert filler(store) == first.pid
        first.run(close_store)
        assert not store.reflector_status().alive
        second.run(reflect, name, source, standby=True)
        assert filler(store, first) == second.pid
        first.run(end)
        assert store.reflector_status().alive
        server.add("c")
        until(lambda: "c" in store)
        assert server.asked(second) == [("watch", "2")]
        second.run(end)
        assert not store.reflector_status().alive


# --- (f) one after the other ----------------------------------------------------------------------


def intruders(requests: list[Request]) -> list[int]:
    """Who asked the server for something while another process was its reflector: until that was
    about to be killed (a note of ``kill``, with its pid in the place of the version)."""
    found, holder = [], 0
    for pid, what, version in requests:
        if what == "kill":
            assert int(version) == holder
            holder = 0
        elif holder in (0, pid):
            holder = pid
        else:
            found.append(pid)
    return found


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([(1, "list", "0"), (1, "watch", "2"), (9, "kill", "1"), (2, "watch", "2")], []),
        ([(1, "watch", "2"), (2, "watch", "2"), (9, "kill", "1")], [2]),
        ([(1, "watch", "2"), (9, "kill", "1"), (2, "watch", "2"), (3, "watch", "2")], [3]),
        ([(1, "watch", "2"), (9, "kill", "1"), (2, "watch", "2"), (1, "watch", "2")], [1]),
    ],
)
def test_intruders_are_found(requests: list[Request], expected: list[int]) -> None:
    """Those who take turns are not reported, and each who comes too early or stays too long is."""
    assert intruders(requests) == expected


def test_each_standby_gets_its_turn(name: str, server: Server) -> None:
    """Three standbys; whoever fills the store is killed, at any moment, and the first three dead
    are replaced: never are there two at a time, each is elected, none lists, nothing is missed."""
    source, chance = Client(server.path), random.Random("standbys")
    with Store.create(name, capacity=SIZE) as store, elsewhere(4) as processes:
        processes[0].run(reflect, name, source, standby=True)
        assert filler(store) == processes[0].pid
        for process in processes[1:]:
            process.run(reflect, name, source, standby=True)
        elected, count = [processes[0]], 0
        while True:
            for _ in range(chance.randrange(20)):
                count += 1
                server.add(f"n{count}")
                if count % 3 == 0:
                    server.delete(f"n{count - 1}")
            if len(elected) == 7:
                break
            time.sleep(chance.random() * 0.01)  # which moment: any will do
            note(server.path, "kill", str(elected[-1].pid))
            elected[-1].kill()
            if len(processes) < 7:
                processes.append(Elsewhere())
                processes[-1].run(reflect, name, source, standby=True)
            pid = filler(store, *elected)
            elected.append(next(process for process in processes if process.pid == pid))
        until(lambda: store.resource_version == str(len(events(server.path))))
        assert names(store) == server.names
        assert set(elected) == set(processes)
        assert intruders(server.requests) == []
        assert [what for _, what, _ in server.requests].count("list") == 1
        assert store.check() == []
        elected[-1].run(end)
