"""What is stored: payloads that say what they are, and the contents that the replacer replaces.

Everything here is a pure function, so that the judge can work out what a reader should have seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

__all__ = ["content", "digest", "event", "generation_of", "key_of", "make", "name_of"]

EVENTS_PER_GENERATION = 1000


def make(key: str, version: int, size: int) -> bytes:
    """A payload of some ``size`` bytes that names its key and version and bears a checksum."""
    name = f"{key}:{version}".encode()
    body = (name * (size // len(name) + 1))[:size]
    return b"%s %08x %s" % (name, zlib.crc32(body, zlib.crc32(name)), body)


def name_of(payload: bytes) -> str:
    """``KEY:VERSION`` of a payload, or ``torn`` if it is not whole."""
    name, checksum, body = (*payload.split(b" ", 2), b"", b"")[:3]
    if checksum == b"%08x" % zlib.crc32(body, zlib.crc32(name)):
        return name.decode()
    return "torn"


def key_of(payload: bytes) -> str:
    """The key function of every arena here."""
    return payload[: payload.index(b":")].decode()


# The replacer writes generation after generation: a whole content, then single events on it.
# Versions are generation * EVENTS_PER_GENERATION + event. Keys that begin with "steady" never
# change, so that a replace has also entries to keep.


def content(generation: int) -> dict[str, int]:
    """Key to version, right after the replace of that generation. Size and keys change with it."""
    first, count = generation * 13 % 50, 20 + generation * 37 % 200
    changing = {f"n{i}": generation * EVENTS_PER_GENERATION for i in range(first, first + count)}
    return {f"steady{i}": 0 for i in range(10)} | changing


def event(generation: int, number: int) -> tuple[str, int | None]:
    """The key that an event (from 1) changes, and its new version, or None to delete it."""
    key = f"n{(generation + number * 7) % 250}"
    return key, None if number % 4 == 0 else generation * EVENTS_PER_GENERATION + number


def generation_of(version: int) -> int:
    return version // EVENTS_PER_GENERATION


def digest(names: Iterable[str]) -> int:
    """One number for a set of ``KEY:VERSION``, in any order; it can be kept up to date by
    adding and subtracting the digests of single names."""
    return sum(zlib.crc32(name.encode()) for name in names)
