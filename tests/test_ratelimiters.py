"""The limiters of a work queue: delays as client-go computes them, and figures that are refused."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from shmcache import ExponentialBackoff, FastSlow, MaxOf, RateLimiter, TokenBucket, WorkQueue
from shmcache.ratelimiters import DEFAULT

LIMITERS: list[RateLimiter] = [
    ExponentialBackoff(),
    FastSlow(0.005, 10.0, 3),
    TokenBucket(5.0, 7),
    MaxOf(ExponentialBackoff(1.0, 2.0), TokenBucket()),
    DEFAULT,
]


def no_bucket(rate: float, burst: int) -> float:
    raise AssertionError("it has no bucket")


class Bucket:
    """Stands in for the queue's: it says what it is told, and knows what it was asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[tuple[float, int]] = []

    def __call__(self, rate: float, burst: int) -> float:
        self.asked.append((rate, burst))
        return self.seconds


def test_exponential() -> None:
    """5, 10, 20, 40, 80 ms and so on, or 1, 2, 4, 8, 16 of what base says, and never more than
    most, however often the key has failed."""
    stock = ExponentialBackoff()
    assert [stock.delay(n, no_bucket) for n in range(5)] == [0.005, 0.01, 0.02, 0.04, 0.08]
    backoff = ExponentialBackoff(base=0.001, most=1.0)
    assert [backoff.delay(n, no_bucket) for n in range(5)] == [0.001, 0.002, 0.004, 0.008, 0.016]
    assert [backoff.delay(n, no_bucket) for n in (9, 10, 11)] == [0.512, 1.0, 1.0]
    for failures in (63, 64, 1023, 1024, 1025, 65_535, 10**9):
        assert backoff.delay(failures, no_bucket) == 1.0
        assert stock.delay(failures, no_bucket) == 1000.0
        assert ExponentialBackoff(1e300, 1e308).delay(failures, no_bucket) == 1e308


def test_fast_slow() -> None:
    """The first failures wait for the short time, as many as fast_attempts says, all others for
    the long one."""
    limiter = FastSlow(0.005, 10.0, 3)
    assert [limiter.delay(n, no_bucket) for n in range(5)] == [0.005, 0.005, 0.005, 10.0, 10.0]
    assert FastSlow(1.0, 2.0, 0).delay(0, no_bucket) == 2.0


def test_a_bucket_asks_the_queue() -> None:
    """A TokenBucket takes one token of the rate and burst that it was given, and waits for it."""
    bucket = Bucket(1.5)
    assert TokenBucket(5.0, 7).delay(3, bucket) == 1.5
    assert TokenBucket().delay(0, bucket) == 1.5
    assert bucket.asked == [(5.0, 7), (10.0, 100)]


@pytest.mark.parametrize(("waits", "longest"), [(0.0, 0.02), (0.02, 0.02), (3.0, 3.0)])
def test_max_of_asks_every_one(waits: float, longest: float) -> None:
    """MaxOf is the longest of the delays, and takes a token also when that is not the longest."""
    bucket = Bucket(waits)
    limiter = MaxOf(FastSlow(0.001, 0.001, 0), MaxOf(TokenBucket(1.0, 1)), ExponentialBackoff())
    assert limiter.delay(2, bucket) == longest
    assert bucket.asked == [(1.0, 1)]
    assert DEFAULT.delay(2, bucket) == longest
    assert bucket.asked == [(1.0, 1), (10.0, 100)]


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: ExponentialBackoff(base=0.0), "base=0.0"),
        (lambda: ExponentialBackoff(base=-1), "base=-1"),
        (lambda: ExponentialBackoff(base=2.0, most=1.0), "most=1.0"),
        (lambda: ExponentialBackoff(base=math.nan), "base=nan"),
        (lambda: ExponentialBackoff(most=math.inf), "most=inf"),
        (lambda: FastSlow(-0.1, 1.0, 3), "fast=-0.1"),
        (lambda: FastSlow(0.1, math.inf, 3), "slow=inf"),
        (lambda: FastSlow(0.1, math.nan, 3), "slow=nan"),
        (lambda: FastSlow(0.1, 1.0, -1), "-1"),
        (lambda: TokenBucket(rate=0.0), "0.0"),
        (lambda: TokenBucket(rate=-2.0), "-2.0"),
        (lambda: TokenBucket(rate=math.inf), "inf"),
        (lambda: TokenBucket(rate=math.nan), "nan"),
        (lambda: TokenBucket(rate=1e12, burst=10**20), "1000000000000.0"),  # more than 64 bits
        (lambda: TokenBucket(burst=0), "0"),
        (lambda: TokenBucket(rate=1e-9, burst=100), "rate=1e-09"),
        (lambda: MaxOf(), "none"),
        (lambda: MaxOf(TokenBucket(), TokenBucket(1.0, 1)), "2"),
        (lambda: MaxOf(TokenBucket(), MaxOf(TokenBucket(1.0, 1))), "2"),
    ],
)
def test_figures_that_make_no_sense(make: Callable[[], object], value: str) -> None:
    """Figures that could give no delay, or a wrong one, are a ValueError that has the value."""
    with pytest.raises(ValueError, match=value):
        make()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda wrong: ExponentialBackoff(base=wrong), "base of ExponentialBackoff is a number"),
        (lambda wrong: ExponentialBackoff(most=wrong), "most of ExponentialBackoff is a number"),
        (lambda wrong: FastSlow(wrong, 1.0, 3), "fast of FastSlow is a number"),
        (lambda wrong: FastSlow(0.1, wrong, 3), "slow of FastSlow is a number"),
        (lambda wrong: FastSlow(0.1, 1.0, wrong), "fast_attempts of FastSlow is an int"),
        (lambda wrong: TokenBucket(rate=wrong), "rate of TokenBucket is a number"),
        (lambda wrong: TokenBucket(burst=wrong), "burst of TokenBucket is an int"),
    ],
)
def test_figures_of_another_type(make: Callable[[Any], object], said: str) -> None:
    """What is no number, and a fraction where things are counted, is a TypeError that says it."""
    for wrong in ("x", None, True, *([1.5] if said.endswith("int") else [])):
        with pytest.raises(TypeError, match=re.escape(f"{said}, not {wrong!r}")):
            make(wrong)


@pytest.mark.parametrize("wrong", [3.0, "fast", None, ExponentialBackoff])
def test_what_is_no_limiter(wrong: Any) -> None:
    """What has no delay(), and a class in the place of a limiter, is a TypeError."""
    with pytest.raises(TypeError, match="not "):
        MaxOf(wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match="rate_limiter"):
            WorkQueue.create(rate_limiter=wrong)


@pytest.mark.parametrize("limiter", LIMITERS, ids=repr)
def test_limiters_are_values(limiter: RateLimiter) -> None:
    """A limiter is equal to its pickled self, hashable, frozen, and a RateLimiter."""
    again = pickle.loads(pickle.dumps(limiter))
    assert again == limiter
    assert hash(again) == hash(limiter)
    assert isinstance(limiter, RateLimiter)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(limiter, dataclasses.fields(limiter)[0].name, 3.0)  # type: ignore[arg-type]
