"""The delays between tries: growth, cap, jitter, and the fresh start after a quiet time."""

from __future__ import annotations

import pytest

from shmcache._backoff import Backoff, RetryWindow


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_delays_double_up_to_the_cap() -> None:
    """Without jitter the delays are 0.8 s, doubled each time, and never more than 30 s."""
    backoff = Backoff(jitter=0.0, clock=Clock())
    assert [backoff.next_delay() for _ in range(8)] == pytest.approx(
        [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    )


@pytest.mark.parametrize(("share", "first", "last"), [(0.0, 0.8, 30.0), (0.5, 1.2, 45.0)])
def test_jitter_is_added_after_the_cap(share: float, first: float, last: float) -> None:
    """A random share of the delay comes on top, of the capped one too."""
    backoff = Backoff(clock=Clock(), random=lambda: share)
    delays = [backoff.next_delay() for _ in range(8)]
    assert delays[0] == pytest.approx(first)
    assert delays[-1] == pytest.approx(last)


def test_default_delays_lie_between_once_and_twice_the_base() -> None:
    """With the real random source every first delay is in [0.8, 1.6)."""
    delays = [Backoff().next_delay() for _ in range(100)]
    assert all(0.8 <= delay < 1.6 for delay in delays)
    assert len(set(delays)) > 1


def test_quiet_time_starts_over() -> None:
    """More than reset_after seconds without use bring back the first delay; less do not."""
    clock = Clock()
    backoff = Backoff(jitter=0.0, reset_after=120.0, clock=clock)
    assert backoff.next_delay() == pytest.approx(0.8)
    clock.now += 120.0
    assert backoff.next_delay() == pytest.approx(1.6)
    clock.now += 120.1
    assert backoff.next_delay() == pytest.approx(0.8)
    assert backoff.next_delay() == pytest.approx(1.6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial": -1.0},
        {"initial": 31.0},
        {"factor": 0.5},
        {"jitter": -0.1},
        {"reset_after": -1.0},
        {"cap": float("inf")},
        *({name: float("nan")} for name in ("initial", "factor", "cap", "jitter", "reset_after")),
    ],
)
def test_figures_that_cannot_be_meant_are_refused(arguments: dict[str, float]) -> None:
    """A delay that is negative, shrinks, or cannot be waited for, is a ValueError when the backoff
    is made."""
    with pytest.raises(ValueError, match="need"):
        Backoff(**arguments)  # type: ignore[arg-type]


def test_a_window_begins_with_its_first_error() -> None:
    """Errors are in the window for its seconds from the first, however many they are."""
    clock = Clock()
    window = RetryWindow(30.0, clock=clock)
    admitted = []
    for _ in range(32):
        clock.now += 1.0
        admitted.append(window.admits(quiet=1.0))
    assert admitted == [True] * 31 + [False]


def test_a_quiet_minute_ends_a_window() -> None:
    """After a minute without an error the next one is the first of another window."""
    clock = Clock()
    window = RetryWindow(30.0, clock=clock)
    assert window.admits(quiet=0.0)
    clock.now += 59.9
    assert not window.admits(quiet=59.9)
    clock.now += 60.0
    assert window.admits(quiet=60.0)


def test_a_window_of_nothing_admits_nothing() -> None:
    """With 0 seconds not even the first error is in the window."""
    assert not RetryWindow(0.0, clock=Clock()).admits(quiet=100.0)
