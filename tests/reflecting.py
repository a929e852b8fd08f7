"""A reflector, a scripted source, and a store that remembers: what the tests of the rules share.

The reflector runs in the test's own thread: the script stops it when it is used up, its clock
moves only when the script says so, and pauses are recorded instead of waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shmcache._backoff import Backoff
from shmcache._errors import ApiError
from shmcache._types import (
    Event,
    ListOptions,
    ListResult,
    ReflectorStats,
    ReflectorStatus,
    WatchOptions,
)
from shmcache.keys import meta_namespace_key_func
from shmcache.reflector import Reflector

DEADLINE = 30.0
REFUSED = ConnectionRefusedError(111, "connection refused")
TOO_MANY = ApiError(429, "slow down")


def pod(name: str, version: int | str, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "resourceVersion": str(version)}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, **fields}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class RecordingStore:
    """A dict by key that remembers every write; ``refuses`` are raised for those names."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.writes: list[tuple[str, str]] = []
        self.refuses: dict[str, Exception] = {}

    def _write(self, call: str, obj: Any) -> str:
        key = meta_namespace_key_func(obj)
        self.writes.append((call, key.removeprefix("ns/")))
        if key.removeprefix("ns/") in self.refuses:
            raise self.refuses[key.removeprefix("ns/")]
        return key

    def add(self, obj: Any) -> None:
        self.content[self._write("add", obj)] = obj

    def update(self, obj: Any) -> None:
        self.content[self._write("update", obj)] = obj

    def delete(self, obj: Any) -> None:
        self.content.pop(self._write("delete", obj), None)

    def replace(self, objs: Sequence[Any], resource_version: str = "") -> None:
        if "replace" in self.refuses:
            raise self.refuses.pop("replace")
        self.writes.append(("replace", resource_version))
        self.content = {meta_namespace_key_func(obj): obj for obj in objs}

    @property
    def names(self) -> list[str]:
        return sorted(key.removeprefix("ns/") for key in self.content)


class Wait:
    """A step of a watch: so many seconds pass."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Stream:
    """One scripted watch: events, exceptions to raise, functions to call and waits, in order."""

    def __init__(self, script: Script, steps: Sequence[Any], seconds: float) -> None:
        self.script, self.steps, self.seconds = script, steps, seconds
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Wait):
                self.script.clock.now += step.seconds
            elif callable(step):
                step()
            else:
                yield step
        self.script.clock.now += self.seconds

    def close(self) -> None:
        self.closed += 1


class Short(list[Any]):
    """The steps of a watch that ends after 10 ms."""


class Script:
    """A source that answers from two lists, and stops the reflector when one is used up."""

    def __init__(
        self, lists: Sequence[Any], watches: Sequence[Any], streams_lists: bool = False
    ) -> None:
        self.lists, self.watches = list(lists), list(watches)
        self.streams_lists = streams_lists
        self.clock = Clock()
        self.calls: list[ListOptions | WatchOptions] = []
        self.streams: list[Stream] = []
        self.stop: Callable[[], object] = lambda: None

    def list(self, options: ListOptions) -> Any:
        return self._answer(self.lists, options)

    def watch(self, options: WatchOptions) -> Stream:
        steps = self._answer(self.watches, options)
        self.streams.append(Stream(self, steps, 0.01 if isinstance(steps, Short) else 300.0))
        return self.streams[-1]

    def _answer(self, answers: Any, options: ListOptions | WatchOptions) -> Any:
        if not answers:
            self.stop()
            raise RuntimeError("the script is over")
        self.calls.append(options)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def listed(self) -> Sequence[ListOptions]:
        return [call for call in self.calls if isinstance(call, ListOptions)]

    @property
    def watched(self) -> Sequence[str]:
        return [call.resource_version for call in self.calls if isinstance(call, WatchOptions)]

    @property
    def streamed(self) -> Sequence[bool]:
        """Of each watch, whether it was asked for initial events."""
        return [call.send_initial_events for call in self.calls if isinstance(call, WatchOptions)]


class Run:
    """A reflector that ran through a script, and all that it did."""

    def __init__(
        self,
        lists: Sequence[Any],
        watches: Sequence[Any],
        expected_type: Any = None,
        store: Any = None,
        streams_lists: bool = False,
        at_pause: Callable[[int], object] = lambda count: None,
        **options: Any,
    ) -> None:
        self.source = Script(lists, watches, streams_lists)
        self.store = RecordingStore() if store is None else store
        self.pauses: list[float] = []

        def pause(seconds: float) -> bool:
            self.pauses.append(seconds)
            at_pause(len(self.pauses))
            return False

        def attend(seconds: float) -> bool:
            return self.reflector._stopping.wait(DEADLINE)

        options.setdefault("backoff", Backoff(jitter=0.0, clock=self.source.clock))
        options.setdefault("_attend_wait", attend)  # beside the script nothing happens by itself
        self.reflector = Reflector(
            self.source,
            expected_type,
            self.store,
            _clock=self.source.clock,
            _random=lambda: 0.5,
            _wait=pause,
            **options,
        )
        self.source.stop = self.reflector.stop
        self.reflector.run()
        self.stats = self.reflector.stats()


EMPTY: ListResult[Any] = ListResult([], "10")


def bookmark(version: int | str, end: str | None = None) -> Event[Any]:
    """A bookmark; ``end`` is the value of the annotation that can make it the end of a stream."""
    made = pod("", version)
    if end is not None:
        made["metadata"]["annotations"] = {"k8s.io/initial-events-end": end}
    return Event("BOOKMARK", made)


class Shared:
    """What the handles of one arena share: content, version, and who fills it."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.version = ""
        self.synced = False
        self.holder: SeatStore | None = None
        self.name = ""
        self.reports: list[tuple[str, ReflectorStats]] = []

    @property
    def states(self) -> list[str]:
        return [state for state, _ in self.reports]


class SeatStore(RecordingStore):
    """A handle of an arena that has a place for a reflector."""

    def __init__(self, shared: Shared | None = None) -> None:
        self.shared = shared or Shared()
        self.writes = []
        self.refuses = {}

    @property
    def content(self) -> dict[str, Any]:
        return self.shared.content

    @content.setter
    def content(self, content: dict[str, Any]) -> None:
        self.shared.content = content

    def replace(self, objs: Sequence[Any], resource_version: str = "") -> None:
        super().replace(objs, resource_version)
        self.shared.version, self.shared.synced = resource_version, True

    @property
    def has_synced(self) -> bool:
        return self.shared.synced

    @property
    def resource_version(self) -> str:
        return self.shared.version

    def claim_reflector(self, name: str) -> bool:
        if "claim" in self.refuses:
            raise self.refuses.pop("claim")
        if self.shared.holder is not None:
            return False
        self.shared.holder, self.own_name = self, name
        return True

    def release_reflector(self) -> None:
        assert self.shared.holder is self
        self.shared.holder = None
        if "release" in self.refuses:
            raise self.refuses["release"]

    def report_reflector(self, state: str, stats: ReflectorStats) -> None:
        assert self.shared.holder is self
        self.shared.reports.append((state, stats))
        self.shared.name = self.own_name
        if "report" in self.refuses:
            raise self.refuses["report"]

    def reflector_status(self) -> ReflectorStatus:
        alive = self.shared.holder is not None
        return ReflectorStatus(
            name=self.shared.name,
            alive=alive,
            pid=4711 if alive else 0,
            state="",
            heartbeat_age=None,
            contact_age=None,
            event_age=None,
            resource_version=self.shared.version,
            lists=0,
            watches=0,
            events=0,
            dropped=0,
            errors=0,
            last_error="",
            last_error_age=None,
        )

    def bookmark(self, resource_version: str) -> None:
        self.writes.append(("bookmark", resource_version))
        self.shared.version = resource_version
        if "bookmark" in self.refuses:
            raise self.refuses["bookmark"]


class Silent:
    """A source whose watches give nothing until they are closed."""

    def __init__(self) -> None:
        self.lists = 0
        self.watching = threading.Event()
        self.closing = threading.Event()
        self.closed = 0

    def list(self, options: ListOptions) -> ListResult[Any]:
        self.lists += 1
        return EMPTY

    def watch(self, options: WatchOptions) -> Silent:
        return self

    def __iter__(self) -> Iterator[Event[Any]]:
        self.watching.set()
        assert self.closing.wait(DEADLINE)
        return iter(())

    def close(self) -> None:
        self.closed += 1
        self.closing.set()
