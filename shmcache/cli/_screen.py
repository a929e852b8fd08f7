"""The full screen of ``shmcache top``, with textual.

The sampler works in a thread, so keys are answered while it looks. May import: ``cli._columns``,
``cli._details``, ``cli._sample``.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from typing import ClassVar

from rich.console import JustifyMethod
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

from shmcache.cli._columns import (
    COLUMNS,
    Column,
    arranged,
    find,
    fitting,
    fullness,
    health,
    liveliness,
    name_width,
    printable,
)
from shmcache.cli._details import details
from shmcache.cli._sample import Sample, Sampler

__all__ = ["TopApp", "show"]

_Cell = tuple[str, str]  # what it says, and its style
_STYLES = {"": "", "bad": "bold red", "warn": "yellow", "title": "bold"}


def show(sampler: Sampler, interval: float, sort: str) -> int:
    """Show the screen until the user ends it; the exit status.

    Whatever ends it (a key, a signal, a terminal that is gone), the terminal is as it was.
    """
    return asyncio.run(_show(TopApp(sampler, interval, sort)))


async def _show(app: TopApp) -> int:
    loop = asyncio.get_running_loop()
    for number, code in (
        (signal.SIGINT, 0),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
    ):
        loop.add_signal_handler(number, app.exit, code)
    status = await app.run_async()
    return (app.return_code or 0) if status is None else status


class TopApp(App[int]):
    """The screen: one row an arena, refreshed every ``interval`` seconds.

    ``sort`` is the ``id`` of a column.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head, #note { height: 1; padding: 0 1; }
    #head { text-style: bold; }
    #arenas { height: 1fr; }
    #filter { display: none; border: none; height: 1; padding: 0 1; }
    #filter.shown { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort_next", "Sort"),
        Binding("S", "sort_reverse", "Reverse", show=False),
        *(Binding(str(n), f"sort({n})", show=False) for n in range(1, 10)),
        Binding("slash", "filter", "Filter"),
        Binding("p", "pause", "Pause"),
        Binding("r", "reset", "Reset"),
        Binding("question_mark", "help", "Help"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False),
    ]

    def __init__(self, sampler: Sampler, interval: float, sort: str) -> None:
        super().__init__()
        self._sampler = sampler
        self._interval = interval
        self._sort = find(sort)
        self._reverse = False
        self._paused = False
        self._needle = ""
        self._samples = sampler.take()
        self._columns: list[Column] = []
        self._layout: object = None
        self._shown: list[Sample] = []
        self._cells: list[list[_Cell]] = []

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield _Table(id="arenas", cursor_type="row", zebra_stripes=True)
        yield Static(id="note", markup=False)
        yield Input(id="filter", placeholder="part of a name; Enter keeps it, Esc drops it")
        yield Footer()

    def on_mount(self) -> None:
        self._show()
        self.run_worker(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            if not self._paused:
                self._samples = await asyncio.to_thread(self._sampler.take)
                self._show()

    # --- what is on the screen ------------------------------------------------------------------

    def _show(self) -> None:
        table = self._table
        selected = self._selected
        wanted = [sample for sample in self._samples if self._needle in sample.name.lower()]
        self._shown = arranged(wanted, self._sort, self._reverse)
        self._lay_out(table)
        rows = [_cells(sample, self._columns) for sample in self._shown]
        with self.batch_update():
            while table.row_count > len(rows):
                table.remove_row(str(table.row_count - 1))
            for number, row in enumerate(rows):
                if number == table.row_count:
                    table.add_row(*map(_painted, self._columns, row), key=str(number))
                    continue
                for column, old, new in zip(self._columns, self._cells[number], row, strict=True):
                    if new != old:
                        table.update_cell(str(number), column.id, _painted(column, new))
            self._cells = rows
            if selected is not None:
                self._select(selected.name)
        self._say()
        if isinstance(self.screen, _Details):
            self.screen.show(self._samples)

    def _lay_out(self, table: DataTable[Text]) -> None:
        """Make the columns anew if the screen, the names or the order have changed."""
        width = self.size.width - table.styles.scrollbar_size_vertical
        columns = fitting(width, self._sort)
        name = name_width(columns, self._shown, width)
        layout = (columns, name, self._sort, self._reverse)
        if layout == self._layout:
            return
        self._layout, self._columns = layout, columns
        table.clear(columns=True)
        for column in columns:
            room = name if column.id == "name" else column.width
            style = "reverse" if column is self._sort else ""
            align = column.title.ljust(room) if column.left else column.title.rjust(room)
            table.add_column(Text(align, style=style), width=room, key=column.id)

    def _say(self) -> None:
        """The line above the table, and the one below it: of the arena under the cursor."""
        head = ["shmcache top", "PAUSED" if self._paused else time.strftime("%H:%M:%S")]
        arenas = f"{len(self._samples)} arena{'' if len(self._samples) == 1 else 's'}"
        if self._needle:
            arenas = f"{len(self._shown)} of {arenas} with {self._needle!r}"
        order = f"by {self._sort.title}{' reversed' if self._reverse else ''}"
        head += [arenas, f"every {self._interval:g} s", order]
        self.screen_stack[0].query_one("#head", Static).update("   ".join(head))
        self.screen_stack[0].query_one("#note", Static).update(self._note())

    def _note(self) -> Text:
        sample = self._selected
        if sample is None:
            return Text("no arena has that in its name" if self._needle else "no arena yet")
        said = sample.problem
        if not said and sample.reflector is not None and sample.reflector.last_error:
            said = f"reflector: {sample.reflector.last_error}"
        return Text(printable(f"{sample.name}: {said}") if said else "", style="yellow")

    @property
    def _table(self) -> DataTable[Text]:
        table: DataTable[Text] = self.screen_stack[0].query_one("#arenas", DataTable)
        return table

    @property
    def _selected(self) -> Sample | None:
        row = self._table.cursor_row
        return self._shown[row] if 0 <= row < len(self._shown) else None

    def _select(self, name: str) -> None:
        for row, sample in enumerate(self._shown):
            if sample.name == name and row != self._table.cursor_row:
                self._table.move_cursor(row=row)

    # --- keys -----------------------------------------------------------------------------------

    def on_resize(self, event: events.Resize) -> None:
        if self._layout is not None:
            self.call_after_refresh(self._show)

    def on_data_table_row_highlighted(self) -> None:
        self._say()

    def on_data_table_row_selected(self) -> None:
        if self._selected is not None:
            self.push_screen(_Details(self._selected))

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        self._sort_by(self._columns[event.column_index])

    def action_sort(self, number: int) -> None:
        if number <= len(self._columns):
            self._sort_by(self._columns[number - 1])

    def action_sort_next(self) -> None:
        self._sort_by(COLUMNS[(COLUMNS.index(self._sort) + 1) % len(COLUMNS)])

    def action_sort_reverse(self) -> None:
        self._sort_by(self._sort)

    def _sort_by(self, column: Column) -> None:
        self._reverse = column is self._sort and not self._reverse
        self._sort = column
        self._show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of the table do nothing on another screen, and are not shown there."""
        if len(self.screen_stack) > 1:
            return action in ("quit", "pause", "reset", "help", "suspend_process", "pop_screen")
        return True

    def action_filter(self) -> None:
        self.query_one("#filter").add_class("shown").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._needle = event.value.strip().lower()
        self._show()

    def on_input_submitted(self) -> None:
        self._table.focus()
        self.query_one("#filter").set_class(bool(self._needle), "shown")

    def key_escape(self) -> None:
        field = self.query_one("#filter", Input)
        field.value = ""
        field.remove_class("shown")
        self._table.focus()

    def action_pause(self) -> None:
        self._paused = not self._paused
        self._say()

    def action_reset(self) -> None:
        self._sampler.reset()
        self.notify("Means count from now.", timeout=2)

    def action_help(self) -> None:
        self.push_screen(_Help())

    async def action_quit(self) -> None:
        self.exit(0)


def _cells(sample: Sample, columns: Sequence[Column]) -> list[_Cell]:
    styles = {
        "name": _STYLES[health(sample)],
        "full": _STYLES[fullness(sample)],
        "reflector": _STYLES[liveliness(sample.reflector)],
    }
    return [(printable(column.text(sample)), styles.get(column.id, "")) for column in columns]


def _painted(column: Column, cell: _Cell) -> Text:
    text, style = cell
    justify: JustifyMethod = "left" if column.left else "right"
    return Text(text, style, justify=justify, overflow="ellipsis", no_wrap=True)


class _Table(DataTable[Text]):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Details")]


class _Details(Screen[None]):
    CSS = "#lines { padding: 0 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "app.pop_screen", "Back", key_display="esc"),
        Binding("p", "app.pause", "Pause"),
        Binding("r", "app.reset", "Reset"),
        Binding("question_mark", "app.help", "Help"),
    ]

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self._sample = sample

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="lines", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self._write("")

    def show(self, samples: Sequence[Sample]) -> None:
        """The arena of this screen as it is now, or as it was last."""
        for sample in samples:
            if sample.name == self._sample.name:
                self._sample = sample
                return self._write("")
        return self._write("(gone)")

    def _write(self, remark: str) -> None:
        lines = [Text(line, style=_STYLES[how]) for line, how in details(self._sample)]
        if remark:
            lines[0].append(f" {remark}", style="bold red")
        self.query_one("#lines", Static).update(Text("\n").join(lines))


class _Help(Screen[None]):
    CSS = "#help { padding: 0 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,question_mark", "app.pop_screen", "Back", key_display="esc")
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(_HELP, id="help", markup=False)
        yield Footer()


_HELP = """\
up, down       choose an arena            Enter  its workers and reflector
1 to 9         sort by that column, left to right; again: reversed
s  S           sort by the next column of all; reverse
/              only arenas with this in their names; Esc: all
p              pause, go on
r              the means (in details) count from now
q  Ctrl-C      quit

""" + "\n".join(f"{column.title:<10} {column.meaning}" for column in COLUMNS)
