"""How every process of the demo reaches the API server: through the official client.

Only its authentication and connections are used, as in ``sources.kubernetes``: its models would
cost four times the CPU of the request itself, and on 2 cores the demo would show little else.

May import: ``_errors``, ``_types``, ``listwatch``, ``sources.kubernetes``; the official client
and msgspec when it connects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from shmcache._errors import ApiError
from shmcache._types import ListOptions
from shmcache.listwatch import read_list
from shmcache.sources.kubernetes import list_watch_from_client

__all__ = ["Api", "Endpoint"]

_TIMEOUT = 30.0
"""Seconds for a connection, and between two pieces of an answer."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the API server is: a URL that needs no authentication, or a kubeconfig file."""

    url: str = ""
    kubeconfig: str = ""

    def connect(self) -> Api:
        """Make a client with a connection pool of its own; ``ApiError`` for a bad kubeconfig."""
        # From these modules, because the package's facade imports every model.
        from kubernetes.client.api_client import ApiClient
        from kubernetes.client.configuration import Configuration

        configuration = Configuration()
        if self.kubeconfig:
            from kubernetes.config import load_kube_config

            load: Any = load_kube_config  # not typed
            try:
                load(self.kubeconfig, client_configuration=configuration)
            except Exception as error:  # whatever a file that is no kubeconfig makes it raise
                raise ApiError(
                    0, f"cannot use {self.kubeconfig} as a kubeconfig: {error!r}"
                ) from error
        else:
            configuration.host = self.url
            configuration.proxy = None  # it is on loopback, whatever the environment says
        return Api(ApiClient(configuration))


class Api:
    """Requests to one API server, with and for JSON objects as dicts.

    Every method raises :class:`~shmcache.ApiError` if the server refuses or cannot be reached.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        """The official ``ApiClient``."""

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Create ``body`` in the collection ``path``."""
        self._send("POST", path, body)

    def delete(self, path: str, **query: str) -> None:
        """Delete the object, or what ``query`` selects of the collection, at ``path``."""
        self._send("DELETE", f"{path}?{urlencode(query)}" if query else path)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        import msgspec
        import urllib3

        configuration = self.client.configuration
        headers = {
            **self.client.default_headers,
            "Accept": "application/json",
            "Content-Type": "application/json",
        }
        for setting in configuration.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        try:
            response = self.client.rest_client.pool_manager.request(
                method,
                configuration.host + path,
                body=None if body is None else msgspec.json.encode(body),
                headers=headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=_TIMEOUT, read=_TIMEOUT),
            )
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, f"{method} {configuration.host}{path}: {error}") from error
        if not 200 <= response.status < 300:
            text = response.data.decode("utf-8", "replace")
            raise ApiError(response.status, f"{method} {path}: {text}")

    def list_all(
        self, resource: str, *, namespace: str = "", label_selector: str = ""
    ) -> list[dict[str, Any]]:
        """List every object, page by page."""
        source = list_watch_from_client(
            self.client, resource, namespace=namespace, label_selector=label_selector
        )
        items: list[dict[str, Any]] = []
        token = ""
        while True:
            try:
                page = read_list(source.list(ListOptions(limit=500, continue_token=token)))
            except OSError as error:
                raise ApiError(0, f"cannot list {resource}: {error}") from error
            items.extend(page.items)
            token = page.continue_token
            if not token:
                return items
