"""What every test gets, and what none may leave behind."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import _arena

SHM = Path("/dev/shm")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted: it says how much was tried, beside that nothing failed."""
    for report in terminalreporter.getreports("passed"):
        for name, value in getattr(report, "user_properties", []):
            if name == "figures" and report.when == "call":
                terminalreporter.section(report.nodeid)
                terminalreporter.write(str(value))


def _segment_descriptors() -> list[str]:
    """Where this process's descriptors of segments lead."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if "/dev/shm/shmcache." in target:
                found.append(target)
    return found


@pytest.fixture(autouse=True)
def _leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves a segment that it created, a descriptor of one, a child process, or a thread
    that keeps us alive."""
    threads = set(threading.enumerate())
    created: list[str] = []
    create = _arena.Opening.create

    def recording(*args: Any) -> Any:
        core, name = create(*args)
        created.append(name)
        return core, name

    monkeypatch.setattr(_arena.Opening, "create", recording)
    # What is there already is not this test's: to walk all that a run has imported, after each test
    # and in each round of those that collect in rounds, took most of their time.
    gc.freeze()
    yield
    gc.collect()
    assert _segment_descriptors() == []
    assert multiprocessing.active_children() == []
    assert [t for t in threading.enumerate() if t not in threads and not t.daemon] == []
    assert [name for name in created if (SHM / f"shmcache.{name}").exists()] == []


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Every thread that a test started has ended with it, daemon or not."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def name() -> Iterator[str]:
    """A name that no other test has; whatever has it at the end is unlinked."""
    unique = f"test-{uuid.uuid4().hex[:12]}"
    yield unique
    with contextlib.suppress(shmcache.ArenaNotFoundError):
        shmcache.unlink(unique)


@pytest.fixture
def store(name: str) -> Iterator[shmcache.Store]:
    """A store of 16 MiB, whole at the end of the test."""
    with shmcache.Store.create(name, capacity="16MiB") as made:
        yield made
        assert made.closed or made.check() == []


@pytest.fixture
def fifo() -> Iterator[shmcache.FIFO]:
    """A FIFO of 16 MiB, whole at the end of the test."""
    with shmcache.FIFO.create(capacity="16MiB") as made:
        yield made
        assert made.closed or made.check() == []
        made.unlink()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process; its status, stdout and stderr."""

    def do(*arguments: str) -> tuple[int, str, str]:
        from shmcache.cli import main  # what tests of the core should not need

        capsys.readouterr()
        try:
            status = main(arguments)
        except SystemExit as ending:
            status = int(ending.code or 0)
        return status, *capsys.readouterr()

    return do


@pytest.fixture
def pod() -> Callable[..., dict[str, object]]:
    """Makes small objects of the Kubernetes shape."""

    def make(name: str, namespace: str = "default", **fields: object) -> dict[str, object]:
        return {"metadata": {"name": name, "namespace": namespace}, **fields}

    return make


@pytest.fixture
def run_all() -> Callable[[list[Any]], None]:
    """Starts processes and waits until each has ended well."""

    def run(processes: list[Any]) -> None:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
            process.close()

    return run
