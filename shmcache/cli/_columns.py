"""The columns of ``shmcache top``: what each shows of an arena, how wide it is, how it sorts.

May import: the public names of ``shmcache``, ``cli._sample``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shmcache import ReflectorStatus
from shmcache.cli._sample import Sample

__all__ = [
    "COLUMNS",
    "GAP",
    "Column",
    "age",
    "arranged",
    "count",
    "find",
    "fitting",
    "fullness",
    "health",
    "liveliness",
    "name_width",
    "plain_table",
    "printable",
    "rate",
    "size",
]

NOTHING = "-"
_NAME_WIDTH = 44  # a longer name is cut, at the end
GAP = 2


def _word(text: str) -> str:
    return text or NOTHING


@dataclass(frozen=True, slots=True)
class Column:
    """One column: it sorts by ``value`` and shows it in the ``form`` of figures or of words."""

    id: str
    title: str
    width: int
    rank: int
    """What a narrow screen leaves out first has the highest."""
    value: Callable[[Sample], Any]
    form: Callable[[Any], str]
    meaning: str

    def text(self, sample: Sample) -> str:
        """What the column shows of an arena."""
        return self.form(self.value(sample))

    @property
    def left(self) -> bool:
        """Whether it is of words: to the left, and sorted from A. Figures sort from the top."""
        return self.form is _word


def count(number: float | None) -> str:
    """A number in at most 6 characters.

    >>> count(0), count(12345), count(1234567), count(10**12), count(None)
    ('0', '12,345', '1.23M', '1.00T', '-')
    """
    if number is None:
        return NOTHING
    if number < 99_999.5:
        return f"{number:,.0f}"
    return _scaled(number, 1000, "kMGTPE")


def rate(number: float | None) -> str:
    """Events per second in at most 6 characters.

    >>> rate(0.0), rate(0.25), rate(99.95), rate(1234.5), rate(2.5e6)
    ('0', '0.2', '100', '1,234', '2.50M')
    """
    if number is None or number == 0 or number >= 99.95:
        return count(number)
    return f"{number:.1f}" if number >= 0.05 else "<0.1"


def size(number: int | None) -> str:
    """Bytes in at most 6 characters, in powers of 1024.

    >>> size(512), size(65536), size(1536 * 1024), size(64 << 20)
    ('512B', '64.0K', '1.50M', '64.0M')
    """
    if number is None:
        return NOTHING
    return f"{number}B" if number < 1000 else _scaled(number, 1024, "KMGTP")


def age(seconds: float | None) -> str:
    """A time span in at most 6 characters.

    >>> age(0.01), age(12.34), age(200), age(7300), age(200_000), age(None)
    ('0.0s', '12.3s', '3m20s', '2h01m', '2d07h', '-')
    """
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days >= 100:
        return f"{days}d"
    if days:
        return f"{days}d{hour:02}h"
    return f"{hours}h{minute:02}m" if hours else f"{minutes}m{second:02}s"


def printable(text: str) -> str:
    """``text`` without what moves a terminal's cursor or changes its colours.

    Names of reflectors, commands and errors come from processes that need not be friends.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def health(sample: Sample) -> str:
    """``"bad"``, ``"warn"`` or ``""``: the worst that there is to say of an arena."""
    found = {"bad"} if sample.problem else {fullness(sample), liveliness(sample.reflector)}
    return "bad" if "bad" in found else "warn" if "warn" in found else ""


def fullness(sample: Sample) -> str:
    """As :func:`health`, of the memory: at 100 % writes fail."""
    full = _full(sample) or 0
    return "bad" if full >= 0.95 else "warn" if full >= 0.8 else ""


def liveliness(reflector: ReflectorStatus | None) -> str:
    """As :func:`health`, of the reflector."""
    if reflector is None:
        return ""
    if not reflector.alive:
        return "warn" if reflector.state == "stopped" else "bad"
    return "warn" if reflector.state == "waiting" else ""


def _reflector(sample: Sample) -> str:
    """The state of the reflector; one whose process has died says it no more."""
    reflector = sample.reflector
    if reflector is None:
        return NOTHING
    if reflector.alive or reflector.state == "stopped":
        return reflector.state or "starting"
    return "dead"


def _full(sample: Sample) -> float | None:
    stats = sample.stats
    return None if stats is None else stats.committed_bytes / stats.capacity_bytes


def _percent(part: float | None) -> str:
    return NOTHING if part is None else f"{part:.0%}"


def _pops(sample: Sample) -> float | None:
    return None if sample.queued is None else sample.rates.pops


def _workers(sample: Sample) -> float | None:
    return None if sample.stats is None else len(sample.workers)


def _contact(sample: Sample) -> float | None:
    return None if sample.reflector is None else sample.reflector.contact_age


def _scaled(number: float, step: int, units: str) -> str:
    power = 0
    while power < len(units) and (power == 0 or number >= 999.5):
        number, power = number / step, power + 1
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f}{units[power - 1]}"


def _of_stats(name: str) -> Callable[[Sample], float | None]:
    def value(sample: Sample) -> float | None:
        figure: float | None = getattr(sample.stats, name, None)
        return figure

    return value


def _of_rates(name: str) -> Callable[[Sample], float | None]:
    def value(sample: Sample) -> float | None:
        figure: float | None = getattr(sample.rates, name)
        return figure

    return value


# In the order of the screen. 80 characters have room for ranks 0 to 7.
COLUMNS = (
    Column("name", "NAME", 18, 0, lambda s: s.name, _word, "the arena"),
    Column("kind", "KIND", 9, 8, lambda s: s.kind, _word, "Store, Indexer, FIFO, WorkQueue"),
    Column("entries", "ENTRIES", 7, 1, _of_stats("entries"), count, "entries; of a queue, waiting"),
    Column("used", "USED", 5, 9, _of_stats("used_bytes"), size, "bytes of keys and payloads"),
    Column("memory", "MEMORY", 6, 13, _of_stats("committed_bytes"), size, "memory that it takes"),
    Column("capacity", "MAX", 5, 14, _of_stats("capacity_bytes"), size, "memory it may take"),
    Column("full", "FULL", 4, 7, _full, _percent, "MEMORY as a part of MAX"),
    Column("reads", "READ/s", 6, 2, _of_rates("reads"), rate, "reads, reported 256 at a time"),
    Column("writes", "WRITE/s", 7, 3, _of_rates("writes"), rate, "entries written"),
    Column("deletes", "DEL/s", 6, 10, _of_rates("deletes"), rate, "entries deleted"),
    Column("pops", "POP/s", 6, 4, _pops, rate, "items that consumers took"),
    Column("oldest", "OLDEST", 6, 5, _of_stats("oldest_age"), age, "how long the oldest waits"),
    Column("workers", "WORKERS", 7, 11, _workers, count, "processes that wrote or popped"),
    Column("attached", "ATTACHED", 8, 12, _of_stats("attached"), count, "handles of everybody"),
    Column("reflector", "REFLECT", 8, 6, _reflector, _word, "its state; dead: no other yet"),
    Column("contact", "CONTACT", 7, 15, _contact, age, "since its source last answered"),
    Column("repairs", "REPAIRS", 7, 16, _of_stats("repairs"), count, "after writers that died"),
    Column("owner", "OWNER", 8, 17, lambda s: s.owner, _word, "the user to whom it belongs"),
)


def find(ident: str) -> Column:
    """The column of that ``id``."""
    return next(column for column in COLUMNS if column.id == ident)


def fitting(width: int, keep: Column | None = None) -> list[Column]:
    """The columns that a screen of ``width`` characters has room for, ``keep`` among them."""
    room = width
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda c: -1 if c is keep else c.rank):
        room -= column.width + GAP
        if room < 0 and chosen:
            break
        chosen.append(column)
    return [column for column in COLUMNS if column in chosen]


def arranged(samples: Iterable[Sample], column: Column, reverse: bool = False) -> list[Sample]:
    """``samples`` by ``column``, the largest figure or the first name at the top; by name where
    equal. ``reverse`` turns that round. Those without a value are always last.

    >>> arranged([], find("name"))
    []
    """
    named = sorted(samples, key=lambda sample: sample.name)
    known = [sample for sample in named if column.value(sample) is not None]
    known.sort(key=column.value, reverse=column.left == reverse)
    return known + [sample for sample in named if column.value(sample) is None]


def name_width(columns: Sequence[Column], samples: Iterable[Sample], width: int) -> int:
    """How wide the names may be: what they need, as far as the other columns leave room."""
    others = sum(column.width + GAP for column in columns if column.id != "name")
    longest = max((len(sample.name) for sample in samples), default=0)
    floor = find("name").width
    return max(floor, min(longest, _NAME_WIDTH, width - others - GAP))


def plain_table(samples: Sequence[Sample], width: int) -> str:
    """Lines for a file or a pipe; what could not be looked into has a line of its own below."""
    columns = fitting(width)
    first = name_width(columns, samples, width)
    rows = [[column.title for column in columns]]
    rows += [[column.text(sample) for column in columns] for sample in samples]
    lines = []
    for row in rows:
        cells = []
        for column, text in zip(columns, row, strict=True):
            room = first if column.id == "name" else column.width
            text = printable(text)
            cells.append(f"{text:<{room}}" if column.left else f"{text:>{room}}")
        lines.append((" " * GAP).join(cells).rstrip())
    lines += [f"{s.name}: {printable(s.problem)}" for s in samples if s.problem]
    return "\n".join(lines)
