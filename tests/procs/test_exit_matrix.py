"""Each way out of a process, with threads in each call; and what the collector does on the way.

A process that ends, however it ends, leaves the arena whole, the lock to the next, and no trace
among the attached. It ends with the status that it would have without us.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from signal import SIGABRT, SIGKILL, SIGTERM

import pytest

from shmcache import FIFO, Store
from tests.procs.control import alone

RUNS = 5
ROOT = str(Path(__file__).resolve().parents[2])

# Everything is in use: handles as globals, objects that they keep, an iterator half consumed.
PROLOGUE = """
import contextlib, os, resource, signal, sys, threading
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import shmcache
store = shmcache.Store.attach(sys.argv[1], writable=True)
fifo = shmcache.FIFO.attach(sys.argv[2])
reader = shmcache.Store.attach(sys.argv[1])
me = f"by-{os.getpid()}"
store.add({"metadata": {"name": me}})
objects, rest = reader.list(), iter(reader.items())
next(rest)
"""

# The program's end, and the status that Python gives it without us.
WAYS: dict[str, tuple[str, int]] = {
    "return": ("", 0),
    "sys.exit": ("sys.exit(7)", 7),
    "exception": ("raise LookupError('nobody catches this')", 1),
    "os._exit": ("os._exit(9)", 9),
    "os.abort": ("os.abort()", -SIGABRT),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", -SIGTERM),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -SIGKILL),
}

# What daemon threads do over and over, or for ever, while the process ends.
CALLS = {
    "pop": "fifo.pop()",
    "pop_many": "fifo.pop_many(2)",
    "wait_for_change": "fifo.wait_for_change(fifo.version)",
    "wait_for_change that need not wait": "store.wait_for_change(2**63)",
    "wait_for_sync": "fifo.wait_for_sync()",
    "add": "store.add({'metadata': {'name': me}})",
    "add_many": "store.add_many([{'metadata': {'name': f'{me}-{i}'}} for i in range(50)])",
    "replace": "store.replace(objects)",
    "list": "reader.list()",
    "get": "reader.get_by_key('seed')",
    "get large": "reader.get_raw('large')",
    "check": "store.check()",
}

THREADS = """
started = threading.Barrier(4)
def work():
    first = True
    while True:
        if first:
            started.wait()
            first = False
        with contextlib.suppress(shmcache.ShmCacheError):
            CALL
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
started.wait()
"""


@pytest.fixture
def seeded(store: Store, fifo: FIFO) -> tuple[Store, FIFO]:
    """A store with an object and a payload large enough to be copied without the GIL."""
    store.add({"metadata": {"name": "seed"}})
    store.add_raw("large", bytes([0xC6]) + (1 << 20).to_bytes(4, "big") + bytes(1 << 20))
    return store, fifo


def ends(seeded: tuple[Store, FIFO], program: str, status: int) -> list[str]:
    """Run the program several times at once, all with that status; what each said on stderr."""
    store, fifo = seeded
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + program, store.name, fifo.name],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(RUNS)
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * RUNS, said
    for handle in seeded:
        handle.add_raw("next", b"\xa1x")
        assert handle.get_by_key("next") == "x"
        alone(handle)
        assert handle.check() == []
    return said


@pytest.mark.parametrize("way", WAYS)
def test_ways_out(seeded: tuple[Store, FIFO], way: str) -> None:
    """Whatever way a process ends, its status is its own, and what it wrote is there."""
    program, status = WAYS[way]
    said = ends(seeded, program, status)
    assert all(bool(text) == (way == "exception") for text in said), said
    assert sum(key.startswith("by-") for key in seeded[0]) == RUNS


@pytest.mark.parametrize("way", ["return", "exception", "SIGTERM"])
@pytest.mark.parametrize("call", CALLS)
def test_ways_out_with_daemon_threads_in_a_call(
    seeded: tuple[Store, FIFO], call: str, way: str
) -> None:
    """Daemon threads inside any call change nothing of the status of a process, and leave the
    arena whole."""
    program, status = WAYS[way]
    said = ends(seeded, THREADS.replace("CALL", CALLS[call]) + program, status)
    assert all(("LookupError" in text) == (way == "exception") for text in said), said
    assert all("Fatal" not in text for text in said), said


WAKE_AT_THE_END = """
import atexit, time

sys.path.insert(0, ROOT)
from tests.procs.control import control, until

threading.Thread(target=lambda: CALL, daemon=True).start()
until(lambda: control(sys.argv[1]).change_sleepers or control(sys.argv[2]).change_sleepers
      or control(sys.argv[2]).ready_sleepers)

def keep_the_gil():
    # Past the end of the slice in which the thread sleeps, so that it waits for the GIL by then.
    sys.setswitchinterval(1000)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass

class Output:
    # Flushed when the interpreter is already ending; lets the GIL go then.
    closed = False
    def flush(self):
        time.sleep(0.1)

atexit.register(keep_the_gil)
sys.stdout = Output()
"""


@pytest.mark.parametrize("call", ["pop", "pop_many", "wait_for_change", "wait_for_sync"])
def test_a_daemon_thread_that_wakes_as_the_interpreter_ends(
    seeded: tuple[Store, FIFO], call: str
) -> None:
    """A daemon thread that has slept in a call and waits for the GIL when the interpreter begins
    to end changes nothing of the status of the process."""
    program = WAKE_AT_THE_END.replace("CALL", CALLS[call]).replace("ROOT", repr(ROOT))
    assert set(ends(seeded, program, 0)) == {""}


def test_a_status_of_ours_would_show(seeded: tuple[Store, FIFO]) -> None:
    """The tests above can fail: a program that ends by another status is seen."""
    with pytest.raises(AssertionError, match="-11"):
        ends(seeded, "os.kill(os.getpid(), signal.SIGSEGV)", 0)
    with pytest.raises(AssertionError):
        ends(seeded, "", 7)


# --- the collector ------------------------------------------------------------------------------

# Programs that end quietly, with what they print.
COLLECTED: dict[str, tuple[str, str]] = {
    "a cycle with a handle": (
        """
        import gc
        for _ in range(50):
            one = shmcache.Store.attach(sys.argv[1])
            ring = [one, one.list(), {}]
            ring[2]["ring"] = ring
        del one, ring
        gc.collect()
        print(store.stats().attached)
        """,
        "3",
    ),
    "two handles that close each other": (
        """
        class Closer:
            def __init__(self, handle):
                self.handle = handle
            def __del__(self):
                self.handle.close()
                self.other.handle.close()
        one, two = Closer(store), Closer(reader)
        one.other, two.other = two, one
        """,
        "",
    ),
    "a finaliser that uses a handle of the module": (
        """
        class Last:
            def __init__(self, *handles):
                self.handles = handles
            def __del__(self):
                store, fifo = self.handles
                store.add_raw("last", b"\\xa1x")
                fifo.add_raw("last", b"\\xa1x")
                print(store.get_by_key("last"), fifo.pop())
        last = Last(store, fifo)
        """,
        "x x",
    ),
    "atexit": (
        """
        import atexit
        def last():
            store.add_raw("last", b"\\xa1x")
            print(store["last"], len(reader.list()) > 1, store.check())
        atexit.register(last)
        atexit.register(reader.list)
        """,
        "x True []",
    ),
    "atexit after close": (
        """
        import atexit
        def last():
            try:
                store.list()
            except shmcache.ClosedError:
                print("closed")
        atexit.register(last)
        store.close()
        """,
        "closed",
    ),
    "a weakref callback": (
        """
        import weakref
        class Thing:
            pass
        thing = Thing()
        kept = weakref.ref(thing, lambda _: print(store.get_by_key(me) is not None))
        del thing
        again = Thing()
        late = weakref.finalize(again, lambda: print(len(reader.list()) > 1))
        """,
        "True\nTrue",
    ),
    "a handle in a thread local": (
        """
        local = threading.local()
        def work():
            local.handle = shmcache.Store.attach(sys.argv[1])
            local.objects = local.handle.list()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(store.stats().attached)
        """,
        "3",
    ),
    "a bound method and an object outlive the handle": (
        """
        get = shmcache.Store.attach(sys.argv[1]).get_by_key
        seed = get("seed")
        reader.close()
        print(seed["metadata"]["name"], get("seed") == seed)
        """,
        "seed True",
    ),
}


@pytest.mark.parametrize("case", COLLECTED)
def test_handles_and_the_collector(seeded: tuple[Store, FIFO], case: str) -> None:
    """Handles in cycles, finalisers, exit handlers and weak references work or say that they are
    closed; the process ends quietly."""
    program, printed = COLLECTED[case]
    store, fifo = seeded
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(program), store.name, fifo.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, printed, "")
    for handle in seeded:
        alone(handle)
        assert handle.check() == []


INSIDE = """
import gc, itertools

numbers = itertools.count()

class Garbage:
    quiet = False  # a finaliser makes no garbage of its own
    def __init__(self):
        self.cycle = self
    def __del__(self):
        if Garbage.quiet:
            return
        Garbage.quiet = True
        n = next(numbers)
        try:
            FINALISER
        finally:
            Garbage.quiet = False

def litter():
    if not Garbage.quiet:
        Garbage()

class Codec(shmcache.MsgpackCodec):
    # Garbage in the middle of a call, so that the collector runs there.
    def encode(self, obj):
        litter()
        return super().encode(obj)
    def decode(self, data):
        litter()
        return super().decode(data)
    def decode_shared(self, data, previous):
        litter()
        return super().decode_shared(data, previous)

store = shmcache.Store.attach(sys.argv[1], writable=True, codec=Codec(), cache=1024)
fifo = shmcache.FIFO.attach(sys.argv[2], codec=Codec())
fresh = [{"metadata": {"name": f"fresh-{i}"}, "fill": "x" * 40} for i in range(30)]
gc.set_threshold(1)
for turn in range(3):
    store.replace([dict(obj, turn=turn) for obj in fresh])
    fifo.add_many(fresh)
    litter(); assert len(store.list()) >= 1
    litter(); assert len(list(store.items())) >= 1
    litter(); assert store.get_by_key("fresh-1")["turn"] == turn
    litter(); store.add(fresh[0])
    litter(); fifo.list()
    litter(); fifo.pop()
    litter(); fifo.pop_many(100)
gc.set_threshold(0)
Garbage.quiet = True
print(next(numbers) > 100, store.check(), fifo.check())
"""

FINALISERS = {
    "reads": "store.list(), store.get_by_key('fresh-2'), fifo.list()",
    "writes": "store.add_raw(f'by-finaliser-{n}', b'\\xa1x'); store.delete_by_key('fresh-3')",
    "replaces": "store.replace([dict(fresh[1], turn=turn), dict(fresh[0])])",
    "pops": "fifo.add_raw(f'more-{n}', b'\\xa1x'); fifo.pop(0)",
    "attaches": "shmcache.Store.attach(sys.argv[1]).list()",
}


@pytest.mark.parametrize("finaliser", FINALISERS)
def test_a_finaliser_that_calls_the_api_inside_a_call(
    seeded: tuple[Store, FIFO], finaliser: str
) -> None:
    """With the collector at work after every allocation, finalisers that use the very handles
    whose calls they interrupt neither block nor break anything."""
    store, fifo = seeded
    program = PROLOGUE + INSIDE.replace("FINALISER", FINALISERS[finaliser])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program, store.name, fifo.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True [] []\n", "")
    assert store.check() == fifo.check() == []


def test_a_finaliser_that_closes_the_handle_inside_a_call(store: Store) -> None:
    """A codec that closes the handle whose call it is in: the call ends, the next one is refused,
    and nothing is left open."""
    program = """
        class Codec(shmcache.MsgpackCodec):
            def decode_shared(self, data, previous):
                store.close()
                return super().decode_shared(data, previous)
        for read in (
            lambda: store.get_by_key("key"),
            lambda: store.list(),
            lambda: [pair for pair in store.items()],
        ):
            store = shmcache.Store.attach(sys.argv[1], codec=Codec())
            assert read() in ("x", ["x"], [("key", "x")])
            try:
                read()
            except shmcache.ClosedError:
                print("closed")
        print(reader.stats().attached)
        """
    store.add_raw("key", b"\xa1x")
    prologue = "import sys, shmcache\nreader = shmcache.Store.attach(sys.argv[1])\n"
    done = subprocess.run(
        [sys.executable, "-c", prologue + textwrap.dedent(program), store.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["closed"] * 3 + ["2"]), done.stderr
