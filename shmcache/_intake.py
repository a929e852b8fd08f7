"""What may enter the store, and as what: the type check, the transform, and who is turned away.

An object that is turned away is counted and named in the log, by type and key and never by
content: it may be a Secret. May import: ``_counters``, ``_errors``, ``_logging``, ``_objects``,
``_ports``, ``_types``, ``listwatch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shmcache._counters import Counters
from shmcache._errors import CodecError, KeyFuncError
from shmcache._logging import Log
from shmcache._objects import describe_object, resource_version
from shmcache._ports import ReflectorStore
from shmcache._types import Event
from shmcache.listwatch import error_from_status

__all__ = ["Intake"]


class Intake:
    """The door of one reflector's store, for the reflector's own thread."""

    def __init__(
        self,
        is_expected: Callable[[Any], bool],
        transform: Callable[[Any], Any] | None,
        counters: Counters,
        name: str,
        log: Log,
    ) -> None:
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable or None, not {type(transform).__name__}")
        self._is_expected = is_expected
        self._transform = transform
        self._counters = counters
        self._name = name
        self._log = log

    def transformed(self, obj: Any) -> Any:
        """Return what ``transform`` makes of an object of the right type."""
        return obj if self._transform is None else self._transform(obj)

    def drop(self, what: str, example: Any, count: int = 1) -> None:
        """Count what is turned away, and say so in one line."""
        self._counters.dropped += count
        if count > 1:
            what = f"{count} of {what}, one"
        self._log.warning("%s: dropped %s: %s", self._name, what, describe_object(example))

    def event(self, event: Event[Any] | Mapping[str, Any]) -> tuple[str, Any, str] | None:
        """Return type, object and version of an event, None if it was turned away.

        An ERROR event is raised as the error that it is.
        """
        if isinstance(event, Event):
            kind, obj = event.type, event.object
        elif isinstance(event, Mapping):
            kind, obj = event.get("type", ""), event.get("object")
        else:
            self.drop("something that is no event", event)
            return None
        if kind == "ERROR":
            raise error_from_status(obj)
        if not self._is_expected(obj):
            self.drop("an event of an unexpected type", obj)
            return None
        version = resource_version(obj)
        if version is None:
            self.drop("an event without metadata", obj)
            return None
        return kind, obj, version

    def listed(self, items: Iterable[Any]) -> list[Any]:
        """Return the items of a list that may enter, transformed."""
        admitted, strange, failed = [], [], []
        for item in items:
            if not self._is_expected(item):
                strange.append(item)
                continue
            try:
                admitted.append(self.transformed(item))
            except Exception as exc:
                failed.append(item)
                error = exc
        if strange:
            self.drop("listed items of an unexpected type", strange[0], len(strange))
        if failed:
            what = f"listed items that transform failed on ({type(error).__name__})"
            self.drop(what, failed[0], len(failed))
        return admitted

    def replace(self, store: ReflectorStore, objs: Sequence[Any], version: str) -> None:
        """Replace the content of ``store``, without those objects that it can never hold.

        An object without a key, or that cannot be encoded, will be in the next list too, so
        that one of them would keep all others out for ever. Which objects those are only the
        store knows, by its key function and its codec: it names the culprit in its error, and
        what it does not name is not guessed at. Each round is rid of one object at least.
        """
        count = 0
        while True:
            try:
                store.replace(objs, version)
                break
            except (KeyFuncError, CodecError) as exc:
                culprit, error = exc.obj, exc
                rest = [obj for obj in objs if obj is not culprit]
                if len(rest) == len(objs):
                    raise
                count += len(objs) - len(rest)
                objs = rest
        if count:
            self.drop(f"listed items that the store cannot hold ({error})", culprit, count)
