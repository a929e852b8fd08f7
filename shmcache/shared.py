"""One line for every worker of a fleet: one of them is elected to fill the store, all read it.

May import: ``_ports``, ``_types``, ``reflector``, ``store``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from shmcache._ports import ListerWatcher
from shmcache._types import Event, ListOptions, ListResult, WatchOptions
from shmcache.reflector import Reflector, standby_options
from shmcache.store import Store

__all__ = ["SharedReflector", "shared_reflector"]


class SharedReflector:
    """A store, and this process's reflector of it: at work, or standing by.

    Made by :func:`shared_reflector`. As a context manager it closes at the end.
    """

    def __init__(self, store: Store, reflector: Reflector) -> None:
        self._store = store
        self._reflector = reflector

    @property
    def store(self) -> Store:
        """The store, to read from."""
        return self._store

    @property
    def reflector(self) -> Reflector:
        """The reflector of this process; ``store.reflector_status()`` is of the one at work."""
        return self._reflector

    @property
    def elected(self) -> bool:
        """Whether it is this process whose reflector fills the store now."""
        return self._store._core.is_reflector

    def close(self, timeout: float | None = None) -> None:
        """End the reflector, so that another process takes over, and close the store. Idempotent.

        ``timeout``: seconds to wait for the reflector; None for as long as it takes.
        """
        self._reflector.stop(timeout)
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def shared_reflector(
    name: str,
    make_source: Callable[[], ListerWatcher],
    expected_type: type | str | None = None,
    *,
    store: type[Store] = Store,
    store_options: Mapping[str, Any] | None = None,
    **reflector_options: Any,
) -> SharedReflector:
    """Attach to the store ``name``, or create it, and see that some process fills it.

    Every worker calls this with the same arguments. One of them is elected: its
    :class:`~shmcache.Reflector` lists and watches. The others read, and when the elected one
    ends or is killed, one of them takes over within a fraction of a second, and goes on from the
    version that the store has. Nobody has to be started first, and no process is special.

    ``make_source``: a function that gives the source; only the elected process calls it, so the
    others hold no client and no connection. ``expected_type`` and ``reflector_options``: those of
    :class:`~shmcache.Reflector` (``transform``, ``page_size``, …); ``standby`` is always True.
    ``store``: ``Store`` or ``Indexer``. ``store_options``: those of its ``open`` (``capacity``,
    ``indexers``, …).

    Call it in each worker after it was forked (gunicorn: ``post_fork``; celery:
    ``worker_process_init``), because threads do not survive a fork. Raises what ``store.open``
    raises, and :class:`TypeError` or :class:`ValueError` for arguments that cannot be meant.

    >>> from shmcache.sources.memory import MemorySource
    >>> with shared_reflector("doc-pods", MemorySource, store_options={"capacity": "1MiB"}) as pods:
    ...     pods.store.wait_for_sync(10)
    ...     pods.elected
    ...     pods.store.unlink()
    True
    True
    """
    if not callable(make_source):
        raise TypeError(
            "make_source must be a function that returns a source, so that only the elected "
            f"process makes one; pass a lambda, not {type(make_source).__name__}"
        )
    if not (isinstance(store, type) and issubclass(store, Store)):
        raise TypeError(f"store must be Store or a class of its kind, not {store!r}")
    options = standby_options(name, reflector_options)
    opened = store.open(name, **(store_options or {}))
    try:
        reflector = Reflector(_LateSource(make_source), expected_type, opened, **options)
        reflector.start()
    except BaseException:
        opened.close()
        raise
    return SharedReflector(opened, reflector)


class _LateSource:
    """A source that is made when it is first asked something."""

    def __init__(self, make: Callable[[], ListerWatcher]) -> None:
        self._make = make
        self._made: ListerWatcher | None = None

    def _source(self) -> ListerWatcher:
        if self._made is None:  # by the reflector's own thread alone
            self._made = self._make()
        return self._made

    @property
    def streams_lists(self) -> bool:
        return getattr(self._source(), "streams_lists", False)

    def list(self, options: ListOptions) -> ListResult[Any] | Mapping[str, Any]:
        return self._source().list(options)

    def watch(self, options: WatchOptions) -> Iterable[Event[Any] | Mapping[str, Any]]:
        return self._source().watch(options)

    def interrupt(self) -> None:
        interrupt = getattr(self._made, "interrupt", None)
        if interrupt is not None:
            interrupt()
