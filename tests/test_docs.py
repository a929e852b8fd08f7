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

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.rglob("_native/*.md")]
)
BLOCK = re.compile(r"^```python(?P<note>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def code_blocks() -> list[pytest.param]:
    found = []
    for path in DOCUMENTS:
        for number, match in enumerate(BLOCK.finditer(path.read_text())):
            marks = []
            if note := match["note"].strip().removeprefix("skip: "):
                marks.append(pytest.mark.skip(reason=note))
            name = f"{path.relative_to(ROOT)}:{number}"
            found.append(pytest.param(match["code"], id=name, marks=marks))
    return found


@pytest.mark.parametrize("code", code_blocks())
def test_code_blocks_run(code: str, tmp_path: Path) -> None:
    """Each Python block of a document runs as a program of its own, quietly."""
    program = tmp_path / "block.py"  # a file, because spawned children import it
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a document names a file that is there."""
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


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
