"""The state behind the embedded API server: objects, versions, history, watches.

It behaves as a Kubernetes API server does towards a client that lists, watches and writes, and
holds nothing else: no controllers, no validation beyond names, no namespaces that must exist
first, no graceful deletion. It does no I/O and knows no HTTP; the server feeds it requests and
hands it a function that sends bytes.

Every write takes the next revision of one counter, which becomes the resourceVersion of the
object, and is kept in a bounded history, from which a watch catches up. A watch or a continue
token older than the history gets 410.

May import: ``demo._objects``.
"""

from __future__ import annotations

import base64
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shmcache.demo._objects import (
    RESOURCES,
    Entry,
    Object,
    Resource,
    Selection,
    StatusError,
    dumps,
    make_entry,
    metadata_of,
    parse_version,
)

__all__ = ["Cluster", "Watch"]

_MAX_OPEN_PAGES = 256
"""Continue tokens that are honoured at a time; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class _Change:
    """One write: ``old`` is None for a create, ``new`` for a delete."""

    resource: Resource
    revision: int
    old: Entry | None
    new: Entry | None


@dataclass(eq=False, slots=True)
class Watch:
    """A running watch: ``send`` gets each event as one line of JSON with its line end."""

    selection: Selection
    send: Callable[[bytes], None]
    revision: int = 0

    def offer(self, change: _Change) -> None:
        """Send ``change`` if it concerns this watch.

        An object that comes to match is ADDED for this watcher, one that ceases to is DELETED,
        whatever happened to it on the server.
        """
        if change.revision <= self.revision:
            return
        self.revision = change.revision
        old = change.old if change.old and self.selection.wants(change.old) else None
        new = change.new if change.new and self.selection.wants(change.new) else None
        if new:
            self._event(b"MODIFIED" if old else b"ADDED", new, change.revision)
        elif old:
            self._event(b"DELETED", old, change.revision)

    def initial(self, entries: Iterable[Entry], revision: int) -> None:
        """Send the present state as ADDED events, for a watch that names no version."""
        for entry in entries:
            self._event(b"ADDED", entry, entry.revision)
        self.revision = revision

    def bookmark(self, revision: int, *, ends_initial_events: bool = False) -> None:
        """Tell that this watcher has seen everything up to ``revision``."""
        self.revision = max(self.revision, revision)
        annotations = b'"annotations":{"k8s.io/initial-events-end":"true"},'
        self.send(
            b'{"type":"BOOKMARK","object":{%s"metadata":{%s"resourceVersion":"%d"}}}\n'
            % (
                self.selection.resource.type_meta,
                annotations if ends_initial_events else b"",
                self.revision,
            )
        )

    def _event(self, kind: bytes, entry: Entry, revision: int) -> None:
        self.send(
            b'{"type":"%s","object":%s}\n'
            % (kind, entry.json(revision, self.selection.resource.type_meta))
        )


class Cluster:
    """All objects of one server. ``history`` is the number of changes that watches can replay.

    Answers are JSON bytes; a request that fails raises :class:`StatusError` and changes nothing.
    """

    def __init__(self, history: int = 10_000) -> None:
        self.revision = 1
        self._objects: dict[str, dict[tuple[str, str], Entry]] = {r: {} for r in RESOURCES}
        self._watches: dict[str, set[Watch]] = {r: set() for r in RESOURCES}
        self._history: deque[_Change] = deque()
        self._history_size = history
        self._compacted = 0
        """The newest revision that has left the history."""
        self._pages: OrderedDict[int, tuple[int, list[Entry]]] = OrderedDict()
        self._next_page = 0

    # Reading.

    def list_page(
        self, selection: Selection, *, limit: int = 0, token: str = "", resource_version: str = ""
    ) -> bytes:
        """Return one page as a list object; later pages are of the same moment as the first."""
        if token:
            revision, entries = self._page(token)
        else:
            if parse_version(resource_version) > self.revision:
                raise StatusError(
                    504,
                    "Timeout",
                    f"Too large resource version: {resource_version}, current: {self.revision}",
                )
            revision, entries = self.revision, self._select(selection)
        metadata = {"resourceVersion": str(revision)}
        if 0 < limit < len(entries):
            metadata["continue"] = self._remember(revision, entries[limit:])
            entries = entries[:limit]
        return b'{"kind":"%sList","apiVersion":"v1","metadata":%s,"items":[%s]}' % (
            selection.resource.kind.encode(),
            dumps(metadata),
            b",".join([entry.json(entry.revision) for entry in entries]),
        )

    def get(self, resource: Resource, namespace: str, name: str) -> bytes:
        """Return the object; 404 if there is none."""
        return self._answer(resource, self._entry(resource, namespace, name))

    def watch(
        self, selection: Selection, send: Callable[[bytes], None], resource_version: str = ""
    ) -> Watch:
        """Start a watch after ``resource_version`` and send what has changed since.

        ``""`` and ``"0"`` begin with the present state. 410 if the version left the history.
        End it with :meth:`unwatch`.
        """
        revision = parse_version(resource_version)
        watch = Watch(selection, send, revision)
        if not revision:
            watch.initial(self._select(selection), self.revision)
        elif revision < self._compacted:
            raise StatusError(
                410, "Expired", f"too old resource version: {revision} ({self._compacted})"
            )
        else:
            for change in self._history:
                if change.resource is selection.resource:
                    watch.offer(change)
        self._watches[selection.resource.plural].add(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Stop sending to ``watch``."""
        self._watches[watch.selection.resource.plural].discard(watch)

    # Writing.

    def create(self, resource: Resource, namespace: str, obj: Object) -> bytes:
        """Store a new object under a name of its own; 409 if the name is taken."""
        metadata = metadata_of(obj)
        name = metadata.get("name")
        if not name and metadata.get("generateName"):
            name = metadata["generateName"] + uuid.uuid4().hex[:5]
        if not isinstance(name, str) or not name:
            raise StatusError(422, "Invalid", f"{resource.kind} needs metadata.name")
        key = (namespace, name)
        if key in self._objects[resource.plural]:
            raise StatusError(409, "AlreadyExists", f'{resource.plural} "{name}" already exists')
        obj["metadata"] = {
            **metadata,
            "name": name,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if resource.plural == "pods":
            obj["status"] = {"phase": "Pending", **(obj.get("status") or {})}
        return self._answer(resource, self._write(resource, key, None, obj))

    def replace(self, resource: Resource, namespace: str, name: str, obj: Object) -> bytes:
        """Store ``obj`` in place of the old one; 409 if it names another version than that."""
        old = self._entry(resource, namespace, name)
        metadata = metadata_of(obj)
        expected = metadata.get("resourceVersion")
        if expected and expected != str(old.revision):
            raise StatusError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {resource.plural} "{name}": the object has '
                "been modified; please apply your changes to the latest version and try again",
            )
        kept = {k: v for k, v in old.decode()["metadata"].items() if k in _SERVER_OWNED}
        obj["metadata"] = {**metadata, **kept, "name": name}
        return self._answer(resource, self._write(resource, old.key, old, obj))

    def merge(self, resource: Resource, namespace: str, name: str, patch: Object) -> bytes:
        """Apply a JSON merge patch (RFC 7396)."""
        old = self._entry(resource, namespace, name)
        merged = _merged(old.decode(), patch)
        if "resourceVersion" not in metadata_of(patch):
            merged["metadata"].pop("resourceVersion", None)
        return self.replace(resource, namespace, name, merged)

    def delete(self, resource: Resource, namespace: str, name: str) -> bytes:
        """Delete the object at once and return its last state."""
        old = self._entry(resource, namespace, name)
        self._write(resource, old.key, old, None)
        return self._answer(resource, old)

    def delete_all(self, selection: Selection) -> bytes:
        """Delete every object of the selection and return a Status."""
        for entry in self._select(selection):
            self._write(selection.resource, entry.key, entry, None)
        return _SUCCESS

    def bind(self, namespace: str, name: str, binding: Object) -> bytes:
        """Set the node of a pod; 409 if it has one already."""
        target = binding.get("target")
        node = target.get("name") if isinstance(target, dict) else None
        if not isinstance(node, str) or not node:
            raise StatusError(422, "Invalid", f'Binding "{name}" is invalid: target.name: Required')
        pods = RESOURCES["pods"]
        old = self._entry(pods, namespace, name)
        if old.fields["spec.nodeName"]:
            raise StatusError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on pods/binding "{name}": pod {name} is already '
                f'assigned to node "{old.fields["spec.nodeName"]}"',
            )
        pod = old.decode()
        pod.setdefault("spec", {})["nodeName"] = node
        scheduled = {"type": "PodScheduled", "status": "True"}
        pod["status"].setdefault("conditions", []).append(scheduled)
        self._write(pods, old.key, old, pod)
        return _SUCCESS

    def _write(
        self, resource: Resource, key: tuple[str, str], old: Entry | None, obj: Object | None
    ) -> Entry | None:
        """Make ``obj`` (None: nothing) the state of ``key``, and tell the watchers."""
        new = None
        if obj is not None:
            if resource.namespaced:
                obj["metadata"]["namespace"] = key[0]
            new = make_entry(resource, key, self.revision + 1, obj)
            if old and old.rest == new.rest:
                return old  # a write that changes nothing makes no event, as in the original
        self.revision += 1
        change = _Change(resource, self.revision, old, new)
        if new:
            self._objects[resource.plural][key] = new
        else:
            del self._objects[resource.plural][key]
        self._history.append(change)
        if len(self._history) > self._history_size:
            self._compacted = self._history.popleft().revision
        for watch in tuple(self._watches[resource.plural]):
            watch.offer(change)
        return new

    def _select(self, selection: Selection) -> list[Entry]:
        objects = self._objects[selection.resource.plural]
        return [objects[key] for key in sorted(objects) if selection.wants(objects[key])]

    def _entry(self, resource: Resource, namespace: str, name: str) -> Entry:
        entry = self._objects[resource.plural].get((namespace, name))
        if entry is None:
            raise StatusError(404, "NotFound", f'{resource.plural} "{name}" not found')
        return entry

    def _answer(self, resource: Resource, entry: Entry | None) -> bytes:
        assert entry is not None
        return entry.json(entry.revision, resource.type_meta)

    def _remember(self, revision: int, rest: list[Entry]) -> str:
        self._next_page += 1
        self._pages[self._next_page] = revision, rest
        if len(self._pages) > _MAX_OPEN_PAGES:
            self._pages.popitem(last=False)
        return base64.urlsafe_b64encode(b"%d" % self._next_page).decode()

    def _page(self, token: str) -> tuple[int, list[Entry]]:
        try:
            page = int(base64.urlsafe_b64decode(token))
        except ValueError as error:
            raise StatusError(400, "BadRequest", "continue key is not valid") from error
        revision, rest = self._pages.get(page, (0, []))
        if not revision or revision < self._compacted:
            raise StatusError(
                410,
                "Expired",
                "The provided continue parameter is too old to display a consistent list result. "
                "You must start a new list without the continue parameter.",
            )
        return revision, rest


_SERVER_OWNED = frozenset({"uid", "creationTimestamp"})
_SUCCESS = dumps({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result
