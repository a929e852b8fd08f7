"""UndeltaStore: tells one function the complete state after every change.

May import: ``_ports``, ``_types``, ``keys``, ``store``.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any, Self

from shmcache._ports import KeyFunc
from shmcache._types import ReflectorStats, ReflectorStatus
from shmcache.keys import meta_namespace_key_func
from shmcache.store import Store

__all__ = ["UndeltaStore"]


class UndeltaStore(Mapping[str, Any]):
    """A store that calls ``push_func`` with the list of all objects after each change.

    ``store`` is the store behind it, by default a new one with a unique name. ``key_func`` is
    that of the new store; a ``store`` that is given has its own.

    Each call of ``add``, ``update``, ``delete``, ``delete_by_key``, ``add_many`` and ``replace``
    that succeeds is one push, also where it changed nothing; one that fails raises and pushes
    nothing. Reads never push. Threads take turns: pushes come one after the other, in the order
    of the changes, and a push is over before its writer goes on. ``push_func`` may read and
    write this store itself, and each such write pushes again. If ``push_func`` raises, its
    exception comes out of the write, **and the write stands**.

    Writes past this object (through :attr:`store`, another handle, another process) are in the
    next list that is pushed, and cause no push. So one process should write; others read the
    store by its :attr:`name`, or a handle like :attr:`store` is pickled for them.

    Solves: a consumer of complete states (a configuration file, a routing table) behind a
    :class:`~shmcache.Reflector`, which knows changes. Not for large stores that change often:
    every push lists everything. After client-go's ``UndeltaStore``.

    >>> with UndeltaStore(lambda objs: print(len(objs))) as store:
    ...     store.add({"metadata": {"name": "node-1"}})
    ...     store.replace([])
    1
    0
    """

    def __init__(
        self,
        push_func: Callable[[builtins.list[Any]], object],
        key_func: KeyFunc = meta_namespace_key_func,
        store: Store | None = None,
    ) -> None:
        if not callable(push_func):
            raise TypeError(f"push_func must be callable, not {push_func!r}")
        if store is not None and not isinstance(store, Store):
            raise TypeError(f"store must be a Store or None, not {store!r}")
        if store is not None and key_func not in (meta_namespace_key_func, store._key_func):
            raise ValueError("key_func is for a new store, and the given one has another")
        self._push = push_func
        self._owned = store is None
        self._store = Store.create(key_func=key_func) if store is None else store
        # Held over a write and its push, so that pushes have the order of the changes.
        # Re-entrant, because the push may write.
        self._lock = threading.RLock()

    @property
    def store(self) -> Store:
        """The store behind this one."""
        return self._store

    @property
    def name(self) -> str:
        """The name that other processes attach by."""
        return self._store.name

    def close(self) -> None:
        """Remove and close the store that this object made; one that it was given stays open."""
        if self._owned:
            self._store.unlink()
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._store!r}>"

    # A handle is itself, not its content, as with Store.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    # --- writing: each is one push --------------------------------------------------------------

    def add(self, obj: Any) -> None:
        """:meth:`Store.add`, and push."""
        self._change(self._store.add, obj)

    def update(self, obj: Any) -> None:
        """The same as :meth:`add`."""
        self._change(self._store.update, obj)

    def add_many(self, objs: Iterable[Any]) -> None:
        """:meth:`Store.add_many`, and one push."""
        self._change(self._store.add_many, objs)

    def delete(self, obj: Any) -> None:
        """:meth:`Store.delete`, and push, even if there was nothing to delete."""
        self._change(self._store.delete, obj)

    def delete_by_key(self, key: str) -> None:
        """:meth:`Store.delete_by_key`, and push, even if there was nothing to delete."""
        self._change(self._store.delete_by_key, key)

    def replace(self, objs: Iterable[Any], resource_version: str = "") -> None:
        """:meth:`Store.replace`, and one push."""
        self._change(self._store.replace, objs, resource_version)

    def _change(self, write: Callable[..., None], *args: Any) -> None:
        with self._lock:
            write(*args)
            self._push(self._store.list())

    # --- the reflector's place: the store's -----------------------------------------------------

    def bookmark(self, resource_version: str) -> None:
        """:meth:`Store.bookmark`; no push, for nothing has changed."""
        self._store.bookmark(resource_version)

    def claim_reflector(self, name: str) -> bool:
        """:meth:`Store.claim_reflector`."""
        return self._store.claim_reflector(name)

    def release_reflector(self) -> None:
        """:meth:`Store.release_reflector`."""
        self._store.release_reflector()

    def report_reflector(self, state: str, stats: ReflectorStats) -> None:
        """:meth:`Store.report_reflector`."""
        self._store.report_reflector(state, stats)

    def reflector_status(self) -> ReflectorStatus:
        """:meth:`Store.reflector_status`."""
        return self._store.reflector_status()

    # --- reading: as Store does -----------------------------------------------------------------

    def get(self, obj: Any, default: Any = None) -> Any:
        """:meth:`Store.get`."""
        return self._store.get(obj, default)

    def get_by_key(self, key: str, default: Any = None) -> Any:
        """:meth:`Store.get_by_key`."""
        return self._store.get_by_key(key, default)

    def list(self) -> builtins.list[Any]:
        """:meth:`Store.list`."""
        return self._store.list()

    def list_keys(self) -> builtins.list[str]:
        """:meth:`Store.list_keys`."""
        return self._store.list_keys()

    def __getitem__(self, key: str) -> Any:
        return self._store[key]

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def items(self) -> ItemsView[str, Any]:
        """:meth:`Store.items`."""
        return self._store.items()

    def values(self) -> ValuesView[Any]:
        """:meth:`Store.values`."""
        return self._store.values()

    @property
    def resource_version(self) -> str:
        """:attr:`Store.resource_version`."""
        return self._store.resource_version

    @property
    def has_synced(self) -> bool:
        """:attr:`Store.has_synced`."""
        return self._store.has_synced

    def wait_for_sync(self, timeout: float | None = None) -> bool:
        """:meth:`Store.wait_for_sync`."""
        return self._store.wait_for_sync(timeout)

    def wait_for_version(self, resource_version: str, timeout: float | None = None) -> bool:
        """:meth:`Store.wait_for_version`."""
        return self._store.wait_for_version(resource_version, timeout)

    def expect(self, obj: Any, timeout: float | None = None) -> bool:
        """:meth:`Store.expect`."""
        return self._store.expect(obj, timeout)
