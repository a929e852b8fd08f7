"""Functions of an object that are named on the command line: by a field, or by where they are.

A field is a path like ``metadata.managedFields``; a dot within a name is written ``\\.``, and
of a list all items are meant. May import: ``_ports``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from shmcache._ports import IndexFunc

__all__ = ["Path", "field_path", "function", "index", "leaving_out"]

Path: TypeAlias = tuple[str, ...]


def field_path(text: str) -> Path:
    """Return the names in a path.

    >>> field_path(r"metadata.labels.app\\.kubernetes\\.io/name")
    ('metadata', 'labels', 'app.kubernetes.io/name')
    """
    names = tuple(name.replace("\\.", ".") for name in re.split(r"(?<!\\)\.", text))
    if not all(names):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the path of a field, like metadata.managedFields"
        )
    return names


def function(text: str) -> Callable[[Any], Any]:
    """Return the function ``module:name``; modules of the current folder are found too."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise argparse.ArgumentTypeError(f"{text!r} must be like module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module does when it is imported
        raise argparse.ArgumentTypeError(
            f"cannot load {text!r}: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no function but {type(found).__name__}")
    made: Callable[[Any], Any] = found
    return made


def index(text: str) -> tuple[str, IndexFunc]:
    """Return name and function of ``node=spec.nodeName`` or ``node=module:function``."""
    name, equals, by = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be like node=spec.nodeName or node=module:function"
        )
    if ":" in by:
        return name, function(by)
    path = field_path(by)
    return name, lambda obj: _texts(obj, path)


def leaving_out(paths: Sequence[Path]) -> Callable[[Any], Any]:
    """Return a function that takes those fields out of the object that it gets.

    >>> leaving_out([("metadata", "uid"), ("items", "b")])(
    ...     {"metadata": {"name": "x", "uid": "7"}, "items": [{"a": 1}, {"b": 2}]}
    ... )
    {'metadata': {'name': 'x'}, 'items': [{'a': 1}, {}]}
    """

    def leave_out(obj: Any) -> Any:
        for path in paths:
            _take_out(obj, path)
        return obj

    return leave_out


def _take_out(at: Any, path: Path) -> None:
    if isinstance(at, list):
        for item in at:
            _take_out(item, path)
    elif isinstance(at, dict) and path[0] in at:
        if len(path) == 1:
            del at[path[0]]
        else:
            _take_out(at[path[0]], path[1:])


def _texts(at: Any, path: Path) -> list[str]:
    """The texts and numbers at ``path``; an object without any is in no place of the index."""
    if isinstance(at, (list, tuple)):
        return [text for item in at for text in _texts(item, path)]
    if path:
        return _texts(at.get(path[0]), path[1:]) if isinstance(at, Mapping) else []
    if isinstance(at, bool):
        return ["true" if at else "false"]
    return [str(at)] if isinstance(at, (str, int, float)) and at != "" else []
