"""In one word, how the reflector of an arena is doing.

May import: the facade.
"""

from __future__ import annotations

from shmcache import ReflectorStatus

__all__ = ["freshness", "freshness_style", "shown"]

# A living reflector reports every second: after so many it is stopped, swapped out, or stuck.
_SILENT_SECONDS = 5.0


def freshness(status: ReflectorStatus) -> str:
    """``"alive"``; ``"stale"`` if nobody keeps the content fresh any more; ``"none"`` if nobody
    ever did."""
    if not status.name:
        return "none"
    beats = status.heartbeat_age is not None and status.heartbeat_age <= _SILENT_SECONDS
    return "alive" if status.alive and beats else "stale"


def freshness_style(word: str) -> str:
    """The colour of such a word."""
    return {"alive": "good", "stale": "bad"}.get(word, "dim")


def shown(word: str) -> str:
    """Such a word in a table."""
    return "-" if word == "none" else word
