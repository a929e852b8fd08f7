"""Forked workers that share one queue: each job goes to exactly one of them.

    pip install shmcache
    python examples/fork_workers.py --jobs 1000 --workers 4

A job is queued under its key, so a job that changes while it waits is done once, with the
latest payload. A worker may be killed at any time: the others go on, and nothing hangs. Ctrl-C
drops what is queued; the jobs in hand are still done.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import signal

from shmcache import FIFO, ShutDown


def work(number: int, jobs: FIFO) -> None:
    """Take jobs until the queue is shut down and empty. Handles survive the fork as they are."""
    done = 0
    while True:
        try:
            job = jobs.pop()
        except ShutDown:
            break
        job["result"] = sum(range(job["input"]))
        done += 1
    print(f"worker {number} did {done} jobs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()

    with FIFO.create(key_func=lambda job: job["id"], capacity="16MiB") as jobs:
        try:
            fork = multiprocessing.get_context("fork")
            workers = [
                fork.Process(target=work, args=(number, jobs)) for number in range(options.workers)
            ]
            interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this
            for worker in workers:
                worker.start()
            signal.signal(signal.SIGINT, interrupt)  # so that Ctrl-C is for us alone
            for number in range(options.jobs):
                jobs.add({"id": f"job-{number}", "input": number})
            jobs.shutdown()  # what is queued is still done
            for worker in workers:
                worker.join()
            print(f"{options.jobs} jobs done, {jobs.qsize()} left", flush=True)
        finally:
            jobs.shutdown(immediate=True)  # else workers would wait for ever after a Ctrl-C
            jobs.unlink()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
