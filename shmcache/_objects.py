"""What a reflector, or a store, asks of an object: its type, its version, and a name for the log.

Objects are mappings in the Kubernetes JSON shape, or anything with a ``metadata`` attribute.
May import: nothing of shmcache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["describe_object", "describe_type", "resource_version", "type_check"]


def type_check(expected_type: type | str | None) -> Callable[[Any], bool]:
    """Return the function that says whether an object is of ``expected_type``.

    Raises :class:`TypeError` or :class:`ValueError` for what cannot be such a type.
    """
    if expected_type is None:
        return lambda obj: True
    if isinstance(expected_type, type):
        return lambda obj: isinstance(obj, expected_type)
    if not isinstance(expected_type, str):
        raise TypeError(
            "expected_type must be a class, a string like 'v1/Pod', or None, "
            f"not {type(expected_type).__name__}"
        )
    api_version, _, kind = expected_type.rpartition("/")
    if not api_version or not kind:
        raise ValueError(
            f"expected_type {expected_type!r} must be like 'v1/Pod' or 'apps/v1/Deployment'"
        )
    return lambda obj: (
        isinstance(obj, Mapping)
        and obj.get("kind") == kind
        and obj.get("apiVersion") == api_version
    )


def describe_type(expected_type: type | str | None) -> str:
    """Name an expected type in a word."""
    if expected_type is None:
        return "any"
    return expected_type if isinstance(expected_type, str) else expected_type.__name__


def describe_object(obj: Any) -> str:
    """Name an object for the log: its type and key, never its content (it may be a Secret)."""
    if not isinstance(obj, Mapping):
        return type(obj).__name__
    metadata = obj.get("metadata")
    found = metadata if isinstance(metadata, Mapping) else {}
    return (
        f"{obj.get('apiVersion', '?')}/{obj.get('kind', '?')} "
        f"{found.get('namespace', '')}/{found.get('name', '?')}"
    )


def resource_version(obj: Any) -> str | None:
    """Return the object's version, ``""`` if it has none, None if it has no metadata."""
    if isinstance(obj, Mapping):
        metadata = obj.get("metadata")
        return str(metadata.get("resourceVersion") or "") if isinstance(metadata, Mapping) else None
    metadata = getattr(obj, "metadata", None)
    if metadata is None:
        return None
    if isinstance(metadata, Mapping):
        return str(metadata.get("resourceVersion") or "")
    version = getattr(metadata, "resource_version", None)
    return str(version or getattr(metadata, "resourceVersion", None) or "")
