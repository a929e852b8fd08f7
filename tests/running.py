"""What runs beside a test: programs, `shmcache reflect`, and children of other users."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

__all__ = ["EXAMPLES", "Program", "Reflect", "as_user", "reflect_commands", "wait_until"]

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
DEADLINE = 120.0
POLL = 0.02

T = TypeVar("T")


class Program:
    """``python ARGUMENTS`` in the folder of the examples, in a process group of its own, as from a
    terminal; killed at the end if it still runs.

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


class Reflect:
    """A running `shmcache reflect` that writes JSON lines, with `folder` as its home."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
        environment |= {"HOME": str(folder), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shmcache.cli", "reflect", "-o", "json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment | variables,
        )
        self.seen: list[dict[str, Any]] = []
        # Lines are waited for without a limit: this one ends the wait, and so the test.
        self._limit = threading.Timer(DEADLINE, self.process.kill)
        self._limit.start()

    def until(self, event: str) -> dict[str, Any]:
        """Read lines up to one of that event."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(json.loads(line))
            if self.seen[-1]["event"] == event:
                return self.seen[-1]
        raise AssertionError((event, self.seen, self.end()))

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Send a signal, if any; return status and standard error at the end."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=DEADLINE)
        self.seen += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, err

    def kill(self) -> None:
        """Whatever it does, and whether it lives or not."""
        self._limit.cancel()
        self._limit.join()
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def reflect_commands(folder: Path) -> Iterator[Callable[..., Reflect]]:
    """Starts such commands; what still runs in the end is killed."""
    commands: list[Reflect] = []

    def begin(*arguments: str, **variables: str) -> Reflect:
        commands.append(Reflect(folder, *arguments, **variables))
        return commands[-1]

    try:
        yield begin
    finally:
        for command in commands:
            command.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again until it holds; nobody can be waited for in another program."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL)


def as_user(uid: int, group: int, work: Callable[[], None]) -> int:
    """Run `work` in a forked child of that user and group; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(uid)
            work()
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _is_alive(pid: str) -> bool:
    """Whether a process lives: one that has ended, waited for or not, has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):  # gone while we look
        return False
