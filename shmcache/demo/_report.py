"""What a run of the demo comes to: counted from the server's final list and the reports.

May import: ``demo._messages``, ``demo._workload``, ``keys``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shmcache.demo._messages import Message
from shmcache.demo._workload import Resources, requested
from shmcache.keys import meta_namespace_key_func

__all__ = ["Ledger", "Report", "deep_size"]

_SIZED_OBJECTS = 1000
"""Objects that are measured for the size of private copies; more are extrapolated from them."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run. ``as_dict`` has the fields under the same names."""

    pods: int
    scheduled: int
    """Pods that have a node in the server's final list."""
    lost: int
    """Pods without one, or gone from the server."""
    duplicated: int
    """Pods that were popped more often than they were put in, or bound by two workers."""
    overcommitted_nodes: int
    """Nodes whose pods ask for more than they offer: two workers gave the last room away."""
    workers: int
    restarts: int
    """Processes that died and were started again."""
    seconds: float
    """From the first creation to the last binding."""
    pods_per_second: float
    per_worker: list[int]
    """Pods that each worker reported as bound; a killed one cannot report its last."""
    latency_ms: dict[str, float]
    """From creation to binding, ``p50`` and ``p99``."""
    arena_bytes: int
    """Memory of all three arenas at the end, once for all processes."""
    arena_used_bytes: int
    """What of it entries take."""
    private_copies_bytes: int
    """What the same objects take as one decoded copy in each worker."""
    api_server: str
    """``"embedded"`` or ``"kubeconfig"``."""

    @property
    def good(self) -> bool:
        """Whether every pod was bound exactly once."""
        return self.scheduled == self.pods and not self.lost and not self.duplicated

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def as_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.as_dict())

    def as_text(self) -> str:
        """Return the summary that people read."""
        verdict = "every pod bound exactly once" if self.good else "NOT every pod bound once"
        counts = f"{self.scheduled} bound, {self.lost} lost, {self.duplicated} duplicated"
        workers = "  ".join(f"#{number} {bound}" for number, bound in enumerate(self.per_worker))
        p50, p99 = self.latency_ms["p50"], self.latency_ms["p99"]
        rate = f"{self.pods_per_second:,.0f} pods/s over {self.seconds:.2f} s"
        shared, private = _mib(self.arena_bytes), _mib(self.private_copies_bytes)
        lines = [
            f"pods        {self.pods}: {verdict} ({counts})",
            f"throughput  {rate} ({self.api_server} API server)",
            f"bound by    {workers}",
            f"latency     p50 {p50:.1f} ms, p99 {p99:.1f} ms from creation to binding",
            f"memory      {shared} shared, against {private} for {self.workers} private copies",
        ]
        if self.restarts:
            lines.append(f"restarts    {self.restarts} processes died and were started again")
        if self.overcommitted_nodes:
            lines.append(f"overcommit  {self.overcommitted_nodes} nodes")
        return "\n".join(lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


@dataclass(slots=True)
class Ledger:
    """Adds up what the processes report while a run goes on."""

    pods: int
    workers: int
    created: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    events: int = 0
    """Messages so far that mean progress, for whoever looks for the lack of it."""
    relists: int = 0
    """How often the queue was filled from a new list, which may name what is being bound."""
    pops: Counter[str] = field(default_factory=Counter)
    put_back: Counter[str] = field(default_factory=Counter)
    bound: Counter[str] = field(default_factory=Counter)
    per_worker: Counter[int] = field(default_factory=Counter)
    latencies_ns: list[int] = field(default_factory=list)

    def record(self, message: Message, worker: int) -> None:
        """Count one message; ``worker`` is the number of the worker that sent it."""
        self.events += message.kind != "requeued"
        match message.kind:
            case "started":
                self.started_ns = self.started_ns or message.at_ns
            case "created":
                self.created += 1
            case "bound":
                self.pops[message.key] += 1
                self.bound[message.key] += 1
                self.per_worker[worker] += 1
                self.latencies_ns.append(message.latency_ns)
                self.finished_ns = max(self.finished_ns, message.at_ns)
            case "dropped":
                self.pops[message.key] += 1
            case "requeued":
                self.pops[message.key] += 1
                self.put_back[message.key] += 1

    def duplicated(self) -> int:
        """Count the pods that more than one worker had, for no good reason."""
        return sum(
            count > 1 + self.put_back[key] + self.relists or self.bound[key] > 1
            for key, count in self.pops.items()
        )

    def report(
        self,
        pods: Sequence[Mapping[str, Any]],
        nodes: Sequence[Mapping[str, Any]],
        *,
        restarts: int,
        arena_bytes: int,
        arena_used_bytes: int,
        api_server: str,
    ) -> Report:
        """Make the report, given the server's final lists of pods and nodes."""
        scheduled = sum(bool(pod["spec"].get("nodeName")) for pod in pods)
        seconds = max(self.finished_ns - self.started_ns, 0) / 1e9
        return Report(
            pods=self.pods,
            scheduled=scheduled,
            lost=self.pods - scheduled,
            duplicated=self.duplicated(),
            overcommitted_nodes=_overcommitted(pods, nodes),
            workers=self.workers,
            restarts=restarts,
            seconds=round(seconds, 3),
            pods_per_second=round(scheduled / seconds, 1) if seconds else 0.0,
            per_worker=[self.per_worker[number] for number in range(self.workers)],
            latency_ms={
                "p50": _percentile(self.latencies_ns, 50) / 1e6,
                "p99": _percentile(self.latencies_ns, 99) / 1e6,
            },
            arena_bytes=arena_bytes,
            arena_used_bytes=arena_used_bytes,
            private_copies_bytes=self.workers * _decoded_size([*nodes, *pods]),
            api_server=api_server,
        )

    def note_put_back(self, pods: Iterable[Mapping[str, Any]]) -> None:
        """Count pods that the supervisor put into the queue once more."""
        self.put_back.update(meta_namespace_key_func(pod) for pod in pods)


def _overcommitted(pods: Iterable[Mapping[str, Any]], nodes: Iterable[Mapping[str, Any]]) -> int:
    used: dict[str, Resources] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName", "")
        used[node] = used.get(node, Resources(0, 0, 0)) + requested(pod)
    count = 0
    for item in nodes:
        quantities = item["status"]["allocatable"]
        offered = Resources.parse(quantities, int(quantities["pods"]))
        count += not used.get(item["metadata"]["name"], Resources(0, 0, 0)).fits(offered)
    return count


def _percentile(values: list[int], percent: int) -> int:
    """Return the smallest value that ``percent`` % of all do not exceed, 0 of none."""
    if not values:
        return 0
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]


def _decoded_size(objects: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes that ``objects`` take when each is decoded by itself, as from a watch."""
    if not objects:
        return 0
    step = -(-len(objects) // _SIZED_OBJECTS)
    sample = [json.loads(json.dumps(obj)) for obj in objects[::step]]
    return deep_size(sample) * len(objects) // len(sample)


def deep_size(obj: Any) -> int:
    """Return the bytes of ``obj`` and all it holds, counting what is shared once.

    For JSON values: dicts, lists, strings, numbers, booleans and None.

    >>> deep_size([]) == sys.getsizeof([])
    True
    """
    seen: set[int] = set()
    total = 0
    waiting = [obj]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return total
