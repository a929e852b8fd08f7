"""A real etcd and kube-apiserver for the tests in this folder.

They are started from the folder that the variable KUBEBUILDER_ASSETS names (as controller-
runtime's envtest does), on free ports of loopback, with all their files in a temporary folder,
once per test process. Without the programs the tests are skipped, and say why.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")

STARTUP_DEADLINE = 120.0
POLL = 0.05


def hold_port() -> socket.socket:
    """A port of loopback that nobody else is given while this is open.

    It is bound and does not listen: that a server with SO_REUSEADDR may, as those in Go are.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def wait_until(holds: Callable[[], bool], what: str, deadline: float) -> None:
    """Ask again and again until it holds; nobody can be waited for in another program."""
    end = time.monotonic() + deadline
    while not holds():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {deadline:g} s")
        time.sleep(POLL)


class Cluster:
    """An API server over its etcd. There are no controllers and no nodes."""

    TOKEN = "tok"

    def __init__(self, assets: Path, folder: Path) -> None:
        self._assets, self._folder = assets, folder
        self._held = [hold_port() for _ in range(3)]
        ports = [held.getsockname()[1] for held in self._held]
        self._etcd_port, self._etcd_peer_port, self._port = ports
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.host = f"https://127.0.0.1:{self._port}"
        (folder / "tokens.csv").write_text(f'{self.TOKEN},admin,1,"system:masters"\n')
        subprocess.run(
            ["openssl", "genrsa", "-out", str(folder / "sa.key"), "2048"],
            check=True,
            capture_output=True,
        )

    # -- processes

    def start_etcd(self) -> None:
        url, peer_url = (f"http://127.0.0.1:{p}" for p in (self._etcd_port, self._etcd_peer_port))
        self._start(
            "etcd",
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
        )
        self._wait_for("etcd", lambda: bool(self.etcd("maintenance/status")))

    def start_api_server(self) -> None:
        key = self._folder / "sa.key"
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self._folder / 'certs'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=AlwaysAllow",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
        )
        self._wait_for("kube-apiserver", self._is_ready)

    def kill_api_server(self) -> None:
        """SIGKILL, in the midst of whatever it does."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        for held in self._held:
            held.close()

    def _start(self, program: str, *arguments: str) -> None:
        with open(self._folder / f"{program}.log", "ab") as log:
            self._processes[program] = subprocess.Popen(
                [self._assets / program, *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_for(self, program: str, answers: Callable[[], bool]) -> None:
        def holds() -> bool:
            if self._processes[program].poll() is not None:
                log = (self._folder / f"{program}.log").read_text(errors="replace")
                pytest.fail(f"{program} ended:\n{log[-2000:]}")
            try:
                return answers()
            except (OSError, kubernetes.client.ApiException):
                return False

        wait_until(holds, f"{program} answers", STARTUP_DEADLINE)

    def _is_ready(self) -> bool:
        if not (self._folder / "certs" / "apiserver.crt").exists():
            return False
        with contextlib.closing(self.client()) as client:
            pool = client.rest_client.pool_manager
            try:
                ready = pool.request(
                    "GET", f"{self.host}/readyz", headers=self._headers, retries=False
                )
            except OSError:
                return False
            except kubernetes.client.rest.urllib3.exceptions.HTTPError:
                return False
            if ready.status != 200:
                return False
            # The namespace is made by the server itself, a little after it is ready.
            api = kubernetes.client.CoreV1Api(client)
            return bool(api.read_namespace("default"))

    # -- access

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.TOKEN}"}

    def client(self) -> Any:
        """A new ``ApiClient`` for the server, that checks its certificate."""
        configuration = kubernetes.client.Configuration(host=self.host)
        configuration.api_key = {"authorization": f"Bearer {self.TOKEN}"}
        configuration.ssl_ca_cert = str(self._folder / "certs" / "apiserver.crt")
        return kubernetes.client.ApiClient(configuration)

    def etcd(self, call: str, **arguments: object) -> Any:
        """Call etcd past the API server, through its JSON gateway."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._etcd_port}/v3/{call}", json.dumps(arguments).encode()
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def delete_in_etcd(self, key: str) -> None:
        encoded = base64.b64encode(key.encode()).decode()
        deleted = self.etcd("kv/deleterange", key=encoded)["deleted"]
        assert deleted == "1", key

    def compact(self) -> None:
        """Forget the history of all objects; only what they are now is left."""
        revision = self.etcd("maintenance/status")["header"]["revision"]
        self.etcd("kv/compaction", revision=revision, physical=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running API server, one per test process."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.skip("needs KUBEBUILDER_ASSETS: the folder of etcd and kube-apiserver")
    missing = [name for name in ("etcd", "kube-apiserver") if not (Path(assets) / name).exists()]
    if missing:
        pytest.skip(f"KUBEBUILDER_ASSETS={assets} has no {' and no '.join(missing)}")
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make the key of the API server's service accounts")
    running = Cluster(Path(assets), tmp_path_factory.mktemp("cluster"))
    try:
        running.start_etcd()
        running.start_api_server()
        yield running
    finally:
        running.stop()


@pytest.fixture
def kubeconfig(cluster: Cluster, tmp_path: Path) -> str:
    """A file that names the cluster, as kubectl would use it."""
    with contextlib.closing(cluster.client()) as client:
        authority = client.configuration.ssl_ca_cert
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": cluster.host, "certificate-authority": authority},
            }
        ],
        "users": [{"name": "test", "user": {"token": cluster.TOKEN}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    return str(path)


class Pods:
    """The pods of one namespace, as another client of the API server handles them."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._api = kubernetes.client.CoreV1Api(client)
        self.client = client
        self.namespace = namespace
        self._api.create_namespace({"metadata": {"name": namespace}})

    def create(self, *names: str) -> None:
        for name in names:
            spec = {"containers": [{"name": "main", "image": "busybox"}]}
            body = {"metadata": {"name": name, "labels": {"app": "web"}}, "spec": spec}
            self._api.create_namespaced_pod(self.namespace, body)

    def label(self, name: str, value: str) -> None:
        body = {"metadata": {"labels": {"app": value}}}
        self._api.patch_namespaced_pod(name, self.namespace, body)

    def delete(self, *names: str) -> None:
        for name in names:
            self._api.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)

    def by_key(self) -> dict[str, Any]:
        """What the server holds, decoded by the standard library, as a watch would show it."""
        response = self._api.list_namespaced_pod(self.namespace, _preload_content=False)
        items = json.loads(response.data)["items"]
        return {
            f"{self.namespace}/{item['metadata']['name']}": {
                "kind": "Pod",
                "apiVersion": "v1",
                **item,
            }
            for item in items
        }


@pytest.fixture
def pods(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Pods]:
    """An empty namespace of the test's own."""
    name = request.node.name.replace("_", "-").lower()
    with contextlib.closing(cluster.client()) as client:
        yield Pods(client, name[:63])


@pytest.fixture
def make_store() -> Iterator[Callable[[], Any]]:
    """Makes stores in shared memory, and removes them."""
    from shmcache import Store

    made: list[Any] = []

    def make() -> Any:
        made.append(Store.create(None, capacity="64MiB"))
        return made[-1]

    yield make
    for store in made:
        store.unlink()
        store.close()


@pytest.fixture
def eventually_equal() -> Callable[[Any, Pods], None]:
    """Waits until the store equals what the server lists, object by object."""

    def difference(store: Any, pods: Pods) -> Sequence[str]:
        wanted = pods.by_key()
        found = {key: store.get_by_key(key) for key in store.list_keys()}
        return [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]

    def check(store: Any, pods: Pods) -> None:
        wait_until(lambda: not difference(store, pods), "the store equals the server", 60.0)

    return check
