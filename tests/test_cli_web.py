"""`shmcache top --web`: the figures in a browser, and nothing for whom they do not concern."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

import pytest

from shmcache import FIFO, RawCodec, Store
from shmcache.cli import main
from shmcache.cli._web import Feed, Server
from tests.browser import Browser

DEADLINE = 60.0
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


class Web:
    """A server in this process, and a client of it."""

    def __init__(self, *names: str, interval: float = 0.05, host: str = "127.0.0.1") -> None:
        self.feed = Feed(names, interval)
        self.server = Server(self.feed, host, 0)
        self.host, self.port = host, self.server.server_address[1]
        self._threads = [
            threading.Thread(target=self.feed.run),
            threading.Thread(target=self.server.serve_forever, args=(0.01,)),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self.feed.end()
        self.server.shutdown()
        self.server.server_close()
        for thread in self._threads:
            thread.join()

    def ask(
        self,
        path: str,
        method: str = "GET",
        token: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: str,
    ) -> tuple[http.client.HTTPResponse, str]:
        """One request; the answer and its body."""
        query = urlencode({"token": self.server.token if token is None else token, **fields})
        with contextlib.closing(
            http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE)
        ) as connection:
            connection.request(method, f"{path}?{query}", headers=headers or {})
            answer = connection.getresponse()
            return answer, answer.read().decode()

    def json(self, path: str, **fields: str) -> Any:
        answer, body = self.ask(path, **fields)
        assert answer.status == 200, body
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        return json.loads(body)


@pytest.fixture
def web(store: Store) -> Iterator[Web]:
    """A server of one arena, the store."""
    made = Web(store.name)
    yield made
    made.close()


# --- what it says ---------------------------------------------------------------------------------


def test_figures_as_json(web: Web, store: Store) -> None:
    """/arenas has what the sampler has, of the arenas that were asked for."""
    store.add_raw("a", b"1")
    while not (arena := web.json("/arenas")["arenas"][0])["stats"]["entries"]:
        pass
    assert (arena["name"], arena["kind"], arena["problem"]) == (store.name, "Store", "")
    assert arena["stats"]["writes"] == 1
    assert set(arena["rates"]) == {"reads", "read_misses", "writes", "deletes", "pops"}
    assert (arena["workers"][0]["pops"], arena["workers"][0]["in_flight"]) == (0, None)


def test_the_stream_goes_on(web: Web, store: Store) -> None:
    """/events is one stream of server-sent events, the newest figures in each, as they come."""
    with contextlib.closing(
        http.client.HTTPConnection(web.host, web.port, timeout=DEADLINE)
    ) as connection:
        connection.request("GET", f"/events?token={web.server.token}")
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        events = (line[6:] for line in iter(answer.readline, b"") if line.startswith(b"data: "))
        for entries in (0, 1, 2):
            while json.loads(next(events))["arenas"][0]["stats"]["entries"] != entries:
                pass
            store.add_raw(str(entries), b"x")


def test_streams_end_with_the_server(store: Store) -> None:
    """When the server ends, an open stream ends, and does not keep it."""
    web = Web(store.name)
    with contextlib.closing(
        http.client.HTTPConnection(web.host, web.port, timeout=DEADLINE)
    ) as connection:
        connection.request("GET", f"/events?token={web.server.token}")
        answer = connection.getresponse()
        while not answer.readline().startswith(b"data: "):
            pass
        web.close()
        answer.read()  # to the end


def test_a_quiet_stream_says_that_it_lives() -> None:
    """Where nothing comes for a while the feed says so, and it says the end."""
    feed = Feed(["a-name-that-nobody-has"], 3600)
    number, text = cast(tuple[int, str], feed.after(0, 0))
    assert (number, json.loads(text)["interval"]) == (1, 3600)
    assert feed.after(1, 0.01) == (1, "")
    feed.end()
    assert feed.after(1, 3600) is None


def test_keys_are_searched_by_the_server(web: Web, store: Store) -> None:
    """/entries has the first keys that have the search in them, whatever the case, at most 200,
    and says how many there are."""
    for number in range(500):
        store.add_raw(f"Default/pod-{number:03}", b"x")
    found = web.json("/entries", arena=store.name)
    assert (found["entries"], found["matching"], len(found["keys"])) == (500, 500, 200)
    assert found["keys"] == [f"Default/pod-{number:03}" for number in range(200)]
    found = web.json("/entries", arena=store.name, search="default/POD-49")
    assert found["keys"] == [f"Default/pod-{number}" for number in range(490, 500)]
    assert web.json("/entries", arena=store.name, search="%")["matching"] == 0


def test_objects_are_shown_as_json(web: Web, store: Store) -> None:
    """/entry has an object as indented JSON, and what JSON has not as Python writes it."""
    store.add({"metadata": {"name": "a"}, "text": EVIL, "bytes": b"\xff"})
    entry = web.json("/entry", arena=store.name, key="a")
    assert json.loads(entry["text"])["text"] == EVIL
    assert json.loads(entry["text"])["bytes"] == r"b'\xff'"
    assert entry["bytes"] == len(store.get_raw("a") or b"")
    store.add_raw("odd", b"\x81\xc4\x01k\x02")  # a key of bytes
    assert web.json("/entry", arena=store.name, key="odd")["text"] == "{b'k': 2}"
    store.add_raw("broken", b"\xc1")  # nothing that msgpack has
    assert web.json("/entry", arena=store.name, key="broken")["text"].startswith("00000000  c1 ")
    store.add_raw("large", bytes((1 << 20) + 1))
    said = web.json("/entry", arena=store.name, key="large")["text"]
    assert said.endswith(f"shmcache get {store.name} large")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"b": [1]}', '{\n  "b": [\n    1\n  ]\n}'),
        (b"[" * 100_000, "[" * 100_000),
        ("Grüße".encode(), "Grüße"),
        (b"\xff\x00A", "00000000  ff 00 41                                         ..A"),
    ],
)
def test_bytes_are_shown_as_what_they_are(name: str, data: bytes, text: str) -> None:
    """Payloads of another codec: JSON where they are JSON, else their text, else their digits."""
    with Store.create(name, capacity="1MiB", codec=RawCodec()) as store:
        store.add_raw("a", data)
        web = Web()
        try:
            assert web.json("/entry", arena=name, key="a")["text"] == text
        finally:
            web.close()


def test_what_is_not_there_is_said(web: Web, store: Store) -> None:
    """A page, a key, an arena that is not there, and one that was not asked for: 404 in words."""
    for path, fields, words in (
        ("/nothing", {}, "there is no such page"),
        ("/entry", {"arena": store.name, "key": "gone"}, "'gone' is gone"),
        ("/entries", {"arena": "another"}, "was not asked for"),
        ("/entries", {}, "was not asked for"),
    ):
        answer, body = web.ask(path, **fields)
        assert (answer.status, answer.headers.get_content_type()) == (404, "text/plain")
        assert words in body
    everything = Web()
    try:
        for arena, words in ((f"{store.name}-x", "there is no arena"), ("a/b", "cannot be the")):
            answer, body = everything.ask("/entries", arena=arena)
            assert answer.status == 404
            assert words in body
    finally:
        everything.close()


# --- whom it says it ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/events", "/arenas", "/entries", "/entry", "/nothing"])
def test_without_the_secret_nothing_is_said(web: Web, store: Store, path: str) -> None:
    """Who has not the address that was printed, another user of the machine, gets 403 and no
    word of an arena."""
    for token in ("", "wrong", web.server.token + "x", "ü"):
        answer, body = web.ask(path, token=token, arena=store.name)
        assert answer.status == 403
        assert body.endswith("it ends with ?token=...")
        assert store.name not in body


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:9999", 200),  # as ssh -L has it
        ("LocalHost", 200),
        ("[::1]:{port}", 200),
        ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("", 421),
    ],
)
def test_only_loopback_names_are_answered(web: Web, host: str, status: int) -> None:
    """A page of another site whose name was made to lead here is refused by its Host header."""
    answer, _ = web.ask("/arenas", headers={"Host": host.format(port=web.port)})
    assert answer.status == status


@pytest.mark.parametrize("path", ["/", "/arenas", "/events", "/nothing"])
@pytest.mark.parametrize("token", [None, "wrong"])
def test_every_answer_is_guarded(web: Web, path: str, token: str | None) -> None:
    """Each answer, a refusal too, forbids to keep it, to guess its type, to frame it, to name it
    to others, and to run or load anything but what the page itself has."""
    with contextlib.closing(
        http.client.HTTPConnection(web.host, web.port, timeout=DEADLINE)
    ) as connection:
        connection.request("GET", f"{path}?token={web.server.token if token is None else token}")
        headers = connection.getresponse().headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    policy = headers["Content-Security-Policy"]
    for directive in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert directive in policy
    assert "unsafe" not in policy
    assert headers["Server"] == "shmcache"


def test_the_page_runs_only_its_own_script(web: Web) -> None:
    """Script and style have the nonce of their answer, another one each time, and the page takes
    nothing from anywhere."""
    nonces = set()
    for _ in range(2):
        answer, body = web.ask("/")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        (nonce,) = set(re.findall(r"script-src 'nonce-([^']+)'", answer.headers.as_string()))
        assert re.findall(r"<(?:script|style)[^>]*nonce=\"([^\"]+)\"", body) == [nonce, nonce]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|\bon\w+=\"|innerHTML", body)
        nonces.add(nonce)
    assert len(nonces) == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(web: Web, method: str) -> None:
    """Only GET is understood."""
    answer, _ = web.ask("/entries", method)
    assert answer.status == 501
    assert answer.headers["Cache-Control"] == "no-store"


def test_ipv6_loopback(store: Store) -> None:
    """It listens on ::1 as well, and says an address that can be opened."""
    try:
        web = Web(store.name, host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    try:
        assert web.server.url.startswith(f"http://[::1]:{web.port}/?token=")
        assert web.json("/arenas")["arenas"][0]["name"] == store.name
    finally:
        web.close()


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", ""])
def test_other_addresses_are_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What others could reach is wrong usage, and the way through ssh is named."""
    assert main(["top", "--web", "--host", host]) == 2
    assert "ssh -L 8765:127.0.0.1:8765" in capsys.readouterr().err


def test_a_port_that_is_taken(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said with what to do, and the status is 1."""
    assert main(["top", "--web", "--port", str(web.port)]) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on port {web.port} of 127.0.0.1" in error
    assert "--port 0" in error


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_with_streams_open(store: Store, number: int, status: int) -> None:
    """It says its address on the first line, and ends at once, without a word, while browsers
    are connected."""
    command = [sys.executable, "-m", "shmcache.cli", "top", "--web", "--port", "0", store.name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], DEADLINE)[0]
            url = urlsplit(process.stdout.readline().strip())
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", url.port, timeout=DEADLINE)
            ) as connection:
                connection.request("GET", f"/events?{url.query}")
                answer = connection.getresponse()
                assert answer.readline().startswith(b"retry: ")
                process.send_signal(number)
                _, errors = process.communicate(timeout=DEADLINE)
                assert (process.returncode, errors) == (status, "")
        finally:
            process.kill()


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Callable[[Web], Browser]]:
    """Opens the page of a server in a browser, and sees that it had nothing to complain of."""
    with contextlib.ExitStack() as stack:

        def show(web: Web) -> Browser:
            browser = stack.enter_context(Browser(tmp_path))
            stack.callback(lambda: browser.said and pytest.fail(str(browser.said)))
            browser.open(web.server.url)
            return browser

        yield show


ROWS = "[...document.querySelectorAll('#arenas tr')]"


def test_the_page_in_a_browser(name: str, page: Callable[[Web], Browser], tmp_path: Path) -> None:
    """The page shows arenas, charts, workers and objects as they change; what objects and keys
    have in them is text; it is usable from the keyboard; light and dark are different."""
    with (
        FIFO.create(name, capacity="1MiB") as fifo,
        Store.create(f"{name}-b", capacity="1MiB", codec=RawCodec()) as other,
    ):
        web = Web(fifo.name, other.name)
        try:
            fifo.add({"metadata": {"name": EVIL}, "text": EVIL})
            other.claim_reflector(EVIL)
            other.add_raw("a", b"1")
            browser = page(web)
            browser.wait_for(f"{ROWS}.length === 2")
            assert browser.value(f"{ROWS}[0].innerText.split(/\\s+/).slice(0, 3)") == [
                name,
                "FIFO",
                "1",
            ]
            browser.wait_for("document.querySelectorAll('#charts svg').length === 6")
            browser.wait_for("document.querySelector('#charts .line').getAttribute('d').length > 9")
            fifo.add({"metadata": {"name": "second"}})
            browser.wait_for(f"{ROWS}[0].cells[2].innerText === '2'")
            worker = "document.querySelector('#workers tr').cells[5].innerText"
            browser.wait_for(f"{worker} === '0'")
            claim = fifo.claim(0)
            browser.wait_for(f"{worker} === '1'")
            claim.release()
            # Objects, by the keyboard: search, go to the first key, open it.
            browser.value("document.querySelector('#search').focus()")
            browser.command("Input.insertText", text="IMG")
            browser.wait_for("document.querySelector('#found').innerText === '1 of 2'")
            browser.press("Tab")
            assert browser.value("document.activeElement.innerText") == EVIL
            browser.press("Enter", "\r")
            shown = browser.wait_for("document.querySelector('#object').innerText")
            assert json.loads(shown)["text"] == EVIL
            # The other arena: its charts, its keys, its reflector.
            browser.value(f"{ROWS}[1].querySelector('button').focus()")
            browser.press("Enter", "\r")
            browser.wait_for(f"document.querySelector('#title').innerText === '{name}-b'")
            browser.wait_for("document.querySelector('#keys').innerText === 'a'")
            browser.wait_for("document.querySelectorAll('#charts svg').length === 4")
            other.unlink()
            browser.wait_for("document.querySelector('#problem').innerText.includes('no arena')")
            assert browser.value("document.title") == "shmcache top"
            assert browser.value("document.querySelectorAll('img, iframe').length") == 0
            colours = set()
            for scheme in ("light", "dark"):
                media = [{"name": "prefers-color-scheme", "value": scheme}]
                browser.command("Emulation.setEmulatedMedia", features=media)
                colours.add(browser.value("getComputedStyle(document.body).backgroundColor"))
                browser.screenshot(tmp_path / f"{scheme}.png")
            assert len(colours) == 2
        finally:
            web.close()
            other.unlink()


def test_the_page_says_when_the_server_ends(store: Store, page: Callable[[Web], Browser]) -> None:
    """A page whose server has gone says so, and holds what it showed."""
    web = Web(store.name)
    try:
        browser = page(web)
        browser.wait_for(f"{ROWS}.length === 1")
    finally:
        web.close()
    browser.wait_for("document.querySelector('#state').innerText.includes('does not answer')")
    assert browser.value(f"{ROWS}.length") == 1
    browser.said.clear()  # of the lost connection it may complain
