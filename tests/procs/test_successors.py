"""An arena that was unlinked and made anew: who holds the old one notices, sooner or later."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, Store


def until_closed(call: Callable[[], object]) -> shmcache.ClosedError:
    """Call until it raises ClosedError: a handle looks at its name now and then, not each time."""
    while True:
        try:
            call()
        except shmcache.ClosedError as error:
            return error


CALLS: dict[str, Callable[[Store], object]] = {
    "get_by_key": lambda store: store.get_by_key("k"),
    "get_raw": lambda store: store.get_raw("k"),
    "list": lambda store: store.list(),
    "len": len,
    "version": lambda store: store.version,
    "add_raw": lambda store: store.add_raw("k", b"\xa1x"),
    "wait_for_change": lambda store: store.wait_for_change(store.version),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_old_handle_says_so(name: str, call: str) -> None:
    """After unlink and a new arena of the name, each kind of call on the old handle ends in
    ClosedError; between the two it goes on, and the new arena is untouched."""
    with Store.create(name, capacity="1MiB") as old:
        old.add_raw("k", b"\xa1x")
        shmcache.unlink(name)
        assert old.get_by_key("k") == "x"
        old.add_raw("k", b"\xa1y")
        assert old.get_by_key("k") == "y"
        with Store.create(name, capacity="1MiB") as new:
            error = until_closed(lambda: CALLS[call](old))
            assert "unlinked" in str(error)
            assert "Attach again" in str(error)
            assert len(new) == 0
            old.unlink()  # not the name of its successor
            with Store.attach(name) as reader:
                assert len(reader) == 0


def wait_for_an_item(name: str, ready: Any) -> None:
    with FIFO.attach(name) as fifo:
        ready.set()
        try:
            fifo.pop()
        except shmcache.ClosedError:
            return
    raise AssertionError("popped from an arena that nobody can find")


def wait_for_a_change(name: str, ready: Any) -> None:
    with Store.attach(name) as store:
        ready.set()
        try:
            store.wait_for_change(store.version)
        except shmcache.ClosedError:
            return
    raise AssertionError("saw a change of an arena that nobody can find")


@pytest.mark.parametrize(("kind", "work"), [(FIFO, wait_for_an_item), (Store, wait_for_a_change)])
def test_sleepers_notice(kind: type[Store], work: Any, name: str) -> None:
    """A process asleep in pop or wait_for_change on the old arena leaves with ClosedError, also
    when the file was removed past our unlink (rm)."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with kind.create(name, capacity="1MiB"):
        sleeper = context.Process(target=work, args=(name, ready))
        sleeper.start()
        assert ready.wait(60)
        os.unlink(f"/dev/shm/shmcache.{name}")
        with kind.create(name, capacity="1MiB"):
            sleeper.join()
            assert sleeper.exitcode == 0
            sleeper.close()


def test_unlinked_and_private(name: str) -> None:
    """A name that nobody takes again leaves the attached with a private arena for as long as they
    like: the usual way to share with forked children only."""
    with Store.create(name, capacity="1MiB") as store:
        store.unlink()
        for i in range(1000):
            store.add_raw(f"k{i}", b"\xa1x")
        assert store.wait_for_change(store.version, 0.2) == store.version
        assert len(store.list()) == 1000
