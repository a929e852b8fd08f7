"""What a command that runs for long says on stdout: a line, or a JSON object, for each change.

A program that writes to a log for months must not fill it: of warnings of one kind, one in a
minute is shown, and how many were not is said with the next. May import: nothing of shmcache.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

__all__ = ["Log"]

_logger = logging.getLogger("shmcache.cli")

_MINUTE = 60.0

_FIELDS = ("arena", "resource", "error", "status")  # of records of the library


class Log(logging.Handler):
    """The log of shmcache on stdout, as a context manager; ``say`` adds lines of our own.

    ``as_json``: a JSON object a line. ``verbose``: 0 for warnings of the library, 1 for what it
    tells besides, 2 for everything; from 1 on nothing is held back. ``broken`` is true once
    nobody reads stdout any more: writing then does nothing, since it happens in any thread.
    """

    def __init__(
        self, as_json: bool, verbose: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.broken = False
        self._as_json = as_json
        self._level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
        self._clock = clock
        self._shown: dict[tuple[Any, ...], float] = {}
        self._held_back: dict[tuple[Any, ...], int] = {}

    def __enter__(self) -> Self:
        logger = logging.getLogger("shmcache")
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.propagate = False
        logger.setLevel(self._level)
        _logger.setLevel(min(self._level, logging.INFO))
        return self

    def __exit__(self, *exc_info: object) -> None:
        logger = logging.getLogger("shmcache")
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before
        _logger.setLevel(logging.NOTSET)

    def say(self, event: str, text: str, level: int = logging.INFO, **fields: object) -> None:
        """Write a line of our own: ``text`` for people, ``event`` and ``fields`` for programs."""
        _logger.log(level, text, extra={"fields": {"event": event, **fields}})

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        text = record.getMessage()
        if fields is None:
            said = vars(record)
            fields = {"event": "log"} | {name: said[name] for name in _FIELDS if name in said}
            if self._level == logging.WARNING:
                more = self._admit(record)
                if more is None:
                    return
                if more:
                    text += f" ({more} more of this kind since the last)"
        moment = datetime.fromtimestamp(record.created, UTC)
        level = record.levelname.lower()
        if self._as_json:
            line = json.dumps(
                {
                    "time": moment.isoformat(timespec="milliseconds"),
                    "level": level,
                    **fields,
                    "message": text,
                }
            )
        else:
            stamp = moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            line = f"{stamp} {text}" if level == "info" else f"{stamp} {level}: {text}"
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self.broken = True
        except OSError:
            pass  # a full disk is no reason to stop what the log is about

    def _admit(self, record: logging.LogRecord) -> int | None:
        """How many of this kind were held back since the last, None to hold back this one too."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        errors = (error for error in arguments if isinstance(error, Exception))
        kind = (record.msg, *((type(e), getattr(e, "status", None)) for e in errors))
        now = self._clock()
        if now - self._shown.get(kind, -_MINUTE) < _MINUTE:
            self._held_back[kind] = self._held_back.get(kind, 0) + 1
            return None
        self._shown[kind] = now
        return self._held_back.pop(kind, 0)
