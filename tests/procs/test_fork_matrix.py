"""fork, exec and spawn at every boundary of the API.

A thread is inside an operation, or one has just ended, or an iterator is half consumed, and the
process forks. The child has no such thread; it must be able to use every handle, and must hold
nothing of what its parent holds. The parent goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import IO, Any

import pytest

import shmcache
from shmcache import FIFO, MsgpackCodec, Store
from tests.procs.control import (
    adopting,
    alone,
    control,
    forked,
    path_of,
    start,
    stop_as_owner,
    stopped_owner,
    until,
    wait_for,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

Operation = Callable[[Store, FIFO], object]

DATA = b"\xa1x"  # "x" in msgpack
OBJ = {"metadata": {"name": "known"}, "n": 1}
OTHERS = [{"metadata": {"name": f"other-{n}"}} for n in range(20)]


def again(store: Store, fifo: FIFO) -> None:
    """Creates, opens and attaches handles, and lets go of them."""
    with Store.create(capacity="256KiB") as made, Store.open(made.name):
        made.unlink()
    with Store.attach(store.name), FIFO.attach(fifo.name):
        pass


# Those that take the lock, always.
LOCKING: dict[str, Operation] = {
    "Store.add": lambda store, fifo: store.add(OBJ),
    "Store.update": lambda store, fifo: store.update(OBJ),
    "Store.add_many": lambda store, fifo: store.add_many(OTHERS),
    "Store.add_raw": lambda store, fifo: store.add_raw("known", DATA),
    "Store.delete": lambda store, fifo: store.delete(OBJ),
    "Store.delete_by_key": lambda store, fifo: store.delete_by_key("other-1"),
    "Store.replace": lambda store, fifo: store.replace([OBJ, *OTHERS], "1"),
    "Store.check": lambda store, fifo: store.check(),
    "FIFO.add": lambda store, fifo: fifo.add(OBJ),
    "FIFO.add_if_not_present": lambda store, fifo: fifo.add_if_not_present(OBJ),
    "FIFO.add_many": lambda store, fifo: fifo.add_many(OTHERS),
    "FIFO.delete": lambda store, fifo: fifo.delete(OBJ),
    "FIFO.replace": lambda store, fifo: fifo.replace([OBJ, *OTHERS], "1"),
    "FIFO.list": lambda store, fifo: fifo.list(),
    "FIFO.list_keys": lambda store, fifo: fifo.list_keys(),
    "FIFO.items": lambda store, fifo: list(fifo.items()),
    "FIFO.pop": lambda store, fifo: fifo.pop(),
    "FIFO.pop_many": lambda store, fifo: fifo.pop_many(3),
    "FIFO.pop_raw": lambda store, fifo: fifo.pop_raw(),
    "FIFO.pop_async": lambda store, fifo: asyncio.run(fifo.pop_async()),
    "FIFO.check": lambda store, fifo: fifo.check(),
    "FIFO.shutdown": lambda store, fifo: fifo.shutdown(),
}

# Those that take the lock only behind a change that is half done.
SNAPSHOTS: dict[str, Operation] = {
    "Store.list": lambda store, fifo: store.list(),
    "Store.list_keys": lambda store, fifo: store.list_keys(),
    "Store.values": lambda store, fifo: list(store.values()),
    "Store.items": lambda store, fifo: list(store.items()),
    "Store.iter": lambda store, fifo: list(store),
}

# Those that never wait.
FREE: dict[str, Operation] = {
    "Store.get": lambda store, fifo: store.get(OBJ),
    "Store.get_by_key": lambda store, fifo: store.get_by_key("known"),
    "Store.get_raw": lambda store, fifo: store.get_raw("known"),
    "Store.getitem": lambda store, fifo: store["other-0"],
    "Store.contains": lambda store, fifo: "known" in store,
    "Store.len": lambda store, fifo: len(store),
    "Store.version": lambda store, fifo: store.version,
    "Store.resource_version": lambda store, fifo: store.resource_version,
    "Store.has_synced": lambda store, fifo: store.has_synced,
    "Store.stats": lambda store, fifo: store.stats(),
    "Store.workers": lambda store, fifo: store.workers(),
    "FIFO.get_by_key": lambda store, fifo: fifo.get_by_key("known"),
    "FIFO.stats": lambda store, fifo: fifo.stats(),
    "FIFO.qsize": lambda store, fifo: (fifo.qsize(), fifo.empty()),
    "create, open, attach": again,
}

# Those that sleep until somebody changes something, in a store or in a queue.
WAITING: dict[str, Operation] = {
    "Store.wait_for_change": lambda store, fifo: store.wait_for_change(store.version),
    "Store.wait_for_sync": lambda store, fifo: store.wait_for_sync(),
    "FIFO.wait_for_change": lambda store, fifo: fifo.wait_for_change(fifo.version),
    "FIFO.wait_for_sync": lambda store, fifo: fifo.wait_for_sync(),
    "FIFO.pop": lambda store, fifo: fifo.pop(),
    "FIFO.pop_many": lambda store, fifo: fifo.pop_many(3),
    "FIFO.pop_raw": lambda store, fifo: fifo.pop_raw(),
    "FIFO.pop_async": lambda store, fifo: asyncio.run(fifo.pop_async()),
}


@pytest.fixture
def filled(store: Store, fifo: FIFO) -> tuple[Store, FIFO]:
    """A store and a queue that hold something, and whose handles have decoded it."""
    for handle in (store, fifo):
        handle.replace([OBJ, *OTHERS], "0")
        assert len(handle.list()) == 21
    return store, fifo


def use(store: Store, fifo: FIFO) -> None:
    """What a child does with what it inherited, whatever others do meanwhile."""
    key = f"child-{os.getpid()}"
    for handle in (store, fifo):
        before = handle.version
        handle.add_raw(key, DATA)
        assert handle.wait_for_change(before) > before
        assert handle.get_by_key(key) in ("x", None)
        handle.list()
        handle.list_keys()
        handle.delete_by_key(key)
        assert handle.stats().attached >= 2
        assert handle.check() == []
    fifo.add_raw(key, DATA)
    with contextlib.suppress(queue.Empty, shmcache.ShutDown):
        fifo.pop(0)


def use_alone(store: Store, fifo: FIFO) -> None:
    """What a child does with what it inherited while nobody else writes: it sees all of it."""
    for handle in (store, fifo):
        known = {key: handle.get_raw(key) for key in handle.list_keys()}
        assert None not in known.values()
        assert {key: MsgpackCodec().encode(obj) for key, obj in handle.items()} == known
        handle.add_raw("child", DATA)
        assert handle.get_by_key("child") == handle["child"] == "x"
        assert set(handle.list_keys()) == {*known, "child"}
        handle.delete_by_key("child")
        assert len(handle.list()) == len(handle) == len(known)
        assert handle.stats().attached == 2
    use(store, fifo)


def goes_on(store: Store, fifo: FIFO) -> None:
    """What the parent sees when its children have ended."""
    for handle in (store, fifo):
        handle.add_raw("after", DATA)
        assert handle.get_by_key("after") == "x"
        alone(handle)
        assert handle.check() == []


def quietly(operation: Operation, store: Store, fifo: FIFO) -> object:
    with contextlib.suppress(queue.Empty, shmcache.ShutDown, KeyError):
        return operation(store, fifo)
    return None


EVERY = {**LOCKING, **SNAPSHOTS, **FREE}


@pytest.mark.parametrize("operation", EVERY.values(), ids=EVERY)
def test_fork_after_an_operation(filled: tuple[Store, FIFO], operation: Operation) -> None:
    """A child that is forked after any operation sees what its parent saw, and can do all."""
    quietly(operation, *filled)
    assert forked(lambda: use_alone(*filled)) == 0
    goes_on(*filled)


@pytest.mark.parametrize("operation", EVERY.values(), ids=EVERY)
def test_fork_while_a_thread_repeats_an_operation(
    filled: tuple[Store, FIFO], operation: Operation
) -> None:
    """Children forked while a thread does one operation after the other can do all."""
    store, fifo = filled
    stop, rounds = threading.Event(), 0

    def repeat() -> None:
        nonlocal rounds
        while not stop.is_set():
            fifo.add_raw("food", DATA)  # so that pop has something
            quietly(operation, store, fifo)
            rounds += 1

    thread = threading.Thread(target=repeat)
    thread.start()
    statuses = []
    for _ in range(4):
        seen = rounds
        until(lambda seen=seen: rounds > seen)  # type: ignore[misc]
        statuses.append(forked(lambda: use(store, fifo)))
        fifo.add_raw("more food", DATA)  # the child may have eaten what the thread waits for
    stop.set()
    thread.join()
    assert statuses == [0] * 4
    goes_on(store, fifo)


def fork_beside(
    operation: Operation, store: Store, fifo: FIFO, inside: Callable[[], bool], owner: int
) -> None:
    """Fork once a thread is inside the operation, which waits for the lock of a stopped owner;
    then kill the owner."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(quietly, operation, store, fifo)
        until(inside)
        child = start(lambda: use(store, fifo))
        assert not future.done()
        os.kill(owner, signal.SIGKILL)
        assert wait_for(child) == 0
        future.result()
    goes_on(store, fifo)


@pytest.mark.parametrize("operation", LOCKING.values(), ids=LOCKING)
def test_fork_while_a_thread_waits_for_the_lock(
    filled: tuple[Store, FIFO], operation: Operation, request: pytest.FixtureRequest
) -> None:
    """Forked while a thread of the parent waits for the lock, the child waits for itself; both
    get it when the owner is gone."""
    store, fifo = filled
    handle = fifo if "FIFO" in request.node.callspec.id else store
    with stopped_owner(handle.name, handle.check) as owner:
        fork_beside(operation, store, fifo, lambda: control(handle.name).waiters, owner)


@pytest.mark.parametrize("operation", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_fork_while_a_thread_waits_for_a_snapshot(
    filled: tuple[Store, FIFO], operation: Operation
) -> None:
    """Forked while a snapshot of the parent waits behind a change that is half done, the child
    can do all, and both see a whole store when the writer is gone."""
    store, fifo = filled
    many = [{"metadata": {"name": f"many-{n}"}} for n in range(3000)]
    lists = [[*many, {"metadata": {"name": "turn"}, "n": n}] for n in range(2)]

    def change() -> None:
        for turn in lists:
            store.replace([dict(obj, turn=turn[-1]["n"]) for obj in turn])

    with stopped_owner(store.name, change, when=lambda seen: seen.mutating) as owner:
        fork_beside(operation, store, fifo, lambda: control(store.name).waiters, owner)


@pytest.mark.parametrize("operation", WAITING.values(), ids=WAITING)
def test_fork_while_a_thread_sleeps(
    store: Store, fifo: FIFO, operation: Operation, request: pytest.FixtureRequest
) -> None:
    """Forked while a thread of the parent sleeps for a change or an item, the child can do all,
    and the thread wakes for what comes."""
    handle = fifo if "FIFO" in request.node.callspec.id else store
    pops = "pop" in request.node.callspec.id
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(operation, store, fifo)
        if pops:
            until(lambda: control(handle.name).ready_sleepers)
        else:
            until(lambda: control(handle.name).change_sleepers)
        assert forked(lambda: use(store, fifo)) == 0
        for each in (store, fifo):
            each.replace([OBJ])
        if not pops:
            fifo.pop(0)
        future.result()
    goes_on(store, fifo)


class Gate:
    """A codec and a key function that stop in the middle, once, in the process that made them."""

    name = "msgpack"

    def __init__(self, place: str) -> None:
        self._place = place
        self._pid = os.getpid()
        self._codec = MsgpackCodec()
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.open = True

    def _through(self, place: str) -> None:
        if place == self._place and os.getpid() == self._pid and not self.open:
            self.entered.set()
            self.leave.wait()

    def key(self, obj: Any) -> str:
        self._through("key")
        return str(obj["metadata"]["name"])

    def encode(self, obj: Any) -> bytes:
        self._through("encode")
        return self._codec.encode(obj)

    def decode(self, data: memoryview | bytes) -> Any:
        self._through("decode")
        return self._codec.decode(data)


# Where user code is called from: the operation, and the function that is inside.
CALLING: dict[str, tuple[Operation, str]] = {
    f"{name} in {place}": (EVERY[name], place)
    for names, place in (
        ("Store.add Store.add_many Store.delete Store.replace Store.get FIFO.add", "key"),
        ("Store.update Store.add_many Store.replace FIFO.add_if_not_present", "encode"),
        ("Store.get_by_key Store.getitem Store.list Store.items", "decode"),
        ("FIFO.get_by_key FIFO.list FIFO.pop FIFO.pop_many FIFO.pop_async", "decode"),
    )
    for name in names.split()
}


@pytest.mark.parametrize(("operation", "place"), CALLING.values(), ids=CALLING)
def test_fork_while_a_thread_is_in_user_code(name: str, operation: Operation, place: str) -> None:
    """Forked while an operation of the parent is in a key function or a codec, the child can do
    all, and the operation goes on when the function returns."""
    gate = Gate(place)
    with (
        Store.create(name, capacity="1MiB", key_func=gate.key, codec=gate) as store,
        FIFO.create(capacity="1MiB", key_func=gate.key, codec=gate) as fifo,
        ThreadPoolExecutor(1) as pool,
    ):
        fifo.unlink()
        for handle in (store, fifo):
            handle.replace([OBJ, *OTHERS])
        gate.open = False
        future = pool.submit(operation, store, fifo)
        gate.entered.wait()
        status = forked(lambda: use(store, fifo))
        gate.open = True
        gate.leave.set()
        future.result()
        assert status == 0
        goes_on(store, fifo)


HALF: dict[str, Callable[[Store], Iterator[Any]]] = {
    "keys": lambda handle: iter(handle),
    "values": lambda handle: iter(handle.values()),
    "items": lambda handle: iter(handle.items()),
    "list": lambda handle: iter(handle.list()),
}


@pytest.mark.parametrize("iterate", HALF.values(), ids=HALF)
def test_fork_with_an_iterator_half_consumed(
    filled: tuple[Store, FIFO], iterate: Callable[[Store], Iterator[Any]]
) -> None:
    """An iterator that was begun before fork goes on in parent and child, over the content of
    its beginning."""
    store, fifo = filled
    iterators = [iterate(handle) for handle in filled]
    begun = [next(iterator) for iterator in iterators]
    assert len(begun) == 2

    def child() -> None:
        store.replace([])
        while not fifo.empty():
            fifo.pop(0)
        assert [len(list(iterator)) for iterator in iterators] == [20, 20]
        use_alone(*filled)

    assert forked(child) == 0
    assert [len(list(iterator)) for iterator in iterators] == [20, 20]
    assert len(store.list()) == 0
    goes_on(store, fifo)


# --- what the child must not hold ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["fork", "twice", "in a thread"])
def test_a_dead_owner_is_replaced_while_its_child_lives(store: Store, how: str) -> None:
    """A process killed with the lock leaves it to others, also while a child or grandchild lives
    that it forked while it held handle and lock."""
    ours, theirs = multiprocessing.Pipe()

    def hold() -> None:
        while True:
            store.check()

    def parent() -> None:
        store.check()  # claims the owner's slot, before the fork
        if how == "in a thread":
            threading.Thread(target=hold, daemon=True).start()
            until(lambda: control(store.name).owner == os.getpid())
        child = start(signal.pause)
        if how == "twice":
            os.kill(child, signal.SIGKILL)
            wait_for(child)
            child = start(lambda: theirs.send(start(signal.pause)))
            wait_for(child)
        else:
            theirs.send(child)
        hold()

    with adopting():
        owner = start(parent)
        child = ours.recv()
        stop_as_owner(owner, store.name)
        os.kill(owner, signal.SIGKILL)
        wait_for(owner)
        assert control(store.name).owner == owner  # until somebody wants it
        store.add_raw("key", DATA)
        assert store.stats().attached == 2
        os.kill(child, signal.SIGKILL)
        wait_for(child)
    assert store.list_keys() == ["key"]


def test_a_child_that_dies_takes_nothing_with_it(store: Store, fifo: FIFO) -> None:
    """A child killed in the middle of its writes leaves the locks and the slot of its parent."""
    store.add_raw("mine", DATA)
    slot_before = slot_of_ours(store)
    for _ in range(5):
        with stopped_owner(store.name, store.check):
            pass
        store.add_raw("mine", DATA)
        assert slot_of_ours(store) == slot_before
    goes_on(store, fifo)


def slot_of_ours(store: Store) -> int:
    """The slot by which this process takes the lock."""
    stop = threading.Event()

    def hold() -> None:
        while not stop.is_set():
            store.check()

    thread = threading.Thread(target=hold)
    thread.start()
    seen = control(store.name)
    while seen.owner != os.getpid():
        seen = control(store.name)
    stop.set()
    thread.join()
    return seen.slot


def test_a_child_can_close_what_a_thread_of_its_parent_uses(fifo: FIFO) -> None:
    """close in a child lets go of the handle, also if a thread of the parent was inside a call."""
    ours, theirs = multiprocessing.Pipe()

    def child() -> None:
        fifo.close()
        theirs.send("closed")
        theirs.recv()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fifo.pop_raw)
        until(lambda: control(fifo.name).ready_sleepers)
        pid = start(child)
        assert ours.recv() == "closed"
        attached = fifo.stats().attached
        ours.send("end")
        assert wait_for(pid) == 0
        fifo.add_raw("key", DATA)
        future.result()
    assert attached == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_child_without_the_right_to_open_the_file(store: Store) -> None:
    """A child of a process that has become another user reads, and is refused to write by name:
    it cannot have a lock of its own."""
    store.add_raw("key", DATA)

    def other_user() -> None:
        os.setuid(65534)

        def child() -> None:
            assert store.get_by_key("key") == "x"
            with pytest.raises(shmcache.ArenaPermissionError):
                store.add_raw("key", DATA)

        assert forked(child) == 0
        store.add_raw("key", DATA)  # the descriptors from before are as good as ever

    assert forked(other_user) == 0
    assert store.check() == []


# --- signals, generations -----------------------------------------------------------------------


def signalled(inside: Callable[[], bool]) -> threading.Thread:
    """Sends SIGUSR1 to the main thread of this process as soon as it is inside."""

    def send() -> None:
        until(inside)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_fork_in_a_signal_handler_while_asleep(store: Store, fifo: FIFO) -> None:
    """A handler that runs inside pop can fork a child that can do all; pop then goes on."""

    def process() -> None:
        statuses = []

        def handler(*_: object) -> None:
            statuses.append(forked(lambda: use(store, fifo)))
            fifo.add_raw("item", DATA)

        signal.signal(signal.SIGUSR1, handler)
        thread = signalled(lambda: control(fifo.name).ready_sleepers)
        assert fifo.pop_raw() == ("item", DATA)
        thread.join()
        assert statuses == [0]

    assert forked(process) == 0
    goes_on(store, fifo)


def test_fork_in_a_signal_handler_while_waiting_for_the_lock(store: Store, fifo: FIFO) -> None:
    """A handler that runs while add waits for the lock can fork a child that waits for it too;
    when the owner is gone both write."""
    with stopped_owner(store.name, store.check) as owner:

        def process() -> None:
            children = []

            def handler(*_: object) -> None:
                children.append(start(lambda: use(store, fifo)))
                os.kill(owner, signal.SIGKILL)

            signal.signal(signal.SIGUSR1, handler)
            thread = signalled(lambda: control(store.name).waiters)
            store.add_raw("key", DATA)
            thread.join()
            assert [wait_for(child) for child in children] == [0]

        assert forked(process) == 0
    assert store.get_by_key("key") == "x"
    goes_on(store, fifo)


def test_a_call_goes_on_in_parent_and_child(fifo: FIFO) -> None:
    """A handler forks inside pop and returns in both: both go on to pop, each its own item."""
    ours, theirs = multiprocessing.Pipe()

    def process() -> None:
        children = []

        def handler(*_: object) -> None:
            children.append(os.fork())

        signal.signal(signal.SIGUSR1, handler)
        thread = signalled(lambda: control(fifo.name).ready_sleepers)
        theirs.send(fifo.pop_raw())
        if children == [0]:
            os._exit(0)
        thread.join()
        assert [wait_for(child) for child in children] == [0]

    pid = start(process)
    until(lambda: fifo.stats().attached == 3)
    fifo.add_raw("one", DATA)
    fifo.add_raw("two", DATA)
    assert {ours.recv()[0], ours.recv()[0]} == {"one", "two"}
    assert wait_for(pid) == 0


def test_a_grandchild_outlives_its_parent(filled: tuple[Store, FIFO]) -> None:
    """A daemon, forked twice, can do all with handles that were made before the first fork."""
    ours, theirs = multiprocessing.Pipe()

    def daemon() -> None:
        theirs.recv()  # until its parent has gone
        use_alone(*filled)

    with adopting():
        assert forked(lambda: theirs.send(start(daemon))) == 0
        ours.send("go")
        assert wait_for(ours.recv()) == 0
    goes_on(*filled)


def test_a_childs_arena_is_usable_by_its_parent(name: str) -> None:
    """An arena that a forked child made is there by name when the child has gone."""

    def child() -> None:
        with FIFO.create(name, capacity="1MiB") as made:
            made.add(OBJ)

    assert forked(child) == 0
    with FIFO.attach(name) as fifo:
        alone(fifo)
        assert fifo.pop() == OBJ
        assert fifo.check() == []


# --- exec, spawn --------------------------------------------------------------------------------

INHERITED = """
import os
for entry in os.listdir("/proc/self/fd"):
    try:
        target = os.readlink(f"/proc/self/fd/{entry}")
    except OSError:
        continue
    if "shmcache" in target:
        print(target)
print("end", flush=True)
input()
"""


def run_by(way: str) -> tuple[Callable[[], int], IO[bytes], IO[bytes]]:
    """A new program in a child that inherits all descriptors that can be: what waits for its end,
    its stdin and its stdout."""
    stdin, feed = os.pipe()
    read, stdout = os.pipe()
    argv = [sys.executable, "-c", INHERITED]

    def replace_program() -> None:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.execv(sys.executable, argv)

    if way == "subprocess":
        process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, close_fds=False)
        wait: Callable[[], int] = process.wait
    elif way == "posix_spawn":
        redirect = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
        pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=redirect)
        wait = functools.partial(wait_for, pid)
    else:
        wait = functools.partial(wait_for, start(replace_program))
    os.close(stdin)
    os.close(stdout)
    return wait, open(feed, "wb"), open(read, "rb")


@pytest.mark.parametrize("way", ["subprocess", "posix_spawn", "fork and exec"])
def test_nothing_is_inherited_over_exec(filled: tuple[Store, FIFO], way: str) -> None:
    """A program started with all descriptors that can be inherited has none of ours, and counts
    as nobody; the parent's locks are as before."""
    store, fifo = filled
    wait, stdin, stdout = run_by(way)
    with stdin, stdout:
        assert stdout.readline() == b"end\n"
        alone(store)
        alone(fifo)
        assert forked(lambda: use_alone(*filled)) == 0
        stdin.write(b"\n")
    assert wait() == 0
    goes_on(*filled)


def fill(handles: Any) -> None:
    """Write a key of this process into every handle, however they are packed."""
    for handle in handles["store"], *handles["fifos"]:
        handle.add_raw(f"by-{os.getpid()}", DATA)
        assert handle.check() == []


kept: dict[str, Any] = {}


def keep(handles: dict[str, Any]) -> None:
    kept.update(handles)


def fill_kept(_: int) -> None:
    fill(kept)


def fill_received(connection: Connection) -> None:
    fill(connection.recv())


@pytest.mark.parametrize("way", ["arguments", "partial", "initializer", "connection"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_handles_reach_children_of_every_start_method(
    filled: tuple[Store, FIFO], method: str, way: str, run_all: Any
) -> None:
    """In nested arguments, in a partial, by an initializer into globals and over a connection:
    the child writes where the parent reads."""
    store, fifo = filled
    handles = {"store": store, "fifos": [fifo]}
    context: Any = multiprocessing.get_context(method)
    if way == "arguments":
        run_all([context.Process(target=fill, kwargs={"handles": handles})])
    elif way == "partial":
        run_all([context.Process(target=functools.partial(fill, handles))])
    elif way == "initializer":
        with context.Pool(1, keep, (handles,)) as pool:
            pool.map(fill_kept, [1])
            pool.close()
            pool.join()
    else:
        ours, theirs = context.Pipe()
        ours.send(handles)
        run_all([context.Process(target=fill_received, args=(theirs,))])
    assert [len(handle) for handle in filled] == [22, 22]
    goes_on(*filled)


def test_handles_in_globals_and_closures_reach_forked_children(
    filled: tuple[Store, FIFO], run_all: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a forked child finds in globals and closures is as good as what it is given."""
    store, fifo = filled
    monkeypatch.setitem(kept, "store", store)
    monkeypatch.setitem(kept, "fifos", [fifo])
    context = multiprocessing.get_context("fork")
    run_all(
        [
            context.Process(target=fill_kept, args=(1,)),
            context.Process(target=lambda: fill({"store": store, "fifos": [fifo]})),
        ]
    )
    assert [len(handle) for handle in filled] == [23, 23]
    goes_on(*filled)


def test_a_spawned_child_leaves_the_arena_at_exit(filled: tuple[Store, FIFO], run_all: Any) -> None:
    """No resource tracker unlinks an arena when a spawned child that used it ends."""
    store, fifo = filled
    handles = {"store": store, "fifos": [fifo]}
    context = multiprocessing.get_context("spawn")
    run_all([context.Process(target=fill, args=(handles,)) for _ in range(2)])
    assert all(path_of(handle.name).exists() for handle in filled)
    goes_on(*filled)
