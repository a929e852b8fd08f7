"""A source that lists and watches one resource of a Kubernetes API server.

Of the official client it uses authentication and connections only, and reads the bytes itself:
the client's models cost 0.4 ms per event, and its raw watch forgets the resource version and
breaks on a 410. Each JSON document is decoded once, by msgspec.

How an answer becomes an event or an error:

=======================================  ==================================================
the server says                          the caller sees
=======================================  ==================================================
a line of a watch                        :class:`~shmcache.Event`
410, as HTTP status or as ERROR event    :class:`~shmcache.ExpiredError`
401                                      :class:`~shmcache.ApiError`; the next request asks the
                                         client for its token again
another status, either way               :class:`~shmcache.ApiError`, with ``retry_after``
nothing listens at the address           :class:`ConnectionRefusedError`
TLS fails, or no connection otherwise    :class:`~shmcache.ApiError` with status 0
``interrupt()`` during a request         the same
the end of a watch, or a cut connection  the iterator ends; half a line is thrown away
silence past ``timeout_seconds``         the same
a line that is no event                  :class:`~shmcache.ApiError` with status 0
=======================================  ==================================================

A cut watch is no error, because the next watch resumes at the last version that was seen
(client-go treats it so too).

May import: ``_errors``, ``_logging``, ``_types``, ``listwatch``, ``sources._interruptible``,
``sources._tls``; msgspec and urllib3 when a source is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from shmcache._errors import ApiError
from shmcache._logging import Log, get_logger
from shmcache._types import Event, ListOptions, ListResult, WatchOptions
from shmcache.listwatch import ListWatch, error_from_status, read_list
from shmcache.sources._interruptible import Interruptible
from shmcache.sources._tls import explain_tls_error, is_answer_of_tls

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["list_watch_from_client", "preferred_version"]


# All in seconds.
_CONNECT_TIMEOUT = 10.0
_FIRST_BYTE_TIMEOUT = 30.0  # a server sends the headers of a watch before the first event
_LIST_READ_TIMEOUT = 60.0  # between two pieces of a list, not for the whole of it
_WATCH_GRACE = 15.0  # a server ends its watches by itself; later than this it is gone

_KEEPALIVE = {  # a dead peer or a forgotten NAT entry shows after about a minute
    socket.TCP_KEEPIDLE: 30,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 3,
}
_PIECE = 1 << 16  # most bytes of one read
_MOST_ERROR_BYTES = 1 << 16  # of an error's body
_SPEAKS_TLS = "the server speaks TLS on this port: the host must begin with https://"
_UNAUTHORIZED = (
    "the server does not accept the client's credential: renew the token or the certificate; the "
    "next request asks the client for its token again"
)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def list_watch_from_client(
    client: Any,
    resource: str,
    namespace: str | None = None,
    field_selector: object = None,
    label_selector: object = None,
) -> ListWatch:
    """Return a source for one resource of a Kubernetes API server.

    ``client``: a ``kubernetes.client.ApiClient``, or an API object that has one
    (``CoreV1Api()``). ``resource``: the plural, ``"pods"``, and outside the core group
    ``"apps/v1/deployments"``. ``namespace``: None or ``""`` for all. The selectors are strings
    in Kubernetes syntax, dicts of equalities, or anything whose ``str()`` is in that syntax;
    the server evaluates them, and empty ones are not sent.

    Objects are plain dicts. The source may be used from any thread, and each ``list`` and
    ``watch`` is one request: nothing is retried here. The watch's ``close()`` ends a blocked
    read at once, from any thread. So does the source's ``interrupt()`` with every list, and every
    watch that is being opened, as soon as it has connected; open watches stay. Raises
    :class:`ImportError` without msgspec or urllib3, and :class:`TypeError` or :class:`ValueError`
    for arguments that cannot be meant. After client-go's ``NewListWatchFromClient``. ::

        from kubernetes import client, config

        config.load_config()
        source = list_watch_from_client(client.CoreV1Api(), "pods", label_selector="app=web")
        Reflector(source, "v1/Pod", store).start()
    """
    _require_libraries()
    connection = _Connection(client)
    source = _Source(
        connection,
        _path(resource, namespace),
        {
            "fieldSelector": _selector_text(field_selector),
            "labelSelector": _selector_text(label_selector),
        },
    )
    return ListWatch(
        source.list, source.watch, streams_lists=True, interrupt_func=connection.interrupt
    )


def preferred_version(client: Any, group: str) -> str:
    """Ask the server which version of the API group ``group`` it prefers: ``"v1"`` of ``"apps"``.

    ``client``: as for :func:`list_watch_from_client`. Raises :class:`~shmcache.ApiError`, with
    status 404 if the server has no such group, and :class:`ConnectionRefusedError`. After the
    discovery of kubectl, which takes ``deployments.apps`` for ``apps/v1/deployments``.
    """
    import msgspec

    path = f"/apis/{quote(group, safe='')}"
    body = _Connection(client).get_body(path, {})
    try:
        return str(msgspec.json.decode(body)["preferredVersion"]["version"])
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as exc:
        raise ApiError(0, f"GET {path}: the answer is not an API group: {exc}") from exc


class _Source:
    """The requests and answers of one resource."""

    def __init__(self, connection: _Connection, path: str, selectors: dict[str, str]) -> None:
        self._connection = connection
        self._path = path
        self._log = get_logger("shmcache.sources.kubernetes", resource=path)
        self._selectors = {key: text for key, text in selectors.items() if text}

    def list(self, options: ListOptions) -> ListResult[Any]:
        import msgspec

        query = dict(self._selectors)
        if options.resource_version:
            query["resourceVersion"] = options.resource_version
        if options.limit:
            query["limit"] = str(options.limit)
        if options.continue_token:
            query["continue"] = options.continue_token
        body = self._connection.get_body(self._path, query)
        try:
            document = msgspec.json.decode(body)
        except (msgspec.MsgspecError, ValueError) as exc:
            raise ApiError(0, f"GET {self._path}: the answer is not JSON: {exc}") from exc
        return read_list(document)

    def watch(self, options: WatchOptions) -> Iterable[Event[Any]]:
        query = {**self._selectors, "watch": "true", "resourceVersion": options.resource_version}
        if options.allow_bookmarks:
            query["allowWatchBookmarks"] = "true"
        if options.send_initial_events:
            query["sendInitialEvents"] = "true"
            query["resourceVersionMatch"] = "NotOlderThan"  # the API wants it said
            query["allowWatchBookmarks"] = "true"  # one of them is the end of the initial events
        silence = None
        if options.timeout_seconds is not None:
            query["timeoutSeconds"] = str(options.timeout_seconds)
            silence = options.timeout_seconds + _WATCH_GRACE
        response = self._connection.get_stream(self._path, query, silence)
        return _WatchStream(response, self._log)


class _Connection:
    """Authentication and transport, borrowed from an ``ApiClient``.

    ``auth_settings()`` runs the client's refresh hook (exec plug-ins, in-cluster token files),
    so it is asked for every request. The transport is used past ``ApiClient.call_api``, whose
    urllib3 retries would sleep through a 429 where :meth:`Reflector.stop` cannot wake them.
    """

    def __init__(self, client: Any) -> None:
        api_client = getattr(client, "api_client", client)
        try:
            self._transport = Interruptible(api_client.rest_client.pool_manager)
            self._configuration = api_client.configuration
            self._api_client = api_client
        except AttributeError as exc:
            raise TypeError(
                "client must be a kubernetes.client.ApiClient or an API object like CoreV1Api(), "
                f"not {type(client).__name__}"
            ) from exc

    def interrupt(self) -> None:
        """End every request whose answer somebody waits for; from any thread."""
        self._transport.interrupt()

    def get_body(self, path: str, query: Mapping[str, str]) -> bytes:
        """Return the whole body of a successful answer."""
        with self._request(path):
            response = self._get(path, query, _LIST_READ_TIMEOUT)
            with contextlib.closing(response):  # read to its end, it went back to the pool
                body: bytes = response.read()
                return body

    def get_stream(
        self, path: str, query: Mapping[str, str], silence: float | None
    ) -> BaseHTTPResponse:
        """Return a successful answer, unread, that ends after ``silence`` seconds without data."""
        with self._request(path):
            response = self._get(path, query, _FIRST_BYTE_TIMEOUT)
        # A connection that the server will not keep open is detached from the response and
        # keeps the first timeout: its watch ends early in silence, and is resumed.
        sock = getattr(response.connection, "sock", None)
        if sock is not None:
            sock.settimeout(silence)
        return response

    def _get(self, path: str, query: Mapping[str, str], read_timeout: float) -> BaseHTTPResponse:
        import urllib3

        headers = {**self._api_client.default_headers, "Accept": "application/json"}
        if self._api_client.cookie:
            headers["Cookie"] = self._api_client.cookie
        for setting in self._configuration.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        response: BaseHTTPResponse = self._transport.manager.request(
            "GET",
            f"{self._configuration.host}{path}?{urlencode(query)}",
            headers=headers,
            preload_content=False,
            retries=False,  # nor redirects: the headers hold a credential
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=read_timeout),
        )
        if 200 <= response.status < 300:
            return response
        with contextlib.closing(response):
            raise _error_from_response(response)

    @contextlib.contextmanager
    def _request(self, path: str) -> Iterator[None]:
        """Make what is asked for inside interruptible, and translate its errors."""
        from urllib3 import exceptions as errors

        where = f"GET {self._configuration.host}{path}"
        with self._transport.request():
            try:
                yield
            except (errors.HTTPError, OSError) as exc:
                if self._transport.was_interrupted():
                    raise ApiError(0, f"{where}: interrupted") from exc
                if isinstance(exc, errors.SSLError):
                    raise ApiError(0, f"{where}: {explain_tls_error(exc)}") from exc
                if _comes_of(exc, ConnectionRefusedError):
                    raise ConnectionRefusedError(
                        errno.ECONNREFUSED, f"{where}: connection refused"
                    ) from exc
                if is_answer_of_tls(str(exc)):
                    raise ApiError(0, f"{where}: {_SPEAKS_TLS}") from exc
                hint = ""
                if where.startswith("GET http://") and _comes_of(exc, ConnectionResetError):
                    hint = f" (perhaps {_SPEAKS_TLS})"  # OpenSSL hangs up on plain HTTP
                raise ApiError(0, f"{where}: {exc}{hint}") from exc


class _WatchStream:
    """The events of one open watch, and the handle that ends it.

    One thread iterates; any thread may close. Closing a response that another thread reads
    would wait for that read, so :meth:`close` shuts the connection down through a descriptor
    of its own, which no thread can close (and the kernel reuse) in between, and works below
    TLS. The read then returns, and who holds ``_reading`` frees the rest: the reader, if it was
    in a read, else the closer. ``close()`` never waits, so a signal handler may call it.
    """

    def __init__(self, response: BaseHTTPResponse, log: Log) -> None:
        self._response = response
        self._log = log
        self._socket = socket.socket(fileno=os.dup(response.fileno()))
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self._events = self._read_events()
        self._reading = threading.Lock()
        self._closed = False

    def __iter__(self) -> Iterator[Event[Any]]:
        return self

    def __next__(self) -> Event[Any]:
        try:
            with self._reading:
                if self._closed:
                    raise StopIteration
                try:
                    return next(self._events)
                except BaseException:
                    self._closed = True
                    raise
        finally:
            # After the lock was given up, so that a closer that found it taken can rely on us.
            self._free_if_closed()

    def close(self) -> None:
        """End the watch; the iterator ends, even if it is blocked in a read. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):  # the peer may have been first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._free_if_closed()

    def _free_if_closed(self) -> None:
        # Who finds the lock taken leaves it to its holder, who comes here after giving it up.
        if self._closed and self._reading.acquire(blocking=False):
            try:
                self._socket.close()
                self._response.close()
                self._response.release_conn()  # the pool counts it, and opens it again on use
            finally:
                self._reading.release()

    def _read_events(self) -> Iterator[Event[Any]]:
        import msgspec

        decode = msgspec.json.Decoder().decode
        for line in split_lines(self._pieces()):
            try:
                document = decode(line)
                kind, obj = document["type"], document["object"]
            except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as exc:
                raise ApiError(
                    0, f"a line of {len(line)} bytes is not a watch event: {exc}"
                ) from exc
            if kind == "ERROR":
                raise error_from_status(obj)
            yield Event(kind, obj)

    def _pieces(self) -> Iterator[bytes]:
        import urllib3

        while True:
            try:
                piece = self._response.read1(_PIECE)
            except (urllib3.exceptions.HTTPError, OSError) as exc:
                self._log.debug("the watch was cut: %s", exc)
                return
            if not piece:
                return
            yield piece


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the complete, non-empty lines of a stream that is cut into pieces anywhere.

    What follows the last line feed is half a line and is thrown away. Each byte is copied a
    fixed number of times, however many pieces a line comes in.
    """
    begun: list[bytes] = []
    for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            begun.append(end)
            line = b"".join(begun)
            begun.clear()
            if line.strip():
                yield line
        if rest:
            begun.append(rest)


def _error_from_response(response: BaseHTTPResponse) -> ApiError:
    import msgspec

    header = response.headers.get("Retry-After", "")
    retry_after = float(header) if header.isdecimal() else None  # else it is a date: ignored
    body = response.read(_MOST_ERROR_BYTES)
    try:
        status = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError):
        status = {"message": f"{response.reason}: {body[:200].decode(errors='replace').strip()}"}
    error = error_from_status(status, response.status, retry_after)
    if error.status == 401:
        return ApiError(401, f"{error.message} ({_UNAUTHORIZED})")
    if error.status == 400 and is_answer_of_tls(error.message):
        return ApiError(400, f"{error.message} ({_SPEAKS_TLS})")
    return error


def _comes_of(exc: BaseException | None, kind: type[Exception]) -> bool:
    while exc is not None:
        if isinstance(exc, kind):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _path(resource: str, namespace: str | None) -> str:
    parts = resource.split("/") if "/" in resource else ["v1", resource]
    if len(parts) > 3 or not all(_NAME.fullmatch(part) for part in parts):
        raise ValueError(
            f"resource {resource!r} must be a lower-case plural like 'pods', or "
            "group/version/plural like 'apps/v1/deployments'"
        )
    *group, version, plural = parts
    path = f"/apis/{group[0]}/{version}" if group else f"/api/{version}"
    if namespace:
        path += f"/namespaces/{quote(namespace, safe='')}"
    return f"{path}/{plural}"


def _selector_text(selector: object) -> str:
    if selector is None:
        return ""
    if isinstance(selector, Mapping):
        return ",".join(f"{key}={_escaped(value)}" for key, value in selector.items())
    return str(selector)


def _escaped(value: object) -> str:
    # The syntax of field selectors; no valid label value holds any of these.
    return re.sub(r"([\\,=])", r"\\\1", str(value))


def _require_libraries() -> None:
    try:
        import msgspec  # noqa: F401
        import urllib3  # noqa: F401
    except ImportError as exc:
        raise ImportError(
            f"the Kubernetes source needs {exc.name}: pip install 'shmcache[kubernetes]'"
        ) from exc
