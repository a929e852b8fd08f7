"""Fixtures for the tests of programs that use shmcache, for pytest 8 and later.

They are there when you ask for them, in the conftest.py at the top of your tests::

    pytest_plugins = ["shmcache.testing"]

======================  =====================================================================
fixture                 what it is
======================  =====================================================================
``shmcache_name``       a function: ``shmcache_name("pods")`` is a name that no other test, test
                        process or earlier run has; what has it at the end is removed, whoever
                        made it, also processes that were killed
``shmcache_store``      an empty Store of 16 MiB
``shmcache_fifo``       an empty FIFO of 16 MiB
``shmcache_workqueue``  an empty WorkQueue of 16 MiB
``shmcache_source``     an empty :class:`~shmcache.sources.memory.MemorySource`: what the server
                        has, and how it fails, is what the test says
``shmcache_mirror``     a :class:`Mirror`: a running reflector from that source to that store
======================  =====================================================================

To have an Indexer mirrored, or a source that is not empty, define a fixture of the same name, as
pytest lets you. A test whose process makes an arena and leaves it behind ends with an error that
names the arena, which is then removed; give the arenas that other processes make names of
``shmcache_name``. All of it works under pytest-xdist.

May import: ``_arena``, ``_errors``, ``fifo``, ``keys``, ``reflector``, ``sources``, ``store``,
``workqueue``.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from shmcache import _arena
from shmcache._errors import ArenaNotFoundError
from shmcache.fifo import FIFO
from shmcache.keys import meta_namespace_key_func
from shmcache.reflector import Reflector
from shmcache.sources.memory import MemorySource
from shmcache.store import Store
from shmcache.workqueue import WorkQueue

__all__ = [
    "Mirror",
    "shmcache_fifo",
    "shmcache_mirror",
    "shmcache_name",
    "shmcache_source",
    "shmcache_store",
    "shmcache_workqueue",
]

_CAPACITY = "16MiB"


@dataclass(frozen=True)
class Mirror:
    """A store that a running reflector keeps equal to a source in memory."""

    source: MemorySource
    store: Store
    reflector: Reflector

    def settle(self, timeout: float = 30.0) -> None:
        """Sleep until the store has exactly what the source has, at most ``timeout`` seconds.

        Raises :class:`TimeoutError`, which says what is different, and how the reflector is. ::

            def test_a_deleted_pod_is_not_chosen(shmcache_mirror):
                shmcache_mirror.source.add({"metadata": {"name": "web-0"}})
                shmcache_mirror.settle()
                assert choose(shmcache_mirror.store) == "web-0"
        """
        deadline = time.monotonic() + timeout
        self.store.wait_for_sync(timeout)
        while True:
            version = self.store.version
            wanted = {meta_namespace_key_func(obj): obj for obj in self.source.objects()}
            found = dict(self.store.items())
            if found == wanted and self.store.has_synced:
                return
            if (remaining := deadline - time.monotonic()) <= 0:
                different = {
                    k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k)
                }
                status = self.store.reflector_status()
                raise TimeoutError(
                    f"after {timeout:g} s the store differs from the source in "
                    f"{sorted(different) or 'nothing, but has not synced'}; the reflector is "
                    f"{status.state or 'not running'}, its last error: {status.last_error!r}"
                )
            self.store.wait_for_change(version, remaining)


@pytest.fixture
def shmcache_name() -> Iterator[Callable[[str], str]]:
    """Gives names of arenas that are this test's own, and removes them at the end."""
    unique = uuid.uuid4().hex[:12]
    names: list[str] = []

    def name(label: str = "arena") -> str:
        names.append(f"test-{unique}-{label}")
        return names[-1]

    yield name
    for each in names:
        with contextlib.suppress(ArenaNotFoundError):
            _arena.unlink(each)


@pytest.fixture
def shmcache_store(shmcache_name: Callable[[str], str]) -> Iterator[Store]:
    """An empty Store of 16 MiB."""
    with Store.create(shmcache_name("store"), capacity=_CAPACITY) as store:
        yield store


@pytest.fixture
def shmcache_fifo(shmcache_name: Callable[[str], str]) -> Iterator[FIFO]:
    """An empty FIFO of 16 MiB."""
    with FIFO.create(shmcache_name("fifo"), capacity=_CAPACITY) as fifo:
        yield fifo


@pytest.fixture
def shmcache_workqueue(shmcache_name: Callable[[str], str]) -> Iterator[WorkQueue]:
    """An empty WorkQueue of 16 MiB."""
    with WorkQueue.create(shmcache_name("workqueue"), capacity=_CAPACITY) as queue:
        yield queue


@pytest.fixture
def shmcache_source() -> MemorySource:
    """A source in memory without objects."""
    return MemorySource()


@pytest.fixture
def shmcache_mirror(shmcache_source: MemorySource, shmcache_store: Store) -> Iterator[Mirror]:
    """A running reflector from ``shmcache_source`` to ``shmcache_store``, in sync."""
    with Reflector(shmcache_source, None, shmcache_store) as reflector:
        mirror = Mirror(shmcache_source, shmcache_store, reflector)
        mirror.settle()
        yield mirror


# -- what is left behind --------------------------------------------------------------------------

_Made = dict[tuple[int, int], str]
"""The names of the arenas that this process made, by what they are."""


@pytest.fixture(scope="session", autouse=True)
def _shmcache_made() -> Iterator[_Made]:
    """Notes what is made; at the end of the session, nothing of it may be left."""
    made: _Made = {}
    create = _arena.Opening.create

    def noting(self: _arena.Opening, name: str | None, capacity: int) -> tuple[Any, str]:
        core, given = create(self, name, capacity)
        made[core.identity] = given
        return core, given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_arena.Opening, "create", noting)
        yield made
    _remove_the_left(made, "the fixtures of this session")


@pytest.fixture(autouse=True)
def _shmcache_leaves_nothing(_shmcache_made: _Made) -> Iterator[None]:
    """What a test has made is gone at its end; the arenas of fixtures of a wider scope are not
    its own, for they are made before this begins."""
    before = set(_shmcache_made)
    yield
    _remove_the_left({k: v for k, v in _shmcache_made.items() if k not in before}, "this test")


def _remove_the_left(made: _Made, whose: str) -> None:
    left = sorted(name for identity, name in made.items() if _arena.identity(name) == identity)
    for name in left:
        with contextlib.suppress(ArenaNotFoundError):
            _arena.unlink(name)
    if left:
        pytest.fail(
            f"{whose} left in /dev/shm: {', '.join(left)} (removed now). Call "
            "unlink() on one of their handles, or give them names of the fixture shmcache_name",
            pytrace=False,
        )
