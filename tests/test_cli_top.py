"""`shmcache top`: true figures of arenas that come and go; a terminal that is left as it was."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import dataclasses
import fcntl
import importlib.util
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import FIFO, ReflectorStats, Store, WorkerInfo
from shmcache.cli import main
from shmcache.cli._columns import (
    COLUMNS,
    GAP,
    age,
    arranged,
    count,
    find,
    fitting,
    health,
    name_width,
    plain_table,
    printable,
    rate,
    size,
)
from shmcache.cli._details import details
from shmcache.cli._sample import Look, Rates, Sample, Sampler, compare, short_command

DEADLINE = 60.0


def a_look(
    taken: float, *, made: int = 1, workers: tuple[WorkerInfo, ...] = (), **counts: int
) -> Look:
    """A look at an arena that nobody has."""
    with Store.create(capacity="256KiB") as store:
        store.unlink()
        none = dict.fromkeys(("reads", "read_misses", "writes", "deletes", "pops"), 0)
        stats = dataclasses.replace(
            store.stats(), name="a", created_unix_ns=made, **(none | counts)
        )
    return Look("a", kind=stats.kind, taken=taken, stats=stats, workers=workers)


# --- rates ----------------------------------------------------------------------------------------


def test_rates_are_counts_over_time() -> None:
    """A rate is what a count gained, over the seconds between the looks: since the last one, and
    since the first one for the mean."""
    first = a_look(100.0)
    before = a_look(108.0, reads=512, writes=100)
    now = a_look(110.0, reads=1024, read_misses=40, writes=130, deletes=10, pops=20)
    sample = compare(now, before, first)
    assert sample.rates == Rates(reads=256.0, read_misses=20.0, writes=15.0, deletes=5.0, pops=10.0)
    assert sample.means == Rates(reads=102.4, read_misses=4.0, writes=13.0, deletes=1.0, pops=2.0)
    assert sample.stats is not None
    assert sample.stats.writes == 130


def test_without_an_earlier_look_there_is_no_rate() -> None:
    """Neither the first look has rates, nor one at the same moment, nor a count that went back."""
    look = a_look(1.0, writes=5)
    assert compare(look, None, None).rates == compare(look, look, look).means == Rates()
    assert compare(a_look(2.0, writes=3), look, None).rates.writes is None
    problem = Look("a", taken=2.0, problem="cannot be read")
    assert compare(problem, look, look).rates == compare(look, problem, problem).rates == Rates()


def test_an_arena_made_again_is_another() -> None:
    """Between two arenas of one name there are no rates, whatever their counts are."""
    now = a_look(2.0, made=2, writes=50)
    assert compare(now, a_look(1.0, made=1, writes=10), None).rates == Rates()
    assert compare(now, a_look(1.0, made=2, writes=10), None).rates.writes == 40.0


def test_workers_are_counted_by_process() -> None:
    """The handles of a process are one worker; who is new has begun at nothing; the busiest is
    the first; of a process that let a handle go nothing is said for once."""
    before = a_look(10.0, workers=(WorkerInfo(-1, 10), WorkerInfo(-1, 5), WorkerInfo(-3, 9)))
    now = a_look(
        12.0,
        workers=(WorkerInfo(-2, 4), WorkerInfo(-1, 30), WorkerInfo(-1, 5), WorkerInfo(-3, 3)),
    )
    sample = compare(now, before, before)
    assert [(w.pid, w.pops, w.pops_per_second) for w in sample.workers] == [
        (-1, 35, 10.0),
        (-2, 4, 2.0),
        (-3, 3, None),
    ]
    assert sample.workers[0].mean_pops_per_second == 10.0
    assert sample.workers[0].command == ""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/usr/bin/python3", "-u", "/srv/jobs/worker.py", "--password=x"], "python3 worker.py"),
        (["python", "-m", "celery", "-A", "secret"], "python -m celery"),
        (["python", "-c", "import secret"], "python -c"),
        (["python"], "python"),
        (["/opt/bin/scheduler", "--password", "x"], "scheduler"),
        (["gunicorn: worker [web]"], "gunicorn: worker [web]"),
        ([], ""),
    ],
)
def test_commands_are_named_without_their_options(arguments: list[str], name: str) -> None:
    """A process is called by its program or script; what else its command line has stays there."""
    assert short_command(arguments) == name


# --- looking --------------------------------------------------------------------------------------


def only(samples: tuple[Sample, ...]) -> Sample:
    (sample,) = samples
    return sample


def test_sampler_sees_what_happens(name: str) -> None:
    """Totals are those of the arena, rates are above zero for what was done in between."""
    with FIFO.create(name, capacity="1MiB") as fifo:
        sampler = Sampler([name])
        assert only(sampler.take()).rates == Rates()
        fifo.add_many({"metadata": {"name": str(i)}} for i in range(10))
        for _ in range(4):
            fifo.pop()
        fifo.delete_by_key("9")
        sample = only(sampler.take())
        assert sample.problem == ""
        assert (sample.kind, sample.queued) == ("FIFO", 5)
        assert sample.stats is not None
        assert (sample.stats.writes, sample.stats.deletes, sample.stats.pops) == (10, 1, 4)
        assert sample.stats.oldest_age is not None
        assert sample.stats.attached == 1  # without the one that looks
        assert sample.rates.writes == pytest.approx((sample.rates.pops or 0) * 2.5)
        assert sample.means == sample.rates
        (worker,) = sample.workers
        assert (worker.pid, worker.pops, worker.in_flight) == (os.getpid(), 4, 0)
        assert worker.command
        with fifo.claim(0):
            assert only(sampler.take()).workers[0].in_flight == 1
        assert sample.reflector is None
        sampler.reset()
        fifo.pop()
        sample = only(sampler.take())
        assert sample.means.writes == 0
        assert (sample.means.pops or 0) > 0


def test_sampler_lists_all_arenas_and_holds_none(name: str) -> None:
    """Without names every arena is seen, and after the look it is in nobody's use."""
    shmcache.Indexer.create(name, capacity="1MiB", codec=shmcache.RawCodec()).close()
    sampler = Sampler()
    (sample,) = [sample for sample in sampler.take() if sample.name == name]
    assert (sample.kind, sample.codec, sample.problem) == ("Indexer", "raw", "")
    assert sample.queued is None
    (info,) = [info for info in shmcache.list_arenas() if info.name == name]
    assert not info.in_use


def test_arenas_that_go_and_come_again(name: str) -> None:
    """A name without an arena has a problem; an arena made again under the name has no rates at
    its first look, and then its own."""
    sampler = Sampler([name])
    assert "there is no arena" in only(sampler.take()).problem
    with Store.create(name, capacity="1MiB") as old:
        old.add_raw("a", b"1")
        assert only(sampler.take()).problem == ""
        old.unlink()
        assert "there is no arena" in only(sampler.take()).problem
        with Store.create(name, capacity="1MiB") as new:
            for key in "abc":
                new.add_raw(key, b"2")
            sample = only(sampler.take())
            assert (sample.stats and sample.stats.entries, sample.rates) == (3, Rates())
            assert [worker.in_flight for worker in sample.workers] == [None]
            assert only(sampler.take()).rates.writes == 0
    assert all(sample.name != name for sample in Sampler(["other"]).take())


def test_what_is_no_arena_is_said(name: str) -> None:
    """A file that is no arena, and one whose creation was never finished, are rows that say so."""
    path = Path(f"/dev/shm/shmcache.{name}")
    path.write_bytes(b"not an arena" * 10_000)
    assert "is not a shmcache arena" in only(Sampler([name]).take()).problem
    path.write_bytes(b"")
    assert "never finished" in only(Sampler([name]).take()).problem


def test_an_arena_of_another_user_is_not_entered(name: str) -> None:
    """It is named with its owner, and what the library says against attaching to it."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    with Store.create(name, capacity="1MiB"):
        os.chown(f"/dev/shm/shmcache.{name}", 54321, -1)
        sample = only(Sampler([name]).take())
    assert (sample.owner, sample.stats) == ("54321", None)
    assert "is not safe to attach" in sample.problem
    assert health(sample) == "bad"


def test_a_dead_reflector_is_seen(name: str) -> None:
    """What the reflector said last is there, with its error, and it is dead when its handle is
    gone without a word."""
    with Store.create(name, capacity="1MiB") as store:
        stats = ReflectorStats(1, 2, 3, 4, 5, "ApiError: 500 \x1b[31m", 1.0, 1.0, 1.0)
        with Store.attach(name, writable=True) as filler:
            filler.claim_reflector("pods")
            filler.report_reflector("watching", stats)
            sampler = Sampler([name])
            alive = only(sampler.take())
        dead = only(sampler.take())
        assert store.reflector_status().name == "pods"
    assert [find("reflector").text(sample) for sample in (alive, dead)] == ["watching", "dead"]
    assert [health(sample) for sample in (alive, dead)] == ["", "bad"]
    said = [line for line, _ in details(dead)]
    assert any("died while watching" in line for line in said)
    assert any("ApiError: 500 \N{REPLACEMENT CHARACTER}[31m" in line for line in said)


# --- the table ------------------------------------------------------------------------------------


def made(name: str = "a", **fields: Any) -> Sample:
    return dataclasses.replace(compare(a_look(1.0), None, None), name=name, **fields)


@pytest.mark.parametrize("number", [0, 0.04, 0.951, 9.996, 99.96, 999.7, 99_999.6, 9.9999e6, 3e17])
def test_figures_have_at_most_six_characters(number: float) -> None:
    """So that columns stay where they are, whatever the figure."""
    for text in (count(number), rate(number), size(round(number)), age(min(number, 1e9))):
        assert len(text) <= 6, text


def test_columns_fit_the_screen() -> None:
    """At every width the columns fit, those at the head of the ranking come first, and the one to
    keep is among them; at 80 there is all that says whether work is done."""
    for width in range(20, 260):
        chosen = fitting(width)
        assert sum(column.width + GAP for column in chosen) <= width
        ranks = sorted(column.rank for column in chosen)
        assert ranks == list(range(len(ranks)))
        assert find("owner") in fitting(width, keep=find("owner"))
    seen = {column.id for column in fitting(80)}
    assert seen >= {"name", "entries", "reads", "writes", "pops", "oldest", "reflector"}
    assert fitting(200) == list(COLUMNS)
    assert name_width(fitting(80), [made("n" * 200)], 80) <= 80


def test_rows_are_sorted_with_the_unknown_last() -> None:
    """Figures from the largest, names from A, either turned round; without a value: last."""
    samples = [
        made("a", rates=Rates(writes=1.0)),
        made("b", rates=Rates(writes=20.0)),
        made("c"),
        made("d", rates=Rates(writes=3.0)),
    ]
    by_writes = arranged(samples, find("writes"))
    assert [sample.name for sample in by_writes] == ["b", "d", "a", "c"]
    assert [s.name for s in arranged(samples, find("writes"), reverse=True)] == ["a", "d", "b", "c"]
    assert [s.name for s in arranged(samples[::-1], find("name"))] == ["a", "b", "c", "d"]
    assert [s.name for s in arranged(samples, find("name"), reverse=True)] == ["d", "c", "b", "a"]


def test_nothing_from_an_arena_moves_the_terminal() -> None:
    """Control characters in what other processes said are shown as what they are not."""
    assert printable("a\x1b[2Jb\r\n\x9b\u202ec") == "a�[2Jb����c"
    assert "\x1b" not in plain_table([made(problem="a\x1b[2J", owner="b\x1b[2J")], 250)


# --- the command ----------------------------------------------------------------------------------


def test_once_prints_a_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--once` needs no terminal and no library: a line an arena, all columns in a pipe."""
    with Store.create(name, capacity="1MiB") as store:
        store.add_raw("a", b"1")
        assert main(["top", "--once", "-i", "0.05", name]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == [column.title for column in COLUMNS]
    assert row.split()[:3] == [name, "Store", "1"]


def test_once_for_programs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--once -o json|csv` has the plain figures of every column, and why there are none."""
    with FIFO.create(name, capacity="256KiB") as fifo:
        fifo.add_raw("a", b"1")
        assert main(["top", "--once", "-i", "0.05", "-o", "json", name]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        assert record["capacity_bytes"] == 256 * 1024
        assert record["pops_per_second"] == 0
        assert (record["name"], record["entries"], record["problem"]) == (name, 1, None)
        assert record["reflector"] == "none"
        assert main(["top", "--once", "-i", "0.05", "-o", "csv", name]) == 0
        (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
        assert list(row) == list(record)
        assert row["kind"] == "FIFO"
        fifo.unlink()
    assert main(["top", "--once", "-i", "0.05", "-o", "json", name]) == 1
    assert "there is no arena" in json.loads(capsys.readouterr().out)[0]["problem"]
    assert main(["top", "-o", "json"]) == 2
    assert "add --once" in capsys.readouterr().err


def test_once_of_a_missing_arena(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A NAME that has no arena is a problem found: said below the table, and status 1."""
    assert main(["top", "--once", "-i", "0.05", name]) == 1
    assert f"there is no arena '{name}'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-i", "0"], "0.05"),
        (["-i", "soon"], "'soon'"),
        (["--sort", "nothing"], "nothing"),
        (["--port", "70000", "--web"], "'70000'"),
        (["--once", "--web"], "--once"),
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that cannot be meant ends with status 2 and a line that names it."""
    with pytest.raises(SystemExit) as caught:
        main(["top", *arguments])
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


def test_an_impossible_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A NAME that no arena can have is wrong usage, said before anything is shown."""
    assert main(["top", "--once", "-i", "0.05", "a/b"]) == 2
    assert "'a/b' cannot be the name of an arena" in capsys.readouterr().err


def test_without_a_terminal_it_says_what_else_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe there is no screen: status 2, and the command to use instead."""
    assert main(["top"]) == 2
    assert "shmcache stat -i 1" in capsys.readouterr().err
    assert main(["top", "--port", "80"]) == 2
    assert "add --web" in capsys.readouterr().err


def test_without_textual_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal without the library: status 2, and the line to type."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "textual" else found(name)
    )
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["top"]) == 2
    assert "pip install 'shmcache[cli]'" in capsys.readouterr().err


# --- the screen -----------------------------------------------------------------------------------


class Terminal:
    """`shmcache top` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._before = termios.tcgetattr(self._theirs)
        self.said = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shmcache.cli", "top", "-i", "0.05", *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        )

    def wait_for(self, text: str) -> None:
        """Read what it shows until ``text`` has been shown from now on."""
        begun = len(self.said)
        deadline = time.monotonic() + DEADLINE
        while text.encode() not in re.sub(rb"\x1b\[[0-9;]*m", b"", self.said[begun:]):
            assert time.monotonic() < deadline, self.said[-2000:]
            assert self._read(1.0) or self.process.poll() is None, self.said[-2000:]

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def finish(self) -> int:
        """Wait for the end, and see that the terminal is as it was; the exit status."""
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said[-2000:]
            self._read(0.05)
        while self._read(0.0):
            pass
        assert termios.tcgetattr(self._theirs) == self._before
        for mode in (b"?1049", b"?25"):  # the other screen, the hidden cursor
            on, off = (b"h", b"l") if mode == b"?1049" else (b"l", b"h")
            assert self.said.rfind(b"\x1b[" + mode + off) > self.said.rfind(b"\x1b[" + mode + on)
        assert b"Traceback" not in self.said
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for fd in (self.ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        self.said += os.read(self.ours, 1 << 16)
        return True


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts the command on terminals, and ends what is left of it after the test."""
    pytest.importorskip("textual", reason="the screen needs textual")
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Terminal:
            made = Terminal(*arguments)
            stack.callback(made.close)
            return made

        yield start


def test_the_screen_on_a_terminal(terminal: Callable[..., Terminal], store: Store) -> None:
    """It shows the arena and its entries, answers keys, and q ends it with the terminal as it
    was."""
    store.add_raw("a", b"1")
    top = terminal(store.name)
    top.wait_for(store.name)
    top.type(b"?")
    top.wait_for("how long the oldest waits")
    top.type(b"?")
    top.wait_for(store.name)
    top.type(b"q")
    assert top.finish() == 0


@pytest.mark.parametrize(
    ("end", "status"),
    [("ctrl-c", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_every_end_leaves_the_terminal_as_it_was(
    terminal: Callable[..., Terminal], store: Store, end: Any, status: int
) -> None:
    """Ctrl-C and signals end it at once, with the old screen, the cursor and the modes back."""
    top = terminal(store.name)
    top.wait_for(store.name)
    if end == "ctrl-c":
        top.type(b"\x03")
    else:
        top.process.send_signal(end)
    assert top.finish() == status


def screen_test(
    sampler: Sampler, play: Callable[[Any, Any], Any], size: tuple[int, int] = (80, 24)
) -> None:
    """Run the app without a terminal, with ``play(app, pilot)`` at the keys."""
    pytest.importorskip("textual", reason="the screen needs textual")
    from shmcache.cli._screen import TopApp

    async def run() -> None:
        app = TopApp(sampler, 0.05, "name")
        async with app.run_test(size=size) as pilot:
            await play(app, pilot)
        assert app.return_code == 0

    asyncio.run(run())


async def until(pilot: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        await pilot.pause(0.02)


def cells(app: Any) -> list[list[str]]:
    """What the table shows."""
    table = app.screen_stack[0].query_one("#arenas")
    return [[cell.plain for cell in table.get_row_at(row)] for row in range(table.row_count)]


def words(app: Any, selector: str) -> str:
    """What a part of the screen says; "" while that screen is not there yet."""
    return "".join(str(found.render()) for found in app.screen.query(selector))


@pytest.fixture
def three(name: str) -> Iterator[list[Store]]:
    """Three arenas, of 1, 2 and 3 entries."""
    with contextlib.ExitStack() as stack:
        made = []
        for number, letter in enumerate("abc", 1):
            store = stack.enter_context(Store.create(f"{name}-{letter}", capacity="1MiB"))
            stack.callback(store.unlink)
            for key in range(number):
                store.add_raw(str(key), b"x")
            made.append(store)
        yield made


def test_keys_sort_and_filter(three: list[Store]) -> None:
    """A digit sorts by that column and again turns it round, / narrows to names, Esc widens, and
    the cursor stays on its arena."""
    names = [store.name for store in three]
    ending = names[2][-3:]  # "7-c", say; with "-c" alone a name may begin, which is made at random

    async def play(app: Any, pilot: Any) -> None:
        await until(pilot, lambda: [row[0] for row in cells(app)] == names)
        await pilot.press("down")
        await pilot.press("2")
        await until(pilot, lambda: [row[1] for row in cells(app)] == ["3", "2", "1"])
        await pilot.press("2")
        await until(pilot, lambda: [row[1] for row in cells(app)] == ["1", "2", "3"])
        await pilot.press("1")
        await until(pilot, lambda: [row[0] for row in cells(app)] == names)
        await pilot.press("s")
        await until(pilot, lambda: "by KIND" in words(app, "#head"))
        await pilot.press("slash")
        await until(pilot, lambda: app.focused is app.query_one("#filter"))
        await pilot.press(*ending.upper(), "enter")
        await until(pilot, lambda: [row[0] for row in cells(app)] == [names[2]])
        await until(pilot, lambda: f"1 of 3 arenas with '{ending}'" in words(app, "#head"))
        await pilot.press("escape", "1", "1")
        await until(pilot, lambda: [row[0] for row in cells(app)] == names[::-1])
        await pilot.press("q")

    screen_test(Sampler(names), play)


def test_the_screen_follows_arenas(three: list[Store], name: str) -> None:
    """New figures come by themselves, not while it is paused; an arena that goes and one that
    comes are followed, with the cursor on the arena where it was."""
    extra = f"{name}-d"
    sampler = Sampler([*(store.name for store in three), extra])

    async def play(app: Any, pilot: Any) -> None:
        table = app.query_one("#arenas")
        await pilot.press("down", "down")
        three[2].add_raw("more", b"x")
        await until(pilot, lambda: cells(app)[2][1] == "4")
        await pilot.press("p")
        await until(pilot, lambda: "PAUSED" in words(app, "#head"))
        three[2].add_raw("again", b"x")
        await pilot.press("p")
        await until(pilot, lambda: cells(app)[2][1] == "5")
        await until(pilot, lambda: cells(app)[3][1] == "-")
        with Store.create(extra, capacity="1MiB") as made:
            await until(pilot, lambda: cells(app)[3][1] == "0")
            made.unlink()
        await until(pilot, lambda: cells(app)[3][1] == "-")
        await until(pilot, lambda: table.cursor_row == 2)
        await pilot.press("q")

    screen_test(sampler, play)


def test_details_of_an_arena(name: str) -> None:
    """Enter shows figures, workers and the reflector of the chosen arena, kept up to date; r lets
    the means begin anew; Esc goes back."""
    with FIFO.create(name, capacity="1MiB") as fifo:
        fifo.add_many({"metadata": {"name": name}} for name in ("[b]x", "held"))
        fifo.pop()
        held = fifo.claim()
        fifo.claim_reflector("pods [/b]")
        fifo.report_reflector("waiting", ReflectorStats(1, 2, 3, 4, 5, "[red]no", 1.0, 1.0, 1.0))

        async def play(app: Any, pilot: Any) -> None:
            await until(pilot, lambda: "reflector: [red]no" in words(app, "#note"))
            await pilot.press("enter")
            await until(pilot, lambda: "waiting 0" in words(app, "#lines"))
            shown = words(app, "#lines")
            assert re.search(rf"^ *{os.getpid()} .* 1  +1  \S", shown, re.MULTILINE)
            assert re.search("^ *WORKER .* IN FLIGHT  COMMAND$", shown, re.MULTILINE)
            held.done()
            assert f"reflector pods [/b]: process {os.getpid()}, waiting" in shown
            assert "last error" in shown
            fifo.add({"metadata": {"name": "b"}})
            await until(pilot, lambda: "waiting 1" in words(app, "#lines"))
            await pilot.press("r", "question_mark")
            await until(pilot, lambda: "sort by that column" in words(app, "#help"))
            await pilot.press("escape", "escape")
            await until(pilot, lambda: cells(app)[0][0] == name)
            await pilot.press("ctrl+c")

        screen_test(Sampler([name]), play)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_screen_takes_any_width(three: list[Store], width: int) -> None:
    """The columns are those that the width has room for, after a resize too."""
    names = [store.name for store in three]

    async def play(app: Any, pilot: Any) -> None:
        await until(pilot, lambda: len(cells(app)[0]) == len(fitting(width - 2)))
        await pilot.resize_terminal(120, 30)
        await until(pilot, lambda: len(cells(app)[0]) == len(fitting(118)))
        await until(pilot, lambda: [row[0] for row in cells(app)] == names)
        await pilot.press("q")

    screen_test(Sampler(names), play, (width, 24))
