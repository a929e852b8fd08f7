"""A small embedded API server: real HTTP/1.1 list and watch on loopback, Kubernetes JSON.

For demos, examples and tests that want the real wire without a cluster. It holds pods, nodes,
namespaces, services and configmaps of ``/api/v1``, and serves them as a real server does to a
client that lists (pages, selectors), watches (resume, bookmarks, initial events, timeouts, 410)
and writes (create, replace, merge patch, delete, binding). What it leaves out is said in
``_cluster``. There is no authentication: it listens on loopback only.

From a shell, ``python -m shmcache.demo.apiserver --port 0`` prints its URL on one line; from
Python, :class:`ApiServer` runs it as a process of its own.

May import: ``demo._cluster``, ``demo._objects``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import traceback
from typing import Any, Self, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from shmcache.demo._cluster import Cluster, Watch
from shmcache.demo._objects import RESOURCES, Resource, Selection, StatusError, dumps

__all__ = ["ApiServer", "main"]

_MAX_HEAD = 64 << 10
_MAX_BODY = 16 << 20
_MAX_UNREAD = 64 << 20
"""Bytes of events that a watcher may leave unread before it is dropped, as a server must."""

_Answer: TypeAlias = "tuple[int, bytes]"
"""Status code and JSON body."""

_REASONS = {
    200: b"OK",
    201: b"Created",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    409: b"Conflict",
    410: b"Gone",
    411: b"Length Required",
    413: b"Payload Too Large",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Entity",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    504: b"Gateway Timeout",
}


class ApiServer:
    """An embedded API server in a process of its own, as a context manager.

    ``port``: 0 for a free one. ``history``: how many changes watches can catch up on before
    they get 410. ``bookmark_interval``: seconds between the bookmarks of an idle watch. The
    process ends with :meth:`stop`, and by itself when its parent dies: it holds a pipe to it.

    >>> with ApiServer() as server:  # doctest: +SKIP
    ...     print(server.url)
    http://127.0.0.1:41231
    """

    def __init__(
        self, *, port: int = 0, history: int = 10_000, bookmark_interval: float = 5.0
    ) -> None:
        self._arguments = [
            f"--port={port}",
            f"--history={history}",
            f"--bookmark-interval={bookmark_interval}",
            "--exit-with-parent",
        ]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        """Base URL, known once started."""

    @property
    def pid(self) -> int | None:
        """Process id, None unless it runs."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start the process and wait until it listens. ``RuntimeError`` if it cannot."""
        if self._process is None:
            try:
                self._start()
            except BaseException:  # an interrupt, most likely: leave no server without an owner
                self.stop()
                raise
        return self

    def _start(self) -> None:
        command = [sys.executable, "-m", "shmcache.demo.apiserver", *self._arguments]
        # The block is inherited: Ctrl-C in the terminal is for whoever started the server.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the API server did not start: exit code {process.wait()}")

    def stop(self) -> None:
        """End the process; nothing happens if it has ended."""
        if self._process is not None:
            process, self._process = self._process, None
            with process:  # closes the pipes, which is what ends the server, and waits
                try:
                    process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Connection(asyncio.Protocol):
    """One client connection: requests one after another, or a watch."""

    transport: asyncio.Transport

    def __init__(self, cluster: Cluster, bookmark_interval: float) -> None:
        self._cluster = cluster
        self._bookmark_interval = bookmark_interval
        self._received = bytearray()
        self._watch: Watch | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()

    def data_received(self, data: bytes) -> None:
        self._received += data
        # While a watch runs, further requests of the connection wait.
        while self._watch is None and not self.transport.is_closing() and self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Serve the request at the head of the buffer; False if it has not all arrived."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            if len(self._received) > _MAX_HEAD:
                self._refuse(StatusError(431, "BadRequest", "the request head is too large"))
            return False
        request_line, *lines = bytes(self._received[:end]).decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        try:
            method, target, version = request_line.split(" ")
            length = int(headers.get("content-length", "0"))
        except ValueError:
            self._refuse(StatusError(400, "BadRequest", "malformed request"))
            return False
        if "transfer-encoding" in headers:
            self._refuse(StatusError(411, "BadRequest", "send a Content-Length"))
            return False
        if not 0 <= length <= _MAX_BODY:
            self._refuse(StatusError(413, "RequestEntityTooLarge", "the body is too large"))
            return False
        if len(self._received) < end + 4 + length:
            return False
        body = bytes(self._received[end + 4 : end + 4 + length])
        del self._received[: end + 4 + length]
        try:
            answer = self._respond(method, target, headers.get("content-type", ""), body)
        except StatusError as error:
            answer = error.code, dumps(error.status)
        except Exception as error:  # a bug here must reach the client, and not end the server
            traceback.print_exc()
            answer = 500, dumps(StatusError(500, "InternalError", repr(error)).status)
        if answer is not None:
            self._answer(*answer)
            if version == "HTTP/1.0" or headers.get("connection", "").lower() == "close":
                self.transport.close()
        return True

    def _respond(self, method: str, target: str, media_type: str, body: bytes) -> _Answer | None:
        """Carry out one request; None for a watch, which sends its own answer."""
        url = urlsplit(target)
        path = [unquote(part) for part in url.path.strip("/").split("/")]
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if method == "GET" and path[0] in ("healthz", "livez", "readyz"):
            return 200, b'"ok"'
        if method == "GET" and path == ["version"]:
            return 200, b'{"major":"1","minor":"20","gitVersion":"v1.20.0-shmcache"}'
        resource, namespace, name, subresource = _route(path)
        match method, name, subresource:
            case "GET", "", "":
                return self._list_or_watch(resource, namespace, query)
            case "POST", "", "":
                return 201, self._cluster.create(resource, namespace, _object(body))
            case "DELETE", "", "":
                return 200, self._cluster.delete_all(_selection(resource, namespace, query))
            case "GET", str(name), "" if name:
                return 200, self._cluster.get(resource, namespace, name)
            case "PUT", str(name), "" if name:
                return 200, self._cluster.replace(resource, namespace, name, _object(body))
            case "PATCH", str(name), "" if name:
                # Strategic merge differs for lists only, which are replaced here.
                if media_type.split(";")[0] not in (
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ):
                    raise StatusError(415, "UnsupportedMediaType", "only merge patches are served")
                return 200, self._cluster.merge(resource, namespace, name, _object(body))
            case "DELETE", str(name), "" if name:
                return 200, self._cluster.delete(resource, namespace, name)
            case "POST", _, "binding" if resource.plural == "pods":
                return 201, self._cluster.bind(namespace, name, _object(body))
        raise StatusError(405, "MethodNotAllowed", f"{method} is not served at {url.path}")

    def _list_or_watch(
        self, resource: Resource, namespace: str, query: dict[str, str]
    ) -> _Answer | None:
        selection = _selection(resource, namespace, query)
        version = query.get("resourceVersion", "")
        if _flag(query, "watch"):
            self._start_watch(selection, version, query)
            return None
        limit = _number(query, "limit")
        token = query.get("continue", "")
        return 200, self._cluster.list_page(
            selection, limit=limit, token=token, resource_version=version
        )

    def _answer(self, code: int, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (code, _REASONS[code], len(body), body)
        )

    def _refuse(self, error: StatusError) -> None:
        """Answer a request that cannot be read, after which the connection is of no use."""
        self._answer(error.code, dumps(error.status))
        self.transport.close()

    def _start_watch(self, selection: Selection, version: str, query: dict[str, str]) -> None:
        timeout, bookmarks = _number(query, "timeoutSeconds"), _flag(query, "allowWatchBookmarks")
        initial_events = _flag(query, "sendInitialEvents")  # of now, which no version is newer than
        backlog: list[bytes] = []
        try:
            # Collected first: the head of the answer goes before it, and to no refused watch.
            watch = self._cluster.watch(
                selection, backlog.append, "" if initial_events else version
            )
        except StatusError as error:
            if error.code != 410:
                raise
            self._send_watch_head()
            self._send_chunk(dumps({"type": "ERROR", "object": error.status}) + b"\n")
            self._end_watch()
            return
        if initial_events:
            watch.bookmark(self._cluster.revision, ends_initial_events=True)
        self._watch = watch
        watch.send = self._send_chunk
        self._send_watch_head()
        if backlog:
            self._send_chunk(b"".join(backlog))
        loop = asyncio.get_running_loop()
        if bookmarks:
            self._timers["bookmark"] = loop.call_later(self._bookmark_interval, self._bookmark)
        if timeout:
            self._timers["timeout"] = loop.call_later(timeout, self._time_out, bookmarks)

    def _send_watch_head(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    def _send_chunk(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))
        if self.transport.get_write_buffer_size() > _MAX_UNREAD:
            self.transport.abort()

    def _bookmark(self) -> None:
        if self._watch is not None:
            self._watch.bookmark(self._cluster.revision)
            self._timers["bookmark"] = asyncio.get_running_loop().call_later(
                self._bookmark_interval, self._bookmark
            )

    def _time_out(self, bookmark: bool) -> None:
        """End the watch in good order; the connection may carry further requests."""
        if bookmark and self._watch is not None:
            self._watch.bookmark(self._cluster.revision)
        self._stop_watch()
        self._end_watch()
        self.data_received(b"")

    def _end_watch(self) -> None:
        self.transport.write(b"0\r\n\r\n")

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._cluster.unwatch(self._watch)
            self._watch = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def _route(path: list[str]) -> tuple[Resource, str, str, str]:
    """Take a path apart into resource, namespace, name and subresource, ``""`` for none."""
    parts = path[2:] if path[:2] == ["api", "v1"] else []
    namespace = ""
    if len(parts) > 2 and parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    resource = RESOURCES.get(parts[0]) if 1 <= len(parts) <= 3 else None
    if resource is None or (namespace and not resource.namespaced):
        raise StatusError(404, "NotFound", "the server could not find the requested resource")
    name, subresource = (*parts[1:], "", "")[:2]
    if name and resource.namespaced and not namespace:
        raise StatusError(404, "NotFound", "the server could not find the requested resource")
    return resource, namespace, name, subresource


def _selection(resource: Resource, namespace: str, query: dict[str, str]) -> Selection:
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    return Selection.parse(resource, namespace, labels, fields)


def _flag(query: dict[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("1", "true")


def _number(query: dict[str, str], name: str) -> int:
    text = query.get(name) or "0"
    if not (text.isascii() and text.isdigit()):
        raise StatusError(400, "BadRequest", f"{name} must be a number, not {text!r}")
    return int(text)


def _object(body: bytes) -> dict[str, Any]:
    try:
        obj = json.loads(body)
    except ValueError as error:
        raise StatusError(400, "BadRequest", f"the body is not JSON: {error}") from error
    if not isinstance(obj, dict):
        raise StatusError(400, "BadRequest", "the body must be an object")
    return obj


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    cluster = Cluster(history=options.history)
    server = await loop.create_server(
        lambda: _Connection(cluster, options.bookmark_interval), "127.0.0.1", options.port
    )
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    if options.exit_with_parent:
        # Ctrl-C reaches every process of a terminal; the parent still needs us to clean up.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_reader(sys.stdin, stopped.set)
    else:
        loop.add_signal_handler(signal.SIGINT, stopped.set)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await stopped.wait()
    server.close()


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; ``arguments`` are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m shmcache.demo.apiserver")
    parser.add_argument("--port", type=int, default=0, help="0 for a free one (default)")
    parser.add_argument(
        "--history",
        type=int,
        default=10_000,
        help="changes kept for watches to catch up on (default: %(default)s)",
    )
    parser.add_argument(
        "--bookmark-interval",
        type=float,
        default=5.0,
        help="seconds between bookmarks (default: %(default)s)",
    )
    parser.add_argument(
        "--exit-with-parent",
        action="store_true",
        help="end when standard input is closed, and not on Ctrl-C",
    )
    asyncio.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
