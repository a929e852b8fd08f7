"""Histories: what each process was about to do and what it has done, in a file that survives it.

A record is one line, written by one ``os.write``: nothing is buffered in a process that may be
killed at any instant. The last record of a killed process may be torn; a reader drops it.

    > NUMBER TIME NAME ARGUMENT...    about to begin: the operation may take effect from here on
    < NUMBER TIME RESULT...           over: it has taken effect
    ! TIME TEXT                       the process ends with an error

Times are CLOCK_MONOTONIC nanoseconds, the same clock for every process of the machine. An
operation with no end was cut off by the death of its process: it may have taken effect or not.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Operation", "Recorder", "now", "parse", "read_all"]

now = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one process. ``end`` is None if nobody knows whether it took effect."""

    who: str
    name: str
    start: int
    end: int | None = None
    arguments: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


class Recorder:
    """Appends to one history. Words hold no blanks; the text of an error is the only one."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = 0

    def close(self) -> None:
        os.close(self._fd)

    def begin(self, name: str, *arguments: str) -> None:
        self._number += 1
        os.write(self._fd, f"> {self._number} {now()} {' '.join((name, *arguments))}\n".encode())

    def end(self, *results: str) -> None:
        os.write(self._fd, f"< {self._number} {now()} {' '.join(results)}\n".encode())

    def looked(self, start: int, end: int, name: str, *results: str) -> None:
        """An operation that changed nothing, and so needs no record until it is over."""
        self._number += 1
        begin = f"> {self._number} {start} {name}\n"
        os.write(self._fd, f"{begin}< {self._number} {end} {' '.join(results)}\n".encode())

    def fail(self, error: BaseException) -> None:
        os.write(self._fd, f"! {now()} {' '.join(repr(error).split())}\n".encode())


def parse(who: str, text: str) -> list[Operation]:
    """The operations of one history, in their order. What follows the last newline is torn."""
    operations: dict[str, Operation] = {}
    for line in text.split("\n")[:-1]:
        mark, *words = line.split()
        if mark == ">":
            number, start, name, *arguments = words
            operations[number] = Operation(who, name, int(start), None, tuple(arguments))
        elif mark == "<":
            number, end, *results = words
            begun = operations[number]
            operations[number] = Operation(
                who, begun.name, begun.start, int(end), begun.arguments, tuple(results)
            )
        else:
            time_, *message = words
            error = Operation(who, "error", int(time_), int(time_), (), tuple(message))
            operations["error"] = error
    return list(operations.values())


def read_all(folder: Path) -> list[Operation]:
    """The operations of all processes that left a history in ``folder``."""
    return [
        operation
        for path in sorted(folder.glob("*.history"))
        for operation in parse(path.stem, path.read_text())
    ]
