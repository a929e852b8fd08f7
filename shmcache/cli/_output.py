"""How commands show what they found: ``-o table`` for people, ``json`` and ``csv`` for programs.

A command names its columns once, and gives records: a mapping of each column's name to its value.
JSON and CSV have every column and the plain values. A table has what is for people, as wide as
the terminal is, with colours if the terminal has them and ``NO_COLOR`` is not set; where stdout
is no terminal, nothing is cut, left out or coloured. Our own alignment and not rich's: it is the
same with and without the extra, and starts at once.

May import: ``cli._json``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shmcache.cli._json import to_json

__all__ = [
    "Column",
    "Lines",
    "add_output",
    "duration",
    "number",
    "paint",
    "print_records",
    "printable",
    "size",
    "until_interrupted",
]

Record = Mapping[str, Any]

_FORMATS = ("table", "json", "csv")
_COLOURS = {"good": "32", "warn": "33", "bad": "31", "dim": "2", "head": "1"}
_GAP = "  "
_LEAST_FLEXIBLE = 20
_MISSING = "-"


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declare ``-o table|json|csv``."""
    parser.add_argument(
        "-o", "--output", choices=_FORMATS, default="table", help="form of the output (%(default)s)"
    )


def _plain(value: Any) -> str:
    return str(value)


def _unpainted(value: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a field of JSON and CSV, and what a table shows of it.

    ``text`` turns a value that is not None into text. ``style`` names the colour of a value
    (``"good"``, ``"warn"``, ``"bad"``, ``"dim"`` or ``""``). Where a table is too wide,
    ``optional`` columns are left out, the highest number first, then the ``flexible`` one, which
    is the last of all, is cut; ``hidden`` ones are never in a table. ``width``: the
    least, for tables that grow line by line.
    """

    name: str
    title: str = ""
    text: Callable[[Any], str] = _plain
    style: Callable[[Any], str] = _unpainted
    right: bool = False
    optional: int = 0
    flexible: bool = False
    hidden: bool = False
    width: int = 0

    @property
    def heading(self) -> str:
        """What stands above the column."""
        return self.title or self.name.replace("_", " ").upper()

    def cell(self, record: Record) -> str:
        """What a table shows of ``record``: printable characters only, whatever a key holds."""
        value = record[self.name]
        return printable(_MISSING if value is None else self.text(value))


def print_records(records: Sequence[Record], columns: Sequence[Column], form: str) -> None:
    """Print all ``records`` in the form that ``-o`` asked for."""
    if form == "json":
        names = [column.name for column in columns]
        # One a line: for grep, and several times as fast as json makes an indented list.
        lines = [to_json({name: record[name] for name in names}) for record in records]
        print("[" + ",\n ".join(lines) + "]")
        return
    table = Lines(columns, form, growing=False)
    if form == "table":
        for record in records:
            table.make_room(record)
    if form == "csv" and not records:
        table.print_names()
    for record in records:
        table.show(record)


class Lines:
    """Prints records one by one. ``growing``: each at once, with the header once a screen."""

    def __init__(self, columns: Sequence[Column], form: str, *, growing: bool = True) -> None:
        self._columns = [c for c in columns if form != "table" or not c.hidden]
        self._form = form
        self._growing = growing
        self._shown = 0
        self._widths = {c.name: max(_width(c.heading), c.width) for c in self._columns}

    def show(self, record: Record) -> None:
        """Print one record."""
        if self._form == "json":
            print(to_json({column.name: record[column.name] for column in self._columns}))
        elif self._form == "csv":
            if self._shown == 0:
                self.print_names()
            _csv_rows().writerow([_csv_cell(record[column.name]) for column in self._columns])
        else:
            self._show_in_table(record)
        self._shown += 1
        if self._growing:
            sys.stdout.flush()

    def print_names(self) -> None:
        """Print the header of CSV."""
        _csv_rows().writerow([column.name for column in self._columns])

    def make_room(self, record: Record) -> None:
        """Make the columns of a table as wide as ``record`` needs, but for the flexible one."""
        for column in self._columns:
            if not column.flexible:
                width = _width(column.cell(record))
                self._widths[column.name] = max(self._widths[column.name], width)

    def _show_in_table(self, record: Record) -> None:
        terminal = _terminal()
        if self._growing:
            self.make_room(record)
        columns = self._columns_within(terminal.width)
        screen = terminal.height - 2 if self._growing else 0
        if self._shown == 0 or (screen > 0 and self._shown % screen == 0):
            self._print(columns, [(c.heading, "head") for c in columns], terminal.width)
        cells = [
            (c.cell(record), "dim" if record[c.name] is None else c.style(record[c.name]))
            for c in columns
        ]
        self._print(columns, cells, terminal.width)

    def _columns_within(self, width: int) -> list[Column]:
        """The columns that a table of at most ``width`` has; 0 for no limit."""
        columns = list(self._columns)
        while width and self._least_width(columns) > width:
            spare = max(columns, key=lambda column: column.optional)
            if not spare.optional:
                break
            columns.remove(spare)
        return columns

    def _least_width(self, columns: Sequence[Column]) -> int:
        widths = (_LEAST_FLEXIBLE if c.flexible else self._widths[c.name] for c in columns)
        return sum(widths) + len(_GAP) * (len(columns) - 1)

    def _print(
        self, columns: Sequence[Column], cells: Sequence[tuple[str, str]], width: int
    ) -> None:
        line, used = [], 0
        for column, (text, style) in zip(columns, cells, strict=True):
            if column.flexible:  # the last
                text = _cut(text, max(width - used, _LEAST_FLEXIBLE)) if width else text
                blank = ""
            else:
                blank = " " * (self._widths[column.name] - _width(text))
            used += self._widths[column.name] + len(_GAP)
            line.append(blank + paint(text, style) if column.right else paint(text, style) + blank)
        print(_GAP.join(line).rstrip())


@dataclass(frozen=True, slots=True)
class _Terminal:
    """What stdout is: both 0 if it is no terminal."""

    width: int
    height: int


def _terminal() -> _Terminal:
    if not sys.stdout.isatty():
        return _Terminal(0, 0)
    columns, lines = shutil.get_terminal_size()
    return _Terminal(columns, lines)


def paint(text: str, style: str) -> str:
    """``text`` in the colour of ``style``, if stdout is a terminal that is to have colours."""
    if (
        not style
        or not text
        or os.environ.get("NO_COLOR")
        or os.environ.get("TERM", "dumb") == "dumb"
        or not sys.stdout.isatty()
    ):
        return text
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """Make Ctrl-C the ordinary end of what goes on for ever, and no failure."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # the terminal has shown ^C


def number(value: float) -> str:
    """A number for people.

    >>> number(12345), number(0.25), number(1234.5), number(0.0)
    ('12,345', '0.2', '1,234', '0')
    """
    if isinstance(value, int) or value >= 10 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}"


def size(value: int) -> str:
    """Bytes for people, in powers of 1024.

    >>> size(64 << 20), size(1500), size(12)
    ('64Mi', '1.5Ki', '12')
    """
    amount, unit = float(value), ""
    for larger in ("Ki", "Mi", "Gi", "Ti"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f}".removesuffix(".0") + unit if amount < 1000 else f"{amount:.0f}{unit}"


def duration(seconds: float) -> str:
    """A length of time for people, in the two largest units that say something.

    >>> duration(0.42), duration(75), duration(7300), duration(200_000)
    ('0.4s', '1m15s', '2h1m', '2d7h')
    """
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    left = int(seconds)
    for unit, length, lesser, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if left >= length:
            return f"{left // length}{unit}{left % length // part}{lesser}"
    return f"{left // 60}m{left % 60}s" if left >= 60 else f"{left}s"


def _csv_rows() -> Any:
    return csv.writer(sys.stdout, lineterminator="\n")


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return to_json(value) if isinstance(value, (dict, list, bytes)) else value


def printable(text: str) -> str:
    """``text`` without line ends and what a terminal would obey: keys may hold anything.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _width(text: str) -> int:
    """How many places of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(map(_places, text))


def _places(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, room: int) -> str:
    if _width(text) <= room:
        return text
    kept, used = 0, 1
    while used + _places(text[kept]) <= room:
        used += _places(text[kept])
        kept += 1
    return text[:kept] + "…"
