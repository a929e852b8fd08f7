"""Sleeping in an event loop, for coroutines that wait for what happens in a segment.

May import: nothing of shmcache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["Sleeper", "take_note"]

# A coroutine that is cancelled leaves a thread of the executor asleep for at most this long.
_SLICE_SECONDS = 0.1


class Sleeper:
    """The sleep of all coroutines that wait on a handle: one thread of their loop's executor, in
    slices, so that any number of them leaves the others to the rest of the program."""

    _sleeping: asyncio.Future[object] | None = None

    async def sleep(self, wait: Callable[[float], object], seconds: float) -> None:
        """Until ``wait(timeout)`` returns, ``seconds`` at most, and sooner as a rule. What it
        raises is not raised here."""
        import asyncio  # 3 MB, and 20 ms of every import of shmcache

        timeout = min(seconds, _SLICE_SECONDS)
        loop, sleeping = asyncio.get_running_loop(), self._sleeping
        if sleeping is None or sleeping.done() or sleeping.get_loop() is not loop:
            sleeping = self._sleeping = loop.run_in_executor(None, wait, timeout)
            sleeping.add_done_callback(take_note)
        # Not awaited itself: cancelling one coroutine must not cancel the sleep of the others.
        await asyncio.wait((sleeping,), timeout=timeout)


def take_note(future: asyncio.Future[Any]) -> None:
    """Let asyncio not complain that nobody asked for an error: who looks next gets the same."""
    if not future.cancelled():
        future.exception()
