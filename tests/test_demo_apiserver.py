"""The embedded API server answers lists, watches and writes as a Kubernetes server does."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from shmcache.demo.apiserver import ApiServer

DEADLINE = 20.0
PODS = "/api/v1/namespaces/default/pods"


class Api:
    """Raw HTTP to one server over one kept-alive connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host = url.removeprefix("http://")
        self.connection = http.client.HTTPConnection(self.host, timeout=DEADLINE)

    def call(
        self, method: str, path: str, body: Any = None, media_type: str = "application/json"
    ) -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": media_type} if data is not None else {}
        self.connection.request(method, path, data, headers)
        response = self.connection.getresponse()
        assert response.getheader("Content-Type") == "application/json"
        return response.status, json.loads(response.read())

    def get(self, path: str) -> Any:
        status, answer = self.call("GET", path)
        assert status == 200, answer
        return answer

    def create(self, name: str, path: str = PODS, **fields: Any) -> Any:
        metadata = {"name": name, **fields.pop("metadata", {})}
        status, answer = self.call("POST", path, {"metadata": metadata, **fields})
        assert status == 201, answer
        return answer

    def bind(self, name: str, node: str, path: str = PODS) -> tuple[int, Any]:
        return self.call("POST", f"{path}/{name}/binding", {"target": {"name": node}})

    def version(self) -> str:
        version: str = self.get("/api/v1/pods?limit=1")["metadata"]["resourceVersion"]
        return version

    def watch(self, query: str, path: str = "/api/v1/pods") -> Watching:
        return Watching(self.host, f"{path}?watch=1&{query}")


class Watching:
    """A watch on a connection of its own, read event by event."""

    def __init__(self, host: str, target: str) -> None:
        self.connection = http.client.HTTPConnection(host, timeout=DEADLINE)
        self.connection.request("GET", target)
        self.response = self.connection.getresponse()
        self.status = self.response.status

    def next(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.response.readline())
        return event

    def short(self) -> tuple[str, str, str]:
        """The next event as (type, name, resourceVersion)."""
        event = self.next()
        metadata = event["object"]["metadata"]
        return event["type"], metadata["name"], metadata["resourceVersion"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.connection.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[ApiServer]:
    with ApiServer(history=8, bookmark_interval=0.05) as server:
        yield server


@pytest.fixture
def api(shared: ApiServer) -> Iterator[Api]:
    """The module's server, emptied of what a test before left."""
    api = Api(shared.url)
    for plural in ("pods", "nodes"):
        assert api.call("DELETE", f"/api/v1/{plural}")[0] == 200
    yield api
    api.connection.close()


def names(listing: Any) -> list[str]:
    return [item["metadata"]["name"] for item in listing["items"]]


def test_created_object_is_complete_and_readable(api: Api) -> None:
    """A create answers 201 with name, namespace, uid, version and time, and get agrees."""
    created = api.create("web", spec={"containers": []})
    assert created["kind"] == "Pod"
    assert created["apiVersion"] == "v1"
    assert created["metadata"]["namespace"] == "default"
    assert {"uid", "creationTimestamp", "resourceVersion"} <= created["metadata"].keys()
    assert created["status"]["phase"] == "Pending"
    assert api.get(f"{PODS}/web") == created


def test_items_of_a_list_carry_no_kind(api: Api) -> None:
    """As from a real server, a list names its kind once and its items do not."""
    api.create("web")
    listing = api.get("/api/v1/pods")
    assert (listing["kind"], listing["apiVersion"]) == ("PodList", "v1")
    assert listing["items"][0].keys().isdisjoint({"kind", "apiVersion"})


def test_errors_are_status_objects(api: Api) -> None:
    """Every refusal is a Status with the code of the answer and a reason."""
    api.create("web")
    missing = {"metadata": {"name": "gone"}}
    cases = [
        (404, "NotFound", api.call("GET", f"{PODS}/gone")),
        (404, "NotFound", api.call("PUT", f"{PODS}/gone", missing)),
        (404, "NotFound", api.call("DELETE", f"{PODS}/gone")),
        (404, "NotFound", api.call("GET", "/api/v1/widgets")),
        (404, "NotFound", api.call("GET", "/api/v1/pods/web")),
        (404, "NotFound", api.call("GET", "/api/v1/namespaces/default/nodes")),
        (404, "NotFound", api.bind("gone", "n1")),
        (405, "MethodNotAllowed", api.call("PUT", PODS, missing)),
        (409, "AlreadyExists", api.call("POST", PODS, {"metadata": {"name": "web"}})),
        (400, "BadRequest", api.call("POST", PODS, b"{")),
        (400, "BadRequest", api.call("POST", PODS, [])),
        (400, "BadRequest", api.call("POST", PODS, {"metadata": 3})),
        (422, "Invalid", api.call("POST", PODS, {"metadata": {}})),
        (422, "Invalid", api.call("POST", f"{PODS}/web/binding", {})),
        (400, "BadRequest", api.call("GET", "/api/v1/pods?labelSelector=a+in")),
        (400, "BadRequest", api.call("GET", "/api/v1/pods?fieldSelector=spec.color%3Dred")),
        (400, "BadRequest", api.call("GET", "/api/v1/pods?limit=x")),
        (400, "BadRequest", api.call("GET", "/api/v1/pods?continue=%21")),
        (400, "BadRequest", api.call("GET", "/api/v1/pods?watch=1&resourceVersion=x")),
        (504, "Timeout", api.call("GET", "/api/v1/pods?resourceVersion=999999999")),
    ]
    for code, reason, (status, answer) in cases:
        assert (status, answer["code"], answer["reason"]) == (code, code, reason), answer
        assert (answer["kind"], answer["status"]) == ("Status", "Failure")


def test_generate_name_makes_distinct_names(api: Api) -> None:
    """generateName is completed by the server."""
    made = [
        api.call("POST", PODS, {"metadata": {"generateName": "job-"}})[1]["metadata"]["name"]
        for _ in range(2)
    ]
    assert made[0] != made[1]
    assert all(name.startswith("job-") for name in made)


def test_list_filters_by_namespace_label_and_field(api: Api) -> None:
    """Namespace, labelSelector and fieldSelector narrow a list together."""
    api.create("a", metadata={"labels": {"app": "x"}}, spec={"nodeName": "n1"})
    api.create("b", metadata={"labels": {"app": "y"}})
    api.create("c", path="/api/v1/namespaces/other/pods", metadata={"labels": {"app": "x"}})
    assert names(api.get("/api/v1/pods")) == ["a", "b", "c"]
    assert names(api.get(PODS)) == ["a", "b"]
    assert names(api.get("/api/v1/pods?labelSelector=app+in+(x)")) == ["a", "c"]
    assert names(api.get("/api/v1/pods?fieldSelector=spec.nodeName%3D")) == ["b", "c"]
    assert names(api.get("/api/v1/pods?fieldSelector=spec.nodeName!%3D")) == ["a"]
    assert names(api.get(f"{PODS}?labelSelector=app%3Dx&fieldSelector=metadata.name%3Da")) == ["a"]


def test_pages_of_a_list_are_of_one_moment(api: Api) -> None:
    """Continue tokens lead through the state of the first page, whatever is written since."""
    for name in "abcde":
        api.create(name)
    first = api.get("/api/v1/pods?limit=2")
    api.create("aa")
    api.call("DELETE", f"{PODS}/c")
    second = api.get(f"/api/v1/pods?limit=2&continue={first['metadata']['continue']}")
    third = api.get(f"/api/v1/pods?limit=2&continue={second['metadata']['continue']}")
    assert [names(page) for page in (first, second, third)] == [["a", "b"], ["c", "d"], ["e"]]
    assert len({page["metadata"]["resourceVersion"] for page in (first, second, third)}) == 1
    assert "continue" not in third["metadata"]


def test_dead_continue_token_is_410(api: Api) -> None:
    """When the history has passed the version of a token, the list must start again."""
    for name in "ab":
        api.create(name)
    token = api.get("/api/v1/pods?limit=1")["metadata"]["continue"]
    for number in range(10):
        api.create(f"n{number}")
    status, answer = api.call("GET", f"/api/v1/pods?limit=1&continue={token}")
    assert (status, answer["reason"]) == (410, "Expired")


def test_replace_checks_the_version(api: Api) -> None:
    """A PUT with another resourceVersion is a Conflict, one with the right or none goes in."""
    old = api.create("web", metadata={"labels": {"v": "1"}})
    old["metadata"]["labels"] = {"v": "2"}
    status, new = api.call("PUT", f"{PODS}/web", old)
    assert (status, new["metadata"]["labels"]) == (200, {"v": "2"})
    assert new["metadata"]["uid"] == old["metadata"]["uid"]
    status, answer = api.call("PUT", f"{PODS}/web", old)
    assert (status, answer["reason"]) == (409, "Conflict")


def test_write_that_changes_nothing_makes_no_version(api: Api) -> None:
    """A PUT of the present state keeps the resourceVersion and wakes no watcher."""
    old = api.create("web")
    _, new = api.call("PUT", f"{PODS}/web", old)
    assert new == old


def test_merge_patch_merges_and_removes(api: Api) -> None:
    """A merge patch replaces what it names, removes what it sets to null, keeps the rest."""
    api.create("web", metadata={"labels": {"a": "1", "b": "2"}}, spec={"x": [1, 2]})
    patch = {"metadata": {"labels": {"a": None, "c": "3"}}, "spec": {"x": [3]}}
    status, new = api.call("PATCH", f"{PODS}/web", patch, "application/merge-patch+json")
    assert (status, new["metadata"]["labels"]) == (200, {"b": "2", "c": "3"})
    assert new["spec"] == {"x": [3]}
    status, _ = api.call("PATCH", f"{PODS}/web", patch, "application/json-patch+json")
    assert status == 415


def test_pod_is_bound_once(api: Api) -> None:
    """A binding sets the node and a condition; a second one is a Conflict naming the node."""
    api.create("web", spec={"containers": []})
    status, answer = api.bind("web", "n1")
    assert (status, answer["status"]) == (201, "Success")
    pod = api.get(f"{PODS}/web")
    assert pod["spec"] == {"containers": [], "nodeName": "n1"}
    assert pod["status"]["conditions"] == [{"type": "PodScheduled", "status": "True"}]
    status, answer = api.bind("web", "n2")
    assert (status, answer["reason"]) == (409, "Conflict")
    assert '"n1"' in answer["message"]


def test_watch_replays_from_a_version_and_goes_on(api: Api) -> None:
    """A watch sends what came after its resourceVersion, in order, and then what comes."""
    api.create("before")
    version = api.version()
    made = api.create("a")
    with api.watch(f"resourceVersion={version}") as watch:
        assert watch.short() == ("ADDED", "a", made["metadata"]["resourceVersion"])
        api.call("PATCH", f"{PODS}/a", {"spec": {"x": 1}}, "application/merge-patch+json")
        event = watch.next()
        assert (event["type"], event["object"]["spec"]) == ("MODIFIED", {"x": 1})
        assert (event["object"]["kind"], event["object"]["apiVersion"]) == ("Pod", "v1")
        api.call("DELETE", f"{PODS}/a")
        event = watch.next()
        assert event["type"] == "DELETED"
        assert event["object"]["spec"] == {"x": 1}
        assert event["object"]["metadata"]["resourceVersion"] == api.version()


@pytest.mark.parametrize("version", ["", "0"])
def test_watch_without_version_begins_with_the_state(api: Api, version: str) -> None:
    """No version (or 0) means: everything as ADDED, then the changes."""
    first, second = api.create("a"), api.create("b")
    with api.watch(f"resourceVersion={version}") as watch:
        assert watch.short() == ("ADDED", "a", first["metadata"]["resourceVersion"])
        assert watch.short() == ("ADDED", "b", second["metadata"]["resourceVersion"])
        third = api.create("c")
        assert watch.short() == ("ADDED", "c", third["metadata"]["resourceVersion"])


def test_binding_moves_a_pod_between_selectors(api: Api) -> None:
    """Leaving a field selector is DELETED with the old state and new version, entering ADDED."""
    version = api.version()
    created = api.create("web", spec={"containers": []})["metadata"]["resourceVersion"]
    unbound = api.watch(f"resourceVersion={version}&fieldSelector=spec.nodeName%3D")
    bound = api.watch(f"resourceVersion={version}&fieldSelector=spec.nodeName!%3D")
    with unbound, bound:
        assert unbound.short() == ("ADDED", "web", created)
        api.bind("web", "n1")
        now = api.version()
        left = unbound.next()
        assert left["type"] == "DELETED"
        assert "nodeName" not in left["object"]["spec"]
        assert left["object"]["metadata"]["resourceVersion"] == now
        assert bound.short() == ("ADDED", "web", now)


def test_label_change_and_namespace_decide_what_a_watch_sees(api: Api) -> None:
    """An object is ADDED when it comes to match the labels; other namespaces stay unseen."""
    query = f"resourceVersion={api.version()}&labelSelector=app%3Dx"
    with api.watch(query, path=PODS) as watch:
        api.create("elsewhere", "/api/v1/namespaces/other/pods", metadata={"labels": {"app": "x"}})
        api.create("web")
        patch = {"metadata": {"labels": {"app": "x"}}}
        api.call("PATCH", f"{PODS}/web", patch, "application/merge-patch+json")
        assert watch.short() == ("ADDED", "web", api.version())


def test_watch_from_a_version_that_left_the_history_is_an_error_event(api: Api) -> None:
    """Too old a version gives 200, one ERROR event with a 410 Status, and the end."""
    version = api.version()
    for number in range(10):
        api.create(f"n{number}")
    with api.watch(f"resourceVersion={version}") as watch:
        assert watch.status == 200
        event = watch.next()
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        assert event["object"]["reason"] == "Expired"
        assert watch.response.read() == b""


def test_bookmarks_carry_the_version_of_the_server(api: Api) -> None:
    """An idle watch that asked for bookmarks learns of versions that did not concern it."""
    query = f"resourceVersion={api.version()}&allowWatchBookmarks=true"
    with api.watch(query, path="/api/v1/nodes") as watch:
        api.create("web")
        version = api.version()
        deadline = time.monotonic() + DEADLINE
        while True:
            event = watch.next()
            assert event["type"] == "BOOKMARK"
            assert event["object"]["kind"] == "Node"
            if event["object"]["metadata"]["resourceVersion"] == version:
                break
            assert time.monotonic() < deadline


def test_initial_events_end_with_a_bookmark(api: Api) -> None:
    """Initial events are what is there, then an annotated bookmark, then the changes."""
    api.create("a")
    api.create("b")
    version = api.version()
    query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    for start in ("", "0", version):
        with api.watch(f"{query}&resourceVersion={start}") as watch:
            initial = [watch.next() for _ in range(2)]
            assert {event["type"] for event in initial} == {"ADDED"}
            assert {event["object"]["metadata"]["name"] for event in initial} == {"a", "b"}
            end = watch.next()
            assert (end["type"], end["object"]["metadata"]) == (
                "BOOKMARK",
                {"annotations": {"k8s.io/initial-events-end": "true"}, "resourceVersion": version},
            )
    with api.watch(f"{query}&resourceVersion=") as watch:
        for _ in range(3):
            watch.next()
        api.create("c")
        while (event := watch.next())["type"] == "BOOKMARK":
            assert "annotations" not in event["object"]["metadata"]
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "c")


def test_watch_ends_after_its_timeout_and_the_connection_lives(api: Api) -> None:
    """timeoutSeconds ends the stream in good order, after which the connection serves on."""
    with api.watch(f"resourceVersion={api.version()}&timeoutSeconds=1") as watch:
        assert watch.response.read() == b""
        watch.connection.request("GET", "/healthz")
        assert watch.connection.getresponse().read() == b'"ok"'


def test_requests_of_one_connection_are_served_in_order(shared: ApiServer) -> None:
    """Pipelined requests, and one that arrives byte by byte, each get their answer."""
    host, port = shared.url.removeprefix("http://").split(":")
    request = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(request * 2)
        for byte in request.replace(b"Host", b"Connection: close\r\nHost"):
            connection.sendall(bytes([byte]))
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"x" * 70_000, 431),
    ],
)
def test_unreadable_request_is_refused(
    shared: ApiServer, request_bytes: bytes, status: int
) -> None:
    """A request that cannot be read gets its error, and the connection is closed."""
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(request_bytes)
        with connection.makefile("rb") as stream:
            assert stream.readline().split()[1] == str(status).encode()
            stream.read()


def test_official_client_creates_lists_watches_and_binds(api: Api) -> None:
    """The official client works unchanged against the embedded server."""
    kubernetes = pytest.importorskip("kubernetes")
    configuration = kubernetes.client.Configuration()
    configuration.host = api.url
    with kubernetes.client.ApiClient(configuration) as client:
        core = kubernetes.client.CoreV1Api(client)
        pod = {
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "c", "image": "busybox"}]},
        }
        created = core.create_namespaced_pod("default", pod)
        binding = {"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}}
        core.create_namespaced_pod_binding("web", "default", binding, _preload_content=False).read()
        listing = core.list_pod_for_all_namespaces(field_selector="spec.nodeName=n1", limit=10)
        assert [item.metadata.name for item in listing.items] == ["web"]
        with pytest.raises(kubernetes.client.ApiException) as caught:
            core.read_namespaced_pod("gone", "default")
        assert caught.value.status == 404
        watch = kubernetes.watch.Watch()
        stream = watch.stream(
            core.list_namespaced_pod,
            "default",
            resource_version=created.metadata.resource_version,
            timeout_seconds=20,
        )
        event = next(iter(stream))
        stream.close()
        assert (event["type"], event["object"].spec.node_name) == ("MODIFIED", "n1")


def ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_server_ends_with_its_context() -> None:
    """After the with block no process is left; stop() twice is fine."""
    with ApiServer() as server:
        pid = server.pid
        assert pid is not None
        assert not ended(pid)
    server.stop()
    assert server.pid is None
    assert ended(pid)


def test_server_ends_when_its_parent_is_killed() -> None:
    """A SIGKILL of the parent leaves no orphan, for the pipe between them closes."""
    script = (
        "from shmcache.demo.apiserver import ApiServer\n"
        "print(ApiServer().start().pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not ended(pid)
        parent.kill()
        parent.wait()
        wait_until(lambda: ended(pid))


def test_standalone_server_ends_on_sigterm() -> None:
    """Started from a shell it prints its URL, and SIGTERM ends it without an error."""
    command = [sys.executable, "-m", "shmcache.demo.apiserver", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(DEADLINE) == 0


def test_port_in_use_is_reported() -> None:
    """If the process cannot listen, start() raises instead of waiting."""
    with ApiServer() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(RuntimeError, match="did not start"):
            ApiServer(port=port).start()
