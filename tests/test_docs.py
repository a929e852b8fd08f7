"""What the documents say is true: their code runs, their links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmcache
from tests import pages

ROOT = pages.ROOT
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.rglob("_native/*.md")]
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
RUN = [
    path
    for path in DOCUMENTS
    if any(b.language in {"python", "console"} for b in pages.blocks(path))
]


@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_says_happens(path: Path, tmp_path: Path) -> None:
    """Followed from the top, each program and command of a page does what the page says."""
    if names := pages.missing(path):
        pytest.skip(f"needs {', '.join(names)}")
    assert not (wrong := pages.run(path, tmp_path)), "\n\n".join(wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a document names a file that is there."""
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_manifests_can_be_read(path: Path) -> None:
    """Each YAML block of a document is YAML, and of each object of Kubernetes the kind is known."""
    yaml = pytest.importorskip("yaml")
    for block in pages.blocks(path):
        for document in yaml.safe_load_all(block.text) if block.language == "yaml" else ():
            assert isinstance(document, dict), block.line
            if "apiVersion" in document:
                assert document["kind"], block.line
                assert document["metadata"]["name"], block.line


@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_to_save_are_named(path: Path) -> None:
    """The line above a file that the reader is to save has its name: fences do not show theirs."""
    lines = path.read_text().splitlines()
    for block in pages.blocks(path):
        if block.file:
            assert f"`{block.file}`" in "".join(lines[block.line - 3 : block.line - 1]), block.line


def documented(page: str) -> set[str]:
    """The names that a page of the reference is about."""
    text = (ROOT / "docs/reference" / page).read_text()
    return set(re.findall(r"^(?:\.\. auto\w+:: |\| `)(\w+)(?:`.*)?$", text, re.MULTILINE))


def test_the_reference_has_every_name() -> None:
    """What shmcache exports is in the reference, each name once, and nothing else is."""
    errors = {
        name
        for name in shmcache.__all__
        if isinstance(getattr(shmcache, name), type)
        and issubclass(getattr(shmcache, name), Exception)
    }
    assert documented("errors.md") == errors
    assert documented("api.rst") == set(shmcache.__all__) - errors


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Sphinx has nothing to complain of: no link leads nowhere, no docstring is malformed."""
    for needed in ("sphinx", "furo", "myst_parser", "sphinx_copybutton", "prometheus_client"):
        pytest.importorskip(needed, reason=f"the site needs {needed}: pip install 'shmcache[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-d", tmp_path / "trees"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/tutorial.html").exists()


def modules() -> list[str]:
    return [
        name
        for _, name, _ in pkgutil.walk_packages(shmcache.__path__, "shmcache.")
        if not name.endswith(("__main__", "_core"))
    ]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    """Every example in a docstring gives what it shows."""
    for optional in ("kubernetes", "msgspec", "prometheus_client", "rich"):
        pytest.importorskip(optional)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_named_tests_exist() -> None:
    """Each test that the failure model names is there."""
    sources = "".join(
        path.read_text() for path in (ROOT / "tests").rglob("*") if path.suffix in {".py", ".cpp"}
    )
    model = (ROOT / "docs/design/failure-model.md").read_text()
    names = re.findall(r"`(test_\w+|\w+_\w+)`", model)
    assert len(names) > 8
    for name in names:
        if not hasattr(shmcache.FIFO, name):
            assert f"def {name}(" in sources or f"CASE({name}," in sources, name


def test_the_map_of_the_core_has_every_file() -> None:
    """The README of the core names each of its files, and no other."""
    core = ROOT / "shmcache/_native"
    rows = re.findall(r"^\| (`.*?) \|", (core / "README.md").read_text(), re.MULTILINE)
    named = {name.partition(".")[0] for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert named == {path.stem for path in core.glob("*.[ch]pp")}


def test_the_segment_format_is_that_of_the_core() -> None:
    """The record fields and the layout version of the page are those of layout.hpp."""
    page = (ROOT / "docs/design/segment-format.md").read_text()
    header = (ROOT / "shmcache/_native/layout.hpp").read_text()
    record = header[
        header.index("struct alignas(64) Record {") : header.index("sizeof(Record) == 64")
    ]
    offset, fields = 0, []
    for kind, field in re.findall(r"^\s+(?:std::atomic<)?(\w+)>? (\w+);", record, re.MULTILINE):
        if field != "reserved":
            fields.append((offset, field))
        offset += 8 if kind in {"uint64_t", "HeapOffset"} else 4
    assert offset == 64
    section = page[page.index("## Record") : page.index("## Root word")]
    assert [
        (int(o), f) for o, f in re.findall(r"^\| (\d+) \| (\w+) \|", section, re.MULTILINE)
    ] == fields
    assert f"layout version {shmcache._core.LAYOUT_VERSION}" in page


@pytest.mark.skipif(
    not (ROOT / ".venv/.shmcache-dev").exists() or Path(sys.prefix) != ROOT / ".venv",
    reason="not run by scripts/test: scripts/demo would build another environment",
)
def test_the_first_command_of_the_readme() -> None:
    """scripts/demo, as the README shows it first, ends with every pod bound once."""
    done = subprocess.run(
        [str(ROOT / "scripts/demo"), "--pods", "40", "--nodes", "4", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    assert "40" in done.stdout
