"""Stock key functions: from an object of the Kubernetes shape to the key of its entry.

May import: ``_errors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shmcache._errors import KeyFuncError

__all__ = [
    "meta_namespace_index_func",
    "meta_namespace_key_func",
    "split_meta_namespace_key",
]


def meta_namespace_key_func(obj: Any) -> str:
    """Return ``"namespace/name"`` of an object, or ``"name"`` if it has no namespace.

    Reads mappings (``obj["metadata"]["name"]``) and attribute objects
    (``obj.metadata.name``: client models, structs). The format is client-go's
    ``MetaNamespaceKeyFunc``; unlike there, an empty name is refused, because every such object
    would share one key.

    Raises :class:`~shmcache.KeyFuncError` for an object without metadata or name.

    >>> meta_namespace_key_func({"metadata": {"namespace": "default", "name": "web-0"}})
    'default/web-0'
    >>> meta_namespace_key_func({"metadata": {"name": "node-1"}})
    'node-1'
    """
    # The exact-dict case is every watch event of a reflector: no helper calls on that path.
    if type(obj) is dict:
        meta = obj.get("metadata")
        if type(meta) is dict:
            name = meta.get("name")
            if type(name) is str and name:
                namespace = meta.get("namespace")
                if type(namespace) is str and namespace:
                    return f"{namespace}/{name}"
                if not namespace:
                    return name
    return _general_key(obj)


def meta_namespace_index_func(obj: Any) -> list[str]:
    """Return ``[namespace]`` of an object, ``[""]`` for a cluster-scoped one.

    Raises :class:`~shmcache.KeyFuncError` for an object without metadata.

    >>> meta_namespace_index_func({"metadata": {"namespace": "default", "name": "web-0"}})
    ['default']
    """
    return [_text(_field(_metadata(obj), "namespace"), "metadata.namespace", obj)]


def split_meta_namespace_key(key: str) -> tuple[str, str]:
    """Return ``(namespace, name)`` of a key that ``meta_namespace_key_func`` made.

    Raises :class:`~shmcache.KeyFuncError` if the key has more than one slash, :class:`TypeError`
    if it is no str.

    >>> split_meta_namespace_key("default/web-0")
    ('default', 'web-0')
    >>> split_meta_namespace_key("node-1")
    ('', 'node-1')
    """
    if not isinstance(key, str):
        raise TypeError(f"a key must be a str, not {key!r}")
    parts = key.split("/")
    if len(parts) == 1:
        return "", parts[0]
    if len(parts) == 2:
        return parts[0], parts[1]
    raise KeyFuncError(f"unexpected key {key!r}: expected 'namespace/name' or 'name'", key)


def _general_key(obj: Any) -> str:
    meta = _metadata(obj)
    name = _text(_field(meta, "name"), "metadata.name", obj)
    if not name:
        raise KeyFuncError("object has an empty metadata.name", obj)
    namespace = _text(_field(meta, "namespace"), "metadata.namespace", obj)
    return f"{namespace}/{name}" if namespace else name


def _metadata(obj: Any) -> Any:
    meta = _field(obj, "metadata")
    if meta is None or isinstance(meta, (str, bytes, int, float)):
        raise KeyFuncError(
            f"object of type {type(obj).__name__} has no metadata: "
            "expected a mapping with 'metadata', or an object with a .metadata attribute",
            obj,
        )
    return meta


def _field(obj: Any, name: str) -> Any:
    return obj.get(name) if isinstance(obj, Mapping) else getattr(obj, name, None)


def _text(value: Any, where: str, obj: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise KeyFuncError(f"{where} must be a str, not {type(value).__name__}", obj)
    return value
