"""The objects of the benchmarks: varied pods as an API server returns them, and smaller things.

A pod has about 3.0 kB as msgpack and 3.6 kB as JSON. The same number gives the same pod.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import msgpack

from shmcache.demo._workload import make_pod

__all__ = ["changed", "key_of", "make", "payloads", "pods", "small"]

DIFFERENT = 1_000  # further pods share specs with these, as the replicas of a Deployment do


@functools.cache
def _template(number: int) -> dict[str, Any]:
    """What the demo's Deployment asks for, with what server, scheduler and kubelet add to it."""
    rng = random.Random(-number - 1)
    pod = make_pod(number, f"team-{number % 20}", "bench")
    app = pod["spec"]["containers"][0]["name"]
    started = f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{rng.randint(0, 23):02}:10:07Z"
    pod["spec"]["nodeName"] = f"node-{rng.randint(0, 99):03}"
    pod["metadata"] |= {
        "creationTimestamp": started,
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": f"{app}-{rng.getrandbits(40):010x}",
                "uid": f"{rng.getrandbits(128):032x}",
                "controller": True,
            }
        ],
    }
    pod["status"] = {
        "phase": "Running",
        "hostIP": f"10.0.0.{rng.randint(1, 250)}",
        "podIP": f"10.{rng.randint(1, 9)}.{rng.randint(0, 250)}.{rng.randint(1, 250)}",
        "startTime": started,
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": started}
            for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
        ],
        "containerStatuses": [
            {
                "name": app,
                "containerID": f"containerd://{rng.getrandbits(256):064x}",
                "image": pod["spec"]["containers"][0]["image"],
                "imageID": f"registry.example.com/{app}@sha256:{rng.getrandbits(256):064x}",
                "ready": True,
                "restartCount": rng.randint(0, 3),
                "state": {"running": {"startedAt": started}},
            }
        ],
    }
    return pod


def make(number: int, revision: int = 1) -> dict[str, Any]:
    """Pod `number`, updated until it has that `revision`. Pods share most of what is below their
    metadata: they are not to be changed."""
    pod = dict(_template(number % DIFFERENT))
    pod["metadata"] = pod["metadata"] | {
        "name": f"{pod['metadata']['name'].partition('-')[0]}-{number:06}",
        "uid": f"00000000-0000-4000-8000-{number:012}",
        "resourceVersion": f"{revision:09}",
    }
    if revision > 1:  # its container has been started again
        status = pod["status"]
        *conditions, last = status["conditions"]
        (container,) = status["containerStatuses"]
        pod["status"] = status | {
            "conditions": [
                *conditions,
                last | {"lastTransitionTime": f"2026-12-01T00:00:{revision % 60:02}Z"},
            ],
            "containerStatuses": [
                container | {"restartCount": container["restartCount"] + revision - 1}
            ],
        }
    return pod


def pods(count: int) -> list[dict[str, Any]]:
    """The first `count` pods."""
    return [make(number) for number in range(count)]


def changed(objects: list[dict[str, Any]], every: int, revision: int) -> list[dict[str, Any]]:
    """The same pods, one in `every` at another revision."""
    return [
        make(number, revision) if number % every == 0 else pod for number, pod in enumerate(objects)
    ]


def key_of(pod: dict[str, Any]) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def payloads(objects: list[dict[str, Any]]) -> dict[str, bytes]:
    """The pods as key and msgpack."""
    return {key_of(pod): msgpack.packb(pod) for pod in objects}


def small(number: int) -> dict[str, Any]:
    """An object of some 60 bytes."""
    return {"metadata": {"name": f"item-{number:09}", "namespace": "default"}, "n": number}
