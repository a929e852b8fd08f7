"""Indexer: a store whose objects are also found by values that functions compute of them.

Three kinds of text that are easily taken for each other: the *key* is what an object is stored
under; the *name* of an index says which question it answers (``"node"``); a *value* is one answer
(``"worker-3"``). May import: ``store`` and what it may import.
"""

from __future__ import annotations

import builtins
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self

from shmcache._core import MAX_INDEX_NAME_SIZE, MAX_INDEX_VALUE_SIZE, MAX_INDEXES, NewTerms
from shmcache._errors import (
    IndexExistsError,
    IndexFuncError,
    IndexNotFoundError,
    LockTimeoutError,
    ReindexedError,
)
from shmcache._ports import Codec, Indexers, IndexFunc, KeyFunc
from shmcache.keys import meta_namespace_index_func, meta_namespace_key_func
from shmcache.store import Store, as_payload, as_version

__all__ = ["Indexer"]

_STOCK: Indexers = {"namespace": meta_namespace_index_func}

_TERM = struct.Struct("<HH")  # number of the index, bytes of the value

_Wanted = Sequence[tuple[int, str, IndexFunc]]  # the number, name and function of each index


class Indexer(Store):
    """A :class:`Store` with secondary indexes in the segment: by node, by owner, by label.

    An index function gets an object and returns the list of values, none or more, that it is
    found under. Writers have the functions; **readers need none**: they ask :meth:`by_index` with
    the name of an index. What a read finds is always what the entries say at one instant, in every
    process; a value is gone with the last object that has it.

    Every handle that writes needs the function of every index of the arena. It calls them on the
    object that is written, and on nothing else: an update or delete takes out what the *stored*
    object was found under, however the caller's object differs. A function that fails, or returns
    what is no list of str, rejects the write (:class:`~shmcache.IndexFuncError`), and nothing is
    changed.

    Solves: "the pods of this node" without a scan, in many processes. An index costs some 56 bytes
    of the arena for each value of each object, and about a microsecond a write.

    >>> def by_node(pod):
    ...     return [pod["spec"]["nodeName"]]
    >>> with Indexer.create(indexers={"node": by_node}, capacity="1MiB") as pods:
    ...     pods.unlink()
    ...     pods.add({"metadata": {"name": "web-0"}, "spec": {"nodeName": "n1"}})
    ...     pods.add({"metadata": {"name": "web-1"}, "spec": {"nodeName": "n2"}})
    ...     [pod["metadata"]["name"] for pod in pods.by_index("node", "n1")]
    ['web-0']
    """

    _kind: ClassVar[str] = "Indexer"

    _functions: dict[str, IndexFunc]
    _numbers: dict[str, int]  # of all indexes, by name; in their order, and it only ever grows

    # --- life cycle -----------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        indexers: Indexers | None = None,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        capacity: int | str = "1GiB",
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        mode: int = 0o600,
    ) -> Self:
        """As :meth:`Store.create`, with an index for each of ``indexers``.

        ``indexers``: name to function; None for ``{"namespace": meta_namespace_index_func}``.
        At most 32 indexes, their names of 1 to 127 bytes.
        """
        functions = _checked_indexers(_STOCK if indexers is None else indexers)
        self = cls._prepare(
            True, key_func, codec, cache, lock_timeout, mode=mode, indexes=tuple(functions)
        )
        self._create(name, capacity)
        self._know(functions)
        return self

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        writable: bool = False,
        timeout: float = 0.0,
        indexers: Indexers | None = None,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        owner: int | str | None = None,
    ) -> Self:
        """As :meth:`Store.attach`.

        ``indexers``: the functions of the arena's indexes, which a writer needs, and a reader for
        :meth:`index`. That of an index ``"namespace"`` is, unless given, the stock one:
        ``meta_namespace_index_func``. Raises :class:`~shmcache.IndexNotFoundError` for a function
        of an index that the arena has not.
        """
        functions = _checked_indexers({} if indexers is None else indexers)
        self = super().attach(
            name,
            writable=writable,
            timeout=timeout,
            key_func=key_func,
            codec=codec,
            cache=cache,
            lock_timeout=lock_timeout,
            owner=owner,
        )
        try:
            self._know(functions)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def open(
        cls,
        name: str,
        *,
        indexers: Indexers | None = None,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        capacity: int | str = "1GiB",
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        mode: int = 0o600,
        owner: int | str | None = None,
    ) -> Self:
        """As :meth:`Store.open`. Indexes that the arena lacks are added to it.

        ``indexers``: None for ``{"namespace": meta_namespace_index_func}``. If the arena has an
        index ``"namespace"`` and its function is not given, that is the stock one too.
        """
        functions = _checked_indexers(_STOCK if indexers is None else indexers)
        self = cls._prepare(
            True,
            key_func,
            codec,
            cache,
            lock_timeout,
            mode=mode,
            owner=owner,
            indexes=tuple(functions),
        )
        self._open(name, capacity)
        try:
            self._know({})
            self._ensure(functions)
        except BaseException:
            self.close()
            raise
        return self

    def _know(self, functions: dict[str, IndexFunc]) -> None:
        self._look()
        self._functions = {}
        stock = {name: function for name, function in _STOCK.items() if name in self._numbers}
        self.use_indexers(stock | functions)

    def _look(self) -> None:
        self._numbers = {name: number for number, name in enumerate(self._core.index_names())}

    # --- indexes --------------------------------------------------------------------------------

    def get_indexers(self) -> dict[str, IndexFunc | None]:
        """The indexes of the arena, by name, with the functions that this handle has, else None."""
        self._look()
        return {name: self._functions.get(name) for name in self._numbers}

    def add_indexers(self, indexers: Indexers) -> None:
        """Add indexes to the arena, over the objects that are there and those to come.

        At one instant for all readers, or not at all: raises
        :class:`~shmcache.IndexExistsError` if one of the names is taken, and
        :class:`~shmcache.IndexFuncError` if a function fails on an object that is there. Needs
        room for a second copy of the content meanwhile. All entries are written anew: watches and
        informers are given each as an update.

        Other handles that write need the functions from then on; without them, their writes raise
        :class:`~shmcache.IndexNotFoundError`. See :meth:`use_indexers`.

        While others write, their changes are indexed in further rounds. If they are ahead for
        longer than ``lock_timeout``, that is a :class:`~shmcache.LockTimeoutError`.
        """
        self._ensure(_checked_indexers(indexers), all_new=True)

    def use_indexers(self, indexers: Indexers) -> None:
        """Tell this handle the functions of indexes that another process has added.

        Raises :class:`~shmcache.IndexNotFoundError` for an index that the arena has not.
        """
        functions = _checked_indexers(indexers)
        for name in functions:
            self._number(name)
        self._functions = self._functions | functions
        self._options["indexers"] = self._functions

    def _ensure(self, functions: dict[str, IndexFunc], all_new: bool = False) -> None:
        """Add those of ``functions`` that the arena lacks."""
        terms, before, deadline = NewTerms(), None, None
        while True:
            had = self._core.index_names()
            lacking = [name for name in functions if name not in had]
            if all_new and len(lacking) < len(functions):
                taken = next(name for name in functions if name in had)
                raise IndexExistsError(
                    f"arena {self._name!r} has an index {taken!r} already; none was added"
                )
            if len(had) + len(lacking) > MAX_INDEXES:
                raise ValueError(
                    f"an arena has at most {MAX_INDEXES} indexes; {self._name!r} has {len(had)}, "
                    f"and {len(lacking)} more were asked for"
                )
            if not lacking:
                break
            if had != before:
                terms, before, deadline = NewTerms(), had, None
            try:
                missing = self._core.reindex(lacking, len(had), terms)
            except ReindexedError:  # another process has added some
                continue
            if not missing:
                break
            # What is missing after all was done once has changed since: the writers are ahead.
            if deadline is None and len(terms) >= len(self):
                deadline = time.monotonic() + self._opening.lock_timeout
            if deadline is not None and time.monotonic() > deadline:
                raise LockTimeoutError(
                    f"arena {self._name!r} has changed faster than it could be indexed for "
                    f"{self._opening.lock_timeout} s; no index was added. Try again when its "
                    "writers are less busy"
                )
            wanted = [(len(had) + i, name, functions[name]) for i, name in enumerate(lacking)]
            for version, key, data in missing:
                terms[version] = _pack(wanted, self._decoded(key, data))
        self._look()
        self.use_indexers(functions)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            self._look()
            number = self._numbers.get(name)
        if number is None:
            raise IndexNotFoundError(
                f"arena {self._name!r} has no index {name!r}; it has "
                f"{', '.join(map(repr, self._numbers)) or 'none'}"
            )
        return number

    # --- reading --------------------------------------------------------------------------------

    def by_index(self, index_name: str, value: str) -> builtins.list[Any]:
        """The objects that are found under ``value``, in no particular order; ``[]`` if none.

        At one instant. Raises :class:`~shmcache.IndexNotFoundError` if there is no such index.
        """
        return self._core.select(self._number(index_name), [_bytes(value)], False)

    def index_keys(self, index_name: str, value: str) -> builtins.list[str]:
        """The keys of what :meth:`by_index` returns, sorted."""
        return sorted(self._core.select(self._number(index_name), [_bytes(value)], True))

    def index(self, index_name: str, obj: Any) -> builtins.list[Any]:
        """The objects that share a value with ``obj`` in an index, each once.

        ``obj`` need not be stored. The one read that needs the index's function: raises
        :class:`~shmcache.IndexNotFoundError` if this handle has not got it, and
        :class:`~shmcache.IndexFuncError` if it fails on ``obj``.
        """
        number = self._number(index_name)
        values = _values(index_name, self._function(index_name), obj)
        return self._core.select(number, values, False)

    def list_index_func_values(self, index_name: str) -> builtins.list[str]:
        """Every value of an index that an object has now, once each, in no particular order."""
        return self._core.index_values(self._number(index_name))

    # --- writing: as Store does, with the values of each index ----------------------------------

    def add(self, obj: Any) -> None:
        """As :meth:`Store.add`. Raises :class:`~shmcache.IndexFuncError` too."""
        self._put(self._key(obj), self._encode(obj), obj)

    def update(self, obj: Any) -> None:
        """The same as :meth:`add`."""
        self._put(self._key(obj), self._encode(obj), obj)

    def add_raw(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """As :meth:`Store.add_raw`; the payload is decoded for the index functions."""
        data = as_payload(data)

        def write(wanted: _Wanted) -> None:
            terms = _pack(wanted, self._decoded(key, data)) if wanted else b""
            self._core.add(key, data, False, terms, len(wanted))

        self._retried(write)

    def add_many(self, objs: Iterable[Any]) -> None:
        """As :meth:`Store.add_many`. Raises :class:`~shmcache.IndexFuncError` too."""
        objs = builtins.list(objs)
        with self._blaming(objs):
            self._retried(
                lambda wanted: self._core.add_many(self._entries(objs, wanted), len(wanted))
            )

    def replace(self, objs: Iterable[Any], resource_version: str = "") -> None:
        """As :meth:`Store.replace`. Raises :class:`~shmcache.IndexFuncError` too."""
        objs, version = builtins.list(objs), as_version(resource_version)
        with self._blaming(objs):
            self._retried(
                lambda wanted: self._core.replace(self._entries(objs, wanted), version, len(wanted))
            )

    def _put(self, key: str, data: bytes, obj: Any) -> None:
        self._retried(
            lambda wanted: self._core.add(key, data, False, _pack(wanted, obj), len(wanted))
        )

    def _retried(self, write: Callable[[_Wanted], object]) -> None:
        """``write``, again if another process has added indexes since we looked."""
        while True:
            wanted = [(n, name, self._function(name)) for name, n in self._numbers.items()]
            try:
                write(wanted)
                return
            except ReindexedError:
                self._look()

    def _entries(
        self, objs: builtins.list[Any], wanted: _Wanted
    ) -> builtins.list[tuple[str, bytes, bytes]]:
        key, encode = self._key, self._encode
        return [(key(obj), encode(obj), _pack(wanted, obj)) for obj in objs]

    def _decoded(self, key: str, data: bytes) -> Any:
        decode = self._opening.decode
        return data if decode is None else decode(data, key, None)

    def _function(self, name: str) -> IndexFunc:
        try:
            return self._functions[name]
        except KeyError:
            raise IndexNotFoundError(
                f"this handle has no function for index {name!r} of arena {self._name!r}: pass "
                f"indexers={{{name!r}: ...}} to attach() or open(), or to use_indexers()"
            ) from None


def _checked_indexers(indexers: Indexers) -> dict[str, IndexFunc]:
    functions = dict(indexers)
    for name, function in functions.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of an index is a str, not {name!r}")
        if not 1 <= len(name.encode()) <= MAX_INDEX_NAME_SIZE or "\0" in name:
            raise ValueError(
                f"the name of an index has 1 to {MAX_INDEX_NAME_SIZE} bytes in UTF-8, none of them "
                f"0, and {name!r} has not"
            )
        if not callable(function):
            raise TypeError(f"the function of index {name!r} must be callable, not {function!r}")
    if len(functions) > MAX_INDEXES:
        raise ValueError(f"an arena has at most {MAX_INDEXES} indexes, not {len(functions)}")
    return functions


def _pack(wanted: _Wanted, obj: Any) -> bytes:
    """What the core stores with an entry: each value of each index, once."""
    return b"".join(
        _TERM.pack(number, len(value)) + value
        for number, name, function in wanted
        for value in _values(name, function, obj)
    )


def _values(name: str, function: IndexFunc, obj: Any) -> builtins.list[bytes]:
    try:
        given = function(obj)
    except Exception as cause:
        raise IndexFuncError(
            f"the function of index {name!r} failed on an object of type {type(obj).__name__}: "
            f"{cause!r}",
            obj,
        ) from cause
    # A str would be taken for the list of its letters.
    if isinstance(given, (str, bytes)) or not isinstance(given, (list, tuple, set, frozenset)):
        raise IndexFuncError(
            f"the function of index {name!r} must return a list of str, not {given!r}", obj
        )
    # Sorted, so that an object that did not change has the same bytes.
    try:
        values = sorted({value.encode() for value in given})
    except AttributeError as cause:
        raise IndexFuncError(
            f"the function of index {name!r} must return a list of str, not {given!r}", obj
        ) from cause
    except UnicodeEncodeError as cause:
        raise IndexFuncError(
            f"the function of index {name!r} must return a list of str: {cause}", obj
        ) from cause
    for value in values:
        if len(value) > MAX_INDEX_VALUE_SIZE:
            raise IndexFuncError(
                f"a value of index {name!r} has at most {MAX_INDEX_VALUE_SIZE} bytes in UTF-8, and "
                f"this one has {len(value)}",
                obj,
            )
    return values


def _bytes(value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"the value of an index is a str, not {value!r}")
    return value.encode(errors="surrogatepass")  # which no stored value can be equal to
