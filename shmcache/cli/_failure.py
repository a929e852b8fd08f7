"""How a command says that it cannot go on.

May import: nothing of shmcache.
"""

from __future__ import annotations

__all__ = ["Failure"]


class Failure(Exception):
    """Ends a command with ``status``; its text, for people, says what to do next."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
