"""The commands of `shmcache`, as their users meet them; `demo` has its own tests."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import importlib
import io
import json
import os
import pty
import re
import shlex
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
from shmcache import FIFO, Indexer, LabelSelector, RawCodec, ReflectorStats, Store
from shmcache.cli import _COMMANDS, _parser, main
from shmcache.cli._output import Column, _width, print_records
from shmcache.cli._selection import Selection
from shmcache.cli.watch import _changes
from tests.running import as_user

SHMCACHE = [sys.executable, "-m", "shmcache"]
NOBODY = 65534

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pods(name: str) -> Iterator[Indexer]:
    """Four pods on two nodes, with an index by node."""
    with Indexer.create(
        name, indexers={"node": lambda p: [p["spec"]["nodeName"]]}, capacity="4MiB"
    ) as made:
        for number in range(4):
            made.add(make_pod(number))
        yield made
        made.unlink()


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes to and from it, which does not outlive a test that fails."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def holding(name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the arena open."""
    code = (
        f"import shmcache, sys; s = shmcache.attach({name!r}); print('up', flush=True);"
        "sys.stdin.read()"
    )
    with started(sys.executable, "-c", code) as process:
        assert process.stdout.readline() == "up\n"
        yield process


def make_pod(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "default",
            "name": f"web-{number}",
            "labels": {"app": "web" if number % 2 else "db", "example.com/tier": "front"},
        },
        "spec": {"nodeName": f"n{number // 2}", "priority": number},
        **fields,
    }


def in_terminal(
    arguments: list[str], columns: int, lines: int = 24, **environment: str
) -> tuple[str, int]:
    """What a command writes to a terminal of that size, and its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [*SHMCACHE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**inherited, "TERM": "xterm", **environment},
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal says that the other end is closed
        while data := os.read(ours, 65536):
            seen += data
    os.close(ours)
    return seen.decode().replace("\r\n", "\n"), process.wait()


# --- the command as such ------------------------------------------------------------------------


def test_the_version(run: Run) -> None:
    """--version says the version of the package."""
    assert run("--version") == (0, f"shmcache {shmcache.__version__}\n", "")


def test_without_arguments_the_help_is_printed(run: Run) -> None:
    """Nothing asked is a wrong usage, answered with the list of the commands."""
    status, out, err = run()
    assert (status, out) == (2, "")
    assert all(command in err for command in _COMMANDS)


def test_an_unknown_command_is_told_what_is_near(run: Run) -> None:
    """A mistyped command names the one that was meant; one like none, all there are."""
    assert run("stta", "pods")[0] == 2
    assert "did you mean 'stat'?" in run("stta", "pods")[2]
    assert "There are: ls, stat" in run("xyzzy")[2]


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_has_help(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """COMMAND --help ends well, says what the command is for, and fits a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert _COMMANDS[command][1:].split()[0] in out


@pytest.mark.parametrize(
    "command", ["ls", "stat", "get", "list", "claims", "dead", "watch", "check", "rm"]
)
def test_help_teaches_by_examples(command: str, run: Run) -> None:
    """The help of each command that looks into arenas has command lines to copy, and they parse."""
    help_text = run(command, "--help")[1]
    examples = re.findall(
        rf"^  shmcache ({command}\b.*?)(?: {{3,}}| [|>]|$)", help_text, re.MULTILINE
    )
    assert examples
    for example in examples:
        assert _parser(command).parse_args(shlex.split(example)).command == command


@pytest.mark.parametrize("module", ["shmcache", "shmcache.cli"])
def test_it_is_a_module_too(module: str) -> None:
    """python -m shmcache is the command, and says what is wrong without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", module, "nonsense"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("shmcache: there is no command 'nonsense'")


def test_closed_streams(name: str) -> None:
    """Whoever starts a command without streams gets its status, and no traceback."""
    with Store.create(name, capacity="1MiB") as store:
        store.unlink()
        for closed in (">&-", "<&-", ">&- 2>&-"):
            for arguments, status in (("ls", 0), (f"stat {store.name}", 1)):
                line = f"{shlex.join(SHMCACHE)} {arguments} {closed}"
                done = subprocess.run(
                    ["sh", "-c", line], capture_output=True, text=True, check=False
                )
                assert done.returncode == status, (line, done.stderr)
                assert "Traceback" not in done.stderr


def test_a_command_imports_no_other() -> None:
    """Only the module of the command that runs is imported, and no rich, asyncio or selectors."""
    code = (
        "import sys; from shmcache.cli import main; main(['ls', 'nothing-?', '-o', 'csv'])\n"
        "loaded = {m.rpartition('.')[2] for m in sys.modules if m.startswith('shmcache.cli.')}\n"
        f"assert 'ls' in loaded and not (loaded - {{'ls'}}) & {set(_COMMANDS)!r}, loaded\n"
        "assert not {'rich', 'asyncio', 'shmcache.selectors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_goes_away_is_no_error(pods: Indexer) -> None:
    """`shmcache list | head -1` ends quietly, with the status of a broken pipe."""
    for number in range(4, 3000):
        pods.add(make_pod(number))
    with started(*SHMCACHE, "list", pods.name) as process:
        assert process.stdout.readline().startswith("KEY")
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == ""


def test_a_full_disk_is_an_error_in_words(pods: Indexer) -> None:
    """Output that cannot be written is one line on stderr, and no traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*SHMCACHE, "list", pods.name], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("command", ["stat", "list", "claims", "dead", "watch", "check", "rm"])
def test_an_unknown_arena_is_told_what_is_near(command: str, pods: Indexer, run: Run) -> None:
    """A mistyped arena names the one that was meant."""
    status, out, err = run(command, pods.name + "x")
    assert (status, out) == (1, "")
    assert f"shmcache {command}: there is no arena '{pods.name}x'; did you mean" in err
    assert repr(pods.name) in err


def test_a_name_that_no_arena_can_have_is_wrong_usage(run: Run) -> None:
    """A path is no name."""
    status, _, err = run("stat", "../secret")
    assert status == 2
    assert "cannot be the name of an arena" in err


def test_an_unknown_owner_is_wrong_usage(run: Run) -> None:
    """--owner takes a user of this machine."""
    status, _, err = run("stat", "pods", "--owner", "no-such-user")
    assert status == 2
    assert "there is no user 'no-such-user'" in err


# --- tables -------------------------------------------------------------------------------------


def test_a_table_is_as_wide_as_the_terminal(pods: Indexer) -> None:
    """At any width no line of a list is wider; an object is cut, a key never; colours are there
    on a terminal unless NO_COLOR is set."""
    pods.add(make_pod(1, note="ü日" * 200))
    for columns in (60, 80, 200):
        text, status = in_terminal(["list", pods.name], columns, NO_COLOR="1")
        assert status == 0
        assert "\x1b" not in text
        assert [_width(line) <= columns for line in text.splitlines()] == [True] * 5
        assert all(f"default/web-{number} " in text for number in range(4))
    assert in_terminal(["list", pods.name], 80)[0].startswith("\x1b[1mKEY\x1b[0m")
    assert "\x1b" not in in_terminal(["list", pods.name], 80, TERM="dumb")[0]


def test_a_pipe_gets_the_whole_table(pods: Indexer, run: Run) -> None:
    """Where stdout is no terminal, nothing is cut or coloured."""
    pods.add(make_pod(0, note="x" * 500))
    out = run("list", pods.name)[1]
    assert "x" * 500 in out
    assert "\x1b" not in out


def test_narrow_tables_leave_out_what_matters_least(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Optional columns go, the highest number first, until a table fits; wide text counts as it
    is shown, and what a terminal would obey is spelled out."""
    columns = (Column("a"), Column("b", optional=1), Column("c", optional=2))
    record = {"a": "日本", "b": "b" * 10, "c": "\x1b[31m"}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    shown = []
    for width in (80, 20, 10):
        monkeypatch.setenv("COLUMNS", str(width))
        print_records([record], columns, "table")
        shown.append(capsys.readouterr().out)
    assert shown == [
        "A     B           C\n日本  bbbbbbbbbb  \\x1b[31m\n",
        "A     B\n日本  bbbbbbbbbb\n",
        "A\n日本\n",
    ]


# --- ls -----------------------------------------------------------------------------------------


def listed(run: Run, name: str) -> dict[str, Any]:
    # Only this one: ls attaches to what it shows, and other tests count who is attached.
    status, out, err = run("ls", name, "-o", "json")
    assert (status, err) == (0, "")
    (found,) = json.loads(out)
    assert isinstance(found, dict)
    return found


def test_ls_says_what_there_is(pods: Indexer, run: Run) -> None:
    """ls has the kind, content, room, owner, handles and age of an arena, its own not counted."""
    found = listed(run, pods.name)
    assert found == found | {
        "kind": "Indexer",
        "entries": 4,
        "used_bytes": pods.stats().used_bytes,
        "capacity_bytes": 4 << 20,
        "attached": 1,
        "reflector": "none",
        "codec": "msgpack",
        "owner_uid": os.geteuid(),
        "mode": "0600",
        "problem": None,
    }
    assert found["age_seconds"] >= 0
    (line,) = [line for line in run("ls", pods.name)[1].splitlines() if line.startswith(pods.name)]
    assert line.split()[1:3] == ["Indexer", "4"]


def test_ls_tells_fresh_from_stale(store: Store, run: Run) -> None:
    """A reflector is none before the first, alive while it has its place, stale after its end."""
    assert listed(run, store.name)["reflector"] == "none"
    assert store.claim_reflector("mine")
    store.report_reflector("watching", ReflectorStats(1, 1, 0, 0, 0, "", None, None, None))
    assert listed(run, store.name)["reflector"] == "alive"
    store.release_reflector()
    assert listed(run, store.name)["reflector"] == "stale"


def test_ls_shows_what_is_no_arena(name: str, run: Run) -> None:
    """A file of another program under our prefix is listed with what is wrong with it."""
    Path(f"/dev/shm/shmcache.{name}").write_bytes(b"not an arena, but a file of some length" * 99)
    assert listed(run, name)["problem"] == "not an arena"
    assert re.search(rf"{name}.*: not an arena", run("ls", name)[1])


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@needs_root
def test_ls_shows_arenas_that_are_not_ours_to_open(store: Store) -> None:
    """Of an arena that only another user may open, ls has the owner, the mode and the memory."""
    importlib.import_module("shmcache.cli.ls")  # where this Python is, nobody may look

    def look() -> None:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["ls", store.name, "-o", "json"]) == 0
        (found,) = json.loads(out.getvalue())
        assert (found["kind"], found["entries"], found["owner"]) == (None, None, "root")
        assert (found["mode"], found["problem"]) == ("0600", "not ours to open")
        assert found["allocated_bytes"] > 0

    assert as_user(NOBODY, NOBODY, look) == 0


@needs_root
def test_arenas_of_others_are_opened_when_told_to(name: str, run: Run) -> None:
    """An arena of another user is not attached to, and each command says the --owner that does;
    rm --stale leaves it alone."""

    def create() -> None:
        with Store.create(name, capacity="1MiB") as store:
            store.add_raw("k", b"\xa1x")

    assert as_user(NOBODY, NOBODY, create) == 0
    assert listed(run, name)["entries"] is None
    assert "do not trust" in listed(run, name)["problem"]
    status, out, err = run("get", name, "k")
    assert (status, out) == (1, "")
    user = re.search(r"add --owner (\S+)", err)[1]
    for owner in (user, str(NOBODY)):
        assert run("get", name, "k", "--owner", owner) == (0, '"x"\n', "")
    assert f"kept {name}: belongs to {user}" in run("rm", "--stale", name)[1]
    assert run("rm", name)[0] == 0


def test_ls_of_some(name: str, run: Run) -> None:
    """ls takes names and patterns of names; one that nothing matches is status 1."""
    names = [f"{name}-{letter}" for letter in "abc"]
    with contextlib.ExitStack() as stack:
        for each in names:
            store = stack.enter_context(Store.create(each, capacity="1MiB"))
            stack.callback(store.unlink)
        for patterns, wanted in (
            ([names[1]], names[1:2]),
            ([f"{name}-?"], names),
            ([f"{name}-[ab]", names[2]], names),
        ):
            records = json.loads(run("ls", *patterns, "-o", "json")[1])
            assert [record["name"] for record in records] == wanted
        status, out, err = run("ls", names[0], f"{name}-z*")
        assert (status, out) == (1, "")
        assert f"there is no arena '{name}-z*'" in err
    assert run("ls", "--bogus")[0] == 2


# --- stat ---------------------------------------------------------------------------------------


def test_stat_has_every_figure(pods: Indexer, run: Run) -> None:
    """stat -o json has the figures of stats(), the processes and the reflector; CSV the same in
    one row, and the table what people look for."""
    with holding(pods.name) as other:
        found = json.loads(run("stat", pods.name, "-o", "json")[1])
    stats = pods.stats()
    assert found["entries"] == 4
    assert found["writes"] == stats.writes == 4
    assert found["attached"] == 2
    assert found["index_names"] == ["node"]
    assert [process["pid"] for process in found["processes"]] == [other.pid]
    assert found["reflector"]["freshness"] == "none"
    header, row = csv.reader(io.StringIO(run("stat", pods.name, "-o", "csv")[1]))
    assert dict(zip(header, row, strict=True))["reflector.alive"] == "false"
    table = run("stat", pods.name)[1]
    assert re.search(r"^  entries +4$", table, re.MULTILINE)
    assert re.search(r"^  names +node$", table, re.MULTILINE)


def test_stat_shows_who_pops(fifo: FIFO, run: Run, pod: Callable[..., dict[str, object]]) -> None:
    """Of a queue, stat has what each process has popped and claimed, all its handles together, and
    how long the oldest item waits."""
    for letter in "abcd":
        fifo.add(pod(letter))
    fifo.pop(0)
    with fifo.claim(0), FIFO.attach(fifo.name) as second:
        second.pop(0)
        found = json.loads(run("stat", fifo.name, "-o", "json")[1])
        table = run("stat", fifo.name)[1]
    assert found["workers"] == [{"pid": os.getpid(), "pops": 2, "in_flight": 1}]
    assert found["oldest_age"] >= 0
    assert re.search(r"^  entries +1, the oldest has waited .*s$", table, re.MULTILINE)
    assert re.search(rf"^    {os.getpid()} .*  2 pops, 1 in flight$", table, re.MULTILINE)


def test_stat_does_not_wait_for_the_lock(
    fifo: FIFO, run: Run, monkeypatch: pytest.MonkeyPatch, pod: Callable[..., dict[str, object]]
) -> None:
    """Where the lock of a queue is not to be had, only who has what in flight is not known."""

    def held(queue: FIFO) -> None:
        assert queue._options["lock_timeout"] < 1
        raise shmcache.LockTimeoutError("somebody was stopped with it")

    fifo.add(pod("a"))
    monkeypatch.setattr(FIFO, "in_flight", held)
    with fifo.claim(0):
        found = json.loads(run("stat", fifo.name, "-o", "json")[1])
        assert run("stat", fifo.name)[0] == 0
    assert found["in_flight"] == 1
    assert found["workers"] == [{"pid": os.getpid(), "pops": 0, "in_flight": None}]


def test_stat_counts_reads(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, pod: Callable[..., dict[str, object]]
) -> None:
    """READS/s are the reads of every process."""
    store.add(pod("a"))

    def work(seconds: float) -> None:
        for _ in range(1000):
            store.get_by_key("default/a")

    monkeypatch.setattr(time, "sleep", work)
    lines = run("stat", store.name, "-i", "0.5", "-n", "2", "-o", "json")[1].splitlines()
    first, second = map(json.loads, lines)
    assert (first["reads_per_second"], second["reads_per_second"] > 0) == (None, True)
    assert "READS/s" in run("stat", store.name, "-i", "0.5", "-n", "1")[1]


def test_stat_shows_the_reflector(store: Store, run: Run) -> None:
    """What a reflector says of itself is in the table, its last error too."""
    store.claim_reflector("mine")
    store.report_reflector(
        "waiting", ReflectorStats(1, 2, 3, 0, 1, "ApiError: 500", None, None, time.monotonic())
    )
    table = run("stat", store.name)[1]
    assert "reflector  alive" in table
    assert re.search(r"^  name +mine, process \d+$", table, re.MULTILINE)
    assert "ago: ApiError: 500" in table


def test_stat_prints_a_line_so_often(
    fifo: FIFO, run: Run, monkeypatch: pytest.MonkeyPatch, pod: Callable[..., dict[str, object]]
) -> None:
    """With -i each line has the rates since the line before; -n ends it, and the first has none."""

    def work(seconds: float) -> None:
        for number in range(5):
            fifo.add(pod(f"web-{number}"))
        fifo.pop(0)

    monkeypatch.setattr(time, "sleep", work)
    status, out, err = run("stat", fifo.name, "-i", "0.5", "-n", "2", "-o", "json")
    assert (status, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert (first["entries"], first["writes_per_second"]) == (0, None)
    assert second["entries"] == 4
    assert second["writes_per_second"] > second["pops_per_second"] > 0
    assert second["deletes_per_second"] == 0
    assert (first["oldest_age"], second["oldest_age"] >= 0) == (None, True)
    header, *rows = run("stat", fifo.name, "-i", "0.5", "-n", "3")[1].splitlines()
    assert header.split() == [
        *("TIME", "DEPTH", "WRITES/s", "DELETES/s", "POPS/s", "OLDEST", "USED", "REFLECTOR")
    ]
    assert len(rows) == 3


def test_stat_repeats_its_header_each_screen(store: Store) -> None:
    """On a terminal of 6 lines the header comes again after 4 of them."""
    text, status = in_terminal(
        ["stat", store.name, "-i", "0.001", "-n", "9"], 80, lines=6, NO_COLOR="1"
    )
    assert status == 0
    headers = [at for at, line in enumerate(text.splitlines()) if line.startswith("TIME")]
    assert headers == [0, 5, 10]


def test_ctrl_c_ends_stat(store: Store) -> None:
    """SIGINT between two lines is the ordinary end: status 0, and nothing on stderr."""
    with started(*SHMCACHE, "stat", store.name, "-i", "600", "-o", "csv") as process:
        assert process.stdout.readline().startswith("time,")
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.stderr.read() == ""


def test_stat_ends_with_its_arena(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the arena is removed the lines end, and the status says that this was no wish."""
    monkeypatch.setattr(time, "sleep", lambda seconds: store.unlink())
    status, out, err = run("stat", store.name, "-i", "5", "-o", "csv")
    assert status == 1
    assert len(out.splitlines()) == 2
    assert "has been removed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-n", "2"), "say how often with -i"),
        (("-i", "soon"), "a number of seconds above 0, not 'soon'"),
        (("-i", "0"), "a number of seconds above 0, not '0'"),
        (("-i", "1", "-n", "none"), "a number from 1 on, not 'none'"),
    ],
)
def test_wrong_usage_of_stat(
    arguments: tuple[str, ...], message: str, store: Store, run: Run
) -> None:
    """Options that make no sense are refused with the reason."""
    status, out, err = run("stat", store.name, *arguments)
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stat", "a", "-n", "²"), "--count: a number from 1 on, not '²'"),
        (("stat", "a", "-i", "inf"), "--interval: a number of seconds above 0, not 'inf'"),
        (("stat", "a", "--owner", "²"), "--owner: there is no user '²' on this machine"),
        (("list", "a", "--limit", "²"), "--limit: a number from 0 on, not '²'"),
        (("bench", "--size", "1e3"), "--size: a number from 1 on, not '1e3'"),
        (("demo", "--pods", "-1"), "--pods: a number from 1 on, not '-1'"),
        (("top", "--port", "x"), "--port: a port is a number from 0 to 65535, not 'x'"),
        (("reflect", "pods", "--owner", "²"), "--owner: there is no user '²' on this machine"),
    ],
)
def test_values_are_refused_with_the_reason(
    arguments: tuple[str, ...], message: str, run: Run
) -> None:
    """What is no number, time or user is refused with what the option takes, the same everywhere,
    and never by the name of a function."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err


# --- get ----------------------------------------------------------------------------------------


def test_get_prints_the_object(pods: Indexer, run: Run) -> None:
    """get gives the object as JSON."""
    status, out, err = run("get", pods.name, "default/web-1")
    assert (status, err) == (0, "")
    assert json.loads(out) == make_pod(1)


@pytest.mark.parametrize(
    ("key", "hint"),
    [("default/wbe-1", "'default/web-1'"), ("web-3", "'default/web-3'"), ("3", "'default/web-3'")],
)
def test_get_of_an_unknown_key(key: str, hint: str, pods: Indexer, run: Run) -> None:
    """A key that is not there is status 1, and near ones are named."""
    status, out, err = run("get", pods.name, key)
    assert (status, out) == (1, "")
    assert f"has no key {key!r}; did you mean" in err
    assert hint in err
    assert run("get", pods.name, key, "-o", "raw")[0] == 1


def test_get_prints_what_json_has_no_form_for(store: Store, run: Run) -> None:
    """Bytes, times, keys that are no text, deep nesting, control characters and floats that are no
    number all come out as JSON that any reader takes."""
    deep: Any = 0
    for _ in range(1000):
        deep = [deep]
    value = {"b": b"\x00\xff", 7: "\x9b", (1, "a"): deep, "f": [float("nan"), -float("inf"), 0.5]}
    store.add_raw("odd", shmcache.MsgpackCodec().encode(value))
    status, out, _ = run("get", store.name, "odd")
    assert status == 0
    assert "\x9b" not in out
    read = json.loads(out, parse_constant=pytest.fail)
    assert read["f"] == [None, None, 0.5]
    assert read["b"] == {"base64": "AP8="}
    assert read["7"] == "\x9b"
    assert '[1,"a"]' in read


def test_get_of_a_foreign_codec(name: str) -> None:
    """The bytes of another codec go to a pipe as they are; a terminal gets text, or a dump."""
    data = bytes(range(40))
    with Store.create(name, codec=RawCodec(), capacity="1MiB") as raw:
        raw.add_raw("binary", data)
        raw.add_raw("text", "grüezi".encode())
        done = subprocess.run([*SHMCACHE, "get", name, "binary"], capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (data, b"")
        assert "00000020  20 21 22 23" in in_terminal(["get", name, "binary"], 80)[0]
        assert in_terminal(["get", name, "text"], 80)[0] == "grüezi\n"
        raw.unlink()


def test_get_of_a_payload_that_is_not_what_it_should_be(store: Store, run: Run) -> None:
    """A payload that the codec cannot read is status 1, with how to get its bytes."""
    store.add_raw("broken", b"\xc1")
    status, _, err = run("get", store.name, "broken")
    assert status == 1
    assert "add -o raw" in err
    done = subprocess.run(
        [*SHMCACHE, "get", store.name, "broken", "-o", "raw"], capture_output=True, check=True
    )
    assert done.stdout == b"\xc1"


# --- list ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ((), [0, 1, 2, 3]),
        (("-l", "app=web"), [1, 3]),
        (("--selector", "app in (db, web),!legacy,app!=web"), [0, 2]),
        (("--field-selector", "spec.nodeName=n1"), [2, 3]),
        (("--field-selector", "spec.nodeName!=n1,spec.priority=1"), [1]),
        (("--field-selector", "metadata.labels.example.com/tier!=front"), []),
        (("--field-selector", "spec.missing="), [0, 1, 2, 3]),
        (("--index", "node=n0"), [0, 1]),
        (("--index", "node=n0", "-l", "app=web"), [1]),
        (("--index", "node=nowhere"), []),
        (("--prefix", "default/web-3"), [3]),
        (("--prefix", "kube-system/"), []),
        (("--limit", "2"), [0, 1]),
    ],
)
def test_list_selects(
    arguments: tuple[str, ...], numbers: list[int], pods: Indexer, run: Run
) -> None:
    """Each way to select gives just what it says, as keys and as objects."""
    keys = [f"default/web-{number}" for number in numbers]
    status, out, _ = run("list", pods.name, *arguments, "-o", "json")
    assert status == 0
    assert json.loads(out) == [
        {"key": key, "object": make_pod(number)} for key, number in zip(keys, numbers, strict=True)
    ]
    assert run("list", pods.name, *arguments, "--keys")[1].split() == keys


def test_list_as_table_and_csv(pods: Indexer, run: Run) -> None:
    """The table shows what the key does not say; CSV has the object as JSON; a cut list says so."""
    header, first, *_ = run("list", pods.name)[1].splitlines()
    assert header.split() == ["KEY", "OBJECT"]
    assert first.split() == ["default/web-0", '{"spec":{"nodeName":"n0","priority":0}}']
    rows = list(csv.DictReader(io.StringIO(run("list", pods.name, "-o", "csv")[1])))
    assert [json.loads(row["object"]) for row in rows] == [make_pod(number) for number in range(4)]
    assert run("list", pods.name, "-l", "app=x") == (0, "", "none of 4 entries\n")
    assert run("list", pods.name, "-l", "app=x", "-o", "csv") == (0, "key,object\n", "")
    assert run("list", pods.name, "--limit", "1")[2] == "1 of 4 shown (--limit)\n"
    assert json.loads(run("list", pods.name, "--keys", "-o", "json", "--limit", "1")[1]) == [
        {"key": "default/web-0"}
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-l", "app web"), 2, "    app web\n        ^"),
        (("--field-selector", "spec"), 2, "expected '='"),
        (("--index", "node"), 2, "like node=worker-3, not 'node'"),
        (("--index", "color=red"), 1, "has no index 'color'; it has 'node'"),
        (("--limit", "-1"), 2, "--limit"),
    ],
)
def test_wrong_usage_of_list(
    arguments: tuple[str, ...], status: int, message: str, pods: Indexer, run: Run
) -> None:
    """What cannot be selected by is refused, with the place where it is wrong."""
    found, out, err = run("list", pods.name, *arguments)
    assert (found, out) == (status, "")
    assert message in err


def test_list_of_what_cannot_be_looked_into(name: str, run: Run) -> None:
    """Bytes of a foreign codec can be listed and found by key, and not selected by labels; a
    store has no index; one payload that cannot be read leaves the keys."""
    with Store.create(name, codec=RawCodec(), capacity="1MiB") as raw:
        raw.add_raw("binary", b"\x00\x01")
        assert "0001 (2 bytes)" in run("list", name)[1]
        status, _, err = run("list", name, "-l", "app=web")
        assert status == 2
        assert "use --prefix" in err
        status, _, err = run("list", name, "--index", "node=n1")
        assert status == 2
        assert "is a Store, and only an Indexer has indexes" in err
        raw.unlink()
    with Store.create(name, capacity="1MiB") as store:
        store.add_raw("broken", b"\xc1")
        status, _, err = run("list", name)
        assert status == 1
        assert "add --keys" in err
        assert run("list", name, "--keys") == (0, "broken\n", "")


# --- claims, dead letters ------------------------------------------------------------------------


@pytest.fixture
def jobs(name: str) -> Iterator[FIFO]:
    """A queue in which web-0 and web-1 are dead letters, and web-2 to web-4 wait."""
    with FIFO.create(name, capacity="4MiB", max_attempts=2) as made:
        for number in range(5):
            made.add(make_pod(number))
        for _ in range(4):
            made.claim(0).fail()
        yield made
        assert made.check() == []


def test_claims_lists_what_is_in_flight(jobs: FIFO, run: Run) -> None:
    """claims has of each item in flight the process, its command, the attempt and what is left of
    the lease, in the order of the claims, as table, JSON and CSV."""
    assert run("claims", jobs.name) == (0, "", "nothing in flight\n")
    jobs.claim(0).fail()
    with jobs.claim(0), jobs.claim(0, lease=600):
        first, second = json.loads(run("claims", jobs.name, "-o", "json")[1])
        header, line, *_ = run("claims", jobs.name)[1].splitlines()
        rows = list(csv.DictReader(io.StringIO(run("claims", jobs.name, "-o", "csv")[1])))
        selected = run("claims", jobs.name, "-l", "app=web", "-o", "json")[1]
        assert run("claims", jobs.name, "--prefix", "x/") == (0, "", "none of 2 items in flight\n")
    assert first == {
        "key": "default/web-2",
        "pid": os.getpid(),
        "command": first["command"],
        "attempt": 2,
        "age": first["age"],
        "lease": None,
        "object": make_pod(2),
    }
    assert first["command"]
    assert 0 <= second["age"] <= first["age"]
    assert (second["key"], second["attempt"]) == ("default/web-3", 1)
    assert 0 < second["lease"] <= 600
    assert header.split() == ["KEY", "PID", "COMMAND", "ATTEMPT", "AGE", "LEASE", "OBJECT"]
    assert re.match(rf"default/web-2 +{os.getpid()} .* 2 +[\d.]+m?s +- +{{\"spec\"", line)
    assert [row["key"] for row in rows] == ["default/web-2", "default/web-3"]
    assert [record["key"] for record in json.loads(selected)] == ["default/web-3"]


def test_dead_lists_the_dead_letters(jobs: FIFO, run: Run) -> None:
    """dead has key, attempts and object of each dead letter, all or those of a selection, and
    changes nothing."""
    records = [
        {"key": f"default/web-{number}", "attempts": 2, "object": make_pod(number)}
        for number in range(2)
    ]
    listed = json.loads(run("dead", jobs.name, "-o", "json")[1])
    assert all(one.pop("age") >= 0 for one in listed)
    assert listed == records
    selected = json.loads(run("dead", jobs.name, "-l", "app=web", "-o", "json")[1])
    assert [one["key"] for one in selected] == ["default/web-1"]
    header, *lines = run("dead", jobs.name)[1].splitlines()
    assert header.split() == ["KEY", "ATTEMPTS", "AGE", "OBJECT"]
    assert [line.split()[:2] for line in lines] == [["default/web-0", "2"], ["default/web-1", "2"]]
    assert run("dead", jobs.name, "--prefix", "x/") == (0, "", "none of 2 dead letters\n")
    assert len(jobs.dead_letters()) == 2


@pytest.mark.parametrize(
    ("option", "word", "queued"), [("--retry", "retried", 4), ("--drop", "dropped", 3)]
)
def test_dead_letters_are_settled_by_key(
    option: str, word: str, queued: int, jobs: FIFO, run: Run
) -> None:
    """--retry and --drop settle the keys that they name, each once; one that is no dead letter is
    status 1, names what is near, and keeps none of the others."""
    keys = ["default/web-4", "default/web-0", "default/web-0"]
    status, out, err = run("dead", jobs.name, option, *keys)
    assert (status, out) == (1, f"{word} default/web-0\n")
    assert "has no dead letter 'default/web-4'; did you mean 'default/web-1'?" in err
    assert err.count("\n") == 1
    assert [letter.key for letter in jobs.dead_letters()] == ["default/web-1"]
    assert jobs.qsize() == queued
    status, out, err = run("dead", jobs.name, option, "default/web-1", "-o", "json")
    assert (status, json.loads(out), err) == (0, [{"key": "default/web-1", "done": word}], "")


def test_all_dead_letters_are_settled(jobs: FIFO, run: Run) -> None:
    """--all settles what would be listed: those of a selection, or all; none is no failure."""
    assert run("dead", jobs.name, "--retry", "--all", "-l", "app=web") == (
        0,
        "retried default/web-1\n",
        "",
    )
    assert run("dead", jobs.name, "--drop", "--all") == (0, "dropped default/web-0\n", "")
    assert run("dead", jobs.name, "--drop", "--all") == (0, "", "no dead letters\n")
    assert run("dead", jobs.name) == (0, "", "no dead letters\n")
    assert json.loads(run("dead", jobs.name, "-o", "json")[1]) == []
    assert [item["metadata"]["name"] for item in jobs.pop_many(9)] == [
        *("web-2", "web-3", "web-4", "web-1")
    ]


def test_what_cannot_be_decoded_hides_nothing(jobs: FIFO, run: Run) -> None:
    """A payload that the codec cannot read is shown as its bytes, beside the others: among the
    dead letters, in flight, and for stat."""
    bytes_ = RawCodec()
    bytes_.name = jobs._codec.name
    jobs.replace([make_pod(5)])
    for key in "ab":
        jobs.add_raw(key, b"\xc1")
    with jobs.claim(0), FIFO.attach(jobs.name, codec=bytes_) as careless:
        for _ in range(2):
            careless.claim(0).fail()
        with careless.claim(0):
            for command, key, total in (("dead", "a", 3), ("claims", "b", 2)):
                table = run(command, jobs.name)[1]
                assert re.search(rf"^{key} .* c1 \(1 byte\)$", table, re.MULTILINE)
                assert len(table.splitlines()) == 1 + total
            found = json.loads(run("stat", jobs.name, "-o", "json")[1])
            assert [worker["in_flight"] for worker in found["workers"]] == [2]
    assert run("dead", jobs.name, "--drop", "a") == (0, "dropped a\n", "")


def test_the_bytes_of_a_foreign_codec_are_dead_letters_too(name: str, run: Run) -> None:
    """Items of a codec that only its owner has are listed as bytes, and settled."""
    with FIFO.create(name, codec=RawCodec(), capacity="1MiB", max_attempts=1) as raw:
        raw.add_raw("k", b"plain")
        raw.claim(0).fail()
        key, attempts, *_, payload = run("dead", name)[1].splitlines()[1].split()
        assert (key, attempts, payload) == ("k", "1", "plain")
        assert run("dead", name, "--retry", "k") == (0, "retried k\n", "")
        with raw.claim(0):
            assert run("claims", name)[1].splitlines()[1].split()[-1] == "plain"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--retry",), "say which: KEY..., or --all"),
        (("--drop",), "say which: KEY..., or --all"),
        (("--all",), "add --retry or --drop"),
        (("--retry", "k", "--all"), "not both"),
        (("--drop", "k", "--prefix", "k"), "selectors choose among --all"),
        (("--retry", "k", "--drop", "k"), "not allowed with"),
    ],
)
def test_wrong_usage_of_dead(
    arguments: tuple[str, ...], message: str, jobs: FIFO, run: Run
) -> None:
    """What is not clear is refused, and nothing is changed."""
    status, out, err = run("dead", jobs.name, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(jobs.dead_letters()) == 2


@pytest.mark.parametrize("command", ["claims", "dead"])
def test_only_a_queue_holds_anything_back(command: str, pods: Indexer, run: Run) -> None:
    """Of another kind of arena there are neither claims nor dead letters: wrong usage."""
    status, out, err = run(command, pods.name)
    assert (status, out) == (2, "")
    assert "only a FIFO or a WorkQueue has" in err
    assert f"arena '{pods.name}' is of the kind Indexer" in err


# --- watch --------------------------------------------------------------------------------------

EVERYTHING = Selection("", None, None)


def test_watch_prints_changes_as_they_happen(pods: Indexer) -> None:
    """What is there comes as ADDED, then each change as a line of JSON; Ctrl-C ends it with 0."""
    with started(*SHMCACHE, "watch", pods.name, "-o", "json", "-l", "app=web") as process:
        lines = (json.loads(line) for line in process.stdout)
        initial = [next(lines), next(lines)]
        assert [(line["type"], line["key"]) for line in initial] == [
            ("ADDED", "default/web-1"),
            ("ADDED", "default/web-3"),
        ]
        for change, kind in (
            (lambda: pods.add(make_pod(5)), "ADDED"),
            (lambda: pods.add(make_pod(5, n=1)), "MODIFIED"),
            (lambda: pods.delete(make_pod(5)), "DELETED"),
        ):
            change()
            line = next(lines)
            assert (line["type"], line["key"], line["folded"]) == (kind, "default/web-5", 0)
        assert line["object"] == make_pod(5, n=1)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.stderr.read() == ""


def read(changes: Iterator[dict[str, Any]]) -> tuple[str, str, int]:
    change = next(changes)
    return change["type"], change["key"], change["folded"]


def test_watch_says_what_it_has_folded(store: Store, pod: Callable[..., dict[str, object]]) -> None:
    """Changes that no line shows are counted on the next line: what was overwritten in between,
    what came and went, what was written anew as it was."""
    store.add(pod("a"))
    changes = _changes(store, EVERYTHING, initial=True)
    assert read(changes) == ("ADDED", "default/a", 0)
    store.add(pod("a", n=1))
    store.add(pod("a", n=2))
    store.add(pod("b"))
    store.delete(pod("b"))
    assert read(changes) == ("MODIFIED", "default/a", 3)
    store.delete(pod("a"))
    store.add(pod("c"))
    assert [read(changes), read(changes)] == [
        ("DELETED", "default/a", 0),
        ("ADDED", "default/c", 0),
    ]
    store.add(pod("c"))
    store.add(pod("d"))
    assert read(changes) == ("ADDED", "default/d", 1)
    changes.close()


def test_watch_follows_the_selection(pods: Indexer) -> None:
    """To who sees a selection, an object that comes to match is ADDED, and one that ceases to is
    DELETED; changes outside of it are neither shown nor counted."""
    changes = _changes(
        pods, Selection("default/web-1", LabelSelector.parse("app=web"), None), initial=True
    )
    assert read(changes) == ("ADDED", "default/web-1", 0)
    changed = make_pod(1)
    changed["metadata"]["labels"]["app"] = "db"
    pods.add(make_pod(2, n=1))
    pods.add(changed)
    assert read(changes) == ("DELETED", "default/web-1", 0)
    pods.add(make_pod(1))
    assert read(changes) == ("ADDED", "default/web-1", 0)
    changes.close()


def test_watch_without_what_is_there(
    store: Store, pod: Callable[..., dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --no-initial the first line is the first change."""
    store.add(pod("a"))
    monkeypatch.setattr(time, "sleep", lambda seconds: store.add(pod("b")))
    changes = _changes(store, EVERYTHING, initial=False)
    assert read(changes) == ("ADDED", "default/b", 0)
    changes.close()


def test_watch_shows_what_is_popped(fifo: FIFO, pod: Callable[..., dict[str, object]]) -> None:
    """An item that leaves a FIFO is DELETED."""
    fifo.add(pod("a"))
    changes = _changes(fifo, EVERYTHING, initial=True)
    assert read(changes) == ("ADDED", "default/a", 0)
    fifo.pop(0)
    assert read(changes) == ("DELETED", "default/a", 0)
    changes.close()


def test_watch_ends_with_its_arena(
    pods: Indexer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the arena is removed the lines end, and the status says that this was no wish."""
    monkeypatch.setattr("shmcache.cli.watch._LOOK_SECONDS", 0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: pods.unlink())
    status, out, err = run("watch", pods.name)
    assert status == 1
    assert len(out.splitlines()) == 5
    assert "has been removed" in err


# --- check --------------------------------------------------------------------------------------


def damage(name: str, key: bytes) -> None:
    """Change a key in the segment, as no writer does."""
    with open(f"/dev/shm/shmcache.{name}", "r+b") as file:
        place = file.read().index(key)
        os.pwrite(file.fileno(), b"?", place)


def test_check_of_a_whole_arena(pods: Indexer, run: Run) -> None:
    """Whole arenas are said to be whole, with status 0."""
    assert run("check", pods.name, pods.name) == (0, f"{pods.name}: whole\n" * 2, "")
    assert json.loads(run("check", pods.name, "-o", "json")[1]) == [
        {"name": pods.name, "whole": True, "violations": []}
    ]


def test_check_of_a_damaged_arena(name: str, run: Run) -> None:
    """A broken invariant is status 1, with each violation; what is not there too, and the others
    are checked all the same."""
    with Store.create(name, capacity="1MiB") as store:
        store.add_raw("a-key-to-be-damaged", b"\xc0")
        damage(name, b"a-key-to-be-damaged")
        violations = store.check()
        assert violations
        status, out, err = run("check", name + "-missing", name)
        assert status == 1
        assert out.splitlines() == [f"{name}: not whole", *(f"  {text}" for text in violations)]
        assert f"there is no arena '{name}-missing'" in err
        (found,) = json.loads(run("check", name, "-o", "json")[1])
        assert found == {"name": name, "whole": False, "violations": violations}


# --- rm -----------------------------------------------------------------------------------------


def is_there(name: str) -> bool:
    return Path(f"/dev/shm/shmcache.{name}").exists()


def test_rm_removes_what_nobody_uses(name: str, run: Run) -> None:
    """An arena that nobody has open is removed; --dry-run only says so."""
    Store.create(name, capacity="1MiB").close()
    status, out, err = run("rm", name, "--dry-run")
    assert (status, err) == (0, "")
    assert out.startswith(f"would remove {name} (")
    assert is_there(name)
    status, out, err = run("rm", name, "-o", "json")
    assert (status, err) == (0, "")
    (found,) = json.loads(out)
    assert found == found | {"name": name, "removed": True, "reason": None}
    assert not is_there(name)


def test_rm_refuses_what_is_in_use(name: str, run: Run) -> None:
    """An arena that another process has open stays, and the process is named; --force removes the
    name, and the process goes on."""
    Store.create(name, capacity="1MiB").close()
    with holding(name) as other:
        for more in ((), ("--dry-run",)):
            status, out, err = run("rm", name, *more)
            assert (status, out) == (1, "")
            assert re.search(rf"in use by process.* {other.pid} \({sys.executable}", err)
            assert "--force" in err
        assert is_there(name)
        assert run("rm", name, "--force")[0] == 0
        assert not is_there(name)
        assert other.poll() is None


def test_rm_stale_leaves_what_is_in_use(name: str, run: Run) -> None:
    """--stale removes just the arenas that no living process has open, and says which."""
    left, used, foreign = (f"{name}-{what}" for what in ("left", "used", "foreign"))
    Store.create(left, capacity="1MiB").close()
    with Store.create(used, capacity="1MiB"):
        Path(f"/dev/shm/shmcache.{foreign}").write_bytes(b"something of somebody else" * 99)
        try:
            assert left in run("rm", "--stale", "--dry-run")[1]
            for unwanted in (used, foreign):
                assert unwanted not in run("rm", "--stale", "--dry-run")[1]
            status, out, err = run("rm", "--stale", used, left, foreign)
            assert (status, err) == (0, "")
            assert re.fullmatch(
                rf"kept {used}: is in use\nremoved {left} \(\d+Ki\)\n"
                rf"kept {foreign}: is not an arena\n",
                out,
            )
            assert [is_there(each) for each in (left, used, foreign)] == [False, True, True]
            assert run("rm", foreign)[0] == 0
            assert not is_there(foreign)
        finally:
            for each in (left, used, foreign):
                Path(f"/dev/shm/shmcache.{each}").unlink(missing_ok=True)


def test_wrong_usage_of_rm(run: Run) -> None:
    """rm of nothing is refused, and so is what contradicts itself."""
    assert "say which arenas" in run("rm")[2]
    assert run("rm")[0] == 2
    assert run("rm", "--stale", "--force")[0] == 2


# --- completion ---------------------------------------------------------------------------------

BASH = r"""
set -eu
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
eval "$(shmcache completion bash)"
complete_line() {
    COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_KEY=9
    read -ra COMP_WORDS <<< "$1"
    case $1 in *' ') COMP_WORDS+=('') ;; esac
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    $(complete -p shmcache | sed 's/.*-F \([^ ]*\).*/\1/') shmcache
    echo "${COMPREPLY[@]}"
}
complete_line 'shmcache st'
complete_line "shmcache stat $1"
complete_line 'shmcache rm --st'
complete_line "shmcache get $2 default/web-"
complete_line 'shmcache get no-such-arena '
complete_line "shmcache dead $3 --retry default/web-"
"""


def test_completion_in_bash(pods: Indexer, tmp_path: Path) -> None:
    """In a real bash commands, options, arenas, keys and dead letters complete, as they are at that
    moment."""
    pytest.importorskip("argcomplete")
    command = tmp_path / "shmcache"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m shmcache "$@"\n')
    command.chmod(0o755)
    with FIFO.create(capacity="1MiB", max_attempts=1) as jobs:
        jobs.add(make_pod(7))
        jobs.claim(0).fail()
        done = subprocess.run(
            ["bash", "--norc", "-c", BASH, "bash", pods.name[:-2], pods.name, jobs.name],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        jobs.unlink()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["stat"],
        [pods.name],
        ["--stale"],
        [f"default/web-{number}" for number in range(4)],
        [],
        ["default/web-7"],
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str, run: Run) -> None:
    """Each shell gets a script that is about shmcache."""
    pytest.importorskip("argcomplete")
    status, out, err = run("completion", shell)
    assert (status, err) == (0, "")
    assert "shmcache" in out


def test_completion_without_argcomplete(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error is the line that installs it; an unknown shell names those
    that are known."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, out, err = run("completion", "bash")
    assert (status, out) == (2, "")
    assert "pip install 'shmcache[cli]'" in err
    assert run("completion", "ksh")[0] == 2
