"""A program that runs beside a test, in a process group of its own, as from a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import pytest

__all__ = ["EXAMPLES", "Program"]

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
DEADLINE = 120.0
POLL = 0.02

T = TypeVar("T")


class Program:
    """``python ARGUMENTS`` in the folder of the examples; killed at the end if it still runs.

    ``log``: the file for all that it and its children print.
    """

    def __init__(self, log: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=EXAMPLES,
                env={**os.environ, "PYTHONPATH": path, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def children(self) -> set[int]:
        """The processes that it has started itself, and that live."""
        found = set()
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends
                pids = (task / "children").read_text().split()
                found |= {int(pid) for pid in pids if _is_alive(pid)}
        return found

    def arenas(self) -> set[str]:
        """The files of the arenas that it has mapped."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        return set(re.findall(r"/dev/shm/shmcache\.\S+", maps))

    def until(self, look: Callable[[], T], what: str) -> T:
        """Look until there is something: nobody can be waited for in another program."""
        end = time.monotonic() + DEADLINE
        while not (seen := look()):
            if not self.alive:
                pytest.fail(f"the program ended before {what}:\n{self.output}")
            if time.monotonic() > end:
                pytest.fail(f"not within {DEADLINE:g} s: {what}\n{self.output}")
            time.sleep(POLL)
        return seen

    def until_said(self, pattern: str) -> str:
        """Wait until it has printed that, and return its first group, or all."""
        found = self.until(lambda: re.search(pattern, self.output), f"it says {pattern!r}")
        return found[found.re.groups and 1]

    def ctrl_c(self) -> None:
        """What a terminal does: the signal goes to the whole process group."""
        os.killpg(self.pid, signal.SIGINT)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status, negative if a signal ended it."""
        return self._process.wait(DEADLINE)


def _is_alive(pid: str) -> bool:
    """Whether a process lives: one that has ended, waited for or not, has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):  # gone while we look
        return False
