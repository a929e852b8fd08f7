"""A source that lists and watches a folder of Kubernetes manifests, YAML or JSON.

The library ``watchfiles`` says *that* something changed in the folder (inotify, no polling of
files; ``WATCHFILES_FORCE_POLLING`` is its own switch for network file systems). *What* changed
is found by reading the files again and comparing the objects with those before, so that no
order of file events can mislead us. Which files count, and what they mean:

====================================  =====================================================
in the folder                         here
====================================  =====================================================
``.yaml`` ``.yml`` ``.json``          read; every other ending is ignored
a name that begins with a dot         ignored, with all below it
symbolic links                        followed, folders too: a mounted ConfigMap works. A
                                      file outside the folder is read through its link, but
                                      writing to it is not noticed
several YAML documents, ``List``      each document or item is an object
no ``apiVersion``, ``kind``, name     the file is bad
a bad, empty or unreadable file       its last good objects stay; logged, counted
                                      (:attr:`DirectorySource.failures`), and read again at
                                      the next change
a file that is gone                   its objects are deleted, unless another file has them
a part of the tree cannot be listed   :class:`OSError`, and nothing changes
one key twice                         the last wins, in the order of paths, then of
                                      documents; logged
``metadata.resourceVersion``          replaced by ours
====================================  =====================================================

A key is kind, namespace and name; no namespace is none, not ``default``. An empty file is bad
because it is what a file looks like while it is written in place; delete the file to delete
its objects. YAML that is cut between two lines may well be good YAML: who writes a file that
is watched should write another one and rename it. Objects become what JSON makes of them
(dates stay text), with sorted fields, so that only content is compared.

Versions are made here, and mean something to this one source alone: to others they have expired.

May import: ``_errors``, ``_logging``, ``_types``; watchfiles and yaml when a source is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeAlias

from shmcache._errors import ExpiredError
from shmcache._logging import get_logger
from shmcache._types import Event, ListOptions, ListResult, WatchOptions

__all__ = ["DirectorySource"]


_STEP_MS = 50
"""A change is taken up when the folder was quiet for so long, or after a second and a half.
watchfiles looks at its stop event as often."""

_TRIES = 5
"""How often the folder is read at most, if files come and go meanwhile."""

_Key: TypeAlias = tuple[str, str, str]
"""Kind, namespace, name."""


@dataclass(frozen=True, slots=True)
class _File:
    """What was last read of a file, None if that failed, and its last good objects as JSON."""

    data: bytes | None
    objects: Mapping[_Key, str]


@dataclass(frozen=True, slots=True)
class _Change:
    """An event: ``text`` is the object as JSON, without its version."""

    revision: int
    type: str
    text: str


class DirectorySource:
    """A :class:`~shmcache.ListerWatcher` over the manifests in the folder ``path``.

    ``pattern``: which files, relative to ``path``, ``**`` being any number of folders.
    ``api_version``, ``kind``, ``namespace``: only such objects, None for any. ``history``: how
    many changes a watch can catch up on before its version has expired.

    A list is one page, whatever its limit. Each list, and each watch after a change, reads all
    files, and parses those with other bytes than before. The source may be used from any
    thread. Raises :class:`ImportError` without watchfiles or yaml; :meth:`list` and a watch
    raise :class:`FileNotFoundError` while there is no such folder. ::

        source = DirectorySource("/etc/jobs", kind="Job")
        Reflector(source, None, store).start()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pattern: str = "**/*",
        api_version: str | None = None,
        kind: str | None = None,
        namespace: str | None = None,
        history: int = 1000,
        _clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _require_libraries()
        if history < 1:
            raise ValueError(f"history must be at least 1, not {history}")
        self.failures = 0
        """How many times a file could not be read or parsed."""
        self._path = os.path.abspath(path)  # so that chdir() does not lead us elsewhere
        self._log = get_logger("shmcache.sources.directory", resource=self._path)
        self._pattern = pattern.split("/")
        self._wanted = (api_version, kind, namespace)
        self._history_size = history
        self._clock = _clock
        self._instance = uuid.uuid4().hex[:8]

        self._lock = threading.Lock()  # guards all below
        self._files: dict[str, _File] = {}
        self._duplicates: dict[_Key, tuple[str, str]] = {}
        self._objects: dict[_Key, tuple[int, str]] = {}  # revision and JSON
        self._revision = 1
        self._history: deque[_Change] = deque()
        self._expired = 0  # the newest revision that no watch can start from

    def list(self, options: ListOptions) -> ListResult[Any]:
        """Read the folder and return all objects, in the order of their keys."""
        with self._lock:
            self._refresh()
            items = [_object(text, self._name(n)) for _, (n, text) in sorted(self._objects.items())]
            return ListResult(items, self._name(self._revision))

    def watch(self, options: WatchOptions) -> _Watch:
        """Return the changes after the version, past and to come; ``close()`` ends it.

        Files that change together are one batch: deletions first, then in the order of paths,
        and only what is left in the end is seen. A watch that lags more than ``history``
        changes behind raises :class:`~shmcache.ExpiredError`. From ``""`` or ``"0"`` it begins
        with the present objects, as ADDED.
        """
        with self._lock:
            revision = self._number(options.resource_version)
            self._changes_after(revision)  # so that an expired version is refused here
        stop = threading.Event()
        return _Watch(self._follow(revision, options.timeout_seconds, stop), stop)

    def _follow(
        self, revision: int, timeout: float | None, stop: threading.Event
    ) -> Iterator[Event[Any]]:
        from watchfiles import watch

        deadline = None if timeout is None else self._clock() + timeout
        # A first round without changes comes at once, when watchfiles sees the folder: reading
        # it then misses nothing. The later ones are for the deadline.
        batches = watch(
            self._path,
            watch_filter=None,  # the swap of a mounted ConfigMap is a hidden file's change
            step=_STEP_MS,
            rust_timeout=_STEP_MS,
            yield_on_timeout=True,
            stop_event=stop,
        )
        with contextlib.closing(batches):
            for number, changes in enumerate(batches):
                with self._lock:
                    if changes or number == 0:
                        self._refresh()
                    found = self._changes_after(revision)
                    revision = self._revision
                for change in found:
                    if stop.is_set():
                        return
                    yield Event(change.type, _object(change.text, self._name(change.revision)))
                if deadline is not None and self._clock() >= deadline:
                    return

    # -- versions; all that follow hold the lock ----------------------------------------------

    def _name(self, revision: int) -> str:
        return f"{self._instance}-{revision}"

    def _number(self, version: str) -> int:
        """The revision of a version; 0 is before everything."""
        if version in ("", "0"):
            return 0
        instance, _, number = version.rpartition("-")
        if instance != self._instance or not (number.isascii() and number.isdecimal()):
            raise ExpiredError(f"the resource version {version!r} is not of this source")
        return int(number)

    def _changes_after(self, revision: int) -> Iterable[_Change]:
        if revision == 0:
            return [_Change(n, "ADDED", text) for _, (n, text) in sorted(self._objects.items())]
        if revision == self._revision:
            return ()
        if revision <= self._expired or revision > self._revision:
            raise ExpiredError(f"the resource version {self._name(revision)!r} is too old")
        return [change for change in self._history if change.revision > revision]

    def _record(self, kind: str, text: str) -> int:
        self._revision += 1
        self._history.append(_Change(self._revision, kind, text))
        if len(self._history) > self._history_size:
            # Who is at the change before this one would miss it.
            self._expired = self._history.popleft().revision - 1
        return self._revision

    # -- files --------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Read the folder, and make a change of every difference."""
        self._files = self._read_all()
        found = self._merge()
        # Deletions first: an object that is now of another kind may have the same key elsewhere.
        for key in [key for key in self._objects if key not in found]:
            self._record("DELETED", self._objects.pop(key)[1])
        for key, text in found.items():
            before = self._objects.get(key)
            if before is None or before[1] != text:
                kind = "MODIFIED" if before else "ADDED"
                self._objects[key] = self._record(kind, text), text

    def _read_all(self) -> dict[str, _File]:
        """All files. What is renamed while we look may be missed in both places: so it counts
        only if the same names are there before and after, unless the folder never rests."""
        files = self._files
        for _ in range(_TRIES):
            names = self._names()
            read = {name: self._read(name, files.get(name)) for name in names}
            found = {name: file for name, file in read.items() if file is not None}
            if len(found) == len(names) and self._names() == names:
                break
            files = {**files, **found}
        return found

    def _names(self) -> Sequence[str]:
        """The manifests, as paths relative to the folder, in their order."""
        found = []
        for folder, folders, files in os.walk(self._path, onerror=self._refuse, followlinks=True):
            here = os.path.realpath(folder)
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".") and not _contains(os.path.join(folder, name), here)
            ]
            for name in files:
                path = os.path.relpath(os.path.join(folder, name), self._path)
                if (
                    not name.startswith(".")
                    and name.lower().endswith((".yaml", ".yml", ".json"))
                    and _matches(path.split(os.sep), self._pattern)
                    and os.path.isfile(os.path.join(folder, name))  # no pipe that blocks us
                ):
                    found.append(path)
        return sorted(found)

    def _refuse(self, error: OSError) -> None:
        # What cannot be listed is not gone; only a folder within may vanish while we walk.
        if not isinstance(error, FileNotFoundError) or error.filename == self._path:
            raise error

    def _read(self, name: str, before: _File | None) -> _File | None:
        try:
            with open(os.path.join(self._path, name), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as exc:
            return self._failed(name, None, before, exc.strerror)
        if before is not None and before.data == data:
            return before
        try:
            return _File(data, self._parse(name, data))
        except (ValueError, TypeError, RecursionError) as exc:
            return self._failed(name, data, before, exc)

    def _failed(self, name: str, data: bytes | None, before: _File | None, why: object) -> _File:
        self.failures += 1
        kept: Mapping[_Key, str] = before.objects if before else {}
        self._log.warning("%s: %s: %s; its last %d objects stay", self._path, name, why, len(kept))
        return _File(data, kept)

    def _parse(self, name: str, data: bytes) -> Mapping[_Key, str]:
        if not data.strip():
            raise ValueError("the file is empty")
        is_json = name.lower().endswith(".json")
        objects: dict[_Key, str] = {}
        for obj in _items([json.loads(data)] if is_json else _yaml_documents(data)):
            key = _key(obj)
            wanted = (obj["apiVersion"], key[0], key[1])
            if all(w is None or w == is_ for w, is_ in zip(self._wanted, wanted, strict=True)):
                if key in objects:
                    self._log.warning(
                        "%s: %s: %s twice; the last wins", self._path, name, _text(key)
                    )
                obj["metadata"].pop("resourceVersion", None)
                objects[key] = json.dumps(obj, sort_keys=True, allow_nan=False)
        return objects

    def _merge(self) -> dict[_Key, str]:
        """The objects of all files; which files have the same key is logged when it is new."""
        found: dict[_Key, str] = {}
        origins: dict[_Key, str] = {}
        duplicates = {}
        for name, file in self._files.items():
            for key, text in file.objects.items():
                if key in origins:
                    duplicates[key] = origins[key], name
                found[key], origins[key] = text, name
        for key, (first, last) in duplicates.items():
            if self._duplicates.get(key) != (first, last):
                self._log.warning(
                    "%s: %s is in %s and in %s; the last wins",
                    self._path,
                    _text(key),
                    first,
                    last,
                )
        self._duplicates = duplicates
        return found


class _Watch:
    """An open watch. ``close()`` ends it from any thread."""

    def __init__(self, events: Iterator[Event[Any]], stop: threading.Event) -> None:
        self._events = events
        self._stop = stop

    def __iter__(self) -> Iterator[Event[Any]]:
        return self

    def __next__(self) -> Event[Any]:
        if self._stop.is_set():
            raise StopIteration
        return next(self._events)

    def close(self) -> None:
        """End the watch; the iterator ends, even if it waits for changes. Idempotent."""
        self._stop.set()
        # One that runs in another thread refuses, and ends at the stop event.
        with contextlib.suppress(ValueError):
            self._events.close()  # type: ignore[attr-defined]


def _object(text: str, version: str) -> Any:
    """A private object, with its version."""
    obj = json.loads(text)
    obj["metadata"]["resourceVersion"] = version
    return obj


def _items(documents: Iterable[Any]) -> Iterator[Any]:
    """The objects of documents: those of a List one by one, and nothing of an empty one."""
    for document in documents:
        if isinstance(document, Mapping) and document.get("kind") == "List":
            yield from _items(document.get("items") or ())
        elif document is not None:
            yield json.loads(json.dumps(document))  # fails for what JSON has not


def _key(obj: Any) -> _Key:
    """The key of a manifest. ``ValueError`` if it is none; what it holds is not told."""
    metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
    if not isinstance(metadata, Mapping):
        raise ValueError("a document is not an object with metadata")
    namespace = metadata.get("namespace") or ""
    texts = (obj.get("apiVersion"), obj.get("kind"), metadata.get("name"))
    if not all(text and isinstance(text, str) for text in texts) or not isinstance(namespace, str):
        raise ValueError("an object needs apiVersion, kind and metadata.name, as text")
    return obj["kind"], namespace, metadata["name"]


def _text(key: _Key) -> str:
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _contains(folder: str, path: str) -> bool:
    """Whether ``path`` is ``folder`` or in it: a link to such a folder leads round in a circle."""
    folder = os.path.realpath(folder)
    return os.path.commonpath([folder, path]) == folder


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _yaml_documents(data: bytes) -> list[Any]:
    """The documents of YAML text. ``ValueError``, without a word of the text, if it is none."""
    import yaml

    try:
        return list(yaml.load_all(data, _yaml_loader()))
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"not YAML{where}: {getattr(exc, 'problem', None) or 'bytes'}") from None


@cache
def _yaml_loader() -> Any:
    """The safe loader, by libyaml where it is, that leaves dates as the text that they are."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: Any = type("Loader", (base,), {})
    loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in base.yaml_implicit_resolvers.items()
    }
    return loader


def _require_libraries() -> None:
    try:
        import watchfiles  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as exc:
        raise ImportError(
            f"the directory source needs {exc.name}: pip install 'shmcache[directory]'"
        ) from exc
