"""The one process that talks to the watch API: three reflectors, three arenas.

May import: the public surface, ``demo._api``, ``demo._workload``, ``sources.kubernetes``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from dataclasses import dataclass

from shmcache import FIFO, Reflector, Store
from shmcache.demo._api import Endpoint
from shmcache.demo._workload import RUN_LABEL
from shmcache.sources.kubernetes import list_watch_from_client

__all__ = ["Arenas", "mirror"]


@dataclass(frozen=True, slots=True)
class Arenas:
    """Names of the arenas of one run."""

    nodes: str
    """A Store of the nodes."""
    bound: str
    """A Store of the pods that have a node."""
    queue: str
    """A FIFO of those that have none."""


def mirror(endpoint: Endpoint, namespace: str, run: str, arenas: Arenas) -> None:
    """Keep the arenas equal to what the server holds, until the supervisor is gone."""
    client = endpoint.connect().client
    labels = f"{RUN_LABEL}={run}"
    unbound = list_watch_from_client(client, "pods", namespace, "spec.nodeName=", labels)
    bound = list_watch_from_client(client, "pods", namespace, "spec.nodeName!=", labels)
    nodes = list_watch_from_client(client, "nodes", label_selector=labels)
    with contextlib.ExitStack() as stack:
        node_store = stack.enter_context(Store.attach(arenas.nodes, writable=True))
        bound_store = stack.enter_context(Store.attach(arenas.bound, writable=True))
        queue = stack.enter_context(FIFO.attach(arenas.queue))
        stack.enter_context(Reflector(nodes, "v1/Node", node_store))
        stack.enter_context(Reflector(bound, "v1/Pod", bound_store))
        stack.enter_context(Reflector(unbound, "v1/Pod", queue))
        supervisor = multiprocessing.parent_process()
        assert supervisor is not None
        supervisor.join()
