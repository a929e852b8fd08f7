"""`shmcache reflect` against a real API server: names of resources, credentials, a restart."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from tests.running import DEADLINE, Reflect, reflect_commands

kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
pytest.importorskip("msgspec", reason="needs the extra shmcache[kubernetes]")

pytestmark = pytest.mark.xdist_group("kube")


@pytest.fixture
def reflect(kubeconfig: str, name: str, tmp_path: Path) -> Iterator[Callable[..., Reflect]]:
    """Starts the command for the test's arena, and kills it after the test."""
    with reflect_commands(tmp_path) as start:

        def begin(*arguments: str, config: str = kubeconfig) -> Reflect:
            arena = ("--name", name, "--capacity", "32MiB")
            return start("--kubeconfig", config, *arena, *arguments)

        yield begin


def test_names_of_resources(
    reflect: Callable[..., Reflect], cluster: Any, pods: Any, name: str
) -> None:
    """What kubectl calls deployments.apps is found by asking the server for the version."""
    container = {"name": "main", "image": "busybox"}
    labels = {"matchLabels": {"app": "web"}}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}
    kubernetes.client.AppsV1Api(pods.client).create_namespaced_deployment(
        pods.namespace,
        {"metadata": {"name": "web"}, "spec": {"selector": labels, "template": template}},
    )
    for resource in ("deployments.apps", "deployments.v1.apps", "apps/v1/deployments"):
        command = reflect(resource, "-n", pods.namespace, "--unlink")
        assert command.until("synced")["objects"] == 1
        with shmcache.attach(name) as store:
            deployment = store[f"{pods.namespace}/web"]
        assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
        assert "managedFields" not in deployment["metadata"]
        assert command.end(signal.SIGTERM) == (0, "")


def test_it_follows_over_a_restart_of_the_server(
    reflect: Callable[..., Reflect], cluster: Any, pods: Any, name: str
) -> None:
    """While the server is away the arena stays, then it is followed again; SIGTERM is status 0."""
    pods.create("before")
    command = reflect("pods", "-n", pods.namespace, "--managed-fields")
    command.until("synced")
    cluster.kill_api_server()
    assert command.until("log")["level"] == "warning"
    with shmcache.attach(name) as store:
        assert store.list_keys() == [f"{pods.namespace}/before"]
        cluster.start_api_server()
        command.until("recovered")
        pods.create("after")
        wanted = pods.by_key()
        for _ in range(int(DEADLINE)):
            version = store.version
            if {key: store[key] for key in store} == wanted:
                break
            store.wait_for_change(version, timeout=1.0)
        assert {key: store[key] for key in store} == wanted
    assert command.end(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["podz"], "no resource 'podz'"),
        (["widgets.example.com"], "no resource 'widgets.example.com'"),
        (["nodes", "-n", "default"], "without --namespace"),
        (["pods", "--field-selector", "spec.priority=1"], "spec.priority"),
    ],
)
def test_what_the_server_refuses_ends_it(
    reflect: Callable[..., Reflect], cluster: Any, arguments: list[str], expected: str
) -> None:
    """Status 1, and one line that says what the server said and what to do."""
    status, error = reflect(*arguments).end()
    assert status == 1
    assert expected in error
    assert error.count("\n") == 1


def test_a_bad_credential_ends_it(
    reflect: Callable[..., Reflect], cluster: Any, kubeconfig: str, tmp_path: Path
) -> None:
    """A token that the server does not know is status 1, and the message says what to renew."""
    config = json.loads(Path(kubeconfig).read_text())
    config["users"][0]["user"]["token"] = "stale"
    path = tmp_path / "stale"
    path.write_text(json.dumps(config))
    for resource in ("pods", "deployments.apps"):
        status, error = reflect(resource, config=str(path)).end()
        assert status == 1
        assert "401" in error
        assert "renew the token" in error
