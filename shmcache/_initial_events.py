"""What a streamed list has brought so far: collected in private, until its end is marked.

A stream begins with the objects that are there, as ADDED events in no order that means
anything; changes that come meanwhile stand among them. Nobody may see half of that, so it is
kept here, and the store gets it at once. Only sources of the Kubernetes kind stream, so an
object is itself by namespace and name; the store's key function may want to see something else,
namely what ``transform`` made of the object.

May import: ``keys``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shmcache.keys import meta_namespace_key_func

__all__ = ["InitialEvents", "marks_the_end"]

_END = "k8s.io/initial-events-end"


def marks_the_end(bookmark: Any) -> bool:
    """Return whether this BOOKMARK says that the initial events are complete.

    >>> marks_the_end({"metadata": {"annotations": {"k8s.io/initial-events-end": "true"}}})
    True
    """
    metadata = _field(bookmark, "metadata")
    annotations = _field(metadata, "annotations")
    return isinstance(annotations, Mapping) and annotations.get(_END) == "true"


class InitialEvents:
    """The objects of a stream that is not complete, each as ``transform`` made it, once."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self._transform = transform
        self._objects: dict[str, Any] = {}

    def apply(self, kind: str, obj: Any) -> None:
        """Apply an event; raises what the key function or ``transform`` raise, unchanged then."""
        key = meta_namespace_key_func(obj)
        if kind == "DELETED":
            self._objects.pop(key, None)
        else:
            self._objects[key] = self._transform(obj)

    def objects(self) -> list[Any]:
        """Return the objects, in the order in which they first came."""
        return list(self._objects.values())


def _field(obj: Any, name: str) -> Any:
    return obj.get(name) if isinstance(obj, Mapping) else getattr(obj, name, None)
