"""Redis over a unix socket; the server from PATH."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from bench.rivals import Missing

LIST = "items"


@contextmanager
def _server(where: Path) -> Iterator[str]:
    """The path of the socket of a server of our own."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server is not in PATH (Debian: apt-get install redis-server)")
    socket = str(where / "redis.sock")
    options = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([program, *options], cwd=where, stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=socket)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.02)
        client.close()
        yield socket
    finally:
        process.kill()
        process.wait()


class RedisKeyValue:
    objects = False

    def __init__(self, socket: str) -> None:
        self._client: Any = redis.Redis(unix_socket_path=socket)
        self.get = self._client.get

    def fill(self, pairs: Mapping[str, bytes]) -> None:
        self._client.mset(pairs)

    def put(self, pair: tuple[str, bytes]) -> None:
        self._client.set(*pair)


class RedisQueue:
    objects = False
    servers = 1

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self.join()

    def join(self) -> None:
        """A connection of one's own."""
        self._client: Any = redis.Redis(unix_socket_path=self._socket)

    def put(self, item: bytes) -> None:
        self._client.lpush(LIST, item)

    def get(self) -> bytes:
        item: bytes = self._client.brpop([LIST])[1]
        return item

    def put_many(self, items: list[bytes]) -> None:
        self._client.lpush(LIST, *items)

    def get_many(self, most: int) -> list[bytes]:
        items: list[bytes] = self._client.rpop(LIST, most)
        return items or [self.get()]


@contextmanager
def key_value(where: Path) -> Iterator[RedisKeyValue]:
    with _server(where) as socket:
        yield RedisKeyValue(socket)


@contextmanager
def queue(where: Path) -> Iterator[RedisQueue]:
    with _server(where) as socket:
        yield RedisQueue(socket)
