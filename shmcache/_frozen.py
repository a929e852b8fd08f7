"""Read-only containers: what readers of one process may share.

A decoded object is handed to every reader of a process that asks for the same entry, so nobody
may change it (client-go has the same contract, unenforced). Subclasses of ``dict`` and ``list``,
so ``isinstance``, ``json.dumps``, pattern matching and ``==`` work as with the plain ones.
Pickling and copying give plain, mutable ones. May import: ``_core``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn

from shmcache._core import sealer, wire

__all__ = [
    "FrozenDict",
    "FrozenList",
    "freeze",
    "pack",
    "seal",
    "thaw",
    "unpack",
    "unpack_sealed",
]


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
        return dict, (thaw(self),)


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
        return list, (thaw(self),)


def thaw(obj: Any) -> Any:
    """Return a private, mutable copy of an object that a store handed out.

    Everything is copied all the way down, typed objects too (by :func:`copy.deepcopy`), however
    deep it is.

    >>> shared = FrozenDict(labels=FrozenList(["a"]))
    >>> mine = thaw(shared)
    >>> mine["labels"].append("b")
    >>> mine, shared
    ({'labels': ['a', 'b']}, {'labels': ['a']})
    """
    return _copy(obj, dict, list, copy.deepcopy)


def freeze(obj: Any) -> Any:
    """The read-only counterpart of plain, private containers, all the way down."""
    return _copy(obj, FrozenDict, FrozenList, lambda value: value)


def _copy(
    obj: Any,
    make_dict: type[dict[Any, Any]],
    make_list: type[list[Any]],
    other: Callable[[Any], Any],
) -> Any:
    """A copy of the dicts and lists of ``obj``, all the way down; ``other`` gives what else is in
    them. By a list of work and not by recursion: what a codec can read, Python's recursion limit
    must not refuse. Containers that are there twice are so in the copy, as with deepcopy."""
    root = [obj]
    copies: dict[int, Any] = {}
    todo: list[Any] = [root]
    for box in todo:  # which grows meanwhile
        is_dict = isinstance(box, dict)
        put: Any = dict.__setitem__ if is_dict else list.__setitem__  # also of a read-only one
        for key, value in box.items() if is_dict else enumerate(box):
            if type(value) in _ATOMS:
                continue
            made = copies.get(id(value))
            if made is None:
                if isinstance(value, dict):
                    made = make_dict(value)
                elif isinstance(value, list):
                    made = make_list(value)
                else:
                    put(box, key, other(value))
                    continue
                copies[id(value)] = made
                todo.append(made)
            put(box, key, made)
    return root[0]


# Immutable, and most of what there is.
_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})

seal = sealer(FrozenDict, FrozenList, freeze)
"""What :func:`freeze` returns, of a tree that only the caller has: its containers become read-only
where they are, without a copy. What somebody else has a reference to is copied (seal.hpp)."""

pack, unpack, unpack_sealed = wire(FrozenDict, FrozenList)
"""msgpack of what most objects are made of, and back into plain or read-only containers;
``NotImplemented`` for the rest, which is the library's (wire.hpp)."""
