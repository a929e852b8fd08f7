"""A pre-forked web application whose workers all read one live cache. Plain WSGI.

    pip install gunicorn 'shmcache[directory]'
    cd examples && mkdir jobs
    printf '{apiVersion: v1, kind: Job, metadata: {name: a}}' > jobs/a.yaml
    MANIFESTS=jobs gunicorn -c python:gunicorn_web --workers 3 gunicorn_web:application
    curl localhost:8000/jobs localhost:8000/jobs/a localhost:8000/ready

Every worker runs the same line; one of them is elected to fill the cache, and when it ends or is
killed, another one goes on. A reflector is a thread, and threads do not survive a fork: so it is
started by ``post_worker_init``, in the worker itself, which is right with ``--preload`` and
without. ``python:`` makes this one module both the application and its configuration; with a
gunicorn.conf.py of your own, import the three hooks there. For sync and gthread workers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import shmcache
from shmcache.sources.directory import DirectorySource

ARENA = os.environ.get("ARENA", "gunicorn-web")
MANIFESTS = os.environ.get("MANIFESTS", "manifests")
STALE_SECONDS = 30.0

jobs: shmcache.SharedReflector  # of this worker


# -- hooks of gunicorn -----------------------------------------------------------------------


def post_worker_init(worker: Any) -> None:
    """After the fork, and when the application is loaded: begin to fill the cache, or stand by."""
    global jobs
    logging.getLogger("shmcache").handlers = worker.log.error_log.handlers
    jobs = shmcache.shared_reflector(
        ARENA,
        lambda: DirectorySource(MANIFESTS, kind="Job"),  # or list_watch_from_client(...)
        "v1/Job",
        store_options={"capacity": "64MiB"},
    )


def worker_exit(server: Any, worker: Any) -> None:
    """At a good end another worker is elected at once; after a kill, in a fraction of a second."""
    if "jobs" in globals():  # else this worker ended before it began
        jobs.close()


def on_exit(server: Any) -> None:
    """In the master, when all workers are gone. Leave this out to start the next time with what
    is in the cache; ``reexec_pid`` is set when a new master goes on with it (SIGUSR2)."""
    if not server.reexec_pid:
        with contextlib.suppress(shmcache.ArenaNotFoundError):
            shmcache.unlink(ARENA)


# -- the application -------------------------------------------------------------------------


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    status, answer = respond(environ["PATH_INFO"])
    body = json.dumps({**answer, "pid": os.getpid()}).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


def respond(path: str) -> tuple[str, dict[str, Any]]:
    if path == "/ready":
        return readiness()
    if path == "/jobs":
        return "200 OK", {"jobs": sorted(jobs.store)}
    job = jobs.store.get_by_key(path.removeprefix("/jobs/"))
    if job is None:
        return "404 Not Found", {"error": f"nothing at {path}"}
    return "200 OK", {"job": job}  # shared and read-only; shmcache.thaw(job) is a private copy


def readiness() -> tuple[str, dict[str, Any]]:
    """Ready means: the cache was complete once, and some worker has lately seen to it.

    Every worker gives the same answer, whichever is elected, and a new election does not change
    it. Nor does a source that fails, because what we have is still worth serving: that shows in
    ``contact_age`` and ``last_error``.
    """
    store, reflector = jobs.store, jobs.store.reflector_status()
    age = reflector.heartbeat_age  # seconds; a living reflector reports every second
    ready = store.has_synced and age is not None and age < STALE_SECONDS
    return "200 OK" if ready else "503 Service Unavailable", {
        "ready": ready,
        "synced": store.has_synced,
        "elected_pid": reflector.pid if reflector.alive else None,
        "state": reflector.state,
        "contact_age": reflector.contact_age,
        "last_error": reflector.last_error,
    }
