"""`shmcache reflect` keeps an arena equal to its source until it is told to end, and says so."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import shmcache
from shmcache.cli import main
from shmcache.cli._fields import field_path, function, index, leaving_out
from shmcache.cli._log import Log
from shmcache.demo._api import Api, Endpoint
from shmcache.demo.apiserver import ApiServer
from tests.running import Reflect, reflect_commands

pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
pytest.importorskip("watchfiles", reason="needs the extra shmcache[directory]")

DEADLINE = 60.0


Start = Callable[..., Reflect]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts commands in the test's folder; what still runs after the test is killed."""
    with reflect_commands(tmp_path) as begin:
        yield begin


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.fixture
def api(server: ApiServer) -> Iterator[Api]:
    made = Endpoint(server.url).connect()
    yield made
    made.client.close()


@pytest.fixture
def cluster(server: ApiServer, name: str, tmp_path: Path) -> list[str]:
    """The options for a namespace and an arena of the test's own."""
    config = kubeconfig(tmp_path / "config", server.url)
    return ["--kubeconfig", config, "--namespace", name, "--name", name, "--capacity", "16MiB"]


def kubeconfig(path: Path, url: str) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "stale"}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


def add_pod(api: Api, namespace: str, name: str, node: str = "") -> None:
    spec = {"nodeName": node, "containers": [{"name": "main", "env": [{"name": "SECRET"}]}]}
    meta = {"name": name, "labels": {"app": name}, "managedFields": [{"manager": "test"}]}
    api.post(f"/api/v1/namespaces/{namespace}/pods", {"metadata": meta, "spec": spec})


def wait_for(store: shmcache.Store, condition: Callable[[], bool]) -> None:
    for _ in range(int(DEADLINE)):
        version = store.version
        if condition():
            return
        store.wait_for_change(version, timeout=1.0)
    raise AssertionError(store.list_keys())


# --- an API server -------------------------------------------------------------------------------


def test_an_indexer_follows_the_server(
    start: Start, cluster: list[str], api: Api, name: str
) -> None:
    """By default the arena is an Indexer by namespace, and by fields on demand, that follows the
    server without the fields that are left out; SIGTERM is status 0 and leaves it."""
    add_pod(api, name, "web", "n1")
    command = start("pods", *cluster, "--index", "node=spec.nodeName", "--drop=spec.containers.env")
    assert command.until("synced")["objects"] == 1
    assert [line["event"] for line in command.seen] == ["started", "synced"]
    with shmcache.Indexer.attach(name) as pods:
        add_pod(api, name, "db", "n2")
        wait_for(pods, lambda: len(pods) == 2)
        assert pods.index_keys("namespace", name) == [f"{name}/db", f"{name}/web"]
        (pod,) = pods.by_index("node", "n2")
        assert pod["kind"] == "Pod"
        assert "managedFields" not in pod["metadata"]
        assert pod["spec"]["containers"] == [{"name": "main"}]
        assert pods.reflector_status().pid == command.process.pid
        assert command.end(signal.SIGTERM) == (0, "")
        assert command.seen[-1]["event"] == "stopped"
        assert pods.reflector_status().state == "stopped"
        assert len(pods) == 2


def test_interrupt_and_unlink(start: Start, cluster: list[str], name: str) -> None:
    """Ctrl-C is a clean end too, and with --unlink the arena goes with it."""
    command = start("pods", *cluster, "--unlink")
    command.until("synced")
    assert command.end(signal.SIGINT) == (0, "")
    with pytest.raises(shmcache.ArenaNotFoundError):
        shmcache.attach(name)


def test_readers_stay_attached_over_a_restart(
    start: Start, cluster: list[str], api: Api, name: str
) -> None:
    """A reflector that is started again fills the same arena, which readers never leave, and may
    be killed in between."""
    first = start("pods", *cluster)
    first.until("synced")
    with shmcache.attach(name) as pods:
        assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
        add_pod(api, name, "web")
        assert start("pods", *cluster).until("synced")["objects"] == 1
        assert pods.list_keys() == [f"{name}/web"]


def test_selectors_and_a_queue(start: Start, cluster: list[str], api: Api, name: str) -> None:
    """The server selects by labels and fields, and --kind fifo makes a queue to pop from."""
    for pod in ("web", "db"):
        add_pod(api, name, pod)
    arguments = ("--kind", "fifo", "-l", "app in (web,db)", "--field-selector", "metadata.name=db")
    assert start("pods", *cluster, *arguments).until("synced")["objects"] == 1
    with shmcache.FIFO.attach(name) as queue:
        assert queue.pop(DEADLINE)["metadata"]["name"] == "db"


def test_managed_fields_are_kept_on_demand(
    start: Start, cluster: list[str], api: Api, name: str
) -> None:
    """--managed-fields stores the objects as the server has them."""
    add_pod(api, name, "web")
    start("pods", *cluster, "--managed-fields", "--kind", "store").until("synced")
    with shmcache.Store.attach(name) as pods:
        assert pods[f"{name}/web"]["metadata"]["managedFields"] == [{"manager": "test"}]


def test_standby_takes_over_from_the_killed(
    start: Start, cluster: list[str], api: Api, name: str
) -> None:
    """A standby says for whom it waits, and after a SIGKILL of that one goes on without a list."""
    add_pod(api, name, "web")
    first = start("pods", *cluster, "--standby")
    assert first.until("synced")["objects"] == 1
    second = start("pods", *cluster, "--standby")
    assert second.until("standby")["pid"] == first.process.pid
    first.process.kill()
    second.until("elected")
    assert second.until("resumed")["objects"] == 1
    with shmcache.attach(name) as pods:
        add_pod(api, name, "db")
        wait_for(pods, lambda: len(pods) == 2)
        assert pods.reflector_status().pid == second.process.pid
        assert pods.reflector_status().lists == 0


def test_standby_with_other_fields_lists(
    start: Start, cluster: list[str], api: Api, name: str
) -> None:
    """A standby that would store something else does not go on from what is there."""
    add_pod(api, name, "web")
    first = start("pods", *cluster, "--standby")
    first.until("synced")
    second = start("pods", *cluster, "--standby", "--drop", "spec")
    second.until("standby")
    first.process.kill()
    second.until("synced")
    with shmcache.attach(name) as pods:
        assert "spec" not in pods[f"{name}/web"]


def test_a_standby_ends_at_once(start: Start, cluster: list[str], name: str) -> None:
    """A signal to one that stands by ends it, and the other goes on."""
    first = start("pods", *cluster)
    first.until("synced")
    second = start("pods", *cluster, "--standby")
    second.until("standby")
    assert second.end(signal.SIGTERM) == (0, "")
    with shmcache.attach(name) as pods:
        assert pods.reflector_status().alive


def test_a_taken_arena_is_refused(start: Start, cluster: list[str]) -> None:
    """Without --standby a second reflector ends with status 1 and the process id of the first."""
    first = start("pods", *cluster)
    first.until("synced")
    status, error = start("pods", *cluster).end()
    assert status == 1
    assert f"process {first.process.pid}" in error
    assert "--standby" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("podz", "no resource 'podz'"),
        ("deployments.apps", "no resource 'deployments.apps'"),
        ("deployments.v1.apps", "no resource 'deployments.v1.apps'"),
        ("example.com/v1/widgets", "no resource 'example.com/v1/widgets'"),
    ],
)
def test_unknown_resources_end_it(
    start: Start, cluster: list[str], name: str, resource: str, expected: str
) -> None:
    """What the server does not have is status 1, one line, and no arena."""
    status, error = start(resource, *cluster).end()
    assert status == 1
    assert expected in error
    assert error.count("\n") == 1
    with pytest.raises(shmcache.ArenaNotFoundError):
        shmcache.attach(name)


@pytest.mark.parametrize("content", ["{}", "a: [", "apiVersion: v1\nkind: Config\n"])
def test_bad_kubeconfig_is_one_line(start: Start, tmp_path: Path, name: str, content: str) -> None:
    """A file that is no kubeconfig is status 1 and one message that names it."""
    path = tmp_path / "config"
    path.write_text(content)
    status, error = start("pods", "--name", name, "--kubeconfig", str(path)).end()
    assert status == 1
    assert error.startswith(f"shmcache reflect: kubeconfig {path}: ")
    assert "Traceback" not in error


def test_without_any_configuration(start: Start, name: str) -> None:
    """No kubeconfig and no pod around us: the message says where it looked."""
    status, error = start("pods", "--name", name).end()
    assert status == 1
    assert "~/.kube/config" in error
    assert "pod of a cluster" in error


class Unauthorized(BaseHTTPRequestHandler):
    """An API server that does not know us."""

    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "message": "Unauthorized", "code": 401}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_a_server_that_is_down_is_waited_for(start: Start, tmp_path: Path, name: str) -> None:
    """A refused connection is tried again; the bad credential that comes then is status 1."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Unauthorized, bind_and_activate=False) as refusing:
        refusing.daemon_threads = False
        refusing.server_bind()  # and not listening: nobody else gets the port
        url = f"http://127.0.0.1:{refusing.server_address[1]}"
        config = kubeconfig(tmp_path / "config", url)
        command = start("pods", "--kubeconfig", config, "--name", name)
        assert "connection refused" in command.until("waiting")["message"]
        refusing.server_activate()
        thread = threading.Thread(target=refusing.serve_forever, args=(0.01,))
        thread.start()
        try:
            status, error = command.end()
        finally:
            refusing.shutdown()
            thread.join()
    assert status == 1
    assert "401" in error
    assert "renew the token" in error
    assert error.count("\n") == 1


def test_a_signal_while_it_waits_for_the_server(start: Start, tmp_path: Path, name: str) -> None:
    """SIGTERM before there is an arena is status 0 too."""
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{refusing.getsockname()[1]}"
        config = kubeconfig(tmp_path / "config", url)
        command = start("pods", "--kubeconfig", config, "--name", name)
        command.until("waiting")
        assert command.end(signal.SIGTERM) == (0, "")


# --- other sources -------------------------------------------------------------------------------


def manifest(name: str, **fields: object) -> str:
    return json.dumps(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, **fields}
    )


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A folder with one Job and something else."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "a.json").write_text(manifest("a"))
    (folder / "b.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}})
    )
    return folder


def test_a_folder_is_followed(start: Start, jobs: Path, name: str) -> None:
    """--dir fills the arena with the objects of one kind, and a new file arrives."""
    command = start("batch/v1/Job", "--dir", str(jobs), "--name", name, "--capacity", "16MiB")
    assert command.until("synced")["objects"] == 1
    with shmcache.attach(name) as store:
        (jobs / ".c").write_text(manifest("c"))
        (jobs / ".c").rename(jobs / "c.json")
        wait_for(store, lambda: len(store) == 2)
        assert store.list_keys() == ["a", "c"]


def test_an_outage_is_told_once_and_its_end(start: Start, jobs: Path, name: str) -> None:
    """While the source fails there is a warning, and a line when it is back."""
    command = start("Job", "--dir", str(jobs), "--name", name, "--capacity", "16MiB")
    command.until("synced")
    jobs.rename(jobs.parent / "away")
    (jobs.parent / "away" / "d.json").write_text(manifest("d"))  # an event, so that it is noticed
    warning = command.until("log")
    assert warning["level"] == "warning"
    assert (warning["arena"], warning["error"]) == (name, "FileNotFoundError")
    assert str(jobs) in warning["message"]
    (jobs.parent / "away").rename(jobs)
    assert command.until("recovered")["objects"] == 2
    assert [line["event"] for line in command.seen].count("log") == 1


SOURCE = """
import threading
from shmcache import ListResult

class Source:
    def __init__(self, address):
        self.address = address
        self.ended = threading.Event()

    def list(self, options):
        return ListResult([{"metadata": {"name": self.address, "uid": "7"}}], "1")

    def watch(self, options):
        self.ended.wait()
        yield from ()

    def interrupt(self):
        self.ended.set()

def shorter(obj):
    return {"metadata": {"name": obj["metadata"]["name"][:2]}, "had": sorted(obj["metadata"])}

def leave(obj):
    raise SystemExit
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """A distribution with a source, and the variable by which Python finds it."""
    (tmp_path / "a_source.py").write_text(SOURCE)
    info = tmp_path / "a_source-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-source\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shmcache.sources]\nours = a_source:Source\n")
    root = Path(shmcache.__file__).parent.parent
    return {"PYTHONPATH": f"{root}:{tmp_path}"}


def test_an_installed_source_and_a_transform(
    start: Start, installed: dict[str, str], name: str
) -> None:
    """--source gets its options by --set, and --transform sees what --drop has left."""
    command = start(
        *("--source", "ours", "--set", "address=here", "--name", name, "--capacity", "16MiB"),
        *("--drop", "metadata.uid", "--transform", "a_source:shorter"),
        **installed,
    )
    command.until("synced")
    with shmcache.attach(name) as store:
        assert store.list() == [{"metadata": {"name": "he"}, "had": ["name"]}]
    assert command.end(signal.SIGTERM) == (0, "")


def test_a_source_is_made_with_its_options_or_not_at_all(
    start: Start, installed: dict[str, str], name: str
) -> None:
    """A source that refuses its options is wrong usage, in its own words."""
    status, error = start("--source", "ours", "--name", name, **installed).end()
    assert status == 2
    assert "address" in error.splitlines()[-1]


def test_a_reflector_that_dies_ends_the_command(
    start: Start, installed: dict[str, str], name: str
) -> None:
    """What ends the reflector's thread from within ends the process too, with status 1."""
    command = start(
        *("--source", "ours", "--set", "address=here", "--name", name, "--capacity", "16MiB"),
        *("--transform", "a_source:leave"),
        **installed,
    )
    status, error = command.end()
    assert status == 1
    assert "ended by itself" in error


# --- the arena -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [shmcache.Store, shmcache.FIFO])
def test_an_arena_of_another_kind_is_refused(
    start: Start, jobs: Path, name: str, kind: type[shmcache.Store]
) -> None:
    """The message says which kind it is, and the arena is as it was."""
    with kind.create(name, capacity="16MiB") as store:
        store.add({"metadata": {"name": "mine"}})
        status, error = start("Job", "--dir", str(jobs), "--name", name).end()
        assert status == 1
        assert f"--kind {kind.__name__.lower()}" in error
        assert store.list_keys() == ["mine"]


def test_indexes_must_be_the_same(start: Start, jobs: Path, name: str) -> None:
    """An index that this command would not fill is refused, and so is a new one on an arena whose
    reflector would not fill it."""
    arguments = ["Job", "--dir", str(jobs), "--name", name, "--capacity", "16MiB"]
    command = start(*arguments, "--index", "kind=kind")
    command.until("synced")
    status, error = start(*arguments, "--standby").end()
    assert status == 1
    assert "index 'kind', which would not be filled" in error
    indexes = ("--index", "kind=kind", "--index", "owner=a.b")
    status, error = start(*arguments, *indexes, "--standby").end()
    assert status == 1
    assert "no index 'owner'" in error
    with shmcache.Indexer.attach(name) as store:
        assert sorted(store.get_indexers()) == ["kind", "namespace"]


def test_a_removed_arena_ends_it(start: Start, jobs: Path, name: str) -> None:
    """Who removes the arena ends its reflector, so that a supervisor starts it anew."""
    command = start("Job", "--dir", str(jobs), "--name", name, "--capacity", "16MiB")
    command.until("synced")
    shmcache.unlink(name)
    status, error = command.end()
    assert status == 1
    assert f"arena {name!r} was removed" in error


def test_the_capacity_of_an_arena_that_exists_stays(start: Start, jobs: Path, name: str) -> None:
    """A capacity that is not applied is told."""
    with shmcache.Indexer.create(name, capacity="16MiB"):
        arguments = ("Job", "--dir", str(jobs), "--name", name, "--capacity", "32MiB")
        assert f"{16 << 20:,}" in start(*arguments).until("existing")["message"]


def test_the_service_manager_is_told(start: Start, jobs: Path, name: str) -> None:
    """READY=1 comes after the first sync, and STOPPING=1 at the end."""
    with (
        tempfile.TemporaryDirectory() as folder,  # a socket's path is short
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{folder}/notify")
        manager.settimeout(DEADLINE)
        command = start(
            *("Job", "--dir", str(jobs), "--name", name, "--capacity", "16MiB"),
            NOTIFY_SOCKET=f"{folder}/notify",
        )
        assert manager.recv(100) == b"READY=1"
        with shmcache.attach(name) as store:
            assert store.has_synced
        command.process.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        assert command.end() == (0, "")


def test_a_reader_of_the_lines_that_goes_ends_it(start: Start, jobs: Path, name: str) -> None:
    """A closed pipe is status 141, as for other programs, and not a traceback."""
    command = start("Job", "--dir", str(jobs), "--name", name, "--capacity", "16MiB", "-vv")
    command.until("synced")
    assert command.process.stdout is not None
    command.process.stdout.close()
    (jobs / "e.json").write_text("{")
    assert command.process.wait(DEADLINE) == 141
    assert command.process.stderr is not None
    assert command.process.stderr.read() == ""


# --- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "RESOURCE"),
        (["Pods"], "'Pods'"),
        (["pods", "--name", "a/b"], "'a/b'"),
        (["pods", "--capacity", "10x"], "'10x'"),
        (["pods", "--owner", "nobody-of-that-name"], "nobody-of-that-name"),
        (["pods", "--kubeconfig", "/nowhere"], "/nowhere"),
        (["pods", "-l", "a in b"], "--selector"),
        (["pods", "--field-selector", "a"], "--field-selector"),
        (["pods", "--mode", "0666"], "--mode"),
        (["pods", "--drop", "a..b"], "'a..b'"),
        (["pods", "--index", "node"], "'node'"),
        (["pods", "--index", "node=a", "--kind", "store"], "--kind"),
        (["pods", "--transform", "json"], "module:function"),
        (["pods", "--transform", "json:nothing"], "'json:nothing'"),
        (["pods", "--transform", "json:__name__"], "no function"),
        (["pods", "--standby", "--unlink"], "--unlink"),
        (["pods", "--set", "a=b"], "--set"),
        (["--dir", "/"], "kind"),
        (["--dir", "/nowhere", "Job"], "/nowhere"),
        (["--dir", "/", "pods"], "'pods'"),
        (["--dir", "/", "Job", "-l", "a=b"], "--selector"),
        (["--dir", "/", "Job", "--source", "x"], "--source"),
        (["--source", "x"], "--name"),
        (["--source", "x", "pods"], "RESOURCE"),
        (["--source", "x", "-n", "y"], "--namespace"),
        (["--source", "x", "--name", "y", "--set", "1=2"], "'1=2'"),
        (["--source", "none-of-that-name", "--name", "y"], "none-of-that-name"),
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: list[str],
    expected: str,
    server: ApiServer,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What cannot be meant ends with status 2 and a last line that names it."""
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", server.url))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if arguments[:1] == ["pods"] and "--name" not in arguments:
        arguments = [*arguments, "--name", name]
    with pytest.raises(SystemExit) as caught:
        main(["reflect", *arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 4  # the usage, and a selector with its caret


# --- parts ---------------------------------------------------------------------------------------


def test_fields_of_objects() -> None:
    """A path reaches through lists and escaped dots; what is not there is nothing."""
    obj = {"a.b": {"c": [{"d": "x"}, {"d": 7}, {"d": ""}, {"d": None}, {}]}, "on": True}
    _, values = index(r"i=a\.b.c.d")
    assert values(obj) == ["x", "7"]
    assert index("i=on")[1](obj) == ["true"]
    assert index("i=on.off.on")[1](obj) == []
    assert leaving_out([field_path(r"a\.b.c.d"), field_path("no.such")])(obj) == {
        "a.b": {"c": [{}, {}, {}, {}, {}]},
        "on": True,
    }
    assert function("json:dumps") is json.dumps
    assert index("i=json:dumps") == ("i", json.dumps)


def test_the_same_warning_is_shown_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings of one kind are held back for a minute and then counted; other kinds are not, and
    with -v none is."""
    log, now = logging.getLogger("shmcache.reflector"), [0.0]

    def fail(error: Exception) -> list[str]:
        log.warning("%s: %s; next try in %.1f s", "pods", error, now[0])
        return capsys.readouterr().out.splitlines()

    with Log(False, 0, lambda: now[0]) as lines:
        assert len(fail(OSError("refused"))) == 1
        now[0] = 59.0
        assert fail(OSError("refused")) == []
        assert len(fail(shmcache.ApiError(500, "x"))) == 1
        assert len(fail(shmcache.ApiError(503, "x"))) == 1
        now[0] = 60.0
        (line,) = fail(OSError("refused"))
        assert line.endswith(
            "pods: refused; next try in 60.0 s (1 more of this kind since the last)"
        )
        lines.say("synced", "synced: 3 objects")
        lines.say("synced", "synced: 3 objects")
        assert len(capsys.readouterr().out.splitlines()) == 2
        log.info("a detail")
        assert capsys.readouterr().out == ""
    with Log(True, 1):
        (first,) = fail(OSError("refused"))
        assert len(fail(OSError("refused"))) == 1
        assert json.loads(first)["level"] == "warning"
    with contextlib.suppress(ValueError):
        assert fail(OSError("after")) == []
