"""Whatever is at /dev/shm/shmcache.NAME: it is used if it is ours, else refused by name.

Anybody may put anything there, because /dev/shm is open to all users. Nothing of it may make a
call hang, crash or change the thing, and nothing of it may disturb the other arenas.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmcache
from shmcache import FIFO, Store, _arena, _core
from tests.procs.control import META, forked, path_of

# What a call of the API may say to a file that it does not like.
REFUSED = (
    shmcache.ArenaPermissionError,
    shmcache.IncompatibleArenaError,
    shmcache.CorruptArenaError,
)


def create(name: str) -> None:
    Store.create(name, capacity="1MiB").close()


def open_(name: str) -> None:
    Store.open(name, capacity="1MiB").close()


def attach(name: str) -> None:
    Store.attach(name).close()


def attach_writable(name: str) -> None:
    Store.attach(name, writable=True).close()


def attach_patiently(name: str) -> None:
    Store.attach(name, timeout=0.01).close()


def attach_fifo(name: str) -> None:
    FIFO.attach(name).close()


def open_fifo(name: str) -> None:
    FIFO.open(name, capacity="1MiB").close()


ATTACHING = [attach, attach_writable, attach_patiently, attach_fifo]
CALLS = [*ATTACHING, create, open_, open_fifo]


def look(path: Path) -> tuple[object, ...]:
    """Everything about the thing that a call could change."""
    status = path.lstat()
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes() if status.st_size < 1 << 20 else status.st_blocks
    elif stat.S_ISLNK(status.st_mode):
        content = path.readlink()
    elif stat.S_ISDIR(status.st_mode):
        content = sorted(os.listdir(path))
    fields = status.st_mode, status.st_ino, status.st_nlink, status.st_uid, status.st_gid
    return (*fields, status.st_size, status.st_mtime_ns, content)


def refused(path: Path, name: str, calls: list[Callable[[str], None]]) -> None:
    """Each call refuses the thing with an error of ours and leaves it as it is."""
    before = look(path)
    for call in calls:
        taken = (shmcache.ArenaExistsError,) if call is create else ()
        with pytest.raises((*REFUSED, *taken), match=re.escape(name)):
            call(name)
        assert look(path) == before, call.__name__


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks unfinished is not given the time that a creator may need."""
    monkeypatch.setattr(_arena, "_GRACE_SECONDS", 0.001)


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


@pytest.fixture
def planted(name: str) -> Iterator[Path]:
    """The path that an arena of `name` would have, for something else to be there."""
    path = path_of(name)
    yield path
    remove(path)


# --- things that are no regular files -----------------------------------------------------------


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def device(major: int, minor: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(major, minor))
        except PermissionError as error:
            pytest.skip(f"no device nodes here: {error}")

    return make


THINGS: dict[str, Callable[[Path], object]] = {
    "directory": lambda path: path.mkdir(0o700),
    "pipe": lambda path: os.mkfifo(path, 0o600),
    "socket": socket_at,
    "dangling link": lambda path: path.symlink_to("/dev/shm/nothing-is-here"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to a directory": lambda path: path.symlink_to("/tmp"),
    "null": device(1, 3),
    "zero": device(1, 5),
    "full": device(1, 7),
    "no device": device(60, 0),
}


things = pytest.mark.parametrize("make", THINGS.values(), ids=THINGS)


@things
def test_things_that_are_no_files(name: str, planted: Path, make: Callable[[Path], object]) -> None:
    """A directory, pipe, socket, link or device in the place of an arena is refused by every call
    with an error of ours, without waiting, and stays what it is."""
    make(planted)
    refused(planted, name, CALLS)


@things
def test_arenas_are_listed_beside_them(
    store: Store, name: str, make: Callable[[Path], object]
) -> None:
    """Such a thing hides no arena from list_arenas, and is not shown as an arena."""
    thing = path_of(f"{name}-thing")
    make(thing)
    try:
        before = look(thing)
        kinds = {info.name: info.kind for info in shmcache.list_arenas()}
        assert kinds[name] == "Store"
        assert kinds.get(f"{name}-thing") not in {"Store", "FIFO"}
        assert look(thing) == before
    finally:
        remove(thing)


@things
def test_a_handle_leaves_what_has_taken_its_name(
    store: Store, planted: Path, make: Callable[[Path], object]
) -> None:
    """unlink of a handle spares the thing that has its name by now; the handle goes on."""
    store.unlink()
    make(planted)
    before = look(planted)
    store.unlink()
    assert look(planted) == before
    store.add_raw("key", b"\xa1x")
    assert store.get_by_key("key") == "x"


@things
def test_they_can_be_unlinked(name: str, planted: Path, make: Callable[[Path], object]) -> None:
    """unlink by name removes such a thing, and not what it points to, or says why it cannot."""
    make(planted)
    with contextlib.suppress(shmcache.ShmCacheError):
        shmcache.unlink(name)
        assert not os.path.lexists(planted)
    assert Path("/tmp").is_dir()


# --- regular files that are not ours ------------------------------------------------------------

SIZES = [1, 7, 8, 103, 104, 4095, 4096, 100_000]
FILLS: dict[str, Callable[[int], bytes]] = {
    "zeros": bytes,
    "ones": lambda size: b"\xff" * size,
    "text": lambda size: (b"something else entirely " * size)[:size],
    "random": lambda size: random.Random(size).randbytes(size),
}


def private_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", SIZES)
def test_foreign_files_are_not_attached(name: str, planted: Path, size: int, fill: str) -> None:
    """A file of any size that is not an arena is refused by attach, and not changed."""
    private_file(planted, FILLS[fill](size))
    refused(planted, name, ATTACHING)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("call", [create, open_, open_fifo])
def test_foreign_files_are_not_taken_over(
    name: str,
    planted: Path,
    size: int,
    fill: str,
    call: Callable[[str], None],
) -> None:
    """A file of any size that is not an arena is refused by create and open, and not changed."""
    private_file(planted, FILLS[fill](size))
    refused(planted, name, [call])


@pytest.mark.parametrize("call", [create, open_, open_fifo])
def test_an_empty_file_is_taken_over(name: str, planted: Path, call: Callable[[str], None]) -> None:
    """An empty file is what a creator leaves that died at once: attach says so, the next creator
    uses it, and it is private then whatever it was."""
    for mode in (0o600, 0o640, 0o400, 0o700):
        private_file(planted, b"")
        planted.chmod(mode)
        refused(planted, name, ATTACHING)
        inode = planted.stat().st_ino
        if os.geteuid() != 0 and not mode & 0o200:
            continue
        call(name)
        assert planted.stat().st_ino == inode
        assert stat.S_IMODE(planted.stat().st_mode) == 0o600
        planted.unlink()


@pytest.mark.parametrize("content", ["arena", "empty"])
@pytest.mark.parametrize("mode", [0o602, 0o606, 0o622, 0o666, 0o777])
def test_files_that_others_may_write(name: str, planted: Path, mode: int, content: str) -> None:
    """An arena, or an empty file, that all users may write is refused by every call."""
    if content == "arena":
        create(name)
    else:
        private_file(planted, b"")
    planted.chmod(mode)
    refused(planted, name, CALLS)


@pytest.mark.parametrize("content", ["arena", "empty"])
def test_files_with_a_second_name(name: str, planted: Path, content: str) -> None:
    """An arena, or an empty file, that has another name too is refused by every call."""
    if content == "arena":
        create(name)
    else:
        private_file(planted, b"")
    second = planted.with_name(f"{planted.name}-second")
    os.link(planted, second)
    try:
        refused(planted, name, CALLS)
    finally:
        second.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.parametrize("content", ["arena", "empty"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o664, 0o666])
def test_files_of_another_user(name: str, planted: Path, mode: int, content: str) -> None:
    """What belongs to another user is refused by every call, also if our group may write it."""
    if content == "arena":
        create(name)
    else:
        private_file(planted, b"")
    planted.chmod(mode)
    os.chown(planted, 4321, 4321)
    before = look(planted)

    def as_third_user() -> None:
        os.setgroups([])
        os.setgid(4321)
        os.setuid(4322)
        for call in CALLS:
            with pytest.raises(REFUSED):
                call(name)

    assert forked(as_third_user) == 0
    assert look(planted) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_arena_of_root_for_another_user(name: str, planted: Path) -> None:
    """Root's arena is trusted by a user whom its mode lets in, and closed to others."""
    create(name)
    os.chown(planted, 0, 4321)
    planted.chmod(0o660)

    def as_user(gid: int) -> None:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(4322)
        with Store.attach(name, writable=True) as store:
            store.add_raw("key", b"\xa1x")

    def as_stranger() -> None:
        with pytest.raises(shmcache.ArenaPermissionError):
            as_user(4323)

    assert forked(lambda: as_user(4321)) == 0
    assert forked(as_stranger) == 0
    with Store.attach(name) as store:
        assert store.list_keys() == ["key"]


# --- headers ------------------------------------------------------------------------------------

# Of layout.hpp: offset and format of each field that is checked.
FIELDS = {
    "magic": (0, "=Q"),
    "layout_version": (8, "=I"),
    "page_size": (12, "=I"),
    "kind": (16, "=I"),
    "record_size": (20, "=I"),
    "capacity": (24, "=Q"),
    "file_size": (32, "=Q"),
}
CODEC = 72
LIVE = META + 64 + 24


def hostile(field: str, value: int) -> list[int]:
    """Bounds of the type and neighbours of the right value."""
    bits = 8 * struct.calcsize(FIELDS[field][1])
    values = {0, 1, 2, 3, 4095, 4096, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1}
    values |= {value - 1, value + 1, value * 2 % 2**bits, value // 2, value ^ 2 ** (bits - 1)}
    values |= {(256 << 10) - 1, 256 << 10, 2**44 % 2**bits, (2**44 + 1) % 2**bits}
    return sorted(values - {value})


@pytest.mark.parametrize("kind", [Store, FIFO])
@pytest.mark.parametrize("field", FIELDS)
def test_headers_with_hostile_fields(
    name: str, planted: Path, field: str, kind: type[Store]
) -> None:
    """Each field of the header at its bounds and beside its right value: refused by every call,
    and nothing is changed."""
    with kind.create(name, capacity="1MiB") as made:
        made.add_raw("key", b"\xa1x")
    offset, form = FIELDS[field]
    with planted.open("r+b", buffering=0) as file:
        (right,) = struct.unpack(form, os.pread(file.fileno(), struct.calcsize(form), offset))
        for value in hostile(field, right):
            if field == "capacity" and -(-value // 4096) == right // 4096:
                continue  # rounded up to pages, it is the right one
            os.pwrite(file.fileno(), struct.pack(form, value), offset)
            refused(planted, name, CALLS)
        os.pwrite(file.fileno(), struct.pack(form, right), offset)
    with kind.attach(name) as made:
        assert made.get_by_key("key") == "x"
        assert made.check() == []


@pytest.mark.parametrize("codec", [b"", b"raw", b"\xff" * 32, b"msgpackk", b"%s%n", b"\n" * 31])
def test_headers_with_hostile_codecs(store: Store, planted: Path, codec: bytes) -> None:
    """A codec name of any bytes is another codec: refused by every call."""
    with planted.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), codec.ljust(32, b"\0"), CODEC)
    refused(planted, store.name, CALLS)


def test_headers_of_random_bytes(name: str, planted: Path) -> None:
    """Five hundred headers of random bytes behind the right magic and layout: refused."""
    create(name)
    right = planted.read_bytes()[:4096]
    numbers = random.Random(1)
    for n in range(500):
        kept = numbers.choice([8, 12, 16, 24])
        private_file(planted, right[:kept] + numbers.randbytes(4096 - kept))
        refused(planted, name, [CALLS[n % len(CALLS)]])


@pytest.mark.parametrize("size", [8, 103, 104, 4095, 4096, 4097, 24576, 100_000, -4096, -1, 1])
def test_arenas_that_were_cut_or_lengthened(name: str, planted: Path, size: int) -> None:
    """An arena whose file is not as long as its header says is refused by every call."""
    create(name)
    whole = planted.stat().st_size
    os.truncate(planted, whole + size if abs(size) < 8 or size < 0 else size)
    refused(planted, name, CALLS)


def use(name: str) -> None:
    """Attach and do everything; what does not work says so."""
    for writable in (False, True):
        with Store.attach(name, writable=writable, lock_timeout=0.1) as store:
            calls: list[Callable[[], object]] = [
                store.list,
                store.list_keys,
                lambda: store.get_raw("key"),
                lambda: "key" in store,
                lambda: store.wait_for_change(store.version, 0.0),
                store.stats,
                store.check,
                lambda: store.add_raw("key", b"\xa1x"),
                lambda: store.delete_by_key("key"),
                lambda: store.replace([]),
            ]
            for call in calls:
                with contextlib.suppress(shmcache.ShmCacheError):
                    call()


@pytest.mark.parametrize("behind", ["zeros", "ones", "random", "another arena"])
@pytest.mark.parametrize("capacity", ["256KiB", "1MiB", "64MiB"])
def test_nothing_behind_a_right_header(
    name: str, planted: Path, capacity: str, behind: str
) -> None:
    """A right header and the right length, and behind it holes, or any bytes, or the content of
    an arena of another size: every call works or is an error of ours."""
    with Store.create(capacity=capacity) as made:
        file = path_of(made.name)
        header, size = file.read_bytes()[:4096], file.stat().st_size
        made.unlink()
    if behind == "another arena":
        with Store.create(capacity="2MiB") as other:
            other.add_many([{"metadata": {"name": f"n{n}"}} for n in range(2000)])
            content = path_of(other.name).read_bytes()[4096 : 2 << 20]
            other.unlink()
    else:
        content = FILLS[behind]((200 << 10) - 4096)
    private_file(planted, (header + content)[:size])
    os.truncate(planted, size)
    assert forked(lambda: use(name)) == 0


DAMAGED: dict[str, Callable[[Store], object]] = {
    "count": len,
    "resource version": lambda store: store.resource_version,
    "key": Store.list_keys,
}


@pytest.mark.parametrize("what", DAMAGED)
def test_words_that_were_overwritten(name: str, planted: Path, what: str) -> None:
    """A count that no arena can have, and text that is none, are a CorruptArenaError."""
    with Store.create(name, capacity="256KiB") as store:
        store.replace([{"metadata": {"name": "a key"}}], "a resource version")
        places = {"count": LIVE, "resource version": 0, "key": 0}
        place = places[what] or planted.read_bytes().index(f"a {what}".encode())
        with planted.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"\xff" * 8, place)
        with pytest.raises(shmcache.CorruptArenaError):
            DAMAGED[what](store)


def test_a_call_that_dies_would_show(name: str) -> None:
    """The test above can fail: a child that dies of a signal is seen."""
    assert forked(lambda: os.kill(os.getpid(), signal.SIGBUS)) == -signal.SIGBUS
    assert forked(lambda: use(name)) == 1  # there is no such arena


# --- a creation that never ends -----------------------------------------------------------------


def test_a_creator_that_never_ends(
    store: Store, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a living process creates and does not come to an end, every call gives up with an
    error of ours; when it has gone, its file is taken over."""
    monkeypatch.setattr(_arena, "_CREATION_SECONDS", 0.05)
    store.close()
    creating = struct.pack("=Q", 0x3067686361636D68)
    private_file(planted, creating)
    with planted.open("r+b", buffering=0) as file:
        one_byte = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _core.ATTACH_BYTE - 1, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, one_byte)
        for call in CALLS:
            with pytest.raises(shmcache.ArenaExistsError, match="being created"):
                call(store.name)
        kinds = {info.name: info.kind for info in shmcache.list_arenas()}
        assert kinds[store.name] == "busy"
        assert planted.read_bytes() == creating
    create(store.name)
    attach(store.name)
