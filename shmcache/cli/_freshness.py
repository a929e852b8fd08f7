"""In one word, how the reflector of an arena is doing.

May import: the facade.
"""

from __future__ import annotations

from shmcache import ReflectorStatus, Store, WorkQueue

__all__ = ["freshness", "freshness_style", "reflector_of", "shown"]

# A living reflector reports every second: after so many it is stopped, swapped out, or stuck.
_SILENT_SECONDS = 5.0


def reflector_of(arena: Store | WorkQueue) -> ReflectorStatus | None:
    """How the reflector of an arena is doing; None of a kind that no reflector fills."""
    return None if isinstance(arena, WorkQueue) else arena.reflector_status()


def freshness(status: ReflectorStatus | None) -> str:
    """``"alive"``; ``"stale"`` if nobody keeps the content fresh any more; ``"none"`` if nobody
    ever did."""
    if status is None or not status.name:
        return "none"
    beats = status.heartbeat_age is not None and status.heartbeat_age <= _SILENT_SECONDS
    return "alive" if status.alive and beats else "stale"


def freshness_style(word: str) -> str:
    """The colour of such a word."""
    return {"alive": "good", "stale": "bad"}.get(word, "dim")


def shown(word: str) -> str:
    """Such a word in a table."""
    return "-" if word == "none" else word
