"""A peer that truncates the file of an arena ends no process: every call says that it is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import faulthandler, os, sys
faulthandler.disable()
before = {before!r} == "before"
if before:
    faulthandler.enable()
import shmcache
from shmcache import FIFO, Store
store = Store.create(capacity="1MiB")
fifo = FIFO.create(capacity="1MiB")
if not before:
    faulthandler.enable()
for i in range(50):
    store.add_raw(f"k{{i}}", b"\\xa1x" * 100)
    fifo.add_raw(f"k{{i}}", b"\\xa1x")
reader = Store.attach(store.name)
other = Store.create(capacity="1MiB")
other.add_raw("k", b"\\xa1x")
for arena in (store, fifo):
    os.truncate(f"/dev/shm/shmcache.{{arena.name}}", {keep})
calls = [
    lambda: reader.get_by_key("k1"), lambda: reader.get_raw("k1"), lambda: reader.list(),
    lambda: "k1" in reader, lambda: len(reader), lambda: reader.version, lambda: reader.stats(),
    lambda: reader.workers(),
    lambda: reader.has_synced, lambda: reader.resource_version, lambda: reader.wait_for_change(50),
    lambda: reader.check(), lambda: store.add_raw("k", b"x"), lambda: store.delete_by_key("k1"),
    lambda: store.replace([]), lambda: fifo.pop(), lambda: fifo.list(), lambda: fifo.qsize(),
    lambda: fifo.pop_many(3), lambda: fifo.shutdown(),
]
for number, call in enumerate(calls):
    try:
        call()
    except shmcache.CorruptArenaError as error:
        assert "truncated" in str(error), error
    else:
        sys.exit(f"call {{number}} said nothing")
assert other.get_by_key("k") == "x" and other.check() == []
for arena in (store, fifo, other):
    arena.unlink()
"""


@pytest.mark.parametrize("faulthandler", ["before", "after"])
@pytest.mark.parametrize("keep", [0, 4096, 100_000])
def test_truncated_under_its_users(keep: int, faulthandler: str) -> None:
    """After a truncation every call of every handle raises CorruptArenaError, other arenas go on,
    and a fault handler of the application, installed before or after ours, does not matter."""
    code = SCRIPT.format(keep=keep, before=faulthandler)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


FOREIGN = """
import mmap, os, signal, sys
from shmcache import Store
store = Store.create(capacity="1MiB")
store.unlink()
fd = os.memfd_create("foreign")
os.ftruncate(fd, 8192)
memory = mmap.mmap(fd, 8192)
os.ftruncate(fd, 0)
memory[5000]
"""


@pytest.mark.parametrize("code", [FOREIGN, FOREIGN.replace("memory[5000]", "os.kill(0, 7)")])
def test_other_bus_errors_are_not_ours(code: str) -> None:
    """A bus error beyond any arena, or one that is sent, ends the process as ever."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == -signal.SIGBUS


def test_a_handle_that_is_only_dropped() -> None:
    """A writer whose arena is truncated after its last call ends as if nothing had happened."""
    code = """
import os
from shmcache import Store
store = Store.create(capacity="1MiB")
store.add_raw("k", b"x")
os.truncate(f"/dev/shm/shmcache.{store.name}", 0)
store.unlink()
del store
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_successor_after_a_loss(name: str) -> None:
    """Unlinked and made anew, the name serves again while handles of the lost arena say so."""
    code = f"""
import os, shmcache
from shmcache import Store
old = Store.create({name!r}, capacity="1MiB")
os.truncate("/dev/shm/shmcache." + old.name, 0)
try:
    old.add_raw("k", b"x")
except shmcache.CorruptArenaError:
    pass
shmcache.unlink(old.name)
new = Store.create(old.name, capacity="1MiB")
new.add_raw("k", b"x")
assert new.check() == []
new.unlink()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(f"/dev/shm/shmcache.{name}")
