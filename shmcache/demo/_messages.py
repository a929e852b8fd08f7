"""What the processes of the demo tell their supervisor.

May import: nothing of shmcache.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Message", "Sender"]


@dataclass(frozen=True, slots=True)
class Message:
    """One thing that happened, in the process that sends it.

    ============  =================================================================
    kind          meaning
    ============  =================================================================
    ``ready``     a worker is attached and about to pop
    ``bound``     a worker popped pod ``key`` and the server accepted its binding
    ``dropped``   a worker popped it and the server said that it is bound or gone
    ``requeued``  a worker popped it and put it back after an error
    ``started``   the generator begins to create pods
    ``created``   the generator created one
    ============  =================================================================
    """

    kind: str
    key: str = ""
    latency_ns: int = 0
    """Of ``bound``: from the creation of the pod to the accepted binding."""
    at_ns: int = field(default_factory=time.monotonic_ns)


class Sender(Protocol):
    """The writing end of a pipe to the supervisor."""

    def send(self, message: Message, /) -> None: ...
