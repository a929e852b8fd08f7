"""Listers: a store of pods, nodes or services, with the questions that schedulers ask of it.

They read objects in the Kubernetes JSON shape and objects with those attributes (models,
structs) alike, over any store that has ``list`` and ``get``, also through a read-only handle.
What they return is the store's: shared by all readers of this process, and read-only.

An object that cannot be asked (no metadata, labels that are no mapping) is a :class:`TypeError`:
the store holds what it should not, and to skip it would hide that.
May import: ``_errors``, ``_objects``, ``_ports``, ``selectors``.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shmcache._errors import NotFoundError
from shmcache._objects import describe_object
from shmcache._ports import ListerStore
from shmcache.selectors import LabelSelector, SelectorLike

__all__ = ["StoreToNodeLister", "StoreToPodLister", "StoreToServiceLister"]


@dataclass(frozen=True, slots=True)
class StoreToPodLister:
    """Lists the pods of ``store``, which must hold nothing else.

    >>> from shmcache import Store
    >>> with Store.create(capacity="1MiB") as store:
    ...     store.unlink()
    ...     store.add({"metadata": {"name": "web-0", "labels": {"app": "web"}}})
    ...     store.add({"metadata": {"name": "db-0", "labels": {"app": "db"}}})
    ...     [pod["metadata"]["name"] for pod in StoreToPodLister(store).list("app in (web, api)")]
    ['web-0']
    """

    store: ListerStore

    def list(self, selector: SelectorLike = None) -> builtins.list[Any]:
        """The pods whose labels match ``selector``; all of them for None.

        ``selector``: text in Kubernetes syntax, a dict of equalities, or a parsed
        :class:`~shmcache.LabelSelector`. Raises :class:`~shmcache.SelectorError` for bad text.
        """
        if selector is None:
            return self.store.list()
        matches = LabelSelector.of(selector).matches
        return [pod for pod in self.store.list() if matches(_labels(pod))]


@dataclass(frozen=True, slots=True)
class StoreToNodeLister:
    """Lists the nodes of ``store``, which must hold nothing else."""

    store: ListerStore

    def list(self) -> builtins.list[Any]:
        """All nodes."""
        return self.store.list()

    def get_node_info(self, name: str) -> Any:
        """The node called ``name``. Raises :class:`~shmcache.NotFoundError` if it is not there."""
        node = self.store.get({"metadata": {"name": name}})
        if node is None:
            raise NotFoundError(f"node {name!r} is not in the store")
        return node


@dataclass(frozen=True, slots=True)
class StoreToServiceLister:
    """Lists the services of ``store``, which must hold nothing else."""

    store: ListerStore

    def list(self) -> builtins.list[Any]:
        """All services."""
        return self.store.list()

    def get_pod_services(self, pod: Any) -> builtins.list[Any]:
        """The services of the pod's namespace whose selector matches the labels of ``pod``.

        A selector ``{}`` matches every pod, and a service without one matches none. Raises
        :class:`~shmcache.NotFoundError` if no service matches.
        """
        namespace, labels = _namespace(pod), _labels(pod)
        found = [
            service
            for service in self.store.list()
            if _namespace(service) == namespace and _selects(service, labels)
        ]
        if not found:
            name = _field(_metadata(pod), "name")
            raise NotFoundError(
                f"no service for pod {name!r} in namespace {namespace!r} with labels {dict(labels)}"
            )
        return found


def _selects(service: Any, labels: Mapping[str, str]) -> bool:
    selector = _field(_field(service, "spec"), "selector")
    if isinstance(selector, Mapping):
        return selector.items() <= labels.items()
    if selector:  # neither None nor a model's falsy mark for "not set"
        raise _wrong_shape(service, "whose spec.selector is no mapping")
    return False


def _labels(obj: Any) -> Mapping[str, str]:
    labels = _field(_metadata(obj), "labels") or {}
    if not isinstance(labels, Mapping):
        raise _wrong_shape(obj, "whose metadata.labels are no mapping")
    return labels


def _namespace(obj: Any) -> str:
    return _field(_metadata(obj), "namespace") or ""


def _metadata(obj: Any) -> Any:
    metadata = _field(obj, "metadata")
    if metadata is None:
        raise _wrong_shape(obj, "without metadata")
    return metadata


def _field(obj: Any, name: str) -> Any:
    return obj.get(name) if isinstance(obj, Mapping) else getattr(obj, name, None)


def _wrong_shape(obj: Any, what: str) -> TypeError:
    return TypeError(
        f"expected an object of the Kubernetes shape, not {describe_object(obj)} {what}"
    )
