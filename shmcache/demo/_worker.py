"""A scheduler worker: pops pods, chooses nodes, binds. Any number of them share one queue.

May import: the public surface, ``demo._api``, ``demo._messages``, ``demo._mirror``,
``demo._workload``.
"""

from __future__ import annotations

import multiprocessing
import queue
import random
import time
from collections.abc import Mapping
from typing import Any

from shmcache import FIFO, ApiError, Store, meta_namespace_key_func
from shmcache.demo._api import Api, Endpoint
from shmcache.demo._messages import Message, Sender
from shmcache.demo._mirror import Arenas
from shmcache.demo._workload import CREATED_ANNOTATION, Resources, requested

__all__ = ["NodeRoom", "work"]

_POP_SECONDS = 1.0
"""How long a worker waits for a pod before it looks whether its supervisor still lives."""

_REFRESH_SECONDS = 0.05
"""How old a worker lets its sums become while pods still fit. A shorter time costs CPU and
gains little: the watch itself is milliseconds behind."""


class NodeRoom:
    """The room that is left on each node, as one worker sees it.

    That is what the node offers, less the bound pods in the Store, less the pods that this
    worker has *assumed*: bound itself, and not seen in the Store yet. Two workers may still
    give the last room of one node away at the same time, as two schedulers may.
    """

    def __init__(self, nodes: Store, bound: Store) -> None:
        self._nodes = nodes
        self._bound = bound
        self._versions = (-1, -1)
        self._refreshed = 0.0
        self._allocatable: dict[str, Resources] = {}
        self._names: list[str] = []
        self._used: dict[str, Resources] = {}
        self._placed: dict[str, tuple[str, Resources]] = {}
        self._assumed: dict[str, tuple[str, Resources]] = {}

    def choose(self, pod: Mapping[str, Any]) -> str | None:
        """Return a node that the pod fits on, None if there is none now.

        The emptier of two nodes taken at random balances nearly as well as the emptiest of
        all, and costs the same for ten nodes as for ten thousand.
        """
        if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._refresh()
        wanted = requested(pod)
        sample = random.sample(self._names, min(2, len(self._names)))
        fitting = [name for name in sample if wanted.fits(self._room(name))]
        if fitting:
            return max(fitting, key=lambda name: self._room(name).cpu)
        self._refresh()
        return next((name for name in self._names if wanted.fits(self._room(name))), None)

    def assume(self, pod: Mapping[str, Any], node: str) -> None:
        """Count the pod as bound to ``node`` until the Store shows it."""
        key = meta_namespace_key_func(pod)
        self._assumed[key] = node, requested(pod)
        self._use(self._assumed[key])

    def forget(self, pod: Mapping[str, Any]) -> None:
        """Take an assumption back: the binding failed."""
        assumed = self._assumed.pop(meta_namespace_key_func(pod), None)
        if assumed is not None:
            self._free(assumed)

    def wait_for_change(self, timeout: float) -> None:
        """Sleep until a node or a bound pod has changed, at most ``timeout`` seconds."""
        self._bound.wait_for_change(self._versions[1], timeout=timeout)

    def _room(self, name: str) -> Resources:
        used = self._used.get(name)
        return self._allocatable[name] - used if used else self._allocatable[name]

    def _refresh(self) -> None:
        self._refreshed = time.monotonic()
        versions = self._nodes.version, self._bound.version
        if versions[0] != self._versions[0]:
            self._allocatable = {
                node["metadata"]["name"]: _allocatable(node) for node in self._nodes.list()
            }
            self._names = list(self._allocatable)
        if versions[1] != self._versions[1]:
            keys: set[str] = set(self._bound.list_keys())
            for key in self._placed.keys() - keys:
                self._free(self._placed.pop(key))
            for key in keys - self._placed.keys():
                pod = self._bound.get_by_key(key)
                if pod is not None:
                    assumed = self._assumed.pop(key, None)
                    if assumed is not None:
                        self._free(assumed)
                    self._placed[key] = pod["spec"]["nodeName"], requested(pod)
                    self._use(self._placed[key])
        self._versions = versions

    def _use(self, placement: tuple[str, Resources]) -> None:
        node, resources = placement
        used = self._used.get(node)
        self._used[node] = used + resources if used else resources

    def _free(self, placement: tuple[str, Resources]) -> None:
        node, resources = placement
        self._used[node] -= resources


def _allocatable(node: Mapping[str, Any]) -> Resources:
    quantities = node["status"]["allocatable"]
    return Resources.parse(quantities, int(quantities["pods"]))


def work(endpoint: Endpoint, arenas: Arenas, sender: Sender) -> None:
    """Bind pods until the supervisor ends this process, or is gone: a worker's main."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    api = endpoint.connect()
    with (
        Store.attach(arenas.nodes) as nodes,
        Store.attach(arenas.bound) as bound,
        FIFO.attach(arenas.queue) as pods,
    ):
        room = NodeRoom(nodes, bound)
        sender.send(Message("ready"))
        while supervisor.is_alive():
            try:
                pod = pods.pop(timeout=_POP_SECONDS)
            except queue.Empty:
                continue
            kind = _schedule(api, room, pod)
            key = meta_namespace_key_func(pod)
            latency = 0
            if kind == "bound":
                created = pod["metadata"].get("annotations", {}).get(CREATED_ANNOTATION, "0")
                latency = time.monotonic_ns() - int(created)
            elif kind == "requeued":
                pods.add_if_not_present(pod)
            sender.send(Message(kind, key, latency))


def _schedule(api: Api, room: NodeRoom, pod: dict[str, Any]) -> str:
    """Bind one pod and return what came of it, as the kind of the message to send."""
    node = room.choose(pod)
    if node is None:
        room.wait_for_change(timeout=_POP_SECONDS)
        return "requeued"
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    room.assume(pod, node)
    try:
        api.post(f"/api/v1/namespaces/{namespace}/pods/{name}/binding", binding)
    except ApiError as error:
        room.forget(pod)
        # 409: somebody bound it; 404: it is gone. Either way the pod is nobody's business.
        return "dropped" if error.status in (404, 409) else "requeued"
    return "bound"
