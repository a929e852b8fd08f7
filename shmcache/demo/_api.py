"""How every process of the demo reaches the API server: through the official client.

May import: ``_types``, ``sources.kubernetes``; the official client when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmcache._types import ListOptions
from shmcache.listwatch import read_list
from shmcache.sources.kubernetes import list_watch_from_client

__all__ = ["Endpoint", "is_refusal", "list_all", "request", "transport_errors"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the API server is: a URL that needs no authentication, or a kubeconfig file."""

    url: str = ""
    kubeconfig: str = ""

    def core_api(self) -> Any:
        """Make a ``CoreV1Api`` with a connection pool of its own; ``ImportError`` without it."""
        from kubernetes import client, config

        if self.kubeconfig:
            make_client: Any = config.new_client_from_config  # not typed
            return client.CoreV1Api(make_client(config_file=self.kubeconfig))
        configuration = client.Configuration()
        configuration.host = self.url
        configuration.proxy = None  # the server is on loopback, whatever the environment says
        return client.CoreV1Api(client.ApiClient(configuration))


def request(call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Carry out one call of the client and throw the answer away undecoded.

    The client's models would cost more time than the request, and fail on the answer to a
    binding. Raises one of :func:`transport_errors`.
    """
    response = call(*arguments, _preload_content=False, **options)
    response.read()
    response.release_conn()


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what a request may raise when the server refuses it or cannot be reached."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    return ApiException, HTTPError, OSError


def is_refusal(error: Exception, *statuses: int) -> bool:
    """Return whether the server answered with one of the HTTP ``statuses``."""
    return getattr(error, "status", None) in statuses


def list_all(
    core: Any, resource: str, *, namespace: str | None = None, label_selector: str | None = None
) -> list[dict[str, Any]]:
    """List every object, page by page, as dicts. Raises :class:`~shmcache.ApiError`."""
    source = list_watch_from_client(
        core, resource, namespace=namespace, label_selector=label_selector
    )
    items: list[dict[str, Any]] = []
    token = ""
    while True:
        page = read_list(source.list(ListOptions(limit=500, continue_token=token)))
        items.extend(page.items)
        token = page.continue_token
        if not token:
            return items
