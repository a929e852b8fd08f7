"""How long to wait before trying again, and for how long to try: exponential, capped, jittered.

It computes and never waits itself; the clock and the random source are arguments, so
that a test decides both. May import: nothing of shmcache.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable

__all__ = ["LONGEST_PAUSE", "Backoff", "RetryWindow"]

LONGEST_PAUSE = 1e9
"""Seconds: 30 years, and as long as an Event can be waited for without an OverflowError."""


class Backoff:
    """Delays that grow with every use and start over after a quiet time.

    ``initial``, ``cap`` and ``reset_after`` are seconds. Each delay is the base (``initial``,
    times ``factor`` after every use, at most ``cap``) plus a random share of up to ``jitter``
    times the base, so with the defaults 0.8 to 1.6 s at first and 30 to 60 s in the end. The
    jitter is added after the cap: a hundred processes that lost one server come back spread
    over half a minute and not together. ``reset_after`` seconds without use start over.

    ``clock`` is monotonic seconds, ``random`` gives a float in [0, 1). Not thread-safe: one
    reflector owns it. Raises :class:`ValueError` for figures that could make a delay negative,
    shrinking, or longer than can be waited.

    The figures are those of client-go's Reflector (``tools/cache/reflector.go``), the rule
    that of its ``wait.NewExponentialBackoffManager``.

    >>> backoff = Backoff(initial=1.0, cap=5.0, jitter=0.0)
    >>> [backoff.next_delay() for _ in range(4)]
    [1.0, 2.0, 4.0, 5.0]
    """

    def __init__(
        self,
        initial: float = 0.8,
        factor: float = 2.0,
        cap: float = 30.0,
        jitter: float = 1.0,
        reset_after: float = 120.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if not 0 <= initial <= cap:
            raise ValueError(f"need 0 <= initial <= cap, not initial={initial}, cap={cap}")
        if not (factor >= 1 and jitter >= 0 and reset_after >= 0):  # also NaN
            raise ValueError(
                f"need factor >= 1, jitter >= 0 and reset_after >= 0, not factor={factor}, "
                f"jitter={jitter}, reset_after={reset_after}"
            )
        if not cap * (1.0 + jitter) <= LONGEST_PAUSE:
            raise ValueError(
                f"need cap * (1 + jitter) <= {LONGEST_PAUSE:g}, not cap={cap}, jitter={jitter}"
            )
        self._initial = initial
        self._factor = factor
        self._cap = cap
        self._jitter = jitter
        self._reset_after = reset_after
        self._clock = clock
        self._random = random
        self._base = initial
        self._last_use = clock()

    def next_delay(self) -> float:
        """Return the seconds to wait before the next try, and count this use."""
        now = self._clock()
        if now - self._last_use > self._reset_after:
            self._base = self._initial
        self._last_use = now
        base = self._base
        self._base = min(base * self._factor, self._cap)
        return base * (1.0 + self._jitter * self._random())


class RetryWindow:
    """Says whether an error may still be answered by the same try again.

    Errors may be for ``seconds`` from the first of them, and never if that is 0. A quiet time
    of ``reset_after`` seconds makes the next error the first of a new window. The rule is that
    of client-go's ``RetryWithDeadline``, which knows no pauses: here they are no quiet time, or
    a long one would open a new window each time.

    >>> now = iter([0.0, 20.0, 31.0])
    >>> window = RetryWindow(30.0, clock=lambda: next(now))
    >>> [window.admits(quiet=1.0) for _ in range(3)]
    [True, True, False]
    """

    def __init__(
        self,
        seconds: float,
        reset_after: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._reset_after = reset_after
        self._clock = clock
        self._first: float | None = None

    def admits(self, quiet: float) -> bool:
        """Return whether an error that came after ``quiet`` good seconds is in the window."""
        now = self._clock()
        if self._first is None or quiet >= self._reset_after:
            self._first = now
        return self._seconds > 0 and now - self._first <= self._seconds
