"""examples/gunicorn_web.py under a real gunicorn: one cache for all workers, whoever dies."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache import list_arenas
from tests.running import Program

pytest.importorskip("gunicorn", reason="needs gunicorn, of the extra shmcache[dev]")
pytest.importorskip("watchfiles", reason="needs the extra shmcache[directory]")
pytest.importorskip("yaml", reason="needs the extra shmcache[directory]")

WORKERS = 3


class Web(Program):
    """gunicorn with the example, on a port of its own choice."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.jobs = folder / "jobs"
        super().__init__(
            folder / "log",
            *("-m", "gunicorn", "-c", "python:gunicorn_web", "gunicorn_web:application"),
            *("--workers", str(WORKERS), "--bind", "127.0.0.1:0", *options),
            env={"ARENA": name, "MANIFESTS": str(self.jobs), "HOME": str(folder)},
        )
        self._port = int(self.until_said(r"Listening at: http://127.0.0.1:(\d+)"))

    def write(self, name: str) -> None:
        manifest = {"apiVersion": "v1", "kind": "Job", "metadata": {"name": name}}
        self.jobs.mkdir(exist_ok=True)
        written = self.jobs / ".being-written"
        written.write_text(json.dumps(manifest))
        os.replace(written, self.jobs / f"{name}.json")

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body of a request; status 0 if the worker that had taken it was killed."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (ConnectionError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def elected(self, but: int = 0) -> int:
        """The pid of the worker that fills the cache, when the application says it is ready."""

        def look() -> int:
            status, answer = self.get("/ready")
            return answer["elected_pid"] if status == 200 and answer["elected_pid"] != but else 0

        return self.until(look, "it is ready")

    def all_have(self, *names: str) -> set[int]:
        """Wait until as many workers as there should be have answered with exactly these jobs."""
        pids: set[int] = set()

        def look() -> bool:
            status, answer = self.get("/jobs")
            if status == 200 and answer["jobs"] == list(names):
                pids.add(answer["pid"])
            pids.intersection_update(self.children())
            return len(pids) == WORKERS

        self.until(look, f"every worker has {names}")
        return pids


@pytest.fixture
def start(tmp_path: Path, name: str) -> Iterator[Callable[..., Web]]:
    """Starts the server, with these options of gunicorn."""
    started: list[Web] = []

    def one(*options: str) -> Web:
        started.append(Web(tmp_path, name, *options))
        return started[0]

    yield one
    for web in started:
        web.__exit__(None, None, None)


def exists(name: str) -> bool:
    return name in {arena.name for arena in list_arenas()}


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_every_worker_has_the_same(
    start: Callable[..., Web], name: str, options: list[str]
) -> None:
    """What changes in the folder all workers serve, and one of them is elected; at Ctrl-C gunicorn
    ends well and leaves no arena."""
    web = start(*options)
    assert web.get("/ready")[0] == 503
    web.write("a")
    elected = web.elected()
    assert elected in web.all_have("a")
    web.write("b")
    assert elected in web.all_have("a", "b")
    assert web.get("/jobs/b")[1]["job"]["metadata"]["name"] == "b"
    assert web.get("/jobs/c")[0] == 404
    assert exists(name)
    web.ctrl_c()
    assert web.wait() == 0
    # gunicorn itself writes one where a worker ends in the middle of a response.
    assert "/shmcache/" not in web.output
    assert not exists(name)


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_killed_workers_are_replaced(start: Callable[..., Web], options: list[str]) -> None:
    """Of the workers first the elected one is killed, then one that only reads: gunicorn replaces
    both, another is elected only the first time, and all go on with what changes."""
    web = start(*options)
    web.write("a")
    first = web.elected()
    before = web.all_have("a")
    os.kill(first, signal.SIGKILL)
    second = web.elected(but=first)
    web.write("b")
    after = web.all_have("a", "b")
    assert before - after == {first}
    assert second in after
    reader = min(after - {second})
    os.kill(reader, signal.SIGKILL)
    web.write("c")
    assert reader not in web.all_have("a", "b", "c")
    assert web.elected() == second
    web.terminate()
    assert web.wait() == 0


def test_not_ready_says_why(start: Callable[..., Web]) -> None:
    """Without a folder the application is up and not ready, and says what is wrong, also in the
    log of gunicorn; it is ready as soon as the folder is there."""
    web = start()

    def look() -> Any:
        status, answer = web.get("/ready")
        return status == 503 and answer["last_error"]

    assert "jobs" in web.until(look, "the error shows")
    assert not web.get("/ready")[1]["synced"]
    web.until_said(r"\[WARNING\] .*next try")
    web.write("a")
    web.elected()
    web.all_have("a")
