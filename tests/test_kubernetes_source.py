"""The Kubernetes source against a scripted HTTP server on loopback.

The server answers each request with the next scripted answer, byte for byte, so that a test
decides where chunks are cut and when a connection dies.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache._errors import ApiError, ExpiredError
from shmcache._types import Event, ListOptions, WatchOptions
from shmcache.demo._api import Endpoint
from shmcache.demo.apiserver import ApiServer
from shmcache.listwatch import ListWatch
from shmcache.sources import kubernetes as source_module
from shmcache.sources.kubernetes import list_watch_from_client, split_lines

kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")

DEADLINE = 30.0

Answer = Callable[[BaseHTTPRequestHandler], None]


class ScriptedServer:
    """An HTTP/1.1 server on a free port of loopback, and a client that is set to it."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = dict(parse_qsl(parts.query, keep_blank_values=True))
                scripted.requests.append((parts.path, query, dict(self.headers.items())))
                scripted.answers.pop(0)(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # clients may hang up
                    super().handle_error(request, client_address)

        self.http = Server(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = False  # so that server_close() waits for every handler
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()
        configuration = kubernetes.client.Configuration(
            host=f"http://127.0.0.1:{self.http.server_port}"
        )
        configuration.api_key = {"authorization": "Bearer tok"}
        self.client = kubernetes.client.ApiClient(configuration)

    def close(self) -> None:
        self.client.close()
        gc.collect()  # urllib3 closes a pool when it is freed, and a caught error refers to it
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def pods(self, *answers: Answer, **options: Any) -> ListWatch:
        self.answers.extend(answers)
        return list_watch_from_client(self.client, "pods", **options)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server; afterwards no thread and no descriptor is left."""
    gc.collect()
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    scripted = ScriptedServer()
    try:
        yield scripted
    finally:
        scripted.close()
    assert scripted.answers == []
    assert set(threading.enumerate()) <= threads
    assert open_descriptors() <= descriptors


def answer(
    body: bytes | dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Answer:
    """One whole answer with a length."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return write


def stream(*pieces: bytes, end: Callable[[BaseHTTPRequestHandler], None] | None = None) -> Answer:
    """A chunked answer, one chunk a piece, ended properly unless ``end`` does otherwise."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if end is None:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            end(handler)

    return write


def cut(handler: BaseHTTPRequestHandler) -> None:
    """End the connection in the middle of the answer."""
    handler.close_connection = True


def silence(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing until the client hangs up."""
    handler.rfile.read(1)
    handler.close_connection = True


def pod(name: str, version: int) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "resourceVersion": str(version)}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}


def line(kind: str, obj: Any) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


EVENTS = [Event("ADDED", pod("a", 1)), Event("DELETED", pod("ü", 2)), Event("BOOKMARK", pod("", 3))]
LINES = b"".join(line(event.type, event.object) for event in EVENTS)
EMPTY = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": []}


# -- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "namespace", "path"),
    [
        ("pods", None, "/api/v1/pods"),
        ("pods", "", "/api/v1/pods"),
        ("pods", "kube-system", "/api/v1/namespaces/kube-system/pods"),
        ("pods", "a/../b", "/api/v1/namespaces/a%2F..%2Fb/pods"),
        ("nodes", None, "/api/v1/nodes"),
        ("v1/services", None, "/api/v1/services"),
        ("apps/v1/deployments", "ns", "/apis/apps/v1/namespaces/ns/deployments"),
        ("example.org/v1beta1/widgets", None, "/apis/example.org/v1beta1/widgets"),
    ],
)
def test_path(server: ScriptedServer, resource: str, namespace: str | None, path: str) -> None:
    """Group, version, plural and namespace make the path of the API."""
    server.answers.append(answer(EMPTY))
    list_watch_from_client(server.client, resource, namespace).list(ListOptions())
    assert server.requests[0][0] == path


@pytest.mark.parametrize("resource", ["", "Pods", "a/b/c/d", "apps//deployments", "pods/", "p?x"])
def test_resource_is_checked(server: ScriptedServer, resource: str) -> None:
    """What cannot be a resource is a ValueError that shows how one looks."""
    with pytest.raises(ValueError, match="apps/v1/deployments"):
        list_watch_from_client(server.client, resource)


@pytest.mark.parametrize(
    ("options", "query"),
    [
        (ListOptions(), {}),
        (ListOptions("0", 500), {"resourceVersion": "0", "limit": "500"}),
        (ListOptions("", 500, "next&more"), {"limit": "500", "continue": "next&more"}),
    ],
)
def test_list_query(server: ScriptedServer, options: ListOptions, query: dict[str, str]) -> None:
    """A list sends what the options hold, and nothing for what they do not."""
    server.pods(answer(EMPTY)).list(options)
    assert [request[1] for request in server.requests] == [query]


@pytest.mark.parametrize("version", ["", "0", "42"])
def test_watch_passes_the_version_verbatim(server: ScriptedServer, version: str) -> None:
    """A watch is one request with the version as it is, bookmarks, and the server's timeout."""
    assert list(server.pods(stream()).watch(WatchOptions(version, 300))) == []
    assert [request[1] for request in server.requests] == [
        {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "300",
        }
    ]


@pytest.mark.parametrize("allow_bookmarks", [True, False])
@pytest.mark.parametrize("version", ["", "0", "42"])
def test_initial_events_are_asked_for(
    server: ScriptedServer, version: str, allow_bookmarks: bool
) -> None:
    """A watch that begins with what there is says so, and wants the bookmark that ends it."""
    source = server.pods(stream())
    assert source.streams_lists
    options = WatchOptions(version, None, allow_bookmarks, send_initial_events=True)
    assert list(source.watch(options)) == []
    assert server.requests[0][1] == {
        "watch": "true",
        "resourceVersion": version,
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }


def test_watch_without_timeout_and_bookmarks(server: ScriptedServer) -> None:
    """What a watch does not want is not sent."""
    options = WatchOptions("1", None, allow_bookmarks=False)
    assert list(server.pods(stream()).watch(options)) == []
    assert server.requests[0][1] == {"watch": "true", "resourceVersion": "1"}


class Selector:
    def __str__(self) -> str:
        return "app in (web, api)"


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("spec.nodeName=", "spec.nodeName="),
        ({"app": "web", "tier": "1"}, "app=web,tier=1"),
        ({"metadata.name": "a,b=c\\"}, "metadata.name=a\\,b\\=c\\\\"),
        (Selector(), "app in (web, api)"),
        (None, None),
        ("", None),
        ({}, None),
    ],
)
def test_selectors(server: ScriptedServer, selector: object, text: str | None) -> None:
    """Strings, dicts and selector objects are sent in Kubernetes syntax, empty ones not at all."""
    source = server.pods(answer(EMPTY), stream(), field_selector=selector, label_selector=selector)
    source.list(ListOptions())
    list(source.watch(WatchOptions()))
    for _, query, _ in server.requests:
        assert query.get("fieldSelector") == text
        assert query.get("labelSelector") == text


def test_authentication_is_the_clients(server: ScriptedServer) -> None:
    """Each request asks the client for its credential, so that a new token is used at once."""
    tokens = iter(["one", "two"])

    def refresh(configuration: Any) -> None:
        configuration.api_key["authorization"] = f"Bearer {next(tokens)}"

    server.client.configuration.refresh_api_key_hook = refresh
    source = server.pods(answer(EMPTY), stream())
    source.list(ListOptions())
    list(source.watch(WatchOptions()))
    sent = [
        {name.lower(): text for name, text in headers.items()} for *_, headers in server.requests
    ]
    assert [headers["authorization"] for headers in sent] == ["Bearer one", "Bearer two"]
    assert {headers["accept"] for headers in sent} == {"application/json"}


def test_the_clients_proxy_is_used(server: ScriptedServer) -> None:
    """A proxy that the client is set to gets the request, for the host that was meant."""
    configuration = kubernetes.client.Configuration(host="http://cluster.invalid")
    configuration.proxy = server.client.configuration.host
    client = kubernetes.client.ApiClient(configuration)
    server.answers.append(answer(EMPTY))
    list_watch_from_client(client, "pods").list(ListOptions())
    ((path, _, headers),) = server.requests
    assert (path, headers["Host"]) == ("/api/v1/pods", "cluster.invalid")


def test_api_objects_work_as_client(server: ScriptedServer) -> None:
    """CoreV1Api and the like are as good as their ApiClient."""
    server.answers.append(answer(EMPTY))
    api = kubernetes.client.CoreV1Api(server.client)
    assert list_watch_from_client(api, "pods").list(ListOptions()) is not None


def test_wrong_client_is_refused() -> None:
    """What has no connection to borrow is a TypeError that says what is needed."""
    with pytest.raises(TypeError, match="ApiClient"):
        list_watch_from_client(object(), "pods")


@pytest.mark.parametrize("name", ["msgspec", "urllib3"])
def test_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its libraries the source says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'shmcache\[kubernetes\]'"):
        list_watch_from_client(object(), "pods")


# -- list -------------------------------------------------------------------------------------


def test_list(server: ScriptedServer) -> None:
    """A list gives plain dicts with their kind, the list's version and the token."""
    document = {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "7", "continue": "next"},
        "items": [{"metadata": {"name": "a"}}],
    }
    result: Any = server.pods(answer(document)).list(ListOptions())
    assert result.items == [{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}]
    assert (result.resource_version, result.continue_token) == ("7", "next")


def status(code: int, message: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "message": message, **fields}


@pytest.mark.parametrize("call", ["list", "watch"])
@pytest.mark.parametrize(
    ("scripted", "expected"),
    [
        (answer(status(410, "too old"), 410), (ExpiredError, 410, "too old", None)),
        (answer(status(403, "forbidden"), 403), (ApiError, 403, "forbidden", None)),
        (answer(b"", 429, {"Retry-After": "7"}), (ApiError, 429, "Too Many Requests: ", 7.0)),
        (answer(b"", 503, {"Retry-After": "Wed, 1 Jan"}), (ApiError, 503, "Service", None)),
        (answer(b"<html>\xff", 502), (ApiError, 502, "Bad Gateway: <html>", None)),
        (answer(b"", 302, {"Location": "http://example.org/"}), (ApiError, 302, "Found", None)),
    ],
)
def test_error_answers(server: ScriptedServer, call: str, scripted: Answer, expected: Any) -> None:
    """A failed request is the error of its status, at once and without another request."""
    source = server.pods(scripted)
    kind, code, message, retry_after = expected
    with pytest.raises(ApiError, match=message) as caught:
        source.list(ListOptions()) if call == "list" else source.watch(WatchOptions())
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.retry_after) == (code, retry_after)
    assert len(server.requests) == 1


def test_a_server_without_initial_events(server: ScriptedServer) -> None:
    """A server that cannot stream a list refuses with 422, and lists when it is asked to."""
    message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is on"
    source = server.pods(answer(status(422, message), 422), answer(EMPTY))
    with pytest.raises(ApiError, match="sendInitialEvents is forbidden") as caught:
        source.watch(WatchOptions("", 300, send_initial_events=True))
    assert caught.value.status == 422
    result: Any = source.list(ListOptions())
    assert result.resource_version == "7"


def test_too_large_version_is_in_the_message(server: ScriptedServer) -> None:
    """The cause that tells a version from the future apart is part of the message."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    }
    source = server.pods(answer(status(504, "Timeout", details=details), 504))
    with pytest.raises(ApiError, match="Too large resource version"):
        source.list(ListOptions("99"))


@pytest.mark.parametrize(
    ("body", "error"), [(b"<html>", ApiError), (b"\xff", ApiError), (b"{}", TypeError)]
)
def test_list_of_something_else(server: ScriptedServer, body: bytes, error: Any) -> None:
    """A 200 that holds no list is an error, not an empty list."""
    with pytest.raises(error, match="not"):
        server.pods(answer(body)).list(ListOptions())


def test_list_cut_short(server: ScriptedServer) -> None:
    """A list whose connection dies half-way is an error, not a shorter list."""
    with pytest.raises(ApiError, match="GET http"):
        server.pods(stream(b'{"items": [', end=cut)).list(ListOptions())


@pytest.mark.parametrize("call", ["list", "watch"])
def test_refused_connection(call: str) -> None:
    """When nothing listens the error is a ConnectionRefusedError that names the address."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        host = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=host))
        source = list_watch_from_client(client, "pods")
        with pytest.raises(ConnectionRefusedError, match=host):
            source.list(ListOptions()) if call == "list" else source.watch(WatchOptions())


# -- watch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1 << 20])
def test_chunks_may_be_cut_anywhere(server: ScriptedServer, size: int) -> None:
    """The events are the same however the server cuts its chunks, inside characters too."""
    pieces = [LINES[start : start + size] for start in range(0, len(LINES), size)]
    assert list(server.pods(stream(*pieces)).watch(WatchOptions())) == EVENTS


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=10))
def test_lines_do_not_depend_on_the_pieces(data: bytes, cuts: list[int]) -> None:
    """split_lines gives the complete lines of the stream, whatever pieces it comes in."""
    data = data.replace(b"\x00", b"\n").replace(b"\x01", b"\n")
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(bounds)]
    expected = [part for part in data.split(b"\n")[:-1] if part.strip()]
    assert list(split_lines(pieces)) == expected


def test_huge_line(server: ScriptedServer) -> None:
    """An object of several megabytes in many chunks is one event."""
    big = pod("a", 1) | {"data": "x" * 5_000_000}
    data = line("ADDED", big)
    pieces = [data[start : start + 16_384] for start in range(0, len(data), 16_384)]
    assert list(server.pods(stream(*pieces)).watch(WatchOptions())) == [Event("ADDED", big)]


@pytest.mark.parametrize("end", [None, cut])
def test_half_a_line_at_the_end_is_thrown_away(server: ScriptedServer, end: Any) -> None:
    """A stream that ends, or is cut, in the middle of an event ends after the one before."""
    source = server.pods(stream(LINES + b'{"type": "ADDED", "obj', end=end))
    assert list(source.watch(WatchOptions())) == EVENTS


def test_stream_without_chunks(server: ScriptedServer) -> None:
    """A proxy may drop the chunks and end the stream by closing the connection."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(LINES)

    assert list(server.pods(write).watch(WatchOptions())) == EVENTS


def test_empty_answer_is_a_watch_that_ended(server: ScriptedServer) -> None:
    """A 200 without a body is a watch without events."""
    assert list(server.pods(answer(b"")).watch(WatchOptions())) == []


@pytest.mark.parametrize(
    ("obj", "kind", "code"),
    [
        (status(410, "too old resource version"), ExpiredError, 410),
        (status(0, "old", reason="Expired"), ExpiredError, 410),
        (status(429, "slow", details={"retryAfterSeconds": 3}), ApiError, 429),
        (status(500, "corrupt object"), ApiError, 500),
        ("nonsense", ApiError, 0),
    ],
)
def test_error_event_is_raised(server: ScriptedServer, obj: Any, kind: Any, code: int) -> None:
    """An ERROR event ends the watch with its error, after the events before it."""
    watch = iter(server.pods(stream(LINES + line("ERROR", obj) + LINES)).watch(WatchOptions()))
    assert [next(watch) for _ in EVENTS] == EVENTS
    with pytest.raises(kind) as caught:
        next(watch)
    assert type(caught.value) is kind
    assert caught.value.status == code
    assert list(watch) == []


@pytest.mark.parametrize("garbage", [b"<html>\n", b"\xff\xfe\n", b"7\n", b'{"type": "ADDED"}\n'])
def test_line_that_is_no_event(server: ScriptedServer, garbage: bytes) -> None:
    """A line that is no event is an error that shows its size and not its content."""
    watch = iter(server.pods(stream(LINES, garbage)).watch(WatchOptions()))
    assert [next(watch) for _ in EVENTS] == EVENTS
    with pytest.raises(ApiError, match=f"{len(garbage) - 1} bytes is not a watch event"):
        next(watch)


def test_silent_watch_ends(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing past the watch's own timeout is given up, without an error."""
    monkeypatch.setattr(source_module, "_WATCH_GRACE", -0.95)
    source = server.pods(stream(LINES, end=silence))
    assert list(source.watch(WatchOptions("1", 1))) == EVENTS


def test_server_that_does_not_answer(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes the request and sends nothing is an error after a while."""
    monkeypatch.setattr(source_module, "_FIRST_BYTE_TIMEOUT", 0.05)
    with pytest.raises(ApiError, match="timed out"):
        server.pods(silence).watch(WatchOptions())


def is_free(watch: Any) -> bool:
    """Whether the watch holds no connection any more."""
    return watch._socket.fileno() == -1 and watch._response.connection is None


# -- a list as a stream -----------------------------------------------------------------------


def test_a_streamed_list() -> None:
    """From a server that can, initial events, their end and the changes come in one stream."""
    with ApiServer() as embedded:
        api = Endpoint(url=embedded.url).connect()
        with contextlib.closing(api.client):
            core = kubernetes.client.CoreV1Api(api.client)
            for name in ("a", "b"):
                core.create_namespaced_pod("ns", {"metadata": {"name": name}})
            source = list_watch_from_client(core, "pods", "ns")
            watch: Any = source.watch(WatchOptions("", 60, send_initial_events=True))
            initial = [next(watch) for _ in range(2)]
            result: Any = source.list(ListOptions())
            assert [event.type for event in initial] == ["ADDED", "ADDED"]
            assert [event.object for event in initial] == result.items
            end = next(watch)
            assert end.type == "BOOKMARK"
            assert end.object["metadata"] == {
                "resourceVersion": result.resource_version,
                "annotations": {"k8s.io/initial-events-end": "true"},
            }
            core.delete_namespaced_pod("a", "ns")
            while (event := next(watch)).type == "BOOKMARK":
                pass
            assert (event.type, event.object["metadata"]["name"]) == ("DELETED", "a")
            watch.close()


# -- close ------------------------------------------------------------------------------------


def test_close_ends_a_blocked_read(server: ScriptedServer) -> None:
    """close() from another thread ends the iterator that waits for the next event."""
    watch: Any = server.pods(stream(LINES, end=silence)).watch(WatchOptions("1", 300))
    received: list[Event[Any]] = []
    all_received = threading.Event()

    def read() -> None:
        for event in watch:
            received.append(event)
            if len(received) == len(EVENTS):
                all_received.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert all_received.wait(DEADLINE)
    watch.close()
    reader.join(DEADLINE)
    assert not reader.is_alive()
    assert received == EVENTS
    assert is_free(watch)
    watch.close()


def test_close_before_the_first_event(server: ScriptedServer) -> None:
    """A watch that is closed unread gives nothing and holds nothing."""
    watch: Any = server.pods(stream(LINES, end=silence)).watch(WatchOptions())
    watch.close()
    assert is_free(watch)
    assert list(watch) == []


def test_close_between_events(server: ScriptedServer) -> None:
    """What was received and not read before close() is not given out after it."""
    watch: Any = server.pods(stream(LINES, end=silence)).watch(WatchOptions())
    assert next(watch) == EVENTS[0]
    watch.close()
    assert list(watch) == []


def test_close_after_the_end(server: ScriptedServer) -> None:
    """Closing a watch that ended by itself leaves the connection to whom it belongs now."""
    source = server.pods(stream(LINES), answer(EMPTY))
    watch: Any = source.watch(WatchOptions())
    assert list(watch) == EVENTS
    assert is_free(watch)
    watch.close()
    source.list(ListOptions())


def test_many_closes_race_with_the_reader(server: ScriptedServer) -> None:
    """Whichever of reader and closers comes first, the watch ends and frees all it holds."""
    for _ in range(20):
        watch: Any = server.pods(stream(LINES, end=silence)).watch(WatchOptions())
        threads = [threading.Thread(target=watch.close) for _ in range(3)]
        threads.append(threading.Thread(target=lambda watch=watch: list(watch)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        assert is_free(watch)


# -- interrupt --------------------------------------------------------------------------------


def half_a_list(handler: BaseHTTPRequestHandler) -> None:
    """Send the headers and half a body, and then nothing until the client hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"items": [')
    silence(handler)


def half_an_endless_list(handler: BaseHTTPRequestHandler) -> None:
    """The same, without a length and on a connection that will not be kept."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(b'{"items": [')
    silence(handler)


def interrupted(
    source: ListWatch, call: Callable[[], Any], asked: Callable[[], bool] = lambda: True
) -> BaseException:
    """The error of a call that blocks, and that another thread interrupts again and again, from
    when the server was ``asked``: before that, the call would end without its answer being used."""
    errors: list[BaseException] = []

    def block() -> None:
        try:
            call()
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=block)
    thread.start()
    deadline = time.monotonic() + DEADLINE
    while thread.is_alive() and time.monotonic() < deadline:
        if asked():
            source.interrupt()  # too early, it does nothing: so again
        thread.join(0.01)
    assert not thread.is_alive()
    (error,) = errors
    return error


@pytest.mark.parametrize("slow", [silence, half_a_list, half_an_endless_list])
@pytest.mark.parametrize("reused", [False, True], ids=["new", "reused"])
def test_interrupt_ends_a_blocked_list(server: ScriptedServer, slow: Answer, reused: bool) -> None:
    """A list without an answer, or with half of one, ends at once; the source can be used on."""
    answers = [answer(EMPTY)] if reused else []
    source = server.pods(*answers, slow, answer(EMPTY))
    if reused:
        source.list(ListOptions())
    error = interrupted(
        source, lambda: source.list(ListOptions()), lambda: len(server.answers) == 1
    )
    assert type(error) is ApiError
    result: Any = source.list(ListOptions())
    assert result.resource_version == "7"


def test_interrupt_ends_the_opening_of_a_watch(server: ScriptedServer) -> None:
    """A watch whose server takes the request and does not answer ends at once, and says why."""
    source = server.pods(silence)
    error = interrupted(source, lambda: source.watch(WatchOptions()), lambda: not server.answers)
    assert isinstance(error, ApiError)
    assert error.message.endswith("/api/v1/pods: interrupted")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_interrupt_ends_a_list_from_a_server_that_only_accepts(scheme: str) -> None:
    """A server that accepts and says nothing, not even in the TLS handshake, can be left."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=host))
        source = list_watch_from_client(client, "pods")
        error = interrupted(source, lambda: source.list(ListOptions()))
    assert isinstance(error, ApiError)
    assert error.message.endswith(": interrupted")


def test_interrupt_leaves_open_watches_and_other_sources(server: ScriptedServer) -> None:
    """Only requests of this source that wait for their answer end."""
    others = server.pods(stream(LINES, end=silence))
    source = server.pods(stream(LINES, end=silence))
    watches: list[Any] = [iter(others.watch(WatchOptions())), iter(source.watch(WatchOptions()))]
    source.interrupt()
    for watch in watches:
        assert [next(watch) for _ in EVENTS] == EVENTS
        watch.close()


def test_a_connection_that_is_not_kept_is_closed(server: ScriptedServer) -> None:
    """That a request could be interrupted does not keep its connection open afterwards."""
    hung_up = threading.Event()

    def write(handler: BaseHTTPRequestHandler) -> None:
        answer(EMPTY, headers={"Connection": "close"})(handler)
        handler.connection.settimeout(DEADLINE)
        with contextlib.suppress(TimeoutError):
            handler.rfile.read(1)
            hung_up.set()

    source = server.pods(write)
    source.list(ListOptions())
    assert hung_up.wait(DEADLINE)


def test_interrupt_from_a_signal_handler(server: ScriptedServer) -> None:
    """A handler that runs in the very thread of the list ends it."""
    source = server.pods(half_a_list)

    def handle(number: int, frame: object) -> None:
        if not server.answers:  # else it has not been asked yet
            source.interrupt()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with pytest.raises(ApiError):
            source.list(ListOptions())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_many_interrupts_race_with_requests(server: ScriptedServer) -> None:
    """However interrupts fall, a list is whole or an error, and nothing is left open."""
    rounds = 100
    done = threading.Event()
    source = server.pods(*[answer(EMPTY)] * rounds)

    def interrupt() -> None:
        while not done.is_set():
            source.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        for _ in range(rounds):
            with contextlib.suppress(ApiError):
                assert source.list(ListOptions()).resource_version == "7"  # type: ignore[union-attr]
    finally:
        done.set()
        thread.join()
    server.answers.clear()  # a request that was cut before it was sent has taken none
