"""The facade: sorted, complete, and no room imports what it must not."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import shmcache

PACKAGE = Path(shmcache.__file__).parent
BASE = {"_errors", "_types", "_frozen", "_backoff", "_objects", "keys"}
# Which modules of shmcache a room may import: the one natural way through the house.
MAY_IMPORT = {
    "_errors": set(),
    "_types": set(),
    "_frozen": set(),
    "_objects": {"_errors"},
    "_backoff": set(),
    "keys": {"_errors"},
    "_ports": {"_types"},
    "_status": {"_errors", "_core"},
    "selectors": {"_errors"},
    "codecs": {"_frozen", "_errors", "codecs"},
    "listwatch": {"_ports", "_types", "_errors"},
    "_arena": {"_core", "_errors", "_status", "_types"},
    "sources": {"_errors", "_types", "_ports", "keys", "listwatch", "sources", "selectors"},
    "_background": set(),
    "_counters": {"_types"},
    "_failures": {"_backoff", "_errors"},
    "_initial_events": {"keys"},
    "_intake": {"_counters", "_errors", "_objects", "_ports", "_types", "listwatch"},
    "_open_watch": {"_failures", "_types"},
    "_pager": {"_errors", "_types"},
    "_seat": {"_errors", "_ports", "_types"},
    "reflector": {
        "_background",
        "_backoff",
        "_counters",
        "_errors",
        "_failures",
        "_initial_events",
        "_intake",
        "_objects",
        "_open_watch",
        "_pager",
        "_ports",
        "_seat",
        "_types",
        "listwatch",
    },
    "store": {"_arena", "_core", "_errors", "_ports", "_types", "codecs", "keys"},
    "indexer": {"_core", "_errors", "_ports", "keys", "store"},
    "fifo": {"_errors", "_ports", "keys", "store"},
    "shared": {"_ports", "_types", "reflector", "store"},
    "undelta": {"_ports", "_types", "keys", "store"},
    "poller": {"_background", "_ports"},
    "listers": {"_errors", "_objects", "_ports", "selectors"},
}


def imports_of(path: Path) -> set[str]:
    """First-level modules of shmcache that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "shmcache":
                found |= {f"shmcache.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name.split(".")[1] for name in found if name.startswith("shmcache.")}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_they_may(room: str) -> None:
    """A source never sees a store, the reflector never sees bytes, and so on."""
    path = PACKAGE / f"{room}.py"
    files = [path] if path.exists() else sorted((PACKAGE / room).glob("*.py"))
    assert files
    for file in files:
        assert imports_of(file) <= MAY_IMPORT[room], file


def test_all_is_sorted_and_complete() -> None:
    """__all__ is sorted as ruff sorts it, and every name of it exists."""
    names = shmcache.__all__
    assert len(set(names)) == len(names)
    constants = [n for n in names if n.isupper()]
    classes = [n for n in names if n[0].isupper() and not n.isupper()]
    functions = [n for n in names if n[0].islower()]
    assert names == sorted(constants) + sorted(classes) + sorted(functions)
    for name in names:
        assert hasattr(shmcache, name)


def test_importing_stays_light() -> None:
    """import shmcache loads none of the optional libraries."""
    optional = ("kubernetes", "msgspec", "rich", "urllib3", "watchfiles", "yaml")
    code = f"import sys, shmcache; print([m for m in {optional} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_has_all() -> None:
    """Each private module says what it gives."""
    for path in sorted(PACKAGE.glob("*.py")):
        if path.name != "__init__.py":
            module = importlib.import_module(f"shmcache.{path.stem}")
            assert hasattr(module, "__all__"), path.name
