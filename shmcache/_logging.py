"""The loggers of shmcache: one for each module that logs, quiet until the application wants them.

``shmcache.observe`` says how to turn them on, and which fields a record has. Where reads and pops
are there is nothing to log, and this is not imported. May import: nothing of shmcache.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

__all__ = ["Log", "get_logger"]

# Else Python prints the warnings of a library to stderr, if the application configures nothing.
logging.getLogger("shmcache").addHandler(logging.NullHandler())


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records carry fields: its own, and those of the call's ``extra``."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def get_logger(name: str, **fields: object) -> Log:
    """The logger ``name``, which is that of the module that asks, with ``fields``.

    >>> get_logger("shmcache.reflector", arena="web-pods").extra
    {'arena': 'web-pods'}
    """
    return Log(logging.getLogger(name), fields)
