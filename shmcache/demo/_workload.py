"""The load of the demo: nodes, and pods as an ordinary Deployment would make them.

May import: ``_errors``, ``demo._api``, ``demo._messages``.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shmcache._errors import ApiError
from shmcache.demo._api import Api, Endpoint
from shmcache.demo._messages import Message, Sender

__all__ = [
    "CREATED_ANNOTATION",
    "RUN_LABEL",
    "Resources",
    "generate",
    "make_nodes",
    "make_pod",
    "requested",
]

RUN_LABEL = "shmcache-demo"
"""Label that every object of one run carries, with the run's name as value."""

CREATED_ANNOTATION = "shmcache-demo/created-ns"
"""CLOCK_MONOTONIC in nanoseconds when the pod was sent to the server: one machine, one clock."""

_GIVE_UP_SECONDS = 30.0
"""A server may refuse for a while, such as pods before their namespace is ready."""

_SUFFIXES = {
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


@dataclass(frozen=True, slots=True)
class Resources:
    """What a pod asks for or a node has: CPU in millicores, memory in bytes, and pods."""

    cpu: int
    memory: int
    pods: int

    @classmethod
    def parse(cls, quantities: Mapping[str, str], pods: int) -> Resources:
        """Read the Kubernetes quantities of ``cpu`` and ``memory``; missing ones are 0."""
        return cls(
            math.ceil(_quantity(quantities.get("cpu", "0")) * 1000),
            math.ceil(_quantity(quantities.get("memory", "0"))),
            pods,
        )

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpu + other.cpu, self.memory + other.memory, self.pods + other.pods)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpu - other.cpu, self.memory - other.memory, self.pods - other.pods)

    def fits(self, room: Resources) -> bool:
        """Return whether this much fits into ``room``."""
        return self.cpu <= room.cpu and self.memory <= room.memory and self.pods <= room.pods


def _quantity(text: str) -> float:
    number = text.rstrip("mkMGTi")
    return float(number) * _SUFFIXES.get(text[len(number) :], 1.0)


def requested(pod: Mapping[str, Any]) -> Resources:
    """Return the sum of the requests of a pod's containers."""
    total = Resources(0, 0, 1)
    for container in pod["spec"]["containers"]:
        total += Resources.parse(container.get("resources", {}).get("requests", {}), 0)
    return total


def make_nodes(count: int, run: str, pods: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make ``count`` equal nodes that together have room for ``pods``, with a third to spare."""
    requests = [requested(pod) for pod in pods]
    largest = max(request.cpu for request in requests), max(r.memory for r in requests)
    # The largest pod on top, so that a few nodes or pods leave no gap too small for the last.
    allocatable = {
        "cpu": f"{largest[0] + sum(r.cpu for r in requests) * 4 // (3 * count)}m",
        "memory": f"{(largest[1] + sum(r.memory for r in requests) * 4 // (3 * count)) >> 20}Mi",
        "pods": str(1 + len(requests) * 4 // (3 * count)),
    }
    return [_make_node(f"{run}-{number:05d}", run, allocatable) for number in range(count)]


def _make_node(name: str, run: str, allocatable: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                RUN_LABEL: run,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
            },
        },
        # The nodes are not real: in a real cluster nothing else may come to lie on them.
        "spec": {"taints": [{"key": RUN_LABEL, "effect": "NoSchedule"}]},
        "status": {
            "capacity": allocatable,
            "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": "True", "reason": "ShmcacheDemo"}],
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "containerd://1.7.0",
                "kernelVersion": "6.1.0",
                "kubeProxyVersion": "v1.20.2",
                "kubeletVersion": "v1.20.2",
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 12",
                "systemUUID": "",
            },
        },
    }


def make_pod(number: int, namespace: str, run: str) -> dict[str, Any]:
    """Make pod ``number`` of a run: always the same one, about 2.8 kB as JSON."""
    rng = random.Random(number)
    app = rng.choice(("web", "api", "worker", "cache", "ingest", "billing", "search"))
    team = rng.choice(("storefront", "platform", "payments", "data"))
    version = f"{rng.randint(1, 4)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}"
    cpu, memory = rng.choice((50, 100, 100, 250, 500)), rng.choice((64, 128, 128, 256, 512))
    labels = {
        RUN_LABEL: run,
        "app.kubernetes.io/name": app,
        "app.kubernetes.io/instance": f"{app}-{team}",
        "app.kubernetes.io/version": version,
        "app.kubernetes.io/managed-by": "Helm",
        "pod-template-hash": f"{rng.getrandbits(40):010x}",
        "team": team,
    }
    probe = {"initialDelaySeconds": 5, "periodSeconds": 10, "timeoutSeconds": 2}
    env = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "DATABASE_URL", "value": f"postgres://{app}@db.{team}.svc:5432/{app}"},
        *(
            {"name": f"FEATURE_{index:02d}", "value": rng.choice(("enabled", "disabled", "canary"))}
            for index in range(rng.randint(4, 12))
        ),
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{app}-{number:06d}",
            "namespace": namespace,
            "labels": labels,
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "9090",
                "checksum/config": f"{rng.getrandbits(256):064x}",
            },
        },
        "spec": {
            "schedulerName": RUN_LABEL,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001},
            "containers": [
                {
                    "name": app,
                    "image": f"registry.example.com/{team}/{app}:{version}",
                    "imagePullPolicy": "IfNotPresent",
                    "args": [f"--service={app}", "--listen=:8080", "--log-format=json"],
                    "ports": [
                        {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                        {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
                    ],
                    "env": env,
                    "resources": {
                        "requests": {"cpu": f"{cpu}m", "memory": f"{memory}Mi"},
                        "limits": {"cpu": f"{2 * cpu}m", "memory": f"{2 * memory}Mi"},
                    },
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, **probe},
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, **probe},
                    "volumeMounts": [
                        {"name": "config", "mountPath": f"/etc/{app}", "readOnly": True},
                        {"name": "scratch", "mountPath": "/tmp"},
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
            "volumes": [
                {"name": "config", "configMap": {"name": f"{app}-config", "optional": True}},
                {"name": "scratch", "emptyDir": {"sizeLimit": "256Mi"}},
            ],
            "affinity": {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 100,
                            "podAffinityTerm": {
                                "labelSelector": {
                                    "matchLabels": {"app.kubernetes.io/instance": f"{app}-{team}"}
                                },
                                "topologyKey": "kubernetes.io/hostname",
                            },
                        }
                    ]
                }
            },
            "tolerations": [{"key": RUN_LABEL, "operator": "Exists", "effect": "NoSchedule"}],
        },
    }


def generate(
    endpoint: Endpoint, namespace: str, run: str, pods: int, nodes: int, sender: Sender
) -> None:
    """Create the nodes, then the pods: the main function of the generator process.

    It may be started again after a failure: what exists already is left as it is.
    """
    api = endpoint.connect()
    load = [make_pod(number, namespace, run) for number in range(pods)]
    for node in make_nodes(nodes, run, load):
        _create(api, "/api/v1/nodes", node)
    sender.send(Message("started"))
    for pod in load:
        pod["metadata"]["annotations"][CREATED_ANNOTATION] = str(time.monotonic_ns())
        _create(api, f"/api/v1/namespaces/{namespace}/pods", pod)
        sender.send(Message("created"))


def _create(api: Api, path: str, body: dict[str, Any]) -> None:
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while True:
        try:
            api.post(path, body)
        except ApiError as error:
            if error.status == 409:
                return
            if error.status in (400, 401, 404, 422) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return
