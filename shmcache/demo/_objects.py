"""What the embedded API server holds: resources, one version of one object, selections of them.

May import: ``_errors``, ``selectors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from shmcache._errors import SelectorError
from shmcache.selectors import FieldSelector, LabelSelector, Selector

__all__ = [
    "RESOURCES",
    "Entry",
    "Object",
    "Resource",
    "Selection",
    "StatusError",
    "dumps",
    "make_entry",
    "metadata_of",
    "parse_version",
]

Object: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object that the server holds. ``fields`` may be used in field selectors."""

    plural: str
    kind: str
    namespaced: bool
    fields: tuple[str, ...] = ("metadata.name", "metadata.namespace")

    @property
    def type_meta(self) -> bytes:
        """What stands before the metadata of an object that is not an item of a list."""
        return b'"kind":"%s","apiVersion":"v1",' % self.kind.encode()


RESOURCES: Mapping[str, Resource] = {
    resource.plural: resource
    for resource in (
        Resource("configmaps", "ConfigMap", namespaced=True),
        Resource("namespaces", "Namespace", namespaced=False),
        Resource("nodes", "Node", namespaced=False),
        Resource(
            "pods",
            "Pod",
            namespaced=True,
            fields=(
                "metadata.name",
                "metadata.namespace",
                "spec.nodeName",
                "spec.schedulerName",
                "status.phase",
            ),
        ),
        Resource("services", "Service", namespaced=True),
    )
}


class StatusError(Exception):
    """A request that is answered with a Kubernetes ``Status`` of this code."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one object, as the bytes that clients get.

    ``rest`` is its JSON after ``{"metadata":{"resourceVersion":"…",``, so that the same bytes
    serve under another version too: a DELETED event carries the last state and a new version.
    """

    key: tuple[str, str]
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    revision: int
    rest: bytes

    def json(self, revision: int, type_meta: bytes = b"") -> bytes:
        return b'{%s"metadata":{"resourceVersion":"%d",%s' % (type_meta, revision, self.rest)

    def decode(self) -> Object:
        obj: Object = json.loads(self.json(self.revision))
        return obj


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list or a watch is about: a resource, ``""`` or a namespace, and the selectors."""

    resource: Resource
    namespace: str = ""
    labels: Selector = field(default_factory=LabelSelector)
    fields: FieldSelector = field(default_factory=FieldSelector)

    @classmethod
    def parse(
        cls, resource: Resource, namespace: str, label_selector: str, field_selector: str
    ) -> Self:
        """Parse both selectors; an unknown field or bad syntax is a 400."""
        try:
            labels = LabelSelector.parse(label_selector)
            fields = FieldSelector.parse(field_selector)
        except SelectorError as error:
            raise StatusError(400, "BadRequest", str(error)) from error
        for term in fields.terms:
            if term.field not in resource.fields:
                raise StatusError(
                    400, "BadRequest", f"field label not supported: {term.field} of {resource.kind}"
                )
        return cls(resource, namespace, labels, fields)

    def wants(self, entry: Entry) -> bool:
        return (
            (not self.namespace or self.namespace == entry.key[0])
            and self.fields.matches(entry.fields)
            and self.labels.matches(entry.labels)
        )


def make_entry(resource: Resource, key: tuple[str, str], revision: int, obj: Object) -> Entry:
    metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    # kind and apiVersion are left out: items of a list do not carry them, all else adds them.
    body = {k: v for k, v in obj.items() if k not in ("kind", "apiVersion", "metadata")}
    return Entry(
        key,
        metadata.get("labels") or {},
        {path: _text(obj, path) for path in resource.fields},
        revision,
        dumps({"metadata": metadata, **body})[len(_METADATA_HEAD) :],
    )


def _text(obj: Any, path: str) -> str:
    for part in path.split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
    return "" if obj is None else str(obj)


def metadata_of(obj: Object) -> Object:
    metadata = obj.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise StatusError(400, "BadRequest", "metadata must be an object")
    return metadata


def parse_version(text: str) -> int:
    """Return the resourceVersion as a number, 0 for none; 400 if it is not one."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise StatusError(400, "BadRequest", f"invalid resource version: {text!r}")
    return int(text)


def dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


_METADATA_HEAD = b'{"metadata":{'
