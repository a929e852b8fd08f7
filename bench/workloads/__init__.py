"""The workloads by name: what is measured, beside whom, and what the ratio may be.

A workload is a context manager: given a scale and a rival's name it prepares both sides and gives
two functions, ours and the rival's, each of which takes one round and returns its figure. Ours is
always the public API with its defaults. The ratio is ours to the rival's, and small is good.
"""

from __future__ import annotations

from bench.workloads import fanout, growth, processes, queues, stores  # noqa: F401 (each enters its own)
from bench.workloads.catalogue import ENTERED, FULL, QUICK, TINY, Scale, Workload

__all__ = ["FULL", "QUICK", "TINY", "WORKLOADS", "Scale"]

_GROUPS = (
    "read",
    "list",
    "write",
    "replace",
    "queue",
    "queue across processes",
    "fan-out",
    "wake-up",
    "reflector",
    "memory",
    "growth",
)

WORKLOADS: dict[str, Workload] = dict(
    sorted(ENTERED.items(), key=lambda entry: _GROUPS.index(entry[1].group))
)
