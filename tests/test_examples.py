"""The examples run as they stand, to their end, and leave nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import EXAMPLES, Program

DEADLINE = 120.0


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_fork_workers_do_each_job_once() -> None:
    """All jobs are done, by the workers together, and none is left in the queue."""
    out = run("fork_workers.py", "--jobs", "500", "--workers", "3")
    assert sum(map(int, re.findall(r"did (\d+) jobs", out))) == 500
    assert "500 jobs done, 0 left" in out


def test_directory_is_mirrored_to_all_workers() -> None:
    """Every worker ends with what the folder holds, and the whole is removed at the end."""
    pytest.importorskip("watchfiles")
    pytest.importorskip("yaml")
    out = run("directory.py", "--jobs", "20", "--workers", "3")
    assert len(re.findall(r"worker \d: 19 jobs, job-0 is gone, job-1 has size 100", out)) == 3
    assert "19 jobs in the store" in out


def test_a_fleet_survives_its_elected_worker() -> None:
    """Of three workers the elected one is killed; one of the others is elected, and both go on."""
    pytest.importorskip("watchfiles")
    pytest.importorskip("yaml")
    out = run("shared_reflector.py", "--workers", "3")
    assert "killed the elected worker" in out
    assert len(re.findall(r"worker \d: \d jobs, (?:was elected|only read)", out)) == 2


def test_scheduler_binds_all_pods() -> None:
    """Without a cluster it makes pods, and binds every one to the emptiest of its nodes."""
    pytest.importorskip("kubernetes")
    pytest.importorskip("msgspec")
    out = run("scheduler.py", "--pods", "40", "--workers", "2")
    assert "40 pods bound" in out


def test_controller_keeps_the_copies() -> None:
    """Without a cluster it makes ConfigMaps, and kills the worker that watches: another takes its
    place, and what changes then is mended by those that are left."""
    pytest.importorskip("kubernetes")
    pytest.importorskip("msgspec")
    out = run("controller.py", "--config-maps", "20", "--workers", "3")
    assert len(re.findall(r"\d has ended with -9", out)) == 1
    assert "repaired default/settings-0-mirror" in out
    assert "deleted default/settings-1-mirror" in out
    assert "deleted default/settings-2-mirror" in out
    assert "all 18 copies are as they should be" in out


@pytest.mark.parametrize("end", [Program.ctrl_c, Program.terminate], ids=["ctrl-c", "terminate"])
def test_controller_ends_on_a_signal(tmp_path: Path, end: Callable[[Program], None]) -> None:
    """Interrupted at work, by a terminal or by a service manager, it ends with its workers, and
    leaves no arena."""
    pytest.importorskip("kubernetes")
    pytest.importorskip("msgspec")
    with Program(tmp_path / "log", "controller.py", "--config-maps", "100000") as program:
        program.until_said("created")
        arenas, pids = program.arenas(), program.children()
        assert len(arenas) == 2
        end(program)
        assert program.wait() == 0, program.output
        assert "Traceback" not in program.output
    assert [path for path in arenas if os.path.exists(path)] == []
    assert not any(map(is_alive, pids))


def test_controller_without_a_supervisor_ends(tmp_path: Path) -> None:
    """When the supervisor itself is killed, its workers do not go on for ever by themselves."""
    pytest.importorskip("kubernetes")
    pytest.importorskip("msgspec")
    with Program(tmp_path / "log", "controller.py", "--config-maps", "100000") as program:
        program.until_said("created")
        arenas, pids = program.arenas(), program.children()
        os.kill(program.pid, signal.SIGKILL)
        try:
            wait_for_the_end_of(pids)
        finally:
            for path in arenas:
                os.unlink(path)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_process_pool_reads_what_changes(method: str) -> None:
    """Under every start method the tasks see the second content, by both ways of a handle."""
    out = run("process_pool.py", "--tasks", "50", "--workers", "2", "--start-method", method)
    assert out.startswith("50 people\nthen 100, counted by")
    assert out.endswith("and 100 in two halves\n")


@pytest.mark.parametrize(
    ("children", "arguments"),
    [
        (2, ["fork_workers.py", "--jobs", "50000", "--workers", "2"]),
        (3, ["directory.py", "--jobs", "4000"]),
        (4, ["shared_reflector.py", "--workers", "3"]),
        (3, ["scheduler.py", "--pods", "100000"]),
        (3, ["process_pool.py", "--tasks", "20000", "--start-method", "fork"]),
        (4, ["process_pool.py", "--tasks", "20000", "--start-method", "spawn"]),
    ],
    ids=["fork_workers", "directory", "shared_reflector", "scheduler", "pool-fork", "pool-spawn"],
)
def test_ctrl_c_ends_them_quietly(tmp_path: Path, children: int, arguments: list[str]) -> None:
    """Interrupted from a terminal, an example and its children end, without a traceback and
    without an arena that is left."""
    if arguments[0] in ("directory.py", "shared_reflector.py"):
        pytest.importorskip("watchfiles")
        pytest.importorskip("yaml")
    if arguments[0] == "scheduler.py":
        pytest.importorskip("kubernetes")
        pytest.importorskip("msgspec")
    with Program(tmp_path / "log", *arguments) as program:
        # With those of the spawn method is the tracker of resources.
        program.until(
            lambda: (
                sum(map(ignores_ctrl_c, program.children())) >= children
                and not ignores_ctrl_c(program.pid)
            ),
            "its children are at work",
        )
        if arguments[0] == "process_pool.py":  # the pool itself cannot stand it while it starts
            program.until_said("people")
        arenas, pids = program.arenas(), program.children()
        assert arenas
        program.ctrl_c()
        assert program.wait() == 0, program.output
        assert "Traceback" not in program.output
    assert [path for path in arenas if os.path.exists(path)] == []
    wait_for_the_end_of(pids)  # the tracker of resources ends a moment later


def wait_for_the_end_of(pids: set[int]) -> None:
    end = time.monotonic() + DEADLINE
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, pids
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether it runs; a process that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ignores_ctrl_c(pid: int) -> bool:
    """Whether a Ctrl-C is not for it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    ignored = re.search(r"^SigIgn:\s*(\w+)", status, re.MULTILINE)
    return ignored is not None and bool(int(ignored[1], 16) >> (signal.SIGINT - 1) & 1)


def test_examples_are_all_tested() -> None:
    """A new example needs a test of its own here."""
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {
        "controller.py", "directory.py", "fork_workers.py", "process_pool.py", "scheduler.py",
        "shared_reflector.py",
        "asyncio_consumers.py", "celery_orders.py", "gunicorn_web.py",  # in tests/examples
    }  # fmt: skip
