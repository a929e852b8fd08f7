"""Sources by name: anybody may bring one."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from shmcache import ListerWatcher, ListOptions, sources

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Puts a distribution with one module and one source into a folder that Python looks in."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(distribution: str, name: str, code: str) -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[shmcache.sources]\n{name} = {module}:Source\n")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


SOURCE = """
from shmcache import ListResult

class Source:
    def __init__(self, address):
        self.address = address

    def list(self, options):
        return ListResult([{"metadata": {"name": self.address}}], "1")

    def watch(self, options):
        return []
"""


def test_a_third_party_brings_a_source(install: Callable[[str, str, str], None]) -> None:
    """An installed distribution's source is found by its name, with no change here."""
    assert "consul-of-the-test" not in sources.available()
    install("shmcache-test-consul", "consul-of-the-test", SOURCE)
    assert "consul-of-the-test" in sources.available()
    source = sources.load("consul-of-the-test")(address="here")
    assert isinstance(source, ListerWatcher)
    assert source.list(ListOptions()).items == [{"metadata": {"name": "here"}}]


def test_available_imports_nothing(install: Callable[[str, str, str], None]) -> None:
    """A source that cannot be imported is listed, and says why only when it is loaded."""
    install("shmcache-test-broken", "broken-of-the-test", "import no_such_library")
    assert "broken-of-the-test" in sources.available()
    with pytest.raises(ImportError, match="no_such_library"):
        sources.load("broken-of-the-test")


def test_unknown_and_ambiguous_names(install: Callable[[str, str, str], None]) -> None:
    """A name that no distribution has, or more than one, is a LookupError that says so."""
    install("shmcache-test-one", "same-of-the-test", SOURCE)
    with pytest.raises(LookupError, match=r"no source 'none'.*same-of-the-test"):
        sources.load("none")
    install("shmcache-test-two", "same-of-the-test", SOURCE)
    with pytest.raises(LookupError, match=r"shmcache_test_one:Source, shmcache_test_two:Source"):
        sources.load("same-of-the-test")


def test_our_own_are_registered() -> None:
    """Every source of the package has its entry point, and each leads to a callable."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = project["entry-points"][sources.__name__]
    modules = {path.stem for path in Path(sources.__file__).parent.glob("[!_]*.py")}
    assert set(entries) == modules
    for value in entries.values():
        module, _, name = value.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
