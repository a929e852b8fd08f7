"""Live progress of the demo: a bar on a terminal, plain lines anywhere else.

May import: nothing of shmcache; rich if it is there and the stream is a terminal.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

__all__ = ["Display", "Progress", "open_display"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    pods: int
    created: int
    queued: int
    bound: int
    per_worker: tuple[int, ...]


class Display(Protocol):
    """Where a run shows how it goes."""

    def note(self, text: str) -> None:
        """Show one line that stays."""

    def update(self, progress: Progress) -> None:
        """Show how far the run is; called several times a second."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_display(stream: TextIO) -> Display:
    """Return a display on ``stream``: live if it is a terminal and rich is installed."""
    if stream.isatty():
        try:
            return _RichDisplay(stream)
        except ImportError:
            pass
    return _PlainDisplay(stream)


class _PlainDisplay:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def update(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1.0
            self.note(
                f"created {progress.created}/{progress.pods}  queued {progress.queued}  "
                f"bound {progress.bound}  by worker {list(progress.per_worker)}"
            )

    def close(self) -> None:
        pass


class _RichDisplay:
    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=Console(file=stream),
        )
        self._tasks: dict[str, Any] = {}
        self._seen: tuple[float, int] | None = None
        self._bars.start()

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)

    def update(self, progress: Progress) -> None:
        self._bar("created", progress.created, progress.pods)
        self._bar("queued", progress.queued, progress.pods)
        self._bar("bound", progress.bound, progress.pods, self._rate(progress.bound))
        for number, bound in enumerate(progress.per_worker):
            self._bar(f"worker {number}", bound, progress.pods)

    def close(self) -> None:
        self._bars.stop()

    def _bar(self, name: str, value: int, total: int, rate: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, rate="")
        self._bars.update(self._tasks[name], completed=value, rate=rate)

    def _rate(self, bound: int) -> str:
        """Pods a second since the first look."""
        now = time.monotonic()
        if self._seen is None or not bound:
            self._seen = now, bound
        elapsed, gained = now - self._seen[0], bound - self._seen[1]
        return f"{gained / elapsed:,.0f}/s" if elapsed > 0 and gained else ""
