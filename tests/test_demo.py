"""`shmcache demo` binds every pod exactly once, whatever dies meanwhile, and leaves nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache import Store, list_arenas, unlink
from shmcache.cli import main
from shmcache.demo._display import Progress, open_display
from shmcache.demo._messages import Message
from shmcache.demo._report import Ledger, deep_size
from shmcache.demo._workload import Resources, make_nodes, make_pod, requested
from tests.running import wait_until

pytest.importorskip("kubernetes")
pytest.importorskip("msgspec")

DEADLINE = 120.0


class Demo:
    """A running demo in a session of its own, as a terminal would give it."""

    def __init__(self, folder: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shmcache.cli", "demo", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": folder},
        )
        self.pids: dict[str, int] = {}
        self.run = ""
        self.lines: list[str] = []

    def read_until_started(self) -> None:
        """Read the names and process ids that the demo prints before the load begins."""
        assert self.process.stderr is not None
        while "generator" not in self.pids:
            line = self.process.stderr.readline()
            assert line, self.lines
            self.lines.append(line)
            name, _, pid = line.strip().partition(": pid ")
            if pid:
                self.pids[name] = int(pid)
            elif line.startswith("run "):
                self.run = line.split()[1]

    def wait_until_bound(self, count: int) -> None:
        """Wait until ``count`` pods are bound, as the shared cache itself shows it."""
        deadline = time.monotonic() + DEADLINE
        with Store.attach(f"{self.run}-bound") as bound:
            while len(bound) < count:
                assert time.monotonic() < deadline
                bound.wait_for_change(bound.version, timeout=1.0)

    def finish(self) -> tuple[int, str]:
        """Wait for the end; return exit status and what it printed on stdout."""
        out, err = self.process.communicate(timeout=DEADLINE)
        self.lines.append(err)
        return self.process.returncode, out

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not processes_of(self.process.pid))
        assert [arena.name for arena in list_arenas() if arena.name.startswith(self.run)] == []


def processes_of(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" ")
            state, _, _, owner = rest.rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found.append(int(pid))
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., Demo]]:
    """Starts demos, and ends what is left of them after the test."""
    demos: list[Demo] = []
    # A killed supervisor cannot remove its temporary folder. It holds sockets, whose paths may
    # not be long, so it is not below pytest's.
    with tempfile.TemporaryDirectory() as folder:

        def start(*arguments: str) -> Demo:
            demos.append(Demo(folder, *arguments))
            return demos[-1]

        yield start
        for demo in demos:
            for pid in processes_of(demo.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            demo.process.communicate()
            for arena in list_arenas():
                if demo.run and arena.name.startswith(demo.run):
                    unlink(arena.name)


def assert_good(report: dict[str, Any], pods: int, workers: int) -> None:
    assert report["pods"] == report["scheduled"] == pods
    assert (report["lost"], report["duplicated"]) == (0, 0)
    assert report["workers"] == len(report["per_worker"]) == workers
    assert report["seconds"] > 0
    assert report["pods_per_second"] > 0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert 0 < report["arena_used_bytes"] <= report["arena_bytes"]
    assert report["private_copies_bytes"] > 0


def test_demo_binds_every_pod_once(start: Callable[..., Demo]) -> None:
    """The whole way: one JSON object on stdout, exit 0, and nothing left behind."""
    demo = start("--pods", "60", "--nodes", "5", "--workers", "2")
    demo.read_until_started()
    status, out = demo.finish()
    assert status == 0, demo.lines
    report = json.loads(out)
    assert_good(report, pods=60, workers=2)
    assert sum(report["per_worker"]) == 60
    assert report["api_server"] == "embedded"
    assert report["restarts"] == 0
    demo.assert_nothing_is_left()


@pytest.mark.parametrize("victim", ["worker 0", "mirror", "generator"])
def test_killed_process_loses_no_pod(start: Callable[..., Demo], victim: str) -> None:
    """A SIGKILL of any process in the middle of the run is made good, and reported."""
    demo = start("--pods", "300", "--nodes", "5", "--workers", "2")
    demo.read_until_started()
    if victim != "generator":  # which may have done its work by then, and be gone
        demo.wait_until_bound(5)
    os.kill(demo.pids[victim], signal.SIGKILL)
    status, out = demo.finish()
    assert status == 0, demo.lines
    report = json.loads(out)
    assert_good(report, pods=300, workers=2)
    assert report["restarts"] == 1
    assert f"{victim} died (exit code -9)" in demo.lines[-1]
    demo.assert_nothing_is_left()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_ends_everything(
    start: Callable[..., Demo], number: signal.Signals, status: int
) -> None:
    """Ctrl-C in the terminal, or kill, ends every process and removes every arena."""
    demo = start("--pods", "5000", "--nodes", "5", "--workers", "2")
    demo.read_until_started()
    demo.wait_until_bound(5)
    if number is signal.SIGINT:
        os.killpg(demo.process.pid, number)  # a terminal sends it to all
    else:
        os.kill(demo.process.pid, number)
    assert demo.finish() == (status, "")
    assert "Traceback" not in demo.lines[-1]
    demo.assert_nothing_is_left()


def test_interrupt_during_start_ends_everything(start: Callable[..., Demo]) -> None:
    """Ctrl-C before the workers are up is as clean."""
    demo = start("--pods", "5000", "--nodes", "5", "--workers", "2")
    assert demo.process.stderr is not None
    line = demo.process.stderr.readline()
    demo.run = line.split()[1]
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.finish() == (130, "")
    assert "Traceback" not in demo.lines[-1]
    demo.assert_nothing_is_left()


def test_processes_end_when_the_supervisor_is_killed(start: Callable[..., Demo]) -> None:
    """A SIGKILL of the supervisor leaves no process; the arenas can be removed by name."""
    demo = start("--pods", "5000", "--nodes", "5", "--workers", "2")
    demo.read_until_started()
    demo.wait_until_bound(5)
    demo.process.kill()
    wait_until(lambda: not processes_of(demo.process.pid))
    for part in ("nodes", "bound", "queue"):
        unlink(f"{demo.run}-{part}")


@pytest.mark.parametrize(
    "arguments", [["--pods", "0"], ["--workers", "x"], ["--kubeconfig", "/nowhere"], ["--what"]]
)
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option that cannot be meant ends with status 2 and a line that names it."""
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_bad_kubeconfig_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kubeconfig that says nothing gives status 1 and one line, not a traceback."""
    path = tmp_path / "config"
    path.write_text("{}")
    assert main(["demo", "--kubeconfig", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("shmcache demo: ")
    assert str(path) in error
    assert error.count("\n") == 1


def test_command_without_arguments_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`shmcache` alone is wrong usage; `shmcache --help` lists the commands."""
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "demo" in capsys.readouterr().out


def test_load_fits_on_the_nodes() -> None:
    """The made nodes have room for all pods even when few pods share few nodes."""
    for pods, nodes in ((1, 1), (1, 7), (10, 3), (500, 20)):
        load = [make_pod(number, "ns", "run") for number in range(pods)]
        room = Resources(0, 0, 0)
        for node in make_nodes(nodes, "run", load):
            offered = node["status"]["allocatable"]
            room += Resources.parse(offered, int(offered["pods"]))
            assert requested(load[0]).fits(Resources.parse(offered, int(offered["pods"])))
        wanted = Resources(0, 0, 0)
        for pod in load:
            wanted += requested(pod)
        assert wanted.fits(room)


@pytest.mark.parametrize(
    ("quantities", "expected"),
    [
        ({"cpu": "250m", "memory": "64Mi"}, Resources(250, 64 << 20, 1)),
        ({"cpu": "2", "memory": "1Gi"}, Resources(2000, 1 << 30, 1)),
        ({"cpu": "1.5", "memory": "128974848"}, Resources(1500, 128974848, 1)),
        ({"memory": "1k"}, Resources(0, 1000, 1)),
        ({}, Resources(0, 0, 1)),
    ],
)
def test_quantities_are_read(quantities: dict[str, str], expected: Resources) -> None:
    """CPU becomes millicores and memory bytes, with decimal and binary suffixes."""
    assert Resources.parse(quantities, 1) == expected


@pytest.mark.parametrize(
    ("kinds", "duplicated"),
    [
        (["bound"], 0),
        (["requeued", "bound"], 0),
        (["bound", "dropped"], 1),
        (["bound", "bound"], 1),
        (["requeued", "bound", "bound"], 1),
        (["requeued", "requeued", "dropped"], 0),
    ],
)
def test_ledger_counts_a_pod_that_two_workers_had(kinds: list[str], duplicated: int) -> None:
    """More pops than put-ins, or two accepted bindings, make a pod a duplicate."""
    ledger = Ledger(pods=1, workers=2)
    for number, kind in enumerate(kinds):
        ledger.record(Message(kind, "ns/a"), number % 2)
    assert ledger.duplicated() == duplicated


def test_requeueing_is_no_progress() -> None:
    """Pods that only go round do not keep the supervisor waiting for ever."""
    ledger = Ledger(pods=1, workers=1)
    ledger.record(Message("bound", "ns/a"), 0)
    events = ledger.events
    ledger.record(Message("requeued", "ns/b"), 0)
    assert ledger.events == events > 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PROGRESS = Progress(pods=10, created=9, queued=2, bound=7, per_worker=(4, 3))


def show(stream: io.StringIO) -> str:
    display = open_display(stream)
    display.note("hello [red]")
    display.update(PROGRESS)
    display.close()
    return stream.getvalue()


def test_display_is_plain_lines_without_a_terminal() -> None:
    """Into a file or a pipe go lines without control characters."""
    assert show(io.StringIO()) == (
        "hello [red]\ncreated 9/10  queued 2  bound 7  by worker [4, 3]\n"
    )


def test_display_is_live_on_a_terminal() -> None:
    """On a terminal with rich, the bars are drawn in place."""
    pytest.importorskip("rich")
    shown = show(Terminal())
    assert "hello [red]" in shown
    assert "worker 1" in shown


def test_display_is_plain_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich is optional: without it a terminal gets the plain lines."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "bound 7" in show(Terminal())


def test_report_is_bad_when_a_pod_is_lost() -> None:
    """A pod without a node in the final list, or missing from it, is lost."""
    ledger = Ledger(pods=3, workers=1)
    bound, unbound = make_pod(0, "ns", "run"), make_pod(1, "ns", "run")
    nodes = make_nodes(1, "run", [bound])
    bound["spec"]["nodeName"] = nodes[0]["metadata"]["name"]
    report = ledger.report(
        [bound, unbound],
        nodes,
        restarts=0,
        arena_bytes=1,
        arena_used_bytes=1,
        api_server="embedded",
    )
    assert (report.scheduled, report.lost, report.good) == (1, 2, False)
    assert "NOT" in report.as_text()
    assert json.loads(report.as_json())["lost"] == 2


def test_overcommitted_node_is_counted() -> None:
    """A node whose pods ask for more than it offers shows in the report."""
    pods = [make_pod(number, "ns", "run") for number in range(20)]
    nodes = make_nodes(20, "run", pods)
    for pod in pods:
        pod["spec"]["nodeName"] = nodes[3]["metadata"]["name"]
    report = Ledger(pods=20, workers=1).report(
        pods, nodes, restarts=0, arena_bytes=1, arena_used_bytes=1, api_server="embedded"
    )
    assert report.overcommitted_nodes == 1


def test_deep_size_counts_shared_objects_once() -> None:
    """What two places hold is counted once; containers and their content add up."""
    text = "x" * 1000
    assert deep_size([text, text]) == sys.getsizeof([text, text]) + sys.getsizeof(text)
    assert deep_size({"a": [1.5]}) == sum(map(sys.getsizeof, ({"a": 1}, "a", [1.5], 1.5)))
