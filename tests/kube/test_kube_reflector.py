"""Reflector, Kubernetes source and Store against a real API server.

In each test another client changes pods while the reflector runs, something goes wrong, and in
the end the store must equal what the server lists, object by object.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from shmcache._backoff import Backoff
from shmcache._errors import ApiError, ExpiredError
from shmcache._types import Event, ListOptions, WatchOptions
from shmcache.listwatch import ListWatch
from shmcache.reflector import Reflector
from shmcache.sources.kubernetes import list_watch_from_client

pytestmark = [
    pytest.mark.xdist_group("kube"),
    # Python 3.11.7 leaves a socket to the collector when a server that is killed resets the
    # connection between the connect and the TLS handshake (SSLSocket._create).
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
]

DEADLINE = 60.0


def quick(source: ListWatch, store: Any) -> Reflector:
    """A reflector whose pauses are short, so that a restarted server is seen soon."""
    return Reflector(source, "v1/Pod", store, backoff=Backoff(initial=0.05, cap=0.5))


def test_list_and_watch(
    cluster: Any, pods: Any, make_store: Callable[[], Any], eventually_equal: Any
) -> None:
    """The store follows creates, changes and deletes, and an idle TLS watch stops at once."""
    store = make_store()
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    pods.create("before-1", "before-2", "before-3")
    with quick(source, store) as reflector:
        assert store.wait_for_sync(DEADLINE)
        pods.create(*(f"pod-{i}" for i in range(20)))
        pods.label("before-1", "changed")
        for i in range(0, 20, 2):
            pods.label(f"pod-{i}", f"v{i}")
        pods.delete("before-2", *(f"pod-{i}" for i in range(0, 20, 3)))
        eventually_equal(store, pods)
        assert reflector.stop(DEADLINE)
    assert store.get_by_key(f"{pods.namespace}/before-1")["metadata"]["labels"]["app"] == "changed"
    assert reflector.stats().lists == 1
    assert reflector.stats().dropped == 0
    assert reflector.stats().errors == 0


def test_selectors_and_groups(cluster: Any, pods: Any) -> None:
    """The server understands our selectors, and the path of a group's resource."""
    pods.create("a", "b", "c")
    pods.label("b", "api")

    def names(**selectors: Any) -> list[str]:
        source = list_watch_from_client(pods.client, "pods", pods.namespace, **selectors)
        result: Any = source.list(ListOptions())
        return [item["metadata"]["name"] for item in result.items]

    assert names(label_selector={"app": "web"}) == ["a", "c"]
    assert names(label_selector="app in (api, other)") == ["b"]
    assert names(field_selector={"metadata.name": "c"}) == ["c"]
    assert names(field_selector="metadata.name!=c", label_selector="app=web") == ["a"]
    deployments = list_watch_from_client(pods.client, "apps/v1/deployments", pods.namespace)
    result: Any = deployments.list(ListOptions())
    assert result.items == []


def test_short_watches_lose_nothing(
    cluster: Any, pods: Any, make_store: Callable[[], Any], eventually_equal: Any
) -> None:
    """A watch that the server ends each second is resumed without a list and without a gap."""
    store = make_store()
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    third_watch = threading.Event()
    opened = 0

    def watch(options: WatchOptions) -> Iterable[Event[Any] | Any]:
        nonlocal opened
        opened += 1
        pods.create(f"pod-{opened}")  # between two watches: only the version brings it back
        if opened == 3:
            third_watch.set()
        return source.watch(options)

    reflector = Reflector(ListWatch(source.list, watch), "v1/Pod", store, watch_timeout=(1, 1))
    with reflector:
        assert third_watch.wait(DEADLINE)
        eventually_equal(store, pods)
    assert reflector.stats().lists == 1
    assert reflector.stats().errors == 0


def refusal_of_a_stream(source: ListWatch, version: str) -> ApiError | None:
    """The error of a watch with initial events, None from a server that can send them."""
    try:
        opened: Any = source.watch(WatchOptions(version, 1, send_initial_events=True))
    except ApiError as exc:
        return exc
    opened.close()
    return None


def test_the_server_streams_a_list(cluster: Any, pods: Any) -> None:
    """The stream has every pod as ADDED, the bookmark with the annotation, and then the changes.

    The version of the bookmark is one to resume from.
    """
    streaming = list_watch_from_client(pods.client, "pods", pods.namespace)
    if refusal := refusal_of_a_stream(streaming, "0"):
        pytest.skip(f"this API server is too old to stream lists: {refusal}")
    pods.create("a", "b", "c")
    pods.label("b", "changed")
    listed: Any = streaming.list(ListOptions())
    for version in ("", listed.resource_version):
        watch: Any = streaming.watch(WatchOptions(version, 60, send_initial_events=True))
        initial = list(itertools.takewhile(lambda event: event.type != "BOOKMARK", watch))
        watch.close()
        assert {event.type for event in initial} == {"ADDED"}
        found = sorted((event.object for event in initial), key=lambda p: p["metadata"]["name"])
        assert found == listed.items

    watch = streaming.watch(WatchOptions("", 60, False, send_initial_events=True))
    while (event := next(watch)).type != "BOOKMARK":
        pass
    metadata = event.object["metadata"]
    assert metadata["annotations"]["k8s.io/initial-events-end"] == "true"
    pods.create("d")
    resumed: Any = streaming.watch(WatchOptions(metadata["resourceVersion"], 60, False))
    for following in (watch, resumed):
        while (event := next(following)).type == "BOOKMARK":
            pass
        assert (event.type, event.object["metadata"]["name"]) == ("ADDED", "d")
        following.close()


def test_a_server_that_streams_no_list_says_so(cluster: Any, pods: Any) -> None:
    """Where the stream is refused it is a 422 at once, after which a list is answered."""
    pods.create("a")
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    for version in ("", "0", "1"):
        refusal = refusal_of_a_stream(source, version)
        if refusal is None:
            pytest.skip("this API server streams lists")
        assert refusal.status == 422
        assert "forbidden" in refusal.message
        result: Any = source.list(ListOptions(version))
        assert [item["metadata"]["name"] for item in result.items] == ["a"]


def test_a_client_without_tls_is_told(cluster: Any) -> None:
    """Plain HTTP to the server's port is an ApiError that says what the host must begin with."""
    host = cluster.host.replace("https:", "http:")
    kubernetes = pytest.importorskip("kubernetes")
    client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=host))
    with pytest.raises(ApiError, match="must begin with https://") as caught:
        list_watch_from_client(client, "pods").list(ListOptions())
    assert caught.value.status == 400


def test_a_refused_token_says_what_to_do(cluster: Any, pods: Any) -> None:
    """A token that the server does not know is a 401 with advice, and a new one works at once."""
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    api_key = pods.client.configuration.api_key
    good = api_key["authorization"]
    api_key["authorization"] = "Bearer unknown"
    with pytest.raises(ApiError, match=r"Unauthorized .*renew the token") as caught:
        source.list(ListOptions())
    assert caught.value.status == 401
    api_key["authorization"] = good
    assert list(source.list(ListOptions()).items) == []  # type: ignore[union-attr]


def test_continue_token_expires_with_compaction(cluster: Any, pods: Any) -> None:
    """When etcd forgets the first page's version, the second page is an ExpiredError."""
    pods.create("a", "b", "c")
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    first: Any = source.list(ListOptions(limit=2))
    assert len(first.items) == 2
    second: Any = source.list(ListOptions(limit=2, continue_token=first.continue_token))
    assert (len(second.items), second.continue_token) == (1, "")
    pods.label("a", "changed")
    cluster.compact()
    with pytest.raises(ExpiredError):
        source.list(ListOptions(limit=2, continue_token=first.continue_token))


def test_version_from_the_future_is_told_apart(cluster: Any, pods: Any) -> None:
    """A list at a version that the server has not reached is the error the reflector knows."""
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    with pytest.raises(ApiError, match="Too large resource version") as caught:
        source.list(ListOptions("999999999"))
    assert caught.value.status == 504


def test_killed_api_server(
    cluster: Any, pods: Any, make_store: Callable[[], Any], eventually_equal: Any
) -> None:
    """After a SIGKILL of the API server the reflector finds the restarted one by itself."""
    store = make_store()
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    pods.create("a", "b")
    with quick(source, store) as reflector:
        assert store.wait_for_sync(DEADLINE)
        pods.create("c")
        cluster.kill_api_server()
        cluster.start_api_server()
        pods.delete("a")
        pods.create("d")
        pods.label("b", "changed")
        eventually_equal(store, pods)
    assert sorted(store.list_keys()) == [f"{pods.namespace}/{name}" for name in "bcd"]
    assert reflector.stats().errors > 0


def test_expired_version_leads_to_a_list(
    cluster: Any,
    pods: Any,
    make_store: Callable[[], Any],
    eventually_equal: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A delete that no watch can bring back is repaired by the list that a 410 leads to."""
    store = make_store()
    source = list_watch_from_client(pods.client, "pods", pods.namespace)
    away = threading.Event()
    back = threading.Event()
    back.set()

    def watch(options: WatchOptions) -> Iterable[Event[Any] | Any]:
        if not back.is_set():
            away.set()
            assert back.wait(DEADLINE * 3)
        return source.watch(options)

    pods.create("gone", "stays")
    with (
        caplog.at_level(logging.INFO, "shmcache.reflector"),
        quick(ListWatch(source.list, watch), store) as reflector,
    ):
        assert store.wait_for_sync(DEADLINE)
        pods.create("late")
        eventually_equal(store, pods)
        assert reflector.stats().lists == 1
        # The next watch waits until the server has been replaced by one without the history.
        back.clear()
        cluster.kill_api_server()
        assert away.wait(DEADLINE)
        cluster.delete_in_etcd(f"/registry/pods/{pods.namespace}/gone")
        cluster.compact()
        cluster.start_api_server()
        back.set()
        eventually_equal(store, pods)
    assert reflector.stats().lists == 2
    assert "ExpiredError: 410" in caplog.text
    assert sorted(store.list_keys()) == [f"{pods.namespace}/{name}" for name in ("late", "stays")]
