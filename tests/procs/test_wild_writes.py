"""A process with a read-only handle that writes where it must not ends, and nothing has changed.

Each page of the segment that holds something is written to by a child of its own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache import FIFO, RawCodec, Store
from tests.procs.control import CONTROL, META, alone, forked, path_of

PAGE = 4096


def mapped(name: str) -> list[tuple[int, int, str, int]]:
    """Begin, end, rights and file offset of each mapping of the arena in this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if len(fields) == 6 and Path(fields[5]) == path_of(name):
            begin, end = (int(number, 16) for number in fields[0].split("-"))
            found.append((begin, end, fields[1], int(fields[2], 16)))
    return found


def address(name: str, offset: int) -> int:
    """Where this process has that byte of the arena's file, which it has once."""
    found = [
        begin + offset - at
        for begin, end, _, at in mapped(name)
        if at <= offset < at + (end - begin)
    ]
    assert len(found) == 1
    return found[0]


def pages(name: str) -> list[int]:
    """The offsets of all pages of the arena's file that hold something."""
    offsets = []
    with path_of(name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = 0
        while begin < size:
            try:
                begin = os.lseek(file.fileno(), begin, os.SEEK_DATA)
            except OSError:  # nothing more
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            offsets += range(begin, end, PAGE)
            begin = end
    return offsets


def place_of(name: str, content: bytes) -> int:
    """The offset in the arena's file of those bytes, which are there once."""
    found = []
    with path_of(name).open("rb") as file:
        for offset in pages(name):
            page = os.pread(file.fileno(), PAGE, offset)
            found += [offset + page.index(content)] if content in page else []
    assert len(found) == 1
    return found[0]


def key_of(obj: bytes) -> str:
    return obj[:8].decode()


def writing(handle: Store, writable: bool, offset: int, content: bytes) -> int:
    """The exit status of a child that attaches and writes into its mapping of the file."""

    def write() -> None:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        handle.close()  # the inherited one
        with type(handle).attach(handle.name, writable=writable, codec=RawCodec()) as again:
            ctypes.memmove(address(again.name, offset), content, len(content))

    return forked(write)


@pytest.fixture(params=[Store, FIFO])
def handle(name: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    """300 objects, which are bytes that begin with their keys."""
    with request.param.create(name, capacity="1MiB", codec=RawCodec(), key_func=key_of) as made:
        made.replace([b"%08d" % n + b"." * 300 for n in range(300)])
        yield made


def test_a_wild_write_ends_its_process_only(handle: Store) -> None:
    """A write into any page but the control pages, through the mapping of a read-only handle, is
    a SIGSEGV; not a byte has changed, and the next writer writes."""
    file = path_of(handle.name)
    objects, before = handle.list(), file.read_bytes()
    data = [page for page in pages(handle.name) if not CONTROL <= page < META]
    assert {0, META, place_of(handle.name, b"00000299.") // PAGE * PAGE} < set(data)
    for page in data:
        for offset in (page, page + PAGE - 8):
            assert writing(handle, False, offset, b"\xff" * 8) == -signal.SIGSEGV
    after = file.read_bytes()
    assert after[:CONTROL] == before[:CONTROL]
    assert after[META:] == before[META:]
    assert handle.list() == objects
    assert handle.check() == []
    handle.add(b"00000000 another")
    assert handle.get_by_key("00000000") == b"00000000 another"
    alone(handle)


def test_an_inherited_read_only_handle_is_as_good(handle: Store) -> None:
    """The mapping that a forked child inherits from a read-only handle is read-only too."""
    place = place_of(handle.name, b"00000007.")
    objects = handle.list()
    with type(handle).attach(handle.name, writable=False, codec=RawCodec()):

        def write() -> None:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            handle.close()
            ctypes.memmove(address(handle.name, place), b"XXXXXXXX", 8)

        assert forked(write) == -signal.SIGSEGV
    assert handle.list() == objects


def test_a_writable_handle_is_not_protected(handle: Store) -> None:
    """The tests above can fail: the same write through a writable handle is seen by everybody."""
    place = place_of(handle.name, b"00000007.") + 8
    assert writing(handle, True, place, b"X") == 0
    assert handle.get_by_key("00000007")[:9] == b"00000007X"


def test_the_control_pages_are_for_everybody(handle: Store) -> None:
    """A read-only handle can write to the control pages, as it must to sleep, and nowhere else."""
    unused = META - 16
    assert writing(handle, False, unused, bytes(8)) == 0

    def look() -> None:
        handle.close()
        with type(handle).attach(handle.name, writable=False, codec=RawCodec()):
            rights = {at: (right, end - begin) for begin, end, right, at in mapped(handle.name)}
        assert rights.pop(CONTROL) == ("rw-s", META - CONTROL)
        assert {right for right, _ in rights.values()} == {"r--s"}
        assert rights.keys() == {0, META}

    assert forked(look) == 0
    assert handle.check() == []
