"""The official client: its informer, and its Watch into a dict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.informer
import kubernetes.watch

Ingest = Callable[[str, int], None]
"""Reads `count` pods from the server at that URL until they are all in its cache."""


def _api(url: str) -> Any:
    configuration = kubernetes.client.Configuration(host=url)
    return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))


def started_informer(url: str, count: int) -> Any:
    """An informer that has seen `count` pods. Nothing ends its thread but the process."""
    seen = [0]

    def note(_: Any) -> None:
        seen[0] += 1

    informer = kubernetes.informer.SharedInformer(_api(url).list_pod_for_all_namespaces)
    informer.add_event_handler(kubernetes.informer.ADDED, note)
    informer.start()
    while seen[0] < count:
        time.sleep(0.002)
    return informer


def _informer(url: str, count: int) -> None:
    started_informer(url, count)


def _watch(url: str, count: int) -> None:
    pods: dict[str, Any] = {}
    watch = kubernetes.watch.Watch()
    for event in watch.stream(_api(url).list_pod_for_all_namespaces, resource_version="1"):
        pod = event["object"]
        pods[f"{pod.metadata.namespace}/{pod.metadata.name}"] = pod
        if len(pods) == count:
            watch.stop()


@contextmanager
def informer(where: Path) -> Iterator[Ingest]:
    yield _informer


@contextmanager
def watch(where: Path) -> Iterator[Ingest]:
    yield _watch
