"""Which objects of an arena a command is to show: by key, by labels, by fields.

May import: the facade, ``cli._failure``, ``cli._json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shmcache import FieldSelector, LabelSelector, SelectorError
from shmcache.cli._failure import Failure
from shmcache.cli._json import to_json

__all__ = ["Selection", "add_selection"]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Declare ``--prefix``, ``--selector`` and ``--field-selector``."""
    parser.add_argument("--prefix", default="", metavar="TEXT", help="keys that begin with TEXT")
    parser.add_argument(
        "-l",
        "--selector",
        type=_parsed(LabelSelector.parse),
        metavar="LABELS",
        help="objects with these labels: app=web,tier!=db, 'app in (web, api)', !legacy",
    )
    parser.add_argument(
        "--field-selector",
        type=_parsed(FieldSelector.parse),
        metavar="FIELDS",
        help="objects with these fields: spec.nodeName=n1,status.phase!=Failed (any path)",
    )


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return parse(text)
        except SelectorError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


@dataclass(frozen=True, slots=True)
class Selection:
    """What the three options ask for."""

    prefix: str
    labels: LabelSelector | None
    fields: FieldSelector | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Selection:
        """The selection that the command line asks for."""
        return cls(options.prefix, options.selector, options.field_selector)

    def wants_key(self, key: str) -> bool:
        """Whether the object of ``key`` is to be looked at."""
        return key.startswith(self.prefix)

    def wants(self, key: str, obj: Any) -> bool:
        """Whether the object is asked for. One without labels is one with none."""
        if not self.wants_key(key):
            return False
        if self.labels is None and self.fields is None:
            return True
        if isinstance(obj, bytes):
            raise Failure(
                "the objects are bytes of a codec that only its owner can read, so there are no "
                "labels or fields to select by: use --prefix",
                2,
            )
        if self.labels is not None:
            labels = _at(obj, "metadata.labels")
            if not self.labels.matches(labels if isinstance(labels, Mapping) else None):
                return False
        if self.fields is None:
            return True
        return self.fields.matches({t.field: _text(_at(obj, t.field)) for t in self.fields.terms})


def _at(obj: Any, path: str) -> Any:
    """What ``obj`` has at a dotted path, None if nothing. Names may have dots themselves, as
    those of labels: the longest name that is there wins."""
    if not isinstance(obj, Mapping):
        return None
    if path in obj:
        return obj[path]
    end = path.rfind(".")
    while end > 0:
        if path[:end] in obj:
            return _at(obj[path[:end]], path[end + 1 :])
        end = path.rfind(".", 0, end)
    return None


def _text(value: Any) -> str:
    """A value as a field selector has it: ``""`` for what is not there."""
    if value is None:
        return ""
    return value if isinstance(value, str) else to_json(value)
