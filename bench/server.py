"""A server of pods that costs nearly nothing: answers made before, sent as fast as they are read.

It speaks enough of a Kubernetes API server for one list and one watch a connection. Streamed
lists it refuses, as older servers do.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

from bench.measure import started

__all__ = ["pod_server"]


def _json(obj: Any) -> bytes:
    return json.dumps(obj, separators=(",", ":")).encode()


def _list_answer(pods: list[dict[str, Any]]) -> bytes:
    metadata = {"resourceVersion": "1"}
    body = _json({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": pods})
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _watch_answer(pods: list[dict[str, Any]]) -> bytes:
    """The head and one chunk an event; the end of the answer never comes."""
    lines = [_json({"type": "ADDED", "object": pod}) + b"\n" for pod in pods]
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head + b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in lines)


def _refusal() -> bytes:
    body = _json({"kind": "Status", "code": 422, "message": "sendInitialEvents is forbidden"})
    head = (
        "HTTP/1.1 422 Unprocessable Entity\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _serve(listener: socket.socket, list_answer: bytes, watch_answer: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            received = b""
            while piece := connection.recv(65536):
                received += piece
                while b"\r\n\r\n" in received:
                    request, _, received = received.partition(b"\r\n\r\n")
                    line = request.partition(b"\r\n")[0].lower()
                    if b"sendinitialevents=true" in line:
                        connection.sendall(_refusal())
                    else:
                        connection.sendall(watch_answer if b"watch=true" in line else list_answer)

    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


@contextlib.contextmanager
def pod_server(
    listed: list[dict[str, Any]], watched: list[dict[str, Any]], core: int | None = None
) -> Iterator[str]:
    """The URL of a server, in a process of its own, that lists and sends these pods."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers = _list_answer(listed), _watch_answer(watched)
        with started(_serve, listener, *answers, core=core):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
