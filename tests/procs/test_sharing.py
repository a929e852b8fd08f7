"""Arenas between users: what mode= and owner= allow, and what is refused without them."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, Store
from tests.running import as_user

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")
ALICE, BOB, GROUP = 61001, 61002, 61003


def alice_creates(name: str, mode: int) -> None:
    def create() -> None:
        with Store.create(name, capacity="1MiB", mode=mode) as store:
            store.add_raw("k", b"\xa1x")

    assert as_user(ALICE, GROUP, create) == 0


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_mode_is_that_whatever_the_umask(name: str, mode: int) -> None:
    """The file has exactly the permission bits of mode=, under any umask, and 0600 by default."""
    for mask in (0, 0o077, 0o777):
        before = os.umask(mask)
        try:
            store = Store.open(name, capacity="1MiB", mode=mode)
        finally:
            os.umask(before)
        with store:
            assert stat.S_IMODE(os.stat(f"/dev/shm/shmcache.{name}").st_mode) == mode
            store.unlink()
    with FIFO.create(name, capacity="1MiB"):
        assert stat.S_IMODE(os.stat(f"/dev/shm/shmcache.{name}").st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o400, 0, -1, "0660", None])
def test_other_modes_are_refused(mode: Any) -> None:
    """A mode that lets in others, or shuts us out, is a ValueError that says which there are."""
    with pytest.raises(ValueError, match="0o660"):
        Store.create(capacity="1MiB", mode=mode)


@pytest.mark.parametrize("owner", [-1, 1.5, True, b"root"])
def test_an_owner_is_a_user(name: str, owner: Any) -> None:
    """owner= is the name or number of a user; anything else is a TypeError."""
    with pytest.raises(TypeError, match="owner"):
        Store.attach(name, owner=owner)
    with pytest.raises(ValueError, match="no user 'nobody-has-this-name'"):
        Store.attach(name, owner="nobody-has-this-name")
    for number in (2**32 - 1, 2**32, 10**30):
        with pytest.raises(ValueError, match=f"at most 4294967294, and not {number}"):
            Store.attach(name, owner=number)


@needs_root
def test_a_group_shares_an_arena(name: str) -> None:
    """With mode=0o660 and owner= another user of the group reads, writes, waits and pickles."""
    alice_creates(name, 0o660)

    def bob() -> None:
        import pickle

        with Store.attach(name, writable=True, owner=ALICE) as store:
            store.add_raw("bob", b"\xa1y")
            assert store.get_by_key("k") == "x"
            with pickle.loads(pickle.dumps(store)) as again:
                assert again.get_by_key("bob") == "y"
            assert store.check() == []
        with Store.open(name, capacity="1MiB", owner=ALICE) as store:
            assert len(store) == 2

    assert as_user(BOB, GROUP, bob) == 0


@needs_root
def test_nobody_is_trusted_unasked(name: str) -> None:
    """Without owner= the arena of another user is refused, though the file could be opened, and
    the error says how to accept it; owner= of a third user does not help."""
    alice_creates(name, 0o660)

    def bob() -> None:
        for owner in (None, BOB):
            with pytest.raises(shmcache.ArenaPermissionError, match=f"owner uid {ALICE}") as caught:
                Store.attach(name, owner=owner)
            assert "owner=" in str(caught.value)

    assert as_user(BOB, GROUP, bob) == 0


@needs_root
def test_nobody_else_gets_in(name: str) -> None:
    """With the default mode even owner= does not open the arena of another user of the group."""
    alice_creates(name, 0o600)

    def bob() -> None:
        with pytest.raises(shmcache.ArenaPermissionError):
            Store.attach(name, owner=ALICE)
        with pytest.raises(shmcache.ArenaPermissionError):
            shmcache.unlink(name)

    assert as_user(BOB, GROUP, bob) == 0
