"""Who waits for the dead finds out, whatever else happens to it."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache import FIFO, Store
from tests.procs.control import CONTROL, META, start, stop_as_owner, wait_for

WAITING = META + 128  # Meta::waiting_count
DIRTY = 2


@contextlib.contextmanager
def alarms(seconds: float) -> Iterator[None]:
    """A signal every so often, with a handler that does nothing."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("lock_timeout", "period"), [(30.0, 0.005), (0.0, 0.0)])
def test_signals_do_not_hide_a_death(name: str, lock_timeout: float, period: float) -> None:
    """A writer whose every wait is cut short by a signal, or that would not wait at all, still
    takes over from an owner that was killed before."""

    def hold() -> None:
        with Store.attach(name, writable=True) as store:
            while True:
                store.check()

    with Store.create(name, capacity="1MiB", lock_timeout=lock_timeout) as store:
        for i in range(1000):
            store.add_raw(f"k{i}", b"\xa1x")
        owner = start(hold)
        stop_as_owner(owner, name)
        os.kill(owner, signal.SIGKILL)
        assert wait_for(owner) == -signal.SIGKILL
        with alarms(period):
            store.add_raw("after", b"\xa1x")
        assert store.check() == []


def test_signals_do_not_hide_an_item(name: str) -> None:
    """A consumer whose sleeps are cut short by signals gets the item of a producer that died after
    it had published the item and before it had counted it."""
    path = Path("/dev/shm") / f"shmcache.{name}"
    with FIFO.create(name, capacity="1MiB") as fifo, path.open("r+b", buffering=0) as file:
        for key in ("item", "another"):
            fifo.add_raw(key, b"\xa1x")
        segment = file.fileno()
        assert struct.unpack("<Q", os.pread(segment, 8, WAITING)) == (2,)
        # What such a producer leaves: the record is LIVE, nothing counts it, the lock is DIRTY.
        # First as an empty queue, so that the consumer goes to sleep.
        os.pwrite(segment, struct.pack("<Q", 0), WAITING)

        def producer_dies(*_: object) -> None:
            signal.signal(signal.SIGALRM, lambda *_: None)
            os.pwrite(segment, struct.pack("<I", DIRTY), CONTROL)

        with alarms(0.02):
            signal.signal(signal.SIGALRM, producer_dies)
            assert fifo.pop_raw() == ("item", b"\xa1x")
        assert fifo.check() == []
