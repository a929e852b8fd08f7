"""A source from two functions, and how the Kubernetes shapes of its answers are read.

``ListWatch`` turns a list and a watch function into a ``ListerWatcher``. The two readers below
it are what a source and the reflector must agree on: what a Kubernetes list dict means, and
which exception a Kubernetes ``Status`` is. May import: ``_errors``, ``_ports``, ``_types``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shmcache._errors import ApiError, ExpiredError
from shmcache._ports import ListFunc, WatchFunc
from shmcache._types import Event, ListOptions, ListResult, WatchOptions

__all__ = ["ListWatch", "error_from_status", "read_list"]


@dataclass(frozen=True, slots=True)
class ListWatch:
    """A :class:`~shmcache.ListerWatcher` made of two functions.

    ``list_func`` takes :class:`~shmcache.ListOptions` and returns a
    :class:`~shmcache.ListResult` or a Kubernetes list dict; ``watch_func`` takes
    :class:`~shmcache.WatchOptions` and returns an iterable of events. What they raise goes to
    the caller as it is. An iterable with a ``close()`` that works from another thread lets a
    reflector stop at once; a generator has none (Python refuses to close one that runs) and is
    left at its next event.

    ``streams_lists``: whether ``watch_func`` understands ``send_initial_events``.
    ``interrupt_func``: what ends a ``list_func`` or ``watch_func`` that is blocked in another
    thread (see :class:`~shmcache.ListerWatcher`), None if nothing does.

    Raises :class:`TypeError` if one of them cannot be called. After client-go's ``ListWatch``.

    >>> source = ListWatch(
    ...     lambda options: ListResult([{"metadata": {"name": "a"}}], resource_version="7"),
    ...     lambda options: [Event("DELETED", {"metadata": {"name": "a"}})],
    ... )
    >>> source.list(ListOptions()).resource_version
    '7'
    """

    list_func: ListFunc
    watch_func: WatchFunc
    streams_lists: bool = False
    interrupt_func: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        for name in ("list_func", "watch_func"):
            function = getattr(self, name)
            if not callable(function):
                raise TypeError(
                    f"ListWatch needs both functions: {name} must be callable with one "
                    f"argument (the options), not {type(function).__name__}"
                )
        if self.interrupt_func is not None and not callable(self.interrupt_func):
            raise TypeError(
                "interrupt_func must be callable without arguments, or None, "
                f"not {type(self.interrupt_func).__name__}"
            )

    def list(self, options: ListOptions) -> ListResult[Any] | Mapping[str, Any]:
        """Call ``list_func(options)``."""
        return self.list_func(options)

    def watch(self, options: WatchOptions) -> Iterable[Event[Any] | Mapping[str, Any]]:
        """Call ``watch_func(options)``."""
        return self.watch_func(options)

    def interrupt(self) -> None:
        """Call ``interrupt_func()``, if there is one."""
        if self.interrupt_func is not None:
            self.interrupt_func()


def read_list(document: Any) -> ListResult[Any]:
    """Return what ``ListerWatcher.list`` answered as a :class:`~shmcache.ListResult`.

    The items of a Kubernetes list (``PodList``) carry no ``apiVersion`` and ``kind``; they get
    those of the list (``Pod``), so that an object looks the same whether a list or a watch
    brought it. The two come first, as the API server writes them, which also keeps the encoded
    bytes of an unchanged object the same. The document itself is not changed.

    Raises :class:`TypeError` for anything that is not a list with metadata, a ``Table`` too.
    After the decoding of client-go's typed and dynamic clients.

    >>> read_list({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"},
    ...            "items": [{"metadata": {"name": "a"}}]}).items
    [{'kind': 'Pod', 'apiVersion': 'v1', 'metadata': {'name': 'a'}}]
    """
    if isinstance(document, ListResult):
        return document
    if not isinstance(document, Mapping):
        raise TypeError(
            f"a list must be a ListResult or a Kubernetes list dict, not {type(document).__name__}"
        )
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping) or "items" not in document:
        raise TypeError(
            f"this {document.get('kind') or 'dict'} is not a Kubernetes list: "
            "it needs 'metadata' and 'items'"
        )
    items = document["items"] or []  # Go writes an empty list as null
    list_kind, api_version = document.get("kind"), document.get("apiVersion")
    if isinstance(list_kind, str) and list_kind.endswith("List") and api_version:
        kind = list_kind.removesuffix("List")
        if kind:  # a plain "List" mixes kinds, and its items name their own
            items = [_with_kind(item, kind, api_version) for item in items]
    return ListResult(
        items,
        resource_version=metadata.get("resourceVersion") or "",
        continue_token=metadata.get("continue") or "",
    )


def _with_kind(item: Any, kind: str, api_version: Any) -> Any:
    if not isinstance(item, Mapping) or ("kind" in item and "apiVersion" in item):
        return item
    return {"kind": kind, "apiVersion": api_version, **item}


def error_from_status(status: Any, code: int = 0, retry_after: float | None = None) -> ApiError:
    """Return the exception that a Kubernetes ``Status`` means; it is not raised.

    ``code`` is the HTTP status, if there was one; an ERROR event has only the one inside.
    ``retry_after`` is the seconds of a ``Retry-After`` header, which the status's own figure
    stands in for. 410 is an :class:`~shmcache.ExpiredError`, all else an
    :class:`~shmcache.ApiError`. The messages of the status's causes are part of the message:
    in older servers only a cause says "Too large resource version".

    >>> error_from_status({"kind": "Status", "code": 410, "message": "too old"})
    ExpiredError('410: too old')
    """
    if not isinstance(status, Mapping):
        return _api_error(code, f"not a Status: {status!r:.200}", retry_after)
    message = str(status.get("message") or status.get("reason") or "no message")
    details = status.get("details")
    if isinstance(details, Mapping):
        for cause in details.get("causes") or ():
            text = cause.get("message") if isinstance(cause, Mapping) else None
            if text and text not in message:
                message = f"{message} ({text})"
        seconds = details.get("retryAfterSeconds")
        if retry_after is None and isinstance(seconds, (int, float)) and seconds > 0:
            retry_after = float(seconds)
    inner = status.get("code")
    if not code and isinstance(inner, int):
        code = inner
    if status.get("reason") in ("Expired", "Gone"):
        code = 410
    return _api_error(code, message, retry_after)


def _api_error(code: int, message: str, retry_after: float | None) -> ApiError:
    if code == 410:
        return ExpiredError(message, retry_after=retry_after)
    return ApiError(code, message, retry_after=retry_after)
