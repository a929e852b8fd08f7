"""Reads the Markdown documents as a reader would follow them: from the top, saving and running.

The fenced blocks of a page are run in their order in one empty folder, by one shell:

============================  ====================================================================
block                         what is done with it
============================  ====================================================================
``python``                    a program of its own; it must end well and write nothing to stderr
any language, ``file: NAME``  saved under that name, for the blocks that follow
``console``                   each line after ``$`` is run (those after ``>`` belong to it); the
                              lines below are what it prints, ``...`` standing for anything
any other                     not run
============================  ====================================================================

``skip: REASON`` on the line of the fence leaves a block out; ``needs: NAME, NAME`` leaves out the
page where one of these commands or modules is missing. Arenas have names that begin with ``my-``:
each run puts something of its own behind that, so that runs do not meet.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_FENCE = re.compile(
    r"^```(?P<language>\w+) *(?P<note>[^\n]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
_BEGIN, _END = "\x1e", "\x1f"
_PATIENCE = 90.0  # seconds, for a page that takes a few


@dataclass(frozen=True)
class Block:
    """One fenced block, and what its fence says."""

    line: int
    language: str
    text: str
    file: str
    skip: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One command for the shell, and what it should print."""

    line: int
    command: str
    printed: str


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document."""
    text, found = path.read_text(), []
    for match in _FENCE.finditer(text):
        note = match["note"].strip()
        word, _, value = note.partition(": ")
        if note and (word not in {"file", "skip", "needs"} or not value):
            raise ValueError(f"{path}: not understood on a fence: {note!r}")
        found.append(
            Block(
                line=text.count("\n", 0, match.start()) + 1,
                language=match["language"],
                text=match["text"],
                file=value if word == "file" else "",
                skip=value if word == "skip" else "",
                needs=tuple(re.split(r", *", value)) if word == "needs" else (),
            )
        )
    return found


def missing(path: Path) -> list[str]:
    """What the page needs and this machine has not."""
    names = [name for block in blocks(path) for name in block.needs]
    return [n for n in names if not (shutil.which(n) or importlib.util.find_spec(n))]


def run(path: Path, folder: Path) -> list[str]:
    """Follow the page in ``folder``; what went otherwise than the page says, ``[]`` if nothing."""
    mark = uuid.uuid4().hex[:8]
    page = folder / "page"
    page.mkdir()
    steps = _steps(path, page, mark)
    try:
        results = _type(steps, page, _tools(folder / "bin"))
    finally:
        left = list(Path("/dev/shm").glob(f"shmcache.my-{mark}-*"))
        for file in left:
            file.unlink()
    wrong = [f"left in /dev/shm: {file.name}" for file in left]
    where = str(path.relative_to(ROOT))
    for step, (text, status) in zip(steps, results, strict=False):
        if status != "0" or not _matches(step.printed, text):
            wrong.append(f"{where}:{step.line}: {step.command}\nstatus {status}, printed:\n{text}")
    for step in steps[len(results) :][:1]:
        wrong.append(f"{where}:{step.line}: did not end: {step.command}")
    return wrong


def _tools(folder: Path) -> str:
    """A PATH on which ``python`` and ``shmcache`` are those that are tested."""
    folder.mkdir()
    for name, module in {"python": "", "shmcache": "-m shmcache.cli"}.items():
        tool = folder / name
        tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        tool.chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def _type(steps: list[Step], page: Path, search: str) -> list[tuple[str, str]]:
    """Run the steps in one shell; what each printed, and its status. Nothing of it lives on."""
    script = "".join(
        f"printf '{_BEGIN}'\n{step.command}\nprintf '{_END}%d\\n' $?\n" for step in steps
    )
    own = {"PATH": search, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "120"}
    with (page.parent / "printed").open("w+") as printed:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=page,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the results end where it hung
                shell.wait(timeout=_PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing was left in the background
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        printed.seek(0)
        return re.findall(f"{_BEGIN}(.*?){_END}(\\d+)\n", printed.read(), re.DOTALL)


def _steps(path: Path, page: Path, mark: str) -> list[Step]:
    """What is to be done, one thing after the other; ``page`` gets the programs."""
    found = []
    for block in blocks(path):
        text = re.sub(r"\bmy-(?=\w)", f"my-{mark}-", block.text)
        if block.language == "python":
            compile(text, f"{path}:{block.line}", "exec")  # also what is saved, or left out
        if block.skip:
            continue
        if block.file:
            saved = page.parent / f"saved-{block.line}"
            saved.write_text(text)
            command = f"install -D -m 644 {saved} {shlex.quote(block.file)}"
            found.append(Step(block.line, command, ""))
        elif block.language == "python":
            program = f"block-{block.line}.py"  # a file, because spawned children import it
            (page / program).write_text(text)
            command = f"python {program} >/dev/null"  # what is left is what it says on stderr
            found.append(Step(block.line, command, ""))
        elif block.language == "console":
            found += _typed(block.line, text)
    return found


def _typed(line: int, text: str) -> list[Step]:
    """The commands of a console block, each with what it prints."""
    commands: list[tuple[int, list[str], list[str]]] = []
    for number, typed in enumerate(text.splitlines(), line + 1):
        if typed.startswith("$ "):
            commands.append((number, [typed[2:]], []))
        elif typed.startswith("> ") and not commands[-1][2]:
            commands[-1][1].append(typed[2:])
        else:
            commands[-1][2].append(typed)
    return [Step(n, "\n".join(command), "\n".join(out)) for n, command, out in commands]


def _matches(said: str, printed: str) -> bool:
    """Whether it is the same but for white space and what ``...`` stands for."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in said.split("...")]
    return re.fullmatch(r"\s*" + r"\s*.*?\s*".join(parts) + r"\s*", printed, re.DOTALL) is not None
