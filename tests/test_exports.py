"""The facade: sorted, complete, and no room imports what it must not."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmcache

PACKAGE = Path(shmcache.__file__).parent
# Which modules of shmcache a room may import: the one natural way through the house.
MAY_IMPORT = {
    "_errors": set(),
    "_logging": set(),
    "_types": set(),
    "_frozen": {"_core"},
    "_objects": set(),
    "_resource_version": set(),
    "_backoff": set(),
    "keys": {"_errors"},
    "_ports": {"_types"},
    "_status": {"_errors", "_core"},
    "selectors": {"_errors"},
    "codecs": {"_core", "_frozen", "codecs"},
    "listwatch": {"_ports", "_types", "_errors"},
    "_arena": {"_core", "_errors", "_status", "_types"},
    "sources": {
        "_errors",
        "_logging",
        "_types",
        "_ports",
        "keys",
        "listwatch",
        "sources",
    },
    "_background": set(),
    "_counters": {"_types"},
    "_failures": {"_backoff", "_errors"},
    "_initial_events": {"keys"},
    "_intake": {"_counters", "_errors", "_logging", "_objects", "_ports", "_types", "listwatch"},
    "_open_watch": {"_failures", "_logging", "_types"},
    "_pager": {"_errors", "_types"},
    "_seat": {"_errors", "_logging", "_ports", "_types"},
    "reflector": {
        "_background",
        "_backoff",
        "_counters",
        "_errors",
        "_failures",
        "_initial_events",
        "_intake",
        "_logging",
        "_objects",
        "_open_watch",
        "_pager",
        "_ports",
        "_seat",
        "_types",
        "listwatch",
    },
    "_sleeper": set(),
    "changes": {"_core", "_errors", "_handle", "_sleeper", "_types"},
    "_handle": {"_arena", "_core", "_errors", "_types"},
    "store": {
        "_arena",
        "_core",
        "_errors",
        "_handle",
        "_objects",
        "_ports",
        "_resource_version",
        "_sleeper",
        "_types",
        "changes",
        "codecs",
        "keys",
    },
    "indexer": {"_core", "_errors", "_ports", "keys", "store"},
    "claims": {"_core", "_errors"},
    "fifo": {"_core", "_errors", "_handle", "_ports", "_types", "claims", "keys", "store"},
    "ratelimiters": set(),
    "workqueue": {
        "_arena",
        "_core",
        "_errors",
        "_handle",
        "_ports",
        "_types",
        "claims",
        "ratelimiters",
    },
    "_attach": {"_arena", "_ports", "codecs", "fifo", "indexer", "store", "workqueue"},
    "informer": {
        "_background",
        "_errors",
        "_logging",
        "_ports",
        "_types",
        "reflector",
        "store",
    },
    "shared": {"_ports", "_types", "reflector", "store"},
    "undelta": {"_ports", "_types", "keys", "store"},
    "poller": {"_background", "_logging", "_ports"},
    "listers": {"_errors", "_objects", "_ports", "selectors"},
    "observe": {"_arena", "_attach", "_errors", "_logging", "_types", "workqueue"},
    "testing": {
        "_arena",
        "_errors",
        "fifo",
        "keys",
        "reflector",
        "sources",
        "store",
        "workqueue",
    },
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
    """A source never sees a store, the reflector never sees bytes, and so on; and nobody may import
    what he does not."""
    path = PACKAGE / f"{room}.py"
    files = [path] if path.exists() else sorted((PACKAGE / room).glob("*.py"))
    assert files
    for file in files:
        assert imports_of(file) <= MAY_IMPORT[room], file
    assert set().union(*map(imports_of, files)) == MAY_IMPORT[room]


def test_every_room_has_its_rule() -> None:
    """The table above leaves out only those that may import all that users may: the commands and
    the demonstration."""
    rooms = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms - set(MAY_IMPORT) == {"__init__", "__main__", "cli", "demo"}


def test_docstrings_name_what_is_imported() -> None:
    """What stands behind "May import:" in the docstring of a module has all that it imports."""
    checked = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        may = doc.partition("May import:")[2].partition("\n\n")[0]
        if not may:
            continue
        named = set(re.findall(r"``([\w.]+)``", doc if "those" in may else may))
        if "what it may import" in may:
            named |= MAY_IMPORT["store"]
        if "facade" in may or "public" in may:
            named.add("shmcache")
        for module in modules_imported(path):
            assert named & {module, module.split(".")[0]}, f"{path} imports {module}"
        checked += 1
    assert checked > 50


def modules_imported(path: Path) -> set[str]:
    """The modules of shmcache that a file imports; those of its own folder too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = PACKAGE.parent / node.module.replace(".", "/")
            inside = {
                a.name for a in node.names if [*folder.glob(a.name), *folder.glob(f"{a.name}.*")]
            }
            found |= {f"{node.module}.{name}" for name in inside} or {node.module}
    return {name.removeprefix("shmcache.") for name in found if name.startswith("shmcache")}


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


def test_every_type_is_exported_and_explained() -> None:
    """Each type and protocol that a signature may name can be imported by users, and says below it
    what it is."""
    tree = ast.parse((PACKAGE / "_ports.py").read_text())
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(after, ast.Expr), f"{node.target.id} has no docstring"
    assert set(importlib.import_module("shmcache._ports").__all__) <= set(shmcache.__all__)


def test_importing_stays_light() -> None:
    """import shmcache loads none of the optional libraries."""
    optional = (
        "kubernetes",
        "msgspec",
        "prometheus_client",
        "rich",
        "urllib3",
        "watchfiles",
        "yaml",
    )
    code = f"import sys, shmcache; print([m for m in {optional} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_imports_no_more() -> None:
    """import shmcache, and to read and pop with it, loads none of what only writers need."""
    writers = ("asyncio", "hashlib", "logging", "random", "socket", "ssl", "subprocess")
    code = (
        "import sys; before = set(sys.modules); import shmcache\n"
        "with shmcache.FIFO.create(capacity='1MiB') as fifo:\n"
        "    fifo.unlink(); fifo.add({'metadata': {'name': 'a'}})\n"
        "    fifo.get_by_key('a'); fifo.pop()\n"
        f"print([m for m in {writers} if m in set(sys.modules) - before])\n"
        "print([m for m in ('ratelimiters', 'reflector', 'sources', 'poller', 'selectors', "
        "'workqueue') if f'shmcache.{m}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def test_what_is_imported_later_is_there() -> None:
    """Each name of the facade comes in a fresh interpreter, by attribute, by from-import and by
    star-import, is in dir(), and is the one of its module; other names are an AttributeError."""
    code = (
        "import shmcache\n"
        "assert set(shmcache.__all__) | {'sources'} <= set(dir(shmcache))\n"
        "assert 'Reflector' not in vars(shmcache)\n"
        "from shmcache import Reflector\n"
        "from shmcache import *\n"
        "import shmcache.reflector\n"
        "assert Reflector is shmcache.Reflector is shmcache.reflector.Reflector\n"
        "assert all(globals()[name] is getattr(shmcache, name) for name in shmcache.__all__)\n"
        "assert callable(shmcache.sources.load)\n"
        "assert not hasattr(shmcache, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_module_has_all() -> None:
    """Each private module says what it gives."""
    for path in sorted(PACKAGE.glob("*.py")):
        if path.name != "__init__.py":
            module = importlib.import_module(f"shmcache.{path.stem}")
            assert hasattr(module, "__all__"), path.name
