"""Memory that runs out: typed errors with figures, the content whole, and never a bus error."""

from __future__ import annotations

import subprocess
import sys

import pytest

IN_A_SMALL_TMPFS = """
import os, sys
import shmcache
from shmcache import RawCodec, Store

hog = "/dev/shm/hog"

def full_hog():
    with open(hog, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

# 1. Full at creation.
full_hog()
try:
    Store.create("none", capacity="4MiB")
    sys.exit("created on a full tmpfs")
except shmcache.CapacityError as error:
    assert "--shm-size" in str(error), error
assert os.listdir("/dev/shm") == ["hog"], os.listdir("/dev/shm")
os.unlink(hog)

# 2. Full while growing: what was added stays readable, writable within what it has, and whole.
store = Store.create("small", codec=RawCodec(), capacity="6MiB")
reader = Store.attach("small", codec=RawCodec())
store.add_raw("first", b"x" * 1000)
full_hog()
added = 0
try:
    while True:
        store.add_raw(f"k{added}", bytes([added % 256]) * 3000)
        added += 1
except shmcache.CapacityError as error:
    assert "/dev/shm is full" in str(error), error
assert store.check() == []
assert len(store) == len(reader.list()) == added + 1
assert reader.get_raw("first") == b"x" * 1000
store.delete_by_key("first")
store.add_raw("again", b"y" * 900)

# 3. A repair needs no memory.
store._core.testing_repair()
assert store.check() == []

# 4. Room again: it goes on.
os.unlink(hog)
for i in range(500):
    store.add_raw(f"later{i}", b"z" * 3000)
assert store.check() == []
print("whole", added)
"""


def in_namespace(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program with an 8 MB tmpfs of its own at /dev/shm."""
    unshare = ["unshare", "--mount", "--map-root-user", "--user"]
    probe = subprocess.run(
        [*unshare, "mount", "-t", "tmpfs", "-o", "size=8m", "none", "/dev/shm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f"the kernel refuses a mount namespace: {probe.stderr.strip()}")
    shell = 'mount -t tmpfs -o size=8m none /dev/shm && exec "$0" -c "$1"'
    return subprocess.run(
        [*unshare, "sh", "-c", shell, sys.executable, program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_full_tmpfs_is_an_error_and_no_signal() -> None:
    """With /dev/shm full at creation and at growth: CapacityError, and nothing is lost."""
    done = in_namespace(IN_A_SMALL_TMPFS)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stdout.startswith("whole")


def test_a_file_size_limit_is_an_error_and_no_signal() -> None:
    """Under `ulimit -f` a creation that would pass it is a CapacityError that names the limit."""
    program = """
import resource, shmcache
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    shmcache.Store.create(capacity="64MiB")
except shmcache.CapacityError as error:
    assert "ulimit -f" in str(error), error
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
