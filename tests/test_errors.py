"""Every status of the core is one exception, with a sentence for the user."""

from __future__ import annotations

import inspect
import pickle
import queue

import pytest

import shmcache
from shmcache import _core, _errors, _status

CONTEXT = {
    "errno": 0, "kind": "Store", "wanted_kind": "FIFO", "layout": 9, "codec": "raw",
    "wanted_codec": "msgpack", "wanted": 1 << 20, "available": 1 << 30, "uid": 1, "mode": 0o666,
    "key_size": 1, "value_size": 2, "lock_timeout": 1.0, "capacity": 1 << 20, "committed": 1 << 19,
    "pid": 7, "key": "a", "priority": 9, "most": 7,
}  # fmt: skip


def test_every_status_has_exactly_one_exception() -> None:
    """The core's list of status codes and the table of exceptions are the same."""
    assert sorted(_core.STATUS_NAMES) == sorted(_status._EXCEPTIONS)


@pytest.mark.parametrize("status", _core.STATUS_NAMES)
def test_every_status_becomes_an_exception(status: str) -> None:
    """Each code gives an exception of ours or of the standard library, with a message."""
    error = _status.error(status, "the-name", CONTEXT)
    assert isinstance(error, (shmcache.ShmCacheError, queue.Empty, MemoryError, OSError))
    assert status == "empty" or str(error)


def test_errors_derive_from_what_the_tree_says() -> None:
    """The tree drawn in the module's docstring names every class, with its standard base."""
    doc = inspect.getdoc(_errors)
    assert doc is not None
    for name in _errors.__all__:
        cls = getattr(shmcache, name)
        assert issubclass(cls, shmcache.ShmCacheError)
        line = next(line for line in doc.splitlines() if line.strip(" │├└─").startswith(name))
        for base in (
            ValueError, MemoryError, FileExistsError, FileNotFoundError, PermissionError, KeyError,
            TimeoutError,
        ):  # fmt: skip
            assert (f"({base.__name__})" in line) == issubclass(cls, base)


def test_api_errors_carry_what_the_server_said() -> None:
    """ApiError has status, message and retry_after; ExpiredError is the 410."""
    error = shmcache.ApiError(429, "slow down", retry_after=3.0)
    assert (error.status, error.message, error.retry_after) == (429, "slow down", 3.0)
    assert str(error) == "429: slow down"
    assert shmcache.ExpiredError().status == 410
    assert isinstance(shmcache.ExpiredError(), shmcache.ApiError)


def test_key_errors_read_well() -> None:
    """The text of a KeyError of ours is its message, not the message's repr."""
    for kind in (shmcache.IndexNotFoundError, shmcache.NotFoundError):
        assert str(kind("no index 'x'")) == "no index 'x'"


def test_errors_survive_pickling() -> None:
    """What a worker raises may reach its parent through multiprocessing."""
    for error in (
        shmcache.KeyFuncError("m", {"a": 1}),
        shmcache.LockTimeoutError("m", 7),
        shmcache.ApiError(500, "m", retry_after=1.0),
        shmcache.ExpiredError("m"),
        shmcache.SelectorError("m", "a in", 3),
        shmcache.CapacityError("m"),
        shmcache.ReflectorRunningError("m", 7),
        shmcache.IndexNotFoundError("m"),
        shmcache.NotFoundError("m"),
        shmcache.ArenaNotFoundError("m"),
        shmcache.ArenaPermissionError(13, "m", "/dev/shm/x"),
        shmcache.ShutDown("m"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
