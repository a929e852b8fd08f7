"""Names, creation, attaching, unlinking: what may go wrong, and that it is said clearly."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, RawCodec, Store
from shmcache._arena import parse_size


def path_of(name: str) -> Path:
    return Path(f"/dev/shm/shmcache.{name}")


@pytest.fixture
def planted(name: str) -> Iterator[Path]:
    """The path that an arena of `name` would have, for something else to be there."""
    path = path_of(name)
    yield path
    path.unlink(missing_ok=True)


def test_a_taken_name(store: Store, pod: Any) -> None:
    """create on a taken name is an ArenaExistsError (a FileExistsError), whatever the kind."""
    store.add(pod("a"))
    for kind in (Store, FIFO):
        with pytest.raises(shmcache.ArenaExistsError, match="attach to it") as caught:
            kind.create(store.name, capacity="1MiB")
        assert isinstance(caught.value, FileExistsError)
    assert store.list() == [pod("a")]


def test_a_missing_name(name: str) -> None:
    """attach and unlink of nothing are an ArenaNotFoundError that says where was looked."""
    for call in (
        lambda: Store.attach(name),
        lambda: Store.attach(name, timeout=0.02),
        lambda: FIFO.attach(name),
        lambda: shmcache.unlink(name),
    ):
        with pytest.raises(
            shmcache.ArenaNotFoundError, match=f"/dev/shm/shmcache.{name}"
        ) as caught:
            call()
        assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    "bad", ["", "a/b", "/a", ".hidden", "-dash", "ä", "x" * 201, "a b", "a\0b"]
)
def test_impossible_names(bad: str) -> None:
    """A name that no arena can have is refused before anything is touched, everywhere."""
    for call in (Store.create, Store.attach, Store.open, FIFO.create, shmcache.unlink):
        with pytest.raises(shmcache.InvalidNameError, match="cannot be the name"):
            call(bad)


def test_another_kind_and_another_codec(store: Store) -> None:
    """A Store is not a FIFO, and another codec's payloads are not ours: the message says which."""
    with pytest.raises(shmcache.IncompatibleArenaError, match=r"is a Store, not a FIFO"):
        FIFO.attach(store.name)
    with pytest.raises(shmcache.IncompatibleArenaError, match=r"codec 'msgpack'.*'raw'"):
        Store.attach(store.name, codec=RawCodec())
    with pytest.raises(shmcache.IncompatibleArenaError):
        Store.open(store.name, codec=RawCodec())


def test_a_foreign_file(name: str, planted: Path) -> None:
    """A file of that name that is not ours is neither used nor changed."""
    planted.write_bytes(b"something else entirely" * 300)
    planted.chmod(0o600)
    for call in (Store.attach, Store.create, Store.open):
        with pytest.raises(shmcache.IncompatibleArenaError, match="not a shmcache arena"):
            call(name)
    assert planted.read_bytes() == b"something else entirely" * 300


def test_another_layout(store: Store) -> None:
    """A segment of another layout version is refused with both versions."""
    with path_of(store.name).open("r+b", buffering=0) as file:
        file.seek(8)
        file.write((99).to_bytes(4, "little"))
        with pytest.raises(
            shmcache.IncompatibleArenaError, match=r"has layout 99.*reads layout \d"
        ):
            Store.attach(store.name)
        file.seek(8)
        file.write(shmcache._core.LAYOUT_VERSION.to_bytes(4, "little"))


def test_a_truncated_segment(store: Store) -> None:
    """A segment that a peer has cut off is refused at attach, instead of faulting later."""
    path = path_of(store.name)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(shmcache.CorruptArenaError):
        Store.attach(store.name)
    os.truncate(path, size)
    store.close()


def test_every_header_field_is_checked(name: str) -> None:
    """Any single flipped byte of the header is refused or harmless; nothing crashes."""
    with Store.create(name, capacity="1MiB") as store:
        store.add_raw("k", b"\xa1x")
    with path_of(name).open("r+b", buffering=0) as file:
        for offset in range(104):
            for flip in (0xFF, 0x01):
                file.seek(offset)
                before = file.read(1)
                file.seek(offset)
                file.write(bytes([before[0] ^ flip]))
                try:
                    with Store.attach(name) as found:
                        found.get_by_key("k")
                except (shmcache.IncompatibleArenaError, shmcache.CorruptArenaError):
                    pass
                file.seek(offset)
                file.write(before)
    with Store.attach(name) as store:
        assert store.get_by_key("k") == "x"


def test_capacity_has_bounds(name: str) -> None:
    """Too small and larger than /dev/shm are CapacityErrors with the figures; no file is left."""
    with pytest.raises(shmcache.CapacityError, match=r"too small.*256\.0 KiB"):
        Store.create(name, capacity="4KiB")
    with pytest.raises(shmcache.CapacityError, match=r"more than .* /dev/shm holds.*--shm-size"):
        Store.create(name, capacity="900TiB")
    with pytest.raises(ValueError, match="cannot read the size"):
        Store.create(name, capacity="lots")
    with pytest.raises(TypeError, match="size is an int"):
        Store.create(name, capacity=1.5)  # type: ignore[arg-type]
    assert not path_of(name).exists()
    with Store.create(name, capacity="256KiB") as smallest:
        smallest.add_raw("k", b"\xa1x")
        assert smallest.check() == []


def test_sizes_are_read_as_written() -> None:
    """Binary and decimal units, fractions and plain bytes."""
    assert parse_size("1.5GiB") == 3 << 29
    assert parse_size("1 kB") == 1000
    assert parse_size("10M") == 10_000_000
    assert parse_size("0") == 0
    for bad in ("", "GiB", "-1", "1XB", "1 GiB/s"):
        with pytest.raises(ValueError, match="cannot read"):
            parse_size(bad)


def test_a_full_arena_says_so_and_stays_whole(name: str, pod: Any) -> None:
    """Adds until the capacity is used end in CapacityError; everything before is readable."""
    with Store.create(name, capacity="1MiB") as store:

        def fill() -> None:
            for i in range(10_000):
                store.add(pod(f"p{i}", fill="x" * 1000))

        with pytest.raises(shmcache.CapacityError, match=r"is full.*larger capacity="):
            fill()
        added = store.stats().writes
        assert added > 500
        assert len(store.list()) == len(store) == added
        assert store.check() == []
        assert store.stats().committed_bytes <= 1 << 20
        store.delete(pod("p0"))
        store.add(pod("again", fill="x" * 1000))


def test_private_whatever_the_umask(name: str) -> None:
    """The file of an arena is 0600, neither more nor less."""
    before = os.umask(0o777)
    try:
        with Store.create(name, capacity="1MiB"):
            assert stat.S_IMODE(path_of(name).stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_codec_names_have_bounds(name: str) -> None:
    """A codec whose name does not fit into the segment is refused at once."""
    codec = RawCodec()
    for bad in ("", "x" * 32, "ä"):
        codec.name = bad
        with pytest.raises(ValueError, match="name of a codec"):
            Store.create(name, codec=codec)
    codec.name = "x" * 31
    with Store.create(name, codec=codec, capacity="1MiB"), Store.attach(name, codec=codec):
        pass


def test_bad_arguments_leave_no_file(name: str) -> None:
    """An argument of create that cannot be is refused before a file is made."""
    for error, arguments in (
        (ValueError, {"cache": -1}),
        (ValueError, {"cache": "much"}),
        (ValueError, {"lock_timeout": -1.0}),
        (ValueError, {"lock_timeout": float("nan")}),
        (TypeError, {"lock_timeout": "1"}),
        (TypeError, {"codec": RawCodec}),
        (TypeError, {"codec": "raw"}),
        (TypeError, {"key_func": "id"}),
    ):
        with pytest.raises(error):
            Store.create(name, **arguments)
    assert not path_of(name).exists()


def attach_and_close(name: str, rounds: int) -> None:
    for _ in range(rounds):
        with contextlib.suppress(shmcache.ArenaNotFoundError):
            Store.attach(name, timeout=60).close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_attach_races_with_creation_and_unlink(name: str) -> None:
    """Who waits for an arena while it is created and unlinked again and again attaches to a whole
    one, or finds none; never half of one."""
    context = multiprocessing.get_context("fork")
    waiting = context.Process(target=attach_and_close, args=(name, 300))
    waiting.start()
    while waiting.is_alive():
        with Store.create(name, capacity="1MiB") as store:
            store.unlink()
    waiting.join()
    assert waiting.exitcode == 0
    waiting.close()


def open_and_unlink(name: str, rounds: int) -> None:
    for i in range(rounds):
        with Store.open(name, capacity="1MiB") as store:
            if i % 3 == 0:
                store.unlink()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_open_races_with_open_and_unlink(name: str, run_all: Any) -> None:
    """open and unlink from three processes at once never fail."""
    context = multiprocessing.get_context("fork")
    run_all([context.Process(target=open_and_unlink, args=(name, 500)) for _ in range(3)])


def test_small_entries_after_large_ones(name: str) -> None:
    """An arena that large values filled still has room for records and index of small ones."""
    with Store.create(name, capacity="16MiB") as store:
        with pytest.raises(shmcache.CapacityError):
            store.add_many([pod_of(i, 100_000) for i in range(400)])
        for i in range(140):
            store.add(pod_of(i, 100_000))
        store.replace([])
        store.replace([pod_of(i, 10) for i in range(4000)])
        assert len(store.list()) == 4000
        assert store.check() == []


def pod_of(i: int, size: int) -> dict[str, Any]:
    return {"metadata": {"name": f"p{i}"}, "fill": b"x" * size}


def test_updates_need_no_more_index(name: str) -> None:
    """In an arena too full for one more key, those that are there can still be updated."""
    with Store.create(name, codec=RawCodec(), capacity="272KiB") as store:
        keys = [f"k{i}" for i in range(5000)]
        full = next(key for key in keys if not added(store, key))
        assert store.check() == []
        for key in keys[: keys.index(full)]:
            store.add_raw(key, b"2")
        for key in keys[: keys.index(full) : 2]:
            store.delete_by_key(key)
        for key in keys[: keys.index(full) : 2]:
            store.add_raw(key, b"3")
        assert len(store) == keys.index(full)
        assert store.check() == []


def added(store: Store, key: str) -> bool:
    try:
        store.add_raw(key, b"1")
    except shmcache.CapacityError:
        return False
    return True


def test_unsafe_files_are_refused(name: str, planted: Path) -> None:
    """World-writable, linked twice, or a symbolic link: ArenaPermissionError, nothing followed."""
    with Store.create(name, capacity="1MiB"):
        pass
    planted.chmod(0o602)
    with pytest.raises(shmcache.ArenaPermissionError, match="mode 0602"):
        Store.attach(name)
    planted.chmod(0o600)
    link = planted.with_name(planted.name + "-link")
    os.link(planted, link)
    try:
        with pytest.raises(shmcache.ArenaPermissionError, match="one link"):
            Store.attach(name)
    finally:
        link.unlink()
    target = planted.rename(planted.with_name(planted.name + "-target"))
    try:
        planted.symlink_to(target)
        with pytest.raises(shmcache.ArenaPermissionError) as caught:
            Store.attach(name)
        assert isinstance(caught.value, PermissionError)
    finally:
        target.unlink()


def test_unlink_lets_the_attached_go_on(store: Store, pod: Any) -> None:
    """After unlink nobody new attaches, those attached go on, and unlink is idempotent."""
    with Store.attach(store.name) as reader:
        store.unlink()
        store.unlink()
        with pytest.raises(shmcache.ArenaNotFoundError):
            Store.attach(store.name)
        store.add(pod("a"))
        assert reader.list() == [pod("a")]


def test_unlink_spares_a_successor(store: Store, name: str) -> None:
    """A handle's unlink leaves alone another arena that has taken the name."""
    store.unlink()
    with Store.create(name, capacity="1MiB") as successor:
        store.unlink()
        with Store.attach(name):
            pass
        successor.unlink()


def test_attach_waits_for_the_creator(name: str) -> None:
    """attach with a timeout returns as soon as somebody has created the arena."""
    made: list[Store] = []
    creator = threading.Timer(0.05, lambda: made.append(Store.create(name, capacity="1MiB")))
    creator.start()
    with Store.attach(name, timeout=60) as store:
        assert len(store) == 0
    creator.join()
    made[0].close()


def test_open_races_to_one_arena(name: str) -> None:
    """Of many that open one name at once, one creates and all have the same arena."""
    barrier = threading.Barrier(8)
    stores: list[Store] = []

    def work(i: int) -> None:
        barrier.wait()
        store = Store.open(name, capacity="1MiB")
        stores.append(store)
        store.add_raw(f"k{i}", b"\xa1x")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store) for store in stores] == [8] * 8
    for store in stores:
        store.close()


@pytest.mark.parametrize("how", ["create", "open"])
def test_an_unfinished_creation_is_taken_over(name: str, planted: Path, how: str) -> None:
    """What a creator leaves that died (an empty or half-made file) is finished by the next."""
    for leftover in (b"", (0x3067686361636D68).to_bytes(8, "little") + bytes(100)):
        planted.write_bytes(leftover)
        planted.chmod(0o600)
        with pytest.raises(shmcache.IncompatibleArenaError, match="never finished"):
            Store.attach(name)
        with getattr(Store, how)(name, capacity="1MiB") as store:
            store.add_raw("k", b"\xa1x")
            assert store.check() == []
            store.unlink()


def test_list_arenas_shows_what_is_there(store: Store, fifo_name: str) -> None:
    """list_arenas tells kind, codec, sizes and whether anybody is attached, without attaching."""
    fifo = FIFO.create(fifo_name, capacity="1MiB", codec=RawCodec())
    fifo.close()
    found = {info.name: info for info in shmcache.list_arenas()}
    assert found[store.name].kind == "Store"
    assert found[store.name].in_use
    assert found[store.name].capacity_bytes == 16 << 20
    assert found[fifo_name].kind == "FIFO"
    assert found[fifo_name].codec == "raw"
    assert not found[fifo_name].in_use
    assert 0 < found[fifo_name].allocated_bytes <= 1 << 20
    assert found[fifo_name].mode == 0o600
    assert found[fifo_name].owner_uid == os.getuid()


class _Own(RawCodec):
    """A codec that only the program which made the arena has."""

    name = "of-their-own"


@pytest.mark.parametrize("kind", [Store, FIFO, shmcache.Indexer])
@pytest.mark.parametrize("codec", [None, RawCodec(), _Own()])
def test_attach_finds_the_kind_and_a_codec(
    name: str, kind: type[Store], codec: shmcache.Codec | None
) -> None:
    """shmcache.attach reads any arena by its name alone: objects of msgpack, bytes of the rest."""
    plain = {"indexers": {}} if kind is shmcache.Indexer else {}
    with kind.create(name, capacity="1MiB", codec=codec, **plain) as made:
        made.add_raw("k", b"\xa1x")
        with shmcache.attach(name) as found:
            assert type(found) is kind
            assert found.get_by_key("k") == ("x" if codec is None else b"\xa1x")
            with pytest.raises(shmcache.ReadOnlyError):
                found.delete_by_key("k")
        with shmcache.attach(name, writable=True) as found:
            found.delete_by_key("k")
        assert len(made) == 0
        made.unlink()


def test_attach_says_why_not(name: str, planted: Path) -> None:
    """shmcache.attach refuses what is not there, and what is no arena, as Store.attach does."""
    with pytest.raises(shmcache.ArenaNotFoundError):
        shmcache.attach(name)
    planted.write_bytes(b"nonsense" * 4096)
    planted.chmod(0o600)
    with pytest.raises(shmcache.IncompatibleArenaError):
        shmcache.attach(name)


@pytest.fixture
def fifo_name(name: str) -> Iterator[str]:
    yield f"{name}-fifo"
    shmcache.unlink(f"{name}-fifo")


def test_an_unnamed_arena_gets_a_name_of_its_own() -> None:
    """name=None makes names that differ and can be attached by."""
    with Store.create(capacity="1MiB") as one, Store.create(capacity="1MiB") as two:
        assert one.name != two.name
        with Store.attach(one.name) as again:
            assert again.name == one.name
        one.unlink()
        two.unlink()


def test_classes_are_not_called() -> None:
    """Store() and FIFO() point to create, attach and open."""
    with pytest.raises(TypeError, match=r"Store\.create"):
        Store()
    with pytest.raises(TypeError, match=r"FIFO\.create"):
        FIFO()


def test_exit_with_open_handles(name: str) -> None:
    """A process that exits with open handles, daemon threads in pop and objects ends quietly."""
    program = f"""
import threading, time, shmcache
store = shmcache.Store.create({name!r}, capacity="1MiB")
fifo = shmcache.FIFO.create(capacity="1MiB")
fifo.unlink()
store.add({{"metadata": {{"name": "a"}}}})
objects = store.list()
for _ in range(4):
    threading.Thread(target=fifo.pop, daemon=True).start()

class Slow:
    # Keeps the interpreter finalizing while the threads come back for the GIL.
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

shmcache.keep = Slow()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_descriptors_are_given_back(name: str) -> None:
    """Attaching and closing a thousand times keeps no descriptor and no map."""
    with Store.create(name, capacity="1MiB"):
        maps = Path("/proc/self/maps").read_text().count(name)
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            Store.attach(name).close()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert Path("/proc/self/maps").read_text().count(name) == maps
