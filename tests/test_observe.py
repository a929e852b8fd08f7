"""Metrics of all arenas from one process, whatever happens to the arenas meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import _arena
from shmcache.sources.memory import MemorySource
from tests.procs.control import (
    forked,
    path_of,
    start,
    stop_as_owner,
    stopped_owner,
    until,
    wait_for,
)

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from shmcache.observe import prometheus
from shmcache.observe.prometheus import ShmCacheCollector

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "shmcache.cli", "metrics"]

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="gives a file to another user")


def registry_of(collector: ShmCacheCollector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


def samples(text: str, name: str) -> dict[str, float]:
    """The samples of one arena in a text of metrics, by name and by what other labels they have."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("arena") == name:
                others = {k: v for k, v in sample.labels.items() if k not in ("arena", "kind")}
                found[sample.name + "".join(f" {k}={v}" for k, v in sorted(others.items()))] = (
                    sample.value
                )
    return found


def scrape(name: str, **options: Any) -> dict[str, float]:
    """What a collector of this one arena exports."""
    registry = registry_of(ShmCacheCollector([name], **options))
    return samples(generate_latest(registry).decode(), name)


@pytest.fixture
def _only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector of all arenas sees those alone whose names begin with `name`: it would hold
    handles and locks of what other tests count."""
    listed = _arena.list_arenas
    monkeypatch.setattr(
        _arena, "list_arenas", lambda: [info for info in listed() if info.name.startswith(name)]
    )


def exported() -> dict[str, str]:
    """All metrics by name, with their types, as Prometheus sees them."""
    suffix = {"counter": "_total", "info": "_info"}
    return {
        metric.name + suffix.get(metric.type, ""): metric.type
        for metric in ShmCacheCollector([], per_worker=True).describe()
    }


# --- names ----------------------------------------------------------------------------------------


def breaks_rules(name: str, kind: str) -> bool:
    """Whether a name is against the rules of Prometheus: lower case, base units, a counter ends
    in _total and nothing else does."""
    return (
        re.fullmatch(r"shmcache(_[a-z]+)+", name) is None
        or (kind == "counter") != name.endswith("_total")
        or re.search(r"milli|micro|nano|_(ns|ms|kb|mb|kib|mib|minutes|percent)\b", name) is not None
        or ("seconds" in name and not name.endswith("_seconds"))
        or ("bytes" in name and not name.endswith("_bytes"))
    )


def test_names_follow_the_rules() -> None:
    """Every metric has a name by the rules of Prometheus, and a help text that is a sentence."""
    assert len(exported()) > 25
    assert [name for name, kind in exported().items() if breaks_rules(name, kind)] == []
    for metric in ShmCacheCollector([], per_worker=True).describe():
        assert metric.documentation[0].isupper() or metric.documentation[0] == "1"
        assert metric.documentation.endswith(".")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shmcache_pops", "counter"),
        ("shmcache_depth_total", "gauge"),
        ("shmcache_repair_ns", "gauge"),
        ("shmcache_bytes_used", "gauge"),
        ("Shmcache_pops_total", "counter"),
    ],
)
def test_the_check_of_names_can_fail(name: str, kind: str) -> None:
    """A name that breaks a rule is found."""
    assert breaks_rules(name, kind)


def test_promtool_has_no_complaint(store: shmcache.Store) -> None:
    """promtool, where it is installed, finds nothing in the metrics."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    with shmcache.Reflector(MemorySource(), None, store):
        assert store.wait_for_sync(30)
        text = generate_latest(registry_of(ShmCacheCollector([store.name, "no-such-arena"])))
    store.unlink()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_registering_reads_nothing_and_takes_the_names(
    store: shmcache.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry learns the names without a scrape, and refuses a second collector of them."""
    reads: list[str] = []
    monkeypatch.setattr(prometheus, "attach", lambda name, **_: reads.append(name))
    for registry in (CollectorRegistry(), CollectorRegistry(auto_describe=True)):
        registry.register(ShmCacheCollector([store.name]))
        with pytest.raises(ValueError, match="shmcache_queue_pops"):
            registry.register(ShmCacheCollector())
    assert reads == []
    store.unlink()


@pytest.mark.parametrize("file", ["prometheus-rules.yml", "grafana.json"])
def test_documents_name_what_is_exported(file: str) -> None:
    """The example alerts and the dashboard are well formed, and each metric in them is exported."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "docs" / file).read_text()
    document = json.loads(text) if file.endswith("json") else yaml.safe_load(text)
    expressions = list(expressions_of(document))
    assert len(expressions) >= 8
    for expression in expressions:
        named = re.findall(r"shmcache_\w+", expression)
        assert named, expression
        assert set(named) <= exported().keys()


def expressions_of(document: Any) -> Iterator[str]:
    """Every value of a key `expr`, at whatever depth."""
    if isinstance(document, dict):
        yield from (value for key, value in document.items() if key == "expr")
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            yield from expressions_of(part)


def test_promtool_accepts_the_alerts() -> None:
    """promtool, where it is installed, parses the example alerts."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    rules = str(ROOT / "docs/prometheus-rules.yml")
    done = subprocess.run([promtool, "check", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- figures --------------------------------------------------------------------------------------


def _write(fifo: shmcache.FIFO, writer: int, count: int) -> None:
    with fifo:
        for i in range(count):
            fifo.add_raw(f"{writer}/{i}", b"x" * 100)


def _pop(fifo: shmcache.FIFO, count: int) -> None:
    with fifo:
        for _ in range(count):
            fifo.pop_raw(30)


def test_one_process_exports_what_others_do(fifo: shmcache.FIFO) -> None:
    """While two processes write and one pops, the counters that a fourth exports only grow, and
    in the end they are exactly what was done."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_write, args=(fifo, w, 1500)) for w in range(2)]
    others.append(context.Process(target=_pop, args=(fifo, 1000)))
    registry = registry_of(ShmCacheCollector([fifo.name]))
    for process in others:
        process.start()
    before: dict[str, float] = {}
    alive = True
    while alive:
        alive = any(process.is_alive() for process in others)
        seen = samples(generate_latest(registry).decode(), fifo.name)
        assert seen["shmcache_up"] == 1
        totals = {name: value for name, value in seen.items() if name.endswith("_total")}
        assert all(totals[name] >= value for name, value in before.items())
        before = totals
    for process in others:
        process.join()
        assert process.exitcode == 0
        process.close()
    stats = fifo.stats()
    assert seen["shmcache_writes_total"] == 3000
    assert seen["shmcache_queue_pops_total"] == 1000
    assert seen["shmcache_queue_depth"] == seen["shmcache_entries"] == 2000
    assert seen["shmcache_attached_handles"] == 1  # ours, and not that of the collector
    assert seen["shmcache_capacity_bytes"] == 16 << 20
    assert seen["shmcache_queue_oldest_age_seconds"] >= 0
    assert seen["shmcache_workers"] == len(fifo.workers())
    assert seen["shmcache_used_bytes"] == stats.used_bytes
    assert seen["shmcache_committed_bytes"] == stats.committed_bytes
    assert seen["shmcache_created_timestamp_seconds"] == stats.created_unix_ns / 1e9


def test_reads_of_all_processes(store: shmcache.Store) -> None:
    """Reads, and those that had to decode, are counted; also those of a process that ended."""
    store.add({"metadata": {"name": "a"}})

    def read() -> None:
        with shmcache.Store.attach(store.name) as ours:
            for _ in range(300):
                ours.get_by_key("a")

    assert forked(read) == 0
    seen = scrape(store.name)
    assert seen["shmcache_reads_total"] == 300
    assert seen["shmcache_read_misses_total"] == 1
    store.unlink()


def test_workers_are_counted_and_named_only_if_asked_for(fifo: shmcache.FIFO) -> None:
    """By default there is no series for each worker; with per_worker there is one for each that
    lives, by pid, and none for those that ended."""
    fifo.add_raw("a", b"1")
    fifo.add_raw("b", b"1")
    assert forked(lambda: fifo.pop_raw(0)) == 0
    fifo.pop_raw(0)
    seen = scrape(fifo.name)
    assert seen["shmcache_workers"] == 1
    assert seen["shmcache_queue_pops_total"] == 2
    assert seen["shmcache_queue_oldest_age_seconds"] == 0  # of an empty queue
    assert not [sample for sample in seen if "pid" in sample]
    named = scrape(fifo.name, per_worker=True)
    assert {sample: value for sample, value in named.items() if "pid" in sample} == {
        f"shmcache_worker_pops_total pid={os.getpid()}": 1
    }


def test_handles_of_one_process_are_one_worker(fifo: shmcache.FIFO) -> None:
    """The pops of several handles of a process are one series: two of one name are an error."""
    with shmcache.FIFO.attach(fifo.name) as second:
        for key, handle in (("a", fifo), ("b", second)):
            handle.add_raw(key, b"1")
            handle.pop_raw(0)
        seen = scrape(fifo.name, per_worker=True)
    assert seen[f"shmcache_worker_pops_total pid={os.getpid()}"] == 2
    assert seen["shmcache_workers"] == 2


def test_each_kind_has_its_own_metrics(name: str) -> None:
    """Depth and pops are of a FIFO, indexes of an Indexer; the label says which it is."""
    with (
        shmcache.FIFO.create(f"{name}-f", capacity="1MiB") as fifo,
        shmcache.Indexer.create(f"{name}-i", capacity="1MiB") as indexer,
    ):
        fifo.add_raw("a", b"1")
        indexer.add({"metadata": {"namespace": "a", "name": "b"}})
        names = [fifo.name, indexer.name]
        text = generate_latest(registry_of(ShmCacheCollector(names, per_worker=True))).decode()
        fifo.unlink()
        indexer.unlink()
    assert f'shmcache_entries{{arena="{fifo.name}",kind="FIFO"}} 1.0' in text
    assert f'shmcache_index_values{{arena="{indexer.name}",kind="Indexer"}} 1.0' in text
    assert "shmcache_index_values" not in samples(text, fifo.name)
    assert not [s for s in samples(text, indexer.name) if "queue" in s or "pops" in s]


def test_a_reflector_is_exported_from_any_process(store: shmcache.Store, pod: Any) -> None:
    """State, counters, ages and version of the reflector are those of its process, and a stopped
    one is not alive; an arena without one has none of it."""
    assert not [name for name in scrape(store.name) if name.startswith("shmcache_reflector")]
    assert scrape(store.name)["shmcache_synced"] == 0
    source = MemorySource([pod("a"), pod("b")])
    with shmcache.Reflector(source, None, store, name="pods"):
        assert store.wait_for_sync(30)
        until(lambda: store.reflector_status().state == "watching")
        seen = scrape(store.name)
    after, version = scrape(store.name), store.resource_version
    store.unlink()
    assert seen["shmcache_reflector_info reflector=pods"] == 1
    assert seen["shmcache_reflector_alive"] == seen["shmcache_synced"] == 1
    assert seen["shmcache_reflector_lists_total"] == 1
    assert seen["shmcache_resource_version"] == float(version)
    assert seen["shmcache_reflector_contact_age_seconds"] >= 0
    assert "shmcache_reflector_lists_created" not in seen  # it is not as old as the arena
    assert "shmcache_reflector_error_age_seconds" not in seen
    states = {name: value for name, value in after.items() if "reflector_state" in name}
    assert [name for name, value in states.items() if value] == [
        "shmcache_reflector_state state=stopped"
    ]
    assert len(states) == 4
    assert after["shmcache_reflector_alive"] == 0


@pytest.mark.parametrize("version", ["", "abc-1", "12x", "\uff19", "9" * 100])
def test_a_version_that_is_no_number_is_left_out(store: shmcache.Store, version: str) -> None:
    """Versions are opaque: only one that is a decimal number becomes a gauge."""
    store.replace([], "12")
    assert scrape(store.name)["shmcache_resource_version"] == 12
    store.replace([], version)
    assert "shmcache_resource_version" not in scrape(store.name)
    store.unlink()


def test_openmetrics_has_the_time_of_creation(store: shmcache.Store) -> None:
    """In the OpenMetrics format each counter of the arena has its creation time."""
    text = openmetrics.generate_latest(registry_of(ShmCacheCollector([store.name]))).decode()
    created = store.stats().created_unix_ns / 1e9
    store.unlink()
    found = {s.name: s.value for f in read_openmetrics(text) for s in f.samples}
    totals = [name for name in found if name.endswith("_total")]
    assert totals
    assert {found[total.replace("_total", "_created")] for total in totals} == {created}


def test_a_new_arena_of_the_name_counts_anew(name: str) -> None:
    """An arena that is made anew starts at 0, with another creation time and its own kind."""
    with shmcache.Store.create(name, capacity="1MiB") as store:
        store.add_raw("a", b"1")
        first = scrape(name)
        store.unlink()
        with shmcache.FIFO.create(name, capacity="1MiB"):
            second = scrape(name)
    assert (first["shmcache_writes_total"], second["shmcache_writes_total"]) == (1, 0)
    assert second["shmcache_writes_created"] > first["shmcache_writes_created"]
    assert "shmcache_queue_depth" in second
    assert "shmcache_queue_depth" not in first


# --- what may happen to arenas --------------------------------------------------------------------


def test_a_killed_writer_shows_as_a_repair(store: shmcache.Store) -> None:
    """After a writer was killed in the middle of a change the arena can be read, before and after
    the next writer has repaired it; then the repair is counted and its time known."""

    def write() -> None:
        with shmcache.Store.attach(store.name, writable=True) as ours:
            while True:
                ours.replace([], "1")

    pid = start(write)
    stop_as_owner(pid, store.name, when=lambda seen: seen.dirty)
    os.kill(pid, signal.SIGKILL)
    wait_for(pid)
    seen = scrape(store.name)
    assert (seen["shmcache_up"], seen["shmcache_repairs_total"]) == (1, 0)
    store.add_raw("a", b"1")
    seen = scrape(store.name)
    assert (seen["shmcache_up"], seen["shmcache_repairs_total"]) == (1, 1)
    assert seen["shmcache_last_repair_duration_seconds"] > 0
    store.unlink()


def test_a_stopped_owner_of_the_lock(store: shmcache.Store, name: str) -> None:
    """An arena whose lock a stopped process holds is read as ever: no figure needs the lock."""
    store.replace([], "7")
    with stopped_owner(name, store.check):
        seen = scrape(name)
    assert seen["shmcache_up"] == 1
    assert seen["shmcache_resource_version"] == 7
    assert seen["shmcache_committed_bytes"] == store.stats().committed_bytes
    store.unlink()


@pytest.mark.parametrize("kind", ["busy", "unfinished"])
def test_an_arena_that_is_being_made(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A scrape does not wait for who makes an arena, as attach would."""
    info = shmcache.ArenaInfo("a", kind, "", 0, 0, True, 0, 0o600)
    monkeypatch.setattr(_arena, "look", lambda _: info)
    monkeypatch.setattr(prometheus, "attach", lambda *_, **__: pytest.fail("attached"))
    assert scrape("a") == {
        "shmcache_up": 0,
        "shmcache_unreadable_info reason=IncompatibleArenaError": 1,
    }


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, 8192)


def foreign(path: Path) -> None:
    path.write_bytes(b"not an arena" * 1000)


def unfinished(path: Path) -> None:
    os.truncate(path, 0)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_another(path: Path) -> None:
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (missing, "ArenaNotFoundError"),
        (cut, "CorruptArenaError"),
        (foreign, "IncompatibleArenaError"),
        (unfinished, "IncompatibleArenaError"),
        (folder, "IncompatibleArenaError"),
        pytest.param(of_another, "ArenaPermissionError", marks=needs_root),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_cannot_be_read(
    name: str, harm: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an arena that cannot be read the metrics say that and why, the log once and what to do,
    and once more when it can be read; the arenas beside it are exported each time."""
    other = f"{name}-other"
    with shmcache.Store.create(other, capacity="1MiB") as healthy:
        shmcache.Store.create(name, capacity="1MiB").close()
        harm(path_of(name))
        registry = registry_of(ShmCacheCollector([name, other]))
        texts = [generate_latest(registry).decode() for _ in range(2)]
        path = path_of(name)
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        with caplog.at_level("INFO", "shmcache"):
            shmcache.Store.create(name, capacity="1MiB").close()
            mended = generate_latest(registry).decode()
        healthy.unlink()
    for text in texts:
        assert samples(text, name) == {
            "shmcache_up": 0,
            f"shmcache_unreadable_info reason={reason}": 1,
        }
        assert samples(text, other)["shmcache_up"] == 1
    assert samples(mended, name)["shmcache_up"] == 1
    failed, back = caplog.records
    assert failed.name == back.name == "shmcache.observe.prometheus"
    assert (failed.levelname, failed.arena, failed.error) == ("WARNING", name, reason)  # type: ignore[attr-defined]
    assert name in failed.getMessage()
    assert (back.levelname, back.arena) == ("INFO", name)  # type: ignore[attr-defined]


@needs_root
def test_owners_are_accepted_by_number_and_name(name: str) -> None:
    """A collector of root exports the arenas of the users that it is told to trust."""
    with shmcache.Store.create(name, capacity="1MiB"):
        os.chown(path_of(name), 1, 1)  # daemon, everywhere
        assert scrape(name)["shmcache_up"] == 0
        assert scrape(name, owners=[1])["shmcache_up"] == 1
        assert scrape(name, owners=[2, "daemon"])["shmcache_up"] == 1
        os.chown(path_of(name), 0, 0)


@pytest.mark.usefixtures("_only")
def test_all_arenas_as_they_come_and_go(name: str) -> None:
    """Without names every arena is exported, from the scrape after it was made to the one before
    it was unlinked; one that vanishes after it was listed is no failure."""
    registry = registry_of(ShmCacheCollector())

    def up() -> set[str]:
        text = generate_latest(registry).decode()
        families = text_string_to_metric_families(text)
        return {s.labels["arena"] for f in families if f.name == "shmcache_up" for s in f.samples}

    assert up() == set()
    with (
        shmcache.Store.create(f"{name}-1", capacity="1MiB") as one,
        shmcache.Store.create(f"{name}-2", capacity="1MiB") as two,
    ):
        assert up() == {one.name, two.name}
        one.unlink()
        assert up() == {two.name}
        listed = _arena.list_arenas()
        two.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_arena, "list_arenas", lambda: listed)
            assert up() == set()
        assert up() == set()


def test_a_host_without_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is no /dev/shm a scrape gives nothing, and the log says why."""
    monkeypatch.setattr(_arena, "_DIRECTORY", str(tmp_path / "none"))
    assert list(ShmCacheCollector().collect()) == []
    assert "cannot list the arenas" in caplog.text


def test_between_scrapes_nothing_is_held(name: str) -> None:
    """An arena that all others have left is not kept in use by who exports it."""
    shmcache.Store.create(name, capacity="1MiB").close()
    registry = registry_of(ShmCacheCollector([name]))
    assert samples(generate_latest(registry).decode(), name)["shmcache_attached_handles"] == 0
    assert not _arena.look(name).in_use


@pytest.mark.usefixtures("_only")
def test_threads_scrape_at_once(name: str) -> None:
    """Any number of threads may scrape one collector while arenas are made and unlinked."""
    registry = registry_of(ShmCacheCollector())
    ended = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not ended.is_set():
                list(text_string_to_metric_families(generate_latest(registry).decode()))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        with shmcache.Store.create(f"{name}-x", capacity="1MiB") as store:
            store.add_raw("a", b"1")
            store.unlink()
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_forked_child_scrapes_too(store: shmcache.Store) -> None:
    """A collector works on both sides of a fork."""
    registry = registry_of(ShmCacheCollector([store.name]))

    def look() -> None:
        seen = samples(generate_latest(registry).decode(), store.name)
        assert seen["shmcache_up"] == 1

    look()
    assert forked(look) == 0
    look()
    store.unlink()


def test_arguments_that_cannot_be_meant() -> None:
    """A name in the place of names, a name that no arena has, and a user that is none are refused
    when the collector is made."""
    with pytest.raises(TypeError, match=r"\['pods'\]"):
        ShmCacheCollector("pods")
    with pytest.raises(TypeError, match=r"\['root'\]"):
        ShmCacheCollector(owners="root")
    with pytest.raises(shmcache.InvalidNameError, match="a/b"):
        ShmCacheCollector(["a/b"])
    with pytest.raises(ValueError, match="no-such-user"):
        ShmCacheCollector(owners=["no-such-user"])


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_the_command_prints_once(fifo: shmcache.FIFO) -> None:
    """`shmcache metrics --once` prints what a textfile collector takes, also of what is not
    there."""
    fifo.add_raw("a", b"1")
    done = run("--once", fifo.name, "no-such-arena")
    assert (done.returncode, done.stderr) == (0, "")
    assert samples(done.stdout, fifo.name)["shmcache_queue_depth"] == 1
    assert samples(done.stdout, "no-such-arena")["shmcache_up"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves(fifo: shmcache.FIFO, number: signal.Signals) -> None:
    """`shmcache metrics --port 0` says where it serves, serves each scrape anew, and ends well on
    a signal."""
    with subprocess.Popen(
        [*COMMAND, "--port", "0", fifo.name], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+/metrics", line)
            assert url is not None, line
            for depth in range(2):
                with urllib.request.urlopen(url[0], timeout=30) as answer:
                    text = answer.read().decode()
                assert samples(text, fifo.name)["shmcache_queue_depth"] == depth
                fifo.add_raw("a", b"1")
            process.send_signal(number)
            assert process.wait(30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_a_port_that_is_taken() -> None:
    """A port that somebody else has is one line that says so, and status 1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run("--port", str(port), "no-such-arena")
    assert done.returncode == 1
    assert f"port {port}: Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--once", "a/b"], "'a/b' cannot be the name"),
        (["--once", "--owner", "no-such-user"], "no user 'no-such-user'"),
        (["--port", "70000"], "from 0 to 65535, not '70000'"),
        (["--port", "1", "--once"], "not allowed with"),
        ([], "--port --once"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    """Arguments that cannot be meant are status 2 and a line that says which."""
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra() -> None:
    """Without prometheus-client the command and the module say what to install."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from shmcache.cli import main\n"
        "status = main(['metrics', '--once'])\n"
        "try:\n"
        "    import shmcache.observe.prometheus\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    for text in (done.stdout, done.stderr):
        assert "pip install 'shmcache[metrics]'" in text
    assert "Traceback" not in done.stderr
