"""``shmcache top --web``: the live figures and the entries of all arenas, in a browser.

A page, a stream of server-sent events, and two questions about entries; nothing writes. It shows
what this user may read, so it is for this user alone: it listens on a loopback address, a secret
in the address keeps out the other users of the machine, and the Host header keeps out pages whose
name was made to lead here (DNS rebinding). What arenas hold is not trusted: it leaves as JSON,
and the page shows it as text under a content security policy that lets nothing else run.

May import: the public names of ``shmcache``, ``cli._json``, ``cli._sample``.
"""

from __future__ import annotations

import dataclasses
import heapq
import ipaddress
import json
import re
import secrets
import shlex
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Collection
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import shmcache
from shmcache import ShmCacheError
from shmcache.cli._json import hex_dump
from shmcache.cli._sample import Sampler

__all__ = ["Server", "serve"]

_MOST_KEYS = 200
_MOST_BYTES = 1 << 20  # of an object that is shown
_HEX_BYTES = 4096
_SILENCE_SECONDS = 15.0  # then a stream says that it lives
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:]+)(:\d+)?", re.IGNORECASE)


def serve(names: Collection[str], interval: float, host: str, port: int) -> int:
    """Serve until Ctrl-C or a signal; the exit status. Port 0 takes one that is free."""
    if not _is_loopback(host):
        print(
            f"shmcache top: --host {host} is not a loopback address, and this page shows all that "
            "is in your arenas: use 127.0.0.1, and to see it from another machine "
            f"ssh -L {port or 8765}:127.0.0.1:{port or 8765} THIS-MACHINE",
            file=sys.stderr,
        )
        return 2
    feed = Feed(names, interval)
    try:
        server = Server(feed, host, port)
    except OSError as error:
        print(
            f"shmcache top: cannot listen on port {port} of {host}: {error.strerror}. Another one: "
            "--port; any that is free: --port 0",
            file=sys.stderr,
        )
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    looking = threading.Thread(target=feed.run, name="shmcache-top")
    looking.start()
    try:
        print(f"{server.url}\nThe address lets its bearer read your arenas. Ctrl-C ends it.")
        sys.stdout.flush()
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        feed.end()
        server.server_close()
        looking.join()
    return 0


class Feed:
    """The newest figures as JSON, for any number of streams."""

    def __init__(self, names: Collection[str], interval: float) -> None:
        self.names = frozenset(names)
        self._sampler = Sampler(names)
        self._interval = interval
        self._changed = threading.Condition()
        self._ended = False
        self._number = 0
        self._look()

    def run(self) -> None:
        """Look every interval, until :meth:`end`."""
        while not self._wait(self._interval):
            self._look()

    def end(self) -> None:
        """End :meth:`run` and every stream."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def newest(self) -> str:
        """The last figures."""
        return self._text

    def after(self, number: int, seconds: float) -> tuple[int, str] | None:
        """What came after ``number``, and its number; ``""`` if nothing came in so many
        ``seconds``; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._number > number, seconds)
            if self._ended:
                return None
            return self._number, self._text if self._number > number else ""

    def _wait(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, seconds)

    def _look(self) -> None:
        samples = [dataclasses.asdict(sample) for sample in self._sampler.take()]
        text = json.dumps({"interval": self._interval, "arenas": samples})
        with self._changed:
            self._text = text
            self._number += 1
            self._changed.notify_all()


class Server(ThreadingHTTPServer):
    """The HTTP server of one :class:`Feed`. ``url`` is the address to open, secret included."""

    def __init__(self, feed: Feed, host: str, port: int) -> None:
        self.feed = feed
        self.token = secrets.token_urlsafe(16)
        self.page = files("shmcache.cli").joinpath("_web.html").read_text("utf-8")
        self.searching = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        name = f"[{host}]" if ":" in host else host
        self.names = {name, "127.0.0.1", "localhost", "[::1]"}
        self.url = f"http://{name}:{self.server_address[1]}/?token={self.token}"

    def server_bind(self) -> None:
        """Bind, without asking a name server who we are."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; of anything else what it was."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"shmcache top: a request failed: {error!r}", file=sys.stderr)


class _Refusal(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds, of a client that neither asks nor takes what it asked for

    def do_GET(self) -> None:
        nonce = secrets.token_urlsafe(16)
        self._policy = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
        try:
            url = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            self._admit(query)
            if url.path == "/":
                self._send("text/html", self.server.page.replace("{nonce}", nonce))
            elif url.path == "/events":
                self._stream()
            elif url.path == "/arenas":
                self._send("application/json", self.server.feed.newest())
            elif url.path == "/entries":
                with self.server.searching:  # one at a time: it may take a while, and memory
                    found = _keys(self._arena(query), query.get("search", ""))
                self._send("application/json", json.dumps(found))
            elif url.path == "/entry":
                entry = _entry(self._arena(query), query.get("key", ""))
                self._send("application/json", json.dumps(entry))
            else:
                raise _Refusal(HTTPStatus.NOT_FOUND, "there is no such page")
        except _Refusal as refusal:
            self._send("text/plain", str(refusal), refusal.status)
        except ShmCacheError as error:
            self._send("text/plain", str(error), HTTPStatus.NOT_FOUND)

    def _admit(self, query: dict[str, str]) -> None:
        match = _HOST.fullmatch(self.headers.get("Host", ""))
        if match is None or match[1].lower() not in self.server.names:
            raise _Refusal(
                HTTPStatus.MISDIRECTED_REQUEST, "this server answers only as 127.0.0.1 or localhost"
            )
        given, wanted = query.get("token", "").encode(), self.server.token.encode()
        if not secrets.compare_digest(given, wanted):
            raise _Refusal(
                HTTPStatus.FORBIDDEN,
                "open the address that shmcache top --web printed: it ends with ?token=...",
            )

    def _arena(self, query: dict[str, str]) -> str:
        name, only = query.get("arena", ""), self.server.feed.names
        if only and name not in only:
            raise _Refusal(HTTPStatus.NOT_FOUND, f"arena {name!r} was not asked for")
        return name

    def _stream(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"retry: 1000\n\n")
        number = 0
        while (news := self.server.feed.after(number, _SILENCE_SECONDS)) is not None:
            number, text = news
            self.wfile.write(f"data: {text}\n\n".encode() if text else b": still here\n\n")

    def _send(self, kind: str, text: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        policy = getattr(self, "_policy", "")  # none where the request could not be read
        for name, value in (
            (
                "Content-Security-Policy",
                "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
                f"frame-ancestors 'none'; {policy}",
            ),
            ("Cache-Control", "no-store"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        """What the header says of the server."""
        return "shmcache"

    def log_message(self, *args: object) -> None:
        """Nothing: what the terminal shows is the address."""


def _keys(name: str, search: str) -> dict[str, Any]:
    """The first keys that have ``search`` in them, and how many have."""
    with shmcache.attach(name) as arena:
        keys = arena.queued() if isinstance(arena, shmcache.WorkQueue) else arena.list_keys()
    needle = search.casefold()
    matching = [key for key in keys if needle in key.casefold()] if needle else keys
    return {
        "entries": len(keys),
        "matching": len(matching),
        "keys": heapq.nsmallest(_MOST_KEYS, matching),
    }


def _entry(name: str, key: str) -> dict[str, Any]:
    """One object, for people."""
    with shmcache.attach(name) as arena:
        if isinstance(arena, shmcache.WorkQueue):
            return {"key": key, "bytes": 0, "text": "a WorkQueue has keys, and no objects"}
        data = arena.get_raw(key)
        if data is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, f"{key!r} is gone")
        if len(data) > _MOST_BYTES:
            text = f"too large to be shown here: shmcache get {name} {shlex.quote(key)}"
        else:
            try:
                text = _readable(arena.get_by_key(key, data))
            except shmcache.CodecError:
                text = _readable(data)
    return {"key": key, "bytes": len(data), "text": text}


def _readable(value: Any) -> str:
    """JSON where it can be; of bytes their text, or their digits."""
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return _digits(value)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has not, or too deep
        return repr(value)


def _digits(data: bytes) -> str:
    lines = list(hex_dump(data[:_HEX_BYTES]))
    if len(data) > _HEX_BYTES:
        lines.append(f"and {len(data) - _HEX_BYTES:,} more bytes")
    return "\n".join(lines)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
