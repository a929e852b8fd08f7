"""A folder of manifests as one live cache: edit a file, and every process has the new object.

    pip install 'shmcache[directory]'
    python examples/directory.py --jobs 100 --workers 2

One process follows the folder and writes to the Store; the workers only read. A real program
would name a folder of its own, such as a mounted ConfigMap, instead of making and editing one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from shmcache import Reflector, Store
from shmcache.sources.directory import DirectorySource


def write_job(folder: Path, name: str, size: int) -> None:
    """Write a manifest as anything that is watched should be: whole, by renaming."""
    spec = {"size": size}
    manifest = {"apiVersion": "v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
    written = folder / ".being-written"
    written.write_text(json.dumps(manifest))
    os.replace(written, folder / f"{name}.json")


def wait_until(store: Store, holds: Callable[[], bool]) -> None:
    """Sleep until it holds, looking again after each change of the store."""
    while True:
        version = store.version
        if holds():
            return
        store.wait_for_change(version)


def work(number: int, jobs: Store) -> None:
    """Read until the last edit has arrived."""
    wait_until(jobs, lambda: "end" in jobs)
    gone = "is gone" if "job-0" not in jobs else "is there"
    size = jobs["job-1"]["spec"]["size"]
    print(f"worker {number}: {len(jobs) - 1} jobs, job-0 {gone}, job-1 has size {size}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, Store.create(capacity="16MiB") as jobs:
        folder = Path(name)
        for number in range(options.jobs):
            write_job(folder, f"job-{number}", size=1)
        workers = [
            multiprocessing.get_context("spawn").Process(
                target=work, args=(number, jobs), daemon=True
            )
            for number in range(options.workers)
        ]
        try:
            interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this
            for worker in workers:
                worker.start()
            signal.signal(signal.SIGINT, interrupt)  # so that Ctrl-C is for us alone
            with Reflector(DirectorySource(folder, kind="Job"), "v1/Job", jobs):
                jobs.wait_for_sync()
                (folder / "job-0.json").unlink()
                write_job(folder, "job-1", size=100)
                wait_until(jobs, lambda: "job-0" not in jobs and jobs["job-1"]["spec"]["size"] > 1)
                write_job(folder, "end", size=0)
                for worker in workers:
                    worker.join()
            print(f"{len(jobs) - 1} jobs in the store", flush=True)
        finally:
            for worker in workers:
                if worker.is_alive():  # after Ctrl-C: perhaps still starting, to look for the store
                    worker.kill()
            jobs.unlink()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
