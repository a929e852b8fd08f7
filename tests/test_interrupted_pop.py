"""Exceptions of signal handlers inside pop: wherever they strike, the item is not lost."""

from __future__ import annotations

import asyncio
import dis
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from shmcache import FIFO, RawCodec

POPS: dict[str, Callable[[FIFO], list[Any]]] = {
    "pop": lambda fifo: [fifo.pop(0)],
    "pop_raw": lambda fifo: [fifo.pop_raw(0)],
    "pop_many": lambda fifo: fifo.pop_many(2, 0),
    "pop_async": lambda fifo: [asyncio.run(fifo.pop_async(0))],
}


# Before these the interpreter does not look for signals.
UNSEEN = {dis.opmap[name] for name in ("RETURN_VALUE", "PUSH_EXC_INFO") if name in dis.opmap}


class Strike(BaseException):
    """What the signal handler raises."""


def strikes(
    fifo: Any, pop: Callable[[Any], list[Any]], files: tuple[str, ...] = ("shmcache/fifo.py",)
) -> Iterator[list[Any] | None]:
    """Run `pop` again and again, each time with Strike raised one bytecode later in the frames of
    ``files``; yield what it returned, None if it was struck. Ends when it ran through.

    Before UNSEEN nothing is raised.
    """
    sys._getframe().f_trace_opcodes = True  # Python 3.12 wants it before the tracer is set
    at = 0
    while True:
        left = at

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename.endswith(files):
                frame.f_trace_opcodes = True
                code = frame.f_code.co_code[frame.f_lasti]
                if event == "opcode" and code not in UNSEEN:
                    left -= 1
                    if left == -1:
                        sys.settrace(None)
                        raise Strike
                return trace
            return trace if event == "call" else None

        sys.settrace(trace)
        try:
            taken: list[Any] | None = pop(fifo)
        except Strike:
            taken = None
        finally:
            sys.settrace(None)
        yield taken
        if taken is not None:
            return
        at += 1


@pytest.mark.parametrize("name", POPS)
def test_struck_at_any_bytecode(name: str, fifo: FIFO) -> None:
    """An exception between any two bytecodes of a pop leaves every item in the queue, in order."""
    if sys.gettrace() is not None:
        pytest.skip("another tracer is at work")
    for i in range(4):
        fifo.add_raw(f"k{i}", b"\xa1x")
    rounds = 0
    for taken in strikes(fifo, POPS[name]):
        rounds += 1
        if taken is None:
            assert fifo.list_keys() == ["k0", "k1", "k2", "k3"]
            assert fifo.check() == []
        else:
            assert fifo.list_keys() == [f"k{i}" for i in range(len(taken), 4)]
    assert rounds > 10


def test_the_planted_fault_is_found(fifo: FIFO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the put-back the same test loses an item: it can fail."""
    if sys.gettrace() is not None:
        pytest.skip("another tracer is at work")
    fifo.add_raw("k0", b"\xa1x")

    class Forgetful:
        def __init__(self, core: Any) -> None:
            self.pop = core.pop
            self.put_back = lambda hand: None

    with monkeypatch.context() as planted:
        planted.setattr(fifo, "_core", Forgetful(fifo._core))
        with pytest.raises(queue.Empty):  # the item is gone
            list(strikes(fifo, POPS["pop"]))


class TimeIsUp(Exception):
    """What the handler of an alarm raises, or a worker's soft time limit."""


class Slow(RawCodec):
    """Once a signal comes while it is at work."""

    def decode(self, data: Any) -> Any:
        if signal.getsignal(signal.SIGUSR1) is time_is_up:
            signal.raise_signal(signal.SIGUSR1)
        return super().decode(data)


def time_is_up(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    raise TimeIsUp


@pytest.mark.parametrize("name", [*POPS, "claim"])
def test_struck_in_the_codec(name: str) -> None:
    """An Exception of a signal handler that strikes while the codec is at work is not the codec's:
    it goes on, and the item goes back with all its attempts."""
    with FIFO.create(capacity="1MiB", codec=Slow(), key_func=str, max_attempts=1) as fifo:
        fifo.unlink()
        fifo.add_raw("k0", b"x")
        pop = POPS.get(name, lambda fifo: [fifo.claim(0).item])
        if name != "pop_raw":
            signal.signal(signal.SIGUSR1, time_is_up)
            with pytest.raises(TimeIsUp):
                pop(fifo)
        assert (fifo.qsize(), fifo.in_flight(), fifo.dead_letters()) == (1, [], [])
        assert pop(fifo) in ([b"x"], [("k0", b"x")])


def test_a_newer_version_stays(fifo: FIFO) -> None:
    """An item whose key was queued again meanwhile is not put back over the newer version."""
    for key in ("a", "b", "c"):
        fifo.add_raw(key, b"\xa1x")
    hand: list[Any] = []
    fifo._core.pop(2, 0, hand)
    fifo.add_raw("a", b"\xa1y")
    fifo._core.put_back(hand)
    assert [fifo.pop_raw(0) for _ in range(3)] == [
        ("b", b"\xa1x"),
        ("c", b"\xa1x"),
        ("a", b"\xa1y"),
    ]
