"""Processes that share /dev/shm and nothing else: other pids, other users, another tmpfs.

Containers of one pod, or with ``--ipc=host``, see one /dev/shm from PID namespaces in which low
pids are taken by each of them. What runs inside a namespace here is a function of this module,
called by a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import pytest

import shmcache
from shmcache import FIFO, RawCodec, Store
from tests.procs.control import (
    LOCK,
    alone,
    control,
    forked,
    path_of,
    poke,
    start,
    stop_as_owner,
    until,
    wait_for,
)

ROOT = Path(__file__).resolve().parents[2]
USER = ["--user", "--map-root-user"]
PID = [*USER, "--pid", "--fork", "--kill-child"]
TMPFS_BYTES = 8 << 20
PAGE = 4096


def unshare(flags: list[str], function: Callable[..., None], *arguments: str) -> list[str]:
    """The command that calls a function of this module in new namespaces."""
    refused = subprocess.run(
        ["unshare", *flags, "true"], capture_output=True, text=True, check=False
    )
    if refused.returncode != 0:
        pytest.skip(f"unshare {' '.join(flags)}: {refused.stderr.strip()}")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"from {__name__} import {function.__name__} as run; run(*sys.argv[1:])"
    )
    return ["unshare", *flags, sys.executable, "-c", program, *arguments]


@pytest.fixture(autouse=True)
def _unshare_is_there() -> None:
    try:
        subprocess.run(["unshare", "--version"], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare (util-linux)")


# --- PID namespaces -----------------------------------------------------------------------------


def serve(name: str, lock_timeout: str) -> None:
    """Write to the arena as the lines of stdin say, and answer each with a line."""
    with Store.attach(name, writable=True, lock_timeout=float(lock_timeout)) as store:
        print(os.getpid(), flush=True)
        for line in sys.stdin:
            match line.split():
                case ["hold"]:
                    while True:
                        store.check()
                case ["attached"]:
                    print(store.stats().attached, flush=True)
                case ["add", key]:
                    try:
                        store.add_raw(key, b"\xa1x")
                        print("added", flush=True)
                    except shmcache.LockTimeoutError as error:
                        print(f"timeout: {error.pid}", flush=True)


class Served:
    """A process that runs :func:`serve` as the first of a PID namespace of its own."""

    def __init__(self, flags: list[str], name: str, lock_timeout: float) -> None:
        self.unshare = subprocess.Popen(
            unshare(flags, serve, name, str(lock_timeout)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.inner_pid = int(self.answer())
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children")
        self.pid = int(children.read_text())

    def send(self, command: str) -> None:
        assert self.unshare.stdin is not None
        print(command, file=self.unshare.stdin, flush=True)

    def answer(self) -> str:
        assert self.unshare.stdout is not None
        return self.unshare.stdout.readline().strip()

    def ask(self, command: str) -> str:
        self.send(command)
        return self.answer()

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.unshare.communicate()


@pytest.fixture(params=[PID, [*PID, "--mount-proc"]], ids=["proc of the host", "proc of its own"])
def served(request: pytest.FixtureRequest) -> Iterator[Callable[..., Served]]:
    """Starts processes in PID namespaces of their own, and ends them."""
    started: list[Served] = []

    def run(name: str, lock_timeout: float = 60) -> Served:
        started.append(Served(request.param, name, lock_timeout))
        return started[-1]

    yield run
    for process in started:
        process.kill()


def holding(process: Served, name: str) -> int:
    """Make the process hold the lock, stopped; the slot by which it does."""
    process.send("hold")
    stop_as_owner(process.pid, name, process.inner_pid)
    return control(name).slot


def test_an_owner_with_the_waiters_pid_is_not_robbed(store: Store, served: Any) -> None:
    """A waiter that has the owner's pid in another PID namespace takes the owner for the living
    stranger that it is."""
    owner, waiter = served(store.name), served(store.name, lock_timeout=0.2)
    assert (owner.inner_pid, waiter.inner_pid) == (1, 1)
    slot = holding(owner, store.name)
    assert waiter.ask("add early") == "timeout: 1"
    assert (control(store.name).owner, control(store.name).slot) == (1, slot)
    owner.kill()
    assert waiter.ask("add late") == "added"
    assert store.list_keys() == ["late"]


def test_a_killed_owner_with_the_waiters_pid_is_replaced(store: Store, served: Any) -> None:
    """A waiter that has the pid of the owner takes the lock over when the owner is killed."""
    owner, waiter = served(store.name), served(store.name)
    assert (owner.inner_pid, waiter.inner_pid) == (1, 1)
    holding(owner, store.name)
    waiter.send("add key")
    until(lambda: control(store.name).waiters)
    owner.kill()
    assert waiter.answer() == "added"
    assert store.list_keys() == ["key"]


def test_a_killed_waiter_does_not_free_the_lock(name: str, served: Any) -> None:
    """The death of a waiter that has the owner's pid leaves the lock with its living owner."""
    with Store.create(name, capacity="16MiB", lock_timeout=0.2) as store:
        owner, waiter = served(name), served(name)
        slot = holding(owner, name)
        waiter.send("add key")
        until(lambda: control(name).waiters)
        waiter.kill()
        with pytest.raises(shmcache.LockTimeoutError) as caught:
            store.add_raw("mine", b"\xa1x")
        assert caught.value.pid == 1
        assert (control(name).owner, control(name).slot) == (1, slot)
        owner.kill()
        store.add_raw("mine", b"\xa1x")
        assert store.list_keys() == ["mine"]
        assert store.check() == []


def test_an_owner_that_nobody_is_would_be_robbed(store: Store, served: Any) -> None:
    """The tests above can fail: a lock word that names a slot without a living owner is taken."""
    waiter = served(store.name, lock_timeout=0.2)
    poke(store.name, LOCK, 2000 << 19 | 1 << 2)
    assert control(store.name).slot == 1999
    assert waiter.ask("add key") == "added"


def test_the_attached_are_counted_across_namespaces(store: Store, served: Any) -> None:
    """Handles in other PID namespaces count, seen from any of them, until they are gone."""
    one, two = served(store.name), served(store.name)
    assert [one.ask("attached"), two.ask("attached")] == ["3", "3"]
    assert store.stats().attached == 3
    one.kill()
    assert two.ask("attached") == "2"
    two.kill()
    alone(store)


# A pid that any namespace is free to give again.
AGAIN = 4321


def start_as(pid: int, work: Callable[[], object]) -> int:
    """Fork a child that has the given pid in the PID namespace of this process."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    child = start(work)
    assert child == pid
    return child


def outlive_a_pid(name: str) -> None:
    """Kill an owner, give its pid to a process that lives, and write."""
    with Store.attach(name, writable=True) as store:

        def hold() -> None:
            while True:
                store.check()

        owner = start_as(AGAIN, hold)
        stop_as_owner(owner, name)
        os.kill(owner, signal.SIGKILL)
        wait_for(owner)
        assert control(name).owner == AGAIN
        bystander = start_as(AGAIN, signal.pause)
        store.add_raw("key", b"\xa1x")
        os.kill(bystander, signal.SIGKILL)
        wait_for(bystander)
        print("written")


def test_a_pid_that_lives_again_is_not_the_owner(store: Store) -> None:
    """A dead owner whose pid another process has by now is dead all the same."""
    flags = [*PID, "--mount-proc"]
    done = run_to_its_end(unshare(flags, outlive_a_pid, store.name))
    assert done.stdout == "written\n"
    assert store.list_keys() == ["key"]


def run_to_its_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done


# --- user namespaces ----------------------------------------------------------------------------


def try_all(name: str) -> None:
    """Attach, read, write, and list the arena of that name; say what came of it."""
    try:
        with Store.attach(name, writable=True) as store:
            store.add_raw("inside", store.get_raw("outside") or b"")
            assert store.check() == []
            print("wrote", os.geteuid())
    except shmcache.ShmCacheError as error:
        print(type(error).__name__, os.geteuid())
    print(*(info.kind for info in shmcache.list_arenas() if info.name == name))


@pytest.mark.parametrize(
    ("flags", "uid"), [(USER, 0), (["--user"], 65534)], ids=["mapped to root", "not mapped"]
)
def test_our_arena_in_a_user_namespace(store: Store, flags: list[str], uid: int) -> None:
    """Our own arena can be used from a user namespace, whatever uid we have in there."""
    store.add_raw("outside", b"\xa1x")
    done = run_to_its_end(unshare(flags, try_all, store.name))
    assert done.stdout.split() == ["wrote", str(uid), "Store"]
    assert store.get_by_key("inside") == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o606, 0o666])
def test_an_arena_of_another_user_in_a_user_namespace(store: Store, mode: int) -> None:
    """Root of a user namespace is not root for the arena of a user whom the namespace does not
    know: a permission error, and nothing is changed."""
    store.add_raw("outside", b"\xa1x")
    os.chown(path_of(store.name), 4321, 4321)
    path_of(store.name).chmod(mode)
    done = run_to_its_end(unshare(USER, try_all, store.name))
    assert done.stdout.split()[:2] == ["ArenaPermissionError", "0"]
    assert store.list_keys() == ["outside"]


def as_root_of_a_user_namespace(uid: int, gid: int) -> None:
    """Become that user, and then what he may become: root of a user namespace of his own."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    clone_newuser, set_dumpable, libc = 0x10000000, 4, ctypes.CDLL(None)
    libc.prctl(set_dumpable, 1, 0, 0, 0)  # else /proc/self still belongs to root
    assert libc.unshare(clone_newuser) == 0
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")
def test_an_arena_of_a_group_in_a_user_namespace(store: Store) -> None:
    """An arena that a stranger has opened to our group is refused in a user namespace as it is
    outside: being root in there does not make him trusted."""
    unshare(USER, serve)  # or skip
    os.chown(path_of(store.name), 4321, 4321)
    path_of(store.name).chmod(0o660)

    def attach() -> None:
        as_root_of_a_user_namespace(4322, 4321)
        with pytest.raises(shmcache.ArenaPermissionError):
            Store.attach(store.name)

    assert forked(attach) == 0


# --- a small tmpfs of its own -------------------------------------------------------------------
#
# Here an object is bytes, and its first eight bytes are its key.


def small(kind: type[Store]) -> Store:
    return kind.create("small", key_func=key_of, codec=RawCodec(), capacity="6MiB")


def key_of(obj: bytes) -> str:
    return obj[:8].decode()


def entries(numbers: Iterable[int], size: int, fill: bytes = b".") -> list[bytes]:
    return [b"%08d" % n + fill * (size - 8) for n in numbers]


class Hog:
    """A process that takes pages of /dev/shm and gives them back as it is told."""

    def __init__(self) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self.pid = start(lambda: take_pages(theirs))

    def leave(self, pages: int | None) -> None:
        """Take all pages but so many; None gives all back."""
        self._ours.send(pages)
        self._ours.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        wait_for(self.pid)


def take_pages(commands: Connection) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        while True:
            pages = commands.recv()
            file.truncate(0)
            if pages is not None:
                take = os.statvfs(file.fileno()).f_bavail - pages
                os.posix_fallocate(file.fileno(), 0, take * PAGE)
            commands.send("done")


Prepare = Callable[[Store, Hog], None]
Write = Callable[[Store], None]


def nothing(handle: Store, hog: Hog) -> None:
    pass


def some(handle: Store, hog: Hog) -> None:
    handle.add_many(entries(range(100), 100))


def full_index(handle: Store, hog: Hog) -> None:
    """Records and heap have room, and the index, which could not grow, has not for one more."""
    handle.replace(entries(range(500), 40, b"1"))
    handle.replace(entries(range(500), 40, b"2"))
    handle.add_raw("room", bytes(200_000))
    handle.delete_by_key("room")
    hog.leave(0)
    slots = handle.stats().index_slots
    with contextlib.suppress(shmcache.CapacityError):
        for n in range(500, slots):
            handle.add(*entries([n], 8))
    assert slots * 3 // 4 < len(handle) < slots == handle.stats().index_slots


# What a write is, on what it works, and what is there afterwards.
WRITES: dict[str, tuple[type[Store], Prepare, Write]] = {
    "add": (Store, nothing, lambda handle: handle.add(*entries([1], 100_000))),
    "update": (Store, some, lambda handle: handle.add(*entries([1], 100_000))),
    "add_many": (Store, some, lambda handle: handle.add_many(entries(range(50, 350), 300))),
    "replace": (Store, some, lambda handle: handle.replace(entries(range(50, 350), 300), "7")),
    "index": (Store, full_index, lambda handle: handle.add(b"one more")),
    "queue": (FIFO, some, lambda handle: handle.add_many(entries(range(50, 350), 300))),
}


def grow_page_by_page(case: str) -> None:
    """Do a write with 0, 1, 2, ... pages left until it succeeds."""
    kind, prepare, write = WRITES[case]
    with small(kind) as example:
        with Hog() as hog:
            prepare(example, hog)
        write(example)
        wanted = sorted(example.list())
        example.unlink()
    refused = 0
    while True:
        with (
            Hog() as hog,
            small(kind) as handle,
            kind.attach("small", writable=False, codec=RawCodec()) as reader,
        ):
            handle.unlink()
            prepare(handle, hog)
            before, synced = sorted(reader.list()), reader.resource_version
            hog.leave(refused)
            said = ""
            try:
                write(handle)
            except shmcache.CapacityError as error:
                said = str(error)
            if said:
                assert "/dev/shm is full" in said, said
                assert sorted(reader.list()) == sorted(handle.list()) == before
                assert all(reader.get_raw(key_of(data)) == data for data in before)
                assert reader.resource_version == synced
                assert handle.check() == []
                hog.leave(None)
                write(handle)
            assert sorted(reader.list()) == sorted(handle.list()) == wanted
            assert handle.check() == []
        if not said:
            break
        refused += 1
    print(refused)


def in_small_tmpfs(function: Callable[..., None], *arguments: str) -> str:
    """What a function prints that runs with a tmpfs of 8 MB at /dev/shm."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "none", "/dev/shm"]
    flags = [*USER, "--mount"]
    command = unshare(flags, function, *arguments)
    probe = subprocess.run(["unshare", *flags, *mount], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no mount in a namespace: {probe.stderr.strip()}")
    python = command.index(sys.executable)
    shell = ["sh", "-c", f'{" ".join(mount)} && exec "$@"', "sh"]
    return run_to_its_end([*command[:python], *shell, *command[python:]]).stdout


@pytest.mark.parametrize("case", WRITES)
def test_growth_with_every_number_of_pages_left(case: str) -> None:
    """A write that lacks one page, two pages, ... of what it needs is a CapacityError each time,
    the content is what it was, and with the pages given back the same write succeeds."""
    assert int(in_small_tmpfs(grow_page_by_page, case)) > 3


def take_and_give() -> None:
    """Take all pages, one by one, and give them back, again and again."""
    with tempfile.TemporaryFile(dir="/dev/shm", buffering=0) as file:
        while True:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(PAGE))
            file.truncate(0)
            file.seek(0)


def write_beside_a_hog() -> None:
    """Fill arenas, while another process takes pages and gives them back at its own pace, until
    enough was written and enough was refused."""
    hog = start(take_and_give)
    written = refused = 0
    while min(written, refused) < 100:
        try:
            handle = small(Store)
        except shmcache.CapacityError:
            continue
        with handle, Store.attach("small", codec=RawCodec()) as reader:
            handle.unlink()
            content: dict[str, bytes] = {}
            for n in range(100):
                added = entries(range(5 * n, 5 * n + 10), 100 + 37 * n % 2000)
                try:
                    handle.add_many(added)
                except shmcache.CapacityError:
                    refused += 1
                else:
                    written += 1
                    content.update((key_of(data), data) for data in added)
                assert len(reader.list()) == len(content)
            assert dict(reader.items()) == content
            assert handle.check() == []
    os.kill(hog, signal.SIGKILL)
    wait_for(hog)
    print("whole", refused)


def test_growth_beside_a_process_that_takes_and_gives_pages() -> None:
    """While the free pages come and go, every write happens or is a CapacityError; all that
    happened is there and nothing else is."""
    assert in_small_tmpfs(write_beside_a_hog).startswith("whole")
