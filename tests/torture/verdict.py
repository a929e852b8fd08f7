"""What the judge says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Verdict", "Violation"]


class Violation(NamedTuple):
    """``kind`` is one word: ``duplicate``, ``loss``, ``order``, ``stale``, ``torn``, ``mixed``,
    ``unknown`` (delivered, though nobody added it or it was deleted), ``shared`` (a key that two
    workers had claimed at a time), ``taken`` (a claim that was taken away without need), ``broken``
    (an invariant), ``error``, ``hang``."""

    kind: str
    text: str


@dataclass(slots=True)
class Verdict:
    """Of one epoch. ``lost``: a line for each item that went down with its consumer.
    ``cut_off``: operations that their process did not live to see the end of. ``given_back``:
    claims that did not end as done."""

    violations: list[Violation] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    operations: int = 0
    cut_off: int = 0
    deliveries: int = 0
    claims: int = 0
    given_back: int = 0
    dead_letters: int = 0
    repairs: int = 0
