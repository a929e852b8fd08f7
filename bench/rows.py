"""One row: a workload beside a rival, in turns, in an interpreter of its own, with a deadline.

Whatever happens to a rival becomes a row: not installed, an exception, a crash, no end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

from bench.measure import spread
from bench.rivals import Missing
from bench.workloads import WORKLOADS, Scale

__all__ = ["Row", "measured", "names", "row_of", "run"]

Row: TypeAlias = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
SHM = Path("/dev/shm")


def names() -> list[tuple[str, str]]:
    """All pairs of a workload and a rival."""
    return [(name, rival) for name, entry in WORKLOADS.items() for rival in entry.rivals]


def measured(workload: str, rival: str, scale: Scale) -> Row:
    """Take the rounds here: ours, theirs, ours, theirs. The figures, or why there are none."""
    try:
        with WORKLOADS[workload].prepare(scale, rival) as (ours, theirs):
            rounds = 1 if WORKLOADS[workload].once else scale.rounds
            pairs = [(ours(), theirs()) for _ in range(rounds)]
    except Missing as missing:
        return {"verdict": "skipped", "reason": str(missing)}
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return {"verdict": "failed", "reason": f"{type(error).__name__}: {first}"}
    ratio = spread([a / b for a, b in pairs])
    target = WORKLOADS[workload].rivals[rival]
    return {
        "verdict": "known" if target is None else "met" if ratio.median <= target else "missed",
        "reason": "",
        "rounds": rounds,
        "ours": asdict(spread([a for a, _ in pairs])),
        "theirs": asdict(spread([b for _, b in pairs])),
        "ratio": asdict(ratio),
    }


def row_of(workload: str, rival: str, result: Row) -> Row:
    """The result with what it is the result of."""
    entry = WORKLOADS[workload]
    return {
        "workload": workload,
        "group": entry.group,
        "meaning": entry.meaning,
        "unit": entry.unit,
        "rival": rival,
        "target": entry.rivals[rival],
        **result,
    }


def run(workload: str, rival: str, scale: Scale, deadline: float) -> Row:
    """The row, from a process of its own that is killed with all it started after `deadline` s."""
    where = Path(tempfile.mkdtemp(prefix="shmbench-", dir=SHM))
    options = ["--row", workload, rival, "--scale", scale.name, "--where", str(where)]
    begin = time.monotonic()
    try:
        with tempfile.TemporaryFile() as errors:
            result = _ended([sys.executable, "-m", "bench", *options], deadline, where, errors)
    finally:
        shutil.rmtree(where, ignore_errors=True)
        for left in SHM.glob(f"*{where.name}*"):  # of a process that was killed
            with contextlib.suppress(OSError):
                left.unlink()
    return row_of(workload, rival, {**result, "seconds": round(time.monotonic() - begin, 1)})


def _ended(command: list[str], deadline: float, where: Path, errors: Any) -> Row:
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=errors, stderr=errors, start_new_session=True
    )
    try:
        code = process.wait(deadline)
    except subprocess.TimeoutExpired:
        return {"verdict": "failed", "reason": f"no end within {deadline:g} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    try:
        result: Row = json.loads((where / "result.json").read_text())
    except (OSError, ValueError):
        errors.seek(0)
        last = (errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return {"verdict": "failed", "reason": f"ended with {code}: {last}"}
    return result


def answer(workload: str, rival: str, scale: Scale, where: Path) -> None:
    """What the process of `run` does."""
    result = measured(workload, rival, replace(scale, where=where))
    (where / "result.json").write_text(json.dumps(result))
