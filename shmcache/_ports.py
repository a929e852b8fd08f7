"""The narrow interfaces between the rooms: each is declared by the one who consumes it.

A source (``ListerWatcher``) feeds a reflector, the reflector writes into a ``ReflectorStore``,
a store asks its ``Codec`` for bytes, a lister reads a ``ListerStore``. A store that many
processes share may have a ``ReflectorSeat``. May import: ``_types``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeAlias, runtime_checkable

from shmcache._types import (
    Event,
    ListOptions,
    ListResult,
    ReflectorStats,
    ReflectorStatus,
    WatchOptions,
)

__all__ = [
    "Codec",
    "Enumerator",
    "GetFunc",
    "Index",
    "IndexFunc",
    "Indexers",
    "Indices",
    "KeyFunc",
    "ListFunc",
    "ListerStore",
    "ListerWatcher",
    "PriorityFunc",
    "ReflectorSeat",
    "ReflectorStore",
    "WatchFunc",
]

KeyFunc: TypeAlias = Callable[[Any], str]
"""Makes the key of an object; must give the same key for the same object every time."""

PriorityFunc: TypeAlias = Callable[[str], int]
"""Makes the priority of a key: an int from 0, which is usual, to 7, which is first."""

IndexFunc: TypeAlias = Callable[[Any], list[str]]
"""Gives the values, none or more, that an object is found under in one index."""

Indexers: TypeAlias = Mapping[str, IndexFunc]
"""The name of each index to its function."""

Index: TypeAlias = Mapping[str, AbstractSet[str]]
"""One index: each value to the keys of the objects that are found under it."""

Indices: TypeAlias = Mapping[str, Index]
"""The name of each index to the index."""

ListFunc: TypeAlias = Callable[[ListOptions], "ListResult[Any] | Mapping[str, Any]"]
"""Lists what is there: see :class:`ListerWatcher`."""

WatchFunc: TypeAlias = Callable[[WatchOptions], "Iterable[Event[Any] | Mapping[str, Any]]"]
"""Watches what changes: see :class:`ListerWatcher`."""

Enumerator: TypeAlias = Iterable[Any]
"""The objects that a poller stores, one at a time."""

GetFunc: TypeAlias = Callable[[], Enumerator]
"""Returns all objects that a poller should store; raises if it cannot tell."""


@runtime_checkable
class ListerWatcher(Protocol):
    """A source: lists what is there, and watches what changes from a version on.

    ``list`` returns a :class:`ListResult` or a Kubernetes list dict. ``watch`` returns an
    iterable of :class:`Event` or ``{"type", "object"}`` dicts; if it has a ``close()`` method,
    the reflector calls it (from any thread) to end the watch. Both raise
    :class:`~shmcache.ApiError`, and :class:`~shmcache.ExpiredError` for a version that is gone.

    A source may have two things more. ``streams_lists = True``: its watches can begin with what
    is there, and mark the end of that, as :class:`WatchOptions` says under
    ``send_initial_events``; a reflector then asks for that in place of a list. ``interrupt()``:
    a ``list`` that is blocked, or the opening of a watch, then ends soon, with any error; any
    thread may call it, at any time and again and again.
    """

    def list(self, options: ListOptions) -> ListResult[Any] | Mapping[str, Any]: ...

    def watch(self, options: WatchOptions) -> Iterable[Event[Any] | Mapping[str, Any]]: ...


@runtime_checkable
class ReflectorStore(Protocol):
    """What a reflector needs of the store that it fills."""

    def add(self, obj: Any) -> None: ...

    def update(self, obj: Any) -> None: ...

    def delete(self, obj: Any) -> None: ...

    def replace(self, objs: Sequence[Any], resource_version: str = "") -> None: ...


@runtime_checkable
class ReflectorSeat(Protocol):
    """The place for one reflector that a store shared by processes may have besides.

    Whoever holds the place is the only one who fills the store; everybody attached can ask
    after it. It is free again when its holder is gone, however that came about.
    """

    def claim_reflector(self, name: str) -> bool:
        """Take the place; False if it is taken, by another handle or this one. What the holder
        before reported stays until the first report of this one."""
        ...

    def release_reflector(self) -> None: ...

    def report_reflector(self, state: str, stats: ReflectorStats) -> None:
        """Publish how the holder is doing; cheap, called once a second."""
        ...

    def reflector_status(self) -> ReflectorStatus: ...

    def bookmark(self, resource_version: str) -> None:
        """Say which version of the source the content is at; the content stays."""
        ...


@runtime_checkable
class ListerStore(Protocol):
    """What a lister needs of the store that it reads."""

    def get(self, obj: Any, default: Any = None, /) -> Any: ...

    def list(self) -> list[Any]: ...


@runtime_checkable
class Codec(Protocol):
    """Objects to bytes and back.

    ``name`` (1 to 31 ASCII characters) is written into the segment, so that nobody attaches
    with another codec. ``decode`` gives a private object. A codec may also have
    ``decode_shared(data, previous)``, which gives one that is safe to hand to every reader of a
    process (read only); without it, ``decode`` must give immutable objects or readers must not
    change them. ``previous`` is what it gave for an earlier version of the same entry, or None: the
    new object may share with it what has not changed.
    """

    @property
    def name(self) -> str: ...

    def encode(self, obj: Any) -> bytes: ...

    def decode(self, data: bytes | memoryview) -> Any: ...
