"""examples/asyncio_consumers.py: it serves and consumes in one loop, and ends in order."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache import FIFO, list_arenas
from tests.running import Program


def by_id(job: dict[str, Any]) -> str:
    return str(job["id"])


@pytest.fixture
def program(tmp_path: Path, name: str) -> Iterator[Program]:
    options = ("--name", name, "--port", "0", "--consumers", "2")
    with Program(tmp_path / "log", "asyncio_consumers.py", *options) as running:
        yield running


@pytest.fixture
def request_of(program: Program) -> Callable[..., tuple[int, str]]:
    """Makes a request: status and body."""
    port = int(program.until_said(r"serving on port (\d+)"))

    def request(method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    return request


def exists(name: str) -> bool:
    return name in {arena.name for arena in list_arenas()}


def test_jobs_of_all_processes_are_done(
    program: Program, request_of: Callable[..., tuple[int, str]], name: str
) -> None:
    """Jobs from the web and from another process are done by consumers of the loop, which goes on
    serving."""
    assert request_of("POST", "/jobs/web") == (202, "")
    with FIFO.attach(name, key_func=by_id) as jobs:
        jobs.add({"id": "other"})
    program.until_said("done: web")
    program.until_said("done: other")
    status, body = request_of("GET", "/jobs")
    assert (status, json.loads(body)["queued"]) == (200, [])
    assert sorted(json.loads(body)["done"]) == ["other", "web"]
    assert request_of("GET", "/nothing")[0] == 404


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_waits_for_what_is_queued(program: Program, name: str, number: int) -> None:
    """At the first signal all that is queued is still done, and the queue is removed."""
    program.until_said("serving on port")
    with FIFO.attach(name, key_func=by_id) as jobs:
        for each in range(6):
            jobs.add({"id": f"job-{each}", "seconds": 0.2})
        program.ctrl_c() if number == signal.SIGINT else program.terminate()
    assert program.wait() == 0
    assert "6 jobs done, 0 left" in program.output
    assert "Traceback" not in program.output
    assert not exists(name)


def test_a_second_ctrl_c_puts_back_what_is_in_hand(program: Program, name: str) -> None:
    """At the second signal consumers are cancelled: jobs in hand go back, and none is lost."""
    program.until_said("serving on port")
    with FIFO.attach(name, key_func=by_id) as jobs:
        for each in range(5):
            jobs.add({"id": f"job-{each}", "seconds": 3600})
        program.until(lambda: jobs.qsize() == 3, "two jobs are in hand")
        program.ctrl_c()
        program.until_said("finishing")
        program.ctrl_c()
        assert program.wait() == 0
    assert "0 jobs done, 5 left" in program.output
    assert "Traceback" not in program.output
    assert not exists(name)
