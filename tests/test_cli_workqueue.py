"""The commands of `shmcache` on a WorkQueue, which has keys and no objects."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator

import pytest

from shmcache import FastSlow, WorkQueue
from shmcache.cli._details import details
from shmcache.cli._sample import Sampler
from shmcache.cli._web import _entry, _keys
from shmcache.cli.get import complete_keys
from tests.procs.control import until

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def queue(name: str) -> Iterator[WorkQueue]:
    """Keys in every state: queued, queued and in flight, delayed, dead."""
    limiter = FastSlow(5000.0, 5000.0, 0)
    with WorkQueue.create(name, capacity="4MiB", max_attempts=2, rate_limiter=limiter) as made:
        made.add("ns/dead")
        for _ in range(2):
            with WorkQueue.attach(name) as dying:
                dying.get(60)
        made.add_many(["ns/work", "ns/queued"])
        assert made.get(60) == "ns/work"
        made.add("ns/work")
        made.add_rate_limited("other/late")
        until(lambda: bool(made.dead_letters()))
        yield made


STATES = [
    ("ns/dead", "dead", 2),
    ("ns/queued", "queued", 0),
    ("ns/work", "queued", 0),
    ("ns/work", "in flight", 0),
    ("other/late", "delayed", 1),
]


def test_list_has_every_state(queue: WorkQueue, run: Run) -> None:
    """list says of each key whether it is queued, with whom, when it is due, how often it has
    failed; --prefix and --limit choose, --keys has each key once."""
    status, out, _ = run("list", queue.name, "-o", "json")
    found = json.loads(out)
    assert (status, [(one["key"], one["state"], one["failures"]) for one in found]) == (0, STATES)
    assert [one["pid"] for one in found] == [None, None, None, os.getpid(), None]
    assert [one["due"] is not None for one in found] == [False] * 4 + [True]
    assert 4000 < found[4]["due"] <= 5000
    _, out, _ = run("list", queue.name)
    assert out.splitlines()[0].split() == ["KEY", "STATE", "DUE", "FAILURES", "PID"]
    assert out.splitlines()[1].split() == ["ns/dead", "dead", "-", "2", "-"]
    _, out, err = run("list", queue.name, "--prefix", "ns/", "--keys", "--limit", "2")
    assert (out.split(), err) == (["ns/dead", "ns/queued"], "2 of 3 shown (--limit)\n")
    _, out, _ = run("list", queue.name, "--keys", "-o", "json")
    keys = ["ns/dead", "ns/queued", "ns/work", "other/late"]
    assert [one["key"] for one in json.loads(out)] == keys
    _, _, err = run("list", queue.name, "--prefix", "nothing")
    assert err == "none of 2 entries\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "-l", "app=web"], "no labels or fields to select by: use --prefix"),
        (["list", "--field-selector", "a=b"], "no labels or fields to select by: use --prefix"),
        (["list", "--index", "node=n1"], "is a WorkQueue, and only an Indexer has indexes"),
        (["get", "ns/queued"], "is a WorkQueue, which has keys and no objects to get"),
        (["watch"], "is a WorkQueue, which has keys and no objects to watch"),
    ],
)
def test_what_needs_objects_is_refused(
    arguments: list[str], message: str, queue: WorkQueue, run: Run
) -> None:
    """What only objects have is wrong usage, and the message says what to do instead."""
    command, *rest = arguments
    status, out, err = run(command, queue.name, *rest)
    assert (status, out) == (2, "")
    assert message in err


def test_reflect_does_not_fill_it(queue: WorkQueue, run: Run, tmp_path: object) -> None:
    """No reflector is started on it, and it is as it was."""
    status, _, err = run("reflect", "Job", "--dir", str(tmp_path), "--name", queue.name)
    assert status == 1
    assert "is a WorkQueue, which has no objects" in err
    assert queue.queued() == ["ns/queued", "ns/work"]


def test_ls_stat_check(queue: WorkQueue, run: Run) -> None:
    """ls has it with its kind, stat its figures and whether it is shut down, check that it is
    whole."""
    _, out, _ = run("ls", queue.name, "-o", "json")
    (line,) = json.loads(out)
    assert (line["kind"], line["entries"], line["codec"]) == ("WorkQueue", 2, "raw")
    assert (line["reflector"], line["problem"]) == ("none", None)
    _, out, _ = run("stat", queue.name, "-o", "json")
    found = json.loads(out)
    assert (found["in_flight"], found["delayed"], found["dead_letters"]) == (1, 1, 1)
    assert not found["shutting_down"]
    assert "resource_version" not in found
    _, out, _ = run("stat", queue.name)
    assert "delayed           1" in out
    assert "shut down" not in out
    queue.shutdown()
    _, out, _ = run("stat", queue.name)
    assert "shut down" in out
    _, out, _ = run("stat", queue.name, "-i", "0.01", "-n", "2", "-o", "csv")
    header, first, _ = out.splitlines()
    assert header.startswith("time,entries,writes_per_second")
    assert first.split(",")[1] == "2"
    assert run("check", queue.name)[:2] == (0, f"{queue.name}: whole\n")


def test_claims_and_dead(queue: WorkQueue, run: Run) -> None:
    """claims has who works on what; dead has what was given up, and queues it anew or drops it."""
    _, out, _ = run("claims", queue.name, "-o", "json")
    assert [(one["key"], one["pid"], one["attempt"]) for one in json.loads(out)] == [
        ("ns/work", os.getpid(), 1)
    ]
    _, out, _ = run("dead", queue.name, "-o", "json")
    assert [(one["key"], one["attempts"]) for one in json.loads(out)] == [("ns/dead", 2)]
    assert run("dead", queue.name, "--retry", "ns/dead")[:2] == (0, "retried ns/dead\n")
    assert (queue.dead_letters(), queue.num_requeues("ns/dead")) == ([], 0)
    assert "ns/dead" in queue.queued()


def test_top_and_metrics(queue: WorkQueue, run: Run) -> None:
    """top has what waits, is in flight, delayed and dead; the metrics have the same, and nothing of
    a reflector."""
    (sample,) = Sampler([queue.name]).take()
    assert (sample.kind, sample.queued, sample.reflector, sample.problem) == (
        "WorkQueue",
        2,
        None,
        "",
    )
    lines = [line for line, _ in details(sample)]
    assert "delayed 1   in flight 1   dead letters 1" in lines
    status, out, _ = run("top", "--once", queue.name)
    assert status == 0
    assert queue.name in out
    pytest.importorskip("prometheus_client")
    _, out, _ = run("metrics", "--once", "--per-worker", queue.name)
    labels = f'{{arena="{queue.name}",kind="WorkQueue"}}'
    for metric, value in (("depth", 2), ("delayed", 1), ("in_flight", 1), ("dead_letters", 1)):
        assert f"shmcache_queue_{metric}{labels} {value}.0" in out
    assert f'shmcache_up{{arena="{queue.name}"}} 1.0' in out
    assert f'kind="WorkQueue",pid="{os.getpid()}"' in out
    assert "shmcache_synced" not in out
    assert "shmcache_reflector" not in out


def test_the_page_has_its_keys(queue: WorkQueue) -> None:
    """The page of top lists the queued keys, and says that they are no objects; the shell offers
    none to get."""
    assert _keys(queue.name, "WORK") == {"entries": 2, "matching": 1, "keys": ["ns/work"]}
    assert "no objects" in _entry(queue.name, "ns/work")["text"]
    assert complete_keys("ns", argparse.Namespace(name=queue.name, owner=None)) == []


def test_rm(queue: WorkQueue, run: Run) -> None:
    """A queue that is in use is kept, and removed by force."""
    status, _, err = run("rm", queue.name)
    assert status == 1
    assert "is in use by process" in err
    assert run("rm", "--force", queue.name)[0] == 0
