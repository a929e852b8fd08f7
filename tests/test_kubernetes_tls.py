"""The Kubernetes source over TLS: what each failure says, and tokens that change under way.

The certificates are made by openssl in a temporary folder, once per test process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shmcache import ApiError, ListOptions, ListWatch, WatchOptions
from shmcache.sources.kubernetes import list_watch_from_client

kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
pytest.importorskip("msgspec", reason="needs the extra shmcache[kubernetes]")

DEADLINE = 30.0
EMPTY = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": []}


class Certificates:
    """A CA, and what it signs; a file of each, ``NAME.crt`` and ``NAME.key``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ca", "stranger"):
            self._openssl(
                *("req", "-x509", "-subj", f"/CN={name}", "-days", "7"),
                *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),  # Python 3.13 is strict
                *("-keyout", f"{name}.key", "-out", f"{name}.crt"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            )
        self._sign("server", "IP:127.0.0.1")
        self._sign("expired", "IP:127.0.0.1", days=-1)
        self._sign("elsewhere", "DNS:elsewhere.example")
        self._sign("client", "DNS:client")
        self._sign("foreign", "DNS:client", ca="stranger")

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def _sign(self, name: str, alternative: str, days: int = 7, ca: str = "ca") -> None:
        (self.folder / f"{name}.ext").write_text(
            f"subjectAltName={alternative}\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        self._openssl(
            *("req", "-new", "-subj", f"/CN={name}", "-keyout", f"{name}.key"),
            *("-out", f"{name}.csr", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        )
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", "-days", str(days)),
            *("-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial"),
            *("-extfile", f"{name}.ext"),
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    return Certificates(tmp_path_factory.mktemp("certificates"))


class TlsServer(ThreadingHTTPServer):
    """Speaks TLS on a port of loopback, and answers ``respond(token)`` to each request."""

    daemon_threads = False  # so that server_close() waits for every handler

    def __init__(
        self,
        context: ssl.SSLContext | None,
        respond: Callable[[str], tuple[int, dict[str, Any]]],
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, document = respond(self.headers.get("Authorization", ""))
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with socket.socket(fileno=os.dup(request.fileno())) as below:
            try:
                with self._context.wrap_socket(request, server_side=True) as tls:
                    super().finish_request(tls, client_address)
            except OSError:  # refused, by us or by the client: let it read our alert
                below.settimeout(DEADLINE)
                with contextlib.suppress(OSError):
                    below.shutdown(socket.SHUT_WR)
                    while below.recv(1 << 16):
                        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts servers, and returns where each listens, as ``address:port``."""
    with contextlib.ExitStack() as stack:

        def start(
            context: ssl.SSLContext | None,
            respond: Callable[[str], tuple[int, dict[str, Any]]] = lambda token: (200, EMPTY),
        ) -> str:
            server = stack.enter_context(TlsServer(context, respond))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"127.0.0.1:{server.server_port}"

        yield start
        gc.collect()  # the connections of clients that a caught error refers to


def tls(certificates: Certificates, name: str = "server", *, verify: bool = False) -> Any:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates[f"{name}.crt"], certificates[f"{name}.key"])
    if verify:
        context.load_verify_locations(certificates["ca.crt"])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def source_of(host: str, **settings: Any) -> ListWatch:
    configuration = kubernetes.client.Configuration(host=host)
    for name, value in settings.items():
        setattr(configuration, name, value)
    return list_watch_from_client(kubernetes.client.ApiClient(configuration), "pods")


def failure(host: str, **settings: Any) -> ApiError:
    """The error of a list, which is that of a watch too."""
    source = source_of(host, **settings)
    with pytest.raises(ApiError) as caught:
        source.list(ListOptions())
    with pytest.raises(ApiError) as of_watch:
        source.watch(WatchOptions())
    assert str(of_watch.value) == str(caught.value)
    assert caught.value.message.startswith(f"GET {host}/api/v1/pods: ")
    return caught.value


def test_a_trusted_server(serve: Any, certificates: Certificates) -> None:
    """With the right CA and client certificate a list is a list: what fails below can succeed."""
    host = f"https://{serve(tls(certificates, verify=True))}"
    source = source_of(
        host,
        ssl_ca_cert=certificates["ca.crt"],
        cert_file=certificates["client.crt"],
        key_file=certificates["client.key"],
    )
    result: Any = source.list(ListOptions())
    assert result.resource_version == "7"


@pytest.mark.parametrize(
    ("server", "ca", "says"),
    [
        ("server", None, "is signed by nobody that we trust: set ssl_ca_cert"),
        ("server", "stranger.crt", "is signed by nobody that we trust: set ssl_ca_cert"),
        ("expired", "ca.crt", "has expired: renew it, or set the clock"),
        ("elsewhere", "ca.crt", "is for other names: use one of them as host, or set tls_server_"),
    ],
)
def test_certificates_of_the_server(
    serve: Any, certificates: Certificates, server: str, ca: str | None, says: str
) -> None:
    """An unknown CA, an expired certificate and another name are told apart, with the remedy."""
    host = f"https://{serve(tls(certificates, server))}"
    error = failure(host, ssl_ca_cert=ca and certificates[ca])
    assert error.status == 0
    assert f"the server's certificate {says}" in error.message


@pytest.mark.parametrize(
    ("version", "client", "says"),
    [
        (ssl.TLSVersion.TLSv1_3, None, "wants a client certificate: set cert_file and key_file"),
        (ssl.TLSVersion.TLSv1_2, None, "check ssl_ca_cert, cert_file and key_file"),
        (ssl.TLSVersion.TLSv1_3, "foreign", "refused our client certificate (unknown ca): check"),
        (ssl.TLSVersion.TLSv1_2, "foreign", "refused our client certificate (unknown ca): check"),
    ],
)
def test_certificates_of_the_client(
    serve: Any,
    certificates: Certificates,
    version: ssl.TLSVersion,
    client: str | None,
    says: str,
) -> None:
    """A missing and a refused client certificate name the settings to look at."""
    context = tls(certificates, verify=True)
    context.maximum_version = version
    settings = {}
    if client is not None:
        settings["cert_file"] = certificates[f"{client}.crt"]
        settings["key_file"] = certificates[f"{client}.key"]
    host = f"https://{serve(context)}"
    assert says in failure(host, ssl_ca_cert=certificates["ca.crt"], **settings).message


def test_a_file_that_is_not_there(serve: Any, certificates: Certificates) -> None:
    """A CA file that cannot be read is an error that names the settings with files."""
    host = f"https://{serve(tls(certificates))}"
    error = failure(host, ssl_ca_cert=certificates["no-such-file"])
    assert "TLS cannot be set up: [Errno 2]" in error.message
    assert "check ssl_ca_cert" in error.message


def test_https_to_a_plain_port(serve: Any) -> None:
    """TLS to a server that has none says that the port does not speak it."""
    error = failure(f"https://{serve(None)}")
    assert "does not speak TLS on this port: use http://" in error.message


def test_http_to_a_tls_port(serve: Any, certificates: Certificates) -> None:
    """Plain HTTP to a server of TLS that hangs up says that https:// may be missing."""
    error = failure(f"http://{serve(tls(certificates))}")
    assert error.message.endswith(
        "(perhaps the server speaks TLS on this port: the host must begin with https://)"
    )


def test_http_to_a_tls_port_that_sends_an_alert() -> None:
    """Plain HTTP to a server of TLS that answers with an alert says that https:// is missing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def alert() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # fatal: protocol version
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1 << 16)

        thread = threading.Thread(target=alert)
        thread.start()
        host = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ApiError, match=r"speaks TLS on this port: the host must begin") as e:
            source_of(host).list(ListOptions())
        thread.join()
    assert host in e.value.message
    assert "perhaps" not in e.value.message


@pytest.mark.parametrize(
    "text",
    [
        "Client sent an HTTP request to an HTTPS server.",  # Go
        "The plain HTTP request was sent to HTTPS port",  # nginx
    ],
)
def test_http_to_a_tls_port_that_says_so(serve: Any, text: str) -> None:
    """A server of TLS that answers in plain HTTP is understood as well; its status stays."""
    source = source_of(f"http://{serve(None, lambda token: (400, {'message': text}))}")
    with pytest.raises(ApiError, match=r"must begin with https://") as caught:
        source.list(ListOptions())
    assert caught.value.status == 400
    assert text in caught.value.message


def test_another_400_is_not_of_tls(serve: Any) -> None:
    """A bad request that has nothing to do with TLS is not said to have."""
    source = source_of(f"http://{serve(None, lambda token: (400, {'message': 'limit: abc'}))}")
    with pytest.raises(ApiError) as caught:
        source.list(ListOptions())
    assert caught.value.message == "limit: abc"


# -- tokens -----------------------------------------------------------------------------------


def test_token_files_rotate(serve: Any, certificates: Certificates, tmp_path: Path) -> None:
    """In a cluster a new token file is used from one request to the next, also after a 401."""
    token_file = tmp_path / "token"
    seen: list[str] = []
    accepted = {"bearer one", "bearer two"}

    def respond(token: str) -> tuple[int, dict[str, Any]]:
        seen.append(token)
        return (200, EMPTY) if token in accepted else (401, {"message": "Unauthorized"})

    address, _, port = serve(tls(certificates), respond).partition(":")
    loader = kubernetes.config.incluster_config.InClusterConfigLoader(
        token_filename=str(token_file),
        cert_filename=certificates["ca.crt"],
        environ={"KUBERNETES_SERVICE_HOST": address, "KUBERNETES_SERVICE_PORT": port},
    )
    configuration = kubernetes.client.Configuration()

    def write(token: str) -> None:
        token_file.write_text(token)
        # The loader reads its file at most once a minute.
        loader.token_expires_at = loader.token_expires_at.min

    token_file.write_text("one")
    loader.load_and_set(configuration)
    source = list_watch_from_client(kubernetes.client.ApiClient(configuration), "pods")
    source.list(ListOptions())
    write("two")
    assert list(source.watch(WatchOptions("7"))) is not None
    accepted = {"bearer three"}
    for call in (lambda: source.list(ListOptions()), lambda: source.watch(WatchOptions("7"))):
        with pytest.raises(ApiError, match="renew the token or the certificate") as caught:
            call()
        assert caught.value.status == 401
        assert "Unauthorized" in caught.value.message
    write("three")
    source.list(ListOptions())
    assert seen == [f"bearer {token}" for token in ("one", "two", "two", "two", "three")]
