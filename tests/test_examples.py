"""The examples run as they stand, to their end, and leave nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
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


def test_examples_are_all_tested() -> None:
    """A new example needs a test of its own here."""
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {
        "directory.py", "fork_workers.py", "scheduler.py", "shared_reflector.py",
    }  # fmt: skip
