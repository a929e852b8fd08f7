"""Read-only containers: what readers of one process may share.

A decoded object is handed to every reader of a process that asks for the same entry, so nobody
may change it (client-go has the same contract, unenforced). Subclasses of ``dict`` and ``list``,
so ``isinstance``, ``json.dumps``, pattern matching and ``==`` work as with the plain ones.
Pickling and copying give plain, mutable ones. May import: nothing of shmcache.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

__all__ = ["FrozenDict", "FrozenList", "freeze", "thaw"]


def _refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise TypeError(
        "objects read from a store are shared by all readers of this process and read-only: "
        "use shmcache.thaw(obj) or copy.deepcopy(obj) for a private copy"
    )


class FrozenDict(dict[Any, Any]):
    """A ``dict`` that refuses to change."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)

    copy = __copy__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return thaw(self)

    def __reduce__(self) -> Any:
        return thaw, (_plain(self),)


class FrozenList(list[Any]):
    """A ``list`` that refuses to change."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __copy__(self) -> list[Any]:
        return list(self)

    copy = __copy__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return thaw(self)

    def __reduce__(self) -> Any:
        return thaw, (_plain(self),)


def _plain(obj: Any) -> Any:
    return dict(obj) if isinstance(obj, dict) else list(obj)


def thaw(obj: Any) -> Any:
    """Return a private, mutable copy of an object that a store handed out.

    Everything is copied all the way down, typed objects too (by :func:`copy.deepcopy`).

    >>> shared = FrozenDict(labels=FrozenList(["a"]))
    >>> mine = thaw(shared)
    >>> mine["labels"].append("b")
    >>> mine, shared
    ({'labels': ['a', 'b']}, {'labels': ['a']})
    """
    if isinstance(obj, dict):
        return {key: thaw(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [thaw(value) for value in obj]
    if isinstance(obj, (str, int, float, bytes, type(None))):
        return obj
    return copy.deepcopy(obj)


def freeze(obj: Any) -> Any:
    """The read-only counterpart of plain, private containers, all the way down."""
    if isinstance(obj, dict):
        return FrozenDict({key: freeze(value) for key, value in obj.items()})
    if isinstance(obj, list):
        return FrozenList(freeze(value) for value in obj)
    return obj
