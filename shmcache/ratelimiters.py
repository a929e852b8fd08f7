"""How long a key that has failed waits before it is queued again: the limiters of a WorkQueue.

They compute and keep nothing. What they have to remember is in the queue's segment, the same for
all processes: how often each key has failed, and one bucket of tokens. So a limiter is a value:
frozen, compared by its figures, and picklable.

The figures and formulas are those of client-go (``util/workqueue/default_rate_limiters.go``).
May import: nothing of shmcache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = [
    "DEFAULT",
    "ExponentialBackoff",
    "FastSlow",
    "MaxOf",
    "RateLimiter",
    "Reserve",
    "TokenBucket",
]

Reserve = Callable[[float, int], float]
"""Takes a token from the queue's bucket, which gets ``rate`` a second and holds ``burst``; returns
the seconds until the token is there."""

_MOST_DOUBLINGS = 1000  # 2.0 ** 1024 is an OverflowError
_MOST_SECONDS = 1e9  # what the core takes for no limit
_MOST_RATE = 1e9  # a token each nanosecond


@runtime_checkable
class RateLimiter(Protocol):
    """What :meth:`WorkQueue.add_rate_limited <shmcache.WorkQueue.add_rate_limited>` asks."""

    def delay(self, failures: int, reserve: Reserve, /) -> float:
        """The seconds that a key waits which had failed ``failures`` times before this failure.

        ``reserve(rate, burst)`` takes a token from the one bucket that all processes of the queue
        share, and returns the seconds until it is there, 0.0 for at once.
        """
        ...


def _check_numbers(limiter: RateLimiter, *names: str) -> None:
    for name in names:
        value = getattr(limiter, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} of {type(limiter).__name__} is a number, not {value!r}")


def _check_int(limiter: RateLimiter, name: str) -> None:
    value = getattr(limiter, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} of {type(limiter).__name__} is an int, not {value!r}")


@dataclass(frozen=True, slots=True)
class ExponentialBackoff:
    """``base`` seconds, doubled by each failure of the key, at most ``most``.

    As ``ItemExponentialFailureRateLimiter`` of client-go. Raises :class:`ValueError` unless
    0 < ``base`` <= ``most``, both finite; :class:`TypeError` for what is no number.

    >>> from shmcache import ExponentialBackoff
    >>> backoff = ExponentialBackoff(base=1.0, most=10.0)
    >>> [backoff.delay(failures, lambda rate, burst: 0.0) for failures in (0, 1, 2, 3, 4, 10**6)]
    [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    """

    base: float = 0.005
    most: float = 1000.0

    def __post_init__(self) -> None:
        _check_numbers(self, "base", "most")
        if not 0 < self.base <= self.most < math.inf:
            raise ValueError(
                "ExponentialBackoff needs 0 < base <= most, in seconds, and has "
                f"base={self.base!r}, most={self.most!r}"
            )

    def delay(self, failures: int, reserve: Reserve, /) -> float:
        """As :meth:`RateLimiter.delay`."""
        return min(self.base * 2.0 ** min(failures, _MOST_DOUBLINGS), self.most)


@dataclass(frozen=True, slots=True)
class FastSlow:
    """``fast`` seconds for the first ``fast_attempts`` failures of a key, then ``slow``.

    As ``ItemFastSlowRateLimiter`` of client-go. Raises :class:`ValueError` for delays that are
    negative or not finite, and a negative number of attempts; :class:`TypeError` for what is no
    number, and attempts that are no int.

    >>> from shmcache import FastSlow
    >>> limiter = FastSlow(fast=0.005, slow=10.0, fast_attempts=3)
    >>> [limiter.delay(failures, lambda rate, burst: 0.0) for failures in range(5)]
    [0.005, 0.005, 0.005, 10.0, 10.0]
    """

    fast: float
    slow: float
    fast_attempts: int

    def __post_init__(self) -> None:
        _check_numbers(self, "fast", "slow")
        _check_int(self, "fast_attempts")
        if not (0 <= self.fast < math.inf and 0 <= self.slow < math.inf):
            raise ValueError(
                "FastSlow needs delays of 0 seconds or more, and has "
                f"fast={self.fast!r}, slow={self.slow!r}"
            )
        if not self.fast_attempts >= 0:
            raise ValueError(
                f"FastSlow needs fast_attempts of 0 or more, not {self.fast_attempts!r}"
            )

    def delay(self, failures: int, reserve: Reserve, /) -> float:
        """As :meth:`RateLimiter.delay`."""
        return self.fast if failures < self.fast_attempts else self.slow


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A token for each failure, of whatever key; there are ``rate`` new ones a second, and at most
    ``burst`` saved up. So what fails everywhere at once is tried again at a bearable rate.

    As ``BucketRateLimiter`` of client-go, but that the bucket is one for all processes of the
    queue: all should have the same figures. Raises :class:`ValueError` unless ``rate`` is above
    0 and at most 1e9, and ``burst`` at least 1; :class:`TypeError` for a rate that is no number,
    and a burst that is no int.

    >>> from shmcache import TokenBucket, WorkQueue
    >>> with WorkQueue.create(rate_limiter=TokenBucket(rate=0.001, burst=2)) as queue:
    ...     for key in ("a", "b", "c"):
    ...         queue.add_rate_limited(key)
    ...     len(queue), [one.key for one in queue.delayed()]
    ...     queue.unlink()
    True
    True
    True
    (2, ['c'])
    """

    rate: float = 10.0
    burst: int = 100

    def __post_init__(self) -> None:
        _check_numbers(self, "rate")
        _check_int(self, "burst")
        if not 0 < self.rate <= _MOST_RATE:
            raise ValueError(
                f"TokenBucket needs a rate above 0 and up to {_MOST_RATE:,.0f}, in tokens a "
                f"second, not {self.rate!r}"
            )
        if not self.burst >= 1:
            raise ValueError(f"TokenBucket needs a burst of 1 token or more, not {self.burst!r}")
        if self.burst > self.rate * _MOST_SECONDS:
            raise ValueError(
                f"TokenBucket has to be full after {_MOST_SECONDS:,.0f} s at most, and with "
                f"rate={self.rate!r}, burst={self.burst!r} it is not"
            )

    def delay(self, failures: int, reserve: Reserve, /) -> float:
        """As :meth:`RateLimiter.delay`."""
        return reserve(self.rate, self.burst)


@dataclass(frozen=True, slots=True, init=False)
class MaxOf:
    """The longest delay of several limiters, all of which are asked each time.

    As ``MaxOfRateLimiter`` of client-go. Raises :class:`ValueError` for none at all, and for more
    than one :class:`TokenBucket`, since a queue has one bucket; :class:`TypeError` for what is no
    limiter.

    >>> from shmcache import ExponentialBackoff, FastSlow, MaxOf
    >>> limiter = MaxOf(ExponentialBackoff(base=1.0), FastSlow(3.0, 3.0, 0))
    >>> [limiter.delay(failures, lambda rate, burst: 0.0) for failures in range(4)]
    [3.0, 3.0, 4.0, 8.0]
    """

    limiters: tuple[RateLimiter, ...]

    def __init__(self, *limiters: RateLimiter) -> None:
        if not limiters:
            raise ValueError("MaxOf needs a limiter or more, and has none")
        for limiter in limiters:
            if isinstance(limiter, type) or not isinstance(limiter, RateLimiter):
                raise TypeError(f"MaxOf takes limiters like ExponentialBackoff(), not {limiter!r}")
        object.__setattr__(self, "limiters", limiters)
        if (buckets := sum(1 for _ in self._buckets())) > 1:
            raise ValueError(
                f"a queue has one bucket of tokens, and this MaxOf has {buckets} limiters that "
                f"take from it: {limiters!r}"
            )

    def _buckets(self) -> Iterator[TokenBucket]:
        for limiter in self.limiters:
            if isinstance(limiter, MaxOf):
                yield from limiter._buckets()
            elif isinstance(limiter, TokenBucket):
                yield limiter

    def delay(self, failures: int, reserve: Reserve, /) -> float:
        """As :meth:`RateLimiter.delay`."""
        return max(limiter.delay(failures, reserve) for limiter in self.limiters)


DEFAULT: RateLimiter = MaxOf(ExponentialBackoff(), TokenBucket())
"""client-go's ``DefaultControllerRateLimiter``: 5 ms to 1000 s for each key, and over all of them
10 failures a second after the first 100."""
