"""A fleet without a special process: each worker runs the same line, and one of them is elected.

    pip install 'shmcache[directory]'
    python examples/shared_reflector.py --workers 3

The elected worker follows a folder of manifests and fills the Store; the others read, and stand
by. Here the elected one is killed, and the folder changes afterwards: the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

from shmcache import Store, shared_reflector
from shmcache.sources.directory import DirectorySource

NAME = f"example-{os.getpid()}"


def write_job(folder: Path, name: str) -> None:
    """Write a manifest whole, by renaming."""
    manifest = {"apiVersion": "v1", "kind": "Job", "metadata": {"name": name}}
    written = folder / ".being-written"
    written.write_text(json.dumps(manifest))
    os.replace(written, folder / f"{name}.json")


def wait_for(store: Store, key: str) -> None:
    version = store.version  # before the look: a change after it ends the wait
    while key not in store:
        version = store.wait_for_change(version, timeout=1.0)


def work(number: int, name: str, folder: Path) -> None:
    """One worker, like all others."""
    with shared_reflector(
        name,
        lambda: DirectorySource(folder, kind="Job"),
        "v1/Job",
        store_options={"capacity": "16MiB"},
    ) as jobs:
        wait_for(jobs.store, "last")
        role = "was elected" if jobs.elected else "only read"
        print(f"worker {number}: {len(jobs.store)} jobs, {role}", flush=True)
        wait_for(jobs.store, "end")  # so that all see the last job before one leaves


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory, Store.create(NAME, capacity="16MiB") as jobs:
        folder = Path(directory)
        write_job(folder, "first")
        workers = [
            multiprocessing.get_context("spawn").Process(
                target=work, args=(number, NAME, folder), daemon=True
            )
            for number in range(options.workers)
        ]
        try:
            interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this
            for worker in workers:
                worker.start()
            signal.signal(signal.SIGINT, interrupt)  # so that Ctrl-C is for us alone
            wait_for(jobs, "first")
            elected = jobs.reflector_status().pid
            os.kill(elected, signal.SIGKILL)
            print("killed the elected worker", flush=True)
            write_job(folder, "last")
            wait_for(jobs, "last")
            write_job(folder, "end")
            for worker in workers:
                worker.join()
        finally:
            for worker in workers:
                if worker.is_alive():  # after Ctrl-C: perhaps still starting, to look for the store
                    worker.kill()
            jobs.unlink()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
