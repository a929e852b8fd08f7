"""An asyncio program: consumers of a shared queue beside a small web server, and a graceful end.

    pip install shmcache
    python examples/asyncio_consumers.py --port 8080 --consumers 3
    curl -X POST localhost:8080/jobs/a
    curl localhost:8080/jobs        # how many wait, and what was done

Other processes add jobs too: ``FIFO.attach("asyncio-jobs", key_func=by_id).add({"id": "b"})``.
Ctrl-C or SIGTERM ends it gracefully: no new requests, and what is queued is still done. A second
one ends it at once: a consumer that is cancelled in ``pop_async`` has lost nothing, and one that
is cancelled in a job puts that back.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import signal
from typing import Any

from shmcache import FIFO, ShutDown

done: list[str] = []


def by_id(job: dict[str, Any]) -> str:
    return str(job["id"])


async def consume(jobs: FIFO) -> None:
    """Do one job after the other, until the queue is shut down and empty."""
    while True:
        try:
            job = await jobs.pop_async()
        except ShutDown:
            return
        try:
            await handle(job)
        except asyncio.CancelledError:  # also when another task of the group has failed
            jobs.add_if_not_present(job)
            raise


async def handle(job: dict[str, Any]) -> None:
    await asyncio.sleep(job.get("seconds", 0))
    done.append(job["id"])
    print("done:", job["id"], flush=True)


async def answer(jobs: FIFO, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one request of one connection. Calls that do not wait need no ``await``: they take
    microseconds, less than it would take to hand them to a thread."""
    try:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            status, body = respond(jobs, *head.decode("latin-1").split(" ", 2)[:2])
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, TimeoutError):
        pass  # who asked is gone, or did not speak HTTP
    finally:
        writer.close()


def respond(jobs: FIFO, method: str = "", path: str = "") -> tuple[str, str]:
    if path == "/jobs":
        return "200 OK", json.dumps({"queued": jobs.list_keys(), "done": done})
    if method == "POST" and path.startswith("/jobs/"):
        jobs.add({"id": path.removeprefix("/jobs/")})
        return "202 Accepted", ""
    return "404 Not Found", ""


async def serve(jobs: FIFO, port: int, consumers: int) -> None:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    whole = asyncio.current_task()
    assert whole is not None

    def end() -> None:
        if stopping.is_set():
            whole.cancel()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    async with asyncio.TaskGroup() as group:
        for _ in range(consumers):
            group.create_task(consume(jobs))
        server = await asyncio.start_server(functools.partial(answer, jobs), "127.0.0.1", port)
        print("serving on port", server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await stopping.wait()
        print("finishing what is queued; once more to end at once", flush=True)
        jobs.shutdown()  # for all processes: after the last job, pop raises ShutDown


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8080, help="0 for any that is free")
    parser.add_argument("--consumers", type=int, default=3)
    parser.add_argument("--name", default="asyncio-jobs", help="of the queue")
    options = parser.parse_args()
    with FIFO.open(options.name, key_func=by_id, capacity="16MiB") as jobs:  # also after a crash
        try:
            asyncio.run(serve(jobs, options.port, options.consumers))
        except asyncio.CancelledError:
            print("ended at once", flush=True)
        finally:
            print(f"{len(done)} jobs done, {jobs.qsize()} left", flush=True)
            jobs.unlink()


if __name__ == "__main__":
    main()
