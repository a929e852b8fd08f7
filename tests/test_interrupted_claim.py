"""Exceptions of signal handlers around a claim: wherever they strike, the item goes back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmcache
from shmcache import FIFO
from shmcache.claims import Claim
from tests.test_interrupted_pop import strikes

FILES = ("shmcache/fifo.py", "shmcache/claims.py", "tests/test_interrupted_claim.py")


def block(fifo: FIFO) -> list[Any]:
    with fifo.claim(0) as item:
        assert item == "x"
    return [item]


def calls(fifo: FIFO) -> list[Any]:
    claim = fifo.claim(0, lease=1e6)
    claim.renew(None)
    claim.done()
    return [claim.item]


def failing_block(fifo: FIFO) -> list[Any]:
    try:
        with fifo.claim(0):
            raise LookupError
    except LookupError:
        return ["failed"]


def undecodable(fifo: FIFO) -> list[Any]:
    fifo.add_raw("k0", b"\xc1")
    try:
        fifo.claim(0)
    except shmcache.CodecError:
        fifo.add_raw("k0", b"\xa1x")
    return ["failed"]


@pytest.fixture
def fifo() -> Iterator[FIFO]:
    with FIFO.create(capacity="1MiB", max_attempts=10_000) as made:
        yield made
        assert made.check() == []
        made.unlink()


@pytest.fixture(autouse=True)
def _no_other_tracer() -> None:
    if sys.gettrace() is not None:
        pytest.skip("another tracer is at work")


def refill(fifo: FIFO) -> None:
    while not fifo.empty():
        fifo.pop_raw(0)
    for key in ("k0", "k1"):
        fifo.add_raw(key, b"\xa1x")


def attempts(fifo: FIFO) -> int:
    """How many claims of the first item there have been, that count."""
    fifo.add_raw("k0", b"\xa1x")  # can be decoded, and has its failures still
    claim = fifo.claim(0)
    claim.release()
    return claim.attempt - 1


@pytest.mark.parametrize(
    ("consume", "counts"), [(block, 0), (calls, 0), (failing_block, 1), (undecodable, 1)]
)
def test_struck_at_any_bytecode(
    fifo: FIFO, consume: Callable[[FIFO], list[Any]], counts: int
) -> None:
    """An exception between any two bytecodes of a claim, its block and its end leaves nothing in
    flight: the item is at its place, as it was, or its claim has ended as it would have."""
    back = ended = 0
    refill(fifo)
    for taken in strikes(fifo, consume, FILES):
        gc.collect()  # struck in an `except`, an exception and its frame keep each other
        assert fifo.in_flight() == []
        assert fifo.check() == []
        keys = fifo.list_keys()
        assert keys == ["k0", "k1"] or (keys == ["k1"] and not counts)
        if keys == ["k0", "k1"] and attempts(fifo) == 0:
            assert taken is None
            back += 1
        else:
            assert keys == ["k1"] or attempts(fifo) == counts
            ended += 1
        refill(fifo)
    assert back > 20
    assert ended > 0


def test_the_planted_fault_is_found(fifo: FIFO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody keeps what ends a claim with its last reference, the same test finds the item
    in flight."""
    refill(fifo)
    kept: list[object] = []
    init = Claim.__init__

    def keeping(self: Claim[Any], core: Any, key: str, item: Any, token: Any, n: int) -> None:
        kept.append(token)
        init(self, core, key, item, token, n)

    monkeypatch.setattr(Claim, "__init__", keeping)
    assert any(fifo.in_flight() for _ in strikes(fifo, block, FILES))


def test_a_forgotten_claim_goes_back(fifo: FIFO) -> None:
    """A claim that nobody refers to any more is released; one that has ended is not touched."""
    refill(fifo)
    fifo.claim(0)
    assert fifo.list_keys() == ["k0", "k1"]
    assert attempts(fifo) == 0
    fifo.claim(0).done()
    assert fifo.list_keys() == ["k1"]
    claim = fifo.claim(0)
    claim.fail()
    again = fifo.claim(0)
    del claim
    assert [one.attempt for one in fifo.in_flight()] == [2]
    again.done()
