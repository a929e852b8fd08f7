"""memcached over a unix socket; the server from PATH."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pylibmc

from bench.rivals import Missing


class Memcached:
    objects = False

    def __init__(self, socket: str) -> None:
        self._client: Any = pylibmc.Client([socket])
        self.get = self._client.get

    def fill(self, pairs: Mapping[str, bytes]) -> None:
        if self._client.set_multi(pairs):
            raise RuntimeError("memcached did not take all keys")

    def put(self, pair: tuple[str, bytes]) -> None:
        self._client.set(*pair)


@contextmanager
def key_value(where: Path) -> Iterator[Memcached]:
    program = shutil.which("memcached")
    if program is None:
        raise Missing("memcached is not in PATH (Debian: apt-get install memcached)")
    socket = where / "memcached.sock"
    process = subprocess.Popen(
        [program, "-u", "root", "-s", str(socket), "-m", "512", "-t", "1"],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("memcached did not start")
            time.sleep(0.02)
        yield Memcached(str(socket))
    finally:
        process.kill()
        process.wait()
