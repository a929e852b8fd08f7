"""Sources: each file lists and watches one kind of backend, and knows nothing of stores.

Import a source by its module (or, for the one that most users want, from ``shmcache``), so
that nobody pays for a client library that is not used.

Any distribution may bring a source: it names a callable that returns a
:class:`~shmcache.ListerWatcher` in the entry point group ``shmcache.sources``, as ours do. In
its ``pyproject.toml``::

    [project.entry-points."shmcache.sources"]
    consul = "shmcache_consul:ConsulSource"

and whoever has it installed says ``shmcache.sources.load("consul")(address="...")``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from shmcache._ports import ListerWatcher

__all__ = ["available", "load"]


def available() -> list[str]:
    """Return the names of the installed sources, sorted; nothing of theirs is imported."""
    return sorted(_entry_points().names)


def load(name: str) -> Callable[..., ListerWatcher]:
    """Return the callable that makes a source of that name; its options are its own.

    Raises :class:`LookupError` if no installed distribution has such a source, or if two have,
    and what its import raises, :class:`ImportError` if a library is missing.
    """
    found = _entry_points().select(name=name)
    if not found:
        raise LookupError(f"no source {name!r}; installed are: {', '.join(available()) or 'none'}")
    if len(found) > 1:
        where = ", ".join(sorted(entry.value for entry in found))
        raise LookupError(f"more than one distribution has a source {name!r}: {where}")
    (entry,) = found
    return cast("Callable[..., ListerWatcher]", entry.load())


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # here, because every start would pay for it

    return entry_points(group=__name__)
