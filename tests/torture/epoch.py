"""One epoch: a crew at work on new arenas, a plan of kills and stops carried out, a verdict.

The driver of it forks the crew and sends signals. It takes no lock of an arena, so that it cannot
hang in one: closing and looking are done by processes too, and all that waits here waits in
:meth:`Epoch.step`, under the watchdog.

Its own history (``driver.history``) says who was killed when, and is what the judge goes by.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shmcache import FIFO, ArenaNotFoundError, Store, unlink
from tests.torture import judge
from tests.torture.claims import MAX_ATTEMPTS
from tests.torture.history import Recorder, read_all
from tests.torture.holder import LockWord
from tests.torture.payload import key_of
from tests.torture.plan import CREW, Blow, plan
from tests.torture.roles import CODEC, ROLES, Names, Work
from tests.torture.verdict import Verdict, Violation

__all__ = ["Epoch", "Outcome"]

_CAPACITY = "64MiB"
_STEP_SECONDS = 0.0003
# Operations of all that an "asleep" or "locked" kill waits for a victim in that state.
_PATIENCE = 2000

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Hang(Exception):
    """Somebody who should have gone on did not."""


@dataclass(slots=True)
class Outcome:
    """What an epoch came to."""

    kills: Counter[str]  # by role
    ways: Counter[str]  # of killing; and "stop"
    verdict: Verdict


@dataclass(slots=True)
class Process:
    """A place in the crew and who has it now."""

    role: str
    index: int
    slot: int
    life: int = 0
    pid: int = 0  # 0: ended
    continue_at: float = 0.0  # stopped until then, 0: not stopped
    seen: int = 0  # operations when last looked at by the watchdog
    idle: float = 0.0  # seconds that the watchdog has seen no more of them

    @property
    def who(self) -> str:
        return f"{self.role}-{self.index}.{self.life}"


class Board:
    """Words that all processes of an epoch share: they outlive who wrote them."""

    def __init__(self, slots: int) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = memoryview(self._map).cast("Q")
        assert 1 + 2 * slots <= len(self._words)
        self._slots = slots

    def stop(self) -> None:
        self._words[0] += 1

    def stopping(self) -> int:
        """0: at work; 1: producers stop; 2: everybody does."""
        return self._words[0]

    def progress(self, slot: int) -> None:
        self._words[1 + 2 * slot] += 1

    def operations(self, slot: int) -> int:
        return self._words[1 + 2 * slot]

    def all_operations(self) -> int:
        return sum(self._words[1 : 1 + 2 * self._slots : 2])

    def set_popping(self, slot: int, popping: bool) -> None:
        self._words[2 + 2 * slot] = popping

    def popping(self, slot: int) -> bool:
        return bool(self._words[2 + 2 * slot])


class Epoch:
    """Run once. ``folder`` is for its histories; ``interrupted`` says to end it early."""

    def __init__(
        self,
        seed: str,
        folder: Path,
        interrupted: Callable[[], bool] = lambda: False,
        hang_seconds: float = 30.0,
    ) -> None:
        self._seed = seed
        self._folder = folder
        self._interrupted = interrupted
        self._hang_seconds = hang_seconds
        prefix = f"torture-{os.getpid()}-{folder.name}"
        self._names = Names(*(f"{prefix}-{what}" for what in ("queue", "jobs", "table", "list")))
        places = [(role, index) for role, count in CREW.items() for index in range(count)]
        self._crew = [
            Process(role, index, slot)
            for slot, (role, index) in enumerate([*places, ("closer", 0), ("inspector", 0)])
        ]
        self._board = Board(len(self._crew))
        self._record = Recorder(folder / "driver.history")
        self._watched_at = time.monotonic()
        self._kills: Counter[str] = Counter()
        self._ways: Counter[str] = Counter()
        self._locks: list[LockWord] = []
        self._broken = False  # somebody ended who should not have

    def run(self, kills: int) -> Outcome:
        """Strike until ``kills`` processes were killed; then let the rest end, and judge."""
        hangs: list[Violation] = []
        try:
            self._create()
            for process in self._crew:
                if process.role in CREW:
                    self._start(process)
            for blow in plan(self._seed, kills):
                if not self._work_until(self._after(blow.after)):
                    break
                self._strike(blow)
            self._let_end()
        except Hang as hang:
            hangs.append(Violation("hang", str(hang)))
        finally:
            self._end_all()
        verdict = judge.judge(read_all(self._folder))
        verdict.violations[:0] = hangs
        return Outcome(self._kills, self._ways, verdict)

    # --- the crew -------------------------------------------------------------------------------

    def _create(self) -> None:
        options: dict[str, Any] = {"codec": CODEC, "key_func": key_of, "capacity": _CAPACITY}
        FIFO.create(self._names.queue, **options).close()
        FIFO.create(self._names.jobs, max_attempts=MAX_ATTEMPTS, **options).close()
        Store.create(self._names.table, **options).close()
        Store.create(self._names.list, **options).close()
        self._locks = [LockWord(name) for name in self._names.all()]

    def _start(self, process: Process) -> None:
        process.life += 1
        process.idle = 0.0
        driver = os.getpid()
        process.pid = os.fork()
        if process.pid == 0:
            status = 1
            try:
                self._live(process, driver)
                status = 0
            finally:
                os._exit(status)

    def _live(self, process: Process, driver: int) -> None:
        """A child's life."""
        # Ctrl-C is for the driver; its end, however it comes, is the end of all.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.nice(10)  # so that the driver strikes when it wants to, whatever runs then
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != driver:
            return
        errors = os.open(self._errors(process), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1)
        board, slot = self._board, process.slot
        board.set_popping(slot, False)
        stop_at = 1 if process.role == "producer" else 2
        record = Recorder(self._folder / f"{process.who}.history")
        work = Work(
            process.index,
            process.life,
            self._names,
            random.Random(f"{self._seed} {process.who}"),
            record,
            lambda: board.progress(slot),
            lambda popping: board.set_popping(slot, popping),
            lambda: board.stopping() >= stop_at,
        )
        try:
            ROLES[process.role](work)
        except BaseException as error:
            record.fail(error)
            traceback.print_exc()
            raise

    def _errors(self, process: Process) -> Path:
        return self._folder / f"{process.role}-{process.index}.stderr"

    # --- blows ----------------------------------------------------------------------------------

    def _strike(self, blow: Blow) -> None:
        victim = next(p for p in self._crew if (p.role, p.index) == (blow.role, blow.index))
        way = blow.way
        if way == "asleep":
            too_late = self._after(_PATIENCE)
            self._work_until(lambda: self._asleep(victim) or too_late())
            way = "asleep" if self._asleep(victim) else "kill"
        if way == "locked":
            held = self._find_in_lock(blow.role)
            victim, way = (held, "locked") if held else (victim, "kill")
        if way in ("stopped", "pause"):
            until = time.monotonic() + blow.pause_ms / 1000
            self._stop(victim, until)
            if way == "pause":
                return
            self._work_until(lambda: time.monotonic() >= until)
        self._kill(victim, way)

    def _asleep(self, victim: Process) -> bool:
        """Whether it sleeps in ``pop`` or ``claim`` (one that ended by itself never will)."""
        return victim.pid > 0 and self._board.popping(victim.slot) and _state(victim.pid) == "S"

    def _find_in_lock(self, role: str) -> Process | None:
        """A process of the role, stopped while it holds a lock; None if none is caught."""
        too_late = self._after(_PATIENCE)
        while not too_late():
            if not self._work_until(lambda: self._holder(role) is not None or too_late()):
                return None
            found = self._holder(role)
            if found is None:
                continue
            os.kill(found.pid, signal.SIGSTOP)
            self._work_until(partial(_stands, found))
            if self._holder(role) is found:
                return found
            if found.pid > 0:
                os.kill(found.pid, signal.SIGCONT)
        return None

    def _holder(self, role: str) -> Process | None:
        holders = {lock.holder() for lock in self._locks}
        return next((p for p in self._crew if p.role == role and p.pid in holders - {0}), None)

    def _stop(self, victim: Process, until: float) -> None:
        if victim.pid > 0:
            self._record.begin("stop", victim.who)
            os.kill(victim.pid, signal.SIGSTOP)
            self._record.end()
            victim.continue_at = until
            self._ways["stop"] += 1

    def _kill(self, victim: Process, way: str) -> None:
        if victim.pid > 0:
            self._record.begin("kill", victim.who)
            os.kill(victim.pid, signal.SIGKILL)
            status = self._reap(victim)
            self._record.end()
            if status != -signal.SIGKILL:  # it was quicker
                self._ended(victim, status)
                return
            self._kills[victim.role] += 1
            self._ways[way] += 1
            self._start(victim)

    def _reap(self, killed: Process) -> int:
        for _ in range(int(self._hang_seconds / _STEP_SECONDS)):
            pid, status = os.waitpid(killed.pid, os.WNOHANG)
            if pid != 0:
                killed.pid = 0
                killed.continue_at = 0.0
                return os.waitstatus_to_exitcode(status)
            time.sleep(_STEP_SECONDS)
        raise Hang(f"{killed.who} was killed and does not end")

    # --- waiting --------------------------------------------------------------------------------

    def _after(self, operations: int) -> Callable[[], bool]:
        target = self._board.all_operations() + operations
        return lambda: self._board.all_operations() >= target

    def _work_until(self, condition: Callable[[], bool]) -> bool:
        """False if the epoch is to end before that."""
        while not condition():
            if self._interrupted() or self._broken:
                return False
            self._step()
        return True

    def _let_end(self) -> None:
        """Producers first; the queues are drained; the others; at last a look at what is left."""
        self._board.stop()
        self._join("producer")
        self._start_one("closer")
        self._join("closer", "consumer", "claimer")
        self._board.stop()
        self._join("reader", "replacer")
        self._start_one("inspector")
        self._join("inspector")

    def _start_one(self, role: str) -> None:
        self._start(next(p for p in self._crew if p.role == role))

    def _join(self, *roles: str) -> None:
        while any(p.pid > 0 for p in self._crew if p.role in roles):
            self._step()

    def _step(self) -> None:
        """A moment of waiting: continue who was stopped long enough, note who ended, watch."""
        time.sleep(_STEP_SECONDS)
        time_now = time.monotonic()
        # A machine that was suspended, or a driver that was, has not seen anybody idle.
        elapsed = min(time_now - self._watched_at, 0.5)
        self._watched_at = time_now
        for process in self._crew:
            if process.pid == 0:
                continue
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid != 0:
                self._ended(process, os.waitstatus_to_exitcode(status))
            elif process.continue_at > time_now:
                pass
            elif process.continue_at > 0:
                os.kill(process.pid, signal.SIGCONT)
                process.continue_at = 0.0
            elif process.seen != (operations := self._board.operations(process.slot)):
                process.seen, process.idle = operations, 0.0
            else:
                process.idle += elapsed
                if process.idle > self._hang_seconds:
                    raise Hang(self._describe(process))

    def _ended(self, process: Process, status: int) -> None:
        """By itself: as it should once it was told to stop, never before."""
        process.pid = 0
        process.continue_at = 0.0
        if status != 0 or self._board.stopping() == 0:
            self._broken = True
            self._record.begin("died", process.who, str(status))
            self._record.end()

    def _describe(self, hung: Process) -> str:
        """Who hangs and where, and what the others do."""
        os.kill(hung.pid, signal.SIGUSR1)
        time.sleep(0.3)  # for faulthandler to write; if it cannot, there is no stack to show
        lines = [f"{hung.who} made no progress for {hung.idle:.0f} s; its stack:"]
        lines += self._errors(hung).read_text().splitlines()[-30:]
        for process in self._crew:
            if process.pid > 0:
                with contextlib.suppress(OSError):
                    where = Path(f"/proc/{process.pid}/wchan").read_text()
                    lines.append(
                        f"{process.who}: pid {process.pid}, state {_state(process.pid)}, in "
                        f"{where}, {self._board.operations(process.slot)} operations, idle for "
                        f"{process.idle:.1f} s, stopped: {process.continue_at > 0}"
                    )
        return "\n    ".join(lines)

    def _end_all(self) -> None:
        for lock in self._locks:
            lock.close()
        for name in self._names.all():
            with contextlib.suppress(ArenaNotFoundError):
                unlink(name)
        for process in self._crew:
            if process.pid > 0:
                os.kill(process.pid, signal.SIGKILL)
                self._reap(process)
        self._record.close()


def _stands(process: Process) -> bool:
    """Whether it is stopped, or has ended."""
    return process.pid == 0 or _state(process.pid) in "TZ"


def _state(pid: int) -> str:
    """R, S, T and so on, as the kernel says."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
