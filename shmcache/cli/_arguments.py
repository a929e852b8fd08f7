"""Values on a command line: what an option takes, and what is said of anything else.

May import: nothing of shmcache.
"""

from __future__ import annotations

import argparse
import math
import pwd
from pathlib import Path

__all__ = ["count", "existing_file", "limit", "port", "refresh_interval", "seconds", "user"]


def count(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 on, not {text!r}")
    return int(text)


def limit(text: str) -> int:
    """A number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number from 0 on, not {text!r}")
    return int(text)


def port(text: str) -> int:
    """A port to listen on, 0 for any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A time span that is not endless."""
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0, not {text!r}")
    return value


def refresh_interval(text: str) -> float:
    """Seconds between two looks of a screen."""
    if not 0.05 <= (value := _number(text)) <= 3600:
        raise argparse.ArgumentTypeError(f"a number of seconds from 0.05 to 3600, not {text!r}")
    return value


def user(text: str) -> int:
    """A user of this machine, by number or name; the number."""
    if text.isdecimal():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no user {text!r} on this machine") from None


def existing_file(text: str) -> str:
    """The path of a file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"no such file: {text}")
    return text


def _number(text: str) -> float:
    """NaN, which is within no bounds, of what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
