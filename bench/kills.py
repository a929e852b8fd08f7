"""How many idle consumers may be killed before a queue stops: ours beside others.

For each queue: consumers sleep in get; one of them is killed (SIGKILL) and replaced; then one item
for each is put and must arrive. That is a round. A queue that does not hand out its items within
``--patience`` seconds (default 10) has stopped. Each queue runs in an interpreter of its own, and
those that are not installed are left out.

    scripts/setup dev && .venv/bin/python bench/kills.py --kills 300
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONSUMERS = 3


class Shm:
    """shmcache.FIFO in the shape of a queue."""

    def __init__(self) -> None:
        from shmcache import FIFO

        self.fifo = FIFO.create(capacity="1MiB")
        self.fifo.unlink()
        self.count = 0

    def put(self, item: bytes) -> None:
        self.count += 1
        self.fifo.add_raw(f"{self.count}", item)

    def get(self) -> bytes:
        return self.fifo.pop_raw()[1]


def faster_fifo() -> Any:
    import faster_fifo

    return faster_fifo.Queue()


QUEUES: dict[str, Callable[[], Any]] = {
    "shmcache.FIFO": Shm,
    "multiprocessing.Queue": multiprocessing.Queue,
    "multiprocessing.SimpleQueue": multiprocessing.SimpleQueue,
    "faster-fifo": faster_fifo,
}


def consume(queue: Any, received: Any) -> None:
    """Count what arrives, in a lock-free place of one's own."""
    while True:
        queue.get()
        received.value += 1


def asleep(pid: int) -> bool:
    """Whether the kernel says that the process sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def survive(name: str, kills: int, patience: float) -> dict[str, Any]:
    """Rounds that the queue got through."""
    fork = multiprocessing.get_context("fork")
    queue = QUEUES[name]()
    everybody = []  # of each consumer that ever was, what it received

    def start() -> Any:
        received = fork.Value("Q", 0, lock=False)
        everybody.append(received)
        process = fork.Process(target=consume, args=(queue, received), daemon=True)
        process.start()
        return process

    def wait(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0002)
        return True

    consumers = [start() for _ in range(CONSUMERS)]
    put = survived = 0
    for survived in range(kills + 1):
        for _ in range(CONSUMERS):
            queue.put(b"x")
            put += 1
        if not wait(lambda put=put: sum(each.value for each in everybody) >= put):
            survived -= 1
            break
        if survived == kills:
            break
        victim = consumers.pop(0)
        wait(lambda victim=victim: asleep(victim.pid))
        victim.kill()
        victim.join()
        consumers.append(start())
    for consumer in consumers:
        consumer.kill()
    # Its feeder thread may hang for ever on what it could not send.
    with contextlib.suppress(AttributeError):
        queue.cancel_join_thread()
    return {"queue": name, "kills": kills, "survived": max(survived, 0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=300, help="kills of each (default 300)")
    parser.add_argument("--patience", type=float, default=10, help="seconds until it has stopped")
    parser.add_argument("--only", choices=QUEUES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(survive(options.only, options.kills, options.patience)))
        return 0
    for name in QUEUES:
        command = [sys.executable, __file__, "--only", name]
        command += ["--kills", str(options.kills), "--patience", str(options.patience)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{name:28} not run: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            continue
        figures = json.loads(done.stdout)
        stopped = figures["survived"] < options.kills
        print(f"{name:28} {figures['survived']:5} of {options.kills} kills survived"
              f"{', then it stopped' if stopped else ''}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
