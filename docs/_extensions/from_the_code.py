"""What the pages take from the code, and from the documents that are not in this folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from shmcache import cli

ROOT = Path(__file__).resolve().parents[2]

# Documents of the repository that have a page here: links to the one lead to the other.
PAGES = {
    "SECURITY.md": "docs/explanation/security.md",
    "CONTRIBUTING.md": "docs/project/contributing.md",
    "CHANGELOG.md": "docs/project/changelog.md",
    "bench/README.md": "docs/project/benchmarks.md",
    "bench/results/results.md": "docs/project/results.md",
    "shmcache/_native/README.md": "docs/project/core.md",
}
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:)[^)#]+(?=[)#])")


class Commands(SphinxDirective):
    """A section for each command of ``shmcache``, with its help as it prints it."""

    def run(self) -> list[nodes.Node]:
        os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
        each = "".join(f"## shmcache {name}\n{_help(name)}" for name in cli._COMMANDS)
        return [
            *self.parse_text_to_nodes(_help()),
            *self.parse_text_to_nodes(each, allow_section_headings=True),
        ]


class Metrics(SphinxDirective):
    """A table of what the collector exports."""

    def run(self) -> list[nodes.Node]:
        from shmcache.observe.prometheus import ShmCacheCollector  # needs the extra metrics

        text = "| metric | kind | labels | what it says |\n|---|---|---|---|\n"
        for family in ShmCacheCollector([]).describe():
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = ", ".join(family._labelnames)
            text += f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n"
        return self.parse_text_to_nodes(text)


def _help(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return f"```text\n{printed.getvalue()}```\n"


def bring_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put in what a page includes, and turn links to documents into links to their pages."""
    here = Path(app.env.doc2path(docname)).parent

    def linked(text: str, folder: Path) -> str:
        def link(match: re.Match[str]) -> str:
            target = os.path.relpath(folder / match[0], ROOT)
            return os.path.relpath(ROOT / PAGES.get(target, target), here)

        return LINK.sub(link, text)

    def included(match: re.Match[str]) -> str:
        file = here / match[1]
        return linked(file.read_text(), file.parent)

    source[0] = INCLUDE.sub(included, linked(source[0], here))


def without_imports(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Leave out what a module may import: that is for those who change it."""
    if what == "module":
        text = re.sub(r"(?:^| )May import:.*", "", "\n".join(lines), flags=re.DOTALL | re.MULTILINE)
        lines[:] = [*text.splitlines(), ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("shmcache-commands", Commands)
    app.add_directive("shmcache-metrics", Metrics)
    app.connect("source-read", bring_in)
    app.connect("autodoc-process-docstring", without_imports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
