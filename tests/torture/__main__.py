"""The torture as a command: epoch after epoch, until enough processes were killed.

Exit status: 0 if everything that was asked for was done and nothing violated the contract;
1 otherwise, also when interrupted; 2 for a usage error.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.epoch import Epoch, Outcome

_KILLS_PER_EPOCH = 50
_DEFAULT_KILLS = 10_000
_PROGRESS_SECONDS = 10.0
_MOST_SHOWN = 20

_DESCRIPTION = """\
Producers, consumers, claimers, readers and a replacer work on two queues and two stores in shared
memory, while they are killed (SIGKILL) and stopped (SIGSTOP) at random and started again. Every
process writes down what it was about to do, did and saw. After each epoch of 50 kills the queues
are drained, the arenas are checked and all of that is judged against what shmcache promises.

A seed gives the same schedule of kills and stops (whom, how, after how many operations of all
processes together) and the same choices of each process. It cannot give the same interleaving:
at which instruction a signal arrives, who runs beside whom, and which process of a role is caught
with a lock in its hands is the kernel's doing. To see a violation again, run the seed again, for
longer; its histories are kept and named.
"""


@dataclass
class Totals:
    """All that is known after some epochs, and all that the next ones need."""

    seed: int
    epochs: int = 0
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)  # by role
    ways: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)  # by kind
    operations: int = 0
    cut_off: int = 0
    deliveries: int = 0
    claims: int = 0
    given_back: int = 0
    dead_letters: int = 0
    repairs: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome, seconds: float) -> None:
        verdict = outcome.verdict
        self.epochs += 1
        self.seconds += seconds
        self.kills += outcome.kills
        self.ways += outcome.ways
        self.violations += Counter(violation.kind for violation in verdict.violations)
        self.operations += verdict.operations
        self.cut_off += verdict.cut_off
        self.deliveries += verdict.deliveries
        self.claims += verdict.claims
        self.given_back += verdict.given_back
        self.dead_letters += verdict.dead_letters
        self.repairs += verdict.repairs
        self.lost += [f"epoch {self.epochs}: {line}" for line in verdict.lost]

    @classmethod
    def load(cls, path: Path) -> Totals:
        """What :meth:`save` has saved; ValueError if that is something else."""
        try:
            totals = cls(**json.loads(path.read_text()))
            for name in ("kills", "ways", "violations"):
                setattr(totals, name, Counter(getattr(totals, name)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a state of the torture: {error}") from error
        return totals

    def save(self, path: Path) -> None:
        """Whole or not at all, also if the driver is killed."""
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(vars(self), indent=1) + "\n")
        new.replace(path)


class Interruption:
    """Remembers Ctrl-C and SIGTERM; nothing is interrupted in the middle."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.came = True


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    path: Path | None = options.resume
    totals = Totals(options.seed if options.seed is not None else time.time_ns() % 1_000_000)
    if path is not None and path.exists():
        try:
            totals = Totals.load(path)
        except ValueError as error:
            parser.error(str(error))
        if options.seed not in (None, totals.seed):
            parser.error(f"{path} was begun with --seed {totals.seed}")
    kills = options.kills
    if kills is None and options.seconds is None:
        kills = _DEFAULT_KILLS
    _run(totals, kills, options.seconds, path)
    print(_summary(totals))
    enough = kills is None or totals.kills.total() >= kills
    return 0 if enough and not totals.violations else 1


def _run(totals: Totals, kills: int | None, seconds: float | None, path: Path | None) -> None:
    """Epochs until there were enough kills or seconds, or an interruption."""
    interruption = Interruption()
    began = reported = time.monotonic()
    end = None if seconds is None else began + seconds

    def over() -> bool:
        return interruption.came or (end is not None and time.monotonic() >= end)

    _say(f"seed {totals.seed}")
    gc.freeze()  # forked children do not touch, and so do not copy, what is there now
    while not over() and (kills is None or totals.kills.total() < kills):
        most = _KILLS_PER_EPOCH if kills is None else kills - totals.kills.total()
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix=f"torture-{totals.seed}-{totals.epochs + 1}-"))
        epoch = Epoch(f"{totals.seed}/{totals.epochs + 1}", folder, over)
        outcome = epoch.run(min(most, _KILLS_PER_EPOCH))
        time_now = time.monotonic()
        totals.add(outcome, time_now - started)
        if path is not None:
            totals.save(path)
        if outcome.verdict.violations:
            for violation in outcome.verdict.violations[:_MOST_SHOWN]:
                _say(f"epoch {totals.epochs}: {violation.kind}: {violation.text}")
            _say(f"epoch {totals.epochs}: its histories are kept in {folder}")
        else:
            shutil.rmtree(folder)
        if time_now - reported >= _PROGRESS_SECONDS:
            reported = time_now
            _say(
                f"{totals.kills.total()} kills, {totals.ways['stop']} stops, "
                f"{totals.operations} operations, {totals.deliveries} deliveries, "
                f"{totals.claims} claims, "
                f"{totals.repairs} repairs, {totals.violations.total()} violations"
            )
    if interruption.came:
        _say("interrupted")


def _summary(totals: Totals) -> str:
    kills, seconds = totals.kills.total(), totals.seconds
    lines = [
        f"seed            {totals.seed}",
        f"kills           {kills} ({_parts(totals.kills)}), {kills / (seconds or 1):.0f} a second",
        f"  of these      {totals.ways['locked']} with a lock held, {totals.ways['asleep']} asleep "
        f"in pop or claim, {totals.ways['stopped']} while stopped",
        f"stops           {totals.ways['stop']}",
        f"epochs          {totals.epochs} in {seconds:.0f} s",
        f"operations      {totals.operations}, and {totals.cut_off} cut off by a kill",
        f"deliveries      {totals.deliveries}",
        f"claims          {totals.claims}, of which {totals.given_back} were not done",
        f"dead letters    {totals.dead_letters}",
        f"repairs         {totals.repairs}",
        f"hangs           {totals.violations['hang']}",
        f"lost with their consumer (pop is at most once)  {len(totals.lost)}",
        *(f"  {line}" for line in totals.lost[:5]),
        *([f"  and {len(totals.lost) - 5} more"] if len(totals.lost) > 5 else []),
        f"losses outside the contract  {totals.violations['loss']}",
        f"duplicates      {totals.violations['duplicate']}",
        f"violations      {totals.violations.total()} {_parts(totals.violations)}".rstrip(),
    ]
    return "\n".join(lines)


def _parts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/torture",
        description=_DESCRIPTION,
        epilog="Exit status: 0 clean, 1 a violation or ended before --kills, 2 usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--kills",
        type=_positive(int),
        metavar="N",
        help=f"how many, all in all (default {_DEFAULT_KILLS}; with --seconds, no limit)",
    )
    parser.add_argument(
        "--seconds", type=_positive(float), metavar="S", help="end after so long, if not before"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the schedule; random by default")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="keep the totals in FILE after each epoch, and go on from those that are there",
    )
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = kind(text)
        if not number > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return number

    parse.__name__ = "number"
    return parse


if __name__ == "__main__":
    sys.exit(main())
