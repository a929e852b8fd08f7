"""The demo and the example schedule on a real API server, and clean up after themselves."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Program

kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
pytest.importorskip("msgspec", reason="needs the extra shmcache[kubernetes]")

DEADLINE = 180.0
DEMO = (sys.executable, "-m", "shmcache.cli", "demo", "--json", "--nodes=4")
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "scheduler.py"


@pytest.fixture
def core(cluster: Any) -> Iterator[Any]:
    with contextlib.closing(cluster.client()) as client:
        yield kubernetes.client.CoreV1Api(client)


def demo(kubeconfig: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, f"--kubeconfig={kubeconfig}", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def names(listing: Any) -> set[str]:
    return {item.metadata.name for item in listing.items}


def test_demo_schedules_on_a_real_server(core: Any, kubeconfig: str) -> None:
    """Every pod is bound once; foreign pods and nodes stay as they were, ours are gone."""
    namespace = "demo-with-foreign-pods"
    core.create_namespace({"metadata": {"name": namespace}})
    pod = {
        "metadata": {"name": "foreign"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    }
    core.create_namespaced_pod(namespace, pod)
    core.create_node({"metadata": {"name": "foreign-node"}})
    try:
        done = demo(kubeconfig, "--namespace", namespace, "--pods", "40", "--workers", "2")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["pods"] == report["scheduled"] == 40
        assert (report["lost"], report["duplicated"]) == (0, 0)
        assert report["api_server"] == "kubeconfig"
        assert names(core.list_namespaced_pod(namespace)) == {"foreign"}
        assert core.read_namespaced_pod("foreign", namespace).spec.node_name is None
        assert names(core.list_node(label_selector="shmcache-demo")) == set()
        assert "foreign-node" in names(core.list_node())
    finally:
        core.delete_node("foreign-node")
        core.delete_namespaced_pod("foreign", namespace, grace_period_seconds=0)


def test_demo_removes_the_namespace_that_it_made(core: Any, kubeconfig: str) -> None:
    """Without --namespace the run has its own, which is deleted at the end."""
    done = demo(kubeconfig, "--pods", "5", "--workers", "1")
    assert done.returncode == 0, done.stderr
    # Nothing finishes the deletion here, for that takes a controller.
    phases = {
        item.status.phase
        for item in core.list_namespace().items
        if item.metadata.name.startswith("shmcache-demo-")
    }
    assert phases <= {"Terminating"}


def test_example_schedules_only_its_pods(core: Any, kubeconfig: str) -> None:
    """Until Ctrl-C the example binds pods that name its scheduler, and no others."""
    namespace = "example-scheduler"
    core.create_namespace({"metadata": {"name": namespace}})
    status = {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}
    core.create_node({"metadata": {"name": "example-node"}, "status": status})
    for name, scheduler in (("mine", "shmcache"), ("foreign", "default-scheduler")):
        spec = {"schedulerName": scheduler, "containers": [{"name": "c", "image": "busybox"}]}
        core.create_namespaced_pod(namespace, {"metadata": {"name": name}, "spec": spec})
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--kubeconfig", kubeconfig],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while core.read_namespaced_pod("mine", namespace).spec.node_name is None:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)
            assert process.returncode == 0
            assert core.read_namespaced_pod("mine", namespace).spec.node_name == "example-node"
            assert core.read_namespaced_pod("foreign", namespace).spec.node_name is None
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=DEADLINE)
            core.delete_node("example-node")
            for name in ("mine", "foreign"):
                core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)


def test_example_waits_for_room(core: Any, kubeconfig: str, tmp_path: Path) -> None:
    """Pods beyond the room of the nodes wait, and are bound when there is another node."""
    namespace = "example-room"
    core.create_namespace({"metadata": {"name": namespace}})

    def make_node(name: str) -> None:
        status = {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "3"}}
        core.create_node({"metadata": {"name": name}, "status": status})

    def nodes_of_pods() -> list[str]:
        pods = core.list_namespaced_pod(namespace).items
        return sorted(pod.spec.node_name or "" for pod in pods)

    pods = [f"pod-{number}" for number in range(5)]
    spec = {"schedulerName": "shmcache", "containers": [{"name": "c", "image": "busybox"}]}
    options = ("--kubeconfig", kubeconfig, "--workers", "1")
    make_node("first")
    try:
        for name in pods:
            core.create_namespaced_pod(namespace, {"metadata": {"name": name}, "spec": spec})
        with Program(tmp_path / "log", "scheduler.py", *options) as program:
            program.until(lambda: nodes_of_pods() == ["", "", *["first"] * 3], "the node is full")
            make_node("second")
            program.until(
                lambda: nodes_of_pods() == [*["first"] * 3, *["second"] * 2], "all are bound"
            )
            program.ctrl_c()
            assert program.wait() == 0, program.output
            assert "Traceback" not in program.output
    finally:
        for name in pods:
            core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)
        for node in names(core.list_node()) & {"first", "second"}:
            core.delete_node(node)
