"""The benchmarks' own test: every workload runs, and what fails is said."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bench import __main__ as command
from bench import measure, pods, report, rows
from bench.rivals import RIVALS, Missing, Rival
from bench.workloads import TINY, WORKLOADS, Scale, queues, stores

STANDARD = {name for name, rival in RIVALS.items() if rival.package is None}


@pytest.fixture
def scale(tmp_path: Path) -> Scale:
    """The smallest, with a folder that no other test has."""
    where = tmp_path / f"bench-{uuid.uuid4().hex[:12]}"
    where.mkdir()
    return replace(TINY, where=where)


def stand_in(name: str) -> str:
    """A rival for a workload that needs nothing beside Python."""
    entry = WORKLOADS[name]
    for rival in entry.rivals:
        if rival in STANDARD or rival.removesuffix(", single") not in RIVALS:
            return rival
    if entry.group in ("reflector", "memory"):
        pytest.importorskip("kubernetes.informer")
        return "official informer"
    return "dict" if entry.group == "read" else "multiprocessing.SimpleQueue"


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_gives_figures(name: str, scale: Scale) -> None:
    """Both sides of every workload run and give positive figures, at the smallest scale."""
    pytest.importorskip("msgspec")
    with WORKLOADS[name].prepare(scale, stand_in(name)) as (ours, theirs):
        assert theirs() > 0
        assert ours() > 0 or WORKLOADS[name].group == "memory"  # less than another, maybe


def test_rows_have_known_rivals() -> None:
    """Whatever a workload is compared with is in the table of rivals, or a figure, or itself."""
    for _, rival in rows.names():
        known = rival.removesuffix(", single") in RIVALS
        assert known or rival.startswith(("a limit of ", "itself, ", "client-go ", "full ")), rival


def test_pods_are_varied_and_of_size() -> None:
    """Pods have their own keys, about 3 kB as msgpack, different bytes, and are repeatable."""
    made = pods.payloads(pods.pods(200))
    assert len(made) == len(set(made.values())) == 200
    assert 2_700 < sum(map(len, made.values())) / 200 < 3_300
    assert len({len(data) for data in made.values()}) > 50
    assert made == pods.payloads(pods.pods(200))
    revised = pods.payloads(pods.changed(pods.pods(200), 10, 2))
    assert sum(made[key] != revised[key] for key in made) == 20


def adapter(monkeypatch: pytest.MonkeyPatch, opens: Any) -> None:
    """Put a rival of the test's own in the place of dict."""
    module = ModuleType("bench.rivals.of_a_test")
    module.opened = contextmanager(opens)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bench.rivals.of_a_test", module)
    monkeypatch.setitem(RIVALS, "dict", Rival("of_a_test", "opened", "none", "nothing-of-the-kind"))


def test_a_rival_that_is_not_installed_is_a_row(
    monkeypatch: pytest.MonkeyPatch, scale: Scale
) -> None:
    """The row says what to install."""
    absent = Rival("not_there", "opened", "none", "nothing-of-the-kind")
    monkeypatch.setitem(RIVALS, "dict", absent)
    result = rows.measured("get", "dict", scale)
    assert result["verdict"] == "failed"
    assert "pip install nothing-of-the-kind" in result["reason"]
    assert absent.version() == "nothing-of-the-kind, not installed"


def test_a_rival_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch, scale: Scale) -> None:
    """The row has the error, of which only the first line."""

    def broken(where: Path) -> Iterator[Any]:
        raise RuntimeError("no luck\ntoday")
        yield

    adapter(monkeypatch, broken)
    result = rows.measured("get", "dict", scale)
    assert result == {"verdict": "failed", "reason": "RuntimeError: no luck"}


def test_a_rival_without_its_server_is_a_row(monkeypatch: pytest.MonkeyPatch, scale: Scale) -> None:
    """What the machine does not have is said, and is no failure of the rival."""

    def missing(where: Path) -> Iterator[Any]:
        raise Missing("no server in PATH")
        yield

    adapter(monkeypatch, missing)
    result = rows.measured("get", "dict", scale)
    assert result == {"verdict": "skipped", "reason": "no server in PATH"}


@pytest.mark.parametrize(
    ("code", "deadline", "said"),
    [
        ("import time; time.sleep(600)", 0.3, "no end within 0.3 s"),
        ("import os; os.abort()", 60, "ended with -6: no message"),
        ("raise SystemExit('the last words')", 60, "ended with 1: the last words"),
    ],
    ids=["hangs", "crashes", "exits"],
)
def test_a_process_without_a_result_is_a_row(
    code: str, deadline: float, said: str, tmp_path: Path
) -> None:
    """A row whose process hangs, crashes or exits says so, and what it started is gone."""
    with (tmp_path / "errors").open("w+b") as errors:
        row = rows._ended([sys.executable, "-c", code], deadline, tmp_path, errors)
    assert row == {"verdict": "failed", "reason": said}


def test_a_consumer_that_dies_is_an_error() -> None:
    """A rival whose consumer process fails ends the measurement, rather than hanging it."""
    received = []

    def receive(count: int) -> None:
        received.append(count)
        if len(received) > 1:  # after the first, which is before the start
            sys.exit(3)

    with pytest.raises(RuntimeError, match="a consumer ended with 3"):
        measure.across(measure.Side(lambda count: None, receive), 10, 1)


def test_a_row_from_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command measures what a pattern names and writes table and JSON; a row leaves nothing."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rows, "SHM", tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command.main(["--scale", "tiny", "--only", "keyed FIFO*", "--output", str(tmp_path)])
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    (row,) = results["rows"]
    assert (row["workload"], row["rival"]) == ("add + pop", "keyed FIFO in Python")
    assert row["verdict"] in ("met", "missed")
    assert row["ratio"]["median"] > 0
    assert "keyed FIFO in Python" in out.getvalue()
    assert results["machine"]["cores"] >= 1
    assert list(tmp_path.glob("shmbench-*")) == []


def test_nothing_matches(capsys: pytest.CaptureFixture[str]) -> None:
    """A pattern that names nothing is an error of usage."""
    assert command.main(["--only", "nothing of the kind"]) == 2
    assert "--list" in capsys.readouterr().err


def figures(median: float) -> dict[str, float]:
    return {"median": median, "p10": median * 0.9, "p90": median * 1.1}


def fixed_row(
    rival: str, target: float | None, verdict: str, ratio: float | None
) -> dict[str, Any]:
    row: rows.Row = {
        "workload": "get",
        "group": "read",
        "meaning": "to the object",
        "unit": "µs",
        "rival": rival,
        "target": target,
        "verdict": verdict,
        "reason": "" if ratio is not None else "not today",
    }
    if ratio is not None:
        row.update(ours=figures(ratio), theirs=figures(1.0), ratio=figures(ratio))
    return row


RESULTS = {
    "scale": "quick",
    "machine": {
        "time": "2026-01-01 00:00:00 UTC",
        "cpu": "some CPU",
        "cores": 2,
        "memory_gib": 8.0,
        "kernel": "6.1",
        "python": "3.11.7",
        "shmcache": "0.1.0",
        "load": [0.1, 0.2, 0.3],
    },
    "rows": [
        fixed_row("dict", 3.0, "met", 2.5),
        fixed_row("LMDB", 0.4, "missed", 0.5),
        fixed_row("UltraDict", None, "known", 0.00001),
        fixed_row("diskcache", 1.0, "failed", None),
        fixed_row("memcached", 1.0, "skipped", None),
    ],
    "seconds": 12.0,
    "load_after": [0.4, 0.2, 0.3],
    "rivals": {"dict": {"version": "Python 3.11.7", "settings": "as it is"}},
}


def test_the_report_of_fixed_results() -> None:
    """Text and Markdown have ours, theirs, ratio with spread, target and verdict of every row."""
    summary = "1 targets met, 1 missed; 1 rows without a target, 1 failed, 1 skipped"
    text, page = report.text(RESULTS), report.markdown(RESULTS)
    assert summary in text
    assert summary in page
    assert "| get | dict | 2.5 µs | 1 µs | 2.5 (2.25 to 2.75) | ≤ 3 | met |" in page
    assert "| get | LMDB | 0.5 µs | 1 µs | 0.5 (0.45 to 0.55) | ≤ 0.4 | MISSED |" in page
    assert "| get | UltraDict | 1e-05 µs | 1 µs | 1e-05 (9e-06 to 1.1e-05) |  |  |" in page
    assert "| get | diskcache |  |  |  | ≤ 1 | failed: not today |" in page
    assert "skipped: not today" in text
    assert "some CPU, 2 cores" in page
    assert "- **get**: to the object" in page
    assert "| dict | Python 3.11.7 | as it is |" in page


def test_the_plots_of_fixed_results(tmp_path: Path) -> None:
    """One small SVG a group, with a bar for every row that has a ratio, and always the same."""
    pytest.importorskip("matplotlib")
    (path,) = report.plots(RESULTS, tmp_path)
    drawn = path.read_text()
    assert path.name == "read.svg"
    assert len(drawn) < 50_000
    assert drawn.count("get  |  ") >= 3
    assert "diskcache" not in drawn
    assert report.plots(RESULTS, tmp_path) == [path]
    assert path.read_text() == drawn


def test_the_figures_on_the_page_are_those_of_the_results() -> None:
    """Each ratio, target and verdict that docs/performance.md shows is the one in bench/results."""
    root = Path(__file__).resolve().parents[1]
    rows = {
        (row["workload"], row["rival"]): row
        for row in json.loads((root / "bench/results/results.json").read_text())["rows"]
    }
    page = (root / "docs/performance.md").read_text().partition("## In one run")[2]
    shown = [
        tuple(cell.strip() for cell in line.split("|")[1:-1])
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith("| work |")
    ]
    assert shown
    for workload, rival, ratio, target in shown:
        row = rows[workload, rival]
        assert ratio == report.figure(row["ratio"]["median"]), (workload, rival)
        missed = ", missed" if row["verdict"] == "missed" else ""
        assert target == f"≤ {row['target']:.3g}{missed}", (workload, rival)


def test_a_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`per_item` calls with items in turn, and its figure is the time of a call, in µs."""
    seen: list[int] = []
    clock = SimpleNamespace(perf_counter=lambda: 2e-6 * len(seen))
    monkeypatch.setattr(measure, "time", clock)
    took = measure.per_item(seen.append, [1, 2, 3], 0.001)
    assert seen[:7] == [1, 2, 3, 1, 2, 3, 1]
    assert took == pytest.approx(2)
    assert 2e-6 * len(seen) >= 0.001


def test_a_list_of_two_instants_is_noticed() -> None:
    """The check of snapshots passes what is one instant, and fails what is older in one place."""
    assert stores.one_instant([7, 5, 6])
    assert not stores.one_instant([7, 5, 3])
    assert not stores.one_instant([7, 7, 6])


def test_spreads() -> None:
    """Median, tenth and ninetieth percentile."""
    assert measure.spread([5, 1, 3, 2, 4]) == measure.Spread(3, 1, 5)
    assert measure.percentile([1.0], 0.999) == 1.0


def test_batches_and_loops_take_what_was_sent() -> None:
    """The two kinds of loops put and take exactly as many items as they are told."""
    queue: list[Any] = []
    side = queues.loops(queue.append, lambda: queue.pop(0), list(range(10)))
    side.send(7)
    assert queue == list(range(7))
    side.receive(7)
    assert queue == []
    sizes: list[int] = []

    def put_many(items: list[int]) -> None:
        sizes.append(len(items))
        queue.extend(items)

    def get_many(most: int) -> list[int]:
        taken = queue[: min(most, 3)]
        del queue[: len(taken)]
        return taken

    side = queues.batches(put_many, get_many, list(range(200)))
    side.send(2 * queues.BATCH)
    assert sizes == [queues.BATCH] * 2
    side.receive(2 * queues.BATCH)
    assert queue == []
