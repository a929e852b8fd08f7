"""The objects that ``shmcache bench`` measures with: made up, or a user's own.

May import: the facade.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shmcache

__all__ = ["key_func", "loaded", "made"]

_COUNT = 1000


def made(size: int) -> list[Any]:
    """Objects of about ``size`` bytes of JSON: a pod's shape, filled up with variables."""
    variables = max(0, size - 170) // 40
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": f"team-{n % 20}",
                "name": f"web-{n}",
                "labels": {"app": "web"},
            },
            "spec": {
                "nodeName": f"node-{n % 50}",
                "env": [{"name": f"V{v:04}", "value": f"{n * v:010}"} for v in range(variables)],
            },
        }
        for n in range(_COUNT)
    ]


def loaded(where: str) -> list[Any]:
    """The objects of a file, ``-`` for stdin. ``argparse.ArgumentTypeError`` if it holds none."""
    try:
        text = sys.stdin.read() if where == "-" else Path(where).read_text()
        try:
            found = json.loads(text)
        except ValueError:
            found = [
                _line(number, line) for number, line in enumerate(text.splitlines(), 1) if line
            ]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{where}: {error}") from None
    if isinstance(found, dict):
        found = found["items"] if isinstance(found.get("items"), list) else [found]
    if not isinstance(found, list) or not found or not all(isinstance(o, dict) for o in found):
        raise argparse.ArgumentTypeError(
            f"{where} is neither a list of JSON objects nor has one in each line"
        )
    return list(found)


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from None


def key_func(objects: list[Any]) -> Callable[[Any], str]:
    """The stock function if it tells these objects apart, else their place in the list."""
    try:
        if len(set(map(shmcache.meta_namespace_key_func, objects))) == len(objects):
            return shmcache.meta_namespace_key_func
    except shmcache.KeyFuncError:
        pass
    places = {id(obj): str(place) for place, obj in enumerate(objects)}
    return lambda obj: places[id(obj)]
