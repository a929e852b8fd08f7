"""`shmcache bench` measures every row, and leaves nothing behind however it ends."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache.cli import bench, main
from shmcache.cli._samples import key_func, loaded, made
from tests.running import wait_until

DEADLINE = 60.0
ROWS = 9


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """--quick is one short round, and the signal handlers of this process stay."""
    monkeypatch.setattr(bench, "_QUICK", bench._Scale(rounds=1, seconds=0.001, wakes=1))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_json_has_all_rows(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Own objects go through every row, and JSON tells of the machine too."""
    path = tmp_path / "objects"
    path.write_text("\n".join(json.dumps({"number": n, "text": "x" * n}) for n in range(50)))
    assert main(["bench", "--quick", "--objects", str(path), "-o", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert said["machine"]["shmcache"] == shmcache.__version__
    assert said["measured"]["objects"] == 50
    assert len(said["rows"]) == ROWS
    for row in said["rows"]:
        assert 0 < row["shmcache_least"] <= row["shmcache_us"] <= row["shmcache_most"]
        assert 0 < row["rival_least"] <= row["rival_us"] <= row["rival_most"]
        assert row["ratio"] == pytest.approx(row["shmcache_us"] / row["rival_us"])  # one round


def test_csv_and_table_have_the_same_rows(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row is a line of the table and a record of CSV; the number of consumers is an option."""
    arguments = ["bench", "--quick", "--size", "200", "--processes", "3"]
    assert main([*arguments, "-o", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == ROWS
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()[-ROWS:]
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row["work"])
        assert row["rival"] in line
    assert "add to pop, 3 consumers" in [row["work"] for row in rows]


def test_objects_larger_than_a_queue_holds_at_once(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few large objects are measured one by one."""
    path = tmp_path / "objects"
    path.write_text(json.dumps([{"text": "x" * (9 << 20)}]))
    assert main(["bench", "--quick", "--objects", str(path), "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == ROWS


# --- its end -------------------------------------------------------------------------------------


def of_session(session: int) -> dict[int, str]:
    """The living processes of a session, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text()
    return found


@pytest.fixture
def running() -> Iterator[Any]:
    """A bench in a session of its own, that has printed a row."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shmcache.cli", "bench", "--size", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("get, unchanged"):
            break
    yield process
    for pid in of_session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def consumers(process: Any) -> list[int]:
    found = of_session(process.pid).items()
    return sorted(pid for pid, command in found if "multiprocessing-fork" in command)


@pytest.mark.parametrize("started", [0, 1, 4])
def test_interrupt_ends_everything(running: Any, started: int) -> None:
    """Ctrl-C in the terminal, at whatever point, ends all processes without a word."""
    wait_until(lambda: len(consumers(running)) >= started)
    os.killpg(running.pid, signal.SIGINT)
    _, error = running.communicate(timeout=DEADLINE)
    assert (running.returncode, error) == (130, "")
    wait_until(lambda: not of_session(running.pid))


@pytest.mark.parametrize(
    ("number", "status", "started"),
    [(signal.SIGTERM, 143, 4), (signal.SIGKILL, -9, 4), (signal.SIGKILL, -9, 1)],
)
def test_a_kill_ends_everything(running: Any, number: int, status: int, started: int) -> None:
    """Whoever ends the command, its processes end too."""
    wait_until(lambda: len(consumers(running)) == started)
    assert running.stdout is not None
    if started == 1:  # and at work
        while "Manager" not in running.stdout.readline():
            pass
    os.kill(running.pid, number)
    running.communicate(timeout=DEADLINE)
    assert running.returncode == status
    wait_until(lambda: not of_session(running.pid))


@pytest.mark.parametrize(("started", "which"), [(1, "Manager"), (2, "FIFO"), (4, "Queue")])
def test_a_killed_child_is_told(running: Any, started: int, which: str) -> None:
    """A process that is killed while it is measured ends it with status 1 and one line."""
    wait_until(lambda: len(consumers(running)) == started)
    os.kill(consumers(running)[-1], signal.SIGKILL)
    _, error = running.communicate(timeout=DEADLINE)
    assert running.returncode == 1
    assert which in error
    assert error.count("\n") == 1
    wait_until(lambda: not of_session(running.pid))


# --- objects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ('{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('{"kind": "List", "items": [{"a": 1}]}', [{"a": 1}]),
    ],
)
def test_forms_of_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: list[Any]
) -> None:
    """JSON lines, a list, one object and a Kubernetes list are understood, from stdin too."""
    path = tmp_path / "objects"
    path.write_text(text)
    assert loaded(str(path)) == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert loaded("-") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("", "neither a list"),
        ("[]", "neither a list"),
        ("[1]", "neither a list"),
        ('{"a": 1}\n{', "line 2 is not JSON"),
    ],
)
def test_wrong_objects_are_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, expected: str
) -> None:
    """What is not a file of objects is wrong usage, and the message says why."""
    path = tmp_path / "objects"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--objects", str(path)])
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--processes", "x"], ["-o", "xml"]])
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option that cannot be meant ends with status 2 and a line that names it."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert arguments[0] in err
    assert "_count" not in err  # a name of ours


def test_keys_of_objects() -> None:
    """Every object has a key of its own, the stock one where that tells all apart."""
    pods = made(1000)
    assert key_func(pods) is shmcache.meta_namespace_key_func
    assert 900 < len(json.dumps(pods[7])) < 1100
    for objects in ([{"a": 1}, {"a": 1}], [pods[0], dict(pods[0])]):
        assert list(map(key_func(objects), objects)) == ["0", "1"]
