"""Read your own writes, from a real API server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shmcache import Reflector, list_watch_from_client

kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
pytest.importorskip("msgspec", reason="needs the extra shmcache[kubernetes]")

pytestmark = pytest.mark.xdist_group("kube")

DEADLINE = 60.0


def test_what_the_server_returns_is_read(
    cluster: Any, pods: Any, make_store: Callable[[], Any]
) -> None:
    """After each create and patch, also of a pod that was deleted in between, the store has what
    the server returned, once that was expected; as the client's objects and as dicts."""
    store = make_store()
    api = kubernetes.client.CoreV1Api(pods.client)
    with Reflector(list_watch_from_client(pods.client, "pods", pods.namespace), "v1/Pod", store):
        for _ in range(10):
            spec = {"containers": [{"name": "main", "image": "busybox"}]}
            made = api.create_namespaced_pod(
                pods.namespace, {"metadata": {"name": "web"}, "spec": spec}
            )
            assert store.expect(made, DEADLINE)
            key = f"{pods.namespace}/web"
            assert store[key]["metadata"]["uid"] == made.metadata.uid

            body = {"metadata": {"labels": {"app": "web"}}}
            patched = api.patch_namespaced_pod("web", pods.namespace, body)
            known = pods.client.sanitize_for_serialization(patched)
            assert store.expect(known, DEADLINE)
            assert store[key]["metadata"]["labels"] == {"app": "web"}

            pods.delete("web")
